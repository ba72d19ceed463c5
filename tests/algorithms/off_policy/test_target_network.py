"""Slow copies follow parameters by a share and buffers at once, whatever torso a user brings."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from oracles.off_policy import batch_of
from torch import Tensor, nn
from torch.testing import assert_close

from rltrain import algorithms
from rltrain.algorithms.functions.optim import flatten
from rltrain.algorithms.off_policy.target_network import TargetNetwork
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf
from rltrain.rollout.types import Transition


class Counting(nn.Module):
    """A torso with statistics: of batch normalisation, and one of its own whose buffer is made anew each time."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.features = 3
        self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, obs: Tensor) -> Tensor:
        if self.training:
            self.seen = self.seen + len(obs)
        return self.norm(self.linear(obs))


def test_parameters_follow_by_a_share_and_buffers_at_once() -> None:
    module = Counting(None)
    flat = flatten(module)
    target = TargetNetwork(module, flat)
    module(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    before = flat.param.clone()
    flat.param.add_(1.0)

    target.follow(0.25)

    assert_close(nn.utils.parameters_to_vector(target.module.parameters()), before + 0.25)
    assert dict(target.module.named_buffers()).keys() == dict(module.named_buffers()).keys()
    assert_close(dict(target.module.named_buffers()), dict(module.named_buffers()), atol=0, rtol=0)
    assert target.module.seen == 5
    assert target.module.norm.num_batches_tracked == 1
    assert target.module.seen is not module.seen


def test_buffers_that_are_made_or_taken_away_later_are_followed_too() -> None:
    module = Counting(None)
    module.register_buffer("first", None)
    target = TargetNetwork(module, flatten(module))
    module.first, module.seen = torch.ones(2), None
    module.linear.register_buffer("late", torch.full((3,), 7.0))

    target.follow(0.5)
    module.first.add_(1.0)

    assert target.module.first.tolist() == [1.0, 1.0]
    assert target.module.seen is None
    assert target.module.linear.late.tolist() == [7.0] * 3


def test_a_copy_keeps_no_statistics_of_its_own() -> None:
    module = Counting(None)
    target = TargetNetwork(module, flatten(module))
    out = target.module(torch.full((4, 3), 2.0))

    assert target.module.seen == 0
    assert_close(target.module.norm.running_mean, torch.zeros(3))
    assert_close(out, target.module(torch.full((1, 3), 2.0)).expand(4, 3))


BOX = EnvSpec("box", Leaf("box", (3,), "float32"), ActionSpec("box", (2,), low=(-1.0,) * 2, high=(1.0,) * 2))
DISCRETE = EnvSpec("discrete", Leaf("box", (3,), "float32"), ActionSpec("discrete", (), (4,)))


@pytest.mark.parametrize(
    ("algo", "spec", "given"),
    [
        ("dqn", DISCRETE, {"tau": 0.1}),
        ("dqn", DISCRETE, {"target_every": 3, "double": True, "atoms": 5}),
        ("dqn", DISCRETE, {"tau": 0.1, "noisy": True, "dueling": True}),
        ("sac", DISCRETE, {}),
        ("sac", BOX, {}),
        ("td3", BOX, {}),
        ("ddpg", BOX, {}),
    ],
)
def test_target_networks_see_with_the_statistics_of_the_network_they_follow(
    algo: str, spec: EnvSpec, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine: Any = ModuleType("mine")
    mine.Counting = Counting
    monkeypatch.setitem(sys.modules, "mine", mine)
    config = algorithms.settings_class(algo)(torso="mine:Counting", widths=(8,), **given)
    algorithm = algorithms.algorithm_class(algo)(spec, config, torch.device("cpu"), 0, 2)
    random = torch.Generator().manual_seed(1)
    for _ in range(6):
        batch = Transition(
            obs=torch.randn(8, 3, generator=random),
            action=torch.zeros(8, dtype=torch.int64) if spec is DISCRETE else torch.rand(8, 2, generator=random),
            reward=torch.ones(8),
            discount=torch.full((8,), 0.9),
            next_obs=torch.randn(8, 3, generator=random),
        )
        algorithm.update(batch, 0.0)

    parts = {name: part.state_dict() for name, part in algorithm.parts().items()}
    for name, part in parts.items():
        if name.endswith("target"):
            seen = [key for key in part if "seen" in key or "running" in key]
            assert seen
            for key in seen:
                assert part[key].abs().max() > 0, key
                assert any(key in other and torch.equal(other[key], part[key]) for other in _others(parts, name)), key


def _others(parts: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The states of networks that are no copies, without the names that a policy puts before them."""
    found = [part for other, part in parts.items() if other in ("policy", "critics", "critic")]
    return [{key.removeprefix(head): x for key, x in part.items()} for part in found for head in ("net.", "actor.", "")]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("algo", "spec"),
    [("sac", BOX), ("sac", DISCRETE), ("td3", BOX), ("ddpg", BOX)],
    ids=["sac", "discrete sac", "td3", "ddpg"],
)
def test_all_step_sizes_fall_together(algo: str, spec: EnvSpec) -> None:
    """Halfway to nothing an update is that with half of each; at the end nothing that is learnt moves."""

    def made(**settings: Any) -> Any:
        config = algorithms.settings_class(algo)(widths=(8,), **settings)
        return algorithms.algorithm_class(algo)(spec, config, torch.device("cpu"), 3, 1)

    def learned(algorithm: Any) -> list[Tensor]:
        state = {name: part.state_dict() for name, part in algorithm.parts().items() if "target" not in name}
        state.pop("rng", None)
        return [x.clone() for x in tensors_of(state)]

    fields = algorithms.settings_class(algo).model_fields
    sizes = {name: 2e-2 for name in ("lr", "lr_q", "lr_temperature") if name in fields}
    falling = made(lr_end_share=0.0, **sizes)
    halved = made(**{name: size / 2 for name, size in sizes.items()})
    for seed in range(2):
        for algorithm in (falling, halved):
            algorithm.update(batch_of(spec, seed), 0.5)
    for a, b in zip(learned(falling), learned(halved), strict=True):
        assert_close(a, b)
    nets = [part for name, part in falling.parts().items() if isinstance(part, nn.Module)]
    before = [param.clone() for net in nets for param in net.parameters()]
    falling.update(batch_of(spec, 2), 1.0)

    assert all(torch.equal(a, b) for a, b in zip(before, [p for net in nets for p in net.parameters()], strict=True))


def tensors_of(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [x for value in state.values() for x in tensors_of(value)] if isinstance(state, dict) else []
