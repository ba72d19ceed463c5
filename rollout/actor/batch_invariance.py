"""Whether a policy's rows have the same bits in every batch, and what to do where they have not.

A matrix product takes another path through the processor for narrow batches. From WIDTH rows on, in multiples of it,
the paths agree for the networks we ship; a user's network is tested, and cut into blocks of WIDTH rows if it fails. In
layers of fewer than about ten units the last rows of a batch can take a path of their own: then each stream is computed
as the first of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.actor.noise import DRAWS
from rltrain.rollout.buffers import WIDTH, empty_rows, padded
from rltrain.rollout.tree import leaves, tree_map, unflatten
from rltrain.rollout.types import hooks_of


def rows_agree(policy: Any, spec: EnvSpec, streams: int, seed: int = 0) -> bool:
    """Whether `act` gives each row the same bits at width WIDTH and at the width of all streams together.

    A policy's `score` (see `rltrain.rollout.types.PolicyHooks`) is compared too.
    """
    score = hooks_of(policy).score
    obs, core, mask, noise = _inputs(policy, spec, streams, seed)
    width = len(noise)
    pairs: list[tuple[Any, Any]] = []
    with torch.inference_mode():
        for explore in (True, False):
            together = policy.act(obs, core, mask, noise, explore)
            parts = _in_blocks(policy, obs, core, mask, noise, explore)
            pairs += _pairs(together, parts)
            pairs += _few_rows(policy, together, obs, core, mask, noise, explore)
            if score is not None:
                pairs.append((score(obs, explore), _scores(score, obs, explore, width)))
    return all(a is None or torch.equal(a, b) for a, b in pairs)


def rows_move(policy: Any, spec: EnvSpec, streams: int, seed: int = 0) -> bool:
    """Whether `act` gives a row the same bits wherever in a block of WIDTH rows it stands.

    With `rows_agree` it then has the same bits wherever among the rows of all streams it stands.
    """
    inputs = _inputs(policy, spec, min(streams, WIDTH), seed)
    moved = [None if x is None else tree_map(lambda a: a.roll(1, 0), x) for x in inputs]
    pairs: list[tuple[Any, Any]] = []
    score = hooks_of(policy).score
    with torch.inference_mode():
        for explore in (True, False):
            here, there = policy.act(*inputs, explore), policy.act(*moved, explore)
            pairs += [(a, None if b is None else b.roll(-1, 0)) for a, b in _pairs(here, there)]
            if score is not None:
                pairs.append((score(inputs[0], explore), score(moved[0], explore).roll(-1, 0)))
    return all(a is None or torch.equal(a, b) for a, b in pairs)


def _pairs(one: Any, other: Any) -> list[tuple[Any, Any]]:
    """What two calls of `act` said, side by side."""
    extras = [(one.extras[name], other.extras[name]) for name in one.extras]
    return [(one.action, other.action), (one.core, other.core), *extras]


def _inputs(policy: Any, spec: EnvSpec, streams: int, seed: int) -> tuple[Any, ...]:
    """Observations, core, mask and noise of as many rows as `streams` are padded to."""
    width = padded(streams)
    rng = np.random.default_rng(seed)
    filled = []
    for leaf, array in zip(spec.leaves(), leaves(empty_rows(spec, 1, streams).obs), strict=True):
        high = np.array(leaf.nvec or leaf.high + 1).reshape(leaf.shape if leaf.kind == "multi_discrete" else ())
        whole = leaf.dtype in ("uint8", "int64")
        values = rng.integers(0, high, array[0].shape) if whole else rng.standard_normal(array[0].shape)
        filled.append(torch.from_numpy(values.astype(leaf.dtype)))
    obs = unflatten(spec.obs, filled)
    core = torch.from_numpy(rng.standard_normal((width, policy.core_size), np.float32)) if policy.core_size else None
    mask = torch.ones(width, spec.action.mask_size, dtype=torch.bool) if spec.action_mask else None
    drawn = DRAWS[policy.noise.kind](rng, (width, policy.noise.columns))
    noise = torch.from_numpy(np.asarray(drawn, np.float32))
    if policy.noise.stream:
        noise[:, -1] = torch.arange(width) % streams
    return obs, core, mask, noise


def _few_rows(policy: Any, together: Any, *rest: Any) -> list[tuple[Any, Any]]:
    """Results of `act` with few active rows, and of the same rows among all others, in pairs."""
    pairs = []
    obs, explore, hooks = rest[0], rest[-1], hooks_of(policy)
    for rows in (1, 5):
        hooks.set_active_rows(rows)
        few = _block(policy, slice(0, WIDTH), *rest)
        scores = hooks.score and hooks.score(tree_map(lambda leaf: leaf[:WIDTH], obs), explore)[:rows]
        hooks.set_active_rows(None)
        if hooks.score is not None:
            pairs += [(hooks.score(obs, explore)[:rows], scores)]
        pairs += [(together.action[:rows], few.action[:rows])]
        pairs += [(together.extras[name][:rows], few.extras[name][:rows]) for name in together.extras]
        pairs += [] if few.core is None else [(together.core[:rows], few.core[:rows])]
    return pairs


class InBlocks:
    """A policy that acts on WIDTH rows at a time, for networks whose rows depend on the width of the batch.

    Args:
        alone: on one row at a time, as the first of such a block: for networks whose rows depend on where they stand.
    """

    def __init__(self, policy: Any, alone: bool = False) -> None:
        self._policy, self._alone = policy, alone
        self.score = None if hooks_of(policy).score is None else self._score

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def set_active_rows(self, rows: int | None) -> None:
        """No effect: a row's result depends on the rows next to it, so all are computed."""

    def act(self, obs: Any, core: Any, action_mask: Any, noise: Any, explore: bool) -> Any:
        return _in_blocks(self._policy, obs, core, action_mask, noise, explore, self._alone)

    def _score(self, obs: Any, explore: bool) -> Any:
        return _scores(self._policy.score, obs, explore, len(leaves(obs)[0]), self._alone)


def _blocks(width: int, alone: bool) -> list[Any]:
    """Which rows are computed together: WIDTH of them, or one and its copies, of which the first counts."""
    if alone:
        return [torch.full((WIDTH,), row) for row in range(width)]
    return [slice(begin, begin + WIDTH) for begin in range(0, width, WIDTH)]


def _scores(score: Callable[[Any, bool], Any], obs: Any, explore: bool, width: int, alone: bool = False) -> Any:
    counts = 1 if alone else WIDTH
    blocks = _blocks(width, alone)
    each = [score(tree_map(lambda leaf, rows=rows: leaf[rows], obs), explore) for rows in blocks]
    return torch.cat([rows[:counts] for rows in each])


def _block(policy: Any, rows: Any, obs: Any, core: Any, mask: Any, noise: Any, explore: bool) -> Any:
    return policy.act(
        tree_map(lambda leaf: leaf[rows], obs),
        None if core is None else core[rows],
        None if mask is None else mask[rows],
        noise[rows],
        explore,
    )


def _in_blocks(policy: Any, obs: Any, core: Any, mask: Any, noise: Any, explore: bool, alone: bool = False) -> Any:
    acts = [_block(policy, rows, obs, core, mask, noise, explore) for rows in _blocks(len(noise), alone)]
    counts = 1 if alone else WIDTH
    kind = type(acts[0])
    return kind(
        torch.cat([act.action[:counts] for act in acts]),
        {name: torch.cat([act.extras[name][:counts] for act in acts]) for name in acts[0].extras},
        None if acts[0].core is None else torch.cat([act.core[:counts] for act in acts]),
    )
