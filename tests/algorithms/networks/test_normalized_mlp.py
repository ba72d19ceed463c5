"""NormalizedMLP: layer and batch (re)normalisation and dropout against formulas, and which tensors get a gradient."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from rltrain.algorithms.functions.optim import flatten
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.networks import normalized_mlp
from rltrain.algorithms.networks.normalized_mlp import BatchRenorm, NormalizedMLP

pytestmark = pytest.mark.usefixtures("double")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(norm="layer", dropout: float = 0.0, nets: int = 3) -> NormalizedMLP:
    net = NormalizedMLP(4, (7, 5), 2, nets, "relu", torch.Generator().manual_seed(1), norm, dropout)
    for seed, param in enumerate(net.parameters()):
        param.data += 0.1 * normal(*param.shape, seed=seed)
    flatten(net)
    return net


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_some_nets_are_computed_as_among_all(norm):
    net, x = made(norm), normal(9, 4)

    assert torch.equal(net(x, first=True), net(x)[:1])
    assert_close(net(x, nets=torch.tensor([2, 0])), net(x)[[2, 0]])


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_frozen_passes_gradients_on_and_gives_parameters_none(norm):
    net, a, b = made(norm), normal(9, 3), normal(9, 1).requires_grad_()

    (expected,) = torch.autograd.grad(net(a, b).sum(), b)
    net(a, b, frozen=True).sum().backward()

    assert_close(b.grad, expected)
    assert all((param.grad == 0).all() for param in net.parameters())


def test_dropout_sets_its_share_to_zero_keeps_the_mean_and_is_off_without_a_generator():
    net, x = made("none", 0.25, nets=1), normal(1, 4)
    net.weights[1].data.fill_(1.0)
    net.biases[1].data.fill_(0.0)
    many = x.expand(4000, 4)

    assert_close(net(many), net(x).expand(1, 4000, 2))
    sums = net(many, rng=Rng(0))  # of another subset of units in each row
    assert len(sums[0, :, 0].unique()) > 20
    again = net(many, rng=Rng(0))
    assert torch.equal(sums, again)
    linear = NormalizedMLP(4, (50,), 1, 1, "relu", torch.Generator().manual_seed(1), "none", 0.25)
    ones = torch.ones(1, 4)
    kept = torch.stack([linear(ones, rng=Rng(seed)) for seed in range(400)])
    assert_close(kept.mean(), linear(ones).squeeze(), atol=0.02, rtol=0)


def by_hand(x, mean, variance, running_mean, running_variance, gain, shift, warm):
    """Ioffe 2017, algorithm 1, with CrossQ's constants; one number at a time."""
    y = torch.empty_like(x)
    for j in range(x.shape[1]):
        deviation, running = float(variance[j] + 1e-3) ** 0.5, float(running_variance[j] + 1e-3) ** 0.5
        r = min(max(deviation / running, 1 / 3), 3.0) if warm else 1.0
        d = min(max(float(mean[j] - running_mean[j]) / running, -5.0), 5.0) if warm else 0.0
        for i in range(x.shape[0]):
            y[i, j] = gain[j] * ((x[i, j] - mean[j]) / deviation * r + d) + shift[j]
    return y


@pytest.mark.parametrize("scale", [1.0, 30.0])  # 30: both corrections reach their bounds
def test_batch_renormalisation_equals_the_papers(monkeypatch, scale):
    monkeypatch.setattr(normalized_mlp, "RENORM_AFTER", 2)
    norm = BatchRenorm(1, 3)
    norm.gain.data.copy_(normal(1, 1, 3, seed=5))
    norm.shift.data.copy_(normal(1, 1, 3, seed=6))
    gain, shift = norm.gain.detach()[0, 0], norm.shift.detach()[0, 0]
    running_mean, running_variance = torch.zeros(3), torch.ones(3)
    for batch in range(4):
        x = (1 + (scale - 1) * (batch == 3)) * normal(8, 3, seed=batch) + scale
        mean, variance = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
        expected = by_hand(x, mean, variance, running_mean, running_variance, gain, shift, batch >= 2)
        actual = norm(x[None], lambda parameter: parameter, True)

        assert_close(actual[0].detach(), expected)
        running_mean = 0.99 * running_mean + 0.01 * mean
        running_variance = 0.99 * running_variance + 0.01 * variance
        assert_close(norm.mean[0, 0], running_mean)
        assert_close(norm.variance[0, 0], running_variance)
    expected = gain * (x - running_mean) / (running_variance + 1e-3).sqrt() + shift
    assert_close(norm(x[None], lambda parameter: parameter, False)[0], expected)
    assert_close(norm.row(x), expected)
    assert norm.batches == 4


def test_gradients_pass_through_the_moments_of_the_batch_but_not_through_the_corrections(monkeypatch):
    monkeypatch.setattr(normalized_mlp, "RENORM_AFTER", 0)
    norm, x = BatchRenorm(1, 1), normal(5, 1).requires_grad_()
    (actual,) = torch.autograd.grad(norm(x[None], lambda p: p, True)[0, 0, 0], x)
    norm = BatchRenorm(1, 1)
    deviation = (x.detach().var(correction=0) + 1e-3).sqrt()
    r, running = deviation / (1 + 1e-3) ** 0.5, (1 + 1e-3) ** 0.5
    d = (x.detach().mean() / running).clamp(-5, 5)
    own = (x - x.mean()) / (x.var(correction=0) + 1e-3).sqrt() * r.clamp(1 / 3, 3) + d
    (expected,) = torch.autograd.grad(own[0, 0], x)

    assert_close(actual, expected)
    assert float(expected.detach().sum()) == pytest.approx(0.0, abs=1e-12)


def test_running_statistics_give_an_actor_the_learners_numbers():
    net, x = made("batch", nets=1), normal(6, 4)
    for seed in range(3):
        net(normal(16, 4, seed=seed), batch_statistics=True)

    assert_close(net.rows(x), net(x)[0])
    before = net.norms[0].mean.clone()
    net(x)
    assert torch.equal(net.norms[0].mean, before)
