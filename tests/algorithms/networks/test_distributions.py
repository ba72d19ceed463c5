"""Our lean distributions against torch.distributions, against their own samples, and at the edges of masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import distributions as reference
from torch.testing import assert_close

from rltrain.algorithms.networks.distributions import (
    EDGE,
    Bernoulli,
    Categorical,
    DiagGaussian,
    MultiCategorical,
    TanhGaussian,
    distribution,
    head_size,
    kl_divergence,
    noise_of,
)
from rltrain.envs.spec import ActionSpec

NVEC = (2, 3, 4)
DISCRETE = ActionSpec("discrete", (), (5,))
MULTI = ActionSpec("multi_discrete", (3,), NVEC)
BINARY = ActionSpec("multi_binary", (4,), (2,) * 4)
BOX = ActionSpec("box", (3,), (), (-1.0,) * 3, (1.0,) * 3)
WIDE_BOX = ActionSpec("box", (2, 2), (), (-1.0,) * 4, (1.0,) * 4)
ALL = [DISCRETE, MULTI, BINARY, BOX, WIDE_BOX]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noise(spec: ActionSpec, *lead: int, seed: int = 0) -> torch.Tensor:
    kind, width, *_ = noise_of(spec)
    rng = np.random.default_rng(seed)
    return torch.from_numpy(getattr(rng, kind)(size=(*lead, width)).astype(np.float32))


def make(spec: ActionSpec, head: torch.Tensor):
    return distribution(spec, head, None, torch.linspace(-1, 0.5, head_size(spec)) if spec.kind == "box" else None)


def reference_of(spec: ActionSpec, head: torch.Tensor):
    if spec.kind == "discrete":
        return [reference.Categorical(logits=head)]
    if spec.kind == "multi_discrete":
        return [reference.Categorical(logits=part) for part in head.split(NVEC, -1)]
    if spec.kind == "multi_binary":
        return [reference.Independent(reference.Bernoulli(logits=head), 1)]
    std = torch.linspace(-1, 0.5, head_size(spec)).exp().expand(head.shape)
    return [reference.Independent(reference.Normal(head, std), 1)]


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: f"{spec.kind}{spec.shape}")
@pytest.mark.parametrize("lead", [(6,), (4, 6)])
def test_log_prob_and_entropy_equal_torchs_and_sum_over_heads(spec, lead):
    head = 2 * normal(*lead, head_size(spec))
    ours, theirs = make(spec, head), reference_of(spec, head)

    for action in (ours.sample(noise(spec, *lead)), ours.mode()):
        parts = action.unbind(-1) if spec.kind == "multi_discrete" else [action.reshape(*lead, -1)]
        if spec.kind == "discrete":
            parts = [action]
        if spec.kind == "multi_binary":
            parts = [action.float()]
        expected = sum(d.log_prob(part) for d, part in zip(theirs, parts, strict=True))
        assert action.shape == (*lead, *spec.shape)
        assert str(action.dtype) == f"torch.{spec.dtype}"
        assert_close(ours.log_prob(action), expected)
    assert_close(ours.entropy(), sum(d.entropy() for d in theirs))
    assert ours.entropy().shape == lead


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: f"{spec.kind}{spec.shape}")
def test_samples_follow_the_probabilities(spec):
    """The mean of -log_prob over samples is the entropy; the sampler does not know log_prob."""
    n = 40_000
    d = make(spec, normal(1, head_size(spec)).expand(n, -1))

    surprise = -d.log_prob(d.sample(noise(spec, n)))

    assert surprise.mean().item() == pytest.approx(d.entropy()[0].item(), abs=5 * surprise.std().item() / n**0.5)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: f"{spec.kind}{spec.shape}")
def test_the_mode_is_the_likeliest(spec):
    d = make(spec, normal(50, head_size(spec)))
    best = d.log_prob(d.mode())

    for seed in range(20):
        assert (d.log_prob(d.sample(noise(spec, 50, seed=seed))) <= best + 1e-6).all()


@pytest.mark.parametrize("spec", [*ALL[:3], BOX], ids=lambda spec: spec.kind)
def test_a_row_has_the_same_bits_whatever_acts_beside_it(spec):
    head, random = 3 * normal(64, head_size(spec)), noise(spec, 64)
    whole = make(spec, head)
    action = whole.sample(random)
    for width in (16, 32, 48):
        for begin in range(0, 64 - width + 1, 16):
            at = slice(begin, begin + width)
            part = make(spec, head[at].clone())
            assert torch.equal(part.sample(random[at].clone()), action[at])
            assert torch.equal(part.log_prob(action[at].clone()), whole.log_prob(action)[at])


def test_masked_entropy_is_over_legal_actions():
    """Two of four equal: ln 2, not ln 4."""
    d = Categorical(torch.zeros(1, 4), torch.tensor([[True, False, True, False]]))

    assert d.entropy().item() == pytest.approx(math.log(2))
    assert d.log_prob(torch.tensor([0])).item() == pytest.approx(-math.log(2))
    assert -torch.inf < d.log_prob(torch.tensor([1])).item() < -1e30  # finite, or a ratio would be NaN


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_illegal_actions_are_never_taken(scale):
    mask = torch.tensor([True, False, True, False, False, True, True, False, False])
    logits = scale * normal(5_000, 9)
    for d, ids in (
        (Categorical(logits, mask.expand(5_000, 9)), lambda a: a),
        (MultiCategorical(logits, NVEC, mask.expand(5_000, 9)), lambda a: a + torch.tensor([0, 2, 5])),
    ):
        random = torch.from_numpy(np.random.default_rng(0).gumbel(size=(5_000, 9)).astype(np.float32))
        for action in (d.sample(random), d.mode()):
            assert mask[ids(action)].all()
            assert d.log_prob(action).isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradients_through_a_mask_are_finite_and_stop_at_it(scale):
    logits = (scale * normal(6, 4)).requires_grad_()
    mask = torch.tensor([[True, False, True, False], [False, False, False, True]]).repeat(3, 1)
    d = Categorical(logits, mask)

    (1e3 * (d.log_prob(d.mode()) + d.entropy())).sum().backward()

    assert logits.grad.isfinite().all()
    assert (logits.grad[~mask] == 0).all()


def test_a_single_legal_action_is_certain():
    d = Categorical(normal(1, 3), torch.tensor([[False, True, False]]))

    assert d.entropy().item() == 0
    assert d.log_prob(d.mode()).item() == 0


def test_a_row_without_a_legal_action_is_refused():
    mask = torch.tensor([[True, True], [False, False]])
    with pytest.raises(ValueError, match="all False"):
        Categorical(torch.zeros(2, 2), mask)
    with pytest.raises(ValueError, match="all False"):
        MultiCategorical(torch.zeros(2, 4), (2, 2), torch.cat([torch.ones_like(mask), mask], -1))
    with pytest.raises(ValueError, match="all False"):
        Bernoulli(torch.zeros(2, 1), mask)


def test_a_masked_bit_is_forced():
    mask = torch.tensor([[True, False, False, True, True, True]])  # only 0; only 1; free
    logits = torch.tensor([[3.0, -3.0, 0.0]], requires_grad=True)
    d = Bernoulli(logits, mask)

    for seed in range(50):
        assert d.sample(noise(ActionSpec("multi_binary", (3,), (2,) * 3), 1, seed=seed))[0, :2].tolist() == [0, 1]
    assert d.entropy().item() == pytest.approx(math.log(2))
    d.log_prob(torch.tensor([[0, 1, 1]])).sum().backward()
    assert logits.grad.tolist() == [[0.0, 0.0, 0.5]]


def test_bernoulli_is_right_far_out_and_at_zero():
    logits = torch.tensor([[-200.0, 200.0, 0.0]], requires_grad=True)
    d = Bernoulli(logits)
    (d.log_prob(torch.tensor([[1, 0, 1]])) + d.entropy()).sum().backward()

    assert d.log_prob(torch.tensor([[1, 0, 1]])).item() == pytest.approx(-400.693147)
    assert_close(logits.grad, torch.tensor([[1.0, -1.0, 0.5]]))


def test_gaussian_entropy_grows_with_log_std():
    log_std = torch.zeros(2, requires_grad=True)

    DiagGaussian(torch.zeros(5, 2), log_std, (2,)).entropy().mean().backward()

    assert_close(log_std.grad, torch.ones(2))


def test_what_each_action_asks_of_network_and_noise():
    assert [head_size(spec) for spec in ALL] == [5, 9, 4, 3, 4]
    assert [noise_of(spec)[:2] for spec in ALL] == [
        ("gumbel", 5), ("gumbel", 9), ("logistic", 4), ("normal", 3), ("normal", 4)
    ]  # fmt: skip


def squashed(mean, std):
    normal_dist = reference.Independent(reference.Normal(mean, std), 1)
    return reference.TransformedDistribution(normal_dist, [reference.TanhTransform()])


@pytest.mark.usefixtures("double")
def test_the_density_of_a_squashed_gaussian_equals_torchs():
    mean, log_std = normal(6, 4), 0.3 * normal(6, 4, seed=1) - 0.5
    ours = TanhGaussian(mean, log_std, (2, 2))
    action = ours.sample(normal(6, 4, seed=2))

    assert action.shape == (6, 2, 2)
    assert_close(ours.log_prob(action), squashed(mean, log_std.exp()).log_prob(action.flatten(1)), atol=1e-9, rtol=1e-9)
    action, log_prob = ours.sample_with_log_prob(normal(6, 4, seed=3))
    assert_close(ours.log_prob(action), log_prob, atol=1e-9, rtol=1e-9)


SATURATED = [
    (9.0, -2.0),
    (-9.0, -2.0),
    (12.0, -4.0),
    (50.0, 0.0),
    (-50.0, -4.0),
    (5.9, 0.0),
    (-5.6, -1.0),
    (-8.0, -1.0),
    (3.0, 1.5),
]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("mean", "log_std"), [*SATURATED, (0.0, 0.0)])
def test_the_probabilities_of_a_squashed_gaussian_add_up_to_one(mean, log_std):
    """Those of both events at the bounds, and the integral of the density between them."""
    dist = TanhGaussian(torch.full((1_000_001, 1), mean), torch.full((1,), log_std), (1,))
    u = torch.linspace(-math.atanh(EDGE), math.atanh(EDGE), 1_000_001, dtype=torch.float64)[1:-1]
    inside = TanhGaussian(dist.mean[1:-1], dist.log_std, (1,)).log_prob(torch.tanh(u).unsqueeze(1)).exp()
    between = torch.trapezoid(inside * (1 - torch.tanh(u) ** 2), u)
    at_bounds = TanhGaussian(dist.mean[:2], dist.log_std, (1,)).log_prob(torch.tensor([[-1.0], [1.0]])).exp()
    assert_close(between + at_bounds.sum(), torch.tensor(1.0), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("mean", "log_std"), SATURATED)
def test_the_gradient_of_a_saturated_squashed_gaussian_has_mean_zero(mean, log_std):
    """The mean of d log p / d parameter over a policy's own actions; else a policy gradient would drift outwards."""
    rows = 200_000
    parameters = torch.tensor([[mean], [log_std]]).expand(2, rows).clone().requires_grad_()
    dist = TanhGaussian(parameters[0].unsqueeze(1), parameters[1].unsqueeze(1), (1,))
    action = dist.sample(torch.randn(rows, 1, generator=torch.Generator().manual_seed(0))).detach()
    (scores,) = torch.autograd.grad(dist.log_prob(action).sum(), parameters)  # [2, rows]
    error = scores.std(1) / math.sqrt(rows)
    assert torch.isfinite(scores).all()
    assert (scores.mean(1).abs() <= 5 * error + 1e-3).all(), scores.mean(1)


@pytest.mark.parametrize("action", [-1.0, -EDGE, 0.5, EDGE, 1.0])
@pytest.mark.parametrize("log_std", [-12.0, -4.0, 0.0, 3.0])
@pytest.mark.parametrize("mean", [-1e4, 0.0, 50.0])
def test_a_squashed_gaussian_has_finite_gradients_at_actions_of_another_policy(mean, log_std, action):
    parameters = torch.tensor([mean, log_std], requires_grad=True)
    log_prob = TanhGaussian(parameters[:1], parameters[1:], (1,)).log_prob(torch.tensor([action]))
    (gradient,) = torch.autograd.grad(log_prob, parameters)
    assert torch.isfinite(log_prob)
    assert torch.isfinite(gradient).all()


def test_all_actions_of_a_squashed_gaussian_from_the_edge_on_are_one_event():
    dist = TanhGaussian(torch.tensor([3.0]), torch.tensor([0.5]), (1,))
    first, second, last = (dist.log_prob(torch.tensor([value])) for value in (EDGE, (1 + EDGE) / 2, 1.0))
    assert first == second == last
    assert dist.log_prob(torch.tensor([1 - 2.0**-15])) != first


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("std", "error"), [(0.05, 1e-9), (0.5, 1e-6), (1.0, 1e-4), (3.0, 2e-2)])
def test_the_entropy_of_a_squashed_gaussian_is_its_integral(std, error):
    mean = torch.tensor([[0.0, 0.7, -2.0]])
    ours = TanhGaussian(mean, torch.full((1, 3), math.log(std)), (3,)).entropy()
    u = torch.linspace(-12 * std - 3, 12 * std + 3, 400_001).unsqueeze(1)
    density = torch.exp(-0.5 * ((u - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    log_density = -0.5 * ((u - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
    log_slope = 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))
    expected = -torch.trapezoid(density * (log_density - log_slope), u, dim=0).sum()

    assert_close(ours[0], expected, atol=error, rtol=0)


@pytest.mark.usefixtures("double")
def test_squashing_changes_no_divergence():
    pairs = [(normal(5, 3, seed=i), 0.3 * normal(5, 3, seed=i + 9)) for i in (0, 1)]
    expected = kl_divergence(*(DiagGaussian(mean, log_std, (3,)) for mean, log_std in pairs))

    assert_close(kl_divergence(*(TanhGaussian(mean, log_std, (3,)) for mean, log_std in pairs)), expected)
    with pytest.raises(TypeError, match="no KL between TanhGaussian and DiagGaussian"):
        kl_divergence(TanhGaussian(*pairs[0], (3,)), DiagGaussian(*pairs[1], (3,)))
