"""Groups are compared, or refused with the reason; nothing is left out without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rltrain.comparison.compare import ALL, compare
from rltrain.comparison.runs import find_groups
from rltrain.errors import ConfigError

Make = Callable[..., Path]


def two_groups(make: Make, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> list[str]:
    """Two groups of three runs that can be compared, but for the given changes to one run of each."""
    for seed in range(3):
        one, other = {"returns": [1.0, 10.0 + seed], "seed": seed}, {"returns": [1.0, 20.0 + seed], "seed": seed}
        make(f"a-{seed}", **{**one, **((first or {}) if seed == 1 else {})})
        make(f"b-{seed}", **{**other, "algo": "dqn", **((second or {}) if seed == 1 else {})})
    return ["A=a-*", "B=b-*"]


def test_the_rows_have_the_scores_of_each_group(make_run: Make) -> None:
    found = compare(find_groups(two_groups(make_run)), paired=True)

    assert [(row.group, row.estimates["mean"].value) for row in found.rows] == [("A", 11.0), ("B", 21.0)]
    (pair,) = found.pairs
    assert pair.wins.value == 0.0
    assert pair.difference is not None
    assert (pair.difference.value, pair.seeds) == (-10.0, 3)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"env": "CartPole-v0"}, {"env": "CartPole-v0"}, "CartPole-v0 and CartPole-v1 are versions of one environment"),
        ({"env": "Acrobot-v1"}, {}, "B has no run on Acrobot-v1"),
        ({"settings": {"lr": 0.5}}, {}, "A: its runs on CartPole-v1 differ in lr: 0.001, 0.5"),
        ({"steps": 2000}, {}, "A: its runs on CartPole-v1 differ in steps: 1000, 2000"),
        ({"streams": 4}, {"streams": 4}, None),
        ({"algo": "sac"}, {}, "of several algorithms: ppo, sac"),
        ({"seed": 2}, {}, "have the same seed 2"),
        ({"versions": {"gymnasium": "0.29"}}, {}, "different versions of gymnasium: 0.29, 1.4.0"),
        ({"eval_episodes": 5}, {}, "differ in eval_episodes"),
        ({"returns": []}, {}, "has no evaluation"),
        ({"returns": [None]}, {}, "has no evaluation with a finite number"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    make_run: Make, first: dict[str, Any], second: dict[str, Any], reason: str | None
) -> None:
    groups = find_groups(two_groups(make_run, first, second))
    if reason is None:  # a setting that only one run has was not known to the others' version
        compare(groups)
        return
    with pytest.raises(ConfigError, match=reason):
        compare(groups)

    forced = compare(groups, force=True)
    assert any(reason in note and "--force" in note for note in forced.notes)


@pytest.mark.parametrize(
    ("key", "values"), [("steps", (1000, 2000)), ("eval_episodes", (5, 20)), ("stop_return", (None, 9.0))]
)
def test_groups_must_agree_in_length_and_evaluation(make_run: Make, key: str, values: tuple[Any, Any]) -> None:
    for seed in range(3):
        make_run(f"a-{seed}", [1.0], seed=seed, **{key: values[0]})
        make_run(f"b-{seed}", [1.0], seed=seed, algo="dqn", **{key: values[1]})

    with pytest.raises(ConfigError, match=f"the groups differ in {key}"):
        compare(find_groups(["A=a-*", "B=b-*"]))


def test_the_best_of_more_evaluations_is_refused(make_run: Make) -> None:
    make_run("a", [1.0], eval_every=10)
    make_run("b", [1.0], eval_every=100, algo="dqn")
    groups = find_groups(["A=a", "B=b"])

    compare(groups)
    with pytest.raises(ConfigError, match="the best of more evaluations is higher"):
        compare(groups, "best-evaluation")


def test_a_run_in_two_groups_is_refused(make_run: Make) -> None:
    make_run("a", [1.0])

    with pytest.raises(ConfigError, match="is in A and in B"):
        compare(find_groups(["A=a", "B=a"]))


def test_a_run_that_failed_counts_and_is_named(make_run: Make) -> None:
    found = compare(find_groups(two_groups(make_run, {"last": 300})))

    assert any("failed or was ended at 300 of 1,000 steps; it counts" in note for note in found.notes)
    assert found.rows[0].runs == "3"


def test_forced_runs_without_a_score_are_counted_in_a_note(make_run: Make) -> None:
    groups = find_groups(two_groups(make_run))
    (Path("a-1") / "metrics.jsonl").unlink()
    found = compare(find_groups(["A=a-*", "B=b-*"]), force=True)

    assert len(groups) == 2
    assert any(note.startswith("1 run was left out") for note in found.notes)


def test_pairs_need_the_same_seeds(make_run: Make) -> None:
    groups = find_groups(two_groups(make_run, {"seed": 7}))

    with pytest.raises(ConfigError, match="only one of them has the seeds 1, 7"):
        compare(groups, paired=True)
    assert compare(groups, paired=True, force=True).pairs[0].seeds == 2


def test_statistics_over_tasks_need_the_ranges_of_their_returns(make_run: Make) -> None:
    for task, scale in (("One-v0", 1.0), ("Two-v0", 100.0)):
        for seed in range(3):
            make_run(f"{task}-a{seed}", [scale * seed], env=task, seed=seed)
    groups = find_groups(["A=*"])

    assert any("give each task's range" in note for note in compare(groups).notes)
    found = compare(groups, ranges={"One-v0": (0, 2), "Two-v0": (0, 200)}).of(ALL)
    assert found[0].estimates["mean"].value == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="no run is on this task"):
        compare(groups, ranges={"Three-v0": (0, 1)})


def test_the_same_seed_gives_the_same_numbers(make_run: Make) -> None:
    for seed in range(12):
        make_run(f"a-{seed}", [float(seed % 5)], seed=seed)
    groups = find_groups(["a-*"])

    def estimates(seed: int) -> list[Any]:
        return [row.estimates for row in compare(groups, seed=seed).rows]

    assert estimates(3) == estimates(3)
    assert estimates(3) != estimates(4)
