"""Files from somebody else: nothing in them runs, hangs, reads other files or takes all memory; one line says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rltrain import cli
from rltrain.data import formats
from rltrain.data.episodes import Recorded, write
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.spec import EnvSpec

Rldata = Callable[..., str]


@pytest.fixture
def rldata(capsys: pytest.CaptureFixture[str]) -> Rldata:
    """Runs the command; its output, or the one line of its error."""

    def run(*argv: Any, status: int = 2) -> str:
        assert cli.main_data([str(word) for word in argv]) == status
        out, err = capsys.readouterr()
        if status == 2:
            (line,) = err.splitlines()
            return str(line)
        return out

    return run


@pytest.fixture(scope="module")
def spec() -> EnvSpec:
    return read_spec(resolve("CartPole-v1", {}, folder="."), 0)


def cartpole(count: int = 5, steps: int = 3) -> list[Recorded]:
    rng = np.random.default_rng(0)
    return [
        Recorded(
            obs=[rng.normal(size=(steps + 1, 4)).astype(np.float32)],
            action=rng.integers(2, size=steps),
            reward=np.ones(steps, np.float32),
            terminated=True,
            truncated=False,
        )
        for _ in range(count)
    ]


# --- code that the data names ---


def test_an_export_runs_no_code_that_the_data_names(
    rldata: Rldata, spec: EnvSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("minari")
    monkeypatch.chdir(tmp_path)
    code = "from pathlib import Path\nimport gymnasium\nPath('executed').touch()\n"
    (tmp_path / "evil.py").write_text(f"{code}def make():\n    return gymnasium.make('CartPole-v1')\n")
    write(tmp_path / "rec", replace(spec, id="evil.py:make"), cartpole(), {})

    line = rldata("export", "rec", "out", "--format", "minari")
    assert "rec names the code 'evil.py:make', which was not imported: add --env ENV" in line
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()
    rldata("export", "rec", "out", "--format", "minari", "--env", "CartPole-v1", status=0)
    assert not (tmp_path / "executed").exists()
    rldata("export", "rec", "own", "--format", "minari", "--env", "evil.py:make", status=0)
    assert (tmp_path / "executed").exists()
