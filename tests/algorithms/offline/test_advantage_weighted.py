"""Implicit Q-learning and AWAC: whole updates against those written out, and the parts that papers warn about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles.off_policy import BOX, DISCRETE, MASKED, batch_of, flat, nets
from oracles.offline import AWACReference, ImplicitQReference
from torch.testing import assert_close

from rltrain.algorithms.functions.q_losses import expectile_loss
from rltrain.algorithms.offline.awac import AWAC
from rltrain.algorithms.offline.implicit_q import ImplicitQ
from rltrain.algorithms.offline.policies import BoundedGaussian
from rltrain.algorithms.offline.settings import AWACConfig, ImplicitQConfig

SMALL: dict[str, Any] = {"widths": (8, 6), "lr": 1e-2, "lr_q": 2e-2, "batch": 12, "tau": 0.1}
SETTINGS = [
    {},
    {"advantage_factor": 0.3, "max_weight": 1.1, "lr_q": None, "activation": "tanh", "critics": 3},
    {"max_grad_norm": 0.1, "widths_q": (7,)},
]
each = pytest.mark.parametrize("settings", SETTINGS, ids=["default", "limited", "clipped"])
kind = pytest.mark.parametrize("spec", [BOX, DISCRETE, MASKED], ids=lambda spec: spec.id)


def made(cls: Any, config: Any, spec: Any, **settings: Any) -> Any:
    return cls(spec, config(**{**SMALL, **settings}), torch.device("cpu"), 3, 1)


def compare(ours: Any, reference: Any) -> None:
    assert_close(flat(nets(ours.policy.actor.dense)), flat(reference.actor), atol=1e-7, rtol=0)
    assert_close(flat(nets(ours.critics.dense)), flat(reference.critics), atol=1e-7, rtol=0)
    assert_close(flat(nets(ours.target.module.dense)), flat(reference.target_critics), atol=1e-7, rtol=0)
    if reference.box:
        assert_close(ours.policy.log_std.detach(), reference.log_std.detach(), atol=1e-7, rtol=0)
        assert reference.log_std.detach().abs().max() > 1e-3


@each
@kind
def test_updates_of_implicit_q_equal_those_written_out(spec, settings):
    extra = {"expectile": 0.9, "cosine": False} if "max_weight" in settings else {}
    ours = made(ImplicitQ, ImplicitQConfig, spec, **settings, **extra)
    reference = ImplicitQReference(ours, 3)
    for seed in range(6):
        batch = batch_of(spec, seed, weighted=False)
        reference.update(batch, seed / 6)
        ours.update(batch, seed / 6)

    compare(ours, reference)
    assert_close(flat(nets(ours.value.dense)), flat(reference.value), atol=1e-7, rtol=0)


@each
@kind
def test_updates_of_awac_equal_those_written_out(spec, settings):
    ours = made(AWAC, AWACConfig, spec, **settings)
    reference = AWACReference(ours, 3)
    for seed in range(6):
        batch = batch_of(spec, seed, weighted=False)
        reference.update(batch)
        ours.update(batch, 0.5)

    compare(ours, reference)


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.9])
def test_the_value_that_minimises_the_loss_is_the_expectile(expectile):
    """Of a sample: where tau * sum of what lies above equals (1 - tau) * sum of what lies below."""
    target = torch.as_tensor(np.random.default_rng(0).exponential(size=200))
    value = torch.zeros(1, requires_grad=True)
    for _ in range(300):
        loss, _ = expectile_loss(value.expand(200), target, expectile)
        (grad,) = torch.autograd.grad(loss, value)
        with torch.no_grad():
            value -= 0.5 * grad
    above, below = (target - value.detach()).clip(min=0).sum(), (value.detach() - target).clip(min=0).sum()
    assert float(expectile * above) == pytest.approx(float((1 - expectile) * below), rel=1e-6)


@kind
def test_implicit_q_asks_for_no_value_of_an_action_outside_of_the_data(spec, monkeypatch):
    """Values of other actions may be anything."""
    ours = made(ImplicitQ, ImplicitQConfig, spec)
    batch = batch_of(spec, 0, weighted=False)
    asked = []
    real = ours.critics.forward

    def forward(obs: Any, *inputs: Any, **options: Any) -> Any:
        asked.extend(inputs)
        return real(obs, *inputs, **options)

    monkeypatch.setattr(ours.critics, "forward", forward)
    monkeypatch.setattr(ours.target.module, "forward", forward)
    ours.update(batch, 0.0)
    assert all(torch.equal(action, batch.action) for action in asked)
    if spec is not BOX:  # an action that is not in the data may have any value
        once = replace(batch, action=torch.zeros_like(batch.action), action_mask=None, next_action_mask=None)
        last = ours.critics.dense.pairs[-1]
        plain = made(ImplicitQ, ImplicitQConfig, spec)
        other = made(ImplicitQ, ImplicitQConfig, spec)
        with torch.no_grad():
            for network in (other.critics, other.target.module):
                network.dense.pairs[-1][1][:, :, 1:] += 1e6
        plain.update(once, 0.0)
        other.update(once, 0.0)
        assert torch.equal(plain.optimizer.param, other.optimizer.param)
        assert last[1].shape[-1] == 4


@pytest.mark.parametrize(("cls", "config"), [(ImplicitQ, ImplicitQConfig), (AWAC, AWACConfig)])
def test_actions_at_the_bounds_have_a_finite_likelihood(cls, config):
    """A squashed distribution has none there: unrolls of PPO are clipped to the bounds."""
    ours = made(cls, config, BOX)
    batch = batch_of(BOX, 0, weighted=False)
    for _ in range(3):
        ours.update(replace(batch, action=batch.action.sign()), 0.0)
    assert torch.isfinite(ours.optimizer.param).all()


def test_a_termination_has_no_later_value_and_a_time_limit_has():
    ended, goes_on = (replace(batch_of(BOX, 0, weighted=False), discount=torch.full((12,), x)) for x in (0.0, 0.99))
    after = torch.randn(12, 3)
    for batch, same in ((ended, True), (goes_on, False)):
        one, other = made(ImplicitQ, ImplicitQConfig, BOX), made(ImplicitQ, ImplicitQConfig, BOX)
        one.update(batch, 0.0)
        other.update(replace(batch, next_obs=after), 0.0)
        assert torch.equal(one.critics_optimizer.param, other.critics_optimizer.param) == same


def test_the_policy_acts_by_its_mean_and_explores_within_the_bounds():
    policy = BoundedGaussian(BOX, ImplicitQConfig(widths=(8,)), 1, torch.Generator().manual_seed(0))
    obs, noise = torch.randn(50, 3), 100 * torch.randn(50, 2)
    greedy = policy.act(obs, None, None, noise, False).action
    explored = policy.act(obs, None, None, noise, True).action

    assert_close(greedy, policy.distribution(obs, None).mode().detach())
    assert explored.abs().max() == 1
    assert greedy.abs().max() < 1
