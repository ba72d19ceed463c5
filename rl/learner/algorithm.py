"""Creates the algorithm of a run, and the policy that actors and evaluations use."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rltrain import algorithms
from rltrain.algorithms.networks.encoder import Encoder
from rltrain.algorithms.networks.sizes import largest_parts
from rltrain.algorithms.protocol import Algorithm, Policy, modules_of
from rltrain.algorithms.registry import BUILT_IN, PolicyFactory, build, policy_factory, register_policy
from rltrain.algorithms.settings import OWN, TORSOS
from rltrain.config.messages import POLICIES
from rltrain.config.run_config import RunConfig
from rltrain.config.user_code import is_code, load_code
from rltrain.envs.errors import in_user_code
from rltrain.envs.lookup import make_importable
from rltrain.envs.seeding import LEARNER, seed_of
from rltrain.envs.spec import EnvSpec
from rltrain.errors import CheckpointError, ConfigError
from rltrain.system.free_space import amount, free_memory
from rltrain.system.torch_setup import keep_memory

DEVICES = ("cpu", "cuda", "mps")
ON_POLICY = {"actor_critic", "central"}  # policies that the same algorithms can use
# Buffers that must be finite.
STATISTICS = re.compile(r"(mean|m2_?|count|shift|scale|running_mean|running_var|running)\d*")
ITEM = {"float32": 4, "uint8": 1, "int64": 8}  # bytes of a number of an observation
COPIES = 7  # of the weights, at least: weights, gradients and two moments of the learner, two published, one to test
_loaded: set[str] = set()  # names in OWN that were imported
LARGE = 50e6  # weights from which a note is printed
REMEDIES = {  # by the kind of what makes a network large
    "image": "make the images smaller, for example with gymnasium.wrappers.ResizeObservation(env, (84, 84)) around the "
    "environment, in a function that is given as --env",
    "discrete": "give it fewer values, for example as digits in a MultiDiscrete",
    "action": "give it fewer values, for example as digits in a MultiDiscrete",
    "box": "leave out numbers, or make them an image (uint8, two or three axes), which has a convolutional network",
}


def make_algorithm(config: RunConfig, spec: EnvSpec) -> Algorithm:
    """The algorithm on its device, with initial weights drawn from the run's seed.

    Raises:
        ConfigError: the environment, the settings or the device do not suit the algorithm.
    """
    device = torch_device(config.device)
    seed = seed_of(config.seed, LEARNER)
    import_own_network(config)
    try:
        make: Any = algorithms.algorithm_class(config.algo)
        if spec.groups and not algorithms.for_several(config.algo):
            from rltrain.algorithms.multi_agent.independent import Independent

            make = functools.partial(Independent, make)
        algorithm: Algorithm = make(spec, config.settings, device, seed, config.streams)
        if config.freeze:
            _freeze(algorithm, config)
    except (TypeError, ValueError, RuntimeError, MemoryError) as error:
        expected = {TypeError: "float64", RuntimeError: "allocate memory"}.get(type(error), "")  # no float64 on MPS
        if expected not in str(error) or in_user_code(error):
            raise
        raise ConfigError(str(error).splitlines()[0].replace("this algorithm", config.algo, 1)) from None
    precision = torch.bfloat16 if config.precision == "bfloat16" else None
    for module in (module for part in modules_of(algorithm) for module in part.modules()):
        if isinstance(module, Encoder):
            module.hasten(precision, config.compile)
    if device.type == "cpu":
        keep_memory()
    return algorithm


def _freeze(algorithm: Any, config: RunConfig) -> None:
    """Let the policies of `--freeze` act without learning; ValueError if the algorithm has none that can."""
    freeze = getattr(algorithm, "freeze", None)
    if freeze is None:
        raise ValueError(
            f"--freeze: {config.algo} on {config.env_name} has no policies that learn apart from each other; "
            "ppo, a2c, impala, appo, mappo and the algorithms of recorded data have them with several agents"
        )
    freeze(config.freeze)


def check_size(config: RunConfig, spec: EnvSpec) -> list[str]:
    """A note if the networks of a run are large.

    Raises:
        ConfigError: they and the unrolls do not fit into memory; one line with what makes them smaller.
    """
    parts = largest_parts(spec, config.settings)
    weights, largest = sum(part.weights for part in parts), parts[0]
    rows = int(getattr(config.settings, "unroll", 1)) + 1
    unrolls = 2 * rows * config.streams * sum(math.prod(leaf.shape) * ITEM[leaf.dtype] for leaf in spec.leaves())
    networks = 4 * weights * (COPIES + max(config.workers, 1))
    have = free_memory()
    if have is not None and networks + unrolls > have:
        if unrolls > networks:
            what = f"unrolls of {rows - 1} steps of {config.streams} streams take at least {amount(unrolls)}"
            remedy = f"use a smaller --streams or --unroll, or {REMEDIES['image']}"
        else:
            what = (
                f"{largest.name} needs a network of {largest.weights / 1e6:,.0f} million weights, and its copies at "
                f"least {amount(networks)}"
            )
            remedy = REMEDIES.get(largest.kind, REMEDIES["discrete"])
        raise ConfigError(f"{spec.id}: {what} of memory, of which {amount(have)} is free; {remedy}")
    if weights <= LARGE:
        return []
    remedy = REMEDIES.get(largest.kind, REMEDIES["discrete"])
    return [f"the network has {weights / 1e6:,.0f} million weights because of {largest.name}: to learn fast, {remedy}"]


def torch_device(name: str) -> torch.device:
    """The device with this name; ConfigError if the name is unknown or the machine has no such device."""
    if name.partition(":")[0] not in DEVICES:
        raise ConfigError(f"--device {name} is not known; it may be {', '.join(DEVICES)}, or with a number, cuda:1")
    try:
        device = torch.device(name)
        if device.type != "cpu":
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} is not available: {str(error).splitlines()[0]}") from None
    return device


def make_policy(config: RunConfig, spec: EnvSpec) -> Callable[[], Policy]:
    """A picklable function that creates the policy in eval mode, with the initial weights of the run."""
    settings: Any = config.settings
    import_own_network(config)
    factory = portable_factory(settings)
    seed = seed_of(config.seed, LEARNER)
    if spec.groups and algorithms.acts_for_one(config.algo):
        from rltrain.algorithms.multi_agent.independent import joint_policy

        factory = functools.partial(joint_policy, factory)
    return functools.partial(_build, factory, spec, settings, config.streams, seed, _folder_of_code(config))


def uses_own_network(config: RunConfig) -> bool:
    """True if the torso is a module of the user's, or the policy is one that a program registered."""
    settings: Any = config.settings
    own_policy = getattr(settings, "policy", "actor_critic") not in BUILT_IN
    return own_policy or getattr(settings, "torso", "auto") not in TORSOS


def import_own_network(config: RunConfig) -> None:
    """Import the policy and the torso of the user's that the settings name.

    Raises:
        ConfigError: there is none of this name, or it is made for other algorithms; one line. Exceptions of the user's
            code are passed on.
    """
    settings: Any = config.settings
    policy, torso = getattr(settings, "policy", "actor_critic"), getattr(settings, "torso", "auto")
    if policy in POLICIES:
        raise ConfigError(f"unknown policy {policy!r} of another library: {POLICIES[policy]}")
    ours = type(settings).__module__.startswith("rltrain.")  # a user's algorithm may have a choice
    needed = type(settings).model_fields["policy"].default if ours and policy in BUILT_IN else policy
    if policy != needed and not {policy, needed} <= ON_POLICY:
        raise ConfigError(
            f"--policy {policy}: it is made for other algorithms, and {config.algo} needs {needed}, its default; leave "
            "it out, or give one of your own"
        )
    for setting, name in (("policy", policy), ("torso", torso)):
        if is_code(name) and (name not in OWN or name in _loaded):  # else it was given as a class
            _loaded.add(name)
            OWN[name] = load_code(f"{setting} {name!r}", name, config.folder)
    if policy in OWN:
        register_policy(policy, OWN[policy])


def portable_factory(settings: Any) -> PolicyFactory:
    """The factory of the policy. It can be pickled, and takes along a torso of the user's."""
    factory, torso = policy_factory(getattr(settings, "policy", "actor_critic")), getattr(settings, "torso", "auto")
    return functools.partial(_with_torso, factory, OWN[torso]) if torso in OWN else factory


def _with_torso(
    factory: PolicyFactory, torso: Callable[..., Any], spec: EnvSpec, settings: Any, streams: int, generator: Any
) -> torch.nn.Module:
    OWN[settings.torso] = torso
    return factory(spec, settings, streams, generator)


def _folder_of_code(config: RunConfig) -> str:
    """The folder from which the user's own network may be imported; "" if the network is one of ours."""
    return config.folder if getattr(config.settings, "torso", "auto") not in TORSOS else ""


def require_finite(path: Path, modules: Iterable[Any]) -> None:
    """CheckpointError if a restored parameter, or a number of running statistics, is not finite."""
    for module in modules:
        buffers = [item for item in module.named_buffers() if STATISTICS.fullmatch(item[0].rpartition(".")[2])]
        named = [*module.named_parameters(), *buffers]
        wrong = next((name for name, value in named if not torch.isfinite(value).all()), None)
        if wrong is not None:
            raise CheckpointError(f"{path} holds numbers that are not finite, in {wrong}: use an earlier checkpoint")


def _build(factory: PolicyFactory, spec: EnvSpec, settings: Any, streams: int, seed: int, folder: str) -> Any:
    make_importable(folder)
    policy = build(factory, spec, settings, streams, seed)
    return policy.eval() if isinstance(policy, torch.nn.Module) else policy


def require_finite_optimizers(path: Path, algorithm: Algorithm) -> None:
    """The same for optimisers and other parts that are no modules: a moment that is nan spoils the weights silently.

    An infinite number in a part of a user's own may be meant so.
    """
    for name, part in algorithm.parts().items():
        if isinstance(part, torch.nn.Module):
            continue
        ours = type(part).__module__.startswith(("rltrain.", "torch.optim."))
        for place, value in _tensors(part.state_dict(), name):
            if value.isnan().any() or (ours and value.isinf().any()):
                raise CheckpointError(
                    f"{path} holds numbers that are not finite, in {place}: use an earlier checkpoint"
                )


def _tensors(node: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors and arrays of numbers in a state, with their places."""
    if isinstance(node, np.ndarray) and node.dtype.kind in "fc":
        node = torch.from_numpy(node)
    if isinstance(node, torch.Tensor):
        yield name, node
    elif isinstance(node, dict | list | tuple):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _tensors(child, f"{name}.{key}")
