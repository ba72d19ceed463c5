"""Files of a run are read only if they are regular files of bounded size, and writing one follows no link."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from rltrain.errors import CheckpointError, ConfigError
from rltrain.storage import files
from rltrain.storage.run_folder import lock, refuse_links


def _socket(path: Path) -> None:
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path.name)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


OTHER: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": _socket,
    "folder": os.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link": lambda path: path.symlink_to(path.parent / "precious"),
    "loop": lambda path: path.symlink_to(path),
    "sparse": _sparse,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "precious").write_text("precious")
    return tmp_path


@pytest.mark.parametrize("kind", OTHER)
def test_what_is_no_file_is_refused_at_once(kind: str, place: Path) -> None:
    """Opening a pipe would wait for a writer; a device or a sparse file would be read without end."""
    OTHER[kind](place / "meta.json")

    with pytest.raises(CheckpointError, match=r"meta\.json (is not a file|is a link|cannot be read|is too large)"):
        files.read_json(place / "meta.json")
    with pytest.raises(CheckpointError, match=r"meta\.json"):
        files.read_verified(place / "meta.json", {"sha256": "0" * 64, "bytes": 2**40})


@pytest.mark.parametrize("kind", sorted(set(OTHER) - {"folder"}))
def test_writing_a_file_replaces_what_is_there(kind: str, place: Path) -> None:
    OTHER[kind](place / "latest")
    OTHER[kind](place / ".latest")

    files.replace_file(place / "latest", b"new")

    assert (place / "latest").read_bytes() == b"new"
    assert not (place / "latest").is_symlink()
    assert sorted(path.name for path in place.iterdir()) == ["latest", "precious"]
    assert (place / "precious").read_text() == "precious"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"a":' * 500 + "1" + "}" * 500,
        '{"a": ' + "9" * 100_000 + "}",
        "[" + "[]," * 9_000_000 + "[]]",
        '{"format": 1, "format": 1}',
        '{"format": NaN}',
        "\ufeff{}",
        '"text"',
        "",
    ],
    ids=["lists", "dicts", "500 dicts", "number", "values", "twice", "nan", "mark", "text", "empty"],
)
def test_json_that_was_not_written_by_us_is_refused(text: str, place: Path) -> None:
    (place / "meta.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"meta\.json is damaged"):
        files.read_hashed_json(place / "meta.json", 1)


def test_a_signed_document_comes_back(place: Path) -> None:
    (place / "meta.json").write_bytes(files.hashed_json({"format": 1, "name": "x"}))

    assert files.read_hashed_json(place / "meta.json", 1) == ({"format": 1, "name": "x"}, True)


def test_every_changed_bit_of_a_signed_document_is_noticed(place: Path) -> None:
    whole = files.hashed_json({"format": 1, "config": {"gamma": 0.98}})
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << (at % 7)
        (place / "run.json").write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
            files.read_hashed_json(place / "run.json", 1)


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_the_lock_overwrites_no_other_file(link: str, place: Path) -> None:
    run = place / "run"
    run.mkdir()
    (os.symlink if link == "symbolic" else os.link)(place / "precious", run / ".lock")

    with pytest.raises(ConfigError, match=r"\.lock is "):
        lock(run)

    assert (place / "precious").read_text() == "precious"


NAMES = """
    run.json .run.json .lock metrics.jsonl checkpoints checkpoints/segments checkpoints/latest checkpoints/.latest
    checkpoints/best checkpoints/step-000000000032 checkpoints/.writing-step-000000000064
    checkpoints/step-000000000032/meta.json checkpoints/segments/a.safetensors tensorboard tensorboard/events replay
    replay/rows videos videos/step-000000000032.mp4
""".split()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_no_part_of_a_run_may_be_a_link_or_a_pipe(name: str, kind: str, place: Path) -> None:
    path = place / "run" / name
    path.parent.mkdir(parents=True)
    OTHER[kind](path)

    with pytest.raises(CheckpointError, match=f"{name} is (a link|not a file)"):
        refuse_links(place / "run")


@pytest.mark.parametrize(
    "name", ["checkpoints", "checkpoints/segments", "checkpoints/.writing-step-1", "replay", "videos"]
)
def test_a_file_in_the_place_of_a_folder_is_refused(name: str, place: Path) -> None:
    """Otherwise a resumed run ends at its first checkpoint."""
    (place / "run" / name).parent.mkdir(parents=True)
    (place / "run" / name).touch()

    with pytest.raises(CheckpointError, match=f"{name} is not a folder: remove it"):
        refuse_links(place / "run")


@pytest.mark.parametrize("name", ["run.json", "checkpoints/.latest", "checkpoints/best", "checkpoints/segments/.a"])
def test_a_folder_in_the_place_of_a_file_is_refused(name: str, place: Path) -> None:
    (place / "run" / name).mkdir(parents=True)

    with pytest.raises(CheckpointError, match=f"{name} is not a file"):
        refuse_links(place / "run")


def test_other_things_in_a_runs_folder_are_left_alone(place: Path) -> None:
    (place / "run" / "wandb").mkdir(parents=True)
    (place / "run" / "wandb" / "latest").symlink_to(place)
    (place / "run" / "run.json").write_text(json.dumps({}))

    refuse_links(place / "run")
