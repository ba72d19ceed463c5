"""Copies a run at its newest checkpoint into another folder, with other settings of its algorithm."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rltrain.config.load import change
from rltrain.config.run_config import RunConfig
from rltrain.errors import CheckpointError
from rltrain.storage import files
from rltrain.storage.checkpoint import FORMAT, META
from rltrain.storage.files import INCOMPLETE
from rltrain.storage.retention import STEPS, find, point
from rltrain.storage.run_folder import FORMAT as RUN_FORMAT
from rltrain.storage.run_folder import LOCK, RUN_FILE, refuse_links


def fork_run(source: Path, target: Path, settings: Mapping[str, Any]) -> None:
    """A copy of the run that continues from the same state with other settings. Without changes it continues exactly.

    The copy appears complete, or not at all. If `target` exists, nothing is done.

    Args:
        settings: of the algorithm, by name. They must not change the shape of what the checkpoint holds.

    Raises:
        CheckpointError: there is no intact checkpoint.
        ConfigError: a setting is wrong.
        RunFailed: the copy cannot be written.
    """
    if target.exists():
        return
    refuse_links(source)
    checkpoint, _ = find(source)
    folder = checkpoint.path.parent
    if folder.parent != source:
        raise CheckpointError(f"{source} has no folder of checkpoints")
    incomplete = target.with_name(f".{target.name}")
    with files.writing(target):
        shutil.rmtree(incomplete, ignore_errors=True)
        incomplete.mkdir(parents=True)
        for path in source.iterdir():
            if path.is_file() and path.name != LOCK and not path.name.startswith("."):
                shutil.copyfile(path, incomplete / path.name, follow_symlinks=False)
        copies = incomplete / folder.name
        others = [path.name for path in folder.glob(f"{STEPS}*") if path != checkpoint.path]
        shutil.copytree(folder, copies, symlinks=True, ignore=shutil.ignore_patterns(*others, f"{INCOMPLETE}*"))
        _rewrite(copies / checkpoint.path.name / META, FORMAT, settings)
        _rewrite(incomplete / RUN_FILE, RUN_FORMAT, settings)
        point(copies, "latest", checkpoint.path.name)
        incomplete.rename(target)
        files.sync_folder(target.parent)


def _rewrite(file: Path, format_: int, settings: Mapping[str, Any]) -> None:
    """Put the settings into the configuration that a file of a run holds."""
    content, own = files.read_hashed_json(file, format_)
    if not own:  # the copy is signed
        raise CheckpointError(f"{file} was not written by you on this machine, so that the run cannot be copied")
    saved = content["config"]
    config = change(RunConfig.from_json(saved), settings)
    values = {**saved["settings"], **config.to_json()["settings"]}
    data = files.hashed_json({**content, "config": {**saved, "settings": values}})
    files.replace_file(file, data + (b"\n" if file.name == RUN_FILE else b""))
