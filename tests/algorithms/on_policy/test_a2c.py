"""A2C: a whole update against one written anew, and the traps that a single loss does not show."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from oracles.acting import Bench
from oracles.cases import BOX, DISCRETE, SPECS, parameters, poisoned, shaken, unroll
from oracles.streams import RUN, TERMINATED, TRUNCATED, make
from oracles.updates import Reference
from torch.testing import assert_close

from rltrain.algorithms.on_policy.a2c import A2C
from rltrain.algorithms.on_policy.settings import A2CConfig
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf

SMALL = {"widths": (8, 8), "streams": 4, "unroll": 16, "lr": 1e-2}
GRU = {"memory": "gru", "memory_size": 5, "sequence": 16}


def make_a2c(spec=DISCRETE, seed: int = 3, **settings) -> A2C:
    config = A2CConfig(**{**SMALL, **settings})
    algorithm = A2C(spec, config, torch.device("cpu"), seed, config.streams)
    shaken(algorithm.policy, seed)
    return algorithm


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "adam", "entropy": 0.1, "entropy_end": 0.0, "lr_end": None},
        {"normalize_advantage": True, "gamma": 0.8, "lam": 0.5, "value": 1.0},
        {"shared_torso": True, "max_grad_norm": 0.0, "rms_alpha": 0.9, "rms_eps": 0.1},
        GRU,
        {**GRU, "sequence": 4},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_two_updates_equal_those_written_anew(spec, settings):
    """A gradient through the advantages or past a sequence, a sum for a mean, another epsilon: all show here."""
    a2c = make_a2c(spec, **settings)
    reference = Reference(a2c.policy, a2c.config)
    start = parameters(a2c.policy)
    for seed in (1, 2):
        u = unroll(spec, a2c.policy, seed)
        reference.a2c(u, progress=0.25)
        a2c.update(u, 0.25)

    after = parameters(a2c.policy)
    assert any((after[name] - start[name]).abs().max() > 1e-2 for name in start)
    assert_close(after, {name: x.detach() for name, x in reference.p.items()}, atol=1e-9, rtol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, GRU, {"normalize_return": True}])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_reset_rows_teach_nothing_whatever_they_hold(spec, settings):
    """Their reward, action and log_prob, and the final observation of an episode that terminated."""
    clean, other = make_a2c(spec, **settings), make_a2c(spec, **settings)
    for seed in (1, 2):
        u = unroll(spec, clean.policy, seed)
        for a2c, rows in ((clean, u), (other, poisoned(u))):
            a2c.update(rows, 0.0)
            a2c.observe(rows)

    assert (~u.valid).any()
    assert_close(parameters(other.policy), parameters(clean.policy), atol=0, rtol=0)


@pytest.mark.usefixtures("double")
def test_how_likely_the_actor_thought_it_does_not_matter():
    """There is no ratio in A2C."""
    one, two = make_a2c(), make_a2c()
    u = unroll(DISCRETE, one.policy, 1)
    one.update(u, 0.0)
    two.update(replace(u, extras={"log_prob": u.extras["log_prob"] + 5}), 0.0)

    assert_close(parameters(one.policy), parameters(two.policy), atol=0, rtol=0)


def test_golden_truncation_through_a_whole_update():
    """Advantages (2.82632, 2.606, 2.3, 4.5) of an episode cut by the clock and one of a step; each counts alone.

    Which one counts is told by the policy: the bias of the actor's output is moved by the mean of the advantages, the
    value's by their mean as well, and the mean square tells them apart from other numbers of the same mean.
    """
    golden = torch.tensor([2.82632, 2.606, 2.3, 4.5])
    u, _ = make([[RUN], [RUN], [TRUNCATED], [RUN], [TERMINATED]], [1], 0)
    u = replace(
        u,
        obs=torch.tensor([0.5, 0.5, 0.5, 2.0, 0.5, 9.0])[:, None, None],
        reward=torch.tensor([1.0, 1.0, 1.0, -77.0, 5.0])[:, None],
        action=torch.zeros(5, 1, dtype=torch.int64),
    )
    spec = EnvSpec("golden", Leaf("box", (1,), "float32"), ActionSpec("discrete", (), (2,)))
    config = A2CConfig(widths=(), lr=1e-30, gamma=0.9, lam=0.8)
    a2c = A2C(spec, config, torch.device("cpu"), 0, 1)
    with torch.no_grad():
        a2c.policy.actor.weight0.zero_()
        a2c.policy.critic.weight0.fill_(1.0)

    metrics = {name: float(x) for name, x in a2c.update(u, 0.0).metrics.items()}

    ln2 = 0.6931472
    assert metrics["loss_policy"] == pytest.approx(ln2 * golden.mean().item(), rel=1e-5)
    assert metrics["loss_value"] == pytest.approx(0.5 * golden.square().mean().item(), rel=1e-5)
    assert metrics["entropy"] == pytest.approx(ln2, rel=1e-5)


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
def test_the_learner_sees_the_policy_that_acted(env, settings):
    """Its log_prob of each action is the actor's; else this would not be on-policy."""
    bench = Bench("a2c", env, **{**SMALL, **settings})
    for _ in range(3):
        u = bench.collect()
        with torch.no_grad():
            core = None if u.core is None else u.core[0]
            dist, _ = bench.policy.forward(u.obs, u.action_mask, core, u.first)
            log_prob = dist.log_prob(torch.cat([u.action, u.action[-1:]]))[:-1]
        assert_close(log_prob[u.valid], u.extras["log_prob"][u.valid], atol=1e-5, rtol=1e-5)
        bench.learn(u)


@pytest.mark.usefixtures("double")
def test_one_update_is_one_step_at_the_step_size_of_its_time():
    lengths = {}
    for progress in (0.0, 0.5, 0.999):
        a2c = make_a2c(optimizer="adam", max_grad_norm=0.0)
        before = a2c.policy.critic.bias2.item()
        metrics = a2c.update(unroll(DISCRETE, a2c.policy, 1), progress).metrics
        lengths[progress] = abs(a2c.policy.critic.bias2.item() - before)
        assert metrics["lr"] == pytest.approx(1e-2 * (1 - progress))
        assert a2c.optimizer.steps == 1

    assert lengths[0.0] == pytest.approx(1e-2, rel=1e-3)
    assert lengths[0.5] == pytest.approx(5e-3, rel=1e-3)
    assert 0 < lengths[0.999] < 2e-5


@pytest.mark.usefixtures("double")
def test_a_restored_a2c_goes_on_to_the_bit():
    whole = make_a2c(BOX, normalize_obs=True, normalize_return=True)
    first, second = (unroll(BOX, whole.policy, seed) for seed in (1, 2))
    whole.update(first, 0.0)
    whole.observe(first)
    saved = copy.deepcopy({name: part.state_dict() for name, part in whole.parts().items()})
    other = make_a2c(BOX, seed=99, normalize_obs=True, normalize_return=True)
    for name, part in other.parts().items():
        part.load_state_dict(saved[name])
    whole.update(second, 0.1)
    other.update(second, 0.1)

    assert_close(parameters(other.policy), parameters(whole.policy), atol=0, rtol=0)
