"""A3C: an actor's gradients are A2C's, they are applied as they came, and nothing is applied in part."""

from __future__ import annotations

import copy
import math
import pickle
import sys
import types
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles.acting import Bench

from rltrain.algorithms.on_policy.a3c import A3C, Reduce
from rltrain.algorithms.on_policy.settings import A3CConfig
from rltrain.learner.feed import GradientFeed
from rltrain.learner.learner import Learner
from rltrain.rollout.tree import leaves
from rltrain.rollout.types import Gradients, Trajectory

CPU = torch.device("cpu")
KINDS = {
    "discrete": ("CartPole-v1", {}),
    "box": ("Pendulum-v1", {}),
    "masked": ("probe:masked", {}),
    "memory": ("probe:memory", {"memory": "gru", "memory_size": 8, "sequence": 4}),
    "multi_discrete": ("probe:multi-discrete", {}),
    "tree": ("probe:dict", {}),
    "one loss per step": (
        "CartPole-v1",
        {"lam": 0.9, "gamma": 0.8, "entropy": 0.3, "value": 2.0, "max_grad_norm": 0.1},
    ),
}


def arrays(unroll: Trajectory) -> Trajectory:
    """As the actor has it: numpy."""
    tree = {name: getattr(unroll, name) for name in Trajectory.__dataclass_fields__}

    def plain(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return x.numpy()
        if isinstance(x, dict):
            return {key: plain(value) for key, value in x.items()}
        return tuple(plain(child) for child in x) if isinstance(x, tuple) and not hasattr(x, "_fields") else x

    return Trajectory(**{name: value if name == "episodes" else plain(value) for name, value in tree.items()})


def bench(kind: str, **given: Any) -> tuple[Bench, Trajectory]:
    env, more = KINDS[kind]
    made = Bench("a2c", env, streams=6, unroll=8, widths=(16,), **more, **given)
    for _ in range(3):
        unroll = made.collect()
    return made, unroll


def config(kind: str, **given: Any) -> A3CConfig:
    return A3CConfig(unroll=8, widths=(16,), **KINDS[kind][1], **given)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(name, marks=() if name in ("masked", "box", "memory", "one loss per step") else pytest.mark.sweep)
        for name in KINDS
    ],
)
def test_an_actors_gradients_are_those_of_a2c(kind: str) -> None:
    """A2C's test holds its own against an update written anew; here both begin with the same weights and unroll."""
    made, unroll = bench(kind)
    policy = copy.deepcopy(made.policy)
    told = made.algorithm.update(unroll, 0.0).metrics
    expected = {name: param.grad for name, param in made.policy.named_parameters()}

    found = Reduce(config(kind))(policy, arrays(unroll))

    assert found.arrays.keys() == {name for name, param in policy.named_parameters() if param.requires_grad}
    for name, array in found.arrays.items():
        torch.testing.assert_close(torch.from_numpy(array), expected[name], rtol=1e-4, atol=1e-6)
    for name in ("loss_policy", "loss_value", "entropy", "grad_norm"):
        assert found.metrics[name] == pytest.approx(float(told[name]), rel=1e-4, abs=1e-6), name
    assert any(np.abs(array).max() > 1e-4 for array in found.arrays.values())


def test_they_are_clipped_before_they_are_sent() -> None:
    _, unroll = bench("discrete")
    made, _ = bench("discrete")
    norms = []
    for bound in (0.0, 0.01):
        found = Reduce(config("discrete", max_grad_norm=bound))(copy.deepcopy(made.policy), arrays(unroll))
        norms.append(float(np.sqrt(sum((array**2).sum() for array in found.arrays.values()))))
        assert found.metrics["grad_norm"] == pytest.approx(norms[0], rel=1e-4), "the norm before clipping"
    assert norms[0] > 0.02
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_what_is_sent_says_where_it_came_from() -> None:
    made, unroll = bench("discrete")
    found = Reduce(config("discrete"))(made.policy, arrays(unroll))
    again = pickle.loads(pickle.dumps(found))
    assert again.stream.tolist() == [0, 1, 2, 3, 4, 5]
    assert again.row.tolist() == [16] * 6
    assert (again.rows, again.steps) == (8, unroll.steps)
    assert again.episodes == unroll.episodes


@pytest.fixture
def torsos(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in which the torsos of this file are found."""
    module = types.ModuleType("torsos_of_this_test")
    for torso in (Frozen, Dropping, Counting):
        setattr(module, torso.__name__, torso)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def test_dropout_drops_while_gradients_are_made_and_not_while_acting(torsos: str) -> None:
    """A2C's learner does the same; here it draws what the actor drew."""
    torso = f"{torsos}:Dropping"
    made, unroll = bench("discrete", torso=torso)
    policy, still = copy.deepcopy(made.policy).eval(), copy.deepcopy(made.policy).eval()
    reduce = Reduce(config("discrete", torso=torso), seed=7)
    before = torch.get_rng_state()
    found = reduce(policy, arrays(unroll)).arrays

    assert not policy.training
    assert torch.equal(torch.get_rng_state(), before)
    again = reduce(policy, arrays(unroll)).arrays
    later = reduce(policy, arrays(replace(unroll, row=unroll.row + 8))).arrays
    elsewhere = reduce(policy, arrays(replace(unroll, stream=unroll.stream + 1))).arrays
    seeded = replace(reduce, seed=8)(policy, arrays(unroll)).arrays
    name = "actor.bias0"
    assert np.array_equal(again[name], found[name])
    for other in (later, elsewhere, seeded):
        assert not np.array_equal(other[name], found[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(reduce.dropout_seed(arrays(unroll)))
        made.algorithm.update(unroll, 0.0)
    for name, param in made.policy.named_parameters():
        np.testing.assert_allclose(found[name], param.grad, rtol=1e-3, atol=1e-5, err_msg=name)
    dist, _ = still.forward(unroll.obs)
    torch.testing.assert_close(
        dist.log_prob(torch.cat([unroll.action, unroll.action[-1:]]))[:-1], unroll.extras["log_prob"]
    )


@pytest.mark.parametrize("obs", ["CartPole-v1", "probe:masked", "probe:dict"])
def test_running_statistics_are_refused(obs: str, torsos: str) -> None:
    spec = Bench("a2c", obs, streams=4).spec
    A3C(spec, A3CConfig(torso=f"{torsos}:Dropping"), CPU, 3, 4)
    with pytest.raises(ValueError, match=r"^a3c: encoder.module.norm.running_mean is a running statistic.*another alg"):
        A3C(spec, A3CConfig(torso=f"{torsos}:Counting"), CPU, 3, 4)


def test_what_does_not_learn_is_left_alone(torsos: str) -> None:
    spec = Bench("a2c", "CartPole-v1", streams=4).spec
    frozen = A3C(spec, A3CConfig(widths=(16,), torso=f"{torsos}:Frozen"), CPU, 3, 4)
    still = {name for name, param in frozen.policy.named_parameters() if not param.requires_grad}
    assert still
    found = Reduce(config("discrete"))(copy.deepcopy(frozen.policy), arrays(bench("discrete")[1]))
    before = {name: param.clone() for name, param in frozen.policy.named_parameters()}
    frozen.update(found, 0.0)
    for name, param in frozen.policy.named_parameters():
        assert torch.equal(param, before[name]) == (name in still), name


class Dropping(torch.nn.Module):
    """A torso that differs between learning and use, with a buffer that stays as it is."""

    features = 8

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(sum(math.prod(leaf.shape) for leaf in spec.leaves()), 8)
        self.dropout = torch.nn.Dropout(0.5)
        self.register_buffer("scale", torch.ones(8))

    def forward(self, obs: Any) -> torch.Tensor:
        rows = torch.cat([leaf.reshape(len(leaf), -1).float() for leaf in leaves(obs)], 1)
        return self.dropout(self.linear(rows)) * self.scale  # type: ignore[no-any-return]


class Counting(Dropping):
    """A torso with running statistics."""

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.norm = torch.nn.BatchNorm1d(8)

    def forward(self, obs: Any) -> torch.Tensor:
        return self.norm(super().forward(obs))  # type: ignore[no-any-return]


class Frozen(torch.nn.Module):
    """A torso whose weights stay as they are."""

    features = 4

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(4), requires_grad=False)

    def forward(self, obs: Any) -> torch.Tensor:
        return torch.nn.functional.linear(obs, self.weight)


def opened(**given: Any) -> A3C:
    spec = Bench("a2c", "CartPole-v1", streams=4).spec
    return A3C(spec, A3CConfig(widths=(16,), **given), CPU, 3, 4)


def gradients(a3c: A3C, scale: float, version: int = 0) -> Gradients:
    rng = np.random.default_rng(int(scale * 10))
    params = dict(a3c.policy.named_parameters())
    made = {name: (scale * rng.standard_normal(p.shape)).astype(np.float32) for name, p in params.items()}
    at = np.zeros(2, np.int64)
    return Gradients(made, {"grad_norm": scale}, at + version, at + 1, at, 8, 16)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_the_learner_applies_them_one_after_the_other_with_one_optimiser(optimizer: str) -> None:
    """Against torch's own optimisers, on the same gradients in the same order."""
    a3c = opened(optimizer=optimizer, lr=0.01, lr_end=0.0)
    mine = {name: param.detach().clone().requires_grad_() for name, param in a3c.policy.named_parameters()}
    if optimizer == "adam":
        other: Any = torch.optim.Adam(mine.values(), eps=1e-5)
    else:
        other = torch.optim.RMSprop(mine.values(), alpha=0.99, eps=1e-5)
    learner = Learner(a3c, CPU, GradientFeed())
    sent = [gradients(a3c, scale) for scale in (1.0, 0.5, 3.0)]
    learner.step(sent, progress=0.25)
    for one in sent:
        for name, param in mine.items():
            param.grad = torch.from_numpy(one.arrays[name])
        other.param_groups[0]["lr"] = 0.0075
        other.step()
    for name, param in a3c.policy.named_parameters():
        torch.testing.assert_close(param.detach(), mine[name].detach(), rtol=1e-5, atol=1e-6)


def test_the_lag_of_each_is_told() -> None:
    a3c = opened()
    learner = Learner(a3c, CPU, GradientFeed())
    learner.version = 10
    learner.step([gradients(a3c, 1.0, version=10), gradients(a3c, 1.0, version=8)], 0.0)
    assert learner.version == 12
    assert learner.metrics()["learner/policy_lag"] == (0 + 3) / 2


def test_an_unroll_without_a_valid_row_changes_nothing() -> None:
    made, unroll = bench("discrete")
    still = arrays(replace(unroll, first=torch.ones_like(unroll.first)))
    found = Reduce(config("discrete"))(made.policy, still)
    assert found.arrays == {}
    a3c = opened()
    a3c.update(gradients(a3c, 1.0), 0.0)
    before = copy.deepcopy([part.state_dict() for part in a3c.parts().values()])
    a3c.update(found, 0.0)
    after = [part.state_dict() for part in a3c.parts().values()]
    for one, other in zip(before, after, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
