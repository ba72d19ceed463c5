"""Who plays in a game of two, told by how they play: the newest takes the last free cell, a snapshot the first."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from oracles.acting import Bench

from rltrain.envs.make import read_spec, resolve
from rltrain.envs.problems.games import TicTacToe
from rltrain.rollout.actor.play import play
from rltrain.rollout.types import NEWEST, Episode, Trajectory, Weights

ROWS = 40


def bench(share: float, streams: int = 6, rows: int = ROWS) -> Bench:
    """A learner that always takes the last free cell."""
    made = Bench(
        "ppo",
        "tic-tac-toe",
        streams=streams,
        unroll=rows,
        widths=(16,),
        opponents="pool",
        pool_share=share,
        pool_size=2,
    )
    made.rollout.publish(preferring(made, -1, 1))
    return made


def preferring(made: Bench, sign: int, version: int) -> Weights:
    """A policy that takes the first free cell (1), or the last (-1), or any (0)."""
    arrays = {name: np.zeros_like(array) for name, array in made.learner.frozen(0).arrays.items()}
    (bias,) = [name for name in arrays if "actor" in name and arrays[name].shape == (9,)]
    arrays[bias] = (-1000.0 * sign * np.arange(9)).astype(np.float32)
    return Weights(version, 0, arrays)


def collected(made: Bench) -> Trajectory:
    made.rollout.start()
    (unroll,) = made.rollout.gather()
    return unroll


def who(unroll: Trajectory, b: int) -> list[list[tuple[int, bool, bool]]]:
    """The games of a stream that begin in the unroll: of each move its seat, whether it is learnt from, and whether the
    first free cell was taken and not the last."""
    games: list[list[tuple[int, bool, bool]]] = []
    free: list[int] = []
    for t in range(unroll.rows):
        if unroll.first[t, b]:
            games.append([])
            free = list(range(9))
        if not games or unroll.first[t + 1, b]:
            continue
        seat = len(games[-1]) % 2
        cell = int(unroll.action[t, b, seat])
        if len(free) > 1:
            assert cell in (free[0], free[-1])
            games[-1].append((seat, bool(unroll.acting[t, b, seat]), cell == free[0]))
        else:
            games[-1].append((seat, bool(unroll.acting[t, b, seat]), not unroll.acting[t, b, seat]))
        assert not unroll.acting[t, b, 1 - seat]
        free.remove(cell)
    return games


def test_without_a_snapshot_the_newest_policy_plays_both_actors() -> None:
    unroll = collected(bench(1.0))

    for b in range(6):
        assert all(learns and not first for game in who(unroll, b) for _, learns, first in game)
    assert {episode.opponent for episode in unroll.episodes} == {NEWEST}


@pytest.mark.parametrize("again", [False, True], ids=["as started", "replaced"])
def test_a_snapshot_plays_one_seat_and_nobody_learns_from_it(again: bool) -> None:
    made = bench(1.0)
    made.rollout.publish_opponent(0, preferring(made, 1, 7))
    if again:  # as after its death: whoever takes an actor's place has the same pool
        made.rollout._actors[0].open()
    unroll = collected(made)

    seats = []
    for b in range(6):
        for game in who(unroll, b):
            (mine,) = {seat for seat, learns, _ in game if learns} or {NEWEST}
            seats.append(mine)
            assert all(first != learns for _, learns, first in game)  # the snapshot takes the first
            assert all((seat == mine) == learns for seat, learns, _ in game)
    assert {0, 1} <= set(seats)
    assert {episode.opponent for episode in unroll.episodes} == {7}
    assert len({episode.player for episode in unroll.episodes}) == 2
    for episode in unroll.episodes:
        assert episode.agents[0] == -episode.agents[1]


def test_the_share_of_games_against_snapshots_and_of_each_of_them() -> None:
    made = bench(0.6, streams=40, rows=120)
    made.rollout.publish_opponent(0, preferring(made, 1, 3))
    made.rollout.publish_opponent(1, preferring(made, 1, 4))
    met = [episode.opponent for episode in collected(made).episodes]

    assert len(met) > 400
    for opponent, share in ((NEWEST, 0.4), (3, 0.3), (4, 0.3)):
        assert met.count(opponent) / len(met) == pytest.approx(share, abs=0.08)


def test_each_game_is_played_by_whom_it_is_told_of() -> None:
    """Two snapshots are met in the same rows: one takes the first free cell, one the last, as the newest does."""
    made = bench(0.6, streams=20, rows=60)
    made.rollout.publish_opponent(0, preferring(made, 1, 3))
    made.rollout.publish_opponent(1, preferring(made, -1, 4))
    unroll = collected(made)
    told = list(unroll.episodes)  # in the order of streams and rows

    met = set()
    for b in range(20):
        games = who(unroll, b)
        for game in games[: int(unroll.episode_end[:, b].sum())]:
            one = told.pop(0)
            met.add(one.opponent)
            assert one.length == len(game)
            for seat, learns, first in game[:8]:  # the ninth move is the only one
                assert learns == (one.opponent == NEWEST or seat == one.player)
                assert first == (one.opponent == 3 and seat != one.player)
    assert not told
    assert met == {NEWEST, 3, 4}


def test_the_row_after_the_last_is_learnt_from_as_the_game_goes_on() -> None:
    """What follows an unroll is bootstrapped from, for the seats that learn."""
    made = bench(1.0, rows=4)
    made.rollout.publish_opponent(0, preferring(made, 1, 3))
    last = collected(made).acting[-1].copy()
    after = collected(made)

    assert not after.first[0].any()  # four moves end no game
    np.testing.assert_array_equal(last, after.acting[0])
    assert 0 < last.sum() < len(last)


def test_a_snapshot_explores_as_the_newest_policy_does() -> None:
    made = bench(1.0, streams=30, rows=9)
    made.rollout.publish_opponent(0, preferring(made, 0, 3))
    unroll = collected(made)

    second = unroll.acting[1].any(-1)  # whose games the snapshot began
    begun = unroll.action[0, second, 0]
    assert len(begun) > 5
    assert len(set(begun.tolist())) > 3


def test_outcomes_belong_to_the_seat_that_is_told() -> None:
    """Against a snapshot of itself turned round the winner hangs on the seat alone."""
    made = bench(1.0)
    made.rollout.publish_opponent(0, preferring(made, 1, 0))
    unroll = collected(made)

    won = {(episode.player, episode.agents[episode.player]) for episode in unroll.episodes}
    assert won == {(0, 1.0), (1, -1.0)}  # 8, 0, 7, 1, 6 wins in the last line, whoever begins


def test_a_game_whose_opponent_was_replaced_says_nothing() -> None:
    made = bench(1.0, rows=3)
    made.rollout.publish_opponent(0, preferring(made, 1, 0))
    assert not collected(made).episodes
    made.rollout.publish_opponent(0, preferring(made, 1, 1))
    games = [episode for _ in range(4) for episode in collected(made).episodes]

    assert [episode.opponent for episode in games[:6]] == [NEWEST] * 6
    assert {episode.opponent for episode in games[6:]} == {1}


class Heard(TicTacToe):
    """Keeps who played what."""

    games: ClassVar[list[list[tuple[int, int, list[int]]]]] = []

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        super().reset(seed, options)
        Heard.games.append([])

    def step(self, action: int | None) -> None:
        if action is not None:
            me = self.possible_agents.index(self.agent_selection)
            Heard.games[-1].append((me, int(action), np.flatnonzero(self.board < 0).tolist()))
        super().step(action)


def test_evaluation_is_against_random_moves_from_both_actors() -> None:
    made = bench(0.0)
    source = resolve(Heard)
    spec = read_spec(source, 0)
    policy = made.policy
    policy.load_state_dict({name: torch.from_numpy(x) for name, x in preferring(made, 1, 0).arrays.items()})
    Heard.games.clear()

    episodes = play(source.make, spec, policy, list(range(40)), at_once=1, at_random=True)

    games = [game for game in Heard.games if game]
    counts, drawn = np.zeros(9), []
    for number, (episode, game) in enumerate(zip(episodes, games, strict=True)):
        mine = number % 2
        assert (episode.player, episode.ret) == (mine, episode.agents[mine])
        for seat, cell, free in game:
            assert cell in free
            assert cell == free[0] or seat != mine
            if seat != mine:
                counts[free.index(cell) if len(free) > 7 else 8] += 1
        shares = [free.index(cell) / len(free) for seat, cell, free in game if seat != mine and len(free) > 3]
        drawn.append(max(shares) - min(shares))
    assert max(drawn) > 0.5  # each move is drawn anew
    assert (counts[:8] > 0).all()  # of the first move's eight or nine cells each was taken
    for at_once in (1, 8):
        assert play(source.make, spec, policy, list(range(40)), at_once=at_once, at_random=True) == episodes
    assert len({tuple(game[0][1:2]) for game in games}) > 3


def test_an_episode_knows_nobody_unless_told() -> None:
    assert Episode(1.0, 2) == Episode(1.0, 2, (), 0, NEWEST)
