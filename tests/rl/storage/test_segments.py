"""The rows of a replay beside the checkpoints: written once, shared, checked when read, removed when not needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rltrain
from rltrain.storage import checkpoint
from rltrain.storage import retention as checkpoints
from rltrain.storage.segments import Segments, segment_readers

DQN: dict[str, Any] = {
    "algo": "dqn", "env": "CartPole-v1", "workers": 0, "streams": 2, "unroll": 8, "widths": (8,), "warmup": 50,
    "batch": 8, "capacity": 512, "steps": 600, "checkpoint_every": 150, "eval_every": 0, "preset": "none",
    "quiet": True,
}  # fmt: skip


def rows(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"obs": rng.standard_normal((5, 3)), "flag": rng.integers(0, 2, 5).astype(np.uint8).reshape(5, 1)[:, 0]}


def saved(folder: Path, name: str, listed: Any) -> None:
    checkpoint.save(folder, name, {}, {"segments": listed})


def test_a_segment_is_written_once_and_read_back(tmp_path: Path) -> None:
    made: list[str] = []

    def make(seed: int) -> Any:
        return lambda: (made.append(str(seed)), rows(seed))[1]

    kept = Segments(tmp_path)
    first = kept.write({"0-0": make(0), "0-1": make(1)})
    second = kept.write({"0-1": make(1), "0-2": make(2)})

    assert made == ["0", "1", "2"]
    assert set(second) == {"0-1", "0-2"}
    assert first["0-1"] == second["0-1"]
    for name, read in segment_readers(tmp_path, {**first, **second}).items():
        for key, array in read().items():
            np.testing.assert_array_equal(array, rows(int(name[2:]))[key])


def test_a_resumed_run_does_not_write_what_its_checkpoint_lists(tmp_path: Path) -> None:
    listed = Segments(tmp_path).write({"0-0": lambda: rows(0)})

    def again() -> Any:
        raise AssertionError("it was made again")

    assert Segments(tmp_path, listed).write({"0-0": again}) == listed


def test_arrays_that_are_views_are_written_as_they_look(tmp_path: Path) -> None:
    whole = np.arange(24.0).reshape(4, 6)
    listed = Segments(tmp_path).write({"0-0": lambda: {"x": whole[:, ::2], "y": whole.T}})

    found = segment_readers(tmp_path, listed)["0-0"]()
    np.testing.assert_array_equal(found["x"], whole[:, ::2])
    np.testing.assert_array_equal(found["y"], whole.T)


def test_what_no_checkpoint_lists_is_removed(tmp_path: Path) -> None:
    kept = Segments(tmp_path)
    one = kept.write({"0-0": lambda: rows(0), "0-1": lambda: rows(1)})
    saved(tmp_path, "step-000000000001", one)
    two = kept.write({"0-1": lambda: rows(1), "0-2": lambda: rows(2)})
    saved(tmp_path, "step-000000000002", two)
    (kept.folder / ".abc.safetensors").write_bytes(b"half")
    kept.collect()
    names = {path.stem for path in kept.folder.iterdir()}
    assert names == {item["sha256"] for item in (one | two).values()}

    checkpoints.point(tmp_path, "latest", "step-000000000002")
    checkpoints.prune(tmp_path, 1)
    kept.collect()

    assert {path.stem for path in kept.folder.iterdir()} == {item["sha256"] for item in two.values()}


def test_nothing_is_removed_where_a_checkpoint_cannot_be_read(tmp_path: Path) -> None:
    kept = Segments(tmp_path)
    saved(tmp_path, "step-000000000001", kept.write({"0-0": lambda: rows(0)}))
    (tmp_path / "step-000000000001" / checkpoint.META).write_text("{")

    Segments(tmp_path).collect()

    assert len(list(kept.folder.iterdir())) == 1


@pytest.mark.parametrize(
    "how", ["flipped", pytest.param("cut", marks=pytest.mark.sweep), pytest.param("missing", marks=pytest.mark.sweep)]
)
def test_a_damaged_segment_is_refused_by_name(how: str, tmp_path: Path) -> None:
    run = rltrain.train(**DQN, out=str(tmp_path)).run
    found = checkpoints.find(run)[0]
    assert len(found.meta["segments"]) >= 2
    victim = run / "checkpoints" / "segments" / f"{found.meta['segments']['0-3']['sha256']}.safetensors"
    data = bytearray(victim.read_bytes())
    data[-3] ^= 1
    if how == "missing":
        victim.unlink()
    else:
        victim.write_bytes(data if how == "flipped" else data[:-1])

    for older in sorted((run / "checkpoints").glob("step-*"))[:-1]:
        shutil.rmtree(older)
    with pytest.raises(rltrain.CheckpointError, match=victim.name):
        rltrain.train(resume=run, steps=1200)


def test_checkpoints_share_segments_and_old_ones_go(tmp_path: Path) -> None:
    run = rltrain.train(**DQN, out=str(tmp_path), keep=2).run
    folder = run / "checkpoints"

    metas = [json.loads((path / checkpoint.META).read_bytes()) for path in sorted(folder.glob("step-*"))]
    lists = [{item["sha256"] for item in meta["segments"].values()} for meta in metas]
    assert len(lists) == 2
    assert lists[0] & lists[1], "they share none"
    assert {path.stem for path in (folder / "segments").iterdir()} == lists[0] | lists[1]
    held = sum(path.stat().st_size for path in (folder / "segments").iterdir())
    assert held < 2 * 512 * 60, "the ring holds 512 rows; what left it is gone"


def test_policies_are_loaded_without_the_replay(tmp_path: Path) -> None:
    result = rltrain.train(**DQN, out=str(tmp_path))
    for path in (result.run / "checkpoints" / "segments").iterdir():
        path.unlink()

    assert rltrain.load(result.run).policy is not None
    assert rltrain.evaluate(result.run, episodes=2).episodes == 2


def test_the_files_of_a_replay_on_disk_are_there_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rltrain.learner.learner import Learner

    real, seen = Learner.step, []

    def step(self: Learner, *args: Any) -> None:
        seen.append({path.name for path in tmp_path.glob("*/replay/*")})
        real(self, *args)

    monkeypatch.setattr(Learner, "step", step)
    on_disk = rltrain.train(**DQN, out=str(tmp_path), replay_on_disk=True)
    assert all("obs.0.rows" in names for names in seen)
    assert not (on_disk.run / "replay").exists()
    assert on_disk.fingerprint == rltrain.train(**DQN, out=str(tmp_path)).fingerprint
