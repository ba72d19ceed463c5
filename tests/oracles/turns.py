"""Games in turns, one stream and one agent at a time in plain Python: its own turns, and what came of each."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.types import Trajectory


@dataclass
class Turn:
    """A turn of an agent, at row `row`, and what came of it until its next one."""

    row: int
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    after: int | None = None  # the row of its next turn, or of what it saw last; None: not in this unroll
    ended: bool = False
    follows: Turn | None = field(default=None, repr=False)  # its next turn in the same life


def turns_of(unrolls: Trajectory, b: int, n: int) -> list[Turn]:
    """All turns of agent n in stream b, in order."""
    found: list[Turn] = []
    now: Turn | None = None
    rows = unrolls.rows if unrolls.num_rows is None else int(unrolls.num_rows[b])
    for t in range(rows + 1):
        if bool(unrolls.acting[t, b, n]):
            if now is not None:
                now.after = t
            if t < rows and not bool(unrolls.first[t + 1, b]):
                turn = Turn(t)
                if now is not None:
                    now.follows = turn
                now = turn
                found.append(turn)
        if t == rows or bool(unrolls.first[t + 1, b]):
            continue
        if now is not None:
            now.reward += float(unrolls.reward[t, b, n])
            if bool(unrolls.terminated[t, b, n]) or bool(unrolls.truncated[t, b, n]):
                now.terminated, now.truncated = bool(unrolls.terminated[t, b, n]), bool(unrolls.truncated[t, b, n])
                now.ended, now.after, now = True, t + 1, None
    return found


def learnt(turns: list[Turn], rows: int, agents: int) -> list[Turn]:
    """Those of which it is known what came, whatever came."""
    return [turn for turn in turns if turn.after is not None and turn.row <= rows - agents]


def lambda_return(turn: Turn, value: np.ndarray, gamma: float, lam: float, known: list[Turn]) -> float:
    """Sutton and Barto 2018, equation 12.18 with values as bootstraps: `value` [T+1] of what the agent saw."""
    assert turn.after is not None
    if turn.terminated:
        return turn.reward
    bootstrap = float(value[turn.after])
    goes_on = not turn.ended and turn.follows is not None and any(turn.follows is one for one in known)
    if not goes_on:
        return turn.reward + gamma * bootstrap
    assert turn.follows is not None
    rest = lambda_return(turn.follows, value, gamma, lam, known)
    return turn.reward + gamma * ((1 - lam) * bootstrap + lam * rest)


def games(spec: EnvSpec, seed: int, rows: int = 14, batch: int = 4) -> Trajectory:
    """Unrolls of games whose turns go round, some skipped; agents leave for either reason, rewards at every turn.

    Streams begin in the middle of a game or with one, and the last column's unroll is shorter and was stretched.
    """
    rng = np.random.default_rng(seed)
    count = len(spec.agents)
    shape = (rows + 1, batch)
    alive, acting = np.zeros((*shape, count), bool), np.zeros((*shape, count), bool)
    ends = np.zeros((2, rows, batch, count), bool)
    first = np.zeros(shape, bool)
    made = np.full(batch, rows)
    made[-1] = rows - 3
    for b in range(batch):
        there, turn = np.ones(count, bool), int(rng.integers(count))
        first[0, b] = rng.random() < 0.5
        reset = False
        for t in range(rows + 1):
            if reset and t > 0 and not alive[t - 1, b].any():
                there, turn, reset, first[t, b] = np.ones(count, bool), int(rng.integers(count)), False, True
            alive[t, b] = there
            if not there.any():
                reset = True
                continue
            while not there[turn]:
                turn = (turn + 1) % count
            acting[t, b, turn] = True
            if t == rows:
                break
            leaves = there & (rng.random(count) < 0.12)
            ends[0, t, b], ends[1, t, b] = leaves & (rng.random(count) < 0.6), leaves
            ends[1, t, b] &= ~ends[0, t, b] | (rng.random(count) < 0.2)  # both: a death
            there = there & ~leaves
            turn = (turn + 1) % count
        first[made[b] + 1 :, b] = True
        for array in (alive, acting):
            array[made[b] + 1 :, b] = array[made[b], b]
    valid = ~first[1:]
    ends &= valid[..., None]
    reward = rng.normal(size=(rows, batch, count)) * valid[..., None]
    obs = {
        group.name: torch.from_numpy(rng.normal(size=(*shape, len(group.agents), *group.obs.shape))).float()
        for group in spec.groups
    }
    action = rng.integers(0, spec.action.nvec, (rows, batch, count))
    return Trajectory(
        obs=obs,
        action=torch.from_numpy(action),
        reward=torch.from_numpy(reward).float(),
        terminated=torch.from_numpy(ends[0]),
        truncated=torch.from_numpy(ends[1]),
        first=torch.from_numpy(first),
        version=torch.zeros(batch, dtype=torch.int64),
        stream=torch.arange(batch),
        row=torch.zeros(batch, dtype=torch.int64),
        extras={
            "0/log_prob": -torch.from_numpy(rng.random((rows, batch, 2))).float(),
            "1/log_prob": -torch.from_numpy(rng.random((rows, batch, 1))).float(),
        },
        alive=torch.from_numpy(alive),
        acting=torch.from_numpy(acting),
        num_rows=torch.from_numpy(made),
    )
