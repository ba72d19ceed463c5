"""The written-out backward pass of an MLP equals autograd's, wherever the MLP stands."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.functions.optim import Adam, flatten, step
from rltrain.algorithms.networks.mlp import MLP, for_actors
from rltrain.algorithms.networks.products import aligned


class Net(nn.Module):
    """A trunk with a head, an MLP that is applied twice, and a parameter outside of all MLPs."""

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


def gradients(net: Net, loss: Tensor) -> Tensor:
    """What autograd finds for parameters that have no `.grad`."""
    found = torch.autograd.grad(loss, list(net.parameters()))
    assert all(param.grad is None for param in net.parameters())
    return torch.cat([x.flatten() for x in found])


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("lead", [(6,), (5, 4), (1,)])
@pytest.mark.parametrize("inputs", [3, 17])
def test_gradients_are_those_of_autograd(activation, lead, inputs):
    """Of flattened parameters, whose backward pass is written out; the second ones are added to the first."""
    net = Net(activation, inputs).double()
    x = torch.randn(*lead, inputs, generator=torch.Generator().manual_seed(1)).double()
    plain = copy.deepcopy(net)
    flat = flatten(net)
    for times in (1, 2):
        loss = net.loss(x)
        loss.backward()

        torch.testing.assert_close(loss, plain.loss(x))
        torch.testing.assert_close(flat.grad, times * gradients(plain, plain.loss(x)))
    assert flat.grad.abs().max() > 0.1


def test_a_pass_that_is_part_of_no_loss_adds_nothing():
    net = Net("tanh", 3)
    plain, flat = copy.deepcopy(net), flatten(net)
    x = torch.ones(2, 3)
    net.loss(x)
    loss = net.loss(x)
    net.loss(3 * x)
    loss.backward()

    torch.testing.assert_close(flat.grad, gradients(plain, plain.loss(x)))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_behind_a_network_that_learns_gradients_go_on_to_it(activation):
    net, first = Net(activation, 3).double(), nn.Linear(5, 3).double()
    plain = copy.deepcopy(net)
    flat = flatten(net)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double()
    (expected,) = torch.autograd.grad(plain.loss(first(x)), first.weight)
    net.loss(first(x)).backward()

    torch.testing.assert_close(first.weight.grad, expected)
    torch.testing.assert_close(flat.grad, gradients(plain, plain.loss(first(x))))


def test_gradients_that_are_removed_before_the_backward_pass_are_made_again():
    """As by `zero_grad()` of torch's optimizers between the loss and its backward pass."""
    net = Net("relu", 3)
    plain = copy.deepcopy(net)
    flatten(net)
    loss = net.loss(torch.ones(2, 3))
    net.zero_grad()
    loss.backward()

    expected = gradients(plain, plain.loss(torch.ones(2, 3)))
    torch.testing.assert_close(torch.cat([param.grad.flatten() for param in net.parameters()]), expected)


def test_a_graph_has_one_backward_pass():
    """A step in between would have changed the weights, and the second gradient would be wrong."""
    net = MLP(3, (5,), 2)
    optimizer = Adam(flatten(net))
    out = net(torch.ones(4, 3))
    step(optimizer, out.sum(), 1e-2, 0.0)

    with pytest.raises(TypeError, match="one backward pass"):
        step(optimizer, out.square().sum(), 1e-2, 0.0)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_layers_that_a_user_has_frozen_stay_as_they_are_and_the_others_learn(frozen):
    net = MLP(3, (5, 20), 2).double()
    plain, flat = copy.deepcopy(net), flatten(net)
    x = torch.linspace(-1, 1, 12).double().view(4, 3)
    for module in (net, plain):
        for parameter in module.pairs[frozen]:
            parameter.requires_grad_(False)
        module(x).square().sum().backward()

    expected = [torch.zeros_like(p) if p.grad is None else p.grad for p in plain.parameters()]
    torch.testing.assert_close(flat.grad, torch.cat([x.flatten() for x in expected]))


@pytest.mark.parametrize("rows", [1, 2, 8, 16, 31, 64])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("shape", [(4, (64, 64), 2), (17, (256, 256), 12), (3, (), 2), (5, (7, 600, 600), None)])
def test_actors_compute_the_same_bits_in_memory_that_they_keep(rows, activation, shape):
    inputs, widths, outputs = shape
    prepared = for_actors(MLP(inputs, widths, outputs, activation))
    before = torch.randn(rows, inputs)
    with torch.inference_mode():
        first = prepared(before)
        kept = first.clone()
        for _ in range(2):
            x = torch.randn(rows, inputs)
            with torch.no_grad():
                prepared.pairs[-1][0].mul_(1.5)  # as new weights are written
            torch.testing.assert_close(prepared(x), _by_modules(prepared, x), rtol=0, atol=0)
    assert torch.equal(first, kept)  # later calls do not change a result


def _by_modules(net: MLP, x: Tensor) -> Tensor:
    for number, (weight, bias) in enumerate(net.pairs):
        x = F.linear(aligned(x, weight), weight, bias)
        x = net.activation(x) if number < net.hidden else x
    return x


def test_actors_use_weights_that_have_moved():
    """As after `flatten`, for gradients of the same policy."""
    net = for_actors(MLP(3, (4,), 2))
    x = torch.ones(2, 3)
    with torch.inference_mode():
        before = net(x)
    flatten(net)
    with torch.no_grad():
        net.pairs[0][0].zero_()
    with torch.inference_mode():
        torch.testing.assert_close(net(x), net.pairs[1][1].expand(2, 2))
        assert not torch.equal(net(x), before)
