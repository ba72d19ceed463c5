"""The progress line is updated every second also when lines of metrics have become rare."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rltrain.reporting.metrics import Metrics, Window, read
from rltrain.reporting.report import Report


def test_the_console_is_updated_every_second_of_a_long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("rltrain.reporting.report.time.monotonic", lambda: clock)
    shown: list[dict[str, Any]] = []
    learner: Any = SimpleNamespace(metrics=lambda: {"learner/loss": clock}, seconds=0.0)
    rollout: Any = SimpleNamespace(metrics=dict, steps=0, seconds=0.0, waited=0.0, outside_bounds=None)
    console: Any = SimpleNamespace(update=shown.append)
    metrics = Metrics(tmp_path)
    report = Report(10**9, learner, rollout, Window(), metrics, console)

    for second in range(1, 3001):
        clock, rollout.steps = float(second), second * 1000
        assert report.due
        if metrics.due:
            report.log(restarts=0, more={})
        report.show(eval_return=None, restarts=0)
        assert not report.due
    metrics.close()

    assert [now["steps"] for now in shown] == list(range(1000, 3_001_000, 1000))
    assert 1000 < len(read(tmp_path)) < 1500
