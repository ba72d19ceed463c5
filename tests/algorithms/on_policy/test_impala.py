"""IMPALA: a whole update against one written anew, and the traps that a single loss does not show."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import targets
from oracles.acting import Bench
from oracles.cases import BOX, DISCRETE, SPECS, parameters, poisoned, shaken, unroll
from oracles.streams import RUN, TERMINATED, TRUNCATED, make
from oracles.vtrace import AsyncReference
from pydantic import ValidationError
from torch.testing import assert_close

from rltrain.algorithms.on_policy.impala import IMPALA
from rltrain.algorithms.on_policy.settings import IMPALAConfig
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf

SMALL = {"widths": (8, 8), "streams": 4, "unroll": 16, "sequence": 16, "lr": 1e-2}
GRU = {"memory": "gru", "memory_size": 5}


def make_impala(spec=DISCRETE, seed: int = 3, **settings) -> IMPALA:
    config = IMPALAConfig(**{**SMALL, **settings})
    algorithm = IMPALA(spec, config, torch.device("cpu"), seed, config.streams)
    shaken(algorithm.policy, seed)
    return algorithm


def padded(u, rows: int = 5):
    """The same, of which the first stream has only so many rows; the rest is padding."""
    first, ended = u.first.clone(), (u.terminated.clone(), u.truncated.clone())
    first[rows + 1 :, 0] = True
    for flags in ended:
        flags[rows:, 0] = False
    return replace(u, first=first, terminated=ended[0], truncated=ended[1])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "adam", "entropy": 0.1, "entropy_end": 0.0, "lr_end": None},
        {"gamma": 0.8, "lam": 0.5, "value": 1.0, "rho_bar": 2.0, "c_bar": 0.7, "rho_bar_pg": 1.5},
        {"shared_torso": True, "max_grad_norm": 0.0, "rms_alpha": 0.9, "rms_eps": 0.1, "normalize_return": True},
        GRU,
        {**GRU, "sequence": 4},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_two_updates_equal_those_written_anew(spec, settings):
    """On data whose policy is another by far: a missing ratio or bound, a core that is not the unroll's first."""
    impala = make_impala(spec, **settings)
    reference = AsyncReference(impala.policy, impala.config)
    start = parameters(impala.policy)
    for seed in (1, 2):
        u = padded(unroll(spec, make_impala(spec, seed=9, **settings).policy, seed, lag=0.6))
        reference.impala(u, progress=0.25)
        impala.update(u, 0.25)
        impala.observe(u)
        if impala.config.normalize_return:
            ended, gamma = (u.terminated | u.truncated).numpy(), impala.config.gamma
            returns = targets.discounted_return_of_each_step(u.reward.numpy(), ended, u.valid.numpy(), gamma)
            reference.scale = float(np.float32((np.var(returns) + 1e-8) ** -0.5))

    after = parameters(impala.policy)
    assert any((after[name] - start[name]).abs().max() > 2e-3 for name in start)
    assert_close(after, {name: x.detach() for name, x in reference.p.items()}, atol=1e-7, rtol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, GRU, {"normalize_return": True}])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_rows_without_an_action_teach_nothing_whatever_they_hold(spec, settings):
    """Reset rows and padding: their reward, action and log_prob, and the final observation of a terminated episode."""
    clean, other = make_impala(spec, **settings), make_impala(spec, **settings)
    for seed in (1, 2):
        u = padded(unroll(spec, clean.policy, seed))
        for impala, rows in ((clean, u), (other, poisoned(u))):
            metrics = impala.update(rows, 0.0).metrics
            impala.observe(rows)

    assert (~u.valid).any()
    assert all(torch.as_tensor(value).isfinite() for value in metrics.values())
    assert_close(parameters(other.policy), parameters(clean.policy), atol=0, rtol=0)


def test_golden_truncation_through_a_whole_update():
    """Advantages (2.309, 1.51, 2.3, 4.5) of ratios (2, 0.5, 1, 1); 0.5 at the truncated row if the reset row counted.

    Each is read off from the gradient of the actor's bias, to which one action adds and the other subtracts.
    """
    u, _ = make([[RUN], [RUN], [TRUNCATED], [RUN], [TERMINATED]], [1], 0)
    ratio = torch.tensor([2.0, 0.5, 1.0, 1.0, 1.0])[:, None]
    u = replace(
        u,
        obs=torch.tensor([0.5, 0.5, 0.5, 2.0, 0.5, 9.0])[:, None, None],
        reward=torch.tensor([1.0, 1.0, 1.0, -77.0, 5.0])[:, None],
        extras={"log_prob": -(2 * ratio).log()},
    )
    spec = EnvSpec("golden", Leaf("box", (1,), "float32"), ActionSpec("discrete", (), (2,)))
    config = IMPALAConfig(widths=(), lr=1e-30, gamma=0.9, lam=1.0, entropy=0.0, max_grad_norm=0.0, streams=1)
    found = []
    for row in (None, 0, 1, 2, 4):
        impala = IMPALA(spec, config, torch.device("cpu"), 0, 1)
        with torch.no_grad():
            impala.policy.actor.weight0.zero_()
            impala.policy.critic.weight0.fill_(1.0)
        action = torch.zeros(5, 1, dtype=torch.int64)
        if row is not None:
            action[row] = 1
        metrics = impala.update(replace(u, action=action), 0.0).metrics
        found.append(-float(impala.policy.actor.bias0.grad[0]))

    # -d loss / d bias is the mean of +-advantage / 2; turning one action over takes that row's away twice.
    advantages = [4 * (found[0] - turned) for turned in found[1:]]
    assert advantages == pytest.approx([2.309, 1.51, 2.3, 4.5], rel=1e-5)
    errors = torch.tensor([2.809 - 0.5, 2.01 - 0.5, 2.8 - 0.5, 4.5])
    assert float(metrics["loss_value"]) == pytest.approx(0.5 * errors.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("probe:counter", {"normalize_obs": True, "normalize_return": True}),
        ("probe:memory", {**GRU, "sequence": 8}),
        ("probe:masked", {}),
        ("probe:box3", {"log_std_init": 1.0}),
        pytest.param("probe:multi-binary", {}, marks=pytest.mark.sweep),
        pytest.param("probe:dict", GRU, marks=pytest.mark.sweep),
    ],
)
def test_fresh_data_has_ratio_1(env, settings):
    """What the learner computes of an action is what the actor said of it; later it is not."""
    bench = Bench("impala", env, **{**SMALL, "optimizer": "adam", **settings})
    for _ in range(3):
        u = bench.collect()
        fresh = bench.learn(u)
        assert fresh["approx_kl"] == pytest.approx(0.0, abs=1e-6)
        assert bench.learn(u)["approx_kl"] > 1e-6


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, GRU], ids=["plain", "gru"])
def test_an_update_without_a_valid_row_changes_nothing(settings):
    impala = make_impala(optimizer="adam", normalize_obs=True, normalize_return=True, **settings)
    u = unroll(DISCRETE, impala.policy, 1)
    impala.update(u, 0.0)  # now Adam has momentum
    saved = copy.deepcopy({name: part.state_dict() for name, part in impala.parts().items()})
    update = impala.update(replace(u, first=torch.ones_like(u.first)), 0.0)
    impala.observe(replace(u, first=torch.ones_like(u.first)))

    assert torch.equal(impala.policy.return_scale.follows[u.stream], u.row + u.rows), "its rows came, all the same"
    now = {name: part.state_dict() for name, part in impala.parts().items()}
    for state in (now, saved):
        del state["policy"]["return_scale.follows"]
    assert_close(now, saved, atol=0, rtol=0)
    assert update.metrics == {"lr": SMALL["lr"]}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_restored_impala_goes_on_to_the_bit(optimizer):
    settings = {"optimizer": optimizer, "normalize_obs": True, "normalize_return": True}
    whole = make_impala(BOX, **settings)
    first, second = (unroll(BOX, whole.policy, seed) for seed in (1, 2))
    whole.update(first, 0.0)
    whole.observe(first)
    saved = copy.deepcopy({name: part.state_dict() for name, part in whole.parts().items()})
    other = make_impala(BOX, seed=99, **settings)
    for name, part in other.parts().items():
        part.load_state_dict(saved[name])
    whole.update(second, 0.1)
    other.update(second, 0.1)

    assert_close(parameters(other.policy), parameters(whole.policy), atol=0, rtol=0)


def test_the_plan_is_what_the_settings_say():
    plan = make_impala(wait=3, max_in_flight=2, max_lag=None, overlap=False).plan
    assert (plan.unroll, plan.wait, plan.overlap, plan.max_in_flight, plan.max_lag) == (16, 3, False, 2, None)
    assert (plan.buffer_size, plan.reuse) == (1, 1)
    assert make_impala(wait=None).plan.wait == "all"
    assert make_impala(wait=50).plan.wait == 4  # there are no more streams


def test_a_trace_bound_above_the_other_is_refused():
    """Espeholt et al. ask for rho_bar >= c_bar."""
    with pytest.raises(ValidationError, match=r"c_bar must be at most rho_bar, got c_bar 2.0 and rho_bar 1.0"):
        IMPALAConfig(c_bar=2.0)
