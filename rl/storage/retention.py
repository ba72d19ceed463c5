"""The checkpoints of a run: writing, names, `latest` and `best`, removal, and which one a resumed run continues.

checkpoints/
    step-000012288/     the state of the run after 12,288 steps
    best-000008192/     the policy alone, as it was evaluated
    latest, best        files that hold the name of a checkpoint
    segments/           rows of the replay that checkpoints share
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import EnvSpec, to_json
from rltrain.errors import CheckpointError
from rltrain.rollout.types import Weights
from rltrain.storage import checkpoint
from rltrain.storage.checkpoint import INCOMPLETE, META, Checkpoint
from rltrain.storage.files import one_line, read_file, replace_file, sync_folder
from rltrain.storage.run_folder import versions
from rltrain.storage.schema import read_spec
from rltrain.storage.segments import Listed, Segments

COSMETIC = ("id", "stack", "padding")  # parts of a spec that do not change what the policy observes and does


class CheckpointWriter:
    """Writes the checkpoints of a run into a folder, and removes those that are not needed any more.

    Args:
        folder:         the run's folder of checkpoints.
        restore_method: how streams are restored on resume; with "none" a resumed run is not exact.
        resumed:        the checkpoint from which the run continues.

    Attributes:
        step: of the newest checkpoint; 0 if there is none.
    """

    def __init__(
        self, folder: Path, config: RunConfig, spec: EnvSpec, restore_method: str, resumed: Checkpoint | None
    ) -> None:
        self.folder, self._config, self._spec, self._restore_method = folder, config, spec, restore_method
        listed: Listed = {} if resumed is None else resumed.meta.get("segments", {})
        self._segments = Segments(folder, listed)
        self.step = 0 if resumed is None else int(resumed.meta["step"])

    def save(self, step: int, version: int, state: Any, segments: Mapping[str, Any], blind: bool) -> Path:
        """Writes a complete checkpoint, to which `latest` points afterwards; removes old ones and unused segments.

        Args:
            segments: functions that make the arrays of the replay's segments, by name.
            blind:    True if the actors could not report their state: a run that continues from here is not exact.

        Raises:
            RunFailed: the disk is full, or another error of the operating system. Older checkpoints stay intact.
        """
        exact = self._restore_method != "none" and not blind
        meta = {**self._meta(step, version, exact), "kind": "run", "segments": self._segments.write(segments)}
        path = checkpoint.save(self.folder, f"step-{step:012d}", state, meta)
        point(self.folder, "latest", path.name)
        prune(self.folder, self._config.keep)
        self._segments.collect()
        self.step = step
        return path

    def save_best(self, weights: Weights, value: float | None) -> None:
        """Writes the policy alone, with the mean return of its evaluation; `best` points to it afterwards."""
        meta = {**self._meta(weights.step, weights.version, self._restore_method != "none"), "kind": "policy"}
        state = {"learner": {"parts": {"policy": weights.arrays}}}
        path = checkpoint.save(self.folder, f"best-{weights.step:012d}", state, {**meta, "eval_return": value})
        point(self.folder, "best", path.name)
        prune(self.folder, self._config.keep)

    def _meta(self, step: int, version: int, exact: bool) -> dict[str, Any]:
        return {
            "step": step,
            "version": version,
            "exact": exact,
            "way": self._restore_method,
            "config": self._config.to_json(),
            "spec": to_json(self._spec),
            "versions": versions(),
        }


def point(folder: Path, link: str, name: str) -> None:
    """Writes `name` into the file `folder/link` (latest or best)."""
    replace_file(folder / link, f"{name}\n".encode())
    sync_folder(folder)


def prune(folder: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep` and those that `latest` and `best` name, and incomplete ones.

    Also removed: other checkpoints of the step of a named one, and those after `latest`. A run that was killed left
    them.
    """
    latest = _pointee(folder / "latest")
    named = {latest, _pointee(folder / "best")}
    steps = {str(name).partition(".")[0] for name in named}
    names = sorted(path.name for path in folder.glob("step-*") if path.is_dir())
    after = set(names[names.index(latest) + 1 :]) if latest in names else set()
    stray = {name for name in names if name.partition(".")[0] in steps or name in after} - named
    rest = [name for name in names if name not in stray]
    for name in (stray | set(rest[:-keep])) - named:
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in [*folder.glob(f"{INCOMPLETE}*"), *(p for p in folder.glob("best-*") if p.name not in named)]:
        shutil.rmtree(path, ignore_errors=True)


def locate(path: str | Path, link: str = "latest") -> Path:
    """The folder of a checkpoint.

    Args:
        path: the checkpoint, a run's folder, or its folder of checkpoints.
        link: "latest" or "best": which checkpoint of a run.

    Raises:
        CheckpointError: there is no checkpoint, or `link` is damaged.
    """
    path = Path(path)
    if (path / META).exists():
        return path
    for folder in (path / "checkpoints", path):
        if (folder / link).is_file():
            name = _pointee(folder / link)
            if name is None:
                raise CheckpointError(f"{folder / link} is damaged: it does not hold the name of a checkpoint")
            if not (folder / name / META).exists():
                raise CheckpointError(f"{folder / link} names {name!r}, which does not exist")
            return folder / name
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    raise CheckpointError(f"{path} holds no checkpoint: expected {META}, or a run's folder with checkpoints/{link}")


def _pointee(link: Path) -> str | None:
    """The name in `latest` or `best`; None if there is no such file, or it does not hold the name of a folder."""
    try:
        text = read_file(link, 200).decode("ascii").strip()
    except (CheckpointError, UnicodeDecodeError):
        return None
    return text if re.fullmatch(r"[\w-][\w.-]{0,99}", text) else None


def latest_checkpoint(checkpoints: Path, notes: list[str]) -> Checkpoint | None:
    """The checkpoint that `latest` names. Without `latest`: the newest that can be loaded, with a line in `notes`.

    Returns:
        None only if no checkpoint was ever written.

    Raises:
        CheckpointError: none of the checkpoints can be loaded.
    """
    if (checkpoints / "latest").exists():
        return checkpoint.load(locate(checkpoints))
    paths = sorted((path for path in checkpoints.glob("step-*") if path.is_dir()), key=_step_and_number, reverse=True)
    damaged: list[str] = []
    for path in paths:
        try:
            newest = checkpoint.load(path)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        notes.append(f"{checkpoints / 'latest'} is missing: continuing from {path.name}, the newest that can be loaded")
        notes += [f"{text}; it will be removed when the next checkpoint is written" for text in damaged]
        point(checkpoints, "latest", path.name)
        return newest
    if paths:
        raise CheckpointError(f"{checkpoints / 'latest'} is missing, and no checkpoint can be loaded: {damaged[0]}")
    return None


def _step_and_number(path: Path) -> tuple[str, int]:
    """Sort key: step-000000000128 comes before step-000000000128.2."""
    step, _, number = path.name.partition(".")
    return step, int(number) if number.isdecimal() else 1


def require_same_environment(saved: Checkpoint, spec: EnvSpec) -> None:
    """CheckpointError if the policy observes or does something else than at the checkpoint; a new id is accepted."""
    old = read_spec(saved.path / META, saved.meta["spec"])
    if changed := spec_differences(old, spec, ignored=COSMETIC):
        raise CheckpointError(f"{saved.path} was trained on another {old.id} than {spec.id} is now: {changed}")


def spec_differences(old: EnvSpec, new: EnvSpec, ignored: Collection[str]) -> str:
    """The first differences of two specs, for a message: "" if there are none. Keys in `ignored` are not compared."""
    before, after = _flat_spec(to_json(old)), _flat_spec(to_json(new))
    changed = [
        key
        for key in {**before, **after}
        if before.get(key) != after.get(key) and key.rpartition(".")[2] not in ignored
    ]
    return "; ".join(f"{key} was {before.get(key)}, is {after.get(key)}" for key in changed[:3])


def _flat_spec(node: Any, name: str = "") -> dict[str, Any]:
    """A spec's JSON by path: {"obs.shape": (4,), ...}."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return {name: node}
    flat: dict[str, Any] = {}
    for key, child in node.items():
        flat |= _flat_spec(child, name if key in ("leaf", "dict", "tuple") else f"{name}.{key}".lstrip("."))
    return flat


@contextlib.contextmanager
def mismatch_as_error(path: Path) -> Iterator[None]:
    """Turns errors from restoring a state that lacks an entry, or has another shape, into a CheckpointError."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{path} does not fit this run: it has no {error}") from None
    except Exception as error:  # of any kind: the state may be anything
        if type(error).__module__.partition(".")[0] == "rltrain":
            raise  # an exception of our own says what is wrong
        text = one_line(error) or type(error).__name__
        raise CheckpointError(f"{path} does not fit this run: {text}") from None
