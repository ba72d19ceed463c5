"""Learning from recorded data: the last policy of each algorithm over some seeds, beside d3rlpy on the same files.

    python benchmarks/offline.py million|pendulum|lunar|ENV:KIND [--algos bc,cql] [--updates N] [--seeds 3]
                                 [--first-seed 100] [--episodes 50] [--folder DIR] [--d3rlpy DIR]

million: only the seconds until a run on a million rows of HalfCheetah's shape begins to learn. pendulum: the first
10,000 steps of SAC. lunar: 500 episodes of gymnasium's heuristic, half of whose actions are random, and 500 of random
actions. ENV:KIND: data of `rldata make`, as HalfCheetah-v5:medium. `--d3rlpy DIR` is the folder of
`benchmarks/peers.sh DIR d3rlpy`. Data is made once in --folder. Prints a row for each algorithm: the mean return of the
last policy of each seed, which plays the same episodes on both sides, and the processor time of our run, or of
d3rlpy's updates.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import rltrain

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))
from episodes import returns  # noqa: E402

RLDATA = str(Path(sys.executable).with_name("rldata"))
HEURISTIC = '''
from types import SimpleNamespace

import numpy as np
from gymnasium.envs.box2d.lunar_lander import heuristic

rng = np.random.default_rng(0)
lander = SimpleNamespace(unwrapped=SimpleNamespace(continuous=False))

def act(obs):
    """The heuristic's action, and half of the time a random one."""
    return int(rng.integers(4)) if rng.random() < 0.5 else int(heuristic(lander, obs))
'''


def call(*words: object) -> None:
    subprocess.run([RLDATA, *map(str, words)], check=True, stdout=sys.stderr)


def pendulum(folder: Path) -> str:
    rltrain.train(
        algo="sac", env="Pendulum-v1", steps=10_000, seed=0, workers=0, eval_every=0, quiet=True,
        out=str(folder), name="sac", record=str(folder / "data"),
    )  # fmt: skip
    return "Pendulum-v1"


def lunar(folder: Path) -> str:
    (folder / "lander.py").write_text(HEURISTIC)
    env, words = "LunarLander-v3", ("--env", "LunarLander-v3", "--episodes", 500)
    call("record", f"{folder / 'lander.py'}:act", folder / "half", *words)
    call("record", "random", folder / "random", *words, "--seed", 1)
    call("merge", folder / "half", folder / "random", folder / "data")
    return env


def made(name: str, folder: Path) -> str:
    env, _, kind = name.partition(":")
    call("make", env, folder / "data", "--kind", kind)
    return env


class Begun(rltrain.Callback):
    """Notes when a run has its data and begins."""

    def on_start(self, run: rltrain.RunView) -> None:
        self.at = time.perf_counter()


def cheetah_rows(file: Path, rows: int) -> None:
    """Writes random rows of HalfCheetah's shape in D4RL's layout."""
    draw = np.random.default_rng(0)
    obs = draw.standard_normal((rows, 17), np.float32)
    arrays = {
        "observations": obs,
        "next_observations": np.roll(obs, -1, 0),
        "actions": draw.uniform(-1, 1, (rows, 6)).astype(np.float32),
        "rewards": draw.standard_normal(rows, np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % 1_000 == 999,
    }
    with h5py.File(file, "w") as written:
        for name, array in arrays.items():
            written[name] = array


def million(folder: Path) -> None:
    """Prints how long a run takes to read a million rows, checksums and statistics of observations included."""
    folder.mkdir(parents=True, exist_ok=True)
    cheetah_rows(folder / "rows.hdf5", 1_000_000)
    began = time.perf_counter()
    call("import", folder / "rows.hdf5", folder / "data", "--env", "HalfCheetah-v5")
    print(f"rldata import: {time.perf_counter() - began:.1f} s")
    for run in range(3):
        callback, began = Begun(), time.perf_counter()
        rltrain.train(
            algo="td3_bc", env="HalfCheetah-v5", data=str(folder / "data"), steps=1, seed=run, workers=0, quiet=True,
            eval_every=0, checkpoint_every=0, out=str(folder / "runs"), callbacks=[callback],
        )  # fmt: skip
        print(f"until the run begins to learn: {callback.at - began:.1f} s", flush=True)


DATA: dict[str, Callable[[Path], str]] = {"pendulum": pendulum, "lunar": lunar}
ALGOS = {"pendulum": "bc,td3_bc,implicit_q", "lunar": "bc,cql,implicit_q"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data")
    parser.add_argument("--algos", default="")
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--d3rlpy", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of ours, as JSON")
    given = parser.parse_args()
    folder = (given.folder or Path(tempfile.mkdtemp())) / given.data.replace(":", "-")
    if given.data == "million":
        million(folder)
        return
    if not (folder / "env").exists():
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted call has left
        folder.mkdir(parents=True)
        env = DATA[given.data](folder) if given.data in DATA else made(given.data, folder)
        call("export", folder / "data", folder / "data.npz")
        (folder / "env").write_text(env)
    env = (folder / "env").read_text()
    settings = {name: json.loads(value) for name, _, value in (word.partition("=") for word in given.set)}
    algos = [word for word in (given.algos or ALGOS.get(given.data, "bc,td3_bc,implicit_q,cql")).split(",") if word]
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    print(f"{given.data}: {given.updates:,} updates, {given.episodes} episodes of the last policy, seeds {[*seeds]}")
    for algo in algos:
        show(f"{algo} {settings or ''}", [ours(algo, env, folder, seed, given, settings) for seed in seeds])
        if given.d3rlpy is not None:
            show(f"{algo} of d3rlpy", [d3rlpy(algo, env, folder, seed, given) for seed in seeds])


def ours(algo: str, env: str, folder: Path, seed: int, given: Any, settings: dict[str, Any]) -> tuple[float, float]:
    began = time.process_time()
    result = rltrain.train(
        algo=algo, env=env, data=str(folder / "data"), steps=given.updates, seed=seed, workers=0, quiet=True,
        eval_every=0, checkpoint_every=0, out=str(folder / "runs"), **settings,
    )  # fmt: skip
    seconds = time.process_time() - began
    return float(np.mean(returns(env, rltrain.load(result.run).act, given.episodes))), seconds


def d3rlpy(algo: str, env: str, folder: Path, seed: int, given: Any) -> tuple[float, float]:
    python = given.d3rlpy / "d3rlpy" / "bin" / "python"
    words = [algo, env, folder / "data.npz", given.updates, seed, given.episodes]
    done = subprocess.run(
        [python, HERE / "peers" / "offline_d3rlpy.py", *map(str, words)], check=True, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found["return"], found["cpu_s"]


def show(name: str, found: list[tuple[float, float]]) -> None:
    returns, seconds = zip(*found, strict=True)
    each = ", ".join(f"{value:.0f}" for value in returns)
    print(f"| {name} | {each} | mean {np.mean(returns):.0f} | {np.median(seconds):.0f} s |", flush=True)


if __name__ == "__main__":
    main()
