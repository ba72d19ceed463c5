"""metrics.jsonl and events: what is written, and what is left of it when a run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rltrain.reporting.metrics import EVENTS, FILE, Metrics, Window, cut_back, read
from rltrain.rollout.types import Episode


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read(folder)]


def test_a_line_holds_step_seconds_and_values(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.log(10, {"rollout/return_mean": 1.5, "learner/entropy": float("nan")})
    metrics.close()

    (line,) = read(tmp_path)
    assert line["step"] == 10
    assert line["seconds"] >= 0
    assert line["rollout/return_mean"] == 1.5
    assert line["learner/entropy"] is None
    assert "NaN" not in (tmp_path / FILE).read_text()


def test_events_can_be_read_by_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(tmp_path)
    metrics.log(10, {"eval/return_mean": 1.0})
    metrics.log(20, {"eval/return_mean": 2.0})
    metrics.log(30, {"eval/return_mean": 3.0})
    metrics.close()
    again = Metrics(tmp_path, start_step=20)
    again.log(25, {"eval/return_mean": 4.0})
    again.close()

    events = EventAccumulator(str(tmp_path / EVENTS)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("eval/return_mean")] == [(10, 1), (20, 2), (25, 4)]


def test_no_events_are_opened_before_the_first_line(tmp_path: Path) -> None:
    Metrics(tmp_path).close()

    assert not (tmp_path / EVENTS).exists()


def test_going_on_drops_what_came_after_and_what_is_half_written(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for step in (10, 20, 30, 15):  # the last: an evaluation of step 15, finished late
        metrics.log(step, {"x": step})
    metrics.close()
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 15, "seconds": 1, "x": 1')

    again = Metrics(tmp_path, start_step=20)
    again.log(40, {"x": 40})
    again.close()

    assert steps(tmp_path) == [10, 20, 40]
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, EVENTS]


def test_seconds_go_on_where_the_kept_part_ended(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(
        "".join(json.dumps({"step": step, "seconds": step * 10.0}) + "\n" for step in (1, 2, 3))
    )

    assert cut_back(tmp_path / FILE, 2) == (2, 20.0)
    metrics = Metrics(tmp_path, start_step=2)
    metrics.log(4, {})
    metrics.close()
    assert read(tmp_path)[-1]["seconds"] == pytest.approx(20.0, abs=5.0)
    assert read(tmp_path)[-1]["seconds"] >= 20.0


def test_a_line_that_lacks_only_its_end_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_text('{"step": 1, "seconds": 1}\n{"step": 2, "seconds": 2}')

    cut_back(file, 10)

    assert file.read_text() == '{"step": 1, "seconds": 1}\n'


def test_means_look_at_the_last_hundred_episodes() -> None:
    window = Window()
    assert window.return_mean is None
    assert window.length_mean is None

    window.add(Episode(0.0, 10) for _ in range(50))
    window.add(Episode(1.0, 20) for _ in range(100))

    assert (window.return_mean, window.length_mean, window.count) == (1.0, 20.0, 150)


def test_a_window_goes_through_a_checkpoint() -> None:
    window = Window()
    window.add([Episode(1.0, 2), Episode(3.0, 4)])
    other = Window()
    other.load(json.loads(json.dumps(window.state())))

    assert (other.return_mean, other.length_mean, other.count) == (2.0, 3.0, 2)


def test_lines_after_the_checkpoint_are_dropped_even_if_they_are_about_earlier_steps(tmp_path: Path) -> None:
    """An evaluation of step 15 that ended after the checkpoint at step 20, where it was pending, is run again."""
    metrics = Metrics(tmp_path)
    for step in (10, 20):
        metrics.log(step, {"x": step})
    lines = metrics.lines
    metrics.log(15, {"x": 15})
    metrics.close()

    again = Metrics(tmp_path, start_step=20, start_lines=lines)
    again.log(15, {"x": 15})
    again.close()

    assert steps(tmp_path) == [10, 20, 15]
    assert again.lines == 3


def test_a_day_of_a_fast_run_writes_a_few_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line a second at first, then fewer; a resumed run continues with few of them."""
    clock = 0.0
    monkeypatch.setattr("rltrain.reporting.metrics.time.monotonic", lambda: clock)
    values = {f"learner/metric_{number}": 0.123456789 * number for number in range(10)}
    metrics = Metrics(tmp_path)
    for second in range(86_400):
        clock = float(second)
        if second == 43_200:
            metrics.close()
            metrics = Metrics(tmp_path, start_step=second, start_lines=metrics.lines)
        if metrics.due:
            metrics.log_progress(second, values)
    metrics.close()

    assert steps(tmp_path)[:400] == list(range(1, 401))
    assert steps(tmp_path)[-1] > 86_000
    assert len(steps(tmp_path)) < 4000
    assert (tmp_path / FILE).stat().st_size < 2e6
    assert sum(path.stat().st_size for path in (tmp_path / EVENTS).iterdir()) < 4e6
