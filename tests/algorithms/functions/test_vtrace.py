"""V-trace against its definition written out, against numbers worked out elsewhere, and against what it becomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.streams import RUN, TERMINATED, TRUNCATED, make, streams
from oracles.vtrace import vtrace_by_definition
from torch.testing import assert_close

from rltrain.algorithms.functions.returns import VTrace, gae, lambda_returns, vtrace
from rltrain.rollout.types import Trajectory, discounts, traces

unit = st.floats(0, 1, width=32)
bound = st.sampled_from([0.3, 1.0, 2.0, 1e9])
seeds = st.integers(0, 2**31)


def ratios(stream: Trajectory, seed: int) -> torch.Tensor:
    """[T, B] between 0.1 and 10 or so."""
    return torch.from_numpy(np.random.default_rng(seed).lognormal(size=stream.reward.shape).astype(np.float32))


def corrected(
    stream: Trajectory, value: torch.Tensor, ratio: torch.Tensor, gamma: float, lam: float, *bounds: float
) -> VTrace:
    discount, trace = discounts(stream, gamma), traces(stream, lam)
    return vtrace(ratio.log(), stream.reward, value, discount, trace, stream.valid, *bounds)


def short(stream: Trajectory, rows: int, stream_number: int = 0) -> Trajectory:
    """The same, of which one stream has only so many rows; the rest is padding as the feed makes it."""
    first, terminated, truncated = stream.first.clone(), stream.terminated.clone(), stream.truncated.clone()
    first[rows + 1 :, stream_number] = True
    terminated[rows:, stream_number] = truncated[rows:, stream_number] = False
    return replace(stream, first=first, terminated=terminated, truncated=truncated)


@settings(max_examples=60, deadline=None)
@given(streams(), seeds, unit, unit, bound, bound, bound)
def test_vtrace_equals_the_sum_written_out(case, seed, gamma, lam, rho_bar, c_bar, rho_bar_pg):
    """The third stream may be shorter than the unroll: what pads it is no part of the sum."""
    stream, value = case
    stream = short(stream, 1 + seed % len(stream.reward), 2)
    ratio, keep, bounds = ratios(stream, seed), stream.valid, (rho_bar, c_bar, rho_bar_pg)
    flags = [x.numpy() for x in (stream.terminated, stream.truncated, stream.valid)]
    arrays = [x.double().numpy() for x in (ratio, stream.reward, value)]
    target, advantage = vtrace_by_definition(*arrays, *flags, gamma, lam, *bounds)

    found = corrected(stream, value.double(), ratio.double(), gamma, lam, *bounds)

    assert_close(found.target[keep], torch.from_numpy(target)[keep], atol=1e-5, rtol=1e-5)
    assert_close(found.advantage[keep], torch.from_numpy(advantage)[keep], atol=1e-5, rtol=1e-5)
    assert_close(found.target[~keep], value[:-1][~keep].double(), atol=0, rtol=0)
    assert (found.advantage[~keep] == 0).all()


@settings(max_examples=60, deadline=None)
@given(streams(), unit, unit)
def test_on_policy_targets_are_lambda_returns_and_advantages_are_gae(case, gamma, lam):
    stream, value = case
    keep, discount, trace = stream.valid, discounts(stream, gamma), traces(stream, lam)

    found = corrected(stream, value, torch.ones_like(stream.reward), gamma, lam)

    expected = lambda_returns(stream.reward, value, discount, trace)
    assert_close(found.target[keep], expected[keep], atol=1e-4, rtol=1e-4)
    advantage = gae(stream.reward, value, discount, trace)
    assert_close(found.advantage[keep], advantage[keep], atol=1e-4, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(streams(), seeds, unit, unit)
def test_rows_without_an_action_may_hold_anything(case, seed, gamma, lam):
    """Their reward, ratio and flags, and values of first observations, which nobody before them bootstraps from."""
    stream, value = case
    ratio, valid = ratios(stream, seed), stream.valid
    clean = corrected(stream, value, ratio, gamma, lam)
    spoilt = replace(stream, reward=torch.where(valid, stream.reward, torch.nan))
    poison = torch.where(stream.first, 1e6, value)

    found = corrected(spoilt, poison, torch.where(valid, ratio, torch.inf), gamma, lam)

    keep = valid & ~stream.first[:-1]  # a first row's own advantage holds its own value, of course
    for name in ("target", "advantage"):
        assert torch.equal(getattr(found, name)[keep], getattr(clean, name)[keep])
    assert found.advantage.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(streams(max_t=12), seeds, unit, unit, st.integers(1, 11))
def test_two_unrolls_give_what_the_whole_gives(case, seed, gamma, lam, cut):
    """What the second half adds to the value at the cut is all that the first half needs to know of it."""
    stream, value = case
    cut = min(cut, len(stream.reward) - 1)
    if cut == 0:
        return
    ratio = ratios(stream, seed)
    whole = corrected(stream, value, ratio, gamma, lam)
    discount, trace, log_ratio, valid = discounts(stream, gamma), traces(stream, lam), ratio.log(), stream.valid

    def part(rows: slice, value: torch.Tensor) -> VTrace:
        return vtrace(log_ratio[rows], stream.reward[rows], value, discount[rows], trace[rows], valid[rows])

    late = part(slice(cut, None), value[cut:])
    early = part(slice(cut), value[: cut + 1])
    carry = late.target[0] - value[cut]  # 0 where a reset row stands at the cut
    for t in reversed(range(cut)):
        carry = discount[t] * trace[t] * ratio[t].clamp(max=1) * carry
        assert_close((early.target[t] + carry)[valid[t]], whole.target[t][valid[t]], atol=1e-4, rtol=1e-4)
    for a, b in zip(late, whole, strict=True):
        assert_close(a, b[cut:], atol=1e-5, rtol=1e-5)


VALUE = torch.tensor([0.5, 0.5, 0.5, 2.0])[:, None]
OFF_POLICY = torch.tensor([2.0, 0.5, 1.0])[:, None]


def three_steps(end: int) -> Trajectory:
    stream, _ = make([[RUN], [RUN], [end]], [1], 0)
    return replace(stream, reward=torch.ones(3, 1))


@pytest.mark.parametrize("end", [RUN, TRUNCATED])
def test_golden_ratios_off_policy(end):
    """With V for v_{s+1} in the advantage it would be (0.95, 0.475, 2.3)."""
    found = corrected(three_steps(end), VALUE, OFF_POLICY, 0.9, 1.0)

    assert_close(found.target[:, 0], torch.tensor([2.809, 2.01, 2.8]))
    assert_close(found.advantage[:, 0], torch.tensor([2.309, 1.51, 2.3]))


def test_golden_on_policy():
    found = corrected(three_steps(TRUNCATED), VALUE, torch.ones(3, 1), 0.9, 1.0)

    assert_close(found.target[:, 0], torch.tensor([4.168, 3.52, 2.8]))


def test_golden_a_terminated_episode_has_no_bootstrap():
    found = corrected(three_steps(TERMINATED), VALUE, torch.ones(3, 1), 0.9, 1.0)

    assert_close(found.target[:, 0], torch.tensor([2.71, 1.9, 1.0]))
    assert_close(found.advantage[:, 0], torch.tensor([2.21, 1.4, 0.5]))


def test_golden_the_row_before_a_reset_row_is_not_corrected_by_it():
    """2.3 at the truncated row, from the final observation; 0.5 if the reset row's reward-less step counted."""
    stream, _ = make([[RUN], [RUN], [TRUNCATED], [RUN], [TERMINATED]], [1], 0)
    stream = replace(stream, reward=torch.tensor([1.0, 1.0, 1.0, 0.0, 5.0])[:, None])
    value = torch.tensor([0.5, 0.5, 0.5, 2.0, 0.5, 9.0])[:, None]
    ratio = torch.tensor([2.0, 0.5, 1.0, 1.0, 1.0])[:, None]

    found = corrected(stream, value, ratio, 0.9, 1.0)

    assert_close(found.target[:, 0], torch.tensor([2.809, 2.01, 2.8, 2.0, 5.0]))
    assert_close(found.advantage[:, 0], torch.tensor([2.309, 1.51, 2.3, 0.0, 4.5]))


def test_golden_the_last_row_before_padding_takes_its_value_for_what_follows():
    stream = short(three_steps(RUN), 2)
    value = torch.tensor([0.5, 0.5, 2.0, 77.0])[:, None]

    found = corrected(stream, value, torch.ones(3, 1), 0.9, 1.0)

    assert_close(found.target[:2, 0], torch.tensor([3.52, 2.8]))
    assert_close(found.advantage[:, 0], torch.tensor([3.02, 2.3, 0.0]))


def test_each_bound_moves_what_it_is_for():
    """rho the target itself, c only what comes from later rows, rho of the gradient only its weight."""
    stream, ratio = three_steps(RUN), torch.full((3, 1), 4.0)
    plain = corrected(stream, VALUE, ratio, 0.9, 1.0)
    rho, c, pg = (
        corrected(stream, VALUE, ratio, 0.9, 1.0, *bounds)
        for bounds in ((3.0, 1.0, 1.0), (1.0, 3.0, 1.0), (1.0, 1.0, 3.0))
    )

    assert_close(rho.target[-1] - VALUE[2], 3 * (plain.target[-1] - VALUE[2]))
    assert torch.equal(c.target[-1], plain.target[-1])
    assert (c.target[:-1] > plain.target[:-1]).all()
    assert torch.equal(pg.target, plain.target)
    assert_close(pg.advantage, 3 * plain.advantage)


def test_arguments_stay_as_they_were():
    log_ratio, reward, discount, trace = (torch.rand(5, 2) for _ in range(4))
    value, valid = torch.rand(6, 2), torch.rand(5, 2) > 0.3
    before = [x.clone() for x in (log_ratio, reward, discount, trace, value, valid)]

    vtrace(log_ratio, reward, value, discount, trace, valid)

    after = (log_ratio, reward, discount, trace, value, valid)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_value_without_its_bootstrap_row_is_refused():
    x = torch.zeros(3, 1)
    with pytest.raises(ValueError, match=r"vtrace needs value of shape \[T\+1, B\]"):
        vtrace(x, x, VALUE[:-1], x, x, x.bool())
