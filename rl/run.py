"""One training run: its parts, what happens between two updates (log, evaluate, checkpoint, stop), its end."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rltrain.algorithms.networks import products
from rltrain.callbacks.dispatch import CallbackFailed, Callbacks
from rltrain.config.run_config import RunConfig
from rltrain.errors import ConfigError, Interrupted, LearnerLost, RunFailed, Stop
from rltrain.evaluation.background import BackgroundEvaluation, Evaluated, EvaluationFailed
from rltrain.evaluation.multi_agent import return_metrics
from rltrain.evaluation.other_policies import open_others
from rltrain.evaluation.self_play_ratings import SelfPlay
from rltrain.learner.algorithm import check_size, make_algorithm
from rltrain.learner.changes import checked_changes
from rltrain.reporting.console import Console, resume_command
from rltrain.reporting.divergence import Divergence
from rltrain.reporting.metrics import Metrics, Window, info_metrics
from rltrain.reporting.report import Report, Result
from rltrain.rollout.replay.ring import NoStack, row_bytes
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.supervision import WorkerFailed
from rltrain.rollout.types import Trajectory
from rltrain.rollout.workers import in_process
from rltrain.rollout.workers.handle import ActorLost, ClusterLost
from rltrain.setup.cluster import open_cluster
from rltrain.setup.environment import open_environment, settled
from rltrain.setup.initial_networks import open_initial
from rltrain.setup.learner import open_learner
from rltrain.setup.replay import open_data
from rltrain.setup.rollout import open_actors, rollout_spec
from rltrain.setup.run_folder import CHECKPOINTS, Saved, open_folder, open_recorder, open_saved
from rltrain.setup.task_process import TaskProcess
from rltrain.storage.checkpoint import fingerprint
from rltrain.storage.files import one_line, writing
from rltrain.storage.retention import CheckpointWriter
from rltrain.storage.run_folder import RUN_FILE, write_run_file
from rltrain.system.signals import Signals, TooLate, alarm_at
from rltrain.system.time_limit import TimeLimit
from rltrain.system.torch_setup import quiet_torch

GRACE_SECONDS = 10.0  # that a stopped run waits for the unrolls under way before it gives them up

Part = TypeVar("Part")


class Run:
    """The parts of a run, as the training loop uses them. Created by `open_run`."""

    def __init__(
        self,
        config: RunConfig,
        resume: Path | None,
        look: TaskProcess | None,
        limit: TimeLimit,
        signals: Signals,
        closing: ExitStack,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.signals, self.limit = signals, limit
        self._out_of_time = self._actors_lost = False
        notes: list[str] = []

        def add(created: tuple[Part, list[str]]) -> Part:
            notes.extend(created[1])
            return created[0]

        quiet_torch(config.learner_threads)
        self.console = Console(json=config.json_line, quiet=config.quiet)
        closing.callback(self.console.finish, "")
        saved = add(open_saved(resume, closing))
        _refuse_fewer_steps(config, saved)
        self.environment = environment = add(open_environment(config, saved, look))
        self.spec = spec = environment.spec
        if saved.folder is None:
            config = add(settled(config, environment))
        config, initial, found = open_initial(config, saved.checkpoint is None)
        config, self._others = add(open_others(config, spec, saved))
        self._has_initial = initial is not None or (bool(self._others) and saved.checkpoint is None)
        self.config = config
        notes += [*found, *products.use(config.products), *check_size(config, spec)]
        algorithm = make_algorithm(config, spec)
        cluster = open_cluster(config, self.console.note, closing)
        others = [(other.config, other.arrays) for other in self._others]
        plan = rollout_spec(config, environment, algorithm.plan, cluster, others)
        self._row_bytes = row_bytes(spec, algorithm.plan.core_size) if isinstance(algorithm.plan, ReplayPlan) else 0
        self._saved_steps = saved.steps_done
        data = add(open_data(config, spec, algorithm.plan, saved.folder))
        self.recorder, mark = open_recorder(config, spec, saved)
        self.folder = open_folder(config, spec, mark, saved, closing)
        self._mark = mark
        self.checkpoints = CheckpointWriter(
            self.folder / CHECKPOINTS, config, spec, environment.restore_method, saved.checkpoint
        )
        self.learner = add(open_learner(config, spec, algorithm, data, self.folder, saved, initial, closing))
        on_restart = self.console.note_restart
        self.rollout = add(open_actors(config, plan, self.learner, cluster, saved, on_restart, closing))
        self.callbacks = Callbacks(callbacks, self)
        self.evaluation = BackgroundEvaluation(
            config,
            environment,
            self.checkpoints,
            limit,
            on_restart,
            self.console.note,
            closing,
            self._evaluated,
            data.reference(config, spec),
        )
        self.window = Window()
        size = config.pool_size if config.has_opponents else 0
        self.self_play = SelfPlay(size, config.pool_every, len(self._others), config.keeps_pool)
        self._lines: int | None = None
        if saved.restore(lambda state: notes.extend(self._load(state, saved))) and config.steps > saved.steps:
            self.evaluation.goal_reached, self.callbacks.requests.stop = False, None  # the run was extended
        self.resumed_at = None if saved.checkpoint is None else self.rollout.steps
        self._finished: Path | None = None  # the last checkpoint, if the run had ended before it was resumed, or pauses
        if saved.checkpoint is not None and self.stopped is not None and self._is_evaluated:
            self._finished = saved.checkpoint.path
            more = f"{resume_command(self.folder)} --steps {2 * config.steps}"
            notes.append(f"this run is finished; a larger --steps continues it, for example: {more}")
        if saved.checkpoint is not None and self._pauses and not self.evaluation.pending:
            self._finished = saved.checkpoint.path
            notes.append("this run has reached --pause-at")
        self._out_of_time = self._finished is None and limit.reached(self._evaluates)
        if not self.self_play.begun:
            self._add_opponent()
        self.learner.join()
        lines = None if self._finished else self._lines
        self.metrics = Metrics(self.folder, self.rollout.steps, lines, config.flat())
        closing.callback(self.metrics.close)
        if (config.wandb or config.mlflow) and self._finished is None:
            from rltrain.reporting.send import Sender

            targets = {"wandb": config.wandb, "mlflow": config.mlflow}
            closing.enter_context(Sender(self.folder, targets, self.console.note, limit.end))
        divergence = Divergence(config.settings)
        self.report = Report(
            config.steps,
            self.learner,
            self.rollout,
            self.window,
            self.metrics,
            self.console,
            divergence,
            config.log_info,
        )
        if saved.folder is not None:
            write_run_file(self.folder, config, spec, mark)  # last: a resume that fails leaves the file as it was
        self.console.start(config, config.preset_file, notes, self.folder)
        self.signals.ask = self._set_deadline
        limit.begin_round()
        self.rollout.deadline = limit.end

    @property
    def progress(self) -> float:
        """Fraction of the run that is done, for schedules."""
        return min(self.rollout.steps / self.config.steps, 1.0)

    @property
    def overlaps(self) -> bool:
        """True if actors act while the learner learns; actors in this process cannot."""
        return bool(self.learner.algorithm.plan.overlap) and self.config.backend != "local"

    @property
    def restarts(self) -> int:
        return self.rollout.restarts + self.evaluation.restarts

    @property
    def stopped(self) -> str | None:
        """Why the run ends: return, seconds, steps, or a callback's reason; None while it continues."""
        if self.evaluation.goal_reached:
            return "return"
        if self.callbacks.requests.stop is not None:
            return self.callbacks.requests.stop
        if self._finished is not None and self._pauses:
            return "pause"
        if self.rollout.steps >= self.config.steps:
            return "steps"
        return "seconds" if self._out_of_time else None

    def tick(self, unrolls: list[Trajectory]) -> None:
        """After an update: log, evaluate and write a checkpoint if due; check for reasons to stop."""
        config, steps, requests = self.config, self.rollout.steps, self.callbacks.requests
        self.limit.note_round()
        self._learned(unrolls)
        self._add_opponent()
        self.limit.unsaved = self._row_bytes * max(steps - self._saved_steps, 0)
        if steps < config.steps and (self.evaluation.due(steps) or requests.evaluate):
            requests.evaluate = False
            self.drain()
            self.evaluation.launch(self.learner.frozen(self.rollout.steps))
        self.collect(wait=self.waits)
        if self.signals.received():
            raise self.interrupted()
        if steps < config.steps and (self.checkpoints.due(steps) or requests.checkpoint):
            if self._pauses:
                self.collect(wait=True)  # so that the checkpoint has the results of all evaluations
                if self.signals.received():
                    raise self.interrupted()
            path = self.checkpoint()
            self._finished = path if self._pauses else None
            self.callbacks.call("on_checkpoint", path)
        if self.report.due:
            self._report(line=self.metrics.due)
        self._out_of_time = self.limit.reached(self._evaluates)
        self.limit.begin_round()

    @contextmanager
    def rounds(self) -> Iterator[None]:
        """In the block the run trains. If its time is over before the unrolls under way arrive, they are given up."""
        try:
            yield
        except InterruptedError:
            if self.signals.received():
                raise
            self._out_of_time = self._actors_lost = True
            self.console.note("the unrolls under way were given up at the end of --max-seconds (exact: false)")

    def begin(self, resumed: bool) -> None:
        """Before the first step: call callbacks, and finish what a signal interrupted at the last checkpoint."""
        if self._finished is not None:
            return
        self.callbacks.begin(resumed)
        if self._has_initial:
            self.checkpoint()  # a resume does not need the other run
        if self.waits:
            self.collect(wait=True)
            if self.callbacks.requests.checkpoint and self.rollout.steps < self.config.steps:
                self.callbacks.call("on_checkpoint", self.checkpoint())

    @property
    def waits(self) -> bool:
        """True if the run waits for each evaluation, since what it does next depends on the result."""
        return self.config.stop_return is not None or self.callbacks.wants("on_evaluation")

    def window_metrics(self) -> dict[str, float]:
        """Metrics of the last training episodes."""
        window = self.window
        values = {"rollout/episodes": float(window.count), **return_metrics("rollout", self.spec, window.episodes)}
        values |= info_metrics("rollout", window.episodes)
        if window.return_mean is not None and window.length_mean is not None:
            values |= {"rollout/return_mean": window.return_mean, "rollout/length_mean": window.length_mean}
        return values

    def collect(self, wait: bool) -> None:
        """Take the results of evaluations; with `wait`, of all that are under way, unless a signal arrives or the time
        is over."""
        self.evaluation.collect(self.rollout.steps, self.metrics, wait, self._waits_no_longer)

    def _waits_no_longer(self) -> bool:
        return self.signals.received() or time.monotonic() >= self.limit.evaluations_end

    def drain(self) -> None:
        """Wait for the unrolls under way and learn from them as usual. Afterwards no actor acts."""
        progress = self.progress
        unrolls = self.rollout.drain()
        if unrolls:
            self.learner.step(unrolls, progress)
            self.rollout.publish(self.learner.weights(self.rollout.steps))
            self._learned(unrolls)

    def finish(self) -> Result:
        """The last evaluation, the last checkpoint, the result."""
        path = self._finished
        if path is None:
            requests = self.callbacks.requests
            reason = requests.stop
            with self.rounds():
                if not self._actors_lost:
                    self.drain()
            seconds, speed = self.report.seconds, self.report.speed
            self._evaluate_last(requests.evaluate)
            self._report(line=True)
            requests.stop, requests.evaluate = reason, False  # a callback's wish to stop comes too late now
            path = self._checkpoint_in_time()
            self.callbacks.call("on_checkpoint", path)
            self._end_callbacks(self.stopped or "steps", path)
            returns = {"train_return": self.window.return_mean, "eval_return": self.evaluation.return_mean}
            self.metrics.finish(self.rollout.steps, returns)
        else:
            seconds, speed = self.report.seconds, self.report.speed
        self.report.finish()
        return Result(
            steps=self.rollout.steps,
            seconds=self.limit.elapsed,
            train_seconds=seconds,
            steps_per_second=speed,
            episodes=self.window.count,
            train_return=self.window.return_mean,
            eval_return=self.evaluation.return_mean,
            stopped=self.stopped or "steps",
            run=self.folder,
            checkpoint=path,
            restarts=self.restarts,
            fingerprint=fingerprint(self.learner.parts()),
        )

    def _evaluate_last(self, requested: bool) -> None:
        """Evaluate the last policy, as far as the time allows. A resume repeats an evaluation that was cut off."""
        config, steps, limit = self.config, self.rollout.steps, self.limit
        if (config.eval_every or requested) and self.evaluation.launched_step != steps:
            if limit.allows_evaluation:
                self.evaluation.launch(self.learner.frozen(steps))
            else:
                self.console.note("there is no evaluation at the end: --max-seconds leaves no time for it")
        self.collect(wait=True)
        if self.evaluation.pending and self.signals.received():
            raise self.interrupted(self._actors_lost)
        if self.evaluation.pending:
            self.console.note("an evaluation was cut off at the end of --max-seconds; --resume makes it again")

    def _checkpoint_in_time(self) -> Path:
        """The last checkpoint; without the state of the actors if their answers do not arrive in time."""
        path = None
        with self.rounds():
            path = self.checkpoint(self._actors_lost)
        return path or self.checkpoint(actors_lost=True)

    @property
    def _evaluates(self) -> bool:
        """True if an evaluation follows the last round."""
        return self.config.eval_every > 0

    @property
    def _pauses(self) -> bool:
        """True if the run ends at the checkpoint of this step, or at the next one, since it has reached `pause_at`."""
        at = self.config.pause_at
        return at is not None and at <= self.rollout.steps < self.config.steps

    @property
    def _is_evaluated(self) -> bool:
        """True if the result of the last evaluation of a run that ends now is known."""
        last = not self.config.eval_every or self.evaluation.launched_step == self.rollout.steps
        return last and not self.evaluation.pending

    def _learned(self, unrolls: list[Trajectory]) -> None:
        """After the updates of a delivery: record it, count its episodes, call callbacks."""
        if self.recorder is not None:
            self.recorder.add(unrolls, self.learner.state_values)
        for unroll in unrolls:
            self.window.add(unroll.episodes)
            self.self_play.add(unroll.episodes, self.rollout.steps)
        if self.callbacks.wants("on_episode"):
            for unroll in unrolls:
                for episode in unroll.episodes:
                    self.callbacks.call("on_episode", episode)
        if self.callbacks.wants("on_update"):
            self.callbacks.call("on_update")

    def _evaluated(self, result: Evaluated) -> None:
        self.callbacks.call("on_evaluation", result)

    def _add_opponent(self) -> None:
        """Add the newest policy to the pool of opponents when that is due."""
        if self.self_play.due(self.rollout.steps):
            taken = self.self_play.take(self.learner.frozen(self.rollout.steps))
            if taken is not None:
                self.rollout.publish_opponent(*taken)

    def _report(self, line: bool) -> None:
        """Update the progress line and, with `line`, write a line of metrics."""
        if line:
            logged = self.callbacks.requests.logged
            more = logged | self.window_metrics() | self.self_play.metrics()
            values = self.report.log(self.restarts, more)
            logged.clear()
            self.callbacks.call("on_log", values)
        self.report.show(self.evaluation.return_mean, self.restarts)

    def checkpoint(self, actors_lost: bool = False) -> Path:
        """Write the complete state. With `actors_lost` every stream starts a new episode on resume."""
        if not actors_lost:
            self.drain()
        requests = self.callbacks.requests
        is_due = self.checkpoints.due(self.rollout.steps) or requests.checkpoint
        requests.checkpoint = False
        callbacks = self.callbacks.state(repeat=is_due)
        feed, blocks = self.learner.feed.state()
        if self.recorder is not None:
            self.recorder.flush()
        state = {
            "learner": self.learner.state(),
            "feed": feed,
            "recorded": self.recorder.files if self.recorder is not None else 0,
            "rollout": self.rollout.state_without_actors() if actors_lost else self.rollout.state(),
            "window": self.window.state(),
            **self.evaluation.state(),
            "self_play": self.self_play.state(),
            **({"opponents": [other.state() for other in self._others]} if self._others else {}),
            "lines": self.metrics.lines,
            **({"callbacks": callbacks} if callbacks else {}),
        }
        if not (self.folder / RUN_FILE).exists():
            self.console.note(f"{self.folder / RUN_FILE} was removed: it is written again")
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            write_run_file(self.folder, self.config, self.spec, self._mark)
        with self.limit.checkpoint():
            path = self.checkpoints.save(self.rollout.steps, self.learner.version, state, blocks, actors_lost)
        self._saved_steps, self.limit.unsaved = self.rollout.steps, 0
        self.metrics.flush()
        return path

    def _load(self, state: dict[str, Any], saved: Saved) -> list[str]:
        """Restore what happens between updates; the learner and the rollout are restored already. Returns notes."""
        self.window.load(state["window"])
        for place, snapshot in enumerate(self.self_play.load(state["self_play"])):
            self.rollout.publish_opponent(place, snapshot)
        self.evaluation.load(state, self.rollout.steps)
        self._lines = state.get("lines")  # not in version 0.1
        assert saved.checkpoint is not None
        notes = self.callbacks.load(state.get("callbacks", {}), saved.checkpoint.path)
        if self.callbacks.requests.changes:
            self.learner.change(checked_changes(self.config.settings, self.callbacks.requests.changes))
        return notes

    def _set_deadline(self, again: bool) -> None:
        """After a signal: give up the unrolls under way after some seconds; at once if it came again."""
        deadline = 0.0 if again else time.monotonic() + GRACE_SECONDS
        self.rollout.deadline = min(self.rollout.deadline, deadline)
        if again:
            in_process.give_up()

    def interrupted(self, actors_lost: bool = False) -> Interrupted:
        """Write a checkpoint of a run that was ended by a signal; returns the exception to raise."""
        path, exact = self._last_checkpoint(actors_lost), " (exact: false)" if actors_lost else ""
        text = f"interrupted; checkpoint {path}{exact}\nto continue: {resume_command(self.folder)}"
        return Interrupted(self.signals.signum or signal.SIGINT, text)

    def failed(self, cause: Exception, actors_lost: bool) -> RunFailed:
        """Write a checkpoint of a run that cannot continue; returns the exception to raise."""
        try:
            path = self._last_checkpoint(actors_lost)
        except CallbackFailed as second:
            return self.failed(RunFailed(f"{cause}\n{second}"), actors_lost)
        except (WorkerFailed, ClusterLost, LearnerLost, InterruptedError):  # the actors were lost meanwhile
            return self.failed(cause, actors_lost=True)
        except RunFailed as second:  # for example, the disk is full as well
            return RunFailed(f"{cause}\nno checkpoint: {second}")
        return RunFailed(f"{cause}\ncheckpoint {path}\nto continue: {resume_command(self.folder)}")

    def _last_checkpoint(self, actors_lost: bool) -> Path:
        """The checkpoint of a run that ends early. A callback cannot prevent it."""
        path = self.checkpoint(actors_lost)
        try:
            self.callbacks.call("on_checkpoint", path)
        except CallbackFailed as failed:
            self.console.note(str(failed))
        return path

    def _end_callbacks(self, why: str, path: Path | None = None) -> None:
        """Call `on_end`, and write what it logs.

        Args:
            path: the last checkpoint of a run that ends as it should; None: the run ends early.

        Raises:
            RunFailed: a callback raised an exception. If the run ends early, that is a note only.
        """
        text = self.callbacks.end(why)
        with contextlib.suppress(*(() if path is not None else (RunFailed,))):  # the disk may be full
            if logged := self.callbacks.requests.logged:
                self.metrics.log(self.rollout.steps, logged)
        if text is not None and path is not None:
            raise RunFailed(f"{text}\ncheckpoint {path}")
        if text is not None:
            self.console.note(text)


def _refuse_fewer_steps(config: RunConfig, saved: Saved) -> None:
    """ConfigError if a resume asks for fewer steps than the run has made; it may have made a few more than asked."""
    done = saved.steps_done
    if config.steps < done and config.steps != saved.steps:
        raise ConfigError(f"--steps {config.steps}: the run has made {done} steps already; ask for more of them")


@contextmanager
def open_run(
    config: RunConfig,
    resume: str | Path | None = None,
    look: TaskProcess | None = None,
    callbacks: Sequence[Any] = (),
    limit: TimeLimit | None = None,
) -> Iterator[Run]:
    """A run whose parts are closed in any case; failures and signals leave a checkpoint behind.

    Args:
        look:      the examination of the environment, if it has already begun.
        callbacks: objects with the hooks of `rltrain.callbacks.callback.Callback`.
        limit:     the time of the run, if it has already begun.
    """
    limit = limit or TimeLimit(config.max_seconds)
    with Signals() as signals, ExitStack() as closing:
        try:
            with alarm_at(limit.end):
                folder = None if resume is None else Path(resume).absolute()
                run = Run(config, folder, look, limit, signals, closing, callbacks)
        except (WorkerFailed, ActorLost, ClusterLost, LearnerLost) as failed:
            what = "started" if resume is None else "resumed; its checkpoints are unchanged"
            raise RunFailed(f"it could not be {what}: {failed}") from None
        except MemoryError as error:
            raise ConfigError(
                f"the run does not fit into memory: {one_line(error)}; ask for smaller settings"
            ) from None
        except TooLate:
            kept = "no checkpoint was written" if resume is None else "its checkpoints are unchanged"
            raise RunFailed(f"it did not start within --max-seconds {config.max_seconds:g}; {kept}") from None
        except Stop as stop:
            kept = "no checkpoint was written" if resume is None else "its checkpoints are unchanged"
            raise Interrupted(stop.signum, f"interrupted while it started; {kept}") from None
        try:
            with _endings(run):
                run.begin(resumed=resume is not None)
                yield run
        except BaseException as ending:
            run._end_callbacks("interrupted" if isinstance(ending, Interrupted) else "failed")
            raise


@contextmanager
def _endings(run: Run) -> Iterator[None]:
    """Turns what ends a run early into RunFailed and Interrupted, after a checkpoint was written."""
    try:
        yield
    except (WorkerFailed, ActorLost, ClusterLost, LearnerLost, NoStack) as failed:
        raise run.failed(failed, actors_lost=True) from None
    except CallbackFailed as failed:
        if run.resumed_at == run.rollout.steps:
            raise RunFailed(f"{failed}\nthe checkpoints of the run are unchanged") from failed.__cause__
        raise run.failed(failed, actors_lost=False) from failed.__cause__
    except EvaluationFailed as failed:
        raise run.failed(failed, actors_lost=False) from None
    except InterruptedError:
        try:
            ending: Interrupted | RunFailed = run.interrupted(actors_lost=True)
        except CallbackFailed as second:
            ending = run.failed(second, actors_lost=True)
        raise ending from None
