"""The command rljobs: its file of arguments, its lines, its exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rltrain.cli import main_jobs
from rltrain.errors import ConfigError
from rltrain.jobs import pool
from rltrain.jobs.command import read_sets


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    pool.close()


def test_tables_are_jobs_and_lists_are_multiplied(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("lr = [1, 2]\nseed = [3, 4]\nname = 'x'")
    assert [(one["lr"], one["seed"], one["name"]) for one in read_sets(file)] == [
        (1, 3, "x"), (1, 4, "x"), (2, 3, "x"), (2, 4, "x")
    ]  # fmt: skip
    file.write_text("lr = 1\n[[each]]\nseed = 3\n[[each]]\nseed = 4\nlr = 2")
    assert read_sets(file) == [{"lr": 1, "seed": 3}, {"lr": 2, "seed": 4}]
    file.write_text("")
    with pytest.raises(ConfigError, match="there is no job"):
        read_sets(file)


def test_each_job_prints_a_line_and_failures_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.py").write_text("def main(a, b=1):\n    return {'ratio': a / b}\n")
    (tmp_path / "each.toml").write_text("a = 6\nb = [2, 0]")
    assert main_jobs(["run", "work.py:main", "--each", "each.toml"]) == 1
    out, err = capsys.readouterr()
    lines = sorted((json.loads(line) for line in out.splitlines()), key=lambda line: line["job"])
    assert [line.get("result") for line in lines] == [{"ratio": 3.0}, None]
    assert lines[1]["error"] == "ZeroDivisionError: division by zero"
    assert "return {'ratio': a / b}" in err
    assert err.splitlines()[-1] == "rljobs: 1 of 2 jobs failed"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["run", "work.py:main"], "rljobs: --each is needed"),
        (["run", "work.py", "--each", "each.toml"], "rljobs: FUNCTION must be"),
        (["run", "no.py:main", "--each", "each.toml"], "rljobs: no.py:main: there is no file no.py"),
        (["run", "work.py:main", "--each", "no.toml"], "rljobs: --each no.toml: cannot be read: no such file"),
        (["run", "work.py:main", "--each", "each.toml", "--cores", "999"], "rljobs: cores 999: this process can use"),
        (["run", "work.py:main", "--each", "each.toml", "--memory", "x"], "rljobs: memory must be"),
    ],
)
def test_mistakes_get_one_line(
    argv: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.py").write_text("def main(a):\n    return a\n")
    (tmp_path / "each.toml").write_text("a = 6")
    assert main_jobs(argv) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert only.startswith(line)
