"""DQN and SAC with memory: whole updates against the oracle's, and what a memory must not know."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import memory
from oracles.cases import DISCRETE, MASKED, parameters, poisoned
from oracles.off_policy import BOX, flat, nets
from torch.testing import assert_close

from rltrain.algorithms import algorithm_class
from rltrain.algorithms.off_policy.sequences import learned_steps
from rltrain.algorithms.off_policy.settings import DQNConfig, DroQConfig, REDQConfig, SACConfig
from rltrain.algorithms.registry import register_policy

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"widths": (8, 7), "lr": 1e-2, "memory": "gru", "memory_size": 5, "length": 6, "burn_in": 3}
C51 = {"atoms": 11, "v_min": -3.0, "v_max": 4.0}
RAINBOW = {**C51, "double": True, "dueling": True, "prioritized": True, "n_step": 3, "noisy": True}


def make(algo: str, spec: Any, **settings: Any) -> Any:
    kind = {"dqn": DQNConfig, "sac": SACConfig, "droq": DroQConfig, "redq": REDQConfig}[algo]
    config = kind(**{**SMALL, **({"target_every": 2} if algo == "dqn" else {"tau": 0.1}), **settings})
    made = algorithm_class(algo)(spec, config, CPU, 3, 1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # away from the beginning, where DQN's network and its target are equal
        for x in made.policy.parameters() if algo == "dqn" else ():
            x.add_(0.3 * torch.randn(x.shape, generator=generator))
    return made


def batch_for(algorithm: Any, spec: Any, seed: int, weighted: bool = False) -> Any:
    config = algorithm.config
    return memory.sequences(spec, seed, config.burn_in + config.length, 4, algorithm.policy.core_size, weighted)


def shown(settings: dict[str, Any]) -> str:
    return "-".join(map(str, settings)) or "default"


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", [DISCRETE, MASKED], ids=["plain", "masked"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"memory": "lstm", "double": True, "n_step": 3},
        {"prioritized": True, "double": True, "n_step": 2},
        {"burn_in": 0, "n_step": 9, "loss": "squared", "max_grad_norm": 0.1},
        {"length": 1, "dueling": True, "widths": (8,), "tau": 0.3, "target_every": None},
        {"normalize_obs": True},
        RAINBOW,
    ],
    ids=shown,
)
def test_three_updates_of_dqn_equal_those_of_the_oracle(spec: Any, settings: dict[str, Any]) -> None:
    """Losses, priorities and weights, with ends of every kind before, in and behind the burn-in."""
    dqn = make("dqn", spec, **settings)
    dqn.target.load_state_dict({name: x + 0.1 for name, x in dqn.net.state_dict().items()})
    reference = memory.DQN(dqn.net, dqn.config, actions=4, seed=3)
    for name, x in dqn.target.module.named_parameters():
        reference.target[name] = x.detach().clone()
    start = parameters(dqn.net)
    weighted = bool(settings.get("prioritized"))
    for seed in range(3):
        batch = seen = batch_for(dqn, spec, seed, weighted)
        if dqn.policy.normalizer is not None:
            dqn.policy.normalizer.update(batch.obs, torch.ones(batch.obs.shape[:2], dtype=torch.bool))
            shift, scale = (dqn.policy.get_buffer(f"normalizer.{name}0") for name in ("shift", "scale"))
            seen = replace(batch, obs=((batch.obs - shift) * scale).clip(-10, 10))
        expected = memory.samples(seen, dqn.config)
        loss, errors = reference.update(expected, progress=0.25 * seed)
        update = dqn.update(batch, progress=0.25 * seed)
        assert_close(update.metrics["loss_q"], loss)
        assert (update.priority is None) != weighted
        if update.priority is not None:
            assert_close(update.priority, memory.priorities(errors, expected.obs))

    after = parameters(dqn.net)
    assert_close(after, {name: x.detach() for name, x in reference.p.items()}, atol=1e-7, rtol=0)
    assert_close(dict(dqn.target.module.named_parameters()), reference.target, atol=1e-7, rtol=0)
    assert all((after[name] - x).abs().max() > 1e-3 for name, x in start.items())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "spec", [BOX, pytest.param(DISCRETE, marks=pytest.mark.sweep), MASKED], ids=["box", "discrete", "masked"]
)
@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        ("sac", {}),
        ("sac", {"memory": "lstm", "n_step": 3, "max_grad_norm": 0.2, "activation": "tanh"}),
        ("sac", {"prioritized": True, "n_step": 2, "lr_q": 2e-2, "target_every": 2}),
        ("sac", {"burn_in": 0, "policy_delay": 2, "critics": 1, "policy_value": "mean"}),
        ("sac", {"critics": 3, "target_critics": 2, "policy_value": "first", "widths_q": (6,)}),
        ("droq", {"dropout": 0.2, "policy_delay": 1}),
    ],
    ids=lambda x: x if isinstance(x, str) else shown(x),
)
def test_three_updates_of_sac_equal_those_of_the_oracle(spec: Any, algo: str, settings: dict[str, Any]) -> None:
    sac = make(algo, spec, **settings)
    reference = memory.SAC(sac, seed=3)
    start = [x.clone() for x in (*reference.memory, *reference.memory_q)]
    weighted = bool(settings.get("prioritized"))
    for seed in range(3):
        batch = batch_for(sac, spec, seed, weighted)
        expected = memory.samples(batch, sac.config)
        errors = reference.update(expected)
        update = sac.update(batch, 0.5)
        assert (update.priority is None) != weighted
        if update.priority is not None:
            assert_close(update.priority, memory.priorities(errors, expected.obs))

    for module, dense, weights in [
        (sac.policy.actor, reference.actor, reference.memory),
        (sac.critics, reference.critics, reference.memory_q),
        (sac.target.module, reference.target_critics, reference.target_memory_q),
    ]:
        assert_close(flat(nets(module.dense)), flat(dense), atol=1e-7, rtol=0)
        cell = module.encoder.memory
        mine = [cell.weight_x, cell.weight_h, cell.bias_x, cell.bias_h]
        assert_close([x.detach() for x in mine], [x.detach() for x in weights], atol=1e-7, rtol=0)
    end = (*reference.memory, *reference.memory_q)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(end, start, strict=True))
    assert_close(sac.temperature.log[0], reference.log_temperature.detach(), atol=1e-9, rtol=0)


@pytest.mark.usefixtures("double")
def test_two_updates_with_gsde_equal_those_of_the_oracle() -> None:
    sac = make("sac", BOX, sde=True, log_std_init=-1.0)
    reference = memory.SAC(sac, seed=3)
    for seed in range(2):
        batch = batch_for(sac, BOX, seed)
        reference.update(memory.samples(batch, sac.config))
        sac.update(batch, 0.5)

    assert_close(flat(nets(sac.policy.actor.dense)), flat(reference.actor), atol=1e-7, rtol=0)
    assert_close(sac.policy.actor.encoder.memory.weight_h.detach(), reference.memory[1].detach(), atol=1e-7, rtol=0)
    assert_close(sac.policy.state_noise.weight, reference.gsde[2], atol=1e-7, rtol=0)


@pytest.mark.parametrize(("algo", "spec"), [("dqn", MASKED), ("sac", BOX), ("sac", DISCRETE)])
def test_reset_rows_and_what_follows_a_termination_do_not_matter(algo: str, spec: Any) -> None:
    """Not their observations, actions and rewards, which the replay may fill with anything."""
    found = []
    for poison in (False, True):
        algorithm = make(algo, spec)
        batch = batch_for(algorithm, spec, 0)
        batch = replace(batch, obs=batch.obs.float(), reward=batch.reward.float(), core=batch.core.float())
        if spec.action.kind == "box":
            batch = replace(batch, action=batch.action.float())
        assert (~batch.valid[3:]).any()
        assert batch.terminated[3:].any()
        algorithm.update(poisoned(batch, 1e3) if poison else batch, 0.0)
        found.append(parameters(algorithm.policy))

    assert_close(*found, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("algo", "spec"), [("dqn", DISCRETE), ("sac", BOX)])
def test_the_burn_in_warms_the_memory_and_is_not_learnt_from(algo: str, spec: Any) -> None:
    """Rewards and ends of its rows have no effect, its observations have one."""
    found = []
    for change in ("none", "reward", "obs"):
        algorithm = make(algo, spec)
        batch = batch_for(algorithm, spec, 1)
        batch = replace(
            batch,
            obs=batch.obs.float(),
            reward=batch.reward.float(),
            core=batch.core.float(),
            first=torch.zeros_like(batch.first),
            action=batch.action.float() if spec.action.kind == "box" else batch.action,
        )
        batch = replace(batch, terminated=torch.zeros_like(batch.terminated), truncated=batch.truncated & False)
        if change == "reward":
            batch.reward[:3] += 5.0
        elif change == "obs":
            batch.obs[:3] += 5.0
        algorithm.update(batch, 0.0)
        found.append(parameters(algorithm.policy))

    assert_close(found[0], found[1], atol=0, rtol=0)
    assert max((found[0][name] - x).abs().max() for name, x in found[2].items()) > 1e-4


def test_the_stored_state_is_where_a_sequence_begins() -> None:
    """Values from the state that an actor had equal the values that it saw; an empty memory gives others."""
    dqn = make("dqn", DISCRETE, burn_in=0)
    obs = torch.randn(8, 1, 3, generator=torch.Generator().manual_seed(0))
    core, cores, scores = torch.zeros(1, 5), [], []
    for t in range(8):
        cores.append(core)
        score, core = dqn.policy.step(obs[t], core, False, None)
        scores.append(score)
    batch = batch_for(dqn, DISCRETE, 0)
    batch = replace(
        batch,
        obs=obs[2:].expand(-1, 4, -1),
        first=torch.zeros(6, 4, dtype=torch.bool),
        core=cores[2].expand(1, 4, -1).clone(),
        **{name: getattr(batch, name)[:5] for name in ("action", "reward", "terminated", "truncated")},
    )
    steps = learned_steps(replace(batch, truncated=batch.truncated & False), dqn.config)
    with torch.no_grad():
        values = dqn.policy.q(steps.obs).view(5, 4, -1)
        empty = dqn.policy.q(steps.obs._replace(core=torch.zeros(4, 5))).view(5, 4, -1)

    for t in range(5):
        assert_close(values[t, 0], scores[t + 2][0], atol=1e-6, rtol=0)
    assert (values - empty).abs().max() > 1e-3


@pytest.mark.parametrize(("algo", "spec"), [("dqn", DISCRETE), ("sac", BOX), ("sac", MASKED)])
def test_parts_hold_everything_that_later_updates_depend_on(algo: str, spec: Any) -> None:
    first, second = make(algo, spec), make(algo, spec)

    def batch(seed: int) -> Any:
        made = batch_for(first, spec, seed)
        action = made.action.float() if spec.action.kind == "box" else made.action
        return replace(made, obs=made.obs.float(), reward=made.reward.float(), core=made.core.float(), action=action)

    for seed in range(2):
        first.update(batch(seed), 0.1)
    saved = {name: copy.deepcopy(part.state_dict()) for name, part in first.parts().items()}
    for name, part in second.parts().items():
        part.load_state_dict(saved[name])
    for algorithm in (first, second):
        algorithm.update(batch(5), 0.1)

    assert all(torch.equal(a, b) for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True))


def test_the_plan_asks_for_sequences_only_with_memory() -> None:
    with_memory, without = make("dqn", DISCRETE).plan, make("dqn", DISCRETE, memory="none").plan

    assert (with_memory.core_size, with_memory.burn_in, with_memory.length, with_memory.window) == (5, 3, 6, 9)
    assert (without.core_size, without.burn_in, without.length) == (0, 0, 1)
    assert make("sac", BOX, memory="lstm").plan.core_size == 10


def test_a_batch_of_sac_has_fewer_sequences_than_samples() -> None:
    assert [SACConfig(**given).batch for given in ({}, {"memory": "gru"}, {"memory": "gru", "batch": 7})] == [
        256,
        32,
        7,
    ]


def test_a_policy_without_a_memory_is_refused() -> None:
    register_policy("forgetful", lambda spec, config, streams, generator: Forgetful())
    with pytest.raises(ValueError, match="policy forgetful has no memory: set memory to none"):
        make("dqn", DISCRETE, policy="forgetful")


class Forgetful(torch.nn.Module):
    """A user's policy without a recurrent state."""

    core_size = 0
