"""Big unrolls go through shared memory, small ones by pickle; what arrives is the same."""

from __future__ import annotations

import numpy as np
import pytest
from oracles.faulty import Picture, open_rollout

from rltrain.learner.batches import join
from rltrain.rollout.scheduler import Rollout
from rltrain.rollout.shared_memory import observations
from rltrain.rollout.shared_memory.observations import SLOT_BYTES
from rltrain.rollout.tree import leaves
from rltrain.rollout.types import Trajectory


def arrays(unroll: Trajectory) -> list[np.ndarray]:
    fields = [unroll.action, unroll.reward, unroll.first, unroll.terminated, unroll.row, unroll.version]
    return [np.asarray(array).copy() for array in [*leaves(unroll.obs), *fields, *unroll.extras.values()]]


def run(rollout: Rollout, unrolls: int = 5) -> list[list[np.ndarray]]:
    import torch

    found = []
    for _ in range(unrolls):
        rollout.start()
        found.append(arrays(join(rollout.gather(), torch.device("cpu"))))
    rollout.close()
    return found


def equal(one: list[list[np.ndarray]], other: list[list[np.ndarray]]) -> bool:
    return all(
        np.array_equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    )


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize("env", [pytest.param(Picture, marks=pytest.mark.sweep), "probe:dict"])
def test_the_same_unrolls_through_slots_and_by_pickle(env: object, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"streams": 3, "unroll": 6, "seed": 1}
    here = run(open_rollout(env, **given)[0])
    slots, pickled = [], []
    for size, found in ((1, slots), (1 << 40, pickled)):
        monkeypatch.setattr(observations, "SLOT_BYTES", size)
        rollout, _ = open_rollout(env, workers=2, **given)
        assert bool(rollout._backend.slots.memories) == (size == 1)
        found += run(rollout)
    assert equal(here, slots)
    assert equal(here, pickled)
    assert not equal(here, run(open_rollout(env, **{**given, "seed": 2})[0]))


@pytest.mark.usefixtures("fork_server")
def test_pictures_are_big_and_vectors_are_not() -> None:
    big, _ = open_rollout(Picture, workers=1, streams=2, unroll=6)
    small, _ = open_rollout("CartPole-v1", workers=1, streams=2, unroll=6)
    assert big._backend.slots.memories[0].size >= 2 * SLOT_BYTES
    assert not small._backend.slots.memories
    big.close()
    small.close()


@pytest.mark.usefixtures("fork_server")
def test_an_unroll_is_not_overwritten_while_the_next_one_is_made() -> None:
    """With overlap actors go on while the learner still reads what was gathered."""
    rollout, _ = open_rollout(Picture, workers=2, streams=3, unroll=6)
    rollout.start()
    unrolls = rollout.gather()
    before = [array.copy() for unroll in unrolls for array in arrays(unroll)]
    rollout.start()
    other = rollout.gather()
    after = [array for unroll in unrolls for array in arrays(unroll)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not np.array_equal(unrolls[0].obs, other[0].obs)
    rollout.close()
