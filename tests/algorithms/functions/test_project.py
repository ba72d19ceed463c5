"""C51's projection against the hat function of the paper's equation 7, and where implementations go wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.q_learning import projected
from torch.testing import assert_close

from rltrain.algorithms.functions.returns import project

SUPPORT = torch.linspace(-2.0, 2.0, 5)  # one apart


def one(probs, reward, discount, support=SUPPORT) -> list[float]:
    found: list[float] = project(
        torch.tensor([probs]), support, torch.tensor([float(reward)]), torch.tensor([float(discount)])
    )[0].tolist()
    return found


@pytest.mark.parametrize("atoms", [2, 5, 51])
def test_it_equals_the_hat_function(atoms):
    rng = np.random.default_rng(atoms)
    support = np.linspace(-3.0, 5.0, atoms)
    probs = rng.dirichlet(np.ones(atoms), 40)
    reward, discount = 4 * rng.normal(size=40), rng.choice([0.0, 0.5, 0.99, 1.0], 40)
    reward[::5] = rng.integers(-3, 6, 8)  # onto atoms

    found = project(*(torch.from_numpy(x) for x in (probs, support, reward, discount)))

    expected = [projected(*row) for row in zip(probs, [support] * 40, reward, discount, strict=True)]
    assert_close(found, torch.from_numpy(np.stack(expected)), atol=1e-12, rtol=0)
    assert_close(found.sum(-1), torch.ones(40, dtype=torch.float64))


UNEVEN = [0.1, 0.2, 0.3, 0.25, 0.15]


@pytest.mark.parametrize(
    ("reward", "discount", "expected"),
    [
        (0.0, 1.0, UNEVEN),  # b == l == u everywhere: nothing is lost, nothing moves
        (1.0, 1.0, [0.0, 0.1, 0.2, 0.3, 0.4]),  # by a whole atom; the last one takes what lies beyond
        (-1.0, 1.0, [0.3, 0.3, 0.25, 0.15, 0.0]),
        (0.25, 0.0, [0.0, 0.0, 0.75, 0.25, 0.0]),  # terminated: all at the reward
        (1.0, 0.0, [0.0, 0.0, 0.0, 1.0, 0.0]),  # on an atom
        (2.0, 0.0, [0.0, 0.0, 0.0, 0.0, 1.0]),  # on the last
        (-2.0, 0.0, [1.0, 0.0, 0.0, 0.0, 0.0]),  # on the first
        (99.0, 0.9, [0.0, 0.0, 0.0, 0.0, 1.0]),  # far beyond
        (-99.0, 0.9, [1.0, 0.0, 0.0, 0.0, 0.0]),
        (0.0, 0.5, [0.0, 0.2, 0.525, 0.275, 0.0]),  # shrunk: -1, -.5, 0, .5, 1
    ],
)
def test_golden(reward, discount, expected):
    assert one(UNEVEN, reward, discount) == pytest.approx(expected, abs=1e-6)


def test_the_mean_is_that_of_the_shifted_distribution_while_it_stays_inside():
    rng = np.random.default_rng(0)
    support = torch.linspace(-10, 10, 51, dtype=torch.float64)
    probs = torch.from_numpy(rng.dirichlet(np.ones(51), 30))
    reward, discount = torch.from_numpy(rng.uniform(-0.9, 0.9, 30)), torch.full((30,), 0.9, dtype=torch.float64)

    found = project(probs, support, reward, discount)

    assert_close(found @ support, reward + 0.9 * (probs @ support))


def test_it_is_exact_in_single_precision():
    """51 atoms of -10 to 10 are not binary fractions: rounding may shift, but neither lose nor make mass."""
    support = torch.linspace(-10, 10, 51)
    probs = torch.softmax(torch.randn(1000, 51, generator=torch.Generator().manual_seed(0)), -1)
    reward = torch.linspace(-12, 12, 1000)
    found = project(probs, support, reward, torch.full((1000,), 0.99))

    assert found.min() >= 0
    assert_close(found.sum(-1), torch.ones(1000), atol=2e-6, rtol=0)
    assert_close(project(probs, support, torch.zeros(1000), torch.ones(1000)), probs, atol=2e-6, rtol=0)
