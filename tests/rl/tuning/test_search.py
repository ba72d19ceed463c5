"""Searches whose runs are functions: who continues, failures, rounds, and a search that ends at any moment."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as Terminal

import rltrain
from rltrain.config.load import load
from rltrain.errors import CheckpointError, ConfigError, RunFailed
from rltrain.jobs.pool import pool
from rltrain.jobs.resources import Request
from rltrain.tuning import tune as tune_module
from rltrain.tuning.journal import JOURNAL, Journal
from rltrain.tuning.options import Options
from rltrain.tuning.report import Found, best_settings, report_text, tuned_line, write_pictures, write_settings
from rltrain.tuning.search import Search
from rltrain.tuning.space import Space
from rltrain.tuning.trial import PartResult
from rltrain.tuning.tune import Tuned, _reopened, tune
from rltrain.tuning.view import View

RUN = {"algo": "ppo", "env": "CartPole-v1", "steps": 1000, "workers": 0, "preset": "none"}
SPACE = "lr=1e-5..1e-1:log,epochs=1|2|4"


class Killed(BaseException):
    """In place of SIGKILL."""


class Runs:
    """In place of the pool of jobs: runs end at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[float, int, int | None]] = []
        self.kill_at: int | None = None
        monkeypatch.setattr(tune_module, "jobs_of", lambda cluster: self)
        self.refuse, self.room = pool().refuse, pool().room

    def dumps(self, call: Any) -> Any:
        return call

    def submit(self, call: Any, arguments: Any, request: Request, retries: int) -> Any:
        assert (arguments, retries) == (((), {}), 1)
        config, until = call.args
        self.calls.append((config.settings.lr, config.seed, until))
        if len(self.calls) == self.kill_at:
            raise Killed
        future: Future[PartResult] = Future()
        lr, steps = config.settings.lr, until or config.steps
        share = abs((__import__("math").log10(lr) + 3) / 2)
        if lr > 0.05:
            future.set_result(PartResult(None, 0, 0.0, config.out, error="training diverged: the loss"))
        else:
            value = 100 - 50 * share + steps / 100 + config.seed % 7
            future.set_result(PartResult(value, steps, 1.0, f"{config.out}/run", f"{lr}-{config.seed}-{steps}"))
        return future


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def searched(folder: Path, **options: Any) -> Tuned:
    values: dict[str, Any] = {"sampler": "random", "confirm": 0, **options}
    trials = values.pop("trials", None if values.get("scheduler") == "pbt" else 9)
    return tune(values.pop("space", SPACE), trials=trials, name=str(folder), options=values, **RUN)


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]


def test_asha_lets_the_best_third_continue_and_the_budget_of_a_trial_is_the_whole_run(
    runs: Runs, tmp_path: Path
) -> None:
    tuned = searched(tmp_path / "s", seeds=3, parallel=1)
    state = Found.read(tmp_path / "s").state
    assert state.rungs == [(250, 1), (750, 1), (1000, 1), (1000, 3)]
    first, second = ([trial.number for trial in state.finished(rung)] for rung in (0, 1))
    assert len(first) + tuned.failed == tuned.trials == 9
    assert second == [number for number in first if number in second]
    assert 1 <= len(second) <= 4
    assert state.winner is not None
    assert len(state.winner.seeds_at(3)) == 3  # at least one trial has all seeds
    assert tuned.value == pytest.approx(sum(state.winner.seeds_at(3)) / 3)
    assert {until for _, _, until in runs.calls} == {250, 750, None}
    few = [call for call in runs.calls if call[1] > 0]
    assert {seed for _, seed, _ in few} == {1, 2}
    assert all(until is None for _, _, until in few)


def test_without_a_scheduler_every_trial_runs_to_the_end(runs: Runs, tmp_path: Path) -> None:
    searched(tmp_path / "s", scheduler="none")
    assert [until for _, _, until in runs.calls] == [None] * 9


def test_the_winner_and_the_default_run_again_with_seeds_that_no_trial_had(runs: Runs, tmp_path: Path) -> None:
    tuned = searched(tmp_path / "s", seeds=2, confirm=3)
    assert len(tuned.winner) == len(tuned.default) == 3
    confirmed = [(lr, seed) for lr, seed, until in runs.calls if seed >= 10_000]
    assert sorted({seed for _, seed in confirmed}) == [10_000, 10_001, 10_002]
    assert {lr for lr, _ in confirmed} == {tuned.settings["lr"], 3e-4}
    assert max(seed for _, seed, _ in runs.calls if seed < 10_000) == 1


def test_a_failed_trial_is_failed_and_no_number(runs: Runs, tmp_path: Path) -> None:
    tuned = searched(tmp_path / "s", space="lr=1e-3|0.09,epochs=1|2", sampler="grid", trials=4)
    assert (tuned.failed, tuned.trials, tuned.settings["lr"]) == (2, 4, 1e-3)
    assert "failed: training diverged: the loss" in report_text(tmp_path / "s")
    assert "NaN" not in (tmp_path / "s" / JOURNAL).read_text()
    with pytest.raises(RunFailed, match="all 1 trials failed; the first one: training diverged"):
        searched(tmp_path / "t", space="lr=0.09|0.08", sampler="grid", trials=1)


@pytest.mark.parametrize(
    "sampler",
    [pytest.param("random", marks=pytest.mark.sweep), "tpe", pytest.param("cmaes", marks=pytest.mark.sweep), "grid"],
)
def test_a_search_that_is_killed_anywhere_ends_as_the_unbroken_one(sampler: str, runs: Runs, tmp_path: Path) -> None:
    space = {"cmaes": "lr=1e-5..1e-1:log,gamma=0.8..0.99", "grid": "lr=1e-5..1e-1:log:3,epochs=1|2|4"}.get(
        sampler, SPACE
    )
    options = {"sampler": sampler, "space": space, "seeds": 2, "confirm": 1, "deterministic": True, "round": 4}
    whole = searched(tmp_path / "whole", **options)
    expected, moments = events(tmp_path / "whole"), len(runs.calls)
    for moment in range(1, moments + 1, 2 if sampler == "random" else 7):
        folder = tmp_path / str(moment)
        runs.calls, runs.kill_at = [], moment
        with pytest.raises(Killed):
            searched(folder, **options)
        with (folder / JOURNAL).open("a") as file:
            file.write('{"event":"resu')  # cut off
        runs.kill_at = None
        resumed = tune(resume=folder)
        assert (resumed.settings, resumed.value) == (whole.settings, whole.value)
        assert events(folder) == expected


def test_with_rounds_the_number_of_processes_does_not_matter(runs: Runs, tmp_path: Path) -> None:
    options = {"sampler": "tpe", "seeds": 2, "deterministic": True, "trials": 12}
    several = [searched(tmp_path / str(count), parallel=count, **options) for count in (1, 2, 5)]
    assert len({(tuple(one.settings.items()), one.value) for one in several}) == 1


def test_a_resumed_search_leaves_unset_what_was_unset(runs: Runs, tmp_path: Path) -> None:
    """Else its new trials would not get the defaults for their kind of action."""
    searched(tmp_path / "s", trials=2)
    _, config, _, _ = _reopened(tmp_path / "s", None, False)
    assert config.settings.model_fields_set == set()
    assert config.settings == load(RUN).settings


def test_more_trials_can_be_added(runs: Runs, tmp_path: Path) -> None:
    searched(tmp_path / "s", trials=4)
    before = [event["point"] for event in events(tmp_path / "s") if event["event"] == "trial"]
    assert tune(resume=tmp_path / "s", trials=7).trials == 7
    after = [event["point"] for event in events(tmp_path / "s") if event["event"] == "trial"]
    assert after[:4] == before
    assert len(after) == 7


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"trials": 0}, "--trials must be a whole number of at least 1, got 0"),
        ({"eta": 1}, "--eta must be a whole number of at least 2, got 1"),
        ({"grace": 2.0}, "--grace must be above 0 and at most 1, got 2.0"),
        ({"scheduler": "best"}, "--scheduler must be one of asha, none, pbt, got 'best'"),
        ({"workers": 2}, "unknown option 'workers' of a search"),
        ({"cores": 999, "parallel": 1}, "cores 999: this process can use"),
        ({"sampler": "cmaes"}, "--sampler cmaes: epochs has choices"),
        ({"scheduler": "pbt", "space": "widths=4|8"}, "--space widths: widths cannot change during a run; with pbt"),
        (
            {"scheduler": "pbt", "population": 3, "space": "lr=1e-4..1e-3"},
            "--population 3: pbt needs at least 4 members",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    options: dict[str, Any], line: str, runs: Runs, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        searched(tmp_path / "s", **options)
    assert str(caught.value).startswith(line)
    assert not runs.calls
    assert not (tmp_path / "s").exists()


def test_settings_that_the_search_decides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="eval_every: cannot be given to a search: a trial is evaluated"):
        tune(SPACE, name=str(tmp_path / "s"), eval_every=5, **RUN)


def test_folders_that_are_no_searches_get_one_line(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a search's folder: it has no search.json"):
        tune(resume=tmp_path)
    searched(tmp_path / "s", trials=2)
    with pytest.raises(ConfigError, match="exists; continue that search with --resume"):
        searched(tmp_path / "s", trials=2)
    with (tmp_path / "s" / JOURNAL).open("a") as file:
        file.write("{}\n")
    with pytest.raises(CheckpointError, match=r"journal.jsonl, line \d+, is damaged"):
        tune(resume=tmp_path / "s")


def test_a_full_disk_ends_the_search_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add({"event": "trial"})
    monkeypatch.setattr("os.write", lambda file, data: 3)
    with pytest.raises(RunFailed, match=r"journal.jsonl cannot be written: no space left on device"):
        journal.add({"event": "trial"})


def test_the_best_settings_are_a_file_for_rltrain(runs: Runs, tmp_path: Path) -> None:
    tuned = searched(tmp_path / "s", space="lr=1e-4..1e-2:log,1-gamma=0.01..0.1,widths=64,64|32", sampler="random")
    best = best_settings(tmp_path / "s")
    assert best.settings == tuned.settings
    write_settings(tmp_path / "s", tmp_path / "best.toml")
    config, _ = __import__("rltrain.cli", fromlist=["parse"]).parse(["--config", str(tmp_path / "best.toml")])
    assert (config.settings.lr, config.settings.gamma) == (tuned.settings["lr"], tuned.settings["gamma"])
    assert (config.settings.widths, config.steps, config.env) == (tuned.settings["widths"], 1000, "CartPole-v1")
    with pytest.raises(ConfigError, match="exists; remove it first"):
        write_settings(tmp_path / "s", tmp_path / "best.toml")


def test_the_report_has_every_trial_the_best_first_and_what_matters(runs: Runs, tmp_path: Path) -> None:
    searched(tmp_path / "s", trials=30, scheduler="none", confirm=2)
    lines = report_text(tmp_path / "s").splitlines()
    assert lines[0].split() == ["trial", "value", "steps", "seeds", "lr", "epochs"]
    data = json.loads(report_text(tmp_path / "s", json_lines=True))
    values = [trial["value"] for trial in data["trials"] if trial["value"] is not None]
    assert len(data["trials"]) == 30
    assert values == sorted(values, reverse=True)
    assert next(iter(data["importance"])) == "lr"
    assert data["importance"]["lr"] > 0.8 > 0.3 > data["importance"]["epochs"]
    assert len(data["winner"]) == 2
    assert any(line.startswith("winner with 2 new seeds") for line in lines)


def test_pictures(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    searched(tmp_path / "s", trials=10)
    steps = [{"step": step, "eval/return_mean": step / 10} for step in (100, 200)]
    monkeypatch.setattr("rltrain.tuning.report.read", lambda folder: steps)
    for path in write_pictures(tmp_path / "s"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_an_event_is_on_the_disk_when_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[list[str]] = []
    journal = Journal(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: written.append((tmp_path / JOURNAL).read_text().splitlines()))
    for number in range(3):
        journal.add({"event": "trial", "number": number})
        assert len(written) == number + 1
        assert json.loads(written[-1][-1])["number"] == number
    journal.close()


def test_a_default_that_is_better_than_the_winner_is_told() -> None:
    tuned = Tuned(Path("s"), {"lr": 1e-3}, 9.0, (4.0, 6.0), (6.0, 6.0), Path("r"), 3, 0)
    better = "the default is better; try more --seeds, --trials or --steps"
    assert better in tuned_line(tuned)
    assert better not in tuned_line(dataclasses.replace(tuned, winner=(6.0, 6.0)))
    assert better not in tuned_line(dataclasses.replace(tuned, winner=(), default=()))


def test_the_public_name() -> None:
    assert rltrain.tune is tune


def test_a_terminal_shows_the_runs_that_confirm_the_winner(tmp_path: Path) -> None:
    config = load(RUN)
    search = Search(tmp_path, config, Space.of(SPACE, config), Options(sampler="random", trials=1), pool())
    point = {"lr": 1e-3, "epochs": 2}
    result = {"number": 0, "rung": 0, "seed": 0, "value": 5.0, "steps": 250, "seconds": 1.0, "run": "", "error": ""}
    for event in (
        {"event": "trial", "number": 0, "point": point},
        {"event": "results", "results": [{**result, "fingerprint": ""}]},
    ):
        search.state.apply(event)
    view = View(True, io.StringIO())
    assert view._table(search).rows == [["0", "250", "5", "best", "0.001", "2"]]
    search.running = {Future(): ("winner", 0, tmp_path), Future(): ("default", 1, tmp_path)}  # type: ignore[dict-item]

    assert view._table(search).rows[:2] == [
        ["winner", "", "", "runs, seed 10000", "0.001", "2"],
        ["default", "", "", "runs, seed 10001", "", ""],
    ]
    assert "1 trial " in f"{view._line(search)} "


@pytest.mark.parametrize("columns", [44, 100])
def test_a_terminal_shows_the_trials_that_run_and_the_best_ones(runs: Runs, tmp_path: Path, columns: int) -> None:
    shown: list[str] = []
    view = View(True, io.StringIO())

    def look(search: Search) -> None:
        stream = io.StringIO()
        Terminal(file=stream, width=columns).print(view._table(search))
        shown.append(stream.getvalue())

    options = Options(sampler="random", confirm=0, parallel=2, trials=12)
    config = load(RUN)
    search = Search(tmp_path, config, Space.of(SPACE, config), options, runs, look)
    search.run()

    assert all(len(line) <= columns for text in shown for line in text.splitlines())
    tables = [[line.split() for line in text.splitlines()] for text in shown]
    assert "".join(shown[0].split()) == ""  # no trial yet
    assert tables[1][0][:4] == ["trial", "steps", "value", "state"]
    assert [row[:4] for row in tables[2][1:]] == [["0", "runs", "to", "250"], ["1", "runs", "to", "250"]], shown[2]
    last = tables[-1][1:]
    best = search.state.winner
    assert best is not None
    assert last[0][0] == str(best.number)
    assert last[0][1:4] == ["1,000", f"{best.value(2):.4g}", "best"]
    ranks = [(int(row[1].replace(",", "")), float(row[2])) for row in last]
    assert ranks == sorted(ranks, reverse=True)
    assert len(last) == 8  # of 12 trials
