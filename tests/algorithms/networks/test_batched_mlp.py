"""BatchedMLP: its written-out backward pass against autograd, and which tensors get a gradient."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from rltrain.algorithms.functions.optim import flatten
from rltrain.algorithms.networks.batched_mlp import BatchedMLP
from rltrain.algorithms.networks.mlp import for_actors


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(nets: int = 2, widths: tuple[int, ...] = (7, 5), outputs: int = 3, activation="relu") -> BatchedMLP:
    dense = BatchedMLP(4, widths, outputs, nets, activation, torch.Generator().manual_seed(1))
    flatten(dense)
    return dense


def plainly(dense: BatchedMLP, params: list[torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """One net after the other, by autograd."""
    activate = torch.relu if dense.activation == "relu" else torch.tanh
    outs = []
    for net in range(dense.nets):
        x = torch.cat(inputs, -1)
        for i in range(0, len(params), 2):
            x = F.linear(x, params[i][net], params[i + 1][net, 0])
            x = activate(x) if i + 2 < len(params) else x
        outs.append(x)
    return torch.stack(outs)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("widths", [(), (6,), (7, 5)])
@pytest.mark.parametrize("nets", [1, 2, 3])
def test_values_and_all_gradients_equal_autograds(nets, widths, activation):
    dense = made(nets, widths, activation=activation)
    params = [param.detach().clone().requires_grad_() for pair in dense.pairs for param in pair]
    for seed in (1, 2):  # the second time in the arrays of the first, and added to its gradients
        a, b = normal(9, 3, seed=seed).requires_grad_(), normal(9, 1, seed=seed + 5).requires_grad_()
        c, d = a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
        expected, actual = plainly(dense, params, a, b), dense(c, d)
        assert_close(actual, expected)
        expected.square().sum().backward()
        actual.square().sum().backward()

        assert_close(c.grad, a.grad)
        assert_close(d.grad, b.grad)
        for param, theirs in zip([p for pair in dense.pairs for p in pair], params, strict=True):
            assert_close(param.grad, theirs.grad)
    with torch.no_grad():
        assert_close(dense(c, d), expected)


def test_frozen_passes_gradients_on_and_gives_weights_none():
    dense = made()
    obs, action = normal(9, 3), normal(9, 1).requires_grad_()

    (expected,) = torch.autograd.grad(dense(obs, action).sum(), action)
    for param in dense.parameters():
        param.grad.zero_()
    dense(obs, action, frozen=True).sum().backward()

    assert_close(action.grad, expected)
    assert all((param.grad == 0).all() for param in dense.parameters())


def test_a_single_input_gets_its_gradient_once():
    dense = made()
    params = [param.detach().clone() for pair in dense.pairs for param in pair]
    a = normal(9, 4).requires_grad_()
    b = a.detach().clone().requires_grad_()

    dense(a).square().sum().backward()
    plainly(dense, params, b).square().sum().backward()

    assert_close(a.grad, b.grad)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("inputs", [4, 40])  # below and above THIN
def test_gradients_of_weights_and_of_a_part_of_the_inputs_are_autograds(inputs, first, outputs):
    dense = BatchedMLP(inputs, (7, 5), outputs, 2, "relu", torch.Generator().manual_seed(1))
    flatten(dense)
    params = [param.detach().clone().requires_grad_() for pair in dense.pairs for param in pair]
    x = normal(9, inputs).requires_grad_()
    expected = plainly(dense, params, x)
    slope = normal(*expected.shape, seed=5)
    if first:
        slope[1] = 0.0
    expected.backward(slope)

    obs, action = x.detach()[:, :-2], x.detach()[:, -2:].clone().requires_grad_()
    frozen = dense(obs, action, frozen=True, first=first)
    frozen.backward(slope[: len(frozen)])
    assert_close(action.grad, x.grad[:, -2:])
    assert all((param.grad == 0).all() for param in dense.parameters())
    out = dense(obs, action)
    assert_close(out, expected)
    out.backward(slope)
    for param, theirs in zip([p for pair in dense.pairs for p in pair], params, strict=True):
        assert_close(param.grad, theirs.grad)


@pytest.mark.parametrize("extra", [0, 2])
def test_gradients_go_on_through_what_computed_the_inputs_unless_frozen(extra):
    """As to an encoder of pixels: without it the encoder would never learn."""
    dense, encoder = made(), torch.nn.Linear(6, 4 - extra)
    obs, other, slope = normal(9, 6), normal(9, extra, seed=3).requires_grad_(), normal(2, 9, 3, seed=5)
    params = [param.detach().clone() for pair in dense.pairs for param in pair]
    (expected,) = torch.autograd.grad(plainly(dense, params, encoder(obs), other), encoder.weight, slope)

    dense(encoder(obs), other).backward(slope)
    assert_close(encoder.weight.grad, expected)
    encoder.zero_grad()
    with torch.no_grad():
        features = encoder(obs)
    dense(features, other, frozen=True).backward(slope)
    assert encoder.weight.grad is None


def test_parameters_that_move_are_followed():
    dense = made()
    before = dense(normal(9, 4)).detach().clone()
    flat = flatten(dense)
    flat.param.mul_(2.0)
    dense(normal(9, 4)).backward(normal(2, 9, 3, seed=5))

    assert (dense(normal(9, 4)) != before).any()
    assert flat.grad.any()


def test_the_first_net_alone():
    dense = made()
    obs, action = normal(9, 3), normal(9, 1).requires_grad_()

    both, one = dense(obs, action), dense(obs, action, frozen=True, first=True)

    assert_close(one, both[:1])
    (expected,) = torch.autograd.grad(both[0].sum(), action)
    assert_close(torch.autograd.grad(one.sum(), action)[0], expected)


def test_two_graphs_at_once_do_not_share_activations():
    dense = made()
    a, b = normal(9, 4, seed=1).requires_grad_(), normal(9, 4, seed=2).requires_grad_()
    (expected,) = torch.autograd.grad(dense(a).square().sum(), a)

    first = dense(a)
    second = dense(b)
    with torch.no_grad():
        dense(b)

    assert_close(torch.autograd.grad(first.square().sum() + 0 * second.sum(), (a, b))[0], expected)


def test_a_graph_has_one_backward_pass():
    """Its activations belong to others by then; a wrong gradient would go unnoticed."""
    dense = made()
    loss = dense(normal(9, 4)).sum()
    loss.backward(retain_graph=True)

    with pytest.raises(TypeError):
        loss.backward()


def test_rows_are_those_of_the_learner():
    dense = made(nets=1)
    x = normal(16, 4)

    assert_close(dense.rows(x), dense(x)[0])


def test_nets_differ_from_the_start_and_a_copy_is_a_copy():
    dense = made()
    x = normal(9, 4)
    dense(x).sum().backward()
    twin = copy.deepcopy(dense)

    assert (dense.pairs[0][0][0] != dense.pairs[0][0][1]).all()
    assert_close(twin(x), dense(x), atol=0, rtol=0)
    with torch.no_grad():
        twin.pairs[0][0].zero_()
        assert not torch.equal(twin(x), dense(x))
    assert dict(twin.named_parameters())["weight0"] is twin.pairs[0][0]


@pytest.mark.parametrize("rows", [1, 8, 16])
def test_actors_compute_the_same_bits_in_memory_that_they_keep(rows):
    plain = BatchedMLP(3, (64, 256), 2)
    prepared = for_actors(copy.deepcopy(plain))
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(rows, 3)
            first = prepared.rows(x)
            torch.testing.assert_close(first, plain.rows(x), rtol=0, atol=0)
            kept = first.clone()
            prepared.rows(torch.randn(rows, 3))
            assert torch.equal(first, kept)
    flatten(prepared)
    with torch.no_grad():
        prepared.pairs[-1][0].zero_()
    with torch.inference_mode():
        torch.testing.assert_close(prepared.rows(x), prepared.pairs[-1][1][0].expand(rows, 2))
