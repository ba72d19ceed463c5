"""TD3+BC: whole updates against those written out, and what its weight of the critic means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles.off_policy import BOX, batch_of, flat, nets
from oracles.offline import TD3BCReference
from torch.testing import assert_close

from rltrain.algorithms.offline.settings import TD3BCConfig
from rltrain.algorithms.offline.td3_bc import TD3BC, imitating_loss

SMALL: dict[str, Any] = {
    "widths": (8, 6), "lr": 1e-2, "lr_q": 2e-2, "batch": 12, "tau": 0.1, "normalize_obs": False,
}  # fmt: skip


def made(**settings: Any) -> TD3BC:
    return TD3BC(BOX, TD3BCConfig(**{**SMALL, **settings}), torch.device("cpu"), 3, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"policy_delay": 1, "smoothing": 3.0, "q_weight": 0.4},
        {"policy_delay": 3, "max_grad_norm": 0.1, "lr_q": None, "activation": "tanh", "critics": 3},
    ],
    ids=["default", "each update", "clipped"],
)
def test_six_updates_equal_those_written_out(settings):
    td3_bc = made(**settings)
    reference = TD3BCReference(td3_bc, seed=3)
    start = td3_bc.optimizer.param.clone()
    for seed in range(6):
        batch = batch_of(BOX, seed, weighted=False)
        reference.update(batch)
        td3_bc.update(batch, 0.5)

    for ours, theirs in [
        (td3_bc.policy.actor, reference.actor),
        (td3_bc.critics, reference.critics),
        (td3_bc.target.module, reference.target_actor),
        (td3_bc.critics_target.module, reference.target_critics),
    ]:
        assert_close(flat(nets(ours.dense)), flat(theirs), atol=1e-7, rtol=0)
    assert (td3_bc.optimizer.param - start).abs().max() > 1e-3


def test_the_scale_of_rewards_does_not_change_the_policy_loss():
    q, chosen = torch.randn(1, 7, 1, requires_grad=True), torch.randn(7, 2, requires_grad=True)
    action = torch.randn(7, 2)
    one = torch.autograd.grad(imitating_loss(q, chosen, action, 2.5), [q, chosen])
    other = torch.autograd.grad(imitating_loss(100 * q, chosen, action, 2.5), [q, chosen])

    assert_close(one, other)


def test_without_the_critic_it_is_behaviour_cloning():
    td3_bc = made(q_weight=0.0, policy_delay=1)
    batch = batch_of(BOX, 0, weighted=False)
    td3_bc.update(batch, 0.0)
    other = made(q_weight=0.0, policy_delay=1)
    other.update(replace(batch, reward=batch.reward * 50 + 7), 0.0)

    assert torch.equal(td3_bc.optimizer.param, other.optimizer.param)
