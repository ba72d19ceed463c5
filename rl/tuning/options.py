"""What a search does: its options, checked, and the rungs that follow from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rltrain.errors import ConfigError

SCHEDULERS, SAMPLERS = ("asha", "none", "pbt"), ("tpe", "random", "grid", "cmaes")
EVALUATIONS = 20  # of a complete trial


class Rung(NamedTuple):
    """How far trials go before it is decided which of them continue."""

    steps: int
    seeds: int


@dataclass(frozen=True)
class Options:
    """What a search does, besides the configuration of its runs and its space."""

    trials: int = 40
    seeds: int = 1
    scheduler: str = "asha"
    sampler: str = "tpe"
    grace: float = 0.25
    eta: int = 3
    population: int = 8
    intervals: int = 8
    confirm: int = 3
    round: int = 8
    deterministic: bool = False
    parallel: int | None = None
    cores: int = 1
    gpus: int = 0
    memory: int | str | None = None
    retries: int = 1
    max_seconds: float | None = None


def rungs_of(steps: int, options: Options) -> list[Rung]:
    """The rungs of a search whose trials have so many steps. Their steps are those of evaluations.

    asha: from `grace` of the steps each `eta` times as far, then all seeds. none: all steps, then all seeds. pbt: the
    generations.
    """
    every = max(steps // EVALUATIONS, 1)
    if options.scheduler == "pbt":
        shares = [number / options.intervals for number in range(1, options.intervals)]
    else:
        shares, share = [], options.grace
        while options.scheduler == "asha" and share < 1.0:
            shares.append(share)
            share *= options.eta
    ends = dict.fromkeys(max(round(share * EVALUATIONS), 1) * every for share in shares)
    rungs = [*(Rung(end, 1) for end in ends if end < steps), Rung(steps, 1)]
    return rungs if options.seeds == 1 or options.scheduler == "pbt" else [*rungs, Rung(steps, options.seeds)]


def checked_options(values: Mapping[str, Any]) -> Options:
    """Checked options; ConfigError in one line."""
    names = [one.name for one in dataclasses.fields(Options)]
    wrong = next((name for name in values if name not in names), None)
    if wrong is not None:
        raise ConfigError(f"unknown option {wrong!r} of a search; known: {', '.join(names)}")
    options = Options(**values)
    least = {"trials": 1, "seeds": 1, "eta": 2, "population": 2, "intervals": 2, "confirm": 0, "round": 1, "retries": 0}
    for name, low in {**least, "parallel": 1}.items():
        value = getattr(options, name)
        if value is None and name == "parallel":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ConfigError(f"--{name} must be a whole number of at least {low}, got {value!r}")
    for name, known in (("scheduler", SCHEDULERS), ("sampler", SAMPLERS)):
        if getattr(options, name) not in known:
            raise ConfigError(f"--{name} must be one of {', '.join(known)}, got {getattr(options, name)!r}")
    if not 0 < options.grace <= 1:
        raise ConfigError(f"--grace must be above 0 and at most 1, got {options.grace!r}")
    if options.scheduler == "pbt":
        for name, allowed in (("sampler", ("random", "grid")), ("trials", (options.population,))):
            if name in values and values[name] not in allowed:
                what = f"--{name} {values[name]}"
                raise ConfigError(f"{what}: pbt has --population, and --sampler random or grid for its first settings")
        sampler = values.get("sampler", "random")
        options = dataclasses.replace(options, sampler=sampler, trials=options.population)
    if options.max_seconds is not None and not options.max_seconds > 0:
        raise ConfigError(f"--budget-seconds must be above 0, got {options.max_seconds!r}")
    return options
