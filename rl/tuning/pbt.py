"""Population-based training (Jaderberg et al. 2017): members that are behind continue from those that are ahead.

All members run to the same step: a generation. Then each of the worst quarter, and each that failed, takes the
checkpoint of one of the best quarter, and changes its settings. The choice depends on the seed and on the values only.
A member's run is thus one run whose settings change at some steps, and its history can be replayed to the bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rltrain.config.run_config import RunConfig
from rltrain.errors import ConfigError, RunFailed
from rltrain.jobs.job import Job
from rltrain.storage.fork import fork_run
from rltrain.tuning.journal import Event
from rltrain.tuning.options import EVALUATIONS, Options
from rltrain.tuning.search import TRIALS, Search
from rltrain.tuning.space import Dimension, Point, Space
from rltrain.tuning.state import Part, Trial
from rltrain.tuning.trial import PartResult, folder_in, run_part

# Settings that hold from a checkpoint on if they are changed there: see tests/rl/tuning/test_pbt.py.
PERTURBABLE = """
    lr lr_q lr_temperature lr_end lr_end_share max_grad_norm adam_eps rms_eps rms_alpha gamma lam
    rho_bar c_bar rho_bar_pg clip clip_end value_clip value entropy entropy_end max_kl kl epochs
    minibatches tau target_entropy noise noise_end smoothing smoothing_clip epsilon epsilon_end epsilon_share
""".split()
QUARTER = 0.25  # of the members that is replaced, and of those that replace them
FACTOR = 1.25  # by which a setting grows or falls


def refuse(config: RunConfig, space: Space, options: Options) -> None:
    """ConfigError if the population cannot vary a setting of the space, or is too small."""
    for one in space.dimensions:
        if one.setting not in PERTURBABLE:
            raise ConfigError(
                f"--space {one.name}: {one.setting} cannot change during a run; with pbt these can: "
                f"{', '.join(name for name in PERTURBABLE if name in type(config.settings).model_fields)}"
            )
    if options.population < 4:
        raise ConfigError(f"--population {options.population}: pbt needs at least 4 members")
    if options.intervals > EVALUATIONS:
        raise ConfigError(
            f"--intervals must be at most {EVALUATIONS}, the evaluations of a run, got {options.intervals}"
        )


def explore(one: Dimension, raw: Any, rng: np.random.Generator) -> Any:
    """A neighbour of this value: a factor up or down, within the range; or the choice before or after."""
    up = bool(rng.integers(2))
    if one.choices:
        place = one.choices.index(raw) + (1 if up else -1)
        return one.choices[min(max(place, 0), len(one.choices) - 1)]
    value = raw * FACTOR if up else raw / FACTOR
    if one.whole:
        value = max(round(value), raw + 1) if up else min(round(value), raw - 1)
    return type(raw)(min(max(value, one.low), one.high))


class Population(Search):
    """A search by population-based training."""

    def _search(self) -> None:
        for rung in range(len(self.rungs)):
            if self.out_of_time:
                return
            self._generation(rung)
            if rung + 1 < len(self.rungs):
                self._exploit(rung)

    def _generation(self, rung: int) -> None:
        """Let all members run to a rung."""
        state = self.state
        while rung == 0 and len(state.trials) < state.count:
            number = len(state.trials)
            point = self._sampler.propose(number)
            self.space.configure(self.config, point)
            self._add({"event": "trial", "number": number, "point": point})
        parts = [
            Part(t.number, rung, 0)
            for t in state.trials
            if t.rung == rung and (rung, 0) not in t.values and not t.error
        ]
        if parts:
            self._run_all(parts)

    def _exploit(self, rung: int) -> None:
        """Replace the members that are behind, and let all members continue."""
        state, members = self.state, self.state.trials
        if all(trial.rung > rung for trial in members):
            return  # the journal has it
        ranked = state.finished(rung)
        if not ranked:
            raise RunFailed(f"all {len(members)} members failed; the first one: {members[0].error}")
        count = max(int(len(members) * QUARTER), 1)
        best = ranked[:count]
        failed = [trial for trial in members if trial.error]
        behind = [*failed, *[trial for trial in reversed(ranked) if trial not in best][: max(count - len(failed), 0)]]
        exploits: list[Event] = []
        for trial in sorted(behind, key=lambda one: one.number):
            rng = np.random.default_rng([self.config.seed, rung, trial.number])
            parent = best[int(rng.integers(len(best)))]
            point = {one.name: explore(one, parent.point[one.name], rng) for one in self.space.dimensions}
            try:
                self.space.configure(self.config, point)
            except ConfigError:  # a combination that the algorithm refuses: the parent's settings
                point = dict(parent.point)
            home = f"{TRIALS}/{trial.number:04d}-generation{rung + 1}"
            source = self.folder / parent.runs[0]
            fork_run(source, self.folder / home / source.name, self.space.settings(point))
            exploits.append({"number": trial.number, "parent": parent.number, "point": point, "home": home})
        self._add({"event": "generation", "rung": rung + 1, "exploits": exploits})

    def out_of(self, part: Part) -> Path:
        home = self.state.trials[part.trial].home
        return self.folder / home if home else super().out_of(part)

    def seed_of(self, part: Part) -> int:
        return self.config.seed + self.state.trials[part.trial].root % self.options.seeds

    def _confirmation(self, winner: Trial, seed: int, out: Path) -> Job:
        return self._start(run_lineage, self.config_of({}, seed, out), self.space, self.history(winner))

    def history(self, trial: Trial) -> list[tuple[int, Point]]:
        """The settings of a member's run: (the step until which they hold, the point)."""
        ends = [self.rungs[rung].steps for rung, _ in trial.lineage[1:]]
        return list(zip([*ends, self.config.steps], [point for _, point in trial.lineage], strict=True))

    def replay(self, trial: Trial, out: Path) -> PartResult:
        """Run the history of a member again, in this process: it ends with the same weights."""
        seed = self.config.seed + trial.root % self.options.seeds
        return run_lineage(self.config_of({}, seed, out), self.space, self.history(trial))


def run_lineage(config: RunConfig, space: Space, history: list[tuple[int, Point]]) -> PartResult:
    """One run whose settings change: to each step of the history with its point."""
    out, result = Path(config.out), PartResult(None, 0, 0.0, config.out, error="no history")
    before: Path | None = None
    for number, (until, point) in enumerate(history):
        place = out / f"{number:02d}"
        if before is not None:
            fork_run(before, place / before.name, space.settings(point))
        own = space.configure(config, point).model_copy(update={"out": str(place)})
        result = run_part(own, until if until < config.steps else None)
        if result.error:
            return result
        before = folder_in(place)
    return result
