"""Creates the group of learners of a run that has several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rltrain.system.torchrun import current_rank

if TYPE_CHECKING:
    from rltrain.config.run_config import RunConfig
    from rltrain.envs.spec import EnvSpec
    from rltrain.learner.data_parallel import LearnerGroup


def learner_group(config: RunConfig, spec: EnvSpec, algorithm: Any) -> LearnerGroup | None:
    """The learners that share each update, started but not joined; None where one is all.

    Raises:
        ConfigError: the algorithm does not share its updates, or there is nothing to share.
    """
    if config.learners == 1:
        return None
    from rltrain.learner.data_parallel import open_learners

    return open_learners(config, spec, algorithm, current_rank())
