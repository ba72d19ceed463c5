"""gSDE and the squashed Gaussian: whole updates of PPO and A2C, samples against the paper, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.acting import Bench
from oracles.cases import BOX, DISCRETE, parameters, shaken, unroll
from oracles.updates import Reference
from torch.testing import assert_close

from rltrain.algorithms import algorithm_class, settings_class
from rltrain.algorithms.networks.state_noise import StateDependentNoise
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf
from rltrain.rollout.actor.noise import StreamNoise

GRU = {"memory": "gru", "memory_size": 5, "sequence": 8}
SDE = {"sde": True, "log_std_init": -0.5}
CPU = torch.device("cpu")


def make(algo: str, spec=BOX, **settings):
    small = {"widths": (8, 6), "streams": 3, "unroll": 16, "lr": 1e-2}
    config = settings_class(algo)(**{**small, **settings})
    algorithm = algorithm_class(algo)(spec, config, CPU, 3, config.streams)
    shaken(algorithm.policy, 3)
    return algorithm


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("algo", ["ppo", "a2c"])
@pytest.mark.parametrize(
    "settings",
    [
        SDE,
        {"squash": True, "entropy": 0.1},
        {**SDE, "squash": True, "entropy": 0.1},
        {**SDE, "shared_torso": True, "entropy": 0.05},
        {**SDE, **GRU},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_two_updates_equal_those_of_the_oracle(algo, settings):
    algorithm = make(algo, **settings)
    reference = Reference(algorithm.policy, algorithm.config, seed=3)
    start = parameters(algorithm.policy)
    for seed in (1, 2):
        u = unroll(BOX, algorithm.policy, seed)
        getattr(reference, algo)(u, 0.25)
        algorithm.update(u, 0.25)

    after = parameters(algorithm.policy)
    error = 1e-5 if "squash" in settings else 1e-7  # the entropy of a squashed Gaussian is a quadrature
    assert_close(after, {name: x.detach() for name, x in reference.p.items()}, atol=error, rtol=0)
    for name in ("state_noise.weight",) if "sde" in settings else ("log_std",):
        assert (after[name] - start[name]).abs().max() > 1e-3


@pytest.mark.usefixtures("double")
def test_a_sample_is_the_mean_and_the_features_times_one_matrix():
    """Raffin et al. 2021, equation 7, written out; over many matrices its deviation is that of equation 8."""
    noise = StateDependentNoise(4, 2, -0.7)
    noise.weight.data += 0.3 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    sigma, h = noise.weight.detach().exp(), torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    drawn = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(2))
    log_std = noise.log_std(h)
    for row in range(3):
        many = h[row].expand(20_000, 4)
        ours = noise.normal(many, log_std[row].expand(20_000, 2), drawn) * log_std[row].exp()
        for i in (0, 1):
            matrix = drawn[i].view(4, 2) * sigma
            assert_close(ours[i], h[row] @ matrix)
        assert_close(ours.std(0), log_std[row].exp(), rtol=0.02, atol=0)
        assert_close(log_std[row].exp(), torch.sqrt(h[row] ** 2 @ sigma**2 + 1e-6))


def test_noise_is_held_between_draws_and_equal_states_then_get_equal_actions():
    policy = make("ppo", **SDE, sde_every=4).policy
    assert policy.noise.hold == 4
    drawn = np.zeros((12, 16, policy.noise.columns), np.float32)
    StreamNoise(0, [7], *policy.noise).fill(drawn, np.array([0]), [0])
    obs = torch.randn(1, 3, generator=torch.Generator().manual_seed(0)).expand(16, 3)
    with torch.inference_mode():
        actions = torch.stack([policy.act(obs, None, None, torch.from_numpy(row), True).action[0] for row in drawn])
    for begin in (0, 4, 8):
        assert (actions[begin : begin + 4] == actions[begin]).all()
    assert len(actions.unique(dim=0)) == 3


@pytest.mark.parametrize(
    ("algo", "settings"), [("ppo", {"squash": True}), ("ppo", SDE), ("a2c", {**SDE, "squash": True})]
)
def test_what_the_learner_computes_of_an_action_is_what_the_actor_recorded(algo, settings):
    bench = Bench(algo, "probe:box3", widths=(8,), streams=4, unroll=16, **settings)
    u = bench.collect()
    with torch.no_grad():
        dist, _ = bench.algorithm.policy.forward(u.obs)
    action = torch.cat([u.action, u.action[-1:]])
    recorded, again = u.extras["log_prob"][u.valid], dist.log_prob(action)[:-1][u.valid]

    assert_close(again, recorded, atol=1e-3, rtol=1e-4)
    assert settings.get("squash") is None or float(u.action.abs().max()) <= 1.0


def test_what_does_not_suit_is_refused_in_one_line():
    with pytest.raises(ValueError, match="sde is for Box actions; discrete has discrete actions"):
        make("ppo", DISCRETE, sde=True)
    with pytest.raises(ValueError, match="squash is for Box actions"):
        make("a2c", DISCRETE, squash=True)
    with pytest.raises(ValueError, match="sde is for Box actions"):
        make("sac", DISCRETE, sde=True, unroll=1)
    with pytest.raises(ValueError, match="sde needs a hidden layer"):
        make("sac", sde=True, unroll=1, widths=())
    bounds = (-np.inf,), (np.inf,)
    endless = EnvSpec("endless", Leaf("box", (3,), "float32"), ActionSpec("box", (1,), (), *bounds))
    if endless.action.unbounded:
        with pytest.raises(ValueError, match="squash keeps actions between bounds, and actions of endless have none"):
            make("ppo", endless, squash=True)
