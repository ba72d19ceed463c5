"""Spaces to specs; observations into unrolls; a policy's actions to an environment's."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from rltrain.envs.errors import EnvError
from rltrain.envs.spaces import (
    action_reader,
    action_spec,
    env_spec,
    final_mask,
    mask_of,
    obs_spec,
    obs_writer,
    random_action,
    split_mask,
    without_mask,
)
from rltrain.envs.spec import ActionSpec, Leaf, from_json, to_json


def arrays(obs):
    if isinstance(obs, dict):
        return {key: arrays(child) for key, child in obs.items()}
    if isinstance(obs, tuple):
        return tuple(arrays(child) for child in obs)
    return np.zeros((3, 2, *obs.shape), obs.dtype)


def written(space, value):
    """What a writer leaves at row 1, column 1; all else must stay zero."""
    tree = arrays(obs_spec(space, "it"))
    obs_writer(space)(tree, (1, 1), value)
    if not isinstance(tree, dict | tuple):
        rest = tree.copy()
        rest[1, 1] = 0
        assert not rest.any()
        return tree[1, 1]
    return tree


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        (spaces.Box(-1, 1, (2,), np.float64), np.array([0.25, -1]), [0.25, -1]),
        (spaces.Box(-1, 1, (), np.float32), np.float32(0.5), 0.5),
        (spaces.Discrete(4), 3, 3),
        (spaces.Discrete(4, start=-2), np.int64(-1), 1),
        (spaces.MultiDiscrete([3, 4]), np.array([2, 1]), [2, 1]),
        (spaces.MultiDiscrete([3, 4], start=[5, -1]), np.array([6, 2]), [1, 3]),
        (spaces.MultiDiscrete([[3, 4], [5, 6]]), np.array([[1, 2], [3, 4]]), [1, 2, 3, 4]),
        (spaces.MultiDiscrete([[3, 4], [5, 6]], start=[[1, 1], [1, 1]]), np.array([[1, 2], [3, 4]]), [0, 1, 2, 3]),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.MultiBinary((2, 2)), np.eye(2, dtype=np.int8), [[1, 0], [0, 1]]),
    ],
)
def test_an_observation_lands_where_it_belongs_counted_from_zero(space, value, expected):
    np.testing.assert_array_equal(written(space, value), np.asarray(expected))


def test_nested_observations_keep_their_tree():
    inner = spaces.Tuple((spaces.Discrete(3, start=1), spaces.Box(0, 9, (2,), np.float32)))
    space = spaces.Dict({"b": spaces.MultiBinary(2), "a": inner})

    tree = written(space, {"b": np.array([0, 1]), "a": (2, np.array([3, 4], np.float32))})

    assert tree["a"][0][1, 1] == 1
    np.testing.assert_array_equal(tree["a"][1][1, 1], [3, 4])
    np.testing.assert_array_equal(tree["b"][1, 1], [0, 1])


def test_images_say_where_their_channels_are():
    assert obs_spec(spaces.Box(0, 255, (36, 36, 3), np.uint8), "") == Leaf("image", (36, 36, 3), "uint8", (), True)
    assert obs_spec(spaces.Box(0, 255, (4, 84, 84), np.uint8), "") == Leaf("image", (4, 84, 84), "uint8", (), False)
    cube = obs_spec(spaces.Box(0, 255, (10, 10, 10), np.uint8), "")
    assert cube == Leaf("image", (10, 10, 10), "uint8", (), True), "as most do that have images of their own making"


@pytest.mark.parametrize(("dtype", "high"), [(np.bool_, 1), (np.uint8, 1), (np.uint8, 7)])
def test_boards_are_images_whose_largest_number_is_known(dtype, high):
    space = spaces.Box(0, high, (10, 10, 4), dtype)
    space.seed(3)
    board = space.sample()

    assert obs_spec(space, "") == Leaf("image", (10, 10, 4), "uint8", (), True, high=high)
    kept = written(space, board)
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(kept, board)
    assert board.any()


def test_flags_in_a_row_are_no_image():
    assert obs_spec(spaces.Box(0, 1, (10,), np.bool_), "") == Leaf("box", (10,), "float32")


def test_the_mask_is_no_part_of_what_networks_see():
    box = spaces.Box(0, 1, (2,), np.float32)
    one = spaces.Dict({"action_mask": spaces.MultiBinary(3), "seen": box})
    two = spaces.Dict({"action_mask": spaces.MultiBinary(3), "seen": box, "more": spaces.Discrete(2)})

    assert env_spec("x", one, spaces.Discrete(3), None).obs == obs_spec(box, "")
    spec = env_spec("x", two, spaces.Discrete(3), None)
    assert spec.action_mask
    assert set(spec.obs) == {"seen", "more"}
    tree = arrays(spec.obs)
    obs_writer(two)(tree, (0, 0), {"action_mask": np.ones(3), "seen": np.array([0.5, 1]), "more": 1})
    assert tree["seen"][0, 0].tolist() == [0.5, 1]
    assert tree["more"][0, 0] == 1


def test_asymmetric_bounds_are_reached_and_not_passed():
    space = spaces.Box(np.array([-1, -2], np.float32), np.array([3, 0], np.float32))
    read = action_reader(action_spec(space, ""), space.dtype)

    taken = read(np.array([[-1, -1], [1, 1], [0, 0], [-7, 9], [0.5, -0.5]], np.float32))

    np.testing.assert_allclose(taken, [[-1, -2], [3, 0], [1, -1], [-1, 0], [2, -1.5]])
    assert taken.dtype == np.float32
    assert all(space.contains(row) for row in taken)


def test_a_plain_box_is_clipped_without_changing_the_policys_action():
    space = spaces.Box(-1, 1, (1,), np.float32)
    action = np.array([[2.5]], np.float32)

    assert action_reader(action_spec(space, ""), space.dtype)(action)[0, 0] == 1.0
    assert action[0, 0] == 2.5


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (spaces.Discrete(3, start=3), np.array([0, 2]), [3, 5]),
        (spaces.MultiDiscrete([2, 3], start=[1, 5]), np.array([[1, 2]]), [[2, 7]]),
        (spaces.MultiBinary(2), np.array([[1, 0]]), [[1, 0]]),
        (spaces.Box(0, 10, (1,), np.int32), np.array([[0.09]], np.float32), [[5]]),
    ],
)
def test_actions_are_what_the_space_contains(space, action, expected):
    taken = action_reader(action_spec(space, ""), space.dtype)(action)

    assert np.asarray(taken).tolist() == expected
    assert all(space.contains(one) for one in taken)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Box(0, 1, (0,), np.float32), "is empty"),
        (spaces.Dict({"a": spaces.Discrete(2)}), "not supported"),
    ],
)
def test_an_action_space_that_is_not_supported_is_named_in_one_line(space, words):
    with pytest.raises(EnvError, match=words) as caught:
        action_spec(space, "the action space of X")
    assert "the action space of X" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_observation_space_that_is_not_supported_is_named_with_its_place():
    with pytest.raises(EnvError, match=r"the observation space of X\['words'\] is Text"):
        env_spec("X", spaces.Dict({"words": spaces.Text(5)}), spaces.Discrete(2), None)


def test_masks_of_several_heads_are_joined():
    heads = (np.array([1, 0, 1], np.int8), np.array([0, 1], np.int8))
    assert mask_of(None, {"action_mask": heads}, in_obs=False, size=5).tolist() == [True, False, True, False, True]


def test_random_actions_are_legal():
    spec, rng = ActionSpec("multi_discrete", (2,), (3, 2)), np.random.default_rng(0)
    drawn = {tuple(random_action(rng, spec, np.array([1, 0, 1, 0, 1], bool))) for _ in range(50)}
    assert drawn == {(0, 1), (2, 1)}


def test_a_spec_survives_json():
    space = spaces.Dict({"a": spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 255, (4, 9, 9), np.uint8)))})
    spec = env_spec("X", space, spaces.Box(-1, 2, (2,), np.float32), 7)
    assert from_json(to_json(spec)) == spec


def test_the_mask_of_a_final_observation_frees_heads_without_a_legal_action():
    given = {"action_mask": np.array([0, 1, 0, 0, 0], np.int8)}

    assert final_mask(None, given, False, (3, 2)).tolist() == [False, True, False, True, True]
    assert final_mask(None, {}, False, (3, 2)).all()
    assert given["action_mask"].tolist() == [0, 1, 0, 0, 0]


def test_text_beside_other_keys_is_left_out() -> None:
    """MiniGrid's observations: image, direction, mission."""
    from rltrain.envs.check import check_env
    from rltrain.envs.make import read_spec, resolve
    from rltrain.envs.vector.serial import SerialVectorEnv
    from rltrain.rollout.buffers import empty_rows

    source = resolve("minigrid:MiniGrid-Empty-5x5-v0")
    spec = read_spec(source, 0)
    assert sorted(spec.obs) == ["direction", "image"]
    assert [leaf.kind for leaf in spec.leaves()] == ["discrete", "image"]
    found = check_env(source, spec, 0)
    assert [(problem.fatal, "['mission'] is text" in problem.text) for problem in found] == [(False, True)]
    env = SerialVectorEnv(source.make, spec, [0], [3])
    rows = empty_rows(spec, 2, 1)
    env.reset(rows)
    env.step(np.array([2]), rows, 0)
    obs, _ = source.make().reset(seed=3)
    assert np.array_equal(rows.obs["image"][0, 0], obs["image"])
    assert rows.obs["direction"][0, 0] == obs["direction"]


def test_text_beside_a_mask() -> None:
    both = {"words": spaces.Text(5), "action_mask": spaces.MultiBinary(2), "x": spaces.Box(0, 1, (2,))}
    spec = env_spec("X", spaces.Dict(both), spaces.Discrete(2), None)
    assert spec.obs == {"x": Leaf("box", (2,), "float32")}
    arrays = {"x": np.zeros((1, 1, 2), np.float32)}
    obs_writer(spaces.Dict(both))(arrays, (0, 0), {"words": "a", "action_mask": [1, 1], "x": np.ones(2, np.float32)})
    assert arrays["x"].sum() == 2


@pytest.mark.parametrize("more", [{}, {"y": spaces.Discrete(2)}, {"x": spaces.Dict({"z": spaces.Discrete(3)})}])
def test_an_observation_without_its_mask_lies_in_the_space_without_it(more) -> None:
    space = spaces.Dict({"action_mask": spaces.MultiBinary(3), "x": spaces.Box(0, 1, (2,)), **more})
    obs = space.sample()

    rest, mask = split_mask(obs)

    assert without_mask(space).contains(rest)
    assert (mask == obs["action_mask"]).all()
    assert split_mask(rest)[1] is None
