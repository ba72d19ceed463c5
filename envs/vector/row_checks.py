"""Checks the rows of an unroll against the spaces of the environment: ranges, finite numbers, action masks.

The checks of a whole unroll cost less than the same checks in each step. What has another shape or kind than promised
never gets into an unroll: see `rltrain.envs.values`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from rltrain.envs.errors import INVALID
from rltrain.envs.spaces import visible_keys, without_mask
from rltrain.envs.spec import EnvSpec
from rltrain.envs.values import bounds, is_image, out_of_range
from rltrain.envs.vector.unroll_rows import UnrollBuffer

NOT_FINITE = "is not finite (nan or inf, or too large for float32): look for divisions by 0 and logarithms of 0"


class InvalidRow(Exception):
    """Row t of column b is not valid. The text is one line."""

    def __init__(self, t: int, b: int, text: str) -> None:
        super().__init__(t, b, text)
        self.t, self.b, self.text = t, b, text


@dataclass(frozen=True, slots=True)
class LeafCheck:
    """The check of one array of an observation."""

    name: str
    path: tuple[Any, ...]  # keys of the array in the tree of observations
    member: int | None  # index in its group, with several agents
    leaf: int  # index of the array among those of the spec
    space: spaces.Space[Any]
    low: np.ndarray | None  # float Box: bounds to count violations; others: bounds that must hold; None: no bounds
    high: np.ndarray | None
    floats: bool

    def rows(self, obs: Any) -> np.ndarray:
        """The array [T+1, B, *O]."""
        for key in self.path:
            obs = obs[key]
        array: np.ndarray = obs if self.member is None else obs[:, :, self.member]
        return array


class RowChecks:
    """The checks of one environment.

    Args:
        spec:        of the environment.
        observation: its observation space, or with several agents that of each agent, without action masks.
    """

    def __init__(self, spec: EnvSpec, observation: spaces.Space[Any] | dict[str, spaces.Space[Any]]) -> None:
        self.spec = spec
        self._heads = np.cumsum((0, *spec.action.nvec[:-1]))
        self._leaves: list[LeafCheck] = []
        parts: list[tuple[tuple[str, ...], int | None, str, spaces.Space[Any], int]] = []
        if not spec.groups:
            assert isinstance(observation, spaces.Space)
            parts.append(((), None, "the observation", without_mask(observation), 0))
        else:
            assert isinstance(observation, dict)
            first = 0
            for group in spec.groups:
                for number, agent in enumerate(group.agents):
                    name = f"the observation of {agent}"
                    parts.append(((group.name,), number, name, observation[agent], first))
                first += len(spec.single_agent(group).leaves())
        for path, member, name, space, first in parts:
            for number, (keys, where, leaf) in enumerate(_leaves(space)):
                self._leaves.append(_check(name + where, (*path, *keys), member, first + number, leaf))

    def __call__(self, rows: UnrollBuffer, unroll: int, count: int) -> dict[int, int]:
        """Check `unroll` rows of the first `count` columns.

        Returns:
            How many numbers are outside of a float Box, by the index of the array; row 0 was counted before.

        Raises:
            InvalidRow: the first fault.
        """
        for name, array in (("the reward", rows.reward[:unroll]), ("the global state", rows.state)):
            if array is not None and not np.isfinite(part := array[: unroll + 1, :count]).all():
                raise _not_finite(name, part, name != "the reward")
        outside: dict[int, int] = {}
        for leaf in self._leaves:
            number = self._check(leaf, leaf.rows(rows.obs)[: unroll + 1, :count])
            if number:
                outside[leaf.leaf] = outside.get(leaf.leaf, 0) + number
        if rows.action_mask is not None:
            legal = np.logical_or.reduceat(rows.action_mask[: unroll + 1, :count], self._heads, axis=-1)
            if not legal.all():
                t, b, head = np.argwhere(~legal)[0]
                where = f" in head {head}" if len(self._heads) > 1 else ""
                text = f"{INVALID}: the action mask allows no action at all{where}; at least one must be legal"
                raise InvalidRow(max(int(t) - 1, 0), int(b), text)
        return outside

    def _check(self, leaf: LeafCheck, array: np.ndarray) -> int:
        """Check one array [T+1, B, *O]; returns how many numbers of a float Box are outside, after row 0."""
        if leaf.low is None or leaf.high is None:
            if leaf.floats and not np.isfinite(array).all():
                raise _not_finite(leaf.name, array, True)
            return 0
        least, most = array.min((0, 1)), array.max((0, 1))  # nan if there is one
        if leaf.floats and not (np.isfinite(least).all() and np.isfinite(most).all()):
            raise _not_finite(leaf.name, array, True)
        if (least >= leaf.low).all() and (most <= leaf.high).all():
            return 0
        wrong = (array < leaf.low) | (array > leaf.high)
        if leaf.floats:
            return int(np.count_nonzero(wrong[1:]))
        t, b = _first(wrong)
        value = array[t, b]
        if isinstance(leaf.space, spaces.Discrete | spaces.MultiDiscrete):
            value = value + np.reshape(leaf.space.start, np.shape(value))
        raise InvalidRow(max(t - 1, 0), b, f"{INVALID}: {out_of_range(leaf.name, np.asarray(value), leaf.space)}")


def _leaves(space: spaces.Space[Any]) -> Iterator[tuple[tuple[Any, ...], str, spaces.Space[Any]]]:
    """Keys, name and space of each array of an observation, in the order of the spec."""
    if isinstance(space, spaces.Dict):
        children: list[tuple[Any, spaces.Space[Any]]] = [(key, space.spaces[key]) for key in visible_keys(space)]
    elif isinstance(space, spaces.Tuple):
        children = list(enumerate(space.spaces))
    else:
        yield (), "", space
        return
    for key, child in children:
        for keys, where, leaf in _leaves(child):
            yield (key, *keys), f"[{key!r}]{where}", leaf


def _check(name: str, path: tuple[Any, ...], member: int | None, leaf: int, space: spaces.Space[Any]) -> LeafCheck:
    floats = isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f"
    low, high = bounds(space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):  # unrolls count from 0
        low, high = low - low, high - low
    if is_image(space):
        if (low == 0).all() and (high == 255).all():
            return LeafCheck(name, path, member, leaf, space, None, None, False)
    elif isinstance(space, spaces.Box | spaces.MultiBinary):
        with np.errstate(over="ignore"):  # unrolls hold float32, and rounding keeps the order of numbers
            low, high = low.astype(np.float32), high.astype(np.float32)
    if floats and not (np.isfinite(low).any() or np.isfinite(high).any()):
        return LeafCheck(name, path, member, leaf, space, None, None, True)
    return LeafCheck(name, path, member, leaf, space, low, high, floats)


def _not_finite(name: str, array: np.ndarray, observed: bool) -> InvalidRow:
    """The error for an array [T, B, ...] with a number that is not finite. `observed`: row t + 1 belongs to step t."""
    t, b = _first(~np.isfinite(array))
    return InvalidRow(max(t - observed, 0), b, f"{INVALID}: {name} {NOT_FINITE}")


def _first(wrong: np.ndarray) -> tuple[int, int]:
    """The first row and column (t, b) of [T, B, ...] where something is True."""
    t, b = np.argwhere(wrong.reshape(*wrong.shape[:2], -1).any(-1))[0]
    return int(t), int(b)
