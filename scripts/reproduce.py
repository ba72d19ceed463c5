"""Trains a tuned configuration with several seeds, judges it, writes configs/results/<algo>/<env>.json.

A seed passes if it reaches the bar in configs/results/bars.json within the bar's steps. The measured value is the mean
of 30 greedy evaluation episodes of the last checkpoint ("eval") or the mean of the last 100 training episodes
("train"). If the bar has "last_three", each of the last three evaluations of the run must reach that value too. The
configuration passes if at least 2 of 3 seeds pass and no seed is at random level: within a tenth of the way from a
random policy's return to the bar. A second result for an algorithm and environment has its own name: `--as plain`
writes <env>-plain.json, and is judged by the bar <env>-plain.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "configs" / "results"
EPISODES = 30  # episodes of the evaluation at the end
RANDOM_SHARE = 0.1  # of the way from random to the bar; a seed below that is at random level


def judge(seeds: list[dict[str, Any]], bar: dict[str, Any] | None) -> dict[str, Any]:
    """Applies the rule above: adds `passed` for each seed and for all; None without a bar."""
    if bar is None:
        return {"passed": None, "seeds": [{**seed, "passed": None} for seed in seeds]}
    judged = []
    lowest = bar["random"] + RANDOM_SHARE * (bar["return"] - bar["random"])
    for seed in seeds:
        passed = seed["measured"] >= bar["return"] and seed["steps"] <= within(bar, seed)
        if "last_three" in bar:
            last = [value for _, value in seed["curve"][-3:]]
            passed = passed and len(last) == 3 and min(last) >= bar["last_three"]
        judged.append({**seed, "passed": passed})
    enough = 3 * sum(seed["passed"] for seed in judged) >= 2 * len(judged) and len(judged) >= 3
    return {"passed": enough and all(seed["measured"] > lowest for seed in judged), "seeds": judged}


def within(bar: dict[str, Any], seed: dict[str, Any]) -> int:
    """The bar's steps, and the rest of the unrolls that were in progress at that step."""
    return int(bar["steps"]) + int(seed["batch"]) * (2 if seed.get("overlap") else 1)


def bar_of(algo: str, env: str, name: str | None = None) -> dict[str, Any] | None:
    """The bar of an algorithm and environment, or None."""
    bars: dict[str, Any] = json.loads((RESULTS / "bars.json").read_text())
    bar: dict[str, Any] | None = bars.get(algo, {}).get(env.rpartition(":")[2] + ending(name))
    return bar


def ending(name: str | None) -> str:
    """The suffix of a second result: "" or "-name"."""
    return f"-{name}" if name else ""


def train(algo: str, env: str, seed: int, rest: list[str]) -> dict[str, Any]:
    """Trains one seed and evaluates the last checkpoint, each in its own process."""
    with tempfile.TemporaryDirectory() as out:
        line = call("main", [*command(algo, env, seed, rest), "--json", "--quiet", "--out", out])
        run = Path(line["run"])
        found = call("main_eval", [str(run), "--episodes", str(EPISODES), "--json"])
        config = json.loads((run / "run.json").read_text())["config"]
        rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    curve = sorted((row["step"], row["eval/return_mean"]) for row in rows if "eval/return_mean" in row)
    return {
        "seed": seed,
        "eval_return": found["return_mean"],
        "eval_std": found["return_std"],
        "eval_episodes": found["episodes"],
        "train_return": line["train_return"],
        "steps": line["steps"],
        "seconds": round(line["seconds"], 1),
        "steps_per_second": round(line["steps_per_second"]),
        "batch": config["streams"] * config["settings"].get("unroll", 1),
        "overlap": config["settings"].get("overlap", False),
        "fingerprint": line["fingerprint"],
        "curve": curve,
    }


def command(algo: str, env: str, seed: int | str, rest: list[str]) -> list[str]:
    """The flags of one seed."""
    return ["--algo", algo, "--env", env, "--seed", str(seed), *rest]


def call(entry: str, argv: list[str]) -> dict[str, Any]:
    """The last line of rltrain (`main`) or rleval (`main_eval`), which is JSON."""
    code = f"import sys, rltrain.cli; sys.exit(rltrain.cli.{entry}(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"reproduce: {entry} {' '.join(argv)} ended with status {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def commit() -> str:
    """The current commit, with "+" if tracked files have changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", "rl", "algorithms", "rollout", "envs", "configs"
    )
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def machine() -> dict[str, Any]:
    """The hardware and the versions."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.M)
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: metadata.version(name) for name in ("torch", "gymnasium", "numpy")}
    return {
        "cpu": model,
        "cores": cores,
        "load": round(os.getloadavg()[0], 1),  # processes that wanted a core in the minute before
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/reproduce",
        allow_abbrev=False,
        description="Trains over seeds and writes the result. Other flags are handed on to rltrain.",
    )
    parser.add_argument("algo")
    parser.add_argument("env")
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas between [0,1,2]")
    parser.add_argument("--at-once", type=int, default=1, help="seeds side by side, each of them slower [1]")
    parser.add_argument("--as", dest="name", help="name of a second result for the same algorithm and environment")
    args, rest = parser.parse_known_args()
    if args.name is not None and not re.fullmatch(r"[a-z0-9-]+", args.name):
        parser.error(f"--as {args.name!r}: small letters, digits and - only; it becomes part of a file's name")
    sys.path.insert(0, str(ROOT))
    from rltrain.config.presets import file_name, find

    preset = find(args.algo, args.env) if "--preset" not in rest else None
    tuned = None if preset is None else preset.read_text()
    bar, made_with = bar_of(args.algo, args.env, args.name), {"commit": commit(), "machine": machine()}

    def measured(seed: int) -> dict[str, Any]:
        found = train(args.algo, args.env, seed, rest)
        value = found["train_return"] if bar is not None and bar["metric"] == "train" else found["eval_return"]
        print(f"seed {seed}: return {value:.1f} after {found['steps']:,} steps, {found['seconds']:.0f} s", flush=True)
        return {**found, "measured": value}

    with ThreadPoolExecutor(max(1, args.at_once)) as pool:
        judged = judge(list(pool.map(measured, map(int, args.seeds.split(",")))), bar)
    result = {
        "algo": args.algo,
        "env": args.env,
        "as": args.name,
        "command": " ".join(["rltrain", *command(args.algo, args.env, "SEED", rest)]),
        "made_by": " ".join(["scripts/reproduce", *sys.argv[1:]]),
        "preset": tuned,
        **made_with,
        "bar": bar,
        **judged,
    }
    stem = file_name(args.env).removesuffix(".toml")
    file = RESULTS / args.algo / f"{stem}{ending(args.name)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    text = re.sub(r"\[\s+(\d+),\s+(-?[\d.e+-]+)\s+\]", r"[\1, \2]", text)  # a point of a curve on one line
    file.write_text(text + "\n")
    print(f"passed: {judged['passed']}; wrote {file.relative_to(ROOT)}")
    return 0 if judged["passed"] in (True, None) else 1


if __name__ == "__main__":
    sys.exit(main())
