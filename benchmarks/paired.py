"""Shared by all benchmarks: runs our commands and those of peers alternately, reports medians and ratios."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
BIN = Path(sys.executable).parent  # of the current environment, with rltrain and rleval
OURS = "rltrain torch gymnasium numpy loky".split()

Numbers = dict[str, Any]  # the numbers of one run
TRAINING = {  # metric of `ours`: unit
    "steps_per_second": "1/s",
    "steady_steps_per_second": "1/s",
    "acting": "share of time",
    "learning": "share of time",
    "other": "share of time",
    "wall_s": "s",
}


@dataclass(frozen=True)
class Variant:
    """One side of a comparison. `run(i)` makes the i-th run; `shown` is its command in reports."""

    name: str
    shown: str
    run: Callable[[int], Numbers]
    runs: int | None = None  # fewer runs than the others, if one takes long


@dataclass(frozen=True)
class Ratio:
    """A claim: the best of our variants against a peer, run by run. The median ratio must reach `bar`."""

    what: str
    ours: Sequence[str]
    peer: str
    metric: str
    sense: Literal["at least", "at most"]
    bar: float | None = None


@dataclass
class Bench:
    """One benchmark, from its arguments to its report."""

    name: str
    options: argparse.Namespace
    metrics: Mapping[str, str]  # name of a number: unit, in the order of the table
    versions: dict[str, str] = field(default_factory=dict)
    scratch: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="rltrain-bench-")))

    def python(self, peer: str) -> Path:
        """The interpreter of a peer's environment, which is made if necessary."""
        folder = Path(self.options.peers).resolve()
        python = folder / peer / "bin" / "python"
        if not python.exists():
            subprocess.run(["bash", str(HERE / "peers.sh"), str(folder), peer], check=True)
        return python

    def peer(self, program: str, *words: object) -> list[str]:
        """The command for one of peers/*.py, in the environment that the end of its name identifies."""
        environment = program.removesuffix(".py").rpartition("_")[2]
        return [str(self.python(environment)), str(HERE / "peers" / program), *map(str, words)]

    def shown(self, command: Sequence[str]) -> str:
        """The command without local paths."""
        text = shlex.join(command)
        for path, short in ((BIN, ""), (HERE, "benchmarks"), (self.scratch, "RUNS")):
            text = text.replace(f"{path}/" if not short else str(path), short)
        return text.replace(str(Path(self.options.peers).resolve()), "PEERS") if self.options.peers else text

    def call(self, command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 900) -> Numbers:
        """Runs a command whose last line is JSON, and adds its wall time as `wall_s`."""
        began = time.time()
        done = subprocess.run(
            command,
            cwd=self.scratch,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        wall = time.time() - began
        if done.returncode:
            raise RuntimeError(f"{self.shown(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return self.numbers(done.stdout) | {"wall_s": wall, "exec_at": began}

    def numbers(self, stdout: str) -> Numbers:
        """The JSON object in the last line that has one."""
        line = [line for line in stdout.splitlines() if line.startswith("{")][-1]
        found: Numbers = json.loads(line)
        self.versions.update(found.pop("versions", {}))
        return found

    def alternate(self, variants: Sequence[Variant]) -> dict[str, list[Numbers]]:
        """Makes the first runs of all variants, then the second runs: disturbances of the machine affect all."""
        skipped = [word for word in (self.options.skip or "").split(",") if word]
        found = {variant.name: self.kept(variant.name) for variant in variants}
        for _ in range(self.options.runs):
            for variant in variants:
                runs = found[variant.name]
                index = len(runs)
                if any(word in variant.name for word in skipped) or index >= (variant.runs or index + 1):
                    continue
                busy = psutil.cpu_percent(0.5)
                numbers = variant.run(index)
                runs.append({**numbers, "others_busy_percent": busy})
                seen = ", ".join(f"{key} {_short(numbers.get(key))}" for key in self.metrics)
                print(f"  run {index + 1}  {variant.name}: {seen}", file=sys.stderr, flush=True)
        return {name: runs for name, runs in found.items() if runs}

    def kept(self, name: str) -> list[Numbers]:
        """With --add: the stored runs of a variant in results/."""
        file = RESULTS / f"{self.name}.json"
        if not self.options.add or self.options.quick or not file.exists():
            return []
        data = json.loads(file.read_text())
        self.versions = data["versions"] | self.versions
        return list(data["runs"].get(name, []))

    def lines(self, numbers: Numbers) -> list[Numbers]:
        """The lines with shares of time in the metrics.jsonl of our run."""
        text = (self.scratch / numbers["run"] / "metrics.jsonl").read_text()
        return [line for line in map(json.loads, text.splitlines()) if "time/acting" in line]

    def report(
        self, variants: Sequence[Variant], found: Mapping[str, list[Numbers]], ratios: Sequence[Ratio], note: str = ""
    ) -> Numbers:
        """Prints the table and the JSON; stores the JSON in results/, except for a smoke run."""
        medians = {name: {key: median(runs, key) for key in self.metrics} for name, runs in found.items()}
        data: Numbers = {
            "name": self.name,
            "quick": self.options.quick,
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "commit": commit(),
            "versions": {**installed(OURS), **self.versions},
            "units": dict(self.metrics),
            "commands": {variant.name: variant.shown for variant in variants if found.get(variant.name)},
            "medians": medians,
            "ratios": [asdict(ratio) | compare(ratio, found) for ratio in ratios if _complete(ratio, found)],
            "note": note,
            "runs": found,
        }
        print(f"\n{self.name}{' (quick: a smoke run, not a result)' if self.options.quick else ''}")
        print(table(data))
        print(json.dumps(data))
        if not self.options.quick:
            RESULTS.mkdir(exist_ok=True)
            file = RESULTS / f"{self.name}.json"
            file.write_text(json.dumps(data, indent=1).replace(f"{self.scratch}/", "") + "\n")  # no local paths
            print(f"kept in {file.relative_to(ROOT)}", file=sys.stderr)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return data


def arguments(doc: str | None, **more: Any) -> argparse.Namespace:
    """The flags of all benchmarks, and those in `more`: name=keyword arguments of add_argument."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--peers", help="folder of the peers' environments sb3/, rllib/, ..., made there when missing")
    parser.add_argument("--runs", type=int, help="runs of each variant [3; 1 with --quick]")
    parser.add_argument("--add", action="store_true", help="adds runs to those in results/, and goes on counting")
    parser.add_argument("--quick", action="store_true", help="a short smoke run; nothing is kept")
    parser.add_argument("--skip", help="leave out variants whose name holds one of these words: rllib,subproc")
    for name, keywords in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    options = parser.parse_args()
    if options.runs is None:
        options.runs = 1 if options.quick else 3
    if not options.peers:
        print("without --peers DIR only our own side is measured", file=sys.stderr)
    return options


def ours(bench: Bench, command: Sequence[str]) -> Numbers:
    """Our training run with --json: its numbers, and its shares of time from metrics.jsonl."""
    numbers = bench.call(command)
    timed = bench.lines(numbers)
    for share in "acting learning other".split():
        numbers[share] = timed[-1].get(f"time/{share}")
    first, last = timed[0], timed[-1]
    if last["seconds"] - first["seconds"] > 1.0:  # without the start of the processes
        numbers["steady_steps_per_second"] = (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])
    return numbers


def median(runs: Sequence[Numbers], key: str) -> float | None:
    """The median over the runs that have the number."""
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.median(values) if values else None


def compare(ratio: Ratio, found: Mapping[str, list[Numbers]]) -> Numbers:
    """The ratio of each pair of runs, the median, and whether it reaches the bar."""
    best = max if ratio.sense == "at least" else min
    candidates = {name: median(found[name], ratio.metric) for name in ratio.ours if found.get(name)}
    known = {name: value for name, value in candidates.items() if value is not None}
    ours_name = best(known, key=lambda name: known[name])
    pairs = zip(found[ours_name], found[ratio.peer], strict=False)
    values = [mine[ratio.metric] / theirs[ratio.metric] for mine, theirs in pairs]
    middle = statistics.median(values)
    met = None if ratio.bar is None else (middle >= ratio.bar if ratio.sense == "at least" else middle <= ratio.bar)
    return {"best": ours_name, "values": values, "ratio": middle, "met": met}


def _complete(ratio: Ratio, found: Mapping[str, list[Numbers]]) -> bool:
    mine = [run for name in ratio.ours for run in found.get(name, [])]
    theirs = found.get(ratio.peer, [])
    return median(mine, ratio.metric) is not None and median(theirs, ratio.metric) is not None


def table(data: Numbers) -> str:
    """Medians with ranges, then ratios, as Markdown."""
    units = data["units"]
    lines = [
        "| variant | " + " | ".join(f"{key}, {unit}" if unit else key for key, unit in units.items()) + " | runs |"
    ]
    lines.append("|---" * (len(units) + 2) + "|")
    for name, runs in data["runs"].items():
        cells = [_range(runs, key) for key in units]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(runs)} |")
    if data["ratios"]:
        lines += ["", "| ratio | median | runs | bar | met |", "|---|---|---|---|---|"]
    for item in data["ratios"]:
        bar = "-" if item["bar"] is None else f"{item['sense']} {item['bar']:g}"
        met = {True: "yes", False: "no", None: "-"}[item["met"]]
        each = ", ".join(f"{value:.2f}" for value in item["values"])
        what = f"{item['what']}: {item['best']} / {item['peer']}"
        lines.append(f"| {what} | {item['ratio']:.2f} | {each} | {bar} | {met} |")
    if data["note"]:
        lines += ["", data["note"]]
    return "\n".join(lines)


def _range(runs: Sequence[Numbers], key: str) -> str:
    values = [run[key] for run in runs if run.get(key) is not None]
    if not values:
        return "-"
    middle = _short(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({_short(min(values))}..{_short(max(values))})"


def _short(value: Any) -> str:
    if not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> Numbers:
    """The machine of the measurement."""
    model = platform.processor() or "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = round(psutil.virtual_memory().total / 2**30)
    return {"cpu": model, "cores": cores, "memory_gib": memory, "system": platform.system()}


def commit(root: Path = ROOT) -> str:
    """The measured commit of a checkout, with -dirty if tracked files have changed."""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.check_output([*git, "rev-parse", "--short=10", "HEAD"], text=True).strip()
        changed = subprocess.check_output([*git, "status", "--porcelain", "--untracked-files=no"], text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("-dirty" if changed else "")


def installed(names: Sequence[str]) -> dict[str, str]:
    """Versions of the installed packages."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
