"""Reads the rows that replay.py has chosen out of the ring: n-step transitions, sequences, and windows with memory."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from rltrain.envs.spec import OPTIONAL_FIELDS
from rltrain.rollout.replay.ring import ENDED, FIRST, MIDST, TERMINATED, TRUNCATED, Ring
from rltrain.rollout.types import Trajectory, Transition

ENDS = ("terminated", "truncated")
LONG = 32  # steps of n-step targets above which a loop over them is slow
PAIR = np.array([[0], [1]])  # a row and the next one
ONGOING = (np.arange(256, dtype=np.uint8) & TERMINATED == 0).astype(np.float32)  # by flag


def transitions(
    ring: Ring,
    stream: np.ndarray,
    row: np.ndarray,
    flag: np.ndarray,
    gamma: float,
    n_step: int,
    weight: np.ndarray | None = None,
    index: np.ndarray | None = None,
    returns: Returns | None = None,
) -> Transition:
    """The n-step transitions that begin at rows `row` [B] of `stream` [B], with the flags `flag` [B].

    Args:
        returns: those of `returns_of`, for n_step above LONG.
    """
    flat, base = ring.flat, stream * ring.size
    mask = flat.get("action_mask")
    if n_step == 1:
        pair = ring.at(row + PAIR, base)
        obs, next_obs = ring.obs_pair(row, base, pair)
        at = pair[0]
        reward = flat["reward"].take(at, mode="clip")
        discount = (ONGOING * np.float32(gamma)).take(flag, mode="clip")
        masks = (None, None) if mask is None else mask.take(pair, 0, mode="clip")
    else:
        sums = _n_step if returns is None else partial(_long_steps, returns)
        reward, discount, after = sums(ring, row, base, gamma, n_step)
        at = ring.at(row, base)
        obs, next_obs = ring.obs(row, base), ring.obs(after, base)
        masks = (None, None) if mask is None else mask.take(ring.at(np.stack((row, after)), base), 0, mode="clip")
    return Transition(
        obs=obs,
        action=flat["action"].take(at, 0, mode="clip"),
        reward=reward,
        discount=discount,
        next_obs=next_obs,
        action_mask=masks[0],
        next_action_mask=masks[1],
        weight=weight,
        index=index,
    )


def _n_step(
    ring: Ring, row: np.ndarray, base: np.ndarray, gamma: float, n_step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Summed rewards, discounts and the rows after m <= n steps, [B] each."""
    at = ring.at(row + np.arange(n_step)[:, None], base)  # [n, B]
    reward = ring.flat["reward"].take(at, mode="clip").astype(np.float64)
    flags = ring.flag.take(at, mode="clip")
    steps = np.ones(len(row), np.int64)  # m
    continues = np.ones(len(row), bool)
    for k in range(1, n_step):
        continues &= (flags[k - 1] & ENDED) == 0
        steps += continues
    total = np.zeros(len(row))
    for k in range(n_step - 1, -1, -1):
        total = np.where(steps > k, reward[k] + gamma * total, 0.0)
    last = flags[steps - 1, np.arange(len(row))]
    discount = np.where(last & TERMINATED, 0.0, (gamma ** np.arange(n_step + 1)).take(steps))
    return total.astype(np.float32), discount.astype(np.float32), row + steps


class Returns(NamedTuple):
    """Of each position of a ring: the discounted return, and the number of rows, up to the end of its episode."""

    sum: np.ndarray  # float64
    rows: np.ndarray  # int64


def returns_of(ring: Ring, gamma: float) -> Returns:
    """The returns of all rows; where no end is stored, up to the newest row."""
    found = Returns(np.zeros(len(ring.flag)), np.ones(len(ring.flag), np.int64))
    for stream in np.flatnonzero(ring.head > ring.low).tolist():
        at = ring.at(np.arange(ring.low[stream], ring.head[stream]), stream * ring.size)
        count = np.arange(len(at))
        last = np.where(ring.flag[at] & ENDED, count, len(at) - 1)
        left = np.minimum.accumulate(last[::-1])[::-1] - count + 1
        order, bounds = np.argsort(left, kind="stable"), np.cumsum(np.bincount(left))
        sums, reward = np.zeros(len(at) + 1), ring.flat["reward"][at].astype(np.float64)
        for begin, end in pairwise(bounds.tolist()):  # the last rows of all episodes, then those before them, ...
            now = order[begin:end]
            after = sums[now + 1] if begin > bounds[0] else 0.0
            sums[now] = reward[now] + gamma * after
        found.sum[at], found.rows[at] = sums[:-1], left
    return found


def _long_steps(
    returns: Returns, ring: Ring, row: np.ndarray, base: np.ndarray, gamma: float, n_step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_n_step`, in a time that does not depend on the number of steps; sums are rounded differently."""
    at = ring.at(row, base)
    left = returns.rows[at]
    steps = np.minimum(left, n_step)  # m
    beyond = np.where(left > n_step, returns.sum[ring.at(row + steps, base)], 0.0)
    discount = gamma**steps
    total = returns.sum[at] - discount * beyond
    ended = (ring.flag[ring.at(row + steps - 1, base)] & TERMINATED) != 0
    return total.astype(np.float32), np.where(ended, 0.0, discount).astype(np.float32), row + steps


def sequences(ring: Ring, stream: np.ndarray, row: np.ndarray, length: int) -> Trajectory:
    """`length` rows from each row `row` [B] of `stream` [B] on, up to the end of the episode."""
    flat, base, batch = ring.flat, stream * ring.size, len(row)
    count = np.arange(length + 1)[:, None]
    wanted = row + count  # [L+1, B]
    at = ring.at(wanted, base)
    flags = flat["flag"].take(at[:-1], mode="clip")
    first = np.zeros((length + 1, batch), bool)
    np.not_equal(flags[0] & FIRST, 0, out=first[0])
    valid = cut = None
    if length > 1:  # a single row is always complete
        valid = np.ones((length, batch), bool)
        valid[1:] = (flags[:-1] & ENDED) == 0
        valid &= wanted[:-1] < ring.head[stream]
        valid = np.logical_and.accumulate(valid, 0)
        np.logical_not(valid, out=first[1:])
        steps = valid.sum(0)
        cut = (count[:-1] == steps - 1) & (steps < length) & ((flags & ENDED) == 0)
        wanted = row + np.minimum(count, steps)
        at = ring.at(wanted, base)

    def valid_rows(name: str) -> np.ndarray:
        array: np.ndarray = flat[name].take(at[:-1], 0, mode="clip")
        if valid is not None:
            array[~valid] = 0
        return array

    optional: dict[str, Any] = {name: flat[name].take(at, 0, mode="clip") for name in OPTIONAL_FIELDS if name in flat}
    if "alive" in optional:  # each agent has its own end; a cut truncates the agents that are still alive
        terminated, truncated = (valid_rows(name) for name in ENDS)
        if cut is not None:
            truncated |= cut[..., None] & optional["alive"][1:]
    else:
        terminated, truncated = ((flags & bit) != 0 for bit in (TERMINATED, TRUNCATED))
        if valid is not None:
            terminated, truncated = terminated & valid, (truncated & valid) | cut
    return Trajectory(
        obs=ring.obs(wanted, base, at),
        action=valid_rows("action"),
        reward=valid_rows("reward"),
        terminated=terminated,
        truncated=truncated,
        first=first,
        version=np.zeros(batch, np.int64),
        stream=stream,
        row=row,
        **optional,
    )


def windows(
    ring: Ring,
    stream: np.ndarray,
    row: np.ndarray,
    length: int,
    weight: np.ndarray | None = None,
    index: np.ndarray | None = None,
) -> Trajectory:
    """`length` consecutive rows from each row `row` [B] of `stream` [B] on, with the recurrent state before the first.

    They may extend over several episodes. All rows must be stored, and none after the first may begin a section within
    an episode.
    """
    flat, base = ring.flat, stream * ring.size
    wanted = row + np.arange(length + 1)[:, None]  # [L+1, B]
    at = ring.at(wanted, base)
    flags = ring.flag.take(at, mode="clip")
    first = (flags & FIRST) != 0
    first[0] &= (flags[0] & MIDST) == 0  # within an episode the stored state is that of the actor
    mask = flat.get("action_mask")
    return Trajectory(
        obs=ring.obs(wanted, base, at),
        action=flat["action"].take(at[:-1], 0, mode="clip"),
        reward=flat["reward"].take(at[:-1], mode="clip"),
        terminated=(flags[:-1] & TERMINATED) != 0,
        truncated=(flags[:-1] & TRUNCATED) != 0,
        first=first,
        version=np.zeros(len(row), np.int64),
        stream=stream,
        row=row,
        action_mask=None if mask is None else mask.take(at, 0, mode="clip"),
        core=flat["core"].take(at[:1], 0, mode="clip"),
        weight=weight,
        index=index,
    )
