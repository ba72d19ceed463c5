"""MADDPG: both losses against ones written anew, and the traps that a single number does not show."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles.maddpg import FLYER, SWIMMER, Oracle, Params, box_spec, params_of, rows
from oracles.teams import THREE, TWO, poisoned, team_spec
from torch.testing import assert_close

from rltrain.algorithms import settings_class
from rltrain.algorithms.multi_agent.maddpg import MADDPG, straight_through
from rltrain.envs.spec import ActionSpec, EnvSpec
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory

SMALL: dict[str, Any] = {"widths": (6, 5), "gamma": 0.9, "tau": 0.25, "gumbel": 0.7, "regularize": 0.02}


def make(spec: EnvSpec, seed: int = 3, **settings: Any) -> MADDPG:
    config = settings_class("maddpg")(**{**SMALL, **settings})
    found = MADDPG(spec, config, torch.device("cpu"), seed, 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # away from online == target, where mistakes hide
        for module in (found.policy, found.critics):
            for x in module.parameters():
                x.add_(0.3 * torch.randn(x.shape, generator=generator))
    return found


def spec_of(kind: str, masked: bool = False, told: bool = True) -> EnvSpec:
    return box_spec(SWIMMER, FLYER, told=told) if kind == "box" else team_spec(THREE, TWO, masked=masked, told=told)


def as_float(batch: Trajectory) -> Trajectory:
    def single(x: torch.Tensor) -> torch.Tensor:
        return x.float() if x.is_floating_point() else x

    state = None if batch.state is None else batch.state.float()
    return replace(
        batch, obs=tree_map(single, batch.obs), reward=batch.reward.float(), action=single(batch.action), state=state
    )


def gradients(algorithm: MADDPG, batch: Trajectory, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the critics' loss and of the actors', flat."""
    of_critics, of_actors = algorithm.critic_optimizer.grad, algorithm.optimizer.grad
    of_critics.zero_()
    of_actors.zero_()
    algorithm.critic_loss(batch)[0].backward()
    assert not of_actors.any()
    first = of_critics.clone()
    algorithm.policy_loss(batch, noise).backward()
    assert torch.equal(of_critics, first)  # the critics learn nothing from it
    return first, of_actors.clone()


def flat(p: Params) -> torch.Tensor:
    return torch.cat([torch.zeros_like(x).flatten() if x.grad is None else x.grad.flatten() for x in p.values()])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("kind", "masked"), [("discrete", False), ("discrete", True), ("box", False)], ids=["plain", "masked", "box"]
)
@pytest.mark.parametrize("told", [True, False], ids=["state", "joined"])
def test_both_losses_and_their_gradients_equal_those_written_anew(kind, masked, told):
    """Agents that come and leave, groups of unequal spaces, padding; online and target weights apart."""
    spec = spec_of(kind, masked, told)
    algorithm = make(spec)
    for seed in range(2):
        batch = rows(spec, seed, rows=4, batch=4)
        noise = algorithm.noise(batch)
        actors, critics = params_of(algorithm.policy.actors), params_of(algorithm.critics)
        slow = params_of(algorithm.target.module), params_of(algorithm.critic_target.module)
        oracle = Oracle(spec, batch, actors, critics, *slow, noise, algorithm.config)

        targets = algorithm.targets(batch)
        assert_close(
            torch.stack([targets[at] for at in oracle.counted]),
            torch.tensor([oracle.target(*at) for at in oracle.counted]),
        )
        expected = oracle.critic_loss()
        expected.backward()
        loss, surrogate = oracle.policy_loss()
        surrogate.backward()
        assert_close(algorithm.critic_loss(batch)[0], expected)
        assert float(algorithm.policy_loss(batch, noise).detach()) == pytest.approx(loss, rel=1e-9)
        of_critics, of_actors = gradients(algorithm, batch, noise)
        assert_close(of_critics, flat(critics))
        assert_close(of_actors, flat(actors))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_nothing_is_learnt_from_padding(kind):
    """What lies behind an episode's last observation may be anything: the gradients are the same to the bit."""
    spec = spec_of(kind, masked=True)
    algorithm = make(spec)
    batch = rows(spec, 1)
    noise = algorithm.noise(batch)
    changed = poisoned(batch)

    for found, expected in zip(gradients(algorithm, changed, noise), gradients(algorithm, batch, noise), strict=True):
        assert expected.any()
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_nothing_is_learnt_from_who_is_not_there(kind):
    """Neither what they are said to have seen nor to have done reaches anybody."""
    spec = spec_of(kind)
    algorithm = make(spec)
    batch = rows(spec, 2)
    noise = algorithm.noise(batch)
    seen = batch.alive.clone()
    seen[1:] |= batch.truncated  # their last observation is bootstrapped from
    places = dict(zip((group.name for group in spec.groups), seen.split([2, 1], -1), strict=True))
    away = ~batch.alive[:-1]
    assert away.any()
    if kind == "box":
        away = away[..., algorithm.owner]
    changed = replace(
        batch,
        obs={name: torch.where(places[name][..., None], x, 1e6) for name, x in batch.obs.items()},
        action=torch.where(away, 1, batch.action),
    )

    for found, expected in zip(gradients(algorithm, changed, noise), gradients(algorithm, batch, noise), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_an_actor_hears_its_own_critic_only(kind):
    """Critics of `a` and `b` see what `c` does, and say nothing to it; nor does c's to them."""
    spec = spec_of(kind)
    algorithm = make(spec, regularize=0.0)
    batch = rows(spec, 0)
    with torch.no_grad():
        for x in algorithm.critics.nets[1].parameters():
            x.zero_()
    gradients(algorithm, batch, algorithm.noise(batch))

    first, second = ([x.grad for x in actor.parameters()] for actor in algorithm.policy.actors)
    assert any(x.any() for x in first)
    assert not any(x.any() for x in second)


@pytest.mark.usefixtures("double")
def test_a_sample_has_the_gradient_of_its_softmax():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 4, generator=generator, requires_grad=True)
    noise, weight = torch.randn(40, 4, generator=generator), torch.randn(40, 4, generator=generator)
    legal = torch.rand(40, 4, generator=generator) < 0.6
    legal[:, 2] = True
    temperature = 0.5
    sample = straight_through(logits, noise, legal, temperature)
    (sample * weight).sum().backward()

    for b in range(40):
        allowed = [a for a in range(4) if legal[b, a]]
        z = [math.exp(float(logits[b, a].detach() + noise[b, a]) / temperature) for a in allowed]
        y = dict(zip(allowed, (x / sum(z) for x in z), strict=True))
        best = max(y, key=y.__getitem__)
        assert sample[b].tolist() == [float(a == best) for a in range(4)]  # exactly
        for k in range(4):
            slope = sum(float(weight[b, j]) * y[j] * ((j == k) - y.get(k, 0.0)) for j in allowed) / temperature
            assert float(logits.grad[b, k]) == pytest.approx(slope if k in y else 0.0, abs=1e-12)


def test_samples_come_as_often_as_their_softmax_says():
    algorithm = make(spec_of("discrete"))
    batch = rows(spec_of("discrete"), 0, rows=1, batch=20_000)
    logits = torch.tensor([0.0, 1.0, -1.0])
    noise = algorithm.noise(batch)[0, :, :3]
    share = straight_through(logits.expand(20_000, 3), noise, None, 1.0).mean(0)

    assert_close(share, torch.softmax(logits, 0), atol=0.015, rtol=0)


def constant(algorithm: MADDPG, q: float, logits: list[float]) -> None:
    """Whatever they see, target critics say q plus (100, 10, 1) for the first agent's actions, target actors logits."""
    with torch.no_grad():
        for module in (algorithm.critic_target.module, algorithm.target.module):
            for x in module.parameters():
                x.zero_()
        critic, actor = algorithm.critic_target.module.nets[0], algorithm.target.module[0]
        critic.bias0[0, 0] = q
        critic.weight0[0, 0, -6:-3] = torch.tensor([100.0, 10.0, 1.0])
        actor.dense.bias0[0, 0] = torch.tensor(logits)


def flags(*values: bool) -> torch.Tensor:
    return torch.tensor([[list(values)]])


ALIVE = torch.ones(2, 1, 2, dtype=torch.bool)
BOTH_LEAVE = torch.tensor([[[True, True]], [[False, False]]])
FIRST_LEAVES = torch.tensor([[[True, True]], [[False, True]]])


@pytest.mark.parametrize(
    ("fields", "targets"),
    [
        ({}, (1 + 0.9 * 12, 2 + 0.9 * 12)),  # everybody's best is action 1: 2 + 10
        ({"action_mask": torch.tensor([[[True] * 6], [[True, False, True] * 2]])}, (1 + 0.9 * 3, 2 + 0.9 * 3)),
        ({"alive": BOTH_LEAVE, "terminated": flags(True, True)}, (1.0, 2.0)),
        ({"alive": BOTH_LEAVE, "truncated": flags(True, True)}, (1 + 0.9 * 12, 2 + 0.9 * 12)),  # no death
        ({"alive": BOTH_LEAVE, "truncated": flags(True, True), "terminated": flags(True, False)}, (1.0, 2 + 0.9 * 2)),
        ({"alive": FIRST_LEAVES, "terminated": flags(True, False)}, (1.0, 2 + 0.9 * 2)),  # it acts no more
        ({"alive": FIRST_LEAVES, "truncated": flags(True, False)}, (1 + 0.9 * 12, 2 + 0.9 * 2)),
    ],
)
def test_golden_targets(fields, targets):
    spec = team_spec(THREE, masked=True)
    algorithm = make(spec, widths=(), agent_ids=False)
    constant(algorithm, 2.0, [0.0, 9.0, 3.0])
    base: dict[str, Any] = {
        "reward": torch.tensor([[[1.0, 2.0]]]),
        "alive": ALIVE,
        "terminated": flags(False, False),
        "truncated": flags(False, False),
        "first": torch.tensor([[True], [False]]),
        "action_mask": torch.ones(2, 1, 6, dtype=torch.bool),
    }
    batch = replace(as_float(rows(spec, 0, rows=1, batch=1)), **{**base, **fields})

    assert algorithm.targets(batch)[0, 0].tolist() == pytest.approx(targets)


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_both_targets_follow_and_every_parameter_learns(kind):
    spec = spec_of(kind)
    algorithm = make(spec)
    pairs = (algorithm.policy.actors, algorithm.target.module), (algorithm.critics, algorithm.critic_target.module)
    start = [[x.detach().clone() for x in module.parameters()] for pair in pairs for module in pair]
    told = algorithm.update(as_float(rows(spec, 0)), 0.0).metrics

    now = [[x.detach() for x in module.parameters()] for pair in pairs for module in pair]
    for online, slow in ((0, 1), (2, 3)):
        for before, x, slow_before, follows in zip(start[online], now[online], start[slow], now[slow], strict=True):
            assert not torch.equal(x, before)
            assert_close(follows, slow_before + 0.25 * (x - slow_before), atol=1e-6, rtol=0)
    assert sorted(told) == ["grad_norm", "loss_policy", "loss_q", "q_mean"]
    assert float(told["grad_norm"]) > 0


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_what_a_checkpoint_holds_goes_on_alike(kind):
    spec = spec_of(kind)
    one, other = make(spec), make(spec, seed=8)
    first, second = as_float(rows(spec, 0)), as_float(rows(spec, 1))
    one.update(first, 0.0)
    parts = one.parts()
    assert {"policy", "critics", "target", "critic_target", "optimizer", "critic_optimizer", "rng"} == set(parts)
    for name, part in other.parts().items():
        part.load_state_dict(parts[name].state_dict())
    for each in (one, other):
        each.update(second, 0.5)

    for mine, theirs in ((one.optimizer, other.optimizer), (one.critic_optimizer, other.critic_optimizer)):
        assert torch.equal(mine.param, theirs.param)
        assert torch.equal(mine.square, theirs.square)
    for mine, theirs in ((one.target, other.target), (one.critic_target, other.critic_target)):
        for x, y in zip(mine.module.parameters(), theirs.module.parameters(), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("masked", [False, True])
def test_actors_take_the_best_legal_action_or_a_sample_of_the_legal_ones(masked):
    spec = spec_of("discrete", masked=masked)
    policy = make(spec).policy
    generator = torch.Generator().manual_seed(0)
    obs = {"three": torch.randn(16, 2, 3, generator=generator), "two": torch.randn(16, 1, 2, generator=generator)}
    mask = torch.rand(16, 8, generator=generator) < 0.5
    mask[:, [0, 3, 6]] = True
    noise = torch.randn(16, policy.noise.width, generator=generator)
    legal = mask if masked else torch.ones_like(mask)

    for explore in (False, True):
        action = policy.act(obs, None, mask if masked else None, noise, explore).action
        score = policy.score(obs).detach() + noise * explore
        for b in range(16):
            for i, (begin, count) in enumerate(((0, 3), (3, 3), (6, 2))):
                of = [float(score[b, begin + a]) if legal[b, begin + a] else float("-inf") for a in range(count)]
                assert int(action[b, i]) == max(range(count), key=of.__getitem__)


@pytest.mark.parametrize(("groups", "shape"), [((SWIMMER, FLYER), (7,)), ((SWIMMER,), (2, 2))])
def test_box_actions_have_noise_and_stay_within_bounds(groups, shape):
    spec = box_spec(*groups)
    policy = make(spec, noise=0.5, noise_end=0.1).policy
    obs = {group.name: torch.randn(8, len(group.agents), *group.obs.shape) for group in groups}
    noise = 3 * torch.randn(8, policy.noise.width)
    policy.schedule(0.5)
    plain = policy.act(obs, None, None, noise, False).action
    noisy = policy.act(obs, None, None, noise, True).action

    assert plain.shape == noisy.shape == (8, *shape)
    assert_close(plain.flatten(1), torch.tanh(policy.score(obs)))
    assert_close(noisy.flatten(1), (plain.flatten(1) + 0.3 * noise).clamp(-1, 1))
    assert (noisy.abs() == 1).any()


def test_actors_alike_differ_by_who_they_are_if_asked_to():
    obs = {"three": torch.ones(1, 2, 3), "two": torch.ones(1, 1, 2)}
    for asked in (True, False):
        score = make(spec_of("discrete"), agent_ids=asked).policy.score(obs)[0, :6].view(2, 3)
        assert torch.allclose(score[0], score[1], atol=1e-5) is not asked


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": ()}, "maddpg is for several agents; team has one agent"),
        ({"turns": True}, "the agents of team act in turns"),
        (
            {"groups": (replace(THREE, action=ActionSpec("multi_discrete", (2,), (3, 3))),)},
            "maddpg needs agents whose actions are all Discrete or all Box; those of team are multi_discrete",
        ),
        ({"groups": (THREE, FLYER)}, "those of team are box and discrete"),
    ],
)
def test_what_it_is_not_for(change, words):
    with pytest.raises(ValueError, match=words):
        make(replace(team_spec(THREE), **change))
