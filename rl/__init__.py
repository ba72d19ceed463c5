"""The platform: all a user imports. Everything is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rltrain.algorithms import networks
    from rltrain.algorithms import register as register_algorithm
    from rltrain.algorithms.functions import losses, returns
    from rltrain.algorithms.on_policy.settings import A2CConfig, PPOConfig
    from rltrain.algorithms.registry import register_policy
    from rltrain.config.run_config import RunConfig
    from rltrain.envs.make import make_env
    from rltrain.envs.source import register_env
    from rltrain.envs.spec import EnvSpec
    from rltrain.errors import CheckpointError, ConfigError, RunFailed
    from rltrain.evaluation.evaluate import evaluate
    from rltrain.evaluation.policy import load
    from rltrain.rollout.types import Trajectory
    from rltrain.training_loop import train

__all__ = [
    "A2CConfig",
    "CheckpointError",
    "ConfigError",
    "EnvSpec",
    "PPOConfig",
    "RunConfig",
    "RunFailed",
    "Trajectory",
    "evaluate",
    "load",
    "losses",
    "make_env",
    "networks",
    "register_algorithm",
    "register_env",
    "register_policy",
    "returns",
    "train",
]

# Where each name lives: "module:attribute", or a module.
_WHERE = {
    "A2CConfig": "rltrain.algorithms.on_policy.settings:A2CConfig",
    "CheckpointError": "rltrain.errors:CheckpointError",
    "ConfigError": "rltrain.errors:ConfigError",
    "EnvSpec": "rltrain.envs.spec:EnvSpec",
    "PPOConfig": "rltrain.algorithms.on_policy.settings:PPOConfig",
    "RunConfig": "rltrain.config.run_config:RunConfig",
    "RunFailed": "rltrain.errors:RunFailed",
    "Trajectory": "rltrain.rollout.types:Trajectory",
    "evaluate": "rltrain.evaluation.evaluate:evaluate",
    "load": "rltrain.evaluation.policy:load",
    "losses": "rltrain.algorithms.functions.losses",
    "make_env": "rltrain.envs.make:make_env",
    "networks": "rltrain.algorithms.networks",
    "register_algorithm": "rltrain.algorithms:register",
    "register_env": "rltrain.envs.source:register_env",
    "register_policy": "rltrain.algorithms.registry:register_policy",
    "returns": "rltrain.algorithms.functions.returns",
    "train": "rltrain.training_loop:train",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rltrain' has no attribute {name!r}; it has: {', '.join(__all__)}")
    module, _, attribute = _WHERE[name].partition(":")
    found: Any = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
