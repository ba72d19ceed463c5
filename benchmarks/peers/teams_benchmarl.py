"""BenchMARL's side of benchmarks/teams.py: QMIX on simple_spread_v3, its defaults, in the rounds that are asked for."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from benchmarl.algorithms import QmixConfig
from benchmarl.environments import PettingZooTask
from benchmarl.experiment import Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--round", type=int, default=6_000, help="steps between two rounds of updates")
    parser.add_argument("--updates", type=int, default=1_000, help="updates a round")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--capacity", type=int, default=100_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = ExperimentConfig.get_from_yaml()
    config.sampling_device = config.train_device = config.buffer_device = "cpu"
    config.prefer_continuous_actions = False
    config.max_n_iters, config.max_n_frames = None, options.steps
    config.off_policy_collected_frames_per_batch = options.round
    config.off_policy_n_envs_per_worker = options.streams
    config.off_policy_n_optimizer_steps = options.updates
    config.off_policy_train_batch_size = options.batch
    config.off_policy_memory_size = options.capacity
    config.evaluation = config.render = config.create_json = config.checkpoint_at_end = False
    config.loggers = []
    with tempfile.TemporaryDirectory() as folder:
        config.save_folder = str(Path(folder))
        experiment = Experiment(
            task=PettingZooTask.SIMPLE_SPREAD.get_from_yaml(),
            algorithm_config=QmixConfig.get_from_yaml(),
            model_config=MlpConfig.get_from_yaml(),
            critic_model_config=MlpConfig.get_from_yaml(),
            seed=options.seed,
            config=config,
        )
        began, used = time.perf_counter(), time.process_time()
        experiment.run()
        seconds, used = time.perf_counter() - began, time.process_time() - used
    names = ("benchmarl", "torchrl", "tensordict", "pettingzoo", "torch", "gymnasium", "numpy")
    steps = int(experiment.total_frames)
    numbers = {
        "steps": steps,
        "updates": steps // options.round * options.updates,
        "steps_per_second": steps / seconds,
        "steps_per_cpu_s": steps / used,
        "versions": {"benchmarl" if name == "benchmarl" else f"benchmarl {name}": version(name) for name in names},
    }
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
