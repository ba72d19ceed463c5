"""What actors of SAC, TD3 and DDPG run: densities, noise, masks, and the same bits beside whichever rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles.acting import Bench
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

from rltrain.algorithms.networks.distributions import TanhGaussian
from rltrain.algorithms.off_policy.continuous_policy import Deterministic, soft
from rltrain.algorithms.off_policy.settings import DDPGConfig, SACConfig, TD3Config
from rltrain.algorithms.registry import build, policy_factory
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf
from rltrain.rollout.actor.batch_invariance import is_width_invariant
from rltrain.rollout.actor.noise import StreamNoise

OBS = Leaf("box", (3,), "float32")
BOX = EnvSpec("box", OBS, ActionSpec("box", (2, 2), (), (-1.0,) * 4, (1.0,) * 4))
DISCRETE = EnvSpec("discrete", OBS, ActionSpec("discrete", (), (5,)))
MASKED = EnvSpec("masked", OBS, ActionSpec("discrete", (), (5,)), action_mask=True)
TREE = {"a": OBS, "b": (Leaf("image", (12, 12, 3), "uint8", channels_last=True), Leaf("discrete", (), "int64", (4,)))}
ALL = [
    (BOX, SACConfig(normalize_obs=True)),
    (DISCRETE, SACConfig()),
    (MASKED, SACConfig(activation="tanh")),
    (BOX, TD3Config()),
    (BOX, DDPGConfig(noise_kind="ou")),
    (EnvSpec("tree", TREE, BOX.action), SACConfig(normalize_obs=True)),
]


def made(spec: EnvSpec, config, streams: int = 1):
    return build(policy_factory(config.policy), spec, config, streams, 3)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_log_density_of_a_squashed_gaussian_equals_torchs():
    mean, log_std, noise = normal(50, 3), 0.5 * normal(50, 3, seed=1) - 1, normal(50, 3, seed=2)
    mean, log_std, noise = (x.double() for x in (mean, log_std, noise))
    u = mean + log_std.exp() * noise
    theirs = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))

    action, log_prob = TanhGaussian(mean, log_std, (3,)).sample_with_log_prob(noise)

    assert_close(action, torch.tanh(u))
    assert_close(log_prob, theirs.log_prob(torch.tanh(u)).sum(-1))


def test_the_log_density_of_three_numbers_worked_out():
    """By the change of variables in exact arithmetic, and by torch's TanhTransform: 2.490400287494653."""
    mean, std = torch.tensor([0.1, -1.0, 2.0]).double(), torch.tensor([0.5, 0.8, 1.5]).double()
    u = torch.tensor([0.3, -1.2, 2.5]).double()

    action, log_prob = TanhGaussian(mean, std.log(), (3,)).sample_with_log_prob((u - mean) / std)

    assert action.tolist() == pytest.approx([0.291312612, -0.833654607, 0.986614298], abs=1e-6)
    assert log_prob.item() == pytest.approx(2.490400287494653, abs=1e-6)


def test_slopes_of_action_and_density_equal_autograds():
    mean, log_std, noise = (normal(7, 3, seed=seed).double().requires_grad_(seed < 2) for seed in range(3))
    dist = TanhGaussian(mean, log_std, (3,))
    weights = normal(7, 3, seed=5).double(), normal(7, seed=6).double()

    def plainly() -> tuple[torch.Tensor, torch.Tensor]:
        u = mean + log_std.exp() * noise
        return torch.tanh(u), (-0.5 * noise**2 - log_std - torch.log(1 - torch.tanh(u) ** 2)).sum(-1)

    for use in ((1, 0), (0, 1), (1, 1)):
        found, expected = (
            torch.autograd.grad(
                sum(k * (w * x).sum() for k, w, x in zip(use, weights, pair, strict=True)), (mean, log_std)
            )
            for pair in (dist.sample_with_log_prob(noise), plainly())
        )
        assert_close(found, expected)


def test_the_density_is_right_far_out_where_tanh_is_one():
    """u = 10: log(1 - tanh(u)^2) = -18.61371; in float32 the naive form is -inf."""
    mean, log_std = torch.full((1, 1), 10.0, requires_grad=True), torch.zeros(1, 1)

    action, log_prob = TanhGaussian(mean, log_std, (1,)).sample_with_log_prob(torch.zeros(1, 1))
    log_prob.sum().backward()

    assert action.item() == 1.0
    assert log_prob.item() == pytest.approx(-0.5 * math.log(2 * math.pi) + 18.61371, abs=1e-5)
    assert mean.grad.item() == pytest.approx(2.0)  # 2 tanh(u): no NaN


def test_the_density_is_one_over_all_actions():
    mean, log_std = torch.tensor([[0.3]]), torch.tensor([[-0.4]])
    u = torch.linspace(-9, 9, 200_001).double()[:, None]
    noise = (u - mean) * torch.exp(-log_std)
    rows = mean.double().expand(len(u), 1), log_std.double().expand(len(u), 1)

    action, log_prob = TanhGaussian(*rows, (1,)).sample_with_log_prob(noise)

    assert torch.trapezoid(log_prob.exp(), action[:, 0]).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(("spec", "config"), ALL, ids=lambda x: getattr(x, "id", type(x).__name__))
def test_a_row_has_the_same_bits_whatever_acts_beside_it(spec, config):
    assert is_width_invariant(made(spec, config, 64), spec, 64)


def test_without_exploration_actions_are_the_middle_and_need_no_noise():
    obs, noise = normal(16, 3), normal(16, 4, seed=1)
    for config in (SACConfig(), TD3Config(), DDPGConfig(noise_kind="ou")):
        policy = made(BOX, config)
        core = torch.ones(16, policy.core_size) if policy.core_size else None
        with torch.inference_mode():
            greedy = policy.act(obs, core, None, noise, False)
            other = policy.act(obs, core, None, 5 * noise, False)
            head = policy.actor.rows(obs)[:, :4]
        assert greedy.action.shape == (16, 2, 2)
        assert torch.equal(greedy.action, other.action)
        assert_close(greedy.action, torch.tanh(head).reshape(16, 2, 2))
        assert greedy.core is core


def test_noise_is_added_to_the_action_and_the_sum_is_clipped():
    policy = made(BOX, DDPGConfig(noise=0.3))
    obs, noise = normal(16, 3), 4 * normal(16, 4, seed=1)
    with torch.inference_mode():
        middle = policy.act(obs, None, None, noise, False).action
        action = policy.act(obs, None, None, noise, True).action

    assert_close(action, (middle + 0.3 * noise.reshape(16, 2, 2)).clamp(-1, 1))
    assert (action.abs() == 1).any()


def test_ou_noise_remembers_per_stream_and_begins_at_nought():
    policy = made(BOX, DDPGConfig(noise_kind="ou", noise=0.2, ou_theta=0.15))
    obs, state = normal(16, 3), torch.zeros(16, 4)
    expected = torch.zeros(16, 4)
    for t in range(5):
        noise = normal(16, 4, seed=t)
        expected = expected + 0.15 * (0.0 - expected) + 0.2 * noise
        with torch.inference_mode():
            act = policy.act(obs, state, None, noise, True)
            middle = policy.act(obs, state, None, noise, False).action
        state = act.core
        assert_close(state, expected)
        assert_close(act.action, (middle + expected.reshape(16, 2, 2)).clamp(-1, 1))


def test_ou_noise_is_forgotten_where_an_episode_begins():
    """In a real actor: the state after the first row of an episode is that row's noise alone."""
    bench = Bench(
        "ddpg", "probe:endless-box", streams=3, unroll=24, random_start=False, noise_kind="ou", widths=(4,), warmup=0
    )
    unroll = bench.collect()

    assert unroll.core.shape == (1, 3, 1)
    assert unroll.first[1:].any()
    policy, state = bench.algorithm.policy, torch.zeros(3, 1)
    draws = StreamNoise(0, (0, 1, 2), *policy.noise)
    noise = np.zeros((24, 3, 1), np.float32)
    draws.fill(noise, unroll.row.numpy(), (0, 0, 0))
    for t in range(24):
        state = torch.where(unroll.first[t][:, None], 0.0, state)
        with torch.inference_mode():
            act = policy.act(unroll.obs[t], state, None, torch.from_numpy(noise[t]), True)
        state = act.core
        assert_close(unroll.action[t], act.action, atol=1e-6, rtol=0)


def test_illegal_actions_are_never_taken():
    policy = made(MASKED, SACConfig())
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(rng.random((512, 5)) < 0.4)
    mask[:, 2] = True
    noise = torch.from_numpy(rng.gumbel(size=(512, 5)).astype(np.float32))
    for explore in (True, False):
        with torch.inference_mode():
            action = policy.act(normal(512, 3), None, mask, noise, explore).action
        assert mask[torch.arange(512), action].all()


def test_choices_follow_the_probabilities():
    policy, n = made(DISCRETE, SACConfig()), 20_000
    obs = normal(1, 3).expand(n, 3).contiguous()
    noise = torch.from_numpy(np.random.default_rng(0).gumbel(size=(n, 5)).astype(np.float32))
    with torch.inference_mode():
        counts = torch.bincount(policy.act(obs, None, None, noise, True).action, minlength=5)
        probs = torch.softmax(policy.actor.rows(obs[:1]), -1)[0]

    assert_close(counts / n, probs, atol=0.02, rtol=0)


def test_wrong_action_spaces_are_refused():
    binary = EnvSpec("x", OBS, ActionSpec("multi_binary", (3,), (2,) * 3))
    generator = torch.Generator()
    with pytest.raises(ValueError, match="this algorithm needs Box or Discrete actions; x has multi_binary"):
        soft(binary, SACConfig(), 1, generator)
    for spec in (binary, DISCRETE):
        with pytest.raises(ValueError, match="needs Box actions"):
            Deterministic(spec, TD3Config(), 1, generator)


@pytest.mark.parametrize("algo", ["sac", "td3", "ddpg"])
def test_statistics_are_of_the_observations_that_were_acted_on(algo):
    bench = Bench(algo, "Pendulum-v1", streams=3, unroll=12, normalize_obs=True, widths=(4,), warmup=0)
    unroll = bench.collect()
    bench.algorithm.observe(unroll)

    normalizer = bench.algorithm.policy.normalizer
    assert normalizer.get_buffer("count0").item() == unroll.valid.sum().item()
    acted_on, after = (obs[unroll.valid].double().mean(0) for obs in (unroll.obs[:-1], unroll.obs[1:]))
    assert (acted_on - after).abs().max() > 1e-3  # the next observations would give other statistics
    assert_close(normalizer.get_buffer("mean0"), acted_on)
