"""How many batches a delivery buys, and what the learner does with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from oracles.replaying import Tiny, TinyConfig

import rltrain
from rltrain.algorithms.protocol import Update
from rltrain.envs.make import read_spec, resolve
from rltrain.learner.batches import tensors
from rltrain.learner.feed import ReplayFeed, StreamFeed
from rltrain.learner.learner import Learner
from rltrain.rollout.replay.replay import Replay
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.types import Trajectory

CPU = torch.device("cpu")
SPEC = read_spec(resolve("CartPole-v1", {}), 0)


def unroll(rows: int, row: int = 0, streams: Sequence[int] = (0,), ended: Sequence[int] = ()) -> Trajectory:
    """Rows of streams that go on; the row after one in `ended` is a reset row."""
    shape = (rows, len(streams))
    truncated, first = np.zeros(shape, bool), np.zeros((rows + 1, len(streams)), bool)
    first[0] = row == 0
    for t in ended:
        truncated[t] = True
        first[t + 2] = True
    return Trajectory(
        obs=np.full((rows + 1, len(streams), 4), np.arange(row, row + rows + 1)[:, None, None], np.float32),
        action=np.zeros(shape, np.int64),
        reward=np.ones(shape, np.float32),
        terminated=np.zeros(shape, bool),
        truncated=truncated,
        first=first,
        version=np.zeros(len(streams), np.int64),
        stream=np.array(streams),
        row=np.full(len(streams), row),
    )


def feed_of(streams: int = 1, **plan: Any) -> ReplayFeed:
    asked = ReplayPlan(**({"unroll": 1, "capacity": 10_000, "batch": 2, "warmup": 0, "gamma": 0.9} | plan))
    return ReplayFeed(Replay(SPEC, streams, asked, 0), asked, CPU)


@pytest.mark.parametrize("rate", [0.25, 1.0, 0.29, 0.1, 3.0, 1 / 3, 0.07])
@pytest.mark.parametrize("warmup", [0, 1, 30])
@pytest.mark.parametrize("size", [1, 3, 50])
def test_updates_are_kept_exactly_however_steps_are_delivered(rate: float, warmup: int, size: int) -> None:
    feed = feed_of(warmup=warmup, updates_per_step=rate)
    steps = updates = 0
    for row in range(0, 300, size):
        rows = min(size, 300 - row)
        updates += len(list(feed([unroll(rows, row)], 0.0)))
        steps += rows
        assert updates == math.floor(max(steps - warmup, 0) * Fraction(str(rate)))
    assert (feed.steps, feed.updates) == (steps, updates)


def test_a_rate_that_binary_numbers_miss_loses_no_update() -> None:
    """0.29 * 100 is 28.999999999999996."""
    feed = feed_of(updates_per_step=0.29)

    assert sum(1 for row in range(100) for _ in feed([unroll(1, row)], 0.0)) == 29


def test_reset_rows_are_no_steps() -> None:
    feed = feed_of(updates_per_step=1.0)

    assert len(list(feed([unroll(10, 0, ended=[3])], 0.0))) == 9


def test_what_could_not_be_sampled_yet_is_made_up_for() -> None:
    feed = feed_of(updates_per_step=1.0, n_step=3)

    bought = [len(list(feed([unroll(1, row)], 0.0))) for row in range(6)]

    assert bought == [0, 0, 3, 1, 1, 1]


def test_the_count_goes_on_from_a_checkpoint() -> None:
    before, after = feed_of(updates_per_step=0.3), feed_of(updates_per_step=0.3)
    for row in range(7):
        list(before([unroll(1, row)], 0.0))
    state, blocks = before.state()
    after.load(state, blocks)

    more = [[len(list(feed([unroll(1, row)], 0.0))) for row in range(7, 40)] for feed in (before, after)]

    assert more[0] == more[1]
    assert sum(more[0]) == 12 - 2


def test_samples_are_tensors_of_what_the_replay_gave() -> None:
    feed = feed_of(updates_per_step=1.0, alpha=0.5, batch=4)
    (sample, *_) = list(feed([unroll(20)], 0.0))

    assert all(isinstance(x, torch.Tensor) for x in (sample.obs, sample.action, sample.index, sample.weight))
    assert torch.equal(sample.next_obs, sample.obs + 1)
    assert sample.action.dtype == torch.int64
    assert sample.action_mask is None


def test_priorities_reach_the_replay() -> None:
    feed = feed_of(updates_per_step=1.0, alpha=1.0, batch=64)
    (sample, *_) = list(feed([unroll(20)], 0.0))
    error = (sample.obs[:, 0] == 5).float() * 1e6  # of row 5 only
    assert error.any()

    feed.reprioritise(sample, error)
    seen = list(feed([unroll(1, 20)], 0.0))[-1].obs[:, 0]

    assert set(seen.tolist()) == {5.0, 20.0}  # and the newest, which begins with the highest priority there is


def test_an_error_that_is_no_number_ends_the_run() -> None:
    feed = feed_of(updates_per_step=1.0, alpha=1.0)
    sample = next(iter(feed([unroll(20)], 0.0)))

    with pytest.raises(rltrain.RunFailed, match="diverged: an error of update 1 is nan"):
        feed.reprioritise(sample, torch.tensor([1.0, float("nan")]))


# --- the learner ---


class Watched(Tiny):
    """Notes when what was called."""

    def __init__(self, **given: Any) -> None:
        super().__init__(SPEC, TinyConfig(**given), CPU, 0, 2)
        self.calls: list[str] = []
        self.norm: list[float] = []

    def update(self, batch: Any, progress: float) -> Update:
        self.calls.append("update")
        told = super().update(batch, progress)
        norm = torch.tensor(self.norm.pop(0)) if self.norm else torch.tensor(1.0)
        return replace(told, metrics={"grad_norm": norm, "loss": torch.tensor(2.0), "lr": 0.5})

    def observe(self, unrolls: Trajectory) -> None:
        self.calls.append("observe")
        self.seen = unrolls


def learner_of(**given: Any) -> tuple[Learner, Watched]:
    algorithm = Watched(**({"streams": 2, "warmup": 0, "updates_per_step": 0.5} | given))
    feed = ReplayFeed(Replay(SPEC, 2, algorithm.plan, 0), algorithm.plan, CPU)
    return Learner(algorithm, CPU, feed), algorithm


def test_observe_sees_each_delivery_once_the_first_one_before_its_updates() -> None:
    learner, algorithm = learner_of()

    learner.step([unroll(4, 0, [0, 1])], 0.0)
    learner.step([unroll(4, 4, [0]), unroll(4, 4, [1])], 0.0)

    assert algorithm.calls == ["observe", *["update"] * 8, "observe"]
    assert algorithm.seen.obs.shape == (5, 2, 4)
    assert algorithm.seen.stream.tolist() == [0, 1]
    assert learner.version == 8


def test_a_learner_that_continues_observes_after_its_updates() -> None:
    learner, _ = learner_of()
    learner.step([unroll(4, 0, [0, 1])], 0.0)
    state = learner.state()
    older = {name: value for name, value in state.items() if name != "observed"}

    for saved in (state, older):
        resumed, algorithm = learner_of()
        resumed.load(saved)
        resumed.step([unroll(4, 4, [0, 1])], 0.0)
        assert algorithm.calls[-1] == "observe"


def test_a_delivery_that_buys_nothing_is_observed_too() -> None:
    learner, algorithm = learner_of(warmup=100)

    learner.step([unroll(4, 0, [0, 1])], 0.0)

    assert algorithm.calls == ["observe"]
    assert learner.version == 0
    assert set(learner.metrics()) == {"replay/rows", "replay/updates"}


def test_metrics_are_means_over_updates_however_many() -> None:
    learner, algorithm = learner_of(updates_per_step=50.0)
    algorithm.norm = [float(n) for n in range(400)]

    learner.step([unroll(4, 0, [0, 1])], 0.0)
    told = learner.metrics()

    assert told["learner/grad_norm"] == pytest.approx(199.5)
    assert (told["learner/loss"], told["learner/lr"]) == (2.0, 0.5)
    assert "learner/policy_lag" not in told
    assert (told["replay/rows"], told["replay/updates"]) == (8.0, 400.0)
    assert set(learner.metrics()) == {"replay/rows", "replay/updates"}


@pytest.mark.parametrize(
    "at", [0, 3, pytest.param(300, marks=pytest.mark.sweep), pytest.param(399, marks=pytest.mark.sweep)]
)
def test_divergence_is_noticed_before_anything_is_published(at: int) -> None:
    learner, algorithm = learner_of(updates_per_step=50.0)
    algorithm.norm = [1.0] * 400
    algorithm.norm[at] = float("nan" if at % 2 else "inf")

    with pytest.raises(rltrain.RunFailed, match=rf"diverged: the gradient of update {at + 1} is (nan|inf)"):
        learner.step([unroll(4, 0, [0, 1])], 0.0)
    assert algorithm.calls[-1] == "update"


def test_large_norms_are_no_divergence() -> None:
    learner, algorithm = learner_of(updates_per_step=1.0)
    algorithm.norm = [3e38] * 8

    learner.step([unroll(4, 0, [0, 1])], 0.0)

    assert algorithm.calls == ["observe", *["update"] * 8]


def test_a_stream_feed_has_no_priorities_and_says_how_old_its_data_is() -> None:
    class Once(Watched):
        def update(self, batch: Any, progress: float) -> Update:
            return Update({"a": 1.0})

    learner = Learner(Once(), CPU, StreamFeed(CPU))
    learner.step([unroll(4, 0, [0, 1])], 0.0)
    learner.step([unroll(4, 4, [0, 1])], 0.0)

    assert learner.metrics() == {"learner/a": 1.0, "learner/policy_lag": 0.5}


def test_tensors_share_the_memory_of_arrays_on_the_cpu() -> None:
    whole = unroll(3)
    whole.reward[1, 0] = 7.0
    assert tensors(whole, CPU).reward.data_ptr() == whole.reward.ctypes.data
