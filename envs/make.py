"""Creates environments and vectors of them: reads the spec of one, chooses a native or a serial vector."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium

from rltrain.envs.errors import EnvError, EnvFault
from rltrain.envs.source import FORMS, EnvSource, registered
from rltrain.envs.spaces import MASK, env_spec, stacked
from rltrain.envs.spec import EnvSpec
from rltrain.envs.suites.frame_stack import frames
from rltrain.envs.vector.native import NativeVectorEnv, blocks, probe_autoreset
from rltrain.envs.vector.serial import SerialVectorEnv
from rltrain.envs.vector.unroll_rows import VectorEnv

if TYPE_CHECKING:
    from rltrain.envs.multi_agent.joint_spaces import Share


NATIVE_FROM = 128  # streams from which a native vector environment is used where there is one


def resolve(
    env: str | Callable[..., Any] | EnvSource, kwargs: Mapping[str, Any] | None = None, share: Share = "all"
) -> EnvSource:
    """What `env` names, with arguments for its constructor. Nothing is made or imported yet.

    Args:
        env:   see FORMS; a name given to `register_env`; or a class or function that makes an environment.
        share: which of several agents share a policy: see `rltrain.envs.multi_agent.joint_spaces.groups_of`.
    """
    arguments = dict(kwargs or {})
    if isinstance(env, EnvSource):
        return EnvSource(env.name, env.target, {**env.kwargs, **arguments}, env.folder, env.share)
    folder = os.getcwd()
    if isinstance(env, str):
        return EnvSource(env, registered(env), arguments, folder, share)
    if not callable(env):
        raise EnvError(f"{env!r} is not an environment's name, class or function. It may be {FORMS}.")
    return EnvSource(getattr(env, "__qualname__", type(env).__name__), env, arguments, folder, share)


def look(source: EnvSource, seed: int) -> EnvSpec:
    """Make one environment, reset it once, and say what an algorithm may know of it."""
    env = source.make()
    try:
        limit = env.spec.max_episode_steps if env.spec is not None else None
        inner: Any = env
        while limit is None and isinstance(inner, gymnasium.Wrapper):
            limit = getattr(inner, "_max_episode_steps", None)
            inner = inner.env
        try:
            back = env.reset(seed=seed)
        except EnvError:
            raise
        except Exception as error:
            raise EnvFault(-1, seed, 0, traceback.format_exc()) from error
        if hasattr(env, "spec_of"):  # several agents
            told: EnvSpec = env.spec_of()
            return told
        info = back[1] if isinstance(back, tuple) and len(back) == 2 else None
        in_info = isinstance(info, dict) and MASK in info
        spec = env_spec(source.name, env.observation_space, env.action_space, limit, in_info)
        return replace(spec, obs=stacked(spec.obs, *frames(env)))
    finally:
        env.close()


def choose(source: EnvSource, total_streams: int, asked: str = "auto") -> str:
    """ "serial" or "native", for a run of `total_streams`; never judged by an actor's share of them.

    "auto" takes a native vector environment from 128 streams on, where there is one that can be used.
    """
    if asked == "serial" or (asked == "auto" and total_streams < NATIVE_FROM):
        return "serial"
    if asked not in ("auto", "native"):
        raise EnvError(f"unknown kind of vector environment {asked!r}; it may be auto, serial or native")
    try:
        if source.native_id() is None:
            raise EnvError(f"{source.name} registers no usable native vector environment. Use --vector serial.")
        probe_autoreset(source.make_block, look(source, 0))
    except (EnvError, EnvFault):
        if asked == "native":
            raise
        return "serial"
    return "native"


def vector(
    source: EnvSource,
    spec: EnvSpec,
    streams: Sequence[int],
    seeds: Sequence[int],
    way: str,
    kind: str = "serial",
    total: int = 0,
) -> VectorEnv:
    """The environments of one actor.

    Args:
        streams: the actor's, ascending; whole blocks of `native.blocks(total)` where kind is "native".
        seeds:   one per stream; a native block takes its first stream's.
        way:     how they are brought back on resume: `bring_back.prove`, or `native.prove_native`.
        total:   streams of the whole run; only "native" asks.
    """
    if kind == "serial":
        return serial(source.make, spec, streams, seeds, way)
    seed_of_stream = dict(zip(streams, seeds, strict=True))
    mine = [block for block in blocks(total) if block[0] in seed_of_stream]
    if [stream for block in mine for stream in block] != list(streams):
        raise ValueError("an actor owns whole blocks of a native vector environment")
    return NativeVectorEnv(source.make_block, spec, mine, [seed_of_stream[block[0]] for block in mine], way)


def serial(
    make: Callable[[], gymnasium.Env[Any, Any]], spec: EnvSpec, streams: Sequence[int], seeds: Sequence[int], way: str
) -> SerialVectorEnv:
    """Streams stepped one after the other, of one agent or of several."""
    if not spec.groups:
        return SerialVectorEnv(make, spec, streams, seeds, way)
    from rltrain.envs.vector.serial_multi import SerialMultiVectorEnv

    return SerialMultiVectorEnv(make, spec, streams, seeds, way)


def make_env(env: str | Callable[..., Any], **env_args: Any) -> gymnasium.Env[Any, Any]:
    """One Gymnasium environment, before it is joined to others.

    Args:
        env:      a registered id, `module:Id-v0`, `package.module:ClassOrFactory`, `path/to/file.py:ClassOrFactory`,
                  `probe:name`, a name given to `rltrain.register_env`, or a class or function.
        env_args: keywords for its constructor.

    Raises:
        EnvError: one line that says what was looked for and where.
    """
    return resolve(env, env_args).make()
