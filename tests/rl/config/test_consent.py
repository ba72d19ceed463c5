"""Names in the files of somebody else's run import nothing; code that the user made, named or trusts is imported."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracles.forged import forge, forge_config

import rltrain
from rltrain import cli
from rltrain.algorithms.networks import CNNS
from rltrain.algorithms.settings import TORSOS
from rltrain.config import consent
from rltrain.errors import CheckpointError, ConfigError
from rltrain.storage.checkpoint import META
from rltrain.storage.run_folder import RUN_FILE

QUICK: dict[str, Any] = {
    "algo": "ppo", "workers": 0, "streams": 2, "unroll": 16, "epochs": 1, "minibatches": 1, "widths": (4,),
    "steps": 64, "eval_every": 0, "preset": "none", "quiet": True,
}  # fmt: skip
# What a hostile file does when it is imported: it leaves a mark.
PAYLOAD = """
import pathlib
pathlib.Path({mark!r}).touch()
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv as Env
gymnasium.register("Payload-v0", Env)
def parallel_env(**_):
    return Env()
"""
MINE = """
import gymnasium, numpy as np, torch
class Env(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}
    def step(self, action):
        return np.zeros(3, np.float32), 1.0, bool(self.np_random.random() < 0.2), False, {}
class Net(torch.nn.Module):
    features = 3
    def __init__(self, spec):
        super().__init__()
    def forward(self, obs):
        return obs
"""

USES: dict[str, Callable[[Path], int]] = {
    "load": lambda run: 0 if rltrain.load(run) else 1,
    "rleval": lambda run: cli.main_eval([str(run), "--episodes", "1"]),
    "resume": lambda run: cli.main(["--resume", str(run), "--steps", "128"]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a built-in problem."""
    return rltrain.train(**QUICK, env="probe:counter", out=str(tmp_path_factory.mktemp("made"))).run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder. What a user named is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(consent, "_imported", set())
    return tmp_path


@pytest.fixture
def downloaded(made: Path, place: Path) -> Path:
    """The run as somebody else made it, with hostile files in its folder and in the current folder."""
    run = place / "runs" / "great"
    shutil.copytree(made, run)
    for file in (place / "payload.py", run / "payload.py"):
        file.write_text(PAYLOAD.format(mark=str(place / "executed")))
    (place / "runs" / "__init__.py").touch()
    return run


def used(use: str, run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a use of the run is refused."""
    if use == "load":
        with pytest.raises(CheckpointError) as caught:
            rltrain.load(run)
        return str(caught.value)
    assert USES[use](run) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


NAMES: dict[str, dict[str, Any]] = {
    "module": {"env": "payload:Env"},
    "id of a module": {"env": "payload:Payload-v0"},
    "file": {"env": "payload.py:Env"},
    "file of the run": {"env": "runs/great/payload.py:Env"},
    "PettingZoo's form": {"env": "pettingzoo:payload"},
    "command": {"env": "subprocess:Popen", "env_args": {"args": ["touch", "executed"]}},
    "torso": {"torso": "payload:Env"},
    "torso of the run": {"torso": "runs.great.payload:Env"},
    "torso that ends the program": {"torso": "sys:exit"},
    "torso that waits": {"torso": "builtins:input"},
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_somebody_elses_run_imports_nothing(
    name: str, use: str, downloaded: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge_config(downloaded, **NAMES[name])
    if use == "load" and "torso" not in name:
        rltrain.load(downloaded)  # makes no environment
    else:
        line = used(use, downloaded, capsys)
        assert "--trust" in line
        assert all(repr(text) in line for text in NAMES[name].values() if isinstance(text, str))
    assert not (place / "executed").exists()
    assert not {"payload", "runs.great.payload"} & sys.modules.keys()
    assert str(place) not in sys.path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record": "/tmp/elsewhere"}, "write a recording to '/tmp/elsewhere'"),
        ({"cluster": "tcp://203.0.113.1:8786", "backend": "dask", "workers": 2}, "of the cluster 'tcp://203.0.113.1"),
        ({"env": "CartPole-v1", "env_args": {"render_mode": "payload:X"}}, "give the environment render_mode"),
        ({"env": "CartPole-v1", "env_args": {"a": [{"b": "/etc/passwd"}]}}, "give the environment a = '/etc/passwd'"),
    ],
)
def test_what_else_reaches_outside_is_listed(
    changes: dict[str, Any], words: str, downloaded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge_config(downloaded, **changes)

    assert words in used("resume", downloaded, capsys)


def test_everything_that_would_be_imported_is_listed_at_once(
    downloaded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge_config(downloaded, torso="payload:Net", env="payload.py:Env")

    line = used("rleval", downloaded, capsys)

    assert "'payload.py' (env 'payload.py:Env') and import 'payload' (torso 'payload:Net')" in line


@pytest.mark.parametrize("use", ["rleval", "resume"])
@pytest.mark.parametrize("flags", [["--trust"], ["--import", "payload"]])
def test_trusted_code_is_imported(use: str, flags: list[str], downloaded: Path, place: Path) -> None:
    forge_config(downloaded, env="payload:Env")
    command = ["--resume", str(downloaded), "--steps", "128"] if use == "resume" else [str(downloaded)]
    (cli.main if use == "resume" else cli.main_eval)([*command, *flags])

    assert (place / "executed").exists()


def test_names_of_installed_environments_are_data(downloaded: Path) -> None:
    for env in ("CartPole-v1", "probe:bandit", "pettingzoo:mpe2.simple_spread_v3", "atari:Pong", "ALE/Pong-v5", "x/y"):
        assert not list(consent._code_named(rltrain.RunConfig.from_json(_config(downloaded) | {"env": env}), ("env",)))


def _config(run: Path) -> dict[str, Any]:
    return dict(cli.saved_config(run).values)


@pytest.mark.parametrize("by", ["file", pytest.param("module", marks=pytest.mark.sweep)])
def test_a_run_of_ones_own_needs_no_consent(by: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after it was moved, and from another folder: its code comes from the folder in which it was made."""
    (place / f"mine_{by}.py").write_text(MINE)
    code = "mine_file.py" if by == "file" else "mine_module"
    run = rltrain.train(**QUICK, env=f"{code}:Env", torso=f"mine_{by}:Net", out="runs").run
    moved = place / "elsewhere" / "deep" / "run"
    shutil.copytree(run, moved)
    (place / "empty").mkdir()
    monkeypatch.chdir(place / "empty")

    assert rltrain.load(moved).own
    assert rltrain.evaluate(moved, episodes=2).episodes == 2
    assert rltrain.train(resume=moved, steps=128, quiet=True).steps >= 128


def test_without_the_key_ones_own_run_asks_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "mine_key.py").write_text(MINE)
    run = rltrain.train(**QUICK, env="mine_key:Env", out="runs").run
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "another-user"))

    with pytest.raises(CheckpointError, match=r"import 'mine_key' \(env 'mine_key:Env'\).*trust=True"):
        rltrain.evaluate(run, episodes=1)
    assert rltrain.evaluate(run, episodes=1, env="mine_key:Env").episodes == 1  # named in this program
    assert rltrain.evaluate(run, episodes=1, trust=True).episodes == 1
    resumed = rltrain.train(resume=run, steps=128, quiet=True, trust=True)
    assert rltrain.evaluate(resumed.run, episodes=1).episodes == 1  # signed by this user now


def test_a_signature_holds_for_its_own_file_only(place: Path) -> None:
    """Nothing signed can be put into a file that somebody else wrote."""
    (place / "mine_signed.py").write_text(MINE)
    run = rltrain.train(**QUICK, env="mine_signed:Env", out="runs").run
    assert cli.saved_config(run).own
    signed = json.loads((run / RUN_FILE).read_text())["signature"]
    forge(run / RUN_FILE, lambda content: content["config"].update(seed=5), signed)
    assert not cli.saved_config(run).own
    for meta in (run / "checkpoints").glob(f"*/{META}"):
        forge(meta, lambda content: content["config"].update(seed=5), signed)
    with pytest.raises(CheckpointError, match="mine_signed"):
        rltrain.evaluate(run, episodes=1)


def test_a_file_of_settings_imports_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "payload.py").write_text(PAYLOAD.format(mark=str(place / "executed")))
    (place / "run.toml").write_text('algo = "ppo"\nenv = "payload:Env"\nsteps = 64\n')

    assert cli.main(["--config", "run.toml"]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "run.toml: it would import 'payload' (env 'payload:Env')" in line
    assert not (place / "executed").exists()
    assert cli.parse(["--config", "run.toml", "--env", "payload:Env"])[0].env == "payload:Env"
    assert cli.parse(["--config", "run.toml", "--trust"])[0].env == "payload:Env"
    assert not (place / "executed").exists()


def test_code_may_register_what_a_run_needs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "registers.py").write_text(MINE + "import rltrain\nrltrain.register_env('mine', Env)\n")
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in QUICK.items() if key not in ("quiet", "widths")]

    assert cli.main([*flags, "--env", "mine", "--import", "registers.py", "--quiet"]) == 0
    assert cli.main(["--algo", "ppo", "--env", "x", "--import", "no_such_module"]) == 2

    assert "--import no_such_module: there is no module 'no_such_module'" in capsys.readouterr().err


def test_an_imported_file_may_have_the_name_of_an_installed_module(place: Path) -> None:
    (place / "test.py").write_text("import pathlib\npathlib.Path(__file__).with_name('executed').touch()\n")

    assert cli.parse(["--algo", "ppo", "--env", "CartPole-v1", "--import", "test.py"])

    assert (place / "executed").exists()


def test_a_flag_for_one_argument_is_no_consent_to_those_of_the_file(place: Path) -> None:
    (place / "run.toml").write_text('algo = "ppo"\nenv = "Ant-v5"\n[env_args]\nxml_file = "/a/b.xml"\nframe_skip = 5\n')
    flags = ["--config", "run.toml", "--env-arg"]

    with pytest.raises(ConfigError, match=r"run.toml: it would give the environment xml_file = '/a/b.xml'"):
        cli.parse([*flags, "frame_skip=4"])
    assert cli.parse([*flags, "xml_file=/c/d.xml"])[0].env_args == {"xml_file": "/c/d.xml", "frame_skip": 5}


def test_trust_does_not_move_the_folder_of_ones_own_code(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "mine_moved.py").write_text(MINE)
    run = rltrain.train(**QUICK, env="mine_moved:Env", out="runs").run
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")

    assert cli.reload(cli.saved_config(run), {}, trust=True).folder == str(place)


def test_the_built_in_torsos_are_those_of_the_networks() -> None:
    assert set(TORSOS) == {"auto", *CNNS}
