"""Batch invariance: does a policy give a row the same bits in every batch? If not, it is applied to blocks of rows.

A matrix product takes another path through the processor for narrow batches. From WIDTH rows on, in multiples of it,
the paths agree for the networks of this library. A user's network is tested, and applied to blocks of WIDTH rows if it
fails. A product with few columns may also depend on the position of a row in the batch, for example on AMD's
processors (see `rltrain.algorithms.networks.products.aligned`); then each row is computed as the first one of a block.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.actor.noise import DRAWS
from rltrain.rollout.buffers import WIDTH, padded, policy_inputs
from rltrain.rollout.tree import Tree, leaves, tree_map
from rltrain.rollout.types import Act, Policy, hooks_of

Inputs = tuple[Tree, Tensor | None, Tensor | None, Tensor]  # the arguments of `act`: obs, core, action mask, noise
Pair = tuple[Tensor | None, Tensor | None]  # two results that must be equal


def is_width_invariant(policy: Policy, spec: EnvSpec, streams: int, seed: int = 0) -> bool:
    """True if `act` gives each row the same bits at width WIDTH and at the width of all streams together.

    The policy's `score` (see `rltrain.rollout.types.PolicyHooks`) is compared too, and `act` with few active rows.
    """
    inputs, hooks = _random_inputs(policy, spec, streams, seed), hooks_of(policy)
    blockwise, first_block = Blockwise(policy), _each(operator.itemgetter(slice(0, WIDTH)), inputs)
    pairs: list[Pair] = []
    with torch.inference_mode():
        for explore in (True, False):
            act = policy.act(*inputs, explore)
            pairs += _pairs(act, blockwise.act(*inputs, explore))
            score = None if hooks.score is None else hooks.score(inputs[0], explore)
            if blockwise.score is not None:
                pairs.append((score, blockwise.score(inputs[0], explore)))
            for rows in (1, 5):
                hooks.set_active_rows(rows)
                pairs += [_heads(pair, rows) for pair in _pairs(act, policy.act(*first_block, explore))]
                if hooks.score is not None:
                    pairs.append(_heads((score, hooks.score(first_block[0], explore)), rows))
                hooks.set_active_rows(None)
    return _equal(pairs)


def is_position_invariant(policy: Policy, spec: EnvSpec, streams: int, seed: int = 0) -> bool:
    """True if `act` gives a row the same bits at every position in a block of WIDTH rows.

    With `is_width_invariant` it then has the same bits at every position among the rows of all streams.
    """
    inputs, score = _random_inputs(policy, spec, min(streams, WIDTH), seed), hooks_of(policy).score
    moved = _each(lambda x: x.roll(1, 0), inputs)
    pairs: list[Pair] = []
    with torch.inference_mode():
        for explore in (True, False):
            pairs += [
                (one, None if other is None else other.roll(-1, 0))
                for one, other in _pairs(policy.act(*inputs, explore), policy.act(*moved, explore))
            ]
            if score is not None:
                pairs.append((score(inputs[0], explore), score(moved[0], explore).roll(-1, 0)))
    return _equal(pairs)


class Blockwise:
    """A policy that is applied to WIDTH rows at a time, for networks whose rows depend on the width of the batch.

    Args:
        single_rows: apply it to one row at a time, as the first of a block of copies: for networks whose rows depend on
                     their position too.
    """

    def __init__(self, policy: Policy, single_rows: bool = False) -> None:
        self._policy, self._single_rows = policy, single_rows
        self._inner_score = hooks_of(policy).score
        self.score = None if self._inner_score is None else self._score
        self._find = hooks_of(policy).action_distribution
        self.action_distribution = None if self._find is None else self._distribution
        self._inner_value = hooks_of(policy).state_value
        self.state_value = None if self._inner_value is None else self._value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def set_active_rows(self, rows: int | None) -> None:
        """No effect: a row's result depends on the rows next to it, so all are computed."""

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        inputs, blocks, count = (obs, core, action_mask, noise), self._blocks(len(noise)), self._count
        acts: list[Act] = [self._policy.act(*_each(operator.itemgetter(rows), inputs), explore) for rows in blocks]
        return Act(
            torch.cat([act.action[:count] for act in acts]),
            {name: torch.cat([act.extras[name][:count] for act in acts]) for name in acts[0].extras},
            None if acts[0].core is None else torch.cat([act.core[:count] for act in acts if act.core is not None]),
        )

    def _distribution(
        self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor
    ) -> _BlocksDistribution | None:
        assert self._find is not None
        inputs, blocks = (obs, core, action_mask, noise), self._blocks(len(noise))
        parts = [self._find(*_each(operator.itemgetter(rows), inputs)) for rows in blocks]
        return None if parts[0] is None else _BlocksDistribution(parts, blocks, self._count)

    def _value(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor) -> Tensor:
        assert self._inner_value is not None
        inputs, blocks = (obs, core, action_mask, noise), self._blocks(len(noise))
        values = [self._inner_value(*_each(operator.itemgetter(rows), inputs)) for rows in blocks]
        return torch.cat([value[: self._count] for value in values])

    def _score(self, obs: Tree, explore: bool) -> Tensor:
        assert self._inner_score is not None
        blocks = self._blocks(len(leaves(obs)[0]))
        scores = [self._inner_score(tree_map(operator.itemgetter(rows), obs), explore) for rows in blocks]
        return torch.cat([score[: self._count] for score in scores])

    @property
    def _count(self) -> int:
        """Rows of each block that are used."""
        return 1 if self._single_rows else WIDTH

    def _blocks(self, width: int) -> list[Any]:
        """The index of each block: WIDTH rows, or WIDTH copies of one row."""
        if self._single_rows:
            return [torch.full((WIDTH,), row) for row in range(width)]
        return [slice(begin, begin + WIDTH) for begin in range(0, width, WIDTH)]


class _BlocksDistribution:
    """The distributions of blocks of rows as one."""

    def __init__(self, parts: list[Any], blocks: list[Any], count: int) -> None:
        self._parts, self._blocks, self._count = parts, blocks, count

    def log_prob(self, action: Tensor) -> Tensor:
        pairs = zip(self._parts, self._blocks, strict=True)
        return torch.cat([part.log_prob(action[rows])[: self._count] for part, rows in pairs])


def _random_inputs(policy: Policy, spec: EnvSpec, streams: int, seed: int) -> Inputs:
    """Random inputs of `act`, of as many rows as `streams` are padded to."""
    width, rng = padded(streams), np.random.default_rng(seed)
    obs, core, mask, noise = policy_inputs(spec, policy.noise, policy.core_size, width)
    for leaf, rows in zip(spec.leaves(), leaves(obs), strict=True):
        high = np.array(leaf.nvec or leaf.high + 1).reshape(leaf.shape if leaf.kind == "multi_discrete" else ())
        integer = leaf.dtype in ("uint8", "int64")
        values = rng.integers(0, high, rows.shape) if integer else rng.standard_normal(rows.shape)
        rows.copy_(torch.from_numpy(values.astype(leaf.dtype)))
    if core is not None:
        core.copy_(torch.from_numpy(rng.standard_normal(core.shape, np.float32)))
    noise.copy_(torch.from_numpy(np.asarray(DRAWS[policy.noise.kind](rng, (width, policy.noise.columns)), np.float32)))
    if policy.noise.stream:
        noise[:, -1] = torch.arange(width) % streams
    return obs, core, mask, noise


def _each(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """`function` applied to all arrays of the inputs."""
    obs, core, mask, noise = inputs
    some = None if core is None else function(core), None if mask is None else function(mask)
    return tree_map(function, obs), *some, function(noise)


def _pairs(one: Act, other: Act) -> list[Pair]:
    """The results of two calls of `act`, side by side."""
    extras: list[Pair] = [(one.extras[name], other.extras[name]) for name in one.extras]
    return [(one.action, other.action), (one.core, other.core), *extras]


def _heads(pair: Pair, rows: int) -> Pair:
    """The first rows of both."""
    one, other = pair
    return None if one is None else one[:rows], None if other is None else other[:rows]


def _equal(pairs: list[Pair]) -> bool:
    return all(one is None or other is None or torch.equal(one, other) for one, other in pairs)
