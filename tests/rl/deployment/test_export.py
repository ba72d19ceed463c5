"""Exported policies: the actions of `Trained.act`, for every algorithm, kind of space, memory and several agents."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from rl_policies import AGENTS, CASES, save, saved, spec_of

import rltrain
from rltrain import cli
from rltrain.deployment.export.deployed import DeployedPolicy
from rltrain.deployment.export.export import check, export
from rltrain.deployment.export.formats import Exported, torch_runner
from rltrain.deployment.export.observations import random_observations
from rltrain.deployment.export.proof import _unit, prove
from rltrain.envs.spaces import env_spec
from rltrain.errors import CheckpointError, ConfigError, RunFailed


@pytest.mark.parametrize("name", [*CASES, *AGENTS])
def test_the_deployed_policy_acts_as_trained_does(name: str, tmp_path: Path) -> None:
    """Observation to action in the environment's units, memory and several agents included; also sampled."""
    trained = rltrain.load(saved(tmp_path, name), best=True)
    deployed = DeployedPolicy(trained.policy, trained.spec)
    seen = random_observations(trained.spec, 60, 0)
    proof = prove(trained, torch_runner(deployed, deployed.interface), seen, exact=True)
    assert proof["ties"] == 0
    assert proof["rows"] == 60


def exported(folder: Path, name: str, to: str) -> Path:
    file = folder / f"policy.{ {'torch': 'pt2', 'onnx': 'onnx', 'torchscript': 'ts'}[to] }"
    export(rltrain.load(saved(folder, name), best=True), file, rows=40)
    return file


def export_case(to: str, name: str) -> Any:
    """By default only a policy whose weights are views, which are not contiguous."""
    return pytest.param(to, name, marks=() if (to, name) == ("onnx", "maddpg") else pytest.mark.sweep)


EXPORTS = [export_case(to, name) for to in ("torch", "onnx", "torchscript") for name in [*CASES, *AGENTS]]


@pytest.mark.parametrize(("to", "name"), EXPORTS)
def test_every_policy_can_be_exported(to: str, name: str, tmp_path: Path) -> None:
    assert check(exported(tmp_path, name, to), rows=30, seed=1)["proof"]["rows"] == 30


@pytest.mark.parametrize("slow", [False, True])
def test_torchscript_has_the_numbers_of_actors_on_every_processor(
    slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learners compute tanh by other operations where MKL is slow, and a trace is made outside of inference mode."""
    monkeypatch.setattr("rltrain.algorithms.networks.products.SLOW_MKL", slow)
    assert exported(tmp_path, "ppo-discrete", "torchscript").is_file()


def test_an_onnx_file_computes_the_network_once(tmp_path: Path) -> None:
    """For greedy and sampled actions and for scores."""
    onnx = pytest.importorskip("onnx")
    trained = rltrain.load(saved(tmp_path, "ppo-discrete"), best=True)

    export(trained, tmp_path / "policy.onnx", rows=40)

    kinds = [node.op_type for node in onnx.load(tmp_path / "policy.onnx").graph.node]
    assert kinds.count("Gemm") == len(trained.config.settings.widths) + 1


def test_a_wrong_export_is_refused_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof fails if the exported actions are others than those of the policy."""
    trained = rltrain.load(saved(tmp_path, "ppo-box-lstm"), best=True)
    deployed = DeployedPolicy(trained.policy, trained.spec)
    run = torch_runner(deployed, deployed.interface)
    seen = random_observations(trained.spec, 20, 0)

    def shifted(inputs: Any) -> Any:
        return {name: array + 1e-4 if name == "action" else array for name, array in run(inputs).items()}

    def forgetful(inputs: Any) -> Any:
        return run({**inputs, "core": np.zeros_like(inputs["core"])})

    for wrong in (shifted, forgetful):
        with pytest.raises(RunFailed, match="the export is wrong"):
            prove(trained, wrong, seen, exact=False)


@pytest.mark.parametrize("name", ["ppo-discrete", "ppo-box-lstm"])
def test_the_proof_looks_at_every_size_of_a_batch_and_every_output(name: str, tmp_path: Path) -> None:
    trained = rltrain.load(saved(tmp_path, name), best=True)
    deployed = DeployedPolicy(trained.policy, trained.spec)
    run = torch_runner(deployed, deployed.interface)
    seen = random_observations(trained.spec, 120, 0)
    prove(trained, run, seen, exact=False)

    def other(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        action = found["action"]
        return {**found, "action": (action - 5 + 1) % 3 + 5 if action.dtype.kind == "i" else action + 0.01}

    def one_row(inputs: Any) -> Any:
        return other(run(inputs)) if len(inputs["sample"]) == 1 else run(inputs)

    def some_rows(inputs: Any) -> Any:
        return other(run(inputs)) if len(inputs["sample"]) == 7 else run(inputs)

    def log_prob(inputs: Any) -> Any:
        found = run(inputs)
        return {**found, "log_prob": found["log_prob"] + 1}

    for wrong in (one_row, some_rows, log_prob):
        with pytest.raises(RunFailed, match="the export is wrong"):
            prove(trained, wrong, seen, exact=False)


def test_each_number_of_an_action_has_its_own_unit() -> None:
    spec = env_spec("it", spaces.Box(-1, 1, (3,)), spaces.Box(np.array([-1, 0]), np.array([1, 1e6]), dtype=float), 10)
    assert _unit(spec, 2).tolist() == [1.0, 1e6]


def test_onnx_differences_count_as_ties_only_where_scores_are_equal(tmp_path: Path) -> None:
    trained = rltrain.load(saved(tmp_path, "dqn"), best=True)
    deployed = DeployedPolicy(trained.policy, trained.spec)
    run = torch_runner(deployed, deployed.interface)

    def other(inputs: Any) -> Any:
        found = run(inputs)
        return {**found, "action": (found["action"] + 1) % 3}

    with pytest.raises(RunFailed, match="in place of"):
        prove(trained, other, random_observations(trained.spec, 20, 0), exact=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy with a memory, as a file of each format."""
    folder = tmp_path_factory.mktemp("exported")
    trained = rltrain.load(saved(folder, "ppo-box-lstm"), best=True)
    found = {"torch": folder / "policy.pt2", "onnx": folder / "policy.onnx", "torchscript": folder / "policy.ts"}
    for file in found.values():
        export(trained, file, rows=40)
    return found


@pytest.mark.parametrize("to", ["torch", "onnx", "torchscript"])
def test_a_file_is_proven_and_checked_again(to: str, files: dict[str, Path]) -> None:
    meta = check(files[to], rows=30, seed=1)
    assert meta["proof"]["rows"] == 30
    assert meta["proof"]["equal"] == ("within 1e-05" if to == "onnx" else "to the bit")
    assert Exported(files[to]).to == to


def test_a_file_of_somebody_else_runs_no_code(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
                                              tmp_path: Path) -> None:  # fmt: skip
    """torch can run code from an archive, so it is not loaded; ONNX is data."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for to in ("torch", "torchscript"):
        with pytest.raises(CheckpointError, match=r"you did not export .*Nothing was loaded"):
            Exported(files[to])
        assert Exported(files[to], trust=True).to == to
    assert not Exported(files["onnx"]).own


def test_damage_is_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    policy = rltrain.load(Exported(files["onnx"]).meta["checkpoint"]).policy
    weights = policy.actor.pairs[0][0].detach().numpy().tobytes()[:16]
    for file in files.values():
        data = file.read_bytes()
        changed = tmp_path / file.name
        place = data.index(weights)
        changed.write_bytes(data[:place] + b"\1" + data[place + 1 :])
        with pytest.raises(CheckpointError, match=r"damaged|no policy"):
            Exported(changed)
        for cut in (data[: len(data) // 2], b"", b"PK"):
            changed.write_bytes(cut)
            with pytest.raises(CheckpointError):
                Exported(changed)


def test_other_weights_are_noticed(files: dict[str, Path], tmp_path: Path) -> None:
    other = save(tmp_path, "ppo-box-lstm", spec_of("ppo-box-lstm"), "ppo", CASES["ppo-box-lstm"][3], seed=5)
    with pytest.raises(CheckpointError, match="has other weights than"):
        check(files["onnx"], run=other / "checkpoints" / "best", rows=5)


def test_wrong_arguments_are_one_line(tmp_path: Path) -> None:
    trained = rltrain.load(saved(tmp_path, "dqn"), best=True)
    with pytest.raises(ConfigError, match=r"--to onnx \(.onnx\), --to torch \(.pt2\), --to torchscript"):
        export(trained, tmp_path / "policy.bin")
    for rows, seed, line in (0, 0, "rows must be at least 1"), (1, -1, "seed must be at least 0"):
        with pytest.raises(ConfigError, match=line):
            export(trained, tmp_path / "policy.onnx", rows=rows, seed=seed)
        with pytest.raises(ConfigError, match=line):
            check(tmp_path / "policy.onnx", rows=rows, seed=seed)
    with pytest.raises(ConfigError, match="is a folder"):
        export(trained, tmp_path, to="onnx")


def test_the_command_exports_a_run_of_an_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The observations of the proof are those of the run's environment."""
    result = rltrain.train(algo="ppo", env="CartPole-v1", workers=0, streams=4, unroll=16, steps=64, widths=(8,),
                           eval_every=0, preset="none", quiet=True, out=str(tmp_path))  # fmt: skip
    run = result.checkpoint
    file = tmp_path / "cartpole.pt2"
    assert cli.main_export([str(run), str(file), "--rows", "50", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["proof"]["observations"] == "50 steps of CartPole-v1, seed 0"
    assert cli.main_export(["check", str(file), "--rows", "20"]) == 0
    assert "20 observations" in capsys.readouterr().out
    assert cli.main_export([str(run), str(tmp_path / "nowhere" / "x.onnx"), "--rows", "5"]) == 2


LOADER = """
import sys
for name in ("torch", "rltrain", "gymnasium"):
    sys.modules[name] = None
sys.argv = ["loader", {file!r}]
exec(open({loader!r}).read())
policy = Policy({file!r})
first = policy.act({{"obs": [[0.1, 0.2, 0.3]]}}, first=True)
second = policy.act({{"obs": [[0.1, 0.2, 0.3]]}})
sampled = policy.act({{"obs": [[0.1, 0.2, 0.3]]}}, sample=True, seed=7)
assert sampled["action"].shape == (1, 2)
print([first["action"][0].tolist(), second["action"][0].tolist()])
"""


def test_the_loader_of_the_documentation_needs_neither_torch_nor_rltrain(
    files: dict[str, Path], tmp_path: Path
) -> None:
    text = (Path(__file__).parents[3] / "docs" / "export.md").read_text()
    loader = tmp_path / "loader.py"
    loader.write_text(text.partition("```python loader\n")[2].partition("```")[0])
    assert 20 < len(loader.read_text().splitlines()) < 60
    code = LOADER.format(file=str(files["onnx"]), loader=str(loader))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    trained = rltrain.load(Exported(files["onnx"]).meta["checkpoint"])
    obs = np.array([0.1, 0.2, 0.3], np.float32)
    for told in json.loads(done.stdout.splitlines()[-1]):
        assert np.allclose(told, trained.act(obs), atol=1e-4)
