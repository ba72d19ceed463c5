"""Which algorithms there are. One paper, one file; a class is imported when it is asked for. Users import `rltrain`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Entry:
    """An algorithm and its settings: each a class, or "module:Class" to be imported on demand."""

    algorithm: str | type[Any]
    settings: str | type[BaseModel]
    several: bool = False  # it is for several agents
    each: bool = False  # though its policy is for one, and each agent has it


_registry: dict[str, Entry] = {
    "a2c": Entry("rltrain.algorithms.a2c:A2C", "rltrain.algorithms.settings:A2CConfig"),
    "a3c": Entry("rltrain.algorithms.a3c:A3C", "rltrain.algorithms.settings_async:A3CConfig"),
    "appo": Entry("rltrain.algorithms.appo:APPO", "rltrain.algorithms.settings_async:APPOConfig"),
    "ddpg": Entry("rltrain.algorithms.ddpg:DDPG", "rltrain.algorithms.settings_continuous:DDPGConfig"),
    "dqn": Entry("rltrain.algorithms.dqn:DQN", "rltrain.algorithms.settings_dqn:DQNConfig"),
    "impala": Entry("rltrain.algorithms.impala:IMPALA", "rltrain.algorithms.settings_async:IMPALAConfig"),
    "iql": Entry("rltrain.algorithms.qmix:iql", "rltrain.algorithms.settings_agents:IQLConfig", several=True),
    "maddpg": Entry(
        "rltrain.algorithms.maddpg:MADDPG", "rltrain.algorithms.settings_agents:MADDPGConfig", several=True
    ),
    "mappo": Entry(
        "rltrain.algorithms.independent:mappo",
        "rltrain.algorithms.settings_agents:MAPPOConfig",
        several=True,
        each=True,
    ),
    "ppo": Entry("rltrain.algorithms.ppo:PPO", "rltrain.algorithms.settings:PPOConfig"),
    "qmix": Entry("rltrain.algorithms.qmix:qmix", "rltrain.algorithms.settings_agents:QMIXConfig", several=True),
    "sac": Entry("rltrain.algorithms.sac:make", "rltrain.algorithms.settings_continuous:SACConfig"),
    "td3": Entry("rltrain.algorithms.td3:TD3", "rltrain.algorithms.settings_continuous:TD3Config"),
    "vdn": Entry("rltrain.algorithms.qmix:vdn", "rltrain.algorithms.settings_agents:VDNConfig", several=True),
}


def names() -> list[str]:
    """The names `--algo` takes."""
    return sorted(_registry)


def for_several(name: str) -> bool:
    """Whether an algorithm is for several agents. KeyError for an unknown name."""
    return _registry[name].several


def acts_for_one(name: str) -> bool:
    """Whether an algorithm's policy is for one agent. KeyError for an unknown name."""
    return not _registry[name].several or _registry[name].each


def settings_class(name: str) -> type[BaseModel]:
    """The settings of an algorithm, without importing torch. KeyError for an unknown name."""
    return _imported(_registry[name].settings)


def algorithm_class(name: str) -> type[Any]:
    """The algorithm itself, built as `Class(spec, settings, device, seed)`. KeyError for an unknown name."""
    return _imported(_registry[name].algorithm)


def register(name: str, algorithm: str | type[Any], settings: str | type[BaseModel], several: bool = False) -> None:
    """Adds an algorithm under `name`, for one agent or for several; an existing name is replaced."""
    if not name.isidentifier():
        raise ValueError(f"an algorithm's name must be an identifier, so that [{name}] can head a table; got {name!r}")
    _registry[name] = Entry(algorithm, settings, several)


def _imported(item: str | type[Any]) -> type[Any]:
    if not isinstance(item, str):
        return item
    module, _, attribute = item.partition(":")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found
