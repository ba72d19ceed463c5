"""DDPG: whole updates against those written anew, and the traps of the literature."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracles.off_policy import BOX, DISCRETE, Reference, batch_of, flat, nets
from torch.testing import assert_close

from rltrain.algorithms.off_policy.ddpg import DDPG
from rltrain.algorithms.off_policy.settings import DDPGConfig

SMALL = {"widths": (8, 6), "lr": 1e-2, "lr_q": 2e-2, "batch": 12, "tau": 0.1}


@pytest.fixture(autouse=True)
def _double():
    """Everything in float64, so that agreement means agreement."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_ddpg(spec=BOX, seed: int = 3, **settings) -> DDPG:
    return DDPG(spec, DDPGConfig(**{**SMALL, **settings}), torch.device("cpu"), seed, 1)


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_grad_norm": 0.1, "tau": 1.0}, {"activation": "tanh", "lr_q": None, "widths": ()}],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_four_updates_equal_those_written_anew(settings):
    ddpg = make_ddpg(**settings)
    reference = Reference(ddpg, seed=3)
    start = [x.clone() for x in flat(reference.actor)]
    for seed in range(4):
        batch = batch_of(BOX, seed, weighted=seed != 1)
        errors = reference.update(batch)
        update = ddpg.update(batch, 0.5)
        if batch.index is not None:
            assert_close(update.priority, errors)

    for ours, theirs in [
        (ddpg.policy.actor, reference.actor),
        (ddpg.critic, reference.critics),
        (ddpg.target.module, reference.target_actor),
        (ddpg.critic_target.module, reference.target_critics),
    ]:
        assert_close(flat(nets(ours.dense)), flat(theirs), atol=1e-7, rtol=0)
    assert max((a - b).abs().max() for a, b in zip(flat(reference.actor), start, strict=True)) > 1e-3


def test_the_policys_step_gives_no_gradient_to_the_critic():
    """With weights of 0 the critic's own loss has none, so what it holds afterwards came from the policy's."""
    ddpg = make_ddpg()
    start = ddpg.optimizer.param.clone()

    ddpg.update(replace(batch_of(BOX, 0), weight=torch.zeros(12)), 0.0)

    assert (ddpg.critic_optimizer.grad == 0).all()
    assert not torch.equal(ddpg.optimizer.param, start)


def test_after_a_termination_the_target_is_the_reward():
    errors = []
    for scale in (1.0, 100.0):
        batch = batch_of(BOX, 0)
        batch = replace(batch, discount=torch.zeros(12), next_obs=scale * batch.next_obs)
        errors.append(make_ddpg().update(batch, 0.0).priority)

    assert torch.equal(*errors)


def test_targets_begin_as_copies_and_are_part_of_a_checkpoint():
    ddpg, other = make_ddpg(), make_ddpg(seed=8)
    assert_close(flat(nets(ddpg.target.module.dense)), flat(nets(ddpg.policy.actor.dense)), atol=0, rtol=0)
    assert_close(flat(nets(ddpg.critic_target.module.dense)), flat(nets(ddpg.critic.dense)), atol=0, rtol=0)
    ddpg.update(batch_of(BOX, 0), 0.0)
    for name, part in other.parts().items():
        part.load_state_dict(ddpg.parts()[name].state_dict())
    for algorithm in (ddpg, other):
        algorithm.update(batch_of(BOX, 1), 0.0)

    assert torch.equal(ddpg.optimizer.param, other.optimizer.param)
    assert torch.equal(ddpg.critic_optimizer.param, other.critic_optimizer.param)
    assert_close(ddpg.critic_target.state_dict(), other.critic_target.state_dict(), atol=0, rtol=0)


def test_discrete_actions_are_refused_with_one_line():
    with pytest.raises(ValueError, match="this algorithm needs Box actions; discrete has discrete actions"):
        make_ddpg(DISCRETE)


def test_the_noise_follows_its_schedule_into_the_weights():
    ddpg = make_ddpg(noise=0.4, noise_end=0.0)
    ddpg.update(batch_of(BOX, 0), 0.25)

    assert ddpg.policy.state_dict()["sigma"].item() == pytest.approx(0.3)
