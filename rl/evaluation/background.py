"""Evaluations during a run: a worker plays complete episodes with frozen weights while the learner continues."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from rltrain.config.run_config import RunConfig
from rltrain.envs.seeding import evaluation_seed
from rltrain.evaluation import self_play_ratings as self_play
from rltrain.evaluation.multi_agent import return_metrics
from rltrain.learner.algorithm import make_policy
from rltrain.reporting.metrics import Metrics, info_metrics
from rltrain.rollout.actor.play import Evaluator, EvaluatorJob
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.supervision import SupervisedWorker, WorkerFailed
from rltrain.rollout.types import LONGEST, Episode, Weights
from rltrain.rollout.workers.handle import EVALUATOR, ActorLost, Handle
from rltrain.rollout.workers.in_process import LocalHandle
from rltrain.setup.environment import Environment
from rltrain.storage.recording import Reference
from rltrain.storage.retention import CheckpointWriter
from rltrain.system.schedule import Schedule
from rltrain.system.time_limit import TimeLimit

LINES = 1000  # evaluations of which each is written to the metrics
MAX_QUEUE = 4  # evaluations that may wait for the worker; with more, the learner waits
RESTART_POLL = 0.05  # seconds between two checks of whether a lost worker may be restarted


class EvaluationFailed(Exception):
    """The evaluation worker was lost more often in a row than allowed. The actors are not affected."""


class Evaluated(NamedTuple):
    """The result of one evaluation."""

    step: int  # of the weights
    episodes: list[Episode]
    metrics: dict[str, float]  # by name, as they are logged

    @property
    def return_mean(self) -> float:
        """Mean undiscounted return."""
        return self.metrics["eval/return_mean"]


class BackgroundEvaluation:
    """The evaluations of a run: when they are due, their results, the best policy, and whether the goal is reached.

    Args:
        checkpoints: writes the best policy.
        limit:       of the run's time; it is told how long evaluations take, and decides when they are cut off.
        on_restart:  called with each failure of the worker that is followed by a restart.
        note:        prints a line for the user.
        on_result:   called with each result.
        reference:   for the normalised score of each result.

    Attributes:
        launched_step: step of the newest evaluation that was launched; -1 if there was none.
        return_mean:   of the newest evaluation that is finished.
        metrics:       of the same, by name.
        goal_reached:  the policy of this step reached `stop_return`, and so did the evaluation before.
    """

    def __init__(
        self,
        config: RunConfig,
        environment: Environment,
        checkpoints: CheckpointWriter,
        limit: TimeLimit,
        on_restart: Callable[[ActorLost], None],
        note: Callable[[str], None],
        closing: ExitStack,
        on_result: Callable[[Evaluated], None] = lambda _: None,
        reference: Reference | None = None,
    ) -> None:
        self._on_result, self._reference = on_result, reference
        self._config, self._spec, self._checkpoints = config, environment.spec, checkpoints
        self._queue = EvaluationQueue(config, environment, limit, on_restart)
        closing.callback(self._queue.close)
        if config.eval_every:
            self._queue.open()
        self.return_mean: float | None = None
        self.metrics: dict[str, float] = {}
        self.goal_reached = False
        self.launched_step = -1
        self._count = 0  # finished evaluations
        self._best: float | None = None  # highest mean return so far
        self._successes = 0  # evaluations in a row that reached `stop_return`
        self._schedule = Schedule(config.eval_every)
        self._note, self._noted = note, environment.spec.max_steps is not None

    @property
    def restarts(self) -> int:
        return self._queue.restarts

    @property
    def pending(self) -> bool:
        """True if an evaluation was launched and its result was not collected."""
        return bool(self._queue.pending)

    def due(self, steps: int) -> bool:
        """True if an evaluation is due at this step."""
        return self._schedule.due(steps)

    def launch(self, weights: Weights) -> None:
        """Start the evaluation of these weights, which must not change any more."""
        self.launched_step = weights.step
        self._schedule.done(weights.step)
        self._queue.launch(weights)

    def collect(self, steps: int, metrics: Metrics, wait: bool, stop: Callable[[], bool]) -> None:
        """Log the finished evaluations in the order of their steps; save a policy that is the best or reached the goal.

        Args:
            steps: of the run now.
            wait:  wait for all evaluations that were launched, until `stop` returns True.
        """
        for weights, episodes in self._queue.collect(wait, stop):
            self._count += 1
            returns = np.array([episode.ret for episode in episodes])
            lengths = np.array([episode.length for episode in episodes])
            self.return_mean = float(returns.mean())
            if not self._noted and (lengths >= LONGEST).any():
                self._noted = True
                self._note(
                    f"{self._spec.id} has no time limit: an episode of an evaluation was cut off after {LONGEST:,} "
                    "steps; gymnasium.wrappers.TimeLimit sets a limit"
                )
            outcomes = self_play.shares(episodes) if self._config.has_opponents else {}
            values = {
                "eval/return_mean": self.return_mean,
                **({} if self._reference is None else {"eval/score": self._reference.score(self.return_mean)}),
                "eval/return_std": float(returns.std()),
                "eval/length_mean": float(lengths.mean()),
                "eval/episodes": float(len(episodes)),
                **return_metrics("eval", self._spec, episodes),
                **info_metrics("eval", episodes),
                **{f"eval/{name}": share for name, share in outcomes.items()},
            }
            self.metrics = values
            if has_line(self._count):
                metrics.log(weights.step, values)
            goal = self._config.stop_return
            if goal is not None:
                self._successes = self._successes + 1 if self.return_mean >= goal else 0
                self.goal_reached = self._successes >= 2 and weights.step == steps
            if self._best is None or self.return_mean > self._best or self.goal_reached:
                self._best = self.return_mean
                self._checkpoints.save_best(weights, self.return_mean)
            self._on_result(Evaluated(weights.step, episodes, values))

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        evaluation = {
            "return": self.return_mean,
            "best": self._best,
            "good": self._successes,
            "evaluated": self.launched_step,
            "next": self._schedule.next,
            "count": self._count,
            "metrics": self.metrics,
            "pending": [{"version": w.version, "step": w.step, "arrays": w.arrays} for w in self._queue.pending],
        }
        return {"evaluation": evaluation, "restarts": self.restarts}

    def load(self, state: dict[str, Any], steps: int) -> None:
        """Continue from `state`: the evaluations that were pending are run again.

        Args:
            steps: of the run now.
        """
        evaluation = state["evaluation"]
        self.return_mean, self._best = evaluation["return"], evaluation["best"]
        self._successes, launched_step = int(evaluation["good"]), int(evaluation["evaluated"])
        self._count = int(evaluation.get("count", 0))
        self.metrics = dict(evaluation.get("metrics", {}))
        self._queue.restarts = int(state["restarts"])
        for weights in evaluation["pending"]:
            self._queue.launch(Weights(int(weights["version"]), int(weights["step"]), weights["arrays"]))
        self.launched_step = launched_step
        self._schedule.done(steps)
        self._schedule.next = int(evaluation.get("next", self._schedule.next))  # not in version 0.1
        self.goal_reached = self._successes >= 2 and launched_step == steps


class EvaluationQueue:
    """A queue of frozen weights that one worker evaluates; results come in the order of their steps.

    Args:
        limit:      see `BackgroundEvaluation`.
        on_restart: called with each failure that is followed by a restart.
    """

    def __init__(
        self, config: RunConfig, environment: Environment, limit: TimeLimit, on_restart: Callable[[ActorLost], None]
    ) -> None:
        (source, spec), against_random = environment.evaluated, config.has_opponents
        self._job = EvaluatorJob(spec, source.make, make_policy(config, spec), against_random, config.log_info)
        self._local = config.backend == "local" or config.workers == 0
        self._limit = limit
        self._began = 0.0  # monotonic time at which the evaluation under way began
        self._memory = SharedMemory(16)
        steps = self._memory.array(0, (1,), "int64")  # that the workers have made
        self._end = self._memory.array(8, (1,), "float64")  # monotonic time at which an evaluation is cut off
        self._worker = SupervisedWorker(
            self._open_worker, lambda: int(steps[0]), config.actor_timeout, config.max_restarts
        )
        self._seeds = evaluation_seeds(config.seed, config.eval_episodes)
        self._on_restart = on_restart
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
        while self._queue and (wait or len(self._queue) > MAX_QUEUE or self._ready(0.0)):
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
            if not episodes:
                break  # it was cut off
            self._limit.evaluation = time.monotonic() - self._began
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
        self._memory.close()

    def _open_worker(self) -> Handle:
        if self._local:
            return LocalHandle(EVALUATOR, functools.partial(Evaluator, self._job, self._memory))
        from rltrain.rollout.workers.process import ProcessHandle

        return ProcessHandle(EVALUATOR, functools.partial(Evaluator, self._job), self._memory.ticket())

    def _next(self) -> None:
        if self._queue and not self._busy and (self._worker.handle is not None or self._worker.restart_due):
            try:
                self.open()
            except ActorLost as lost:
                self._lost(lost)
                return
            self._busy = True
            self._began, self._end[0] = time.monotonic(), self._limit.evaluations_end
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


def has_line(count: int) -> bool:
    """True if the `count`-th evaluation of a run is written to its metrics: each of the first LINES, then every second,
    from 2 * LINES on every fourth, and so on. So the files of a run with very many evaluations stay small."""
    return count % (1 << (count // LINES).bit_length()) == 0


def evaluation_seeds(seed: int, episodes: int) -> list[int]:
    """The seeds of the episodes: the same for all evaluations of a run, and different from those of training."""
    return [evaluation_seed(seed, episode) for episode in range(episodes)]
