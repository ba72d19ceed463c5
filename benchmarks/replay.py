"""Sampling 256 transitions from a full replay, vectors and images: microseconds per batch against peers."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import Any

import numpy as np
from paired import HERE, Bench, Ratio, Variant, arguments

METRICS = {"us_per_batch": "us", "us_per_update": "us", "memory_gib": "GiB"}
ROWS = {
    "vector": 1_000_000,
    "images": 50_000,
}  # fewer images, since most peers store each frame eight times: 2.6 GiB here
ALL = 1_000_000  # images in a variant of ours that measures memory
NOTE = (
    "A batch is 256 transitions, tensors on the CPU, one thread. `vector`: 1,000,000 rows of 17 floats and 6 actions. "
    "`images`: 50,000 rows of 84x84x4 uint8 for all sides, since most peers keep four frames twice for each row; ours "
    "once more with 1,000,000. `lean`: the peer's own way to keep an observation once (Stable-Baselines3's "
    "optimize_memory_usage; Tianshou's ignore_obs_next, with save_only_last_obs for images). `us_per_update`: new "
    "priorities for a batch. `memory_gib`: PSS of the whole process. Wanted: prioritised at most 150 us a batch of "
    "vectors; 1,000,000 images in at most 8 GB (7.45 GiB)."
)


def sample(obs: str, rows: int, priorities: bool, seconds: float) -> dict[str, Any]:
    """Measures the time of a batch of our replay when it is full."""
    sys.path.insert(0, str(HERE / "peers"))
    import torch
    from sampling import ALPHA, BATCH, BETA, GAMMA, errors, memory_gib, timed

    from rltrain.rollout.replay.replay import Replay
    from rltrain.rollout.specs import ReplayPlan
    from rltrain.rollout.types import Transition

    torch.set_num_threads(1)
    plan = ReplayPlan(
        unroll=250,
        capacity=rows,
        batch=BATCH,
        warmup=0,
        updates_per_step=1.0,
        gamma=GAMMA,
        alpha=ALPHA if priorities else 0.0,
        beta=BETA,
    )
    replay = Replay(spec(obs), 1, plan, 0)
    for begin in range(0, rows + plan.unroll, plan.unroll):
        replay.append(unroll(obs, begin, plan.unroll))

    def batch() -> tuple[torch.Tensor, ...]:
        found = replay.sample(0.5)
        assert isinstance(found, Transition)
        arrays = [found.obs, found.action, found.reward, found.discount, found.next_obs]
        arrays += [found.weight, found.index] if priorities else []
        return tuple(torch.from_numpy(array) for array in arrays)

    numbers: dict[str, Any] = {"us_per_batch": timed(batch, seconds), "memory_gib": memory_gib()}
    if priorities:
        index, error = batch()[-1].numpy(), errors()
        numbers["us_per_update"] = timed(lambda: replay.reprioritise(index, error), seconds / 4)
    return numbers


def spec(obs: str) -> Any:
    """The spec of the environment of the rows."""
    from sampling import ACTION, OBS, PIXELS, STACK

    from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf

    if obs == "vector":
        box = ActionSpec("box", (ACTION,), low=(-1.0,) * ACTION, high=(1.0,) * ACTION)
        return EnvSpec("vectors", Leaf("box", (OBS,), "float32"), box)
    leaf = Leaf("image", (STACK, PIXELS, PIXELS), "uint8", stack=STACK)
    return EnvSpec("images", leaf, ActionSpec("discrete", (), (6,)))


def unroll(obs: str, begin: int, count: int) -> Any:
    """Rows `begin` to `begin + count` of one stream, whose episodes have EPISODE steps; all frames differ."""
    from sampling import ACTION, EPISODE, OBS, PIXELS, STACK

    from rltrain.rollout.types import Trajectory

    row = np.arange(begin, begin + count + 1)
    step = row % (EPISODE + 1)
    if obs == "vector":
        seen = np.sin(row[:, None] * np.arange(1, OBS + 1), dtype=np.float64).astype(np.float32)
        action = np.cos(row[:-1, None] * np.arange(1, ACTION + 1)).astype(np.float32)
    else:
        frame = row[:, None] - np.minimum(np.arange(STACK)[::-1], step[:, None])  # [T+1, 4] row of each frame
        line = (frame * 7).astype(np.uint8)[..., None, None] + np.arange(PIXELS, dtype=np.uint8)
        seen, action = np.broadcast_to(line, (*frame.shape, PIXELS, PIXELS)), row[:-1] % 6
    return Trajectory(
        obs=seen[:, None],
        action=action[:, None],
        reward=np.ones((count, 1), np.float32),
        terminated=step[:-1, None] == EPISODE - 1,
        truncated=np.zeros((count, 1), bool),
        first=step[:, None] == 0,
        version=np.zeros(1, np.int64),
        stream=np.zeros(1, np.int64),
        row=np.array([begin]),
    )


def run(bench: Bench, command: list[str], _: int) -> dict[str, Any]:
    """A function that runs the command once."""
    return bench.call(command, env={"OMP_NUM_THREADS": "1"})


def main() -> None:
    options = arguments(
        __doc__,
        sample={"choices": ROWS, "help": argparse.SUPPRESS},  # our variant, in its own process
        rows={"type": int, "help": argparse.SUPPRESS},
        priorities={"action": "store_true", "help": argparse.SUPPRESS},
        seconds={"type": float, "help": "of each measurement [4; 0.5 with --quick]"},
    )
    seconds = options.seconds or (0.5 if options.quick else 4.0)
    if options.sample:
        print(json.dumps(sample(options.sample, options.rows, options.priorities, seconds)))
        return
    bench = Bench("replay", options, METRICS)
    variants, ratios = [], []

    def add(name: str, command: list[str], runs: int | None = None) -> None:
        variants.append(Variant(name, bench.shown(command), partial(run, bench, command), runs))

    def mine(obs: str, rows: int, words: list[str]) -> list[str]:
        own = [sys.executable, str(HERE / "replay.py"), "--sample", obs, "--rows", str(rows)]
        return [*own, "--seconds", str(seconds), *words]

    for obs, most in ROWS.items():
        rows = most // 20 if options.quick else most
        for kind, words in (("uniform", []), ("prioritised", ["--priorities"])):
            name = f"{obs} {kind}"
            add(f"ours {name}", mine(obs, rows, words))
            if not options.peers:
                continue
            peers = [("torchrl", []), ("tianshou", []), ("tianshou", ["--lean"])]
            if kind == "uniform":
                peers = [("sb3", []), ("sb3", ["--lean"]), *peers]
            for peer, more in peers:
                label = f"{peer}{' lean' if more else ''} {name}"
                add(label, bench.peer(f"replay_{peer}.py", obs, rows, "--seconds", seconds, *words, *more))
                bar = 1.1 if kind == "uniform" else None
                ratios.append(Ratio(name, [f"ours {name}"], label, "us_per_batch", "at most", bar))
    if not options.quick:
        add("ours images uniform, 1,000,000 rows", mine("images", ALL, []), runs=1)
    bench.report(variants, bench.alternate(variants), ratios, NOTE)


if __name__ == "__main__":
    main()
