"""Sequences of a replay as the samples that algorithms with memory learn from, and the priorities of sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rltrain.algorithms.networks.memory import History
from rltrain.rollout.types import Trajectory, Transition

ETA = 0.9  # weight of the largest error in a sequence's priority


def learned_steps(batch: Trajectory, plan: Any) -> Transition:
    """The N rows of sequences that are learnt from, as N samples whose observations are a `History`.

    These are all rows after the first `burn_in`, without reset rows. A target is n-step as far as its sequence and its
    episode go: y_t = sum_{k<m} gamma^k r_{t+k} + gamma^m * value of o_{t+m}, m <= n_step, and without the value after a
    termination. `weight` [N] is that of each row's sequence, but `index` [B] has one number for each sequence.

    Args:
        plan: a `ReplayPlan`, or settings with the same names: burn_in, gamma, n_step.
    """
    assert batch.core is not None
    burn_in, gamma = plan.burn_in, plan.gamma
    reward, valid = batch.reward[burn_in:], batch.valid[burn_in:]  # [L, B]
    terminated = batch.terminated[burn_in:]
    ended = terminated | batch.truncated[burn_in:]
    length, columns = reward.shape
    total, steps = torch.zeros_like(reward), torch.zeros_like(reward, dtype=torch.int64)  # sums, and m
    stops = torch.zeros_like(terminated)  # a termination is among the m rewards
    counts = valid.clone()  # the reward of row t + k belongs to the target of row t
    for k in range(min(plan.n_step, length)):
        rows, later = slice(0, length - k), slice(k, None)  # t and t + k
        counts[length - k :] = False
        total[rows] += gamma**k * reward[later] * counts[rows]
        steps += counts
        stops[rows] |= terminated[later] & counts[rows]
        counts[rows] &= ~ended[later]
    at = valid.flatten().nonzero().squeeze(-1)  # [N]
    after = at + columns * steps.flatten()[at]
    powers = torch.tensor([gamma**m for m in range(length + 1)], dtype=reward.dtype, device=reward.device)
    discount = powers[steps].masked_fill(stops, 0.0)
    history = History(batch.obs, batch.first, batch.core[0], burn_in, at)

    def flat(x: Tensor) -> Tensor:
        """[burn_in + L, B, ...] to [N, ...], or to [N', ...] at the observations of one row more."""
        return x[burn_in:].flatten(0, 1)

    mask = None if batch.action_mask is None else flat(batch.action_mask)
    return Transition(
        obs=history,
        action=flat(batch.action)[at],
        reward=total.flatten()[at],
        discount=discount.flatten()[at],
        next_obs=history._replace(at=after),
        action_mask=None if mask is None else mask[at],
        next_action_mask=None if mask is None else mask[after],
        weight=None if batch.weight is None else batch.weight[at % columns],
        index=batch.index,
    )


def sequence_priority(error: Tensor, history: History) -> Tensor:
    """[B] of each sequence 0.9 times its largest absolute error and 0.1 times their mean, from errors [N].

    Kapturowski et al. 2019, section 2.3.
    """
    columns = history.first.shape[1]
    column, error = history.at % columns, error.abs()
    largest = error.new_zeros(columns).scatter_reduce_(0, column, error, "amax")
    count = error.new_zeros(columns).index_add_(0, column, torch.ones_like(error))
    mean = error.new_zeros(columns).index_add_(0, column, error) / count.clamp(min=1)
    return ETA * largest + (1 - ETA) * mean
