"""Small runs of every algorithm, resumed from each of their checkpoints: does each end as the uninterrupted run?

scripts/bench resume [names]; exit status 0 if all are equal. `tests/rl/test_every_checkpoint.py` tests some of them.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import rltrain
from rltrain.reporting.metrics import read
from rltrain.storage import checkpoint
from rltrain.storage.retention import find

COMMON: dict[str, Any] = {
    "streams": 4, "workers": 0, "steps": 330, "widths": (8,), "seed": 3, "preset": "none", "quiet": True,
    "checkpoint_every": 50, "eval_every": 70, "eval_episodes": 2, "keep": 99,
}  # fmt: skip
ON: dict[str, Any] = {"env": "CartPole-v1", "unroll": 8}
AHEAD = ON | {"workers": 2, "deterministic": True}
OFF: dict[str, Any] = {"env": "CartPole-v1", "unroll": 4, "warmup": 40, "batch": 8, "capacity": 200}
OFF |= {"updates_per_step": 0.3}
BOX = OFF | {"env": "Pendulum-v1", "eval_every": 130, "eval_episodes": 1}
DATA: dict[str, Any] = {"env": "CartPole-v1", "recorded": True, "batch": 8, "checkpoint_every": 90}
DATA_BOX = DATA | {"env": "Pendulum-v1", "eval_every": 130, "eval_episodes": 1}
ONLINE: dict[str, Any] = {"then_online": 170, "eval_every": 130, "eval_episodes": 1}
GRU: dict[str, Any] = {"memory": "gru", "memory_size": 8}
SEQUENCES: dict[str, Any] = {**GRU, "length": 5, "burn_in": 3}
NORMALIZE: dict[str, Any] = {"normalize_obs": True, "normalize_return": True}
POOL: dict[str, Any] = {"env": "tic-tac-toe", "opponents": "pool", "pool_size": 3, "pool_every": 60}
SERVED: dict[str, Any] = {"workers": 2, "inference": "central"}
RUNS: dict[str, dict[str, Any]] = {
    "ppo": {"algo": "ppo", **ON, "epochs": 2},
    "ppo-workers": {"algo": "ppo", **ON, "epochs": 2, "workers": 2},
    "ppo-gru": {"algo": "ppo", **ON, **GRU, **NORMALIZE, "sequence": 4},
    "ppo-box": {"algo": "ppo", **ON, "env": "Pendulum-v1", "eval_every": 130, **NORMALIZE},
    "ppo-sde": {"algo": "ppo", **ON, "env": "Pendulum-v1", "eval_every": 130, "sde": True, "sde_every": 5},
    "ppo-dict": {"algo": "ppo", **ON, "env": "probe:dict"},
    "ppo-masked": {"algo": "ppo", **ON, "env": "probe:masked"},
    "ppo-overlap": {"algo": "ppo", **AHEAD, "overlap": True, "epochs": 2},
    "ppo-central": {"algo": "ppo", **ON, **SERVED},
    "ppo-goal": {"algo": "ppo", **ON, "workers": 2, "stop_return": 21.0, "steps": 1500},
    "ppo-pool": {"algo": "ppo", **ON, **POOL},
    "ppo-agents": {"algo": "ppo", **ON, "env": "spread", **NORMALIZE},
    "ppo-learners": {"algo": "ppo", **ON, "learners": 2},
    "a2c": {"algo": "a2c", **ON},
    "a2c-gru": {"algo": "a2c", **ON, **GRU, "workers": 2},
    "a3c": {"algo": "a3c", **AHEAD},
    "a3c-gru": {"algo": "a3c", **AHEAD, **GRU},
    "impala": {"algo": "impala", **AHEAD, "wait": 2},
    "impala-actors": {"algo": "impala", **AHEAD, "wait": 1, "workers": 4, "eval_every": 45},
    "impala-gru": {"algo": "impala", **AHEAD, **GRU, **NORMALIZE, "wait": 2, "sequence": 4},
    "impala-pool": {"algo": "impala", **AHEAD, **POOL, "wait": 2},
    "impala-goal": {"algo": "impala", **AHEAD, "wait": 2, "stop_return": 21.0, "steps": 1500},
    "impala-lag": {"algo": "impala", **AHEAD, "wait": 1, "workers": 4, "max_lag": 2},
    "appo": {"algo": "appo", **AHEAD, "wait": 2, "buffer_size": 2, "reuse": 2},
    "appo-box": {"algo": "appo", **AHEAD, "env": "Pendulum-v1", "eval_every": 130, "wait": 2},
    "dqn": {"algo": "dqn", **OFF, "target_every": 20},
    "dqn-replay": {"algo": "dqn", **OFF, "prioritized": True, "n_step": 3, "double": True, "normalize_obs": True},
    "dqn-rainbow": {"algo": "dqn", **OFF, "noisy": True, "dueling": True, "atoms": 11, "v_min": 0.0, "v_max": 50.0},
    "rainbow": {"algo": "rainbow", **OFF, "target_every": 20},
    "dqn-overlap": {"algo": "dqn", **OFF, "workers": 2, "deterministic": True, "overlap": True},
    "dqn-disk": {"algo": "dqn", **OFF, "replay_on_disk": True, "workers": 2},
    "dqn-gru": {"algo": "dqn", **OFF, **SEQUENCES, "prioritized": True, "n_step": 2, "workers": 2},
    "sac": {"algo": "sac", **BOX},
    "sac-lstm": {"algo": "sac", **BOX, **SEQUENCES, "memory": "lstm", "normalize_obs": True},
    "sac-discrete": {"algo": "sac", **OFF, "prioritized": True},
    "sac-sde": {"algo": "sac", **BOX, "sde": True, "sde_every": 5},
    "crossq": {"algo": "crossq", **BOX, "widths_q": (8,)},
    "tqc": {"algo": "tqc", **BOX, "widths_q": (8,), "quantiles": 4, "drop": 1, "dropout": 0.1},
    "redq": {"algo": "redq", **BOX, "critics": 4, "policy_delay": 3},
    "droq": {"algo": "droq", **BOX, "policy_delay": 3},
    "td3": {"algo": "td3", **BOX, "normalize_obs": True},
    "ddpg": {"algo": "ddpg", **BOX, "noise_kind": "ou"},
    "td3_bc": {"algo": "td3_bc", **DATA_BOX},
    "implicit_q": {"algo": "implicit_q", **DATA, "layer_norm": True, "dropout": 0.1},
    "implicit_q-box": {"algo": "implicit_q", **DATA_BOX},
    "cql": {"algo": "cql", **DATA},
    "cql-box": {"algo": "cql", **DATA_BOX, "samples": 2},
    "awac": {"algo": "awac", **DATA},
    "awac-box": {"algo": "awac", **DATA_BOX},
    "marwil": {"algo": "marwil", **DATA, "n_step": 5},
    "marwil-box": {"algo": "marwil", **DATA_BOX},
    "cql-mixture": {"algo": "cql", **DATA, "mixture": True},
    "cql-online": {"algo": "cql", **DATA, **ONLINE},
    "td3_bc-online": {"algo": "td3_bc", **DATA_BOX, **ONLINE, "mixture": True},
    "implicit_q-online": {"algo": "implicit_q", **DATA_BOX, **ONLINE, "streams": 3, "workers": 2},
    "marwil-online": {"algo": "marwil", **DATA, **ONLINE, "n_step": 40},
    "bc": {"algo": "bc", **DATA, "filter_top": 0.4},
    "implicit_q-gru": {"algo": "implicit_q", **DATA, "memory": "gru", "memory_size": 4, "length": 4, "burn_in": 2},
    "td3_bc-lstm": {"algo": "td3_bc", **DATA_BOX, "memory": "lstm", "memory_size": 4, "length": 4, "burn_in": 2},
    "bc-box": {"algo": "bc", **DATA_BOX, "normalize_obs": True},
    "qmix": {"algo": "qmix", **OFF, "env": "two-step"},
    "qmix-gru": {"algo": "qmix", **OFF, **GRU, "env": "generations"},
    "vdn": {"algo": "vdn", **OFF, "env": "tic-tac-toe", "length": 3},
    "iql": {"algo": "iql", **OFF, "env": "generations", "last_action": True},
    "maddpg": {"algo": "maddpg", **OFF, "env": "generations"},
    "mappo": {"algo": "mappo", **ON, "env": "spread"},
    "mappo-gru": {"algo": "mappo", **ON, **GRU, "sequence": 4, "env": "spread", "workers": 2},
}


def outcome(run: Path) -> dict[str, Any]:
    """What a finished run reached: its complete state, its evaluations, its best policy and its checkpoints."""
    last, best = find(run)[0], find(run, best=True)[0]
    del last.state["lines"]  # of metrics.jsonl, in which progress is written once a second
    if not last.meta["config"]["deterministic"]:
        last.state["rollout"].pop("turn", None)  # of the actors; it is used only if their unrolls are taken in turn
    evaluations = [line for line in read(run) if "eval/return_mean" in line]
    for line in evaluations:
        del line["seconds"]
    return {
        "step": last.meta["step"],
        "exact": last.meta["exact"],
        "fingerprint": checkpoint.fingerprint(last.state["learner"]["parts"]),
        "state": checkpoint.fingerprint(last.state),
        "plain": plain(last.state),
        "evaluations": evaluations,
        "best": (best.meta["step"], best.meta["eval_return"], checkpoint.fingerprint(best.state)),
    }


def plain(state: Any) -> Any:
    """A state without its arrays: counters, schedules, generators, episodes."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    if isinstance(state, list):
        return [plain(value) for value in state]
    return None if hasattr(state, "dtype") else state


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints of the run's states, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def resume(run: Path, step: Path, folder: Path) -> dict[str, Any]:
    """The outcome of a copy of the run in `folder` that ended right after its checkpoint `step` and was resumed."""
    shutil.copytree(run, folder)
    for later in checkpoints_of(folder):
        if later.name > step.name:
            shutil.rmtree(later)
    (folder / "checkpoints" / "latest").write_text(step.name)
    rltrain.train(resume=folder, quiet=True)
    return outcome(folder)


def differences(name: str, folder: Path) -> tuple[int, list[str]]:
    """Trains the run, and resumes it from each checkpoint but the last; (number of resumes, what was not equal)."""
    given = COMMON | RUNS[name]
    if given.pop("recorded", False):
        given["data"] = folder / "data"
        mixture = given.pop("mixture", False)
        sac = {"env": given["env"], "steps": 400, "workers": 0, "warmup": 399, "eval_every": 0, "checkpoint_every": 0}
        rltrain.train(algo="sac", **sac, preset="none", quiet=True, record=given["data"], out=str(folder))
        if mixture:
            given["data"] = {given["data"]: 0.7, folder / "more": 0.3}
            rltrain.train(algo="sac", **sac, seed=1, preset="none", quiet=True, record=folder / "more", out=str(folder))
    first = rltrain.train(**given, out=str(folder))
    whole, paths = outcome(first.run), checkpoints_of(first.run)
    wrong: list[str] = []
    for path in paths[:-1]:
        again = resume(first.run, path, folder / f"from-{path.name}")
        unequal = [key for key in whole if again[key] != whole[key]]
        if checkpoints_of(folder / f"from-{path.name}")[-1].name != paths[-1].name:
            unequal.append("checkpoints")
        wrong += [f"{name} from {path.name}: {key}" for key in unequal]
        shutil.rmtree(folder / f"from-{path.name}")
    return len(paths) - 1, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RUNS)}")
    from rltrain.rollout.workers.fork_server import start_fork_server

    start_fork_server(["torch", "gymnasium", "rltrain.algorithms.on_policy.actor_critic"])
    total, failed = 0, 0
    for name in parser.parse_args().names or RUNS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            resumes, wrong = differences(name, Path(folder))
        total, failed = total + resumes, failed + len({text.partition(":")[0] for text in wrong})
        print(f"{name:14s} {resumes:3d} resumes, {time.monotonic() - began:5.1f} s", *wrong or ["all equal"], sep="  ")
        sys.stdout.flush()
    print(f"{total - failed} of {total} resumes ended as the uninterrupted run")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
