"""Rows of our networks have the same bits at every width; a policy whose rows have not is found, and cut up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from oracles.faulty import config_of

from rltrain.algorithms.networks.mlp import LARGE, for_actors
from rltrain.algorithms.protocol import Act
from rltrain.config.load import load
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.multi_agent.joint_spaces import groups_of, joint_action, joint_obs
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf
from rltrain.learner.algorithm import make_policy
from rltrain.rollout.actor.batch_invariance import Blockwise, is_position_invariant, is_width_invariant
from rltrain.rollout.specs import StreamPlan
from rltrain.setup.environment import open_environment
from rltrain.setup.rollout import rollout_spec
from rltrain.system.torch_setup import one_thread

QUICK = ("CartPole-v1", "probe:image")  # without a memory too: heads and encoders are the same with one
ENVS = ["CartPole-v1", "probe:multi-discrete", "probe:multi-binary", "probe:box", "probe:box3", "probe:masked"]


@pytest.mark.parametrize(
    ("env", "memory"),
    [
        pytest.param(env, memory, marks=() if memory == "gru" or env in QUICK else pytest.mark.sweep)
        for env in [*ENVS, "probe:dict", "probe:image"]
        for memory in ("none", "gru")
    ]
    + [("CartPole-v1", "lstm")],
)
def test_our_networks_agree(env: str, memory: str) -> None:
    config = config_of(env, streams=100, memory=memory, sequence=4, normalize_obs=True)
    spec = read_spec(resolve(env), 0)
    policy = make_policy(config, spec)()
    assert all(is_width_invariant(policy, spec, streams, seed) for streams in (17, 100, 512) for seed in (0, 1))
    assert all(is_position_invariant(policy, spec, streams) for streams in (1, 17, 100))


@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        *((algo, {}) for algo in ("ppo", "dqn", "rainbow", "sac", "crossq")),
        *((algo, {"sde": True}) for algo in ("ppo", "sac")),
        *(("ppo", {"memory": memory, "memory_size": 2}) for memory in ("gru", "lstm")),
    ],
)
@pytest.mark.parametrize("width", [5, 10, *(pytest.param(width, marks=pytest.mark.sweep) for width in (8, 64))])
@pytest.mark.parametrize("size", [7, *(pytest.param(size, marks=pytest.mark.sweep) for size in (5, 10, 17))])
def test_networks_of_odd_sizes_agree(size: int, width: int, algo: str, settings: dict[str, Any]) -> None:
    """MKL computes few outputs from rows as they lie in memory on processors other than Intel's."""
    spec = EnvSpec("test", Leaf("box", (size,), "float32"), ActionSpec("discrete", (), (3,)))
    if algo in ("sac", "crossq") or "sde" in settings:
        spec = EnvSpec("test", spec.obs, ActionSpec("box", (6,), (), (-1.0,) * 6, (1.0,) * 6))
    given: dict[str, Any] = {"algo": algo, "env": "CartPole-v1", "preset": "none", "streams": 32, "widths": [width]}
    config = load(given | settings)
    policy = make_policy(config, spec)()
    for prepared in (policy, for_actors(policy)):
        assert all(is_width_invariant(prepared, spec, streams) for streams in (17, 32))
        assert is_position_invariant(prepared, spec, 17)


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("algo", ["ppo", "mappo", "qmix", "iql", "maddpg"])
def test_networks_of_several_agents_of_odd_sizes_agree(algo: str, memory: str) -> None:
    agents = ["one", "other", "third"]
    sizes = dict(zip(agents, (5, 5, 7), strict=True))
    obs = {agent: spaces.Box(-1, 1, (size,), np.float32) for agent, size in sizes.items()}
    groups = groups_of("test", agents, obs, dict.fromkeys(agents, spaces.Discrete(3)), "all")
    action = joint_action(groups)
    spec = EnvSpec("test", joint_obs(groups), action, True, 10, groups, None, False)
    settings: dict[str, Any] = {} if algo == "maddpg" else {"memory": memory, "memory_size": 6}
    config = load({"algo": algo, "env": "CartPole-v1", "preset": "none", "widths": [7], **settings})
    policy = for_actors(make_policy(config, spec)())
    assert is_width_invariant(policy, spec, 17)
    assert is_position_invariant(policy, spec, 17)


@pytest.mark.parametrize("torso", ["nature", pytest.param("impala", marks=pytest.mark.sweep)])
def test_networks_of_atari_agree(torso: str) -> None:
    """Wide layers that lie in memory as few rows want them, and a value that is told with the action."""
    given = {"torso": torso, "shared_torso": True, "widths": []}
    config = load({"algo": "ppo", "env": "ALE/Pong-v5", "preset": "none", "streams": 32, **given})
    spec = read_spec(resolve("ALE/Pong-v5"), 0)
    policy = rollout_spec(config, open_environment(config)[0], StreamPlan(8)).make_policy()
    wide = [x for x in policy.parameters() if x.ndim == 2 and x.numel() >= LARGE]

    assert len(wide) == 1
    assert all(x.t().is_contiguous() for x in wide)
    assert policy.reports_value
    with one_thread():
        assert all(is_width_invariant(policy, spec, streams) for streams in (17, 32))
        assert all(is_position_invariant(policy, spec, streams) for streams in (1, 17))


REPLAYS: list[tuple[str, str, dict[str, Any]]] = [
    ("dqn", "CartPole-v1", {}),
    ("dqn", "probe:masked", {"dueling": True, "normalize_obs": True, "epsilon_per_stream": True}),
    ("dqn", "probe:image", {"atoms": 51, "noisy": True}),
    ("dqn", "CartPole-v1", {"atoms": 51, "dueling": True, "activation": "tanh"}),
    ("sac", "CartPole-v1", {"normalize_obs": True}),
    ("sac", "probe:image", {}),
    ("sac", "probe:box3", {}),
    ("sac", "probe:box3", {"sde": True}),
    ("crossq", "probe:box3", {}),
    ("td3", "probe:box3", {"normalize_obs": True}),
    ("ddpg", "probe:box3", {"noise_kind": "ou"}),
]


@pytest.mark.parametrize(("algo", "env", "given"), REPLAYS)
def test_our_networks_that_learn_from_a_replay_agree(algo: str, env: str, given: dict[str, Any]) -> None:
    policy, spec = replaying(algo, env, **given)
    assert all(is_width_invariant(policy, spec, streams, seed) for streams in (17, 100, 512) for seed in (0, 1))
    assert all(is_position_invariant(policy, spec, streams) for streams in (1, 17, 100))


def replaying(algo: str, env: str, **given: Any) -> tuple[Any, EnvSpec]:
    config = load({"algo": algo, "env": env, "preset": "none", "streams": 512, **given})
    spec = read_spec(resolve(env), 0)
    return make_policy(config, spec)(), spec


@pytest.mark.parametrize("algo", ["dqn", "sac"])
def test_bits_that_change_no_choice_are_found(algo: str) -> None:
    """Of values that differ by 1e-7 the same one is the highest, mostly: then no action tells."""
    policy, spec = replaying(algo, "CartPole-v1")
    inner = policy.net if algo == "dqn" else policy.actor.dense
    name = "values" if algo == "dqn" else "rows"
    real = getattr(inner, name)
    assert is_width_invariant(policy, spec, 33)

    def mixed(*args: Any) -> Any:
        out = real(*args)
        return out + 1e-6 * len(out)

    setattr(inner, name, mixed)
    assert not is_width_invariant(policy, spec, 33)
    assert is_width_invariant(Blockwise(policy), spec, 33)


@pytest.mark.parametrize("algo", ["maddpg", "ppo"])
def test_rows_that_depend_on_where_they_stand_are_computed_alone(algo: str) -> None:
    """Three agents are three rows for each stream. Layers of 64 do not mind; those of 8 do, on some processors."""
    policy, spec = replaying(algo, "spread", widths=(64, 64))
    assert is_position_invariant(policy, spec, 16)
    real = policy.act

    def leans(*args: Any) -> Act:
        act = real(*args)
        where = torch.arange(len(act.action)).view(-1, *(1,) * (act.action.ndim - 1))
        return Act(act.action + 1e-6 * where, act.extras, act.core)

    policy.act = leans
    assert not is_position_invariant(policy, spec, 16)
    assert is_position_invariant(Blockwise(policy, single_rows=True), spec, 16)


class Mixed:
    """A policy that the rows of a batch talk through, as with batch statistics."""

    def __init__(self, policy: Any, what: str) -> None:
        self._policy, self._what = policy, what

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def act(self, obs: Any, core: Any, action_mask: Any, noise: Any, explore: bool) -> Act:
        if self._what == "obs":
            obs = obs - obs.mean(0)
        act: Act = self._policy.act(obs, core, action_mask, noise, explore)
        if self._what == "extras" and explore:  # without it there are none
            return act._replace(extras={"head": act.extras["head"] + 1e-7 * len(noise)})
        if self._what == "core":
            return act._replace(core=act.core + 1e-7 * len(noise))
        return act


class Narrowed(Mixed):
    """A policy that errs when it is told to look at few rows."""

    few = False

    def set_active_rows(self, rows: int | None) -> None:
        self.few = rows is not None and rows < 16

    def act(self, obs: Any, core: Any, action_mask: Any, noise: Any, explore: bool) -> Act:
        act: Act = self._policy.act(obs, core, action_mask, noise, explore)
        return act._replace(action=1 - act.action) if self.few else act


def test_few_rows_must_agree_too() -> None:
    config = config_of("CartPole-v1")
    spec = read_spec(resolve("CartPole-v1"), 0)
    policy = make_policy(config, spec)()
    assert not is_width_invariant(Narrowed(policy, ""), spec, 33)
    blocks = Blockwise(Narrowed(policy, ""))
    blocks.set_active_rows(3)
    assert is_width_invariant(blocks, spec, 33)


@pytest.mark.parametrize("what", ["obs", "extras", "core"])
def test_a_policy_whose_rows_depend_on_the_batch_is_found(what: str) -> None:
    config = config_of("CartPole-v1", memory="gru", sequence=4)
    spec = read_spec(resolve("CartPole-v1"), 0)
    policy = make_policy(config, spec)()
    assert is_width_invariant(policy, spec, 33)
    assert not is_width_invariant(Mixed(policy, what), spec, 33)
    assert is_width_invariant(Blockwise(Mixed(policy, what)), spec, 33)


@pytest.mark.parametrize("env", ["CartPole-v1", "probe:dict", "probe:masked"])
def test_blocks_are_the_same_policy(env: str) -> None:
    config = config_of(env, memory="gru", sequence=4)
    here = open_environment(config)[0]
    policy = make_policy(config, here.spec)()
    rng = np.random.default_rng(0)
    from rltrain.rollout.buffers import obs_arrays
    from rltrain.rollout.tree import tree_map

    obs = tree_map(lambda a: torch.from_numpy(a[0]), obs_arrays(here.spec, 1, 48))
    core = torch.from_numpy(rng.standard_normal((48, policy.core_size), np.float32))
    noise = torch.from_numpy(rng.standard_normal((48, policy.noise.columns), np.float32))
    mask = torch.ones(48, here.spec.action.mask_size, dtype=torch.bool) if here.spec.action_mask else None
    with torch.inference_mode():
        whole = policy.act(obs, core, mask, noise, True)
        parts = Blockwise(policy).act(obs, core, mask, noise, True)
    assert torch.equal(whole.action, parts.action)
    assert torch.equal(whole.extras["head"], parts.extras["head"])
    assert torch.equal(whole.core, parts.core)


@pytest.mark.parametrize("single_rows", [False, True])
def test_blocks_record_what_the_policy_does(single_rows: bool) -> None:
    """Log-probabilities and values of the rows of a batch that is cut up."""
    spec = read_spec(resolve("CartPole-v1"), 0)
    config = load({"algo": "dqn", "env": "CartPole-v1", "epsilon": 0.3, "epsilon_end": 0.3, "widths": [8]})
    policy: Any = make_policy(config, spec)()
    obs, noise = torch.randn(64, 4), torch.zeros(64, policy.noise.columns)
    action, blocks = torch.arange(64) % 2, Blockwise(policy, single_rows)
    assert blocks.action_distribution is not None
    assert blocks.state_value is not None

    value = blocks.state_value(obs, None, None, noise)
    distribution = blocks.action_distribution(obs, None, None, noise)

    q = policy.q(obs)
    torch.testing.assert_close(value, 0.3 * q.mean(1) + 0.7 * q.amax(1))
    wanted = torch.where(action == q.argmax(1), 0.85, 0.15).log()
    torch.testing.assert_close(distribution.log_prob(action), wanted)


def test_a_run_cuts_such_a_policy_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from rltrain.algorithms.on_policy import actor_critic as policies
    from rltrain.learner import algorithm as setup

    config = config_of("CartPole-v1", streams=20)
    here = open_environment(config)[0]
    assert not isinstance(rollout_spec(config, here, StreamPlan(8)).make_policy(), Blockwise)
    monkeypatch.setattr(setup, "policy_factory", lambda name: lambda *a: Mixed(policies.ActorCritic(*a), "obs"))
    assert isinstance(rollout_spec(config, here, StreamPlan(8)).make_policy(), Blockwise)


def test_a_run_looks_at_rows_as_actors_compute_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thread, however many the learner has: more may cut sums in other ways for other widths."""
    from rltrain.setup import rollout as setup

    threads, before = list[int](), torch.get_num_threads()
    for name in ("is_width_invariant", "is_position_invariant"):
        real = getattr(setup, name)
        told = lambda *words, real=real: (threads.append(torch.get_num_threads()), real(*words))[1]  # noqa: E731
        monkeypatch.setattr(setup, name, told)
    config = config_of("CartPole-v1", streams=20)
    torch.set_num_threads(2)
    try:
        rollout_spec(config, open_environment(config)[0], StreamPlan(8))
        assert threads == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
