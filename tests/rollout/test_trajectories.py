"""Every operation on trajectories treats every field as the table of axes says, and the table has every field."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from rltrain.learner.batches import from_checkpoint, join, tensors, to_checkpoint
from rltrain.rollout.trajectories import (
    AXES,
    EPISODES,
    cut_rows,
    join_columns,
    join_rows,
    map_arrays,
    select_columns,
    stretch,
)
from rltrain.rollout.tree import leaves, tree_map
from rltrain.rollout.types import Episode, Trajectory, Transition

T, B, L = 6, 4, 2  # rows, columns, rows per recurrent state
CPU = torch.device("cpu")
LENGTHS = {"T+1": T + 1, "T": T, "T/L": T // L}
TREES: dict[str, Any] = {"obs": {"a": (0, 0), "b": 0}, "extras": {"log_prob": 0, "value": 0}}
BOOLS = ("terminated", "truncated", "first", "action_mask", "alive", "acting")


def filled(seed: int = 0) -> Trajectory:
    """A trajectory in which every field is there, with random numbers of a width of its own."""
    rng = np.random.default_rng(seed)

    def array(name: str, *behind: int) -> np.ndarray:
        axes = AXES[name]
        shape = (B,) if axes == "B" else (LENGTHS[axes], B, *behind)
        numbers = rng.integers(1, 1000, shape)
        return numbers % 2 == 0 if name in BOOLS else numbers

    values: dict[str, Any] = {
        name: tree_map(lambda _, name=name: array(name, 3), TREES.get(name, 0))  # type: ignore[misc]
        for name in AXES
    }
    values["num_rows"] = np.array([T, T - 1, 1, T])
    return Trajectory(**values, episodes=(Episode(1.0, 2), Episode(3.0, 4)))


def by_field(batch: Any) -> dict[str, list[np.ndarray]]:
    """The arrays of each field."""
    return {name: [np.asarray(leaf) for leaf in leaves(getattr(batch, name))] for name in AXES}


def test_the_table_has_every_field() -> None:
    assert {*AXES, EPISODES} == {field.name for field in fields(Trajectory)}
    assert all(value for value in by_field(filled()).values())


def test_the_table_says_what_the_comments_of_the_fields_say() -> None:
    """The other tests make their arrays by the table: a wrong entry would go unnoticed there."""
    text = inspect.getsource(Trajectory)
    axes = dict(re.findall(r"^    (\w+): .*?# \[(T\+1|T/L|T|B)[],]", text, re.MULTILINE))
    assert axes | {"obs": "T+1"} == AXES


def test_map_arrays_reaches_every_array_once() -> None:
    batch = filled()
    for name, arrays in by_field(map_arrays(lambda x: x.astype(np.int64) + 1, batch)).items():
        for old, new in zip(by_field(batch)[name], arrays, strict=True):
            np.testing.assert_array_equal(new, old.astype(np.int64) + 1, name)
    sample = Transition(**{field.name: np.arange(3) for field in fields(Transition)})
    assert all(getattr(map_arrays(np.negative, sample), field.name)[2] == -2 for field in fields(Transition))
    assert map_arrays(np.negative, replace(sample, weight=None)).weight is None


def test_tensors_of_every_field() -> None:
    batch = filled()
    result = tensors(batch, CPU)
    assert all(isinstance(leaf, torch.Tensor) for name in AXES for leaf in leaves(getattr(result, name)))
    for name, arrays in by_field(result).items():
        for old, new in zip(by_field(batch)[name], arrays, strict=True):
            np.testing.assert_array_equal(new, old, name)
    assert result.episodes == batch.episodes


def test_columns_of_every_field() -> None:
    batch = filled()
    result = select_columns(batch, 1, 3)
    for name, arrays in by_field(result).items():
        for old, new in zip(by_field(batch)[name], arrays, strict=True):
            np.testing.assert_array_equal(new, old[1:3] if AXES[name] == "B" else old[:, 1:3], name)
            assert np.shares_memory(new, old)
    assert result.episodes == ()
    sample = Transition(**{field.name: np.arange(5) for field in fields(Transition)})
    selected = select_columns(sample, 1, 3)
    assert all(getattr(selected, field.name).tolist() == [1, 2] for field in fields(Transition))


@pytest.mark.parametrize("device", [False, True], ids=["arrays", "tensors"])
def test_pieces_of_columns_joined_are_the_whole(device: bool) -> None:
    batch = filled()
    pieces = [select_columns(batch, 0, 1), select_columns(batch, 1, 4)]
    joined = join(pieces, CPU) if device else join_columns(pieces)
    for name, arrays in by_field(joined).items():
        for old, new in zip(by_field(batch)[name], arrays, strict=True):
            np.testing.assert_array_equal(new, old, name)
            assert not np.shares_memory(new, old), name
    assert join_columns([batch, batch]).episodes == batch.episodes * 2


def test_rows_of_every_field() -> None:
    batch = filled()
    result = cut_rows(batch, 2, 5)
    for name in AXES.keys() - {"core"}:
        for old, new in zip(by_field(batch)[name], by_field(result)[name], strict=True):
            rows = slice(2, 6) if AXES[name] == "T+1" else slice(2, 5)
            expected = {"row": old + 2, "num_rows": np.array([3, 3, 0, 3])}.get(name, old)
            np.testing.assert_array_equal(new, expected if AXES[name] == "B" else old[rows], name)
    assert (result.core, result.episodes) == (None, ())
    assert cut_rows(batch, 4, 100).rows == 2


def test_rows_joined_are_the_whole() -> None:
    whole = replace(filled(), num_rows=None)
    pieces = [replace(cut_rows(whole, row, row + 2), core=whole.core[row // L : row // L + 1]) for row in (0, 2, 4)]  # type: ignore[index]
    joined = join_rows([replace(piece, episodes=whole.episodes[:1]) for piece in pieces])
    for name, arrays in by_field(joined).items():
        for old, new in zip(by_field(whole)[name], arrays, strict=True):
            np.testing.assert_array_equal(new, old, name)
    assert joined.episodes == whole.episodes[:1] * 3
    with pytest.raises(ValueError, match="stretched"):
        join_rows([stretch(whole, 8)])


def test_unrolls_of_different_lengths_are_stretched_to_the_longest() -> None:
    long, short = replace(filled(1), num_rows=None), cut_rows(replace(filled(2), num_rows=None), 0, 4)
    short = replace(short, core=np.ones((2, B, 3), np.int64))
    result = join_columns([long, short])
    assert result.num_rows.tolist() == [T] * B + [4] * B  # type: ignore[union-attr]
    for name, arrays in by_field(select_columns(result, B, 2 * B)).items():
        for old, new in zip(by_field(short)[name] if AXES[name] != "B" else [], arrays, strict=AXES[name] != "B"):
            assert len(new) == LENGTHS[AXES[name]], name
            np.testing.assert_array_equal(new[: len(old)], old, name)
            zeros = name in ("reward", "terminated", "truncated")
            last = np.zeros_like(old[-1]) if zeros else np.ones_like(old[-1]) if name == "first" else old[-1]
            np.testing.assert_array_equal(new[len(old) :], np.stack([last] * (len(new) - len(old))), name)
    assert stretch(stretch(short, 5), 6).num_rows.tolist() == [4] * B  # type: ignore[union-attr]


def test_a_batch_in_a_checkpoint_keeps_every_field() -> None:
    batch = filled()
    saved = to_checkpoint(batch)
    saved["obs"] = {"a": list(saved["obs"]["a"]), "b": saved["obs"]["b"]}  # a checkpoint has no tuples
    of_0_1 = {"made" if name == "num_rows" else name: value for name, value in saved.items()}
    for written in (saved, of_0_1):
        for name, arrays in by_field(from_checkpoint(written, CPU)).items():
            for old, new in zip(by_field(batch)[name], arrays, strict=True):
                np.testing.assert_array_equal(new, old, name)
