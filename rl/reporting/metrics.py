"""Numbers of a run: metrics.jsonl and TensorBoard events, one line per call. Names stand in docs/metrics.md."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rltrain.rollout.types import Episode
from rltrain.storage.files import replace_file, writing

FILE = "metrics.jsonl"
EVENTS = "tensorboard"
WINDOW = 100  # episodes that running means look at


class Metrics:
    """Writes into a run's folder. A resumed run's lines after `start_step` are cut off first.

    Args:
        folder:     the run's folder.
        start_step: the step the run goes on from; 0 for a new one.
    """

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        self.folder, self.start_step = Path(folder), start_step
        self._resumed = (self.folder / FILE).exists()
        self._begin = time.monotonic()
        with writing(self.folder / FILE):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._before = cut_back(self.folder / FILE, start_step)  # seconds that earlier parts of the run took
            self._file = (self.folder / FILE).open("a", encoding="utf-8")
        self._events: Any = None  # SummaryWriter, imported at the first line

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line at `step`. Numbers that are not finite are written as null, and not at all as events.

        Raises:
            RunFailed: the disk is full, or the like.
        """
        seconds = round(self._before + time.monotonic() - self._begin, 3)
        plain = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        with writing(self.folder / FILE):
            self._file.write(json.dumps({"step": int(step), "seconds": seconds, **finite}) + "\n")
            self._file.flush()
        with writing(self.folder / EVENTS):
            if self._events is None:
                self._events = self._open_events()
            for name, value in finite.items():
                if value is not None:
                    self._events.add_scalar(name, value, int(step))

    def flush(self) -> None:
        """Everything logged so far is on its way to the disk when this returns."""
        with writing(self.folder / FILE):
            self._file.flush()
        if self._events is not None:
            with writing(self.folder / EVENTS):
                self._events.flush()

    def close(self) -> None:
        """No more lines. Says nothing of a full disk: a run that needs to know has asked `flush`."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None

    def _open_events(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        purge = self.start_step + 1 if self._resumed else None  # TensorBoard drops what was logged after the cut
        return SummaryWriter(log_dir=str(self.folder / EVENTS), purge_step=purge)


class Window:
    """Means over the last 100 episodes."""

    def __init__(self, size: int = WINDOW) -> None:
        self.episodes: deque[Episode] = deque(maxlen=size)
        self.count = 0  # episodes finished in all

    def add(self, episodes: Iterable[Episode]) -> None:
        for episode in episodes:
            self.episodes.append(Episode(*episode))
            self.count += 1

    @property
    def return_mean(self) -> float | None:
        """None before the first episode has ended."""
        return sum(e.ret for e in self.episodes) / len(self.episodes) if self.episodes else None

    @property
    def length_mean(self) -> float | None:
        return sum(e.length for e in self.episodes) / len(self.episodes) if self.episodes else None

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {"count": self.count, "episodes": [[e.ret, e.length, *e.agents] for e in self.episodes]}

    def load(self, state: Mapping[str, Any]) -> None:
        self.count = int(state["count"])
        self.episodes.clear()
        self.episodes.extend(
            Episode(float(ret), int(length), tuple(map(float, agents))) for ret, length, *agents in state["episodes"]
        )


def cut_back(file: Path, step: int) -> float:
    """Keeps the lines before the first that lies after `step`, or that was not written to its end.

    What follows that line was written after the checkpoint at `step`, evaluations of earlier steps included: those
    are run again.

    Returns:
        The seconds of the last line that is kept, 0 where there is none.
    """
    if not file.exists():
        return 0.0
    kept, seconds = [], 0.0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            item = json.loads(line)
            if not line.endswith("\n") or int(item["step"]) > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line)
        seconds = float(item.get("seconds", seconds))
    replace_file(file, "".join(kept).encode())
    return seconds


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, oldest first."""
    lines = (Path(folder) / FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
