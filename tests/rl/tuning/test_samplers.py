"""Samplers: where points lie, that they repeat themselves, and that the search's journal restores them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rltrain.config.load import load
from rltrain.errors import ConfigError
from rltrain.tuning.samplers import GridSampler, Sampler, make_sampler
from rltrain.tuning.space import Point, Space

PPO = load({"algo": "ppo", "env": "CartPole-v1", "workers": 0})
SPACE = Space.of("lr=1e-5..1e-1:log,gamma=0.8..0.99", PPO)
MIXED = Space.of("lr=1e-5..1e-1:log,epochs=1|2|4", PPO)


def value(point: Point) -> float:
    """Highest at lr 1e-3."""
    return -abs(SPACE.dimensions[0].share(point["lr"]) - 0.5)


def played(sampler: Sampler, count: int, told: int | None = None) -> list[Point]:
    """Proposals, two at a time, told in order."""
    points: list[Point] = []
    for number in range(0, count, 2):
        points += [sampler.propose(number), sampler.propose(number + 1)]
        for one in (number, number + 1):
            sampler.tell(one, points[one], 100, value(points[one]), True)
    return points


@pytest.mark.parametrize("name", ["random", "tpe", "cmaes"])
def test_the_seed_decides_and_a_restored_sampler_continues_as_the_first_one(name: str, tmp_path: Path) -> None:
    space = SPACE if name == "cmaes" else MIXED
    whole = played(make_sampler(name, space, 5, tmp_path), 24)
    assert whole == played(make_sampler(name, space, 5, tmp_path), 24)
    assert whole != played(make_sampler(name, space, 6, tmp_path), 24)
    assert len({tuple(point.values()) for point in whole}) > 20
    for point in whole:
        assert 1e-5 <= point["lr"] <= 1e-1

    restored = make_sampler(name, space, 5, tmp_path)
    for number in range(0, 20, 2):
        restored.proposed(number, whole[number])
        restored.proposed(number + 1, whole[number + 1])
        for one in (number, number + 1):
            restored.tell(one, whole[one], 100, value(whole[one]), True)
    assert [restored.propose(number) for number in (20, 21)] == whole[20:22]


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
def test_it_finds_more_good_points_than_random(name: str, tmp_path: Path) -> None:
    def near(points: list[Point]) -> int:
        return sum(value(point) > -0.1 for point in points[12:])

    assert near(played(make_sampler(name, SPACE, 1, tmp_path), 40)) > near(
        played(make_sampler("random", SPACE, 1, tmp_path), 40)
    )


def test_pauses_promotions_and_failures_are_told_to_optuna(tmp_path: Path) -> None:
    sampler = make_sampler("tpe", MIXED, 0, tmp_path)
    points = [sampler.propose(number) for number in range(3)]
    sampler.tell(0, points[0], 25, 1.0, False)
    sampler.tell(1, points[1], 25, None, False)
    sampler.tell(0, points[0], 100, 2.0, True)
    states = [(trial.state.name, trial.value) for trial in sampler._study.get_trials()]  # type: ignore[attr-defined]
    assert states == [("PRUNED", None), ("FAIL", None), ("RUNNING", None), ("COMPLETE", 2.0)]
    assert (tmp_path / "optuna.log").stat().st_size > 0


def test_a_grid_has_every_point_once(tmp_path: Path) -> None:
    sampler = make_sampler("grid", Space.of("lr=1e-4..1e-2:log:3,epochs=1|2", PPO), 0, tmp_path)
    assert isinstance(sampler, GridSampler)
    points = [tuple(sampler.propose(number).values()) for number in range(6)]
    assert sorted(points) == [(lr, epochs) for lr in (1e-4, pytest.approx(1e-3), 1e-2) for epochs in (1, 2)]


@pytest.mark.parametrize(
    ("name", "space", "line"),
    [
        (
            "grid",
            "lr=1e-4..1e-2:log",
            "--space lr: a grid needs the number of points of a range, as lr=0.0001..0.01:log:5",
        ),
        ("cmaes", "lr=1e-4..1e-2,epochs=1|2", "--sampler cmaes: epochs has choices"),
        ("cmaes", "lr=1e-4..1e-2", "--sampler cmaes: needs at least two settings"),
    ],
)
def test_a_space_that_does_not_suit_is_refused(name: str, space: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_sampler(name, Space.of(space, PPO), 0, tmp_path)
    assert str(caught.value).startswith(line)


def test_a_missing_package_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match="needs the package optuna: pip install 'rltrain"):
        make_sampler("tpe", SPACE, 0, tmp_path)
