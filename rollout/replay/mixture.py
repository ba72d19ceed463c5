"""A mixture of replays: each sample of a batch comes from one of them, chosen at random by their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from rltrain.envs.seeding import REPLAY, seed_of
from rltrain.rollout.replay.replay import Replay
from rltrain.rollout.replay.ring import Segment
from rltrain.rollout.trajectories import join_columns
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory, Transition


class Mixture:
    """Several replays with equal plans, without priorities and whole episodes, with the interface of one.

    Args:
        data:    replays of recorded data, which get no more rows.
        weights: the share of each of them in the samples; (): in proportion to what each can sample.
        online:  the replay to which `append` adds. Its share is that of its rows among all; None: there is none.
        batch:   samples: transitions or sequences.
        seed:    the run's.
    """

    def __init__(
        self, data: Sequence[Replay], weights: Sequence[float], online: Replay | None, batch: int, seed: int
    ) -> None:
        self.data, self._online, self._batch = list(data), online, batch
        self._weights = np.array(weights, np.float64)
        self._rng = np.random.Generator(np.random.PCG64(seed_of(seed, REPLAY, len(data))))

    @property
    def _all(self) -> list[Replay]:
        return [*self.data, *([] if self._online is None else [self._online])]

    def __len__(self) -> int:
        return sum(map(len, self._all))

    def append(self, unroll: Trajectory) -> None:
        """Adds an unroll of the run's own actors."""
        assert self._online is not None
        self._online.append(unroll)

    def sample(self, progress: float) -> Transition | Trajectory:
        """A batch, see `Replay.sample`. The samples of one replay follow each other."""
        if not len(self):
            raise ValueError("the replays are empty: nothing can be sampled yet")
        counts = self._rng.multinomial(self._batch, self.shares())
        pairs = zip(self._all, counts.tolist(), strict=True)
        parts: list[Any] = [replay.sample(progress, count) for replay, count in pairs if count]
        return joined(parts)

    def shares(self) -> np.ndarray:
        """The probability of each replay."""
        rows = np.array([len(replay) for replay in self._all], np.float64)
        shares = rows / rows.sum()
        if len(self._weights):
            own = self._weights * (rows[: len(self.data)] > 0)
            shares[: len(self.data)] = own / own.sum() * shares[: len(self.data)].sum()
        return np.asarray(shares)

    def reprioritise(self, index: np.ndarray, error: np.ndarray) -> None:
        """No-op: a mixture has no priorities."""

    def state(self) -> tuple[dict[str, Any], dict[str, Segment]]:
        """The content of a checkpoint: see `Replay.state`."""
        states = [replay.state() for replay in self._all]
        small = {"replays": [one for one, _ in states], "rng": self._rng.bit_generator.state}
        return small, {f"{n}-{name}": one for n, (_, blocks) in enumerate(states) for name, one in blocks.items()}

    def load(self, small: dict[str, Any], segments: Mapping[str, Segment]) -> None:
        """Restores what `state` returned. ValueError: it does not fit."""
        if len(small["replays"]) != len(self._all):
            raise ValueError(f"there were {len(small['replays'])} replays, and there are {len(self._all)} now")
        for n, (replay, one) in enumerate(zip(self._all, small["replays"], strict=True)):
            start = f"{n}-"
            own = {name.removeprefix(start): block for name, block in segments.items() if name.startswith(start)}
            replay.load(one, own)
        self._rng.bit_generator.state = small["rng"]


def joined(parts: Sequence[Any]) -> Transition | Trajectory:
    """One batch of the samples of several: all transitions, or all sequences of one length."""
    if len(parts) == 1:
        first: Transition | Trajectory = parts[0]
        return first
    if isinstance(parts[0], Trajectory):
        return join_columns(parts)
    pairs = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Transition)}
    return Transition(**{name: tree_map(_concatenated, *trees) for name, trees in pairs.items()})


def _concatenated(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays)
