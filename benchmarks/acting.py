"""Acting without learning, through the real actors: steps per second against plain loops over env.step."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from typing import Any

from paired import HERE, Bench, Ratio, Variant, arguments

METRICS = {"steps_per_second": "1/s", "wall_s": "s"}
ENVS = {"CartPole-v1": 0.55, "HalfCheetah-v5": 0.8}  # environment: bar
WORKERS, STREAMS, UNROLL = 2, 16, 256  # streams of each worker
READY_SECONDS = 8.0  # the two plain loops have this time before they start together
NOTE = (
    "Ours: 2 workers x 16 streams, unrolls of 256, 2x64 tanh nets; actions are sampled with their log-probabilities, "
    "unrolls delivered and joined, values computed for all rows in the learner's process, and weights published. "
    "`in turn`: actors wait meanwhile; `overlapped`: they go on. Plain loops: two processes side by side, 16 "
    "environments each in turn, gymnasium.make's defaults, random actions drawn beforehand, nothing kept; their rates "
    "are added."
)


def act(env: str, seconds: float, overlap: bool) -> dict[str, Any]:
    """Acts, joins unrolls, computes values and publishes weights for this number of seconds, after a warm-up."""
    from rltrain.config.run_config import PRELOAD
    from rltrain.rollout.workers.fork_server import start_fork_server

    start_fork_server(list(PRELOAD))
    import torch

    from rltrain.config.load import load
    from rltrain.learner.algorithm import make_algorithm, torch_device
    from rltrain.learner.learner import Learner
    from rltrain.rollout.scheduler import Rollout
    from rltrain.rollout.types import Weights
    from rltrain.setup.environment import open_environment
    from rltrain.setup.rollout import rollout_spec
    from rltrain.system.torch_setup import quiet_torch

    streams = WORKERS * STREAMS
    config = load(
        {
            "algo": "ppo",
            "env": env,
            "preset": "none",
            "vector": "serial",
            "workers": WORKERS,
            "streams": streams,
            "unroll": UNROLL,
        }
    )
    quiet_torch(config.learner_threads)
    here = open_environment(config)[0]
    algorithm = make_algorithm(config, here.spec)
    learner = Learner(algorithm, torch_device("cpu"))
    plan = rollout_spec(config, here, algorithm.plan)
    weights = learner.weights(0).arrays
    rollout = Rollout(plan, Weights(0, 0, weights), lambda lost: sys.exit(f"an actor was lost: {lost.detail}"))
    version, checksum = 0, 0.0

    def turn() -> None:
        nonlocal version, checksum
        rollout.start()
        unrolls = rollout.gather()
        if overlap:
            rollout.start()
        batch = learner.feed.delivery(unrolls)
        with torch.no_grad():
            checksum += float(algorithm.policy.value(batch.obs, None, batch.first).mean())
        version += 1
        rollout.publish(Weights(version, rollout.steps, weights))

    for _ in range(3):
        turn()
    before, began = rollout.steps, time.perf_counter()
    while time.perf_counter() - began < seconds:
        turn()
    speed = (rollout.steps - before) / (time.perf_counter() - began)
    rollout.close()
    return {"steps_per_second": speed, "value_sum": checksum}


def run(bench: Bench, command: list[str], _: int) -> dict[str, Any]:
    """A function that runs the command once."""
    return bench.call(command)


def plain(bench: Bench, env: str, seconds: float, _: int) -> dict[str, Any]:
    """Two plain loops that start together."""
    start = time.time() + READY_SECONDS
    command = [sys.executable, str(HERE / "peers" / "plain_loop.py"), env, str(STREAMS), str(seconds), str(start)]
    loops = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=bench.scratch) for _ in range(2)]
    outputs = [loop.communicate()[0] for loop in loops]
    if any(loop.returncode for loop in loops):
        raise RuntimeError("a plain loop failed; its message is above")
    return {"steps_per_second": sum(bench.numbers(output)["steps_per_second"] for output in outputs)}


def main() -> None:
    options = arguments(
        __doc__,
        act={"choices": ENVS, "help": argparse.SUPPRESS},  # our variant, in its own process
        overlap={"action": "store_true", "help": argparse.SUPPRESS},
        seconds={"type": float, "help": "of each measurement [5; 1 with --quick]"},
    )
    seconds = options.seconds or (1.0 if options.quick else 5.0)
    if options.act:
        print(json.dumps(act(options.act, seconds, options.overlap)))
        return
    bench = Bench("acting", options, METRICS)
    variants, ratios = [], []
    for env, bar in ENVS.items():
        command = [sys.executable, str(HERE / "acting.py"), "--act", env, "--seconds", str(seconds)]
        for name, words in {f"ours {env} in turn": command, f"ours {env} overlapped": [*command, "--overlap"]}.items():
            variants.append(Variant(name, bench.shown(words), partial(run, bench, words)))
            if name.endswith("in turn"):
                shown = f"python benchmarks/peers/plain_loop.py {env} {STREAMS} {seconds:g} START, twice"
                variants.append(Variant(f"2 loops {env}", shown, partial(plain, bench, env, seconds)))
        if options.peers:
            peer = bench.peer("sample_sb3.py", env, seconds)
            variants.append(Variant(f"sb3 subproc {env}", bench.shown(peer), partial(run, bench, peer)))
        ours = [f"ours {env} in turn", f"ours {env} overlapped"]
        ratios.append(Ratio(env, ours, f"2 loops {env}", "steps_per_second", "at least", bar))
        ratios.append(Ratio(env, ours, f"sb3 subproc {env}", "steps_per_second", "at least"))
    bench.report(variants, bench.alternate(variants), ratios, NOTE)


if __name__ == "__main__":
    main()
