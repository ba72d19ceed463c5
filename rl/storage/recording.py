"""Recorded unrolls: a folder of data only, which a run writes while it acts, and another reads in place of acting.

record.json                      the environment's spec, the run, versions, and the files with their hashes
unrolls-000000.safetensors ...   arrays of pieces: "0/obs.0", "0/action", "1/obs.0", ...

A piece is one trajectory: deliveries that follow each other, joined along time. So an observation is stored once, and
a file of thousands of short unrolls is read as one long unroll. "length", "episodes" and "version" say which rows,
finished episodes and weights belong to each delivery.
"""

from __future__ import annotations

import dataclasses
import math
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import COSMETIC, EnvSpec, spec_differences, to_json
from rltrain.errors import CheckpointError, ConfigError
from rltrain.rollout.trajectories import AXES, join_columns, join_rows, rounds
from rltrain.rollout.tree import leaves, unflatten
from rltrain.rollout.types import Episode, Trajectory
from rltrain.storage import files
from rltrain.storage.run_folder import versions
from rltrain.storage.schema import check_index, read_spec

FORMAT = 1
INDEX = "record.json"
FILE_BYTES = 64 * 2**20  # of memory: a file is written when the deliveries exceed it
OVERHEAD = 2048  # estimated bytes of a delivery in addition to its arrays, which short deliveries consist of
SILENT = 1024  # streams for each column in the files: a run that ends early has not recorded all of its streams
TREES = ("obs", "extras")  # fields with several arrays


class Recorder:
    """Writes every delivery of a run into a folder.

    Args:
        folder: is created if missing. It must be empty, or hold the recording of this run. A recording without files,
                which a failed start left, counts as empty.
        config: of the run; or what the index says about another source, with the number of its `streams`.
        known:  the number of files that the resumed checkpoint counted; later files are written again. None: the run
                is new.
        mark:   identifies the recording of a resumed run, from its run.json; None if it has none.

    Attributes:
        mark: identifies this recording, in run.json and in the folder's index.

    Raises:
        ConfigError: the folder holds something else, or cannot be created.
        CheckpointError: files of the recording are missing.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig | Mapping[str, Any],
        spec: EnvSpec,
        known: int | None = None,
        mark: str | None = None,
    ) -> None:
        self.folder = folder
        self.mark = mark or secrets.token_hex(8)
        self._pieces: list[list[Trajectory]] = []  # deliveries that are not written yet
        self._bytes = 0
        self._meta = {
            "format": FORMAT,
            "mark": self.mark,
            "spec": to_json(spec),
            "run": config.to_json() if isinstance(config, RunConfig) else dict(config),
            "versions": versions(),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            names = sorted(path.name for path in folder.iterdir() if path.name != f".{INDEX}")
        except OSError as error:
            raise ConfigError(f"--record {folder}: {files.reason(error)}; name an empty folder, or a new one") from None
        index = _read_index(folder) if INDEX in names else None
        unused = index is not None and names == [INDEX] and not index["files"]
        own = known is not None and index is not None and index.get("mark") == mark
        if names and not own and not unused:
            content = f"something else: {names[0]}" if index is None else "a recording"
            if known is not None:
                content += ", not this run's own any more"
            raise ConfigError(f"--record {folder}: the folder holds {content}; name an empty folder, or a new one")
        listed = [] if index is None else index["files"]
        if len(listed) < (known or 0):
            raise CheckpointError(f"{folder / INDEX} lists {len(listed)} files, but the checkpoint counted {known}")
        self._files: list[dict[str, Any]] = listed[: known or 0]
        for name in names if known is not None else ():  # written after the checkpoint, before the run was killed
            if name.lstrip(".").startswith("unrolls-") and name not in {item["name"] for item in self._files}:
                (folder / name).unlink(missing_ok=True)
        self._write_index()

    @property
    def files(self) -> int:
        """The number of complete files."""
        return len(self._files)

    def add(self, unrolls: list[Trajectory], values: Callable[[Trajectory], np.ndarray | None] | None = None) -> None:
        """Keeps a copy of a delivery, ordered by stream; writes a file when there is enough for one.

        Args:
            values: [T, B] the value of each observation, which replaces that of the policy; or None.
        """
        for once in rounds(unrolls):  # with slow actors a stream may deliver twice, or fewer rows than others
            for rows in sorted({unroll.rows for unroll in once}):
                delivery = join_columns([unroll for unroll in once if unroll.rows == rows])
                found = None if values is None else values(delivery)
                if found is not None:
                    delivery = dataclasses.replace(delivery, extras={**delivery.extras, "value": found})
                self._add(delivery)

    def _add(self, delivery: Trajectory) -> None:
        if self._pieces and _follows(self._pieces[-1][-1], delivery):
            self._pieces[-1].append(delivery)
        else:
            self._pieces.append([delivery])
        arrays = [*leaves(delivery.obs), delivery.action, *delivery.extras.values()]
        arrays += [] if delivery.core is None else [delivery.core]
        self._bytes += OVERHEAD + sum(array.nbytes for array in arrays)
        if self._bytes >= FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes all deliveries added so far to the disk.

        Raises:
            RunFailed: the disk is full, or another error of the operating system.
        """
        if not self._pieces:
            return
        arrays = {
            f"{number}/{name}": np.ascontiguousarray(array)
            for number, deliveries in enumerate(self._pieces)
            for name, array in _to_arrays(deliveries).items()
        }
        steps = sum(delivery.steps for deliveries in self._pieces for delivery in deliveries)
        data = safetensors.numpy.save(arrays)
        path = self.folder / f"unrolls-{len(self._files):06d}.safetensors"
        files.replace_file(path, data)
        self._files.append({"name": path.name, **files.digest_of(data), "steps": steps})
        self._write_index()
        self._pieces, self._bytes = [], 0

    def _write_index(self) -> None:
        files.replace_file(self.folder / INDEX, files.hashed_json({**self._meta, "files": self._files}) + b"\n")
        files.sync_folder(self.folder)


@dataclass(frozen=True)
class Recording:
    """The index of a recording, and access to its unrolls."""

    folder: Path
    spec: EnvSpec
    streams: int  # of the recorded run
    steps: int
    files: tuple[dict[str, Any], ...]
    run: Mapping[str, Any]  # its configuration, or what another source says about the origin of the data

    @classmethod
    def open(cls, folder: Path, spec: EnvSpec | None = None) -> Recording:
        """Reads the index of a folder.

        Args:
            spec: what the recorded environment must match, apart from its name.

        Raises:
            CheckpointError: the folder is no recording, is damaged, or is of another environment.
        """
        index = _read_index(folder)
        recording = cls(
            folder,
            read_spec(folder / INDEX, index["spec"]),
            int(index["run"]["streams"]),
            sum(int(item["steps"]) for item in index["files"]),
            tuple(index["files"]),
            index["run"],
        )
        if spec is not None:
            changed = spec_differences(recording.spec, spec, ignored=(*COSMETIC, "max_steps"))
            own, other = (sorted(group.agents for group in one.groups) for one in (recording.spec, spec))
            if own != other and _by_agent(recording.spec) == _by_agent(spec):
                raise CheckpointError(
                    f"{folder} was recorded with another --share: {_groups(own)} share a policy there, and "
                    f"{_groups(other)} here; give the --share of the recording"
                )
            if changed:
                raise CheckpointError(
                    f"{folder} was recorded on another {recording.spec.id} than {spec.id} is: {changed}"
                )
        return recording

    def pieces(self) -> Iterator[Trajectory]:
        """The pieces as trajectories, in the order of recording, each with the version of its first delivery.

        Raises:
            CheckpointError: a file is missing, cut or changed.
        """
        for arrays in self.arrays():
            try:
                piece = _from_arrays(arrays, self.spec)
                _check(piece, self.spec, self.streams)
            except KeyError as error:
                raise CheckpointError(f"{self.folder} is damaged: a piece has no {error}") from None
            except (ValueError, TypeError, IndexError, AttributeError) as error:
                raise CheckpointError(f"{self.folder} is damaged: {files.one_line(error)}") from None
            yield piece

    def rows_per_stream(self, older: int = 0) -> int:
        """The most rows that a replay of all pieces needs for a stream; `older` frames precede each piece.

        Raises:
            CheckpointError: the index counts far more streams than the files have columns, or see `pieces`.
        """
        rows: Counter[int] = Counter()
        columns = 0
        for piece in self.pieces():
            columns += len(piece.stream)
            for stream in piece.stream.tolist():
                rows[stream] += piece.rows + 1 + older
        if self.streams > SILENT * max(columns, 1):
            text = f"it counts {self.streams:,} streams, and its files have columns of {columns:,}"
            raise CheckpointError(f"{self.folder / INDEX} is damaged: {text}")
        return max(rows.values(), default=0)

    def arrays(self) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of each piece, by name."""
        from rltrain.storage.checkpoint import load_arrays  # imports torch, which a server that records does not need

        for item in self.files:
            path = self.folder / str(item["name"])
            pieces: dict[str, dict[str, np.ndarray]] = {}
            for name, array in load_arrays(path, item).items():
                number, _, field = name.partition("/")
                if not number.isdecimal() or len(number) > 9:
                    raise CheckpointError(f"{path} is damaged: {name[:100]!r} belongs to no piece")
                pieces.setdefault(number, {})[field] = array
            yield from (pieces[number] for number in sorted(pieces, key=int))


class Reference(NamedTuple):
    """Mean returns of random actions and of an expert in the environment of a recording, for normalised scores."""

    random: float
    expert: float

    def score(self, ret: float) -> float:
        """0 for the return of random actions, 100 for that of the expert."""
        return 100.0 * (ret - self.random) / (self.expert - self.random)


def reference_of(run: Mapping[str, Any], spec: EnvSpec, env_args: Mapping[str, Any] | None = None) -> Reference | None:
    """The reference scores that a recording's origin says, if they are of this version of the environment.

    Args:
        env_args: of the environment's constructor; None: they are not compared.
    """
    said = run.get("reference")
    if not isinstance(said, dict) or said.get("env") != spec.id:
        return None
    if env_args is not None and said.get("env_args", {}) != env_args:
        return None
    numbers = [said.get(name) for name in ("random", "expert")]
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers) or numbers[0] == numbers[1]:
        return None
    return Reference(*(float(x) for x in numbers if x is not None))


def _follows(before: Trajectory, after: Trajectory) -> bool:
    """True if `after` has the rows that follow `before`, and repeats its last observation."""
    return (
        before.rows == after.rows
        and np.array_equal(before.stream, after.stream)
        and np.array_equal(before.row + before.rows, after.row)
        and np.array_equal(before.first[-1], after.first[0])
        and all(np.array_equal(a[-1], b[0]) for a, b in zip(leaves(before.obs), leaves(after.obs), strict=True))
    )


def _to_arrays(deliveries: list[Trajectory]) -> dict[str, np.ndarray]:
    """Deliveries that follow each other as the arrays of a piece."""
    piece = join_rows(deliveries)
    single = {name: getattr(piece, name) for name in AXES if name not in TREES}
    return {
        **{f"obs.{number}": leaf for number, leaf in enumerate(leaves(piece.obs))},
        **{f"extras.{name}": array for name, array in piece.extras.items()},
        **{name: array for name, array in single.items() if array is not None},
        "version": np.stack([delivery.version for delivery in deliveries]),  # [D, B]
        "length": np.array([delivery.rows for delivery in deliveries]),  # [D]
        "episodes": np.array([len(delivery.episodes) for delivery in deliveries]),  # [D]
        "episode_return": np.array([episode.ret for episode in piece.episodes], np.float64),
        "episode_length": np.array([episode.length for episode in piece.episodes], np.int64),
    }


def _from_arrays(arrays: dict[str, np.ndarray], spec: EnvSpec) -> Trajectory:
    """The inverse of `_to_arrays`: all deliveries as one trajectory."""
    returns, lengths = arrays["episode_return"].tolist(), arrays["episode_length"].tolist()
    single = {name: arrays[name] for name in AXES if name in arrays}
    return Trajectory(
        **single | {"version": arrays["version"][0]},
        obs=unflatten(spec.obs, [arrays[f"obs.{number}"] for number in range(len(spec.leaves()))]),
        extras={name.removeprefix("extras."): array for name, array in arrays.items() if name.startswith("extras.")},
        episodes=tuple(Episode(*pair) for pair in zip(returns, lengths, strict=True)),
    )


def _check(piece: Trajectory, spec: EnvSpec, streams: int) -> None:
    """ValueError if the arrays of a piece do not have the shapes, types and values that the spec promises."""
    rows, columns = len(piece.reward), len(piece.stream)
    after, before, each = (rows, columns), (rows + 1, columns), (columns,)
    kinds: dict[str, tuple[Any, tuple[int, ...], str]] = {
        "action": (piece.action, (*after, *spec.action.shape), spec.action.dtype),
        "reward": (piece.reward, (*after, *spec.agents_shape), "float32"),
        "terminated": (piece.terminated, (*after, *spec.agents_shape), "bool"),
        "truncated": (piece.truncated, (*after, *spec.agents_shape), "bool"),
        "first": (piece.first, before, "bool"),
        **{name: (getattr(piece, name), each, "int64") for name in ("version", "stream", "row")},
    }
    for number, (leaf, array) in enumerate(zip(spec.leaves(), leaves(piece.obs), strict=True)):
        kinds[f"obs.{number}"] = array, (*before, *leaf.shape), leaf.dtype
    for name, (shape, dtype) in spec.optional_fields().items():
        kinds[name] = getattr(piece, name), (*before, *shape), dtype
    if piece.acting is not None:  # without turns: of a run against opponents
        kinds["acting"] = piece.acting, (*before, *spec.agents_shape), "bool"
    if piece.num_rows is not None:
        kinds["num_rows"] = piece.num_rows, each, "int64"
    for name, (array, shape, dtype) in kinds.items():
        if array is None or array.shape != shape or array.dtype != dtype:
            found = "missing" if array is None else f"{array.dtype} {array.shape}"
            raise ValueError(f"{name} is {found}, and the spec promises {dtype} {shape}")
        if dtype == "float32" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    if columns and not 0 <= piece.stream.min() <= piece.stream.max() < streams:
        raise ValueError(f"stream counts from 0 to {streams - 1}")
    sizes = np.array(spec.action.nvec).reshape(spec.action.shape) if spec.action.nvec else None
    if sizes is not None and ((piece.action < 0) | (piece.action >= sizes)).any():
        raise ValueError(f"action holds numbers outside of 0 to {spec.action.nvec} - 1")


def _by_agent(spec: EnvSpec) -> dict[str, Any]:
    """What each of several agents observes, and its actions."""
    return {agent: (group.obs, group.action) for group in spec.groups for agent in group.agents}


def _groups(groups: list[tuple[str, ...]]) -> str:
    return " and ".join(f"({', '.join(agents)})" for agents in groups)


def _read_index(folder: Path) -> dict[str, Any]:
    if not os.path.lexists(folder / INDEX):
        raise CheckpointError(f"{folder} is not a recording: it has no {INDEX}")
    index = files.read_hashed_json(folder / INDEX, FORMAT).content
    check_index(folder / INDEX, index)
    return index
