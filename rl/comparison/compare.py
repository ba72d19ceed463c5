"""Compares groups of runs: scores per task and over all tasks, who is better, differences by seed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rltrain.comparison.comparable import reasons, remarks, tasks_of
from rltrain.comparison.runs import Group
from rltrain.comparison.statistics import (
    ENOUGH,
    FEWEST,
    FEWEST_WINS,
    STATISTICS,
    Array,
    Estimate,
    Scores,
    better,
    estimate,
)
from rltrain.errors import ConfigError

ALL = "all tasks"  # in place of a task's name
MOST_REASONS = 8  # of a refusal that are shown
Ranges = Mapping[str, tuple[float, float]]  # by task: the returns that count 0 and 1


@dataclass(frozen=True)
class Row:
    """The scores of a group on a task, or on all tasks."""

    task: str
    group: str
    scores: Scores
    estimates: Mapping[str, Estimate]  # by statistic
    seconds: float  # median time of a run

    @property
    def runs(self) -> str:
        counts = [len(task) for task in self.scores]
        return str(counts[0]) if len(counts) == 1 else f"{'+'.join(map(str, counts))}"


@dataclass(frozen=True)
class Pair:
    """Two groups on a task, or on all tasks."""

    task: str
    group: str
    other: str
    wins: Estimate  # probability that a run of `group` is better than one of `other`
    difference: Estimate | None = None  # mean of group - other over runs with the same seed
    seeds: int = 0  # number of such pairs


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison."""

    score: str  # a key of SCORES, or a metric
    groups: Sequence[Group]
    rows: Sequence[Row]
    pairs: Sequence[Pair]
    notes: Sequence[str]
    lengths: Mapping[str, Sequence[int]]  # steps of a task's runs; several with --force only
    episodes: Sequence[int] = field(default_factory=list)  # of an evaluation

    def of(self, task: str) -> list[Row]:
        return [row for row in self.rows if row.task == task]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(row.task for row in self.rows))


def checked(groups: Sequence[Group], score: str, force: bool) -> tuple[list[Group], list[str]]:
    """The groups to compare, and notes for the reader.

    Args:
        force: compare runs that cannot be compared. Runs without a score are left out then, and tasks that not all
            groups have; the notes say so.

    Raises:
        ConfigError: the runs cannot be compared.
    """
    why = reasons(groups, score)
    if not why:
        return list(groups), remarks(groups)
    if not force:
        more = [] if len(why) <= MOST_REASONS else [f"and {len(why) - MOST_REASONS} more reasons"]
        lines = [f"these runs cannot be compared: {line}" for line in why[:MOST_REASONS]] + more
        raise ConfigError("\n".join([*lines, "--force compares them all the same, and says so in the output"]))
    kept = [Group(group.name, tuple(run for run in group.runs if run.score(score) is not None)) for group in groups]
    kept = [group for group in kept if group.runs]
    common = [task for task in tasks_of(kept) if all(group.of(task) for group in kept)]
    kept = [Group(group.name, tuple(run for run in group.runs if run.task in common)) for group in kept]
    if not common:
        raise ConfigError("nothing is left to compare: no task has a run with a score in every group")
    notes = [f"compared with --force although {line}" for line in why]
    left_out = sum(len(group.runs) for group in groups) - sum(len(group.runs) for group in kept)
    if left_out:
        what = "1 run was" if left_out == 1 else f"{left_out} runs were"
        notes.append(f"{what} left out, for one of these reasons: the results are those of the others")
    return kept, notes + remarks(kept)


def compare(
    groups: Sequence[Group],
    score: str = "last-evaluation",
    paired: bool = False,
    ranges: Ranges | None = None,
    seed: int = 0,
    force: bool = False,
) -> Comparison:
    """Compare groups of runs.

    Args:
        paired: compare runs of the same seed, too.
        ranges: of returns, by task; with those of all tasks the scores of all tasks are put together.
        seed:   of the resamples.
        force:  see `checked`.

    Raises:
        ConfigError: the runs cannot be compared.
    """
    groups, notes = checked(groups, score, force)
    tasks, rng, ranges = tasks_of(groups), np.random.default_rng(seed), ranges or {}
    unknown = [task for task in ranges if task not in tasks]
    if unknown:
        raise ConfigError(f"--range {unknown[0]}: no run is on this task; the tasks are {', '.join(tasks)}")
    scores = {group.name: {task: _scores(group, task, score) for task in tasks} for group in groups}
    rows = [_row(task, group, [scores[group.name][task]], rng) for task in tasks for group in groups]
    together = len(tasks) > 1 and all(task in ranges for task in tasks)
    if together:
        for group in groups:
            normalised = [(scores[group.name][t] - ranges[t][0]) / (ranges[t][1] - ranges[t][0]) for t in tasks]
            rows.append(_row(ALL, group, normalised, rng))
    elif len(tasks) > 1:
        notes.append(
            "returns of different tasks have different scales: for statistics over all tasks give each task's range of "
            "returns, as in --range CartPole-v1=0:500"
        )
    pairs = []
    for one, other in itertools.combinations(groups, 2):
        if paired:
            notes += _unpaired(one, other, tasks, force)
        parts = [*([task] for task in tasks), *([tasks] if len(tasks) > 1 else [])]
        for part in parts:
            wins = better([scores[one.name][task] for task in part], [scores[other.name][task] for task in part])
            gaps = [_by_seed(one, other, task, score) for task in part] if paired and len(part) == 1 else []
            difference = estimate(gaps, "mean", rng) if gaps and len(gaps[0]) else None
            name = part[0] if len(part) == 1 else ALL
            pairs.append(Pair(name, one.name, other.name, wins, difference, sum(map(len, gaps))))
    runs = [run for group in groups for run in group.runs]
    counts = {count for run in runs if isinstance(count := run.config.get("eval_episodes"), int)}
    return Comparison(
        score=score,
        groups=groups,
        rows=rows,
        pairs=pairs,
        notes=[*notes, *_about_intervals(rows, pairs)],
        lengths={task: sorted({run.config["steps"] for run in runs if run.task == task}) for task in tasks},
        episodes=sorted(counts),
    )


def _scores(group: Group, task: str, score: str) -> Array:
    return np.array([run.score(score) for run in group.of(task)], dtype=np.float64)


def _row(task: str, group: Group, scores: Scores, rng: np.random.Generator) -> Row:
    seconds = [run.seconds for run in group.runs if task in (ALL, run.task)]
    estimates = {name: estimate(scores, name, rng) for name in STATISTICS}
    return Row(task, group.name, scores, estimates, float(np.median(seconds)))


def _by_seed(one: Group, other: Group, task: str, score: str) -> Array:
    """The differences of the scores of two groups' runs with the same seeds."""
    first, second = ({run.seed: run.score(score) for run in group.of(task)} for group in (one, other))
    gaps = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]  # type: ignore[operator]
    return np.array(gaps, dtype=np.float64)


def _unpaired(one: Group, other: Group, tasks: Sequence[str], force: bool) -> list[str]:
    """The notes about seeds that only one of two groups has; ConfigError without `force`."""
    notes = []
    for task in tasks:
        seeds = [{run.seed for run in group.of(task)} for group in (one, other)]
        if seeds[0] != seeds[1]:
            lone = ", ".join(map(str, sorted(seeds[0] ^ seeds[1])))
            line = f"{one.name} and {other.name} on {task}: only one of them has the seeds {lone}"
            if not force:
                raise ConfigError(f"--paired: {line}; --force pairs the seeds that both have")
            notes.append(f"compared with --force although {line}: these runs are in no pair")
    return notes


def _about_intervals(rows: Sequence[Row], pairs: Sequence[Pair]) -> list[str]:
    methods = {estimate.method for row in rows for estimate in row.estimates.values()}
    lines = []
    if "t" in methods:
        lines.append(
            f"intervals of fewer than {ENOUGH} runs are t intervals: they assume that returns of runs are normally "
            "distributed. More runs make them narrower"
        )
    lines += [f"no interval: {method.partition(': ')[2]}" for method in sorted(methods) if method.startswith("none")]
    if "bootstrap" in methods:
        lines.append("bootstrap intervals resample the runs of each task 50,000 times")
    if any(pair.wins.method.startswith("none") for pair in pairs):
        needs = f"{FEWEST_WINS} runs of each group, or on several tasks {FEWEST} on each"
        lines.append(f"a probability of improvement has an interval from {needs} on")
    uneven = [row for row in rows if len({len(task) for task in row.scores}) > 1]
    if uneven:
        lines.append(f"tasks have different numbers of runs ({uneven[0].runs}); one with more runs weighs more")
    if len({(pair.group, pair.other) for pair in pairs}) > 1:
        lines.append("each interval is of 95% by itself: among many comparisons some differ by chance")
    return lines
