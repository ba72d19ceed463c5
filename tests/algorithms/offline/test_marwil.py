"""MARWIL: whole updates against those written out, its returns, its running norm, and behaviour cloning at 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.off_policy import BOX, DISCRETE, MASKED, batch_of, flat, nets
from oracles.offline import MARWILReference
from torch.testing import assert_close

from rltrain.algorithms.offline.bc import BC
from rltrain.algorithms.offline.marwil import MARWIL, RunningNorm
from rltrain.algorithms.offline.settings import BCConfig, MARWILConfig
from rltrain.config.load import load
from rltrain.data.episodes import Recorded, write
from rltrain.envs.make import read_spec, resolve
from rltrain.learner.learner import Learner
from rltrain.rollout.replay import gather
from rltrain.setup.offline import OfflineFeed, fill
from rltrain.setup.replay import make_feed, open_data
from rltrain.storage.recording import Recording

SMALL: dict[str, Any] = {"widths": (8, 6), "lr": 1e-2, "batch": 12}
SETTINGS = [
    {},
    {"advantage_factor": 0.3, "max_weight": 1.1, "norm_rate": 0.2, "activation": "tanh", "lr_end_share": 0.1},
    {"norm_rate": 0.0, "max_grad_norm": 0.1},
]
each = pytest.mark.parametrize("settings", SETTINGS, ids=["default", "limited", "awr"])
kind = pytest.mark.parametrize("spec", [BOX, DISCRETE, MASKED], ids=lambda spec: spec.id)


def made(spec: Any, **settings: Any) -> Any:
    return MARWIL(spec, MARWILConfig(**{**SMALL, **settings}), torch.device("cpu"), 3, 1)


@each
@kind
def test_updates_equal_those_written_out(spec, settings):
    ours = made(spec, **settings)
    first = [x.clone() for x in flat(nets(ours.value.dense))]
    reference = MARWILReference(ours)
    for seed in range(6):
        batch = batch_of(spec, seed, weighted=False)
        reference.update(batch, seed / 6)
        ours.update(batch, seed / 6)

    assert_close(flat(nets(ours.policy.actor.dense)), flat(reference.actor), atol=1e-7, rtol=0)
    assert_close(flat(nets(ours.value.dense)), flat(reference.value), atol=1e-7, rtol=0)
    assert not any(torch.equal(x, y) for x, y in zip(first, flat(nets(ours.value.dense)), strict=True))
    if settings.get("norm_rate", 1):
        assert float(ours.norm.square) == pytest.approx(reference.square, rel=1e-9)
    if reference.box:
        assert_close(ours.policy.log_std.detach(), reference.log_std.detach(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("spec", [DISCRETE, MASKED], ids=lambda spec: spec.id)
def test_without_the_advantage_it_is_behaviour_cloning(spec):
    ours = made(spec, advantage_factor=0.0)
    clone = BC(spec, BCConfig(**SMALL), torch.device("cpu"), 3, 1)
    for seed in range(4):
        batch = batch_of(spec, seed, weighted=False)
        ours.update(batch, 0.0)
        clone.update(batch, 0.0)
    assert torch.equal(ours.optimizer.param, clone.optimizer.param)


def test_the_scale_of_rewards_does_not_matter_for_the_policy():
    """The norm takes it out; without a norm it matters."""

    def loss(rate: float, scale: float) -> float:
        ours = made(BOX, norm_rate=rate)
        with torch.no_grad():
            for x in ours.value.parameters():
                x.zero_()
        batch = batch_of(BOX, 0, weighted=False)
        batch = replace(batch, reward=scale * batch.reward, discount=torch.zeros(12))
        return float(ours.update(batch, 0.0).metrics["loss_policy"])

    assert loss(0.1, 50.0) == pytest.approx(loss(0.1, 1.0), rel=1e-9)
    assert loss(0.0, 50.0) != pytest.approx(loss(0.0, 1.0), rel=1e-2)


def test_the_running_norm_is_part_of_a_checkpoint():
    ours, other = made(BOX), made(BOX)
    ours.update(batch_of(BOX, 0, weighted=False), 0.0)
    for name, part in other.parts().items():
        part.load_state_dict(ours.parts()[name].state_dict())
    for algorithm in (ours, other):
        algorithm.update(batch_of(BOX, 1, weighted=False), 0.0)
    assert torch.equal(ours.optimizer.param, other.optimizer.param)
    assert torch.equal(ours.norm.square, other.norm.square)
    assert float(RunningNorm().square) == 0 < float(ours.norm.square)


LENGTHS = (5, 60, 3, 40)  # terminated, truncated, terminated, and cut off by the end of the data


@pytest.mark.parametrize("long", [32, 10_000], ids=["by sums", "in a loop"])
def test_returns_are_those_of_the_rest_of_the_episode(
    long: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bootstrapped at the true last observation where an episode is truncated or cut off; every row is there."""
    monkeypatch.setattr(gather, "LONG", long)
    torch.set_default_dtype(torch.float32)
    spec, rng = read_spec(resolve("CartPole-v1", {}, folder="."), 0), np.random.default_rng(0)
    episodes = [
        Recorded(
            [rng.normal(size=(n + 1, 4)).astype(np.float32)], rng.integers(2, size=n),
            rng.normal(size=n).astype(np.float32), terminated=i in (0, 2), truncated=i == 1,
        )
        for i, n in enumerate(LENGTHS)
    ]  # fmt: skip
    write(tmp_path / "data", spec, episodes, {})
    wanted = {}
    for one in episodes:
        for t in range(one.steps):
            value = sum(0.9**k * float(r) for k, r in enumerate(one.reward[t:]))
            wanted[one.obs[0][t].tobytes()] = value, 0.0 if one.terminated else 0.9 ** (one.steps - t), one.obs[0][-1]

    config = load(
        {"algo": "marwil", "env": "CartPole-v1", "data": str(tmp_path / "data"), "gamma": 0.9, "batch": 2000,
         "n_step": 100, "out": str(tmp_path)}
    )  # fmt: skip
    algorithm = MARWIL(spec, config.settings, torch.device("cpu"), 0, 1)
    data, _ = open_data(config, spec, algorithm.plan)
    feed = make_feed(config, data)
    assert isinstance(feed, OfflineFeed)
    learner = Learner(algorithm, torch.device("cpu"), feed)
    fill(learner, [Recording.open(tmp_path / "data")], torch.device("cpu"))
    batch = feed.replay.sample(0.0)
    seen = set()
    for obs, reward, discount, after in zip(batch.obs, batch.reward, batch.discount, batch.next_obs, strict=True):
        ret, factor, last = wanted[obs.tobytes()]
        seen.add(obs.tobytes())
        assert reward == pytest.approx(ret, abs=1e-5)
        assert discount == pytest.approx(factor, abs=1e-6)
        if factor:
            np.testing.assert_array_equal(after, last)
    assert len(feed.replay) == sum(LENGTHS)
    assert seen == set(wanted)
