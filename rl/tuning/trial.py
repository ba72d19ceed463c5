"""One part of a trial: a run that begins or continues, up to a step, with the value that it reached there."""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from rltrain.config.consent import granting
from rltrain.config.run_config import RunConfig
from rltrain.envs.errors import EnvError, EnvFault, describe
from rltrain.errors import CheckpointError, ConfigError, RunFailed
from rltrain.reporting.metrics import read
from rltrain.storage.files import one_line
from rltrain.storage.run_folder import RUN_FILE, is_locked, saved_config

FREE_SECONDS = 90.0  # that a part waits for the process that has its run; longer than CLIENT_SECONDS of a node
LAST = 3  # evaluations whose mean is the value of a trial


class PartResult(NamedTuple):
    """The result of a part of a trial."""

    value: float | None  # mean return of the last evaluations; None: it failed
    steps: int
    seconds: float
    run: str  # its folder
    fingerprint: str = ""
    error: str = ""  # one line


def folder_in(out: Path) -> Path | None:
    """The run's folder in `out`; None if there is none, and a folder that was never a run is removed."""
    folders = sorted(path for path in out.iterdir() if path.is_dir()) if out.is_dir() else []
    for folder in folders:
        if (folder / RUN_FILE).exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)  # the process was killed before it wrote run.json
    return None


def run_part(config: RunConfig, until: int | None) -> PartResult:
    """Train until the first evaluation from step `until` on; None: to the end. A run in `out` is continued.

    An exception of the run is a result: the trial failed.
    """
    from rltrain.training_loop import train

    out = Path(config.out)
    folder = folder_in(out)
    env: dict[str, Any] = {} if isinstance(config.env, str) else {"env": config.env}
    if os.path.isdir(config.folder):
        os.chdir(config.folder)  # names of files in the configuration are relative to it; a node begins elsewhere
    try:
        if folder is None:
            result = train(config, pause_at=until)
        else:
            _wait_until_free(folder)
            _require_own(folder, config)
            with granting(config):  # another key may have signed the run, as on a node with another home folder
                result = train(resume=folder, quiet=True, pause_at=until, **env)
    except Exception as error:
        return PartResult(None, 0, 0.0, str(folder_in(out) or out), error=_line(error))
    value, seconds = value_at(result.run, result.steps if until is None else until)
    fault = "" if value is not None else "its evaluations have no finite return"
    return PartResult(value, result.steps, seconds, str(result.run), result.fingerprint, fault)


def _require_own(folder: Path, config: RunConfig) -> None:
    """CheckpointError if a run in the folder of this part has other settings."""
    found, own = saved_config(folder).values, config.to_json()
    names = [name for name in ("algo", "env", "env_args", "eval_env", "seed", "steps") if found.get(name) != own[name]]
    given = [name for name in config.settings.model_fields_set if name in own["settings"]]
    names += [name for name in given if found["settings"].get(name) != own["settings"][name]]
    if names:
        raise CheckpointError(f"{folder} is not a run of this search: its {names[0]} is another one")


def _wait_until_free(folder: Path) -> None:
    """Wait while another process has the run: on a cluster, a node that was cut off ends its jobs after a minute."""
    until = time.monotonic() + FREE_SECONDS
    while is_locked(folder) and time.monotonic() < until:
        time.sleep(0.5)


def _line(error: Exception) -> str:
    """One line about an exception: of a traceback its last line."""
    text = describe(error) if isinstance(error, EnvFault) else str(error)
    lines = [line for line in text.strip().splitlines() if not line.startswith(("checkpoint ", "no checkpoint"))]
    if not lines:
        return type(error).__name__
    known = isinstance(error, RunFailed | ConfigError | CheckpointError | EnvError | EnvFault)
    front = "" if known else f"{type(error).__name__}: "
    end = f" {lines[-1].strip()}" if len(lines) > 1 and lines[0].endswith(":") else ""
    return front + one_line(Exception(lines[0] + end))


def value_at(run: Path, step: int) -> tuple[float | None, float]:
    """The mean of the LAST evaluations up to the first one from `step` on, and the seconds that the run had taken.

    None if there is no such evaluation, or a return that is not finite.
    """
    returns: list[Any] = []
    seconds = 0.0
    for line in read(run):
        seconds = float(line.get("seconds", seconds))
        if "eval/return_mean" in line:
            returns.append(line["eval/return_mean"])
            if int(line["step"]) >= step:
                break
    last = returns[-LAST:]
    if not last or any(value is None or not math.isfinite(value) for value in last):
        return None, seconds
    return sum(last) / len(last), seconds
