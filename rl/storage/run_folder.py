"""The folder of a run: its creation, its lock against a second user, and run.json, which describes the run."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import EnvSpec, to_json
from rltrain.errors import CheckpointError, ConfigError, RunFailed
from rltrain.storage.files import reason, replace_file
from rltrain.system.torchrun import launch

LOCK, RUN_FILE = ".lock", "run.json"
LAUNCH = "launch"  # key in run.json: the call of torchrun that started the run


def make_folder(config: RunConfig) -> Path:
    """Creates `out/<algo>-<env>-s<seed>-<time>`; ConfigError if that is impossible."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in config.env_name.replace("<locals>", "")).strip("-.")
    stem = f"{config.algo}-{name}-s{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1000):
        folder = Path(config.out) / (stem if number == 0 else f"{stem}-{number + 1}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"--out {config.out}: {folder} cannot be made: {reason(error)}") from None
        return folder
    raise RunFailed(f"no free name for a run's folder in {config.out}")


def discard(folder: Path) -> None:
    """Removes the folder of a run that was refused before its first step, if it holds nothing but run.json."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] in ([], [RUN_FILE]):
            (folder / RUN_FILE).unlink(missing_ok=True)
            folder.rmdir()


def lock(folder: Path) -> Callable[[], None]:
    """Locks a run's folder until the returned function is called, or this process ends.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written to.
    """
    path = folder / LOCK
    try:
        while True:
            file = path.open("a+", encoding="utf-8")
            if _locked(file, folder) and not _is_at(file, path):  # its owner removed it between the two calls
                file.close()
                continue
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            break
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {reason(error)}") from None

    def release() -> None:
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            file.close()

    return release


def _locked(file: IO[str], folder: Path) -> bool:
    """Locks the file; False if the platform or the file system has no locks.

    Raises:
        ConfigError: another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        process = file.read(20).strip()
        file.close()
        raise ConfigError(f"{folder} is in use by {f'process {process}' if process else 'another process'}") from None
    except OSError:
        return False
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    """True if the open file is the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_run_file(folder: Path, config: RunConfig, spec: EnvSpec, mark: str | None = None) -> None:
    """Writes run.json atomically: the run as it is now, and every command that started or resumed it.

    Args:
        mark: identifies the run's recording: see `rltrain.storage.recording.Recorder`.
    """
    content = {
        "config": config.to_json(),
        "commands": [*(_read_run_file(folder).get("commands") or []), sys.argv],
        "versions": versions(),
        "spec": to_json(spec),
        "recording": mark,
        **({} if launch() is None else {LAUNCH: launch()}),
    }
    replace_file(folder / RUN_FILE, (json.dumps(content, indent=1) + "\n").encode())


def recording_mark(folder: Path) -> str | None:
    """The mark of the run's recording in run.json; None if there is no recording."""
    return _read_run_file(folder).get("recording") or None


def saved_config(folder: Path) -> dict[str, Any]:
    """The fields of the RunConfig in a run's run.json.

    Raises:
        CheckpointError: there is no run.json, or it is damaged.
    """
    file = folder / RUN_FILE
    try:
        content = json.loads(file.read_text())
        config = content["config"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a run's folder: it has no {RUN_FILE}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not (isinstance(config, dict) and "algo" in config and isinstance(config.get("settings"), dict)):
        raise CheckpointError(f"{file} is damaged: its config is no table with an algorithm and its settings")
    if LAUNCH in content:
        config["learners"] = 1  # torchrun decides the number again
    return config


def run_of_this_launch(config: RunConfig) -> Path | None:
    """The newest run of these settings that this call of torchrun started before it restarted its processes, or None.

    The file of such a run is younger than torchrun's process on this machine.
    """
    import psutil

    launched = float(psutil.Process(os.getppid()).create_time())
    ages: dict[Path, float] = {}
    for folder in (file.parent for file in Path(config.out).glob(f"*/{RUN_FILE}")):
        content = _read_run_file(folder)
        with contextlib.suppress(OSError, KeyError, TypeError):
            run = content["config"]
            same = (run["algo"], run["env"], run["seed"]) == (config.algo, config.env_name, config.seed)
            written = (folder / RUN_FILE).stat().st_mtime
            if same and content.get(LAUNCH) == launch() and written > launched:
                ages[folder] = written
    return max(ages, key=ages.__getitem__, default=None)


def _read_run_file(folder: Path) -> dict[str, Any]:
    """The content of run.json; {} if it cannot be read."""
    try:
        content = json.loads((folder / RUN_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@functools.cache
def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on. Cached: parsing their metadata is slow."""
    result = {"python": sys.version.split()[0]}
    for name in ("rltrain", "torch", "gymnasium", "numpy", "loky"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            result[name] = metadata.version(name)
    return result
