"""ActorCritic on every kind of space: acting and learning see the same policy; seeds, masks, torsos, names."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rltrain.algorithms.on_policy.a2c import A2C
from rltrain.algorithms.on_policy.actor_critic import ActorCritic
from rltrain.algorithms.on_policy.ppo import PPO
from rltrain.algorithms.on_policy.settings import A2CConfig, PPOConfig
from rltrain.algorithms.registry import POLICIES, build, policy_factory, register_policy
from rltrain.config.load import load
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf, ObsSpec, iter_leaves
from rltrain.learner.algorithm import make_policy
from rltrain.rollout.actor.batch_invariance import Blockwise
from rltrain.rollout.actor.noise import DRAWS
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import hooks_of

BOX = Leaf("box", (3,), "float32")
OBS: dict[str, ObsSpec] = {
    "box": BOX,
    "image": Leaf("image", (36, 36, 3), "uint8", channels_last=True),
    "small-image": Leaf("image", (8, 8), "uint8"),
    "discrete": Leaf("discrete", (), "int64", (5,)),
    "multi-discrete": Leaf("multi_discrete", (2,), "int64", (2, 3)),
    "multi-binary": Leaf("multi_binary", (4,), "float32"),
    "dict": {"a": BOX, "b": (Leaf("discrete", (), "int64", (3,)), Leaf("image", (8, 8), "uint8"))},
}
ACTIONS = {
    "discrete": ActionSpec("discrete", (), (4,)),
    "multi-discrete": ActionSpec("multi_discrete", (2,), (3, 2)),
    "multi-binary": ActionSpec("multi_binary", (3,), (2, 2, 2)),
    "box": ActionSpec("box", (2, 2), low=(-1.0,) * 4, high=(1.0,) * 4),
}
GRU = {"memory": "gru", "memory_size": 6, "sequence": 4}
N = 16


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(obs: ObsSpec = BOX, action: str = "discrete", mask: bool = False, seed: int = 0, **settings) -> ActorCritic:
    config = PPOConfig(**{"widths": (8,), "unroll": 8, **settings})
    policy = build(ActorCritic, EnvSpec("test", obs, ACTIONS[action], action_mask=mask), config, 4, seed)
    assert isinstance(policy, ActorCritic)
    return policy


def observe(obs: ObsSpec, lead: tuple[int, ...], seed: int = 0):
    """Random observations [*lead, *O]."""
    generator = np.random.default_rng(seed)

    def leaf(of: Leaf) -> torch.Tensor:
        shape = (*lead, *of.shape)
        if of.kind in ("discrete", "multi_discrete"):
            high = np.array(of.nvec) if of.kind == "multi_discrete" else of.nvec[0]
            return torch.from_numpy(generator.integers(0, high, shape))
        if of.kind == "image":
            return torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
        return torch.from_numpy(generator.normal(size=shape).astype(np.float32))

    return tree_map(leaf, obs)


def noise(policy: ActorCritic, rows: int, seed: int = 1) -> torch.Tensor:
    kind, width, *_ = policy.noise
    return torch.from_numpy(DRAWS[kind](np.random.default_rng(seed), (rows, width)).astype(np.float32))


def spread(policy: ActorCritic) -> ActorCritic:
    """Away from the flat start: outputs of a size to speak of."""
    with torch.no_grad():
        policy.actor.weight0.mul_(200)
    return policy


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("obs", OBS)
@pytest.mark.parametrize("settings", [{}, GRU, {"normalize_obs": True}], ids=["plain", "gru", "normalised"])
def test_act_and_forward_agree_on_every_space(obs, action, settings):
    """Row by row with the core, as an actor does it, or all at once, as the learner does."""
    policy = make(OBS[obs], action, **{"widths": (), **settings})
    spread(policy)
    rows = observe(OBS[obs], (4, N))
    if policy.normalizer is not None:
        policy.normalizer.update(rows, torch.ones(4, N, dtype=torch.bool))
    first = torch.zeros(4, N, dtype=torch.bool)
    first[2, ::3] = True
    core = start = torch.randn(N, 6, generator=rng(3)) if policy.core_size else None
    actions, log_probs, modes = [], [], []
    with torch.inference_mode():
        for t in range(4):
            row = tree_map(lambda x, t=t: x[t], rows)
            if core is not None:
                core = core.masked_fill(first[t][:, None], 0.0)
            act = policy.act(row, core, None, noise(policy, N, t), True)
            mode = policy.act(row, core, None, noise(policy, N, t), False)
            assert mode.extras == {}
            actions.append(act.action)
            log_probs.append(policy.summarize_unroll(act.extras, act.action, None)["log_prob"])
            modes.append(mode.action)
            core = act.core
        action_of, log_prob = torch.stack(actions), torch.stack(log_probs)
        dist, value = policy.forward(rows, None, start, first)

    assert action_of.shape == (4, N, *ACTIONS[action].shape)
    assert str(action_of.dtype) == f"torch.{ACTIONS[action].dtype}"
    assert_close(dist.log_prob(action_of), log_prob, atol=1e-5, rtol=1e-5)
    assert_close(dist.mode(), torch.stack(modes), atol=1e-5, rtol=1e-5)
    assert_close(policy.value(rows, start, first), value)
    assert value.shape == log_prob.shape == (4, N)
    assert value.std() > 0
    assert log_prob.std() > 0


@pytest.mark.parametrize("action", ["discrete", "multi-discrete", "multi-binary"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_no_illegal_action_in_ten_thousand(action, scale):
    """Neither drawn nor taken as the best, however sure the network is of an illegal one."""
    rows, heads = 10_000, ACTIONS[action].nvec
    policy = make(action=action, mask=True)
    with torch.no_grad():
        policy.actor.weight0.copy_(scale * torch.randn(policy.actor.weight0.shape, generator=rng(5)))
    mask = torch.rand(rows, sum(heads), generator=rng(6)) < 0.4
    starts = np.cumsum([0, *heads[:-1]])
    for head, start in zip(heads, starts, strict=True):
        sure = torch.randint(head, (rows,), generator=rng(int(start)))  # at least one of each head
        mask[torch.arange(rows), start + sure] = True

    with torch.inference_mode():
        obs = observe(BOX, (rows,))
        for explore in (True, False):
            act = policy.act(obs, None, mask, noise(policy, rows), explore)
            taken = act.action.reshape(rows, -1) + torch.from_numpy(starts)  # [rows, heads]
            assert mask.gather(1, taken).all()
            if explore:
                assert policy.summarize_unroll(act.extras, act.action, mask)["log_prob"].isfinite().all()
                assert taken.unique().numel() == sum(heads)


def test_a_seed_gives_the_same_weights_and_leaves_torchs_own_generator_alone():
    before = torch.get_rng_state()
    one, two, other = (make(OBS["dict"], seed=seed, **GRU).state_dict() for seed in (7, 7, 8))

    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["actor.weight0"], other["actor.weight0"])
    assert torch.equal(before, torch.get_rng_state())


def test_acting_draws_nothing_of_its_own():
    """Its noise is the actor's: the same noise, the same action, whatever torch's generator is at."""
    policy = spread(make(widths=()))
    obs, given = observe(BOX, (N,)), noise(policy, N)
    with torch.inference_mode():
        torch.manual_seed(0)
        one = policy.act(obs, None, None, given, True).action
        torch.manual_seed(1)
        before = torch.get_rng_state()
        assert torch.equal(policy.act(obs, None, None, given, True).action, one)
        assert torch.equal(before, torch.get_rng_state())
        assert not torch.equal(policy.act(obs, None, None, noise(policy, N, 9), True).action, one)


def test_the_start_is_nearly_uniform_and_the_value_is_not_held_down():
    policy = make(widths=(64, 64))
    with torch.no_grad():
        dist, value = policy.forward(observe(BOX, (256,)))

    assert dist.entropy().min() > 0.999 * np.log(4)
    assert value.std() > 0.1


def test_the_deviation_of_a_box_is_a_parameter_of_its_own():
    policy = make(action="box", log_std_init=-1.5)

    assert policy.log_std is not None
    assert policy.log_std.tolist() == [-1.5] * 4
    assert "log_std" in dict(policy.named_parameters())
    assert make().log_std is None


@pytest.mark.parametrize(("settings", "shared"), [({}, False), ({"shared_torso": True}, True), (GRU, True)])
def test_policy_and_value_share_layers_only_if_asked_or_if_there_is_a_memory(settings, shared):
    policy = make(**settings)
    first = torch.zeros(4, N, dtype=torch.bool)
    policy.value(observe(BOX, (4, N)), torch.zeros(N, 6), first).sum().backward()
    moved = {name.split(".")[0] for name, x in policy.named_parameters() if x.grad is not None and x.grad.any()}

    assert moved == ({"trunk", "critic"} | ({"memory"} if settings == GRU else set()) if shared else {"critic"})


@pytest.mark.parametrize(("settings", "apart"), [({}, True), ({"shared_torso": True}, False), (GRU, False)])
@pytest.mark.parametrize("obs", ["small-image", "dict", "users"])
def test_an_encoder_that_learns_is_one_each_unless_shared(monkeypatch, obs, settings, apart):
    """Neither loss moves the other's encoder; the two begin with weights of their own."""
    if obs == "users":
        home = types.ModuleType("my_torsos")
        home.Doubling = Doubling
        monkeypatch.setitem(sys.modules, "my_torsos", home)
        obs, settings = "dict", {"torso": "my_torsos:Doubling", **settings}
    policy = make(OBS[obs], normalize_obs=True, **settings)
    rows, core, first = observe(OBS[obs], (4, N)), torch.zeros(N, 6), torch.zeros(4, N, dtype=torch.bool)
    names = {name.split(".")[0] for name in policy.state_dict()}
    assert ("value_encoder" in names) == apart
    assert "encoder" in names

    def moved(loss):
        policy.zero_grad()
        loss.backward()
        return {name.split(".")[0] for name, x in policy.named_parameters() if x.grad is not None and x.grad.any()}

    encoders = {"encoder", "value_encoder"}
    dist, value = policy.forward(rows, None, core, first)
    assert torch.equal(value, policy.value(rows, core, first))
    assert moved(value.sum()) & encoders == ({"value_encoder"} if apart else {"encoder"})
    spread(policy)
    dist, _ = policy.forward(rows, None, core, first)
    assert moved(dist.entropy().sum()) & encoders == {"encoder"}
    if apart:
        mine, other = (next(iter(part.parameters())) for part in (policy.encoder, policy.value_encoder))
        assert not torch.equal(mine, other)


@pytest.mark.parametrize("obs", ["box", "discrete", "multi-binary"])
def test_an_encoder_without_weights_serves_policy_and_value(obs):
    assert not [name for name in make(OBS[obs]).state_dict() if "encoder" in name]


@pytest.mark.parametrize("algorithm", [(PPO, PPOConfig), (A2C, A2CConfig)], ids=["ppo", "a2c"])
def test_a_device_without_float64_is_refused_in_one_line(monkeypatch, algorithm):
    def to(module, device):
        if any(x.dtype == torch.float64 for x in module.state_dict().values()):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype.\nMore")
        return module

    monkeypatch.setattr(nn.Module, "to", to)
    build_it, settings = algorithm
    spec = EnvSpec("here", BOX, ACTIONS["discrete"])
    build_it(spec, settings(), torch.device("cpu"), 5, 4)
    for name in ("normalize_obs", "normalize_return"):
        with pytest.raises(ValueError, match=f"cannot hold.*{name}") as caught:
            build_it(spec, settings(**{name: True}), torch.device("cpu"), 5, 4)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sequence", [2, 4])
def test_a_gradient_goes_back_one_sequence_and_no_further(sequence):
    """And the memory itself goes on: values do not depend on where it is cut."""
    policy = make(**{**GRU, "sequence": sequence, "unroll": 4})
    obs = observe(BOX, (4, 1)).requires_grad_()
    first = torch.zeros(4, 1, dtype=torch.bool)
    value = policy.value(obs, torch.zeros(1, 6), first)
    value[-1].backward()

    reached = obs.grad[:, 0].abs().sum(-1) > 0
    assert reached.tolist() == [t >= 4 - sequence for t in range(4)]
    policy.sequence = 1
    assert torch.equal(policy.value(obs, torch.zeros(1, 6), first), value)


def test_statistics_travel_with_the_weights():
    one, two = (make(seed=seed, normalize_obs=True, normalize_return=True) for seed in (0, 1))
    obs = observe(BOX, (N,)) * 5 + 3
    one.normalizer.update(obs, torch.ones(N, dtype=torch.bool))
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert torch.equal(two.value(obs), one.value(obs))
        one.normalizer.shift0.zero_()
        assert not torch.equal(two.value(obs), one.value(obs))


def test_a_scaled_reward_is_limited():
    """The first reward of a sparse task is large in units of the small returns before it."""
    policies = [make(normalize_return=True, **more) for more in ({}, {"reward_limit": None}, {"reward_limit": 2.5})]
    rewards = torch.tensor([100.0, -100.0, 0.01])
    for policy, expected in zip(policies, (10.0, 1000.0, 2.5), strict=True):
        for name, value in {"count": 100.0, "m2": 1.0}.items():  # a deviation of 0.1
            policy.get_buffer(f"return_scale.{name}").fill_(value)
        assert_close(policy.scaled(rewards), torch.tensor([expected, -expected, 0.1]))
    assert torch.equal(make().scaled(rewards), rewards), "rewards that are not scaled have no limit"


class Doubling(nn.Module):
    """A user's torso for the dict observation."""

    def __init__(self, spec) -> None:
        super().__init__()
        self.linear, self.features = nn.Linear(3, 5), 5
        assert list(iter_leaves(spec.obs))

    def forward(self, obs):
        assert obs["a"].ndim == 2
        return torch.relu(self.linear(obs["a"])) * (1 + obs["b"][0][:, None])


def test_a_users_torso_acts_and_learns(monkeypatch):
    home = types.ModuleType("my_torsos")
    home.Doubling = Doubling
    monkeypatch.setitem(sys.modules, "my_torsos", home)
    policy = make(OBS["dict"], torso="my_torsos:Doubling", **GRU)
    rows, first = observe(OBS["dict"], (4, N)), torch.zeros(4, N, dtype=torch.bool)
    dist, value = policy.forward(rows, None, torch.zeros(N, 6), first)
    (value.sum() + dist.entropy().sum()).backward()

    assert policy.encoder.module.linear.weight.grad.any()
    with torch.no_grad():
        act = policy.act(tree_map(lambda x: x[0], rows), torch.zeros(N, 6), None, noise(policy, N), True)
    log_prob = policy.summarize_unroll(act.extras, act.action, None)["log_prob"]
    assert_close(log_prob, dist.log_prob(act.action.expand(4, N))[0].detach(), atol=1e-5, rtol=1e-5)


def test_a_registered_policy_is_what_an_algorithm_builds(monkeypatch):
    monkeypatch.setattr("rltrain.algorithms.registry.POLICIES", dict(POLICIES))
    made = []

    def factory(spec, config, streams, generator):
        made.append((spec.id, config.policy, streams, generator.initial_seed()))
        return ActorCritic(spec, config, streams, generator)

    register_policy("mine", factory)
    spec = EnvSpec("here", BOX, ACTIONS["discrete"])
    ppo = PPO(spec, PPOConfig(policy="mine"), torch.device("cpu"), 5, 4)

    assert made == [("here", "mine", 4, 5)]
    assert isinstance(ppo.policy, ActorCritic)


def test_a_policy_with_a_hook_under_its_old_name_is_refused():
    """Nothing would call it: the policy would act or learn in another way than its author wrote."""

    class Old(ActorCritic):
        def took(self, core, action):
            return core

    with pytest.raises(ValueError, match="Old: its method took is now called core_with_action"):
        build(Old, EnvSpec("here", BOX, ACTIONS["discrete"]), PPOConfig(), 4, 5)


def test_a_hook_under_its_old_name_is_found_where_a_parent_has_the_new_one():
    class Old(ActorCritic):
        def narrow(self, rows):
            pass

    class Both(Old):
        def set_active_rows(self, rows):
            pass

    spec = EnvSpec("here", BOX, ACTIONS["discrete"])
    with pytest.raises(ValueError, match="Old: its method narrow is now called set_active_rows"):
        build(Old, spec, PPOConfig(), 4, 5)
    build(Both, spec, PPOConfig(), 4, 5)


def test_an_unknown_policy_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"unknown policy 'actor'\. Known: .*actor_critic"):
        policy_factory("actor")


QUICK: list[tuple[str, dict[str, Any], bool]] = [  # environment, settings, whether there is a quick act
    ("CartPole-v1", {}, True),
    ("CartPole-v1", {"normalize_obs": True, "activation": "relu"}, True),
    ("CartPole-v1", {"shared_torso": True}, False),
    ("CartPole-v1", {"memory": "gru"}, False),
    ("probe:box3", {"normalize_obs": True}, True),
    ("probe:box", {"squash": True, "widths": ()}, True),
    ("probe:box", {"sde": True, "squash": True}, False),
    ("probe:multi-discrete", {}, True),
    ("probe:masked", {}, False),
    ("probe:image", {}, False),
]


@pytest.mark.parametrize(("env", "settings", "quick"), QUICK)
def test_a_quick_act_has_the_bits_of_act(env: str, settings: dict[str, Any], quick: bool) -> None:
    config = load({"algo": "ppo", "env": env, "preset": "none", **settings})
    policy: Any = make_policy(config, read_spec(resolve(env), 0))()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in policy.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
    act = hooks_of(policy).quick_act()
    assert (act is not None) is quick

    for rows in (8, 16, 40) if act is not None else ():
        obs = torch.randn(rows, policy.encoder.features, generator=generator)
        noise = torch.randn(rows, policy.noise.columns, generator=generator)
        with torch.no_grad():
            found = act(obs, noise)
        kept = found.extras["head"].clone()
        with torch.inference_mode():
            expected = policy.act(obs, None, None, noise, True)
        with torch.no_grad():
            act(obs + 1, noise)  # the results of the call before stay
        assert found.extras.keys() == expected.extras.keys()
        assert torch.equal(found.extras["head"], kept)
        assert torch.equal(found.action, expected.action)
        assert torch.equal(found.extras["head"], expected.extras["head"])


def test_a_class_that_replaces_act_has_no_quick_act() -> None:
    config = load({"algo": "ppo", "env": "CartPole-v1", "preset": "none"})
    policy: Any = make_policy(config, read_spec(resolve("CartPole-v1"), 0))()
    base = type(policy)
    policy.__class__ = type("Acts", (base,), {"act": lambda self, *inputs: base.act(self, *inputs)})

    assert hooks_of(policy).quick_act() is None
    assert hooks_of(Blockwise(policy)).quick_act() is None
    policy.__class__ = base
    assert hooks_of(policy).quick_act() is not None
    assert hooks_of(Blockwise(policy)).quick_act() is None
