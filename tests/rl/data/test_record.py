"""`rldata record` and `rldata make`: the episodes are those of the policy, seeded, with probabilities and scores."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import rltrain
from rltrain.data import make as making
from rltrain.data import record as playing
from rltrain.data.episodes import Recorded, episodes_of
from rltrain.envs.seeding import RECORDED, seed_of
from rltrain.envs.spec import EnvSpec
from rltrain.storage.recording import Recording, Reference, reference_of

Rldata = Callable[..., str]
QUIET: dict[str, Any] = {"workers": 0, "eval_every": 0, "preset": "none", "quiet": True}
POLICY = """
import numpy as np
def act(obs):
    return int(obs[2] + obs[3] > 0)
def all_words(obs, env, action_mask, rng):
    assert env.unwrapped.state is not None and action_mask is None
    return rng.integers(2)
def wrong(obs):
    return 7
def nothing(obs):
    return None
def breaks(obs):
    raise KeyError("mine")
def torque(obs):
    return np.array([-1.5])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of PPO with four checkpoints and its recording."""
    folder = tmp_path_factory.mktemp("ppo")
    some = {"epochs": 4, "minibatches": 2, "widths": (16,), "streams": 4, "unroll": 32, "lr": 3e-3}
    result = rltrain.train(
        algo="ppo", env="CartPole-v1", **QUIET, **some, steps=3000, checkpoint_every=750, keep=20, out=str(folder),
        record=folder / "rec",
    )  # fmt: skip
    return result.run


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(POLICY)
    return tmp_path


def read(folder: Path) -> list[Recorded]:
    return list(episodes_of(Recording.open(folder)))


def test_episodes_are_those_that_the_environment_plays(rldata: Rldata, policies: Path) -> None:
    """Each is repeated in an environment that is stepped by hand, to the bit."""
    rldata("record", "mine.py:act", "out", "--env", "CartPole-v1", "--episodes", 18, "--seed", 5)
    episodes = read(policies / "out")

    assert len(episodes) == 18
    env = gymnasium.make("CartPole-v1")
    for number, one in enumerate(episodes):
        obs = [env.reset(seed=seed_of(5, RECORDED, number))[0]]
        for action in one.action.tolist():
            assert action == int(obs[-1][2] + obs[-1][3] > 0)
            after, _, terminated, truncated, _ = env.step(action)
            obs.append(after)
        np.testing.assert_array_equal(one.obs[0], np.array(obs))
        assert (terminated, truncated, one.whole) == (one.terminated, one.truncated, True)
    assert "nothing is wrong" in rldata("check", "out")


def test_functions_get_what_they_ask_for_in_the_units_of_the_environment(rldata: Rldata, policies: Path) -> None:
    rldata("record", "mine.py:all_words", "a", "--env", "CartPole-v1", "--episodes", 3)
    rldata("record", "mine.py:torque", "b", "--env", "Pendulum-v1", "--episodes", 1)

    assert len({action for one in read(policies / "a") for action in one.action.tolist()}) == 2
    assert set(read(policies / "b")[0].action.ravel().tolist()) == {-0.75}  # the bound is 2


def test_the_number_of_episodes_at_once_does_not_matter(
    rldata: Rldata, run: Path, policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rldata("record", run, "a", "--episodes", 5, "--seed", 1)
    monkeypatch.setattr(playing, "AT_ONCE", 2)
    rldata("record", run, "b", "--episodes", 5, "--seed", 1)
    rldata("record", run, "c", "--episodes", 5, "--seed", 2)

    one, other, third = ([x.obs[0].tobytes() for x in read(policies / name)] for name in "abc")
    assert one == other
    assert not set(one) & set(third)
    for a, b in zip(read(policies / "a"), read(policies / "b"), strict=True):
        np.testing.assert_array_equal(a.extras["log_prob"], b.extras["log_prob"])


def test_log_probabilities_are_those_of_the_policy(rldata: Rldata, run: Path, policies: Path) -> None:
    """Of the logits by the definition of the softmax."""
    rldata("record", run, "sampled", "--steps", 100)
    policy: Any = rltrain.load(run).policy
    for one in read(policies / "sampled"):
        with torch.no_grad():
            logits = policy.act(torch.from_numpy(one.obs[0][:-1]), None, None, torch.zeros(one.steps, 2), True)
        scores = logits.extras["head"].numpy().astype(np.float64)[:, :2]
        wanted = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        np.testing.assert_allclose(
            one.extras["log_prob"], np.take_along_axis(wanted, one.action[:, None], 1)[:, 0], atol=1e-5
        )


def test_log_probabilities_of_q_learning_and_of_sac(rldata: Rldata, policies: Path) -> None:
    """Epsilon-greedy: a half of epsilon for the other action. SAC: the density of tanh of a normal number."""
    some: dict[str, Any] = {"widths": (8,), "streams": 1, "warmup": 5, "batch": 4, "steps": 20, "out": str(policies)}
    dqn = rltrain.train(algo="dqn", env="CartPole-v1", **QUIET, **some, epsilon=0.4, epsilon_end=0.4)
    rldata("record", dqn.run, "a", "--episodes", 3)
    found = np.concatenate([one.extras["log_prob"] for one in read(policies / "a")])
    assert set(np.exp(found.astype(np.float64)).round(5).tolist()) == {0.2, 0.8}
    policy: Any = rltrain.load(dqn.run).policy
    for one in read(policies / "a"):
        q = policy.q(torch.from_numpy(one.obs[0][:-1])).detach().numpy()
        np.testing.assert_allclose(one.extras["value"], 0.4 * q.mean(1) + 0.6 * q.max(1), atol=1e-5)

    sac = rltrain.train(algo="sac", env="Pendulum-v1", **QUIET, **some)
    rldata("record", sac.run, "b", "--episodes", 1)
    (one,) = read(policies / "b")
    policy: Any = rltrain.load(sac.run).policy
    with torch.no_grad():
        dist = policy.action_distribution(torch.from_numpy(one.obs[0][:-1]), None, None, torch.zeros(one.steps, 1))
    u = torch.atanh(torch.from_numpy(one.action).double().clamp(-0.999999, 0.999999))
    normal = torch.distributions.Normal(dist.mean.double(), dist.log_std.double().exp()).log_prob(u)
    wanted = (normal - torch.log(1 - torch.tanh(u) ** 2))[:, 0].numpy()
    inner = np.abs(one.action[:, 0]) < 0.999
    np.testing.assert_allclose(one.extras["log_prob"][inner], wanted[inner], atol=1e-3)


def test_random_actions_have_their_probability(rldata: Rldata, policies: Path) -> None:
    rldata("record", "random", "a", "--env", "CartPole-v1", "--steps", 500)
    rldata("record", "random", "b", "--env", "Pendulum-v1", "--episodes", 1)
    rldata("record", "random", "c", "--env", "probe:masked", "--episodes", 3)
    episodes = read(policies / "a")
    steps = [one.steps for one in episodes]

    assert sum(steps) >= 500 > sum(steps[:-1])
    assert {x for one in episodes for x in one.extras["log_prob"].tolist()} == {np.float32(-math.log(2))}
    assert abs(np.concatenate([one.action for one in episodes]).mean() - 0.5) < 0.1
    assert set(read(policies / "b")[0].extras["log_prob"].tolist()) == {np.float32(-math.log(2))}  # density 1/2
    for one in read(policies / "c"):
        assert one.mask is not None
        np.testing.assert_allclose(one.extras["log_prob"], -np.log(one.mask[:-1].sum(1)), rtol=1e-6)
        assert np.take_along_axis(one.mask[:-1], one.action[:, None], 1).all()


def test_greedy_episodes_have_no_probabilities(rldata: Rldata, run: Path, policies: Path) -> None:
    rldata("record", run, "a", "--episodes", 2, "--greedy")
    trained = rltrain.load(run)
    for one in read(policies / "a"):
        assert not one.extras
        np.testing.assert_array_equal(one.action, [trained.act(obs) for obs in one.obs[0][:-1]])


def test_policies_with_memory_and_without_a_time_limit(rldata: Rldata, policies: Path) -> None:
    some: dict[str, Any] = {"widths": (8,), "streams": 2, "unroll": 16, "epochs": 1, "minibatches": 1, "steps": 64}
    result = rltrain.train(
        algo="ppo", env="CartPole-v1", memory="gru", memory_size=8, **QUIET, **some, out=str(policies)
    )
    rldata("record", result.run, "a", "--episodes", 3)
    assert [one.terminated for one in read(policies / "a")] == [True] * 3


WRONG = {
    "--episodes and --steps: give one of them": ["mine.py:act", "--env", "CartPole-v1", "--episodes", 1, "--steps", 1],
    "add --env ENV": ["mine.py:act"],
    "there is no such run; a function is named module:function": ["nowhere"],
    "mine.py has no 'atc'. Did you mean 'act'?": ["mine.py:atc", "--env", "CartPole-v1"],
    "--greedy: random is no trained policy": ["random", "--env", "CartPole-v1", "--greedy"],
    "several agents": ["random", "--env", "two-step"],
    "--episodes: must be at least 1": ["random", "--env", "CartPole-v1", "--episodes", 0],
}


@pytest.mark.parametrize("words", WRONG)
def test_mistakes_have_one_line(words: str, refused: Rldata, policies: Path) -> None:
    first, *rest = WRONG[words]
    assert words.lower() in refused("record", first, "out", *rest).lower()
    assert [path.name for path in policies.iterdir() if path.name != "__pycache__"] == ["mine.py"]


def test_a_policy_that_fails_names_seed_and_step(
    rldata: Rldata, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rltrain import cli

    for name, words in {
        "wrong": "mine.py:wrong returned 7 at step 0, which is no action of CartPole-v1: discrete (2,)",
        "nothing": "mine.py:nothing returned None at step 0",
        "breaks": f"raised an exception in an episode with seed {seed_of(0, RECORDED, 0)}, at step 0",
    }.items():
        assert cli.main_data(["record", f"mine.py:{name}", "out", "--env", "CartPole-v1"]) == 1
        said = capsys.readouterr().err
        assert words in said
        assert ("KeyError: 'mine'" in said) == (name == "breaks")
    assert not (policies / "out").exists()


LIVES = """
import gymnasium, numpy
class Lives(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-100, 100, (1,), numpy.float32)
    action_space = gymnasium.spaces.Discrete(20)
    def reset(self, *, seed=None, options=None):
        self.steps = getattr(self, "steps", 0) % 9
        return numpy.float32([self.steps]), {}
    def step(self, action):
        self.steps += 1
        lost = self.steps in (3, 4, 6)
        return numpy.float32([self.steps]), 1.0, lost or self.steps == 9, False, {"rltrain.episode_continues": lost}
def act(obs):
    return int(obs[0]) + 10
"""


def test_the_first_action_of_each_life_is_the_functions(rldata: Rldata, policies: Path) -> None:
    (policies / "lives.py").write_text(LIVES)
    rldata("record", "lives.py:act", "out", "--env", "lives.py:Lives", "--episodes", 2)
    assert [one.action.tolist() for one in read(policies / "out")] == 2 * [
        [10, 11, 12], [13], [14, 15], [16, 17, 18]
    ]  # fmt: skip


def test_a_recording_has_the_arguments_of_its_environment(rldata: Rldata, policies: Path) -> None:
    arguments = ["--env-arg", "sutton_barto_reward=True"]
    rldata("record", "random", "out", "--env", "CartPole-v1", "--episodes", 1, *arguments)
    rldata("record", "random", "plain", "--env", "CartPole-v1", "--episodes", 1)
    found = [Recording.open(policies / name).run["env_args"] for name in ("out", "plain")]
    assert found == [{"sutton_barto_reward": True}, {}]


def test_an_estimate_from_other_arguments_is_refused(
    rldata: Rldata, run: Path, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rltrain import cli

    arguments = ["--env", "CartPole-v1", "--env-arg", "sutton_barto_reward=True"]
    rldata("record", run, "out", "--episodes", 1, *arguments)
    assert cli.main_ope([str(run), "--data", "out", "--stochastic", "--method", "is"]) == 2
    assert "was recorded with the arguments {'sutton_barto_reward': True}" in capsys.readouterr().err


BROKEN = """
import gymnasium
class Broken(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.observation_space.sample(), {}
    def step(self, action):
        self.steps += 1
        if self.steps == 3:
            raise ZeroDivisionError("in the middle")
        return self.observation_space.sample(), 0.0, False, False, {}
"""


def test_an_environment_that_raises_shows_its_traceback(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rltrain import cli

    (policies / "broken.py").write_text(BROKEN)
    assert cli.main_data(["record", "random", "out", "--env", "broken.py:Broken"]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError: in the middle" in said
    assert "step 2" in said
    assert str(seed_of(0, RECORDED, 0)) in said
    assert not (policies / "out").exists()


# --- make ---


@pytest.fixture(autouse=True)
def _few_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "SCORED", 5)
    monkeypatch.setattr(making, "SEARCHED", 2)


def test_make_follows_the_recipe(rldata: Rldata, run: Path, policies: Path) -> None:
    """Halves of medium and expert; all steps before the medium policy; scores and hashes of the same environment."""

    def bits(folder: Path) -> list[bytes]:
        return [one.obs[0].tobytes() for one in read(folder)]

    kinds = ("medium-replay", "medium-expert")
    made = {
        kind: json.loads(rldata("make", "CartPole-v1", kind, "--kind", kind, "--run", run, "--steps", 200, "--json"))
        for kind in kinds
    }
    reference = made["medium-expert"]["reference"]
    medium, expert = (made["medium-expert"]["checkpoints"][name] for name in ("medium", "expert"))
    halves = []
    for one, seed in ((medium, 0), (expert, seed_of(0, RECORDED, 1))):  # the halves begin in other states
        name = f"step-{one['step']:012d}"
        rldata("record", run / "checkpoints" / name, name, "--steps", 100, "--seed", seed)
        halves += bits(policies / name)
        assert (
            one["sha256"] == hashlib.sha256((run / "checkpoints" / name / "state.safetensors").read_bytes()).hexdigest()
        )

    assert bits(policies / "medium-expert") == halves
    assert Recording.open(policies / "medium-expert").run["env_args"] == {}
    assert made["medium-replay"]["reference"] == reference
    assert (reference["env"], reference["random"] < medium["return"] < reference["expert"]) == ("CartPole-v1", True)
    assert medium["step"] < expert["step"]
    replay = read(policies / "medium-replay")
    assert sum(one.steps for one in replay) == medium["step"]
    origins = [Recording.open(folder).run for folder in (policies / "medium-replay", run.parent / "rec")]
    assert origins[0]["settings"] == origins[1]["settings"]  # rlope reads for how long noise was held
    recorded = bits(run.parent / "rec")
    ended = [one.obs[0].tobytes() for one in replay if one.terminated or one.truncated]
    assert ended == recorded[: len(ended)]
    shown = json.loads(rldata("show", "medium-expert", "--json"))
    random, best = reference["random"], reference["expert"]
    assert shown["score"] == pytest.approx(100 * (shown["return_mean"] - random) / (best - random))
    assert f"score: {shown['score']:.1f} (0: random actions, return" in rldata("show", "medium-expert")


def test_make_trains_a_run_if_there_is_none(rldata: Rldata, policies: Path) -> None:
    said = rldata(
        "make", "CartPole-v1", "out", "--kind", "expert", "--algo", "ppo", "--train-steps", 4000, "--workers", 0,
        "--steps", 100,
    )  # fmt: skip
    assert "the policies are those of runs/make-ppo-out" in said
    assert len(list((policies / "runs" / "make-ppo-out" / "checkpoints").glob("step-*"))) >= 4
    assert Recording.open(policies / "runs" / "make-ppo-out-record").steps >= 4000


def test_make_names_the_kinds(refused: Rldata, policies: Path) -> None:
    assert "needs --kind: random, medium, medium-replay" in refused("make", "CartPole-v1", "out")


def test_make_refuses_a_run_of_another_environment(refused: Rldata, run: Path, policies: Path) -> None:
    kind = ["--kind", "expert", "--run", run]
    assert "was trained in another environment than Acrobot-v1: " in refused("make", "Acrobot-v1", "out", *kind)
    line = refused("make", "CartPole-v1", "out", *kind, "--env-arg", "sutton_barto_reward=True")
    assert "was trained in another environment than CartPole-v1: its arguments were {}" in line
    assert not (policies / "out").exists()


@pytest.mark.parametrize(
    "said",
    [None, 3, {}, {"env": "A-v4", "random": 0, "expert": 1}, {"env": "A-v5", "random": 1, "expert": 1},
     {"env": "A-v5", "random": "0", "expert": 1}, {"env": "A-v5", "random": math.nan, "expert": 1}],
)  # fmt: skip
def test_scores_of_another_version_or_damaged_ones_are_not_used(said: Any) -> None:
    spec: EnvSpec = replace(rltrain.envs.make.read_spec(rltrain.envs.make.resolve("CartPole-v1"), 0), id="A-v5")
    assert reference_of({"reference": said}, spec) is None
    assert reference_of({"reference": {"env": "A-v5", "random": 1, "expert": 3}}, spec) == Reference(1.0, 3.0)
    assert Reference(1.0, 3.0).score(2.0) == 50.0


def test_the_arguments_of_the_environment_are_in_the_data(rldata: Rldata, run: Path, policies: Path) -> None:
    """rlope refuses data of other arguments than those of the policy."""
    rldata(
        "record", "random", "one", "--env", "CartPole-v1", "--env-arg", "sutton_barto_reward=true", "--episodes", "1"
    )
    rldata("record", str(run), "two", "--episodes", "1")

    found = [Recording.open(Path(name)).run["env_args"] for name in ("one", "two")]
    assert found == [{"sutton_barto_reward": True}, {}]
