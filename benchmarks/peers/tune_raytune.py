"""Ray Tune, two trials at a time: tune_raytune.py nothing|ppo TRIALS FOLDER. Prints the seconds of the search."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
BENCHMARKS = str(Path(__file__).resolve().parents[1])


def main() -> None:
    import ray
    from ray import tune

    what, trials, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    environment = {"env_vars": {"PYTHONPATH": BENCHMARKS}}
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment
    )

    def trial(config: dict[str, Any]) -> None:
        import tuning

        value = 0.0
        if what == "ppo":
            value = tuning.trained(config["lr"], config["gamma"], folder)
        tune.report({"value": value})

    space = {"lr": tune.loguniform(1e-4, 1e-2), "gamma": tune.uniform(0.95, 0.999)}
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(num_samples=trials, metric="value", mode="max"),
        run_config=tune.RunConfig(verbose=0, storage_path=f"{folder}/ray"),
    )
    began = time.perf_counter()
    results = tuner.fit()
    seconds = time.perf_counter() - began
    if results.num_errors or len(results) != trials:
        raise RuntimeError(f"{results.num_errors} of {len(results)} trials failed")
    print(json.dumps({"seconds": seconds, "version": ray.__version__}))


if __name__ == "__main__":
    main()
