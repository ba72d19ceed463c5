"""TD3: whole updates against those written anew, and the traps of the literature."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracles.off_policy import BOX, DISCRETE, Reference, batch_of, flat, nets
from torch.testing import assert_close

from rltrain.algorithms.off_policy.settings import TD3Config
from rltrain.algorithms.off_policy.td3 import TD3

SMALL = {"widths": (8, 6), "lr": 1e-2, "lr_q": 2e-2, "batch": 12, "tau": 0.1}


@pytest.fixture(autouse=True)
def _double():
    """Everything in float64, so that agreement means agreement."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_td3(spec=BOX, seed: int = 3, **settings) -> TD3:
    return TD3(spec, TD3Config(**{**SMALL, **settings}), torch.device("cpu"), seed, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"policy_delay": 1, "smoothing": 3.0, "smoothing_clip": 0.2},  # noise that is clipped most of the time
        {"policy_delay": 3, "smoothing": 2.0, "smoothing_clip": 5.0, "max_grad_norm": 0.1},  # actions that are
        {"activation": "tanh", "smoothing": 0.0, "lr_q": None},
        {"critics": 4, "target_critics": 2, "policy_value": "mean", "widths_q": (7, 5)},  # REDQ
        {"layer_norm": True, "dropout": 0.2, "policy_value": "min"},  # DroQ
        {"layer_norm": True, "activation": "tanh", "policy_delay": 1},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_six_updates_equal_those_written_anew(settings):
    td3 = make_td3(**settings)
    reference = Reference(td3, seed=3)
    start = [x.clone() for x in flat(reference.actor)]
    for seed in range(6):
        batch = batch_of(BOX, seed, weighted=seed != 1)
        errors = reference.update(batch)
        update = td3.update(batch, 0.5)
        if batch.index is not None:
            assert_close(update.priority, errors)

    for ours, theirs in [
        (td3.policy.actor, reference.actor),
        (td3.critics, reference.critics),
        (td3.target.module, reference.target_actor),
        (td3.critics_target.module, reference.target_critics),
    ]:
        assert_close(flat(nets(ours.dense)), flat(theirs), atol=1e-7, rtol=0)
    assert max((a - b).abs().max() for a, b in zip(flat(reference.actor), start, strict=True)) > 1e-3


def test_policy_and_all_targets_wait_for_the_delay_and_go_on_waiting_after_a_resume():
    td3, other = make_td3(policy_delay=3), make_td3(policy_delay=3, seed=8)

    def still(algorithm: TD3, seed: int) -> list[bool]:
        watched = [algorithm.optimizer.param, *algorithm.target.module.parameters()]
        watched += list(algorithm.critics_target.module.parameters())
        before = [x.detach().clone() for x in watched]
        algorithm.update(batch_of(BOX, seed), 0.0)
        return [torch.equal(a, b) for a, b in zip(watched, before, strict=True)]

    assert all(still(td3, 0))
    for name, part in other.parts().items():
        part.load_state_dict(td3.parts()[name].state_dict())
    assert all(still(other, 1))
    assert not any(still(other, 2))
    assert all(still(other, 3))


def test_the_policy_climbs_the_first_critic_only_and_no_critic_learns_from_it():
    td3 = make_td3(policy_delay=1, lr_q=1e-30)
    other = make_td3(policy_delay=1, lr_q=1e-30)
    with torch.no_grad():
        for weight, _ in other.critics.dense.pairs:
            weight[1] *= 3.0
    batch = replace(batch_of(BOX, 0), discount=torch.zeros(12))

    before = td3.critics_optimizer.param.clone()
    td3.update(batch, 0.0)
    other.update(batch, 0.0)

    assert torch.equal(td3.optimizer.param, other.optimizer.param)
    assert_close(td3.critics_optimizer.param, before, atol=1e-20, rtol=0)
    waits = make_td3(policy_delay=99, lr_q=1e-30)
    waits.update(batch, 0.0)
    assert torch.equal(td3.critics_optimizer.grad, waits.critics_optimizer.grad)


def test_after_a_termination_the_target_is_the_reward():
    errors = []
    for scale in (1.0, 100.0):
        batch = batch_of(BOX, 0)
        batch = replace(batch, discount=torch.zeros(12), next_obs=scale * batch.next_obs)
        errors.append(make_td3().update(batch, 0.0).priority)

    assert torch.equal(*errors)


def test_bounds_of_the_environment_do_not_reach_the_algorithm():
    """Smoothing, its limit and the clipping are in the policy's units, whatever the bounds are."""
    wide = replace(BOX, action=replace(BOX.action, low=(-100.0, 0.0), high=(5.0, 1e4)))
    one, other = make_td3(BOX), make_td3(wide)
    for seed in range(2):
        one.update(batch_of(BOX, seed), 0.0)
        other.update(batch_of(BOX, seed), 0.0)

    assert torch.equal(one.critics_optimizer.param, other.critics_optimizer.param)
    assert torch.equal(one.optimizer.param, other.optimizer.param)


def test_discrete_actions_are_refused_with_one_line():
    with pytest.raises(ValueError, match="this algorithm needs Box actions; discrete has discrete actions"):
        make_td3(DISCRETE)
