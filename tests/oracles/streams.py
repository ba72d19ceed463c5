"""Random streams under next-step autoreset: terminations, truncations, both at once, reset rows, unrolls that begin
with one."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from rltrain.rollout.types import Trajectory

RUN, TERMINATED, TRUNCATED, BOTH = range(4)


def make(ends: list[list[int]], begin: list[int], seed: int) -> tuple[Trajectory, torch.Tensor]:
    """A trajectory of [T, B] whose rows would end as `ends` says, and values [T+1, B].

    begin[b]: 0 in mid-episode, 1 at its first row, 2 with a reset row. A row after an end is a reset row.
    """
    rng = np.random.default_rng(seed)
    rows, streams = len(ends), len(begin)
    terminated, truncated = np.zeros((rows, streams), bool), np.zeros((rows, streams), bool)
    first = np.zeros((rows + 1, streams), bool)
    for b in range(streams):
        first[0, b] = begin[b] == 1
        over = begin[b] == 2
        for t in range(rows):
            if over:
                first[t + 1, b], over = True, False
            else:
                terminated[t, b] = ends[t][b] in (TERMINATED, BOTH)
                truncated[t, b] = ends[t][b] in (TRUNCATED, BOTH)
                over = ends[t][b] != RUN
    reward = rng.normal(size=(rows, streams)).astype(np.float32)
    reward[first[1:]] = 0.0
    numbers = torch.arange(streams)
    trajectory = Trajectory(
        obs=torch.from_numpy(rng.normal(size=(rows + 1, streams, 3)).astype(np.float32)),
        action=torch.from_numpy(rng.integers(0, 4, (rows, streams))),
        reward=torch.from_numpy(reward),
        terminated=torch.from_numpy(terminated),
        truncated=torch.from_numpy(truncated),
        first=torch.from_numpy(first),
        version=torch.zeros_like(numbers),
        stream=numbers,
        row=torch.zeros_like(numbers),
        extras={"log_prob": torch.from_numpy(rng.normal(size=(rows, streams)).astype(np.float32))},
    )
    return trajectory, torch.from_numpy(rng.normal(size=(rows + 1, streams)).astype(np.float32))


@st.composite
def streams(draw: st.DrawFn, max_t: int = 12, batch: int = 3) -> tuple[Trajectory, torch.Tensor]:
    """Any such trajectory, with values."""
    rows = draw(st.integers(1, max_t))
    end = st.sampled_from([RUN, RUN, RUN, TERMINATED, TRUNCATED, BOTH])
    ends = draw(st.lists(st.lists(end, min_size=batch, max_size=batch), min_size=rows, max_size=rows))
    begin = draw(st.lists(st.integers(0, 2), min_size=batch, max_size=batch))
    return make(ends, begin, draw(st.integers(0, 2**31)))
