"""Recorded unrolls: what is written is what was delivered, and a replay can learn from it with nobody acting."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from oracles.forged import forge
from oracles.replaying import Tiny

import rltrain
from rltrain import cli
from rltrain.config.load import load
from rltrain.envs.make import read_spec, resolve
from rltrain.errors import CheckpointError, ConfigError
from rltrain.learner.learner import Learner
from rltrain.reporting.metrics import read
from rltrain.rollout.trajectories import cut_rows, join_columns
from rltrain.rollout.tree import leaves
from rltrain.rollout.types import Trajectory
from rltrain.storage import checkpoint, files
from rltrain.storage import recording as record
from rltrain.storage.recording import Recording

PPO: dict[str, Any] = {
    "algo": "ppo", "env": "CartPole-v1", "workers": 0, "streams": 3, "unroll": 16, "epochs": 1, "minibatches": 1,
    "widths": (8,), "steps": 400, "eval_every": 0, "checkpoint_every": 0, "preset": "none", "quiet": True,
}  # fmt: skip
TINY: dict[str, Any] = {
    "algo": "tiny", "env": "CartPole-v1", "workers": 0, "steps": 400, "eval_every": 0, "checkpoint_every": 0,
    "quiet": True,
}  # fmt: skip


def same(a: Trajectory, b: Trajectory) -> None:
    """Every field, to the bit."""
    for field in fields(Trajectory):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name == "episodes":
            assert x == y
        elif field.name == "extras":
            assert x.keys() == y.keys()
            for name in x:
                np.testing.assert_array_equal(x[name], y[name])
        else:
            assert (x is None) == (y is None), field.name
            for one, other in zip(leaves(x) if x is not None else [], leaves(y) if y is not None else [], strict=True):
                np.testing.assert_array_equal(one, other, field.name)
                assert one.dtype == other.dtype


def delivered(monkeypatch: pytest.MonkeyPatch) -> list[Trajectory]:
    """Copies of what the learner gets from here on, joined, with the values that it adds for the recording."""
    real, values, seen = Learner.step, Learner.state_values, []

    def step(self: Learner, unrolls: list[Trajectory], progress: float) -> None:
        seen.append(join_columns(unrolls))
        real(self, unrolls, progress)

    def state_values(self: Learner, unrolls: Trajectory) -> Any:
        found = values(self, unrolls)
        if found is not None:
            seen[-1] = replace(seen[-1], extras={**seen[-1].extras, "value": found})
        return found

    monkeypatch.setattr(Learner, "step", step)
    monkeypatch.setattr(Learner, "state_values", state_values)
    return seen


def deliveries(recording: Recording) -> Iterator[Trajectory]:
    """Each delivery as it was: rows of a piece, with the weights, recurrent states and episodes of their own."""
    for piece, arrays in zip(recording.pieces(), recording.arrays(), strict=True):
        number, row, episode = len(arrays["length"]), 0, 0
        cores = [None] * number if piece.core is None else np.split(piece.core, number)
        for at, (rows, episodes) in enumerate(zip(arrays["length"].tolist(), arrays["episodes"].tolist(), strict=True)):
            yield replace(
                cut_rows(piece, row, row + rows),
                version=arrays["version"][at],
                core=cores[at],
                episodes=piece.episodes[episode : episode + episodes],
            )
            row, episode = row + rows, episode + episodes


def test_unrolls_under_way_at_a_checkpoint_are_recorded_too(tmp_path: Path) -> None:
    """With overlap actors act while the learner learns: a checkpoint and the end wait for their unrolls."""
    asked = {**PPO, "workers": 1, "overlap": True, "checkpoint_every": 100, "record": str(tmp_path / "rows")}
    result = rltrain.train(**asked, out=str(tmp_path))

    assert Recording.open(tmp_path / "rows").steps == result.steps
    pieces = list(Recording.open(tmp_path / "rows").pieces())
    assert result.episodes == sum(len(piece.episodes) for piece in pieces)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(PPO, marks=pytest.mark.sweep),
        PPO | {"memory": "gru", "memory_size": 8, "sequence": 8},
        PPO | {"env": "probe:dict", "env_args": {}},
        PPO | {"env": "probe:masked"},
        pytest.param(PPO | {"env": "probe:image"}, marks=pytest.mark.sweep),
        pytest.param(TINY | {"unroll": 1, "streams": 1}, marks=pytest.mark.sweep),
    ],
    ids=["vector", "memory", "dict", "masks", "image", "single steps"],
)
def test_what_is_read_is_what_was_delivered(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = delivered(monkeypatch)
    result = rltrain.train(**given, out=str(tmp_path / "runs"), record=str(tmp_path / "rec"))

    found = Recording.open(tmp_path / "rec")
    unrolls = list(deliveries(found))

    assert (found.steps, found.streams) == (result.steps, given.get("streams", 3))
    assert len(unrolls) == len(seen)
    for one, other in zip(unrolls, seen, strict=True):
        same(one, other)
    pieces = list(found.pieces())
    assert len(pieces) == len(found.files), "deliveries that follow each other are joined"
    assert sum(piece.steps for piece in pieces) == result.steps


def test_files_are_bounded_and_the_same_for_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork_server: None
) -> None:
    monkeypatch.setattr(record, "FILE_BYTES", 3000)
    for name, workers in (("a", 0), ("b", 2)):
        rltrain.train(**PPO | {"workers": workers}, out=str(tmp_path / "runs"), record=str(tmp_path / name))

    a, b = ({p.name: p.read_bytes() for p in (tmp_path / name).glob("*.safetensors")} for name in "ab")
    assert len(a) >= 3
    assert a == b
    assert all(len(data) < 12_000 for data in a.values())


def test_an_actor_that_was_replaced_begins_a_new_piece(tmp_path: Path) -> None:
    def unroll(row: int, begins: bool, at: float) -> Trajectory:
        first = np.zeros((3, 1), bool)
        first[0] = begins
        return Trajectory(
            obs=np.full((3, 1, 2), at, np.float32), action=np.zeros((2, 1), np.int64),
            reward=np.zeros((2, 1), np.float32), terminated=np.zeros((2, 1), bool), truncated=np.zeros((2, 1), bool),
            first=first, version=np.zeros(1, np.int64), stream=np.zeros(1, np.int64), row=np.array([row]),
        )  # fmt: skip

    assert record._follows(unroll(0, True, 1.0), unroll(2, False, 1.0))
    assert not record._follows(unroll(0, True, 1.0), unroll(2, True, 1.0))
    assert not record._follows(unroll(0, True, 1.0), unroll(2, False, 2.0))
    assert not record._follows(unroll(0, True, 1.0), unroll(4, False, 1.0))


# --- learning from it ---


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    rltrain.train(**PPO, out=str(tmp_path / "ppo"), record=str(tmp_path / "rec"))
    return tmp_path / "rec"


def test_a_round_counts_the_steps_of_a_delivery_and_buys_as_many_updates(recording: Path, tmp_path: Path) -> None:
    asked = TINY | {"streams": 5, "unroll": 4, "steps": 210, "updates_per_step": 0.5, "warmup": 50}
    result = rltrain.train(
        **asked | {"eval_every": 100, "eval_episodes": 2}, out=str(tmp_path), replay_from=str(recording)
    )

    assert result.steps == 220  # of 20 each
    meta = checkpoint.load(result.checkpoint).meta
    assert (meta["version"], meta["exact"]) == (110, True)  # nothing is warmed up
    assert [line["step"] for line in read(result.run) if "eval/return_mean" in line] == [100, 200, 220]
    assert result.episodes == 0
    assert result.eval_return is not None


def test_it_holds_the_rows_that_were_recorded(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, batches = Tiny.update, []
    monkeypatch.setattr(Tiny, "update", lambda self, batch, progress: batches.append(batch) or real(self, batch, 0.0))
    rltrain.train(**TINY, out=str(tmp_path), replay_from=str(recording))

    def key(*parts: Any) -> tuple[float, ...]:
        return tuple(float(x) for part in parts for x in np.ravel(part))

    legal = set()
    for piece in Recording.open(recording).pieces():
        for t, b in np.argwhere(piece.valid):
            discount = np.float32(0.0 if piece.terminated[t, b] else 0.9)
            legal.add(key(piece.obs[t, b], piece.action[t, b], piece.reward[t, b], discount, piece.obs[t + 1, b]))
    seen = {
        key(b.obs[i], b.action[i], b.reward[i], b.discount[i], b.next_obs[i])
        for b in batches
        for i in range(len(b.obs))
    }
    assert seen <= legal
    assert len(seen) > len(legal) // 2


def test_running_statistics_see_all_of_it_before_the_first_update(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = rltrain.train(**TINY, out=str(tmp_path), replay_from=str(recording))

    seen = checkpoint.load(result.checkpoint).state["learner"]["parts"]["policy"]["seen"]
    whole = sum(piece.obs[:-1].reshape(-1, 4).astype(np.float64).sum(0) for piece in Recording.open(recording).pieces())
    np.testing.assert_allclose(seen, whole, rtol=1e-6)


def test_a_recording_that_is_larger_than_the_replay(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {**TINY, "capacity": 90, "quiet": False}
    rltrain.train(**asked, out=str(tmp_path), replay_from=str(recording))
    assert "; the replay holds the newest " in capsys.readouterr().out


# --- refusals ---


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    words = ["--algo", "dqn", "--env", "CartPole-v1", "--workers", "0", "--preset", "none", *argv]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_folder_that_holds_something_is_not_recorded_into(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    out = ["--out", str(tmp_path / "runs")]

    assert "holds something else: thesis.tex" in refused(capsys, *out, "--record", str(tmp_path / "full"))
    assert "holds a recording" in refused(capsys, *out, "--record", str(recording))
    assert "--record" in refused(capsys, *out, "--record", str(tmp_path / "file"))
    assert not (tmp_path / "runs").exists()


def test_what_is_no_recording_or_of_something_else(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "runs")]
    assert "is not a recording: it has no record.json" in refused(capsys, *out, "--replay-from", str(tmp_path))
    line = refused(capsys, *out, "--replay-from", str(recording), "--env", "Acrobot-v1")
    assert "was recorded on another CartPole-v1 than Acrobot-v1 is: obs.shape was (4,), is (6,)" in line
    both = refused(capsys, *out, "--replay-from", str(recording), "--record", str(tmp_path / "new"))
    assert "record" in both
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        pytest.param("flipped", marks=pytest.mark.sweep),
        "missing",
        pytest.param("index", marks=pytest.mark.sweep),
        pytest.param("index cut", marks=pytest.mark.sweep),
    ],
)
def test_a_damaged_recording_is_refused_by_name(
    how: str, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recording / ("record.json" if "index" in how else "unrolls-000000.safetensors")
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif "cut" in how:
        file.write_bytes(data[:-7])
    elif how == "index":
        file.write_text(file.read_text().replace('"steps": 4', '"steps": 5'))
    else:
        data[-3] ^= 1
        file.write_bytes(data)

    assert str(file) in refused(capsys, "--out", str(tmp_path / "runs"), "--replay-from", str(recording))


# --- resuming ---


def test_a_recording_goes_on_where_its_checkpoint_was(launch: Any, tmp_path: Path) -> None:
    argv = "--algo dqn --env CartPole-v1 --workers 0 --streams 2 --unroll 8 --widths 8 --warmup 50 --batch 8".split()
    argv += "--steps 400 --checkpoint-every 100 --eval-every 0 --preset none --json --quiet".split()
    whole = launch(tmp_path, *argv, "--out", "whole", "--record", "a").result
    assert launch(tmp_path, *argv, "--out", "cut", "--record", "b", kill=("step", 5)).status == -9  # no checkpoint yet
    (run,) = (tmp_path / "cut").iterdir()
    assert launch(tmp_path, "--resume", str(run), kill=("step", 12)).status == -9
    assert launch(tmp_path, "--resume", str(run), kill=("write", 6)).status == -9
    result = launch(tmp_path, "--resume", str(run), "--json", "--quiet").result

    assert result["fingerprint"] == whole["fingerprint"]
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / name).glob("*.safetensors")} for name in "ab")
    assert a == b
    listed = [json.loads((tmp_path / name / "record.json").read_text())["files"] for name in "ab"]
    assert listed[0] == listed[1]
    assert not list((tmp_path / "b").glob(".unrolls*"))


@pytest.mark.parametrize(
    "known", [pytest.param(False, marks=pytest.mark.sweep), True], ids=["before a checkpoint", "after one"]
)
@pytest.mark.parametrize("what", [pytest.param("another run's", marks=pytest.mark.sweep), "something else"])
def test_a_folder_that_is_not_its_own_any_more_is_left_alone(
    known: bool, what: str, launch: Any, tmp_path: Path
) -> None:
    argv = "--algo dqn --env CartPole-v1 --workers 0 --streams 2 --unroll 8 --widths 8 --warmup 50 --batch 8".split()
    argv += "--steps 400 --checkpoint-every 100 --eval-every 0 --preset none --json --quiet --record rec".split()
    assert launch(tmp_path, *argv, "--out", "cut", kill=("step", 12 if known else 3)).status == -9
    (run,) = (tmp_path / "cut").iterdir()
    (tmp_path / "rec").rename(tmp_path / "own")
    if what == "another run's":  # of the same settings
        assert launch(tmp_path, *argv, "--out", "other").status == 0
    else:
        (tmp_path / "rec").mkdir()
        (tmp_path / "rec" / "unrolls-mine.txt").write_text("mine")
    there = {path.name: path.read_bytes() for path in (tmp_path / "rec").iterdir()}

    done = launch(tmp_path, "--resume", str(run))

    assert done.status == 2
    assert "not this run's own any more" in done.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "rec").iterdir()} == there
    shutil.rmtree(tmp_path / "rec")
    (tmp_path / "own").rename(tmp_path / "rec")
    assert launch(tmp_path, "--resume", str(run)).status == 0


def test_an_offline_run_is_resumed(launch: Any, recording: Path, tmp_path: Path) -> None:
    argv = "--algo dqn --env CartPole-v1 --workers 0 --streams 2 --unroll 8 --widths 8 --batch 8 --n-step 3".split()
    argv += ["--prioritized", "--steps", "400", "--checkpoint-every", "100", "--eval-every", "0", "--preset", "none"]
    argv += ["--normalize-obs", "--json", "--quiet", "--replay-from", str(recording)]
    whole = launch(tmp_path, *argv, "--out", "whole").result
    assert launch(tmp_path, *argv, "--out", "cut", kill=("step", 16)).status == -9
    (run,) = (tmp_path / "cut").iterdir()
    result = launch(tmp_path, "--resume", str(run), "--json", "--quiet").result

    assert (result["fingerprint"], result["steps"]) == (whole["fingerprint"], whole["steps"])


def test_a_start_that_failed_does_not_use_up_the_folder(tmp_path: Path) -> None:
    config, spec = load({"algo": "ppo", "env": "CartPole-v1"}), read_spec(resolve("CartPole-v1"), 0)
    record.Recorder(tmp_path, config, spec)
    record.Recorder(tmp_path, config, spec)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds a recording"):
        record.Recorder(tmp_path, config, spec)


def test_a_gaussians_actions_are_learned_from_as_the_environment_got_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were drawn from all numbers, and only the environment's adapter clipped them."""
    from rltrain.rollout.replay.replay import Replay

    folder, seen, real = tmp_path / "record", [], Replay.append
    box = PPO | {"env": "probe:box3", "record": str(folder), "out": str(tmp_path)}
    rltrain.train(**box)
    drawn = np.concatenate([unroll.action.ravel() for unroll in Recording.open(folder).pieces()])
    assert np.abs(drawn).max() > 1.5

    def append(self: Replay, unroll: Trajectory) -> None:
        seen.append(unroll.action.copy())
        real(self, unroll)

    monkeypatch.setattr(Replay, "append", append)
    offline = {"algo": "td3", "env": "probe:box3", "replay_from": str(folder), "out": str(tmp_path), "steps": 32}
    rltrain.train(**{**TINY, **offline, "preset": "none", "batch": 16, "widths": (8,)})
    assert seen
    np.testing.assert_array_equal(np.concatenate([a.ravel() for a in seen]), drawn.clip(-1, 1))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of one file."""
    folder = tmp_path_factory.mktemp("recorded")
    rltrain.train(**PPO | {"steps": 64}, out=str(folder / "runs"), record=str(folder / "rec"))
    return folder / "rec"


Arrays = dict[str, np.ndarray]
DAMAGE: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "missing": (
        lambda a: {k: v for k, v in a.items() if k != "0/reward"},
        "missing 1 required positional argument: 'reward'",
    ),
    "shape": (lambda a: a | {"0/obs.0": np.zeros((3, 3), np.float32)}, r"obs.0 is float32 \(3, 3\)"),
    "type": (lambda a: a | {"0/reward": a["0/reward"].astype(np.int8)}, "reward is int8"),
    "action": (lambda a: a | {"0/action": a["0/action"] + 7}, "action holds numbers outside"),
    "stream": (lambda a: a | {"0/stream": a["0/stream"] + 2**40}, "stream counts from 0 to 2"),
    "nan": (lambda a: a | {"0/reward": a["0/reward"] * np.nan}, "reward holds numbers that are not finite"),
    "acting": (lambda a: a | {"0/acting": np.ones((2, 2), bool)}, "acting is bool .*, and the spec promises bool"),
    "piece": (lambda a: a | {"x/reward": np.zeros(1)}, "'x/reward' belongs to no piece"),
    "episodes": (lambda a: a | {"0/episode_return": np.zeros((2, 2))}, "is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_recording_with_matching_hashes_is_checked_too(kind: str, recorded: Path, tmp_path: Path) -> None:
    change, words = DAMAGE[kind]
    shutil.copytree(recorded, tmp_path / "rec")
    file = tmp_path / "rec" / "unrolls-000000.safetensors"
    data = safetensors.numpy.save(change(safetensors.numpy.load(file.read_bytes())))
    file.write_bytes(data)
    forge(tmp_path / "rec" / record.INDEX, lambda index: index["files"][0].update(files.digest_of(data)))

    with pytest.raises(CheckpointError, match=words):
        list(Recording.open(tmp_path / "rec").pieces())


@pytest.mark.parametrize("name", ["../unrolls-000000.safetensors", "/etc/passwd", ["x"], None])
def test_a_recording_names_its_own_files_only(name: Any, recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "rec")
    forge(tmp_path / "rec" / record.INDEX, lambda index: index["files"][0].update(name=name))

    with pytest.raises(CheckpointError, match=r"record\.json is damaged: files\.0\.name"):
        Recording.open(tmp_path / "rec")


@pytest.mark.parametrize("algo", ["cql", "dqn"])
def test_a_number_of_streams_that_the_files_do_not_have_is_refused(
    algo: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory for them would be asked for, and the user's own settings blamed."""
    shutil.copytree(recorded, tmp_path / "rec")
    forge(tmp_path / "rec" / record.INDEX, lambda index: index["run"].update(streams=10**12))

    with pytest.raises(CheckpointError, match=r"is damaged: it counts 1,000,000,000,000 streams, and its files have"):
        Recording.open(tmp_path / "rec").rows_per_stream()
    given = ["--data" if algo == "cql" else "--replay-from", str(tmp_path / "rec")]
    line = refused(capsys, "--algo", algo, "--env", "CartPole-v1", *given, "--out", str(tmp_path / "runs"))
    assert "record.json is damaged: it counts 1,000,000,000,000 streams" in line
