"""Pictures of a comparison, by matplotlib: curves, scores with intervals, performance profiles.

Groups differ in the kind of line and marker as well as in colour, so that pictures can be read in black and white.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.comparison.comparable import tasks_of
from rltrain.comparison.compare import ALL, Comparison
from rltrain.comparison.curves import Curve, curve_of
from rltrain.comparison.runs import EVALUATION, SCORES, TRAINING, Group
from rltrain.comparison.statistics import profile
from rltrain.errors import ConfigError, RunFailed
from rltrain.storage.files import reason

FORMATS = ("svg", "png", "pdf")
STYLES = (  # colour, line, marker of each group; the colours differ in lightness, too
    ("#000000", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#0072B2", "-.", "^"),
    ("#56B4E9", ":", "D"),
    ("#009E73", (0, (5, 1)), "v"),
    ("#CC79A7", (0, (3, 1, 1, 1)), "P"),
    ("#E69F00", (0, (1, 1)), "X"),
    ("#777777", (0, (8, 3)), "*"),
)
LABELS = {
    EVALUATION: "return of an evaluation\n(environment's reward)",
    TRAINING: "mean return of 100 training episodes\n(environment's reward)",
}
TIMES = ((7200.0, 3600.0, "h"), (300.0, 60.0, "min"), (0.0, 1.0, "s"))  # from so many seconds on, unit, name
COLUMNS = 3  # panels in a row
SETTINGS: Any = {"svg.hashsalt": "rltrain", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def require_matplotlib() -> None:
    """ConfigError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("pictures need matplotlib: pip install 'rltrain[plot]'") from None


@contextmanager
def _panels(titles: Sequence[str], below: str, height: float = 3.2) -> Iterator[tuple[Any, list[Any]]]:
    """A figure with a panel for each title, and a line of text below them."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(max(6.4, 4.2 * columns), height * rows + 0.5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel, title in zip(axes, titles, strict=False):
            panel.set_title(title, fontsize=10)
            panel.grid(alpha=0.3, linewidth=0.6)
        for panel in axes[len(titles) :]:
            panel.remove()
        figure.supxlabel(below, fontsize=7.5, color="#333333")
        yield figure, axes[: len(titles)]


def curves(groups: Sequence[Group], metric: str, axis: str = "steps", smooth: int = 1, seed: int = 0) -> Any:
    """A figure of a metric over steps or time, one panel per task."""
    rng, tasks = np.random.default_rng(seed), tasks_of(groups)
    text = (
        "line: IQM of a group's runs; band: 95% interval at each point by itself, from 3 runs on; x: a run ends early"
    )
    if smooth > 1:
        text += f"; smoothed: mean of {smooth} values"
    with _panels(tasks, text) as (figure, panels):
        for panel, task in zip(panels, tasks, strict=True):
            found = [(group, curve_of(group.of(task), metric, axis, smooth, rng)) for group in groups]
            end = max(x[-1] for _, curve in found for x, _ in curve.runs)
            unit, label = (1.0, "environment steps") if axis == "steps" else _time_unit(end)
            for place, (group, curve) in enumerate(found):
                name = f"{group.name} ({_count(len(curve.runs))})"
                _draw(panel, curve, STYLES[place % len(STYLES)], name, unit, end)
            panel.set_xlabel(label)
            panel.set_ylabel(LABELS.get(metric, metric))
            if axis == "steps":
                panel.xaxis.set_major_formatter(lambda value, _: _short(value))
            panel.legend(fontsize=8, handlelength=3.2)
    return figure


def _draw(panel: Any, curve: Curve, style: tuple[Any, ...], name: str, unit: float, end: float) -> None:
    """One group: its line and band, and single runs where there is no band, or where it has ended."""
    color, line, marker = style
    x = curve.x / unit
    few = curve.low is None
    panel.plot(
        *(x, curve.middle),
        color=color,
        linestyle=line,
        marker=marker,
        label=name,
        **_marked(x),
    )
    if curve.low is not None and curve.high is not None:
        panel.fill_between(x, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
        for edge in (curve.low, curve.high):
            panel.plot(x, edge, color=color, linestyle=line, linewidth=0.5)
    last = curve.x[-1] if len(curve.x) else -np.inf
    for (run_x, run_y), ended in zip(curve.runs, curve.ended, strict=True):
        alone = run_x >= last if not few else run_x == run_x
        if (few and len(curve.runs) > 1) or run_x[-1] > last + 0.03 * end:
            panel.plot(run_x[alone] / unit, run_y[alone], color=color, linestyle=line, linewidth=0.6)
        if ended:
            panel.plot(run_x[-1] / unit, run_y[-1], color=color, marker="x", markersize=7, linestyle="none")


def scores(comparison: Comparison, name: str = "IQM") -> Any:
    """A figure of a statistic of each group with its interval, one panel per task."""
    tasks, groups = comparison.tasks, [group.name for group in comparison.groups]
    text = f"marker: {name} over runs; line: 95% interval, from 3 runs on; small points: single runs"
    with _panels(tasks, text, height=0.9 + 0.35 * len(groups)) as (figure, panels):
        for panel, task in zip(panels, tasks, strict=True):
            for row in comparison.of(task):
                place = groups.index(row.group)
                color, _, marker = STYLES[place % len(STYLES)]
                estimate, height = row.estimates[name], len(groups) - 1 - place
                if estimate.low is not None:
                    panel.plot([estimate.low, estimate.high], [height, height], color=color, linewidth=2)
                points = np.concatenate(row.scores)
                panel.plot(points, np.full(len(points), height - 0.22), ".", color=color, markersize=3.5)
                panel.plot(estimate.value, height, color=color, marker=marker, markersize=7)
            panel.set_yticks(range(len(groups)), groups[::-1])
            panel.set_ylim(-0.6, len(groups) - 0.4)
            panel.set_xlabel(_score_label(comparison.score, task))
    return figure


def profiles(comparison: Comparison) -> Any:
    """A figure of the share of runs above each score, one panel per task, and one for all if they have one scale."""
    tasks = comparison.tasks
    with _panels(tasks, "higher is better: the share of a group's runs with a score above the one on the x axis") as (
        figure,
        panels,
    ):
        for panel, task in zip(panels, tasks, strict=True):
            rows = comparison.of(task)
            values = np.concatenate([scores for row in rows for scores in row.scores])
            margin = 0.05 * (values.max() - values.min()) or 1.0
            x = np.unique(np.concatenate([values, [values.min() - margin, values.max() + margin]]))
            for place, row in enumerate(rows):
                color, line, marker = STYLES[place % len(STYLES)]
                panel.step(
                    *(x, profile(row.scores, x)),
                    where="post",
                    color=color,
                    linestyle=line,
                    marker=marker,
                    **_marked(x),
                    label=f"{row.group} ({_count(sum(map(len, row.scores)))})",
                )
            panel.set_xlabel(_score_label(comparison.score, task))
            panel.set_ylabel("share of runs above")
            panel.set_ylim(-0.03, 1.03)
            panel.legend(fontsize=8, handlelength=3.2)
    return figure


def _marked(x: np.ndarray) -> dict[str, Any]:
    """The look of a line over x [n]: its width, and about eight markers."""
    return {"linewidth": 1.6, "markersize": 4.5, "markevery": max(1, len(x) // 8)}


def _score_label(score: str, task: str) -> str:
    if task == ALL:
        return f"{score}: 0 to 1 by the given ranges"
    return f"{score} return (environment's reward)" if score in SCORES else score


def _count(number: int) -> str:
    return f"{number} run{'s' * (number != 1)}"


def _time_unit(seconds: float) -> tuple[float, str]:
    unit, name = next((unit, name) for least, unit, name in TIMES if seconds >= least)
    return unit, f"training time ({name})"


def _short(value: float) -> str:
    """A number of steps on an axis: 250k, 1.5M."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{name}"
    return f"{value:g}"


def check_ending(file: Path) -> str:
    """The format of a picture by the ending of its file; ConfigError for any other."""
    form = file.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        raise ConfigError(f"--out {file}: a picture ends in {', '.join(f'.{name}' for name in FORMATS)}")
    return form


def save(figure: Any, file: Path) -> None:
    """Writes a figure in the format of the file's ending; the same figure gives the same bytes."""
    data = _bytes(figure, check_ending(file))
    try:
        file.write_bytes(data)
    except OSError as error:
        raise RunFailed(f"{file} cannot be written: {reason(error)}") from None


def as_svg(figure: Any, number: int) -> str:
    """The figure for an HTML page; `number` keeps its names apart from those of other figures of the page."""
    text = _bytes(figure, "svg").decode()
    text = text[text.index("<svg") :]
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>f{number}-", text)


def _bytes(figure: Any, form: str) -> bytes:
    import matplotlib

    data = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}[form]
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(data, format=form, metadata=metadata)
    return data.getvalue()
