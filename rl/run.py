"""One run: its parts, what happens between two updates (log, evaluate, checkpoint, stop), its end and its result."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rltrain import self_play
from rltrain.config.run_config import RunConfig
from rltrain.errors import Interrupted, LearnerLost, RunFailed, Stop
from rltrain.evaluation import multi_agent as team
from rltrain.evaluation.background import EvaluationFailed, Evaluations, EvaluationWorker, evaluation_seeds
from rltrain.learner.algorithm import make_algorithm, torch_device
from rltrain.learner.learner import Learner
from rltrain.reporting.console import Console
from rltrain.reporting.metrics import Metrics, Window
from rltrain.reporting.report import Report
from rltrain.rollout.replay.ring import NoStack
from rltrain.rollout.specs import RolloutSpec
from rltrain.rollout.supervision import WorkerFailed
from rltrain.rollout.types import Episode, Trajectory, Weights
from rltrain.rollout.workers.handle import ActorLost, ClusterLost
from rltrain.self_play import SelfPlay
from rltrain.setup.cluster import open_cluster, remarks
from rltrain.setup.environment import World, world
from rltrain.setup.learner import learner_group
from rltrain.setup.offline import fill
from rltrain.setup.replay import make_feed, recording_of, room_for
from rltrain.setup.rollout import open_rollout, rollout_plan
from rltrain.storage import checkpoint, segments
from rltrain.storage.checkpoint import Checkpoint
from rltrain.storage.checkpoints import Keeper, fits, newest, same_environment
from rltrain.storage.recording import Recorder, Recording
from rltrain.storage.run_folder import discard, lock, make_folder, recording_mark, write_run_file
from rltrain.system.signals import Signals
from rltrain.system.torch_setup import quiet_torch


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    steps: int
    seconds: float  # of wall time, the start included
    steps_per_second: float  # while training
    episodes: int
    train_return: float | None  # mean of the last 100 training episodes
    eval_return: float | None  # mean of the last evaluation
    stopped: str  # steps, return, seconds
    run: Path
    checkpoint: Path
    restarts: int
    fingerprint: str  # sha256 over every tensor of the algorithm's parts


CHECKPOINTS = "checkpoints"  # where they lie in a run's folder
ROWS = "replay"  # and the files of a replay on disk, as long as the run goes on
GRACE_SECONDS = 10.0  # that a stop waits for unrolls under way, before it gives them up


class Run:
    """The parts of a run and its clock. Made by `open_run`."""

    def __init__(self, config: RunConfig, resume: Path | None, signals: Signals) -> None:
        self.config, self.signals = config, signals
        self.recorder: Recorder | None = None
        self._parts = contextlib.ExitStack()  # what `close` ends, the newest first
        try:
            self._begin(resume)
        except BaseException:
            self._parts.close()
            raise

    def _begin(self, resume: Path | None) -> None:
        """Everything until the first step; a signal that comes meanwhile ends it."""
        config, notes = self.config, list[str]()
        self._born = time.monotonic()
        quiet_torch(config.learner_threads)
        self.console = Console(json=config.json_line, quiet=config.quiet)
        if resume is not None:
            self._parts.callback(lock(resume))
            shutil.rmtree(resume / ROWS, ignore_errors=True)  # a run that was killed leaves them, and they take room
        saved = None if resume is None else newest(resume / CHECKPOINTS, notes)
        here = world(config, None if saved is None else saved.meta["way"])
        self.way, self.spec = here.way, here.spec
        if saved is not None:
            same_environment(saved, here.spec)
        algorithm = make_algorithm(config, here.spec)
        cluster = open_cluster(config)
        if cluster is not None:
            cluster.note = self.console.note
            self._parts.callback(cluster.close)
        plan = rollout_plan(config, here, algorithm.plan, cluster)
        recording = recording_of(config, here.spec, algorithm.plan)
        self.way = here.way if recording is None else "record"
        notes += room_for(config, here.spec, algorithm.plan, resume, recording)
        known = None if resume is None else 0 if saved is None else int(saved.state.get("recorded", 0))
        mark = None if resume is None else recording_mark(resume)
        if config.record is not None:
            self.recorder = Recorder(Path(config.record), config, here.spec, known, mark)
            mark = self.recorder.mark
        self.folder = resume or make_folder(config)
        if resume is None:
            self._parts.callback(discard, self.folder)
            self._parts.callback(lock(self.folder))
            write_run_file(self.folder, config, here.spec, mark)
        self._parts.callback(self.console.finish, "")
        self.keeper = Keeper(self.folder / CHECKPOINTS, config, here.spec, self.way, saved)
        notes += self._learns(algorithm, saved, recording)
        self._open(plan, here, saved)
        notes += remarks(config, cluster)
        if resume is not None:
            write_run_file(self.folder, config, here.spec, mark)
        notes += here.warnings
        if self.way == "none":
            notes.append(
                f"{here.spec.id} cannot be brought back in mid-episode: a resumed run is not exact (exact: false)"
            )
        if saved is not None:
            notes.append(f"resumed {self.folder} at step {self.rollout.steps:,}")
        elif resume is not None:
            notes.append(f"{self.folder} holds no checkpoint yet: it begins at step 0")
        self.console.start(config, config.preset_file, notes)
        self.signals.ask = self._asked

    def _learns(self, algorithm: Any, saved: Checkpoint | None, recording: Recording | None) -> list[str]:
        """Make the learner and its feed; bring back what was saved, or fill the replay from a recording."""
        config, files = self.config, self.folder / ROWS
        self._parts.callback(shutil.rmtree, files, ignore_errors=True)
        feed = make_feed(config, self.spec, algorithm.plan, files if config.replay_on_disk else None, recording)
        self.learner = Learner(
            algorithm, torch_device(config.device), feed, learner_group(config, self.spec, algorithm)
        )
        self._parts.callback(self.learner.close)
        if saved is None:
            return [] if recording is None else [fill(self.learner, recording, torch_device(config.device))]
        with fits(saved.path):
            self.learner.load(saved.state["learner"])
            blocks = segments.read(self.keeper.folder, saved.meta.get("segments", {}))
            feed.load(saved.state.get("feed", {}), blocks)
        return []

    def _open(self, plan: RolloutSpec, here: World, saved: Checkpoint | None) -> None:
        """Start the actors and the evaluating worker; bring back what was saved."""
        config = self.config
        self.rollout = open_rollout(config, plan, self.learner.weights(0), self._restarted)
        self._parts.callback(self.rollout.close)
        self._worker = EvaluationWorker(config, here)
        self.evaluations = Evaluations(
            self._worker.open,
            evaluation_seeds(config.seed, config.eval_episodes),
            config.actor_timeout,
            config.max_restarts,
            self._worker.alive,
            self._restarted,
        )
        self._parts.callback(self._worker.close)
        self._parts.callback(self.evaluations.close)
        if config.eval_every:
            self.evaluations.open()
        self.window = Window()
        self.self_play = SelfPlay(config.pool_size, config.pool_every) if config.opponents == "pool" else None
        self.eval_return: float | None = None
        self.best: float | None = None
        self.good = 0  # evaluations in a row that reached stop_return
        self.evaluated = -1  # step of the newest evaluation that was launched
        self.stopped: str | None = None
        if saved is not None:
            with fits(saved.path):
                self._load(saved)
        self._snapshot()
        self._schedule()
        self.learner.join()
        self.metrics = Metrics(self.folder, self.rollout.steps)
        self.report = Report(config.steps, self.rollout.steps, self.metrics, self.console)
        self._parts.callback(self.metrics.close)

    # --- what the training loop asks ---

    @property
    def progress(self) -> float:
        """Share of the run that is done, for schedules."""
        return min(self.rollout.steps / self.config.steps, 1.0)

    def continues(self) -> bool:
        """Whether another round of acting and learning is wanted."""
        if self.rollout.steps >= self.config.steps:
            self.stopped = self.stopped or "steps"
        return self.stopped is None

    @property
    def overlaps(self) -> bool:
        """Whether actors go on while the learner learns; those in this process cannot."""
        return bool(self.learner.algorithm.plan.overlap) and self.config.backend != "local"

    def settle(self) -> None:
        """Wait for the unrolls under way, and learn from them as from any other: afterwards nobody acts."""
        progress = self.progress
        unrolls = self.rollout.drain()
        if unrolls:
            self.learner.step(unrolls, progress)
            self.rollout.publish(self.learner.weights(self.rollout.steps))
            self._take_in(unrolls)

    def tick(self, unrolls: list[Trajectory]) -> None:
        """After an update: log, evaluate, checkpoint, each when due; notice why to stop."""
        config, steps, now = self.config, self.rollout.steps, time.monotonic()
        self._take_in(unrolls)
        self._snapshot()
        if config.eval_every and steps >= self._next_eval and steps < config.steps:
            self.settle()
            self._evaluate()
        self._take(self.evaluations.collect(config.stop_return is not None, self._signalled))
        if config.max_seconds is not None and now - self._born >= config.max_seconds:
            self.stopped = self.stopped or "seconds"
        if self._signalled():
            self._leave()
        if config.checkpoint_every and steps >= self._next_checkpoint and steps < config.steps:
            self.checkpoint()
        if self.report.due:
            self._log()

    def _take_in(self, unrolls: list[Trajectory]) -> None:
        if self.recorder is not None:
            self.recorder.add(unrolls)
        for unroll in unrolls:
            self.window.add(unroll.episodes)
            if self.self_play is not None:
                self.self_play.add(unroll.episodes)

    def _snapshot(self) -> None:
        """The newest policy becomes an opponent too, when that is due."""
        if self.self_play is not None and self.self_play.due(self.rollout.steps):
            self.rollout.publish_opponent(*self.self_play.take(self.learner.frozen(self.rollout.steps)))

    def finish(self) -> Result:
        """The last evaluation, the last checkpoint, the result."""
        self.settle()
        steps = self.rollout.steps
        if self.config.eval_every and self.evaluated != steps:
            self._evaluate()
        self._take(self.evaluations.collect(True, self._signalled))
        if self.evaluations.pending:
            self._leave()
        self._log()
        path = self.checkpoint()
        if self.stopped == "return":
            self.keeper.save_best(self.learner.weights(steps), self.eval_return)
        result = Result(
            steps=steps,
            seconds=time.monotonic() - self._born,
            steps_per_second=self.report.speed(steps),
            episodes=self.window.count,
            train_return=self.window.return_mean,
            eval_return=self.eval_return,
            stopped=self.stopped or "steps",
            run=self.folder,
            checkpoint=path,
            restarts=self.restarts,
            fingerprint=checkpoint.fingerprint(self.learner.parts()),
        )
        self.console.finish(self.report.shares(self.learner, self.rollout))
        return result

    # --- checkpoints ---

    def checkpoint(self, blind: bool = False) -> Path:
        """Write the whole state; `blind` where actors cannot be asked: their streams will begin anew."""
        if not blind:
            self.settle()
        steps = self.rollout.steps
        feed, blocks = self.learner.feed.state()
        if self.recorder is not None:
            self.recorder.flush()
        rollout = self.rollout.state_without_actors() if blind else self.rollout.state()
        state = {
            "learner": self.learner.state(),
            "feed": feed,
            "recorded": self.recorder.files if self.recorder is not None else 0,
            "rollout": rollout,
            "window": self.window.state(),
            "evaluation": {
                "return": self.eval_return,
                "best": self.best,
                "good": self.good,
                "evaluated": self.evaluated,
                "pending": [
                    {"version": w.version, "step": w.step, "arrays": w.arrays} for w in self.evaluations.pending
                ],
            },
            "restarts": self.evaluations.restarts,
            "self_play": None if self.self_play is None else self.self_play.state(),
        }
        path = self.keeper.save(steps, self.learner.version, state, blocks, blind)
        self.metrics.flush()
        every = max(self.config.checkpoint_every, 1)
        self._next_checkpoint = (steps // every + 1) * every
        return path

    def _load(self, saved: Checkpoint) -> None:
        state, steps = saved.state, int(saved.meta["config"]["steps"])
        exact = self.rollout.load(state["rollout"])
        if not exact:
            self.console.note("not every stream could be brought back: those begin a new episode (exact: false)")
        self.rollout.publish(self.learner.weights(self.rollout.steps))
        self.window.load(state["window"])
        if self.self_play is not None:
            for place, snapshot in enumerate(self.self_play.load(state["self_play"])):
                self.rollout.publish_opponent(place, snapshot)
        evaluation = state["evaluation"]
        self.eval_return, self.best, self.good = evaluation["return"], evaluation["best"], int(evaluation["good"])
        self.evaluated = int(evaluation["evaluated"])
        self.evaluations.restarts = int(state["restarts"])
        for pending in evaluation["pending"]:
            self.evaluations.launch(Weights(int(pending["version"]), int(pending["step"]), pending["arrays"]))
        if self.good >= 2 and self.evaluated == self.rollout.steps and self.config.steps <= steps:
            self.stopped = "return"  # it was about to end

    def _schedule(self) -> None:
        steps, config = self.rollout.steps, self.config
        self._next_eval = (steps // max(config.eval_every, 1) + 1) * config.eval_every
        self._next_checkpoint = (steps // max(config.checkpoint_every, 1) + 1) * config.checkpoint_every

    # --- evaluations ---

    def _evaluate(self) -> None:
        steps = self.rollout.steps
        self.evaluated = steps
        self._next_eval = (steps // self.config.eval_every + 1) * self.config.eval_every
        self.evaluations.launch(self.learner.frozen(steps))

    def _take(self, done: list[tuple[Weights, list[Episode]]]) -> None:
        """Results, in the order of their steps."""
        for weights, episodes in done:
            returns = np.array([episode.ret for episode in episodes])
            lengths = np.array([episode.length for episode in episodes])
            self.eval_return = float(returns.mean())
            outcomes = {} if self.self_play is None else self_play.shares(episodes)
            self.metrics.log(
                weights.step,
                {
                    "eval/return_mean": self.eval_return,
                    "eval/return_std": float(returns.std()),
                    "eval/length_mean": float(lengths.mean()),
                    "eval/episodes": float(len(episodes)),
                    **team.logged("eval", self.spec, episodes),
                    **{f"eval/{name}": share for name, share in outcomes.items()},
                },
            )
            if self.best is None or self.eval_return > self.best:
                self.best = self.eval_return
                self.keeper.save_best(weights, self.eval_return)
            goal = self.config.stop_return
            if goal is not None:
                self.good = self.good + 1 if self.eval_return >= goal else 0
                if self.good >= 2 and weights.step == self.rollout.steps:
                    self.stopped = "return"

    # --- logging ---

    @property
    def restarts(self) -> int:
        return self.rollout.restarts + self.evaluations.restarts

    def _log(self) -> None:
        more = team.logged("rollout", self.spec, self.window.episodes)
        if self.self_play is not None:
            more |= self.self_play.metrics()
        self.report.log(self.learner, self.rollout, self.window, self.eval_return, self.restarts, more)

    def _restarted(self, lost: ActorLost) -> None:
        last = lost.detail.strip().splitlines()
        text = last[0] if len(last) == 1 else f"{last[0].rstrip(':')}: {last[-1]}"
        self.console.note(f"{lost.who} was lost and is replaced: {text}")

    # --- the beginning and the end ---

    def _asked(self, again: bool) -> None:
        """Stop after the update under way; asked again, or after a while, give up the unrolls under way."""
        deadline = 0.0 if again else time.monotonic() + GRACE_SECONDS
        self.rollout.deadline = min(self.rollout.deadline, deadline)

    def _signalled(self) -> bool:
        return self.signals.signum is not None

    def _leave(self) -> NoReturn:
        path = self.checkpoint()
        raise self.interrupted(f"; checkpoint {path}")

    def interrupted(self, text: str) -> Interrupted:
        """The exception of a run that a signal ended."""
        return Interrupted(self.signals.signum or signal.SIGINT, f"interrupted{text}")

    def fail(self, failed: Exception, blind: bool) -> RunFailed:
        """The checkpoint of a run that cannot go on, and the exception to raise."""
        try:
            path = self.checkpoint(blind)
        except (WorkerFailed, ClusterLost, LearnerLost, InterruptedError):  # now the actors cannot be asked either
            return self.fail(failed, blind=True)
        except RunFailed as second:  # the disk is full too
            return RunFailed(f"{failed}\nno checkpoint: {second}")
        return RunFailed(f"{failed}\ncheckpoint {path}")

    def close(self) -> None:
        """End all workers, close all files."""
        self._parts.close()


@contextlib.contextmanager
def open_run(config: RunConfig, resume: str | Path | None = None) -> Iterator[Run]:
    """A run that is closed whatever happens; failures and signals leave a checkpoint behind."""
    with Signals() as signals:
        try:
            run = Run(config, None if resume is None else Path(resume), signals)
        except (WorkerFailed, ActorLost, ClusterLost, LearnerLost) as failed:
            what = "started" if resume is None else "resumed; its checkpoints are as they were"
            raise RunFailed(f"it could not be {what}: {failed}") from None
        except Stop as stop:
            raise Interrupted(stop.signum, "interrupted while it started") from None
        try:
            yield run
        except (WorkerFailed, ActorLost, ClusterLost, LearnerLost, NoStack) as failed:
            raise run.fail(failed, blind=True) from None
        except EvaluationFailed as failed:
            raise run.fail(failed, blind=False) from None
        except InterruptedError:
            path = run.checkpoint(blind=True)
            raise run.interrupted(f"; checkpoint {path} (exact: false)") from None
        finally:
            run.close()
