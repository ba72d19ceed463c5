"""The training loop, the only one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rltrain.config.load import load
from rltrain.config.run_config import RunConfig
from rltrain.reporting.report import Result
from rltrain.run import open_run

__all__ = ["Result", "train"]


def train(config: RunConfig | None = None, *, resume: str | Path | None = None, **settings: Any) -> Result:
    """Train, and return what came of it.

    Args:
        config:   what to do; or give its fields, and those of the algorithm's settings, as keywords.
        resume:   the folder of a run to go on with; keywords may only raise `steps` and the like.
        settings: `algo="ppo", env="CartPole-v1", workers=2, lr=1e-3, ...`; `env` may be a class or a function too.

    Raises:
        ConfigError, EnvError: it cannot start as asked.
        EnvFault: the environment raised before training began.
        RunFailed: it ended before its time; a checkpoint was written.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    if config is None:
        config = load(settings) if resume is None else _reload(resume, settings)
    with open_run(config, resume) as run:  # folder, seeds, metrics, actors
        learner, rollout, plan = run.learner, run.rollout, run.learner.algorithm.plan
        while run.stopped is None:
            progress = run.progress
            rollout.start()  # every idle actor begins an unroll
            unrolls = rollout.gather(plan.wait)  # from all of them, or from the first ones
            if run.overlaps:
                rollout.start()  # those go on acting while we learn
            learner.step(unrolls, progress)
            rollout.publish(learner.weights(rollout.steps))
            run.tick(unrolls)  # log, evaluate, checkpoint, each when due
        return run.finish()


def _reload(resume: str | Path, settings: dict[str, Any]) -> RunConfig:
    from rltrain.config.load import reload
    from rltrain.storage.run_folder import saved_config

    return reload(saved_config(Path(resume)), settings)
