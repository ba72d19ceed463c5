"""Opens the folder of a run: a new one, or one to resume together with everything saved in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import EnvSpec
from rltrain.storage import schema
from rltrain.storage.checkpoint import META, Checkpoint
from rltrain.storage.recording import Recorder
from rltrain.storage.retention import mismatch_as_error, newest_intact, require_same_environment
from rltrain.storage.run_folder import (
    discard,
    lock,
    make_folder,
    recording_mark,
    refuse_links,
    require_same_config,
    write_run_file,
)
from rltrain.storage.segments import Listed

CHECKPOINTS = "checkpoints"  # folder inside a run's folder
REPLAY = "replay"  # folder of a replay on disk; it exists only while the run is active


@dataclass(frozen=True)
class Saved:
    """What a run continues from. Empty for a new run.

    Attributes:
        folder:     the run's folder; None for a new run.
        checkpoint: None for a new run, and for a run that ended before its first checkpoint.
    """

    folder: Path | None = None
    checkpoint: Checkpoint | None = None

    @property
    def restore_method(self) -> str | None:
        """How streams are restored, as the checkpoint says; None if there is no checkpoint."""
        return None if self.checkpoint is None else str(self.checkpoint.meta["way"])

    @property
    def is_own(self) -> bool:
        """True if this user wrote the checkpoint."""
        return self.checkpoint is not None and self.checkpoint.own

    @property
    def segments(self) -> Listed:
        """The replay segments that the checkpoint lists."""
        return {} if self.checkpoint is None else self.checkpoint.meta.get("segments", {})

    @property
    def steps(self) -> int:
        """`steps` of the configuration that the checkpoint was written with."""
        return 0 if self.checkpoint is None else int(self.checkpoint.meta["config"]["steps"])

    @property
    def steps_done(self) -> int:
        """Steps that the run had made at the checkpoint."""
        return 0 if self.checkpoint is None else int(self.checkpoint.meta["step"])

    def check(self, spec: EnvSpec) -> None:
        """CheckpointError if observations or actions of the environment have changed since the checkpoint."""
        if self.checkpoint is not None:
            require_same_environment(self.checkpoint, spec)

    def restore(self, load: Callable[[Any], None]) -> bool:
        """Call `load` with the saved state. Without a checkpoint it returns False and does nothing.

        Raises:
            CheckpointError: a part is missing in the state, or has another shape.
        """
        if self.checkpoint is None:
            return False
        with mismatch_as_error(self.checkpoint.path):
            load(self.checkpoint.state)
        return True


NEW_RUN = Saved()


def open_saved(resume: Path | None, closing: ExitStack) -> tuple[Saved, list[str]]:
    """Lock the folder of a run to resume and load its newest intact checkpoint; an empty `Saved` for a new run.

    Raises:
        ConfigError: another process uses the folder.
        CheckpointError: no checkpoint is intact, although some were written.
    """
    if resume is None:
        return NEW_RUN, []
    refuse_links(resume)
    closing.callback(lock(resume))
    shutil.rmtree(resume / REPLAY, ignore_errors=True)  # left by a killed run; it takes disk space
    newest, notes = newest_intact(resume / CHECKPOINTS, segments=True)
    saved = Saved(resume, newest)
    if saved.checkpoint is not None:
        meta = saved.checkpoint.path / META
        schema.require(meta, saved.checkpoint.meta, "config", "spec", "way")
        spec = schema.read_spec(meta, saved.checkpoint.meta["spec"])
        schema.check_sizes(meta, saved.checkpoint.meta["config"], saved.checkpoint.state, spec=spec)
        require_same_config(resume, saved.checkpoint.path, saved.checkpoint.meta["config"])
    if saved.checkpoint is None:
        return saved, [*notes, f"{resume} holds no checkpoint yet: it begins at step 0"]
    return saved, [*notes, f"resumed {resume} at step {saved.checkpoint.meta['step']:,}"]


def open_recorder(config: RunConfig, spec: EnvSpec, saved: Saved) -> tuple[Recorder | None, str | None]:
    """The writer of the run's recording, if one is requested, and the mark of the recording for run.json.

    Raises:
        ConfigError: the folder of the recording holds something else, or cannot be created.
        CheckpointError: files of the recording are missing.
    """
    mark = None if saved.folder is None else recording_mark(saved.folder)
    if config.record is None:
        return None, mark
    files = None if saved.folder is None else 0
    if saved.checkpoint is not None:
        files = int(saved.checkpoint.state.get("recorded", 0))
    recorder = Recorder(Path(config.record).absolute(), config, spec, files, mark)
    return recorder, recorder.mark


def open_folder(config: RunConfig, spec: EnvSpec, mark: str | None, saved: Saved, closing: ExitStack) -> Path:
    """The run's folder, locked. A new folder gets its run.json here, and is removed if the run does not start."""
    if saved.folder is not None:
        return saved.folder
    folder = make_folder(config)
    closing.callback(discard, folder)
    closing.callback(lock(folder))
    write_run_file(folder, config, spec, mark)
    return folder
