"""The sum tree against a plain running sum."""

from __future__ import annotations

import numpy as np
import pytest

from rltrain.rollout.replay.sum_tree import TOP, SumTree

SIZES = [1, 7, 100, TOP, TOP + 1, 10_000, 8 * TOP + 3]  # no level below the top, one, two


@pytest.mark.parametrize("size", SIZES)
def test_a_draw_is_where_the_running_sum_passes_it(size: int) -> None:
    """Whole numbers, so that sums are exact."""
    rng = np.random.default_rng(size)
    tree, plain = SumTree(size), np.zeros(size)
    for _ in range(5):
        index = rng.integers(0, size, rng.integers(1, 300))
        value = rng.integers(0, 5, len(index)).astype(float)
        value[0] += 1
        tree.set(index, value)
        for one, other in zip(index, value, strict=True):
            plain[one] = other
        if not plain.any():
            continue
        np.testing.assert_array_equal(tree.leaves, plain)
        where = np.arange(257) + rng.random(257)
        found, values = tree.sample(where)
        np.testing.assert_array_equal(found, plain.cumsum().searchsorted(where * (plain.sum() / 257), "right"))
        np.testing.assert_array_equal(values, plain[found])
        assert (values > 0).all()


def test_each_leaf_is_drawn_as_often_as_its_value_says() -> None:
    size = 3 * TOP
    tree = SumTree(size)
    value = np.random.default_rng(0).integers(0, 4, size).astype(float)
    tree.set(np.arange(size), value)
    where = np.arange(value.sum()) + 0.5  # one draw for each unit
    found, _ = tree.sample(where)
    np.testing.assert_array_equal(np.bincount(found, minlength=size), value)


def test_sums_do_not_drift() -> None:
    """After many changes of wildly different sizes the tree is what its leaves make of it, to the bit."""
    rng = np.random.default_rng(0)
    tree = SumTree(5000)
    for _ in range(2000):
        index = rng.integers(0, 5000, 64)
        tree.set(index, 10.0 ** rng.uniform(-12, 12, 64))
    tree.set(np.arange(4999), 0.0)
    tree.set(np.array([4999]), 1e-9)
    fresh = SumTree(5000)
    fresh.leaves[:] = tree.leaves
    fresh.rebuild()
    for mine, other in zip([*tree._sums, *tree._before], [*fresh._sums, *fresh._before], strict=True):
        np.testing.assert_array_equal(mine, other)
    found, value = tree.sample(np.arange(256.0))
    assert (found == 4999).all()
    assert (value == 1e-9).all()


@pytest.mark.parametrize("size", SIZES)
def test_no_draw_is_empty_whatever_rounding_does(size: int) -> None:
    """Sums that are not exact, most leaves empty, and shares at the very end."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        tree = SumTree(size)
        some = np.unique(rng.integers(0, size, max(1, size // 9)))
        tree.set(some, 10.0 ** rng.uniform(-9, 9, len(some)))
        ends = (tree.leaves.cumsum() / tree.leaves.sum()).clip(0, 1 - 2**-53)
        where = np.sort(np.concatenate((ends[some], rng.random(100), [0.0, 1 - 2**-53])))
        found, value = tree.sample(where * len(where))
        assert (value > 0).all()
        assert np.isin(found, some).all()


def test_where_rounding_led_astray_the_leaf_before_is_taken() -> None:
    tree = SumTree(10)
    tree.set(np.array([2, 5]), np.array([1.0, 1.0]))
    assert [tree._nearest_nonzero(leaf) for leaf in (0, 2, 4, 5, 9)] == [2, 2, 2, 5, 5]


def test_an_empty_tree_says_so() -> None:
    with pytest.raises(ValueError, match="all leaves of the sum tree are 0"):
        SumTree(9).sample(np.zeros(1))
