"""SAC: whole updates against those written anew, for Box and Discrete actions, and the traps of the literature."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from oracles.off_policy import BOX, DISCRETE, MASKED, Reference, batch_of, flat, nets, to_float
from torch.testing import assert_close

from rltrain.algorithms import algorithm_class
from rltrain.algorithms.off_policy.discrete_sac import DiscreteSAC, expected
from rltrain.algorithms.off_policy.sac import SAC
from rltrain.algorithms.off_policy.settings import DroQConfig, REDQConfig, SACConfig
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf

SMALL = {"widths": (8, 6), "lr": 1e-2, "lr_q": 2e-2, "batch": 12, "tau": 0.1}


def make_sac(spec=BOX, seed: int = 3, **settings):
    return algorithm_class("sac")(spec, SACConfig(**{**SMALL, **settings}), torch.device("cpu"), seed, 1)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", [BOX, DISCRETE, MASKED], ids=lambda spec: spec.id)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"learn_temperature": False, "temperature": 0.3, "max_grad_norm": 0.2},
        {"learn_temperature": False, "temperature": 0.0},
        {"target_every": 2, "temperature": 0.1, "lr_temperature": 0.1, "activation": "tanh"},
        {"target_entropy": 0.7, "lr_q": None, "target_entropy_share": 0.5},
        {"critics": 1, "policy_delay": 2},
        {"critics": 5, "target_critics": 2, "policy_value": "mean", "widths_q": (7, 5)},  # REDQ
        {"layer_norm": True, "dropout": 0.2, "policy_value": "mean"},  # DroQ
        {"layer_norm": True, "activation": "tanh", "policy_value": "first"},
        {"dropout": 0.3, "critics": 3, "target_critics": 1},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_four_updates_equal_those_written_anew(spec, settings):
    """Later ones are made with what the earlier left in optimisers, targets, temperature and generator."""
    sac = make_sac(spec, **settings)
    reference = Reference(sac, seed=3)
    start = [x.clone() for x in flat(reference.actor)]
    for seed in range(4):
        batch = batch_of(spec, seed, weighted=seed != 1)
        errors = reference.update(batch)
        update = sac.update(batch, 0.5)
        if batch.index is None:
            assert update.priority is None
        else:
            assert_close(update.priority, errors)

    for ours, theirs in [
        (sac.policy.actor, reference.actor),
        (sac.critics, reference.critics),
        (sac.target.module, reference.target_critics),
    ]:
        assert_close(flat(nets(ours.dense)), flat(theirs), atol=1e-7, rtol=0)
    assert max((a - b).abs().max() for a, b in zip(flat(reference.actor), start, strict=True)) > 1e-3
    assert_close(sac.temperature.log[0], reference.log_temperature.detach(), atol=1e-9, rtol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, {"activation": "tanh", "log_std_init": 0.5}, {"widths": (5,), "lr": 0.3}])
def test_four_updates_with_gsde_equal_those_of_the_oracle(settings):
    """With the last settings means reach their bounds."""
    sac = make_sac(**{"sde": True, "log_std_init": -1.0, **settings})
    reference = Reference(sac, seed=3)
    start = sac.policy.state_noise.weight.detach().clone()
    for seed in range(4):
        batch = batch_of(BOX, seed)
        reference.update(batch)
        sac.update(batch, 0.5)

    assert_close(flat(nets(sac.policy.actor.dense)), flat(reference.actor), atol=1e-7, rtol=0)
    assert_close(flat(nets(sac.critics.dense)), flat(reference.critics), atol=1e-7, rtol=0)
    weight, bias, log_std = reference.gsde
    (head,) = sac.policy.head.pairs
    assert_close(head[0], weight, atol=1e-7, rtol=0)
    assert_close(head[1], bias, atol=1e-7, rtol=0)
    assert_close(sac.policy.state_noise.weight, log_std, atol=1e-7, rtol=0)
    assert (log_std - start).abs().max() > 1e-3


@pytest.mark.parametrize("spec", [BOX, MASKED], ids=lambda spec: spec.id)
def test_after_a_termination_neither_value_nor_entropy_counts(spec):
    """With discount 0 the target is the reward, whatever the next observation is."""
    errors = []
    for scale in (1.0, 100.0):
        torch.manual_seed(0)
        batch = to_float(batch_of(spec, 0))
        batch = replace(batch, discount=torch.zeros(12), next_obs=scale * batch.next_obs)
        errors.append(make_sac(spec).update(batch, 0.0).priority)

    assert torch.equal(*errors)


@pytest.mark.parametrize("spec", [BOX, MASKED], ids=lambda spec: spec.id)
def test_the_policys_step_gives_no_gradient_to_critics_and_targets_get_none_at_all(spec):
    """With weights of 0 the critics' own loss has none, so what they hold afterwards came from the policy's."""
    sac = make_sac(spec)
    start = sac.optimizer.param.clone()

    sac.update(replace(to_float(batch_of(spec, 0)), weight=torch.zeros(12)), 0.0)

    assert (sac.critics_optimizer.grad == 0).all()
    assert not torch.equal(sac.optimizer.param, start)
    assert all(param.grad is None and not param.requires_grad for param in sac.target.module.parameters())


@pytest.mark.parametrize("spec", [BOX, DISCRETE, MASKED], ids=lambda spec: spec.id)
def test_the_temperature_moves_the_entropy_to_its_target(spec):
    """Up where the policy is surer than asked, down where it is not."""
    for target, sign in ((10.0, 1), (-50.0, -1)):
        sac = make_sac(spec, target_entropy=target)
        before = sac.temperature.value()
        sac.update(to_float(batch_of(spec, 0)), 0.0)
        assert (sac.temperature.value() - before) * sign > 0


def test_target_entropy_is_minus_the_dimensions_or_a_share_of_the_legal_actions():
    assert make_sac(BOX).target_entropy == -2.0
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    share = make_sac(MASKED).target_entropy(mask, torch.zeros(2))
    assert share.tolist() == pytest.approx([0.89 * math.log(2), 0.0])  # not of all four


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_masks_leave_no_nan_and_illegal_values_do_not_count(scale):
    sac = make_sac(MASKED)
    batch = to_float(batch_of(MASKED, 0))
    only = torch.zeros(12, 4, dtype=torch.bool)
    only[:, 1] = True  # one legal action: its log is 0, those of the others are not numbers to multiply with
    batch = replace(batch, action_mask=only, next_action_mask=only, action=torch.ones(12, dtype=torch.int64))
    batch = replace(batch, obs=scale * batch.obs)
    for _ in range(3):
        update = sac.update(batch, 0.0)

    assert all(torch.isfinite(param).all() for param in sac.policy.parameters())
    assert all(math.isfinite(x) for x in update.metrics.values())
    assert float(update.metrics["entropy"]) == 0.0
    assert expected(torch.tensor([[1.0, torch.inf]]), torch.tensor([[0.0, -1e38]])).tolist() == [1.0]


def test_the_settings_choose_the_kind_and_refuse_the_rest():
    assert isinstance(make_sac(DISCRETE), DiscreteSAC)
    spec = EnvSpec("x", Leaf("box", (3,), "float32"), ActionSpec("multi_binary", (3,), (2,) * 3))
    with pytest.raises(ValueError, match="this algorithm needs Box or Discrete actions; x has multi_binary"):
        make_sac(spec)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        SACConfig(temperature=0.0)


@pytest.mark.parametrize("spec", [BOX, MASKED], ids=lambda spec: spec.id)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_every": 2},
        {"normalize_obs": True},
        {"policy_delay": 2, "layer_norm": True, "dropout": 0.3},
        {"critics": 4, "target_critics": 2},
    ],
)
def test_parts_hold_everything_that_later_updates_depend_on(spec, settings):
    whole, other = make_sac(spec, **settings), make_sac(spec, seed=9, **settings)
    for seed in range(3):
        whole.update(to_float(batch_of(spec, seed)), 0.0)
    for name, part in other.parts().items():
        state = whole.parts()[name].state_dict()
        part.load_state_dict({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()})
    for seed in range(3, 6):
        for sac in (whole, other):
            sac.update(to_float(batch_of(spec, seed)), 0.0)

    for optimizer in ("optimizer", "critics_optimizer"):
        assert torch.equal(getattr(whole, optimizer).param, getattr(other, optimizer).param)
    assert_close(whole.target.state_dict(), other.target.state_dict(), atol=0, rtol=0)
    assert torch.equal(whole.temperature.log, other.temperature.log)


def test_the_critics_are_normalised_with_the_policys_statistics():
    """The same data in other units, with statistics that say so, gives the same update."""
    plain, scaled = make_sac(normalize_obs=True), make_sac(normalize_obs=True)
    scaled.policy.normalizer.get_buffer("shift0").fill_(5.0)
    scaled.policy.normalizer.get_buffer("scale0").fill_(0.25)
    batch = to_float(batch_of(BOX, 0))

    plain.update(batch, 0.0)
    scaled.update(replace(batch, obs=batch.obs * 4 + 5, next_obs=batch.next_obs * 4 + 5), 0.0)

    assert_close(plain.critics_optimizer.param, scaled.critics_optimizer.param, atol=2e-3, rtol=0)
    assert_close(plain.critics_optimizer.grad, scaled.critics_optimizer.grad, atol=1e-4, rtol=1e-3)


def test_redq_and_droq_are_sac_with_the_settings_of_their_papers():
    redq, droq = REDQConfig(), DroQConfig()
    for config in (redq, droq):
        assert isinstance(algorithm_class("redq")(BOX, config, torch.device("cpu"), 0, 1), SAC)
        assert isinstance(algorithm_class("droq")(MASKED, config, torch.device("cpu"), 0, 1), DiscreteSAC)
        assert (config.updates_per_step, config.policy_delay, config.policy_value) == (20.0, 20, "mean")
        assert (config.warmup, config.lr, config.tau, config.batch, config.widths) == (
            5000,
            3e-4,
            0.005,
            256,
            (256, 256),
        )
    assert (redq.critics, redq.target_critics, redq.layer_norm, redq.dropout) == (10, 2, False, 0.0)
    assert (droq.critics, droq.target_critics, droq.layer_norm, droq.dropout) == (2, None, True, 0.01)


def test_more_critics_in_the_target_than_there_are_is_refused():
    with pytest.raises(ValueError, match="target_critics must be at most critics, got target_critics 3 and critics 2"):
        SACConfig(target_critics=3)
    with pytest.raises(ValueError, match="widths_q must each be at least 1, got 8,0"):
        SACConfig(widths_q=(8, 0))
