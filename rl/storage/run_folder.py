"""The folder of a run: its making, who uses it, and what of the world is written into it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import EnvSpec, to_json
from rltrain.errors import CheckpointError, ConfigError, RunFailed
from rltrain.system.torchrun import launch

if TYPE_CHECKING:
    from rltrain.config.run_config import RunConfig


LOCK = ".lock"


def make_folder(config: RunConfig) -> Path:
    """A new folder `out/<algo>-<env>-s<seed>-<time>`; ConfigError where none can be made."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in config.env_name.replace("<locals>", "")).strip("-.")
    stem = f"{config.algo}-{name}-s{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1000):
        folder = Path(config.out) / (stem if number == 0 else f"{stem}-{number + 1}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"--out {config.out}: {folder} cannot be made: {_why(error)}") from None
        return folder
    raise RunFailed(f"no free name for a run's folder in {config.out}")


def discard(folder: Path) -> None:
    """Remove the folder of a run that was refused before it began: it holds run.json, and nothing else."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] in ([], [RUN_FILE]):
            (folder / RUN_FILE).unlink(missing_ok=True)
            folder.rmdir()


def lock(folder: Path) -> Callable[[], None]:
    """Nobody else may use a run's folder until the answer is called, or this process has ended.

    Raises:
        ConfigError: somebody does, or nothing can be written there.
    """
    path = folder / LOCK
    try:
        while True:
            file = path.open("a+", encoding="utf-8")
            if _claimed(file, folder) and not _is(file, path):  # its owner removed it between the two
                file.close()
                continue
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            break
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {_why(error)}") from None

    def release() -> None:
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            file.close()

    return release


def _claimed(file: IO[str], folder: Path) -> bool:
    """Whether the file is locked now; False where there are no locks."""
    try:
        import fcntl
    except ImportError:  # not on this platform
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read(20).strip()
        file.close()
        raise ConfigError(f"{folder} is in use by {f'process {who}' if who else 'another process'}") from None
    except OSError:  # not on this file system
        return False
    return True


def _is(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_run_file(folder: Path, config: RunConfig, spec: EnvSpec, mark: str | None = None) -> None:
    """run.json, all or nothing: the run as it is now, and every command that began it or went on with it.

    Args:
        mark: of its recording, see `rltrain.storage.recording.Recorder`.
    """
    file, beside = folder / RUN_FILE, folder / f".{RUN_FILE}"
    commands: list[Any] = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        commands = list(json.loads(file.read_text())["commands"])
    data = {
        "config": config.to_json(),
        "commands": [*commands, sys.argv],
        "versions": versions(),
        "spec": to_json(spec),
        "recording": mark,
        **({} if launch() is None else {LAUNCH: launch()}),
    }
    with writing(file), beside.open("w") as out:
        out.write(json.dumps(data, indent=1) + "\n")
        out.flush()
        os.fsync(out.fileno())
    with writing(file):
        beside.replace(file)


def recording_mark(folder: Path) -> str | None:
    """What tells a run's recording from others; None where its run.json says nothing of one."""
    try:
        return str(json.loads((folder / RUN_FILE).read_bytes())["recording"] or "") or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that is full, or gone, ends the run; what was written before stays as it is."""
    try:
        yield
    except OSError as error:
        raise RunFailed(f"{path} cannot be written: {_why(error)}") from None


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


@functools.cache
def versions() -> dict[str, str]:
    """Of what a run depends on; read once, since each look parses long texts and every checkpoint asks."""
    names = ("rltrain", "torch", "gymnasium", "numpy", "loky")
    found = {"python": sys.version.split()[0]}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def saved(folder: Path) -> dict[str, Any]:
    """What the run.json of a run's folder says about its RunConfig."""
    file = folder / RUN_FILE
    try:
        whole_file = json.loads(file.read_text())
        data = whole_file["config"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a run's folder: it has no {RUN_FILE}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if LAUNCH in whole_file and isinstance(data, dict):
        data["learners"] = 1  # as many as torchrun starts, and here that is another time
    if not (isinstance(data, dict) and "algo" in data and isinstance(data.get("settings"), dict)):
        raise CheckpointError(f"{file} is damaged: its config is no table with an algorithm and its settings")
    return data


LAUNCH = "launch"  # key in run.json
RUN_FILE = "run.json"


def begun(config: RunConfig) -> Path | None:
    """The newest such run that this call of torchrun began, if processes of it were lost; None if none was."""
    found, asked = [], (config.algo, config.env_name, config.seed)
    for file in Path(config.out).glob(f"*/{RUN_FILE}"):
        try:
            said = json.loads(file.read_text())
            same = (said["config"]["algo"], said["config"]["env"], said["config"]["seed"]) == asked
            if same and said.get(LAUNCH) == launch() and file.stat().st_mtime > _agent_began():
                found.append(file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return max(found, key=lambda file: file.stat().st_mtime).parent if found else None


def _agent_began() -> float:
    """When the process of torchrun on this machine began: what it began is younger."""
    import psutil

    return float(psutil.Process(os.getppid()).create_time())
