"""The search space: which settings vary, and over which values.

`lr=1e-5..1e-2:log` is a range, `batch=64|128|256` are choices, and `1-gamma=1e-3..1e-1:log` is a range of 1 - gamma.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rltrain.config.flags import as_text, from_text, kinds
from rltrain.config.load import change
from rltrain.config.messages import unknown_setting
from rltrain.config.run_config import RunConfig
from rltrain.errors import ConfigError

MOST_CORNERS = 1024  # combinations of bounds and choices that are checked before anything runs
Value = float | int | str
Point = dict[str, Any]  # a value for each dimension, by its name


@dataclass(frozen=True)
class Dimension:
    """One setting that varies: between two bounds, or among choices.

    Attributes:
        name:    as the user wrote it; `1-gamma` varies gamma.
        whole:   whole numbers.
        points:  of a grid; None: not given.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    points: int | None = None
    choices: tuple[Any, ...] = ()

    @property
    def setting(self) -> str:
        return self.name.removeprefix("1-")

    def value(self, raw: Any) -> Any:
        """The value of the setting."""
        return 1.0 - raw if self.name.startswith("1-") else raw

    def at(self, share: float) -> Any:
        """The raw value at this share of the range, 0 to 1; of choices, the one that has the share."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if share <= 0 or share >= 1:
            return self.ends()[share >= 1]
        if self.whole and not self.log:  # each whole number has the same share
            return min(int(self.low + share * (self.high - self.low + 1)), int(self.high))
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def share(self, raw: Any) -> float:
        """The inverse of `at`, for pictures and importance."""
        if self.choices:
            return (self.choices.index(raw) + 0.5) / len(self.choices)
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, raw))
        return float((value - low) / (high - low)) if high > low else 0.5

    def ends(self) -> tuple[Any, ...]:
        if self.choices:
            return self.choices
        return tuple(int(x) if self.whole else x for x in (self.low, self.high))

    def grid(self) -> tuple[Any, ...]:
        """The values of a grid; ConfigError if their number is not given."""
        if self.choices:
            return self.choices
        if self.points is None:
            raise ConfigError(
                f"--space {self.name}: a grid needs the number of points of a range, as {self.name}={self.low:g}.."
                f"{self.high:g}{':log' if self.log else ''}:5, or values, as {self.name}={self.low:g}|{self.high:g}"
            )
        if self.points == 1:
            return (self.at(0.5),)
        if self.whole and not self.log:
            return tuple(dict.fromkeys(round(x) for x in np.linspace(self.low, self.high, self.points)))
        return tuple(dict.fromkeys(self.at(i / (self.points - 1)) for i in range(self.points)))


@dataclass(frozen=True)
class Space:
    """All dimensions of a search."""

    dimensions: tuple[Dimension, ...]

    @classmethod
    def of(cls, given: str | Mapping[str, Any], config: RunConfig) -> Space:
        """The space that a text or a mapping describes, checked against the settings of the configuration.

        Args:
            given: `lr=1e-5..1e-2:log,batch=64|128`, or `{"lr": (1e-5, 1e-2, "log"), "batch": [64, 128]}`.

        Raises:
            ConfigError: one line: a name, a value or a combination of values is wrong.
        """
        if isinstance(given, str):
            pieces = [part for part in re.split(r",(?=\s*[\w-]+\s*=)", given) if part.strip()]
            named = [(name.strip(), text.strip()) for name, _, text in (piece.partition("=") for piece in pieces)]
        else:
            named = [(str(name), value) for name, value in given.items()]
        dimensions = [_dimension(_name(name), value, config) for name, value in named]
        settings = [one.setting for one in dimensions]
        twice = next((name for name in settings if settings.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"--space: {twice} varies twice")
        if not dimensions:
            raise ConfigError("--space is empty: give at least one setting, as lr=1e-5..1e-2:log")
        space = cls(tuple(dimensions))
        for point in space.corners():
            space.configure(config, point)
        return space

    def corners(self) -> Iterator[Point]:
        """The combinations of bounds and choices, at most MOST_CORNERS."""
        names = [one.name for one in self.dimensions]
        for values in itertools.islice(itertools.product(*(one.ends() for one in self.dimensions)), MOST_CORNERS):
            yield dict(zip(names, values, strict=True))

    def configure(self, config: RunConfig, point: Point, **more: Any) -> RunConfig:
        """The configuration with the settings of a point; ConfigError names the combination that is refused."""
        try:
            return change(config, {**self.settings(point), **more})
        except ConfigError as error:
            name, _, text = str(error).removeprefix("keyword ").partition(": ")
            text = text if text.startswith(f"{name} ") else str(error).removeprefix("keyword ")
            raise ConfigError(f"--space: {self.text(point)}: {text}") from None

    def settings(self, point: Point) -> dict[str, Any]:
        """The settings of a point, by name."""
        return {one.setting: one.value(point[one.name]) for one in self.dimensions if one.name in point}

    def text(self, point: Point) -> str:
        return ", ".join(f"{name} {shown(value)}" for name, value in point.items())

    def to_json(self) -> list[dict[str, Any]]:
        return [{**vars(one), "choices": list(one.choices)} for one in self.dimensions]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]]) -> Space:
        def value(item: Any) -> Any:
            return tuple(item) if isinstance(item, list) else item

        return cls(tuple(Dimension(**{**one, "choices": tuple(map(value, one["choices"]))}) for one in data))


def shown(value: Any) -> str:
    """A value for a person: four digits of a float."""
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)


def _name(text: str) -> str:
    """The name of a dimension with underscores, but `1-gamma` as it is."""
    front = "1-" if text.startswith("1-") else ""
    return front + text.removeprefix("1-").replace("-", "_")


def _dimension(name: str, given: Any, config: RunConfig) -> Dimension:
    setting = name.removeprefix("1-")
    fields = type(config.settings).model_fields
    if setting not in fields:
        if setting in RunConfig.model_fields:
            raise ConfigError(
                f"--space {name}: {setting} is a setting of the run; only those of {config.algo} can vary"
            )
        raise ConfigError(f"--space: {unknown_setting('setting', setting, fields, str, config.algo)}")
    annotation = fields[setting].annotation
    numeric = [kind for kind in kinds(annotation) if kind in (int, float)]
    whole = int in numeric and float not in numeric
    if isinstance(given, str):
        low, dots, rest = given.replace(" ", "").partition("..")
        if not dots:
            choices = [from_text(annotation, text.strip()) for text in given.split("|") if text.strip()]
            return _choices(name, choices)
        high, *more = rest.split(":")
        log, counts = "log" in more, [word for word in more if word.isdigit()]
        if len(more) != log + len(counts) or len(counts) > 1:
            raise ConfigError(f"--space {name}: a range is LOW..HIGH or LOW..HIGH:log, got {given!r}")
        points = counts[0] if counts else None
    elif isinstance(given, tuple):
        low, high, log, points = *given[:2], "log" in given[2:], None
        if len(given) < 2 or not all(word == "log" for word in given[2:]):
            raise ConfigError(f"--space {name}: a range is (low, high) or (low, high, 'log'), got {given!r}")
    elif isinstance(given, list):
        return _choices(name, [tuple(item) if isinstance(item, list) else item for item in given])
    else:
        raise ConfigError(f"--space {name}: must be text, a tuple (low, high) or a list of choices, got {given!r}")
    if not numeric:
        raise ConfigError(f"--space {name}: {setting} has no range, since it is no number; give choices, as a|b")
    try:
        bounds = [float(low), float(high)]
    except (TypeError, ValueError):
        raise ConfigError(f"--space {name}: the bounds of a range must be numbers, got {low!r} and {high!r}") from None
    if not all(map(math.isfinite, bounds)) or bounds[0] >= bounds[1]:
        raise ConfigError(f"--space {name}: the range must grow from a number to a larger one, got {low} and {high}")
    if log and bounds[0] <= 0:
        raise ConfigError(f"--space {name}: a range with :log must begin above 0, got {low}")
    if whole and not all(bound.is_integer() for bound in bounds):
        raise ConfigError(
            f"--space {name}: {setting} is a whole number, and so must be the bounds, got {low} and {high}"
        )
    if points is not None and int(points) < 1:
        raise ConfigError(f"--space {name}: a grid needs at least one point")
    if name.startswith("1-") and whole:
        raise ConfigError(f"--space {name}: 1-{setting} needs a setting between 0 and 1")
    return Dimension(name, bounds[0], bounds[1], log, whole, None if points is None else int(points))


def _choices(name: str, choices: list[Any]) -> Dimension:
    if not choices:
        raise ConfigError(f"--space {name}: has no values")
    if name.startswith("1-"):
        raise ConfigError(f"--space {name}: give the values of {name[2:]} itself")
    for value in choices:
        if choices.count(value) > 1:
            raise ConfigError(f"--space {name}: {as_text(value)} is there twice")
    return Dimension(name, choices=tuple(choices))


DEFAULTS = {  # by setting, in this order; each algorithm varies those that it has
    "lr": "1e-5..1e-2:log",
    "lr_q": "1e-5..1e-2:log",
    "gamma": "1-gamma=1e-3..1e-1:log",
    "lam": "1-lam=1e-2..3e-1:log",
    "entropy": "1e-6..1e-1:log",
    "clip": "0.1..0.4",
    "epochs": "3|5|10|20",
    "max_grad_norm": "0.3..5:log",
    "batch": "32|64|128|256",
    "filter_top": "0.1|0.3|1.0",
    "tau": "1e-3..5e-2:log",
    "epsilon_share": "0.05..0.5",
    "updates_per_step": "0.125|0.25|0.5|1.0",
    "noise": "0.03..0.5:log",
}


def default_space(config: RunConfig) -> str:
    """The search space of an algorithm, for users who name none."""
    settings: Any = config.settings
    parts = []
    for name, text in DEFAULTS.items():
        present = name in type(settings).model_fields
        present = present and (getattr(settings, name) is not None or name == "filter_top")  # none: all episodes
        if name in ("max_grad_norm", "noise", "entropy", "batch") and not getattr(settings, name, None):
            continue  # switched off; `entropy` 0 of Box actions is not given here, so it varies
        if name == "lam" and getattr(settings, "lam", 1.0) == 1.0:
            continue  # n-step returns
        if name == "updates_per_step" and getattr(settings, name, 1.0) > 1.0:
            continue  # the many updates are the algorithm's idea
        if present:
            parts.append(text if "=" in text else f"{name}={text}")
    return ",".join(parts)
