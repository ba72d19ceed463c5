"""Throughput of IMPALA over actors, streams and nodes, the costs of a step, and a model made from them.

A node is a Dask worker on loopback, or one in a network namespace behind a wire of 100 Mbit/s and 20 ms: see wire.py.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import wire
from paired import BIN, HERE, Bench, Numbers, Ratio, Variant, arguments

METRICS = {
    "steady_steps_per_second": "1/s",
    "model": "1/s",
    "learner_us": "CPU us a step",
    "actors_us": "CPU us a step",
    "nodes_us": "CPU us a step",
    "bytes": "bytes a step",
    "lag_mean": "updates",
    "actors_waiting": "share of theirs",
}
BAR = 0.8
MBITS, DELAY = 100.0, 0.02
CORES, GBITS = 16, 10.0  # cores of a node and bandwidth of the network in the forecast
SLEEP = 0.01  # seconds per step of the simulator that needs no core
MAX_IN_FLIGHT = 4  # unrolls an actor may be ahead of the learner, so that it does not wait for the network
COMMON = f"""--algo impala --preset none --vector serial --lr-end none --optimizer adam --lr 5e-4
    --max-in-flight {MAX_IN_FLIGHT} --steps 1000000000 --eval-every 0 --checkpoint-every 0 --quiet --json""".split()
WORK = {
    "mlp": "--env HalfCheetah-v5 --unroll 128 --wait 8 --widths 64,64 --activation tanh".split(),
    "pixels": "--env ALE/Pong-v5 --unroll 32 --wait 8 --shared-torso --torso nature".split(),
    "simulator": [
        *f"--env {HERE / 'paced.py'}:sleeping --env-arg pause={SLEEP}".split(),
        *"--unroll 16 --wait 8".split(),
    ],
}
NOTE = (
    "IMPALA, streams shared evenly by the actors. `learner_us`: processor time of the learner's process for each step, "
    "sending and receiving with it; `actors_us`: of the actors; `nodes_us`: of the Dask workers, which relay; `bytes`: "
    "of unrolls over the wire. `nodes`: two Dask workers on loopback; `wire`: both actors in a host of its own, behind "
    "a wire without limits; `far`: the same with 100 Mbit/s and 20 ms in each direction. `model`: the least of what "
    "the learner, the two cores and the wire allow, with the costs that this very run shows."
)


@dataclass(frozen=True)
class Point:
    """One measurement."""

    work: str
    place: str  # processes, nodes, wire, far
    workers: int
    streams: int  # in total

    @property
    def name(self) -> str:
        return f"{self.work} {self.place} {self.workers} x {self.streams // self.workers}"


POINTS = [
    *(Point("mlp", "processes", workers, streams) for workers, streams in ((1, 8), (2, 16), (2, 64))),
    *(Point("mlp", place, 2, 16) for place in ("nodes", "wire", "far")),
    *(Point("pixels", "processes", workers, streams) for workers, streams in ((1, 8), (2, 16))),
    *(Point("pixels", place, 2, 16) for place in ("nodes", "wire", "far")),
    *(Point("simulator", "processes", workers, 8 * workers) for workers in (1, 4, 16)),
    *(Point("simulator", place, 4, 32) for place in ("nodes", "far")),
]


@contextlib.contextmanager
def fleet(folder: Path, place: str) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Starts a scheduler and its nodes; yields the scheduler file and the Dask workers."""
    with contextlib.ExitStack() as stack:
        inside: list[str] = []
        if place in ("wire", "far"):
            limits = (1e6 * MBITS, DELAY) if place == "far" else (None, 0.0)
            inside = stack.enter_context(wire.host("rlfar", *limits))
        file = folder / f"scheduler-{time.time_ns()}.json"
        common = ["--scheduler-file", str(file), "--no-dashboard"]
        address = wire.HERE if inside else "127.0.0.1"
        log = folder / f"{file.stem}.log"
        nodes = 1 if inside else 2
        words = [[str(BIN / "dask"), "scheduler", "--host", address, "--port", "0", *common]]
        worker = [str(BIN / "dask"), "worker", "--no-nanny", "--death-timeout", "20", "--nthreads", str(4 // nodes)]
        words += [[*inside, *worker, *(["--host", wire.THERE] if inside else []), *common]] * nodes
        processes: list[psutil.Process] = []
        for command in words:
            with log.open("ab") as out:
                process = subprocess.Popen(command, stdout=out, stderr=out)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(psutil.Process(process.pid))
            _wait(process, log, file.exists)
        _wait(process, log, lambda: log.read_text().count("Registered to") >= nodes)
        yield str(file), processes[1:]


def _wait(process: subprocess.Popen[bytes], log: Path, until: Callable[[], bool]) -> None:
    while not until():
        if process.poll() is not None:
            raise RuntimeError(f"dask ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def seconds_of(processes: Sequence[psutil.Process]) -> float:
    """CPU time of these processes."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def children_of(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [child for process in processes for child in process.children(recursive=True)]


def measure(bench: Bench, command: Sequence[str], nodes: Sequence[psutil.Process], seconds: float) -> Numbers:
    """Runs a command for a while after its first updates, and measures it."""
    runs = bench.scratch / "runs"
    before = set(runs.glob("*")) if runs.exists() else set()
    run = subprocess.Popen(command, cwd=bench.scratch, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        main = psutil.Process(run.pid)

        def lines() -> list[dict[str, Any]]:
            new = set(runs.glob("*")) - before if runs.exists() else set()
            files = [folder / "metrics.jsonl" for folder in new if (folder / "metrics.jsonl").exists()]
            text = files[0].read_text() if files else ""
            return [json.loads(line) for line in text.splitlines() if '"time/acting"' in line and line.endswith("}")]

        while len(lines()) < 3:  # the first lines include the start
            if run.poll() is not None:
                assert run.stderr is not None
                raise RuntimeError(f"{bench.shown(command)} ended with {run.returncode}:\n{run.stderr.read()[-2000:]}")
            time.sleep(0.1)
        actors = children_of([main, *nodes])
        first, began = lines()[-1], [seconds_of(group) for group in ([main], actors, nodes)]
        time.sleep(seconds)
        last, ended = lines()[-1], [seconds_of(group) for group in ([main], actors, nodes)]
    finally:
        run.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.communicate(timeout=20)
        run.kill()
    steps, wall = last["step"] - first["step"], last["seconds"] - first["seconds"]
    measured = [line for line in lines() if first["step"] < line["step"] <= last["step"]]
    learner, acting, relays = (
        1e6 * (end - begin) / steps * wall / seconds for begin, end in zip(began, ended, strict=True)
    )
    return {
        "steady_steps_per_second": steps / wall,
        "learner_us": learner,
        "actors_us": acting,
        "nodes_us": relays,
        "bytes": sum(line.get("cluster/unrolls_bytes", 0.0) for line in measured) / steps,
        "lag_mean": sum(line["rollout/policy_lag_mean"] for line in measured) / len(measured),
        "actors_waiting": last["time/actors_waiting"],
        "wall_s": wall,
    }


def modelled(point: Point, numbers: Numbers) -> float:
    """Steps per second: the minimum of the limits by the learner, the cores, the simulators and the network."""
    learner, actors, nodes = (numbers[f"{who}_us"] / 1e6 for who in ("learner", "actors", "nodes"))
    allowed = [1 / learner, psutil.cpu_count() / (learner + actors + nodes)]
    if point.work == "simulator":
        allowed.append(point.workers / (SLEEP + actors))
    else:
        allowed.append(point.workers / actors)
    if point.place == "far":
        sent = 8 * numbers["bytes"] / (1e6 * MBITS)  # seconds per step
        words = WORK[point.work]
        steps = int(words[words.index("--unroll") + 1]) * point.streams // point.workers  # of an actor's unroll
        busy = (
            steps / (allowed[-1] / point.workers) + steps * sent + 2 * DELAY
        )  # until it may begin the next but MAX_IN_FLIGHT
        allowed += [1 / sent, MAX_IN_FLIGHT * point.workers * steps / busy]
    return min(allowed)


def forecast(medians: Mapping[str, Mapping[str, float]]) -> str:
    """A table of the throughput that the model predicts for nodes with CORES cores on a network of GBITS."""
    lines = ["| steps per second | learner allows | wire allows | 1 node | 16 nodes | 64 nodes | 256 nodes |"]
    lines.append("| --- " * 7 + "|")
    for work, place in (("mlp", "nodes 2 x 8"), ("pixels", "nodes 2 x 8"), ("simulator", "nodes 4 x 8")):
        costs = medians.get(f"{work} {place}")
        if costs is None:
            continue
        learner, wire_allows = 1e6 / costs["learner_us"], 1e9 * GBITS / 8 / costs["bytes"]
        actor = (costs["actors_us"] + costs["nodes_us"]) / 1e6 + (SLEEP if work == "simulator" else 0.0)
        cells = []
        for nodes in (1, 16, 64, 256):
            walls = {"actors": nodes * CORES / actor, "learner": learner, "wire": wire_allows}
            wall = min(walls, key=lambda name: walls[name])
            cells.append(f"{walls[wall]:,.0f} ({wall})")
        lines.append(f"| {work} | {learner:,.0f} | {wire_allows:,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    options = arguments(
        __doc__,
        seconds={"type": float, "help": "of each measurement [10; 3 with --quick]"},
        work={"help": "which, with commas between: mlp,pixels,simulator [all]"},
    )
    bench = Bench("scaling", options, METRICS)
    seconds = options.seconds or (3.0 if options.quick else 10.0)
    missing = wire.possible()
    if missing is not None:
        print(f"without the host behind a wire: it {missing}")
    variants = []
    for point in POINTS:
        if point.work not in (options.work or ",".join(WORK)).split(",") or (
            missing and point.place in ("wire", "far")
        ):
            continue
        command = [str(BIN / "rltrain"), *COMMON, *WORK[point.work], "--workers", str(point.workers)]
        command += ["--streams", str(point.streams)]

        def run(index: int, point: Point = point, command: list[str] = command) -> Numbers:
            words = [*command, "--seed", str(index)]
            if point.place == "processes":
                numbers = measure(bench, words, [], seconds)
            else:
                with fleet(bench.scratch, point.place) as (file, nodes):
                    numbers = measure(bench, [*words, "--cluster", file], nodes, seconds)
            return numbers | {"model": modelled(point, numbers)}

        where = [] if point.place == "processes" else ["--cluster", "SCHEDULER.json"]
        variants.append(Variant(point.name, bench.shown([*command, "--seed", "{seed}", *where]), run))
    metric, ratios = "steady_steps_per_second", []
    for work in ("mlp", "pixels"):
        bar = BAR if work == "pixels" else None
        ratios.append(Ratio("100 Mbit/s, 20 ms", [f"{work} far 2 x 8"], f"{work} wire 2 x 8", metric, "at least", bar))
        ratios.append(
            Ratio("nodes on loopback", [f"{work} nodes 2 x 8"], f"{work} processes 2 x 8", metric, "at least")
        )
    data = bench.report(variants, bench.alternate(variants), ratios, NOTE)
    print(f"\nforecast for nodes of {CORES} cores, an actor each, and {GBITS:g} Gbit/s\n{forecast(data['medians'])}")


if __name__ == "__main__":
    main()
