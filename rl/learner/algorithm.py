"""Creates the algorithm of a run on its device, and the policy that actors hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from rltrain import algorithms
from rltrain.algorithms.multi_agent.independent import Independent, joint_policy
from rltrain.algorithms.networks.encoder import Encoder
from rltrain.algorithms.protocol import Algorithm, modules_of
from rltrain.algorithms.registry import build, policy_factory
from rltrain.config.run_config import RunConfig
from rltrain.envs.seeding import LEARNER, seed_of
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.system.torch_setup import keep_memory

DEVICES = ("cpu", "cuda", "mps")


def make_algorithm(config: RunConfig, spec: EnvSpec) -> Any:
    """The algorithm, on its device, its first weights drawn from the run's seed."""
    device = torch_device(config.device)
    seed = seed_of(config.seed, LEARNER)
    try:
        make: Any = algorithms.algorithm_class(config.algo)
        if as_if_alone(config, spec):
            make = functools.partial(Independent, make)
        algorithm = make(spec, config.settings, device, seed, config.streams)
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError) and "float64" not in str(error):  # else a device that cannot hold it
            raise
        raise ConfigError(str(error).splitlines()[0]) from None
    hasten(algorithm, config)
    if any(leaf.kind == "image" for leaf in spec.leaves()):
        keep_memory()
    return algorithm


def as_if_alone(config: RunConfig, spec: EnvSpec) -> bool:
    """Whether an algorithm for one agent is to teach several."""
    return bool(spec.groups) and not algorithms.for_several(config.algo)


def hasten(algorithm: Algorithm, config: RunConfig) -> None:
    """Let the learner's networks of images, target networks included, compute as the run asks."""
    precision = torch.bfloat16 if config.precision == "bfloat16" else None
    if precision is None and not config.compile:
        return
    for module in (module for part in modules_of(algorithm) for module in part.modules()):
        if isinstance(module, Encoder):
            module.hasten(precision, config.compile)


def torch_device(name: str) -> torch.device:
    """The device called `name`; ConfigError if it is unknown or not there."""
    if name.partition(":")[0] not in DEVICES:
        raise ConfigError(f"--device {name} is not known; it may be {', '.join(DEVICES)}, or with a number, cuda:1")
    try:
        device = torch.device(name)
        if device.type != "cpu":
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} is not there: {str(error).splitlines()[0]}") from None
    return device


def make_policy(config: RunConfig, spec: EnvSpec) -> Callable[[], Any]:
    """A picklable maker of the policy, for actors and evaluation."""
    settings: Any = config.settings
    factory = policy_factory(getattr(settings, "policy", "actor_critic"))
    seed = seed_of(config.seed, LEARNER)
    if spec.groups and algorithms.acts_for_one(config.algo):
        factory = functools.partial(joint_policy, factory)
    return functools.partial(_acting, factory, spec, settings, config.streams, seed)


def _acting(*words: Any) -> Any:
    """A policy that acts: whatever of a user's network differs between learning and use is in use."""
    policy = build(*words)
    return policy.eval() if isinstance(policy, torch.nn.Module) else policy
