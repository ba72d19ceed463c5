"""The metrics of a run: metrics.jsonl and TensorBoard events. docs/metrics.md explains the names."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.rollout.types import Episode
from rltrain.storage.files import read_file, replace_file, writing

FILE = "metrics.jsonl"
EVENTS = "tensorboard"
MAX_LINE = 2**20  # bytes; a longer line was not written here
WINDOW = 100  # episodes in running means
RECENT_SECONDS = 20.0  # that a rate is computed from
LEAST_SECONDS = 2.0  # the same, at the start
LINE_SECONDS = 1.0  # least time between two lines about the progress of a run
LINE_SHARE = 1 / 500  # least share of the run's time between them: about 3,000 lines in a day, and 500 more in a week


class Metrics:
    """Writes the metrics of a run. Lines that a resumed run wrote after its checkpoint are removed first.

    Args:
        folder:      the run's folder.
        start_step:  the step at which the run resumes; 0 for a new run.
        start_lines: the number of lines at that step. None: not known.
        about:       settings of the run by name, for TensorBoard.

    Attributes:
        lines: number of lines in metrics.jsonl.
    """

    def __init__(
        self,
        folder: Path,
        start_step: int = 0,
        start_lines: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._about = dict(about or {})
        self.folder, self.start_step = Path(folder), start_step
        self._resumed = (self.folder / FILE).exists()
        self._begin = time.monotonic()
        with writing(self.folder / FILE):
            self.folder.mkdir(parents=True, exist_ok=True)
            # number of lines, and seconds of the run, before it was resumed
            self.lines, self._before = cut_back(self.folder / FILE, start_step, start_lines)
            self._file = (self.folder / FILE).open("a", encoding="utf-8")
        self._events: Any = None  # SummaryWriter, imported for the first line
        self._last = self.seconds  # of the run, at the last line about its progress

    @property
    def seconds(self) -> float:
        """Time of the run so far, without the time between its end and its resume."""
        return self._before + time.monotonic() - self._begin

    @property
    def due(self) -> bool:
        """True if a line about the progress is due. Lines become rarer, so that the files of a long run stay small."""
        return self.seconds - self._last >= max(LINE_SECONDS, self.seconds * LINE_SHARE)

    def log_progress(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line about the progress of the run; the next one is due some time later."""
        self._last = self.seconds
        self.log(step, values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line. A value that is not finite is null in the line, and no event.

        Raises:
            RunFailed: the file cannot be written, for example because the disk is full.
        """
        seconds = round(self.seconds, 3)
        plain = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        with writing(self.folder / FILE):
            self._file.write(json.dumps({"step": int(step), "seconds": seconds, **finite}) + "\n")
            self._file.flush()
        self.lines += 1
        with writing(self.folder / EVENTS):
            for name, value in finite.items():
                if value is not None:
                    self._writer().add_scalar(name, value, int(step))

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Write a histogram of finite numbers to TensorBoard."""
        with writing(self.folder / EVENTS):
            self._writer().add_histogram(name, values, int(step))

    def image(self, step: int, name: str, image: bytes, width: int, height: int) -> None:
        """Write an image to TensorBoard, which shows a GIF as a video."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        encoded = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=image)
        with writing(self.folder / EVENTS):
            self._writer().file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=encoded)]), int(step))

    def finish(self, step: int, results: Mapping[str, float | None]) -> None:
        """Write the settings of a finished run beside its results, as TensorBoard's table of hyperparameters."""
        known = {f"final/{name}": value for name, value in results.items() if value is not None}
        if not self._about or not known:
            return
        from torch.utils.tensorboard.summary import hparams

        with writing(self.folder / EVENTS):
            writer = self._writer()
            settings = {name: as_hparam(value) for name, value in self._about.items()}
            for summary in hparams(settings, known):  # type: ignore[no-untyped-call]
                writer.file_writer.add_summary(summary)
            for name, value in known.items():
                writer.add_scalar(name, value, int(step))

    def flush(self) -> None:
        """Passes everything logged so far to the operating system."""
        with writing(self.folder / FILE):
            self._file.flush()
        if self._events is not None:
            with writing(self.folder / EVENTS):
                self._events.flush()

    def close(self) -> None:
        """Closes the files. Ignores a full disk: `flush` has reported it."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None

    def _writer(self) -> Any:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            purge = self.start_step + 1 if self._resumed else None  # TensorBoard drops the events after the cut
            self._events = SummaryWriter(log_dir=str(self.folder / EVENTS), purge_step=purge)
            if self._about:
                lines = [f"| {name} | {as_hparam(value)} |" for name, value in self._about.items()]
                text = "\n".join(["| setting | value |", "| --- | --- |", *lines])
                self._events.add_text("configuration", text, self.start_step)
        return self._events


def as_hparam(value: Any) -> bool | int | float | str:
    """The value of a setting as TensorBoard's table of hyperparameters takes it."""
    if isinstance(value, bool | int | float):
        return value
    text = ",".join(map(str, value)) if isinstance(value, tuple | list) else "none" if value is None else str(value)
    return text.encode(errors="backslashreplace").decode()  # the name of a file need not be UTF-8


def info_means(episodes: Iterable[Episode]) -> dict[str, float]:
    """The means of the numbers of the last infos, by key, over the episodes that have the key."""
    values: dict[str, list[float]] = {}
    for episode in episodes:
        for key, value in episode.info.items():
            values.setdefault(key, []).append(value)
    return {key: sum(of_key) / len(of_key) for key, of_key in values.items()}


def info_metrics(prefix: str, episodes: Iterable[Episode]) -> dict[str, float]:
    """`info_means` as metrics: `PREFIX_info/KEY`."""
    return {f"{prefix}_info/{key}": mean for key, mean in info_means(episodes).items()}


class Rate:
    """Steps per second over a recent window. The first count is its beginning, so the start of a run is not in it."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, float]] = deque()

    def add(self, now: float, steps: float) -> None:
        """The number of steps at the time `now`."""
        self._counts.append((now, steps))
        while len(self._counts) > 2 and now - self._counts[1][0] >= RECENT_SECONDS:
            self._counts.popleft()

    @property
    def value(self) -> float | None:
        """None until the counts span LEAST_SECONDS."""
        if not self._counts:
            return None
        (began, before), (now, steps) = self._counts[0], self._counts[-1]
        return (steps - before) / (now - began) if now - began >= LEAST_SECONDS else None


class Window:
    """The last episodes and their means."""

    def __init__(self, size: int = WINDOW) -> None:
        self.episodes: deque[Episode] = deque(maxlen=size)
        self.count = 0  # finished episodes of the run

    def add(self, episodes: Iterable[Episode]) -> None:
        for episode in episodes:
            self.episodes.append(Episode(*episode))
            self.count += 1

    @property
    def return_mean(self) -> float | None:
        """Mean undiscounted return; None without episodes."""
        return sum(e.ret for e in self.episodes) / len(self.episodes) if self.episodes else None

    @property
    def length_mean(self) -> float | None:
        return sum(e.length for e in self.episodes) / len(self.episodes) if self.episodes else None

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        state = {"count": self.count, "episodes": [[e.ret, e.length, *e.agents] for e in self.episodes]}
        infos = [episode.info for episode in self.episodes]
        return {**state, "infos": infos} if any(infos) else state

    def load(self, state: Mapping[str, Any]) -> None:
        self.count = int(state["count"])
        self.episodes.clear()
        infos = state.get("infos") or [{}] * len(state["episodes"])
        self.episodes.extend(
            Episode(float(ret), int(length), tuple(map(float, agents)), info=dict(info))
            for (ret, length, *agents), info in zip(state["episodes"], infos, strict=True)
        )


def cut_back(file: Path, step: int, lines: int | None = None) -> tuple[int, float]:
    """Removes the first line with a later step than `step`, or that is incomplete, and all lines after it.

    These were written after the checkpoint at `step`. Evaluations of earlier steps among them are run again.

    Args:
        lines: keep at most so many; those after them were written after the checkpoint, too.

    Returns:
        The number of lines that are left, and the seconds of the last one, or 0.
    """
    if not file.exists():
        return 0, 0.0
    kept: list[bytes] = []
    seconds = 0.0
    with file.open("rb") as source:
        while (lines is None or len(kept) < lines) and (line := source.readline(MAX_LINE)):
            try:
                item = json.loads(line)
                if not line.endswith(b"\n") or int(item["step"]) > step:
                    break
                seconds = float(item.get("seconds", seconds))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                break
            kept.append(line)
    replace_file(file, b"".join(kept))
    return len(kept), seconds


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, oldest first; CheckpointError if it cannot be read."""
    return [json.loads(line) for line in read_file(Path(folder) / FILE).decode().splitlines()]
