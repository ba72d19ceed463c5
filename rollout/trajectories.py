"""Operations on trajectories, derived from one table of their fields: map, select, cut, join, stretch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory, Transition

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Batch = TypeVar("Batch", bound=DataclassInstance)

Axes = Literal["T+1", "T", "T/L", "B"]
AXES: dict[str, Axes] = {  # leading axes of each field of `Trajectory`: rows, then columns B; "B" has no rows
    "obs": "T+1",
    "action": "T",
    "reward": "T",
    "terminated": "T",
    "truncated": "T",
    "first": "T+1",
    "version": "B",
    "stream": "B",
    "row": "B",
    "extras": "T",
    "action_mask": "T+1",
    "core": "T/L",
    "alive": "T+1",
    "acting": "T+1",
    "state": "T+1",
    "num_rows": "B",
    "weight": "B",
    "index": "B",
}
EPISODES = "episodes"  # the only field without arrays


def map_arrays(function: Callable[[Any], Any], batch: Batch, **changes: Any) -> Batch:
    """Applies `function` to each array of a Trajectory, a Transition or another dataclass of trees of arrays.

    Args:
        changes: new values of fields, to which `function` is not applied.
    """
    values = {name: getattr(batch, name) for name in _field_names(type(batch))}
    for name, value in values.items():
        if name != EPISODES and name not in changes:
            values[name] = tree_map(function, value)
    return type(batch)(**(values | changes))


@functools.cache
def _field_names(batch_type: type[DataclassInstance]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(batch_type))


def map_axes(functions: Mapping[Axes, Callable[..., Any]], *unrolls: Trajectory, **changes: Any) -> Trajectory:
    """One trajectory of `functions[axes](array, *arrays of the other unrolls)`, for each array of the first unroll.

    Args:
        changes: new values of fields, to which no function is applied. `episodes` are those of the first unroll.
    """
    values: dict[str, Any] = {EPISODES: unrolls[0].episodes, **changes}
    for name, axes in AXES.items():
        if name not in changes:
            values[name] = tree_map(functions[axes], *[getattr(unroll, name) for unroll in unrolls])
    return Trajectory(**values)


def select_columns(batch: Trajectory | Transition, begin: int, end: int) -> Any:
    """Columns `begin` to `end` of a Trajectory, without its episodes, or samples of a Transition: views."""
    if isinstance(batch, Transition):
        return map_arrays(lambda x: x[begin:end], batch)

    def columns(x: Any) -> Any:
        return x[:, begin:end]

    return map_axes({"T+1": columns, "T": columns, "T/L": columns, "B": lambda x: x[begin:end]}, batch, episodes=())


def cut_rows(unroll: Trajectory, begin: int, end: int) -> Trajectory:
    """Rows `begin` to `end` of all columns: views. Without episodes, and without `core` if not every row has one."""
    end = min(end, unroll.rows)
    num_rows = None if unroll.num_rows is None else (unroll.num_rows - begin).clip(0, end - begin)
    every_row = unroll.core is not None and len(unroll.core) == unroll.rows
    return map_axes(
        {"T+1": lambda x: x[begin : end + 1], "T": lambda x: x[begin:end], "B": lambda x: x},
        unroll,
        row=unroll.row + begin,
        num_rows=num_rows,
        core=unroll.core[begin:end] if unroll.core is not None and every_row else None,
        episodes=(),
    )


def join_columns(
    unrolls: Sequence[Trajectory], concatenate: Callable[[Sequence[Any], int], Any] = np.concatenate, rows: int = 0
) -> Trajectory:
    """One trajectory of the columns of all unrolls: always a copy.

    Args:
        concatenate: joins arrays along an axis.
        rows:        the least number of rows of the result. Shorter unrolls are stretched: see `stretch`.
    """
    rows = max([rows, *(unroll.rows for unroll in unrolls)])
    cores = max(0 if unroll.core is None else len(unroll.core) for unroll in unrolls)
    unrolls = [stretch(unroll, rows, cores) for unroll in unrolls]
    if any(unroll.num_rows is not None for unroll in unrolls):
        unrolls = [replace(unroll, num_rows=_num_rows(unroll)) for unroll in unrolls]

    def along(axis: int) -> Callable[..., Any]:
        return lambda *arrays: concatenate(arrays, axis)

    episodes = tuple(episode for unroll in unrolls for episode in unroll.episodes)
    columns = along(1)
    return map_axes({"T+1": columns, "T": columns, "T/L": columns, "B": along(0)}, *unrolls, episodes=episodes)


def join_rows(unrolls: Sequence[Trajectory]) -> Trajectory:
    """One trajectory of unrolls of the same columns that follow each other in time: a copy, with the first `version`.

    The last observation of an unroll is the first one of the next.

    Raises:
        ValueError: an unroll was stretched, so that the next one does not follow its last row.
    """
    if any(unroll.num_rows is not None for unroll in unrolls):
        raise ValueError("stretched unrolls cannot be joined along time")

    def rows(*arrays: np.ndarray) -> np.ndarray:
        return np.concatenate(arrays)

    def rows_and_last(*arrays: np.ndarray) -> np.ndarray:
        return np.concatenate([*(array[:-1] for array in arrays[:-1]), arrays[-1]])

    episodes = tuple(episode for unroll in unrolls for episode in unroll.episodes)
    functions: dict[Axes, Callable[..., Any]] = {"T+1": rows_and_last, "T": rows, "T/L": rows, "B": lambda x, *_: x}
    return map_axes(functions, *unrolls, episodes=episodes)


def stretch(unroll: Trajectory, rows: int, cores: int = 0) -> Trajectory:
    """The unroll with at least `rows` rows and `cores` recurrent states.

    Added rows repeat the last one. They are marked as reset rows, so that no loss and no statistic counts them, and
    `num_rows` tells how many rows the actor made.
    """
    missing = rows - unroll.rows
    if missing <= 0:
        return unroll

    def repeat_last(x: np.ndarray, count: int = missing) -> np.ndarray:
        return np.concatenate([x, np.repeat(x[-1:], count, 0)])

    functions: dict[Axes, Callable[..., Any]] = {
        "T+1": repeat_last,
        "T": repeat_last,
        "T/L": lambda x: repeat_last(x, max(0, cores - len(x))),
        "B": lambda x: x,
    }
    stretched = map_axes(functions, unroll, num_rows=_num_rows(unroll))
    for added in (stretched.reward, stretched.terminated, stretched.truncated):
        added[-missing:] = 0
    stretched.first[-missing:] = True
    return stretched


def _num_rows(unroll: Trajectory) -> np.ndarray:
    """[B] the number of rows that the actor made."""
    return np.full(len(unroll.stream), unroll.rows, np.int64) if unroll.num_rows is None else unroll.num_rows


def rounds(unrolls: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """The unrolls in groups that hold each stream at most once; those of a stream in the order of their rows."""
    groups: list[list[Trajectory]] = []
    counts: dict[int, int] = {}  # by the first stream of an unroll
    for unroll in unrolls:
        stream = int(unroll.stream[0])
        counts[stream] = counts.get(stream, 0) + 1
        if counts[stream] > len(groups):
            groups.append([])
        groups[counts[stream] - 1].append(unroll)
    return groups
