"""The proof of how an environment is brought back, on environments of which it is known."""

from __future__ import annotations

import copy
import json

import gymnasium
import numpy as np
import pytest

from rltrain.envs.make import read_spec, resolve
from rltrain.envs.problems.probes import Counter, Masked
from rltrain.envs.vector.plain_data import attributes, from_plain, same, set_attributes, to_plain
from rltrain.envs.vector.restore import EpisodeLog
from rltrain.envs.vector.restore_check import verify
from rltrain.storage.checkpoint import load, save


def proven(env, **kwargs):
    source = resolve(env, kwargs)
    return verify(source.make, read_spec(source, 0), 0)


@pytest.mark.parametrize(
    ("env_id", "method", "module"),
    [
        ("CartPole-v1", "rng", None),
        ("Pendulum-v1", "rng", None),
        ("HalfCheetah-v5", "rng", "mujoco"),
        ("LunarLander-v3", "rng", "Box2D"),
        ("BipedalWalker-v3", "none", "Box2D"),
        ("oracles.faulty:OfferingCounter", "offered", None),
        ("probe:masked-obs", "rng", None),
        ("probe:endless", "rng", None),
    ],
)
def test_the_method_of_known_environments(env_id, method, module):
    if module:
        pytest.importorskip(module)
    assert proven(env_id) == method


class OwnGenerator(Counter):
    """Draws from a generator of its own, made anew by a seeded reset."""

    def reset(self, *, seed=None, options=None):
        _obs, info = super().reset(seed=seed)
        if seed is not None:
            self.own = np.random.default_rng(seed)
        self._length = int(self.own.integers(3, 10))
        return self._obs(), info


class NoSeed(Counter):
    """Draws from numpy's global state."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._length = int(np.random.randint(3, 1000))
        return self._obs(), {}


class Remembers(Counter):
    """An episode depends on how many there were."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes += 1
        self._length += self.episodes
        return self._obs(), {}


class Raises(Counter):
    def step(self, action):
        raise RuntimeError


class BadOffer(Counter):
    """Offers a state that leaves something out."""

    def get_state(self):
        return {"t": self._t}

    def set_state(self, state):
        self._t = state["t"]
        return self._obs(), {}


@pytest.mark.parametrize(
    ("env", "method"),
    [(OwnGenerator, "seed"), (NoSeed, "none"), (Remembers, "none"), (Raises, "none"), (BadOffer, "rng")],
)
def test_a_method_that_does_not_work_is_not_proven(env, method):
    assert proven(env) == method


def test_an_offer_is_wrapped_by_what_wraps_the_environment():
    """The time limit counts in a wrapper, which get_state of the inner environment does not know."""
    make = lambda: gymnasium.wrappers.TimeLimit(resolve("oracles.faulty:OfferingCounter").make(), 2)  # noqa: E731
    old, new, log = make(), make(), EpisodeLog("offered")
    log.first_reset(old, 1)
    old.step(0)
    saved = log.state(old)
    _, _, exact = EpisodeLog("offered").load(new, saved, 1, lambda action: action)
    assert exact
    assert new.step(0)[3] is True


def test_a_state_that_was_saved_with_a_wrapper_for_the_order_of_calls_is_restored():
    """Of an older run; today's vector environment takes this wrapper out."""
    inner = resolve("oracles.faulty:OfferingCounter").make
    old = gymnasium.wrappers.TimeLimit(gymnasium.wrappers.OrderEnforcing(inner()), 2)
    new, log = gymnasium.wrappers.TimeLimit(inner(), 2), EpisodeLog("offered")
    log.first_reset(old, 1)
    old.step(0)
    *_, exact = EpisodeLog("offered").load(new, log.state(old), 1, lambda action: action)
    assert exact
    assert new.step(0)[3] is True


def slow(inner, clock, step=0.5):
    """An environment each of whose steps takes a while by `clock`, a list of one number."""

    class Slow(inner):
        def step(self, action):
            clock[0] += step
            return super().step(action)

    return resolve(Slow)


@pytest.mark.parametrize("step", [0.0, 0.1, 1000.0])
@pytest.mark.parametrize(
    ("env", "ways"), [(OwnGenerator, {"seed"}), (Counter, {"rng", "none"}), (BadOffer, {"rng", "none"})]
)
def test_load_does_not_change_how_episodes_are_reset(monkeypatch, env, ways, step):
    """Only between rng and none may a clock decide: both leave the resets alone."""
    clock = [0.0]
    monkeypatch.setattr("rltrain.envs.vector.restore_check.time.monotonic", lambda: clock[0])
    source = slow(env, clock, step)
    assert verify(source.make, read_spec(source, 0), 0) in ways


def test_a_slow_environment_is_given_up_between_two_steps(monkeypatch):
    clock, ends = [0.0], []
    monkeypatch.setattr("rltrain.envs.vector.restore_check.time.monotonic", lambda: clock[0])
    for step in (0.0, 0.02, 2.0):
        source, clock[0] = slow(Counter, clock, step), 0.0
        ends.append((verify(source.make, read_spec(source, 0), 0), clock[0]))
    assert [method for method, _ in ends] == ["rng", "rng", "none"]
    assert 2 < ends[1][1] < 20  # fewer rounds
    assert ends[2][1] < 2 * 75 + 20  # the short round, and the bound


def test_masks_that_allow_nothing_in_a_final_observation_are_no_obstacle():
    class Board(Masked):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated, truncated, {"action_mask": np.zeros(4)} if terminated else info

    assert proven(Board) == "rng"


def played(log, env, steps):
    """Steps with resets where due, all told to the log; whether the last one ended an episode."""
    over, first = False, []
    for _ in range(steps):
        first.append(over)
        if over:
            log.next_reset(env)
            over = False
        else:
            _, _, terminated, truncated, _ = env.step(0)
            over = terminated or truncated
    log.extend(np.zeros(steps, np.int64), np.array(first))
    return over


def reader(action):
    return action.tolist()


@pytest.mark.parametrize("method", ["rng", "seed"])
def test_a_replay_that_does_not_agree_gives_up_cleanly(method):
    env, log = Counter(), EpisodeLog(method)
    log.first_reset(env, 3)
    over = played(log, env, 20)
    saved = log.state(env) | {"over": over}
    spoiled = [saved | {"over": not over}, saved | {"way": "none"}, saved | {"actions": np.zeros(50, np.int64)}]
    spoiled.append({key: value for key, value in saved.items() if key != "actions"})
    now = copy.deepcopy(saved["now"])
    now["state"]["state"] += 1
    spoiled.append(saved | {"now": now})

    assert EpisodeLog(method).load(Counter(), saved, 3, reader)[2]
    for wrong in spoiled:
        fresh = Counter()
        obs, info, exact = EpisodeLog(method).load(fresh, wrong, 3, reader)
        assert not exact
        assert obs[0] == 0
        assert info == {}
        assert fresh.step(0)[0][0] == 1


def test_a_state_is_plain_and_stays_what_it_was():
    env, log = Counter(), EpisodeLog("rng")
    log.first_reset(env, 3)
    played(log, env, 20)
    saved = log.state(env)
    before = copy.deepcopy(saved)
    played(log, env, 20)
    assert same(list(saved.values()), list(before.values()))
    json.dumps({key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in saved.items()})


def test_only_the_current_episodes_actions_are_kept():
    log, env = EpisodeLog("rng"), Counter()
    log.first_reset(env, 0)
    log.extend(np.arange(5), np.array([False, False, True, False, False]))
    log.extend(np.arange(5, 8), np.zeros(3, bool))
    assert log.state(env)["actions"].tolist() == [3, 4, 5, 6, 7]
    log.extend(np.arange(3), np.array([False, False, True]))
    assert log.state(env)["actions"] is None


def test_the_log_does_not_keep_the_actors_buffer():
    log, env, buffer = EpisodeLog("rng"), Counter(), np.zeros(4, np.int64)
    log.first_reset(env, 0)
    log.extend(buffer, np.zeros(4, bool))
    buffer[:] = 9
    assert not log.state(env)["actions"].any()


def test_a_load_can_be_saved_again():
    env, log = Counter(), EpisodeLog("rng")
    log.first_reset(env, 3)
    over = played(log, env, 21)
    saved = log.state(env) | {"over": over}
    second, again = EpisodeLog("rng"), Counter()
    second.load(again, saved, 3, reader)
    assert same(second.state(again) | {"over": over}, saved)


def test_plain_data_comes_back_as_it_was():
    value = {
        "a": (1, [2.5, None, True]),
        "b": np.arange(3),
        "c": {"tuple": "no tuple"},
        "d": np.float32(0.1),
        "e": np.random.default_rng(4),
    }
    back = from_plain(to_plain(value))
    assert isinstance(back["a"], tuple)
    assert back["c"] == {"tuple": "no tuple"}
    assert type(back["d"]) is np.float32
    assert same({key: back[key] for key in "abcd"}, {key: value[key] for key in "abcd"})
    assert back["e"].random() == value["e"].random()
    with pytest.raises(TypeError):
        to_plain({"x": object()})


@pytest.mark.parametrize("dtype", ["?", *"bBhHiIlLqQefd", ">f4", *"gFDGSUO"])
def test_plain_arrays_are_those_that_a_checkpoint_holds(dtype, tmp_path):
    array = np.zeros(3, dtype)
    array[1] = 1
    if dtype in "gFDGSUO":
        with pytest.raises(TypeError, match="not plain data"):
            to_plain(array)
    else:
        path = save(tmp_path, "step-1", {"array": to_plain(array)}, {})
        assert same(from_plain(load(path).state["array"]), array)


def test_attributes_are_copies_of_data_only():
    one, other = Counter(), Counter()
    one.reset(seed=1)
    one.thing = object()
    kept = attributes(one)
    one.step(0)
    assert "thing" not in kept
    assert kept["_t"] == 0
    other.reset(seed=2)
    set_attributes(other, kept)
    assert other._length == one._length
    assert other.np_random.random() == one.np_random.random()
