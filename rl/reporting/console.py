"""The console output of a run: a live line on a terminal, occasional plain lines elsewhere.

If the reader closes the pipe (`rltrain ... | head -1`), nothing more is printed and the run continues.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rltrain.rollout.workers.handle import ActorLost

EVERY_SECONDS = 5.0  # between two plain lines
EVERY_SHARE = 0.1  # share of the run between two plain lines
REFRESH = 0.1  # seconds between two updates of the live line


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
        self._terminal = not quiet and self.stream.isatty()
        self._last_time = -float("inf")
        self._tenth = 0  # number of EVERY_SHARE at the last plain line

    def start(self, config: Any, preset: str | None = None, notes: Sequence[str] = ()) -> None:
        """Prints one line about the run, the preset in use, and notes."""
        who = f"{config.workers} actors" if config.workers > 1 else "1 actor"
        who += f", {config.learners} learners" if config.learners > 1 else ""
        where = f"{who}, {config.backend}" if config.workers else "in this process"
        where = where if config.replay_from is None else f"from {config.replay_from}"
        self.note(
            f"{config.algo} on {config.env_name}: {config.steps:,} steps, {config.streams} streams, {where}, "
            f"seed {config.seed}, device {config.device}"
        )
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
                self._show(progress_line(now))
            except BrokenPipeError:
                self._mute()
        elif clock - self._last_time >= EVERY_SECONDS or tenth > self._tenth:
            self._last_time, self._tenth = clock, tenth
            self._print(progress_line(now))

    def show(self, line: str) -> None:
        """Shows this text in the live line; where there is no terminal, prints it."""
        if self.quiet:
            return
        try:
            self._show(line) if self._terminal else self._print(line)
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
        """Ends the live line and prints `text`."""
        if self._live is not None:
            try:
                self._live.stop()
            except BrokenPipeError:
                hush(self.stream)
            self._live = None
        if text:
            self.note(text)

    def _show(self, line: str) -> None:
        from rich.console import Console as Terminal
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            # Without a refreshing thread, since processes are forked while the line is shown.
            self._live = Live(console=Terminal(file=self.stream), auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

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


def progress_line(now: Mapping[str, Any]) -> str:
    """One line of progress, without the values that are not known yet."""
    steps, total = int(now["steps"]), max(int(now["total"]), 1)
    parts = [f"{steps:,} / {total:,} steps", f"{min(steps / total, 1.0):4.0%}"]
    if now.get("steps_per_second"):
        parts.append(f"{now['steps_per_second']:,.0f} steps/s")
    if now.get("seconds_left") is not None:
        parts.append(f"{duration(now['seconds_left'])} left")
    for key, name in (("train_return", "return"), ("eval_return", "eval")):
        if now.get(key) is not None:
            parts.append(f"{name} {now[key]:.1f}")
    if now.get("restarts"):
        parts.append(f"restarts {now['restarts']}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """42 -> "42 s", 125 -> "2:05", 7384 -> "2:03:04"."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
