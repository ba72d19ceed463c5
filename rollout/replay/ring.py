"""The arrays of a replay: a ring of rows per stream, in memory or in memory-mapped files; frames are stored once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.envs.spec import EnvSpec, Leaf
from rltrain.rollout.frame_stacks import are_stacks
from rltrain.rollout.tree import Tree, unflatten

Segment = Callable[[], dict[str, np.ndarray]]
TERMINATED, TRUNCATED, FIRST, READY, MIDST = (np.uint8(1 << bit) for bit in range(5))
ENDED = TERMINATED | TRUNCATED
SEGMENT_BYTES = 4 * 2**20  # approximate size of a block of rows that does not change any more


class NoStack(ValueError):
    """A leaf that the spec declares as a stack does not hold the newest frames of its episode."""


def fields(spec: EnvSpec, core_size: int = 0) -> dict[str, tuple[tuple[int, ...], str]]:
    """The arrays of one row: name -> (shape, dtype). Of a stack of frames only the newest frame is stored.

    Args:
        core_size: numbers of the recurrent state before a row; 0: none is stored.
    """
    arrays: dict[str, tuple[tuple[int, ...], str]] = {}
    for number, leaf in enumerate(spec.leaves()):
        arrays[f"obs.{number}"] = (leaf.shape[1:] if leaf.stack else leaf.shape), leaf.dtype
    arrays |= spec.optional_fields()
    arrays["action"] = spec.action.shape, spec.action.dtype
    arrays["reward"] = spec.agents_shape, "float32"
    arrays["flag"] = (), "uint8"
    if spec.groups:  # `flag` holds the ends of episodes, these the ends of agents
        arrays |= {"terminated": (spec.agents_shape, "bool"), "truncated": (spec.agents_shape, "bool")}
    if history(spec):
        arrays["age"] = (), "uint8"
    if core_size:
        arrays["core"] = (core_size,), "float32"
    return arrays


def row_bytes(spec: EnvSpec, core_size: int = 0) -> int:
    """Bytes of one row."""
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in fields(spec, core_size).values())


def history(spec: EnvSpec) -> int:
    """Number of rows before a row that its stack of frames consists of: k - 1, or 0 without stacks."""
    return max((leaf.stack - 1 for leaf in spec.leaves() if leaf.stack), default=0)


class Ring:
    """The newest `rows` rows of each stream, and the older rows that their stacks of frames need.

    Row r of stream s, counted from the stream's first, has the position s * size + r % size. Methods take the position
    of a stream's row 0 as `base`.

    Attributes:
        flat:    every field, [streams * size, ...].
        flag:    per row: TERMINATED, TRUNCATED, FIRST as in an unroll; READY: the row can be sampled; MIDST with FIRST:
                 the section starts within an episode.
        head:    [streams] the newest row, whose action is not known yet; -1: none.
        low:     [streams] the oldest row that may be sampled.
        next:    [streams] the expected `Trajectory.row` of the next unroll.
        history: see the function `history`.
    """

    def __init__(self, spec: EnvSpec, streams: int, rows: int, folder: Path | None, core_size: int = 0) -> None:
        self.spec = spec
        self.rows = rows
        self.head = np.full(streams, -1, np.int64)
        self.low = np.zeros(streams, np.int64)
        self.next = np.zeros(streams, np.int64)
        self.history = history(spec)
        self.streams, self.size = streams, rows + 1 + self.history
        self.block = max(1, min(SEGMENT_BYTES // row_bytes(spec, core_size), max(64, rows // 8)))
        self.flat: dict[str, np.ndarray] = {}
        for name, (shape, dtype) in fields(spec, core_size).items():
            full_shape = (streams * self.size, *shape)
            if folder is None:
                self.flat[name] = np.zeros(full_shape, dtype)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                mapped = np.memmap(
                    _allocated(folder / f"{name}.rows", full_shape, dtype), dtype, "r+", shape=full_shape
                )
                self.flat[name] = np.ndarray(full_shape, dtype, mapped)  # without the slower methods of memmap
        self.flag = self.flat["flag"]
        self._leaves = spec.leaves()
        self._depth = np.arange(self.history + 2, dtype=np.int64)

    def write_obs(self, at: np.ndarray, obs: Sequence[np.ndarray]) -> None:
        """Stores observations, leaves [..., *O], at the positions `at` [...]; of a stack its newest frame."""
        for number, (leaf, array) in enumerate(zip(self._leaves, obs, strict=True)):
            self.flat[f"obs.{number}"][at] = array[(slice(None),) * at.ndim + (-1,)] if leaf.stack else array

    def write_older(self, base: int, row: int, obs: Sequence[np.ndarray]) -> None:
        """Stores the older frames of stacks, leaves [1, k, *frame], in the `history` rows from `row` of one stream.

        Each of those rows begins an episode, so that none of them can be sampled.
        """
        at = self.at(np.arange(row, row + self.history), base)
        for flat in self.flat.values():
            flat[at] = 0
        self.flag[at] = FIRST
        for number, (leaf, array) in enumerate(zip(self._leaves, obs, strict=True)):
            if leaf.stack:
                self.flat[f"obs.{number}"][at[len(at) - leaf.stack + 1 :]] = array[0, :-1]

    def write_ages(self, at: np.ndarray, first: np.ndarray) -> None:
        """Stores the distance of rows 1 to T from the first row of their episodes, at most history + 1.

        Args:
            at:    [T+1, B] positions of the rows.
            first: [T+1, B]
        """
        age = self.flat["age"]
        count = np.arange(1, len(first))[:, None]
        began = np.where(first[1:], count, -age[at[0]].astype(np.int64))
        age[at[1:]] = np.minimum(count - np.maximum.accumulate(began, 0), self.history + 1)

    def holds_stacks(self, obs: Sequence[np.ndarray], first: np.ndarray) -> bool:
        """True if the stacks of an unroll, leaves [T+1, B, k, *frame], are the newest frames of their episodes."""
        return all(are_stacks(leaf, array, first) for leaf, array in zip(self._leaves, obs, strict=True) if leaf.stack)

    def obs(self, row: np.ndarray, base: np.ndarray | int, at: np.ndarray | None = None) -> Tree:
        """The observations of rows `row` [...]: a tree of [..., *O].

        Args:
            at: [...] positions of the rows, if they are known.
        """
        if at is None:
            at = self.at(row, base)
        arrays = []
        for number, leaf in enumerate(self._leaves):
            flat = self.flat[f"obs.{number}"]
            arrays.append(self._stacks(flat, leaf, row, base, at) if leaf.stack else flat.take(at, 0, mode="clip"))
        return self.tree(arrays)

    def obs_pair(self, row: np.ndarray, base: np.ndarray | int, at: np.ndarray) -> tuple[Tree, Tree]:
        """The observations of rows `row` [B] and of the next rows, which belong to the same episodes.

        A stack and its successor share k - 1 frames: they are two views of k + 1 frames.

        Args:
            at: [2, B] positions of the rows and of the next rows.
        """
        here, after = [], []
        for number, leaf in enumerate(self._leaves):
            flat = self.flat[f"obs.{number}"]
            if leaf.stack:
                frames = self._stacks(flat, leaf, row + 1, base, at[1], leaf.stack + 1)
                here.append(frames[:, :-1])
                after.append(frames[:, 1:])
            else:
                both = flat.take(at, 0, mode="clip")
                here.append(both[0])
                after.append(both[1])
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
        """Positions of rows `row` of the streams that begin at `base`."""
        found: np.ndarray = row % self.size + base
        return found

    def episodes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Streams, first rows and lengths of the episodes that are stored from their first row to their end."""
        newest = np.maximum(self.head, 0)[:, None]  # [streams, 1]
        row = newest - self.size + 1 + np.arange(self.size)  # [streams, size], oldest first
        flag = self.flag.reshape(self.streams, self.size)[np.arange(self.streams)[:, None], row % self.size]
        flag = np.where(row >= self.low[:, None], flag, 0).ravel()
        begins, ends = np.flatnonzero(flag & FIRST), np.flatnonzero(flag & ENDED)
        before = np.searchsorted(begins, ends, "right") - 1  # the last first row before each end
        ends, before = ends[before >= 0], before[before >= 0]
        begin = begins[before] if len(begins) else before
        complete = begin // self.size == ends // self.size
        complete[1:] &= begin[1:] > ends[:-1]
        complete &= (flag[begin] & MIDST) == 0
        begin, ends = begin[complete], ends[complete]
        return begin // self.size, row.ravel()[begin], ends - begin + 1

    def read(self, stream: int, begin: int, end: int) -> dict[str, np.ndarray]:
        """Copies of all fields of rows `begin` to `end` of a stream, [end - begin, ...] each."""
        at = self.at(np.arange(begin, end), stream * self.size)
        return {name: flat.take(at, 0) for name, flat in self.flat.items()}

    def put(self, stream: int, begin: int, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `read`. ValueError if the arrays are not the fields of this ring."""
        count = len(arrays["flag"])
        at = self.at(np.arange(begin, begin + count), stream * self.size)
        for name, flat in self.flat.items():
            if name not in arrays or arrays[name].shape != (count, *flat.shape[1:]) or arrays[name].dtype != flat.dtype:
                raise ValueError(f"a replay's rows do not fit: {name} should be {flat.shape[1:]} of {flat.dtype}")
            flat[at] = arrays[name]

    def state(self, settled: int) -> tuple[dict[str, Any], dict[str, Segment]]:
        """Pointers and the newest rows, and segments: functions that read blocks of rows that do not change any more.

        Args:
            settled: number of rows between a stream's newest row and the newest one that does not change any more.
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

    def load(self, small: dict[str, Any], segments: Mapping[str, Segment]) -> None:
        """The inverse of `state`. ValueError if rows are missing or do not fit."""
        self.block = int(small["block"])
        for own, name in ((self.head, "head"), (self.low, "low"), (self.next, "next")):
            own[:] = small[name]
        keep, tail = np.maximum(self.low - self.history, 0), small["tail"]
        streams = np.flatnonzero(self.head >= 0).tolist()
        missing = {stream: int(tail[stream] - keep[stream]) for stream in streams}
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
        for stream in streams:
            count = int(self.head[stream] - tail[stream]) + 1
            self.put(stream, int(tail[stream]), {n: a[offset : offset + count] for n, a in small["newest"].items()})
            offset += count
            older = self.at(np.arange(keep[stream], self.low[stream]), stream * self.size)
            self.flag[older] &= ~READY

    def tree(self, arrays: list[Any]) -> Tree:
        """The leaves in the structure of the environment's observation."""
        return arrays[0] if isinstance(self.spec.obs, Leaf) else unflatten(self.spec.obs, arrays)


def _allocated(path: Path, shape: tuple[int, ...], dtype: Any) -> Path:
    """A file of zeros whose blocks are allocated now: on a full disk a write to a hole would end the process.

    Raises:
        ValueError: the disk is full.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        path.unlink(missing_ok=True)  # a copy of the run may share the file, under a name of its own
        with path.open("xb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        raise ValueError(f"the replay's file {path} of {size:,} bytes cannot be made: {error.strerror}") from None
    return path


def _wide(base: np.ndarray | int) -> np.ndarray | int:
    return base[..., None] if isinstance(base, np.ndarray) else base
