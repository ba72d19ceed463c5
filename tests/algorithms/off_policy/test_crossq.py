"""CrossQ: whole updates against those of the oracle, running moments, and what is refused."""

from __future__ import annotations

import pytest
import torch
from oracles.off_policy import BOX, DISCRETE, Reference, batch_of, to_float
from torch.testing import assert_close

from rltrain.algorithms.off_policy.crossq import CrossQ
from rltrain.algorithms.off_policy.settings import CrossQConfig
from rltrain.algorithms.protocol import shares_updates

SMALL = {"widths": (8, 6), "widths_q": (7, 5), "lr": 1e-2, "lr_q": 2e-2, "batch": 12}


def make_crossq(spec=BOX, seed: int = 3, **settings) -> CrossQ:
    return CrossQ(spec, CrossQConfig(**{**SMALL, **settings}), torch.device("cpu"), seed, 1)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, {"policy_delay": 1, "critics": 3}, {"policy_delay": 2, "critics": 1}])
def test_six_updates_equal_those_of_the_oracle(settings):
    crossq = make_crossq(**settings)
    reference = Reference(crossq, seed=3)
    start = crossq.optimizer.param.clone()
    for seed in range(6):
        batch = batch_of(BOX, seed, weighted=seed != 1)
        errors = reference.update(batch)
        update = crossq.update(batch, 0.5)
        if batch.index is not None:
            assert_close(update.priority, errors)

    compared = [(crossq.policy.actor.dense, 0, reference.norm_actor)]
    compared += [(crossq.critics.dense, i, net) for i, net in enumerate(reference.norm_critics)]
    for ours, index, theirs in compared:
        for i, linear in enumerate(theirs.linears):
            assert_close(ours.weights[i][index], linear.weight, atol=1e-7, rtol=0)
            assert_close(ours.biases[i][index, 0], linear.bias, atol=1e-7, rtol=0)
        for norm, their_norm in zip(ours.norms, theirs.norms, strict=True):
            assert_close(norm.gain[index, 0], their_norm.weight, atol=1e-7, rtol=0)
            assert_close(norm.mean[index, 0], their_norm.running_mean, atol=1e-7, rtol=0)
            assert_close(norm.variance[index, 0], their_norm.running_var, atol=1e-7, rtol=0)
    assert (crossq.optimizer.param - start).abs().max() > 1e-3
    assert_close(crossq.temperature.log[0], reference.log_temperature.detach(), atol=1e-9, rtol=0)


@pytest.mark.usefixtures("double")
def test_parts_hold_everything_that_later_updates_depend_on():
    whole, other = make_crossq(policy_delay=2), make_crossq(policy_delay=2, seed=9)
    for seed in range(3):
        whole.update(batch_of(BOX, seed), 0.0)
    for name, part in other.parts().items():
        part.load_state_dict(whole.parts()[name].state_dict())
    for seed in range(3, 6):
        for crossq in (whole, other):
            crossq.update(batch_of(BOX, seed), 0.0)

    assert torch.equal(whole.optimizer.param, other.optimizer.param)
    assert torch.equal(whole.critics_optimizer.param, other.critics_optimizer.param)
    assert_close(whole.critics.state_dict(), other.critics.state_dict(), atol=0, rtol=0)


def test_actors_act_by_the_running_moments_that_travel_with_the_weights():
    crossq, actor = make_crossq(policy_delay=1), make_crossq(seed=5).policy.eval()
    batch = to_float(batch_of(BOX, 0))
    for _ in range(5):
        crossq.update(batch, 0.0)
    actor.load_state_dict(crossq.policy.state_dict())
    obs = torch.randn(16, 3)

    act = actor.act(obs, None, None, torch.zeros(16, 2), False)
    with torch.no_grad():
        expected, _ = crossq.policy.sample(obs, torch.zeros(16, 2))
    assert_close(act.action, expected)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="needs Box actions; discrete has discrete actions"):
        make_crossq(DISCRETE)
    assert not shares_updates(make_crossq())  # the moments are those of the whole batch


def test_defaults_are_those_of_the_paper():
    config = CrossQConfig()
    assert (config.critics, config.widths_q, config.widths, config.activation) == (2, (2048, 2048), (256, 256), "relu")
    assert (config.lr, config.lr_q, config.lr_temperature, config.adam_eps) == (1e-3, None, None, 1e-8)
    assert (config.policy_delay, config.updates_per_step, config.warmup, config.random_start) == (3, 1.0, 5000, True)
    assert (config.batch, config.capacity, config.gamma, config.temperature) == (256, 1_000_000, 0.99, 1.0)
    crossq = make_crossq()
    assert (crossq.optimizer.betas, crossq.critics_optimizer.betas) == ((0.5, 0.999), (0.5, 0.999))
    assert crossq.temperature._optimizer.betas == (0.9, 0.999)
    assert crossq.target_entropy == -2.0  # two dimensions
    assert not any("target" in name for name in crossq.parts())
