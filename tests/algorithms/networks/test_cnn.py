"""Policies of images, with and without memory, from actor to learner: what was acted is what is learnt from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracles.acting import Bench
from torch.testing import assert_close

from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.multi_agent.settings import MAPPOConfig
from rltrain.algorithms.networks.cnn import numbers
from rltrain.algorithms.networks.encoder import Encoder
from rltrain.algorithms.on_policy.actor_critic import ActorCritic
from rltrain.algorithms.on_policy.minibatch import Batch
from rltrain.algorithms.registry import POLICIES
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf


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


SHARED = {"torso": "auto", "shared_torso": True, "widths": (8,)}


def valued(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows the learner puts through its networks for their values alone, pass for pass."""
    rows, value = list[int](), ActorCritic.value

    def counted(self, obs, core=None, first=None):
        rows.append(len(obs))
        return value(self, obs, core, first)

    monkeypatch.setattr(ActorCritic, "value", counted)
    return rows


def test_values_that_acting_told_are_those_of_the_learner(monkeypatch):
    """Final observations included; only what follows the last row is left to the learner; the update is the same."""
    settings = {"streams": 3, "unroll": 9, "epochs": 2, "minibatches": 2, **SHARED}
    told, anew = (Bench("ppo", "probe:image", **settings) for _ in range(2))
    rows, turned, arranged = valued(monkeypatch), list[int](), ActorCritic.fast_layout
    monkeypatch.setattr(ActorCritic, "fast_layout", lambda self, obs: (turned.append(len(obs)), arranged(self, obs))[1])
    for _ in range(2):
        unrolls, same = told.collect(), anew.collect()
        assert unrolls.first[1:].any()
        with torch.no_grad():
            assert_close(told.algorithm.values(unrolls), told.policy.value(unrolls.obs), atol=1e-5, rtol=0)
        rows.clear()
        turned.clear()
        told.learn(unrolls)
        assert rows == [1]
        assert turned == [unrolls.valid.sum()]  # once for both passes
        anew.learn(replace(same, extras={"log_prob": same.extras["log_prob"]}))
        assert rows == [1, 10]
        assert_close(told.policy.state_dict(), anew.policy.state_dict(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"overlap": True}, {}),
        ({}, {"version": torch.tensor([0, 1, 1])}),
        ({}, {"num_rows": torch.tensor([9, 4, 9])}),
    ],
    ids=["acted by older weights", "by several", "not to the end"],
)
def test_values_that_may_be_others_are_made_anew(settings, change, monkeypatch):
    bench = Bench("ppo", "probe:image", streams=3, unroll=9, epochs=1, minibatches=1, **SHARED, **settings)
    rows = valued(monkeypatch)
    unrolls = replace(bench.collect(), **change)
    wrong = {**unrolls.extras, "value": torch.full_like(unrolls.extras["value"], torch.nan)}
    rows.clear()

    bench.learn(replace(unrolls, extras=wrong))

    assert rows == [10]
    assert all(x.isfinite().all() for x in bench.policy.parameters())


class Other(ActorCritic):
    """A value of its own, which acting knows nothing of."""

    def __init__(self, *words):
        super().__init__(*words)
        self.critic = torch.nn.Sequential(torch.nn.Linear(8, 1))


@pytest.mark.parametrize(
    ("algo", "env", "settings"),
    [
        ("ppo", "probe:image", {"shared_torso": False}),
        ("ppo", "probe:image", {"memory": "gru"}),
        ("ppo", "CartPole-v1", {}),
        ("a2c", "probe:image", {}),
        ("ppo", "probe:image", {"policy": "other"}),
    ],
)
def test_values_are_told_for_ppo_and_where_they_are_one_product_more(algo, env, settings, monkeypatch):
    monkeypatch.setitem(POLICIES, "other", Other)
    bench = Bench(algo, env, streams=3, unroll=16, **{**SHARED, **settings})

    assert list(bench.collect().extras) == ["log_prob"]


def test_a_value_that_sees_more_is_not_told():
    """MAPPO's, whose networks are its own."""
    leaf = Leaf("image", (4, 40, 44), "uint8")
    obs = {"a": leaf, "state": Leaf("box", (3,), "float32")}
    spec = EnvSpec("image", obs, ActionSpec("discrete", (), (2,)))
    config = MAPPOConfig(shared_torso=True)
    policy = ActorCritic(spec, config, 4, torch.Generator().manual_seed(0), private="state")
    seen = {"a": torch.zeros(16, 4, 40, 44, dtype=torch.uint8), "state": torch.zeros(16, 3)}

    assert list(policy.act(seen, None, None, torch.zeros(16, policy.noise.columns), True).extras) == ["head"]
    assert policy.fast_layout(seen) is seen


def test_images_are_arranged_once_for_all_passes():
    """The same numbers in another order of memory, which minibatches keep: no pass has to turn them around."""
    leaf = Leaf("image", (4, 40, 44), "uint8")
    spec = EnvSpec("image", {"a": leaf, "b": Leaf("box", (3,), "float32")}, ActionSpec("discrete", (), (2,)))
    encoder = Encoder(spec, 8, torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    obs = {"a": torch.randint(256, (6, 4, 40, 44), dtype=torch.uint8, generator=rng), "b": torch.randn(6, 3)}
    flat = torch.zeros(6)
    arranged = encoder.fast_layout(obs)
    rows = Batch(arranged, torch.arange(6), flat, flat, flat, flat, None)

    assert torch.equal(arranged["a"], obs["a"])
    assert torch.equal(encoder.forward(arranged), encoder.forward(obs))
    for batch in rows.shuffled(2, Rng(1)):
        image = batch.obs["a"]
        assert torch.equal(image, obs["a"][batch.action])
        assert image.is_contiguous(memory_format=torch.channels_last)
        assert numbers(image, leaf, torch.uint8).data_ptr() == image.data_ptr()
        assert torch.equal(batch.obs["b"], obs["b"][batch.action])


@pytest.mark.parametrize(("algo", "narrowed"), [("a2c", True), ("a3c", False)])
def test_an_actor_that_makes_gradients_sees_all_rows(algo, narrowed, monkeypatch):
    """It passes whole unrolls through the network that it acts with."""
    told, narrow = [], Encoder.set_active_rows
    monkeypatch.setattr(Encoder, "set_active_rows", lambda self, rows: (told.append(rows), narrow(self, rows))[1])

    Bench(algo, "probe:image", streams=3, unroll=8, shared_torso=True).rollout.start()

    assert (3 in told) == narrowed  # 1 and 5 are the test of widths
