"""Population-based training: who is replaced, settings that reach the update, and a history that replays to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.acting import Bench
from oracles.off_policy import BOX, MASKED, batch_of

import rltrain
from rltrain import algorithms
from rltrain.config.load import load
from rltrain.storage.checkpoint import fingerprint
from rltrain.storage.fork import fork_run
from rltrain.tuning.pbt import PERTURBABLE, explore
from rltrain.tuning.space import Space

ACTOR_CRITIC = {"streams": 2, "unroll": 8, "widths": (4,), "normalize_return": False}
OFF_POLICY = {"widths": (4,), "batch": 8}
# Each setting with an algorithm that has it, what it needs, and another value.
CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "lr": ("ppo", {}, 1e-2),
    "lr_end": ("ppo", {}, 1e-4),
    "gamma": ("ppo", {}, 0.5),
    "lam": ("ppo", {}, 0.5),
    "clip": ("ppo", {"lr": 0.05}, 0.01),
    "clip_end": ("ppo", {"lr": 0.05}, 0.001),
    "value_clip": ("ppo", {"lr": 0.05, "value_clip": 10.0}, 1e-3),
    "value": ("ppo", {}, 2.0),
    "entropy": ("ppo", {}, 0.5),
    "entropy_end": ("ppo", {}, 0.5),
    "max_grad_norm": ("ppo", {}, 1e-3),
    "max_kl": ("ppo", {"lr": 0.05}, 1e-9),
    "adam_eps": ("ppo", {}, 1e-2),
    "epochs": ("ppo", {}, 1),
    "minibatches": ("ppo", {}, 1),
    "rms_eps": ("a2c", {}, 1e-1),
    "rms_alpha": ("a2c", {}, 0.5),
    "rho_bar": ("impala", {"lr": 0.05, "c_bar": 0.1}, 0.5),
    "c_bar": ("impala", {"lr": 0.05}, 0.1),
    "rho_bar_pg": ("impala", {"lr": 0.05}, 0.1),
    "kl": ("appo", {"lr": 0.05, "target_every": 100}, 1.0),
    "lr_q": ("td3", {}, 1e-2),
    "lr_end_share": ("sac", {}, 0.1),
    "lr_temperature": ("sac", {}, 1e-2),
    "target_entropy": ("sac", {}, 3.0),
    "tau": ("sac", {}, 0.5),
    "noise": ("ddpg", {}, 0.7),
    "noise_end": ("ddpg", {}, 0.0),
    "smoothing": ("td3", {}, 0.9),
    "smoothing_clip": ("td3", {}, 1e-3),
    "epsilon": ("dqn", {"epsilon_share": 1.0}, 0.5),
    "epsilon_share": ("dqn", {}, 1.0),
    "epsilon_end": ("dqn", {"epsilon_share": 1.0}, 0.5),
}
RUN: dict[str, Any] = {
    "algo": "ppo", "env": "probe:choice-given-obs", "steps": 320, "streams": 2, "unroll": 8, "widths": (4,),
    "workers": 0, "epochs": 1, "minibatches": 1, "preset": "none", "eval_episodes": 2,
}  # fmt: skip


def built(algo: str, spec: Any, settings: dict[str, Any]) -> Any:
    config = algorithms.settings_class(algo)(**settings)
    return algorithms.algorithm_class(algo)(spec, config, torch.device("cpu"), 3, getattr(config, "streams", 1))


@pytest.fixture(scope="module")
def unrolls() -> Any:
    torch.set_num_threads(1)
    bench = Bench("ppo", "probe:counter", **ACTOR_CRITIC)
    return bench.spec, [bench.collect() for _ in range(3)]


def use_float64(request: pytest.FixtureRequest) -> None:
    """Everything in float64 until the end of the test, as the samples of `batch_of` are."""
    torch.set_default_dtype(torch.float64)
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))


def test_there_is_a_case_for_each_perturbable_setting() -> None:
    assert sorted(CASES) == sorted(PERTURBABLE)


@pytest.mark.parametrize("setting", CASES)
def test_a_changed_setting_reaches_the_update_after_the_checkpoint_is_loaded(
    setting: str, unrolls: Any, request: pytest.FixtureRequest
) -> None:
    algo, needs, value = CASES[setting]
    on_policy = algo in ("ppo", "a2c", "impala", "appo")
    spec, batches = unrolls
    if on_policy:
        settings = {**ACTOR_CRITIC, **({"epochs": 2, "minibatches": 2} if algo == "ppo" else {}), **needs}
    else:
        spec = MASKED if algo == "dqn" else BOX
        batches, settings = [batch_of(spec, seed) for seed in (1, 2, 3)], {**OFF_POLICY, **needs}
    if not on_policy:
        use_float64(request)
    first = built(algo, spec, settings)
    for batch in batches[:2]:
        first.update(batch, 0.2)
    saved = copy.deepcopy({name: part.state_dict() for name, part in first.parts().items()})

    def continued(own: dict[str, Any]) -> str:
        again = built(algo, spec, own)
        for name, part in again.parts().items():
            part.load_state_dict(copy.deepcopy(saved[name]))
        for _ in range(2):
            again.update(batches[2], 0.4)
        return fingerprint({name: part.state_dict() for name, part in again.parts().items()})

    assert continued(settings) == continued(settings)
    assert continued({**settings, setting: value}) != continued(settings)


def test_a_fork_without_changes_is_the_run_and_one_with_changes_is_not(tmp_path: Path) -> None:
    every = {"eval_every": 40, "checkpoint_every": 40, "quiet": True}
    whole = rltrain.train(**RUN, **every, out=str(tmp_path / "a"))
    part = rltrain.train(**RUN, **every, out=str(tmp_path / "b"), pause_at=160)
    ends = []
    for name, settings in (("same", {}), ("other", {"lr": 0.05})):
        fork_run(part.run, tmp_path / name / part.run.name, settings)
        ends.append(rltrain.train(resume=tmp_path / name / part.run.name, quiet=True).fingerprint)
    assert ends[0] == whole.fingerprint != ends[1]


def test_a_neighbour_lies_in_the_range() -> None:
    space = Space.of("lr=1e-4..1e-3:log,epochs=1..3,minibatches=1|2|4", load(RUN))
    rng = np.random.default_rng(0)
    for one, values in zip(space.dimensions, (1e-4, 1, 1), strict=True):
        seen = {explore(one, values, rng) for _ in range(20)}
        assert len(seen) == 2
        assert all(type(value) is type(values) for value in seen)
    assert {explore(space.dimensions[0], 5e-4, rng) for _ in range(20)} == {5e-4 * 1.25, 5e-4 / 1.25}
    assert {explore(space.dimensions[2], 2, rng) for _ in range(20)} == {1, 4}


@pytest.mark.sweep
def test_a_population_replays_to_the_bit_and_continues_after_a_kill(tmp_path: Path) -> None:
    from rltrain.jobs import pool
    from rltrain.tuning.pbt import Population
    from rltrain.tuning.tune import _reopened, tune

    options = {"scheduler": "pbt", "population": 4, "intervals": 4, "confirm": 1}
    tuned = tune("lr=1e-5..1e-1:log,entropy=1e-4..1e-1:log", name=str(tmp_path / "s"), options=options, **RUN)
    folder, config, space, chosen = _reopened(tmp_path / "s", None, False)
    population = Population(folder, config, space, chosen, pool.pool(), lambda _: None)
    members = population.state.trials
    assert any(member.home for member in members)
    winner = population.state.winner
    assert winner is not None
    for member in (winner, next(member for member in members if member.home)):
        part = population.replay(member, tmp_path / f"replay{member.number}")
        assert part.fingerprint == member.fingerprints[0]
    assert len(tuned.winner) == 1
    pool.close()
