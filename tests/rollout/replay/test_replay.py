"""The replay against an oracle that keeps everything and lists what may be sampled, after every append."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from oracles.replay import DISCRETE, SPECS, Expected, World, name_of

from rltrain.envs.make import read_spec, resolve, vector
from rltrain.envs.spec import EnvSpec, Leaf
from rltrain.rollout.buffers import empty_rows, obs_arrays
from rltrain.rollout.replay import ring
from rltrain.rollout.replay.replay import ROW_BITS, ROW_MASK, Replay
from rltrain.rollout.replay.ring import NoStack
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.tree import leaves, tree_map
from rltrain.rollout.types import Trajectory, Transition

GAMMA = 0.9


def plan_for(capacity: int, batch: int = 1000, **given: Any) -> ReplayPlan:
    """A plan of which only the replay's part matters."""
    return ReplayPlan(unroll=1, capacity=capacity, batch=batch, warmup=0, updates_per_step=1.0, gamma=GAMMA, **given)


def happen(world: World, expected: Expected, replay: Replay, rng: np.random.Generator, cores: bool = False) -> None:
    """One delivery: some streams, some rows; now and then an actor died or an unroll was lost before.

    Args:
        cores: add a recurrent state of each row: the number of its frame, and half of it.
    """
    streams = len(world.streams)
    columns = sorted(rng.choice(streams, rng.integers(1, streams + 1), replace=False).tolist())
    for stream in columns:
        luck = rng.random()
        if luck < 0.1:
            world.kill(stream)
        elif luck < 0.15:
            world.lose(stream, int(rng.integers(1, 5)))
    unroll = world.unroll(columns, int(rng.integers(1, 9)))
    given = [np.copy(leaf) for leaf in leaves(unroll.obs)]
    if cores:
        places = [[name_of(row_of(unroll.obs, t, b)) for b in range(len(columns))] for t in range(unroll.rows)]
        unroll = replace(unroll, core=np.array(places)[..., None] * np.array([1.0, 0.5], np.float32))
    replay.append(unroll)
    expected.append(unroll)
    for leaf, before in zip(leaves(unroll.obs), given, strict=True):
        np.testing.assert_array_equal(leaf, before)
        leaf[:] = 77  # actors reuse their arrays


def row_of(obs: Any, t: int, b: int) -> Any:
    """Row t of column b."""
    return tree_map(lambda leaf: leaf[t, b], obs)


def same(actual: Any, expected: Any) -> None:
    """Trees of arrays, one sample each."""
    for one, other in zip(leaves(actual), leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def check(replay: Replay, expected: Expected, keep: int, n_step: int) -> None:
    """What is sampled is exactly what may be, and each sample is what the oracle makes of it."""
    legal = expected.rows(keep, n_step)
    assert len(replay) == len(legal)
    if not legal:
        with pytest.raises(ValueError, match="nothing can be sampled"):
            replay.sample(0.0)
        return
    named = {name_of(episode.obs[t]): at for at, (episode, t) in legal.items()}
    batch = replay.sample(0.5)
    assert isinstance(batch, Transition)
    seen = {}
    for b in range(replay.plan.batch):
        seen.setdefault(name_of(tree_map(lambda leaf, b=b: leaf[b], batch.obs)), b)
    assert set(seen) == set(named)
    for name, b in seen.items():
        stream, row = named[name]
        if batch.index is not None:
            assert (batch.index[b] >> ROW_BITS, batch.index[b] & ROW_MASK) == (stream, row)
        wanted = Expected.transition(*legal[stream, row], n_step, replay.plan.gamma)
        for key in ("obs", "next_obs"):
            same(tree_map(lambda leaf, b=b: leaf[b], getattr(batch, key)), wanted[key])
        np.testing.assert_array_equal(batch.action[b], wanted["action"])
        np.testing.assert_allclose(batch.reward[b], wanted["reward"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(batch.discount[b], wanted["discount"], rtol=1e-6)
        for key in ("action_mask", "next_action_mask"):
            mask = getattr(batch, key)
            assert (mask is None) == (wanted[key] is None)
            if mask is not None:
                np.testing.assert_array_equal(mask[b], wanted[key])


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "SEGMENT_BYTES", 150)


QUICK = [("box", 1, 0.6), ("discrete", 3, 0.0), ("masked", 5, 0.6), ("stack", 1, 0.0), ("tree", 3, 0.6)]


@pytest.mark.parametrize(
    ("kind", "n_step", "alpha"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.sweep)
        for case in itertools.product(sorted(SPECS), (1, 3, 5), (0.0, 0.6))
    ],
)
@pytest.mark.usefixtures("small_segments")
def test_exactly_the_legal_transitions_are_sampled_after_every_append(kind: str, n_step: int, alpha: float) -> None:
    for seed in range(2):
        streams, keep = (1, 3)[seed], (17, 20)[seed]
        plan = plan_for(streams * keep, n_step=n_step, alpha=alpha)
        world, expected = World(SPECS[kind], streams, seed), Expected(SPECS[kind], streams)
        replay, rng = Replay(SPECS[kind], streams, plan, seed), np.random.default_rng(seed)
        disk: dict[str, dict[str, np.ndarray]] = {}
        for round_ in range(24):
            happen(world, expected, replay, rng)
            check(replay, expected, keep, n_step)
            if round_ % 4 == 3:
                replay = reloaded(replay, disk)


def reloaded(replay: Replay, disk: dict[str, dict[str, np.ndarray]]) -> Replay:
    """Through a checkpoint whose segments were written when they were first named, and never again."""
    small, segments = replay.state()
    for name, read in segments.items():
        if name not in disk:
            disk[name] = read()
    fresh = Replay(replay.spec, len(small["head"]), replay.plan, seed=99)
    fresh.load(small, {name: (lambda n=name: disk[n]) for name in segments})
    return fresh


def one_stream(reward: list[float], end: str) -> Trajectory:
    """One episode with these rewards, and its reset row; obs[t] = t."""
    rows = len(reward) + 1
    flags = {name: np.zeros((rows, 1), bool) for name in ("terminated", "truncated")}
    flags[end][len(reward) - 1] = True
    first = np.zeros((rows + 1, 1), bool)
    first[0] = first[-1] = True
    return Trajectory(
        obs=np.repeat(np.arange(rows + 1, dtype=np.float32)[:, None, None], 3, -1),
        action=np.zeros((rows, 1), np.int64),
        reward=np.array([*reward, 0.0], np.float32)[:, None],
        first=first,
        version=np.zeros(1, np.int64),
        stream=np.zeros(1, np.int64),
        row=np.zeros(1, np.int64),
        **flags,
    )


PLAIN = EnvSpec("plain", Leaf("box", (3,), "float32"), DISCRETE)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_n_step_rewards_of_the_golden_case(end: str) -> None:
    """n = 3, r = (1, 2, 3, 4), then the episode ends: the tail is flushed."""
    replay = Replay(PLAIN, 1, plan_for(20, batch=400, n_step=3), 0)
    replay.append(one_stream([1.0, 2.0, 3.0, 4.0], end))
    batch = replay.sample(0.0)
    assert isinstance(batch, Transition)
    found = {int(obs[0]): b for b, obs in enumerate(batch.obs)}
    assert sorted(found) == [0, 1, 2, 3]
    at = [found[row] for row in range(4)]
    np.testing.assert_allclose(batch.reward[at], [5.23, 7.94, 6.6, 4.0], rtol=1e-6)
    np.testing.assert_array_equal(batch.next_obs[at, 0], [3, 4, 4, 4])
    bootstraps = [0.729, 0.729, 0.81, 0.9] if end == "truncated" else [0.729, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(batch.discount[at], bootstraps, rtol=1e-6)


def test_weights_of_the_golden_case() -> None:
    """p = (1, 2, 3, 4), alpha = 1: w = (1, 1/2, 1/3, 1/4) at beta 1, and their 0.4th powers at beta 0.4."""
    plan = plan_for(20, batch=400, alpha=1.0, priority_eps=0.0)
    replay = Replay(PLAIN, 1, plan, 0)
    replay.append(one_stream([1.0, 2.0, 3.0, 4.0], "terminated"))
    replay.reprioritise(np.arange(4), np.array([1.0, -2.0, 3.0, -4.0]))
    for progress, wanted in ((1.0, [1, 0.5, 0.3333, 0.25]), (0.0, [1, 0.7579, 0.6444, 0.5743])):
        batch = replay.sample(progress)
        assert isinstance(batch, Transition)
        assert batch.weight is not None
        assert batch.weight.dtype == np.float32
        assert batch.index is not None
        np.testing.assert_array_equal(np.bincount(batch.index), [40, 80, 120, 160])  # strata: exactly in proportion
        for row in range(4):
            np.testing.assert_allclose(batch.weight[batch.index == row], wanted[row], atol=1e-4)


def test_beta_goes_to_one_with_the_run_and_n_counts_rows_that_are_there() -> None:
    """w = (N P)^-beta / max, written out with N = len(replay); the capacity is ten times that."""
    replay = Replay(PLAIN, 1, plan_for(100, batch=64, alpha=0.7, beta=0.5, priority_eps=0.01), 0)
    replay.append(one_stream([0.0] * 9, "truncated"))
    error = np.linspace(0.0, 2.0, 9)
    replay.reprioritise(np.arange(9), error)
    share = (error + 0.01) ** 0.7 / ((error + 0.01) ** 0.7).sum()
    for progress, beta in ((0.0, 0.5), (0.5, 0.75), (1.0, 1.0)):
        batch = replay.sample(progress)
        assert isinstance(batch, Transition)
        assert batch.weight is not None
        weight = (len(replay) * share[batch.index]) ** -beta
        np.testing.assert_allclose(batch.weight, weight / weight.max(), rtol=1e-5)


def test_new_rows_have_the_largest_priority_seen() -> None:
    world = World(PLAIN, 1, 0, ends=0.0)
    replay = Replay(PLAIN, 1, plan_for(50, batch=100, alpha=0.5, priority_eps=0.0), 0)
    replay.append(world.unroll([0], 4))
    assert replay._tree is not None
    np.testing.assert_array_equal(replay._tree.leaves[:4], 1.0)
    replay.reprioritise(np.arange(4), np.array([9.0, 1.0, 4.0, 0.25]))
    replay.reprioritise(np.arange(4), np.array([1.0, 1.0, 4.0, 0.25]))  # 9 was seen
    replay.append(world.unroll([0], 2))
    np.testing.assert_array_equal(replay._tree.leaves[:6], [1.0, 1.0, 2.0, 0.5, 3.0, 3.0])


def test_a_priority_that_comes_too_late_is_dropped() -> None:
    """Its row was overwritten between sample and update; the row that lies there now keeps its own."""
    world = World(PLAIN, 2, 0, ends=0.0)
    replay = Replay(PLAIN, 2, plan_for(20, batch=40, alpha=1.0, priority_eps=0.0), 0)
    replay.append(world.unroll([0, 1], 8))
    index = np.array([stream << ROW_BITS | row for stream in (0, 1) for row in range(8)])
    replay.append(world.unroll([0], 6))  # rows 0 to 3 of stream 0 are gone
    assert replay._tree is not None
    before = replay._tree.leaves.copy()
    replay.reprioritise(index, np.full(16, 7.0))
    after = {(s, r): leaf for s, r, leaf in zip(*rows_with_leaves(replay), strict=True)}
    assert after == {
        **{(0, row): 7.0 if row < 8 else 1.0 for row in range(4, 14)},
        **{(1, row): 7.0 for row in range(8)},
    }
    assert (replay._tree.leaves[before == 0] == 0).all()


def rows_with_leaves(replay: Replay) -> tuple[list[int], list[int], list[float]]:
    assert replay._tree is not None
    at = np.flatnonzero(replay._tree.leaves)
    stream, row = replay._rows_at(at)
    return stream.tolist(), row.tolist(), replay._tree.leaves[at].tolist()


def test_priorities_that_are_no_numbers_are_refused() -> None:
    replay = Replay(PLAIN, 1, plan_for(20, alpha=1.0), 0)
    replay.append(one_stream([1.0, 2.0], "terminated"))
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            replay.reprioritise(np.array([0, 1]), np.array([1.0, wrong]))


@pytest.mark.parametrize(("streams", "ends"), [(1, 0.0), (1, 0.3), (3, 0.1), (3, 1.0)])
def test_every_row_is_drawn_as_often_as_any_other(streams: int, ends: float) -> None:
    """Streams with unequal numbers of rows, reset rows among them: expected 400 of each, sigma 20."""
    world = World(PLAIN, streams, 0, ends)
    replay = Replay(PLAIN, streams, plan_for(40 * streams, batch=400), 0)
    for stream in range(streams):
        for _ in range(1 + 3 * stream):
            replay.append(world.unroll([stream], 7))
    counts: dict[float, int] = {}
    for _ in range(len(replay)):
        batch = replay.sample(0.0)
        assert isinstance(batch, Transition)
        for name in batch.obs[:, 0].tolist():
            counts[name] = counts.get(name, 0) + 1
    assert len(counts) == len(replay)
    assert sum(counts.values()) == 400 * len(replay)
    assert all(280 < count < 520 for count in counts.values())


def test_few_sampleable_rows_among_many_are_found() -> None:
    """n_step close to the number of rows: only a few are complete."""
    world = World(PLAIN, 1, 0, ends=0.0)
    replay = Replay(PLAIN, 1, plan_for(100, batch=300, n_step=97), 0)
    for _ in range(14):
        replay.append(world.unroll([0], 7))
    batch = replay.sample(0.0)
    assert isinstance(batch, Transition)
    assert len(replay) == 2
    assert sorted(set(batch.obs[:, 0].tolist())) == [1.0, 2.0]


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_whole_episodes_of_one_step_are_one_row(end: str) -> None:
    replay = Replay(PLAIN, 1, plan_for(20, batch=8, whole_episodes=True), 0)
    replay.append(one_stream([3.0], end))

    sample = replay.sample(0.0)

    assert isinstance(sample, Trajectory)
    assert sample.reward.tolist() == [[3.0] * 8]
    assert sample.obs[:, :, 0].tolist() == [[0.0] * 8, [1.0] * 8]
    assert sample.first.tolist() == [[True] * 8, [False] * 8]
    assert (sample.terminated.all(), sample.truncated.all()) == (end == "terminated", end == "truncated")
    assert (sample.terminated.any(), sample.truncated.any()) == (end == "terminated", end == "truncated")


def test_a_fragment_from_the_middle_of_an_episode_is_not_a_whole_episode() -> None:
    """The first rows of the second episode were lost on their way: only the other two can be sampled."""
    replay = Replay(PLAIN, 1, plan_for(60, batch=64, whole_episodes=True), 0)
    for number, rewards in enumerate(([1.0, 2.0], [3.0, 4.0, 5.0], [6.0])):
        episode = replace(one_stream(list(rewards), "terminated"), row=np.array([10 * number]))
        if number == 1:
            episode = replace(
                episode,
                obs=episode.obs[1:],
                first=episode.first[1:],
                row=episode.row + 1,
                **{name: getattr(episode, name)[1:] for name in ("action", "reward", "terminated", "truncated")},
            )
        replay.append(episode)

    sample = replay.sample(0.0)

    assert isinstance(sample, Trajectory)
    assert set(map(tuple, sample.reward.T.tolist())) == {(1.0, 2.0), (6.0, 0.0)}


@pytest.mark.parametrize("kind", ["box", "tree", "stack"])
@pytest.mark.usefixtures("small_segments")
def test_sequences_are_what_follows_as_far_as_it_goes(kind: str) -> None:
    """Against the episodes written out: nothing of another episode, stream or life, nothing overwritten."""
    length, streams, keep = 4, 2, 16
    replay = Replay(SPECS[kind], streams, plan_for(streams * keep, batch=600, length=length), 0)
    world, expected, rng = World(SPECS[kind], streams, 0), Expected(SPECS[kind], streams), np.random.default_rng(0)
    disk: dict[str, dict[str, np.ndarray]] = {}
    for round_ in range(20):
        happen(world, expected, replay, rng)
        legal = expected.rows(keep, 1)
        assert len(replay) == len(legal)
        if not legal:
            continue
        batch = replay.sample(0.0)
        assert isinstance(batch, Trajectory)
        assert batch.reward.shape == (length, 600)
        at = list(zip(batch.stream.tolist(), batch.row.tolist(), strict=True))
        assert set(at) == set(legal)
        for key in set(at):
            b, (episode, t) = at.index(key), legal[key]
            steps = min(length, len(episode.steps) - t)
            assert batch.valid[:, b].tolist() == [True] * steps + [False] * (length - steps)
            assert bool(batch.first[0, b]) == (t == 0)
            whole = t + steps == len(episode.steps)
            assert batch.terminated[:, b].tolist() == [
                k == steps - 1 and whole and episode.terminated for k in range(length)
            ]
            ends = steps < length or (whole and (episode.truncated or episode.cut))
            cut = ends and (episode.truncated or not episode.terminated)
            assert batch.truncated[:, b].tolist() == [k == steps - 1 and cut for k in range(length)]
            for k in range(length + 1):
                same(tree_map(lambda leaf, k=k, b=b: leaf[k, b], batch.obs), episode.obs[t + min(k, steps)])
            for k in range(length):
                action, reward = episode.steps[t + k] if k < steps else (0.0, 0.0)
                np.testing.assert_array_equal(batch.action[k, b], action)
                assert batch.reward[k, b] == np.float32(reward)
        if round_ % 5 == 4:
            replay = reloaded(replay, disk)


@pytest.mark.parametrize(
    ("kind", "alpha", "burn_in"), [("box", 0.0, 0), ("masked", 0.6, 2), ("stack", 0.6, 0), ("tree", 0.0, 2)]
)
@pytest.mark.usefixtures("small_segments")
def test_windows_are_all_runs_of_stored_rows_with_the_state_before_them(kind: str, alpha: float, burn_in: int) -> None:
    """They go through ends of episodes and losses of actors, but not through rows that were lost."""
    length, streams, keep = 4, 2, 24
    plan = plan_for(streams * keep, batch=300, length=length, burn_in=burn_in, core_size=2, alpha=alpha, n_step=3)
    replay = Replay(SPECS[kind], streams, plan, 0)
    world, expected, rng = World(SPECS[kind], streams, 1), Expected(SPECS[kind], streams), np.random.default_rng(1)
    disk: dict[str, dict[str, np.ndarray]] = {}
    checked = 0
    for round_ in range(20):
        happen(world, expected, replay, rng, cores=True)
        rows = [{e.base + t: (e, t) for e in episodes for t in range(len(e.obs))} for episodes in expected.episodes]
        legal = {
            (stream, row)
            for stream, here in enumerate(rows)
            for row in here
            if row >= max(here) - keep
            and all(row + k in here for k in range(plan.window + 1))
            and all(here[row + k][0].began or here[row + k][1] for k in range(1, plan.window + 1))
            and here[row + burn_in][1] < len(here[row + burn_in][0].steps)
        }
        assert len(replay) == len(legal)
        if not legal:
            continue
        batch = replay.sample(0.0)
        assert isinstance(batch, Trajectory)
        assert (batch.reward.shape, batch.core.shape) == ((plan.window, 300), (1, 300, 2))
        assert (batch.weight is None, batch.index is None) == ((False, False) if alpha else (True, True))
        at = list(zip(batch.stream.tolist(), batch.row.tolist(), strict=True))
        assert set(at) == legal
        for stream, row in legal:
            b = at.index((stream, row))
            if batch.index is not None:
                assert (batch.index[b] >> ROW_BITS, batch.index[b] & ROW_MASK) == (stream, row)
            for k in range(plan.window + 1):
                episode, t = rows[stream][row + k]
                same(row_of(batch.obs, k, b), episode.obs[t])
                if batch.action_mask is not None:
                    np.testing.assert_array_equal(batch.action_mask[k, b], episode.masks[t])
                assert bool(batch.first[k, b]) == (t == 0 and episode.began)
                if k == plan.window:
                    break
                valid = t < len(episode.steps)
                assert bool(batch.valid[k, b]) == valid
                if valid:
                    last = t + 1 == len(episode.steps)
                    np.testing.assert_array_equal(batch.action[k, b], episode.steps[t][0])
                    assert batch.reward[k, b] == np.float32(episode.steps[t][1])
                    assert batch.terminated[k, b] == (last and episode.terminated)
                    assert batch.truncated[k, b] == (last and (episode.truncated or episode.cut))
            episode, t = rows[stream][row]
            if t < len(episode.steps):
                name = name_of(episode.obs[t])
                np.testing.assert_array_equal(batch.core[0, b], np.array([name, name / 2], np.float32))
            checked += 1
        if alpha:
            replay.reprioritise(batch.index, np.ones(300))
        if round_ % 5 == 4:
            replay = reloaded(replay, disk)
    assert checked > 100


def test_windows_are_told_what_they_need() -> None:
    with pytest.raises(ValueError, match=r"keeps 10 of each of 2 streams.*needs 13 at least: with memory burn_in"):
        Replay(PLAIN, 2, plan_for(20, length=8, burn_in=4, core_size=3), 0)


@pytest.mark.parametrize(("kind", "alpha"), [("tree", 0.0), ("zeros", 0.6), ("box", 0.6)])
@pytest.mark.usefixtures("small_segments")
def test_memory_files_and_a_resumed_replay_give_the_same_bits(kind: str, alpha: float, tmp_path: Path) -> None:
    plan = plan_for(60, batch=32, n_step=3, alpha=alpha)
    worlds = [World(SPECS[kind], 3, 5) for _ in range(3)]
    replays = [Replay(SPECS[kind], 3, plan, 7, tmp_path if mapped else None) for mapped in (False, True, False)]
    disk: dict[str, dict[str, np.ndarray]] = {}
    for round_ in range(25):
        columns = [[0, 1, 2], [0, 2], [1]][round_ % 3]
        batches = []
        for world, replay in zip(worlds, replays, strict=True):
            replay.append(world.unroll(columns, 1 + round_ % 5))
            if round_ > 3:
                batches.append(replay.sample(round_ / 25))
                if alpha:
                    replay.reprioritise(batches[-1].index, np.cos(np.arange(32) + round_))
        for batch in batches[1:]:
            for name in ("obs", "action", "reward", "discount", "next_obs", "action_mask", "weight", "index"):
                one, other = getattr(batches[0], name), getattr(batch, name)
                assert (one is None) == (other is None)
                if one is not None:
                    same(one, other)
        replays[2] = reloaded(replays[2], disk)
    assert any(name.startswith("2-") for name in disk)
    assert list(tmp_path.glob("*.rows"))


def test_a_sample_shares_nothing_with_the_replay() -> None:
    replay = Replay(SPECS["masked"], 1, plan_for(10), 0)
    replay.append(World(SPECS["masked"], 1, 0).unroll([0], 9))
    batch = replay.sample(0.0)
    assert isinstance(batch, Transition)
    for array in (batch.obs, batch.next_obs, batch.action, batch.reward, batch.action_mask, batch.next_action_mask):
        assert not any(np.shares_memory(array, flat) for flat in replay._ring.flat.values())


def test_rows_that_come_twice_are_refused() -> None:
    replay, world = Replay(PLAIN, 2, plan_for(20), 0), World(PLAIN, 2, 0)
    unroll = world.unroll([0, 1], 4)
    replay.append(unroll)
    with pytest.raises(ValueError, match="stream 0 was appended twice: it is at row 4"):
        replay.append(unroll)


def test_a_long_unroll_is_kept_in_pieces() -> None:
    """30 rows into room for 10: the newest are there."""
    replay, world, expected = Replay(PLAIN, 1, plan_for(10, n_step=3), 0), World(PLAIN, 1, 3), Expected(PLAIN, 1)
    unroll = world.unroll([0], 30)
    replay.append(unroll)
    expected.append(unroll)
    check(replay, expected, 10, 3)


@pytest.mark.parametrize("kind", ["stack", "zeros"])
@pytest.mark.parametrize("at", [0, 2], ids=["where an episode begins", "in the midst of one"])
def test_stacks_that_are_none_are_refused_and_change_nothing(kind: str, at: int) -> None:
    spec, plan = SPECS[kind], plan_for(12, alpha=0.5)
    for before in (0, 3):  # at the first unroll, or later
        good, replay, expected = World(spec, 1, 0, ends=0.0), Replay(spec, 1, plan, 0), Expected(spec, 1)
        for _ in range(before):
            unroll = good.unroll([0], 5)
            replay.append(unroll)
            expected.append(unroll)
        unroll = good.unroll([0], 5)
        first, older = unroll.first.copy(), unroll.obs[at].copy()
        unroll.first[0, 0] |= at == 0
        unroll.obs[at, 0, 0] += 1
        with pytest.raises(NoStack, match="are not the newest frames of its episodes"):
            replay.append(unroll)
        unroll.first[:], unroll.obs[at] = first, older
        replay.append(unroll)  # as it should have been
        expected.append(unroll)
        check(replay, expected, 12, 1)


class Flicker(gymnasium.Env[np.ndarray, np.int64]):
    """Frames of noise."""

    observation_space = gymnasium.spaces.Box(0, 255, (5, 6), np.uint8)
    action_space = gymnasium.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.frame(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.frame(), float(action), bool(self.np_random.random() < 0.1), False, {}

    def frame(self) -> np.ndarray:
        return self.np_random.integers(0, 256, (5, 6), np.uint8)


@pytest.mark.parametrize("padding", ["reset", "zero"])
def test_frames_that_gymnasium_stacked_come_back_as_they_were(padding: str) -> None:
    """Through a real environment: wrapper, spec, streams with next-step autoreset, replay."""

    def make() -> gymnasium.Env[Any, Any]:
        stacked = gymnasium.wrappers.FrameStackObservation(Flicker(), 4, padding_type=padding)
        return gymnasium.wrappers.TimeLimit(stacked, 9)

    source = resolve(make)
    spec = read_spec(source, 0)
    assert isinstance(spec.obs, Leaf)
    assert spec.obs.stack == 4
    env, rng = vector(source, spec, [0, 1], [5, 6], "none"), np.random.default_rng(0)
    rows = empty_rows(spec, 8, 2, obs_arrays(spec, 9, 2))
    replay, expected = Replay(spec, 2, plan_for(60, n_step=3), 0), Expected(spec, 2)
    env.reset(rows)
    for begin in range(0, 80, 8):
        if begin:
            rows.obs[0], rows.first[0] = rows.obs[-1], rows.first[-1]
        action = rng.integers(0, 4, (8, 2))
        for t in range(8):
            env.step(action[t], rows, t)
        unroll = Trajectory(
            obs=rows.obs,
            action=action,
            reward=rows.reward[:, :2],
            terminated=rows.terminated[:, :2],
            truncated=rows.truncated[:, :2],
            first=rows.first[:, :2],
            version=np.zeros(2, np.int64),
            stream=np.arange(2),
            row=np.full(2, begin),
        )
        replay.append(unroll)
        expected.append(unroll)
        check(replay, expected, 30, 3)
    env.close()


def test_frames_of_a_stack_are_kept_once() -> None:
    spec, whole = SPECS["stack"], replace(SPECS["stack"], obs=Leaf("image", (4, 2, 2), "uint8"))
    plan = plan_for(1000)
    frames, all_of_it = Replay.bytes_needed(spec, 1, plan), Replay.bytes_needed(whole, 1, plan)
    assert all_of_it - frames == 1001 * 3 * 4 - 1001 - 3 * (4 + 1 + 8 + 4 + 1)  # an age each, and 3 rows more
    replay = Replay(spec, 1, plan, 0)
    assert sum(flat.nbytes for flat in replay._ring.flat.values()) == frames


def test_what_a_replay_takes_is_told_beforehand() -> None:
    for alpha in (0.0, 0.6):
        plan = plan_for(30_000, alpha=alpha)
        replay = Replay(SPECS["tree"], 3, plan, 0)
        held = sum(flat.nbytes for flat in replay._ring.flat.values())
        if replay._tree is not None:
            held += sum(array.nbytes for array in (*replay._tree._sums, *replay._tree._before))
        assert Replay.bytes_needed(SPECS["tree"], 3, plan) == pytest.approx(held, rel=0.02)


def test_plans_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="keeps 3 of each of 4 streams, and needs 6 at least"):
        Replay(PLAIN, 4, plan_for(10, n_step=5), 0)
    with pytest.raises(ValueError, match="sequences are sampled uniformly"):
        Replay(PLAIN, 1, plan_for(100, length=5, alpha=0.6), 0)


def test_a_state_that_does_not_fit_is_refused() -> None:
    def kept(plan: ReplayPlan, streams: int = 1) -> Replay:
        replay = Replay(PLAIN, streams, plan, 0)
        replay.append(World(PLAIN, 1, 0).unroll([0], 9))
        return replay

    small, segments = kept(plan_for(20)).state()
    with pytest.raises(ValueError, match="1 streams of 20 rows, and is 1 of 21 now"):
        Replay(PLAIN, 1, plan_for(21), 0).load(small, segments)
    with pytest.raises(ValueError, match="prioritised"):
        Replay(PLAIN, 1, plan_for(20, alpha=0.5), 0).load(small, segments)
    small["tail"] = small["tail"] + 2
    with pytest.raises(ValueError, match="missing"):
        Replay(PLAIN, 1, plan_for(20), 0).load(small, segments)


def test_room_on_the_disk_is_taken_when_the_replay_is_made(tmp_path):
    """A hole in a mapped file that finds the disk full ends the process without a word."""
    Replay(PLAIN, 2, plan_for(40_000), 0, tmp_path)
    for file in tmp_path.iterdir():
        assert file.stat().st_blocks * 512 >= file.stat().st_size


def test_a_disk_without_room_is_told_in_a_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rltrain.rollout.replay.ring.os.posix_fallocate", full)
    with pytest.raises(ValueError, match="No space left"):
        Replay(PLAIN, 2, plan_for(40_000), 0, tmp_path)


def test_a_copy_of_a_run_that_shares_its_files_is_not_overwritten(tmp_path):
    """As `cp -al` makes one."""
    copy = tmp_path / "copy"
    copy.mkdir()
    Replay(PLAIN, 2, plan_for(400), 0, tmp_path)
    files = [file for file in tmp_path.iterdir() if file.is_file()]
    for file in files:
        file.write_bytes(b"precious")
        (copy / file.name).hardlink_to(file)

    Replay(PLAIN, 2, plan_for(400), 0, tmp_path)

    assert files
    assert all((copy / file.name).read_bytes() == b"precious" for file in files)
