"""The training loop. All algorithms use this one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from rltrain.config.load import change, load, reload, with_callbacks
from rltrain.config.run_config import RunConfig
from rltrain.errors import as_folder
from rltrain.setup.first_look import look_at
from rltrain.storage.run_folder import for_resume, require_free_name, saved_config
from rltrain.system.imports import no_collection
from rltrain.system.signals import held
from rltrain.system.time_limit import TimeLimit

if TYPE_CHECKING:
    from rltrain.config.keywords import Keywords
    from rltrain.reporting.report import Result


def train(
    config: RunConfig | None = None,
    *,
    resume: str | Path | None = None,
    trust: bool = False,
    callbacks: Sequence[Any] | None = None,
    **settings: Unpack[Keywords],
) -> Result:
    """Train and return the result.

    Args:
        config:   the configuration, of which keywords replace single values; or give all values as keywords.
                  With another `env` its `env_args` are replaced too; the values of the old one's preset stay.
        resume:   the folder of a run to continue; keywords may then only be `env`, `steps`, `workers` and the like.
                  A configuration beside it must agree with the run in all other values that it was given.
        trust:    runs that somebody else made, to resume or as opponents, may import the code that they name.
        callbacks: `rltrain.Callback` objects, or classes or functions that make them. A run that had some needs them
                  again when it is resumed; an empty list continues it without.
        settings: `algo="ppo", env="CartPole-v1", workers=2, lr=1e-3, ...`; `env` may be a class or a function too.

    Raises:
        ConfigError, EnvError: the run cannot start with this configuration.
        EnvFault: the environment raised before training began.
        RunFailed: the run ended too early; a checkpoint was written.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    resume = None if resume is None else as_folder("resume", resume)
    if config is not None:
        config = change(config, settings, resumed=resume is not None)
        config = config if resume is None else for_resume(config, resume)
    else:
        config = load(settings, trust=trust) if resume is None else reload(saved_config(resume), settings, trust=trust)
    config = with_callbacks(config, callbacks, resumed=resume is not None)
    if resume is None:
        require_free_name(config)
    if config.wandb or config.mlflow:
        from rltrain.reporting.send import require_targets

        require_targets(config)
    limit = TimeLimit(config.max_seconds)
    with look_at(config, new=resume is None) as look:  # a child process, while this one imports torch
        with held(), no_collection(freeze=True):
            from rltrain.callbacks.loading import make_callbacks
            from rltrain.run import open_run
        with open_run(config, resume, look, make_callbacks(config, callbacks), limit) as run:  # folder, seeds, actors
            learner, rollout, plan = run.learner, run.rollout, run.learner.algorithm.plan
            with run.rounds():
                while run.stopped is None:
                    progress = run.progress
                    rollout.start()  # every idle actor begins an unroll
                    unrolls = rollout.gather(plan.wait)  # of all actors, or of the first ones
                    if run.overlaps:
                        rollout.start()  # these actors continue while the learner learns
                    learner.step(unrolls, progress)
                    rollout.publish(learner.weights(rollout.steps))
                    run.tick(unrolls)  # log, evaluate, checkpoint, each when due
            return run.finish()
