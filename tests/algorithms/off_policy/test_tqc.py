"""TQC: whole updates against those of the oracle, the loss, and what is refused."""

from __future__ import annotations

import pytest
import torch
from oracles.off_policy import BOX, DISCRETE, Reference, batch_of, flat, nets
from torch.testing import assert_close

from rltrain.algorithms.functions.q_losses import quantile_loss
from rltrain.algorithms.off_policy.settings import TQCConfig
from rltrain.algorithms.off_policy.tqc import TQC

SMALL = {"widths": (8, 6), "widths_q": (7, 5), "lr": 1e-2, "lr_q": 2e-2, "batch": 6, "tau": 0.1, "critics": 3}


def make_tqc(spec=BOX, seed: int = 3, **settings) -> TQC:
    return TQC(spec, TQCConfig(**{**SMALL, "quantiles": 4, "drop": 1, **settings}), torch.device("cpu"), seed, 1)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "settings",
    [{}, {"drop": 0, "policy_delay": 2}, {"critics": 1, "quantiles": 1, "drop": 0}, {"drop": 3, "layer_norm": True}],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_four_updates_equal_those_of_the_oracle(settings):
    tqc = make_tqc(**settings)
    reference = Reference(tqc, seed=3)
    start = [x.clone() for x in flat(reference.actor)]
    for seed in range(4):
        batch = batch_of(BOX, seed, rows=6, weighted=seed != 1)
        errors = reference.update(batch)
        update = tqc.update(batch, 0.5)
        if batch.index is not None:
            assert_close(update.priority, errors)

    for ours, theirs in [
        (tqc.policy.actor, reference.actor),
        (tqc.critics, reference.critics),
        (tqc.target.module, reference.target_critics),
    ]:
        assert_close(flat(nets(ours.dense)), flat(theirs), atol=1e-7, rtol=0)
    assert max((a - b).abs().max() for a, b in zip(flat(reference.actor), start, strict=True)) > 1e-3
    assert_close(tqc.temperature.log[0], reference.log_temperature.detach(), atol=1e-9, rtol=0)


def test_the_quantile_loss_is_least_at_the_quantiles():
    """Of samples 0..99 and three quantiles: those at 1/6, 1/2 and 5/6."""
    z = torch.zeros(1, 1, 3, requires_grad=True)
    samples = torch.arange(100.0).unsqueeze(0)
    optimizer = torch.optim.SGD([z], lr=100.0)
    for _ in range(600):
        optimizer.zero_grad()
        quantile_loss(z, samples, None)[0].backward()
        optimizer.step()

    assert z.detach().flatten().tolist() == pytest.approx([16.5, 49.5, 82.5], abs=0.6)


@pytest.mark.usefixtures("double")
def test_the_gradient_of_the_quantile_loss_is_that_of_its_value():
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target, weight = torch.randn(3, 5), torch.tensor([0.3, 1.0, 0.7])
    loss, error = quantile_loss(z, target, weight)
    (grad,) = torch.autograd.grad(loss, z)
    step = 1e-6
    for index in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        moved = z.detach().clone()
        moved[index] += step
        numeric = (quantile_loss(moved, target, weight)[0] - loss.detach()) / step
        assert_close(grad[index], numeric, atol=1e-5, rtol=1e-4)
    assert_close(error, z.detach().mean(-1) - target.mean(-1))


def test_what_it_cannot_do_is_refused():
    with pytest.raises(
        ValueError, match=r"needs Box actions; discrete has discrete actions\. Use ppo, or .* dqn or sac"
    ):
        make_tqc(DISCRETE)
    with pytest.raises(ValueError, match="drop must be below quantiles, got drop 4 and quantiles 4"):
        make_tqc(drop=4)


def test_defaults_are_those_of_the_paper():
    config = TQCConfig()
    assert (config.critics, config.quantiles, config.drop) == (5, 25, 2)
    assert (config.widths_q, config.widths, config.activation) == ((512, 512, 512), (256, 256), "relu")
    assert (config.lr, config.lr_q, config.tau, config.target_every, config.policy_delay) == (3e-4, None, 0.005, 1, 1)
    assert (config.batch, config.capacity, config.gamma, config.temperature) == (256, 1_000_000, 0.99, 1.0)
    tqc = make_tqc(critics=5, quantiles=25, drop=2)
    assert tqc.kept == 5 * 23
    assert tqc.target_entropy == -2.0  # two dimensions
