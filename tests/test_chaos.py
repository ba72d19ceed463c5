"""Whether chaos tells a leak from memory that levels off."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def chaos() -> ModuleType:
    file = Path(__file__).parent.parent / "scripts" / "chaos.py"
    spec = importlib.util.spec_from_file_location("chaos", file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["chaos"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judged(chaos: ModuleType, leak: float, levels_off: float = 1.5, files: int = 0) -> bool:
    """Five minutes with an actor struck every three seconds, each of which costs `leak` MiB; and noise that lasts."""
    rng = np.random.default_rng(0)
    seconds = np.arange(0.0, 300.0, 0.5)
    struck = np.arange(2.0, 290.0, 3.0)
    noise = np.convolve(rng.normal(0.0, 0.14 * 10**0.5, len(seconds) + 9), np.ones(10) / 10, "valid")  # deviation 0.14
    memory = 167 + levels_off * (1 - np.exp(-seconds / 50)) + leak * np.searchsorted(struck, seconds) + noise
    opened = 20 + files * (seconds > 200)
    looks = list(zip(seconds.tolist(), memory.tolist(), opened.tolist(), strict=True))
    end = [(second, 0.0, 0) for second in np.arange(300.5, 400.0).tolist()]  # it takes its time to stop
    return bool(chaos.leak(chaos.Observed(struck=struck.tolist(), samples=looks + end), 300.0)[1])


def test_memory_that_levels_off_is_no_leak(chaos: ModuleType) -> None:
    assert not judged(chaos, 0.0)


def test_twenty_kilobytes_for_each_restart_are(chaos: ModuleType) -> None:
    assert judged(chaos, 0.02)
    assert judged(chaos, 0.02, levels_off=0.0)


def test_files_that_stay_open_are(chaos: ModuleType) -> None:
    assert judged(chaos, 0.0, files=3)
