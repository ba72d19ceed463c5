"""Native vector environments: the rows of the serial one, bits independent of workers, exact resume."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from rltrain.envs.errors import INVALID, EnvError, EnvFault
from rltrain.envs.make import read_spec, resolve, vector
from rltrain.envs.problems.probes import Counter
from rltrain.envs.vector.native import NativeVectorEnv, blocks, check_autoreset, verify_native
from rltrain.envs.vector.unroll_rows import UnrollBuffer
from rltrain.rollout.buffers import empty_rows

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


NAMES = ("obs", "reward", "terminated", "truncated", "info")


class Block(gymnasium.vector.VectorEnv):
    """Returns `right`, and the values of `wrong` at `when`: "reset", or a step from 0 on. Episodes have 5 steps."""

    def __init__(self, num_envs, space, right, wrong=(), when=None):
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space, self.single_action_space = space, spaces.Discrete(2)
        self.right, self.wrong, self.when, self.clock = right, dict(wrong), when, 0

    def _values(self, now, *rest):
        values = dict(zip(NAMES, (batch(self.right, self.num_envs), *rest), strict=True))
        values |= self.wrong if now == self.when else {}
        return values["result"] if "result" in values else tuple(values.values())

    def reset(self, *, seed=None, options=None):
        result = self._values("reset", None, None, None, {})
        return (result[0], result[4]) if type(result) is tuple and len(result) == 5 else result

    def step(self, action):
        self.clock += 1
        over = np.full(self.num_envs, self.clock % 6 == 5)
        reward = np.full(self.num_envs, float(self.clock % 6 > 0))
        return self._values(self.clock - 1, reward, over, np.zeros(self.num_envs, bool), {})


def batch(obs, width):
    """Equal observations of a block."""
    if isinstance(obs, dict):
        return {key: batch(child, width) for key, child in obs.items()}
    return tuple(batch(child, width) for child in obs) if isinstance(obs, tuple) else np.stack([obs] * width)


class One(gymnasium.Env):
    """The serial environment of `Block`."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, right):
        self.observation_space, self.right = space, right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.right, {}

    def step(self, action):
        return self.right, 1.0, False, False, {}


BOX, HALF = spaces.Box(0, 1, (5,), np.float32), np.full(5, 0.5, np.float32)
PIXELS, BLACK = spaces.Box(0, 255, (4, 6, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)
KEYS, KEYS_OBS = (
    spaces.Dict({"a": BOX, "n": spaces.Tuple((spaces.Discrete(3, start=5),))}),
    {"a": HALF, "n": (np.int64(6),)},
)
INDEX, MANY = spaces.Discrete(4), spaces.MultiDiscrete([2, 3])
BITS, WHOLE = spaces.MultiBinary(2), spaces.Box(-2, 9, (2,), np.int32)
SHAPE, WIDE = "for each of 3 streams its space promises numbers of shape (5,)", np.full((3, 5), 0.5)
LATE_NAN = np.array([0, np.nan, 0])
WRONG = [  # space, observation, wrong values, words, the stream that is named
    (BOX, HALF, {"obs": np.zeros((3, 1), np.float32)}, f"shape (3, 1) and dtype float32; {SHAPE}", 2),
    (BOX, HALF, {"obs": np.zeros((1, 5), np.float32)}, f"shape (1, 5) and dtype float32; {SHAPE}", 2),
    (BOX, HALF, {"obs": np.zeros(5, np.float32)}, f"shape (5,) and dtype float32; {SHAPE}", 2),
    (BOX, HALF, {"obs": np.float32(1)}, f"are 1.0 (float32); {SHAPE}", 2),
    (BOX, HALF, {"obs": [[0.0], [0.0, 1.0], []]}, f"are a list of 3; {SHAPE}", 2),
    (BOX, HALF, {"obs": np.zeros((3, 5), complex)}, f"dtype complex128; {SHAPE}", 2),
    (BOX, HALF, {"obs": np.full((3, 5), "x")}, f"dtype <U1; {SHAPE}", 2),
    (BOX, HALF, {"obs": None}, f"are None; {SHAPE}", 2),
    (BOX, HALF, {"obs": np.where(np.arange(3)[:, None] == 1, np.nan, WIDE)}, "the observation is not finite", 3),
    (BOX, HALF, {"obs": np.where(np.arange(3)[:, None] == 2, np.inf, WIDE)}, "the observation is not finite", 4),
    (BOX, HALF, {"obs": WIDE * 1e300}, "or too large for float32", 2),
    (PIXELS, BLACK, {"obs": np.full((3, 4, 6, 3), 0.7)}, "for each of 3 streams its space promises whole", 2),
    (PIXELS, BLACK, {"obs": np.full((3, 4, 6, 3), -5)}, "is -5 at [0, 0, 0], and its space promises 0 to 255", 2),
    (PIXELS, BLACK, {"obs": np.full((3, 4, 6, 3), 300)}, "is 300 at [0, 0, 0], and its space promises 0 to 255", 2),
    (INDEX, np.int64(1), {"obs": np.array([1, 2, 7])}, "the observation is 7, and its space promises 0 to 3", 4),
    (INDEX, np.int64(1), {"obs": np.array([1, -1, 0])}, "the observation is -1", 3),
    (INDEX, np.int64(1), {"obs": np.array([1.0, 2.7, 0.0])}, "dtype float64", 2),
    (INDEX, np.int64(1), {"obs": np.array([[1], [1], [1]])}, "shape (3, 1)", 2),
    (MANY, np.array([1, 2]), {"obs": np.array([[1, 2], [1, 2], [1, 5]])}, "is 5 at [1], and its space promises 0", 4),
    (BITS, np.zeros(2, np.int8), {"obs": np.array([[0, 1], [2, 0], [0, 0]])}, "is 2 at [0], and its space", 3),
    (WHOLE, np.zeros(2, np.int32), {"obs": np.array([[0, 0], [0, 10], [0, 0]])}, "is 10 at [1]", 3),
    (KEYS, KEYS_OBS, {"obs": {"a": WIDE}}, "a dict with the keys ['a']; their space promises the keys ['a', 'n']", 2),
    (KEYS, KEYS_OBS, {"obs": {"a": WIDE, "n": (np.array([5, 6, 7]),), "x": WIDE}}, "with the keys ['a', 'n', 'x']", 2),
    (KEYS, KEYS_OBS, {"obs": {"a": WIDE, "n": ()}}, "['n'] are a tuple of 0; their space promises a tuple of 1", 2),
    (KEYS, KEYS_OBS, {"obs": {"a": WIDE, "n": (np.array([5, 6, 8]),)}}, "['n'][0] is 8, and its space promises", 4),
    (KEYS, KEYS_OBS, {"obs": WIDE}, "the observations are an array of shape (3, 5)", 2),
    (BOX, HALF, {"reward": np.array([0, np.nan, 0])}, "the reward is not finite", 3),
    (BOX, HALF, {"reward": np.array([0, 1, 1e39])}, "the reward is not finite (nan or inf, or too large", 4),
    (BOX, HALF, {"reward": np.zeros((3, 1))}, "the rewards are an array of shape (3, 1) and dtype", 2),
    (BOX, HALF, {"reward": 1.0}, "the rewards are 1.0; they must be numbers of shape (3,)", 2),
    (BOX, HALF, {"reward": None}, "the rewards are None", 2),
    (BOX, HALF, {"reward": ["1", "2", "3"]}, "the rewards are a list of 3", 2),
    (BOX, HALF, {"reward": np.zeros(3, complex)}, "dtype complex128", 2),
    (BOX, HALF, {"terminated": np.zeros(1, bool)}, "the terminations are an array of shape (1,)", 2),
    (BOX, HALF, {"terminated": False}, "the terminations are False", 2),
    (BOX, HALF, {"truncated": LATE_NAN}, "shape (3,) and dtype float64; they must be booleans", 2),
    (BOX, HALF, {"truncated": np.array([0, 2, 0])}, "the truncations are an array of shape (3,) and dtype int64", 2),
    (BOX, HALF, {"truncated": [None] * 3}, "the truncations are a list of 3", 2),
    (BOX, HALF, {"info": None}, "step returned None as info; it must be a dict", 2),
    (BOX, HALF, {"info": {"action_mask": np.ones((3, 2))}}, "info has 'action_mask', which a native vector", 2),
    (BOX, HALF, {"result": (WIDE, np.zeros(3), np.zeros(3, bool), {})}, "step returned 4 values as the old gym did", 2),
    (BOX, HALF, {"result": None}, "step returned None; it must return a tuple of 5", 2),
]  # fmt: skip


def played(makes, space, right, steps=8):
    """Step blocks of the streams 0 to 1 and 2 to 4, and check the rows."""
    spec, waiting = read_spec(resolve(lambda: One(space, right)), 0), iter(makes)
    env = NativeVectorEnv(lambda width: next(waiting)(width), spec, [(0, 1), (2, 3, 4)], [11, 12], "none")
    rows = empty_rows(spec, steps, 5)
    env.reset(rows)
    for t in range(steps):
        env.step(np.zeros(5, np.int64), rows, t)
    return rows, env.check(rows, steps)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(("space", "right", "wrong", "words", "stream"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_value_of_a_block_is_a_fault_of_one_line(space, right, wrong, words, stream):
    with pytest.raises(EnvFault) as caught:
        played([lambda n: Block(n, space, right), lambda n: Block(n, space, right, wrong, 3)], space, right)
    assert (caught.value.stream, caught.value.seed, caught.value.row) == (stream, 12, 3)
    assert caught.value.detail.startswith(INVALID)
    assert "\n" not in caught.value.detail
    assert words in caught.value.detail


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"obs": np.zeros((3, 1))}, SHAPE),
        ({"info": None}, "reset returned None as info"),
        ({"info": {"action_mask": np.ones((3, 2))}}, "info has 'action_mask'"),
        ({"result": np.zeros((3, 5))}, "reset returned an array of shape (3, 5)"),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_wrong_reset_of_a_block_is_a_fault_of_one_line(wrong, words, again):
    spec = read_spec(resolve(lambda: One(BOX, HALF)), 0)
    block = Block(3, BOX, HALF, wrong, None if again else "reset")
    env, rows = NativeVectorEnv(lambda width: block, spec, [(2, 3, 4)], [12], "none"), empty_rows(spec, 1, 3)
    if again:
        env.reset(rows)
        block.when = "reset"
    with pytest.raises(EnvFault) as caught:
        env.load(env.state(), rows) if again else env.reset(rows)
    assert (caught.value.stream, caught.value.row) == (2, 0)
    assert re.match(rf"{INVALID}: [^\n]*{re.escape(words)}[^\n]*$", caught.value.detail)


def test_other_forms_of_the_right_values_of_a_block_are_accepted():
    wrong = {"obs": WIDE.tolist(), "reward": [1, 2, 3], "truncated": np.array([0, 1, 0], np.uint8), "info": {"x": 1}}
    rows, outside = played([lambda n: Block(n, BOX, HALF), lambda n: Block(n, BOX, HALF, wrong, 3)], BOX, HALF)
    assert rows.reward[3, :5].tolist() == [1, 1, 1, 2, 3]
    assert rows.truncated[3, :5].tolist() == [False, False, False, True, False]
    assert not outside
    assert played([lambda n: Block(n, BOX, HALF), lambda n: Block(n, BOX, HALF, {"obs": WIDE + 1}, 3)], BOX, HALF)[
        1
    ] == {0: 15}


@pytest.mark.parametrize("when", ["reset", 3])
@pytest.mark.parametrize(("space", "right", "wrong", "words", "stream"), [case for case in WRONG if case[4] == 2][:9])
def test_the_first_look_says_what_is_wrong_with_a_block(space, right, wrong, words, stream, when):
    spec = read_spec(resolve(lambda: One(space, right)), 0)
    with pytest.raises(EnvError) as caught:
        check_autoreset(lambda n: Block(n, space, right, wrong, when), spec)
    assert "of its native vector environment, the observations" in str(caught.value)
    assert str(caught.value).endswith(
        "Change what the environment returns, or its observation space. Or use --vector serial"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["single_observation_space", "single_action_space"])
def test_a_block_without_a_space_is_refused(name):
    def make(width):
        block = Block(width, BOX, HALF)
        delattr(block, name)
        return block

    with pytest.raises(EnvError, match=f"has no {name}"):
        check_autoreset(make, read_spec(resolve(lambda: One(BOX, HALF)), 0))
