"""The runs that a user compares: found by folder or pattern, read from run.json and metrics.jsonl, and grouped."""

from __future__ import annotations

import glob
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rltrain.comparison.statistics import Array
from rltrain.errors import CheckpointError, ConfigError
from rltrain.storage import files
from rltrain.storage.run_folder import LOCK, RUN_FILE
from rltrain.storage.schema import check_config

METRICS = "metrics.jsonl"
DEEPEST = 3  # folders between a folder that a user names and a run in it
EVALUATION, TRAINING = "eval/return_mean", "rollout/return_mean"
SCORES = {  # what a run is worth: explanation
    "last-evaluation": "mean return of the last evaluation of a run, without exploration",
    "best-evaluation": "highest mean return of all evaluations of a run; the choice of the highest makes it too high",
    "final-training": "mean return of the last 100 training episodes of a run, with exploration",
}
# Settings without influence on the result of a run, or that must differ between runs of a group.
FREE = {
    "seed",
    "name",
    "seeds",
    "out",
    "folder",
    "env",
    "env_args",
    "preset",
    "preset_file",
    "raised_from",
    "reloadable",
}
FREE |= {"workers", "learners", "backend", "cluster", "cluster_timeout", "tls_ca", "tls_cert", "tls_key", "device"}
FREE |= {
    "learner_threads",
    "inference",
    "compile",
    "products",
    "vector",
    "actor_timeout",
    "max_restarts",
    "max_seconds",
    "pause_at",
    "name",
}
FREE |= {"checkpoint_every", "keep", "replay_on_disk", "record", "json", "quiet", "wandb", "mlflow", "tensorboard"}
FREE |= {"log_info"}


def metric_of(score: str) -> str:
    """The metric that a score is made of; a metric is its own."""
    return TRAINING if score == "final-training" else EVALUATION if score in SCORES else score


@dataclass(frozen=True)
class Run:
    """A run as its folder describes it.

    Attributes:
        task:    the environment with its arguments.
        ended:   how it ended, if before its last step: it is named in the output.
        points:  by metric: steps, seconds and values, [3, points].
    """

    folder: Path
    algo: str
    task: str
    seed: int
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    steps: int
    seconds: float
    ended: str
    points: Mapping[str, Array] = field(repr=False)

    @property
    def name(self) -> str:
        return str(self.folder)

    def score(self, kind: str) -> float | None:
        """The score of the run, or its last value of a metric; None if it has none that is finite.

        Args:
            kind: a key of SCORES, or the name of a metric.
        """
        value = self.last_of(kind)
        if kind == "best-evaluation" and value is not None:
            value = max(self.points[EVALUATION][2].tolist(), key=lambda x: x if math.isfinite(x) else -math.inf)
        return value if value is not None and math.isfinite(value) else None

    def last_of(self, kind: str) -> float | None:
        """The last value of a metric, or of that of a score, finite or not; None if there is none."""
        points = self.points.get(metric_of(kind))
        return None if points is None else float(points[2, -1])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the result, by name; those of the algorithm as `settings.lr`."""
        own = {key: value for key, value in self.config.items() if key not in FREE and key != "settings"}
        return own | {f"settings.{key}": value for key, value in self.config["settings"].items()}


@dataclass(frozen=True)
class Group:
    """Runs that are compared as one: equal settings, different seeds, on one or several tasks."""

    name: str
    runs: tuple[Run, ...]

    def of(self, task: str) -> list[Run]:
        return [run for run in self.runs if run.task == task]


def find_groups(arguments: Sequence[str]) -> list[Group]:
    """The groups that the arguments of a command name: `NAME=PATTERN`, which may be repeated, or folders or patterns.

    Runs that no name was given for are grouped by algorithm and settings.

    Raises:
        ConfigError: there is no such run.
        CheckpointError: a run cannot be read.
    """
    named: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    for argument in arguments:
        name, equals, pattern = argument.partition("=")
        if equals and name and not os.path.exists(argument) and "/" not in name:
            named.setdefault(name, []).extend(find(pattern))
        else:
            unnamed += find(argument)
    groups = [Group(name, tuple(map(read, _once(folders)))) for name, folders in named.items()]
    return groups + by_settings([read(folder) for folder in _once(unnamed)])


def _once(folders: Iterable[Path]) -> list[Path]:
    return list({folder.resolve(): folder for folder in folders}.values())


def find(pattern: str) -> list[Path]:
    """The folders of runs that a path or pattern matches, or that lie in a folder that it matches."""
    paths = [Path(pattern)] if os.path.exists(pattern) else sorted(map(Path, glob.glob(pattern, recursive=True)))
    folders = [run for path in paths if path.is_dir() for run in _runs_in(path, DEEPEST)]
    if not paths:
        raise ConfigError(f"{pattern} does not exist")
    if not folders:
        raise ConfigError(f"{pattern}: no folder of a run there: none has a {RUN_FILE}")
    return folders


def _runs_in(folder: Path, depth: int) -> list[Path]:
    if (folder / RUN_FILE).is_file():
        return [folder]
    if depth == 0:
        return []
    children = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    return [run for child in children for run in _runs_in(child, depth - 1)]


def by_settings(runs: Sequence[Run]) -> list[Group]:
    """Groups named by algorithm and, if runs of one algorithm differ on a task, by the settings that differ."""
    groups: dict[str, list[Run]] = {}
    for algo in dict.fromkeys(run.algo for run in runs):
        same = [run for run in runs if run.algo == algo]
        differing = dict.fromkeys(
            key
            for task in dict.fromkeys(run.task for run in same)
            for key in differences([run for run in same if run.task == task])
        )
        for run in same:
            texts = [f"{key.removeprefix('settings.')}={shown(run.settings.get(key))}" for key in differing]
            groups.setdefault(" ".join([algo, *texts]), []).append(run)
    return [Group(name, tuple(members)) for name, members in groups.items()]


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which runs differ, with the different values. A setting that a run does not have is left out:
    an older version wrote the run."""
    settings = [run.settings for run in runs]
    result = {}
    for key in dict.fromkeys(itertools.chain.from_iterable(settings)):
        values = [values[key] for values in settings if key in values]
        texts = {json.dumps(value, sort_keys=True): value for value in values}
        if len(texts) > 1:
            result[key] = list(texts.values())
    return result


def shown(value: Any) -> str:
    """The value of a setting as a message shows it."""
    if isinstance(value, list):
        return ",".join(map(shown, value))
    return {None: "none", True: "on", False: "off"}.get(value, str(value)) if not isinstance(value, dict) else "..."


def read(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    content, _ = files.read_json(folder / RUN_FILE)
    config = check_config(folder / RUN_FILE, content.get("config"))
    arguments = config.get("env_args") or {}
    task = config["env"]
    if arguments:
        task += f" ({', '.join(f'{key}={value}' for key, value in sorted(arguments.items()))})"
    points, steps, seconds = _read_metrics(folder / METRICS)
    versions = content.get("versions")
    goal = config.get("steps")
    if not isinstance(goal, int) or not isinstance(config.get("seed"), int):
        raise CheckpointError(f"{folder / RUN_FILE} is damaged: steps and seed must be whole numbers")
    return Run(
        folder=folder,
        algo=config["algo"],
        task=task,
        seed=config["seed"],
        config=config,
        versions=versions if isinstance(versions, dict) else {},
        steps=steps,
        seconds=seconds,
        ended=_ending(folder, config, steps, points),
        points=points,
    )


def _read_metrics(path: Path) -> tuple[dict[str, Array], int, float]:
    """The points of each metric in the order of their steps, the last step and the last second."""
    try:
        lines = files.read_file(path).split(b"\n")
    except CheckpointError:
        if path.exists() or path.is_symlink():
            raise
        return {}, 0, 0.0  # it ended before its first line
    columns: dict[str, list[tuple[float, float, float]]] = {}
    last, seconds = 0, 0.0
    for number, line in enumerate(lines):
        try:
            item = json.loads(line) if line else None
            if item is None:
                continue
            step, now = int(item.pop("step")), float(item.pop("seconds"))
            last, seconds = max(last, step), max(seconds, now)
            for name, value in item.items():
                columns.setdefault(name, []).append((step, now, math.nan if value is None else value))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if number == len(lines) - 1:  # it is being written, or the run was killed
                continue
            raise CheckpointError(f"{path} is damaged in line {number + 1}") from None
    points = {}
    for name, rows in columns.items():
        try:
            array = np.array(rows, dtype=np.float64).T
        except (TypeError, ValueError):
            raise CheckpointError(f"{path} is damaged: {name[:50]!r} has a value that is no number") from None
        points[name] = array[:, np.argsort(array[0], kind="stable")]
    return points, last, seconds


def _ending(folder: Path, config: Mapping[str, Any], steps: int, points: Mapping[str, Array]) -> str:
    """How a run ended that did not take all its steps; "" if it did."""
    goal, evaluations = config.get("stop_return"), points.get(EVALUATION)
    if steps >= config["steps"]:
        return ""
    share = f"at {steps:,} of {config['steps']:,} steps"
    if goal is not None and evaluations is not None and evaluations.shape[1] > 1 and min(evaluations[2, -2:]) >= goal:
        return f"ended by --stop-return {goal:g} {share}"
    if _is_running(folder):
        return f"is still running, {share}"
    return f"failed or was ended {share}"


def _is_running(folder: Path) -> bool:
    """True if the process whose number is in the lock of the run exists."""
    try:
        return bool(psutil.pid_exists(int(files.read_file(folder / LOCK, 100))))
    except (CheckpointError, ValueError, OverflowError):
        return False


def base_name(env: str) -> str:
    """The name of an environment without its version."""
    return re.sub(r"-v\d+$", "", env)
