"""`rlsend`: sends the metrics of runs to Weights & Biases or to an MLflow server, during a run or after it.

In the run's folder `sent.json` says how much was sent to which target, and the target's own id of the run; `send.log`
is what the process of a run printed.

A run with `--wandb` or `--mlflow` starts `rlsend` as a process of its own, which reads metrics.jsonl. Whatever
happens to that process, to the network or to the server, the run goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from rltrain.config.flags import Parser
from rltrain.config.run_config import RunConfig
from rltrain.errors import CheckpointError, ConfigError, RunFailed
from rltrain.reporting.metrics import FILE, MAX_LINE
from rltrain.storage.files import (
    one_line,
    open_file,
    read_json,
    refuse_link,
    refuse_other_than_file,
    replace_file,
)
from rltrain.storage.run_folder import SEND_LOG, SENT_FILE, saved_config

SECONDS = 1.0  # between two looks at metrics.jsonl
END_SECONDS = 10.0  # that a run waits at its end for the rest to be sent
LEAST_SECONDS = 2.0  # that it waits at least, also if --max-seconds is over
LAST_SECONDS = 60.0  # after which the process ends if the run was killed and the server does not answer
EXPERIMENT = "rltrain"  # of MLflow
BATCH = 100  # parameters in one request to MLflow, which allows no more
COMMAND = "from rltrain.cli import main_send; raise SystemExit(main_send())"


class Target(Protocol):
    """A service that stores metrics.

    Attributes:
        id:      its own name of the run; a later call with it continues that run.
        at_once: a line has arrived when `log` returns; else all have when `close` returns.
    """

    id: str
    at_once: bool

    def log(self, step: int, seconds: float, values: dict[str, float]) -> None:
        """Send the finite values of one line."""

    def close(self) -> None:
        """Wait until everything has been sent, and mark the run as finished."""


class WandB:
    """A run of Weights & Biases. Its key, server and mode come from W&B's own variables, as WANDB_MODE=offline.

    Args:
        project:  the project's name.
        folder:   the run's folder, in which W&B keeps its files.
        settings: of the run, by name.
        id:       of a run to continue; None: a new one.
    """

    def __init__(self, project: str, folder: Path, settings: dict[str, Any], id: str | None) -> None:
        import wandb

        _refuse_other_than_folder(folder / "wandb")
        self.at_once = False
        self.id = id or secrets.token_hex(8)
        quiet = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            init_timeout=60,
            symlink=False,
        )
        self._run = wandb.init(
            project=project, name=folder.name, id=self.id, resume="allow", dir=str(folder), config=settings,
            settings=quiet,
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, seconds: float, values: dict[str, float]) -> None:
        self._run.log({"step": step, "seconds": seconds, **values})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run in the experiment "rltrain" of an MLflow server. Arguments as of `WandB`; `uri` is the server's address."""

    def __init__(self, uri: str, folder: Path, settings: dict[str, Any], id: str | None) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds; MLflow's own values wait for an hour
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self.at_once = True
        self._metric, self._client = Metric, MlflowClient(tracking_uri=uri)
        self._began = _began(folder)
        if id is None:
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            number = self._client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
            id = self._client.create_run(number, run_name=folder.name).info.run_id
            params = [Param(_mlflow_name(name), str(value)[:500]) for name, value in settings.items()]
            for begin in range(0, len(params), BATCH):
                self._client.log_batch(id, params=params[begin : begin + BATCH])
        self.id = id

    def log(self, step: int, seconds: float, values: dict[str, float]) -> None:
        now = int(1000 * (self._began + seconds))
        self._client.log_batch(
            self.id, metrics=[self._metric(_mlflow_name(name), value, now, step) for name, value in values.items()]
        )

    def close(self) -> None:
        self._client.set_terminated(self.id)


def _began(folder: Path) -> float:
    """When the run began, in seconds of `time.time`: the time of its last line less the seconds that this line has."""
    seconds = 0.0
    with contextlib.suppress(CheckpointError), open_file(folder / FILE) as file:
        for line in file:
            with contextlib.suppress(ValueError, AttributeError):
                seconds = _finite(json.loads(line).get("seconds")) or seconds
        return os.fstat(file.fileno()).st_mtime - seconds
    return time.time()


def _mlflow_name(name: str) -> str:
    """The name with the characters that MLflow allows."""
    return re.sub(r"[^\w.\-: /]", "_", name)


TARGETS: dict[str, Callable[[str, Path, dict[str, Any], str | None], Target]] = {"wandb": WandB, "mlflow": MLflow}


class Lines:
    """The complete lines of a growing metrics.jsonl. A resumed run may replace the file by its own beginning.

    Args:
        file: need not exist yet.
        sent: the number of lines at its beginning to leave out.
    """

    def __init__(self, file: Path, sent: int) -> None:
        self._path, self.sent = file, sent
        self._file: IO[bytes] | None = None
        self._rest = b""  # the beginning of a line that is not complete yet

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The lines that have come since; `sent` counts them."""
        self._open()
        while self._file is not None and (line := self._file.readline(MAX_LINE)):
            self._rest += line
            if not self._rest.endswith(b"\n"):
                if len(self._rest) >= MAX_LINE:
                    raise CheckpointError(f"{self._path} has a line of more than {MAX_LINE} bytes")
                return
            line, self._rest = self._rest, b""
            self.sent += 1
            with contextlib.suppress(ValueError):
                item = json.loads(line)
                if isinstance(item, dict) and isinstance(item.get("step"), int):
                    yield item

    def _open(self) -> None:
        """Open the file, or open it again if another one has taken its place; leave out what was sent."""
        try:
            status = self._path.lstat()
        except FileNotFoundError:
            return
        if self._file is not None:
            own = os.fstat(self._file.fileno())
            if os.path.samestat(status, own) and own.st_size >= self._file.tell():
                return
            self._file.close()
        self._file, self._rest = open_file(self._path), b""
        for number in range(self.sent):
            begin = self._file.tell()
            if not self._file.readline(MAX_LINE).endswith(b"\n"):  # fewer lines than were sent: it was cut back
                self._file.seek(begin)
                self.sent = number
                return

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def send(folder: Path, kind: str, address: str, until_end: bool = False) -> int:
    """Send the lines of a run's metrics that were not sent yet.

    Args:
        folder:    the run's folder.
        kind:      a key of TARGETS.
        address:   W&B's project or MLflow's URI.
        until_end: go on until the standard input ends, as it does when the run that started this process ends.

    Returns:
        The number of lines.

    Raises:
        CheckpointError: it is no run's folder.
        RunFailed: the target could not be reached, or refused something.
    """
    values = dict(saved_config(folder).values)
    settings = values.pop("settings", {})
    key = f"{kind} {address}"
    sent = _read_sent(folder)
    before = sent.get(key, {"id": None, "lines": 0})
    lines, count, arrived = Lines(folder / FILE, before["lines"]), 0, before["lines"]

    def remember() -> None:
        sent[key] = {"id": target.id, "lines": arrived}
        replace_file(folder / SENT_FILE, json.dumps(sent).encode())

    try:
        target = TARGETS[kind](address, folder, {**values, **settings}, before["id"])
        remember()
        with contextlib.closing(lines):
            ends = not until_end
            try:
                while True:
                    for line in lines:
                        target.log(line.pop("step"), _finite(line.pop("seconds", 0.0)) or 0.0, _numbers(line))
                        count += 1
                        arrived = lines.sent if target.at_once else arrived
                    if ends:
                        break
                    ends = _input_ends(SECONDS)
            finally:
                remember()
        target.close()
        arrived = lines.sent
        remember()
    except (ConfigError, RunFailed, CheckpointError):
        raise
    except Exception as error:
        raise RunFailed(f"{folder}: {key}: {type(error).__name__}: {one_line(error)}") from error
    return count


def _finite(value: Any) -> float | None:
    """The value as a number; None if it is none, or not finite."""
    if isinstance(value, bool | int | float):
        with contextlib.suppress(OverflowError):  # a whole number of hundreds of digits
            if math.isfinite(value):
                return float(value)
    return None


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of metrics."""
    found = {name: _finite(value) for name, value in line.items()}
    return {name: value for name, value in found.items() if value is not None}


def _read_sent(folder: Path) -> dict[str, Any]:
    """What SENT_FILE says; nothing if there is no such file, or none that can be read."""
    with contextlib.suppress(OSError, CheckpointError):
        content, _ = read_json(folder / SENT_FILE)
        if all(_is_entry(entry) for entry in content.values()):
            return content
    return {}


def _is_entry(entry: Any) -> bool:
    """True if this is the record of one target: the number of lines that arrived, and the target's id of the run."""
    if not isinstance(entry, dict):
        return False
    lines, id = entry.get("lines"), entry.get("id")
    return type(lines) is int and 0 <= lines < 2**62 and isinstance(id, str) and bool(re.fullmatch(r"[\w-]{1,64}", id))


def _refuse_other_than_folder(path: Path) -> None:
    """CheckpointError if a link, or anything else that is no folder, lies at this path."""
    refuse_link(path)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is not a folder: remove it")


def _input_ends(seconds: float) -> bool:
    """Wait for some seconds; True as soon as the standard input ends."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready or os.read(sys.stdin.fileno(), 64):
        return False
    signal.alarm(int(LAST_SECONDS))  # SIGALRM ends this process
    return True


def require_target(kind: str, address: str) -> None:
    """ConfigError with one line if the package of a target is missing, or if its address contains a password."""
    what = f"--{kind}"
    if re.search(r"//[^/]*@", address):
        raise ConfigError(
            f"{what}: a name and a password do not belong into an address, which is stored and printed: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if "\0" in address:
        raise ConfigError(f"{what} {address!r}: a zero byte does not belong there")
    if importlib.util.find_spec(kind) is None:  # the package and the extra have this name, too
        raise ConfigError(f"{what} needs the package {kind}: pip install 'rltrain[{kind}]'")


def require_targets(config: RunConfig) -> None:
    """ConfigError with one line if a run cannot send its metrics to the targets that it asks for."""
    for kind in TARGETS:
        if (address := getattr(config, kind)) is not None:
            require_target(kind, address)


class Sender:
    """The processes that send the metrics of a run, as a context. They cannot stop it.

    Args:
        folder:  the run's folder.
        targets: address by kind; None: not to this one.
        note:    prints a line.
        end:     the time, of `time.monotonic`, at which the command should be over.
    """

    def __init__(self, folder: Path, targets: dict[str, str | None], note: Any, end: float = math.inf) -> None:
        self._folder, self._note, self._end = folder, note, end
        self._targets = {kind: address for kind, address in targets.items() if address is not None}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        for kind, address in self._targets.items():
            command = [sys.executable, "-P", "-c", COMMAND, str(self._folder), f"--{kind}={address}"]
            try:
                refuse_other_than_file(self._folder / SEND_LOG)
                with (self._folder / SEND_LOG).open("ab") as log:
                    self._processes[kind] = subprocess.Popen(
                        [*command, "--until-end"], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
                    )
            except (OSError, CheckpointError) as error:
                self._note(f"--{kind}: nothing is sent: {one_line(error)}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the processes send the rest, for END_SECONDS at most."""
        for process in self._processes.values():
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        now = time.monotonic()
        end = min(max(self._end, now + LEAST_SECONDS), now + END_SECONDS)
        for name, process in self._processes.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0.1))
            status = process.poll()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # also what W&B has started
            process.wait()
            if status != 0:
                again = f"rlsend {self._folder} --{name} {self._targets[name]}"
                self._note(f"--{name}: not all metrics were sent, see {self._folder / SEND_LOG}; again: {again}")


def run_send(argv: Sequence[str], version: str) -> str:
    """The command `rlsend`: what it prints."""
    top = Parser(
        version,
        prog="rlsend",
        description="Sends the metrics of runs to Weights & Biases or to an MLflow server: all of them, or those that "
        "were not sent yet. Several runs that go on: repeat the command.",
    )
    top.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    where = top.add_mutually_exclusive_group(required=True)
    where.add_argument("--wandb", metavar="PROJECT", help="a project of Weights & Biases; extra: wandb")
    where.add_argument("--mlflow", metavar="URI", help="the address of an MLflow server; extra: mlflow")
    top.add_argument("--until-end", action="store_true", default=False, help=argparse.SUPPRESS)
    given = top.parse(argv)
    kind = "wandb" if given.get("wandb") is not None else "mlflow"
    require_target(kind, given[kind])
    results = []
    for run in given["runs"]:
        count = send(Path(run).absolute(), kind, given[kind], given.get("until_end", False))
        id = _read_sent(Path(run))[f"{kind} {given[kind]}"]["id"]
        results.append(f"{run}: {count} lines of metrics sent to {kind} {given[kind]}, run {id}")
    return "\n".join(results)
