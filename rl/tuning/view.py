"""The live view of a search: a line on a terminal, and a line for each finished part elsewhere."""

from __future__ import annotations

import time
from typing import Any, Self, TextIO

from rltrain.reporting.console import Console, duration
from rltrain.tuning.search import Search
from rltrain.tuning.space import shown

EVERY_SECONDS = 10.0  # between two lines, where there is no terminal


class View:
    """Shows how far a search is. Called after each of its events.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool, stream: TextIO) -> None:
        self._console = Console(quiet=quiet, stream=stream)
        self._shown = -float("inf")
        self._best: tuple[int, float] | None = None
        self._failed = 0
        self._started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._console.finish("")

    def __call__(self, search: Search) -> None:
        state, note = search.state, self._console.note
        if not self._started:
            self._started = True
            rungs = [f"{rung.steps:,}" + f" with {rung.seeds} seeds" * (rung.seeds > 1) for rung in search.rungs]
            options, config = search.options, search.config
            note(
                f"{config.algo} on {config.env_name}: {state.count} trials, {options.scheduler}, {options.sampler}, "
                f"{search.parallel} at a time; steps {', '.join(rungs)}; folder {search.folder}"
            )
        failed = [trial for trial in state.trials if trial.error]
        for trial in failed[self._failed :]:
            note(f"trial {trial.number} failed: {trial.error}")
        self._failed = len(failed)
        winner = state.winner
        if winner is not None:
            rung = state.highest(winner)
            value = None if rung is None else winner.value(rung)
            if value is not None and rung is not None and (winner.number, value) != self._best:
                self._best = winner.number, value
                steps = search.rungs[rung].steps
                note(f"best: trial {winner.number}, {value:.4g} at {steps:,} steps: {search.space.text(winner.point)}")
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._console.stream.isatty() else EVERY_SECONDS):
            self._shown = now
            self._console.show(self._line(search))

    def _line(self, search: Search) -> str:
        state = search.state
        done = sum(sum(trial.steps.values()) for trial in state.trials)
        begun, failed = len(state.trials), sum(bool(trial.error) for trial in state.trials)
        parts = [f"{begun} of {state.count} trials", f"{len(search.running)} running"]
        if failed:
            parts.append(f"{failed} failed")
        if self._best is not None:
            parts.append(f"best {shown(self._best[1])}")
        left = self._seconds_left(search, done)
        parts.append(f"{done:,} steps")
        if left is not None:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def _seconds_left(self, search: Search, done: int) -> float | None:
        """From the steps that a trial takes on average, and the seconds so far."""
        state = search.state
        finished = sum(not state.jobs_of(trial) for trial in state.trials)
        if not finished or not done:
            return None
        total = done / finished * state.count + 2 * search.options.confirm * search.config.steps
        return search.seconds * max(total - done, 0) / done
