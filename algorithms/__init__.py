"""Which algorithms there are. One paper, one file; a class is imported when it is asked for. Users import `rltrain`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

    from rltrain.envs.spec import EnvSpec


@dataclass(frozen=True, slots=True)
class Entry:
    """An algorithm and its settings: each a class, or "module:Class" to be imported on demand."""

    algorithm: str | type[Any]
    settings: str | type[BaseModel]
    discrete: str | None = None  # the class for Discrete actions, where that is another one
    several: bool = False  # it is for several agents
    each: bool = False  # though its policy is for one, and each agent has it


_registry: dict[str, Entry] = {
    "a2c": Entry("rltrain.algorithms.on_policy.a2c:A2C", "rltrain.algorithms.on_policy.settings:A2CConfig"),
    "a3c": Entry("rltrain.algorithms.on_policy.a3c:A3C", "rltrain.algorithms.on_policy.settings:A3CConfig"),
    "appo": Entry("rltrain.algorithms.on_policy.appo:APPO", "rltrain.algorithms.on_policy.settings:APPOConfig"),
    "ddpg": Entry("rltrain.algorithms.off_policy.ddpg:DDPG", "rltrain.algorithms.off_policy.settings:DDPGConfig"),
    "dqn": Entry("rltrain.algorithms.off_policy.dqn:DQN", "rltrain.algorithms.off_policy.settings:DQNConfig"),
    "impala": Entry("rltrain.algorithms.on_policy.impala:IMPALA", "rltrain.algorithms.on_policy.settings:IMPALAConfig"),
    "iql": Entry(
        "rltrain.algorithms.multi_agent.qmix:iql", "rltrain.algorithms.multi_agent.settings:IQLConfig", several=True
    ),
    "maddpg": Entry(
        "rltrain.algorithms.multi_agent.maddpg:MADDPG",
        "rltrain.algorithms.multi_agent.settings:MADDPGConfig",
        several=True,
    ),
    "mappo": Entry(
        "rltrain.algorithms.multi_agent.independent:mappo",
        "rltrain.algorithms.multi_agent.settings:MAPPOConfig",
        several=True,
        each=True,
    ),
    "ppo": Entry("rltrain.algorithms.on_policy.ppo:PPO", "rltrain.algorithms.on_policy.settings:PPOConfig"),
    "qmix": Entry(
        "rltrain.algorithms.multi_agent.qmix:qmix", "rltrain.algorithms.multi_agent.settings:QMIXConfig", several=True
    ),
    "sac": Entry(
        "rltrain.algorithms.off_policy.sac:SAC",
        "rltrain.algorithms.off_policy.settings:SACConfig",
        "rltrain.algorithms.off_policy.discrete_sac:DiscreteSAC",
    ),
    "td3": Entry("rltrain.algorithms.off_policy.td3:TD3", "rltrain.algorithms.off_policy.settings:TD3Config"),
    "vdn": Entry(
        "rltrain.algorithms.multi_agent.qmix:vdn", "rltrain.algorithms.multi_agent.settings:VDNConfig", several=True
    ),
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


def algorithm_class(name: str) -> Callable[..., Any]:
    """What builds the algorithm: `build(spec, settings, device, seed, streams)`. KeyError for an unknown name."""
    entry = _registry[name]
    if entry.discrete is None:
        return _imported(entry.algorithm)
    return partial(_for_its_actions, entry)


def _for_its_actions(entry: Entry, spec: EnvSpec, *others: Any) -> Any:
    return _imported(entry.discrete if spec.action.kind == "discrete" and entry.discrete else entry.algorithm)(
        spec, *others
    )


def register(name: str, algorithm: str | type[Any], settings: str | type[BaseModel], several: bool = False) -> None:
    """Adds an algorithm under `name`, for one agent or for several; an existing name is replaced."""
    if not name.isidentifier():
        raise ValueError(f"an algorithm's name must be an identifier, so that [{name}] can head a table; got {name!r}")
    _registry[name] = Entry(algorithm, settings, several=several)


def _imported(item: str | type[Any]) -> type[Any]:
    if not isinstance(item, str):
        return item
    module, _, attribute = item.partition(":")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found
