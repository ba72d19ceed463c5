"""Every value that an environment returns is checked, at every step; a fault names what came and what was promised."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rltrain.envs.errors import INVALID, EnvFault
from rltrain.envs.make import read_spec, resolve, serial
from rltrain.envs.values import end_flag, legal_actions, reward_number
from rltrain.rollout.buffers import empty_rows

WRONG_AT = 3  # the step in which an environment returns something wrong


class Fine(gymnasium.Env[Any, Any]):
    """Returns `obs`, with `info`; in step WRONG_AT the values of `wrong` instead."""

    action_space = spaces.Discrete(4)

    def __init__(self, space: Any, obs: Any, info: Any = None, wrong: Any = None) -> None:
        self.observation_space = space
        self._obs, self._info, self._wrong, self._steps = obs, info or {}, wrong or {}, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._obs, self._info

    def step(self, action: Any) -> Any:
        values = {"obs": self._obs, "reward": 0.5, "terminated": False, "truncated": False, "info": self._info}
        if self._steps == WRONG_AT:
            values |= self._wrong
        self._steps += 1
        return values["result"] if "result" in values else tuple(values.values())


def play(makes: list[Any], unroll: int = 8) -> Any:
    """Step one stream of each environment, numbers 4, 9, ..., and check the rows."""
    spec = read_spec(resolve(makes[0]), 0)
    waiting = iter(makes)
    count = len(makes)
    env = serial(lambda: next(waiting)(), spec, [4, 9, 11][:count], [11, 12, 13][:count], "none")
    rows = empty_rows(spec, unroll, count)
    env.reset(rows)
    for t in range(unroll):
        env.step(np.zeros((count, *spec.action.shape), spec.action.dtype), rows, t)
    return rows, env.check(rows, unroll)


def fault(space: Any, right: Any, every_info: Any = None, **wrong: Any) -> str:
    """The detail of the fault of a run of two streams, of which the second is wrong in step WRONG_AT."""
    with pytest.raises(EnvFault) as caught:
        play([lambda: Fine(space, right, every_info), lambda: Fine(space, right, every_info, wrong)])
    assert (caught.value.stream, caught.value.seed, caught.value.row) == (9, 12, WRONG_AT)
    assert "\n" not in caught.value.detail
    return caught.value.detail


def floats(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.full(shape, 0.5, dtype)


BOX = spaces.Box(0, 1, (5,), np.float32)
PIXELS = spaces.Box(0, 255, (4, 6, 3), np.uint8)
BINARY = spaces.Box(0, 1, (4, 6), np.uint8)
WHOLE = spaces.Box(-2, 9, (2,), np.int32)
NESTED = spaces.Dict({"pos": BOX, "more": spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2)))})
NESTED_OBS: Any = {"pos": floats(5), "more": (1, np.zeros(2, np.int8))}
LARGE = np.zeros((4, 6, 3), np.int64)
LARGE[2, 1, 0] = 256
OBSERVATIONS: list[tuple[Any, Any, Any, str]] = [  # space, correct, wrong, words
    (BOX, floats(5), floats(1), "shape (1,) and dtype float32; its space promises numbers of shape (5,)"),
    (BOX, floats(5), np.float32(1), "is 1.0 (float32); its space promises numbers of shape (5,)"),
    (BOX, floats(5), floats(1, 5), "shape (1, 5)"),
    (BOX, floats(5), floats(5, 1), "shape (5, 1)"),
    (BOX, floats(5), None, "is None"),
    (BOX, floats(5), [[1.0], [1.0, 2.0]], "is a list of 2"),
    (BOX, floats(5), np.zeros(5, object), "dtype object"),
    (BOX, floats(5), np.zeros(5, complex), "dtype complex128"),
    (BOX, floats(5), np.zeros(5, "U3"), "dtype <U3"),
    (BOX, floats(5), np.ma.masked_array(floats(5), [0, 0, 1, 0, 0]), "an array of shape (5,) with masked numbers"),
    (BOX, floats(5), np.array([0.5, 0.5, np.nan, 0, 0], np.float32), "not finite"),
    (BOX, floats(5), np.array([0.5, 0.5, 1e300, 0, 0]), "too large for float32"),
    (spaces.Box(-np.inf, np.inf, (5,)), floats(5), np.full(5, -np.inf), "not finite"),
    (spaces.Box(0, 1, ()), np.float32(0.5), floats(1), "shape (1,)"),
    (PIXELS, np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 0.7), "dtype float64; its space promises whole numbers"),
    (PIXELS, np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), -5), "is -5 at [0, 0, 0], and its space promises 0 to 255"),  # noqa: E501
    (PIXELS, np.zeros((4, 6, 3), np.uint8), LARGE, "is 256 at [2, 1, 0], and its space promises 0 to 255"),
    (PIXELS, np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6, 1), np.uint8), "shape (4, 6, 1)"),
    (PIXELS, np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8), "shape (4, 6)"),
    (BINARY, np.zeros((4, 6), np.uint8), np.full((4, 6), 2, np.uint8), "is 2 at [0, 0], and its space promises 0 to 1"),
    (WHOLE, np.zeros(2, np.int32), np.array([0, 10], np.int32), "is 10 at [1], and its space promises -2 to 9"),
    (WHOLE, np.zeros(2, np.int32), np.array([0, 2.7]), "dtype float64; its space promises whole numbers"),
    (spaces.Box(0, 1, (3,), np.bool_), np.zeros(3, bool), np.array([0, 2, 0]), "is 2 at [1]"),
    (spaces.Discrete(4), 1, 7, "is 7; its space promises one whole number from 0 to 3"),
    (spaces.Discrete(4), 1, -1, "is -1"),
    (spaces.Discrete(4), 1, 2.7, "is 2.7"),
    (spaces.Discrete(4), 1, 2**70, "is 1180591620717411303424"),
    (spaces.Discrete(4), np.int64(1), np.uint64(2**63 + 1), "is 9223372036854775809"),
    (spaces.Discrete(4), 1, np.array([1]), "shape (1,)"),
    (spaces.Discrete(4), 1, "2", "is a str"),
    (spaces.Discrete(3, start=5), 6, 4, "is 4; its space promises one whole number from 5 to 7"),
    (spaces.Discrete(3, start=5), np.int64(6), np.int64(8), "is 8 (int64)"),
    (spaces.MultiDiscrete([2, 3]), np.array([1, 2]), np.array([1, 3]), "is 3 at [1], and its space promises 0 to 2"),
    (spaces.MultiDiscrete([2, 3]), np.array([1, 2]), np.array([1, -1]), "is -1 at [1]"),
    (spaces.MultiDiscrete([2, 3]), np.array([1, 2]), np.array([1.0, 2.0]), "dtype float64"),
    (spaces.MultiDiscrete([2, 2]), np.array([1, 1]), np.array(1), "is 1"),
    (spaces.MultiDiscrete([[2, 3]], start=[[4, 0]]), np.array([[4, 0]]), np.array([[6, 0]]), "is 6 at [0]"),
    (spaces.MultiBinary(3), np.zeros(3, np.int8), np.array([0, 2, 0], np.int8), "is 2 at [1], and its space promises 0"),  # noqa: E501
    (spaces.MultiBinary(3), np.zeros(3, np.int8), np.array([0, 0.5, 0]), "dtype float64"),
    (NESTED, NESTED_OBS, {**NESTED_OBS, "pos": floats(1)}, "the observation['pos'] is an array of shape (1,)"),
    (NESTED, NESTED_OBS, {**NESTED_OBS, "more": (3, np.zeros(2, np.int8))}, "the observation['more'][0] is 3"),
    (NESTED, NESTED_OBS, {**NESTED_OBS, "more": (1, np.full(2, 9))}, "the observation['more'][1] is 9 at [0]"),
    (NESTED, NESTED_OBS, {**NESTED_OBS, "more": (1,)}, "the observation['more'] is a tuple of 1"),
    (NESTED, NESTED_OBS, {"pos": floats(5)}, "is a dict with the keys ['pos']; its space promises the keys ['more', 'pos']"),  # noqa: E501
    (NESTED, NESTED_OBS, {**NESTED_OBS, "x": 1}, "is a dict with the keys ['more', 'pos', 'x']"),
    (NESTED, NESTED_OBS, {"more": NESTED_OBS["more"], "x": 1}, "promises the key 'pos'"),
    (NESTED, NESTED_OBS, floats(5), "is an array of shape (5,)"),
    (NESTED, NESTED_OBS, {**NESTED_OBS, "pos": np.full(5, np.nan)}, "the observation['pos'] is not finite"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(("space", "right", "wrong", "words"), OBSERVATIONS, ids=range(len(OBSERVATIONS)))
def test_an_observation_that_is_not_in_its_space_is_a_fault(space: Any, right: Any, wrong: Any, words: str) -> None:
    detail = fault(space, right, obs=wrong)
    assert words in detail
    assert "the observation" in detail
    assert INVALID in detail


@pytest.mark.parametrize(
    ("space", "obs", "stored"),
    [
        (BOX, [0, 0.25, 0.5, 1, 1], [0, 0.25, 0.5, 1, 1]),
        (BOX, floats(5, dtype=np.float64), [0.5] * 5),
        (BOX, np.zeros(5, np.int64), [0] * 5),
        (BOX, np.zeros(5, bool), [0] * 5),
        (BOX, np.full(5, 7.5), [7.5] * 5),  # outside of a float Box: counted only
        (spaces.Box(0, 1, ()), 0.5, 0.5),
        (BINARY, np.ones((4, 6), np.int64), np.ones((4, 6)).tolist()),
        (spaces.Discrete(3, start=5), np.array(6, np.uint8), 1),
        (spaces.Discrete(2), True, 1),
        (spaces.MultiDiscrete([[2, 3]], start=[[4, 0]]), [[5, 2]], [1, 2]),
        (spaces.MultiBinary(2), [1, 0], [1, 0]),
    ],
)
def test_other_forms_of_a_correct_observation_are_accepted(space: Any, obs: Any, stored: Any) -> None:
    rows, outside = play([lambda: Fine(space, obs)], unroll=1)
    assert rows.obs[1, 0].tolist() == stored
    assert outside == ({0: 5} if space is BOX and np.max(obs) > 1 else {})


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"reward": None}, "the reward is None; it must be one number"),
        ({"reward": "1.0"}, "the reward is a str"),
        ({"reward": np.zeros(2)}, "the reward is an array of shape (2,)"),
        ({"reward": [1.0, 2.0]}, "the reward is a list of 2"),
        ({"reward": {"a": 1.0}}, "the reward is a dict"),
        ({"reward": 1j}, "the reward is 1j"),
        ({"reward": np.ma.masked}, "the reward is an array of shape () with masked numbers"),
        ({"reward": np.timedelta64(1, "s")}, "the reward is"),
        ({"reward": float("nan")}, "the reward is not finite"),
        ({"reward": 10**400}, "the reward is not finite"),
        ({"reward": 1e39}, "the reward is not finite (nan or inf, or too large for float32)"),
        ({"terminated": None}, "terminated is None; it must be True or False"),
        ({"terminated": "no"}, "terminated is a str"),
        ({"truncated": np.array([False, True])}, "truncated is an array of shape (2,)"),
        ({"truncated": np.array([False])}, "truncated is an array of shape (1,)"),
        ({"truncated": 0.5}, "truncated is 0.5"),
        ({"terminated": 2}, "terminated is 2"),
        ({"info": None}, "step returned None as info; it must be a dict"),
        ({"result": (floats(5), 0.0, False, {})}, "step returned 4 values as the old gym did"),
        ({"result": None}, "step returned None; it must return a tuple of 5"),
        ({"result": [floats(5), 0.0, False, False, {}]}, "step returned a list of 5"),
        ({"info": {"action_mask": np.ones(4, np.int8)}}, "info has 'action_mask' at this step, and at the reset it had none"),  # noqa: E501
    ],
)  # fmt: skip
def test_a_reward_or_an_end_that_is_none_is_a_fault(wrong: dict[str, Any], words: str) -> None:
    assert words in fault(BOX, floats(5), **wrong)


@pytest.mark.parametrize("in_obs", [False, True])
@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones(1, np.int8), "is an array of shape (1,) and dtype int8; it must have shape (4,)"),
        (np.ones(5, np.int8), "shape (5,)"),
        (np.ones((1, 4), np.int8), "shape (1, 4)"),
        (True, "is True"),
        (None, "is None"),
        (np.array([0.0, -np.inf, 0, 0]), "holds np.float64(-inf); it must hold 1 for legal and 0"),
        (np.array([0, 2, 1, 1], np.int8), "holds np.int8(2)"),
        (np.array([0.5, 1, 1, 1]), "holds np.float64(0.5)"),
        (np.array(["y", "n", "n", "n"]), "dtype <U1"),
        (np.zeros(4, np.int8), "allows no action at all"),
    ],
)
def test_a_mask_that_does_not_fit_the_actions_is_a_fault(mask: Any, words: str, in_obs: bool) -> None:
    good = np.ones(4, np.int8)
    if in_obs:
        space = spaces.Dict({"action_mask": spaces.MultiBinary(4), "x": BOX})
        detail = fault(space, {"action_mask": good, "x": floats(5)}, obs={"action_mask": mask, "x": floats(5)})
    else:
        detail = fault(BOX, floats(5), {"action_mask": good}, info={"action_mask": mask})
    assert words in detail
    assert "mask" in detail


def test_a_mask_that_is_missing_in_a_step_is_a_fault() -> None:
    detail = fault(BOX, floats(5), {"action_mask": np.ones(4, np.int8)}, info={})
    assert "info has no 'action_mask', and at the reset it had one" in detail


def test_rewards_flags_and_masks_of_other_types_are_converted() -> None:
    from fractions import Fraction

    assert [reward_number(r) for r in (1, True, np.float16(2), np.array([3.0]), np.array(4), [[5]], Fraction(1, 2))] == [  # noqa: E501
        1, 1, 2, 3, 4, 5, 0.5
    ]  # fmt: skip
    assert [end_flag(f, "terminated") for f in (1, 0, np.int8(1), np.array(True), np.bool_(False))] == [1, 0, 1, 1, 0]
    assert legal_actions((np.array([1, 0], np.int8), np.array([True])), 3).tolist() == [True, False, True]
    assert legal_actions([1.0, 0.0], 2).tolist() == [True, False]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (np.zeros(5, np.float32), "reset returned an array of shape (5,)"),
        ((floats(5), {}, 1), "reset returned a tuple of 3"),
        ((floats(5), None), "reset returned None as info"),
        ((floats(3), {}), "the observation is an array of shape (3,)"),
    ],
)
def test_a_later_reset_is_checked_like_the_first(result: Any, words: str) -> None:
    class Short(Fine):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            first = super().reset(seed=seed)
            return first if seed is not None else result

        def step(self, action: Any) -> Any:
            return self._obs, 0.0, True, False, {}

    with pytest.raises(EnvFault, match=re.escape(words)) as caught:
        play([lambda: Short(BOX, floats(5))])
    assert (caught.value.stream, caught.value.row) == (4, 1)
    assert "\n" not in caught.value.detail
