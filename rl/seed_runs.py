"""`--seeds`: several runs of one command line, each with its own seed, side by side in one folder.

FOLDER/
    seeds.json      the seeds and the command line
    seed-0/         an ordinary run, which can also be resumed alone
    seed-0.log      its console output

Each run is a command of its own, so it has the bits of a run that was started by hand.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from rltrain.config.run_config import RunConfig, cores
from rltrain.errors import CheckpointError, ConfigError, Interrupted, RunFailed
from rltrain.reporting import metrics
from rltrain.reporting.console import Console, resume_command, short_path
from rltrain.reporting.intervals import interval_of_runs
from rltrain.rollout.workers.process_tree import die_with_parent
from rltrain.storage import files
from rltrain.storage.run_folder import LOCK, RUN_FILE, SEEDS_FILE, is_locked, lock, make_folder, refuse_links
from rltrain.system.signals import Signals
from rltrain.system.time_limit import TimeLimit

Item = TypeVar("Item")

FORMAT = 1
POLL_SECONDS = 0.1  # between two looks at the processes
LOOK_SECONDS = 1.0  # between two looks at the metrics
LOCK_SECONDS = 30.0  # for the end of a run whose parent was killed
TAIL_BYTES = 1 << 16  # of metrics.jsonl, in which the newest line about the progress lies
LEFTOVERS = {LOCK, f".{RUN_FILE}"}  # in the folder of a run that was killed before it had begun


@dataclass
class SeedRun:
    """One run of a group."""

    seed: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    output: IO[bytes] | None = None  # what it prints to stdout: of an environment too, so that no pipe suffices
    log_start: int = 0  # size of the log when the process began
    status: int | None = None  # exit status; None: it has not ended, or not begun
    result: dict[str, Any] = field(default_factory=dict)  # the JSON line
    newest: dict[str, float] = field(default_factory=dict)  # of its metrics

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def name(self) -> str:
        return f"seed {self.seed}"


class Group:
    """The runs of a folder.

    Args:
        argv:   the command line of a run, without --seeds.
        where:  the folder in which it was given, for its relative paths.
        shared: the cores are shared among the runs; False: the user chose the number of workers.
        extra:  flags of a resume.
    """

    def __init__(
        self, folder: Path, seeds: Sequence[int], argv: list[str], where: str, shared: bool, extra: list[str]
    ) -> None:
        self.folder, self.argv, self.where, self.shared, self.extra = folder, argv, where, shared, extra
        self.runs = [SeedRun(seed, folder / f"seed-{seed}") for seed in seeds]

    @property
    def example(self) -> list[str]:
        """The command line of one run, to read its configuration from."""
        begun = next((run for run in self.runs if (run.folder / RUN_FILE).is_file()), None)
        return [*self.argv, *self.extra] if begun is None else ["--resume", str(begun.folder), *self.extra]

    def command(self, run: SeedRun, workers: int | None, seconds: float) -> list[str]:
        """The command line of one run: it begins, or it continues."""
        if (run.folder / RUN_FILE).is_file():
            words = ["--resume", str(run.folder), *self.extra]
        else:
            words = [*self.argv, "--seed", str(run.seed), "--out", str(self.folder), "--name", run.folder.name]
            words += self.extra if workers is None else [*self.extra, "--workers", str(workers)]
        if seconds < math.inf:
            words += ["--max-seconds", f"{max(seconds, 0.01):g}"]
        return [sys.executable, "-P", "-m", "rltrain", *words, "--json"]


def without(argv: Sequence[str], flag: str) -> list[str]:
    """A command line without a flag and its value."""
    words, rest = list(argv), list[str]()
    while words:
        word = words.pop(0)
        if word == flag:
            del words[:1]
        elif not word.startswith(f"{flag}="):
            rest.append(word)
    return rest


def new_group(config: RunConfig, seeds: Sequence[int], argv: list[str]) -> Group:
    """Makes the folder of a group.

    Raises:
        ConfigError: the runs cannot be made together.
    """
    if config.record is not None:
        raise ConfigError("--seeds: all runs would write their unrolls into the folder of --record; leave it out")
    folder = make_folder(config, f"{len(seeds)}-seeds")
    shared, where = "workers" not in config.model_fields_set, os.getcwd()
    content = {"format": FORMAT, "seeds": list(seeds), "argv": argv, "where": where, "shared": shared}
    files.replace_file(folder / SEEDS_FILE, files.hashed_json(content) + b"\n")
    return Group(folder, seeds, argv, where, shared, [])


def saved_group(folder: Path, extra: list[str], trust: bool) -> Group:
    """The group in a folder, to continue it.

    Args:
        extra: flags of the resume, for each run.
        trust: the user consents to the command line of somebody else.

    Raises:
        CheckpointError: seeds.json is damaged, or it is somebody else's and some runs have not begun.
    """
    content, own = files.read_hashed_json(folder / SEEDS_FILE, FORMAT)
    seeds, argv = _items(content.get("seeds"), int), _items(content.get("argv"), str)
    where, shared = str(content.get("where")), content.get("shared") is not False
    if not seeds or min(seeds) < 0 or not argv:
        raise CheckpointError(f"{folder / SEEDS_FILE} is damaged: it does not hold seeds and a command line")
    group = Group(folder.absolute(), seeds, argv, where if own and os.path.isdir(where) else os.getcwd(), shared, extra)
    for run in group.runs:
        files.refuse_link(run.folder)
        refuse_links(run.folder)
        files.refuse_other_than_file(run.log)
    missing = [run.name for run in group.runs if not (run.folder / RUN_FILE).is_file()]
    if missing and not own and not trust:
        raise CheckpointError(
            f"you did not make these runs here ({folder / SEEDS_FILE}), and {', '.join(missing)} would begin with the "
            f"command line {' '.join(argv)[:500]!r}. Nothing was started. If you trust all of this, add --trust"
        )
    return group


def _items(value: Any, kind: type[Item]) -> list[Item]:
    """A list from JSON whose items are of one type; [] for anything else."""
    return value if isinstance(value, list) and all(type(item) is kind for item in value) else []


def at_once(config: RunConfig, count: int, shared: bool) -> tuple[int, int | None]:
    """How many of `count` runs are active at a time, and the workers of each; None: those of the configuration.

    Args:
        shared: the cores are shared among the runs.
    """
    if config.cluster is not None or config.backend == "dask":
        return count, None
    if not shared or config.workers == 0:
        return max(1, min(count, cores() // max(config.workers, config.learners, 1))), None
    parallel = max(1, min(count, cores() // config.learners))
    return parallel, max(1, min(config.workers, cores() // parallel))


def execute(group: Group, config: RunConfig, limit: TimeLimit) -> dict[str, Any]:
    """Makes all runs of a group that are not finished. Returns the JSON line.

    Raises:
        ConfigError, RunFailed: a run was refused, or failed; the others were finished first.
        Interrupted: each run that had begun has written a checkpoint.
    """
    console = Console(json=config.json_line, quiet=config.quiet)
    parallel, workers = at_once(config, len(group.runs), group.shared)
    with contextlib.ExitStack() as closing:
        closing.callback(_discard_unbegun, group)
        closing.callback(lock(group.folder))
        closing.callback(console.finish, "")
        console.note(f"folder {short_path(group.folder)}")
        console.note(f"{len(group.runs)} runs with the seeds {_listed(group)}; {parallel} at a time")
        with Signals() as signals:
            _work(group, config, console, signals, parallel, workers, limit)
            console.finish("")
            table = summary(group)
            for line in table.pop("lines"):
                console.note(line)
            _raise_if_incomplete(group, signals)
        return table


def _discard_unbegun(group: Group) -> None:
    """Remove the folder of a group that was refused before any of its runs began."""
    if any((run.folder / RUN_FILE).is_file() for run in group.runs):
        return
    if any(run.status == ConfigError.status for run in group.runs):
        with contextlib.suppress(OSError):
            for file in (group.folder / SEEDS_FILE, *(run.log for run in group.runs)):
                file.unlink(missing_ok=True)
            group.folder.rmdir()


def _listed(group: Group) -> str:
    return ", ".join(str(run.seed) for run in group.runs)


def _work(
    group: Group,
    config: RunConfig,
    console: Console,
    signals: Signals,
    parallel: int,
    workers: int | None,
    limit: TimeLimit,
) -> None:
    waiting, active = deque(group.runs), list[SeedRun]()

    def forward(again: bool) -> None:
        for run in active:
            if run.process is not None and run.process.poll() is None:
                run.process.send_signal(signals.signum or signal.SIGINT)

    signals.ask = forward
    progress = _Progress(group, config, console)
    try:
        while active or waiting:
            while waiting and len(active) < parallel and not _ends(group, signals, limit):
                run = waiting.popleft()
                active.append(run)
                left = (limit.end - time.monotonic()) / math.ceil((len(waiting) + 1) / parallel)
                _begin(group, run, workers, left, signals)
            if not active:
                break
            time.sleep(POLL_SECONDS)
            progress.show()
            for run in [run for run in active if run.process is not None and run.process.poll() is not None]:
                active.remove(run)
                _end(run, console, signals)
                if run.status == ConfigError.status and not any(other.result for other in group.runs):
                    forward(False)  # what is wrong with one is wrong with all
                    waiting.clear()
    finally:
        for run in active:
            if run.process is not None and run.process.poll() is None:
                run.process.terminate()


def _ends(group: Group, signals: Signals, limit: TimeLimit) -> bool:
    refused = any(run.status == ConfigError.status for run in group.runs)
    return signals.received() or refused or time.monotonic() >= limit.end


def _begin(group: Group, run: SeedRun, workers: int | None, seconds: float, signals: Signals) -> None:
    """Start the command of a run."""
    if run.folder.is_dir():
        until = time.monotonic() + LOCK_SECONDS
        while is_locked(run.folder) and time.monotonic() < until and not signals.received():
            time.sleep(POLL_SECONDS)  # it ends, because its parent was killed
        if {path.name for path in run.folder.iterdir()} <= LEFTOVERS:
            for path in run.folder.iterdir():
                path.unlink()
            run.folder.rmdir()
    parent = os.getpid()

    def in_child() -> None:
        die_with_parent(signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(Interrupted().status)

    run.output = tempfile.TemporaryFile()  # noqa: SIM115  closed in `_end`
    with run.log.open("ab") as log:
        run.log_start = log.tell()
        run.process = subprocess.Popen(
            group.command(run, workers, seconds),
            cwd=group.where,
            stdin=subprocess.DEVNULL,
            stdout=run.output,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches it through this process, and only once
            preexec_fn=in_child if os.name == "posix" else None,
        )


def _end(run: SeedRun, console: Console, signals: Signals) -> None:
    """Take the result of a run whose process has ended, and print it."""
    assert run.process is not None
    assert run.output is not None
    run.status = run.process.returncode
    with run.output, contextlib.suppress(ValueError, IndexError):
        run.output.seek(0)
        run.result = json.loads(run.output.read().splitlines()[-1])
    if run.status == 0 and run.result:
        returns = [
            f"{name} {run.result[key]:.1f}"
            for key, name in (("train_return", "training return"), ("eval_return", "evaluation return"))
            if run.result.get(key) is not None
        ]
        text = ", ".join([f"{run.result['steps']:,} steps in {run.result['seconds']:.1f} s", *returns])
        console.note(f"{run.name}: {text}; ended: {run.result['stopped']}")
    elif not signals.received():
        console.note(f"{run.name}: failed with status {run.status}: see {short_path(run.log)}")


def last_words(run: SeedRun) -> str:
    """What the process of a run printed about its failure."""
    with run.log.open(encoding="utf-8", errors="replace") as log:
        log.seek(run.log_start)
        lines = log.read().splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("rltrain: ") and "; starting" not in line), 0)
    return "\n".join(lines[first:]).removeprefix("rltrain: ")


def _raise_if_incomplete(group: Group, signals: Signals) -> None:
    """The exception for a group of which a run is not finished."""
    more = f"to continue: {resume_command(group.folder)}"
    if signals.signum is not None:
        begun = [run for run in group.runs if (run.folder / RUN_FILE).is_file()]
        raise Interrupted(signals.signum, f"interrupted; {len(begun)} of {len(group.runs)} runs have begun\n{more}")
    for run in group.runs:
        if run.status not in (0, None):
            if run.status == ConfigError.status and not (run.folder / RUN_FILE).is_file():
                raise ConfigError(last_words(run))
            why = last_words(run)
            if run.status is not None and run.status < 0:
                why = f"its process was ended by {signal.Signals(-run.status).name}"
            raise RunFailed(f"{run.name}: {why}\n{more}")


def summary(group: Group) -> dict[str, Any]:
    """The results of a group: numbers for the JSON line, and under `lines` a table for a person."""
    done = [run for run in group.runs if run.result]
    key = "eval_return" if all(run.result.get("eval_return") is not None for run in done) else "train_return"
    values = [float(run.result[key]) for run in done if run.result.get(key) is not None]
    found = interval_of_runs(values) if len(values) == len(done) else None
    head = ("seed", "steps", "training return", "evaluation return", "seconds", "ended")
    rows: list[tuple[str, ...]] = [head]
    for run in group.runs:
        result = run.result
        returns = [f"{result[name]:,.2f}" if result.get(name) is not None else "-" for name in RETURNS]
        if result:
            rows.append(
                (str(run.seed), f"{result['steps']:,}", *returns, f"{result['seconds']:.1f}", result["stopped"])
            )
        else:
            state = "not begun" if run.status is None else f"failed ({run.status})"
            rows.append((str(run.seed), "-", *returns, "-", state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(word.rjust(width) for word, width in zip(row[:-1], widths, strict=False)) + f"  {row[-1]}"
        for row in rows
    ]
    name = "evaluation return" if key == "eval_return" else "training return"
    mean = sum(values) / len(values) if values else None
    if mean is not None:
        text = f"mean {name} of {len(values)} runs: {mean:,.2f}"
        if found is not None:
            text += f", 95% interval {found[0]:,.2f} to {found[1]:,.2f} ({found[2]} interval)"
        elif len(values) < 3:
            text += "; fewer than three runs give no interval"
        lines.append(text)
    return {
        "folder": str(group.folder),
        "seeds": [run.seed for run in group.runs],
        "return": key,
        "return_mean": mean,
        "return_ci95": None if found is None else found[:2],
        "interval": None if found is None else found[2],
        "runs": [run.result or None for run in group.runs],
        "lines": lines,
    }


RETURNS = ("train_return", "eval_return")


class _Progress:
    """The progress of all runs together, from their metrics."""

    def __init__(self, group: Group, config: RunConfig, console: Console) -> None:
        self._group, self._config, self._console = group, config, console
        self._looked, self._rate = 0.0, metrics.Rate()

    def show(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        group, total = self._group, self._config.steps * len(self._group.runs)
        for run in group.runs:
            run.newest |= {"step": run.result["steps"]} if run.result else newest_metrics(run.folder)
        steps = sum(min(run.newest.get("step", 0.0), self._config.steps) for run in group.runs)
        self._rate.add(now, steps)
        rate = self._rate.value
        self._console.update(
            {
                "steps": steps,
                "total": total,
                "train_return": self._mean("rollout/return_mean"),
                "eval_return": self._mean("eval/return_mean"),
                "steps_per_second": rate,
                "seconds_left": (total - steps) / rate if rate else None,
                "runs": f"{sum(bool(run.result) for run in group.runs)} of {len(group.runs)} runs done",
            }
        )

    def _mean(self, name: str) -> float | None:
        values = [run.newest[name] for run in self._group.runs if run.newest.get(name) is not None]
        return sum(values) / len(values) if values else None


def newest_metrics(folder: Path) -> dict[str, float]:
    """The newest value of each metric in the last lines of a run's metrics.jsonl."""
    values: dict[str, float] = {}
    with contextlib.suppress(OSError), (folder / metrics.FILE).open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - TAIL_BYTES, 0))
        for line in file.read().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                values |= json.loads(line)
    return values


def ending(group: Group, config: RunConfig) -> str:
    """Why a group ended, and how to continue it."""
    more = resume_command(group.folder)
    if all(run.result and run.result["stopped"] != "seconds" for run in group.runs):
        return f"ended: all {len(group.runs)} runs are done; to continue: {more} --steps {2 * config.steps}"
    return f"ended: --max-seconds {config.max_seconds:g} are over; to continue: {more}"
