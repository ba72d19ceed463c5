"""Noisy layers against the paper's formula, and the size of their noise."""

from __future__ import annotations

import math

import pytest
import torch
from oracles.q_learning import dense, squash
from torch.testing import assert_close

from rltrain.algorithms.networks.noisy import NoisyMLP, squashed


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("widths", "outputs"), [((6,), 3), ((), 2), ((5, 4), None)])
def test_forward_equals_the_formula(widths, outputs):
    net = NoisyMLP(4, widths, outputs, generator=rng())
    net.draw(rng(1))
    x = torch.randn(7, 4, generator=rng(2))
    p = {f"net.{name}": value for name, value in net.named_parameters()}
    last_is_linear = outputs is not None

    assert_close(net(x), dense(p, "net", x, net.noise, last_is_linear))
    assert_close(net(x, noisy=False), dense(p, "net", x, None, last_is_linear))
    assert (net(x) - net(x, noisy=False)).abs().max() > 0.05


def test_noise_is_factorised_and_squashed():
    """E f(e)^2 = E|e| = sqrt(2 / pi); a weight's noise is the product of two."""
    net = NoisyMLP(200, (), 300, generator=rng())
    net.draw(rng(1))
    e_in, e_out = net.noise.split([200, 300])

    assert net.noise.square().mean().item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.1)
    assert net.noise.mean().item() == pytest.approx(0.0, abs=0.1)
    with torch.no_grad():
        unit = torch.eye(200)
        columns = net(unit) - net(torch.zeros(1, 200))  # [200, 300] the noisy weights, transposed
    assert_close(columns, (net.weight0 + net.weight_sigma0 * e_out[:, None] * e_in).T.detach(), atol=1e-5, rtol=1e-5)


def test_weights_begin_as_in_the_paper():
    net = NoisyMLP(25, (10,), 3, generator=rng())
    for i, inputs in enumerate((25, 10)):
        mean = getattr(net, f"weight{i}")
        assert mean.abs().max() <= 1 / math.sqrt(inputs)
        assert mean.abs().max() > 0.7 / math.sqrt(inputs)
        assert_close(getattr(net, f"weight_sigma{i}"), torch.full_like(mean, 0.5 / math.sqrt(inputs)))
        assert_close(getattr(net, f"bias_sigma{i}").max(), torch.tensor(0.5 / math.sqrt(inputs)))
    assert net.noise.abs().max() == 0


def test_noise_repeats_with_its_generator_and_travels_with_the_weights():
    one, two = NoisyMLP(3, (), 2, generator=rng()), NoisyMLP(3, (), 2, generator=rng(9))
    one.draw(rng(5))
    two.load_state_dict(one.state_dict())

    assert torch.equal(one.noise, two.noise)
    two.draw(rng(5))
    assert torch.equal(one.noise, two.noise)


def test_both_means_and_sizes_have_a_gradient():
    net = NoisyMLP(3, (4,), 2, generator=rng())
    net.draw(rng(1))
    net(torch.randn(5, 3, generator=rng(2))).square().sum().backward()

    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in net.parameters())


@pytest.mark.parametrize(("widths", "outputs"), [((6,), 3), ((), 2), ((5, 4), None)])
def test_each_row_can_have_its_own_noise(widths, outputs):
    net = NoisyMLP(4, widths, outputs, generator=rng())
    x, e = torch.randn(7, 4, generator=rng(2)), torch.randn(7, sum(net.sizes), generator=rng(3))
    p = {f"net.{name}": value for name, value in net.named_parameters()}

    found = net(x, squashed(e))

    for row in range(7):
        expected = dense(p, "net", x[row : row + 1], squash(e[row]), last_is_linear=outputs is not None)
        assert_close(found[row : row + 1], expected)
