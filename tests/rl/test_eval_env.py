"""`--eval-env` and `--eval-env-arg`: evaluations in another environment, or with other arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium import spaces
from oracles.forged import forge_config

import rltrain
from rltrain import cli
from rltrain.reporting.metrics import read

FLAGS = "--algo ppo --preset none --workers 0 --streams 2 --unroll 16 --epochs 1 --minibatches 1 --widths 8 "
FLAGS += "--eval-episodes 2 --steps 64 --eval-every 0 --quiet --json"


class Sized(gymnasium.Env[Any, Any]):
    """An episode of `length` steps, each with reward 1."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 3, render_mode: str | None = None) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = self.length
        return self.observation_space.sample() * 0, {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return self.observation_space.sample() * 0, 1.0, self.left == 0, False, {}


class Wide(Sized):
    observation_space = spaces.Box(-1, 1, (3,))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sized.py").write_text(Path(__file__).read_text())
    return tmp_path


def run(*words: str) -> int:
    return cli.main([*FLAGS.replace("--eval-every 0", "--eval-every 32").split(), *words])


def eval_return(folder: Path) -> float:
    return float([line["eval/return_mean"] for line in read(folder) if "eval/return_mean" in line][-1])


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("--eval-env-arg", "length=7"), marks=pytest.mark.sweep),
        ("--eval-env", "sized.py:Sized", "--eval-env-arg", "length=7"),
    ],
)
def test_evaluations_are_played_elsewhere(
    words: tuple[str, ...], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--env", "sized.py:Sized", "--env-arg", "length=2", *words) == 0
    result = json.loads(capsys.readouterr().out)

    assert (result["train_return"], result["eval_return"]) == (2.0, 7.0)
    assert eval_return(Path(result["run"])) == 7.0
    assert rltrain.evaluate(result["run"], episodes=2).return_mean == 7.0  # as the best policy was chosen
    assert cli.main(["--resume", result["run"], "--steps", "128", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["eval_return"] == 7.0


def test_without_arguments_of_its_own_the_other_environment_has_its_defaults(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--env", "sized.py:Sized", "--env-arg", "length=2", "--eval-env", "sized.py:Sized") == 0
    assert json.loads(capsys.readouterr().out)["eval_return"] == 3.0


def test_other_spaces_are_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--env", "sized.py:Sized", "--eval-env", "sized.py:Wide") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--eval-env sized.py:Wide: its spaces are not those of sized.py:Sized: obs.shape was (2,), is (3,)" in line


def test_a_class_is_taken_from_python(tmp_path: Path) -> None:
    given = {"algo": "ppo", "preset": "none", "workers": 0, "streams": 2, "unroll": 16, "epochs": 1, "widths": (8,)}
    given |= {"minibatches": 1, "eval_episodes": 2, "steps": 64, "eval_every": 32, "quiet": True, "out": str(tmp_path)}
    result = rltrain.train(
        env="CartPole-v1", eval_env=lambda: gymnasium.make("CartPole-v1", max_episode_steps=4), **given
    )

    assert result.eval_return == 4.0
    with pytest.raises(rltrain.ConfigError, match="was given as an object, which is not kept"):
        rltrain.train(resume=result.run, steps=128)


def test_somebody_elses_run_imports_no_environment_for_evaluation(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*FLAGS.split(), "--env", "CartPole-v1"]) == 0
    folder = Path(json.loads(capsys.readouterr().out)["run"])
    (file / "payload.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(file / "user"))
    forge_config(folder, eval_env="payload.py:X")

    for command in (lambda: cli.main(["--resume", str(folder), "--steps", "99"]), lambda: cli.main_eval([str(folder)])):
        assert command() == 2
        assert "it would import 'payload.py' (eval_env 'payload.py:X')" in capsys.readouterr().err
    assert not (file / "executed").exists()
