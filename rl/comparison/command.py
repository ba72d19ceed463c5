"""The commands rlcompare and rlplot: their flags, and what they print or write."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rltrain.comparison import formats
from rltrain.comparison.compare import checked, compare
from rltrain.comparison.curves import AXES
from rltrain.comparison.runs import EVALUATION, SCORES, find_groups
from rltrain.config.flags import Parser, whole
from rltrain.errors import ConfigError, RunFailed
from rltrain.storage.files import reason

KINDS = ("curves", "scores", "profile")
SUFFIXES = {".md": "md", ".html": "html", ".htm": "html", ".csv": "csv", ".tex": "latex"}
RUNS = "a run's folder, a folder with runs, a pattern, or NAME=PATTERN for a group with a name of its own"


def compare_runs(argv: Sequence[str], version: str) -> str:
    """`rlcompare`: what it prints."""
    top = _parser(
        version,
        "rlcompare",
        "Compares runs, or groups of runs with different seeds: IQM, mean and median with 95% intervals that hold for "
        "few runs, and the probability that a run of one group is better than one of another.",
    )
    top.add_argument("--paired", action="store_true", help="also differences between runs with the same seed")
    top.add_argument(
        "--range",
        action="append",
        type=_range,
        dest="ranges",
        metavar="TASK=LOW:HIGH",
        help="the returns of a task that count 0 and 1, for statistics over several tasks; can be repeated",
    )
    top.add_argument("--format", choices=formats.FORMATS, help="of the output [by the ending of --out, or md]")
    top.add_argument("--out", metavar="FILE", help="writes to this file, and prints nothing else")
    given = top.parse(argv)
    out = None if given.get("out") is None else Path(given["out"])
    form = given.get("format") or ("md" if out is None else SUFFIXES.get(out.suffix.lower()))
    if form is None:
        raise ConfigError(f"--out {out}: its ending names no format ({', '.join(SUFFIXES)}); give --format")
    result = compare(
        find_groups(given["runs"]),
        given["score"],
        given.get("paired", False),
        dict(given.get("ranges", [])),
        given["seed"],
        given["force"],
    )
    pictures: list[str] = []
    if form == "html":
        from rltrain.comparison import pictures as draw

        draw.require_matplotlib()
        figures = [draw.scores(result), draw.profiles(result)]
        if all(EVALUATION in run.points for group in result.groups for run in group.runs):
            figures.insert(1, draw.curves(result.groups, EVALUATION, seed=given["seed"]))
        pictures = [draw.as_svg(figure, number) for number, figure in enumerate(figures)]
    text = formats.write(result, form, pictures)
    if out is None:
        return text.rstrip("\n")
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFailed(f"{out} cannot be written: {reason(error)}") from None
    return f"{out}: {_contents(result.groups)}"


def plot_runs(argv: Sequence[str], version: str) -> str:
    """`rlplot`: writes a picture, and returns what the command prints."""
    top = _parser(version, "rlplot", "Draws runs, or groups of runs with different seeds, into a picture.")
    top.add_argument("--kind", choices=KINDS, default="curves", help="curves, scores or performance profiles [curves]")
    top.add_argument("--metric", default=EVALUATION, help=f"of curves: a name of docs/metrics.md [{EVALUATION}]")
    top.add_argument("--x", choices=AXES, default="steps", help="x axis of curves [steps]")
    top.add_argument(
        "--smooth", type=_count, default=1, metavar="INT", help="values in a running mean of each run [1: no smoothing]"
    )
    top.add_argument("--out", metavar="FILE", help="the picture: .svg, .png or .pdf [KIND.svg]")
    given = top.parse(argv)
    from rltrain.comparison import pictures as draw

    draw.require_matplotlib()
    out = Path(given.get("out") or f"{given['kind']}.svg")
    draw.check_ending(out)
    groups = find_groups(given["runs"])
    if given["kind"] == "curves":
        groups, notes = checked(groups, given["metric"], given["force"])
        figure = draw.curves(groups, given["metric"], given["x"], given["smooth"], given["seed"])
    else:
        result = compare(groups, given["score"], seed=given["seed"], force=given["force"])
        notes, groups = list(result.notes), list(result.groups)
        figure = draw.scores(result) if given["kind"] == "scores" else draw.profiles(result)
    draw.save(figure, out)
    lines = [f"{out}: {_contents(groups)}", *(f"note: {note}" for note in notes)]
    return "\n".join(lines)


def _contents(groups: Sequence[Any]) -> str:
    return ", ".join(f"{group.name} ({len(group.runs)} runs)" for group in groups)


def _parser(version: str, name: str, description: str) -> Parser:
    scores = "; ".join(f"{key}: {text}" for key, text in SCORES.items())
    top = Parser(version, prog=name, description=description, epilog=textwrap.fill(f"Scores. {scores}.", 108))
    top.add_argument("runs", nargs="+", metavar="RUNS", help=RUNS)
    top.add_argument("--score", choices=SCORES, default="last-evaluation", help="what a run is worth [last-evaluation]")
    top.add_argument("--seed", type=_seed, default=0, metavar="INT", help="seed of the resamples of the bootstrap [0]")
    top.add_argument(
        "--force", action="store_true", default=False, help="compares runs that cannot be compared; the output says so"
    )
    return top


def _seed(text: str) -> int:
    return _whole(text, 0)


def _count(text: str) -> int:
    return _whole(text, 1)


def _whole(text: str, least: int) -> int:
    value = whole(text)
    if not isinstance(value, int) or value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, got {text!r}")
    return value


def _range(text: str) -> tuple[str, tuple[float, float]]:
    task, equals, ends = text.rpartition("=")
    low, colon, high = ends.partition(":")
    try:
        bounds = (float(low), float(high))
        if not (equals and colon and task and all(map(math.isfinite, bounds)) and bounds[0] != bounds[1]):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be TASK=LOW:HIGH, as CartPole-v1=0:500, got {text!r}") from None
    return task, bounds
