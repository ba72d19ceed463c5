"""Switches for learners of images: half the precision, compiled networks, and the way to the device."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from oracles.faulty import config_of
from torch.testing import assert_close

from rltrain.algorithms.networks.encoder import Encoder
from rltrain.envs.make import read_spec, resolve
from rltrain.learner.algorithm import make_algorithm, make_policy
from rltrain.learner.batches import on_device

CPU = torch.device("cpu")


def encoders(algorithm: Any) -> list[Encoder]:
    parts = [getattr(value, "module", value) for value in vars(algorithm).values()]
    modules = [module for part in parts if isinstance(part, torch.nn.Module) for module in part.modules()]
    return list({id(module): module for module in modules if isinstance(module, Encoder)}.values())


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_only_the_learner_computes_in_bfloat16(algo: str) -> None:
    """PPO has an encoder each for policy and value, DQN one in the target network too."""
    spec = read_spec(resolve("probe:image"), 0)
    config = config_of("probe:image", algo=algo, precision="bfloat16")
    found = encoders(make_algorithm(config, spec))
    assert len(found) == 2
    assert all(encoder.precision is torch.bfloat16 for encoder in found)
    acting = [m for m in make_policy(config, spec)().modules() if isinstance(m, Encoder)]
    assert acting
    assert all(encoder.precision is None for encoder in acting)
    assert all(encoder.precision is None for encoder in encoders(make_algorithm(config_of("probe:image"), spec)))


@pytest.mark.parametrize("torso", ["nature", "impala"])
def test_networks_of_images_compile_in_one_piece(torso: str) -> None:
    spec = read_spec(resolve("ALE/Pong-v5", {"screen_size": 36}), 0)
    net = Encoder(spec, generator=torch.Generator().manual_seed(1), cnn=torso).nets["0"]
    image = torch.zeros(4, 4, 36, 36, dtype=torch.uint8)
    torch._dynamo.reset()

    found = torch._dynamo.explain(net)(image)

    assert (found.graph_count, found.graph_break_count) == (1, 0)


@pytest.mark.parametrize("torso", ["nature", "impala"])
def test_bfloat16_is_near_and_its_features_and_gradients_are_float32(torso: str) -> None:
    spec = read_spec(resolve("ALE/Pong-v5", {"screen_size": 36}), 0)
    image = torch.randint(256, (8, 4, 36, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    net = Encoder(spec, generator=torch.Generator().manual_seed(1), cnn=torso)
    outs, grads = [], []
    for precision in (None, torch.bfloat16):
        net.hasten(precision, False)
        net.zero_grad()
        out = net.forward(image)
        out.sum().backward()
        outs.append(out.detach())
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert outs[1].dtype == grads[1].dtype == torch.float32
    assert not torch.equal(outs[0], outs[1])
    assert (outs[0] - outs[1]).norm() < 0.02 * outs[0].norm()
    assert (grads[0] - grads[1]).norm() < 0.05 * grads[0].norm()


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with a C++ compiler")
@pytest.mark.filterwarnings("default")
def test_a_compiled_network_is_the_same_one() -> None:
    spec = read_spec(resolve("probe:image"), 0)
    leaf = spec.leaves()[0]
    image = torch.randint(256, (6, *leaf.shape), dtype=torch.uint8)
    net = Encoder(spec, generator=torch.Generator().manual_seed(1))
    names = list(net.state_dict())
    plain = net.forward(image)
    net.hasten(None, True)

    compiled = net.forward(image)

    assert list(net.state_dict()) == names
    assert_close(plain, compiled)


def test_arrays_are_joined_in_one_copy() -> None:
    parts = [np.random.default_rng(i).integers(256, size=(3, i + 1, 5, 5)).astype(np.uint8) for i in range(3)]
    joined = on_device(parts, 1, CPU)
    assert joined.dtype == torch.uint8
    assert np.array_equal(joined.numpy(), np.concatenate(parts, 1))
    parts[0][...] = 0
    assert joined[:, 0].any()
    assert on_device([np.array([True, False])], 0, CPU).dtype == torch.bool
