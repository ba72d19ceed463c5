"""Trained policies: `act` for every kind of observation and action; `rltrain.evaluate` and `rleval`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

import rltrain
from rltrain import cli
from rltrain.envs.spaces import action_reader
from rltrain.errors import ConfigError
from rltrain.evaluation import background
from rltrain.evaluation import evaluate as evaluate_module
from rltrain.reporting.intervals import bootstrap
from rltrain.rollout.actor import play as play_module
from rltrain.storage import retention as checkpoints

QUICK: dict[str, Any] = {
    "algo": "ppo", "workers": 0, "streams": 4, "unroll": 16, "epochs": 1, "minibatches": 1, "widths": (8,),
    "steps": 64, "eval_every": 0, "preset": "none", "quiet": True, "sequence": 8,
}  # fmt: skip
SEQUENCES: dict[str, Any] = {
    "workers": 0, "streams": 4, "unroll": 4, "widths": (8,), "steps": 64, "eval_every": 0, "preset": "none",
    "quiet": True, "warmup": 16, "batch": 4, "length": 4, "burn_in": 2,
}  # fmt: skip


class Asymmetric(gymnasium.Env[Any, Any]):
    """Actions in [0, 4] x [-3, -1]."""

    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = spaces.Box(np.array([0, -3], np.float32), np.array([4, -1], np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 0.0, False, True, {}


class Whole(Asymmetric):
    """Actions are whole numbers: 0 to 4, and -3 to -1."""

    action_space = spaces.Box(np.array([0, -3], np.int32), np.array([4, -1], np.int32), dtype=np.int32)


class Lengths(gymnasium.Env[Any, Any]):
    """An episode of 1 or 100 steps, by a coin in the seed; its return is its length."""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = 100 if self.np_random.random() < 0.5 else 1
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        return np.zeros(1, np.float32), 1.0, self._left == 0, False, {}


class Ends(Asymmetric):
    """Ends the process: in its constructor or in its first step."""

    def __init__(self, where: str, end: Any) -> None:
        self.where, self.end = where, end
        if where == "constructor":
            end(0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.end(0)
        return super().step(action)


@pytest.mark.parametrize("where", ["constructor", "step"])
@pytest.mark.parametrize("end", [pytest.param("sys.exit", marks=pytest.mark.sweep), "os._exit"])
def test_an_environment_that_ends_the_process_is_a_fault(where: str, end: str, tmp_path: Path) -> None:
    policy = trained(tmp_path, Asymmetric)
    how = sys.exit if end == "sys.exit" else lambda status: os._exit(status)  # as it is when it is called

    with pytest.raises(rltrain.EnvFault) as raised:
        rltrain.evaluate(policy, episodes=1, env=lambda: Ends(where, how))
    assert raised.value.detail.startswith(f"it ended the program with {end}(0) at ")


def trained(tmp: Path, env: Any, **more: Any) -> Any:
    result = rltrain.train(**{**QUICK, "env": env, "out": str(tmp), **more})
    return rltrain.load(result.run)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on CartPole, a little trained, with a best checkpoint."""
    asked = {**QUICK, "steps": 600, "eval_every": 200, "eval_episodes": 3, "env": "CartPole-v1"}
    return Path(rltrain.train(**asked, out=str(tmp_path_factory.mktemp("out"))).run)


def test_one_observation_or_a_batch(cartpole: Path) -> None:
    policy = rltrain.load(cartpole)
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(37, 4)).astype(np.float32)

    actions = policy.act(batch)

    assert actions.shape == (37,)
    singles = [policy.act(row) for row in batch]
    assert all(np.shape(single) == () for single in singles)
    assert actions.tolist() == singles
    assert policy.act(batch.tolist()).tolist() == singles  # lists are fine
    assert len({policy.act(batch[0], explore=True).item() for _ in range(50)}) == 2
    assert gymnasium.make("CartPole-v1").action_space.contains(policy.act(batch[0]))


def test_a_wrong_shape_is_told(cartpole: Path) -> None:
    policy = rltrain.load(cartpole)

    with pytest.raises(ValueError, match=r"CartPole-v1 has observations of shape \(4,\).*; got \(5,\)"):
        policy.act(np.zeros(5))
    with pytest.raises(ValueError, match=r"got \(2, 5\)"):
        policy.act(np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"got \(2, 2, 4\)"):
        policy.act(np.zeros((2, 2, 4)))


@pytest.mark.parametrize(
    "env",
    [
        "discrete-start",
        pytest.param("multi-discrete", marks=pytest.mark.sweep),
        pytest.param("multi-binary", marks=pytest.mark.sweep),
        pytest.param("dict", marks=pytest.mark.sweep),
        "box",
        pytest.param("box3", marks=pytest.mark.sweep),
        "image",
        "masked",
        pytest.param("masked-obs", marks=pytest.mark.sweep),
    ],
)
def test_it_takes_what_the_environment_gives_and_gives_what_it_takes(env: str, tmp_path: Path) -> None:
    policy = trained(tmp_path, f"probe:{env}")
    world = rltrain.make_env(f"probe:{env}")
    obs, info = world.reset(seed=0)
    for explore in (False, True):
        for _ in range(20):
            mask = info.get("action_mask")
            action = policy.act(obs, explore=explore, action_mask=mask)
            assert world.action_space.contains(action), (action, world.action_space)
            obs, _, terminated, truncated, info = world.step(action)  # an illegal action raises
            if terminated or truncated:
                obs, info = world.reset()


def test_a_batch_of_trees_and_masks(tmp_path: Path) -> None:
    policy, world = trained(tmp_path, "probe:dict"), rltrain.make_env("probe:dict")
    some = [world.reset(seed=seed)[0] for seed in range(5)]

    def stacked(parts: list[Any]) -> Any:
        if isinstance(parts[0], dict):
            return {key: stacked([part[key] for part in parts]) for key in parts[0]}
        if isinstance(parts[0], tuple):
            return tuple(stacked(list(children)) for children in zip(*parts, strict=True))
        return np.stack(parts)

    assert policy.act(stacked(some)).tolist() == [policy.act(one) for one in some]

    policy = trained(tmp_path, "probe:masked")
    masks = np.eye(4, dtype=bool)
    assert policy.act(np.zeros((4, 4)), action_mask=masks).tolist() == [0, 1, 2, 3]
    policy = trained(tmp_path, "probe:masked-obs")
    obs: dict[str, Any] = {"action_mask": masks.astype(np.int8), "seen": np.zeros((4, 4), np.float32)}
    assert policy.act(obs).tolist() == [0, 1, 2, 3]
    assert policy.act({key: value[2] for key, value in obs.items()}) == 2


def test_actions_are_scaled_to_asymmetric_bounds(tmp_path: Path) -> None:
    policy = trained(tmp_path, Asymmetric, log_std_init=2.0)
    obs = np.zeros((200, 3), np.float32)

    actions = policy.act(obs, explore=True)  # mostly beyond the bounds, so clipped to them

    assert actions.dtype == np.float32
    assert actions.min(0).tolist() == [0.0, -3.0]
    assert actions.max(0).tolist() == [4.0, -1.0]
    # The mean of a policy that was just initialised is near 0, the middle.
    np.testing.assert_allclose(policy.act(obs[0]), [2.0, -2.0], atol=0.2)


def test_a_mask_that_the_policy_does_not_know_is_ignored(tmp_path: Path) -> None:
    """A caller may pass on what an environment's info holds, whatever the policy is."""
    policy = trained(tmp_path, Asymmetric)

    action = policy.act(np.zeros(3, np.float32), action_mask=np.ones(5, bool))

    np.testing.assert_array_equal(action, policy.act(np.zeros(3, np.float32)))


def test_actions_of_whole_numbers_are_those_of_training(tmp_path: Path) -> None:
    policy = trained(tmp_path, Whole)
    points = np.stack(np.meshgrid(np.linspace(-1.2, 1.2, 25), np.linspace(-1.2, 1.2, 25)), -1).reshape(-1, 2)
    points = points.astype(np.float32)

    actions = policy._read_actions(points)

    np.testing.assert_array_equal(actions, action_reader(policy.spec.action, Whole.action_space.dtype)(points))
    assert actions.dtype == np.int32
    assert set(actions[:, 0]) == {0, 1, 2, 3, 4}
    assert Whole.action_space.contains(policy.act(np.zeros(3, np.float32)))


@pytest.mark.parametrize(
    "algo", [pytest.param("ppo", marks=pytest.mark.sweep), "dqn", pytest.param("sac", marks=pytest.mark.sweep)]
)
def test_memory_is_kept_until_reset(algo: str, tmp_path: Path) -> None:
    asked = QUICK if algo == "ppo" else {**SEQUENCES, "algo": algo}
    run = rltrain.train(**asked, env="probe:memory", memory="gru", memory_size=8, out=str(tmp_path)).run
    policy = rltrain.load(run)
    one = np.array([1.0, 0.0], np.float32)

    def core() -> Any:
        return policy._core.clone()

    policy.act(one)
    first = core()
    policy.act(one)
    assert not np.array_equal(first[0], core()[0])
    policy.reset()
    policy.act(one)
    assert np.array_equal(first, core())


def test_a_batch_of_another_size_forgets(tmp_path: Path) -> None:
    """What one stream saw must not be taken for what another saw."""
    policy = trained(tmp_path, "probe:memory", memory="gru", memory_size=8)
    batch = np.tile(np.array([1.0, 0.0], np.float32), (3, 1))
    fresh = rltrain.load(policy.path)

    policy.act(batch[0])
    policy.act(batch)
    fresh.act(batch)

    assert fresh._core is not None
    assert np.array_equal(policy._core[:3], fresh._core[:3])


def test_evaluation_repeats_and_uses_its_seed(cartpole: Path) -> None:
    one = rltrain.evaluate(cartpole, episodes=10)

    assert one == rltrain.evaluate(cartpole, episodes=10) == rltrain.evaluate(rltrain.load(cartpole), episodes=10)
    assert one.returns != rltrain.evaluate(cartpole, episodes=10, seed=1).returns
    assert one.returns != rltrain.evaluate(cartpole, episodes=10, stochastic=True).returns
    assert one.returns[:4] == rltrain.evaluate(cartpole, episodes=4).returns
    assert (one.episodes, len(one.returns), one.length_mean) == (10, 10, one.return_mean)
    assert one.return_mean == pytest.approx(np.mean(one.returns))
    assert one.return_std == pytest.approx(np.std(one.returns))
    low, high = one.return_ci95
    assert min(one.returns) <= low <= one.return_mean <= high <= max(one.returns)
    assert one.checkpoint == checkpoints.find(cartpole)[0].path


def test_its_seeds_are_neither_those_of_training_nor_of_its_evaluations() -> None:
    from rltrain.envs.seeding import FRESH, evaluation_seed, seed_of, stream_seed

    fresh = {seed_of(0, FRESH, episode) for episode in range(1000)}
    used = {evaluation_seed(0, episode) for episode in range(1000)} | {stream_seed(0, b) for b in range(1000)}

    assert len(fresh) == 1000
    assert not fresh & used


def test_short_episodes_are_not_preferred(tmp_path: Path) -> None:
    policy = trained(tmp_path, Lengths)

    found = rltrain.evaluate(policy, episodes=100, env=Lengths)

    assert {1.0, 100.0} == set(found.returns)
    assert abs(found.return_mean - 50.5) < 3 * 49.5 / 10
    assert found.return_ci95 is not None
    assert found.return_ci95[0] < 50.5 < found.return_ci95[1]


def test_the_interval_of_the_mean() -> None:
    returns = np.random.default_rng(1).normal(10.0, 2.0, 400)

    low, high = bootstrap(returns)

    half = 1.96 * returns.std() / 20
    assert low == pytest.approx(returns.mean() - half, abs=0.03)
    assert high == pytest.approx(returns.mean() + half, abs=0.03)
    assert bootstrap(np.array([3.0])) == (3.0, 3.0)


def test_few_episodes_have_no_interval_and_none_are_refused(cartpole: Path) -> None:
    assert rltrain.evaluate(cartpole, episodes=4).return_ci95 is None
    assert rltrain.evaluate(cartpole, episodes=5).return_ci95 is not None
    with pytest.raises(rltrain.ConfigError, match="episodes must be at least 1, got 0"):
        rltrain.evaluate(cartpole, episodes=0)


def test_another_environment_must_have_the_same_spaces(cartpole: Path) -> None:
    with pytest.raises(rltrain.ConfigError, match="Acrobot-v1 has other spaces than CartPole-v1"):
        rltrain.evaluate(cartpole, env="Acrobot-v1", episodes=1)


class Gravity(gymnasium.Env[Any, Any]):
    """Shows its argument as the reward."""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, gravity: float = 1.0, size: int = 1, render_mode: str | None = None) -> None:
        self.gravity, self.render_mode = gravity, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), self.gravity, True, False, {}


def heavy(gravity: float = 9.0) -> Gravity:
    """Takes one of the two arguments."""
    return Gravity(gravity)


def test_another_environment_gets_the_arguments_that_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = rltrain.train(**QUICK, env=Gravity, env_args={"gravity": 2.0, "size": 3}, out=str(tmp_path)).run
    given: list[tuple[dict[str, Any], float]] = [
        ({"env": Gravity}, 2.0),
        ({"env": Gravity, "env_args": {}}, 1.0),
        ({"env": Gravity, "env_args": {"gravity": 5.0}}, 5.0),
        ({"env": lambda: Gravity()}, 1.0),
        ({"env": heavy}, 2.0),
    ]
    for words, expected in given:
        capsys.readouterr()
        assert rltrain.evaluate(run, episodes=1, **words).return_mean == expected
        line = capsys.readouterr().err
        assert ("does not take" in line) == (words["env"] is not Gravity)
    assert line == "rltrain: heavy does not take size, which the run's environment got; it is made without\n"
    capsys.readouterr()
    assert rltrain.train(resume=run, env=heavy, steps=128).steps >= 128
    assert "heavy does not take size" in capsys.readouterr().err


def test_the_arguments_of_the_runs_environment_can_be_changed(cartpole: Path) -> None:
    assert rltrain.evaluate(cartpole, episodes=2, env_args={"max_episode_steps": 3}).length_mean == 3
    assert cli.main_eval([str(cartpole), "--episodes", "2", "--env-arg", "max_episode_steps=3"]) == 0
    assert cli.main_eval([str(cartpole), "--episodes", "2", "--env", "CartPole-v1"]) == 0


class Endless(Gravity):
    """Never ends."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_an_episode_without_an_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (play_module, evaluate_module, background):
        monkeypatch.setattr(module, "LONGEST", 20)
    asked = {**QUICK, "quiet": False, "eval_every": 32, "eval_episodes": 2}
    run = rltrain.train(**asked, env=Endless, out=str(tmp_path)).run

    assert capsys.readouterr().out.count("Endless has no time limit: an episode of an evaluation was cut off") == 1
    assert rltrain.evaluate(run, episodes=3, env=Endless).cut_off == 3
    assert rltrain.evaluate(run, episodes=3, env=Gravity).cut_off == 0


def test_episodes_are_shown_in_a_window(cartpole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="--render needs a screen"):
        rltrain.evaluate(cartpole, episodes=1, render=True)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    plain = rltrain.evaluate(cartpole, episodes=2, env_args={"max_episode_steps": 4})
    shown = rltrain.evaluate(cartpole, episodes=2, env_args={"max_episode_steps": 4}, render=True)
    assert shown.returns == plain.returns
    run = rltrain.train(**QUICK, env=Gravity, out=str(tmp_path)).run
    with pytest.raises(ConfigError, match="Gravity cannot be shown in a window"):
        rltrain.evaluate(run, episodes=1, env=Gravity, render=True)
    with pytest.raises(ConfigError, match="takes no render_mode"):
        rltrain.evaluate(run, episodes=1, env=heavy, render=True)


def test_a_fault_in_an_evaluation_names_its_step(tmp_path: Path) -> None:
    class Later(Lengths):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            if self._left == 95:
                raise RuntimeError("too long")
            return super().step(action)

    run = rltrain.train(**QUICK, env=Lengths, out=str(tmp_path)).run
    with pytest.raises(rltrain.EnvFault, match=r"failed at step 5:\nTraceback"):
        rltrain.evaluate(run, episodes=8, env=Later)


def test_an_environment_that_was_an_object_must_be_given_again(tmp_path: Path) -> None:
    policy = trained(tmp_path, lambda: Lengths())

    with pytest.raises(rltrain.ConfigError, match="give it as `env`"):
        rltrain.evaluate(policy.path, episodes=1)
    assert rltrain.evaluate(policy.path, episodes=2, env=Lengths).episodes == 2


def test_best_and_latest_and_a_checkpoint_can_be_loaded(cartpole: Path) -> None:
    best = rltrain.load(cartpole, best=True)

    assert best.path.name.startswith("best-")
    assert rltrain.load(best.path).path == best.path
    latest = checkpoints.find(cartpole)[0].path
    assert rltrain.load(cartpole / "checkpoints").path == rltrain.load(cartpole).path == latest
    assert rltrain.load(cartpole / "checkpoints" / "latest").path == latest
    assert rltrain.load(cartpole / "checkpoints" / "best").path == best.path
    assert rltrain.evaluate(best.path, episodes=2).checkpoint == best.path
    with pytest.raises(rltrain.CheckpointError, match="does not exist"):
        rltrain.load(cartpole / "nowhere")


def test_rleval_prints_what_evaluate_found(cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rltrain.evaluate(cartpole, episodes=5, seed=3)

    assert cli.main_eval([str(cartpole), "--episodes", "5", "--seed", "3", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == {
        "return_mean": found.return_mean,
        "return_std": found.return_std,
        "return_ci95": list(found.return_ci95),
        "length_mean": found.length_mean,
        "episodes": 5,
        "checkpoint": str(found.checkpoint),
    }
    assert cli.main_eval([str(cartpole), "--episodes", "5", "--seed", "3"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"return {found.return_mean:.2f} (std {found.return_std:.2f}, 95% interval ")


def test_a_video(cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imageio")
    pytest.importorskip("pygame")
    file = tmp_path / "film.gif"

    filmed = rltrain.evaluate(cartpole, episodes=2, video=file)

    assert file.read_bytes().startswith(b"GIF")
    assert filmed.returns == rltrain.evaluate(cartpole, episodes=2).returns
    assert cli.main_eval([str(cartpole), "--episodes", "1", "--video", str(tmp_path / "film.nonsense")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rleval: --video ")


class Drawn(CartPoleEnv):
    """Draws although its constructor does not know render_mode; `image` is what render() returns."""

    def __init__(self, image: Any = None) -> None:
        super().__init__()
        self.image = np.zeros((30, 41, 3), np.uint8) if image is None else image

    def render(self) -> Any:
        if isinstance(self.image, Exception):
            raise self.image
        return self.image


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_a_video_of_an_environment_that_always_draws(cartpole: Path, tmp_path: Path, suffix: str, capfd: Any) -> None:
    """Also where the encoder makes the images a few pixels larger."""
    pytest.importorskip("imageio_ffmpeg" if suffix == "mp4" else "imageio")
    file = tmp_path / f"film.{suffix}"

    rltrain.evaluate(cartpole, episodes=1, video=file, env=Drawn)

    assert file.stat().st_size > 100
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (NotImplementedError(), "it has no render()"),
        (KeyError("screen"), "its render() raised: 'screen'"),
        ("text", "its render() returned no image"),
        (np.zeros((30, 40, 3)), "its render() returned no image"),
        ([], "its render() returned no image"),
    ],
)
def test_an_environment_that_cannot_be_filmed_is_one_line(
    image: Any, words: str, cartpole: Path, tmp_path: Path
) -> None:
    pytest.importorskip("imageio")
    with pytest.raises(ConfigError) as error:
        rltrain.evaluate(cartpole, episodes=1, video=tmp_path / "film.gif", env=lambda: Drawn(image))

    (line,) = str(error.value).splitlines()
    assert line.startswith("--video: ")
    assert f" cannot be filmed: {words}; its constructor must take render_mode='rgb_array', and its render() " in line
    assert not list(tmp_path.iterdir())


def test_the_command_says_where_the_video_is(
    cartpole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("imageio")
    pytest.importorskip("pygame")
    monkeypatch.chdir(tmp_path)

    assert cli.main_eval([str(cartpole), "--episodes", "1", "--video", "film.gif"]) == 0

    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines()[0] == "the video of the first episode is film.gif"


def test_noise_that_is_held_is_held_for_a_loaded_policy_too(tmp_path: Path) -> None:
    given = {"steps": 64, "unroll": 16, "streams": 2, "workers": 0, "widths": (8,), "quiet": True, "eval_every": 0}
    result = rltrain.train(
        algo="ppo", env="Pendulum-v1", preset="none", out=str(tmp_path), sde=True, sde_every=3, **given
    )
    policy = rltrain.load(result.run)
    obs = np.ones(3, np.float32)
    actions = [float(policy.act(obs, explore=True)[0]) for _ in range(9)]

    assert [actions.count(action) for action in actions] == [3] * 9
    assert actions[0] == actions[2] != actions[3]
