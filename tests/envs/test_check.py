"""The first look: each mistake people make gives one line with a hint, a right environment none."""

from __future__ import annotations

import copy
import time

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rltrain.envs.check import check_env
from rltrain.envs.errors import EnvFault
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.problems.probes import PROBES, Counter


def seen(env):
    source = resolve(env)
    return check_env(source, read_spec(source, 0), 0)


@pytest.mark.parametrize("name", sorted(PROBES))
def test_probes_are_without_fault(name):
    assert seen(f"probe:{name}") == []


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Blackjack-v1"])
def test_gymnasiums_own_are_without_fault(env_id):
    assert seen(env_id) == []


def broken(step=None, reset=None, **attributes):
    """A Counter whose answers are changed by functions."""

    class Broken(Counter):
        def step(self, action):
            back = super().step(action)
            return step(*back) if step else back

        def reset(self, *, seed=None, options=None):
            back = super().reset(seed=seed)
            return reset(*back) if reset else back

    for name, value in attributes.items():
        setattr(Broken, name, value)
    return Broken


BOTH = {"step": lambda o, r, te, tr, i: (np.full(2, np.nan, np.float32), r, te, tr, i)}


@pytest.mark.parametrize(
    ("env", "words", "fatal"),
    [
        (broken(reset=lambda o, i: o), "it must return (observation, info)", True),
        (broken(reset=lambda o, i: (o, None)), "None as info", True),
        (broken(step=lambda o, r, te, tr, i: (o, r, te, i)), "4 values as the old gym did", True),
        (broken(step=lambda o, r, te, tr, i: None), "step returned None", True),
        (broken(step=lambda o, r, te, tr, i: (o, r, te, tr, None)), "None as info", True),
        (broken(step=lambda o, r, te, tr, i: (o, r, int(te), tr, i)), "terminated is of type int", False),
        (broken(step=lambda o, r, te, tr, i: (o, np.array([r, r]), te, tr, i)), "the reward is an array", True),
        (broken(step=lambda o, r, te, tr, i: (o, "1", te, tr, i)), "the reward is a str", True),
        (broken(step=lambda o, r, te, tr, i: (o, np.nan, te, tr, i)), "the reward is nan", True),
        (broken(step=lambda o, r, te, tr, i: (o * np.nan, r, te, tr, i)), "not finite", True),
        (broken(step=lambda o, r, te, tr, i: (o[:1], r, te, tr, i)), "of shape (1,)", True),
        (broken(step=lambda o, r, te, tr, i: (o.astype(np.float64), r, te, tr, i)), "says float32", False),
        (broken(step=lambda o, r, te, tr, i: (o - 50, r, te, tr, i)), "outside its space's [0.0, 100.0]", False),
        (broken(reset=lambda o, i: (o + np.random.rand(2).astype(np.float32), i)), "same seed differ", False),
        (broken(observation_space=spaces.Dict({"a": Counter.observation_space})), "its space is a Dict", True),
        (
            broken(
                observation_space=spaces.Box(0, 1, (2, 2), np.bool_), _obs=lambda self: np.full((2, 2), 0.5, np.float32)
            ),
            "its space says bool: add .astype(bool)",
            True,
        ),
        (
            broken(step=lambda o, r, te, tr, i: (o, r, None, tr, i)),
            "terminated is None; it must be True or False",
            True,
        ),
        (
            broken(step=lambda o, r, te, tr, i: (o, r, te, np.zeros(2, bool), i)),
            "truncated is an array of shape (2,)",
            True,
        ),
        (
            broken(step=lambda o, r, te, tr, i: (o, r, te, tr, {"action_mask": np.ones(3)})),
            "at the reset it had none",
            True,
        ),
        (broken(observation_space=spaces.Box(0, 9, (1,), np.int8), _obs=lambda self: np.full(1, 10)), "outside", True),
        (broken(observation_space=spaces.Box(0, 9, (1,), np.int8), _obs=lambda self: np.full(1, 2.5)), "int8", True),
        (broken(observation_space=spaces.Discrete(3), _obs=lambda self: 3), "not in its space Discrete(3)", True),
        (broken(observation_space=spaces.Discrete(3), _obs=lambda self: 1.0), "whole numbers", True),
        (
            broken(
                observation_space=spaces.Dict({"a": spaces.Tuple((spaces.Box(0, 1, (1,), np.float32),))}),
                _obs=lambda self: {"a": (np.array([5], np.float32),)},
            ),
            "['a'][0] that is 5.0 at [0], outside",
            False,
        ),
        (broken(reset=lambda o, i: (o, {"action_mask": np.ones(2)})), "must have shape (3,)", True),
        (broken(reset=lambda o, i: (o, {"action_mask": np.zeros(3, bool)})), "allows no action at all", True),
        (broken(reset=lambda o, i: (o, {"action_mask": np.ones(3, np.int8)})), "return one at each step", True),
        (broken(reset=lambda o, i: (o, {"action_mask": np.full(3, 0.5)})), "must hold 1 for legal", True),
    ],
)
def test_a_mistake_is_named_in_one_line(env, words, fatal):
    problems = seen(env)
    assert any(words in problem.text and problem.fatal == fatal for problem in problems), problems
    assert all("\n" not in problem.text and problem.text.startswith("broken") for problem in problems)
    assert len({problem.text for problem in problems}) == len(problems)


class Changes(Counter):
    """After the first reset one of its spaces is another one."""

    def __init__(self, name, space):
        super().__init__()
        self.name, self.space = name, space

    def reset(self, *, seed=None, options=None):
        setattr(self, self.name, self.space)
        return super().reset(seed=seed)


@pytest.mark.parametrize(
    ("name", "space"),
    [("action_space", spaces.Discrete(9)), ("observation_space", spaces.Box(0, 99, (2,), np.float32))],
)
def test_a_space_that_changes_is_named(name, space):
    source = resolve(lambda: Changes(name, space))
    problems = check_env(source, read_spec(source, 0), seed=0)
    assert any(f"its {name} is {space} after reset, and was" in one.text and one.fatal for one in problems), problems


def test_equal_spaces_that_are_made_again_are_no_change():
    source = resolve(lambda: Changes("action_space", copy.deepcopy(Counter.action_space)))
    assert check_env(source, read_spec(source, 0), seed=0) == []


def test_a_later_reset_that_returns_something_else_is_named():
    class Later(Counter):
        resets = 0

        def reset(self, *, seed=None, options=None):
            self.resets += 1
            return None if self.resets > 2 else super().reset(seed=seed)

        def step(self, action):
            return *super().step(action)[:3], True, {}

    assert any("reset returned None" in problem.text and problem.fatal for problem in seen(Later))


def test_what_the_environment_raises_is_its_own_fault():
    def fail(*_):
        raise RuntimeError("own fault")

    with pytest.raises(EnvFault, match="own fault") as caught:
        seen(broken(step=fail))
    assert caught.value.stream == -1
    assert "test_check.py" in caught.value.detail


def test_a_slow_environment_is_looked_at_briefly():
    start = time.monotonic()
    assert seen(broken(step=lambda *back: time.sleep(0.3) or back)) == []
    assert time.monotonic() - start < 2.5


@pytest.mark.parametrize(
    ("wrapper", "flag"),
    [
        (gymnasium.wrappers.NormalizeObservation, "--normalize-obs"),
        (gymnasium.wrappers.NormalizeReward, "--normalize-return"),
    ],
)
def test_statistics_that_no_checkpoint_holds_are_reported(wrapper, flag):
    source = resolve(lambda: gymnasium.wrappers.TimeLimit(wrapper(gymnasium.make("CartPole-v1")), 9))
    problems = [problem for problem in check_env(source, read_spec(source, 0), 0) if flag in problem.text]
    assert len(problems) == 1
    assert not problems[0].fatal
