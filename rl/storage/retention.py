"""The checkpoints of a run: writing, names, `latest` and `best`, removal, and which one a resumed run continues.

checkpoints/
    step-000012288/     the state of the run after 12,288 steps
    best-000008192/     the policy alone, as it was evaluated
    latest, best        files that hold the name of a checkpoint
    segments/           rows of the replay that checkpoints share
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import COSMETIC, EnvSpec, spec_differences, to_json
from rltrain.errors import CheckpointError
from rltrain.rollout.types import Weights
from rltrain.storage import checkpoint
from rltrain.storage.checkpoint import META, Checkpoint
from rltrain.storage.files import INCOMPLETE, one_line, read_file, refuse_link, replace_file, sync_folder
from rltrain.storage.run_folder import RUN_FILE, SEEDS_FILE, versions
from rltrain.storage.schema import read_spec
from rltrain.storage.segments import Listed, Segments, check_segments
from rltrain.system.schedule import Schedule

LISTINGS = 50  # so often a folder of checkpoints that appears empty is listed
STEPS, BEST = "step-", "best-"  # first letters of the names of checkpoints: states of the run, best policies


class CheckpointWriter:
    """Writes the checkpoints of a run into a folder, and removes those that are not needed any more.

    Args:
        folder:         the run's folder of checkpoints.
        restore_method: how streams are restored on resume; with "none" a resumed run is not exact.
        resumed:        the checkpoint from which the run continues.
    """

    def __init__(
        self, folder: Path, config: RunConfig, spec: EnvSpec, restore_method: str, resumed: Checkpoint | None
    ) -> None:
        self.folder, self._config, self._spec, self._restore_method = folder, config, spec, restore_method
        listed: Listed = {} if resumed is None else resumed.meta.get("segments", {})
        self._segments = Segments(folder, listed)
        self._schedule = Schedule(config.checkpoint_every)
        if resumed is not None:
            self._schedule.done(int(resumed.meta["step"]))

    def due(self, steps: int) -> bool:
        """True if a checkpoint is due at this step."""
        return self._schedule.due(steps)

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
        path = checkpoint.save(self.folder, f"{STEPS}{step:012d}", state, meta)
        point(self.folder, "latest", path.name)
        prune(self.folder, self._config.keep)
        self._segments.collect()
        self._schedule.done(step)
        return path

    def save_best(self, weights: Weights, value: float | None) -> None:
        """Writes the policy alone, with the mean return of its evaluation; `best` points to it afterwards."""
        meta = {**self._meta(weights.step, weights.version, self._restore_method != "none"), "kind": "policy"}
        state = {"learner": {"parts": {"policy": weights.arrays}}}
        path = checkpoint.save(self.folder, f"{BEST}{weights.step:012d}", state, {**meta, "eval_return": value})
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
    names = [path.name for path in reversed(_newest_first(folder, STEPS))]
    after = set(names[names.index(latest) + 1 :]) if latest in names else set()
    stray = {name for name in names if name.partition(".")[0] in steps or name in after} - named
    rest = [name for name in names if name not in stray]
    for name in [*(stray | set(rest[:-keep])), *(path.name for path in _newest_first(folder, BEST))]:
        if name not in named:
            with contextlib.suppress(OSError):  # renamed first, so that a reader finds a whole checkpoint or none
                (folder / name).rename(folder / f"{INCOMPLETE}{name}")
    for path in folder.glob(f"{INCOMPLETE}*"):
        shutil.rmtree(path, ignore_errors=True)


def find(path: str | Path, best: bool = False) -> tuple[Checkpoint, list[str]]:
    """The checkpoint at `path`, and a line about each newer one that is damaged.

    Args:
        path: a checkpoint; or a run's folder, its folder of checkpoints or the file `latest` in there: the newest
              checkpoint that is intact; or the file `best` in there, as `best`.
        best: the newest of the policies that were the best so far.

    Raises:
        CheckpointError: there is no checkpoint, or none is intact; a checkpoint that `path` itself names is damaged.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise CheckpointError(f"{path} does not exist")
    if os.path.lexists(path / META):
        return checkpoint.load(path), []
    if path.name in ("latest", "best") and os.path.isfile(path):
        path, best = path.parent, best or path.name == "best"
    refuse_link(path / "checkpoints")
    for folder in (path / "checkpoints", path):
        found, notes = newest_intact(folder, best)
        if found is not None:
            return found, notes
    if os.path.lexists(path / SEEDS_FILE):
        one = next(iter(sorted(path.glob(f"*/{RUN_FILE}"))), path / "seed-0" / RUN_FILE).parent
        raise CheckpointError(f"{path} holds the runs of several seeds: give one of them, for example {one}")
    what = "a best policy in checkpoints/" if best else f"{META}, or a run's folder with checkpoints/"
    raise CheckpointError(f"{path} holds no checkpoint: expected {what}")


def newest_intact(folder: Path, best: bool = False, segments: bool = False) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint in a folder that is intact, and lines about damage, `latest` and `best` included.

    These files do not decide, because after a crash they may be missing or name another checkpoint. If a checkpoint
    cannot be read, the folder is listed again: the run may have removed it, and written a newer one, in the meantime.

    Args:
        best:     look for the best policies in place of the states of the run.
        segments: the rows of the replay that the checkpoint lists must be intact, too.

    Returns:
        None if the folder holds no checkpoint.

    Raises:
        CheckpointError: none of the checkpoints is intact.
    """
    damaged: dict[Path, str] = {}
    link, again = folder / ("best" if best else "latest"), LISTINGS
    while True:
        paths = _newest_first(folder, BEST if best else STEPS)
        path = next((path for path in paths if path not in damaged), None)
        if path is None:
            again -= 1
            if not paths and again and link.exists():  # the run wrote and removed checkpoints during the listing
                time.sleep(0.001)
                continue
            break
        try:
            refuse_link(path)
            found = checkpoint.load(path)
            if segments:
                check_segments(folder, found.meta.get("segments", {}))
        except CheckpointError as error:
            damaged[path] = str(error)
            continue
        newer = [damaged[other] for other in paths[: paths.index(path)]]
        notes = [f"{text}; {path.name} is used instead" for text in newer]
        return found, [*notes, *_note_about_link(link, path)]
    if paths:
        others = "; no other checkpoint is intact" if len(paths) > 1 else ""
        raise CheckpointError(f"{damaged[paths[0]]}{others}")
    return None, []


def _note_about_link(link: Path, used: Path) -> list[str]:
    """A line if `latest` or `best` does not name an existing checkpoint."""
    name = _pointee(link)
    if name is None:
        problem = "does not hold the name of a checkpoint" if link.exists() else "is missing"
    elif (link.parent / name).is_dir():
        return []
    else:
        problem = f"names {name!r}, which does not exist"
    return [f"{link} {problem}; {used.name}, the newest checkpoint that is intact, is used"]


def _pointee(link: Path) -> str | None:
    """The name in `latest` or `best`; None if there is no such file, or it does not hold the name of a folder."""
    try:
        text = read_file(link, 200).decode("ascii").strip()
    except (CheckpointError, UnicodeDecodeError):
        return None
    return text if re.fullmatch(r"[\w-][\w.-]{0,99}", text) else None


def _newest_first(folder: Path, kind: str) -> list[Path]:
    """The checkpoints in a folder, newest first: step-000000000128.2 comes before step-000000000128.

    Folders with other names are a user's own, for example a copy step-000000000128.bak.
    """
    found: list[tuple[int, int, Path]] = []
    for path in folder.glob(f"{kind}*"):
        name = re.fullmatch(r"(\d{12,})(?:\.(\d+))?", path.name.removeprefix(kind), re.ASCII)
        if name is not None and path.is_dir():
            found.append((int(name[1]), int(name[2] or 1), path))
    return [path for *_, path in sorted(found, reverse=True)]


def require_same_environment(saved: Checkpoint, spec: EnvSpec) -> None:
    """CheckpointError if the policy observes or does something else than at the checkpoint; a new id is accepted."""
    old = read_spec(saved.path / META, saved.meta["spec"])
    if changed := spec_differences(old, spec, ignored=COSMETIC):
        raise CheckpointError(f"{saved.path} was trained on another {old.id} than {spec.id} is now: {changed}")


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
