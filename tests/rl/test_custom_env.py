"""What users bring along: environments, algorithms, policies; by name, file, class or closure; also in processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rltrain
from rltrain.storage import checkpoint
from rltrain.storage import retention as checkpoints

QUICK: dict[str, Any] = {
    "algo": "ppo", "workers": 0, "streams": 4, "unroll": 16, "epochs": 1, "minibatches": 1, "widths": (8,),
    "steps": 64, "eval_every": 0, "preset": "none", "quiet": True,
}  # fmt: skip

MAZE = """
import gymnasium, numpy as np
from gymnasium import spaces

class Maze(gymnasium.Env):
    observation_space = spaces.Box(-9, 9, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, size=3):
        self.size = size

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.t = int(self.np_random.integers(self.size)), 0
        return self.obs(), {}

    def step(self, action):
        self.at, self.t = self.at + int(action) - 1, self.t + 1
        over = abs(self.at) >= 2 * self.size
        return self.obs(), float(-abs(self.at)), over, self.t >= 20, {}

    def obs(self):
        return np.array([self.at, self.t / 20], np.float32).clip(-9, 9)
"""


class Line(gymnasium.Env[Any, Any]):
    """Walk left or right from the middle of a line; closed over by the tests below."""

    observation_space, action_space = spaces.Box(-99.0, 99.0, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, length: int = 3, say: Any = None) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._at = int(self.np_random.integers(-1, 2))
        return np.array([self._at], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._at += 2 * int(action) - 1
        return np.array([self._at], np.float32), float(self._at), abs(self._at) >= self.length, False, {}


KEYS = """
    goes_on episode_continues over first valid alive acting agents state mask legal lives reward terminated truncated
    episode _episode final_info final_obs final_observation terminal_observation TimeLimit.truncated is_success way done
""".split()


class TellsMuch(Line):
    """Each key that this package uses, has used or might use, in each info."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return super().reset(**kwargs)[0], dict.fromkeys(KEYS, True)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:4], dict.fromkeys(KEYS, True)


def run(argv: list[str], cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, env={**os.environ, **environ}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def test_a_class_with_arguments(tmp_path: Path) -> None:
    result = rltrain.train(**QUICK, env=Line, env_args={"length": 5}, out=str(tmp_path))

    assert "Line" in result.run.name
    assert rltrain.evaluate(result.run, episodes=3, env=Line).episodes == 3
    told = json.loads((result.run / "run.json").read_text())["config"]
    assert (told["env"], told["env_args"], told["reloadable"]) == ("Line", {"length": 5}, False)


def test_keys_of_an_info_are_the_environments_own(tmp_path: Path) -> None:
    plain, much = (rltrain.train(**QUICK, env=env, out=str(tmp_path)) for env in (Line, TellsMuch))

    assert (much.episodes, much.train_return, much.fingerprint) == (
        plain.episodes,
        plain.train_return,
        plain.fingerprint,
    )
    assert plain.episodes > 3
    returns = [rltrain.evaluate(plain.run, episodes=3, env=env).returns for env in (Line, TellsMuch)]
    assert returns[0] == returns[1]


PARSES = """
import argparse, sys
from pathlib import Path
SEEN = Path(__file__).with_name("seen")

def look(where):
    argparse.ArgumentParser().parse_args()
    with SEEN.open("a") as file:
        file.write(f"{where} {len(sys.argv)} {Path(sys.argv[0]).name}\\n")

look("import")
""" + MAZE.replace("self.size = size", "self.size = size; look('constructor')").replace(
    "super().reset", "look('reset'); super().reset"
)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.sweep)])
def test_an_environment_with_a_parser_of_its_own_sees_no_flag_of_ours(workers: int, tmp_path: Path) -> None:
    (tmp_path / "parses.py").write_text(PARSES)
    (tmp_path / "program").write_text("import sys\nfrom rltrain.cli import main\nsys.exit(main())\n")
    words = "--streams 2 --unroll 8 --epochs 1 --minibatches 1 --steps 32 --eval-every 0 --quiet --preset none".split()

    done = run(["program", "--algo", "ppo", "--env", "parses.py:Maze", "--workers", str(workers), *words], tmp_path)

    assert done.returncode == 0, done.stderr
    seen = set((tmp_path / "seen").read_text().splitlines())
    assert seen == {f"{where} 1 program" for where in ("import", "constructor", "reset")}


@pytest.mark.usefixtures("fork_server")
def test_a_closure_travels_to_processes_but_into_no_checkpoint(tmp_path: Path) -> None:
    secret = "closed-over-by-a-lambda"
    length = 4

    def make() -> Line:
        return Line(length, say=secret)

    asked = {**QUICK, "env": make, "steps": 300, "checkpoint_every": 100, "out": str(tmp_path)}
    whole = rltrain.train(**asked)
    spread = rltrain.train(**{**asked, "workers": 2})

    assert spread.fingerprint == whole.fingerprint
    for file in whole.run.rglob("*"):
        assert not (file.is_file() and secret.encode() in file.read_bytes())


def test_a_run_with_an_object_is_resumed_with_it(tmp_path: Path) -> None:
    asked = {**QUICK, "out": str(tmp_path), "checkpoint_every": 64}
    whole = rltrain.train(**{**asked, "env": Line, "steps": 300})
    begun = rltrain.train(**{**asked, "env": lambda: Line(), "steps": 300})
    cut = sorted((begun.run / "checkpoints").glob("step-*"))[0]
    checkpoints.point(begun.run / "checkpoints", "latest", cut.name)  # as if it had been killed

    with pytest.raises(
        rltrain.ConfigError, match=r"was given as an object.*rltrain\.train\(resume=\.\.\., env=\.\.\.\)"
    ):
        rltrain.train(resume=begun.run)
    again = rltrain.train(resume=begun.run, env=Line)

    assert again.fingerprint == begun.fingerprint == whole.fingerprint


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    from rltrain import algorithms
    from rltrain.algorithms import registry as policies
    from rltrain.envs import names

    monkeypatch.setattr(names, "_registered", dict(names._registered))
    monkeypatch.setattr(algorithms, "_registry", dict(algorithms._registry))
    monkeypatch.setattr(policies, "POLICIES", dict(policies.POLICIES))


@pytest.mark.usefixtures("registries")
def test_a_registered_environment_is_a_name(tmp_path: Path) -> None:
    rltrain.register_env("my-line", Line)

    result = rltrain.train(**QUICK, env="my-line", env_args={"length": 2}, out=str(tmp_path))

    assert rltrain.evaluate(result.run, episodes=2).length_mean <= 3
    assert rltrain.train(resume=result.run, steps=200).steps >= 200
    with pytest.raises(Exception, match=r"unknown environment 'my-lin'.*'my-line'"):
        rltrain.train(**QUICK, env="my-lin", out=str(tmp_path))


class Tiny(torch.nn.Module):
    """A policy of a user: one linear layer, no value function."""

    def __init__(self, spec: Any, settings: Any, streams: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(spec.action.nvec[0], spec.obs.shape[0]))
        torch.nn.init.normal_(self.weight, generator=generator)
        from rltrain.algorithms.protocol import Noise

        self.noise, self.core_size, self.sequence = Noise("gumbel", spec.action.nvec[0]), 0, settings.unroll

    def act(self, obs: Any, core: Any, action_mask: Any, noise: Any, explore: bool) -> Any:
        from rltrain.algorithms.protocol import Act

        logits = obs @ self.weight.T
        return Act((logits + noise if explore else logits).argmax(-1), {"logits": logits}, None)


class Reinforce:
    """An algorithm of a user, with an optimiser of torch and a counter of its own."""

    def __init__(self, spec: Any, config: Any, device: torch.device, seed: int, streams: int) -> None:
        from rltrain.algorithms.registry import build, policy_factory
        from rltrain.rollout.specs import StreamPlan

        self.plan = StreamPlan(unroll=config.unroll)
        self.policy = build(policy_factory(config.policy), spec, config, streams, seed).to(device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.lr)
        self.counter = Counter()

    def update(self, unrolls: Any, progress: float) -> Any:
        from rltrain.algorithms.protocol import Update

        logits = unrolls.obs[:-1] @ self.policy.weight.T  # [T, B, n]
        chosen = logits.log_softmax(-1).gather(-1, unrolls.action[..., None])[..., 0]  # [T, B]
        loss = -(chosen * unrolls.reward * unrolls.valid).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.counter.updates += 1
        return Update({"loss_policy": loss.detach()})

    def observe(self, unrolls: Any) -> None:
        pass

    def parts(self) -> dict[str, Any]:
        return {"policy": self.policy, "optimizer": self.optimizer, "counter": self.counter}


class Counter:
    """Plain data in a checkpoint."""

    updates = 0

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]


@pytest.mark.usefixtures("registries", "fork_server")
def test_an_algorithm_and_a_policy_of_a_user(tmp_path: Path) -> None:
    from pydantic import BaseModel

    class Settings(BaseModel):
        policy: str = "tiny"
        lr: float = 1e-2
        unroll: int = 16

    rltrain.register_policy("tiny", Tiny)
    rltrain.register_algorithm("reinforce", Reinforce, Settings)
    asked: dict[str, Any] = {
        "algo": "reinforce", "env": Line, "streams": 4, "workers": 0, "steps": 400, "eval_every": 100, "quiet": True,
        "eval_episodes": 2, "checkpoint_every": 64, "lr": 0.05, "out": str(tmp_path),
    }  # fmt: skip
    whole = rltrain.train(**asked)
    spread = rltrain.train(**{**asked, "workers": 2})

    assert spread.fingerprint == whole.fingerprint
    found = checkpoint.load(whole.checkpoint).state["learner"]
    assert found["parts"]["counter"]["updates"] == found["version"] >= 6
    assert whole.eval_return is not None
    assert rltrain.load(whole.run).act(np.zeros(1)) in (0, 1)
    # Resumed from the first checkpoint that is left: the optimiser of torch goes on where it was.
    cut = sorted((spread.run / "checkpoints").glob("step-*"))[0]
    checkpoints.point(spread.run / "checkpoints", "latest", cut.name)
    assert rltrain.train(resume=spread.run, env=Line).fingerprint == whole.fingerprint
    with pytest.raises(rltrain.ConfigError, match="did you mean 'reinforce'"):
        rltrain.train(**{**asked, "algo": "reinforced"})


SCRIPT = '''
"""As a user writes it: no __main__ guard, an environment and a torso in the script itself."""
import gymnasium, numpy as np, rltrain
from gymnasium import spaces

print("begun")

class Line(gymnasium.Env):
    observation_space, action_space = spaces.Box(-99.0, 99.0, (1,), np.float32), spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(-1, 2))
        return np.array([self.at], np.float32), {}
    def step(self, action):
        self.at += 2 * int(action) - 1
        return np.array([self.at], np.float32), float(self.at), abs(self.at) >= 3, False, {}

rltrain.register_env("my-line", Line)
for workers, env in ((0, Line), (1, "my-line")):
    result = rltrain.train(algo="ppo", env=env, workers=workers, streams=4, unroll=16, steps=100, eval_every=0,
                      quiet=True, widths=[8])
    print(result.fingerprint, result.restarts)
'''


def test_a_script_without_a_guard_starts_processes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)

    done = run(["mine.py"], tmp_path)

    assert done.returncode == 0, done.stderr
    begun, *lines = done.stdout.splitlines()
    assert begun == "begun"  # once: no process ran the script again
    assert len(lines) == 2
    assert len(set(lines)) == 1
    assert lines[0].endswith(" 0")


def user_folder(tmp: Path) -> Path:
    """A project whose own folder is called like one of ours."""
    folder = tmp / "project"
    (folder / "envs" / "deep").mkdir(parents=True)
    (folder / "envs" / "__init__.py").write_text("raise ImportError('not the one you want')\n")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "__init__.py").write_text("")
    (folder / "tasks" / "maze.py").write_text(MAZE)
    (folder / "envs" / "deep" / "my maze.py").write_text(MAZE)
    (folder / "register.py").write_text(
        "import gymnasium\ngymnasium.register('Maze-v0', entry_point='tasks.maze:Maze', kwargs={'size': 2})\n"
    )
    return folder


NAMES = [
    pytest.param("tasks.maze:Maze", marks=pytest.mark.sweep),
    pytest.param("envs/deep/my maze.py:Maze", marks=pytest.mark.sweep),
    "register:Maze-v0",
]
FLAGS = "--algo ppo --streams 4 --unroll 16 --widths 8 --steps 100 --eval-every 50 --eval-episodes 2".split()


@pytest.mark.parametrize("env", NAMES)
def test_a_project_with_an_envs_folder_of_its_own(env: str, launch: Any, tmp_path: Path) -> None:
    folder = user_folder(tmp_path)

    done = launch(folder, *FLAGS, "--env", env, "--workers", "0", "--json", "--quiet", "--env-arg", "size=2")

    told = launch(folder, done.result["run"], "--episodes", "2", "--json", main="main_eval").result
    assert told["episodes"] == 2
    again = launch(folder, "--resume", done.result["run"], "--json", "--steps", "200")
    assert again.result["steps"] >= 200


def test_the_same_in_processes(launch: Any, tmp_path: Path) -> None:
    folder = user_folder(tmp_path)
    fingerprints = []
    for workers in ("0", "2"):
        done = launch(folder, *FLAGS, "--env", "envs/deep/my maze.py:Maze", "--workers", workers, "--json", "--quiet")
        fingerprints.append(done.result["fingerprint"])

    assert fingerprints[0] == fingerprints[1]


def test_nothing_is_left_in_temporary_folders(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MAZE)
    with tempfile.TemporaryDirectory() as temporary:  # tmp_path would be too long for a socket
        argv = [*FLAGS, "--env", "mine.py:Maze", "--workers", "1", "--quiet", "--eval-every", "0"]

        done = run(["-c", RLTRAIN, *argv], tmp_path, TMPDIR=temporary)

        assert done.returncode == 0, done.stderr
        assert os.listdir(temporary) == []


def test_a_temporary_folder_too_long_for_a_socket_means_another_way_to_start(tmp_path: Path) -> None:
    temporary = tmp_path / ("t" * 120)
    temporary.mkdir()
    text = "from rltrain.rollout.workers import fork_server as p; p.start_fork_server([]); print(p._fork_server)"

    done = run(["-c", text], tmp_path, TMPDIR=str(temporary))

    assert done.stdout == "False\n", done.stderr


RLTRAIN = "import sys; from rltrain.cli import main; sys.exit(main())"
