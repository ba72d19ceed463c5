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
    actions: str = ""  # that it learns, for the list of algorithms
    discrete: str | None = None  # the class for Discrete actions, if it is another one
    several: bool = False  # for several agents
    each: bool = False  # for several agents, each of which has a policy for one agent


ANY, DISCRETE, BOX, BOTH = "any actions", "Discrete actions", "Box actions", "Discrete or Box actions"


def _entry(algorithm: str, settings: str, actions: str, **options: Any) -> Entry:
    """An algorithm of this package, given as "family.module:Class", and the name of its settings class."""
    family = f"{__name__}.{algorithm.partition('.')[0]}"
    return Entry(f"{__name__}.{algorithm}", f"{family}.settings:{settings}", actions, **options)


_registry: dict[str, Entry] = {
    "a2c": _entry("on_policy.a2c:A2C", "A2CConfig", ANY),
    "a3c": _entry("on_policy.a3c:A3C", "A3CConfig", ANY),
    "appo": _entry("on_policy.appo:APPO", "APPOConfig", ANY),
    "awac": _entry("offline.awac:AWAC", "AWACConfig", BOTH),
    "bc": _entry("offline.bc:BC", "BCConfig", BOTH),
    "cql": _entry("offline.cql:CQL", "CQLConfig", BOTH, discrete=f"{__name__}.offline.discrete_cql:DiscreteCQL"),
    "crossq": _entry("off_policy.crossq:CrossQ", "CrossQConfig", BOX),
    "ddpg": _entry("off_policy.ddpg:DDPG", "DDPGConfig", BOX),
    "dqn": _entry("off_policy.dqn:DQN", "DQNConfig", DISCRETE),
    "droq": _entry(
        "off_policy.sac:SAC", "DroQConfig", BOTH, discrete=f"{__name__}.off_policy.discrete_sac:DiscreteSAC"
    ),
    "impala": _entry("on_policy.impala:IMPALA", "IMPALAConfig", ANY),
    "implicit_q": _entry("offline.implicit_q:ImplicitQ", "ImplicitQConfig", BOTH),
    "iql": _entry("multi_agent.qmix:iql", "IQLConfig", DISCRETE, several=True),
    "maddpg": _entry("multi_agent.maddpg:MADDPG", "MADDPGConfig", BOTH, several=True),
    "mappo": _entry("multi_agent.independent:mappo", "MAPPOConfig", ANY, several=True, each=True),
    "marwil": _entry("offline.marwil:MARWIL", "MARWILConfig", BOTH),
    "ppo": _entry("on_policy.ppo:PPO", "PPOConfig", ANY),
    "qmix": _entry("multi_agent.qmix:qmix", "QMIXConfig", DISCRETE, several=True),
    "rainbow": _entry("off_policy.dqn:DQN", "RainbowConfig", DISCRETE),
    "redq": _entry(
        "off_policy.sac:SAC", "REDQConfig", BOTH, discrete=f"{__name__}.off_policy.discrete_sac:DiscreteSAC"
    ),
    "sac": _entry("off_policy.sac:SAC", "SACConfig", BOTH, discrete=f"{__name__}.off_policy.discrete_sac:DiscreteSAC"),
    "td3": _entry("off_policy.td3:TD3", "TD3Config", BOX),
    "td3_bc": _entry("offline.td3_bc:TD3BC", "TD3BCConfig", BOX),
    "tqc": _entry("off_policy.tqc:TQC", "TQCConfig", BOX),
    "vdn": _entry("multi_agent.qmix:vdn", "VDNConfig", DISCRETE, several=True),
}


def names() -> list[str]:
    """The names that `--algo` accepts, sorted."""
    return sorted(_registry)


def by_actions() -> dict[str, list[str]]:
    """The names of the algorithms, by the actions that they learn; those for several agents in groups of their own."""
    groups: dict[str, list[str]] = {}
    order = {kind: place for place, kind in enumerate((ANY, DISCRETE, BOTH, BOX))}
    for name in sorted(_registry, key=lambda name: (for_several(name), order.get(_registry[name].actions, 9), name)):
        entry = _registry[name]
        kind = entry.actions or "registered by imported code"
        groups.setdefault(f"several agents, {kind}" if entry.several else kind, []).append(name)
    return groups


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


def own_class(name: str) -> type:
    """The class of an algorithm, to derive another one from; of those with two classes that for Box actions.

    Raises:
        ValueError: there is no such algorithm, or it consists of several classes; one line.
    """
    if name not in _registry:
        raise ValueError(f"unknown algorithm {name!r}; there are {', '.join(names())}")
    found = _imported(_registry[name].algorithm)
    if not isinstance(found, type):
        raise ValueError(
            f"{name} is made of the classes of other algorithms: derive from ppo, and train it with several agents"
        )
    return found


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
