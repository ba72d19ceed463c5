"""Runs all hostile environments of tests/hostile with 0, 2 and 8 workers; prints what was wrong, and a table."""

from __future__ import annotations

import argparse
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hostile.cases import WORKERS, Case, Outcome, cases, run, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", default="", help="a regular expression of the names of cases")
    parser.add_argument("--workers", type=int, nargs="*", default=WORKERS)
    parser.add_argument("--backend", default="", help="local, processes or dask")
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--limit", type=float, default=90.0, help="seconds of one run")
    parser.add_argument("--show", action="store_true", help="print the errors of each run")
    args = parser.parse_args()
    everything = cases()
    chosen = [case for case in everything if re.search(args.only, case.id)]
    print(f"{len(chosen)} cases of {len({(case.module, case.name) for case in chosen})} environments", flush=True)
    fingerprints: dict[str, str] = {}
    failures = 0

    def play(case: Case, workers: int) -> tuple[Case, int, Outcome]:
        return case, workers, run(case, workers, args.limit, args.backend)

    def judge(case: Case, workers: int, outcome: Outcome) -> int:
        base = f"{case.algo} {case.twin or case.id}"
        fingerprint = fingerprints.setdefault(base, outcome.fingerprint) if case.trains else None
        found = wrong(case, workers, outcome, fingerprint)
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
    print(f"{failures} of {len(jobs)} runs were wrong; {time.monotonic() - start:.0f} s")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
