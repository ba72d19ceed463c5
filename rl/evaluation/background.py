"""Evaluations during a run: a worker of its own plays whole episodes with frozen weights; the learner does not wait."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable

from rltrain.config.run_config import RunConfig
from rltrain.envs.seeding import evaluation_seed
from rltrain.learner.algorithm import make_policy
from rltrain.rollout.actor.play import Evaluator, EvaluatorJob
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.supervision import SupervisedWorker, WorkerFailed
from rltrain.rollout.types import Episode, Weights
from rltrain.rollout.workers.handle import EVALUATOR, ActorLost, Handle
from rltrain.rollout.workers.in_process import LocalHandle
from rltrain.setup.environment import World

MOST = 4  # evaluations that may wait for the worker; with more, the learner waits
RESTART_POLL = 0.05  # seconds between two checks of whether a lost worker may be restarted


class EvaluationFailed(Exception):
    """The evaluating worker was lost more often in a row than allowed; the actors are well."""


class Evaluations:
    """A queue of frozen weights that one worker evaluates; results come in the order of their steps.

    Args:
        open_worker:  starts a worker.
        seeds:        one episode each, the same for all evaluations.
        timeout:      seconds without a step after which the worker is replaced.
        max_restarts: failures in a row that are followed by a restart.
        steps:        number of steps that the workers have made.
        on_restart:   called with each failure that is followed by a restart.
    """

    def __init__(
        self,
        open_worker: Callable[[], Handle],
        seeds: list[int],
        timeout: float,
        max_restarts: int,
        steps: Callable[[], int],
        on_restart: Callable[[ActorLost], None],
    ) -> None:
        self._worker = SupervisedWorker(open_worker, steps, timeout, max_restarts)
        self._seeds, self._on_restart = seeds, on_restart
        self._queue: deque[Weights] = deque()
        self._busy = False
        self.restarts = 0

    def open(self) -> None:
        """Start the worker before the first evaluation, which otherwise starts it."""
        if self._worker.handle is None:
            self._worker.open()

    def launch(self, weights: Weights) -> None:
        """Evaluate these weights, which must not change any more."""
        self._queue.append(weights)
        self._next()

    def collect(self, wait: bool, stop: Callable[[], bool] = lambda: False) -> list[tuple[Weights, list[Episode]]]:
        """The finished evaluations; with `wait`, or if the queue is too long, wait for the others, until `stop`."""
        done: list[tuple[Weights, list[Episode]]] = []
        while self._queue and (wait or len(self._queue) > MOST or self._ready(0.0)):
            if not self._ready(0.25):
                if stop():
                    break
                continue
            try:
                episodes = self._worker.result()
            except ActorLost as lost:
                self._lost(lost)
                continue
            self._busy = False
            self._worker.succeeded()
            done.append((self._queue.popleft(), episodes))
            self._next()
        return done

    @property
    def pending(self) -> list[Weights]:
        """The weights whose evaluation is not collected yet, oldest first. A checkpoint keeps them, to repeat it."""
        return list(self._queue)

    def close(self) -> None:
        """End the worker; an evaluation in progress is lost."""
        if self._worker.handle is not None and self._busy:
            self._worker.handle.kill("the run ended")
        self._worker.close()

    def _next(self) -> None:
        if self._queue and not self._busy and (self._worker.handle is not None or self._worker.restart_due):
            try:
                self.open()
            except ActorLost as lost:
                self._lost(lost)
                return
            self._busy = True
            self._worker.reset_timer()
            self._worker.call("evaluate", self._queue[0].arrays, self._seeds, False)

    def _ready(self, seconds: float) -> bool:
        """True if `result` will not block; waits at most `seconds`, restarts a lost worker and kills a hung one."""
        self._next()
        if not self._busy:
            time.sleep(min(seconds, RESTART_POLL))
            return False
        if self._worker.ready(seconds):
            return True
        self._worker.watch()
        return False

    def _lost(self, lost: ActorLost) -> None:
        self._busy = False
        try:
            self._worker.lost(lost)
        except WorkerFailed as failed:
            raise EvaluationFailed(str(failed)) from None
        self.restarts += 1
        self._on_restart(lost)
        self._next()


def evaluation_seeds(seed: int, episodes: int) -> list[int]:
    """The seeds of evaluation episodes: the same each time, and none that training uses."""
    return [evaluation_seed(seed, episode) for episode in range(episodes)]


class EvaluationWorker:
    """Opens the evaluating worker, and watches that it makes steps."""

    def __init__(self, config: RunConfig, here: World) -> None:
        at_random = config.opponents == "pool"
        self._job = EvaluatorJob(here.spec, here.source.make, make_policy(config, here.spec), at_random)
        self._local = config.backend == "local" or config.workers == 0
        self._progress = SharedMemory(8)
        self._steps = self._progress.array(0, (1,), "int64")

    def open(self) -> Handle:
        """A new worker."""
        if self._local:
            return LocalHandle(EVALUATOR, functools.partial(Evaluator, self._job, self._progress))
        from rltrain.rollout.workers.process import ProcessHandle

        return ProcessHandle(EVALUATOR, functools.partial(Evaluator, self._job), self._progress.ticket())

    def alive(self) -> int:
        """How many vector steps were made."""
        return int(self._steps[0])

    def close(self) -> None:
        self._progress.close()
