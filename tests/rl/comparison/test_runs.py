"""Runs are found, read and grouped; damaged files and runs that ended early are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rltrain.comparison.runs import Group, find, find_groups, read
from rltrain.errors import CheckpointError, ConfigError

Make = Callable[..., Path]


def names(groups: list[Group]) -> dict[str, list[str]]:
    return {group.name: [run.folder.name for run in group.runs] for group in groups}


def test_a_folder_a_pattern_and_a_folder_of_runs_are_found(make_run: Make) -> None:
    for name in ("a-1", "a-2", "study/seed-0", "study/seed-1"):
        make_run(name, [1.0])

    assert [run.name for run in find("a-1")] == ["a-1"]
    assert [run.name for run in find("a-*")] == ["a-1", "a-2"]
    assert [run.name for run in find("study")] == ["seed-0", "seed-1"]
    assert len(find(".")) == 4


def test_named_groups_and_groups_by_settings(make_run: Make) -> None:
    make_run("a-0", [1.0])
    make_run("a-1", [1.0], seed=1, workers=8)
    make_run("b-0", [1.0], settings={"lr": 0.1})
    make_run("c-0", [1.0], algo="dqn")

    assert names(find_groups(["first=a-*", "second=b-0"])) == {"first": ["a-0", "a-1"], "second": ["b-0"]}
    assert names(find_groups(["*"])) == {"ppo lr=0.001": ["a-0", "a-1"], "ppo lr=0.1": ["b-0"], "dqn": ["c-0"]}
    assert names(find_groups(["a-*", "a-0"])) == {"ppo": ["a-0", "a-1"]}


def test_settings_of_another_task_do_not_divide_a_group(make_run: Make) -> None:
    make_run("a", [1.0])
    make_run("b", [1.0], env="Acrobot-v1", settings={"lr": 0.1}, steps=5000)

    assert names(find_groups(["*"])) == {"ppo": ["a", "b"]}


@pytest.mark.parametrize(
    ("argument", "message"), [("nothing", "nothing does not exist"), ("empty", "no folder of a run there")]
)
def test_what_is_no_run_is_one_line(make_run: Make, argument: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(exist_ok=True)

    with pytest.raises(ConfigError, match=message):
        find_groups([argument])


def test_scores_are_the_last_the_best_and_that_of_training(make_run: Make) -> None:
    run = read(make_run("a", [1.0, 9.0, 4.0]))

    assert (run.score("last-evaluation"), run.score("best-evaluation"), run.score("final-training")) == (4.0, 9.0, 7.0)


def test_an_evaluation_that_is_not_finite_is_no_score(make_run: Make) -> None:
    run = read(make_run("a", [1.0, None]))

    assert run.score("last-evaluation") is None
    assert run.score("best-evaluation") == 1.0


def test_a_line_that_was_not_finished_is_left_out(make_run: Make) -> None:
    folder = make_run("a", [1.0, 2.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1200, "seconds": 9.0, "eval/ret')

    assert read(folder).score("last-evaluation") == 2.0


@pytest.mark.parametrize("line", ["{", "[]", '{"seconds": 1}', '{"step": "x", "seconds": 1, "eval/return_mean": 1}'])
def test_a_damaged_line_is_named(make_run: Make, line: str) -> None:
    folder = make_run("a", [1.0, 2.0])
    file = folder / "metrics.jsonl"
    file.write_text(f"{line}\n{file.read_text()}")

    with pytest.raises(CheckpointError, match=r"metrics.jsonl is damaged"):
        read(folder)


def test_how_a_run_ended_before_its_last_step(make_run: Make) -> None:
    import os

    assert read(make_run("whole", [1.0])).ended == ""
    assert "failed or was ended at 300 of 1,000 steps" in read(make_run("failed", [1.0], last=300)).ended
    assert "--stop-return 5" in read(make_run("goal", [1.0, 6.0, 6.0], last=300, stop_return=5.0)).ended
    running = make_run("running", [1.0], last=300)
    (running / ".lock").write_text(f"{os.getpid()}\n")
    assert "still running" in read(running).ended
    (running / ".lock").unlink()
    os.mkfifo(running / ".lock")  # of somebody else's run: to open it would wait for a writer
    assert "failed or was ended" in read(running).ended


def test_the_arguments_of_an_environment_make_another_task(make_run: Make) -> None:
    assert read(make_run("a", [1.0], env_args={"gravity": 5})).task == "CartPole-v1 (gravity=5)"
