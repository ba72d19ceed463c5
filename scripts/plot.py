"""Learning curves and the README's table of results, from configs/results.

python scripts/plot.py picture ppo CartPole-v1 docs/cartpole.png
python scripts/plot.py table
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
BEGIN, END = "<!-- results: made by scripts/plot.py table -->", "<!-- end of results -->"


def results() -> list[dict[str, Any]]:
    """All results, in the order of their names."""
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*/*.json"))]


def table(found: list[dict[str, Any]]) -> str:
    """The results as Markdown, each with its command."""
    lines = [
        "| algorithm | environment | return of each seed | bar | passed | steps | seconds | commit | command |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in found:
        seeds, bar = result["seeds"], result["bar"]
        kind = "training" if bar is not None and bar["metric"] == "train" else "greedy"
        cells = [
            f"{result['algo']}, {result['as']}" if result.get("as") else result["algo"],
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


def number(value: float) -> str:
    """A return as short as it can be read."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def put(text: str, between: str) -> str:
    """`text` with what stands between the markers replaced."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.S)
    if not pattern.search(text):
        raise SystemExit(f"plot: README.md has no line {BEGIN!r}")
    return pattern.sub(lambda _: f"{BEGIN}\n{between}\n{END}", text)


def picture(result: dict[str, Any], file: Path) -> None:
    """The evaluations of each seed over steps, their mean, and the bar."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), dpi=120)
    for seed in result["seeds"]:
        steps, returns = zip(*seed["curve"], strict=True)
        axes.plot(steps, returns, linewidth=1.2, label=f"seed {seed['seed']}")
    if result["bar"] is not None:
        axes.axhline(result["bar"]["return"], color="gray", linestyle=":", label=f"bar {result['bar']['return']}")
    axes.set(
        xlabel="environment steps",
        ylabel="mean return of an evaluation",
        title=f"{result['algo']} on {result['env']}, commit {result['commit']}",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(alpha=0.3)
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
    what.add_parser("table", help="writes the table of results into README.md")
    args = parser.parse_args()
    if args.what == "table":
        readme = ROOT / "README.md"
        readme.write_text(put(readme.read_text(), table(results())))
        return 0
    asked = (args.algo, args.env, args.name)
    found = [result for result in results() if (result["algo"], result["env"], result.get("as")) == asked]
    if not found:
        raise SystemExit(f"plot: no result yet; make it with scripts/reproduce {args.algo} {args.env}")
    picture(found[0], args.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
