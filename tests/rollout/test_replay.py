"""The replay against an oracle that keeps everything and lists what may be sampled, after every append."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from oracles.replay import SPECS, Expected, World, name_of

import rollout.ring
from rollout.replay import ROW_BITS, ROW_MASK, Replay
from rollout.tree import leaves, tree_map
from rollout.types import Transition

GAMMA = 0.9


@dataclass(frozen=True)
class Plan:
    capacity: int
    batch: int = 1500
    gamma: float = GAMMA
    n_step: int = 1
    length: int = 1
    alpha: float = 0.0
    beta: float = 0.4
    priority_eps: float = 1e-6


def happen(world: World, expected: Expected, replay: Replay, rng: np.random.Generator) -> None:
    """One delivery: some streams, some rows; now and then an actor died or an unroll was lost before."""
    streams = len(world.streams)
    columns = sorted(rng.choice(streams, rng.integers(1, streams + 1), replace=False).tolist())
    for stream in columns:
        luck = rng.random()
        if luck < 0.1:
            world.kill(stream)
        elif luck < 0.15:
            world.lose(stream, int(rng.integers(1, 5)))
    unroll = world.unroll(columns, int(rng.integers(1, 9)))
    given = [np.copy(leaf) for leaf in leaves(unroll.obs)]
    replay.append(unroll)
    expected.append(unroll)
    for leaf, before in zip(leaves(unroll.obs), given, strict=True):
        np.testing.assert_array_equal(leaf, before)
        leaf[:] = 77  # actors reuse their arrays


def same(actual: Any, expected: Any) -> None:
    """Trees of arrays, one sample each."""
    for one, other in zip(leaves(actual), leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def check(replay: Replay, expected: Expected, keep: int, n_step: int) -> None:
    """What is sampled is exactly what may be, and each sample is what the oracle makes of it."""
    legal = expected.rows(keep, n_step)
    assert len(replay) == len(legal)
    if not legal:
        with pytest.raises(ValueError, match="nothing can be sampled"):
            replay.sample(0.0)
        return
    named = {name_of(episode.obs[t]): at for at, (episode, t) in legal.items()}
    batch = replay.sample(0.5)
    assert isinstance(batch, Transition)
    seen = {}
    for b in range(replay.plan.batch):
        seen.setdefault(name_of(tree_map(lambda leaf, b=b: leaf[b], batch.obs)), b)
    assert set(seen) == set(named)
    for name, b in seen.items():
        stream, row = named[name]
        if batch.index is not None:
            assert (batch.index[b] >> ROW_BITS, batch.index[b] & ROW_MASK) == (stream, row)
        wanted = Expected.transition(*legal[stream, row], n_step, replay.plan.gamma)
        for key in ("obs", "next_obs"):
            same(tree_map(lambda leaf, b=b: leaf[b], getattr(batch, key)), wanted[key])
        np.testing.assert_array_equal(batch.action[b], wanted["action"])
        np.testing.assert_allclose(batch.reward[b], wanted["reward"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(batch.discount[b], wanted["discount"], rtol=1e-6)
        for key in ("action_mask", "next_action_mask"):
            mask = getattr(batch, key)
            assert (mask is None) == (wanted[key] is None)
            if mask is not None:
                np.testing.assert_array_equal(mask[b], wanted[key])


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout.ring, "SEGMENT_BYTES", 150)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize("kind", sorted(SPECS))
@pytest.mark.usefixtures("small_segments")
def test_exactly_the_legal_transitions_are_sampled_after_every_append(kind: str, n_step: int, alpha: float) -> None:
    for seed in range(2):
        streams, keep = (1, 3)[seed], (17, 20)[seed]
        plan = Plan(streams * keep, n_step=n_step, alpha=alpha)
        world, expected = World(SPECS[kind], streams, seed), Expected(SPECS[kind], streams)
        replay, rng = Replay(SPECS[kind], streams, plan, seed), np.random.default_rng(seed)
        disk: dict[str, dict[str, np.ndarray]] = {}
        for round_ in range(30):
            happen(world, expected, replay, rng)
            check(replay, expected, keep, n_step)
            if round_ % 4 == 3:
                replay = reloaded(replay, disk)


def reloaded(replay: Replay, disk: dict[str, dict[str, np.ndarray]]) -> Replay:
    """Through a checkpoint whose segments were written when they were first named, and never again."""
    state = replay.state()
    for name, read in state["segments"].items():
        if name not in disk:
            disk[name] = read()
    fresh = Replay(replay.spec, len(state["small"]["head"]), replay.plan, seed=99)
    fresh.load({"small": state["small"], "segments": {name: (lambda n=name: disk[n]) for name in state["segments"]}})
    return fresh
