"""A small sample of `benchmarks/kills.py`: SIGKILL at random moments, then resume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.sweep
def test_runs_that_were_killed_at_random_moments_end_as_the_uninterrupted_ones() -> None:
    command = [sys.executable, str(BENCHMARK), "--kills", "3", "dqn-replay"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "3 of 3 as they must be"
