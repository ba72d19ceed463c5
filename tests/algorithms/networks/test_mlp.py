"""Gradients from a tape equal autograd's, wherever an MLP stands."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from rltrain.algorithms.functions.optim import Adam, flatten, step
from rltrain.algorithms.networks import mlp
from rltrain.algorithms.networks.mlp import MLP, Tape, fast_tanh_


class Net(nn.Module):
    """A trunk, two heads of it, a second pass through one of them, and a parameter that is no MLP's."""

    def __init__(self, activation: str, inputs: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(2)
        self.trunk = MLP(inputs, (7, 20), activation=activation, generator=rng)
        self.one = MLP(20, (18,), 3, activation, generator=rng)
        self.other = MLP(inputs, (5,), 1, activation, generator=rng)
        self.free = nn.Parameter(torch.ones(3))

    def loss(self, x: Tensor) -> Tensor:
        seen = self.trunk(x)
        twice = self.other(x) * self.other(2 * x)
        return (self.one(seen) * self.free).square().mean() + twice.mean() + self.one(x.new_ones(4, 20)).sin().sum()


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("lead", [(6,), (5, 4), (1,)])
@pytest.mark.parametrize("inputs", [3, 17])
def test_gradients_are_those_of_autograd(activation, lead, inputs):
    net = Net(activation, inputs).double()
    x = torch.randn(*lead, inputs, generator=torch.Generator().manual_seed(1)).double()
    twin = copy.deepcopy(net)
    flat, other = flatten(net), flatten(twin)
    tape = Tape(net)
    for _ in range(2):
        with tape:
            loss = net.loss(x)
        tape.backward(loss)
        again = twin.loss(x)
        again.backward()

        torch.testing.assert_close(loss, again)
        torch.testing.assert_close(flat.grad, other.grad)
    assert flat.grad.abs().max() > 0.1


def test_a_step_moves_the_same_way_with_a_tape():
    net = Net("tanh", 3)
    twin = copy.deepcopy(net)
    one, other = Adam(flatten(net)), Adam(flatten(twin))
    tape = Tape(net)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        with tape:
            loss = net.loss(x)
        norm = step(one, loss, 1e-2, 0.5, tape.backward)
        torch.testing.assert_close(norm, step(other, twin.loss(x), 1e-2, 0.5))
    torch.testing.assert_close(one.param, other.param, atol=1e-5, rtol=1e-4)


def test_what_was_recorded_and_never_used_is_forgotten():
    net = Net("tanh", 3)
    flat, tape = flatten(net), Tape(net)
    x = torch.ones(2, 3)
    with tape:
        net.loss(x)
    with tape:
        loss = net.loss(x)
        net.loss(3 * x)  # part of no loss
    tape.backward(loss)
    once = flat.grad.clone()
    flat.grad.zero_()
    net.loss(x).backward()

    torch.testing.assert_close(once, flat.grad)
    assert not tape.records


def test_outside_of_the_with_autograd_goes_through_the_weights():
    net = Net("tanh", 3)
    flatten(net)
    with Tape(net):
        pass
    (gradient,) = torch.autograd.grad(net.loss(torch.ones(2, 3)), net.other.pairs[0][0])

    assert gradient.abs().max() > 0


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("proc", [True, False])
def test_tanh_is_slow_where_mkl_is_and_the_processor_is_not_intels(monkeypatch, slow, proc):
    vendor = "AuthenticAMD" if slow else "GenuineIntel"

    def cpuinfo(path, mode):
        if not proc:
            raise FileNotFoundError(path)
        return io.BytesIO(b"vendor_id : " + vendor.encode() + b"\xae\n")

    monkeypatch.setattr("builtins.open", cpuinfo)
    monkeypatch.setattr(mlp.platform, "processor", lambda: f"Family 6, {vendor}")
    for mkl in (True, False):
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda mkl=mkl: mkl)
        found = mlp._slow_tanh()
        assert found == (mkl and slow)


@pytest.mark.parametrize("slow", [True, False])
def test_the_quicker_tanh_is_tanh(monkeypatch, slow):
    monkeypatch.setattr(mlp, "SLOW_TANH", slow)
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([0.0, -0.0, 1e-20, 100.0, -100.0, 1e30, -1e30])])

    torch.testing.assert_close(fast_tanh_(x.clone()), torch.tanh(x.double()).float(), atol=2e-7, rtol=0)
    assert torch.isnan(fast_tanh_(torch.tensor([float("nan")]))).all()


@pytest.mark.parametrize("shape", [lambda out: out, lambda out: out.view(2, -1)], ids=["leaf", "behind autograd"])
def test_a_gradient_of_the_output_goes_back_as_through_autograd(shape):
    """With the leaf itself autograd is left out; behind anything else it is not."""
    net = Net("relu", 17).double()
    twin = copy.deepcopy(net)
    flat, other = flatten(net), flatten(twin)
    x = torch.randn(6, 17, generator=torch.Generator().manual_seed(1)).double()
    tape = Tape(net)
    with tape:
        out = shape(net.trunk(x))
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).double()
    tape.backward(out, gradient)
    shape(twin.trunk(x)).backward(gradient)

    torch.testing.assert_close(flat.grad, other.grad)
    assert flat.grad.abs().max() > 0.1
