"""A run of an environment with `set_progress` is resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rltrain.storage import checkpoint

LESSON = Path(__file__).parents[1] / "envs" / "vector" / "test_episode_info.py"


def test_a_resumed_run_tells_the_same_progress(launch: Any, tmp_path: Path) -> None:
    (tmp_path / "lesson.py").write_text(LESSON.read_text())
    argv = "--algo ppo --env lesson.py:Lesson --preset none --workers 0 --streams 4 --unroll 16 --epochs 1 --widths 8 "
    argv += "--minibatches 1 --eval-episodes 3 --steps 400 --eval-every 0 --checkpoint-every 70 --json --quiet "
    argv += "--log-info progress"
    whole = launch(tmp_path, *argv.split(), "--out", "whole").result

    assert launch(tmp_path, *argv.split(), "--out", "cut", kill=("step", 4)).status == -9
    (run,) = (tmp_path / "cut").iterdir()
    result = launch(tmp_path, "--resume", str(run), "--json", "--quiet").result

    assert result["fingerprint"] == whole["fingerprint"]
    saved = [checkpoint.load(Path(tmp_path, each["checkpoint"])) for each in (whole, result)]
    assert saved[0].meta["exact"]
    assert saved[0].state["window"]["infos"] == saved[1].state["window"]["infos"]
