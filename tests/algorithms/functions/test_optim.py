"""Our flat optimisers against torch's, and the views they rest on."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rltrain.algorithms.functions.optim import Adam, RMSProp, flatten, step
from rltrain.algorithms.networks.mlp import MLP

X = torch.linspace(-1, 1, 60).reshape(15, 4)


def net() -> MLP:
    return MLP(4, [8, 8], 2, generator=torch.Generator().manual_seed(3))


def loss_of(module: nn.Module, i: int) -> torch.Tensor:
    return (module(X * (1 + 0.1 * i)) - torch.sin(X[:, :2] * i)).square().sum()


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Adam, lambda p: torch.optim.Adam(p, eps=1e-5)),
        (RMSProp, lambda p: torch.optim.RMSprop(p, alpha=0.99, eps=1e-5)),
    ],
)
def test_equals_torch(ours, theirs, max_grad_norm):
    module, twin = net(), net()
    optimizer, reference = ours(flatten(module)), theirs(twin.parameters())
    for i in range(30):
        lr = 1e-3 * (1 - i / 40)
        norm = step(optimizer, loss_of(module, i), lr, max_grad_norm)
        reference.zero_grad()
        loss_of(twin, i).backward()
        expected = nn.utils.clip_grad_norm_(twin.parameters(), max_grad_norm or torch.inf)
        reference.param_groups[0]["lr"] = lr
        reference.step()
        assert_close(norm, expected)
    for a, b in zip(module.parameters(), twin.parameters(), strict=True):
        assert_close(a, b, atol=1e-6, rtol=0)


def test_a_loss_is_one_number_of_any_shape():
    module = net()
    optimizer = Adam(flatten(module))
    expected = step(optimizer, loss_of(module, 1), 0.0, 0.0)

    assert_close(step(optimizer, loss_of(module, 1).view(1, 1), 0.0, 0.0), expected)
    with pytest.raises(RuntimeError, match="scalar"):
        step(optimizer, module(X).sum(-1), 0.0, 0.0)


def test_flatten_keeps_names_values_and_views(monkeypatch):
    monkeypatch.setattr("rltrain.algorithms.networks.products.SLOW_MKL", False)  # one tanh for learners and others
    module, twin = net(), net()
    flat = flatten(module)

    assert list(module.state_dict()) == list(twin.state_dict())
    assert torch.equal(module(X), twin(X))
    assert torch.equal(flat.param, torch.cat([p.detach().reshape(-1) for p in twin.parameters()]))
    flat.param.zero_()
    assert all((p == 0).all() for p in module.parameters())
    module.load_state_dict(twin.state_dict())
    assert torch.equal(flat.param, torch.cat([p.detach().reshape(-1) for p in twin.parameters()]))
    loss_of(module, 1).backward()
    loss_of(twin, 1).backward()
    assert torch.equal(flat.grad, torch.cat([p.grad.reshape(-1) for p in twin.parameters()]))


def test_a_step_forgets_the_gradient_of_the_one_before():
    module = net()
    flat = flatten(module)
    optimizer = Adam(flat)
    step(optimizer, loss_of(module, 1), 0.0, 0.0)
    once = flat.grad.clone()
    step(optimizer, loss_of(module, 1), 0.0, 0.0)

    assert torch.equal(flat.grad, once)


@pytest.mark.parametrize("kind", [Adam, RMSProp])
def test_a_loaded_optimizer_goes_on_to_the_bit(kind):
    module = net()
    optimizer = kind(flatten(module))
    for i in range(3):
        step(optimizer, loss_of(module, i), 1e-2, 0.5)
    twin = net()
    other = kind(flatten(twin))
    twin.load_state_dict(copy.deepcopy(module.state_dict()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for i in range(3, 6):
        step(optimizer, loss_of(module, i), 1e-2, 0.5)
        step(other, loss_of(twin, i), 1e-2, 0.5)

    assert torch.equal(optimizer.param, other.param)


def test_frozen_parameters_stay_out():
    module = net()
    module.bias0.requires_grad_(False)

    assert flatten(module).param.numel() == sum(p.numel() for p in module.parameters()) - 8


def test_mixed_parameters_are_refused():
    with pytest.raises(ValueError, match="one dtype"):
        flatten(nn.ModuleList([net(), net().double()]))


def test_nothing_here_imports_torchs_compiler():
    """It costs a second at the start of every run."""
    code = """
import sys, torch
from rltrain.algorithms import networks
from rltrain.algorithms.functions import losses, optim, returns
from rltrain.algorithms.networks import distributions, normalize
from rltrain.algorithms.on_policy import minibatch
net = networks.MLP(2, [4], 1, generator=torch.Generator().manual_seed(0))
optim.step(optim.Adam(optim.flatten(net)), net(torch.ones(3, 2)).sum(), 1e-3, 0.5)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
