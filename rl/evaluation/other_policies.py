"""--opponents RUN: policies of other runs, as opponents. Each checkpoint holds them, so a resume needs no other run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from rltrain.config.consent import NETWORK, SavedConfig, use_saved_algorithm, with_consent
from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import COSMETIC, EnvSpec, spec_differences
from rltrain.errors import CheckpointError, ConfigError
from rltrain.evaluation.policy import load_for
from rltrain.learner.algorithm import make_policy, require_finite
from rltrain.setup.run_folder import Saved
from rltrain.storage.checkpoint import META, to_tensors
from rltrain.storage.retention import mismatch_as_error

# What may differ between the games of an opponent and of this run: names, time limits, what only critics see.
IGNORED = (*COSMETIC, "max_steps", "state_shape")


@dataclass(frozen=True)
class Other:
    """A policy of another run."""

    path: str  # the checkpoint that it was read from
    config: RunConfig  # of its run
    arrays: dict[str, np.ndarray]  # its parameters and buffers, by name

    def state(self) -> dict[str, Any]:
        """For a checkpoint of this run."""
        return {"path": self.path, "config": self.config.to_json(), "arrays": self.arrays}


def open_others(config: RunConfig, spec: EnvSpec, saved: Saved) -> tuple[tuple[RunConfig, list[Other]], list[str]]:
    """The policies that `--opponents` names, and the configuration, which names their checkpoints from now on.

    Args:
        saved: what the run continues from; its checkpoint holds them.

    Raises:
        ConfigError: there is no intact checkpoint, or its policy does not fit the game; one line.
        CheckpointError: the run's own checkpoint does not hold them.
    """
    if not config.other_runs:
        return (config, []), []
    if saved.checkpoint is not None:
        with mismatch_as_error(saved.checkpoint.path):
            states = list(saved.checkpoint.state["opponents"])
            return (config, [_restored(state, spec, saved, config.trusts) for state in states]), []
    others = [_read(path, spec, config.trusts) for path in config.other_runs]
    names = iter(others)
    words = [word if word == "pool" else next(names).path for word in config.opponents.split(",")]
    notes = [f"opponent {number}: {other.path}" for number, other in enumerate(others, 1)]
    return (config.model_copy(update={"opponents": ",".join(words)}), others), notes


def _read(path: str, spec: EnvSpec, trust: bool) -> Other:
    if not os.path.lexists(path):
        raise ConfigError(f"--opponents {path}: it does not exist; opponents are newest, pool, or runs and checkpoints")
    try:
        found = load_for(path, best=False, trust=trust, uses=NETWORK)
    except CheckpointError as error:
        raise ConfigError(f"--opponents {path}: {error}") from None
    if changed := spec_differences(found.spec, spec, ignored=IGNORED):
        raise ConfigError(f"--opponents {path}: it was trained on {found.spec.id}, which differs: {changed}")
    arrays = {name: tensor.numpy().copy() for name, tensor in found.policy.state_dict().items()}
    return Other(str(found.path.absolute()), found.config, arrays)


def _restored(state: dict[str, Any], spec: EnvSpec, saved: Saved, trust: bool) -> Other:
    """An opponent as the run's own checkpoint holds it."""
    assert saved.checkpoint is not None
    values = SavedConfig(state["config"], saved.checkpoint.path / META, saved.is_own)
    try:
        use_saved_algorithm(values, trust, NETWORK)
        config = with_consent(RunConfig.from_json(values.values), values, trust, NETWORK)
    except CheckpointError as error:
        raise CheckpointError(f"an opponent, {state['path']}: {error}") from None
    policy = make_policy(config, spec)()
    policy.load_state_dict(to_tensors(state["arrays"]))
    require_finite(saved.checkpoint.path, [policy])
    return Other(str(state["path"]), config, dict(state["arrays"]))
