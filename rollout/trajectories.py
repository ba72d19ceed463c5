"""Operations on trajectories: cut into rounds, stretch to a length, select streams."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from torch import Tensor

from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory, Transition


def part_of(batch: Any, begin: int, end: int) -> Any:
    """Columns of a Trajectory, or samples of Transitions: views."""
    columns = slice(begin, end)
    if isinstance(batch, Transition):
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return Transition(
            **{name: None if x is None else tree_map(lambda x: x[columns], x) for name, x in fields.items()}
        )

    def beside(x: Tensor) -> Tensor:
        return x[:, columns]

    return dataclasses.replace(
        batch,
        obs=tree_map(beside, batch.obs),
        **{name: beside(getattr(batch, name)) for name in ("action", "reward", "terminated", "truncated", "first")},
        **{name: getattr(batch, name)[columns] for name in ("version", "stream", "row")},
        extras={name: beside(x) for name, x in batch.extras.items()},
        core=None if batch.core is None else beside(batch.core),
        episodes=(),
        num_rows=None if batch.num_rows is None else batch.num_rows[columns],
        **{name: beside(x) for name, x in batch.optional_fields().items()},
    )


def rounds(unrolls: list[Any]) -> list[list[Any]]:
    """Unrolls in pieces that hold each stream once, those of a stream in the order of their rows."""
    pieces: list[list[Any]] = []
    seen: dict[int, int] = {}  # by an unroll's first stream: how many there were
    for unroll in unrolls:
        stream = int(unroll.stream[0])
        seen[stream] = seen.get(stream, 0) + 1
        if seen[stream] > len(pieces):
            pieces.append([])
        pieces[seen[stream] - 1].append(unroll)
    return pieces


def stretched(unroll: Trajectory, rows: int, cores: int = 0) -> Trajectory:
    """The same with `rows` rows, and as many cores: those added repeat the last one, and the rows are marked as reset
    rows, so that none counts."""
    missing = rows - unroll.rows
    if missing <= 0:
        return unroll

    def more(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.repeat(x[-1:], missing, 0)])

    ended = np.zeros((missing, *unroll.reward.shape[1:]), bool)
    reset = np.ones((missing, len(unroll.stream)), bool)
    beside: dict[str, Any] = {name: more(x) for name, x in unroll.optional_fields().items()}
    return dataclasses.replace(
        unroll,
        obs=tree_map(more, unroll.obs),
        action=more(unroll.action),
        reward=np.concatenate([unroll.reward, np.zeros_like(ended, np.float32)]),
        terminated=np.concatenate([unroll.terminated, ended]),
        truncated=np.concatenate([unroll.truncated, ended]),
        first=np.concatenate([unroll.first, reset]),
        extras={name: more(x) for name, x in unroll.extras.items()},
        core=None
        if unroll.core is None
        else np.concatenate([unroll.core, np.repeat(unroll.core[-1:], max(0, cores - len(unroll.core)), 0)]),
        num_rows=np.full(len(unroll.stream), unroll.rows, np.int64),
        **beside,
    )
