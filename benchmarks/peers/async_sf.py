"""Sample Factory's APPO, 2 workers x 16 streams: async_sf.py ENV SEED [--seconds N]"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
from sample_factory.algo.runners.runner import AlgoObserver
from sample_factory.algo.utils.misc import ExperimentStatus
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner

WARM = 3.0  # seconds of training before the clock starts
# Batches of 512 rows in unrolls of 32, each used once, two separate nets of two layers of 64.
SETTINGS = """--algo=APPO --device=cpu --experiment=x --num_workers=2 --num_envs_per_worker=16 --worker_num_splits=2
    --rollout=32 --batch_size=512 --num_batches_per_epoch=1 --num_epochs=1 --async_rl=True --serial_mode=False
    --with_vtrace=False --recurrence=1 --use_rnn=False --encoder_mlp_layers 64 64 --nonlinearity=tanh
    --actor_critic_share_weights=False
    --learning_rate=5e-4 --gamma=0.99 --value_loss_coeff=0.5 --exploration_loss_coeff=0.01 --max_grad_norm=0.5
    --normalize_input=False --normalize_returns=False --with_wandb=False --decorrelate_experience_max_seconds=0
    --train_for_env_steps=10000000000
    --save_every_sec=600 --save_best_every_sec=600 --experiment_summaries_interval=600""".split()


def make(name: str, cfg: Any = None, env_config: Any = None, render_mode: str | None = None) -> gymnasium.Env:
    return gymnasium.make(name, render_mode=render_mode)


class Clock(AlgoObserver):
    """Counts from the first training step that came `WARM` seconds after the first of all, tells, and ends everything.

    Sample Factory's own way to the end sometimes waits for its learner for ever.
    """

    def __init__(self, seconds: float, folder: str) -> None:
        self.seconds, self.folder = seconds, folder
        self.came: float | None = None
        self.began: tuple[float, int] | None = None

    def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
        now, steps = time.perf_counter(), sum(runner.env_steps.values())
        self.came = self.came or now
        if self.began is None:
            self.began = (now, steps) if now - self.came >= WARM else None
            return
        seconds = now - self.began[0]
        if seconds < self.seconds:
            return
        stats = runner.policy_avg_stats.get("reward")
        names = {"sample-factory": "sf", "gymnasium": "sf gymnasium", "numpy": "sf numpy", "torch": "sf torch"}
        numbers = {
            "steady_steps_per_second": (steps - self.began[1]) / seconds,
            "steps": steps,
            "return": float(np.mean(list(stats[0])[-20:])) if stats and len(stats[0]) else None,
            "versions": {short: version(name) for name, short in names.items()},
        }
        print("\n" + json.dumps(numbers), flush=True)
        for child in multiprocessing.active_children():
            child.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("env")
    parser.add_argument("seed", type=int)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    register_env(options.env, make)
    folder = tempfile.mkdtemp()
    words = [f"--env={options.env}", f"--seed={options.seed}", f"--train_dir={folder}", *SETTINGS]
    parsed, _ = parse_sf_args(argv=words, evaluation=False)
    _, runner = make_runner(parse_full_cfg(parsed, words))
    runner.register_observer(Clock(options.seconds, folder))
    status = runner.init()
    if status == ExperimentStatus.SUCCESS:
        status = runner.run()
    raise SystemExit(f"Sample Factory ended with {status} before its time")


if __name__ == "__main__":
    main()
