"""What algorithms of recorded data get of several agents: each step of each agent, equally likely, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles.teams import THREE, TWO, team_spec
from oracles.turns import games, turns_of

from rltrain.algorithms import algorithm_class, settings_class
from rltrain.algorithms.multi_agent.independent import ID, OWN, GroupView, Independent, group_views
from rltrain.envs.spec import ActionSpec, AgentGroup, EnvSpec
from rltrain.learner.agent_replays import AgentReplays, AgentRows
from rltrain.learner.batches import tensors
from rltrain.rollout.replay.mixture import Mixture
from rltrain.rollout.replay.replay import Replay
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.trajectories import cut_rows, map_arrays, select_columns
from rltrain.rollout.types import Trajectory, Transition

CPU, GAMMA, STREAMS, ROWS = torch.device("cpu"), 0.9, 3, 60
AT_ONCE, IN_TURNS = team_spec(THREE, TWO, masked=True, told=False), team_spec(THREE, TWO, told=False, turns=True)
ARMS = tuple(
    AgentGroup(group.name, group.agents, group.obs, ActionSpec("box", (n,), low=(-1.0,) * n, high=(1.0,) * n))
    for group, n in ((THREE, 2), (TWO, 1))
)
BOX = replace(AT_ONCE, groups=ARMS, action=ActionSpec("box", (5,), low=(-1.0,) * 5, high=(1.0,) * 5), action_mask=False)
SPECS = {"at once": AT_ONCE, "in turns": IN_TURNS, "box": BOX}
FIRST = {"three": 0, "two": 2}  # the first agent of a group
MASK_BEGINS = (0, 3, 6)


def recording(spec: EnvSpec, seed: int) -> Trajectory:
    """Games one after the other in each stream; agents leave for either reason before the others."""
    told = select_columns(games(IN_TURNS, seed, rows=ROWS, batch=STREAMS + 1), 0, STREAMS)  # the last one is stretched
    told = map_arrays(lambda x: x.numpy(), replace(told, extras={}, num_rows=None))
    rng = np.random.default_rng(seed)
    if spec is not IN_TURNS:
        told = replace(told, acting=None)
    if spec is BOX:
        told = replace(told, action=rng.uniform(-1, 1, (ROWS, STREAMS, 5)).astype(np.float32))
    if spec is AT_ONCE:
        mask = rng.random((ROWS + 1, STREAMS, 8)) < 0.5
        np.put_along_axis(mask[:-1], np.array(MASK_BEGINS) + told.action, True, -1)  # the actions were legal
        told = replace(told, action_mask=mask)
    return told


def pieces(told: Trajectory, seed: int) -> list[Trajectory]:
    """As actors deliver it: some rows of some streams, in any order of the streams."""
    rng, parts = np.random.default_rng(seed), []
    at = [0] * STREAMS
    while min(at) < ROWS:
        stream = int(rng.integers(STREAMS))
        end = min(ROWS, at[stream] + int(rng.integers(1, 9)))
        if end > at[stream]:
            parts.append(cut_rows(select_columns(told, stream, stream + 1), at[stream], end))
            at[stream] = end
    return parts


@dataclass(frozen=True)
class Step:
    """A step of an agent: rows, the rewards that are summed, and the factor of the value of the later observation."""

    now: int
    later: int
    reward: float
    discount: float


def steps_of(told: Trajectory, b: int, n: int, n_step: int) -> list[Step]:
    """Of one agent in one stream, where all act at once."""
    assert told.alive is not None
    found = []
    for t in range(told.rows):
        if not (told.valid[t, b] and told.alive[t, b, n]):
            continue
        total, discount, now = 0.0, 1.0, t
        while True:
            total += discount * float(told.reward[now, b, n])
            discount *= GAMMA
            over = bool(told.terminated[now, b, n] or told.truncated[now, b, n])
            dead, now = bool(told.terminated[now, b, n]), now + 1
            if over or now == told.rows or now - t == n_step:
                break
        found.append(Step(t, now, total, 0.0 if dead else discount))
    return found


def own_turns_of(told: Trajectory, b: int, n: int, n_step: int) -> list[Step]:
    """A step is a turn whose next one, or end, is in the data; its reward is that of all rows until then."""
    known = [turn for turn in turns_of(map_arrays(torch.from_numpy, told), b, n) if turn.after is not None]
    found = []
    for first in known:
        turn, total, discount = first, 0.0, 1.0
        for count in range(1, told.rows):
            total += discount * turn.reward
            discount *= GAMMA
            later = turn.follows
            if count == n_step or turn.ended or later is None or later.after is None:
                break
            turn = later
        assert turn.after is not None
        found.append(Step(first.row, turn.after, total, 0.0 if turn.terminated else discount))
    return found


def rows_for(spec: EnvSpec, seed: int = 0, **plan: Any) -> AgentRows:
    settings: dict[str, Any] = {"capacity": 10_000, "batch": 2000, "warmup": 0, "updates_per_step": 1.0, **plan}
    asked = ReplayPlan(unroll=1, gamma=GAMMA, **settings)
    views = group_views(spec)
    replays = [Replay(view.spec, STREAMS * view.count, asked, seed + n) for n, view in enumerate(views)]
    return AgentRows(views, replays, STREAMS, asked.core_size)


def seen(view: GroupView, told: Trajectory, t: int, b: int, i: int) -> tuple[float, ...]:
    return (*told.obs[view.group.name][t, b, i].tolist(), *([float(i)] if view.count > 1 else []))


def names(view: GroupView, obs: Any) -> list[tuple[float, ...]]:
    """Of each sample: the observation, which no other row has, and the number of the agent."""
    if view.count == 1:
        return [tuple(row) for row in obs.tolist()]
    return [(*row, float(i)) for row, i in zip(obs[OWN].tolist(), obs[ID].tolist(), strict=True)]


def expected(spec: EnvSpec, view: GroupView, told: Trajectory, n_step: int) -> dict[tuple[float, ...], tuple[Any, ...]]:
    look, first = own_turns_of if spec.turns else steps_of, FIRST[view.group.name]
    return {
        seen(view, told, step.now, b, i): (step, b, i)
        for b in range(STREAMS)
        for i in range(view.count)
        for step in look(told, b, first + i, n_step)
    }


def check(spec: EnvSpec, view: GroupView, told: Trajectory, batch: Transition, n_step: int) -> None:
    """All steps are drawn, none of them rarely, and each sample is right."""
    wanted, width = expected(spec, view, told, n_step), 1 if spec is not BOX else view.group.action.shape[0]
    drawn = names(view, batch.obs)
    assert set(drawn) == set(wanted)
    counts, mean = Counter(drawn), len(drawn) / len(wanted)
    assert max(abs(count - mean) for count in counts.values()) < 6 * mean**0.5
    after = names(view, batch.next_obs)
    for k, name in enumerate(drawn):
        step, b, i = wanted[name]
        n = FIRST[view.group.name] + i
        assert after[k] == seen(view, told, step.later, b, i)
        assert batch.reward[k] == pytest.approx(step.reward, abs=1e-4)
        assert batch.discount[k] == pytest.approx(step.discount, abs=1e-6)
        begin = n if spec is not BOX else (0, 2, 4)[n]
        np.testing.assert_array_equal(
            np.ravel(batch.action[k]), told.action[step.now, b].ravel()[begin : begin + width]
        )
        if told.action_mask is not None:
            place = slice(MASK_BEGINS[n], MASK_BEGINS[n] + view.group.action.mask_size)
            np.testing.assert_array_equal(batch.action_mask[k], told.action_mask[step.now, b, place])
            np.testing.assert_array_equal(batch.next_action_mask[k], told.action_mask[step.later, b, place])


@pytest.mark.parametrize("n_step", [1, 3, 1000])
@pytest.mark.parametrize("name", SPECS)
def test_each_step_of_each_agent_is_a_row_however_unrolls_are_cut(name: str, n_step: int) -> None:
    spec = SPECS[name]
    for seed in range(3 if n_step == 1 else 1):
        told, rows = recording(spec, seed), rows_for(spec, n_step=n_step)
        for piece in pieces(told, seed):
            own = map_arrays(np.copy, piece)
            rows.append(own)
            map_arrays(lambda x: x.fill(0), own)  # actors use their arrays again
        if n_step > 1:
            rows.cut_streams()
        for view, replay in zip(group_views(spec), rows.replays, strict=True):
            batch = replay.sample(0.0)
            assert isinstance(batch, Transition)
            check(spec, view, told, batch, n_step)


def test_an_agent_that_waits_long_for_its_next_turn_is_learned_from() -> None:
    """The second player has six turns for one of the first."""
    spec = team_spec(AgentGroup("p", ("a", "b"), THREE.obs, THREE.action), told=False, turns=True)
    order = [0, 1, 1, 1, 1, 1, 1] * 4
    rows, acting = len(order), np.zeros((len(order) + 1, 1, 2), bool)
    acting[np.arange(rows), 0, order] = True
    alive, first, ends = np.ones((rows + 1, 1, 2), bool), np.zeros((rows + 1, 1), bool), np.zeros((rows, 1, 2), bool)
    alive[-1], first[0], ends[-1] = False, True, True
    one = np.zeros(1, np.int64)
    told = Trajectory(
        obs={"p": np.arange(rows + 1, dtype=np.float32).reshape(-1, 1, 1, 1).repeat(2, 2).repeat(3, 3)},
        action=np.zeros((rows, 1, 2), np.int64), reward=np.ones((rows, 1, 2), np.float32), terminated=ends,
        truncated=np.zeros_like(ends), first=first, version=one, stream=one, row=one, alive=alive, acting=acting,
    )  # fmt: skip
    (view,) = group_views(spec)
    replay = Replay(view.spec, 2, ReplayPlan(1, 200, 2000, 0, 1.0, GAMMA), 0)
    taken = AgentRows([view], [replay], 1, 0)
    for begin in range(0, rows, 3):
        taken.append(cut_rows(told, begin, begin + 3))
    batch = replay.sample(0.0)

    drawn = {
        (n, o, r, d) for (o, _, _, n), r, d in zip(names(view, batch.obs), batch.reward, batch.discount, strict=True)
    }
    assert {one[:2] for one in drawn} == {(order[t], t) for t in range(rows)}
    assert {one[2:] for one in drawn if one[0] == 0} == {(7.0, np.float32(GAMMA)), (7.0, 0.0)}
    assert len(replay) == rows


@pytest.mark.parametrize("how", ["lost actor", "rows are missing"])
def test_nothing_is_learned_across_what_is_not_there(how: str) -> None:
    """The turn before a gap is not known to its end; those before and after it are."""
    told, rows, kept = recording(IN_TURNS, 1), rows_for(IN_TURNS), 29
    for part in (cut_rows(told, 0, kept), cut_rows(told, kept + 6, ROWS)):
        if how == "lost actor" and part.row[0] > 0:  # its rows are counted on
            first = part.first.copy()
            first[0] = True
            part = replace(part, first=first, row=np.full(STREAMS, kept))
        rows.append(part)
    for view, replay in zip(group_views(IN_TURNS), rows.replays, strict=True):
        before = expected(IN_TURNS, view, cut_rows(told, 0, kept), 1)
        after = expected(IN_TURNS, view, replace(cut_rows(told, kept + 6, ROWS), row=told.row), 1)
        batch = replay.sample(0.0)
        assert set(names(view, batch.obs)) == set(before) | set(after)
        rewards = {name: step.reward for name, (step, *_) in (before | after).items()}
        for name, reward in zip(names(view, batch.obs), batch.reward, strict=True):
            assert reward == pytest.approx(rewards[name], abs=1e-4)


def test_the_state_continues_in_the_middle_of_a_turn() -> None:
    told = recording(IN_TURNS, 2)
    parts = pieces(told, 2)

    def make() -> AgentReplays:
        online = rows_for(IN_TURNS)
        return AgentReplays(online.replays, [], online)

    whole, first, second = make(), make(), make()
    half = len(parts) // 2
    for part in parts:
        whole.append(part)
    for part in parts[:half]:
        first.append(part)
    small, segments = first.state()
    second.load(small, {name: lambda block=block: block() for name, block in segments.items()})
    for part in parts[half:]:
        second.append(part)

    for one, other in zip(whole.sample(0.0), second.sample(0.0), strict=True):
        assert isinstance(one, Transition)
        assert isinstance(other, Transition)
        for name in ("action", "reward", "discount"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    with pytest.raises(ValueError, match="there were 1 groups, and there are 2 now"):
        second.load({**small, "groups": small["groups"][:1]}, segments)


def test_of_the_best_episodes_of_each_agent() -> None:
    told, rows = recording(AT_ONCE, 0), rows_for(AT_ONCE)
    for piece in pieces(told, 0):
        rows.append(piece)
    before = len(rows)
    kept = rows.keep_best(0.25)

    assert 3 <= kept < 20
    assert len(rows) < before / 2
    for view, replay in zip(group_views(AT_ONCE), rows.replays, strict=True):
        wanted = set()  # the steps of the best quarter of each agent's whole lives
        for i in range(view.count):
            lives = _lives(told, FIRST[view.group.name] + i)
            best = sorted(lives, key=lambda life: -life[0])[: max(1, int(0.25 * len(lives)))]
            wanted |= {seen(view, told, t, b, i) for _, b, steps in best for t in steps}
        assert set(names(view, replay.sample(0.0).obs)) == wanted


def _lives(told: Trajectory, n: int) -> list[tuple[float, int, list[int]]]:
    """Return, stream and steps of each life of an agent that is stored from its start to its end."""
    assert told.alive is not None
    found = []
    for b in range(STREAMS):
        steps: list[int] = []
        whole = bool(told.first[0, b])
        for t in range(told.rows):
            if not (told.valid[t, b] and told.alive[t, b, n]):
                continue
            steps.append(t)
            if told.terminated[t, b, n] or told.truncated[t, b, n]:
                if whole:
                    found.append((float(told.reward[steps, b, n].astype(np.float64).sum()), b, steps))
                steps, whole = [], True
    return found


def test_without_a_whole_episode_of_each_agent_there_are_no_best_ones() -> None:
    told, rows = recording(AT_ONCE, 0), rows_for(AT_ONCE)
    ends = told.terminated.copy(), told.truncated.copy()
    for end in ends:
        end[..., 1] = False
    rows.append(replace(told, terminated=ends[0], truncated=ends[1]))

    assert rows.keep_best(0.5) == 0


@pytest.mark.parametrize("burn_in", [0, 2])
def test_with_a_memory_there_are_sequences_of_each_agent(burn_in: int) -> None:
    told, rows = recording(AT_ONCE, 0), rows_for(AT_ONCE, core_size=2, length=4, burn_in=burn_in)
    core = np.arange(ROWS * STREAMS * 6, dtype=np.float32).reshape(ROWS, STREAMS, 6)
    for piece in pieces(replace(told, core=core), 0):
        rows.append(piece)
    for number, (view, replay) in enumerate(zip(group_views(AT_ONCE), rows.replays, strict=True)):
        batch = replay.sample(0.0)
        assert isinstance(batch, Trajectory)
        rows_of: dict[tuple[float, ...], tuple[int, int, int]] = {
            seen(view, told, t, b, i): (t, b, i)
            for b in range(STREAMS)
            for i in range(view.count)
            for t in range(ROWS + 1)
        }
        learned = set()
        for k in range(0, 2000, 5):
            at = [rows_of[name] for name in names(view, _column(batch.obs, k))]
            (t0, b, i), n = at[0], FIRST[view.group.name] + at[0][2]
            assert [row[1:] for row in at] == [(b, i)] * len(at)
            for place, (t, *_) in enumerate(at[:-1]):
                there = bool(told.valid[t, b] and told.alive[t, b, n])
                assert bool(batch.valid[place, k]) == there
                if there:
                    assert batch.reward[place, k] == told.reward[t, b, n]
                    assert bool(batch.terminated[place, k]) == bool(told.terminated[t, b, n])
                    assert at[place + 1][0] == t + 1
                    learned.add((t, b, i))
            if told.valid[t0, b] and told.alive[t0, b, n] and t0 < ROWS:
                begin = (0, 4)[number] + 2 * i
                np.testing.assert_array_equal(batch.core[0, k], core[t0, b, begin : begin + 2])
        assert len(learned) > 40


def _column(obs: Any, k: int) -> Any:
    return {name: x[:, k] for name, x in obs.items()} if isinstance(obs, dict) else obs[:, k]


@pytest.mark.parametrize(("algo", "spec"), [("bc", BOX), ("cql", AT_ONCE), ("implicit_q", IN_TURNS), ("marwil", BOX)])
def test_each_group_learns_what_one_agent_would(algo: str, spec: EnvSpec) -> None:
    config = settings_class(algo)(widths=(6,), lr=1e-2, normalize_obs=True)
    ours = Independent(algorithm_class(algo), spec, config, CPU, 3, STREAMS)
    alone = [
        algorithm_class(algo)(view.spec, config, CPU, 3 + number, STREAMS * view.count)
        for number, view in enumerate(group_views(spec))
    ]
    told = recording(spec, 0)
    joint = tensors(told, CPU)
    ours.observe(joint)
    rows = rows_for(spec, batch=32)
    rows.append(told)
    replays = AgentReplays([Mixture([replay], (), None, 32, 0) for replay in rows.replays], [rows], None)
    before = {name: x.clone() for name, x in ours.policy.state_dict().items()}
    for view, one in zip(group_views(spec), alone, strict=True):
        one.observe(view.steps(joint, slice(0, 0)))
    for update in range(3):
        batch: Sequence[Any] = [tensors(of_group, CPU) for of_group in replays.sample(0.0)]
        metrics = ours.update(batch, 0.1 * update).metrics
        each = [one.update(own, 0.1 * update).metrics for one, own in zip(alone, batch, strict=True)]
        assert metrics.keys() == each[0].keys()
        assert all(metrics[name] == pytest.approx(sum(float(one[name]) for one in each) / 2) for name in metrics)
    for inner, one in zip(ours.inner, alone, strict=True):
        for name, value in one.policy.state_dict().items():
            assert torch.equal(inner.policy.state_dict()[name], value)
    assert sum(not torch.equal(x, before[name]) for name, x in ours.policy.state_dict().items()) >= 8


def test_frozen_groups_do_not_learn() -> None:
    ours = Independent(algorithm_class("bc"), AT_ONCE, settings_class("bc")(widths=(6,)), CPU, 3, STREAMS)
    ours.freeze(["two"])
    rows = rows_for(AT_ONCE, batch=32)
    rows.append(recording(AT_ONCE, 0))
    before = {name: x.clone() for name, x in ours.policy.state_dict().items()}
    ours.update([tensors(replay.sample(0.0), CPU) for replay in rows.replays], 0.0)

    changed = {name.split(".")[1] for name, x in ours.policy.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {"0"}


def test_agents_in_turns_and_a_memory_are_refused() -> None:
    config = settings_class("cql")(memory="gru")
    with pytest.raises(ValueError, match="act in turns, which needs memory none here"):
        Independent(algorithm_class("cql"), IN_TURNS, config, CPU, 3, STREAMS)


@pytest.mark.parametrize("name", ["at once", "in turns"])
def test_statistics_are_of_each_step_however_unrolls_are_cut(name: str) -> None:
    spec = SPECS[name]
    config = settings_class("bc")(widths=(6,), normalize_obs=True)
    ours = Independent(algorithm_class("bc"), spec, config, CPU, 3, STREAMS)
    told = recording(spec, 0)
    for piece in pieces(told, 0):
        ours.observe(tensors(map_arrays(np.copy, piece), CPU))
    assert told.alive is not None
    acts = told.alive[:-1] if told.acting is None else told.acting[:-1]
    for number, view in enumerate(group_views(spec)):
        first, statistics = FIRST[view.group.name], ours.policy.policies[number].normalizer
        rows = [
            told.obs[view.group.name][t, b, i].astype(np.float64)
            for t in range(ROWS)
            for b in range(STREAMS)
            for i in range(view.count)
            if told.valid[t, b] and acts[t, b, first + i]
        ]
        leaf = statistics.boxes[0]
        assert float(statistics.get_buffer(f"count{leaf}")) == len(rows)
        np.testing.assert_allclose(statistics.get_buffer(f"mean{leaf}"), np.mean(rows, 0), atol=1e-9)


def test_frozen_groups_need_no_rows() -> None:
    rows = rows_for(AT_ONCE, batch=32)
    told = recording(AT_ONCE, 0)
    alive = told.alive.copy()
    alive[..., 2] = False
    rows.append(replace(told, alive=alive))
    ours = Independent(algorithm_class("bc"), AT_ONCE, settings_class("bc")(widths=(6,)), CPU, 3, STREAMS)
    ours.freeze(["two"])
    first, second = AgentReplays(rows.replays, [rows], None, [1]).sample(0.0)

    assert second is None
    ours.update([tensors(first, CPU), None], 0.0)
