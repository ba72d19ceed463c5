"""Agents that act in turns: targets against each agent's own turns, written out one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles.acting import Bench
from oracles.teams import THREE, TWO, team_spec
from oracles.turns import games, lambda_return, learnt, turns_of

from rltrain.algorithms import algorithm_class, settings_class
from rltrain.algorithms.functions.returns import gae, vtrace
from rltrain.algorithms.multi_agent.independent import OWN, Independent, group_views
from rltrain.algorithms.multi_agent.turns import bootstrap_weights
from rltrain.rollout.types import Trajectory, discounts, traces

SPEC = replace(team_spec(THREE, TWO, told=False), turns=True)
GAMMA, LAM = 0.9, 0.8


def own(batch: Trajectory, number: int) -> tuple[Trajectory, torch.Tensor, Any]:
    """A group's own turns, a value [K+1, B'] of what it sees there, and its view."""
    view = group_views(SPEC)[number]
    alone = view.unrolls(batch, slice(0, 0), f"{number}/")
    seen = alone.obs[OWN] if view.count > 1 else alone.obs
    return alone, seen.sum(-1), view


@pytest.mark.parametrize("seed", range(30))
def test_targets_are_those_of_an_agents_own_turns(seed: int) -> None:
    batch = games(SPEC, seed)
    found = 0
    for number in range(2):
        alone, value, view = own(batch, number)
        discount, trace = discounts(alone, GAMMA), traces(alone, LAM)
        advantage = gae(alone.reward, value, discount, trace)
        target = vtrace(torch.zeros_like(advantage), alone.reward, value, discount, trace, alone.valid).target
        for b in range(4):
            for i in range(view.count):
                column, n = b * view.count + i, view.part.agents.start + i
                turns = learnt(turns_of(batch, b, n), int(batch.num_rows[b]), 3)
                rows = alone.valid[:, column].nonzero().flatten().tolist()
                saw = batch.obs[view.group.name][:, b, i].sum(-1).numpy()
                assert len(rows) == len(turns)
                for k, turn in zip(rows, turns, strict=True):
                    expected = lambda_return(turn, saw, GAMMA, LAM, turns)
                    assert float(value[k, column]) == saw[turn.row]
                    assert float(advantage[k, column] + value[k, column]) == pytest.approx(expected, abs=1e-5)
                    assert float(target[k, column]) == pytest.approx(expected, abs=1e-5)
                    assert float(alone.reward[k, column]) == pytest.approx(turn.reward, abs=1e-6)
                    assert int(alone.action[k, column]) == int(batch.action[turn.row, b, n])
                    log_prob = batch.extras[f"{number}/log_prob"][turn.row, b, i]
                    assert alone.extras["log_prob"][k, column] == log_prob
                found += len(turns)
    assert found > 5


def test_the_bootstrap_is_the_value_of_the_next_agent_or_the_mean_of_the_truncated_ones() -> None:
    """One row of five agents: in the first stream agent 3 acts next; in the second the game ends, 1 and 4 truncated."""
    alive = torch.tensor([[[True] * 5] * 2, [[True] * 5, [False] * 5]])
    acting = torch.zeros(2, 2, 5, dtype=torch.bool)
    acting[1, 0, 3] = True
    truncated, terminated = torch.zeros(1, 2, 5, dtype=torch.bool), torch.zeros(1, 2, 5, dtype=torch.bool)
    truncated[0, 1, [1, 2, 4]] = True
    terminated[0, 1, [0, 2]] = True  # both flags: a termination
    batch = replace(
        games(SPEC, 0),
        reward=torch.zeros(1, 2, 5),
        alive=alive,
        acting=acting,
        truncated=truncated,
        terminated=terminated,
    )

    assert bootstrap_weights(batch)[0].tolist() == [[0, 0, 0, 1, 0], [0, 0.5, 0, 0, 0.5]]


def test_values_told_of_rows_do_not_tell_those_of_turns() -> None:
    """What was seen last stands in a row of its own, which may be the one behind the unroll's end."""
    batch = games(SPEC, 0)
    flat = torch.zeros(batch.rows, 4, 3)
    batch = replace(batch, extras={"0/log_prob": flat[..., :2], "0/value": flat[..., :2]})

    assert list(own(batch, 0)[0].extras) == ["log_prob"]


@pytest.mark.parametrize("seed", range(10))
def test_whether_a_turn_is_learnt_from_does_not_hang_on_what_came_of_it(seed: int) -> None:
    """Turns go round here, so that the next is at most three rows away: all are known but those of the last two."""
    batch = games(SPEC, seed)
    for number in range(2):
        alone, _, view = own(batch, number)
        for b in range(4):
            for i in range(view.count):
                turns = turns_of(batch, b, view.part.agents.start + i)
                early = [turn for turn in turns if turn.row <= int(batch.num_rows[b]) - 3]
                assert int(alone.valid[:, b * view.count + i].sum()) == len(early)


def learner(algo: str, **settings: Any) -> Independent:
    config = settings_class(algo)(**{"widths": (6,), "unroll": 14, "lr": 1e-2, **settings})
    return Independent(algorithm_class(algo), SPEC, config, torch.device("cpu"), 3, 4)


@pytest.mark.parametrize("algo", ["ppo", "a2c", "impala", "appo"])
def test_rows_of_others_teach_nothing(algo: str) -> None:
    """What an idle agent sees and does may be anything; what it earns meanwhile may not."""
    one, other, third = (learner(algo, normalize_obs=True, normalize_return=True) for _ in range(3))
    batch = games(SPEC, 1)
    idle = ~batch.acting & batch.alive
    parts = dict(zip(("three", "two"), idle.split([2, 1], -1), strict=True))
    changed = replace(
        batch,
        obs={name: torch.where(parts[name][..., None], 77.0, x) for name, x in batch.obs.items()},
        action=torch.where(idle[:-1], 1, batch.action),
    )
    for algorithm, seen in ((one, batch), (other, changed), (third, replace(batch, reward=batch.reward + idle[:-1]))):
        for _ in range(2):
            algorithm.update(seen, 0.0)
            algorithm.observe(seen)

    expected = one.policy.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in other.policy.state_dict().items())
    assert not all(torch.equal(x, expected[name]) for name, x in third.policy.state_dict().items())


def running(batch: Trajectory, b: int, n: int, carry: float, returns: list[float]) -> float:
    """Adds the return so far at each turn that is learnt from. Takes and gives what is carried between unrolls."""
    turns, last = turns_of(batch, b, n), 0.0
    known = learnt(turns, int(batch.num_rows[b]), 3)
    for number, turn in enumerate(turns):
        before = slice(0, turn.row + 1)
        goes_on = bool(batch.alive[before, b, n].all()) and not bool(batch.first[before, b].any())
        if number == 0:
            last = carry if goes_on else 0.0
        if any(turn is one for one in known):
            last = 0.99 * last + turn.reward
            returns.append(last)
        last = 0.0 if turn.ended else last
    return last


@pytest.mark.parametrize("seed", range(12))
def test_running_returns_are_those_of_turns(seed: int) -> None:
    """Each learnt turn's return so far is counted once, over the border of unrolls too, and nothing else is."""
    algorithm = learner("ppo", normalize_return=True)
    one, two = games(SPEC, seed), games(SPEC, seed + 100)
    two = replace(two, row=one.num_rows)
    algorithm.observe(one)
    algorithm.observe(two)

    for number, inner in enumerate(algorithm.inner):
        view, returns = algorithm.views[number], list[float]()
        for b in range(4):
            for n in range(view.part.agents.start, view.part.agents.stop):
                running(two, b, n, running(one, b, n, 0.0, returns), returns)
        scale = inner.policy.return_scale
        assert int(scale.count) == len(returns)
        assert float(scale.mean) == pytest.approx(sum(returns) / max(len(returns), 1), abs=1e-6)


@pytest.mark.parametrize(
    "algo",
    [
        pytest.param("ppo", marks=pytest.mark.sweep),
        pytest.param("a2c", marks=pytest.mark.sweep),
        "impala",
        pytest.param("appo", marks=pytest.mark.sweep),
        "mappo",
    ],
)
def test_the_learner_sees_what_acted(algo: str) -> None:
    """In a real game: every legal move of every seat, at its own turn, with the probability that it was taken with."""
    bench = Bench(algo, "tic-tac-toe", streams=3, unroll=20, widths=(8,))
    unrolls = bench.collect()
    view = bench.algorithm.views[0]
    alone = view.unrolls(unrolls, slice(0, 0), "")
    dist, _ = bench.algorithm.inner[0].policy.forward(
        {name: x[:-1] for name, x in alone.obs.items()}, alone.action_mask[:-1]
    )

    moves = alone.valid
    torch.testing.assert_close(dist.log_prob(alone.action)[moves], alone.extras["log_prob"][moves])
    assert (alone.action_mask[:-1][moves].sum(-1) > 0).all()
    assert int(moves.sum()) == int((unrolls.acting[:-1] & unrolls.valid[..., None])[: 20 - 1].sum())
    assert len(alone.reward) < 20
    assert set(alone.reward[moves].unique().tolist()) <= {-1.0, 0.0, 1.0}
    bench.learn(unrolls)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"memory": "gru"}, "needs memory none here"), ({"unroll": 3}, "unroll must be above their number 3, got 3")],
)
def test_what_it_cannot_do_is_said(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        learner("ppo", **{"sequence": 7, **settings})
