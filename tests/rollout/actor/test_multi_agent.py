"""Unrolls of several agents, from actor to replay: returns known in advance, and samples against a list of all rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracles.acting import Bench
from oracles.games import Masked

from rltrain.envs.make import read_spec, resolve
from rltrain.envs.problems.games import Generations
from rltrain.rollout.actor.episodes import EpisodeTracker, TeamTracker
from rltrain.rollout.actor.play import play
from rltrain.rollout.replay.replay import Replay
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.tree import leaves, tree_map
from rltrain.rollout.types import Episode, Trajectory

PLAN = ReplayPlan(unroll=1, capacity=10_000, batch=4_000, warmup=0, updates_per_step=1.0, gamma=0.9)


def copied(unroll: Trajectory) -> Trajectory:
    """Actors reuse their arrays."""
    names = ("action", "reward", "terminated", "truncated", "first")
    fields = {name: np.copy(getattr(unroll, name)) for name in names}
    beside = {name: np.copy(x) for name, x in unroll.optional_fields().items()}
    return replace(unroll, obs=tree_map(np.copy, unroll.obs), **fields, **beside)


def unrolls(env: Any, count: int, rows: int, streams: int = 2, **settings: Any) -> list[Trajectory]:
    """Consecutive unrolls of an actor that acts at random."""
    bench = Bench("vdn", env, streams=streams, unroll=rows, **settings)
    found = []
    for _ in range(count):
        bench.rollout.start()
        (unroll,) = bench.rollout.gather()
        found.append(copied(unroll))
    return found


def test_shapes_of_an_unroll_with_an_axis_of_agents():
    (unroll,) = unrolls(Masked, 1, 5)

    assert unroll.obs["scout"].shape == (6, 2, 2, 2)
    assert unroll.obs["guard"].shape == (6, 2, 1, 3)
    assert unroll.action.shape == unroll.reward.shape == unroll.terminated.shape == unroll.truncated.shape == (5, 2, 3)
    assert (unroll.alive.shape, unroll.action_mask.shape) == ((6, 2, 3), (6, 2, 8))
    assert unroll.acting is None
    assert unroll.state is None
    assert unroll.valid.shape == unroll.episode_end.shape == (5, 2)
    (turns,) = unrolls("tic-tac-toe", 1, 3)
    assert turns.acting.shape == (4, 2, 2)
    (told,) = unrolls("two-step", 1, 3)
    assert told.state.shape == (4, 2, 3)


def test_returns_of_agents_that_die_and_are_born_are_exact():
    """What `Generations` pays beside the actions is known in advance; unrolls of 4 rows cut its episodes of 6."""
    found = unrolls("generations", 11, 4)
    action = np.concatenate([unroll.action for unroll in found])  # [44, B, N]
    alive = np.concatenate([unroll.alive[:-1] for unroll in found])
    told = [episode for unroll in found for episode in unroll.episodes]
    fixed = np.array(Generations.BEST) - [end - begin for begin, end in Generations.LIVES]

    expected = []
    for stream in range(2):
        for begin in range(0, 44 - 5, 7):  # six steps, one reset
            rows = slice(begin, begin + 6)
            each = fixed + (action[rows, stream] * alive[rows, stream]).sum(0)
            expected.append(Episode(each.sum(), 6, tuple(each)))
    assert sorted(told) == sorted(expected)
    assert sum(unroll.steps for unroll in found) == 2 * (44 - 6)  # reset rows are none


def test_the_tracker_of_a_team_is_one_of_each_agent():
    rng = np.random.default_rng(0)
    team, each = TeamTracker(2, 3), [EpisodeTracker(2) for _ in range(3)]
    for _ in range(5):
        reward = rng.integers(-9, 9, (4, 2, 3)).astype(np.float32)
        ended, valid = rng.random((4, 2)) < 0.3, np.ones((4, 2), bool)
        found = team.add(reward, ended, valid)
        alone = [tracker.add(reward[..., n], ended, valid) for n, tracker in enumerate(each)]
        assert [episode.agents for episode in found] == list(zip(*([e.ret for e in one] for one in alone), strict=True))
        assert [episode.length for episode in found] == [e.length for e in alone[0]]
        assert [episode.ret for episode in found] == [sum(episode.agents) for episode in found]


def test_whole_episodes_are_played_with_a_return_for_each_agent():
    spec = read_spec(resolve("generations"), 0)
    policy = Bench("vdn", "generations", streams=2).policy
    (episode, other) = play(resolve("generations").make, spec, policy, [5, 6])

    assert episode == other
    assert episode.ret == sum(episode.agents)
    assert episode.length == 6
    low = np.array(Generations.BEST) - [end - begin for begin, end in Generations.LIVES]
    assert (low <= episode.agents).all()
    assert (np.array(Generations.BEST) >= episode.agents).all()


class Known:
    """Everything that was appended, stream by stream."""

    def __init__(self, found: list[Trajectory]) -> None:
        self.found = found

    def rows(self, stream: int) -> dict[str, np.ndarray]:
        """By row: obs leaves, alive, ... of each; action, reward and ends of all but the newest."""
        last = self.found[-1]
        told: dict[str, np.ndarray] = {}
        for name in ("action", "reward", "terminated", "truncated"):
            told[name] = np.concatenate([getattr(unroll, name)[:, stream] for unroll in self.found])
        for name in ("first", *last.optional_fields()):
            parts = [getattr(unroll, name)[:-1, stream] for unroll in self.found]
            told[name] = np.concatenate([*parts, getattr(last, name)[-1:, stream]])
        for n in range(len(leaves(last.obs))):
            parts = [leaves(unroll.obs)[n][:-1, stream] for unroll in self.found]
            told[f"obs{n}"] = np.concatenate([*parts, leaves(last.obs)[n][-1:, stream]])
        return told

    def end(self, stream: int, row: int) -> int | None:
        """The row that ends the episode of `row`; None if it goes on."""
        told = self.rows(stream)
        for t in range(row, len(told["action"])):
            if not told["alive"][t + 1].any() and not told["first"][t + 1]:
                return t
        return None


def check(sample: Trajectory, column: int, told: dict[str, np.ndarray], row: int, steps: int, ended: bool) -> None:
    """A column of a sample is rows `row` to `row + steps`, and padding."""
    assert sample.valid[:, column].tolist() == [t < steps for t in range(len(sample.reward))]
    for name in ("action", "reward", "terminated"):
        assert np.array_equal(getattr(sample, name)[:steps, column], told[name][row : row + steps])
    for name in ("action", "reward", "terminated", "truncated"):
        assert not getattr(sample, name)[steps:, column].any()
    truncated = told["truncated"][row : row + steps].copy()
    if not ended and steps < len(sample.reward):
        truncated[-1] |= told["alive"][row + steps]
    assert np.array_equal(sample.truncated[:steps, column], truncated)
    for name in sample.optional_fields():
        assert np.array_equal(getattr(sample, name)[: steps + 1, column], told[name][row : row + steps + 1])
    for n, leaf in enumerate(leaves(sample.obs)):
        assert np.array_equal(leaf[: steps + 1, column], told[f"obs{n}"][row : row + steps + 1])


@pytest.mark.parametrize("capacity", [pytest.param(1000, marks=pytest.mark.sweep), 60])
@pytest.mark.parametrize("env", ["generations", "two-step", "tic-tac-toe", Masked])
def test_whole_episodes_are_all_that_are_there_from_end_to_end(env, capacity):
    found = unrolls(env, 14, 5)
    spec = read_spec(resolve(env), 0)
    replay = Replay(spec, 2, replace(PLAN, whole_episodes=True, capacity=capacity), 0)
    for unroll in found:
        replay.append(unroll)
    known = Known(found)
    low = max(0, 70 - capacity // 2)
    expected = {}
    for stream in range(2):
        for row in np.flatnonzero(known.rows(stream)["first"]).tolist():
            end = known.end(stream, row)
            if row >= low and end is not None:
                expected[stream, row] = end - row + 1

    sample = replay.sample(0.0)

    assert len(replay) == len(expected) > 2
    assert {(int(s), int(r)) for s, r in zip(sample.stream, sample.row, strict=True)} == set(expected)
    assert len(sample.reward) == max(expected.values())
    assert sample.first[0].all()
    for column in range(0, 4_000, 97):
        stream, row = int(sample.stream[column]), int(sample.row[column])
        check(sample, column, known.rows(stream), row, expected[stream, row], ended=True)
    counts = np.unique(sample.stream * 1000 + sample.row, return_counts=True)[1]
    assert counts.min() > 0.6 * counts.max()  # one is as likely as any other


@pytest.mark.parametrize("capacity", [10_000, 30])  # in the small one the newest row lies where an old one ended
@pytest.mark.parametrize(
    "length", [pytest.param(1, marks=pytest.mark.sweep), 3, pytest.param(9, marks=pytest.mark.sweep)]
)
@pytest.mark.parametrize("env", ["generations", Masked])
def test_sequences_go_on_until_no_agent_is_left(env, length, capacity):
    found = unrolls(env, 10, 5)
    replay = Replay(read_spec(resolve(env), 0), 2, replace(PLAN, length=length, batch=60, capacity=capacity), 0)
    for count, unroll in enumerate(found, 1):
        replay.append(unroll)
        known = Known(found[:count])
        rows = [known.rows(stream) for stream in range(2)]

        sample = replay.sample(0.0)

        for column in range(60):
            stream, row = int(sample.stream[column]), int(sample.row[column])
            told, end = rows[stream], known.end(stream, row)
            assert not told["first"][row + 1]
            last = 5 * count - 1 if end is None else end
            check(sample, column, told, row, min(length, last - row + 1), ended=end is not None and end < row + length)


def test_a_death_of_the_actor_cuts_an_episode_off_for_all_who_took_part():
    found = unrolls("generations", 2, 3)
    replay = Replay(read_spec(resolve("generations"), 0), 2, replace(PLAN, whole_episodes=True), 0)
    replay.append(found[0])
    again = replace(found[0], row=found[0].row + 3)  # begins anew, in the midst of the old episode
    replay.append(again)
    replay.append(replace(found[1], row=found[1].row + 3))

    sample = replay.sample(0.0)

    assert set(sample.row.tolist()) == {0, 4}
    cut = int(np.flatnonzero(sample.row == 0)[0])
    assert sample.valid[:, cut].tolist() == [True] * 3 + [False] * 3
    assert sample.truncated[2, cut].tolist() == found[0].alive[3, 0].tolist()
    assert not sample.terminated[2, cut].any()


def test_what_follows_a_lost_unroll_is_no_episode_from_its_first_step():
    """Episodes begin at rows 0, 7 and 14. Rows 4 to 7 are lost, so the second is there without its first step."""
    found = unrolls("generations", 6, 4)
    replay = Replay(read_spec(resolve("generations"), 0), 2, replace(PLAN, whole_episodes=True), 0)
    for unroll in (found[0], *found[2:]):
        replay.append(unroll)

    sample = replay.sample(0.0)

    assert len(replay) == 4  # of two streams
    assert set(sample.row.tolist()) == {0, 11}  # 14, but for the three rows that were never seen


def test_a_replay_goes_on_from_its_state():
    found = unrolls("generations", 6, 5)
    spec = read_spec(resolve("generations"), 0)
    plan = replace(PLAN, whole_episodes=True, batch=20)
    one, other = Replay(spec, 2, plan, 0), Replay(spec, 2, plan, 1)
    for unroll in found[:5]:
        one.append(unroll)
    other.load(*one.state())
    for replay in (one, other):
        replay.append(found[5])

    a, b = one.sample(0.0), other.sample(0.0)
    assert np.array_equal(a.row, b.row)
    assert np.array_equal(a.reward, b.reward)
    assert np.array_equal(a.obs["agent"], b.obs["agent"])
