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
from rltrain.rollout.supervision import START_SECONDS
from rltrain.rollout.types import Episode, Weights
from rltrain.rollout.workers.handle import EVALUATOR, ActorLost, Handle
from rltrain.rollout.workers.in_process import LocalHandle
from rltrain.setup.environment import World

MOST = 4  # evaluations that may wait for the worker; beyond, the learner waits


class EvaluationFailed(Exception):
    """The evaluating worker was lost more often in a row than allowed; the actors are well."""


class Evaluations:
    """A queue of frozen weights in front of one worker; answers come in the order of their steps.

    Args:
        open_worker:  makes the worker's handle; called again when it was lost.
        seeds:        the episodes, the same each time.
        timeout:      seconds without a step after which the worker is replaced.
        max_restarts: failures in a row that are answered with a new worker.
        alive:        counts the worker's steps.
        on_restart:   told of each failure.
    """

    def __init__(
        self,
        open_worker: Callable[[], Handle],
        seeds: list[int],
        timeout: float,
        max_restarts: int,
        alive: Callable[[], int],
        on_restart: Callable[[ActorLost], None],
    ) -> None:
        self._open, self._seeds, self._timeout, self._most = open_worker, seeds, timeout, max_restarts
        self._alive, self._on_restart = alive, on_restart
        self._queue: deque[Weights] = deque()
        self._busy = False
        self._failures = 0
        self._opened_at = 0  # the count of steps when the worker was opened
        self._seen: tuple[int, float] = (-1, 0.0)
        self.restarts = 0
        self._worker: Handle | None = None

    def open(self) -> None:
        """Start the worker ahead of the first evaluation; else that does it."""
        if self._worker is None:
            self._opened_at = self._alive()
            self._worker = self._open()

    def launch(self, weights: Weights) -> None:
        """Have these weights evaluated; they must not change any more."""
        self._queue.append(weights)
        self._next()

    def collect(self, wait: bool, stop: Callable[[], bool] = lambda: False) -> list[tuple[Weights, list[Episode]]]:
        """What is finished; with `wait`, or with too long a queue, what was launched is waited for, until `stop`."""
        done: list[tuple[Weights, list[Episode]]] = []
        while self._queue and (wait or len(self._queue) > MOST or self._ready(0.0)):
            if not self._ready(0.25):
                if stop():
                    break
                continue
            try:
                assert self._worker is not None
                episodes = self._worker.result()
            except ActorLost as lost:
                self._lost(lost)
                continue
            self._busy, self._failures = False, 0
            done.append((self._queue.popleft(), episodes))
            self._next()
        return done

    @property
    def pending(self) -> list[Weights]:
        """What was launched and is not collected yet, oldest first: a checkpoint keeps it, to run it again."""
        return list(self._queue)

    def close(self) -> None:
        """End the worker; what it was doing is lost."""
        if self._worker is not None:
            if self._busy:
                self._worker.kill("the run ended")
            self._worker.close()
            self._worker = None

    def _next(self) -> None:
        if self._queue and not self._busy:
            self.open()
            assert self._worker is not None
            self._busy, self._seen = True, (-1, time.monotonic())
            self._worker.call("evaluate", self._queue[0].arrays, self._seeds, False)

    def _ready(self, seconds: float) -> bool:
        from multiprocessing.connection import wait

        assert self._worker is not None
        if self._worker.waitable is None or wait([self._worker.waitable], seconds):
            return True
        now, alive = time.monotonic(), self._alive()
        if self._worker.exit_reason:
            self._worker.kill(self._worker.exit_reason)
        elif alive != self._seen[0]:
            self._seen = (alive, now)
        else:
            new = alive == self._opened_at  # its process must start first
            timeout = max(self._timeout, START_SECONDS) if new else self._timeout
            if now - self._seen[1] > timeout:
                self._worker.kill(f"it made no step for {timeout:g} s, so it was ended")
        return False

    def _lost(self, lost: ActorLost) -> None:
        assert self._worker is not None
        self._worker.close()
        self._worker, self._busy = None, False
        if self._failures >= self._most:
            raise EvaluationFailed(
                f"the evaluating worker failed {self._failures + 1} times in a row (--max-restarts {self._most}); "
                f"the last time: {lost.detail}"
            )
        self._failures += 1
        self.restarts += 1
        self._on_restart(lost)
        time.sleep(min(0.1 * 2**self._failures, 5.0))
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
