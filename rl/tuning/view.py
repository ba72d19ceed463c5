"""The live view of a search: a table and a line on a terminal, and lines from time to time elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self, TextIO

from rltrain.reporting.console import Console, Table, duration, moves_cursor
from rltrain.tuning.search import Search
from rltrain.tuning.space import shown
from rltrain.tuning.state import Part, State, Trial

EVERY_SECONDS = 10.0  # between two lines, where there is no terminal
MOST = 8  # trials in the table


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
        self._notes: deque[str] = deque()

    def note(self, text: str) -> None:
        """A permanent line, which the next call shows. Can be called from any thread."""
        self._notes.append(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._console.finish("")
        while self._notes:
            self._console.note(self._notes.popleft())

    def __call__(self, search: Search) -> None:
        state, note = search.state, self._console.note
        while self._notes:
            note(self._notes.popleft())
        if not self._started:
            self._started = True
            rungs = [f"{rung.steps:,}" + f" with {rung.seeds} seeds" * (rung.seeds > 1) for rung in search.rungs]
            options, config = search.options, search.config
            note(
                f"{config.algo} on {config.env_name}: {_trials(state.count)}, {options.scheduler}, {options.sampler}, "
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
        if now - self._shown >= (0.2 if moves_cursor(self._console.stream) else EVERY_SECONDS):
            self._shown = now
            self._console.show(self._line(search), lambda: self._table(search))

    def _table(self, search: Search) -> Table:
        """The trials that run now, and the best ones so far; at the end the runs that confirm the winner."""
        state = search.state
        running: dict[int, list[int]] = {}  # trial: the rungs of its parts
        rows = []
        names = [dimension.name for dimension in search.space.dimensions]
        for part in search.running.values():
            if isinstance(part, Part):
                running.setdefault(part.trial, []).append(part.rung)
            else:
                who, number, _ = part
                point = state.winner.point if who == "winner" and state.winner is not None else {}
                values = (shown(point[name]) if name in point else "" for name in names)
                rows.append([who, "", "", f"runs, seed {search.confirming_seed(number)}", *values])
        ranked = sorted((trial for trial in state.trials if state.highest(trial) is not None), key=_by_rank(state))
        trials = [state.trials[number] for number in sorted(running)][:MOST]
        trials += [trial for trial in ranked if trial.number not in running][: max(MOST - len(trials), 1)]
        for trial in trials:
            rung = state.highest(trial)
            value = None if rung is None else trial.value(rung)
            steps = "" if rung is None else f"{search.rungs[rung].steps:,}"
            doing = "best" if trial is state.winner else ""
            if trial.number in running:
                doing = f"runs to {search.rungs[max(running[trial.number])].steps:,}"
            numbers = [str(trial.number), steps, "" if value is None else shown(value)]
            rows.append([*numbers, doing, *(shown(trial.point[name]) for name in names)])
        return Table(["trial", "steps", "value", "state", *names] if rows else [], rows, whole=4)

    def _line(self, search: Search) -> str:
        state = search.state
        done = sum(sum(trial.steps.values()) for trial in state.trials)
        begun, failed = len(state.trials), sum(bool(trial.error) for trial in state.trials)
        parts = [f"{begun} of {_trials(state.count)}", f"{len(search.running)} running"]
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
        finished = sum(not state.parts_of(trial) for trial in state.trials)
        if not finished or not done:
            return None
        total = done / finished * state.count + 2 * search.options.confirm * search.config.steps
        return search.seconds * max(total - done, 0) / done


def _trials(count: int) -> str:
    return f"{count:,} trial{'s' * (count != 1)}"


def _by_rank(state: State) -> Callable[[Trial], tuple[int, float]]:
    """A key that sorts trials with a value: the highest rung first, then the best value."""

    def key(trial: Trial) -> tuple[int, float]:
        rung = state.highest(trial)
        assert rung is not None
        return -rung, -(trial.value(rung) or 0.0)

    return key
