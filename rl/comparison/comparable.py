"""Whether runs may be compared: the reasons against it, each one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rltrain.comparison.runs import EVALUATION, TRAINING, Group, Run, base_name, differences, metric_of, shown

SHARED = {"steps", "eval_episodes", "stop_return", "action_bound", "opponents", "share", "replay_from"}
SHARED |= {"eval_env", "eval_env_args"}  # settings of a task that all groups must have in common
VERSIONS = ("gymnasium",)  # of packages with environments
WITHOUT = {EVALUATION: "evaluation", TRAINING: "finished training episode"}
OTHER_VERSIONS = ("rltrain", "torch", "numpy")  # of packages that may change results: named, not refused


def reasons(groups: Sequence[Group], score: str) -> list[str]:
    """Why these groups cannot be compared; none if they can.

    Args:
        score: a key of SCORES, or the name of a metric.
    """
    return [
        *_of_tasks(groups),
        *(reason for group in groups for reason in _of_group(group)),
        *_of_members(groups),
        *(reason for task in tasks_of(groups) for reason in _of_task(groups, task, score)),
    ]


def tasks_of(groups: Sequence[Group]) -> list[str]:
    """All tasks, in the order of their first run."""
    return list(dict.fromkeys(run.task for group in groups for run in group.runs))


def _of_tasks(groups: Sequence[Group]) -> Iterator[str]:
    tasks = tasks_of(groups)
    versions: dict[str, set[str]] = {}
    for task in tasks:
        env, space, arguments = task.partition(" ")
        versions.setdefault(base_name(env) + space + arguments, set()).add(task)
    for several in versions.values():
        if len(several) > 1:
            yield f"{' and '.join(sorted(several))} are versions of one environment, whose returns differ"
    for group in groups:
        missing = [task for task in tasks if not group.of(task)]
        if missing:
            yield f"{group.name} has no run on {', '.join(missing)}, which other groups have"


def _of_group(group: Group) -> Iterator[str]:
    """Runs of one group: the same settings on a task, and each seed once."""
    for task in tasks_of([group]):
        runs = group.of(task)
        for key, values in differences(runs).items():
            texts = ", ".join(map(shown, values))
            yield f"{group.name}: its runs on {task} differ in {key.removeprefix('settings.')}: {texts}"
        algorithms = sorted({run.algo for run in runs})
        if len(algorithms) > 1:
            yield f"{group.name}: its runs on {task} are of several algorithms: {', '.join(algorithms)}"
        first: dict[int, Run] = {}
        for run in runs:
            if run.seed in first:
                yield (
                    f"{group.name}: {first[run.seed].name} and {run.name} have the same seed {run.seed}: they are one "
                    "run and its repetition, not two"
                )
            first.setdefault(run.seed, run)


def _of_members(groups: Sequence[Group]) -> Iterator[str]:
    owner: dict[Any, str] = {}
    for group in groups:
        for run in group.runs:
            before = owner.setdefault(run.folder.resolve(), group.name)
            if before != group.name:
                yield f"{run.name} is in {before} and in {group.name}"


def _of_task(groups: Sequence[Group], task: str, score: str) -> Iterator[str]:
    """All runs on one task: the same environment, length and evaluation, and a score."""
    runs = [run for group in groups for run in group.of(task)]
    inside = {key for group in groups for key in differences(group.of(task))}  # these are reported already
    keys = SHARED | {"eval_every"} if score == "best-evaluation" else SHARED
    for key, values in differences(runs).items():
        if key in keys and key not in inside:
            note = ": the best of more evaluations is higher" if key == "eval_every" else ""
            yield f"{task}: the groups differ in {key}: {', '.join(map(shown, values))}{note}"
    for package in VERSIONS:
        versions = sorted({run.versions[package] for run in runs if package in run.versions})
        if len(versions) > 1:
            yield f"{task}: runs were made with different versions of {package}: {', '.join(versions)}"
    for run in runs:
        if run.score(score) is None:
            what = WITHOUT.get(metric_of(score), score)
            finite = "" if run.last_of(score) is None else " with a finite number at its end"
            ending = f" (it {run.ended})" if run.ended else ""
            yield f"{run.name} has no {what}{finite}{ending}"


def remarks(groups: Sequence[Group]) -> list[str]:
    """What a reader must know about runs that are compared: those that ended early, and other versions."""
    runs = [run for group in groups for run in group.runs]
    lines = [f"{run.name} {run.ended}; it counts" for run in runs if run.ended]
    for package in OTHER_VERSIONS:
        versions = sorted({run.versions[package] for run in runs if package in run.versions})
        if len(versions) > 1:
            lines.append(f"runs were made with different versions of {package}: {', '.join(versions)}")
    return lines
