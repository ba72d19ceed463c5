"""A callback that films the policy during training, into the run's folder and TensorBoard."""

from __future__ import annotations

import contextlib
import functools
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rltrain.callbacks.callback import Callback
from rltrain.callbacks.run_view import RunView
from rltrain.envs.seeding import evaluation_seed
from rltrain.errors import ConfigError
from rltrain.evaluation.video import Filmer, VideoWriter, filmed
from rltrain.learner.algorithm import make_policy
from rltrain.rollout.workers.handle import FILMER, ActorLost, Handle
from rltrain.rollout.workers.in_process import LocalHandle

END_SECONDS = 60.0  # that the end of a run waits for a film


class Video(Callback):
    """Every `every` steps: a film of one episode without exploration, `videos/step-000000010000.mp4`.

    A process of its own plays and films while training continues; with `--workers 0` it is the learner's. What goes
    wrong is a line on the console, and there are no more films.

    Args:
        every:  steps between two films.
        suffix: .mp4 or .gif.
    """

    def __init__(self, every: int = 10_000, suffix: str = ".mp4") -> None:
        if every < 1:
            raise ConfigError(f"Video: every must be at least 1, got {every}")
        if suffix not in (".mp4", ".gif"):
            raise ConfigError(f"Video: suffix must be .mp4 or .gif, got {suffix!r}")
        self.every, self.suffix = every, suffix
        self.next = every
        self._handle: Handle | None = None
        self._filming: int | None = None  # the step of the film that is being made
        self._ended = False  # something went wrong

    def on_start(self, run: RunView) -> None:
        VideoWriter(Path("check.gif"), "")  # ConfigError if the package is missing

    def on_update(self, run: RunView) -> None:
        if self._filming is not None:
            self._take(run, 0.0)
        if run.steps >= self.next and self._filming is None and not self._ended:
            self.next = (run.steps // self.every + 1) * self.every
            self._begin(run)

    def on_end(self, run: RunView) -> None:
        if self._filming is not None and run.stopped not in ("interrupted", "failed"):
            self._take(run, END_SECONDS)
        if self._handle is not None:
            if self._filming is not None:
                self._handle.kill("the run ended")
            self._handle.close()
            self._handle = None

    def state(self) -> dict[str, Any]:
        return {"next": self.next}

    def _begin(self, run: RunView) -> None:
        folder = run.folder / "videos"
        try:
            if self._handle is None:
                self._handle = _worker(run)
            folder.mkdir(exist_ok=True)
            self._filming = run.steps
            path = str(folder / f"step-{run.steps:012d}{self.suffix}")
            arrays = {name: tensor.numpy().copy() for name, tensor in run.policy.policy.state_dict().items()}
            self._handle.call("film", arrays, evaluation_seed(run.config.seed, 0), path)
        except (ActorLost, OSError) as error:
            self._give_up(run, str(error))
        if self._handle is not None and self._handle.waitable is None:
            self._take(run, 0.0)

    def _take(self, run: RunView, seconds: float) -> None:
        """Take the film, if it is ready within so many seconds."""
        handle, step = self._handle, self._filming
        assert handle is not None
        if step is None or (handle.waitable is not None and not wait([handle.waitable], seconds)):
            return
        self._filming = None
        try:
            film = handle.result()
        except ActorLost as lost:
            self._give_up(run, lost.detail.strip().splitlines()[-1])
            return
        if isinstance(film, str):
            self._give_up(run, film)
            return
        height, width = film.shape
        run.video("videos/episode", film.gif, width, height, step)

    def _give_up(self, run: RunView, why: str) -> None:
        self._ended, self._filming = True, None
        run.note(f"no more videos: {why}")
        if self._handle is not None:
            with contextlib.suppress(ActorLost):
                self._handle.kill("there are no more videos")
                self._handle.close()
            self._handle = None


def _worker(run: RunView) -> Handle:
    """The worker that plays and films; in this process if the actors are."""
    config = run.config
    source, spec = run.environment.evaluated
    build = functools.partial(Filmer, spec, filmed(source), make_policy(config, spec), config.has_opponents)
    if config.backend == "local" or config.workers == 0:
        return LocalHandle(FILMER, build)
    from rltrain.rollout.workers.process import ProcessHandle

    return ProcessHandle(FILMER, build)
