"""A search: proposes trials, runs their parts as jobs, decides which continue, and confirms the winner.

With `deterministic`, parts are begun in rounds of a fixed size, and the results of a round are taken together and in
order: the trials, their values and the winner depend on the seed only, not on the number of processes. Otherwise a part
begins as soon as there is room.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path
from typing import Any

from rltrain.config.run_config import RunConfig
from rltrain.errors import ClusterGone, ConfigError, JobLost, RunFailed
from rltrain.jobs.job import Job, Jobs
from rltrain.jobs.resources import Request
from rltrain.storage.files import one_line
from rltrain.tuning.journal import Event, Journal
from rltrain.tuning.options import EVALUATIONS, Options, rungs_of
from rltrain.tuning.samplers import GridSampler, make_sampler
from rltrain.tuning.space import Point, Space
from rltrain.tuning.state import Part, State, Trial
from rltrain.tuning.trial import PartResult, folder_in, run_part

TRIALS = "trials"  # in the folder of a search
CONFIRMATION = 10_000  # the seeds that confirm begin so far after those of the search


class Search:
    """A search in its folder. It continues from the folder's journal.

    Args:
        config: of all runs, apart from the settings of the space, seeds and folders.
        jobs:   runs the parts of trials.
        watch:  is called after each event, for a live view.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        space: Space,
        options: Options,
        jobs: Jobs,
        watch: Callable[[Search], None] = lambda _: None,
    ) -> None:
        self.folder, self.space, self.options, self.jobs, self._watch = folder, space, options, jobs, watch
        every = max(config.steps // EVALUATIONS, 1)
        self.config = config.model_copy(
            update={"eval_every": every, "checkpoint_every": every, "keep": 1, "quiet": True, "json_line": False}
        )
        self.rungs = rungs_of(config.steps, options)
        self.state = State(self.rungs, options.eta, options.trials)
        self.began = time.monotonic()
        self.running: dict[Job, Any] = {}
        self._sampler = make_sampler(options.sampler, space, config.seed, folder)
        if isinstance(self._sampler, GridSampler):
            self.state.count = min(options.trials, len(self._sampler.points))
        self.journal = Journal(folder)
        for event in self.journal.events:
            self.state.apply(event)
            if event["event"] == "trial":
                self._sampler.proposed(event["number"], self.state.trials[-1].point)
            self._tell_sampler(event)

    @property
    def parallel(self) -> int:
        """Parts that run at a time."""
        return self.options.parallel or max(self.jobs.room(self._request), 1)

    @property
    def _request(self) -> Request:
        return Request.of(self.options.cores, self.options.gpus, self.options.memory)

    @property
    def seconds(self) -> float:
        """Since the search was started or resumed."""
        return time.monotonic() - self.began

    def run(self) -> Trial:
        """The whole search. Returns the winner; ends all its processes in any case.

        Raises:
            RunFailed: all trials failed, or the journal cannot be written.
        """
        try:
            self._search()
            winner = self.state.winner
            if winner is None:
                failed = [trial for trial in self.state.trials if trial.error]
                raise RunFailed(f"all {len(failed)} trials failed; the first one: {failed[0].error}" if failed
                                else "no trial was finished")  # fmt: skip
            if not self.out_of_time:
                self._confirm(winner)
            return winner
        finally:
            for job in self.running:
                job.cancel()
            self.running.clear()
            self.journal.close()

    @property
    def out_of_time(self) -> bool:
        most = self.options.max_seconds
        return most is not None and self.seconds >= most

    # -- which part runs next

    def _next(self, begun: set[Part]) -> Part | None:
        """A part that can run now and is not among those that were begun."""
        state = self.state
        for part in state.pending():
            if part not in begun:
                return part
        promoted = state.promotable(last=len(state.trials) >= state.count and not begun)
        if promoted is not None:
            trial, rung = promoted
            self._add({"event": "promote", "number": trial.number, "rung": rung})
            return self._next(begun)
        if len(state.trials) >= state.count:
            return None
        number = len(state.trials)
        point = self._sampler.propose(number)
        try:
            self.space.configure(self.config, point)
        except ConfigError as error:  # a combination that no corner of the space showed
            self._add({"event": "trial", "number": number, "point": point})
            self._finish([self._failure(Part(number, 0, 0), str(error))])
            return self._next(begun)
        self._add({"event": "trial", "number": number, "point": point})
        return Part(number, 0, 0)

    def _search(self) -> None:
        """Run all trials."""
        self._rounds() if self.options.deterministic else self._without_rounds()

    def _without_rounds(self) -> None:
        while True:
            while len(self.running) < self.parallel and not self.out_of_time:
                part = self._next(set(self.running.values()))
                if part is None:
                    break
                self.running[self._submit(part)] = part
            if not self.running:
                return
            for job in self._wait():
                self._finish([self._result(self.running.pop(job), job)])

    def _rounds(self) -> None:
        while not self.out_of_time:
            parts: list[Part] = []
            while len(parts) < self.options.round:
                part = self._next(set(parts))
                if part is None:
                    break
                parts.append(part)
            if not parts:
                return
            self._run_all(sorted(parts))  # a resumed search finds the parts of its round in another order

    def _run_all(self, parts: Sequence[Part]) -> None:
        """Run these parts, and write their results in the order of the parts."""
        waiting, results = list(parts), dict[Part, Event]()
        while waiting or self.running:
            while waiting and len(self.running) < self.parallel:
                part = waiting.pop(0)
                self.running[self._submit(part)] = part
            for job in self._wait():
                part = self.running.pop(job)
                results[part] = self._result(part, job)
        self._finish([results[part] for part in parts])

    def _wait(self) -> list[Job]:
        """The parts that have ended, in the order in which they began; none if there is room for more than before."""
        done: list[Job] = []
        room = self.parallel
        while not done and self.parallel <= room:
            wait(self.running, 1.0, FIRST_COMPLETED)
            done = [job for job in self.running if job.done()]
            self._watch(self)
        return done

    # -- one part

    def config_of(self, point: Point, seed: int, out: Path) -> RunConfig:
        """The configuration of a run of the search."""
        config = self.space.configure(self.config, point) if point else self.config
        return config.model_copy(update={"seed": seed, "out": str(out)})

    def out_of(self, part: Part) -> Path:
        """The folder that contains the run of a part."""
        return self.folder / TRIALS / f"{part.trial:04d}-seed{part.seed}"

    def _submit(self, part: Part) -> Job:
        until = self.rungs[part.rung].steps
        trial = self.state.trials[part.trial]
        config = self.config_of(trial.point, self.seed_of(part), self.out_of(part))
        return self._start(run_part, config, until if until < config.steps else None)

    def seed_of(self, part: Part) -> int:
        """The seed of the run of a part."""
        return self.config.seed + part.seed

    def _start(self, function: Callable[..., PartResult], *args: Any) -> Job:
        payload = self.jobs.dumps(functools.partial(function, *args))
        return self.jobs.submit(payload, ((), {}), self._request, self.options.retries)

    def _result_of(self, job: Job, out: Path) -> PartResult:
        """The result of a part; a part whose process was lost failed. A lost cluster ends the search."""
        try:
            result: PartResult = job.result()
        except ClusterGone as gone:
            raise RunFailed(f"{gone}; continue with rltune --resume {self.folder}") from None
        except JobLost as lost:
            return PartResult(None, 0, 0.0, str(folder_in(out) or out), error=one_line(lost))
        return result

    def _result(self, part: Part, job: Job) -> Event:
        result = self._result_of(job, self.out_of(part))
        return {"number": part.trial, "rung": part.rung, "seed": part.seed, **self._as_json(result)}

    def _as_json(self, result: PartResult) -> Event:
        """For the journal: the folder of the run is inside that of the search."""
        run = Path(result.run)
        return {**result._asdict(), "run": str(run.relative_to(self.folder)) if run.is_absolute() else result.run}

    def _failure(self, part: Part, error: str) -> Event:
        result = PartResult(None, 0, 0.0, "", error=error)
        return {"number": part.trial, "rung": part.rung, "seed": part.seed, **result._asdict()}

    def _finish(self, results: list[Event]) -> None:
        """Take the results of parts, all with one line of the journal."""
        self._add({"event": "results", "results": results})

    def _add(self, event: Event) -> None:
        self.journal.add(event)
        self.state.apply(event)
        self._tell_sampler(event)
        self._watch(self)

    def _tell_sampler(self, event: Event) -> None:
        for result in event.get("results", ()):
            rung = self.rungs[result["rung"]]
            if result["seed"] == 0 and rung.seeds == 1:
                point = self.state.trials[result["number"]].point
                full = rung.steps >= self.config.steps
                self._sampler.tell(result["number"], point, rung.steps, result["value"], full)

    # -- confirmation

    def confirming_seed(self, number: int) -> int:
        """The seed of run `number` of those that confirm the winner."""
        return self.config.seed + CONFIRMATION + number

    def _confirmation(self, winner: Trial, seed: int, out: Path) -> Job:
        """A complete run of the winner's settings."""
        return self._start(run_part, self.config_of(winner.point, seed, out), None)

    def _confirm(self, winner: Trial) -> None:
        """Run the winner and the default settings with seeds that no trial has used."""
        tasks = [
            (who, seed)
            for seed in range(self.options.confirm)
            for who in ("winner", "default")
            if seed not in self.state.confirmed[who]
        ]
        while tasks or self.running:
            while tasks and len(self.running) < self.parallel:
                who, seed = tasks.pop(0)
                number = self.confirming_seed(seed)
                out = self.folder / TRIALS / f"{who}-seed{number}"
                if who == "winner":
                    job = self._confirmation(winner, number, out)
                else:
                    job = self._start(run_part, self.config_of({}, number, out), None)
                self.running[job] = who, seed, out
            for job in self._wait():
                who, seed, out = self.running.pop(job)
                result = self._result_of(job, out)
                self._add({"event": "confirmed", "who": who, "seed": seed, **self._as_json(result)})
