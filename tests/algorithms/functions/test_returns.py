"""Targets against their definitions written out, and against numbers worked out elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import targets
from oracles.streams import RUN, TERMINATED, TRUNCATED, make, streams
from torch.testing import assert_close

from rltrain.algorithms.functions.returns import gae, lambda_returns
from rltrain.rollout.types import discounts, traces

unit = st.floats(0, 1, width=32)


def flags(stream):
    return [x.numpy() for x in (stream.terminated, stream.truncated, stream.valid)]


def advantages(stream, value, gamma, lam):
    return gae(stream.reward, value, discounts(stream, gamma), traces(stream, lam))


@settings(max_examples=200, deadline=None)
@given(streams(), unit, unit)
def test_gae_equals_the_sum_written_out(case, gamma, lam):
    stream, value = case
    expected = targets.gae_by_definition(stream.reward.numpy(), value.numpy(), *flags(stream), gamma, lam)

    actual = advantages(stream, value, gamma, lam)

    keep = stream.valid
    assert_close(actual[keep], torch.from_numpy(expected).float()[keep], atol=1e-4, rtol=1e-4)


@settings(max_examples=200, deadline=None)
@given(streams(), unit, unit)
def test_lambda_returns_equal_the_weighted_sum_of_n_step_returns(case, gamma, lam):
    stream, value = case
    expected = targets.lambda_returns_by_definition(stream.reward.numpy(), value.numpy(), *flags(stream), gamma, lam)

    actual = lambda_returns(stream.reward, value, discounts(stream, gamma), traces(stream, lam))

    keep = stream.valid
    assert_close(actual[keep], torch.from_numpy(expected).float()[keep], atol=1e-4, rtol=1e-4)
    assert_close(actual[keep], (advantages(stream, value, gamma, lam) + value[:-1])[keep], atol=1e-4, rtol=1e-4)


@settings(max_examples=100, deadline=None)
@given(streams(), unit, unit)
def test_a_reset_row_cannot_leak_into_the_episode_before_it(case, gamma, lam):
    """Neither its reward nor the value of the observation after it; the value at it is that of the final one."""
    stream, value = case
    reward = torch.where(stream.valid, stream.reward, 1e6)
    poison = torch.where(stream.first, 1e6, value)  # V(first observation), bootstrapped from by nobody before it
    clean = advantages(stream, value, gamma, lam)

    poisoned = gae(reward, poison, discounts(stream, gamma), traces(stream, lam))

    keep = stream.valid & ~stream.first[:-1]  # a first row's own advantage holds its own value, of course
    assert torch.equal(poisoned[keep], clean[keep])


@settings(max_examples=100, deadline=None)
@given(streams(max_t=12), unit, unit, st.integers(1, 11))
def test_two_fragments_give_what_the_whole_gives(case, gamma, lam, cut):
    """The second half's exact lambda-return is the bootstrap of the first. At lambda 1 that is all there is to it."""
    stream, value = case
    cut = min(cut, len(stream.reward))
    whole = advantages(stream, value, gamma, 1.0)
    discount, trace = discounts(stream, gamma), traces(stream, 1.0)

    late = gae(stream.reward[cut:], value[cut:], discount[cut:], trace[cut:]) if cut < len(whole) else whole[:0]
    bootstrap = value[cut] + late[0] if len(late) else value[cut]
    # Where the row before the cut ended an episode the value stands alone.
    ended = (stream.terminated | stream.truncated)[cut - 1]
    head = torch.cat([value[:cut], torch.where(ended, value[cut], bootstrap)[None]])
    early = gae(stream.reward[:cut], head, discount[:cut], trace[:cut])

    keep = stream.valid
    assert_close(torch.cat([early, late])[keep], whole[keep], atol=1e-4, rtol=1e-4)


@settings(max_examples=100, deadline=None)
@given(streams(), unit)
def test_lambda_zero_is_one_step_and_lambda_one_the_discounted_return(case, gamma):
    stream, value = case
    keep = stream.valid
    one_step = stream.reward + gamma * torch.where(stream.terminated, 0.0, value[1:]) - value[:-1]
    assert_close(advantages(stream, value, gamma, 0.0)[keep], one_step[keep])

    returns = torch.zeros_like(stream.reward)  # [T, B]
    follow = value[-1]
    for t in reversed(range(len(returns))):
        follow = torch.where(stream.terminated[t], 0.0, torch.where(stream.truncated[t], value[t + 1], follow))
        returns[t] = follow = stream.reward[t] + gamma * follow
    actual = advantages(stream, value, gamma, 1.0) + value[:-1]
    assert_close(actual[keep], returns[keep], atol=1e-4, rtol=1e-4)


def test_golden_truncation_bootstraps_from_the_final_observation():
    """gamma .9, lambda .8; as terminated it would be (1.8932, 1.31, 0.5)."""
    stream, _ = make([[RUN], [RUN], [TRUNCATED]], [1], 0)
    stream = replace(stream, reward=torch.ones(3, 1))
    value = torch.tensor([0.5, 0.5, 0.5, 2.0])[:, None]

    assert_close(advantages(stream, value, 0.9, 0.8)[:, 0], torch.tensor([2.82632, 2.606, 2.3]))


def test_golden_the_recursion_is_cut_at_a_truncation():
    """Then comes the reset row and a second episode of one step; a leak would give 4.50594 at the front."""
    stream, _ = make([[RUN], [RUN], [TRUNCATED], [RUN], [TERMINATED]], [1], 0)
    stream = replace(stream, reward=torch.tensor([1.0, 1.0, 1.0, 0.0, 5.0])[:, None])
    value = torch.tensor([0.5, 0.5, 0.5, 2.0, 0.5, 9.0])[:, None]

    actual = advantages(stream, value, 0.9, 0.8)[stream.valid]

    assert_close(actual, torch.tensor([2.82632, 2.606, 2.3, 4.5]))


REWARD = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5], dtype=torch.float64)[:, None]
VALUE = torch.tensor([0.5, 0.4, -0.2, 1.0, 0.3, 0.8], dtype=torch.float64)[:, None]
DISCOUNT = torch.tensor([0.9, 0.9, 0.9, 0.0, 0.9], dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (0.95, [1.062228875, 0.236525, 0.955, 1.0, 0.92]),
        (1.0, [1.148, 0.32, 1.0, 1.0, 0.92]),
        (0.0, [0.86, -0.58, 0.1, 1.0, 0.92]),
    ],
)
def test_gae_gives_the_numbers_of_rlax_and_torchrl(lam, expected):
    actual = gae(REWARD, VALUE, DISCOUNT, torch.full_like(REWARD, lam))

    assert_close(actual[:, 0], torch.tensor(expected, dtype=torch.float64))


def test_lambda_returns_give_the_numbers_of_rlax_and_torchrl():
    actual = lambda_returns(REWARD, VALUE, DISCOUNT, torch.full_like(REWARD, 0.8))

    assert_close(actual[:, 0], torch.tensor([1.367488, 0.4104, 0.62, 2.0, 1.22], dtype=torch.float64))


def test_arguments_stay_as_they_were():
    before = [x.clone() for x in (REWARD, VALUE, DISCOUNT)]

    gae(REWARD, VALUE, DISCOUNT, DISCOUNT)
    lambda_returns(REWARD, VALUE, DISCOUNT, DISCOUNT)

    assert all(torch.equal(a, b) for a, b in zip(before, (REWARD, VALUE, DISCOUNT), strict=True))


@pytest.mark.parametrize("target", [gae, lambda_returns])
def test_a_value_without_its_bootstrap_row_is_refused(target):
    with pytest.raises(ValueError, match=r"\[T\+1, B\]"):
        target(REWARD, VALUE[:-1], DISCOUNT, DISCOUNT)
    with pytest.raises(ValueError, match="shaped like reward"):
        target(REWARD, VALUE, DISCOUNT[:-1], DISCOUNT)
