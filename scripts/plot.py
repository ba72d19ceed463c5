"""What the docs take from configs/results: pictures of learning curves, tables of results, tables of settings.

python scripts/plot.py picture ppo CartPole-v1 docs/cartpole.png
python scripts/plot.py picture ppo CartPole-v1 docs/overlap.png --second overlap
python scripts/plot.py tables
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "configs" / "results"
PAGES = [ROOT / "docs" / "results.md", *sorted((ROOT / "docs" / "algorithms").glob("*.md"))]


def results() -> list[dict[str, Any]]:
    """All results, in the order of their names."""
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*/*.json"))]


def table(shown: list[dict[str, Any]]) -> str:
    """Results as a Markdown table, each with its command."""
    lines = [
        "| algorithm | environment | return of each seed | bar | passed | steps | seconds | commit | command |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in shown:
        seeds, bar = result["seeds"], result["bar"]
        kind = "training" if bar is not None and bar["metric"] == "train" else "greedy"
        cells = [
            title(result),
            result["env"],
            f"{', '.join(number(seed['measured']) for seed in seeds)} ({kind})",
            "" if bar is None else number(bar["return"]),
            {True: "yes", False: "no", None: ""}[result["passed"]],
            f"{max(seed['steps'] for seed in seeds):,}",
            f"{sorted(seed['seconds'] for seed in seeds)[len(seeds) // 2]:.0f}",
            f"`{result['commit']}`",
            f"`{result['made_by']}`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def title(result: dict[str, Any]) -> str:
    """The algorithm, and the name of the result where an algorithm has several on one environment."""
    return f"{result['algo']}, {result['as']}" if result.get("as") else str(result["algo"])


def number(value: float) -> str:
    """A return with as many digits as a reader needs."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def settings(algo: str, names: list[str]) -> str:
    """Default and meaning of an algorithm's settings as a Markdown table."""
    from rltrain.algorithms import settings_class
    from rltrain.config.flags import description

    fields, kinds = settings_class(algo).model_fields, ("Box", "Discrete")
    others = {kind: settings_class(algo).defaults_for(kind) for kind in kinds}
    lines = ["| flag | default | meaning |", "| --- | --- | --- |"]
    for name in names:
        field, value = fields[name], default(fields[name].default)
        given = {kind: default(values[name]) for kind, values in others.items() if name in values}
        for one in dict.fromkeys(given.values()):
            value += f"; {', '.join(kind for kind in kinds if given.get(kind) == one)}: {one}"
        lines.append(f"| `--{name.replace('_', '-')}` | {value} | {description(field)} |")
    return "\n".join(lines)


def default(value: Any) -> str:
    """A default as a flag takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def filled(file: Path, text: str) -> str:
    """The text of a page with new generated parts: those from `<!-- results -->` or `<!-- settings: NAMES -->` to
    `<!-- end -->`."""

    def part(match: re.Match[str]) -> str:
        head, kind, names = match[1], match[2], (match[3] or "").split()
        shown = [result for result in results() if file.stem in ("results", result["algo"])]
        return f"{head}\n{table(shown) if kind == 'results' else settings(file.stem, names)}\n<!-- end -->"

    return re.sub(r"(<!-- (results|settings)(?:: ([\w ]+))? -->)\n.*?<!-- end -->", part, text, flags=re.S)


def picture(shown: list[dict[str, Any]], file: Path) -> None:
    """The evaluations of each seed over steps, and the bar. Several results get one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(shown), figsize=(2 + 5 * len(shown), 3.6), dpi=100, sharex=True, sharey=True, squeeze=False
    )
    for axes, result in zip(panels[0], shown, strict=True):
        for seed in result["seeds"]:
            steps, returns = zip(*seed["curve"], strict=True)
            axes.plot(steps, returns, linewidth=1.2, label=f"seed {seed['seed']}")
        if result["bar"] is not None:
            axes.axhline(result["bar"]["return"], color="gray", linestyle=":", label=f"bar {result['bar']['return']}")
        axes.set(xlabel="environment steps", title=f"{title(result)} on {result['env']}, commit {result['commit']}")
        axes.title.set_fontsize(10)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.legend(loc="lower right", fontsize=8)
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("mean return of an evaluation")
    figure.tight_layout()
    figure.savefig(file, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/plot.py", description="Pictures and tables from configs/results.")
    what = parser.add_subparsers(dest="what", required=True)
    one = what.add_parser("picture", help="learning curves of one result")
    one.add_argument("algo")
    one.add_argument("env")
    one.add_argument("file", type=Path)
    one.add_argument("--as", dest="name", help="of a result that has a name of its own")
    one.add_argument("--second", help="the name of a second result, shown in a panel next to it")
    what.add_parser("tables", help="writes the tables of docs/results.md and docs/algorithms/")
    args = parser.parse_args()
    if args.what == "tables":
        for file in PAGES:
            file.write_text(filled(file, file.read_text()))
        return 0
    names = [args.name] if args.second is None else [args.name, args.second]
    by_name = {(result["algo"], result["env"], result.get("as")): result for result in results()}
    missing = [name for name in names if (args.algo, args.env, name) not in by_name]
    if missing:
        ending = "" if missing[0] is None else f" --as {missing[0]}"
        raise SystemExit(f"plot: no result yet; make it with scripts/reproduce {args.algo} {args.env}{ending}")
    picture([by_name[args.algo, args.env, name] for name in names], args.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
