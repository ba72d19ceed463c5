"""Multi-step targets, as pure functions on time-major tensors. One-step TD targets are in each algorithm's file.

Every function takes `discount` and `trace` instead of "done" flags, because an
episode can end in two ways and they mean different things:

  terminated  the MDP is over      discount[t] = 0      nothing follows, so no bootstrap
  truncated   the clock ran out    trace[t] = 0         bootstrap, but stop looking further

`rltrain.rollout.types.discounts` and `rltrain.rollout.types.traces` build both from a Trajectory.
Targets are constants: nothing here carries a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def gae(reward: Tensor, value: Tensor, discount: Tensor, trace: Tensor) -> Tensor:
    """Generalised advantage estimate, Schulman et al. 2016, equation 16.

        delta_t = r_t + discount_t * V(o_{t+1}) - V(o_t)
        A_t     = delta_t + discount_t * trace_t * A_{t+1}

    Args:
        reward:   [T, B]    reward for the action taken at t, in the environment's own unit.
        value:    [T+1, B]  V(o_t), the last row included: it is the bootstrap.
        discount: [T, B]    gamma, or 0 where the episode terminated.
        trace:    [T, B]    lambda, or 0 where the episode ended in either way.

    Returns:
        [T, B] advantages. Reset rows hold no meaning; the caller drops them with `trajectory.valid`.

    Raises:
        ValueError: if `value` is not exactly one row longer than `reward`.
    """
    _check("gae", reward, value, discount, trace)
    delta = reward + discount * value[1:] - value[:-1]
    return _backwards(delta, discount * trace)


def lambda_returns(reward: Tensor, value: Tensor, discount: Tensor, trace: Tensor) -> Tensor:
    """TD(lambda) returns, Sutton and Barto 2018, section 12.1. They equal `gae(...) + value[:-1]`.

        G_t = r_t + discount_t * ((1 - trace_t) * V(o_{t+1}) + trace_t * G_{t+1}),   G_T = V(o_T)

    Args and errors: as for `gae`.

    Returns:
        [T, B] returns; reset rows hold no meaning.
    """
    _check("lambda_returns", reward, value, discount, trace)
    decay = discount * trace
    step = reward + (discount - decay) * value[1:]
    step[-1] += decay[-1] * value[-1]
    return _backwards(step, decay)


class VTrace(NamedTuple):
    """Targets and advantages of an unroll, from `vtrace`."""

    target: Tensor  # [T, B]  v_t, the target of V(o_t)
    advantage: Tensor  # [T, B]  the factor of log pi(a_t|o_t), importance weight included


def vtrace(
    log_ratio: Tensor,
    reward: Tensor,
    value: Tensor,
    discount: Tensor,
    trace: Tensor,
    valid: Tensor,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    rho_bar_pg: float = 1.0,
) -> VTrace:
    """V-trace, Espeholt et al. 2018 (arXiv:1802.01561), equation 1 as its recursion (remark 1), with lambda (remark 2).

    Lambda also weights the bootstrap of the advantage, as in rlax: on-policy, the advantage is that of GAE(lambda).

        delta_t     = min(rho_bar, ratio_t) * (r_t + discount_t * V(o_{t+1}) - V(o_t))
        v_t         = V(o_t) + delta_t + discount_t * trace_t * min(c_bar, ratio_t) * (v_{t+1} - V(o_{t+1}))
        q_t         = r_t + discount_t * (V(o_{t+1}) + trace_t * (v_{t+1} - V(o_{t+1})))
        advantage_t = min(rho_bar_pg, ratio_t) * (q_t - V(o_t)),    v_T = V(o_T)

    At a reset row, and at padding, v_t is V(o_t): the row holds the final observation, from which the row before
    bootstraps, and no later row belongs to its episode. If all ratios are 1 and no bound is below 1, v_t is the
    lambda-return and the advantage equals `gae`.

    Args:
        log_ratio:  [T, B]    log pi(a_t|o_t) - log mu(a_t|o_t): the evaluated policy, and the behaviour policy.
        reward:     [T, B]    as for `gae`.
        value:      [T+1, B]  V(o_t), the last row included: it is the bootstrap.
        discount:   [T, B]    gamma, or 0 where the episode terminated.
        trace:      [T, B]    lambda, or 0 where the episode ended in either way.
        valid:      [T, B]    bool, rows whose action was executed; the values of other rows do not matter.
        rho_bar:    bound of the ratio in delta: with it, v is the value of a policy between mu and pi.
        c_bar:      bound of the ratio along the trace: it moves variance, not the fixed point. At most rho_bar.
        rho_bar_pg: bound of the ratio in the advantage.

    Returns:
        targets and advantages; at rows that are not valid V(o_t) and 0.

    Raises:
        ValueError: if `value` is not exactly one row longer than `reward`.
    """
    _check("vtrace", reward, value, discount, trace)
    now, after = value[:-1], value[1:]
    ratio = log_ratio.masked_fill(~valid, 0.0).exp()  # [T, B]
    error = (reward + discount * after - now).masked_fill(~valid, 0.0)
    decay = (discount * trace * ratio.clamp(max=c_bar)).masked_fill(~valid, 0.0)
    excess = _backwards(ratio.clamp(max=rho_bar) * error, decay)  # v - V
    follow = discount * trace * torch.cat([excess[1:], torch.zeros_like(excess[:1])])  # added to V(o_{t+1})
    advantage = ratio.clamp(max=rho_bar_pg) * (error + follow).masked_fill(~valid, 0.0)
    return VTrace(now + excess, advantage)


def project(probs: Tensor, support: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
    """The distribution of reward + discount * Z on the atoms of Z: C51, Bellemare et al. 2017, algorithm 1.

    Probability between two atoms is split between them by distance; beyond the outermost atoms it goes to these. All
    probability of a value exactly on an atom goes to that atom.

    Args:
        probs:    [B, atoms]  of Z at the next observation.
        support:  [atoms]     evenly spaced, ascending, at least 2.
        reward:   [B]
        discount: [B]         gamma^m, or 0 after a termination: then all of it goes to the atoms around reward.

    Returns:
        [B, atoms] probabilities, with the same sum as `probs`.
    """
    last = support.shape[0] - 1
    low, high = support[0], support[-1]
    value = reward.unsqueeze(-1) + discount.unsqueeze(-1) * support  # [B, atoms]
    place = ((value - low) * (last / (high - low))).clamp(0, last)
    below = place.long().clamp(max=last - 1)  # so that `below + 1` is an atom too
    above = place - below  # share of the upper one, 1 at the last atom
    result = torch.zeros_like(probs)
    result.scatter_add_(-1, below, probs * (1 - above))
    return result.scatter_add_(-1, below + 1, probs * above)


def _backwards(step: Tensor, decay: Tensor) -> Tensor:
    """x_t = step_t + decay_t * x_{t+1}, with x_T = 0, for step and decay [T, B].

    In numpy: for rows this short a torch operation costs three times as much, and on an accelerator
    T launches cost more than the copy.
    """
    rows = step.detach().cpu().numpy().copy()
    factors = decay.detach().cpu().numpy()
    for t in range(len(rows) - 2, -1, -1):
        rows[t] += factors[t] * rows[t + 1]
    return torch.from_numpy(rows).to(step.device)


def _check(name: str, reward: Tensor, value: Tensor, discount: Tensor, trace: Tensor) -> None:
    if value.shape != (reward.shape[0] + 1, *reward.shape[1:]):
        raise ValueError(
            f"{name} needs value of shape [T+1, B] for reward [T, B]; "
            f"got value {tuple(value.shape)} and reward {tuple(reward.shape)}"
        )
    if discount.shape != reward.shape or trace.shape != reward.shape:
        raise ValueError(
            f"{name} needs discount and trace shaped like reward {tuple(reward.shape)}; "
            f"got {tuple(discount.shape)} and {tuple(trace.shape)}"
        )
