"""Where the settings of the next trial come from: random, a grid, TPE (Optuna) or CMA-ES (cmaes).

A proposal depends on the seed, on the number of the trial and on what was told before, and on nothing else. So a
resumed search, whose journal is told again in the same order, proposes what an unbroken one does.
"""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rltrain.config.flags import as_text
from rltrain.errors import ConfigError
from rltrain.tuning.space import Dimension, Point, Space

OPTUNA_LOG = "optuna.log"  # in the folder of a search; optuna-dashboard reads it


class Sampler(Protocol):
    """Proposes points. All calls come in the order of the journal."""

    def propose(self, number: int) -> Point:
        """The settings of a new trial."""

    def proposed(self, number: int, point: Point) -> None:
        """A trial that was proposed before the search was resumed."""

    def tell(self, number: int, point: Point, steps: int, value: float | None, full: bool) -> None:
        """A trial has reached `steps` with this value, of its `full` budget or a part of it; None: it failed."""


class RandomSampler:
    """Independent points."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def propose(self, number: int) -> Point:
        rng = np.random.default_rng([self._seed, number])
        return {one.name: one.at(float(rng.random())) for one in self._space.dimensions}

    def proposed(self, number: int, point: Point) -> None: ...

    def tell(self, number: int, point: Point, steps: int, value: float | None, full: bool) -> None: ...


class GridSampler:
    """All combinations, in an order drawn from the seed, so that a part of them covers the space."""

    def __init__(self, space: Space, seed: int) -> None:
        names = [one.name for one in space.dimensions]
        products = itertools.product(*(one.grid() for one in space.dimensions))
        self.points = [dict(zip(names, values, strict=True)) for values in itertools.islice(products, 1_000_001)]
        if len(self.points) > 1_000_000:
            raise ConfigError("--space: the grid has more than a million points")
        self._order = np.random.default_rng(seed).permutation(len(self.points))

    def propose(self, number: int) -> Point:
        return self.points[int(self._order[number])]

    def proposed(self, number: int, point: Point) -> None: ...

    def tell(self, number: int, point: Point, steps: int, value: float | None, full: bool) -> None: ...


class CMASampler:
    """CMA-ES on ranges, scaled to [0, 1] (Hansen 2016, with the package cmaes). A failed trial counts as the worst."""

    def __init__(self, space: Space, seed: int) -> None:
        choices = [one.name for one in space.dimensions if one.choices]
        if choices:
            raise ConfigError(f"--sampler cmaes: {choices[0]} has choices, and CMA-ES needs ranges; use tpe or random")
        if len(space.dimensions) < 2:
            raise ConfigError("--sampler cmaes: needs at least two settings; use tpe or random")
        cmaes = _installed("cmaes", "cmaes")
        count = len(space.dimensions)
        self._space = space
        self._optimizer = cmaes.CMA(
            mean=np.full(count, 0.5), sigma=0.25, bounds=np.tile([0.0, 1.0], (count, 1)), seed=seed
        )
        self._asked: dict[int, np.ndarray] = {}
        self._told: list[tuple[np.ndarray, float]] = []
        self._worst = 0.0

    def propose(self, number: int) -> Point:
        self._asked[number] = shares = self._optimizer.ask()
        return {one.name: one.at(float(share)) for one, share in zip(self._space.dimensions, shares, strict=True)}

    def proposed(self, number: int, point: Point) -> None:
        self.propose(number)  # draws the same numbers

    def tell(self, number: int, point: Point, steps: int, value: float | None, full: bool) -> None:
        shares = self._asked.pop(number, None)
        if shares is None:
            return  # a later rung: values of different steps cannot be compared
        if value is not None:
            self._worst = max(self._worst, -value)
        self._told.append((shares, self._worst if value is None else -value))
        size = self._optimizer.population_size
        if len(self._told) >= size:
            self._optimizer.tell(self._told[:size])
            self._told = self._told[size:]


class TPESampler:
    """Optuna's TPE, by ask and tell, with its journal file.

    A trial that pauses is a pruned trial of Optuna with an intermediate value. When it has continued to a later rung,
    its point is added again with the new value.
    """

    def __init__(self, space: Space, seed: int, folder: Path) -> None:
        optuna = self._optuna = _installed("tpe", "optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file = folder / OPTUNA_LOG
        file.unlink(missing_ok=True)  # written again from the search's own journal
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backend = optuna.storages.journal.JournalFileBackend(str(file))
            self._study = optuna.create_study(storage=optuna.storages.JournalStorage(backend), direction="maximize")
        self._seed, self._dimensions = seed, space.dimensions
        self._distributions = {one.name: self._distribution(one) for one in space.dimensions}
        self._running: dict[int, Any] = {}

    def propose(self, number: int) -> Point:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.sampler = self._optuna.samplers.TPESampler(
                seed=self._seed + number, multivariate=True, constant_liar=True
            )
            trial = self._study.ask(self._distributions)
        self._running[number] = trial._trial_id
        return {one.name: self._raw(one, trial.params[one.name]) for one in self._dimensions}

    def proposed(self, number: int, point: Point) -> None:
        storage = self._study._storage
        self._running[number] = storage.create_new_trial(
            self._study._study_id, self._trial(point, self._optuna.trial.TrialState.RUNNING)
        )

    def tell(self, number: int, point: Point, steps: int, value: float | None, full: bool) -> None:
        states = self._optuna.trial.TrialState
        state = states.FAIL if value is None else states.COMPLETE if full else states.PRUNED
        known = self._running.pop(number, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if known is None:
                if value is not None:
                    self._study.add_trial(self._trial(point, state, steps, value))
                return
            storage = self._study._storage
            if value is not None:
                storage.set_trial_intermediate_value(known, steps, value)
            storage.set_trial_state_values(known, state, [value] if value is not None and full else None)

    def _trial(self, point: Point, state: Any, steps: int = 0, value: float | None = None) -> Any:
        params = {one.name: self._label(one, point[one.name]) for one in self._dimensions}
        return self._optuna.trial.create_trial(
            state=state,
            params=params,
            distributions=self._distributions,
            value=value if state == self._optuna.trial.TrialState.COMPLETE else None,
            intermediate_values={} if value is None else {steps: value},
        )

    def _distribution(self, one: Dimension) -> Any:
        kinds = self._optuna.distributions
        if one.choices:
            return kinds.CategoricalDistribution([as_text(value) for value in one.choices])
        if one.whole:
            return kinds.IntDistribution(int(one.low), int(one.high), log=one.log)
        return kinds.FloatDistribution(one.low, one.high, log=one.log)

    def _label(self, one: Dimension, raw: Any) -> Any:
        return as_text(raw) if one.choices else raw

    def _raw(self, one: Dimension, label: Any) -> Any:
        return next(value for value in one.choices if as_text(value) == label) if one.choices else label


def make_sampler(name: str, space: Space, seed: int, folder: Path) -> Sampler:
    """The sampler with this name; ConfigError if it does not suit the space, or its package is not installed."""
    if name == "random":
        return RandomSampler(space, seed)
    if name == "grid":
        return GridSampler(space, seed)
    return CMASampler(space, seed) if name == "cmaes" else TPESampler(space, seed, folder)


def _installed(sampler: str, package: str) -> Any:
    import importlib

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(package)
    except ImportError:
        raise ConfigError(
            f"--sampler {sampler} needs the package {package}: pip install 'rltrain[tune]', or use --sampler random"
        ) from None
