"""The arrays of a replay: for each stream a ring of rows, in memory or in memory-mapped files, frames kept once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.envs.spec import EnvSpec, Leaf
from rltrain.rollout.frame_stacks import are_stacks
from rltrain.rollout.tree import Tree, unflatten

Segment = Callable[[], dict[str, np.ndarray]]
TERMINATED, TRUNCATED, FIRST, READY, MIDST = (np.uint8(1 << bit) for bit in range(5))
ENDED = TERMINATED | TRUNCATED
SEGMENT_BYTES = 4 * 2**20  # of a finished block of rows, about


class NoStack(ValueError):
    """What the spec calls the newest frames of an episode are not those."""


def fields(spec: EnvSpec) -> dict[str, tuple[tuple[int, ...], str]]:
    """What one row holds: name -> (shape, dtype). A stack of frames is its newest frame."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for number, leaf in enumerate(spec.leaves()):
        found[f"obs.{number}"] = (leaf.shape[1:] if leaf.stack else leaf.shape), leaf.dtype
    found |= spec.optional_fields()
    found["action"] = spec.action.shape, spec.action.dtype
    found["reward"] = spec.agents_shape, "float32"
    found["flag"] = (), "uint8"
    if spec.groups:  # the flag tells the ends of episodes, these of agents
        found |= {"terminated": (spec.agents_shape, "bool"), "truncated": (spec.agents_shape, "bool")}
    if history(spec):
        found["age"] = (), "uint8"
    return found


def row_bytes(spec: EnvSpec) -> int:
    """Bytes of one row."""
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in fields(spec).values())


def history(spec: EnvSpec) -> int:
    """Rows before a row that its stack of frames is made of: k - 1, or 0."""
    return max((leaf.stack - 1 for leaf in spec.leaves() if leaf.stack), default=0)


class Ring:
    """The newest `rows` rows of each stream, and the few beside them that they need.

    Row r of stream s, counted from the stream's first, lies at s * size + r % size.

    Attributes:
        flat: every field, [streams * size, ...].
        flag: per row: TERMINATED, TRUNCATED, FIRST as in an unroll, READY where the row can be sampled,
              MIDST beside FIRST where the episode had begun before.
        head: [streams] each stream's newest row, whose action is not known yet; -1: none.
        low: [streams] the oldest row that may be sampled.
        next: [streams] what `Trajectory.row` must say next.
        history: K, rows before a row that its stack of frames is made of; 0 where there are no stacks.
    """

    def __init__(self, spec: EnvSpec, streams: int, rows: int, folder: Path | None) -> None:
        self.spec = spec
        self.rows = rows
        self.head = np.full(streams, -1, np.int64)
        self.low = np.zeros(streams, np.int64)
        self.next = np.zeros(streams, np.int64)
        self.history = history(spec)
        self.streams, self.size = streams, rows + 1 + self.history
        self.block = max(1, min(SEGMENT_BYTES // row_bytes(spec), max(64, rows // 8)))
        self.flat: dict[str, np.ndarray] = {}
        for name, (shape, dtype) in fields(spec).items():
            whole = (streams * self.size, *shape)
            if folder is None:
                self.flat[name] = np.zeros(whole, dtype)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                mapped = np.memmap(_allocated(folder / f"{name}.rows", whole, dtype), dtype, "r+", shape=whole)
                self.flat[name] = np.ndarray(whole, dtype, mapped)  # the same without memmap's slower methods
        self.flag = self.flat["flag"]
        self._leaves = spec.leaves()
        self._depth = np.arange(self.history + 2, dtype=np.int64)

    def _stack_of(self, number: int) -> Leaf | None:
        leaf = self._leaves[number]
        return leaf if leaf.stack else None

    def write_obs(self, at: np.ndarray, obs: Sequence[np.ndarray]) -> None:
        """Keep observations, leaves [..., *O], in the rows `at` [...]; of a stack its newest frame."""
        for number, array in enumerate(obs):
            leaf = self._stack_of(number)
            flat = self.flat[f"obs.{number}"]
            flat[at] = array if leaf is None else array[(slice(None),) * at.ndim + (-1,)]

    def write_older(self, base: int, row: int, obs: Sequence[np.ndarray]) -> None:
        """Keep the older frames of stacks, leaves [1, k, *frame], in the `history` rows from `row` on of one stream.

        Each of those rows begins an episode, so that none of them is ever valid.
        """
        at = self.at(np.arange(row, row + self.history), base)
        for flat in self.flat.values():
            flat[at] = 0
        self.flag[at] = FIRST
        for number, array in enumerate(obs):
            leaf = self._stack_of(number)
            if leaf is not None:
                self.flat[f"obs.{number}"][at[len(at) - leaf.stack + 1 :]] = array[0, :-1]

    def write_ages(self, at: np.ndarray, first: np.ndarray) -> None:
        """How many rows after its episode's first each row of an unroll is, at most history + 1; the row 0 is known.

        Args:
            at:    [T+1, B], where the rows lie.
            first: [T+1, B]
        """
        age = self.flat["age"]
        count = np.arange(1, len(first))[:, None]
        began = np.where(first[1:], count, -age[at[0]].astype(np.int64))
        age[at[1:]] = np.minimum(count - np.maximum.accumulate(began, 0), self.history + 1)

    def stacks(self, obs: Sequence[np.ndarray], first: np.ndarray) -> bool:
        """Whether the stacks of an unroll, leaves [T+1, B, k, *frame], are the newest frames of their episodes."""
        for number, array in enumerate(obs):
            leaf = self._stack_of(number)
            if leaf is not None and not are_stacks(leaf, array, first):
                return False
        return True

    def obs(self, row: np.ndarray, base: np.ndarray | int, at: np.ndarray | None = None) -> Tree:
        """The observations of rows `row` [...] of the streams that begin at `base`: a tree of [..., *O].

        Args:
            at: [...], where the rows lie, if that is known.
        """
        if at is None:
            at = self.at(row, base)
        found = []
        for number in range(len(self._leaves)):
            leaf = self._stack_of(number)
            flat = self.flat[f"obs.{number}"]
            found.append(flat.take(at, 0, mode="clip") if leaf is None else self._stacks(flat, leaf, row, base, at))
        return self.tree(found)

    def obs_pair(self, row: np.ndarray, base: np.ndarray | int, at: np.ndarray) -> tuple[Tree, Tree]:
        """The observations of rows `row` [B] and of the rows after them, which belong to the same episodes.

        A stack and its successor share k - 1 frames, so that they are two views of k + 1 frames.

        Args:
            at: [2, B], where the rows and their successors lie.
        """
        here, after = [], []
        for number in range(len(self._leaves)):
            leaf = self._stack_of(number)
            flat = self.flat[f"obs.{number}"]
            if leaf is None:
                both = flat.take(at, 0, mode="clip")
                here.append(both[0])
                after.append(both[1])
            else:
                frames = self._stacks(flat, leaf, row + 1, base, at[1], leaf.stack + 1)
                here.append(frames[:, :-1])
                after.append(frames[:, 1:])
        return self.tree(here), self.tree(after)

    def _stacks(
        self, flat: np.ndarray, leaf: Leaf, row: np.ndarray, base: np.ndarray | int, at: np.ndarray, depth: int = 0
    ) -> np.ndarray:
        """[..., depth, *frame] the newest `depth` frames of rows `row` [...], oldest first, padded as at a reset."""
        age = self.flat["age"].take(at, mode="clip").astype(np.int64)[..., None]
        back = self._depth[: depth or leaf.stack][::-1]
        frames = flat.take(self.at(row[..., None] - np.minimum(back, age), _wide(base)), 0, mode="clip")
        if leaf.padding == "zero":
            frames[back > age] = 0
        return frames

    def at(self, row: np.ndarray, base: np.ndarray | int) -> np.ndarray:
        """Where rows `row` of the streams that begin at `base` lie."""
        found: np.ndarray = row % self.size + base
        return found

    def episodes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Streams, first rows and lengths of all episodes that are there from their first row to their end."""
        newest = np.maximum(self.head, 0)[:, None]  # [streams, 1]
        row = newest - self.size + 1 + np.arange(self.size)  # [streams, size], oldest first
        flag = self.flag.reshape(self.streams, self.size)[np.arange(self.streams)[:, None], row % self.size]
        flag = np.where(row >= self.low[:, None], flag, 0).ravel()
        begins, ends = np.flatnonzero(flag & FIRST), np.flatnonzero(flag & ENDED)
        before = np.searchsorted(begins, ends, "right") - 1  # the last beginning before each end
        ends, before = ends[before >= 0], before[before >= 0]
        begin = begins[before] if len(begins) else before
        whole = begin // self.size == ends // self.size
        whole[1:] &= begin[1:] > ends[:-1]
        whole &= (flag[begin] & MIDST) == 0
        begin, ends = begin[whole], ends[whole]
        return begin // self.size, row.ravel()[begin], ends - begin + 1

    def read(self, stream: int, begin: int, end: int) -> dict[str, np.ndarray]:
        """Copies of all fields of rows begin to end of a stream, [end - begin, ...] each."""
        at = self.at(np.arange(begin, end), stream * self.size)
        return {name: flat.take(at, 0) for name, flat in self.flat.items()}

    def put(self, stream: int, begin: int, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `read`. ValueError where the arrays are not of this ring's fields."""
        count = len(arrays["flag"])
        at = self.at(np.arange(begin, begin + count), stream * self.size)
        for name, flat in self.flat.items():
            if name not in arrays or arrays[name].shape != (count, *flat.shape[1:]) or arrays[name].dtype != flat.dtype:
                raise ValueError(f"a replay's rows do not fit: {name} should be {flat.shape[1:]} of {flat.dtype}")
            flat[at] = arrays[name]

    def state(self, settled: int) -> tuple[dict[str, Any], dict[str, Segment]]:
        """Pointers and the newest rows, and segments: functions that read blocks of rows that do not change any more.

        Args:
            settled: how many rows lie between a stream's newest and the last that does not change.
        """
        keep = np.maximum(self.low - self.history, 0)
        finished = np.maximum(self.head - settled, 0) // self.block
        tail = np.maximum(finished * self.block, keep)
        segments: dict[str, Segment] = {}
        newest = []
        for stream in np.flatnonzero(self.head >= 0).tolist():
            for block in range(int(keep[stream]) // self.block, int(finished[stream])):
                begin = max(block * self.block, int(keep[stream]))
                segments[f"{stream}-{block}"] = self._segment(stream, begin, (block + 1) * self.block)
            newest.append(self.read(stream, int(tail[stream]), int(self.head[stream]) + 1))
        small = {
            "rows": self.rows,
            "block": self.block,
            "head": self.head.copy(),
            "low": self.low.copy(),
            "next": self.next.copy(),
            "tail": tail,
            "newest": {name: np.concatenate([rows[name] for rows in newest]) for name in (self.flat if newest else ())},
        }
        return small, segments

    def _segment(self, stream: int, begin: int, end: int) -> Segment:
        return lambda: {"row": np.array([begin]), **self.read(stream, begin, end)}

    def load(self, small: dict[str, Any], segments: dict[str, Segment]) -> None:
        """The inverse of `state`. ValueError where rows are missing or do not fit."""
        self.block = int(small["block"])
        for mine, name in ((self.head, "head"), (self.low, "low"), (self.next, "next")):
            mine[:] = small[name]
        keep, tail = np.maximum(self.low - self.history, 0), small["tail"]
        begun = np.flatnonzero(self.head >= 0).tolist()
        missing = {stream: int(tail[stream] - keep[stream]) for stream in begun}
        self.flag[:] = 0
        for name, read in segments.items():
            stream, arrays = int(name.partition("-")[0]), dict(read())
            begin = int(arrays.pop("row")[0])
            skip = max(int(keep[stream]) - begin, 0)
            arrays = {field: array[skip:] for field, array in arrays.items()}
            self.put(stream, begin + skip, arrays)
            missing[stream] -= len(arrays["flag"])
        if any(missing.values()):
            raise ValueError("rows of the replay are missing")
        offset = 0
        for stream in begun:
            count = int(self.head[stream] - tail[stream]) + 1
            self.put(stream, int(tail[stream]), {n: a[offset : offset + count] for n, a in small["newest"].items()})
            offset += count
            older = self.at(np.arange(keep[stream], self.low[stream]), stream * self.size)
            self.flag[older] &= ~READY

    def tree(self, found: list[Any]) -> Tree:
        """Leaves as the tree that the environment's observation is."""
        return found[0] if isinstance(self.spec.obs, Leaf) else unflatten(self.spec.obs, found)


def _allocated(path: Path, shape: tuple[int, ...], dtype: Any) -> Path:
    """A file of zeros whose room on the disk is taken now: a hole that finds none later ends the process.

    Raises:
        ValueError: there is no room.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        raise ValueError(f"the replay's file {path} of {size:,} bytes cannot be made: {error.strerror}") from None
    return path


def _wide(base: np.ndarray | int) -> np.ndarray | int:
    return base[..., None] if isinstance(base, np.ndarray) else base
