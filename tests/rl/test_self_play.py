"""The pool and its ratings, against arithmetic by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rltrain
from rltrain import cli
from rltrain.reporting.metrics import read
from rltrain.rollout.types import NEWEST, Episode, Weights
from rltrain.self_play_ratings import START, K, SelfPlay, expected, shares

SMALL: dict[str, Any] = {"workers": 0, "preset": "none", "quiet": True, "streams": 4, "unroll": 16, "widths": (16,)}


def weights(step: int) -> Weights:
    return Weights(99, step, {"w": np.full(3, float(step), np.float32)})


def game(result: float, opponent: int, player: int = 0) -> Episode:
    agents = (result, -result) if player == 0 else (-result, result)
    return Episode(0.0, 5, agents, player, opponent)


def test_four_hundred_points_are_odds_of_ten_to_one() -> None:
    assert expected(1400, 1000) == pytest.approx(10 / 11)
    assert expected(1000, 1400) == pytest.approx(1 / 11)
    assert expected(1234, 1234) == 0.5


def test_ratings_follow_the_games_in_their_order() -> None:
    pool = SelfPlay(2, 100)
    assert pool.due(0)
    assert pool.take(weights(0))[0] == 0
    pool.add([game(1.0, 0), game(1.0, NEWEST), game(-1.0, 5), game(1.0, 0, player=1)])
    mine = START + K * 0.5
    mine += K * (1 - 1 / (1 + 10 ** ((START - mine) / 400)))
    assert pool.elo == pytest.approx(mine)

    assert not pool.due(99)
    assert pool.due(100)
    place, published = pool.take(weights(130))
    assert (place, published.version, published.step) == (1, 1, 130)
    assert (pool.due(199), pool.due(200)) == (False, True)
    pool.add([game(0.0, 1, player=1), game(-1.0, 0)])  # a draw with who is as strong changes nothing
    worse = mine - K / (1 + 10 ** ((START - mine) / 400))
    assert pool.elo == pytest.approx(worse)

    assert pool.take(weights(200))[0] == 0  # in the place of the oldest
    pool.add([game(1.0, 0)])  # who is gone
    assert pool.elo == pytest.approx(worse)
    told = pool.metrics()
    assert (told["selfplay/win"], told["selfplay/draw"], told["selfplay/loss"]) == (0.5, 0.25, 0.25)
    assert told["selfplay/pool"] == 2


def test_what_is_saved_goes_on() -> None:
    one, other = SelfPlay(2, 100), SelfPlay(2, 100)
    for step in (0, 100, 200):
        one.take(weights(step))
        one.add([game(1.0, step // 100), game(0.0, step // 100)])
    published = other.load(one.state())

    assert [(found.version, found.step) for found in published] == [(2, 200), (1, 100)]
    for pool in (one, other):
        pool.add([game(-1.0, 1)])
        assert pool.take(weights(310))[0] == 1
    assert one.metrics() == other.metrics()
    assert (one.due(399), one.due(400)) == (other.due(399), other.due(400))


def test_shares_of_outcomes() -> None:
    assert shares([game(1.0, 0), game(1.0, 0, 1), game(0.0, 0), game(-2.0, 0, 1)]) == {
        "win": 0.5,
        "draw": 0.25,
        "loss": 0.25,
    }
    assert shares([]) == {}


def test_a_run_tells_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = rltrain.train(
        algo="ppo", env="tic-tac-toe", opponents="pool", steps=600, eval_episodes=20, out=str(tmp_path), **SMALL
    )
    lines = read(result.run)
    (line,) = [line for line in lines if line["step"] == result.steps and "eval/win" in line]

    assert line["eval/win"] + line["eval/draw"] + line["eval/loss"] == pytest.approx(1.0)
    assert line["eval/return_mean"] == pytest.approx(line["eval/win"] - line["eval/loss"])
    assert result.eval_return == line["eval/return_mean"]
    assert lines[-1]["selfplay/pool"] == 10.0
    assert lines[-1]["selfplay/elo"] != START
    found = rltrain.evaluate(result.run, episodes=10)
    assert found.return_mean == pytest.approx(found.outcomes["win"] - found.outcomes["loss"])
    assert cli.main_eval([str(result.run), "--episodes", "4"]) == 0
    assert "against random play, length" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tictactoe_v3", "connect_four_v3"])
def test_pettingzoos_own_games(name: str, tmp_path: Path) -> None:
    pytest.importorskip(f"pettingzoo.classic.{name}", reason="needs pettingzoo's extra classic")
    env = f"pettingzoo:pettingzoo.classic.{name}"

    result = rltrain.train(
        algo="ppo", env=env, opponents="pool", steps=300, eval_every=0, checkpoint_every=0, out=str(tmp_path), **SMALL
    )

    assert read(result.run)[-1]["selfplay/pool"] > 1
    assert sum(rltrain.evaluate(result.run, episodes=2).outcomes.values()) == 1.0
