"""Every action that an environment gets lies in its action space, with its dtype, for every kind of space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rltrain.envs.errors import EnvError
from rltrain.envs.multi_agent.joint_spaces import action_splitter, groups_of, joint_action, joint_dtype
from rltrain.envs.spaces import action_reader, action_spec
from rltrain.envs.spec import layout_of

FLOATS = (np.float16, np.float32, np.float64)
INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
POLICY = st.one_of(
    st.floats(-3, 3, width=32),
    st.sampled_from([-1.0, 1.0, 0.0, 0.5, -0.0, np.nextafter(np.float32(1), np.float32(0)), 1e-45, 3e38, -3e38]),
)


@st.composite
def boxes(draw: Any) -> spaces.Box:
    """A Box of any dtype with tiny, huge, degenerate, one-sided or no bounds."""
    dtype = np.dtype(draw(st.sampled_from((*FLOATS, *INTEGERS))))
    size = draw(st.integers(1, 3))
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        number = st.one_of(
            st.floats(-most, most, width=8 * dtype.itemsize),
            st.sampled_from([0.1, -0.1, 1e-3, -1e-7, most, -most, 0.0, float(np.finfo(dtype).tiny), 60000.0, 1 / 3]),
        )
        pairs = [sorted((draw(number), draw(number))) for _ in range(size)]
        low, high = (np.array([pair[i] for pair in pairs], dtype) for i in (0, 1))
        for bound, infinite in ((low, -np.inf), (high, np.inf)):
            bound[draw(arrays(bool, size))] = infinite
    else:
        info = np.iinfo(dtype)
        number = st.one_of(
            st.integers(int(info.min), int(info.max)), st.sampled_from([int(info.min), int(info.max), 0, 1, 7])
        )
        pairs = [sorted((draw(number), draw(number))) for _ in range(size)]
        low, high = (np.array([pair[i] for pair in pairs], dtype) for i in (0, 1))
        if dtype.kind == "i" and draw(st.booleans()):
            return spaces.Box(-np.inf, np.inf, (size,), dtype)
    return spaces.Box(low, high, dtype=dtype)


@settings(max_examples=400, deadline=None)
@given(boxes(), st.data())
def test_an_action_lies_in_any_box(space: spaces.Box, data: Any) -> None:
    spec = action_spec(space, "x")
    action = data.draw(arrays(np.float32, (4, *spec.shape), elements=POLICY))
    for own in (action_reader(spec, space.dtype), action_reader(spec)):
        for one in own(action):
            assert one.dtype == space.dtype
            assert np.isfinite(one).all()
            assert space.contains(one), (space.low, space.high, one)


@settings(max_examples=150, deadline=None)
@given(st.lists(boxes(), min_size=1, max_size=3), st.data())
def test_an_action_of_each_agent_lies_in_its_box(each: list[spaces.Box], data: Any) -> None:
    actions = {f"agent_{number}": space for number, space in enumerate(each)}
    nothing = {agent: spaces.Discrete(2) for agent in actions}
    groups = groups_of("x", list(actions), nothing, actions, "none")
    joint = joint_action(groups)
    raw = data.draw(arrays(np.float32, (3, *joint.shape), elements=POLICY))
    split = action_splitter(layout_of(groups), actions)
    for one in action_reader(joint, joint_dtype(joint))(raw):
        for agent, own in split(one).items():
            assert own.dtype == actions[agent].dtype
            assert actions[agent].contains(own), (actions[agent].low, actions[agent].high, own)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1),
        spaces.Discrete(3, dtype=np.int8),
        spaces.Discrete(3, start=250, dtype=np.int16),
        spaces.MultiDiscrete([2, 3], start=[5, 0], dtype=np.int32),
        spaces.MultiDiscrete([2, 3], dtype=np.uint8),
        spaces.MultiBinary(3),
    ],
)
def test_whole_numbers_have_the_dtype_of_their_space(space: Any) -> None:
    spec = action_spec(space, "x")
    action = np.stack([np.zeros(spec.shape, np.int64), (np.array(spec.nvec) - 1).reshape(spec.shape)])
    for reader in (action_reader(spec, space.dtype), action_reader(spec)):
        assert all(space.contains(one) and one.dtype == space.dtype for one in reader(action))


@pytest.mark.parametrize("dtype", [*FLOATS, np.int8, np.int64])
@pytest.mark.parametrize("high", [1, 3, np.inf])
def test_an_action_of_a_box_without_axes_is_an_array(dtype: Any, high: float) -> None:
    space = spaces.Box(-high, high, (), dtype)
    spec = action_spec(space, "x")
    for one in action_reader(spec, space.dtype)(np.array([-2, 0.3, 2], np.float32)):
        assert isinstance(one, np.ndarray)
        assert one.dtype == dtype
        assert space.contains(one)
    groups = groups_of("x", ["a", "b"], dict.fromkeys("ab", spaces.Discrete(2)), dict.fromkeys("ab", space), "none")
    joint = joint_action(groups)
    for both in action_reader(joint, joint_dtype(joint))(np.full((3, *joint.shape), 0.3, np.float32)):
        for one in action_splitter(layout_of(groups), dict.fromkeys("ab", space))(both).values():
            assert isinstance(one, np.ndarray)
            assert one.dtype == dtype
            assert space.contains(one)


def test_a_policy_acts_in_the_units_of_a_space_without_bounds() -> None:
    """-1 and 1 are the bounds of the space where it has them; elsewhere a unit is a unit."""
    low, high = np.array([-np.inf, 5, -np.inf, 0], np.float32), np.array([np.inf, np.inf, 7, 4], np.float32)
    space = spaces.Box(low, high)
    read = action_reader(action_spec(space, "x"))
    taken = read(np.array([[-3, -3, -3, -3], [0, 0, 0, 0], [1, 1, 1, 1], [20, 20, 20, 20]], np.float32))
    np.testing.assert_allclose(taken, [[-3, 5, 3, 0], [0, 6, 6, 2], [1, 7, 7, 4], [20, 26, 7, 4]])


def test_the_ends_of_a_box_are_reached() -> None:
    for space in (spaces.Box(-0.1, 0.1, (1,), np.float64), spaces.Box(-(2**31), 2**31 - 1, (1,), np.int32)):
        read = action_reader(action_spec(space, "x"))
        assert read(np.array([[-1.0], [1.0]], np.float32)).ravel().tolist() == [space.low[0], space.high[0]]


def test_an_action_bound_is_used_where_there_is_none() -> None:
    space = spaces.Box(np.array([-np.inf, 0, -3], np.float32), np.array([np.inf, np.inf, 9], np.float32))
    spec = action_spec(space, "x", 2.5)
    assert (spec.low, spec.high, spec.unbounded) == ((-2.5, 0, -3), (2.5, 2.5, 9), False)
    assert action_reader(spec)(np.ones((1, 3), np.float32)).tolist() == [[2.5, 2.5, 9]]
    assert action_spec(space, "x").unbounded
    with pytest.raises(EnvError, match=r"bounded on one side, at 3.0: --action-bound 2 sets the other side"):
        action_spec(spaces.Box(np.full(1, 3.0, np.float32), np.full(1, np.inf, np.float32)), "x", 2)
    with pytest.raises(EnvError, match="holds float16: --action-bound must be above 0 and at most 65504"):
        action_spec(spaces.Box(-np.inf, np.inf, (1,), np.float16), "x", 1e9)
