"""The first look at the environment of a run: its spec, its warnings, how its streams are restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rltrain import algorithms
from rltrain.config.run_config import RunConfig
from rltrain.envs.check import first_look
from rltrain.envs.errors import EnvError
from rltrain.envs.make import choose, look, resolve, vector
from rltrain.envs.seeding import stream_seed
from rltrain.envs.source import EnvSource
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector import native
from rltrain.envs.vector.restore_check import verify
from rltrain.envs.vector.unroll_rows import VectorEnv
from rltrain.errors import ConfigError


@dataclass(frozen=True)
class World:
    """The environment of a run, looked at."""

    source: EnvSource
    spec: EnvSpec
    kind: str  # serial or native
    units: tuple[tuple[int, ...], ...]  # streams that an actor takes together
    way: str  # how a stream is brought back on resume; "none" means that a resumed run is not exact
    warnings: tuple[str, ...]


def world(config: RunConfig, way: str | None = None) -> World:
    """Make the environment once, look at it, and decide how its streams are stepped and brought back.

    Args:
        way: how they are brought back, where a checkpoint says it; else it is found out here.

    Raises:
        EnvError, ConfigError: a line for each thing that is wrong, with what to do.
        EnvFault: the environment's own code raised.
    """
    source = resolve(config.env, config.env_args, config.share)
    spec = look(source, config.seed)
    for_as_many(config.algo, spec)
    problems = first_look(source, spec, config.seed)
    fatal = [problem.text for problem in problems if problem.fatal]
    if fatal:
        raise EnvError("\n".join(fatal))
    kind = choose(source, config.streams, config.vector)
    if kind == "native":
        units = tuple(native.blocks(config.streams))
        way = way or native.prove_native(source.make_block, spec, config.seed)
        if config.workers > len(units):
            raise ConfigError(
                f"--workers {config.workers}: the native vector environment of {spec.id} comes in {len(units)} blocks; "
                f"use at most {len(units)} workers, or --vector serial"
            )
    else:
        units = tuple((stream,) for stream in range(config.streams))
        way = way or verify(source.make, spec, config.seed)
    return World(source, spec, kind, units, way, tuple(p.text for p in problems if not p.fatal))


def for_as_many(algo: str, spec: EnvSpec) -> None:
    """ConfigError where an algorithm for several agents meets an environment of one."""
    if algorithms.for_several(algo) and not spec.groups:
        others = ", ".join(name for name in algorithms.names() if not algorithms.for_several(name))
        raise ConfigError(f"{algo} is for several agents; {spec.id} has one agent. Use {others}")


def _vector(here: World, seed: int, streams: Sequence[int], incarnations: Sequence[int]) -> VectorEnv:
    """The environments of some streams, or of whole blocks of them, in an actor."""
    seeds = [stream_seed(seed, stream, inc) for stream, inc in zip(streams, incarnations, strict=True)]
    total = sum(len(unit) for unit in here.units)
    return vector(here.source, here.spec, streams, seeds, here.way, here.kind, total)
