"""Runs all hostile environments of tests/hostile with 0, 2 and 8 workers, and with 2 on a Dask cluster of this machine,
and writes the table of docs/environments.md.

Prints what was wrong with each run. Results are kept in benchmarks/results/hostile_environments.json after each run, so
that a part of the runs can be repeated. First comes one run of each environment, then the other events.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hostile.cases import WORKERS, Case, Outcome, cases, run, wrong

Results = dict[str, dict[str, tuple[int | None, bool]]]  # by case and column: the status, and whether it was right
Job = tuple[Case, int, str]  # case, workers, backend

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks/results/hostile_environments.json", ROOT / "docs/environments.md"
BEGIN, END = "<!-- table: scripts/bench hostile_environments -->\n", "<!-- end of the table -->\n"
COLUMNS = [*map(str, WORKERS), "2 dask"]
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


def table(everything: list[Case], results: Results) -> str:
    """The results as tables of Markdown, one for each kind."""
    lines = []
    for module, title in KINDS.items():
        own = [case for case in everything if case.module == module]
        lines += [
            f"### {title}",
            "",
            "| environment | what it does | at | workers 0 | 2 | 8 | 2, Dask |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name in dict.fromkeys(case.name for case in own):
            same = [case for case in own if case.name == name]
            events = ", ".join(dict.fromkeys(case.when or "all events" for case in same))
            cells = []
            for column in COLUMNS:
                ends = [results[case.id][column] for case in same if column in results.get(case.id, {})]
                cells.append(", ".join(dict.fromkeys(ending(*end) for end in ends)) or "-")
            text = same[0].text.replace("|", "/")
            lines.append(f"| `{name}` | {text} | {events} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def column(workers: int, backend: str) -> str:
    """The name of the column of such runs."""
    return f"{workers} {backend}".strip()


def load_results(everything: list[Case]) -> Results:
    """The kept results of cases that still exist."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {case.id: kept.get(case.id, {}) for case in everything}


def save_results(results: Results) -> None:
    rows = [f"{json.dumps(name)}: {json.dumps(own)}" for name, own in sorted(results.items()) if own]
    RESULTS.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def jobs_of(chosen: list[Case], workers: list[int], backends: list[str]) -> list[Job]:
    """All runs. First the last event of each environment, with which most come to train, of all kinds in turn."""
    jobs: list[tuple[int, int, Job]] = []
    for _, module in itertools.groupby(chosen, lambda case: case.module):
        for number, (_, same) in enumerate(itertools.groupby(module, lambda case: case.name)):
            for place, case in enumerate(reversed(list(same))):
                own = [n for n in case.expect.get("workers", workers) if n in workers or n not in WORKERS]
                jobs += [(place, number, (case, n, "")) for n in own if "" in backends]
                if "dask" in backends and 2 in case.workers and case.acts and case.module != "scripts":
                    jobs.append((place, number, (case, 2, "dask")))
    return [job for _, _, job in sorted(jobs, key=lambda entry: entry[:2])]


def write_page(everything: list[Case], results: Results) -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(everything, results) + END + rest.partition(END)[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", default="", help="a regular expression of the names of cases")
    parser.add_argument("--workers", type=int, nargs="*", default=WORKERS)
    parser.add_argument("--backends", nargs="*", default=["", "dask"], help="'' for the default one, dask")
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--limit", type=float, default=90.0, help="seconds of one run")
    parser.add_argument("--missing", action="store_true", help="only runs of which no right result is kept")
    parser.add_argument("--write", action="store_true", help="keep the results and write the table")
    parser.add_argument("--show", action="store_true", help="print the errors of each run")
    args = parser.parse_args()
    everything = cases()
    chosen = [case for case in everything if re.search(args.only, case.id)]
    print(f"{len(chosen)} cases of {len({(case.module, case.name) for case in chosen})} environments", flush=True)
    results = load_results(everything)
    fingerprints: dict[str, str] = {}
    failures = 0

    def play(job: Job) -> tuple[Job, Outcome]:
        case, workers, backend = job
        return job, run(case, workers, args.limit, backend)

    def judge(job: Job, outcome: Outcome) -> int:
        case, workers, backend = job
        base = f"{case.algo} {case.twin or case.id}"
        fingerprint = fingerprints.setdefault(base, outcome.fingerprint) if case.trains else None
        found = wrong(case, workers, outcome, fingerprint)
        results[case.id][column(workers, backend)] = (outcome.status, not found)
        if args.write:
            save_results(results)
        name = f"{case.id} --workers {workers} {backend}".strip()
        print(f"{'WRONG' if found else 'right'}  {name}  {outcome.seconds:.1f} s", flush=True)
        for line in found:
            print(f"       {line}")
        if found or args.show:
            print("".join(f"       | {line[:300]}\n" for line in outcome.err.splitlines()[-12:]), end="", flush=True)
        return bool(found)

    start = time.monotonic()
    by_id = {case.id: case for case in everything}
    jobs = jobs_of(chosen, args.workers, args.backends)
    if args.missing:
        jobs = [(case, *where) for case, *where in jobs if not results[case.id].get(column(*where), (None, False))[1]]
    for name in sorted({case.twin for case, _, _ in jobs if case.twin}):
        case = by_id[name]
        fingerprints[f"{case.algo} {name}"] = run(case, 0, args.limit).fingerprint
    with ThreadPoolExecutor(args.parallel) as pool:
        for job, outcome in pool.map(play, jobs):
            failures += judge(job, outcome)
    if args.write:
        save_results(results)
        write_page(everything, results)
    print(f"{failures} of {len(jobs)} runs were wrong; {time.monotonic() - start:.0f} s")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
