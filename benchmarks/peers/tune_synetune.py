"""Syne Tune, two trials at a time: tune_synetune.py nothing|ppo TRIALS FOLDER. Prints the seconds of the search.

Each trial is a process of its own, which runs this file with `--lr` and `--gamma`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

WHAT, FOLDER = "TUNE_SYNETUNE_WHAT", "TUNE_SYNETUNE_FOLDER"  # how a trial learns what it does


def main() -> None:
    what, trials, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    logging.disable(logging.WARNING)
    os.environ |= {WHAT: what, FOLDER: folder, "SYNETUNE_FOLDER": folder}
    from syne_tune import StoppingCriterion, Tuner
    from syne_tune.backend import LocalBackend
    from syne_tune.config_space import loguniform, uniform
    from syne_tune.optimizer.baselines import RandomSearch

    space = {"lr": loguniform(1e-4, 1e-2), "gamma": uniform(0.95, 0.999)}
    tuner = Tuner(
        trial_backend=LocalBackend(entry_point=__file__),
        scheduler=RandomSearch(space, metrics=["value"], do_minimize=False),
        stop_criterion=StoppingCriterion(max_num_trials_finished=trials),
        n_workers=2,
        sleep_time=0.1,
        save_tuner=False,
        print_update_interval=1e9,
        results_update_interval=1e9,
    )
    began = time.perf_counter()
    tuner.run()
    print(json.dumps({"seconds": time.perf_counter() - began, "version": version("syne-tune")}))


def trial() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--gamma", type=float)
    given, _ = parser.parse_known_args()
    from syne_tune import Reporter

    value = 0.0
    if os.environ[WHAT] == "ppo":
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        import tuning

        value = tuning.trained(given.lr, given.gamma, os.environ[FOLDER])
    Reporter()(value=value)


if __name__ == "__main__":
    trial() if any(word.startswith("--lr") for word in sys.argv) else main()
