"""The pool and its ratings, against arithmetic by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rltrain
from rltrain import cli
from rltrain.evaluation.self_play_ratings import START, WIDE, Games, SelfPlay, comparisons, fit, shares
from rltrain.reporting.metrics import read
from rltrain.rollout.types import NEWEST, Episode, Weights

SMALL: dict[str, Any] = {"workers": 0, "preset": "none", "quiet": True, "streams": 4, "unroll": 16, "widths": (16,)}


def weights(step: int) -> Weights:
    return Weights(99, step, {"w": np.full(3, float(step), np.float32)})


def game(result: float, opponent: int, player: int = 0) -> Episode:
    agents = (result, -result) if player == 0 else (-result, result)
    return Episode(0.0, 5, agents, player, opponent)


def posterior(x: list[float], ratings: dict[int, float], games: list[Games], drift: list[float]) -> float:
    """The logarithm of the posterior of the newest ratings x, written out game by game; those of other runs follow."""
    start = max(ratings) + 1 - len(drift)
    r = ratings | {start + place: value for place, value in enumerate(x[: len(drift)])}
    r |= {-2 - place: value for place, value in enumerate(x[len(drift) :])}
    total = 0.0
    for game in games:
        mine = (1 - game.share) * r[game.policy - 1] + game.share * r[game.policy]
        win = 1 / (1 + 10 ** ((r[game.opponent] - mine) / 400))
        total += game.score * math.log(win) + (game.count - game.score) * math.log(1 - win)
    for place, width in enumerate(drift):
        total -= 0.5 * ((r[start + place] - r[start + place - 1]) / width) ** 2
    return total - sum(0.5 * ((value - START) / WIDE) ** 2 for value in x[len(drift) :])


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("seed", range(5))
def test_the_fitted_ratings_have_the_largest_posterior_and_the_interval_is_its_curvature(
    seed: int, others: int
) -> None:
    rng = np.random.default_rng(seed)
    ratings = dict.fromkeys([*range(2, 7), *range(-1 - others, -1)], 1000.0)  # 4 to 6 are fitted, and other runs'
    drift = [50.0, 120.0, 80.0]
    games = []
    for _ in range(30):
        policy, count = int(rng.integers(3, 7)), int(rng.integers(1, 20))
        opponent = int(rng.integers(2 - others, policy))
        opponent -= 3 * (opponent < 2)
        games.append(Games(policy, float(rng.random()), opponent, count, float(rng.integers(0, 2 * count + 1)) / 2))

    found, interval = fit(ratings, games, drift)

    best = [found[number] for number in (4, 5, 6, -2, -3)[: 3 + others]]
    assert (found[2], found[3]) == (1000.0, 1000.0)

    def at(*move: float) -> float:
        return posterior([a + b for a, b in zip(best, move, strict=True)], ratings, games, drift)

    size = len(best)
    hessian = np.zeros((size, size))
    for a in range(size):
        step = [1.0 if a == i else 0.0 for i in range(size)]
        assert at(*step) - at(*[-x for x in step]) == pytest.approx(0.0, abs=1e-4)
        for b in range(size):
            other = [1.0 if b == i else 0.0 for i in range(size)]
            both, apart = np.add(step, other), np.subtract(step, other)
            hessian[a, b] = (at(*both) + at(*-both) - at(*apart) - at(*-apart)) / 4
    assert interval == pytest.approx(1.96 * math.sqrt(np.linalg.inv(-hessian)[2, 2]), rel=1e-3)


def test_four_hundred_points_are_odds_of_ten_to_one() -> None:
    ratings, interval = fit({0: 1000.0, 1: 1000.0}, [Games(1, 1.0, 0, 1_100_000, 1_000_000.0)], [1e6])
    assert ratings[1] == pytest.approx(1400.0, abs=1e-3)
    assert interval < 2


def strength(gain: float, games: int, periods: int = 12, seed: int = 0) -> tuple[list[float], list[float]]:
    """Errors of the rating, and its intervals, at the end of each period of a policy that gains points steadily."""
    pool, rng = SelfPlay(5, 1000), np.random.default_rng(seed)
    errors, intervals = [], []
    truth: dict[int, float] = {}
    for period in range(periods):
        pool.take(weights(1000 * period))
        truth[period] = START + gain * period
        for step in range(0, 1000, 50):
            mine = START + gain * (period + step / 1000)
            opponents = rng.integers(max(0, period - 4), period + 1, games // 20).tolist()
            wins = rng.random(len(opponents)) < [1 / (1 + 10 ** ((truth[one] - mine) / 400)) for one in opponents]
            played = zip(wins, opponents, strict=True)
            pool.add([game(1.0 if win else -1.0, one) for win, one in played], 1000 * period + step)
        told = pool.metrics()
        errors.append(told["selfplay/elo"] - (START + gain * (period + 1)))
        intervals.append(told["selfplay/elo_interval"])
    return errors, intervals


def test_the_rating_of_a_policy_that_does_not_change_stands_still_and_that_of_one_that_learns_does_not_lag() -> None:
    """Elo's rule with K = 16 wandered by 50 points, and lagged behind a policy that learns by a quarter."""
    still, intervals = np.array([strength(0.0, 500, seed=seed) for seed in range(6)]).transpose(1, 0, 2)
    assert np.abs(still).mean() < 20
    assert (np.abs(still) < intervals).mean() > 0.85
    learns, _ = np.array([strength(80.0, 500, seed=seed) for seed in range(6)]).transpose(1, 0, 2)
    assert abs(learns[:, -1].mean()) < 0.05 * 80 * 12


def test_games_are_counted_and_removed_snapshots_keep_their_rating() -> None:
    pool = SelfPlay(2, 100)
    assert pool.due(0)
    assert pool.take(weights(0))[0] == 0
    assert "selfplay/elo_interval" not in pool.metrics()
    pool.add([game(1.0, 0), game(1.0, NEWEST), game(-1.0, 5), game(1.0, 0, player=1)], 50)
    mine = pool.metrics()["selfplay/elo"]
    assert mine > START

    assert not pool.due(99)
    assert pool.due(100)
    place, published = pool.take(weights(130))
    assert (place, published.version, published.step) == (1, 1, 130)
    assert (pool.due(199), pool.due(200)) == (False, True)
    pool.add([game(0.0, 1, player=1), game(-1.0, 0)], 140)
    assert pool.metrics()["selfplay/elo"] < mine

    assert pool.take(weights(200))[0] == 0  # in the place of the oldest
    before = pool.metrics()
    pool.add([game(1.0, 0)], 210)  # a game against a snapshot that is gone
    assert pool.metrics()["selfplay/win"] == 0.5
    assert pool.places[1].elo == pytest.approx(pool.fitted()[0][1])
    told = pool.metrics()
    assert told["selfplay/elo"] == pytest.approx(before["selfplay/elo"])
    assert (told["selfplay/win"], told["selfplay/draw"], told["selfplay/loss"]) == (0.5, 0.25, 0.25)
    assert told["selfplay/pool"] == 2


def test_a_game_of_three_is_a_comparison_with_each_opponent() -> None:
    episode = Episode(3.0, 5, (1.0, 2.0, 0.0), player=0, opponents=(NEWEST, 4, -2))
    assert comparisons(episode) == [(4, "loss"), (-2, "win")]
    assert comparisons(episode._replace(player=2, opponents=(4, NEWEST, NEWEST))) == [(4, "loss")]
    assert comparisons(episode._replace(agents=(1.0, 1.0, 1.0))) == [(4, "draw"), (-2, "draw")]
    assert comparisons(episode._replace(opponents=(NEWEST,) * 3)) == []
    assert shares([episode, episode._replace(player=1)]) == {"win": 0.75, "draw": 0.0, "loss": 0.25}


def test_policies_of_other_runs_get_a_rating_with_and_without_a_pool() -> None:
    """The newest policy always beats the first of them and loses to the second, as to the snapshot, if there is one."""
    for own in (True, False):
        pool = SelfPlay(3, 100, others=2, own=own)
        for step in (0, 100, 200, 300, 400):
            taken = pool.take(weights(step))
            assert (taken is not None) == own == bool(pool.places)
            pool.add(
                [Episode(0.0, 5, (1.0, 0.0, 2.0), 0, NEWEST, opponents=(NEWEST, -2, -3))] * 20
                + [Episode(0.0, 5, (1.0, 2.0), 0, step // 100, opponents=(NEWEST, step // 100))] * 20,
                step + 50,
            )
        told = pool.metrics()
        assert told["selfplay/elo_other_1"] + 200 < told["selfplay/elo"] < told["selfplay/elo_other_2"] - 200
        assert told["selfplay/pool"] == (5.0 if own else 2.0)
        again = SelfPlay(3, 100, others=2, own=own)
        assert again.begun is False
        published = again.load(
            json.loads(json.dumps({**pool.state(), "places": []})) | {"places": pool.state()["places"]}
        )
        assert len(published) == (3 if own else 0)
        assert again.metrics() == told
        assert (again.begun, again.due(499), again.due(500)) == (True, False, True)
        for one in (pool, again):
            one.take(weights(510))
        assert again.metrics() == pool.metrics()
    with pytest.raises(ValueError, match="2 policies of other runs"):
        SelfPlay(3, 100).load(pool.state())


def test_what_is_saved_goes_on() -> None:
    one, other = SelfPlay(2, 100), SelfPlay(2, 100)
    for step in (0, 100, 200):
        one.take(weights(step))
        one.add([game(1.0, step // 100), game(0.0, step // 100)], step + 30)
    published = other.load(json.loads(json.dumps({**one.state(), "places": []})) | {"places": one.state()["places"]})

    assert [(found.version, found.step) for found in published] == [(2, 200), (1, 100)]
    for pool in (one, other):
        pool.add([game(-1.0, 1)], 290)
        assert pool.take(weights(310))[0] == 1
        pool.add([game(-1.0, 2)], 320)
    assert one.metrics() == other.metrics()
    assert (one.due(399), one.due(400)) == (other.due(399), other.due(400))


def test_a_pool_of_version_0_1_goes_on_from_its_ratings() -> None:
    old, pool = SelfPlay(2, 100), SelfPlay(2, 100)
    old.take(weights(0))
    state = {key: value for key, value in old.state().items() if key in ("places", "taken", "elo", "recent")}
    state["places"][0]["elo"] = state["elo"] = 1111.0

    pool.load(state)

    assert pool.metrics() == {"selfplay/elo": pytest.approx(1111.0), "selfplay/pool": 1.0}
    pool.add([game(1.0, 0)], 50)
    assert pool.metrics()["selfplay/elo"] > 1111.0


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


@pytest.mark.parametrize("name", [pytest.param("tictactoe_v3", marks=pytest.mark.sweep), "connect_four_v3", "rps_v2"])
def test_pettingzoos_own_games(name: str, tmp_path: Path) -> None:
    pytest.importorskip(f"pettingzoo.classic.{name}", reason="needs pettingzoo's extra classic")
    env = f"pettingzoo:pettingzoo.classic.{name}"

    result = rltrain.train(
        algo="ppo", env=env, opponents="pool", steps=300, eval_every=0, checkpoint_every=0, out=str(tmp_path), **SMALL
    )

    assert read(result.run)[-1]["selfplay/pool"] > 1
    assert sum(rltrain.evaluate(result.run, episodes=2).outcomes.values()) == 1.0
