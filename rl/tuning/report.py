"""What a search has found, from its folder alone: table, importance, pictures, best settings."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rltrain.errors import CheckpointError, ConfigError
from rltrain.reporting.metrics import read
from rltrain.storage import files
from rltrain.tuning.journal import read_events
from rltrain.tuning.options import Options, rungs_of
from rltrain.tuning.space import Space, shown
from rltrain.tuning.state import State, Trial

if TYPE_CHECKING:
    from rltrain.tuning.tune import Tuned


@dataclass(frozen=True)
class Found:
    """A search as its folder has it."""

    folder: Path
    saved: dict[str, Any]  # the configuration of all runs
    space: Space
    options: Options
    state: State

    @classmethod
    def read(cls, folder: Path) -> Found:
        """CheckpointError in one line if `folder` is no search's."""
        from rltrain.tuning.tune import read_search

        saved, space, options = read_search(folder)
        count = options.population if options.scheduler == "pbt" else options.trials
        state = State(rungs_of(int(saved.values["steps"]), options), options.eta, count)
        try:
            for event in read_events(folder):
                state.apply(event)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise CheckpointError(f"{folder}: its journal does not belong to a search of this version") from None
        return cls(folder, dict(saved.values), space, options, state)

    def rows(self) -> list[tuple[Trial, int | None, float | None]]:
        """Trials, best first, each with its highest rung and its value there; failed ones last."""
        rows = []
        for trial in self.state.trials:
            rung = None if trial.error else self.state.highest(trial)
            rows.append((trial, rung, None if rung is None else trial.value(rung)))
        return sorted(rows, key=lambda row: (row[1] is None, -(row[1] or 0), -(row[2] or 0.0), row[0].number))

    def importance(self) -> dict[str, float]:
        """Share of the variance of ranks that each setting explains alone, among trials at the first rung.

        A cubic fit for ranges, means for choices, adjusted for the number of parameters; 0 with fewer than 8 trials.
        """
        trials = self.state.finished(0)
        if len(trials) < 8:
            return {}
        ranks = np.argsort(np.argsort([trial.value(0) or 0.0 for trial in trials])).astype(float)
        total = float(((ranks - ranks.mean()) ** 2).sum())
        result = {}
        for one in self.space.dimensions:
            shares = np.array([one.share(trial.point[one.name]) for trial in trials])
            if one.choices:
                columns = np.array(
                    [[float(trial.point[one.name] == choice) for choice in one.choices] for trial in trials]
                )
            else:
                columns = np.vander(shares, 4)
            fit, *_ = np.linalg.lstsq(columns, ranks, rcond=None)
            left = float(((ranks - columns @ fit) ** 2).sum())
            freedom = len(trials) - np.linalg.matrix_rank(columns)
            result[one.name] = max(0.0, 1 - (left / max(freedom, 1)) / (total / (len(trials) - 1))) if total else 0.0
        return dict(sorted(result.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class Best:
    """The settings of the best trial."""

    algo: str
    env: str
    settings: dict[str, Any]
    value: float
    steps: int
    trial: int
    run: str

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def as_toml(self) -> str:
        """A file for `rltrain --config`."""
        lines = [
            f'algo = "{self.algo}"',
            f"env = {json.dumps(self.env)}",
            f"steps = {self.steps}",
            "",
            f"[{self.algo}]",
        ]
        return "\n".join([*lines, *(f"{name} = {_toml(value)}" for name, value in self.settings.items())])


def best_settings(folder: Path) -> Best:
    """The settings of the winner; ConfigError if no trial has a value yet."""
    found = Found.read(folder)
    winner = found.state.winner
    if winner is None:
        raise ConfigError(f"{folder}: no trial has a value yet")
    rung = found.state.highest(winner)
    value = None if rung is None else winner.value(rung)
    assert value is not None
    saved, settings = found.saved, found.space.settings(winner.point)
    return Best(saved["algo"], saved["env"], settings, value, int(saved["steps"]), winner.number, winner.runs[0])


def write_settings(folder: Path, file: Path) -> None:
    """Write the settings of the winner into a TOML file, which must not exist."""
    best = best_settings(folder)
    text = f"# of a search: trial {best.trial}, value {best.value:.6g}\n{best.as_toml()}\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x") as stream:
            stream.write(text)
    except FileExistsError:
        raise ConfigError(f"--write {file}: exists; remove it first") from None
    except OSError as error:
        raise ConfigError(f"--write {file}: cannot be written: {files.reason(error)}") from None


def report_text(folder: Path, json_lines: bool = False) -> str:
    """The trials of a search, the importance of the settings, and the confirmation."""
    found = Found.read(folder)
    state = found.state
    confirmed = {who: [event["value"] for event in events.values() if event["value"] is not None]
                 for who, events in state.confirmed.items()}  # fmt: skip
    if json_lines:
        trials = [
            {"trial": trial.number, "settings": found.space.settings(trial.point), "value": value,
             "steps": None if rung is None else state.rungs[rung].steps,
             "seeds": None if rung is None else state.rungs[rung].seeds,
             "runs": trial.runs, "error": trial.error or None}
            for trial, rung, value in found.rows()
        ]  # fmt: skip
        return json.dumps(
            {"trials": trials, "importance": found.importance(), **confirmed, "overtaken": state.overtaken()}
        )
    names = [one.name for one in found.space.dimensions]
    table = [["trial", "value", "steps", "seeds", *names, ""]]
    for trial, rung, value in found.rows():
        reached = ["-", "-", "-"]
        if value is not None and rung is not None:
            reached = [f"{value:.4g}", f"{state.rungs[rung].steps:,}", str(state.rungs[rung].seeds)]
        end = f"failed: {trial.error}" if trial.error else "" if not state.parts_of(trial) else "not finished"
        table.append([str(trial.number), *reached, *(shown(trial.point[name]) for name in names), end])
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]) - 1)]
    lines = ["  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
             for row in table]  # fmt: skip
    importance = found.importance()
    if importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in importance.items())
        lines.append(f"variance of the ranks at the first rung that each setting explains alone: {shares}")
    lines.append(f"{state.overtaken()} trials that continued were overtaken by one that had been worse")
    for who, values in confirmed.items():
        if values:
            lines.append(f"{who} with {_new_seeds(values)}: {_spread(values)}")
    return "\n".join(lines)


def tuned_line(tuned: Tuned) -> str:
    """The last line of a search, for a person."""
    settings = ", ".join(f"{name} {shown(value)}" for name, value in tuned.settings.items())
    text = f"best of {tuned.trials} trials"
    text += f" ({tuned.failed} failed)" if tuned.failed else ""
    text += f": {settings}; {tuned.value:.4g} in the search"
    if tuned.winner:
        text += f", {_spread(tuned.winner)} with {_new_seeds(tuned.winner)}"
    if tuned.default:
        text += f"; default {_spread(tuned.default)} with the same"
    if tuned.winner and tuned.default and statistics.fmean(tuned.default) > statistics.fmean(tuned.winner):
        text += ": the default is better; try more --seeds, --trials or --steps"
    return f"{text}; {tuned.folder}"


def _spread(values: Any) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.4g}" + (f" (std {statistics.stdev(values):.3g})" if len(values) > 1 else "")


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def write_pictures(folder: Path) -> list[Path]:
    """curves.png, importance.png and parallel.png in the folder; ConfigError if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("--pictures needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = Found.read(folder)
    rows = [(trial, value) for trial, _, value in found.rows() if value is not None]
    if not rows:
        raise ConfigError(f"{folder}: no trial has a value yet")
    best, paths = rows[0][0], [folder / f"{name}.png" for name in ("curves", "importance", "parallel")]

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for trial, _ in reversed(rows):
        lines = [line for line in read(folder / trial.runs[0]) if line.get("eval/return_mean") is not None]
        style: dict[str, Any] = (
            {"color": "black", "linewidth": 2.0} if trial is best else {"color": "0.65", "linewidth": 0.8}
        )
        axes.plot([line["step"] for line in lines], [line["eval/return_mean"] for line in lines], **style)
    axes.set(
        xlabel="environment steps", ylabel="mean return of an evaluation", title=f"black: trial {best.number}, the best"
    )
    figure.savefig(paths[0], dpi=120, bbox_inches="tight")

    importance = found.importance()
    figure, axes = pyplot.subplots(figsize=(7, 0.5 + 0.4 * max(len(importance), 1)))
    axes.barh(list(importance)[::-1], list(importance.values())[::-1], color="0.4")
    axes.set(xlabel="share of the variance of ranks that the setting explains alone", xlim=(0, 1))
    figure.savefig(paths[1], dpi=120, bbox_inches="tight")

    figure, axes = pyplot.subplots(figsize=(1.5 + 1.5 * len(found.space.dimensions), 4.5))
    values = [value for _, value in rows]
    low, high = min(values), max(values)
    names = [one.name for one in found.space.dimensions]
    for trial, value in reversed(rows):
        share = (value - low) / (high - low) if high > low else 1.0
        heights = [one.share(trial.point[one.name]) for one in found.space.dimensions] + [share]
        axes.plot(heights, color=str(0.85 * (1 - share)), linewidth=2.0 if trial is best else 0.8 + share)
    axes.set(xticks=range(len(names) + 1), xticklabels=[*names, "value"], yticks=[], title="dark: high value")
    for place, one in enumerate(found.space.dimensions):
        ends = one.ends()
        for height, end in ((-0.03, ends[0]), (1.03, ends[-1])):
            axes.text(place, height, shown(end), ha="center", va="top" if height < 0 else "bottom", fontsize=8)
        axes.axvline(place, color="0.8", linewidth=0.8)
    figure.savefig(paths[2], dpi=120, bbox_inches="tight")
    pyplot.close("all")
    return paths


def _new_seeds(values: Sequence[float]) -> str:
    return f"{len(values)} new seed" + "s" * (len(values) != 1)
