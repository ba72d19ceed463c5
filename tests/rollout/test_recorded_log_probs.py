"""Recordings hold the log probability of each action under the policy that chose it, with all of its exploration.

Those of DQN, SAC and their kin also hold the value of each observation under that policy.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from oracles.acting import Bench
from torch.distributions import Categorical, Normal

import rltrain
from rltrain.algorithms.off_policy.continuous_policy import SquashedGaussian
from rltrain.algorithms.off_policy.q_policy import QPolicy
from rltrain.algorithms.protocol import modules_of, state_values
from rltrain.data.command import run_data
from rltrain.data.episodes import Recorded, episodes_of
from rltrain.data.off_policy.target import Steps, Target
from rltrain.data.record import NetworkPlayer
from rltrain.data.record import episodes as play
from rltrain.envs.make import resolve
from rltrain.errors import CheckpointError
from rltrain.evaluation.policy import value_function
from rltrain.learner.algorithm import make_algorithm
from rltrain.rollout.actor.actor import Actor
from rltrain.rollout.types import hooks_of
from rltrain.setup import rollout as setup_rollout
from rltrain.storage import checkpoint
from rltrain.storage.recording import Recorder, Recording

QUIET: dict[str, Any] = {"workers": 0, "eval_every": 0, "checkpoint_every": 0, "preset": "none", "quiet": True}
UNTRAINED: dict[str, Any] = {**QUIET, "streams": 3, "steps": 60, "warmup": 59, "random_start": False, "widths": (8,)}
UNTRAINED |= {"lr": 1e-9, "batch": 4}
EPSILON: dict[str, Any] = {"epsilon": 0.3, "epsilon_end": 0.3}


def recorded(folder: Path, **given: Any) -> tuple[rltrain.Trained, list[Recorded], Recording]:
    """The policy of a run, which is the one that acted if the run makes no update, and what was recorded."""
    result = rltrain.train(**given, out=str(folder / "runs"), record=str(folder / "rec"))
    recording = Recording.open(folder / "rec")
    return rltrain.load(result.run), list(episodes_of(recording)), recording


def obs_of(one: Recorded) -> torch.Tensor:
    return torch.from_numpy(one.obs[0][:-1])


def test_of_sac_with_box_actions(tmp_path: Path) -> None:
    trained, episodes, _ = recorded(tmp_path, algo="sac", env="Pendulum-v1", **UNTRAINED)
    for one in episodes:
        mean, log_std = trained.policy.actor.forward(obs_of(one))[0].detach().double().chunk(2, -1)
        action = torch.from_numpy(one.action).double()
        before = Normal(mean, log_std.clamp(-20, 2).exp()).log_prob(torch.atanh(action))
        expected = (before - torch.log1p(-(action**2))).sum(-1)
        np.testing.assert_allclose(one.extras["log_prob"], expected, atol=1e-4)


def test_of_sac_with_masked_actions(tmp_path: Path) -> None:
    trained, episodes, _ = recorded(tmp_path, algo="sac", env="probe:masked", **UNTRAINED)
    for one in episodes:
        assert one.mask is not None
        logits = trained.policy.actor.forward(trained.policy.normalised(obs_of(one)))[0].detach()
        legal = torch.where(torch.from_numpy(one.mask[:-1]), logits, -torch.inf)
        expected = Categorical(logits=legal).log_prob(torch.from_numpy(one.action))
        np.testing.assert_allclose(one.extras["log_prob"], expected, atol=1e-5)


@pytest.mark.parametrize("each", [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_of_dqn(each: bool, tmp_path: Path) -> None:
    """Epsilon over the legal actions; with `epsilon_per_stream` that of the stream."""
    words = {**UNTRAINED, **EPSILON, "epsilon_per_stream": each, "epsilon": 0.6 if each else 0.3}
    trained, _, recording = recorded(tmp_path, algo="dqn", env="probe:masked", **words)
    seen = set()
    for piece in recording.pieces():
        for t, b in zip(*np.nonzero(piece.valid), strict=True):
            legal = piece.action_mask[t, b]
            q = trained.policy.q(torch.from_numpy(piece.obs[t, b : b + 1]))[0].detach().numpy()
            stream = int(piece.stream[b])
            epsilon = 0.6 ** (1 + 7 * stream / 2) if each else 0.3
            greedy = np.where(legal, q, -np.inf).argmax() == piece.action[t, b]
            probability = epsilon / legal.sum() + (1 - epsilon) * greedy
            assert piece.extras["log_prob"][t, b] == pytest.approx(np.log(probability), abs=1e-4)
            value = epsilon * q[legal].mean() + (1 - epsilon) * q[legal].max()
            assert piece.extras["value"][t, b] == pytest.approx(value, abs=1e-5)
            seen.add((stream, bool(greedy)))
    assert len(seen) >= 4


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        pytest.param("Pendulum-v1", -np.log(2), marks=pytest.mark.sweep),
        pytest.param("CartPole-v1", -np.log(2), marks=pytest.mark.sweep),
        ("probe:masked", None),
    ],
)
def test_of_random_first_steps(env: str, expected: float | None, tmp_path: Path) -> None:
    """The last of the steps are those of the policy."""
    words = {**UNTRAINED, "random_start": True, "warmup": 45}
    _, _, recording = recorded(tmp_path, algo="sac", env=env, **words)
    columns: dict[int, list[np.ndarray]] = {}
    for piece in recording.pieces():
        mask = np.zeros((piece.rows, 3)) if piece.action_mask is None else np.log(piece.action_mask[:-1].sum(-1))
        uniform = -mask if expected is None else np.full((piece.rows, 3), expected)
        for b, stream in enumerate(piece.stream.tolist()):
            same = np.isclose(piece.extras["log_prob"][:, b], uniform[:, b], atol=1e-6) | ~piece.valid[:, b]
            columns.setdefault(stream, []).append(same)
    for parts in columns.values():
        same = np.concatenate(parts)
        assert same[:15].all()
        assert not same[15:].all()


@pytest.mark.parametrize(
    ("algo", "env", "more"),
    [
        ("dqn", "CartPole-v1", {"memory": "gru", "memory_size": 8, "burn_in": 2, "length": 4, **EPSILON}),
        pytest.param(
            "sac",
            "CartPole-v1",
            {"memory": "lstm", "memory_size": 8, "burn_in": 2, "length": 4},
            marks=pytest.mark.sweep,
        ),
        pytest.param("sac", "probe:dict", {}, marks=pytest.mark.sweep),
        ("sac", "Pendulum-v1", {"sde": True, "sde_every": 1}),
    ],
)
def test_are_those_of_the_policy_at_the_recorded_observations(
    algo: str, env: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """Also with a memory, which the recording does not hold."""
    trained, episodes, recording = recorded(tmp_path, algo=algo, env=env, **UNTRAINED | more)
    steps = Steps.of(episodes, recording.spec)
    expected = Target(trained, True, 0).log_prob(steps)

    assert len(np.unique(expected)) > 3 or algo == "dqn"
    np.testing.assert_allclose(np.concatenate([one.extras["log_prob"] for one in episodes]), expected, atol=1e-4)
    if algo == "dqn":
        for one in episodes:
            core: Any = torch.zeros(1, trained.policy.core_size)
            for t, obs in enumerate(obs_of(one)):
                q, core = trained.policy.step(obs[None], core, False, None)
                value = 0.3 * q.mean() + 0.7 * q.max()
                assert one.extras["value"][t] == pytest.approx(value.item(), abs=1e-5)


@pytest.mark.parametrize(("algo", "env"), [("dqn", "CartPole-v1"), ("sac", "Pendulum-v1")])
def test_do_not_depend_on_workers_nor_on_where_the_policy_is(algo: str, env: str, tmp_path: Path) -> None:
    words = {**UNTRAINED, "algo": algo, "env": env, "warmup": 30, "random_start": True, "seed": 3, "lr": 1e-2}
    _, here, _ = recorded(tmp_path / "here", **words)
    _, there, _ = recorded(tmp_path / "there", **words | {"workers": 2, "inference": "central"})

    for one, same in zip(here, there, strict=True):
        assert one.extras.keys() == {"log_prob", "value"}
        for name, values in one.extras.items():
            np.testing.assert_array_equal(values, same.extras[name])


def learner_of(trained: rltrain.Trained) -> Any:
    """The algorithm of a checkpoint, with all its networks."""
    algorithm = make_algorithm(trained.config, trained.spec)
    parts = checkpoint.load(trained.path).state["learner"]["parts"]
    for name, part in algorithm.parts().items():
        part.load_state_dict(checkpoint.to_tensors(parts[name]))
    return algorithm


def value_of_one(algorithm: Any, obs: torch.Tensor, mask: torch.Tensor | None) -> float:
    """The value of one observation, action by action; the noise of Box actions is that of the source, by its words."""
    policy, alpha = algorithm.policy, float(getattr(algorithm, "temperature", Fixed()).value())
    alpha = 0.0 if type(algorithm).__name__ == "CQL" else alpha
    normal = policy.normalised(obs[None])
    if algorithm.policy.spec.action.kind == "discrete":
        logits = policy.actor.forward(normal)[0, 0]
        legal = torch.ones(len(logits), dtype=torch.bool) if mask is None else mask
        chances = torch.softmax(torch.where(legal, logits, -torch.inf), 0)
        q = algorithm.critics.forward(normal)[:, 0].amin(0)
        return sum(float(p * (x - alpha * p.log())) for p, x, ok in zip(chances, q, legal, strict=True) if ok)
    half = np.random.default_rng(0).standard_normal((8, policy.size), np.float32)
    values = []
    for noise in torch.from_numpy(np.concatenate([half, -half])):
        if hasattr(policy, "log_std"):  # of AWAC: a normal distribution, clipped
            action = policy.distribution(normal, None).sample(noise[None]).clamp(-1, 1)
            log_prob = 0.0
        else:
            dist = policy.action_distribution(obs[None], None, None, noise)
            action = dist.sample(noise[None])
            log_prob = float(dist.log_prob(action))
        z = algorithm.critics.forward(normal, action.reshape(1, -1))[:, 0]  # [n, outputs]
        quantiles = sorted(z.flatten().tolist())
        drop = len(z) * algorithm.config.drop if hasattr(algorithm.config, "drop") else len(z) - 1
        values.append(np.mean(quantiles[: len(quantiles) - drop]) - alpha * log_prob)
    return float(np.mean(values))


class Fixed:
    """The temperature of an algorithm that has none."""

    def value(self) -> float:
        return 0.0


class Scalar(gymnasium.Env[Any, Any]):
    """The action is one number without dimensions."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 2, (), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 9
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), float(action), self.left == 0, False, {}


@pytest.mark.parametrize(
    ("algo", "env", "more"),
    [
        ("sac", "Pendulum-v1", {"critics": 3}),
        ("sac", "probe:masked", {}),
        pytest.param("sac", Scalar, {}, marks=pytest.mark.sweep),
        pytest.param("sac", "Pendulum-v1", {"sde": True, "sde_every": 1}, marks=pytest.mark.sweep),
        pytest.param("droq", "Pendulum-v1", {}, marks=pytest.mark.sweep),
        ("tqc", "Pendulum-v1", {"critics": 3, "quantiles": 5, "drop": 2}),
        ("crossq", "Pendulum-v1", {}),
    ],
)
def test_hold_the_values_of_the_learner_if_actors_have_no_critics(
    algo: str, env: Any, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the weights after the updates that follow a step; the last ones are those of the last checkpoint."""
    monkeypatch.setattr("rltrain.learner.learner.VALUED", 2)  # of 9 rows
    words = {**UNTRAINED, "steps": 63, "warmup": 30, "lr": 1e-2, "unroll": 3, "temperature": 0.3}
    trained, _, recording = recorded(tmp_path, algo=algo, env=env, **words | more)
    algorithm, last = learner_of(trained), list(recording.pieces())[-1]

    with torch.no_grad():
        for t, b in itertools.product(range(last.rows - 3, last.rows), range(3)):
            mask = None if last.action_mask is None else torch.from_numpy(last.action_mask[t, b])
            expected = value_of_one(algorithm, torch.from_numpy(last.obs[t, b]), mask)
            assert last.extras["value"][t, b] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert len(np.unique(last.extras["value"])) > 3


@pytest.mark.parametrize(
    ("algo", "env"),
    [
        ("sac", "Pendulum-v1"),
        ("sac", "CartPole-v1"),
        ("cql", "Pendulum-v1"),
        ("awac", "Pendulum-v1"),
        ("awac", "CartPole-v1"),
        ("implicit_q", "Pendulum-v1"),
        ("marwil", "Pendulum-v1"),
    ],
)
def test_of_a_checkpoint_hold_the_values_of_its_learner(algo: str, env: Any, tmp_path: Path) -> None:
    """The weights are trained, and the observations normalised."""
    words = {**UNTRAINED, "warmup": 20, "lr": 1e-2, "normalize_obs": True, "env": env, "out": str(tmp_path)}
    result = rltrain.train(algo="sac", **words, record=str(tmp_path / "data"))
    if algo != "sac":
        given = {**QUIET, "steps": 20, "batch": 4, "widths": (8,), "lr": 1e-2, "normalize_obs": True, "env": env}
        result = rltrain.train(algo=algo, **given, data=str(tmp_path / "data"), out=str(tmp_path))
    trained = rltrain.load(result.run)
    assert run_data(["record", str(result.run), str(tmp_path / "played"), "--episodes", "1", "--trust"], "")[1] == 0
    algorithm, (one,) = learner_of(trained), episodes_of(Recording.open(tmp_path / "played"))

    with torch.no_grad():
        for t in {0, one.steps // 2, one.steps - 1}:
            obs = obs_of(one)[t]
            if algo in ("implicit_q", "marwil"):
                expected = float(algorithm.value.forward(trained.policy.normalised(obs[None])))
            else:
                expected = value_of_one(algorithm, obs, None)
            assert one.extras["value"][t] == pytest.approx(expected, rel=1e-4, abs=1e-4)


class Own(SquashedGaussian):
    """A user's policy, whose `sample` takes what the protocol says."""

    def sample(self, obs: Any, noise: torch.Tensor, **options: Any) -> Any:
        assert noise.ndim == 2
        return super().sample(obs, noise, **options)


def test_of_a_users_own_policy_are_the_same(tmp_path: Path) -> None:
    rltrain.register_policy("own-gaussian", Own)
    words = {**UNTRAINED, "algo": "sac", "env": "Pendulum-v1"}
    _, one, _ = recorded(tmp_path / "ours", **words)
    _, other, _ = recorded(tmp_path / "own", **words, policy="own-gaussian")

    np.testing.assert_allclose(one[0].extras["value"], other[0].extras["value"], rtol=1e-5)


@pytest.mark.parametrize(
    ("algo", "more"),
    [("ppo", {"shared_torso": True}), ("a2c", {}), ("impala", {"max_lag": None, "wait": 3}), ("appo", {"wait": 3})],
)
@pytest.mark.parametrize("scaled", [True, False])
def test_of_actor_critics_are_in_the_unit_of_the_rewards(
    algo: str, more: dict[str, Any], scaled: bool, tmp_path: Path
) -> None:
    """Their critics learn rewards that are divided by a running deviation; the recorded values are multiplied by it."""
    words = {**QUIET, "streams": 3, "unroll": 10, "steps": 60, "widths": (4,), "normalize_return": scaled}
    trained, _, recording = recorded(tmp_path, algo=algo, env="Pendulum-v1", **words | more)
    *_, last = recording.pieces()
    policy = learner_of(trained).policy
    unit = 1 / float(policy.return_scale.scale()) if scaled else 1.0

    with torch.no_grad():
        for t, b in itertools.product(range(last.rows - 10, last.rows), range(3)):
            expected = unit * float(policy.value(torch.from_numpy(last.obs[t, b])[None]))
            assert last.extras["value"][t, b] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert not scaled or unit > 5


@pytest.mark.parametrize("known", [True, False])
def test_the_learners_values_replace_those_of_the_policy(known: bool, tmp_path: Path) -> None:
    """PPO with a shared torso returns values when it acts, in the unit of scaled rewards."""
    few = {**QUIET, "streams": 2, "unroll": 8, "steps": 16, "widths": (4,)}
    _, _, recording = recorded(tmp_path, algo="ppo", env="CartPole-v1", **few)
    (piece,) = recording.pieces()
    of_policy = dataclasses.replace(piece, extras={**piece.extras, "value": np.ones((piece.rows, 2), np.float32)})
    recorder = Recorder(tmp_path / "again", {"streams": 2}, recording.spec)
    recorder.add([of_policy], lambda one: np.full((one.rows, 2), 3, np.float32) if known else None)
    recorder.flush()

    (found,) = Recording.open(tmp_path / "again").pieces()
    assert set(found.extras["value"].ravel().tolist()) == {3.0 if known else 1.0}


def test_values_are_computed_in_eval_mode(tmp_path: Path) -> None:
    """Dropout would make them random."""
    words = {**UNTRAINED, "algo": "sac", "env": "CartPole-v1", "torso": Drops}
    trained, _, recording = recorded(tmp_path, **words)
    algorithm, (*_, last) = learner_of(trained), recording.pieces()
    for part in modules_of(algorithm):
        part.eval()

    with torch.no_grad():
        for b in range(3):
            expected = value_of_one(algorithm, torch.from_numpy(last.obs[last.rows - 1, b]), None)
            assert last.extras["value"][-1, b] == pytest.approx(expected, rel=1e-4, abs=1e-4)


class Wide(rltrain.algorithm_class("sac")):  # type: ignore[misc]
    """An algorithm of a user's, whose values have a dimension too many."""

    def state_value(self, obs: Any, action_mask: Any) -> torch.Tensor:
        return super().state_value(obs, action_mask)[:, None]


class Raises(rltrain.algorithm_class("sac")):  # type: ignore[misc]
    """An algorithm of a user's that can be made once."""

    made = 0

    def __init__(self, *inputs: Any) -> None:
        Raises.made += 1
        if Raises.made > 1:
            raise KeyError("mine")
        super().__init__(*inputs)


def test_values_of_a_wrong_shape_are_one_line() -> None:
    made = Bench("sac", "Pendulum-v1", widths=(4,)).algorithm
    made.__class__ = Wide
    with pytest.raises(
        ValueError, match=r"state_value of Wide must return one value for each .*, \(3,\); got \(3, 1\)"
    ):
        state_values(made, torch.zeros(3, 3), None)


def test_an_exception_of_a_users_algorithm_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, _, _ = recorded(tmp_path, algo="sac", env="Pendulum-v1", **UNTRAINED)
    monkeypatch.setattr("rltrain.algorithms.algorithm_class", lambda name: Raises)
    monkeypatch.setattr(Raises, "made", 1)
    with pytest.raises(KeyError, match="mine"):
        value_function(trained)


def test_forged_critics_are_refused_before_they_are_made(tmp_path: Path) -> None:
    trained, _, _ = recorded(tmp_path, algo="sac", env="Pendulum-v1", **UNTRAINED)
    saved = checkpoint.load(trained.path)
    saved.meta["config"]["settings"]["critics"] = 900
    checkpoint.save(tmp_path, "forged", saved.state, saved.meta)
    forged = rltrain.load(tmp_path / "forged")  # does not need them
    with pytest.raises(CheckpointError, match="900 critics with layers of"):
        value_function(forged)


def test_the_weights_of_a_learner_are_finite(tmp_path: Path) -> None:
    trained, _, _ = recorded(tmp_path, algo="sac", env="Pendulum-v1", **UNTRAINED)
    saved = checkpoint.load(trained.path)
    saved.state["learner"]["parts"]["critics"]["dense.bias0"][:] = np.nan
    checkpoint.save(tmp_path, "spoiled", saved.state, saved.meta)
    spoiled = rltrain.load(tmp_path / "spoiled")
    with pytest.raises(CheckpointError, match=r"not finite, in dense\.bias0"):
        value_function(spoiled)


def test_values_are_missing_where_nobody_knows_them(tmp_path: Path) -> None:
    """With a memory the critics' memories are not known; a best policy is saved without the critics."""
    memory = {"memory": "gru", "memory_size": 8, "burn_in": 2, "length": 4}
    trained, episodes, _ = recorded(tmp_path / "a", algo="sac", env="CartPole-v1", **UNTRAINED | memory)
    assert "value" not in episodes[0].extras
    assert value_function(trained) is None
    words = {**UNTRAINED, "eval_every": 20, "eval_episodes": 1}
    trained, _, _ = recorded(tmp_path / "b", algo="sac", env="CartPole-v1", **words)
    assert value_function(trained) is not None
    saved = checkpoint.load(trained.path)  # of a version with fewer parts
    del saved.state["learner"]["parts"]["target"]
    checkpoint.save(tmp_path, "older", saved.state, saved.meta)
    assert value_function(rltrain.load(tmp_path / "older")) is None
    assert value_function(rltrain.load(trained.path.parent.parent, best=True)) is None
    run = str(trained.path.parent.parent)
    assert run_data(["record", run, str(tmp_path / "g"), "--episodes", "1", "--greedy"], "")[1] == 0
    (one,) = episodes_of(Recording.open(tmp_path / "g"))
    assert one.extras == {}


def test_are_missing_where_there_is_no_distribution(tmp_path: Path) -> None:
    for i, (algo, more) in enumerate([("td3", {}), ("sac", {"sde": True})]):
        _, episodes, _ = recorded(tmp_path / str(i), algo=algo, env="Pendulum-v1", **UNTRAINED | more)
        assert "log_prob" not in episodes[0].extras
    _, episodes, _ = recorded(tmp_path / "noisy", algo="dqn", env="CartPole-v1", **UNTRAINED, noisy=True)
    assert "log_prob" not in episodes[0].extras


def test_a_class_that_replaces_act_has_not_the_distribution_of_its_base(tmp_path: Path) -> None:
    trained, _, _ = recorded(tmp_path, algo="dqn", env="CartPole-v1", **UNTRAINED)
    base = type(trained.policy)
    acts = type("Acts", (base,), {"act": lambda self, *inputs: base.act(self, *inputs)})
    both = type("Both", (acts,), {"action_distribution": base.action_distribution})

    for kind, known in ((base, True), (acts, False), (both, True)):
        policy = kind.__new__(kind)
        policy.__dict__.update(trained.policy.__dict__)
        assert (hooks_of(policy).action_distribution is not None) is known
        assert (hooks_of(policy).state_value is not None) is (kind is base)


class Drops(torch.nn.Module):
    """A torso whose output differs in training: it draws random numbers, and its batches have statistics."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
        self.features = 8

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.layers(obs)


class Counts(torch.nn.Module):
    """A torso whose output depends on the number of its calls."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.features = 4
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        if not torch.is_inference_mode_enabled():  # the learner calls it
            self.calls += 1
        self.last = obs[0].detach().clone()
        return obs + 0.01 * self.calls


@pytest.mark.parametrize(("algo", "torso"), [("dqn", "auto"), ("sac", "auto"), ("sac", Drops), ("sac", Counts)])
def test_a_recording_changes_nothing_in_the_run(algo: str, torso: Any, tmp_path: Path) -> None:
    words = {**UNTRAINED, "algo": algo, "env": "CartPole-v1", "warmup": 10, "lr": 0.1, "out": str(tmp_path / "runs")}
    words |= {"torso": torso}
    torch.manual_seed(0)
    with_record = rltrain.train(**words, record=str(tmp_path / "rec"))
    torch.manual_seed(0)
    without = rltrain.train(**words)
    one, other = (rltrain.load(result.run).policy.state_dict() for result in (with_record, without))

    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("random", [pytest.param(False, marks=pytest.mark.sweep), True])
def test_of_qmix(random: bool, tmp_path: Path) -> None:
    """Each agent has its own; the networks have a memory and the last action."""
    words = {**QUIET, **EPSILON, "algo": "qmix", "env": "two-step", "streams": 2, "steps": 40, "warmup": 39, "lr": 1e-9}
    result = rltrain.train(
        **words, random_start=random, batch=2, out=str(tmp_path / "runs"), record=str(tmp_path / "rec")
    )
    policy = rltrain.load(result.run).policy
    last: dict[int, torch.Tensor] = {}  # the memory of each stream
    for piece in Recording.open(tmp_path / "rec").pieces():
        for b, stream in enumerate(piece.stream.tolist()):
            core = last.get(stream, torch.zeros(1, policy.core_size))
            for t in range(piece.rows):
                core = core * (not piece.first[t, b])
                obs = {name: torch.from_numpy(leaf[t, b : b + 1]) for name, leaf in piece.obs.items()}
                mask = None if piece.action_mask is None else torch.from_numpy(piece.action_mask[t, b : b + 1])
                act = policy.act(obs, core, mask, torch.zeros(1, policy.noise.columns), False)
                legal = np.full(2, 2) if mask is None else piece.action_mask[t, b].reshape(2, 2).sum(-1)
                same = piece.action[t, b] == act.action[0].numpy()
                expected = 1 / legal if random else 0.3 / legal + 0.7 * same
                if piece.valid[t, b] and int(piece.row[b]) + t < 19:
                    np.testing.assert_allclose(np.exp(piece.extras["log_prob"][t, b]), expected, atol=1e-5)
                taken = torch.from_numpy(piece.action[t, b : b + 1])
                core = hooks_of(policy).core_with_action(act.core, taken)
            last[stream] = core


def test_the_short_way_of_actors_is_not_taken_where_they_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`quick_act` adds none. PPO has them in its extras; here it is said to lack them."""
    added: list[int] = []
    monkeypatch.setattr(setup_rollout, "lacks_log_prob", lambda *_: True)
    monkeypatch.setattr(Actor, "_add_recorded", lambda self, t, *_: added.append(t))
    few = {"workers": 0, "streams": 2, "unroll": 8, "steps": 16, "widths": (4,), "eval_every": 0, "preset": "none"}

    rltrain.train(algo="ppo", env="CartPole-v1", record=str(tmp_path / "rec"), out=str(tmp_path), quiet=True, **few)

    assert added == list(range(8))


class Valued(QPolicy):
    """Returns a value of its own, which is doubled when an unroll is complete."""

    def act(self, obs: Any, core: Any, action_mask: Any, noise: torch.Tensor, explore: bool) -> Any:
        act = super().act(obs, core, action_mask, noise, explore)
        return act._replace(extras={"value": torch.ones(len(noise))})

    def summarize_unroll(self, extras: dict[str, torch.Tensor], action: Any, action_mask: Any) -> Any:
        return {**extras, "value": 2 * extras["value"]}

    action_distribution = QPolicy.action_distribution
    state_value = QPolicy.state_value


@pytest.mark.parametrize("inference", ["local", "central"])
def test_a_value_that_act_returns_is_the_recorded_one(inference: str, tmp_path: Path) -> None:
    rltrain.register_policy("valued", Valued)
    workers = 0 if inference == "local" else 1
    words = {**UNTRAINED, "algo": "dqn", "env": "CartPole-v1", "policy": "valued"}
    trained, episodes, _ = recorded(tmp_path, **words | {"workers": workers, "inference": inference})
    player = NetworkPlayer(trained.policy, explore=True)
    for played in itertools.islice(play(resolve("CartPole-v1"), trained.spec, player, 0), 2):
        episodes += played

    for one in episodes:
        assert one.extras["log_prob"].shape == one.extras["value"].shape == (one.steps,)
        assert set(one.extras["value"].tolist()) == {2.0}
