"""Agents that act in turns: selects each agent's own turns, and sums rewards from one turn to the next.

The reward of a turn is the sum of the agent's rewards up to its next turn; its bootstrap is the value at the
next turn. Rows in which others act are left out, so that the discount applies once per turn of the agent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rltrain.rollout.trajectories import map_axes
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory


def own_turns(unrolls: Trajectory, acting: Tensor, agents: int) -> Trajectory:
    """Unrolls [T, B] with one agent per column, as [K, B] of its turns; K is the largest number of turns in a column.

    The row after the last turn of an episode holds the agent's last observation, like a reset row. The last turn of an
    unroll only serves as a bootstrap, because its reward is not complete. So do all turns in the last `agents - 1`
    rows: if those were kept whose episode happens to end there, ends would be too frequent in the data.

    Args:
        unrolls: rows without the agent are reset rows.
        acting:  [T+1, B] bool, where the agent acts.
        agents:  number of agents that take turns: an agent acts again after at most this many rows.
    """
    rows, device = unrolls.rows, acting.device
    made = torch.full_like(unrolls.row, rows) if unrolls.num_rows is None else unrolls.num_rows  # [B]
    time = torch.arange(rows + 1, device=device).unsqueeze(-1)  # [T+1, 1]
    turn = acting[:-1] & unrolls.valid  # [T, B]
    end = (unrolls.terminated | unrolls.truncated) & unrolls.valid & (turn.cumsum(0) > 0)  # [T, B]
    kept = acting & (time == made)  # [T+1, B] rows of the result: the row after the unroll if it is a turn,
    kept[:-1] |= turn  # turns,
    kept[1:] |= end  # and last observations
    count = kept.sum(0)  # [B]
    length = max(int(count.max()) - 1, 1)  # K
    exists = torch.arange(length + 1, device=device).unsqueeze(-1) < count  # [K+1, B]
    order = torch.sort(kept.logical_not().to(torch.uint8), dim=0, stable=True).indices  # kept rows first
    at = order[: length + 1].where(exists, made)  # [K+1, B] the row of the unroll for each row of the result
    last = (at[1:] - 1).clamp(min=0)  # [K, B] the last row before the next turn

    def now(x: Tensor) -> Tensor:  # [T, B, ...] to [K, B, ...]
        return _at_rows(x, at[:-1].clamp(max=rows - 1))

    learnt = now(turn) & (at[:-1] <= made - agents) & exists[1:]  # [K, B]
    rewards = torch.cat([torch.zeros_like(unrolls.reward[:1]), unrolls.reward.masked_fill(~unrolls.valid, 0.0)])
    sums = rewards.double().cumsum(0)  # [T+1, B] before each row
    begun = unrolls.first.cumsum(0) > 0  # [T+1, B] at or before each row
    ends = now(turn) & exists[1:] & _at_rows(end, last)  # [K, B]
    reward = (_at_rows(sums, at[1:]) - _at_rows(sums, at[:-1])).to(unrolls.reward.dtype)
    extras = {name: x for name, x in unrolls.extras.items() if name != "value"}  # the last row has no value
    return map_axes(
        {"T+1": lambda x: _at_rows(x, at), "T": now, "T/L": lambda x: x, "B": lambda x: x},
        unrolls,
        reward=reward.masked_fill(~learnt, 0.0),
        terminated=ends & _at_rows(unrolls.terminated, last),
        truncated=ends & _at_rows(unrolls.truncated, last),
        first=torch.cat([_at_rows(begun, at[:1]) | ~exists[:1], ~learnt]),
        extras=tree_map(now, extras),
        num_rows=made,
    )


def agent_targets(batch: Trajectory, value: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """One-step targets of each agent: its reward plus gamma times the value of its next observation.

    If agents act in turns: rewards up to the agent's next turn, summed, plus gamma times the value of that turn,
    which has to be in the same sequence.

    Args:
        batch: [T, B] of several agents.
        value: [T, B, N] of the observation after each row, 0 for agents that terminated.

    Returns:
        Targets [T, B, N], and whether each is known: the next turn of an agent may be after the last row.
    """
    assert batch.alive is not None
    if batch.acting is None:
        return batch.reward + gamma * value, torch.ones_like(batch.terminated)
    alive, valid = batch.alive[1:], batch.valid
    stops = batch.terminated | ~alive & ~batch.truncated  # no bootstrap
    turn = ~stops & (batch.acting[1:] | ~alive)  # bootstrap here: the agent acts next, or it was truncated
    target, known = torch.zeros_like(value[0]), torch.zeros_like(turn[0])
    targets, all_known = [], []
    for t in reversed(range(batch.rows)):
        target = batch.reward[t] + torch.where(turn[t], gamma * value[t], target.masked_fill(stops[t], 0.0))
        known = turn[t] | stops[t] | known
        targets.append(target)
        all_known.append(known)
        known = known & valid[t].unsqueeze(-1)
    return torch.stack(targets[::-1]), torch.stack(all_known[::-1])


def bootstrap_weights(batch: Trajectory) -> Tensor:
    """[T, B, N] weights of the agents' values in the bootstrap: one-hot of the next agent to act.

    After an episode whose last agents were truncated: uniform over these agents. If all agents act at once: ones.
    """
    assert batch.alive is not None
    if batch.acting is None:
        return torch.ones_like(batch.reward)
    alive, dtype = batch.alive[1:], batch.reward.dtype
    acts = (batch.acting[1:] & alive).to(dtype)
    late = (batch.truncated & ~batch.terminated & ~alive).to(dtype)
    mean = late / late.sum(-1, keepdim=True).clamp(min=1.0)
    return torch.where(alive.any(-1, keepdim=True), acts, mean)


def _at_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [T, B, ...] at `rows` [K, B] of each column."""
    shape = (*rows.shape, *x.shape[2:])
    return x.gather(0, rows.reshape(*rows.shape, *(1,) * (x.ndim - 2)).expand(shape))
