"""What a search knows: its trials, their values at each rung, and which trial continues. It follows from the journal.

A rung is a number of steps and of seeds. Every trial begins on the first rung with one seed. Of the trials that have
finished a rung, the best share of 1/eta continues to the next one (asynchronous successive halving, Li et al. 2020). On
the last rung a trial is run with all seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from rltrain.tuning.journal import Event
from rltrain.tuning.options import Rung
from rltrain.tuning.space import Point


class Part(NamedTuple):
    """A part of a trial: to this rung, with this seed."""

    trial: int
    rung: int
    seed: int  # its number, from 0


@dataclass
class Trial:
    """A point of the space, and what its runs have reached."""

    number: int
    point: Point
    rung: int = 0  # the one to which it runs, or at which it waits
    values: dict[tuple[int, int], float] = field(default_factory=dict)  # by rung and seed
    runs: dict[int, str] = field(default_factory=dict)  # folder of the run, by seed
    seconds: dict[int, float] = field(default_factory=dict)  # by seed
    steps: dict[int, int] = field(default_factory=dict)  # by seed
    fingerprints: dict[int, str] = field(default_factory=dict)  # by seed
    error: str = ""  # one line, if it failed
    # of a member of a population:
    home: str = ""  # folder that contains its run, after it has taken that of another member
    root: int = 0  # the member whose run it was at the start
    lineage: list[tuple[int, Point]] = field(default_factory=list)  # rung from which each point holds

    def value(self, rung: int) -> float | None:
        """The mean over the seeds of a rung; None if some are missing."""
        values = self.seeds_at(rung)
        return sum(values) / len(values) if values else None

    def seeds_at(self, rung: int) -> list[float]:
        return [value for (at, _), value in sorted(self.values.items()) if at == rung]


def _point(data: Event) -> Point:
    """A point as the journal has it: with tuples in place of lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


class State:
    """The trials of a search."""

    def __init__(self, rungs: list[Rung], eta: int, trials: int) -> None:
        self.rungs, self.eta, self.count = rungs, eta, trials
        self.trials: list[Trial] = []
        self.confirmed: dict[str, dict[int, Event]] = {"winner": {}, "default": {}}

    # -- events

    def apply(self, event: Event) -> None:
        """Change the state by an event of the journal."""
        kind = event["event"]
        if kind == "trial":
            number, point = event["number"], _point(event["point"])
            self.trials.append(Trial(number, point, root=number, lineage=[(0, point)]))
        elif kind == "promote":
            self.trials[event["number"]].rung = event["rung"]
        elif kind == "results":
            for result in event["results"]:
                self._add(result)
        elif kind == "generation":
            self._exploit(event["rung"], event["exploits"])
        elif kind == "confirmed":
            self.confirmed[event["who"]][event["seed"]] = event

    def _add(self, result: Event) -> None:
        trial, rung, seed = self.trials[result["number"]], result["rung"], result["seed"]
        trial.runs[seed], trial.seconds[seed], trial.steps[seed] = result["run"], result["seconds"], result["steps"]
        trial.fingerprints[seed] = result["fingerprint"]
        if result["value"] is None:
            trial.error = trial.error or result["error"]
            return
        trial.values[rung, seed] = result["value"]
        if seed == 0 and rung + 1 < len(self.rungs) and self.rungs[rung + 1].steps == self.rungs[rung].steps:
            trial.values[rung + 1, 0] = result["value"]  # it has the steps of the next rung, which asks for more seeds

    def _exploit(self, rung: int, exploits: list[Event]) -> None:
        for exploit in exploits:
            trial, parent = self.trials[exploit["number"]], self.trials[exploit["parent"]]
            trial.point, trial.home, trial.root, trial.error = (
                _point(exploit["point"]),
                exploit["home"],
                parent.root,
                "",
            )
            trial.lineage = [*parent.lineage, (rung - 1, trial.point)]
        for trial in self.trials:
            trial.rung = rung

    # -- what is to do

    def parts_of(self, trial: Trial) -> list[Part]:
        """The parts of a trial that have no result yet."""
        if trial.error:
            return []
        seeds = range(self.rungs[trial.rung].seeds)
        return [Part(trial.number, trial.rung, seed) for seed in seeds if (trial.rung, seed) not in trial.values]

    def pending(self) -> list[Part]:
        """The parts of all trials that were begun and have no result."""
        return [part for trial in self.trials for part in self.parts_of(trial)]

    def finished(self, rung: int) -> list[Trial]:
        """The trials that have a value at a rung, best first; of equal ones the older first."""
        done = [(trial.value(rung), trial) for trial in self.trials if not trial.error and self._complete(trial, rung)]
        return [trial for _, trial in sorted(done, key=lambda pair: (-(pair[0] or 0.0), pair[1].number))]

    def _complete(self, trial: Trial, rung: int) -> bool:
        return len(trial.seeds_at(rung)) == self.rungs[rung].seeds

    def promotable(self, last: bool = False) -> tuple[Trial, int] | None:
        """A trial that continues, and its next rung; those of high rungs first.

        Args:
            last: no other trial will begin or continue: at least one trial must reach the last rung.
        """
        for rung in reversed(range(len(self.rungs) - 1)):
            done = self.finished(rung)
            for trial in done[: len(done) // self.eta]:
                if trial.rung == rung:
                    return trial, rung + 1
        if last and not self.finished(len(self.rungs) - 1):
            for rung in reversed(range(len(self.rungs) - 1)):
                waiting = [trial for trial in self.finished(rung) if trial.rung == rung]
                if waiting:
                    return waiting[0], rung + 1
        return None

    @property
    def ended(self) -> bool:
        """True if all trials were begun and none continues."""
        return len(self.trials) >= self.count and not self.pending() and self.promotable(last=True) is None

    @property
    def winner(self) -> Trial | None:
        """The best trial of the highest rung that any has reached; None if there is no value."""
        for rung in reversed(range(len(self.rungs))):
            if done := self.finished(rung):
                return done[0]
        return None

    def highest(self, trial: Trial) -> int | None:
        """The highest rung at which a trial has a value."""
        return next((rung for rung in reversed(range(len(self.rungs))) if self._complete(trial, rung)), None)

    def overtaken(self) -> int:
        """How many trials that continued were worse, at the last step, than one that they had been better than."""
        count = 0
        for rung in range(len(self.rungs) - 1):
            after = self.finished(rung + 1)
            for place, trial in enumerate(after):
                count += any((other.value(rung) or 0.0) < (trial.value(rung) or 0.0) for other in after[:place])
        return count
