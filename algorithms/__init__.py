"""The algorithms by name, each with its settings. A class is imported when it is needed: this module needs no torch."""

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
    """An algorithm and its settings: each a class, or "module:Class" to import when needed."""

    algorithm: str | type[Any]
    settings: str | type[BaseModel]
    discrete: str | None = None  # the class for Discrete actions, if it is another one
    several: bool = False  # for several agents
    each: bool = False  # for several agents, each of which has a policy for one agent


def _entry(algorithm: str, settings: str, **options: Any) -> Entry:
    """An algorithm of this package, given as "family.module:Class", and the name of its settings class."""
    family = f"{__name__}.{algorithm.partition('.')[0]}"
    return Entry(f"{__name__}.{algorithm}", f"{family}.settings:{settings}", **options)


_registry: dict[str, Entry] = {
    "a2c": _entry("on_policy.a2c:A2C", "A2CConfig"),
    "a3c": _entry("on_policy.a3c:A3C", "A3CConfig"),
    "appo": _entry("on_policy.appo:APPO", "APPOConfig"),
    "crossq": _entry("off_policy.crossq:CrossQ", "CrossQConfig"),
    "ddpg": _entry("off_policy.ddpg:DDPG", "DDPGConfig"),
    "dqn": _entry("off_policy.dqn:DQN", "DQNConfig"),
    "droq": _entry("off_policy.sac:SAC", "DroQConfig", discrete=f"{__name__}.off_policy.discrete_sac:DiscreteSAC"),
    "impala": _entry("on_policy.impala:IMPALA", "IMPALAConfig"),
    "iql": _entry("multi_agent.qmix:iql", "IQLConfig", several=True),
    "maddpg": _entry("multi_agent.maddpg:MADDPG", "MADDPGConfig", several=True),
    "mappo": _entry("multi_agent.independent:mappo", "MAPPOConfig", several=True, each=True),
    "ppo": _entry("on_policy.ppo:PPO", "PPOConfig"),
    "qmix": _entry("multi_agent.qmix:qmix", "QMIXConfig", several=True),
    "rainbow": _entry("off_policy.dqn:DQN", "RainbowConfig"),
    "redq": _entry("off_policy.sac:SAC", "REDQConfig", discrete=f"{__name__}.off_policy.discrete_sac:DiscreteSAC"),
    "sac": _entry("off_policy.sac:SAC", "SACConfig", discrete=f"{__name__}.off_policy.discrete_sac:DiscreteSAC"),
    "td3": _entry("off_policy.td3:TD3", "TD3Config"),
    "tqc": _entry("off_policy.tqc:TQC", "TQCConfig"),
    "vdn": _entry("multi_agent.qmix:vdn", "VDNConfig", several=True),
}


def names() -> list[str]:
    """The names that `--algo` accepts, sorted."""
    return sorted(_registry)


def for_several(name: str) -> bool:
    """True if the algorithm is for several agents. KeyError for an unknown name."""
    return _registry[name].several


def acts_for_one(name: str) -> bool:
    """True if the algorithm's policy acts for one agent. KeyError for an unknown name."""
    return not _registry[name].several or _registry[name].each


def settings_class(name: str) -> type[BaseModel]:
    """The class of an algorithm's settings. KeyError for an unknown name."""
    return _imported(_registry[name].settings)


def algorithm_class(name: str) -> Callable[..., Any]:
    """Builds the algorithm: `build(spec, settings, device, seed, streams)`. KeyError for an unknown name."""
    entry = _registry[name]
    return _imported(entry.algorithm) if entry.discrete is None else partial(_for_actions_of, entry)


def _for_actions_of(entry: Entry, spec: EnvSpec, *others: Any) -> Any:
    algorithm = entry.discrete if entry.discrete and spec.action.kind == "discrete" else entry.algorithm
    return _imported(algorithm)(spec, *others)


def entry_of(algorithm: Any) -> Entry | None:
    """The entry that `register` made for this class, if there is one."""
    return next((entry for entry in _registry.values() if entry.algorithm is algorithm), None)


def register(name: str, algorithm: str | type[Any], settings: str | type[BaseModel], several: bool = False) -> None:
    """Adds an algorithm, for one agent or for several. Replaces an algorithm of the same name.

    Raises:
        ValueError: the name is no identifier, so that it cannot head a table of a TOML file.
    """
    if not name.isidentifier() and ":" not in name:
        raise ValueError(f"an algorithm's name must be an identifier, so that [{name}] can head a table; got {name!r}")
    _registry[name] = Entry(algorithm, settings, several=several)


def _imported(item: str | type[Any]) -> type[Any]:
    if not isinstance(item, str):
        return item
    module, _, attribute = item.partition(":")
    cls: type[Any] = getattr(importlib.import_module(module), attribute)
    return cls
