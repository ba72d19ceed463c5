"""The platform: all a user imports. Everything is imported when it is first used."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rl import _shadow

_shadow.check()

if TYPE_CHECKING:
    from algorithms import losses, networks, returns
    from algorithms import register as register_algorithm
    from algorithms.policies import register_policy
    from algorithms.settings import A2CConfig, PPOConfig
    from envs.make import register_env
    from envs.spec import EnvSpec
    from rl.config import RunConfig
    from rl.errors import CheckpointError, ConfigError, RunFailed
    from rl.evaluate import evaluate, load
    from rl.make import make_env
    from rl.train import train
    from rollout.types import Trajectory

DISTRIBUTION = "rltrain"

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
    "A2CConfig": "algorithms.settings:A2CConfig",
    "CheckpointError": "rl.errors:CheckpointError",
    "ConfigError": "rl.errors:ConfigError",
    "EnvSpec": "envs.spec:EnvSpec",
    "PPOConfig": "algorithms.settings:PPOConfig",
    "RunConfig": "rl.config:RunConfig",
    "RunFailed": "rl.errors:RunFailed",
    "Trajectory": "rollout.types:Trajectory",
    "evaluate": "rl.evaluate:evaluate",
    "load": "rl.evaluate:load",
    "losses": "algorithms.losses",
    "make_env": "rl.make:make_env",
    "networks": "algorithms.networks",
    "register_algorithm": "algorithms:register",
    "register_env": "envs.make:register_env",
    "register_policy": "algorithms.policies:register_policy",
    "returns": "algorithms.returns",
    "train": "rl.train:train",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rl' has no attribute {name!r}; it has: {', '.join(__all__)}")
    module, _, attribute = _WHERE[name].partition(":")
    found: Any = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `rl.train` and `rl.evaluate` the functions, although importing their modules would bind those names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _WHERE:
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
