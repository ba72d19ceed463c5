"""The console output of a run: a progress bar on a terminal, occasional plain lines elsewhere.

Elsewhere is a pipe or a file, a terminal that cannot move its cursor (TERM=dumb), and any terminal if NO_COLOR is set.
If the reader closes the pipe (`rltrain ... | head -1`), nothing more is printed and the run continues.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

if TYPE_CHECKING:
    from rltrain.rollout.workers.handle import ActorLost

EVERY_SECONDS = 5.0  # between two plain lines
EVERY_SHARE = 0.1  # share of the run between two plain lines
REFRESH = 0.1  # seconds between two updates of the bar
BAR = 10, 40  # columns of the bar: at least, at most
GAP = "  "  # between two values


class Console:
    """Prints to stdout, or to stderr if stdout is for the JSON line.

    Args:
        json:   stdout is for one JSON object: print to stderr.
        quiet:  print nothing; the command itself prints the result.
        stream: a stream to use instead.
    """

    def __init__(self, json: bool = False, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stderr if json else sys.stdout
        self.quiet = quiet
        self._live: Any = None  # rich.live.Live, imported for a terminal only
        self._terminal = not quiet and moves_cursor(self.stream)
        self._last_time = -float("inf")
        self._tenth = 0  # number of EVERY_SHARE at the last plain line

    def start(
        self, config: Any, preset: str | None = None, notes: Sequence[str] = (), folder: Path | None = None
    ) -> None:
        """Prints the folder of the run, one line about the run, the preset in use, and notes."""
        if folder is not None:
            self.note(f"folder {short_path(folder)}")
        who = f"{config.workers} actors" if config.workers > 1 else "1 actor"
        who += f", {config.learners} learners" if config.learners > 1 else ""
        where = f"{who}, {config.backend}" if config.workers else "in this process"
        if config.replay_from is not None:
            where = f"from {config.replay_from}" + (
                f", the last {config.then_online:,} online ({where})" if config.acts else ""
            )
        alone = getattr(config.settings, "data_only", False)
        length = f"{config.steps:,} updates" if alone else f"{config.steps:,} steps, {config.streams} streams"
        self.note(f"{config.algo} on {config.env_name}: {length}, {where}, seed {config.seed}, device {config.device}")
        if preset:
            self.note(f"settings from {preset}; --preset none ignores it")
        for text in notes:
            self.note(text)

    def update(self, now: Mapping[str, Any]) -> None:
        """Prints progress: steps, total, steps_per_second, seconds_left, train_return, eval_return, restarts."""
        if self.quiet:
            return
        clock = time.monotonic()
        tenth = int(float(now["steps"]) / max(float(now["total"]), 1.0) / EVERY_SHARE + 1e-9)
        if self._terminal:
            if clock - self._last_time < REFRESH:
                return
            self._last_time = clock
            try:
                self._show(ProgressBar(now))
            except BrokenPipeError:
                self._mute()
        elif clock - self._last_time >= EVERY_SECONDS or tenth > self._tenth:
            self._last_time, self._tenth = clock, tenth
            self._print(progress_line(now))

    def show(self, line: str, above: Callable[[], Table | None] = lambda: None) -> None:
        """Shows this text in the live line; where there is no terminal, prints it.

        Args:
            above: returns what a terminal shows above the line.
        """
        if self.quiet:
            return
        try:
            self._show(line, above()) if self._terminal else self._print(line)
        except BrokenPipeError:
            self._mute()

    def note(self, text: str) -> None:
        """Prints a permanent line."""
        if not self.quiet:
            self._print(text)

    def note_restart(self, lost: ActorLost) -> None:
        """A line about a worker that was lost and is replaced."""
        lines = lost.detail.strip().splitlines()
        text = lines[0] if len(lines) == 1 else f"{lines[0].rstrip(':')}: {lines[-1]}"
        self.note(f"{lost.who} was lost and is replaced: {text}")

    def finish(self, text: str) -> None:
        """Removes the bar and prints `text`."""
        if self._live is not None:
            try:
                self._live.stop()
            except BrokenPipeError:
                hush(self.stream)
            self._live = None
        if text:
            self.note(text)

    def _show(self, shown: ProgressBar | str, above: Table | None = None) -> None:
        from rich.console import Console as Terminal
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            # Without a refreshing thread, since processes are forked while the bar is shown.
            terminal = Terminal(file=self.stream, highlight=False)
            self._live = Live(console=terminal, auto_refresh=False, transient=True, vertical_overflow="visible")
            self._live.start()
        line = Text(shown) if isinstance(shown, str) else shown
        self._live.update(line if above is None else Group(above, line), refresh=True)

    def _print(self, text: str) -> None:
        try:
            if self._live is not None:
                self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, file=self.stream, flush=True)
        except BrokenPipeError:
            self._mute()

    def _mute(self) -> None:
        """The reader has closed the pipe."""
        self.quiet, self._live = True, None
        hush(self.stream)


def moves_cursor(stream: TextIO | None) -> bool:
    """True if the stream is a terminal on which a line can be replaced, and the user allows more than plain text."""
    if stream is None or not stream.isatty():  # None: the descriptor was closed
        return False
    return os.environ.get("TERM") not in ("dumb", "unknown") and not os.environ.get("NO_COLOR")


def short_path(path: Path) -> str:
    """The path, relative to the current folder if it lies in it."""
    with contextlib.suppress(ValueError, OSError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def resume_command(folder: Path) -> str:
    """The command that continues the run in a folder."""
    return f"rltrain --resume {shlex.quote(short_path(folder))}"


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints one line to stdout or `stream`; nothing if the reader has closed it."""
    stream = sys.stdout if stream is None else stream
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        hush(stream)


def hush(stream: TextIO) -> None:
    """Redirects a closed stream to the null device, so that Python can flush it at exit without an error."""
    with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class Table(NamedTuple):
    """A table for the terminal: numbers to the right, words to the left. A narrow terminal cuts the last columns."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    whole: int  # of so many columns at the left nothing is cut off

    def __rich__(self) -> Any:
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=None, pad_edge=False, header_style="", padding=(0, len(GAP), 0, 0))
        for number, name in enumerate(self.header):
            words = any(row[number][:1].isalpha() for row in self.rows)
            title = Text(name, no_wrap=True, overflow="ellipsis")
            grid.add_column(title, justify="left" if words else "right", no_wrap=number < self.whole)
        for row in self.rows:
            grid.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
        return grid


class ProgressBar:
    """The progress of a run as wide as the terminal is: a bar and values, in as many lines as the values need."""

    def __init__(self, now: Mapping[str, Any]) -> None:
        self._now = now

    def __rich_console__(self, terminal: Any, options: Any) -> Iterator[Any]:
        from rich.progress_bar import ProgressBar as Bar
        from rich.table import Table
        from rich.text import Text

        width = max(options.max_width - 1, 1)  # the last column is left free: some terminals wrap there
        least, most = BAR
        values = progress_values(self._now)
        first = len(packed(values, width - least - len(GAP))[0])
        beside = GAP.join(values[:first])
        bar = min(width - len(beside) - len(GAP), most)
        if bar >= least:
            row = Table.grid(padding=(0, len(GAP), 0, 0))
            row.add_row(
                Bar(float(self._now["total"]), float(self._now["steps"]), width=bar), Text(beside, no_wrap=True)
            )
            yield row
            values = values[first:]
        for line in packed(values, width):
            yield Text(GAP.join(line), no_wrap=True, overflow="ellipsis")


def packed(words: Sequence[str], width: int) -> list[list[str]]:
    """Words in lines of at most `width` columns; each line has at least one word."""
    lines: list[list[str]] = []
    for word in words:
        if lines and len(GAP.join([*lines[-1], word])) <= width:
            lines[-1].append(word)
        else:
            lines.append([word])
    return lines


def progress_line(now: Mapping[str, Any]) -> str:
    """One line of progress."""
    return GAP.join(progress_values(now))


def progress_values(now: Mapping[str, Any]) -> list[str]:
    """The progress of a run in words, without the values that are not known yet."""
    steps, total = int(now["steps"]), max(int(now["total"]), 1)
    parts = [f"{min(steps / total, 1.0):4.0%}", f"{steps:,} / {total:,} steps"]
    for key, name in (("train_return", "return"), ("eval_return", "eval")):
        if now.get(key) is not None:
            parts.append(f"{name} {now[key]:,.1f}")
    if now.get("steps_per_second"):
        parts.append(f"{now['steps_per_second']:,.0f} steps/s")
    if now.get("seconds_left") is not None:
        parts.append(f"{duration(now['seconds_left'])} left")
    if now.get("restarts"):
        parts.append(f"restarts {now['restarts']}")
    return parts


def duration(seconds: float) -> str:
    """42 -> "42 s", 125 -> "2:05", 7384 -> "2:03:04"."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
