"""Policies of images, with and without memory, from actor to learner: what was acted is what is learnt from."""

from __future__ import annotations

import pytest
import torch
from oracles.acting import Bench
from torch.testing import assert_close

from algorithms.networks import Encoder


@pytest.mark.parametrize("memory", ["none", "gru", "lstm"])
@pytest.mark.parametrize("torso", ["auto", "impala"])
def test_the_learner_finds_the_probabilities_that_actors_had(torso, memory):
    """PPO's first ratio is 1: images of few streams, cores stored every 3 rows, episodes that end between."""
    bench = Bench(
        "ppo",
        "probe:image",
        streams=3,
        unroll=9,
        torso=torso,
        shared_torso=True,
        widths=(8,),
        memory=memory,
        memory_size=5,
        sequence=3,
        epochs=1,
        minibatches=1,
    )
    cores = []
    for _ in range(2):
        unrolls = bench.collect()
        core = None if unrolls.core is None else unrolls.core[0]
        with torch.no_grad():
            dist, _ = bench.policy.forward(unrolls.obs, None, core, unrolls.first)
        padded = torch.cat([unrolls.action, unrolls.action[-1:]])
        log_prob = dist.log_prob(padded)[:-1]
        assert unrolls.first[1:].any()
        assert_close(log_prob[unrolls.valid], unrolls.extras["log_prob"][unrolls.valid], atol=1e-5, rtol=0)
        if memory != "none":
            assert unrolls.core.shape == (3, 3, 10 if memory == "lstm" else 5)
            cores.append(unrolls.core)
        bench.learn(unrolls)
    assert not cores or torch.stack(cores).any()


@pytest.mark.parametrize(("algo", "narrowed"), [("a2c", True), ("a3c", False)])
def test_an_actor_that_makes_gradients_sees_all_rows(algo, narrowed, monkeypatch):
    """It passes whole unrolls through the network that it acts with."""
    told, narrow = [], Encoder.narrow
    monkeypatch.setattr(Encoder, "narrow", lambda self, rows: (told.append(rows), narrow(self, rows))[1])

    Bench(algo, "probe:image", streams=3, unroll=8, shared_torso=True).rollout.start()

    assert (3 in told) == narrowed  # 1 and 5 are the test of widths
