"""DQN: whole updates against ones written anew, and the traps that a single loss does not show."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from oracles.cases import BOX, DISCRETE, MASKED, parameters
from oracles.q_learning import Reference
from torch.testing import assert_close

from rltrain.algorithms.off_policy.dqn import DQN
from rltrain.algorithms.off_policy.settings import DQNConfig
from rltrain.rollout.types import Trajectory, Transition

SMALL = {"widths": (8, 7), "batch": 12, "lr": 1e-2, "target_every": 2}
C51 = {"atoms": 11, "v_min": -3.0, "v_max": 4.0}
RAINBOW = {**C51, "double": True, "dueling": True, "prioritized": True, "n_step": 3, "noisy": True}
SWITCHES = [
    {},
    {"double": True},
    {"dueling": True},
    {"loss": "squared", "max_grad_norm": 0.1, "lr_end": 0.0},
    {"tau": 0.3, "max_grad_norm": 0.0},
    {"prioritized": True, "double": True},
    {"normalize_obs": True},
    C51,
    {**C51, "double": True, "dueling": True},
    {"noisy": True},
    {"noisy": True, "double": True, "dueling": True, "widths": (8,)},
    {"widths": (), "dueling": True},
    RAINBOW,
]


def shown(settings) -> str:
    return "-".join(settings) or "default"


def make_dqn(spec=DISCRETE, seed: int = 3, **settings) -> DQN:
    small = {key: value for key, value in SMALL.items() if key != "target_every" or "tau" not in settings}
    config = DQNConfig(**{**small, **settings})
    dqn = DQN(spec, config, torch.device("cpu"), seed, config.streams)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # away from online == target, where mistakes hide
        for x in dqn.policy.parameters():
            x.add_(0.3 * torch.randn(x.shape, generator=generator))
    return dqn


def sample(spec=DISCRETE, seed: int = 0, rows: int = 12, weights: bool = False, n_step: int = 1) -> Transition:
    """Transitions of which a third terminated and a third is short of n steps."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    kind = torch.arange(rows) % 3
    m = torch.where(kind == 1, 1, n_step)
    n = spec.action.mask_size
    action = torch.randint(n, (rows,), generator=g)
    mask = next_mask = None
    if spec.action_mask:
        mask = torch.rand(rows, n, generator=g) < 0.4
        mask.scatter_(-1, action[:, None], True)
        next_mask = torch.rand(rows, n, generator=g) < 0.4
        next_mask[:, 2] |= ~next_mask.any(-1)
        next_mask[0] = False  # a final observation may allow nothing; its discount is 0
    return Transition(
        obs=normal(rows, 3),
        action=action,
        reward=normal(rows),
        discount=torch.where(kind == 0, 0.0, 0.9**m),
        next_obs=normal(rows, 3),
        action_mask=mask,
        next_action_mask=next_mask,
        weight=torch.rand(rows, generator=g) if weights else None,
        index=torch.arange(rows) if weights else None,
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", SWITCHES, ids=shown)
@pytest.mark.parametrize("spec", [DISCRETE, MASKED], ids=["plain", "masked"])
def test_five_updates_equal_those_written_anew(spec, settings):
    """Losses, priorities, weights; with target copies between, and what the optimiser has kept."""
    dqn = make_dqn(spec, **settings)
    dqn.target.load_state_dict({name: x + 0.1 for name, x in dqn.net.state_dict().items()})
    reference = Reference(dqn.net, dqn.config, actions=4, seed=3)
    for name, x in dqn.target.module.named_parameters():
        reference.target[name] = x.detach().clone()
    start = parameters(dqn.policy)
    weighted = bool(settings.get("prioritized"))
    for seed in range(5):
        batch = seen = sample(spec, seed, weights=weighted, n_step=dqn.config.n_step)
        if dqn.policy.normalizer is not None:
            dqn.policy.normalizer.update(batch.obs, torch.ones(12, dtype=torch.bool))
            shift, scale = (dqn.policy.get_buffer(f"normalizer.{name}0") for name in ("shift", "scale"))
            seen = replace(
                batch,
                obs=((batch.obs - shift) * scale).clip(-10, 10),
                next_obs=((batch.next_obs - shift) * scale).clip(-10, 10),
            )
        loss, errors = reference.update(seen, progress=0.25 * seed)
        update = dqn.update(batch, progress=0.25 * seed)
        assert_close(update.metrics["loss_q"], loss)
        assert (update.priority is None) != weighted
        if update.priority is not None:
            assert_close(update.priority, errors)

    after = {name.removeprefix("net."): x for name, x in parameters(dqn.policy).items()}
    assert_close(after, {name: x.detach() for name, x in reference.p.items()}, atol=1e-7, rtol=0)
    assert_close(dict(dqn.target.module.named_parameters()), reference.target, atol=1e-7, rtol=0)
    assert all((after[name.removeprefix("net.")] - x).abs().max() > 1e-3 for name, x in start.items())


def fixed(dqn: DQN, online: list[float], judged: list[float]) -> None:
    """Both networks put out the same values whatever they see."""
    with torch.no_grad():
        for net, values in ((dqn.net, online), (dqn.target.module, judged)):
            for x in net.parameters():
                x.zero_()
            net.advantage.bias0.copy_(torch.tensor(values))


@pytest.mark.parametrize(
    ("settings", "mask", "target"),
    [
        ({}, None, 7.0),  # the target network's own maximum
        ({"double": True}, None, 2.0),  # the online network's choice, judged by the target network
        ({}, [True, True, False, True], 5.0),
        ({"double": True}, [True, False, True, True], 5.0),
    ],
)
def test_golden_targets(settings, mask, target):
    """The online network chooses among the legal actions of next_obs, the target network judges."""
    spec = DISCRETE if mask is None else MASKED
    dqn = make_dqn(spec, widths=(), gamma=0.9, **settings)
    fixed(dqn, online=[0.0, 9.0, 3.0, 4.0], judged=[1.0, 2.0, 7.0, 5.0])
    batch = replace(
        sample(spec, rows=3),
        reward=torch.tensor([1.0, 1.0, 1.0]),
        discount=torch.tensor([0.9, 0.81, 0.0]),
        next_action_mask=None if mask is None else torch.tensor([mask] * 3),
    )

    found = dqn.targets(batch, batch.next_obs)

    assert_close(found, torch.tensor([1 + 0.9 * target, 1 + 0.81 * target, 1.0]))


@pytest.mark.parametrize("settings", [{}, C51, RAINBOW], ids=shown)
def test_what_follows_a_termination_does_not_matter(settings):
    """Discount 0 hides next_obs, and its mask, whatever they hold."""
    dqn = make_dqn(MASKED, **settings)
    one = sample(MASKED, 1)
    ended = one.discount == 0
    other = replace(
        one,
        next_obs=torch.where(ended[:, None], 1e6, one.next_obs),
        next_action_mask=one.next_action_mask & ~ended[:, None],
    )
    state = dqn.rng.state_dict()["state"].clone()
    first = dqn.targets(one, one.next_obs)
    dqn.rng.load_state_dict({"state": state})

    assert_close(dqn.targets(other, other.next_obs), first, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, C51], ids=shown)
def test_weights_scale_the_loss_but_not_the_priority(settings):
    whole, half = make_dqn(prioritized=True, **settings), make_dqn(prioritized=True, **settings)
    batch = sample(weights=True)
    ones = whole.update(replace(batch, weight=torch.ones(12)), 0.0)
    halves = half.update(replace(batch, weight=torch.full((12,), 0.5)), 0.0)

    assert_close(halves.metrics["loss_q"], 0.5 * ones.metrics["loss_q"])
    assert_close(halves.priority, ones.priority)


@pytest.mark.usefixtures("double")
def test_targets_carry_no_gradient_and_the_target_network_has_none():
    dqn = make_dqn(double=True)

    batch = sample()
    assert not dqn.targets(batch, batch.next_obs).requires_grad
    dqn.update(batch, 0.0)
    assert all(not x.requires_grad for x in dqn.target.module.parameters())
    assert dqn.optimizer.param.numel() == sum(x.numel() for x in dqn.net.parameters())


def slow(dqn: DQN) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(dqn.target.module.parameters())


def distance(dqn: DQN) -> float:
    return (dqn.optimizer.param - slow(dqn)).abs().max().item()


@pytest.mark.usefixtures("double")
def test_the_target_network_stands_still_between_its_copies():
    dqn = make_dqn(target_every=3)
    found = []
    for seed in range(7):
        dqn.update(sample(seed=seed), 0.0)
        found.append(distance(dqn) == 0)

    assert found == [False, False, True, False, False, True, False]


@pytest.mark.usefixtures("double")
def test_the_target_network_may_be_copied_before_each_round_of_updates():
    """As where copies are counted in environment steps, of which many lie between two rounds."""
    dqn, copied = make_dqn(target_every=0), []
    for seed, progress in enumerate([0.1, 0.1, 0.1, 0.2, 0.2, 0.3]):
        before = dqn.optimizer.param.clone()
        dqn.update(sample(seed=seed), progress)
        copied.append(bool(torch.equal(slow(dqn), before)))

    assert copied == [True, False, False, True, False, True]


@pytest.mark.usefixtures("double")
def test_with_tau_the_target_network_moves_by_that_share_of_the_way():
    dqn = make_dqn(tau=0.25)
    before = slow(dqn).clone()
    dqn.update(sample(), 0.0)

    assert_close(slow(dqn), before + 0.25 * (dqn.optimizer.param - before))


def test_the_target_network_begins_as_the_online_network():
    dqn = DQN(DISCRETE, DQNConfig(**RAINBOW), torch.device("cpu"), 0, 8)

    assert distance(dqn) == 0


@pytest.mark.usefixtures("double")
def test_epsilon_falls_with_the_share_of_the_run():
    dqn = make_dqn(epsilon=0.9, epsilon_end=0.1, epsilon_share=0.2)
    found = {}
    for progress in (0.0, 0.1, 0.2, 0.7):
        assert dqn.update(sample(), progress).metrics["epsilon"] == pytest.approx(dqn.policy.epsilon.item())
        found[progress] = dqn.policy.epsilon.item()

    assert found == pytest.approx({0.0: 0.9, 0.1: 0.5, 0.2: 0.1, 0.7: 0.1})


@pytest.mark.usefixtures("double")
def test_noise_is_new_for_each_update_and_that_of_the_loss_is_left_for_the_actors():
    dqn = make_dqn(noisy=True, double=True, target_every=9)
    seen = [dqn.net.advantage.noise.clone()]
    for seed in range(2):
        dqn.update(sample(seed=seed), 0.0)
        seen += [dqn.net.advantage.noise.clone(), dqn.target.module.advantage.noise.clone()]

    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    assert all(x.abs().max() > 0.1 for x in seen)


@pytest.mark.usefixtures("double")
def test_statistics_stand_still_during_an_update():
    dqn = make_dqn(normalize_obs=True)
    unroll = Trajectory(
        obs=torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)),
        action=torch.zeros(4, 2, dtype=torch.int64),
        reward=torch.zeros(4, 2),
        terminated=torch.zeros(4, 2, dtype=torch.bool),
        truncated=torch.zeros(4, 2, dtype=torch.bool),
        first=torch.tensor([[True, True], [False, False], [False, True], [False, False], [False, False]]),
        version=torch.zeros(2, dtype=torch.int64),
        stream=torch.arange(2),
        row=torch.zeros(2, dtype=torch.int64),
    )
    dqn.update(sample(), 0.0)
    assert dqn.policy.get_buffer("normalizer.count0") == 0
    dqn.observe(unroll)
    assert dqn.policy.get_buffer("normalizer.count0") == 7  # the row before a reset row is not acted on
    assert_close(dqn.policy.get_buffer("normalizer.mean0"), unroll.obs[:-1][unroll.valid].mean(0).double())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", SWITCHES, ids=shown)
def test_a_restored_dqn_goes_on_to_the_bit(settings):
    """Weights, target, moments, the count that times the copies, the noise: all parts, and nothing else."""
    weighted = bool(settings.get("prioritized"))
    whole, other = make_dqn(**settings), make_dqn(seed=99, **settings)
    whole.update(sample(seed=1, weights=weighted), 0.0)
    saved = copy.deepcopy({name: part.state_dict() for name, part in whole.parts().items()})
    for name, part in other.parts().items():
        part.load_state_dict(saved[name])
    for seed in (2, 3, 4):
        for dqn in (whole, other):
            dqn.update(sample(seed=seed, weights=weighted), 0.1 * seed)

    states = [{name: part.state_dict() for name, part in dqn.parts().items()} for dqn in (whole, other)]
    assert_close(states[1], states[0], atol=0, rtol=0)
    assert distance(whole) == distance(other)


@pytest.mark.usefixtures("double")
def test_a_sample_is_left_as_it_was():
    dqn = make_dqn(**{**RAINBOW, "normalize_obs": True})
    batch = sample(MASKED, weights=True)
    before = copy.deepcopy(batch)
    dqn.update(batch, 0.0)

    for name in ("obs", "action", "reward", "discount", "next_obs", "weight", "index"):
        assert torch.equal(getattr(batch, name), getattr(before, name))


def test_an_update_on_one_sample_reports_finite_numbers():
    for settings in SWITCHES:
        dqn = make_dqn(**settings)
        update = dqn.update(sample(rows=1, weights=True), 0.0)
        assert all(math.isfinite(value) for value in update.metrics.values())


def test_the_plan_says_what_was_asked_for():
    plan = make_dqn(prioritized=True, alpha=0.7, n_step=3, gamma=0.9, batch=32, capacity=500).plan

    assert (plan.alpha, plan.n_step, plan.gamma, plan.batch, plan.capacity) == (0.7, 3, 0.9, 32, 500)
    assert make_dqn(alpha=0.7).plan.alpha == 0.0


def test_other_actions_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"needs Discrete actions; box has box actions.*sac, td3 or ddpg"):
        make_dqn(BOX)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"tau": 0.1, "target_every": 5}, "got target_every 5 and tau 0.1; set one of them to none"),
        ({"target_every": None}, "got target_every none and tau none"),
        ({"widths": (0,)}, "widths must each be at least 1"),
        ({"atoms": 5, "v_min": 1.0, "v_max": 1.0}, "v_min must be below v_max, got 1 and 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        DQNConfig(**settings)


def test_tau_takes_the_place_of_the_copies():
    config = DQNConfig(tau=0.01)

    assert config.target_every is None
    assert DQNConfig(**config.model_dump()) == config
