"""Running statistics as module buffers, so that they travel with weights and checkpoints.

The learner updates them once per delivery, in the order of streams; actors only read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree, leaves, unflatten

EPSILON = 1e-8  # added to a variance
LIMIT = 10.0  # observations are clipped to this many standard deviations


class Normalizer(nn.Module):
    """Box leaves of an observation to mean 0 and deviation 1; the other leaves pass.

    Until the first update observations pass as they are, clipped.
    """

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.leaves = spec.leaves()
        self.boxes = [i for i, leaf in enumerate(self.leaves) if leaf.kind == "box"]
        self.single = spec.obs == self.leaves[0]
        for i in self.boxes:
            shape = self.leaves[i].shape
            self.register_buffer(f"count{i}", torch.zeros((), dtype=torch.float64))
            self.register_buffer(f"mean{i}", torch.zeros(shape, dtype=torch.float64))
            self.register_buffer(f"m2_{i}", torch.zeros(shape, dtype=torch.float64))  # sum of squared deviations
            self.register_buffer(f"shift{i}", torch.zeros(shape))
            self.register_buffer(f"scale{i}", torch.ones(shape))

    def forward(self, obs: Tree) -> Tree:
        """tree of [..., *O] to the same tree, new where it differs"""
        if self.single:
            return self._normal(0, obs) if self.boxes else obs
        flat = leaves(obs)
        return unflatten(obs, [self._normal(i, x) if i in self.boxes else x for i, x in enumerate(flat)])

    def _normal(self, i: int, x: Tensor) -> Tensor:
        buffers = self._buffers
        shift, scale = buffers[f"shift{i}"], buffers[f"scale{i}"]
        assert shift is not None
        assert scale is not None
        return ((x - shift) * scale).clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def update(self, obs: Tree, valid: Tensor) -> None:
        """Take in observations: a tree of [..., *O], of which the rows where `valid` [...] is True count."""
        keep = valid.reshape(-1)
        flat = leaves(obs)
        for i in self.boxes:
            shape = self.leaves[i].shape
            rows = flat[i].reshape(-1, *shape)[keep].double()  # [N, *O]
            count, mean, m2 = self._get(f"count{i}"), self._get(f"mean{i}"), self._get(f"m2_{i}")
            _merge(count, mean, m2, rows)
            if count > 0:
                self._get(f"shift{i}").copy_(mean)
                self._get(f"scale{i}").copy_((m2 / count + EPSILON).rsqrt())

    def _get(self, name: str) -> Tensor:
        return self.get_buffer(name)


class ReturnScale(nn.Module):
    """What to multiply rewards with so that discounted returns have deviation 1. For training only.

    Args:
        streams: their total; each has an accumulator of its own.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    running: Tensor  # [streams] discounted return of the episode so far
    follows: Tensor  # [streams] int64, the stream's own count of rows where it goes on; -1: not known

    def __init__(self, streams: int) -> None:
        super().__init__()
        for name in ("count", "mean", "m2"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self.register_buffer("running", torch.zeros(streams, dtype=torch.float64))
        self.register_buffer("follows", torch.full((streams,), -1))

    @torch.no_grad()
    def update(
        self,
        reward: Tensor,
        ended: Tensor,
        valid: Tensor,
        stream: Tensor,
        gamma: float,
        begins: Tensor | None = None,
        went: tuple[Tensor, Tensor | int] | None = None,
    ) -> None:
        """Take in T steps of B streams.

        Args:
            reward: [T, B]  as the environment gave it.
            ended:  [T, B]  bool, terminated or truncated.
            valid:  [T, B]  bool, not a reset row, and not one that an unroll was stretched by.
            stream: [B]     int64, the streams these columns are, each once.
            gamma:  discount per step.
            begins: [B]     bool, streams that begin an episode at row 0 (`first[0]`), broken ones included.
            went:   [B] each, int64: the streams' own counts of rows at row 0, and how many of the T rows they made.
                    Where some were missed (their unroll was too old) the sum of the episode so far is not known: it
                    begins at 0.
        """
        carry = self.running[stream]  # [B]
        if begins is not None:
            carry = carry.masked_fill(begins, 0.0)
        if went is not None:
            row, made = went
            follows = self.follows[stream]  # [B]
            carry = carry.masked_fill((follows >= 0) & (follows != row), 0.0)
            self.follows[stream] = row + made
        returns = reward.double().masked_fill(~valid, 0.0)  # [T, B]
        decay = valid.double().mul_(gamma).add_((~valid).double())  # [T, B] rows that do not count change nothing
        decay[1:].masked_fill_(ended[:-1], 0.0)
        returns[0] += decay[0] * carry
        rows, decays = returns.cpu().numpy(), decay.cpu().numpy()  # as in returns.py; on the CPU a view
        for t in range(1, len(rows)):
            rows[t] += decays[t] * rows[t - 1]
        returns = torch.from_numpy(rows).to(self.m2.device)
        self.running[stream] = returns[-1].masked_fill(ended[-1], 0.0)
        _merge(self.count, self.mean, self.m2, returns[valid])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Checkpoints of before rows were counted: each stream is taken to go on where it stood."""
        state_dict.setdefault(f"{prefix}follows", torch.full_like(self.follows, -1))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def scale(self) -> Tensor:
        """[] float32, to multiply rewards with; 1 until there is a spread to speak of."""
        if self.count < 2 or self.m2 == 0:
            return torch.ones((), device=self.m2.device)
        return (self.m2 / self.count + EPSILON).rsqrt().float()


def _merge(count: Tensor, mean: Tensor, m2: Tensor, rows: Tensor) -> None:
    """Merge rows [N, ...] into running statistics, in place: Chan, Golub and LeVeque 1979."""
    n = rows.shape[0]
    if n == 0:
        return
    rows_mean = rows.mean(0)
    delta = rows_mean - mean
    total = count + n
    m2 += (rows - rows_mean).square().sum(0) + delta.square() * (count * n / total)
    mean += delta * (n / total)
    count.copy_(total)
