"""Recorded unrolls: a folder that holds data only, written while a run acts, read in place of acting.

record.json              what it is of: the environment's spec, the run, versions, and its files with their hashes
unrolls-000000.safetensors ...

A file holds pieces, arrays under "0/obs.0", "0/action", "1/obs.0", ...: deliveries whose rows follow each other, joined
along time. Streams, versions and rows are those of `rltrain.rollout.types.Trajectory`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import OPTIONAL_FIELDS, EnvSpec, from_json, to_json
from rltrain.errors import CheckpointError, ConfigError
from rltrain.rollout.trajectories import rounds
from rltrain.rollout.tree import leaves, tree_map, unflatten
from rltrain.rollout.types import Episode, Trajectory
from rltrain.storage.checkpoint import _sync, _write
from rltrain.storage.checkpoints import NAMES, differences
from rltrain.storage.run_folder import versions, writing

FORMAT = 1
INDEX = "record.json"
FILE_BYTES = 64 * 2**20  # of memory, after which a file is written; one delivery may be bigger
OVERHEAD = 2048  # bytes that a delivery takes beside its rows, about: of short ones it is nearly all


class Recorder:
    """Writes every delivery of a run.

    Args:
        folder: made if it is not there; must be empty, or hold what this run recorded. One that a start which failed
                left without a file counts as empty.
        files:  how many files of it the checkpoint knows that the run goes on from; later ones are written again.
                None: the run is new.
        mark:   what tells the run's recording from others: as its run.json says, or None where it says nothing.

    Attributes:
        mark: stands in run.json and in the folder's index.

    Raises:
        ConfigError: the folder holds something else, or cannot be made.
        CheckpointError: files of the recording are missing.
    """

    def __init__(
        self, folder: Path, config: RunConfig, spec: EnvSpec, files: int | None = None, mark: str | None = None
    ) -> None:
        self.folder = folder
        self._pieces: list[list[Trajectory]] = []
        self._bytes = 0
        self.mark = mark or secrets.token_hex(8)
        self._meta = {
            "format": FORMAT,
            "mark": self.mark,
            "spec": to_json(spec),
            "run": config.to_json(),
            "versions": versions(),
        }
        self._files: list[dict[str, Any]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            there = sorted(path.name for path in folder.iterdir() if path.name != f".{INDEX}")
        except OSError as error:
            raise ConfigError(f"--record {folder}: {(error.strerror or str(error)).lower()}") from None
        found = _index(folder) if INDEX in there else None
        unused = found is not None and there == [INDEX] and not found["files"]
        own = files is not None and found is not None and found.get("mark") == mark
        if there and not own and not unused:
            what = "a recording" if found is not None else f"something else: {there[0]}"
            if files is not None:
                what += ", not this run's own any more"
            raise ConfigError(f"--record {folder}: the folder holds {what}; name one that is empty, or not there yet")
        if files:
            listed = _index(folder)["files"]
            if len(listed) < files:
                raise CheckpointError(
                    f"{folder / INDEX} lists {len(listed)} files, and the checkpoint knows of {files}"
                )
            self._files = listed[:files]
        for name in there if files is not None else ():  # what a run that was killed wrote after its checkpoint
            if name.lstrip(".").startswith("unrolls-") and name not in {item["name"] for item in self._files}:
                (folder / name).unlink(missing_ok=True)
        self._write_index()

    @property
    def files(self) -> int:
        """How many are whole."""
        return len(self._files)

    def add(self, unrolls: list[Trajectory]) -> None:
        """Keep a copy of a delivery, ordered by stream; what has become a file's worth is written."""
        for once in rounds(unrolls):  # one stream may have delivered twice, and slow actors deliver less
            for rows in sorted({unroll.rows for unroll in once}):
                self._add(_joined([unroll for unroll in once if unroll.rows == rows]))

    def _add(self, delivery: Trajectory) -> None:
        if self._pieces and _follows(self._pieces[-1][-1], delivery):
            self._pieces[-1].append(delivery)
        else:
            self._pieces.append([delivery])
        self._bytes += OVERHEAD + sum(
            array.nbytes for array in (*leaves(delivery.obs), delivery.action, *delivery.extras.values())
        )
        if self._bytes >= FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """What was added so far is on the disk when this returns.

        Raises:
            RunFailed: the disk is full, or the like.
        """
        if not self._pieces:
            return
        arrays: dict[str, np.ndarray] = {}
        for number, deliveries in enumerate(self._pieces):
            for name, array in _arrays(deliveries).items():
                arrays[f"{number}/{name}"] = np.ascontiguousarray(array)
        steps = sum(delivery.steps for deliveries in self._pieces for delivery in deliveries)
        data = safetensors.numpy.save(arrays)
        path = self.folder / f"unrolls-{len(self._files):06d}.safetensors"
        with writing(path):
            beside = self.folder / f".{path.name}"
            _write(beside, data)
            os.replace(beside, path)
        self._files.append(
            {"name": path.name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "steps": steps}
        )
        self._write_index()
        self._pieces, self._bytes = [], 0

    def _write_index(self) -> None:
        path, beside = self.folder / INDEX, self.folder / f".{INDEX}"
        with writing(path):
            whole = {**self._meta, "files": self._files}
            _write(beside, (json.dumps({"sha256": _hash(whole), **whole}, indent=1) + "\n").encode())
            os.replace(beside, path)
        _sync(self.folder)


@dataclass(frozen=True)
class Recording:
    """What a Recorder wrote, looked at."""

    folder: Path
    spec: EnvSpec
    streams: int  # of the run that was recorded
    steps: int
    files: tuple[dict[str, Any], ...]

    @classmethod
    def open(cls, folder: Path, spec: EnvSpec | None = None) -> Recording:
        """Read the index of a folder.

        Args:
            spec: what the unrolls must be of, the environment's name apart.

        Raises:
            CheckpointError: it is no recording, is damaged, or is of something else; one line.
        """
        index = _index(folder)
        found = cls(
            folder,
            from_json(index["spec"]),
            int(index["run"]["streams"]),
            sum(int(item["steps"]) for item in index["files"]),
            tuple(index["files"]),
        )
        if spec is not None:
            changed = differences(found.spec, spec, but=(*NAMES, "max_steps"))
            if changed:
                raise CheckpointError(f"{folder} was recorded on another {found.spec.id} than {spec.id} is: {changed}")
        return found

    def pieces(self) -> Iterator[Trajectory]:
        """Unrolls as long as they go: consecutive deliveries joined along time, with the version of the oldest.

        Raises:
            CheckpointError: a file is missing, cut or changed; by name.
        """
        for arrays in self._read():
            yield self._piece(arrays)

    def unrolls(self) -> Iterator[Trajectory]:
        """The deliveries as they were recorded."""
        for arrays in self._read():
            whole, at, episode, core = self._piece(arrays), 0, 0, 0
            for number, (length, episodes) in enumerate(zip(arrays["length"], arrays["episodes"], strict=True)):
                rows, more = slice(at, at + int(length)), slice(at, at + int(length) + 1)
                cores = 0 if whole.core is None else len(whole.core) // len(arrays["length"])
                yield replace(
                    whole,
                    obs=tree_map(lambda leaf, more=more: leaf[more], whole.obs),
                    action=whole.action[rows],
                    reward=whole.reward[rows],
                    terminated=whole.terminated[rows],
                    truncated=whole.truncated[rows],
                    first=whole.first[more],
                    version=arrays["version"][number],
                    row=whole.row + at,
                    extras={name: array[rows] for name, array in whole.extras.items()},
                    core=None if whole.core is None else whole.core[core : core + cores],
                    episodes=whole.episodes[episode : episode + int(episodes)],
                    **{name: array[more] for name, array in whole.optional_fields().items()},
                )
                at, episode, core = at + int(length), episode + int(episodes), core + cores

    def _read(self) -> Iterator[dict[str, np.ndarray]]:
        for item in self.files:
            path = self.folder / str(item["name"])
            try:
                data = path.read_bytes()
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
            if len(data) != item["bytes"]:
                raise CheckpointError(f"{path} is damaged: {len(data):,} bytes instead of {item['bytes']:,}")
            if hashlib.sha256(data).hexdigest() != item["sha256"]:
                raise CheckpointError(f"{path} is damaged: its content does not match its hash")
            pieces: dict[int, dict[str, np.ndarray]] = {}
            for name, array in safetensors.numpy.load(data).items():
                number, _, field = name.partition("/")
                pieces.setdefault(int(number), {})[field] = array
            yield from (pieces[number] for number in sorted(pieces))

    def _piece(self, arrays: dict[str, np.ndarray]) -> Trajectory:
        obs = [arrays[f"obs.{number}"] for number in range(len(self.spec.leaves()))]
        returns, lengths = arrays["episode_return"].tolist(), arrays["episode_length"].tolist()
        return Trajectory(
            obs=unflatten(_tree(self.spec.obs), obs),
            action=arrays["action"],
            reward=arrays["reward"],
            terminated=arrays["terminated"],
            truncated=arrays["truncated"],
            first=arrays["first"],
            version=arrays["version"][0],
            stream=arrays["stream"],
            row=arrays["row"],
            extras={name[7:]: array for name, array in arrays.items() if name.startswith("extras.")},
            core=arrays.get("core"),
            episodes=tuple(Episode(*pair) for pair in zip(returns, lengths, strict=True)),
            **{name: arrays[name] for name in OPTIONAL_FIELDS if name in arrays},
        )


def _joined(unrolls: list[Trajectory]) -> Trajectory:
    """A delivery as one unroll of arrays of its own."""

    def beside(*arrays: np.ndarray) -> np.ndarray:
        return np.concatenate(arrays, 1)

    def field(name: str) -> list[Any]:
        return [getattr(unroll, name) for unroll in unrolls]

    head = unrolls[0]
    return Trajectory(
        obs=tree_map(beside, *field("obs")),
        action=beside(*field("action")),
        reward=beside(*field("reward")),
        terminated=beside(*field("terminated")),
        truncated=beside(*field("truncated")),
        first=beside(*field("first")),
        version=np.concatenate(field("version")),
        stream=np.concatenate(field("stream")),
        row=np.concatenate(field("row")),
        extras={name: beside(*(unroll.extras[name] for unroll in unrolls)) for name in head.extras},
        core=None if head.core is None else beside(*field("core")),
        episodes=tuple(episode for unroll in unrolls for episode in unroll.episodes),
        **{name: beside(*field(name)) for name in head.optional_fields()},
    )


def _follows(before: Trajectory, after: Trajectory) -> bool:
    """Whether `after` goes on where `before` ended, so that one row of observations serves both."""
    return (
        before.rows == after.rows
        and np.array_equal(before.stream, after.stream)
        and np.array_equal(before.row + len(before.reward), after.row)
        and np.array_equal(before.first[-1], after.first[0])
        and all(np.array_equal(a[-1], b[0]) for a, b in zip(leaves(before.obs), leaves(after.obs), strict=True))
    )


def _arrays(deliveries: list[Trajectory]) -> dict[str, np.ndarray]:
    """The fields of deliveries that follow each other, as they lie in a file."""

    def rows(name: str) -> np.ndarray:
        return np.concatenate([getattr(delivery, name) for delivery in deliveries])

    def more(parts: list[Any]) -> np.ndarray:
        """T + 1 rows each, of which the last is the next one's first."""
        return np.concatenate([part[:-1] for part in parts[:-1]] + [parts[-1]])

    head = deliveries[0]
    each = [leaves(delivery.obs) for delivery in deliveries]
    episodes = [episode for delivery in deliveries for episode in delivery.episodes]
    found = {f"obs.{number}": more([one[number] for one in each]) for number in range(len(each[0]))}
    found |= {name: rows(name) for name in ("action", "reward", "terminated", "truncated")}
    found["first"] = more([delivery.first for delivery in deliveries])
    found["version"] = np.stack([delivery.version for delivery in deliveries])  # [D, B]
    found["length"] = np.array([len(delivery.reward) for delivery in deliveries])  # [D]
    found["episodes"] = np.array([len(delivery.episodes) for delivery in deliveries])  # [D]
    found["episode_return"] = np.array([episode.ret for episode in episodes], np.float64)
    found["episode_length"] = np.array([episode.length for episode in episodes], np.int64)
    found |= {"stream": head.stream, "row": head.row}
    for name in head.extras:
        found[f"extras.{name}"] = np.concatenate([delivery.extras[name] for delivery in deliveries])
    for name in head.optional_fields():
        found[name] = more([getattr(delivery, name) for delivery in deliveries])
    if head.core is not None:
        found["core"] = rows("core")
    return found


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index: dict[str, Any] = json.loads(path.read_bytes())
        told = index.pop("sha256")
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a recording: it has no {INDEX}") from None
    except (OSError, ValueError, KeyError, AttributeError):
        raise CheckpointError(f"{path} is damaged: it is not the JSON that was written") from None
    if _hash(index) != told:
        raise CheckpointError(f"{path} is damaged: its content does not match its hash")
    if index["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {index['format']}; this version reads format {FORMAT}")
    return index


def _hash(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _tree(obs: Any) -> Any:
    """The shape of an observation spec, as a tree with something at each leaf."""
    if isinstance(obs, dict):
        return {key: _tree(obs[key]) for key in obs}
    return tuple(_tree(child) for child in obs) if isinstance(obs, tuple) else obs
