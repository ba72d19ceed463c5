"""What an actor writes: rows against a plain loop over the environment, memory, noise, the fields that say whose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from oracles.faulty import NotFinite, NothingLegal, open_rollout, raises, weights_of
from oracles.replaying import NAME

from rltrain.envs.make import read_spec, resolve
from rltrain.envs.problems.probes import Counter, Masked
from rltrain.envs.seeding import stream_seed
from rltrain.rollout.actor.noise import StreamNoise
from rltrain.rollout.actor.play import play
from rltrain.rollout.scheduler import Rollout
from rltrain.rollout.supervision import WorkerFailed
from rltrain.rollout.types import Trajectory
from rltrain.rollout.workers.handle import ActorLost


def collected(rollout: Rollout, unrolls: int) -> list[Trajectory]:
    """Unrolls of all streams, copied, time by time."""
    from rltrain.learner.batches import join

    joined = []
    for _ in range(unrolls):
        rollout.start()
        joined.append(join(rollout.gather(), torch.device("cpu")))
    return joined


def plain(seed: int, stream: int, rows: int) -> dict[str, np.ndarray]:
    """What a stream of Counter must look like, row by row."""
    env = Counter()
    obs, _ = env.reset(seed=stream_seed(seed, stream, 0))
    seen, first = [obs], [True]
    reward, terminated, truncated = [], [], []
    over = False
    for _ in range(rows):
        if over:
            obs, _ = env.reset()
            row: Any = (obs, 0.0, False, False)
        else:
            row = env.step(0)[:4]
        first.append(over)
        over = row[2] or row[3]
        seen.append(row[0])
        for column, value in zip((reward, terminated, truncated), row[1:], strict=True):
            column.append(value)
    return {
        "obs": np.stack(seen),
        "first": np.array(first),
        "reward": np.array(reward, np.float32),
        "terminated": np.array(terminated),
        "truncated": np.array(truncated),
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_those_of_a_plain_loop(workers: int) -> None:
    rollout, _ = open_rollout("probe:counter", seed=4, workers=workers, backend="local", streams=5, unroll=7)
    unrolls = collected(rollout, 6)
    rollout.close()
    assert rollout.steps == sum(unroll.steps for unroll in unrolls)
    truncations = 0
    for stream in range(5):
        expected = plain(4, stream, 42)
        for number, unroll in enumerate(unrolls):
            rows = slice(7 * number, 7 * number + 7)
            assert unroll.stream[stream] == stream
            assert unroll.row[stream] == 7 * number
            np.testing.assert_array_equal(unroll.obs[:, stream], expected["obs"][rows.start : rows.stop + 1])
            np.testing.assert_array_equal(unroll.first[:, stream], expected["first"][rows.start : rows.stop + 1])
            for name in ("reward", "terminated", "truncated"):
                np.testing.assert_array_equal(getattr(unroll, name)[:, stream], expected[name][rows], name)
        for t in np.flatnonzero(expected["truncated"]):
            assert expected["obs"][t + 1, 0] == expected["obs"][t + 1, 1], "the final observation, not the reset's"
            truncations += 1
    assert truncations >= 3, "the test saw none"


def test_reset_rows_are_not_valid_and_nothing_else_is_invalid() -> None:
    rollout, _ = open_rollout("probe:counter", streams=5, unroll=64)
    (unroll,) = collected(rollout, 1)
    rollout.close()
    ended = unroll.terminated | unroll.truncated
    assert not unroll.valid[1:][ended[:-1]].any()
    assert unroll.valid[1:][~ended[:-1]].all()
    assert unroll.valid[0].all()
    assert (unroll.reward[~unroll.valid] == 0).all()
    assert unroll.steps == int(unroll.valid.sum()) == 64 * 5 - int(ended[:-1].sum())
    lengths = [(episode.ret, episode.length) for episode in unroll.episodes]
    assert len(lengths) == int(ended.sum())
    assert all(ret == length * (length + 1) / 2 for ret, length in lengths)


@pytest.mark.parametrize(
    "env",
    [
        pytest.param("CartPole-v1", marks=pytest.mark.sweep),
        "probe:multi-discrete",
        pytest.param("probe:multi-binary", marks=pytest.mark.sweep),
        "probe:box3",
    ],
)
@pytest.mark.parametrize("memory", ["none", "gru"])
def test_actions_and_cores_are_those_of_the_policy_played_again(env: str, memory: str) -> None:
    """The whole unroll once more by hand: noise of stream and row, core zeroed at `first`, stored every L rows."""
    rollout, policy = open_rollout(env, seed=2, streams=5, unroll=8, memory=memory, sequence=4, workers=0)
    unrolls = collected(rollout, 4)
    rollout.close()
    core = torch.zeros(16, policy.core_size) if memory == "gru" else None
    for number, unroll in enumerate(unrolls):
        noise = np.zeros((8, 16, policy.noise.columns), np.float32)
        StreamNoise(2, range(5), *policy.noise).fill(noise, np.full(5, 8 * number), [0] * 5)
        for t in range(8):
            obs = torch.zeros(16, *unroll.obs.shape[2:], dtype=unroll.obs.dtype)
            obs[:5] = unroll.obs[t]
            if core is not None:
                core = core.clone()
                core[:5][unroll.first[t]] = 0.0
                if t % 4 == 0:
                    assert unroll.core is not None
                    assert torch.equal(unroll.core[t // 4], core[:5])
                    assert (unroll.core[t // 4][unroll.first[t]] == 0).all()
            with torch.inference_mode():
                act = policy.act(obs, core, None, torch.from_numpy(noise[t]), True)
            core = act.core
            assert torch.equal(act.action[:5], unroll.action[t])
            told = policy.summarize_unroll(act.extras, act.action, None)
            assert torch.equal(told["log_prob"][:5], unroll.extras["log_prob"][t])
    assert sum(int(unroll.first[1:].sum()) for unroll in unrolls) > 0, "no episode ended"
    assert (unrolls[0].core is None) == (memory == "none")


def test_masks_are_obeyed_and_travel() -> None:
    rollout, _ = open_rollout("probe:masked", streams=5, unroll=32)  # the probe raises at an illegal action
    (unroll,) = collected(rollout, 1)
    rollout.close()
    mask = unroll.action_mask
    assert mask is not None
    assert mask.shape == (33, 5, 4)
    chosen = mask[:-1].gather(-1, unroll.action[..., None])[..., 0]
    assert chosen[unroll.valid].all()
    over = torch.cat([torch.zeros(1, 5, dtype=torch.bool), unroll.terminated | unroll.truncated])
    assert over.any()
    assert torch.equal(mask, unroll.obs > 0), "that of a final observation is its own too"


def failure(env: Any, looks_like: Any = Counter, **given: Any) -> str:
    lost: list[ActorLost] = []
    rollout, _ = open_rollout(env, lost.append, looks_like, workers=2, backend="local", seed=6, **given)
    try:
        while not lost and rollout.steps < 1000:
            rollout.start()
            rollout.gather()
    except WorkerFailed as failed:  # the environment broke its interface: it is not tried again
        return str(failed)
    finally:
        rollout.close()
    assert lost, "no failure"
    return f"worker {lost[0].worker}: {lost[0].detail}"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(float("nan"), marks=pytest.mark.sweep),
        float("inf"),
        pytest.param(-float("inf"), marks=pytest.mark.sweep),
    ],
)
@pytest.mark.parametrize("what", ["reward", "obs"])
def test_a_number_that_is_not_finite_is_refused(what: str, value: float) -> None:
    """Each stream of the first worker fails in its 12th step; the row of that depends on the episodes before it."""
    detail = failure(lambda: NotFinite(what, 12, value))
    rows = {s: int(np.flatnonzero(np.cumsum(~plain(6, s, 40)["first"][1:]) == 12)[0]) for s in range(3)}
    stream = min(rows, key=lambda s: (rows[s], s))
    assert f"worker 0: the environment of stream {stream} (seed {stream_seed(6, stream)})" in detail
    assert f"failed at step {rows[stream]}:" in detail
    assert "not finite" in detail
    assert {"reward": "reward", "obs": "observation"}[what] in detail


class MultiDiscreteMasked(Counter):
    """A Counter of two heads, of 3 and 2 actions, all of them legal; episodes are long."""

    action_space = spaces.MultiDiscrete([3, 2])

    def __init__(self) -> None:
        super().__init__()
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, _ = super().reset(seed=seed)
        self._length = 50
        return obs, {"action_mask": np.ones(5, np.int8)}

    def step(self, action: Any) -> Any:
        *row, _ = super().step(action)
        return *row, {"action_mask": np.ones(5, np.int8)}


def test_a_mask_that_allows_nothing_is_refused() -> None:
    detail = failure(lambda: NothingLegal(2), Masked)
    assert f"stream 0 (seed {stream_seed(6, 0)}) failed at step 1" in detail
    assert "allows no action" in detail


class OneHeadClosed(MultiDiscreteMasked):
    """Its second head has nothing to choose from after step 2, the first one has."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        self._steps += 1
        if self._steps == 2:
            info = {"action_mask": np.array([1, 1, 1, 0, 0], np.int8)}
        return obs, reward, terminated, truncated, info


def test_a_mask_that_allows_nothing_in_one_head_is_the_environments_fault() -> None:
    detail = failure(OneHeadClosed, MultiDiscreteMasked)
    assert f"stream 0 (seed {stream_seed(6, 0)}) failed at step 1" in detail
    assert "allows no action at all in head 1" in detail
    assert "Traceback" not in detail


def test_a_fault_names_stream_seed_step_and_brings_its_traceback() -> None:
    detail = failure(lambda: raises(at=13), unroll=5)
    rows = {s: int(np.flatnonzero(np.cumsum(~plain(6, s, 40)["first"][1:]) == 13)[0]) for s in range(3)}
    stream = min(rows, key=lambda s: (rows[s], s))
    assert f"stream {stream} (seed {stream_seed(6, stream)}) failed at step {rows[stream]}:" in detail
    assert "RuntimeError: the probe raises in step 13" in detail
    assert 'faulty.py", line' in detail


# --- random starts ---


@pytest.mark.parametrize("env", [pytest.param("CartPole-v1", marks=pytest.mark.sweep), "probe:masked", "Pendulum-v1"])
def test_the_first_rows_of_a_stream_are_acted_at_random(env: str) -> None:
    """A policy that always does the same is overruled for ceil(warmup / streams) rows."""

    given = {"algo": NAME, "workers": 0, "streams": 3, "unroll": 8, "warmup": 31}
    rollout, policy = open_rollout(env, **given)
    policy.weight.data.zero_()
    policy.scale.zero_()
    rollout.publish(weights_of(policy, 1))
    unrolls = collected(rollout, 3)
    rollout.close()

    action = torch.cat([unroll.action for unroll in unrolls]).float()  # [24, 3, *A]
    assert len(action[:11].unique()) > 1
    constant = action[11]
    if env != "probe:masked":
        assert (action[11:] == constant).all()
        assert (action[:11].flatten(1) != constant.flatten()).any(0).all()
    for unroll in unrolls:
        if unroll.action_mask is not None:
            assert unroll.action_mask[:-1].gather(-1, unroll.action[..., None]).all()


def test_a_random_start_is_the_same_for_any_number_of_workers() -> None:
    found = []
    for workers in (0, 2):
        rollout, _ = open_rollout(
            "CartPole-v1", algo=NAME, workers=workers, backend="local", streams=5, unroll=8, warmup=60
        )
        found.append(collected(rollout, 3))
        rollout.close()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.action, other.action)
        assert torch.equal(one.obs, other.obs)


def test_no_random_start_where_none_is_wanted() -> None:
    given = {"algo": NAME, "workers": 0, "streams": 3, "unroll": 8, "warmup": 31, "random_start": False}
    rollout, policy = open_rollout("CartPole-v1", **given)
    policy.weight.data.zero_()
    policy.scale.zero_()
    rollout.publish(weights_of(policy, 1))
    (unroll,) = collected(rollout, 1)
    assert (unroll.action == 0).all()


def test_actors_and_evaluations_use_the_tanh_whose_bits_do_not_depend_on_the_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`fast_tanh_` is for learners: with it the numbers of a stream would depend on the number of workers."""

    def fast_tanh_(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the function for learners")

    given: dict[str, Any] = {"algo": "ppo", "preset": "none", "activation": "tanh", "workers": 0, "backend": "local"}
    rollout, policy = open_rollout("CartPole-v1", streams=2, unroll=3, **given)
    monkeypatch.setattr("rltrain.algorithms.networks.mlp.fast_tanh_", fast_tanh_)
    assert len(collected(rollout, 2)) == 2
    rollout.close()
    source = resolve("CartPole-v1")
    assert len(play(source.make, read_spec(source, 0), policy, [1, 2])) == 2
