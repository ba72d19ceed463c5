"""Runs that learn from recorded data alone: what a step is, which data is drawn, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rltrain
from rltrain import algorithms, cli
from rltrain.algorithms.offline.bc import BC
from rltrain.reporting.metrics import read
from rltrain.storage import checkpoint
from rltrain.storage.recording import Recording

QUIET: dict[str, Any] = {"workers": 0, "eval_every": 0, "checkpoint_every": 0, "preset": "none", "quiet": True}
BC_RUN: dict[str, Any] = {"algo": "bc", "env": "CartPole-v1", **QUIET, "widths": (8,), "batch": 16, "steps": 30}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CartPole, 3 streams, the last episode of each cut off."""
    folder = tmp_path_factory.mktemp("data")
    some = {"epochs": 1, "minibatches": 1, "widths": (8,), "streams": 3, "unroll": 16, "steps": 500}
    rltrain.train(algo="ppo", env="CartPole-v1", **QUIET, **some, out=str(folder), record=str(folder / "rec"))
    return folder / "rec"


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The batches that BC gets from here on."""
    real, batches = BC.update, []
    monkeypatch.setattr(
        BC, "update", lambda self, batch, progress: batches.append(batch) or real(self, batch, progress)
    )
    return batches


def rows_of(batches: list[Any]) -> set[tuple[float, ...]]:
    return {(*b.obs[i].tolist(), float(b.action[i])) for b in batches for i in range(len(b.obs))}


def test_a_step_is_an_update_whatever_the_number_of_streams_and_workers(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = drawn(monkeypatch)
    asked = {"eval_every": 10, "eval_episodes": 2, "checkpoint_every": 10}
    one = rltrain.train(**BC_RUN | asked, data=data, out=str(tmp_path))

    assert (one.steps, len(batches), {len(batch.obs) for batch in batches}) == (30, 30, {16})
    assert checkpoint.load(one.checkpoint).meta["version"] == 30
    assert [line["step"] for line in read(one.run) if "eval/return_mean" in line] == [10, 20, 30]
    other = rltrain.train(**BC_RUN | {"streams": 5, "workers": 2}, replay_from=data, out=str(tmp_path))
    assert (other.steps, other.fingerprint) == (30, one.fingerprint)


def test_all_of_the_data_is_drawn(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting for the size of the replay: the whole recording is in it, however large it is."""
    batches = drawn(monkeypatch)
    rltrain.train(**BC_RUN | {"steps": 400}, data=data, out=str(tmp_path))

    pieces = list(Recording.open(data).pieces())
    legal = {(*p.obs[t, b].tolist(), float(p.action[t, b])) for p in pieces for t, b in np.argwhere(p.valid)}
    assert rows_of(batches) == legal


def test_of_the_best_episodes_alone(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the complete episodes, those of highest return: found here episode by episode."""
    batches = drawn(monkeypatch)
    rltrain.train(**BC_RUN | {"steps": 100}, filter_top=0.1, data=data, out=str(tmp_path))

    (piece,) = Recording.open(data).pieces()
    episodes = []
    for b in range(3):
        rows: list[int] = []
        for t in range(piece.rows):
            rows = [t] if piece.first[t, b] else [*rows, t]
            if piece.terminated[t, b] or piece.truncated[t, b]:
                episodes.append((float(piece.reward[rows, b].sum()), b, rows))
    best = sorted(episodes, key=lambda episode: -episode[0])[: len(episodes) // 10]
    legal = {(*piece.obs[t, b].tolist(), float(piece.action[t, b])) for _, b, rows in best for t in rows}

    assert len(best) >= 1
    assert rows_of(batches) == legal


def test_the_best_share_of_no_complete_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "rec")
    some = {"steps": 20, "warmup": 30, "streams": 1}
    rltrain.train(algo="sac", env="Pendulum-v1", **QUIET | some | {"warmup": 10}, out=str(tmp_path), record=folder)
    argv = ["--algo", "bc", "--env", "Pendulum-v1", "--data", folder, "--out", str(tmp_path), "--workers", "0"]

    assert cli.main([*argv, "--filter-top", "10%", "--quiet"]) == 2
    assert "holds no complete episode; leave it out" in capsys.readouterr().err


def test_the_statistics_of_observations_are_those_of_the_data(data: Path, tmp_path: Path) -> None:
    result = rltrain.train(**BC_RUN, normalize_obs=True, data=data, out=str(tmp_path))

    policy = checkpoint.load(result.checkpoint).state["learner"]["parts"]["policy"]
    pieces = list(Recording.open(data).pieces())
    rows = np.concatenate([piece.obs[:-1][piece.valid] for piece in pieces]).astype(np.float64)
    np.testing.assert_allclose(policy["normalizer.shift0"], rows.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(policy["normalizer.scale0"], 1 / rows.std(0), rtol=1e-3)


ALONE = [name for name in algorithms.names() if getattr(algorithms.settings_class(name), "data_only", False)]


@pytest.mark.parametrize("algo", ALONE)
def test_without_data_there_is_one_line(algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--algo", algo, "--env", "CartPole-v1", "--out", str(tmp_path / "runs")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{algo} learns from recorded data: add --data DIR" in line
    assert not (tmp_path / "runs").exists()


def test_data_is_another_name_of_replay_from(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line, in a file and as a keyword; also of algorithms that could act."""
    (tmp_path / "run.toml").write_text(f'algo = "dqn"\nenv = "CartPole-v1"\ndata = "{data}"\n')
    words = ["--algo", "dqn", "--env", "CartPole-v1"]
    configs = [cli.parse([*words, "--data", str(data)])[0], cli.parse([*words, "--replay-from", str(data)])[0]]
    configs.append(cli.parse(["--config", str(tmp_path / "run.toml")])[0])
    assert {config.replay_from for config in configs} == {str(data)}


def test_data_of_another_environment_and_actions_that_cannot_be_cloned(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--algo", "bc", "--data", str(data), "--out", str(tmp_path), "--workers", "0"]
    assert cli.main([*argv, "--env", "Acrobot-v1"]) == 2
    assert "was recorded on another CartPole-v1 than Acrobot-v1 is" in capsys.readouterr().err
    assert cli.main([*argv, "--env", "probe:multi-discrete"]) == 2
    assert "bc needs Box or Discrete actions" in capsys.readouterr().err


def test_a_longer_run_continues_a_shorter_one(data: Path, tmp_path: Path) -> None:
    first = rltrain.train(**BC_RUN, data=data, out=str(tmp_path))
    second = rltrain.train(resume=first.run, steps=60, quiet=True)
    whole = rltrain.train(**BC_RUN | {"steps": 60}, data=data, out=str(tmp_path))

    assert (second.steps, second.fingerprint) == (60, whole.fingerprint)
