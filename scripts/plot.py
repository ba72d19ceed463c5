"""Learning curves and the README's table of results, from configs/results.

python scripts/plot.py picture ppo CartPole-v1 docs/cartpole.png
python scripts/plot.py picture ppo CartPole-v1 docs/overlap.png --beside overlap
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


def picture(found: list[dict[str, Any]], file: Path) -> None:
    """A result's evaluations of each seed over steps, and the bar; of several results one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(found), figsize=(2 + 5 * len(found), 3.6), dpi=120, sharex=True, sharey=True, squeeze=False
    )
    for axes, result in zip(panels[0], found, strict=True):
        for seed in result["seeds"]:
            steps, returns = zip(*seed["curve"], strict=True)
            axes.plot(steps, returns, linewidth=1.2, label=f"seed {seed['seed']}")
        if result["bar"] is not None:
            axes.axhline(result["bar"]["return"], color="gray", linestyle=":", label=f"bar {result['bar']['return']}")
        name = f"{result['algo']}, {result['as']}" if result.get("as") else result["algo"]
        axes.set(xlabel="environment steps", title=f"{name} on {result['env']}, commit {result['commit']}")
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
    one.add_argument("--beside", help="the name of a second result, shown in a panel beside it")
    what.add_parser("table", help="writes the table of results into README.md")
    args = parser.parse_args()
    if args.what == "table":
        readme = ROOT / "README.md"
        readme.write_text(put(readme.read_text(), table(results())))
        return 0
    named = [args.name] if args.optional_fields is None else [args.name, args.optional_fields]
    kept = {(result["algo"], result["env"], result.get("as")): result for result in results()}
    missing = [name for name in named if (args.algo, args.env, name) not in kept]
    if missing:
        ending = "" if missing[0] is None else f" --as {missing[0]}"
        raise SystemExit(f"plot: no result yet; make it with scripts/reproduce {args.algo} {args.env}{ending}")
    picture([kept[args.algo, args.env, name] for name in named], args.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
