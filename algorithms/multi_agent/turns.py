"""Agents that act in turns: an agent's own turns, one after the other, and what lies between them.

What an agent earns from one of its turns to its next is the reward of the first, and what it sees at its next turn is
what that one bootstraps from; rows in which others act are gone, so that the discount is one per turn of its own.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory


def own_turns(unrolls: Trajectory, acting: Tensor, agents: int) -> Trajectory:
    """Unrolls [T, B] of an agent each as [K, B] of its turns: K is as many as the longest column needs.

    The row after a life's last turn has its last observation, as a reset row does. The last turn of an unroll is seen
    and bootstrapped from, and not learnt from: what came of it is not known yet. So are all turns of the last
    `agents - 1` rows. Were those kept whose episode happens to end there, ends would be seen too often.

    Args:
        unrolls: as `Seat.alone` makes them: rows without the agent are reset rows.
        acting:  [T+1, B] bool, where it acts.
        agents:  who take turns, that is after how many rows the next is due.
    """
    rows, device = unrolls.rows, acting.device
    made = torch.full_like(unrolls.row, rows) if unrolls.num_rows is None else unrolls.num_rows  # [B]
    time = torch.arange(rows + 1, device=device).unsqueeze(-1)  # [T+1, 1]
    turn = acting[:-1] & unrolls.valid  # [T, B]
    over = (unrolls.terminated | unrolls.truncated) & unrolls.valid & (turn.cumsum(0) > 0)  # [T, B]
    kept = acting & (time == made)  # [T+1, B] the rows that stay: what follows the unroll, if it is a turn,
    kept[:-1] |= turn  # turns,
    kept[1:] |= over  # and what was seen last
    count = kept.sum(0)  # [B]
    length = max(int(count.max()) - 1, 1)  # K
    place = torch.arange(length + 1, device=device).unsqueeze(-1)  # [K+1, 1]
    there = place < count  # [K+1, B]
    order = torch.sort(kept.logical_not().to(torch.uint8), dim=0, stable=True).indices  # those that stay come first
    at = order[: length + 1].where(there, made)  # [K+1, B] the row of the unroll that each is
    last = (at[1:] - 1).clamp(min=0)  # [K, B] the last row that counts for each turn

    def now(x: Tensor) -> Tensor:  # [T, B, ...] to [K, B, ...]
        index = at[:-1].clamp(max=rows - 1)
        return _pick(x, index)

    learnt = now(turn) & (at[:-1] <= made - agents) & there[1:]  # [K, B]
    earned = torch.cat([torch.zeros_like(unrolls.reward[:1]), unrolls.reward.masked_fill(~unrolls.valid, 0.0)])
    sums = earned.double().cumsum(0)  # [T+1, B] before each row
    begun = unrolls.first.cumsum(0) > 0  # [T+1, B] at or before each row
    ends = now(turn) & there[1:] & _pick(over, last)  # [K, B]
    return replace(
        unrolls,
        obs=tree_map(lambda x: _pick(x, at), unrolls.obs),
        action=now(unrolls.action),
        reward=(_pick(sums, at[1:]) - _pick(sums, at[:-1])).to(unrolls.reward.dtype).masked_fill(~learnt, 0.0),
        terminated=ends & _pick(unrolls.terminated, last),
        truncated=ends & _pick(unrolls.truncated, last),
        first=torch.cat([_pick(begun, at[:1]) | ~there[:1], ~learnt]),
        extras={name: now(x) for name, x in unrolls.extras.items() if name != "value"},  # the last row's is not told
        action_mask=None if unrolls.action_mask is None else _pick(unrolls.action_mask, at),
        num_rows=made,
    )


def up_to_next_turn(batch: Trajectory, value: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """What each row [T, B] was worth to each agent up to its next turn, and from there on by `value`.

    Rewards up to there are added up, and what follows is discounted once.

    Args:
        batch: of several agents that act in turns.
        value: [T, B, N] of the observation after each row, 0 for those that died.

    Returns:
        [T, B, N] the worth of each row, and whether it is known: an agent's next turn may lie behind the last row.
    """
    assert batch.alive is not None
    assert batch.acting is not None
    there, valid = batch.alive[1:], batch.valid
    stops = batch.terminated | ~there & ~batch.truncated  # nothing follows
    turn = ~stops & (batch.acting[1:] | ~there)  # its value follows: it acts, or its clock ran out
    worth, known = torch.zeros_like(value[0]), torch.zeros_like(turn[0])
    worths, knowns = [], []
    for t in reversed(range(batch.rows)):
        worth = batch.reward[t] + torch.where(turn[t], gamma * value[t], worth.masked_fill(stops[t], 0.0))
        known = turn[t] | stops[t] | known
        worths.append(worth)
        knowns.append(known)
        known = known & valid[t].unsqueeze(-1)
    return torch.stack(worths[::-1]), torch.stack(knowns[::-1])


def whose_value(batch: Trajectory) -> Tensor:
    """[T, B, N] whose value is the team's after each row: of who acts next, or their mean whose clocks ran out last."""
    assert batch.alive is not None
    assert batch.acting is not None
    acts = (batch.acting[1:] & batch.alive[1:]).to(batch.reward.dtype)
    late = (batch.truncated & ~batch.terminated & ~batch.alive[1:]).to(batch.reward.dtype)
    mean = late / late.sum(-1, keepdim=True).clamp(min=1.0)
    return torch.where(batch.alive[1:].any(-1, keepdim=True), acts, mean)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """x [T, B, ...] at rows [K, B], each column's own."""
    shape = (*index.shape, *x.shape[2:])
    return x.gather(0, index.reshape(*index.shape, *(1,) * (x.ndim - 2)).expand(shape))
