"""PPO's losses against row-by-row versions and against numbers worked out elsewhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import losses as oracle
from torch.testing import assert_close

from rltrain.algorithms.functions.losses import clipped_surrogate, clipped_value, gather_action, masked_mean, normalised
from rltrain.algorithms.functions.optim import Adam, flatten, step
from rltrain.algorithms.functions.q_losses import categorical_loss, critic_loss, q_loss
from rltrain.algorithms.networks.batched_mlp import BatchedMLP
from rltrain.algorithms.networks.mlp import MLP

number = st.floats(-3, 3, width=32)
rows = st.lists(st.tuples(number, number, number), min_size=1, max_size=20)
F64 = torch.float64


@settings(max_examples=200, deadline=None)
@given(rows, st.floats(0.01, 0.5))
def test_surrogate_equals_the_loop(case, clip):
    log_prob, behaviour, advantage = zip(*case, strict=True)
    expected = oracle.clipped_surrogate(log_prob, behaviour, advantage, clip)

    actual = clipped_surrogate(*(torch.tensor(x, dtype=F64) for x in (log_prob, behaviour, advantage)), clip)

    assert_close(torch.stack(actual), torch.tensor(expected, dtype=F64))


@settings(max_examples=200, deadline=None)
@given(rows, st.floats(0.01, 0.5))
def test_clipped_value_equals_the_loop(case, clip):
    value, old, target = zip(*case, strict=True)

    actual = clipped_value(*(torch.tensor(x, dtype=F64) for x in (value, old, target)), clip)

    assert actual.item() == pytest.approx(oracle.clipped_value(value, old, target, clip), abs=1e-9)


def test_golden_surrogate():
    new, old = torch.tensor([0.5, 0.3, 0.9, 0.2], dtype=F64), torch.tensor([0.4, 0.4, 0.5, 0.25], dtype=F64)

    actual = clipped_surrogate(new.log(), old.log(), torch.tensor([1.0, -2.0, 1.5, -1.0], dtype=F64), 0.2 + 1e-12)

    assert actual.loss.item() == pytest.approx(-0.15)
    assert actual.approx_kl.item() == pytest.approx(0.07497385188741551)
    assert actual.clip_fraction.item() == 0.75


def test_golden_clipped_value_takes_the_larger_error():
    """0.1275 would be the unclipped loss."""
    v_old, v_new = torch.tensor([0.5, 0.2, 1.0, -0.3]), torch.tensor([0.9, 0.1, 0.6, -0.2])

    actual = clipped_value(v_new, v_old, torch.tensor([1.0, 0.0, 1.2, -1.0]), 0.2)

    assert actual.item() == pytest.approx(0.1375)


def test_surrogate_at_the_first_minibatch_is_the_policy_gradient():
    """Ratio 1: nothing is clipped, KL is 0, and the gradient is -advantage / n."""
    log_prob = torch.tensor([-0.1, -2.0, -0.7], requires_grad=True)
    advantage = torch.tensor([1.0, -2.0, 0.5])

    actual = clipped_surrogate(log_prob, log_prob.detach(), advantage, 0.2)
    actual.loss.backward()

    assert actual.clip_fraction == 0
    assert actual.approx_kl == 0
    assert_close(log_prob.grad, -advantage / 3)
    assert not actual.approx_kl.requires_grad
    assert not actual.clip_fraction.requires_grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "flows"),
    [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.1, 1.0, True)],
)
def test_the_clip_stops_a_gradient_only_where_it_would_go_further_out(ratio, advantage, flows):
    log_prob = torch.tensor([ratio]).log().requires_grad_()

    clipped_surrogate(log_prob, torch.zeros(1), torch.tensor([advantage]), 0.2).loss.backward()

    assert bool(log_prob.grad.abs() > 0) is flows


def test_padded_rows_change_nothing_whatever_they_hold():
    valid = torch.tensor([True, True, False, True])
    x = [torch.randn(4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for poison in (1e30, torch.inf, torch.nan):
        bad = [torch.where(valid, row, poison).requires_grad_() for row in x]

        assert_close(clipped_surrogate(*bad, 0.2, valid), clipped_surrogate(*(row[valid] for row in x), 0.2))
        assert_close(clipped_value(*bad, 0.2, valid), clipped_value(*(row[valid] for row in x), 0.2))
        assert_close(normalised(bad[0], valid)[valid], normalised(x[0][valid]))
        assert (normalised(bad[0], valid)[~valid] == 0).all()


def test_padded_rows_get_no_gradient():
    valid = torch.tensor([True, False])
    log_prob = torch.tensor([0.1, 500.0], requires_grad=True)

    clipped_surrogate(log_prob, torch.zeros(2), torch.ones(2), 0.2, valid).loss.backward()

    assert_close(log_prob.grad, torch.tensor([-torch.tensor(0.1).exp().item(), 0.0]))


def test_normalised_has_mean_0_and_deviation_1():
    x = torch.tensor([1.0, 2.0, 3.0, 10.0])

    actual = normalised(x)

    assert actual.mean().item() == pytest.approx(0, abs=1e-6)
    assert actual.std().item() == pytest.approx(1)


@pytest.mark.parametrize("valid", [None, torch.tensor([True])])
def test_normalised_of_a_single_row_is_0_and_not_nan(valid):
    assert normalised(torch.tensor([3.0]), valid).tolist() == [0.0]


def test_normalised_of_equal_rows_is_0():
    assert normalised(torch.full((8,), 2.5)).tolist() == [0.0] * 8


def test_masked_mean_of_nothing_is_0():
    assert masked_mean(torch.tensor([torch.nan, 1.0]), torch.tensor([False, False])) == 0
    assert masked_mean(torch.tensor([torch.nan, 1.0, 2.0]), torch.tensor([False, True, True])) == 1.5


def test_chosen_picks_by_action():
    q = torch.arange(12.0).reshape(2, 2, 3)

    assert gather_action(q, torch.tensor([[0, 2], [1, 1]])).tolist() == [[0.0, 5.0], [7.0, 10.0]]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["critics", "huber", "squared", "categorical"])
def test_known_gradients_are_those_that_autograd_finds_in_the_formula(name, weighted):
    generator = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight = torch.rand(6, generator=generator, dtype=torch.float64) if weighted else None
    factor = 1.0 if weight is None else weight
    x, target, action = normal(*{"critics": (2, 6, 1)}.get(name, (6, 4))), normal(6), torch.tensor([0, 3, 1, 1, 2, 0])
    x.requires_grad_()
    if name == "critics":
        loss, error = critic_loss(x, target, weight)
        expected_error = x.squeeze(-1) - target
        each = 0.5 * expected_error.square().sum(0)
    elif name == "categorical":
        probs = torch.softmax(normal(6, 4), -1)
        loss, error = categorical_loss(x, probs, weight)
        each = expected_error = torch.nn.functional.cross_entropy(x, probs, reduction="none")
    else:
        loss, error = q_loss(x, action, target, weight, name)
        q = x[torch.arange(6), action]
        expected_error = q - target
        function = getattr(torch.nn.functional, {"huber": "huber_loss", "squared": "mse_loss"}[name])
        each = function(q, target, reduction="none")
    expected = (each * factor).mean()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(error, expected_error.detach())
    assert not error.requires_grad
    (gradient,) = torch.autograd.grad(3 * loss, x)
    torch.testing.assert_close(gradient, torch.autograd.grad(3 * expected, x)[0])


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_a_step_along_a_known_gradient_is_that_of_the_whole_graph(batched, behind):
    """With the network as the last node, and with another one before it, which learns too."""
    generator = torch.Generator().manual_seed(4)
    net = BatchedMLP(3, (5,), 1, 2, generator=generator) if batched else MLP(3, (5,), 4, generator=generator)
    first = torch.nn.Linear(3, 3)
    module = torch.nn.ModuleList([first, net] if behind else [net]).double()
    optimizer = Adam(flatten(module))
    x, target = torch.randn(6, 3, generator=generator).double(), torch.zeros(6).double()
    action = torch.tensor([0, 3, 1, 1, 2, 0])

    def loss():
        out = net(first(x) if behind else x)
        return critic_loss(out, target, None)[0] if batched else q_loss(out, action, target, None, "huber")[0]

    assert (loss().grad_fn.network is None) == behind
    loss().backward()
    expected = optimizer.grad.clone()
    norm = step(optimizer, loss(), 1e-3, 0.0)

    torch.testing.assert_close(optimizer.grad, expected)
    assert norm > 0.1
