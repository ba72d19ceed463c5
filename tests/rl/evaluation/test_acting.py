"""`Trained.act` for one observation: the bits of a batch, also from several threads; policies that have acted."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from rl_policies import CASES, save, saved

import rltrain
from rltrain.envs.spaces import env_spec
from rltrain.evaluation.policy import Trained

FIRST = torch.zeros(8, dtype=torch.int64)
NAMES = "ppo-discrete ppo-nature ppo-whole ppo-box-sde ppo-one-sided ppo-binary a2c dqn rainbow sac"


@pytest.mark.parametrize("name", NAMES.split())
def test_one_observation_has_the_bits_of_a_batch(name: str, tmp_path: Path) -> None:
    """An array takes a shorter way than a list or a batch; its inputs are used again by the next call."""
    algo, obs, action, settings = CASES[name]
    trained = rltrain.load(save(tmp_path, name, env_spec(name, obs, action, 10), algo, settings), best=True)
    rng = np.random.default_rng(0)
    for _ in range(5 if obs.dtype == np.uint8 else 50):
        one = obs.sample() if obs.dtype == np.uint8 else rng.normal(size=obs.shape).astype(np.float32)
        taken, listed, batch = trained.act(one), trained.act(one.tolist()), trained.act(one[None])[0]
        np.testing.assert_array_equal(taken, listed)
        np.testing.assert_array_equal(taken, batch)
        assert type(taken) is type(listed)
        assert np.asarray(taken).dtype == np.asarray(listed).dtype


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
@pytest.mark.parametrize("widths", [[9], [50], [30, 6]])
@pytest.mark.parametrize("actions", [1, 2])
def test_layers_of_odd_sizes_have_the_bits_of_a_batch(
    actions: int, widths: list[int], algo: str, tmp_path: Path
) -> None:
    obs, action = spaces.Box(-9, 9, (7,), np.float32), spaces.Box(-1, 1, (actions,), np.float32)
    path = save(tmp_path, "odd", env_spec("odd", obs, action, 10), algo, {"widths": widths})
    trained, rows = rltrain.load(path, best=True), np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    np.testing.assert_array_equal(trained.act(rows), [trained.act(row) for row in rows])


def test_an_action_stays_as_it_is_when_the_next_one_is_taken(tmp_path: Path) -> None:
    trained = rltrain.load(saved(tmp_path, "a2c"), best=True)
    taken = trained.act(np.zeros(3, np.float32))
    kept = taken.copy()

    assert not np.array_equal(trained.act(np.ones(3, np.float32)), kept)
    np.testing.assert_array_equal(taken, kept)


@pytest.mark.parametrize("change", ["in place", "other memory", "another act"])
def test_a_changed_policy_acts_as_it_is_now(change: str, tmp_path: Path) -> None:
    _, obs, action, settings = CASES["dqn"]
    trained = rltrain.load(save(tmp_path, "dqn", env_spec("dqn", obs, action, 10), "dqn", settings), best=True)
    rows = np.random.default_rng(0).normal(size=(40, *obs.shape)).astype(np.float32)
    before = [trained.act(row) for row in rows]
    weight, bias = trained.policy.net.advantage.pairs[-1]
    if change == "in place":
        weight.data.neg_()
        bias.data.neg_()
    elif change == "other memory":
        weight.data, bias.data = -weight.data, -bias.data
    else:
        base = type(trained.policy)
        changed = type(
            "Changed", (base,), {"act": lambda self, *inputs: base.act(self, *inputs)._replace(action=FIRST)}
        )
        trained.policy.__class__ = changed
        trained = Trained(trained.policy, trained.spec, trained.config, trained.path)
    after = [trained.act(row) for row in rows]

    assert after == [trained.act(row.tolist()) for row in rows] != before


def test_several_threads_act_with_one_policy(tmp_path: Path) -> None:
    """Each thread has inputs and hidden layers of its own."""
    _, obs, action, _ = CASES["ppo-box-sde"]
    spec = env_spec("box", obs, action, 10)
    trained = rltrain.load(save(tmp_path, "box", spec, "ppo", {"widths": [64, 64]}), best=True)
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    expected = [trained.act(row) for row in rows]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(trained.act, rows))
            np.testing.assert_array_equal(found, expected)


def test_a_policy_that_has_acted_can_be_copied_and_learns(tmp_path: Path) -> None:
    """The memory of its forward pass is not part of it."""
    trained = rltrain.load(saved(tmp_path, "ppo-discrete"), best=True)
    row = np.zeros(3, np.float32)
    before = trained.act(row, action_mask=[1, 1, 1])
    policy = copy.deepcopy(trained.policy)
    with torch.no_grad():
        for weight, _ in policy.actor.pairs:
            weight.neg_()
    assert trained.act(row, action_mask=[1, 1, 1]) == before
    pickle.loads(pickle.dumps(trained.policy.actor))
    x = torch.randn(16, 3)
    trained.policy.actor.forward(x).sum().backward()
    assert trained.policy.actor.pairs[0][0].grad is not None
