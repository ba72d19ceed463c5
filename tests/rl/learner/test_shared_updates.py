"""Several learners that share a batch do what one does that has all of it, update by update."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles import shared
from torch import Tensor
from torch.testing import assert_close

Found = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Found]]:
    """What each of 2 or of 3 learners has after six shared updates, by their number."""
    folder = tmp_path_factory.mktemp("shared")

    @functools.cache
    def found(size: int) -> list[Found]:
        words = [sys.executable, str(Path(shared.__file__)), str(size), str(folder)]
        subprocess.run(words, env=shared.environment(), timeout=300, check=True)
        return [torch.load(folder / f"{rank}-of-{size}.pt") for rank in range(size)]

    return found


@pytest.fixture(scope="module")
def alone() -> Callable[[str], dict[str, Tensor]]:
    """What one learner has."""

    @functools.cache
    def found(name: str) -> dict[str, Tensor]:
        torch.set_default_dtype(torch.float64)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return shared.updated(name)
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(torch.float32)

    return found


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=pytest.mark.sweep if size == 2 else ())
        for size, names in shared.WITH.items()
        for name in names
    ],
)
def test_learners_that_share_a_batch_equal_one_that_has_all_of_it(
    name: str, size: int, alone: Callable[[str], dict[str, Tensor]], together: Callable[[int], list[Found]]
) -> None:
    own = {"clip_fraction_newest", "clip_fraction_oldest"}  # each learner's
    one = {key: x for key, x in alone(name).items() if key.split()[-1] not in own}
    priorities = [key for key in one if key.startswith("priority")]
    for found in together(size):
        assert found[name].keys() >= one.keys()
        for key in one.keys() - set(priorities):
            near = 1e-6 if one[key].dtype == torch.float32 else 1e-10  # shares of rows are told in float32
            a, b = found[name][key].double(), one[key].double()
            assert_close(a, b, atol=near, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    for key in priorities:  # each learner has those of its rows
        assert_close(torch.cat([found[name][key] for found in together(size)]), one[key], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["ppo", "dqn", "sac"])
def test_they_hold_the_same_weights_to_the_bit(name: str, together: Callable[[int], list[Found]]) -> None:
    first, *rest = together(3)
    for other in rest:
        for key, x in first[name].items():
            if not key.startswith("priority"):
                assert torch.equal(x, other[name][key]), key


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.sweep), 3])
def test_equal_advantages_have_no_spread_however_they_lie(size: int, together: Callable[[int], list[Found]]) -> None:
    for found in together(size):
        assert found["equal"]["normalised"].tolist() == [0.0] * 7
