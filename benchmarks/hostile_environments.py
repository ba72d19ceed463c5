"""Runs all hostile environments of tests/hostile with 0, 2 and 8 workers and writes the table of docs/environments.md.

Prints what was wrong with each run. Results are kept in benchmarks/results/hostile_environments.json, so that a part of
the runs can be repeated.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hostile.cases import WORKERS, Case, Outcome, cases, run, wrong

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks/results/hostile_environments.json", ROOT / "docs/environments.md"
BEGIN, END = "<!-- table: scripts/bench hostile_environments -->\n", "<!-- end of the table -->\n"
KINDS = {
    "harmless": "The twin",
    "process_state": "State of the whole process, changed in constructor, reset, step and close",
    "endings": "Endings",
    "hangs": "Hangs",
    "children": "Processes and threads of the environment",
    "values": "Values",
    "odd_spaces": "Spaces and actions",
    "agents": "Several agents",
    "wrapped": "Wrappers and episodes",
    "at_import": "Imports",
    "shadows": "Names of files",
    "scripts": "Scripts that call rltrain.train",
}


def ending(status: int | None, right: bool) -> str:
    """How a run ended, in a word or two."""
    word = {0: "trains", None: "no end"}.get(status, f"status {status}")
    return word if right else f"{word} (wrong)"


def table(everything: list[Case], results: dict[str, dict[str, tuple[int | None, bool]]]) -> str:
    """The results as tables of Markdown, one for each kind."""
    lines = []
    for module, title in KINDS.items():
        own = [case for case in everything if case.module == module]
        lines += [
            f"### {title}",
            "",
            "| environment | what it does | at | workers 0 | 2 | 8 |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name in dict.fromkeys(case.name for case in own):
            same = [case for case in own if case.name == name]
            events = ", ".join(dict.fromkeys(case.when or "all events" for case in same))
            cells = []
            for workers in map(str, WORKERS):
                ends = [results[case.id][workers] for case in same if workers in results.get(case.id, {})]
                cells.append(", ".join(dict.fromkeys(ending(*end) for end in ends)) or "-")
            text = same[0].text.replace("|", "/")
            lines.append(f"| `{name}` | {text} | {events} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def merged(
    everything: list[Case], new: dict[str, dict[str, tuple[int | None, bool]]]
) -> dict[str, dict[str, tuple[int | None, bool]]]:
    """The kept results of cases that still exist, with the new ones."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {case.id: {**kept.get(case.id, {}), **new.get(case.id, {})} for case in everything}


def write_page(everything: list[Case], results: dict[str, dict[str, tuple[int | None, bool]]]) -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(everything, results) + END + rest.partition(END)[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", default="", help="a regular expression of the names of cases")
    parser.add_argument("--workers", type=int, nargs="*", default=WORKERS)
    parser.add_argument("--backend", default="", help="local, processes or dask")
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--limit", type=float, default=90.0, help="seconds of one run")
    parser.add_argument("--write", action="store_true", help="keep the results and write the table")
    parser.add_argument("--show", action="store_true", help="print the errors of each run")
    args = parser.parse_args()
    everything = cases()
    chosen = [case for case in everything if re.search(args.only, case.id)]
    print(f"{len(chosen)} cases of {len({(case.module, case.name) for case in chosen})} environments", flush=True)
    results: dict[str, dict[str, tuple[int | None, bool]]] = {}
    fingerprints: dict[str, str] = {}
    failures = 0

    def play(case: Case, workers: int) -> tuple[Case, int, Outcome]:
        return case, workers, run(case, workers, args.limit, args.backend)

    def judge(case: Case, workers: int, outcome: Outcome) -> int:
        base = f"{case.algo} {case.twin or case.id}"
        fingerprint = fingerprints.setdefault(base, outcome.fingerprint) if case.trains else None
        found = wrong(case, workers, outcome, fingerprint)
        if not args.backend:
            results.setdefault(case.id, {})[str(workers)] = (outcome.status, not found)
        print(f"{'WRONG' if found else 'right'}  {case.id} --workers {workers}  {outcome.seconds:.1f} s", flush=True)
        for line in found:
            print(f"       {line}")
        if found or args.show:
            print("".join(f"       | {line[:300]}\n" for line in outcome.err.splitlines()[-12:]), end="", flush=True)
        return bool(found)

    start = time.monotonic()
    by_id = {case.id: case for case in everything}
    needed = {case.twin for case in chosen if case.twin} | {"harmless.Harmless"}
    for name in sorted(needed):
        case = by_id[name]
        fingerprints[f"{case.algo} {name}"] = run(case, 0, args.limit).fingerprint
    with ThreadPoolExecutor(args.parallel) as pool:
        jobs = [(case, n) for case in chosen for n in args.workers if n in case.workers]
        for case, workers, outcome in pool.map(lambda job: play(*job), jobs):
            failures += judge(case, workers, outcome)
    if args.write:
        results = merged(everything, results)
        rows = [f"{json.dumps(name)}: {json.dumps(own)}" for name, own in sorted(results.items()) if own]
        RESULTS.write_text("{\n" + ",\n".join(rows) + "\n}\n")
        write_page(everything, results)
    print(f"{failures} of {len(jobs)} runs were wrong; {time.monotonic() - start:.0f} s")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
