"""Algorithms of recorded data for several agents: each group learns what one agent would from the same steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles.teams import THREE, TWO, episodes, team_spec
from oracles.turns import Turn, games, learnt, turns_of
from torch import Tensor
from torch.testing import assert_close

from rltrain.algorithms import algorithm_class, settings_class
from rltrain.algorithms.multi_agent.independent import ID, OWN, Independent, group_views
from rltrain.envs.spec import ActionSpec, AgentGroup, EnvSpec
from rltrain.rollout.trajectories import select_columns
from rltrain.rollout.types import Trajectory, Transition

CPU = torch.device("cpu")
AT_ONCE, IN_TURNS = team_spec(THREE, TWO, masked=True), team_spec(THREE, TWO, turns=True)
SIZES = {"three": 2, "two": 1}  # numbers of an action
ARMS = [
    AgentGroup(group.name, group.agents, group.obs, ActionSpec("box", (n,), low=(-1.0,) * n, high=(1.0,) * n))
    for group, n in ((THREE, 2), (TWO, 1))
]
BOX = replace(
    AT_ONCE, groups=tuple(ARMS), action=ActionSpec("box", (5,), low=(-1.0,) * 5, high=(1.0,) * 5), action_mask=False
)
FIRST = {"three": 0, "two": 2}  # the first agent of a group
SMALL: dict[str, Any] = {"widths": (6,), "lr": 1e-2}
DISCRETE_CASES = ["bc", "marwil", "cql", "implicit_q", "awac"]


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(algo: str, spec: EnvSpec, **settings: Any) -> Independent:
    return Independent(algorithm_class(algo), spec, settings_class(algo)(**{**SMALL, **settings}), CPU, 3, 5)


def alone(algo: str, spec: EnvSpec, **settings: Any) -> list[Any]:
    """For each group the algorithm of one agent, with the first weights that it has among several."""
    config = settings_class(algo)(**{**SMALL, **settings})
    return [
        algorithm_class(algo)(view.spec, config, CPU, 3 + number, 5 * view.count)
        for number, view in enumerate(group_views(spec))
    ]


def sample(spec: EnvSpec, seed: int) -> Trajectory:
    """What a replay of all agents may return: agents that come and go, ends of both kinds."""
    if spec.turns:
        batch = select_columns(games(spec, seed), 0, 3)  # without the unroll that was stretched
        batch = replace(batch, extras={}, num_rows=None)
        return replace(batch, obs={name: x.double() for name, x in batch.obs.items()}, reward=batch.reward.double())
    batch = episodes(spec if spec is not BOX else replace(AT_ONCE, action_mask=False), seed)
    if spec is BOX:
        generator = torch.Generator().manual_seed(seed)
        batch = replace(batch, action=torch.rand(*batch.reward.shape[:2], 5, generator=generator) * 2 - 1)
    mask = batch.action_mask
    if mask is not None:  # the actions were legal
        begins = torch.tensor([0, 3, 6])  # of the mask of each agent
        mask = torch.cat([mask[:-1].scatter(-1, begins + batch.action, True), mask[-1:]])
    ints = {name: getattr(batch, name).long() for name in ("version", "stream", "row")}
    return replace(batch, action_mask=mask, **ints)


def steps_of(batch: Trajectory, b: int, n: int, steps: int, gamma: float) -> list[tuple[int, int, float, float]]:
    """Of one agent in one sequence: row, later row, summed rewards and discount of each of its steps."""
    found = []
    assert batch.alive is not None
    for t in range(batch.rows):
        if not (batch.valid[t, b] and batch.alive[t, b, n]):
            continue
        total, discount, now = 0.0, 1.0, t
        while True:
            total += discount * float(batch.reward[now, b, n])
            discount *= gamma
            ended = bool(batch.terminated[now, b, n] or batch.truncated[now, b, n])
            dead, now = bool(batch.terminated[now, b, n]), now + 1
            over = now == batch.rows or now - t == steps or ended
            if over or not (batch.valid[now, b] and batch.alive[now, b, n]):
                break
        found.append((t, now, total, 0.0 if dead else discount))
    return found


def own_turns_of(batch: Trajectory, b: int, n: int, steps: int, gamma: float) -> list[tuple[int, int, float, float]]:
    """The same where agents act in turns: a step is a turn, and its reward is that of all rows until the next one."""
    known = learnt(turns_of(batch, b, n), batch.rows, 3)
    found = []
    for first in known:
        turn: Turn = first
        total, discount = 0.0, 1.0
        for count in range(1, batch.rows + 1):
            total += discount * turn.reward
            discount *= gamma
            later = turn.follows
            if count == steps or turn.ended or later is None or not any(later is one for one in known):
                break
            turn = later
        assert turn.after is not None
        found.append((first.row, turn.after, total, 0.0 if turn.terminated else discount))
    return found


def transitions(spec: EnvSpec, batch: Trajectory, steps: int, gamma: float) -> list[Transition]:
    """Those of each group, written out: rows in the order of time, then of streams, then of agents."""
    results, mask_at, action_at = [], 0, 0
    for view in group_views(spec):
        group, first, rows = view.group, FIRST[view.group.name], []
        width = 1 if group.action.kind == "discrete" else group.action.shape[0]
        look = own_turns_of if spec.turns else steps_of
        for b in range(batch.reward.shape[1]):
            for i in range(view.count):
                rows += [(t, b, i, *rest) for t, *rest in look(batch, b, first + i, steps, gamma)]
        rows.sort(key=lambda row: row[:3])

        def seen(at: list[tuple[int, int, int]], group: AgentGroup = group, count: int = view.count) -> Any:
            own = torch.stack([batch.obs[group.name][t, b, i] for t, b, i in at])
            return {OWN: own, ID: torch.tensor([i for *_, i in at])} if count > 1 else own

        def legal(
            at: list[tuple[int, int, int]], size: int = group.action.mask_size, begin: int = mask_at
        ) -> Tensor | None:
            if batch.action_mask is None:
                return None
            return torch.stack([batch.action_mask[t, b, begin + i * size : begin + (i + 1) * size] for t, b, i in at])

        now, later = [row[:3] for row in rows], [(row[3], *row[1:3]) for row in rows]
        flat = batch.action.reshape(*batch.reward.shape[:2], -1)
        begin = action_at
        action = torch.stack([flat[t, b, begin + i * width : begin + (i + 1) * width] for t, b, i in now])
        results.append(
            Transition(
                obs=seen(now),
                action=action.reshape(-1, *group.action.shape),
                reward=torch.tensor([row[4] for row in rows]),
                discount=torch.tensor([row[5] for row in rows]),
                next_obs=seen(later),
                action_mask=legal(now),
                next_action_mask=legal(later),
            )
        )
        action_at, mask_at = begin + width * view.count, mask_at + group.action.mask_size * view.count
    return results


@pytest.mark.parametrize(
    ("algo", "spec", "settings"),
    [
        *((algo, AT_ONCE, {}) for algo in DISCRETE_CASES),
        *((algo, IN_TURNS, {}) for algo in DISCRETE_CASES),
        *((algo, BOX, {}) for algo in ("bc", "marwil", "implicit_q")),
        ("td3_bc", BOX, {"policy_delay": 1}),
        ("cql", BOX, {"samples": 2}),
        ("awac", BOX, {"normalize_obs": True}),
        ("marwil", AT_ONCE, {"n_step": 2}),
        ("marwil", IN_TURNS, {"n_step": 2}),
        ("bc", AT_ONCE, {"normalize_obs": True}),
    ],
    ids=lambda x: x if isinstance(x, str) else getattr(x, "action", ActionSpec("", ())).kind,
)
def test_updates_equal_those_of_one_agent_with_the_same_steps(algo: str, spec: EnvSpec, settings: Any) -> None:
    ours, theirs = make(algo, spec, **settings), alone(algo, spec, **settings)
    before = [{name: x.clone() for name, x in one.policy.state_dict().items()} for one in theirs]
    plan = theirs[0].plan
    gamma = 1.0 if algo == "bc" else plan.gamma
    first = sample(spec, 9)
    ours.observe(first)
    for view, one in zip(group_views(spec), theirs, strict=True):
        if one.observes:
            own = view.unrolls(first, slice(0, 0), "")
            one.observe(own)
    for seed in range(3):
        batch = sample(spec, seed)
        metrics = ours.update(batch, 0.25 * seed).metrics
        of_each = [
            one.update(own, 0.25 * seed).metrics
            for one, own in zip(theirs, transitions(spec, batch, plan.n_step, gamma), strict=True)
        ]
        for name in of_each[0]:
            assert_close(
                torch.as_tensor(metrics[name]), sum(torch.as_tensor(one[name]) for one in of_each) / 2, msg=name
            )
    for inner, one, old in zip(ours.inner, theirs, before, strict=True):
        for name, part in one.parts().items():
            mine = inner.parts()[name].state_dict()
            for key, value in part.state_dict().items():
                if isinstance(value, Tensor) and value.dtype.is_floating_point:
                    assert_close(mine[key], value, atol=1e-9, rtol=1e-9, msg=f"{name}.{key}")
        changed = [name for name, x in one.policy.state_dict().items() if not torch.equal(x, old[name])]
        assert any("actor" in name for name in changed)


def test_a_group_that_no_step_is_of_keeps_its_weights() -> None:
    ours = make("cql", AT_ONCE)
    before = {name: x.clone() for name, x in ours.policy.state_dict().items()}
    batch = sample(AT_ONCE, 0)
    alive = batch.alive.clone()
    alive[..., 2] = False
    metrics = ours.update(replace(batch, alive=alive), 0.0).metrics
    changed = {name.split(".")[1] for name, x in ours.policy.state_dict().items() if not torch.equal(x, before[name])}

    assert changed == {"0"}
    assert all(torch.isfinite(torch.as_tensor(value)) for value in metrics.values())
    assert ours.update(replace(batch, alive=torch.zeros_like(alive)), 0.0).metrics == {}


def test_what_is_asked_of_the_replay() -> None:
    """Single steps; sequences for sums of rewards and for turns, with `batch` steps together; windows with memory."""
    plan = make("cql", AT_ONCE, batch=100).plan
    assert (plan.length, plan.n_step, plan.batch, plan.core_size) == (1, 1, 100, 0)
    plan = make("marwil", AT_ONCE, batch=100, length=8).plan
    assert (plan.length, plan.n_step, plan.batch) == (8, 1, 13)
    plan = make("cql", IN_TURNS, batch=100).plan
    assert (plan.length, plan.n_step, plan.batch) == (6, 1, 17)
    plan = make("cql", AT_ONCE, batch=100, memory="gru", memory_size=4, length=8, burn_in=2).plan
    assert (plan.length, plan.burn_in, plan.batch, plan.core_size) == (8, 2, 100, 12)


@pytest.mark.parametrize("algo", ["bc", "marwil", "cql"])
def test_with_a_memory_updates_equal_those_from_the_sequences_of_each_agent(algo: str) -> None:
    settings = {"memory": "gru", "memory_size": 4, "length": 4, "burn_in": 2}
    ours, theirs = make(algo, AT_ONCE, **settings), alone(algo, AT_ONCE, **settings)
    for seed in range(2):
        batch = sample(AT_ONCE, seed)
        batch = replace(batch, core=torch.zeros(1, batch.reward.shape[1], ours.policy.core_size))
        ours.update(batch, 0.0)
        mask_at = 0
        for view, one in zip(group_views(AT_ONCE), theirs, strict=True):
            first, size = FIRST[view.group.name], view.group.action.mask_size
            columns = [(b, i) for b in range(batch.reward.shape[1]) for i in range(view.count)]

            def beside(x: Tensor, columns: list[tuple[int, int]] = columns, first: int = first) -> Tensor:
                return torch.stack([x[:, b, first + i] for b, i in columns], 1)

            there = beside(batch.alive)
            valid = torch.stack([batch.valid[:, b] for b, _ in columns], 1) & there[:-1]
            begins = torch.stack([batch.first[0, b] | ~batch.alive[0, b, first + i] for b, i in columns])
            own = torch.stack([batch.obs[view.group.name][:, b, i] for b, i in columns], 1)
            told = torch.tensor([i for _, i in columns]).expand(len(own), -1)
            masks = [batch.action_mask[:, b, mask_at + i * size : mask_at + (i + 1) * size] for b, i in columns]
            one.update(
                Trajectory(
                    obs={OWN: own, ID: told} if view.count > 1 else own,
                    action=beside(batch.action), reward=beside(batch.reward),
                    terminated=beside(batch.terminated), truncated=beside(batch.truncated),
                    first=torch.cat([begins[None], ~valid]), version=torch.zeros(len(columns)),
                    stream=torch.arange(len(columns)), row=torch.zeros(len(columns)),
                    action_mask=torch.stack(masks, 1), core=torch.zeros(1, len(columns), 4),
                ),
                0.0,
            )  # fmt: skip
            mask_at += size * view.count
    for inner, one in zip(ours.inner, theirs, strict=True):
        for key, value in one.policy.state_dict().items():
            assert_close(inner.policy.state_dict()[key], value, atol=1e-12, rtol=0, msg=key)


def test_agents_in_turns_and_a_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="act in turns, which needs memory none here"):
        make("cql", IN_TURNS, memory="gru")
