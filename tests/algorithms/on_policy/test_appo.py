"""APPO: a whole update against one written anew, and the traps that a single loss does not show."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from oracles.acting import Bench
from oracles.cases import BOX, DISCRETE, SPECS, parameters, poisoned, shaken, unroll
from oracles.vtrace import AsyncReference
from pydantic import ValidationError
from torch.testing import assert_close

from rltrain.algorithms.networks.distributions import distribution, kl_divergence
from rltrain.algorithms.on_policy import appo
from rltrain.algorithms.on_policy.appo import APPO
from rltrain.algorithms.on_policy.settings import APPOConfig
from rltrain.envs.spec import ActionSpec

SMALL = {"widths": (8, 8), "streams": 4, "unroll": 16, "sequence": 16, "lr": 1e-2}
GRU = {"memory": "gru", "memory_size": 5}


def make_appo(spec=DISCRETE, seed: int = 3, **settings) -> APPO:
    config = APPOConfig(**{**SMALL, **settings})
    algorithm = APPO(spec, config, torch.device("cpu"), seed, config.streams)
    shaken(algorithm.policy, seed)
    algorithm.target.load_state_dict(algorithm.policy.state_dict())
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
        {"clip": 0.1, "clip_end": 0.05, "ratio_bar": 1.1, "entropy": 0.1, "entropy_end": 0.0, "lr_end": 0.0},
        {"gamma": 0.8, "lam": 0.5, "value": 1.0, "rho_bar": 2.0, "c_bar": 0.7, "rho_bar_pg": 1.5, "target_every": 3},
        {"shared_torso": True, "max_grad_norm": 0.0, "kl": 0.7, "tau": 0.1},
        {**GRU, "kl": 0.5},
        {**GRU, "sequence": 4, "target_every": 1},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_five_updates_equal_those_written_anew(spec, settings):
    """On data whose policy is another by far, with the target network's copies between."""
    appo = make_appo(spec, **settings)
    reference = AsyncReference(appo.policy, appo.config)
    start = parameters(appo.policy)
    acting = make_appo(spec, seed=9, **settings).policy
    for seed in range(5):
        u = padded(unroll(spec, acting, seed, lag=0.6))
        reference.appo(u, progress=0.25)
        metrics = appo.update(u, 0.25).metrics

    after = parameters(appo.policy)
    assert any((after[name] - start[name]).abs().max() > 2e-2 for name in start)
    assert_close(after, {name: x.detach() for name, x in reference.p.items()}, atol=1e-7, rtol=0)
    assert_close(parameters(appo.target), reference.slow, atol=1e-7, rtol=0)
    assert 0 <= metrics["clip_fraction"] <= 1


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, GRU, {"normalize_obs": True, "normalize_return": True}, {"kl": 1.0}])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_rows_without_an_action_teach_nothing_whatever_they_hold(spec, settings):
    """Reset rows and padding: their reward, action and log_prob, and the final observation of a terminated episode."""
    clean, other = make_appo(spec, **settings), make_appo(spec, **settings)
    for seed in (1, 2):
        u = padded(unroll(spec, clean.policy, seed))
        clean.update(u, 0.0)
        clean.observe(u)
        metrics = other.update(poisoned(u), 0.0).metrics
        other.observe(replace(poisoned(u), obs=u.obs))

    assert (~u.valid).any()
    assert all(torch.as_tensor(value).isfinite() for value in metrics.values())
    assert_close(parameters(other.policy), parameters(clean.policy), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("probe:counter", {"normalize_obs": True, "normalize_return": True}),
        ("probe:memory", {**GRU, "sequence": 8}),
        ("probe:masked", {}),
        ("probe:box3", {"log_std_init": 1.0}),
        pytest.param("probe:multi-binary", {}, marks=pytest.mark.sweep),
        pytest.param("probe:multi-discrete", {}, marks=pytest.mark.sweep),
        pytest.param("probe:dict", GRU, marks=pytest.mark.sweep),
    ],
)
def test_the_ratio_is_1_where_all_three_policies_are_one(env, settings, monkeypatch):
    """The policy that acted is the target network's and the trained one: fresh data right after a copy.

    The target network sees with the same running statistics as the policy.
    """
    bench = Bench("appo", env, **{**SMALL, "target_every": 1, **settings})
    seen = []
    real = appo.vtrace
    monkeypatch.setattr(appo, "vtrace", lambda *x: seen.append((x[0], x[5])) or real(*x))
    for _ in range(3):
        metrics = bench.learn(bench.collect())
        assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6)
        assert metrics["clip_fraction"] == 0
    for log_ratio, valid in seen:
        assert_close(log_ratio[valid], torch.zeros(int(valid.sum())), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("double")
def test_old_data_is_clipped_around_the_target_network_not_around_the_policy_that_acted():
    """A policy that acted long ago, and a target that is the trained policy: nothing is clipped."""
    appo = make_appo(ratio_bar=1e9, target_every=None, tau=1e-9)
    old = unroll(DISCRETE, make_appo(seed=9).policy, 1, lag=0.0)

    metrics = appo.update(old, 0.0).metrics

    with torch.no_grad():
        far = (appo.target.forward(old.obs[:-1])[0].log_prob(old.action) - old.extras["log_prob"])[old.valid]
    assert (far.exp() - 1).abs().gt(appo.config.clip).double().mean() > 0.2
    assert metrics["clip_fraction"] == 0
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.usefixtures("double")
def test_what_is_clipped_is_told_of_the_newest_and_of_the_oldest_streams():
    """Streams 0 and 1 were acted by version 7, the others by 3 and 5; `ratio_bar` 1 lets what mu liked less be seen."""
    appo = make_appo(ratio_bar=1.0)
    u = unroll(DISCRETE, appo.policy, 1, lag=0.0)
    log_prob = u.extras["log_prob"].clone()
    log_prob[:, 2] += 5.0  # far likelier when it was acted: the ratio is bounded there
    u = replace(u, extras={"log_prob": log_prob}, version=torch.tensor([7, 7, 3, 5]))

    metrics = appo.update(u, 0.0).metrics

    assert metrics["clip_fraction_newest"] == 0
    assert metrics["clip_fraction_oldest"] == 1
    share = u.valid[:, 2].sum() / u.valid.sum()
    assert float(metrics["clip_fraction"]) == pytest.approx(float(share))


@pytest.mark.usefixtures("double")
def test_advantages_keep_their_size():
    """Batches of different ages are not each brought to one scale: twice the reward, twice the policy's slope."""
    slopes = []
    for factor in (1.0, 2.0):
        appo = make_appo(max_grad_norm=0.0, entropy=0.0, lr=1e-30)
        with torch.no_grad():
            appo.policy.critic.weight2.zero_()
        u = unroll(DISCRETE, appo.policy, 1)
        appo.update(replace(u, reward=factor * u.reward), 0.0)
        slopes.append(appo.policy.actor.bias2.grad.clone())

    assert_close(slopes[1], 2 * slopes[0])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, GRU], ids=["plain", "gru"])
def test_an_update_without_a_valid_row_changes_nothing(settings):
    appo = make_appo(target_every=2, normalize_obs=True, normalize_return=True, **settings)
    u = unroll(DISCRETE, appo.policy, 1)
    appo.update(u, 0.0)  # now Adam has momentum, and the target network is behind
    saved = copy.deepcopy({name: part.state_dict() for name, part in appo.parts().items()})
    update = appo.update(replace(u, first=torch.ones_like(u.first)), 0.0)
    appo.observe(replace(u, first=torch.ones_like(u.first)))

    assert torch.equal(appo.policy.return_scale.follows[u.stream], u.row + u.rows), "its rows came, all the same"
    now = {name: part.state_dict() for name, part in appo.parts().items()}
    for state in (now, saved):
        for name in ("policy", "target"):
            state[name].pop("return_scale.follows")
    assert_close(now, saved, atol=0, rtol=0)
    assert update.metrics == {"lr": SMALL["lr"]}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{"target_every": 3}, {"tau": 0.3}], ids=["copies", "tau"])
def test_a_restored_appo_goes_on_to_the_bit(settings):
    """The target network and when it is due are parts too."""
    settings = {**settings, "normalize_obs": True, "normalize_return": True}
    whole = make_appo(BOX, **settings)
    unrolls = [unroll(BOX, whole.policy, seed) for seed in range(5)]
    for u in unrolls[:2]:
        whole.update(u, 0.0)
        whole.observe(u)
    saved = copy.deepcopy({name: part.state_dict() for name, part in whole.parts().items()})
    other = make_appo(BOX, seed=99, **settings)
    for name, part in other.parts().items():
        part.load_state_dict(saved[name])
    for u in unrolls[2:]:
        whole.update(u, 0.1)
        other.update(u, 0.1)
        whole.observe(u)
        other.observe(u)

    for one, two in ((whole.policy, other.policy), (whole.target, other.target)):
        assert_close(one.state_dict(), two.state_dict(), atol=0, rtol=0)


@pytest.mark.usefixtures("double")
def test_the_target_network_is_not_trained_and_shares_nothing():
    appo = make_appo(target_every=100)
    before = parameters(appo.target)
    appo.update(unroll(DISCRETE, appo.policy, 1), 0.0)

    assert_close(parameters(appo.target), before, atol=0, rtol=0)
    assert not any(x.requires_grad for x in appo.target.parameters())
    assert any((x - before[name]).abs().max() > 1e-3 for name, x in parameters(appo.policy).items())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("action", "masked"),
    [
        (ActionSpec("discrete", (), (4,)), False),
        (ActionSpec("discrete", (), (4,)), True),
        (ActionSpec("multi_discrete", (2,), (3, 2)), True),
        (ActionSpec("multi_binary", (3,), (2, 2, 2)), False),
        (ActionSpec("box", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)), False),
    ],
    ids=["discrete", "masked", "multi-discrete", "multi-binary", "box"],
)
def test_kl_is_the_mean_of_the_difference_of_log_probabilities(action, masked):
    """Over many samples; and 0 of a distribution and itself."""
    torch.manual_seed(0)
    size = {"discrete": 4, "multi_discrete": 5, "multi_binary": 3, "box": 2}[action.kind]
    mask = torch.tensor([True, False, True, True, True])[:size] if masked else None
    heads, log_stds = torch.randn(2, size), 0.3 * torch.randn(2, size)
    n = 200_000
    one, other = (
        distribution(
            action, head.expand(n, size), None if mask is None else mask.expand(n, size),
            log_std if action.kind == "box" else None,
        )
        for head, log_std in zip(heads, log_stds, strict=True)
    )  # fmt: skip
    uniform = torch.rand(n, size).clamp(1e-12, 1 - 1e-12)
    noise = {"box": torch.randn(n, size), "multi_binary": uniform.logit()}.get(action.kind, -(-uniform.log()).log())
    sample = one.sample(noise)

    found = kl_divergence(one, other)

    estimate = (one.log_prob(sample) - other.log_prob(sample)).mean()
    assert found.shape == (n,)
    assert float(found[0]) == pytest.approx(float(estimate), abs=0.02)
    assert float(found[0]) > 0.05
    assert_close(kl_divergence(one, one), torch.zeros(n), atol=1e-12, rtol=0)


def test_kl_of_two_kinds_is_refused():
    discrete = distribution(ActionSpec("discrete", (), (4,)), torch.zeros(4))
    box = distribution(ActionSpec("box", (1,), low=(-1.0,), high=(1.0,)), torch.zeros(1), None, torch.zeros(1))
    with pytest.raises(TypeError, match="no KL between Categorical and DiagGaussian"):
        kl_divergence(discrete, box)


def test_the_plan_is_what_the_settings_say():
    plan = make_appo(wait=3, max_in_flight=2, max_lag=7, overlap=False, buffer_size=5, reuse=6).plan
    assert (plan.unroll, plan.wait, plan.overlap, plan.max_in_flight, plan.max_lag) == (16, 3, False, 2, 7)
    assert (plan.buffer_size, plan.reuse) == (5, 6)
    assert make_appo(wait=None).plan.wait == "all"


def test_the_target_network_follows_in_one_way():
    assert APPOConfig(tau=0.1).target_every is None
    with pytest.raises(ValidationError, match="set one of them to none"):
        APPOConfig(tau=0.1, target_every=3)
    with pytest.raises(ValidationError, match="set one of them to none"):
        APPOConfig(target_every=None)
