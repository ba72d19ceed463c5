"""rltrain, from source and from a wheel, in a project with its own `envs/`, `rollout.py`, `algorithms/` and `rl.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rltrain

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("algorithms", "configs", "envs", "rl", "rollout", "scripts", "LICENSE", "README.md", "pyproject.toml")

CORRIDOR = """
import gymnasium
import numpy as np
from rollout import STEP_COST  # modules of this project, with names of folders in rltrain's repository
from rl import LENGTH


class Corridor(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.cell, self.time = max(0, self.cell + 2 * int(action) - 1), self.time + 1
        return np.array([self.cell / 99], np.float32), -STEP_COST, self.cell == LENGTH, self.time == 20, {}
"""
SCRIPT = """
import rltrain
from algorithms.settings import SETTINGS
from envs.corridor import Corridor

result = rltrain.train(env=Corridor, workers=2, **SETTINGS)
evaluation = rltrain.evaluate(result.run, episodes=2, env=Corridor)
print(rltrain.__file__, result.steps, evaluation.length_mean)
"""
FILES = {
    "envs/__init__.py": "",
    "envs/corridor.py": CORRIDOR,
    "rollout.py": "STEP_COST = 0.1\n",
    "rl.py": "LENGTH = 5\n",
    "algorithms/__init__.py": "",
    "algorithms/settings.py": (
        "SETTINGS = dict(algo='ppo', steps=512, streams=8, unroll=16, eval_episodes=2, eval_every=0, quiet=True)\n"
    ),
    "main.py": SCRIPT,
}
FLAGS = "--steps 512 --streams 8 --unroll 16 --eval-every 0 --eval-episodes 2 --workers 8 --quiet"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked wheel, built by the project's own build backend, without a network."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(built)!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=source, check=True, capture_output=True)
    (file,) = built.glob("rltrain-*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(built)
    file.unlink()
    return built


@pytest.fixture(params=[pytest.param("source", marks=pytest.mark.sweep), "wheel"])
def installed(request: pytest.FixtureRequest) -> Path:
    """A folder from which `import rltrain` works."""
    if request.param == "wheel":
        return request.getfixturevalue("wheel")
    assert rltrain.__file__ is not None
    return Path(rltrain.__file__).parent.parent


def run(project: Path, installed: Path, *words: str) -> str:
    """Standard output of Python in the project's folder, where only `installed` offers rltrain."""
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, *words], cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_from_the_shell_with_eight_workers(project: Path, installed: Path) -> None:
    """As the commands `rltrain` and `rleval` do it: without the current folder on the path."""
    command = "import sys; sys.path.remove(''); from rltrain import cli; sys.exit(cli.{}())"
    train, evaluate = command.format("main"), command.format("main_eval")
    run(project, installed, "-c", train, "--algo", "ppo", "--env", "envs.corridor:Corridor", *FLAGS.split())
    (made,) = (project / "runs").iterdir()

    assert "return" in run(project, installed, "-c", evaluate, str(made), "--episodes", "2")


@pytest.mark.sweep
def test_from_a_script(project: Path, installed: Path) -> None:
    file, steps, length = run(project, installed, "main.py").split()

    assert Path(file).is_relative_to(installed)
    assert int(steps) >= 512
    assert 5 <= float(length) <= 20


def test_tuned_settings_are_found(project: Path, installed: Path) -> None:
    code = "from rltrain.config.presets import find; print(find('ppo', 'CartPole-v1'))"

    assert Path(run(project, installed, "-c", code).strip()).is_file()


def test_the_wheel_holds_one_package_its_commands_and_the_tuned_settings(wheel: Path) -> None:
    (info,) = wheel.glob("rltrain-*.dist-info")
    code = {file.relative_to(wheel).as_posix() for file in wheel.rglob("*.py")}
    folders = {"rltrain": ROOT / "rl", **{f"rltrain/{name}": ROOT / name for name in ("algorithms", "envs", "rollout")}}

    assert {path.name for path in wheel.iterdir()} == {"rltrain", info.name}
    assert code == {
        f"{name}/{file.relative_to(folder).as_posix()}"
        for name, folder in folders.items()
        for file in folder.rglob("*.py")
    }
    assert (wheel / "rltrain" / "py.typed").exists()
    assert "rltrain = rltrain.cli:main" in (info / "entry_points.txt").read_text()
    tuned = {file.relative_to(ROOT).as_posix() for file in (ROOT / "configs").rglob("*.toml")}
    assert tuned == {file.relative_to(wheel / "rltrain").as_posix() for file in wheel.rglob("*.toml")}
