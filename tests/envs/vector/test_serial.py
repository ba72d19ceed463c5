"""The serial vector environment: its rows against Gymnasium's own, its faults, its resume."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import OrderEnforcing, TimeLimit

from rltrain.envs.check import check_env
from rltrain.envs.errors import EnvFault
from rltrain.envs.make import read_spec, resolve, vector
from rltrain.envs.problems.probes import Counter, Masked
from rltrain.envs.vector.restore_check import verify
from rltrain.envs.vector.serial import SerialVectorEnv
from rltrain.envs.vector.unroll_rows import UnrollBuffer


def rows_for(spec, steps, width):
    def node(obs):
        if isinstance(obs, dict):
            return {key: node(child) for key, child in obs.items()}
        if isinstance(obs, tuple):
            return tuple(node(child) for child in obs)
        return np.zeros((steps + 1, width, *obs.shape), obs.dtype)

    mask = np.ones((steps + 1, width, spec.action.mask_size), bool) if spec.action_mask else None
    flags = [np.zeros((steps, width), bool) for _ in range(2)]
    return UnrollBuffer(
        node(spec.obs),
        np.zeros((steps, width), np.float32),
        *flags,
        np.zeros((steps + 1, width), bool),
        mask,
        np.zeros((steps, width), bool),
    )


def run(env, rows, actions):
    for t, action in enumerate(actions):
        env.step(action, rows, t)
    env.end_unroll(actions, rows)
    return rows


def test_rows_are_those_of_gymnasiums_next_step_autoreset():
    source = resolve("CartPole-v1")
    spec, seeds, steps = read_spec(source, 0), [3, 4, 5], 200
    actions = np.random.default_rng(0).integers(0, 2, (steps, 3))
    theirs = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.make("CartPole-v1")] * 3, autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP
    )
    obs, _ = theirs.reset(seed=seeds)
    rows, ours = rows_for(spec, steps, 3), vector(source, spec, [0, 1, 2], seeds, "rng")
    ours.reset(rows)
    np.testing.assert_array_equal(rows.obs[0], obs)
    assert rows.first[0].all()

    over = np.zeros(3, bool)
    for t in range(steps):
        ours.step(actions[t], rows, t)
        obs, reward, terminated, truncated, _ = theirs.step(actions[t])
        np.testing.assert_array_equal(rows.obs[t + 1], obs)
        np.testing.assert_array_equal(rows.reward[t], reward)
        np.testing.assert_array_equal(rows.terminated[t], terminated)
        np.testing.assert_array_equal(rows.truncated[t], truncated)
        np.testing.assert_array_equal(rows.first[t + 1], over)
        over = terminated | truncated
    assert rows.first[1:].sum() > 10


def test_a_truncated_episode_keeps_its_final_observation():
    source = resolve(Counter)
    spec, steps = read_spec(source, 0), 60
    rows, env = rows_for(spec, steps, 1), vector(source, spec, [0], [1], "rng")
    env.reset(rows)
    run(env, rows, np.zeros((steps, 1), np.int64))

    assert rows.truncated.any()
    assert rows.terminated.any()
    for t in np.flatnonzero((rows.truncated | rows.terminated)[:-1, 0]):
        step, length = rows.obs[t + 1, 0]
        assert step == length == rows.reward[t, 0]
        assert rows.truncated[t, 0] == (length % 3 == 0)
        assert rows.first[t + 2, 0]
        assert rows.obs[t + 2, 0, 0] == 0
        assert rows.reward[t + 1, 0] == 0
        assert not (rows.terminated | rows.truncated)[t + 1, 0]


@pytest.mark.parametrize("name", ["masked", "masked-obs"])
def test_masks_reach_the_rows_of_the_observation_they_belong_to(name):
    source = resolve(f"probe:{name}")
    spec = read_spec(source, 0)
    assert spec.action_mask
    rows, env = rows_for(spec, 20, 2), vector(source, spec, [0, 1], [1, 2], "rng")
    env.reset(rows)
    for t in range(20):
        env.step(rows.action_mask[t].argmax(-1), rows, t)
    over = rows.terminated | rows.truncated
    np.testing.assert_array_equal(rows.action_mask[1:], rows.obs[1:] == 1)
    assert over.any()
    assert not rows.action_mask[1:][over].all(), "targets look at what is legal in the final observation"


@pytest.mark.parametrize("final", [{"action_mask": np.zeros(4, np.int8)}, {}])
def test_a_final_observation_may_allow_no_action(final):
    """As board games do it. The same after a resume at that very row."""

    class Board(Masked):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated, truncated, final if terminated else info

    source = resolve(Board)
    spec = read_spec(source, 0)
    assert check_env(source, spec, 0) == []
    rows, env = rows_for(spec, 3, 1), vector(source, spec, [0], [1], "rng")
    env.reset(rows)
    actions = np.zeros((3, 1), np.int64)
    for t in range(3):
        actions[t] = rows.action_mask[t].argmax(-1)
        env.step(actions[t], rows, t)
    env.end_unroll(actions, rows)
    assert rows.terminated[2, 0]
    assert rows.action_mask[3].all()
    assert not rows.action_mask[:3].all(-1).any()
    again = rows_for(spec, 3, 1)
    again.action_mask[:] = False
    resumed = vector(source, spec, [0], [1], "rng")
    resumed.load(env.state(), again)
    assert again.action_mask[0].all()
    assert not again.first[0, 0]


def test_arrays_may_be_wider_than_the_streams():
    source = resolve(Counter)
    spec = read_spec(source, 0)
    rows, env = rows_for(spec, 30, 16), vector(source, spec, [0, 1], [1, 2], "rng")
    env.reset(rows)
    run(env, rows, np.zeros((30, 2), np.int64))
    assert not rows.obs[:, 2:].any()
    assert not rows.first[:, 2:].any()
    assert rows.first[1:, :2].any()


def test_a_fault_names_stream_seed_row_and_the_environments_own_line():
    source = resolve("oracles.faulty:raises", {"at": 5})
    spec = read_spec(source, 0)
    env = SerialVectorEnv(lambda: source.make(), spec, [7, 9], [70, 90])
    env.envs[0].unwrapped._at = 1000
    rows = rows_for(spec, 10, 2)
    env.reset(rows)
    with pytest.raises(EnvFault) as caught:
        run(env, rows, np.zeros((10, 2), np.int64))
    assert (caught.value.stream, caught.value.seed) == (9, 90)
    assert str(caught.value).startswith("the environment of stream 9 (seed 90) failed at step 4:\n")
    assert "raises in step 5" in str(caught.value)
    assert "faulty.py" in caught.value.detail


def test_the_wrapper_for_the_order_of_calls_is_taken_out_and_no_other_one():
    class Own(OrderEnforcing):
        pass

    def chain(env):
        found = []
        while isinstance(env, gymnasium.Wrapper):
            found.append(type(env))
            env = env.env
        return found

    make = resolve("CartPole-v1").make
    spec = read_spec(resolve("CartPole-v1"), 0)
    assert chain(make()) == [TimeLimit, OrderEnforcing]
    for made, left in (
        (make, [TimeLimit]),
        (lambda: OrderEnforcing(make().unwrapped), []),
        (lambda: Own(TimeLimit(Own(OrderEnforcing(make())), 3)), [Own, TimeLimit, Own, OrderEnforcing, TimeLimit]),
    ):
        assert chain(SerialVectorEnv(made, spec, [0], [0]).envs[0]) == left


def test_a_fault_in_reset_and_in_the_constructor_is_blamed_on_its_stream():
    class Broken(Counter):
        def reset(self, *, seed=None, options=None):
            if seed == 2:
                raise RuntimeError("no reset for 2")
            return super().reset(seed=seed)

    spec = read_spec(resolve(Counter), 0)
    env = SerialVectorEnv(Broken, spec, [4, 5], [1, 2])
    with pytest.raises(EnvFault) as caught:
        env.reset(rows_for(spec, 1, 2))
    assert (caught.value.stream, caught.value.seed) == (5, 2)
    assert "no reset for 2" in str(caught.value)

    def explode():
        raise RuntimeError("no constructor")

    with pytest.raises(EnvFault) as caught:
        SerialVectorEnv(resolve(explode).make, spec, [4, 5], [1, 2])
    assert caught.value.stream == 4
    assert "no constructor" in caught.value.detail


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "oracles.faulty:OfferingCounter", "probe:counter"])
def test_a_stream_goes_on_exactly_where_it_was(env_id):
    source = resolve(env_id)
    spec = read_spec(source, 0)
    method = verify(source.make, spec, 0)
    rng = np.random.default_rng(0)
    for steps in (1, 7, 33, 40):  # over the end of an episode, in the middle, long after
        whole = vector(source, spec, [0, 1, 2], [5, 6, 7], method)
        rows = rows_for(spec, steps, 3)
        whole.reset(rows)
        box = spec.action.kind == "box"
        shape = (2 * steps, 3, *spec.action.shape)
        actions = rng.uniform(-1, 1, shape).astype(np.float32) if box else rng.integers(0, spec.action.nvec[0], shape)
        run(whole, rows, actions[:steps])
        state, last = whole.state(), rows.obs[-1].copy()
        after = run(whole, rows_for(spec, steps, 3), actions[steps:])

        resumed, again = vector(source, spec, [0, 1, 2], [5, 6, 7], method), rows_for(spec, steps, 3)
        resumed.load(state, again)
        np.testing.assert_array_equal(again.obs[0], last)
        assert not again.first[0].any()
        run(resumed, again, actions[steps:])
        np.testing.assert_array_equal(again.obs[1:], after.obs[1:])
        np.testing.assert_array_equal(again.reward, after.reward)
        np.testing.assert_array_equal(again.first[1:], after.first[1:])
        np.testing.assert_array_equal(again.truncated, after.truncated)


def test_a_stream_that_cannot_be_brought_back_begins_anew_and_says_so():
    source = resolve("probe:counter")
    spec = read_spec(source, 0)
    for method, spoil in (("none", None), ("rng", "seen")):
        env, rows = vector(source, spec, [0], [5], method), rows_for(spec, 5, 1)
        env.reset(rows)
        run(env, rows, np.zeros((5, 1), np.int64))
        state = env.state()
        if spoil:
            state[0][spoil] = "other"
        again = rows_for(spec, 5, 1)
        resumed = vector(source, spec, [0], [5], method)
        resumed.load(state, again)
        assert again.first[0, 0]
        assert again.obs[0, 0, 0] == 0
        resumed.step(np.zeros(1, np.int64), again, 0)
        assert again.obs[1, 0, 0] == 1
