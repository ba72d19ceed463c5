"""Policies by name: which policy an algorithm uses, and how a user adds one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.types import check_hooks

PolicyFactory = Callable[[EnvSpec, Any, int, torch.Generator], nn.Module]
POLICIES: dict[str, str | PolicyFactory] = {  # a factory, or "module:name", imported on first use
    "actor_critic": "rltrain.algorithms.on_policy.actor_critic:ActorCritic",
    "cloned": "rltrain.algorithms.offline.policies:cloned",
    "central": "rltrain.algorithms.on_policy.actor_critic:central",
    "deterministic": "rltrain.algorithms.off_policy.continuous_policy:Deterministic",
    "q": "rltrain.algorithms.off_policy.q_policy:QPolicy",
    "soft": "rltrain.algorithms.off_policy.continuous_policy:soft",
    "team_actors": "rltrain.algorithms.multi_agent.maddpg_policy:MADDPGPolicy",
    "weighted": "rltrain.algorithms.offline.policies:weighted",
    "team_q": "rltrain.algorithms.multi_agent.q_policy:MultiAgentQPolicy",
}

BUILT_IN = frozenset(POLICIES)


def register_policy(name: str, factory: PolicyFactory) -> None:
    """Let `--policy name` build `factory(spec, settings, streams, generator)`; see `Policy`."""
    POLICIES[name] = factory


def policy_factory(name: str) -> PolicyFactory:
    """The factory registered under `name`; ValueError with one line if there is none."""
    if name not in POLICIES:
        known = ", ".join(sorted(POLICIES))
        raise ValueError(
            f"unknown policy {name!r}. Known: {known}; one of your own: module:Class, file.py:Class, or a name that "
            "rltrain.register_policy got in a module that --import names"
        )
    factory = POLICIES[name]
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        factory = POLICIES[name] = getattr(importlib.import_module(module), attribute)
    return factory


def build(factory: PolicyFactory, spec: EnvSpec, config: Any, streams: int, seed: int) -> Any:
    """A policy on the CPU. Its first weights depend on `seed` only, so they are the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    try:
        inspect.signature(factory).bind(spec, config, streams, generator)
    except TypeError as error:
        name = getattr(factory, "__qualname__", repr(factory))
        raise ValueError(f"a policy is created as {name}(spec, settings, streams, generator): {error}") from None
    except ValueError:
        pass  # it has no signature
    policy = factory(spec, config, streams, generator)
    check_hooks(policy)
    return policy


def build_policy(spec: EnvSpec, config: Any, device: torch.device, seed: int, streams: int) -> Any:
    """The policy `config.policy` of an algorithm, on its device.

    Raises:
        ValueError: one line: the policy is unknown, or the device cannot hold it, as MPS cannot hold float64.
    """
    policy = build(policy_factory(config.policy), spec, config, streams, seed)
    try:
        return policy.to(device)
    except TypeError as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"device {device} cannot hold the policy ({why}). Running statistics are float64: "
            "turn normalize_obs and normalize_return off, or use another device"
        ) from error
