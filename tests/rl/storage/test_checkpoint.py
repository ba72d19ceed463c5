"""Checkpoints: what goes in comes out; a crash at any moment leaves one to load; nothing damaged is taken."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rltrain import cli
from rltrain.errors import CheckpointError
from rltrain.storage import checkpoint
from rltrain.storage import retention as checkpoints

STATE: dict[str, Any] = {
    "tensors": {"w": torch.arange(6.0).reshape(2, 3), "scalar": torch.tensor(3, dtype=torch.int64)},
    "list": [np.arange(3, dtype=np.uint8), {"deep": [np.float32(1.5), np.array(True)]}, []],
    "plain": {"none": None, "yes": True, "int": 2**70, "float": 1e-5, "nan": float("nan"), "text": "ä\n"},
    "empty": np.zeros((0, 4), np.float32),
    "strided": np.arange(12.0)[::2].reshape(2, 3).T,
    "strange": {"a/b": 1, "sha256": np.ones(1), "": np.zeros(2)},
}


class Bomb:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's checkpoints: step 1 and 2, `latest` is 2."""
    where = tmp_path / "run" / "checkpoints"
    for step in (1, 2):
        write(where, step)
    return where


def write(folder: Path, step: int) -> Path:
    """What a run does, but pruning."""
    path = checkpoint.save(folder, f"step-{step:012d}", STATE | {"step": step}, {"kind": "run", "step": step})
    checkpoints.point(folder, "latest", path.name)
    return path


def step_of(folder: Path) -> int:
    found = checkpoints.find(folder)[0]
    assert found.meta["step"] == found.state["step"]
    return int(found.state["step"])


def test_a_nested_state_comes_back(folder: Path) -> None:
    found = checkpoints.find(folder.parent)[0]

    assert found.path == folder / "step-000000000002"
    state = found.state
    np.testing.assert_array_equal(state["tensors"]["w"], [[0, 1, 2], [3, 4, 5]])
    assert state["tensors"]["scalar"].dtype == np.int64
    assert state["tensors"]["scalar"].shape == ()
    assert state["list"][0].dtype == np.uint8
    assert state["list"][1] == {"deep": [1.5, np.array(True)]}
    assert state["list"][2] == []
    assert state["plain"].pop("nan") != 0
    assert state["plain"] == {key: value for key, value in STATE["plain"].items() if key != "nan"}
    assert state["empty"].shape == (0, 4)
    np.testing.assert_array_equal(state["strided"], STATE["strided"])
    assert state["strange"]["a/b"] == 1
    np.testing.assert_array_equal(state["strange"]["sha256"], [1.0])
    tensors = checkpoint.to_tensors(state)
    assert isinstance(tensors["tensors"]["w"], torch.Tensor)
    assert tensors["plain"]["text"] == "ä\n"
    assert checkpoint.fingerprint(state) == checkpoint.fingerprint(STATE | {"step": 2})


def test_a_state_that_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="deep/0 is a set"):
        checkpoint.save(tmp_path, "step-000000000001", {"deep": [{1, 2}]}, {})


def test_names_that_would_be_one_are_not_mixed_up(tmp_path: Path) -> None:
    state = {"a": {"b": np.zeros(1)}, "a/b": np.ones(1)}

    path = checkpoint.save(tmp_path, "step-000000000001", state, {})

    found = checkpoint.load(path).state
    assert (found["a"]["b"][0], found["a/b"][0]) == (0.0, 1.0)


def test_an_optimizer_of_torch_comes_back(tmp_path: Path) -> None:
    """Its state counts parameters: keys that are numbers must stay numbers, or torch drops what they hold."""

    def made() -> tuple[torch.nn.Linear, torch.optim.Adam]:
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)
        return net, torch.optim.Adam(net.parameters(), lr=0.1)

    def step(net: torch.nn.Linear, optimizer: torch.optim.Adam) -> None:
        optimizer.zero_grad()
        net(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    (net, optimizer), (other, fresh) = made(), made()
    step(net, optimizer)
    path = checkpoint.save(
        tmp_path, "step-000000000001", {"net": net.state_dict(), "optimizer": optimizer.state_dict()}, {}
    )
    saved = checkpoint.to_tensors(checkpoint.load(path).state)
    other.load_state_dict(saved["net"])
    fresh.load_state_dict(saved["optimizer"])
    step(net, optimizer)
    step(other, fresh)

    assert torch.equal(net.weight, other.weight)


def test_the_fingerprint_sees_name_shape_type_and_content() -> None:
    one = checkpoint.fingerprint({"a": np.zeros((2, 3), np.float32)})

    assert one == checkpoint.fingerprint({"a": torch.zeros(2, 3)})
    others = [
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
        {"a": np.full((2, 3), -0.0, np.float32)},
    ]
    assert len({one, *map(checkpoint.fingerprint, others)}) == 5


class Crash(BaseException):
    """Ends everything, as a kill would."""


CALLS = [(os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (os, "rmdir"), (os, "unlink")]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [2, 3], ids=["the same step again", "the next step"])
def test_a_crash_at_any_moment_leaves_a_latest_to_load(
    folder: Path, tmp_path: Path, step: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call that changes the disk is, once, the last one."""
    real = {(module, name): getattr(module, name) for module, name in CALLS}
    counter = {"left": 0}

    def armed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counter["left"] -= 1
            if counter["left"] < 0:
                raise Crash
            done = function(*args, **kwargs)
            if after and counter["left"] == 0:
                counter["left"] = -1
                raise Crash
            return done

        return call

    for n in range(200):
        copy = tmp_path / f"copy-{n}"
        shutil.copytree(folder, copy)
        counter["left"] = n
        with monkeypatch.context() as patch:
            for (module, name), function in real.items():
                patch.setattr(module, name, armed(function))
            try:
                write(copy, step)
                checkpoints.prune(copy, 1)
                crashed = False
            except Crash:
                crashed = True
        found = step_of(copy)
        assert found in (2, step)
        # What a killed run left behind does not disturb the next one.
        write(copy, 4)
        checkpoints.prune(copy, 2)
        assert step_of(copy) == 4
        left = sorted(path.name for path in copy.iterdir() if path.name not in ("latest", ".latest"))
        assert all(name.startswith("step-") for name in left)
        assert len(left) == 2
        if not crashed:
            break
    assert not crashed
    assert n >= 8


def test_the_last_ones_are_kept_with_best_and_latest(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "best-000000000002", {}, {})
    best = checkpoint.save(tmp_path, "best-000000000003", {}, {})
    checkpoints.point(tmp_path, "best", best.name)
    (tmp_path / ".writing-step-000000000009").mkdir()
    for step in range(1, 8):
        write(tmp_path, step)
        checkpoints.prune(tmp_path, 3)

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"latest", "best", best.name, *(f"step-{step:012d}" for step in (5, 6, 7))}
    assert checkpoints.find(tmp_path, best=True)[0].path == best


def test_what_lies_after_latest_is_of_a_run_that_was_killed(tmp_path: Path) -> None:
    for step in (1, 2, 8, 9):
        write(tmp_path, step)
    checkpoints.point(tmp_path, "latest", "step-000000000002")
    again = write(tmp_path, 8)  # the step that was reached before
    checkpoints.prune(tmp_path, 2)

    assert again.name == "step-000000000008.2"
    assert {path.name for path in tmp_path.glob("step-*")} == {"step-000000000002", again.name}


def test_best_may_be_one_of_the_steps(tmp_path: Path) -> None:
    checkpoints.point(tmp_path, "best", write(tmp_path, 1).name)
    for step in (2, 3, 4):
        write(tmp_path, step)
        checkpoints.prune(tmp_path, 1)

    assert {path.name for path in tmp_path.glob("step-*")} == {"step-000000000001", "step-000000000004"}


@pytest.mark.parametrize("name", [checkpoint.META, checkpoint.STATE])
def test_one_changed_bit_anywhere_is_refused_by_name(folder: Path, name: str) -> None:
    file = folder / "step-000000000002" / name
    whole = file.read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << (at % 8) if at % 3 else 0x20  # the latter: a letter's case, 1e-05 as 1E-05
        file.write_bytes(changed)
        with pytest.raises(CheckpointError, match=name):
            checkpoint.load(file.parent)
    file.write_bytes(whole)
    assert step_of(folder) == 2


@pytest.mark.parametrize("name", [checkpoint.META, checkpoint.STATE])
@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "pickle", "torch", "missing", "folder", "list"])
def test_what_is_no_checkpoint_is_refused_and_not_executed(
    folder: Path, tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, trap = folder / "step-000000000002" / name, tmp_path / "executed"
    whole = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "torch":
        buffer = io.BytesIO()
        torch.save(Bomb(trap), buffer)
        file.write_bytes(buffer.getvalue())
    elif damage != "missing":
        pickled = pickle.dumps(Bomb(trap))
        file.write_bytes(
            {"cut": whole[:-1], "empty": b"", "longer": whole + b" ", "pickle": pickled, "list": b"[1]"}[damage]
        )

    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(file.parent)
    assert not trap.exists()
    assert cli.main_eval([str(file.parent)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    # A folder without meta.json is no checkpoint; that line names the folder.
    assert line.startswith(
        f"rleval: {file.parent}{'/' + name if damage != 'missing' or name != checkpoint.META else ' '}"
    )
    assert not trap.exists()


@pytest.mark.parametrize(
    "text",
    [b"../../elsewhere/step-1", b"..", b".", b"", b"/etc", b"\xff\xfe", b"a\0b", b"x" * 300, b"step-9\nstep-2"],
)
def test_latest_cannot_lead_elsewhere(folder: Path, tmp_path: Path, text: bytes) -> None:
    shutil.copytree(folder / "step-000000000002", tmp_path / "elsewhere" / "step-1")
    for outside in (folder.parent, tmp_path):
        shutil.copy(folder / "step-000000000002" / checkpoint.META, outside / "meta.json.aside")
    (folder / "latest").write_bytes(text)

    found, notes = checkpoints.find(folder)

    assert found.path == folder / "step-000000000002"
    assert notes == [
        f"{folder / 'latest'} does not hold the name of a checkpoint; "
        "step-000000000002, the newest checkpoint that is intact, is used"
    ]
    checkpoints.prune(folder, 3)  # a damaged link costs no checkpoint
    assert len(list(folder.glob("step-*"))) == 2


def test_a_pickle_for_latest_is_not_executed(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "latest").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))

    assert cli.main_eval([str(folder.parent)]) == 2  # this one holds no policy
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith(f"rltrain: {folder / 'latest'} does not hold the name of a checkpoint; step-")
    assert len(lines) == 2
    assert not (tmp_path / "executed").exists()


def test_latest_that_names_nothing_is_said(folder: Path) -> None:
    shutil.rmtree(folder / "step-000000000002")

    found, (note,) = checkpoints.find(folder)

    assert found.path == folder / "step-000000000001"
    assert "latest names 'step-000000000002', which does not exist; step-000000000001, the newest" in note
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoints.find(folder / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoints.find(folder.parent.parent)


def test_another_format_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 2)

    with pytest.raises(CheckpointError, match="has format 1; this version reads format 2"):
        checkpoints.find(folder)
