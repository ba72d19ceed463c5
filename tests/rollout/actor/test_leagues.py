"""Games of three against a pool, told by how each plays: the newest policy takes 0, each opponent another number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles.acting import Bench
from oracles.games import ThreeAtOnce, ThreeInTurns

from rltrain.config.load import load
from rltrain.envs.make import read_spec, resolve
from rltrain.learner.algorithm import make_policy
from rltrain.rollout.actor.opponents import Opponents
from rltrain.rollout.actor.play import play
from rltrain.rollout.buffers import clear_absent
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import NEWEST, Trajectory, Weights, hooks_of

GAMES = pytest.mark.parametrize("game", [ThreeInTurns, ThreeAtOnce])
SNAPSHOTS = {1: 7, 2: 8}  # the action that each takes: its number


def taking(action: int, like: dict[str, np.ndarray], version: int = 1) -> Weights:
    """A policy that takes one action always."""
    arrays = {name: np.zeros_like(array) for name, array in like.items()}
    (bias,) = [name for name in arrays if "actor" in name and arrays[name].shape == (4,)]
    arrays[bias] = np.where(np.arange(4) == action, 1000.0, 0.0).astype(np.float32)
    return Weights(version, 0, arrays)


def bench(game: Any, share: float = 1.0, others: Any = (), streams: int = 30, rows: int = 40) -> Bench:
    """A learner that takes 0."""
    settings = {"streams": streams, "unroll": rows, "widths": (16,), "pool_share": share, "pool_size": 2}
    made = Bench("ppo", game, others, opponents="pool", **settings)
    made.rollout.publish(taking(0, made.learner.frozen(0).arrays))
    return made


def publish(made: Bench) -> None:
    for place, (action, number) in enumerate(SNAPSHOTS.items()):
        made.rollout.publish_opponent(place, taking(action, made.learner.frozen(0).arrays, number))


def moves(unroll: Trajectory, on: np.ndarray, b: int) -> list[list[tuple[int, int, bool]]]:
    """The games of a stream that begin in the unroll: of each move its player, action and whether it is learned."""
    games: list[list[tuple[int, int, bool]]] = []
    for t in range(unroll.rows):
        if unroll.first[t, b]:
            games.append([])
        if not games or unroll.first[t + 1, b]:
            continue
        for player in np.flatnonzero(on[t, b]):
            games[-1].append((int(player), int(unroll.action[t, b, player]), bool(unroll.acting[t, b, player])))
    return games


def collected(made: Bench) -> tuple[Trajectory, np.ndarray]:
    """An unroll, and [T, B, N] who really acts."""
    told: list[np.ndarray] = []
    act = Opponents.act

    def told_act(self: Opponents, t: int, rows: Any, *rest: Any) -> None:
        source = rows.alive if rows.acting is None else rows.acting
        told.append(source[t, : len(self.player)].copy())
        act(self, t, rows, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Opponents, "act", told_act)
        made.rollout.start()
        (unroll,) = made.rollout.gather()
    return unroll, np.stack(told)


@GAMES
def test_each_other_player_is_a_snapshot_of_its_own_draw(game: Any) -> None:
    made = bench(game)
    publish(made)
    unroll, on = collected(made)
    told, met, seats = list(unroll.episodes), set(), set()

    for b in range(30):
        games = moves(unroll, on, b)
        for one in games[: int(unroll.episode_end[:, b].sum())]:
            episode = told.pop(0)
            assert len(one) == (8 if game is ThreeInTurns else 11)
            takes = {player: action for player, action, _ in one}
            expected = [SNAPSHOTS[takes[n]] if takes[n] else NEWEST for n in range(3)]
            assert list(episode.opponents) == expected
            assert episode.opponents[episode.player] == NEWEST == episode.opponent
            assert expected.count(NEWEST) == 1
            for player, action, learned in one:
                assert learned == (player == episode.player) == (action == 0)
            assert episode.agents == tuple(float(sum(a for p, a, _ in one if p == n)) for n in range(3))
            met.add(tuple(number for number in expected if number != NEWEST))
            seats.add(episode.player)
    assert not told
    assert met == {(7, 7), (7, 8), (8, 7), (8, 8)}
    assert seats == {0, 1, 2}


@GAMES
def test_the_learner_gets_its_own_rows_and_no_others(game: Any) -> None:
    made = bench(game)
    publish(made)
    unroll, on = collected(made)
    (own,) = made.algorithm.member_batches(made.learner.feed.delivery([unroll]))

    assert (own.action[own.valid] == 0).all()
    assert (own.reward[own.valid] == 0).all()  # the opponents' are above 0
    mine = int((on & unroll.acting[:-1] & unroll.valid[..., None]).sum())
    others = int((on & ~unroll.acting[:-1] & unroll.valid[..., None]).sum())
    assert others > mine
    assert own.valid.sum() == mine if game is ThreeAtOnce else mine / 2 < own.valid.sum() < mine


@GAMES
def test_games_without_opponents_are_learned_as_a_whole(game: Any) -> None:
    made = bench(game, share=0.5, streams=60)
    publish(made)
    unroll, on = collected(made)
    told, alone = list(unroll.episodes), 0

    for b in range(60):
        for one in moves(unroll, on, b)[: int(unroll.episode_end[:, b].sum())]:
            if set(told.pop(0).opponents) == {NEWEST}:
                alone += 1
                assert all(learned and action == 0 for _, action, learned in one)
            else:
                assert any(not learned for _, _, learned in one)
    assert alone / len(unroll.episodes) == pytest.approx(0.5, abs=0.15)


@GAMES
def test_policies_of_other_runs_play_with_their_own_weights(game: Any) -> None:
    """Of other widths, of another algorithm; beside the snapshots."""
    settings = {"algo": "a2c", "env": game, "widths": (5,), "workers": 0, "preset": "none"}
    like = Bench("a2c", game, widths=(5,)).learner.frozen(0).arrays
    others = [(load(settings), taking(3, like).arrays)]
    made = bench(game, others=others)
    publish(made)
    unroll, on = collected(made)
    numbers = {0: NEWEST, 3: -2, **SNAPSHOTS}
    told, met = list(unroll.episodes), set()

    for b in range(30):
        for one in moves(unroll, on, b)[: int(unroll.episode_end[:, b].sum())]:
            episode = told.pop(0)
            assert all(numbers[action] == episode.opponents[player] for player, action, _ in one)
            met.update(episode.opponents)
    assert met == {NEWEST, -2, 7, 8}


def test_a_snapshot_that_is_replaced_counts_for_nobody_and_the_others_do() -> None:
    made = bench(ThreeAtOnce, rows=2)
    publish(made)
    made.rollout.start()
    (first,) = made.rollout.gather()
    assert not first.episodes
    made.rollout.publish_opponent(0, taking(1, made.learner.frozen(0).arrays, 9))
    made.rollout.start()
    (unroll,) = made.rollout.gather()

    met = {number for episode in unroll.episodes for number in episode.opponents}
    assert met == {NEWEST, 8}


@pytest.mark.parametrize(
    ("game", "own", "other"),
    [
        (ThreeAtOnce, "ppo", "a2c"),  # the newest policy, its snapshots and the other run have memories
        (ThreeAtOnce, "ppo", "iql"),  # whose memory contains its last action too
        (ThreeInTurns, "a2c", "iql"),  # the newest policy has none: it cannot learn in turns with one
    ],
)
def test_opponents_with_a_memory_remember_their_game(game: Any, own: str, other: str) -> None:
    """Oracle: each opponent's policy sees each row of each stream, from an empty memory when a game begins.

    After half of the unrolls another rollout continues from the state of the first one, as a resumed run does.
    """
    memory = {"memory": "gru", "memory_size": 6}
    theirs = {"algo": other, "env": game, "workers": 0, "preset": "none", **memory}
    theirs |= {"last_action": True} if other == "iql" else {"sequence": 4, "unroll": 8}
    remembers = game is ThreeAtOnce
    mine = {"sequence": 4, **memory} if remembers else {}
    spec = read_spec(resolve(game), 0)
    strangers = make_policy(load(theirs), spec)()
    others = [(load(theirs), {name: x.numpy().copy() for name, x in scaled(strangers).state_dict().items()})]
    settings = {"opponents": "pool", "streams": 12, "unroll": 8, "pool_share": 0.9, "pool_size": 1, **mine}
    made, again = (Bench(own, game, others, **settings) for _ in range(2))
    snapshot = made.learner.frozen(0)
    for one in (made, again):
        one.rollout.publish_opponent(0, replace(snapshot, version=7))
    seen: list[tuple[Any, ...]] = []
    act = Opponents.act

    def told_act(self: Opponents, t: int, rows: Any, noise: Any, obs: Any, mask: Any, action: Any) -> None:
        act(self, t, rows, noise, obs, mask, action)
        there = rows.alive if rows.acting is None else rows.acting
        alive = rows.alive[t].copy()
        drawn = {index: one._rows[t].clone() for index, one in enumerate(self._others)} | {1: noise.clone()}
        inputs = tree_map(torch.Tensor.clone, obs), None if mask is None else mask.clone(), drawn
        seen.append((*inputs, rows.first[t].copy(), there[t].copy(), alive, action.copy(), self.index.copy()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Opponents, "act", told_act)
        for unroll in range(4):
            if unroll == 2:
                again.rollout.load(made.rollout.state())
            rollout = (made if unroll < 2 else again).rollout
            rollout.start()
            rollout.gather()

    policies = {0: strangers, 1: made.policy}
    cores = {n: torch.zeros(len(seen[0][3]), policy.core_size) for n, policy in policies.items()}
    compared, forgetful = dict.fromkeys(policies, 0), 0
    with torch.no_grad():
        for obs, mask, drawn, first, there, alive, action, index in seen:
            for n, policy in policies.items():
                has_memory = policy.core_size > 0
                before = cores[n] * torch.from_numpy(~first)[:, None] if has_memory else None
                decided = policy.act(obs, before, mask, drawn[n], True)
                if has_memory:
                    core = hooks_of(policy).core_with_action(decided.core, torch.from_numpy(action))
                    cores[n] = clear_absent(core, alive)
                    empty = policy.act(obs, torch.zeros_like(before), mask, drawn[n], True).action.numpy()
                moves = (index == n) & there[: len(index)]
                expected = decided.action.numpy()[: len(index)]
                assert (action[: len(index)][moves] == expected[moves]).all()
                compared[n] += int(moves.sum())
                forgetful += int((empty[: len(index)] != expected)[moves].sum()) if has_memory else 0
    assert min(compared.values()) > 50
    assert forgetful > 0  # an opponent that forgets plays otherwise


def scaled(policy: Any) -> Any:
    """The policy with larger weights and less exploration, so that its memory decides what it does."""
    with torch.no_grad():
        for name, tensor in policy.named_buffers():
            if "epsilon" in name:
                tensor.fill_(0.1)
        for tensor in policy.parameters():
            tensor.mul_(4.0)
    return policy


@GAMES
def test_evaluation_is_against_random_moves_from_each_seat(game: Any) -> None:
    made, source = bench(game, streams=1), resolve(game)
    spec = read_spec(source, 0)
    weights = taking(3, made.learner.frozen(0).arrays).arrays
    made.policy.load_state_dict({name: torch.from_numpy(x) for name, x in weights.items()})

    episodes = play(source.make, spec, made.policy, list(range(30)), at_once=7, at_random=True)

    long = 3 if game is ThreeInTurns else 4
    rests = set()
    for number, episode in enumerate(episodes):
        assert episode.player == number % 3
        rounds = long - (episode.player == 2)
        assert episode.ret == episode.agents[episode.player] == 3.0 * rounds
        rests.update(ret for player, ret in enumerate(episode.agents) if player != episode.player)
    assert len(rests) > 4
    assert {episode.player for episode in episodes} == {0, 1, 2}
    assert play(source.make, spec, made.policy, list(range(30)), at_once=30, at_random=True) == episodes
