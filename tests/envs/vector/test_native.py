"""Native vector environments: the rows of the serial one, bits independent of workers, exact resume."""

from __future__ import annotations

import itertools
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from rltrain.envs.errors import EnvError, EnvFault
from rltrain.envs.make import read_spec, resolve, vector
from rltrain.envs.problems.probes import Counter
from rltrain.envs.vector.native import NativeVectorEnv, blocks, check_autoreset, verify_native
from rltrain.envs.vector.unroll_rows import UnrollBuffer

SOURCE = resolve("CartPole-v1")
SPEC = read_spec(SOURCE, 0)


def rows_for(steps, width):
    flags = [np.zeros((steps, width), bool) for _ in range(2)]
    first = np.zeros((steps + 1, width), bool)
    return UnrollBuffer(
        np.zeros((steps + 1, width, 4), np.float32),
        np.ones((steps, width), np.float32),
        *flags,
        first,
        None,
        flags[0].copy(),
    )


def native(streams, total, method="attributes"):
    return vector(SOURCE, SPEC, streams, [100 + stream for stream in streams], method, "native", total)


def run(env, rows, actions):
    for t, action in enumerate(actions):
        env.step(action, rows, t)
    env.end_unroll(actions, rows)
    return rows


def test_blocks_hold_every_stream_once_and_depend_on_the_total_only():
    for total in (1, 15, 16, 31, 32, 130, 1024, 1027):
        parts = blocks(total)
        assert [stream for part in parts for stream in part] == list(range(total))
        assert len(parts) == max(1, min(8, total // 16))


def test_rows_follow_the_serial_environments_dynamics():
    """From each observation on, a scalar CartPole put there must go where the native row went, to the bit."""
    steps, count = 120, 32
    env, rows = native(range(count), count), rows_for(steps, 48)
    env.reset(rows)
    actions = np.random.default_rng(0).integers(0, 2, (steps, count))
    run(env, rows, actions)
    scalar, over = SOURCE.make(), np.zeros(count, bool)
    scalar.reset(seed=0)
    for t in range(steps):
        for b in range(count):
            if over[b]:
                assert rows.first[t + 1, b]
                assert rows.reward[t, b] == 0
                assert not rows.terminated[t, b]
                assert not rows.truncated[t, b]
                assert np.abs(rows.obs[t + 1, b]).max() <= 0.05
                continue
            assert not rows.first[t + 1, b]
            assert rows.reward[t, b] == 1
            scalar.reset()
            scalar.unwrapped.state = rows.obs[t, b].astype(np.float64)
            obs, _, terminated, _, _ = scalar.step(int(actions[t, b]))
            np.testing.assert_allclose(obs, rows.obs[t + 1, b], atol=1e-6)
            if abs(abs(obs[2]) - 0.2094) > 1e-4:
                assert terminated == rows.terminated[t, b]
        over = rows.terminated[t, :count] | rows.truncated[t, :count]
    assert rows.first[1:].sum() > count
    assert not rows.first[:, count:].any()


def test_time_limits_truncate():
    source = resolve("CartPole-v1", {"max_episode_steps": 4})
    env = vector(source, read_spec(source, 0), range(16), range(16), "none", "native", 16)
    rows = rows_for(11, 16)
    env.reset(rows)
    run(env, rows, np.tile([[0], [1]], (6, 16))[:11])
    assert np.flatnonzero(rows.truncated[:, 0]).tolist() == [3, 8]
    assert np.flatnonzero(rows.first[:, 0]).tolist() == [0, 5, 10]


def test_bits_do_not_depend_on_who_owns_which_blocks():
    actions = np.random.default_rng(0).integers(0, 2, (60, 64))
    together, whole = native(range(64), 64), rows_for(60, 64)
    together.reset(whole)
    run(together, whole, actions)
    for part in (slice(0, 16), slice(16, 48), slice(48, 64)):
        rows, env = rows_for(60, part.stop - part.start), native(range(64)[part], 64)
        env.reset(rows)
        run(env, rows, actions[:, part])
        np.testing.assert_array_equal(rows.obs, whole.obs[:, part])
        np.testing.assert_array_equal(rows.first, whole.first[:, part])


def test_a_native_environment_goes_on_exactly():
    assert verify_native(SOURCE.make_block, SPEC, 0) == "attributes"
    actions = np.random.default_rng(0).integers(0, 2, (100, 32))
    env, rows = native(range(32), 32), rows_for(50, 32)
    env.reset(rows)
    run(env, rows, actions[:50])
    state, last = env.state(), rows.obs[-1].copy()
    after = run(env, rows_for(50, 32), actions[50:])

    resumed, again = native(range(32), 32), rows_for(50, 32)
    resumed.load(state, again)
    assert len(state) == 2
    assert state[1]["streams"] == list(range(16, 32))
    assert not again.first[0].any()
    np.testing.assert_array_equal(again.obs[0], last)
    run(resumed, again, actions[50:])
    np.testing.assert_array_equal(again.obs[1:], after.obs[1:])
    np.testing.assert_array_equal(again.first[1:], after.first[1:])
    np.testing.assert_array_equal(again.reward, after.reward)


def test_without_a_way_back_all_begin_anew_and_say_so():
    env, rows = native(range(32), 32, "none"), rows_for(3, 32)
    env.reset(rows)
    began = rows.obs[0].copy()
    run(env, rows, np.ones((3, 32), np.int64))
    resumed = native(range(32), 32, "none")
    resumed.load(env.state(), rows)
    assert rows.first[0].all()
    assert not np.array_equal(rows.obs[0], began)
    assert np.abs(rows.obs[0]).max() <= 0.05


class Vector(gymnasium.vector.VectorEnv):
    """Counts to 5 in steps of 1 or 2, by the action; reward 1."""

    mode = AutoresetMode.NEXT_STEP

    def __init__(self, num_envs=1, claim=True):
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": self.mode} if claim else {}
        self.single_observation_space = spaces.Box(0, 9, (1,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.hidden = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.over = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        return self._obs(), {}

    def _obs(self):
        return self.at[:, None].astype(np.float32)

    def step(self, action):
        self.at += 1 + np.asarray(action)
        reward = np.ones(self.num_envs)
        if self.mode is AutoresetMode.NEXT_STEP:
            self.at[self.over], reward[self.over] = 0, 0
        terminated = self.at >= 5
        self.over = terminated.copy()
        if self.mode is AutoresetMode.SAME_STEP:
            self.at[terminated] = 0
        return self._obs(), reward, terminated, np.zeros(self.num_envs, bool), {}


class SameStep(Vector):
    mode = AutoresetMode.SAME_STEP


class SameStepWithoutReward(SameStep):
    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, 0 * reward, *rest


class PaysForResets(Vector):
    """A next-step one that gives a reward in the reset row."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + 1, *rest


class Never(Vector):
    def step(self, action):
        return self._obs(), np.ones(self.num_envs), np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool), {}


class Scalar(Counter):
    observation_space, action_space = spaces.Box(0, 9, (1,), np.float32), spaces.Discrete(2)

    def _obs(self):
        return super()._obs()[:1]


@pytest.mark.parametrize("claim", [True, False])
def test_the_autoreset_mode_is_probed(claim):
    spec = read_spec(resolve(Scalar), 0)
    check_autoreset(lambda n: Vector(n, claim), spec, steps=200)
    for kind in (SameStep, SameStepWithoutReward, PaysForResets, Never):
        with pytest.raises(EnvError, match="--vector serial"):
            check_autoreset(lambda n, kind=kind: kind(n, claim), spec, steps=200)


def test_load_does_not_change_what_the_probe_says(monkeypatch):
    hours = itertools.count(0, 3600.0)
    monkeypatch.setattr("time.monotonic", lambda: next(hours))
    check_autoreset(lambda n: Vector(n, True), read_spec(resolve(Scalar), 0))


def test_a_native_environment_with_other_spaces_is_refused():
    with pytest.raises(EnvError, match="differs from the serial one"):
        check_autoreset(Vector, SPEC)


def test_a_reset_row_has_no_reward_whatever_the_environment_says():
    env = NativeVectorEnv(PaysForResets, read_spec(resolve(Scalar), 0), [(0, 1)], [0], "none")
    rows = replace(rows_for(20, 2), obs=np.zeros((21, 2, 1), np.float32))
    env.reset(rows)
    run(env, rows, np.zeros((20, 2), np.int64))
    np.testing.assert_array_equal(rows.reward, np.where(rows.first[1:], 0.0, 2.0))
    assert rows.first[1:].any()


def test_hidden_state_is_not_proven():
    class Hidden(Vector):
        def step(self, action):
            self.hidden.append(object())  # no data: not in a snapshot
            return self._obs() + len(self.hidden), *super().step(action)[1:]

    spec = read_spec(resolve(Scalar), 0)
    assert verify_native(Vector, spec, 0) == "attributes"
    assert verify_native(Hidden, spec, 0) == "none"


def test_a_fault_names_the_first_stream_of_its_block():
    env, rows = native(range(16, 32), 32), rows_for(3, 16)
    env.reset(rows)
    with pytest.raises(EnvFault) as caught:
        run(env, rows, np.full((3, 16), 7))
    assert (caught.value.stream, caught.value.seed) == (16, 116)
