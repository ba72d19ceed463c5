"""The learner: what it counts, and that it stops before bad weights reach a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from oracles.acting import Bench

import rltrain
from rltrain.learner.feed import StreamFeed
from rltrain.learner.learner import Learner
from rltrain.rollout.specs import StreamPlan
from rltrain.storage import checkpoint


def test_a_diverged_run_stops_and_leaves_its_good_checkpoints_alone(tmp_path: Path) -> None:
    settings = {"algo": "ppo", "env": "probe:two-steps", "workers": 0, "out": str(tmp_path), "quiet": True}
    with pytest.raises(rltrain.RunFailed, match=r"diverged.*smaller --lr"):
        rltrain.train(**settings, steps=20_000, checkpoint_every=1000, eval_every=0, lr=1e20, max_grad_norm=0.0)
    (run,) = tmp_path.iterdir()
    for path in (run / "checkpoints").glob("step-*"):
        parts = checkpoint.load(path).state["learner"]["parts"]["policy"]
        assert all(abs(array).max() < float("inf") for array in parts.values() if array.size)


class Rebinds(torch.nn.Module):
    """A policy with a buffer that an update may put another tensor in the place of."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.zeros(1))


def test_weights_are_those_of_now_whatever_an_update_did_to_their_tensors() -> None:
    policy = Rebinds()
    learner = Learner(SimpleNamespace(policy=policy, plan=StreamPlan(1)), torch.device("cpu"))
    learner.weights(0)
    changes: list[Callable[[], object]] = [
        lambda: policy.weight.data.fill_(1.0),  # in place
        lambda: setattr(policy, "seen", policy.seen + 2.0),  # another buffer
        lambda: setattr(policy.weight, "data", torch.full((2,), 3.0)),  # other memory
        lambda: setattr(policy, "weight", torch.nn.Parameter(torch.full((2,), 4.0))),  # another parameter
    ]
    for change in changes:
        change()
        found = learner.weights(0).arrays
        assert found.keys() == policy.state_dict().keys()
        for name, tensor in policy.state_dict().items():
            assert found[name].tolist() == tensor.tolist(), name


def test_running_returns_see_what_is_skipped_and_begin_anew_after_what_was_dropped() -> None:
    """Four batches a delivery, of which two are too old by then; unrolls may be shorter than the plan says."""
    settings = {"streams": 4, "unroll": 8, "sequence": 8, "wait": 1, "max_lag": 1, "normalize_return": True}
    bench = Bench("impala", "probe:counter", **settings)
    learner = Learner(bench.algorithm, torch.device("cpu"), StreamFeed(torch.device("cpu"), bench.algorithm.plan))
    scale, expected, steps = bench.policy.return_scale, np.zeros(4), 0
    for number, rows in enumerate([5, 2, 3, 2, 2]):
        bench.rollout._actors[0].begin(rows)
        (unroll,) = bench.rollout.gather()
        if number == 2:  # too old when it came: the learner never sees it
            expected[:] = 0.0
            continue
        steps += unroll.steps
        for t in range(unroll.rows):
            summed = bench.config.gamma * expected + unroll.reward[t]
            expected = np.where(unroll.valid[t], summed, expected)
            expected[unroll.terminated[t] | unroll.truncated[t]] = 0.0
        learner.step([unroll], 0.0)
        bench.rollout.publish(learner.weights(bench.rollout.steps))
        np.testing.assert_allclose(scale.running.numpy(), expected, rtol=1e-6)
    assert learner.skipped == 8
    assert learner.version == 8
    assert scale.count == steps


@pytest.mark.parametrize(
    "algo",
    [
        pytest.param("ppo", marks=pytest.mark.sweep),
        pytest.param("a2c", marks=pytest.mark.sweep),
        "impala",
        pytest.param("appo", marks=pytest.mark.sweep),
    ],
)
def test_the_first_delivery_is_learnt_from_with_its_own_statistics(algo: str) -> None:
    """Otherwise the first update would use raw observations, clipped at 10, and raw rewards."""
    unroll = {"unroll": 64, "streams": 4, "wait": None} if algo in ("impala", "appo") else {"unroll": 64, "streams": 4}
    bench = Bench(algo, "Pendulum-v1", **unroll, normalize_obs=True, normalize_return=True)
    learner = Learner(bench.algorithm, torch.device("cpu"), StreamFeed(torch.device("cpu"), bench.algorithm.plan))
    bench.rollout.start()
    (unrolls,) = bench.rollout.gather()
    obs, reward = torch.from_numpy(unrolls.obs[:-1][unrolls.valid]), torch.from_numpy(unrolls.reward)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    update = bench.algorithm.update

    def watched(batch: object, progress: float) -> object:
        seen.append((bench.policy.normalised(obs).clone(), bench.policy.scaled(reward).clone()))
        return update(batch, progress)

    bench.algorithm.update = watched
    assert learner.state()["observed"] is False  # a run that is interrupted before its first delivery goes on so
    learner.step([unrolls], 0.0)
    assert learner.state()["observed"] is True

    normalised, scaled = seen[0]
    torch.testing.assert_close(normalised.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert scaled.abs().max() < 1 < 5 < reward.abs().max()
    assert bench.policy.normalizer.count0 == len(obs)  # once


class Camera(gymnasium.Env[Any, int]):
    """An image, for which policy and value share layers, and a speed far from 0."""

    observation_space = gymnasium.spaces.Dict(
        {
            "image": gymnasium.spaces.Box(0, 255, (3, 12, 12), np.uint8),
            "speed": gymnasium.spaces.Box(-100.0, 100.0, (2,), np.float32),
        }
    )
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._obs(), 1.0, False, False, {}

    def _obs(self) -> dict[str, np.ndarray]:
        speed = self.np_random.uniform(4.0, 6.0, 2).astype(np.float32)
        return {"image": np.zeros((3, 12, 12), np.uint8), "speed": speed}


def test_values_that_actors_reported_without_statistics_are_computed_again() -> None:
    bench = Bench("ppo", Camera, streams=2, unroll=16, shared_torso=True, normalize_obs=True)
    policy, algorithm = bench.policy, bench.algorithm
    assert policy.reports_value
    unrolls = bench.collect()
    algorithm.observe(unrolls)
    torch.testing.assert_close(algorithm.values(unrolls), policy.value(unrolls.obs), rtol=1e-6, atol=1e-6)
