"""A user's own `envs` beside his script: a clear text instead of an odd import error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl import _shadow

ROOT = Path(__file__).resolve().parents[2]


def script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in `folder`, where a user's own files come first."""
    (folder / "mine.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "mine.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", _shadow.NAMES)
def test_a_package_beside_the_script_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")

    done = script(tmp_path, "import rl")

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"{tmp_path / name} hides rltrain's own package '{name}'" in last
    assert "rename it" in last
    assert "--env my_project.tasks:make_maze" in last


def test_a_single_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "envs.py").write_text("")

    assert f"{tmp_path / 'envs.py'} hides" in script(tmp_path, "import rl").stderr


def test_one_that_was_imported_already_is_named(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "envs.py").write_text("")
    text = "import sys; sys.path.insert(0, 'other'); import envs; sys.path.pop(0); import rl"

    assert f"{tmp_path / 'other' / 'envs.py'} hides" in script(tmp_path, text).stderr


def test_a_folder_without_init_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "maze.py").write_text("")

    done = script(tmp_path, "import rl, envs; print(envs.DISTRIBUTION, rl.RunConfig.__name__)")

    assert done.stdout == "rltrain RunConfig\n", done.stderr


def test_the_command_does_not_look_at_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("")
    text = "import sys; sys.path.pop(0); from rl.cli import main; sys.exit(main(['--help']))"

    assert script(tmp_path, text).returncode == 0


def test_a_package_that_was_overwritten_is_noticed(tmp_path: Path) -> None:
    for name in (*_shadow.NAMES, "rl"):
        shutil.copytree(ROOT / name, tmp_path / "site" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "site" / "envs" / "__init__.py").write_text("# another distribution\n")
    text = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import rl"

    last = script(tmp_path, text).stderr.splitlines()[-1]

    assert f"{tmp_path / 'site' / 'envs'} was overwritten by another distribution" in last


def test_here_all_is_well() -> None:
    _shadow.check()
