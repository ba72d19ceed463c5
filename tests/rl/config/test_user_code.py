"""Algorithms, policies and torsos of the user's: given as classes, or named as module:Class and file.py:Class."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracles.forged import forge_config

import rltrain
from rltrain import algorithms, cli
from rltrain.algorithms import registry, settings
from rltrain.config import consent
from rltrain.errors import CheckpointError, ConfigError

QUICK: dict[str, Any] = {
    "env": "CartPole-v1", "workers": 0, "streams": 2, "unroll": 8, "steps": 16, "eval_every": 0, "preset": "none",
    "quiet": True, "widths": (4,),
}  # fmt: skip
FLAGS = [f"--{key.replace('_', '-')}={value}" for key, value in QUICK.items() if key not in ("quiet", "widths")]
FLAGS += ["--quiet", "--widths=4"]

CODE = """
import rltrain
from torch import nn
from rltrain import distributions

class Net(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.features = 3
        self.layer = nn.Linear(spec.obs.shape[0], 3)
    def forward(self, obs): return self.layer(obs)

class Wrong(Net):
    def __init__(self, spec):
        raise ValueError("my own mistake")

class Settings(rltrain.A2CConfig):
    extra: int = 1

class Mine:
    def __init__(self, spec, config: Settings, device, seed, streams):
        assert config.extra == 3
        self.config, self.plan = config, rltrain.StreamPlan(unroll=config.unroll)
        self.policy = rltrain.build_policy(spec, config, device, seed, streams)
    def update(self, unrolls, progress): return rltrain.Update({})
    def observe(self, unrolls): pass
    def parts(self): return {"policy": self.policy}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the user's file. What a test registers is forgotten afterwards."""
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(consent, "_imported", set())
    monkeypatch.setattr(algorithms, "_registry", dict(algorithms._registry))
    monkeypatch.setattr(registry, "POLICIES", dict(registry.POLICIES))
    monkeypatch.setattr(settings, "OWN", settings.OWN)
    own = dict(settings.OWN)
    yield tmp_path
    settings.OWN.clear()
    settings.OWN.update(own)


@pytest.mark.parametrize("algo", ["mine.py:Mine", pytest.param("mine:Mine", marks=pytest.mark.sweep)])
def test_an_algorithm_is_named_on_the_command_line(algo: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With flags for its own settings; its own run is evaluated and resumed without further words."""
    assert cli.main(["--algo", algo, "--extra", "3", *FLAGS]) == 0
    (run,) = (place / "runs").iterdir()
    assert run.name.startswith("Mine-CartPole-v1-s0-")
    algorithms._registry.pop(algo, None)

    assert cli.main_eval([str(run), "--episodes", "1"]) == 0
    algorithms._registry.pop(algo, None)
    assert cli.main(["--resume", str(run), "--steps", "32", "--quiet"]) == 0

    printed = capsys.readouterr()
    assert printed.err == ""


def test_somebody_elses_algorithm_is_not_imported(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = rltrain.train(algo="a2c", **QUICK).run
    (place / "payload.py").write_text("import pathlib\npathlib.Path('executed').touch()\n" + CODE)
    for changes in ({"algo": "payload.py:Mine", "env": "payload:Env"}, {"policy": "payload.py:Net"}):
        forge_config(run, **changes)
        for command, argv in ((cli.main, ["--resume", str(run)]), (cli.main_eval, [str(run)])):
            assert command(argv) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "you did not make this run here" in line
            assert all(repr(name) in line for name in changes.values())
            assert "--trust" in line
        with pytest.raises(CheckpointError, match=r"payload\.py"):
            rltrain.load(run)
    assert not (place / "executed").exists()


def test_a_file_of_settings_imports_no_algorithm(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "run.toml").write_text('algo = "mine.py:Mine"\nenv = "CartPole-v1"\n')
    for argv in (["--config", "run.toml"], ["--config", "run.toml", "--extra", "3"]):
        assert cli.main(argv) == 2
        assert "run.toml: it would import 'mine.py' (algo 'mine.py:Mine')" in capsys.readouterr().err
    assert cli.parse(["--config", "run.toml", "--extra", "3", "--trust"])[0].algo == "mine.py:Mine"


@pytest.mark.usefixtures("fork_server")
def test_a_torso_given_as_a_class_works_in_processes_and_is_loaded_again(place: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(CODE, names)  # as a cell of a notebook
    fingerprints = set()
    for torso, workers in ((names["Net"], 0), (names["Net"], 1), ("mine.py:Net", 1), ("mine:Net", 0)):
        result = rltrain.train(algo="ppo", torso=torso, minibatches=1, epochs=1, **{**QUICK, "workers": workers})
        fingerprints.add(result.fingerprint)
        assert rltrain.evaluate(result.run, episodes=1).episodes == 1
    assert len(fingerprints) == 1


def test_a_policy_and_an_algorithm_are_given_as_classes(place: Path) -> None:
    names: dict[str, Any] = {"__name__": "mine"}
    exec(CODE, names)
    result = rltrain.train(algo=names["Mine"], extra=3, **QUICK)  # type: ignore[call-arg]
    assert rltrain.load(result.run).config.algo == "mine:Mine"


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.sweep), 1])
def test_a_users_exception_has_its_own_traceback(workers: int, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--algo", "ppo", "--torso", "mine.py:Wrong", *FLAGS, "--workers", str(workers)]) == 1

    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["rltrain: your code raised an exception:", "Traceback (most recent call last):"]
    assert f'File "{place / "mine.py"}", line' in lines[2]
    assert lines[-1] == "ValueError: my own mistake"
    assert len(lines) == 5
    with pytest.raises(ValueError, match="my own mistake"):
        rltrain.train(algo="ppo", torso="mine.py:Wrong", **QUICK)


POOL = """
import multiprocessing, rltrain

def run(workers):
    settings = dict(algo="ppo", env="CartPole-v1", workers=workers, streams=2, unroll=8, steps=16, epochs=1)
    return rltrain.train(**settings, minibatches=1, eval_every=0, quiet=True, widths=[4]).fingerprint

if __name__ == "__main__":
    with multiprocessing.get_context("METHOD").Pool(1) as pool:
        print(len(set(pool.map(run, [0, 1]))))
"""


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.sweep)])
def test_a_process_of_a_pool_may_have_workers(method: str, tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(POOL.replace("METHOD", method))
    done = subprocess.run([sys.executable, "pool.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


LOKY = """
import loky
import multiprocessing
import rltrain


def run(workers):
    rltrain.train(algo="ppo", env="CartPole-v1", streams=2, unroll=8, steps=32, workers=workers, eval_every=0,
                  quiet=True, preset="none", widths=(8,), epochs=1, minibatches=1)
    return multiprocessing.get_start_method()


if __name__ == "__main__":
    with loky.ProcessPoolExecutor(1) as pool:
        print(*pool.map(run, [0, 1]))
"""


def test_a_worker_of_loky_or_joblib_may_train(tmp_path: Path) -> None:
    """Its start method of multiprocessing is loky's, which a new Python does not know."""
    (tmp_path / "pool.py").write_text(LOKY)
    done = subprocess.run([sys.executable, "pool.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("loky loky\n", 0), done.stderr


def test_a_name_without_a_class_is_answered_in_one_line(place: Path) -> None:
    for algo, words in (
        ("mine.py:Min", "mine.py has no 'Min'. Did you mean 'Mine'?"),
        ("gone.py:Mine", "there is no file"),
        ("mine.py:Net", "the class of its settings is not known"),
    ):
        with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
            rltrain.train(algo=algo, **QUICK)
