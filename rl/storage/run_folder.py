"""The folder of a run: its creation, its lock against a second user, and run.json, which describes the run."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import stat
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from rltrain.config.consent import TRAINING, SavedConfig
from rltrain.config.run_config import INNER, RESUME, RunConfig
from rltrain.envs.spec import EnvSpec, to_json
from rltrain.errors import CheckpointError, ConfigError, RunFailed
from rltrain.storage import files
from rltrain.storage.files import INCOMPLETE, SEGMENTS, reason, replace_file
from rltrain.storage.schema import check_config
from rltrain.system.torchrun import launch

MAX_NAME = 100  # bytes of the environment's name in the name of a run's folder
LOCK, RUN_FILE = ".lock", "run.json"
SEEDS_FILE = "seeds.json"  # in a folder of several runs
FORMAT = 1
SENT_FILE, SEND_LOG = "sent.json", "send.log"  # see `rltrain.reporting.send`
_OWN = (RUN_FILE, LOCK, "metrics.jsonl", SENT_FILE, SEND_LOG)
FILES = (*_OWN, *(f".{name}" for name in (*_OWN, "latest", "best")), "latest", "best")  # with those being written
FOLDERS = ("checkpoints", SEGMENTS, "tensorboard", "replay", "videos")
# The parts of a run's folder. What else lies in it is left alone.
PARTS = (*FILES, *(name for name in FOLDERS if name != SEGMENTS))
# Settings of run.json that may differ from the checkpoint's: a resume changes them, or they only describe others.
MAY_DIFFER = (
    *(*RESUME, "env", "env_args", "reloadable", "folder", "preset_file", "out", "record", "replay_from"),
    *("own_callbacks", "eval_env", "eval_env_args"),
)
LAUNCH = "launch"  # key in run.json: the call of torchrun that started the run


_command: list[str] = []  # of this process, if `hide_arguments` was called


@contextlib.contextmanager
def hide_arguments() -> Iterator[None]:
    """In the block sys.argv has no arguments: environments may parse it. run.json still gets the whole command."""
    _command[:] = sys.argv
    del sys.argv[1:]
    try:
        yield
    finally:
        sys.argv[:] = _command
        _command.clear()


def make_folder(config: RunConfig, runs: str = "") -> Path:
    """Creates `out/<name>`, by default `out/<algo>-<env>-s<seed>-<time>`; ConfigError if that is impossible.

    Args:
        runs: in place of the seed, for several runs.
    """
    if config.name is not None:
        return _make_named_folder(config, config.name)
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in config.env_name.replace("<locals>", "")).strip("-.")
    name = name.encode(errors="replace")[:MAX_NAME].decode(errors="ignore")
    algo = config.algo.rpartition(":")[2]
    stem = f"{algo}-{name}-{runs or f's{config.seed}'}-{time.strftime('%Y%m%d-%H%M%S')}"
    _check_name(Path(config.out), f"--out {config.out}: ")
    for number in range(1000):
        folder = Path(config.out).absolute() / (stem if number == 0 else f"{stem}-{number + 1}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"--out {config.out}: {folder} cannot be made: {reason(error)}") from None
        return folder
    raise RunFailed(f"no free name for a run's folder in {config.out}")


def require_free_name(config: RunConfig) -> None:
    """ConfigError if the folder that --name names exists already."""
    if config.name is not None and os.path.lexists(folder := Path(config.out).absolute() / config.name):
        how = f", or continue the run with --resume {shlex.quote(str(folder))}" if (folder / RUN_FILE).is_file() else ""
        raise ConfigError(f"--name {config.name}: {folder} exists already; choose another name{how}")


def _make_named_folder(config: RunConfig, name: str) -> Path:
    folder = Path(config.out).absolute() / name
    _check_name(folder, f"--name {name}: ")
    require_free_name(config)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--name {name}: {folder} cannot be made: {reason(error)}") from None
    return folder


def _check_name(folder: Path, where: str = "") -> None:
    """ConfigError if the path of a folder is not UTF-8, which TensorBoard needs."""
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{where}the name of the folder {str(folder.absolute())!r} is not UTF-8: rename it") from None


def discard(folder: Path) -> None:
    """Removes the folder of a run that was refused before its first step, if it holds nothing but run.json."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] in ([], [RUN_FILE]):
            (folder / RUN_FILE).unlink(missing_ok=True)
            folder.rmdir()


def refuse_links(folder: Path) -> None:
    """CheckpointError if anything that a run reads or writes in its folder is a link, a device, a pipe or a socket, a
    folder in the place of a file, or a file in that of a folder.

    Otherwise a run that somebody else packed could make a resume write or remove files outside of its folder, or end at
    its first checkpoint.
    """
    paths = [folder / name for name in PARTS]
    while paths:
        path = paths.pop()
        try:
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode) and path.name not in FILES and path.parent.name != SEGMENTS:
                paths += path.iterdir()
                continue
            if stat.S_ISREG(mode) and (path.name in FOLDERS or path.name.startswith(INCOMPLETE)):
                raise CheckpointError(f"{path} is not a folder: remove it")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {reason(error)}") from None
        files.refuse_link(path)
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path} is not a file")


def lock(folder: Path) -> Callable[[], None]:
    """Locks a run's folder until the returned function is called, or this process ends.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written to.
    """
    path = folder / LOCK
    _check_name(folder)
    try:
        while True:
            file = _open_lock(path)
            if _locked(file, folder) and not _is_at(file, path):  # its owner removed it between the two calls
                file.close()
                continue
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            break
    except OSError as error:
        if path.is_symlink():
            raise ConfigError(f"{path} is a link, which is not followed: remove it") from None
        raise ConfigError(f"{folder} cannot be written to: {reason(error)}") from None

    def release() -> None:
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            file.close()

    return release


def is_locked(folder: Path) -> bool:
    """True if another process holds the lock of a run's folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        lock(folder)()
    except ConfigError as error:
        return " is in use by " in str(error)
    return False


def _open_lock(path: Path) -> IO[str]:
    """Opens or creates the file of the lock; ConfigError if writing to it would change something else."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | files.NO_LINK, 0o666)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise ConfigError(f"{path} is not a file of this run alone: remove it")
    return os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")


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
    before = _read_run_file(folder).get("commands")
    content = {
        "format": FORMAT,
        "config": config.to_json(),
        "commands": [*(before if isinstance(before, list) else []), _command or sys.argv],
        "versions": versions(),
        "spec": to_json(spec),
        "recording": mark,
        **({} if launch() is None else {LAUNCH: launch()}),
    }
    replace_file(folder / RUN_FILE, files.hashed_json(content) + b"\n")


def recording_mark(folder: Path) -> str | None:
    """The mark of the run's recording in run.json; None if there is no recording."""
    mark = _read_run_file(folder).get("recording")
    return mark if isinstance(mark, str) and mark else None


def saved_config(folder: Path) -> SavedConfig:
    """The configuration in a run's run.json.

    Raises:
        CheckpointError: there is no run.json, or it was changed.
    """
    file = folder / RUN_FILE
    if not os.path.lexists(file):
        raise CheckpointError(f"{folder} is not a run's folder: it has no {RUN_FILE}")
    content, _ = files.read_json(file)
    own = False
    if not content.keys().isdisjoint(("format", "sha256", "signature")):  # version 0.1 wrote none of them
        try:
            content, own = files.read_hashed_json(file, FORMAT)
        except CheckpointError as error:
            what = ", ".join(RESUME[:5])
            raise CheckpointError(f"{error}. To change a setting, give --resume its flag ({what}, ...)") from None
    config = check_config(file, content.get("config"))
    if LAUNCH in content:
        config = {**config, "learners": 1}  # torchrun decides the number again
    return SavedConfig(config, file, own)


def require_same_config(folder: Path, checkpoint: Path, config: Any) -> None:
    """CheckpointError if run.json and the configuration in a checkpoint of the run differ in what a resume keeps."""
    saved = saved_config(folder)
    try:
        of_run, of_checkpoint = (RunConfig.from_json(values).to_json() for values in (saved.values, config))
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from None
    for key, before, now in _differences(of_checkpoint, of_run):
        raise CheckpointError(
            f"{saved.file} does not belong to {checkpoint}: {key} is {now!r}, and was {before!r} at the checkpoint"
        )


def for_resume(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with which the run in `folder` is resumed, if the user gives `config` for it.

    Values that `config` leaves to their defaults are those of the run, for example the defaults for Box actions. The
    exception are settings that name code: they are never taken from a file.

    Raises:
        ConfigError: `config` has a value that a resume cannot change.
        CheckpointError: run.json is damaged.
    """
    saved = RunConfig.from_json(saved_config(folder).values)
    if config.algo == saved.algo:
        fields, given = RunConfig.model_fields, config.model_fields_set - set(INNER)
        of_run = [key for key in fields if key not in given and (fields[key].alias or key) not in MAY_DIFFER]
        own = config.settings
        of_algo = [key for key in type(own).model_fields if key not in (*own.model_fields_set, *TRAINING)]
        settings = own.model_copy(update={key: getattr(saved.settings, key) for key in of_algo})
        update = {key: getattr(saved, key) for key in of_run} | {"settings": settings}
        config = config.model_copy(update=update)
    for key, before, now in _differences(saved.to_json(), config.to_json()):
        raise ConfigError(
            f"the configuration has {key} {now!r}, and the run in {folder} has {before!r}, which a resume cannot "
            "change; leave the configuration out"
        )
    return config


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The values that a resume keeps, and that differ in two configurations: key, first value, second value."""
    for key in before:
        one, other = before[key], now[key]
        if key == "settings":
            for name in {**one, **other}:
                if one.get(name) != other.get(name):
                    yield f"{key}.{name}", one.get(name), other.get(name)
        elif key not in MAY_DIFFER and one != other:
            yield key, one, other


def run_of_this_launch(config: RunConfig) -> Path | None:
    """The newest run of these settings that this call of torchrun started before it restarted its processes, or None.

    The file of such a run is younger than torchrun's process on this machine. It names the same code as the command
    line, because its names are trusted.
    """
    import psutil

    ours = config.to_json()
    launched = float(psutil.Process(os.getppid()).create_time())
    ages: dict[Path, float] = {}
    for folder in (file.parent for file in Path(config.out).glob(f"*/{RUN_FILE}")):
        content = _read_run_file(folder)
        with contextlib.suppress(OSError, KeyError, TypeError, AttributeError):
            run = content["config"]
            same = all(run[key] == ours[key] for key in ("algo", "env", "env_args", "seed", "record", "cluster"))
            same = same and all(run["settings"].get(key) == ours["settings"].get(key) for key in ("policy", "torso"))
            written = (folder / RUN_FILE).stat().st_mtime
            if same and content.get(LAUNCH) == launch() and written > launched:
                ages[folder] = written
    return max(ages, key=ages.__getitem__, default=None)


def _read_run_file(folder: Path) -> dict[str, Any]:
    """The content of run.json; {} if it cannot be read."""
    try:
        return files.read_json(folder / RUN_FILE)[0]
    except CheckpointError:
        return {}


@functools.cache
def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on. Cached: parsing their metadata is slow."""
    result = {"python": sys.version.split()[0]}
    for name in ("rltrain", "torch", "gymnasium", "numpy", "loky"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            result[name] = metadata.version(name)
    return result
