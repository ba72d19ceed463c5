"""Creates environments: reads the spec of one, and chooses and makes the vector environment of an actor."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.spaces import Space
from gymnasium.wrappers import FrameStackObservation

from rltrain.envs.closing import close
from rltrain.envs.errors import EnvError, EnvFault, InvalidValue, Watch, made_already, unwatched, user_traceback
from rltrain.envs.lookup import FORMS, EnvSource
from rltrain.envs.names import registered
from rltrain.envs.spaces import MASK, env_spec, stacked
from rltrain.envs.spec import EnvSpec, Padding
from rltrain.envs.suites import atari
from rltrain.envs.values import described
from rltrain.envs.vector.episode_info import EpisodeOptions, begin_progress, progress_method
from rltrain.envs.vector.native import NativeVectorEnv, blocks, check_autoreset
from rltrain.envs.vector.serial import SerialVectorEnv
from rltrain.envs.vector.unroll_rows import VectorEnv

if TYPE_CHECKING:
    from rltrain.envs.multi_agent.joint_spaces import Share

MAY_BE = f"It may be {FORMS}."
NATIVE_FROM = 128  # streams of a run from which "auto" chooses a native vector environment if there is one

PASS_ON = {  # modules of Gymnasium's wrappers that neither change nor drop observations
    f"gymnasium.wrappers.{name}"
    for name in ("common", "rendering", "stateful_reward", "transform_action", "transform_reward")
}


def resolve(
    env: str | Callable[..., Any] | EnvSource,
    kwargs: Mapping[str, Any] | None = None,
    share: Share = "all",
    action_bound: float | None = None,
    folder: str | None = None,
) -> EnvSource:
    """The source of an environment. Nothing is imported or made yet.

    Args:
        env:    see FORMS; a name given to `register_env`; or a class or function that makes an environment.
        kwargs: for its constructor.
        share:  which agents share a policy: see `rltrain.envs.multi_agent.joint_spaces.groups_of`.
        action_bound: of actions without bounds: see `rltrain.envs.spaces.action_spec`.
        folder: from which modules and files that the name names are imported; None: the current folder.
    """
    kwargs = dict(kwargs or {})
    if isinstance(env, EnvSource):
        return replace(env, kwargs={**env.kwargs, **kwargs})
    folder = os.getcwd() if folder is None else folder
    if isinstance(env, str):
        return EnvSource(env, registered(env), kwargs, folder, share, action_bound)
    if not callable(env):
        raise EnvError(made_already(env) or f"{env!r} is not an environment's name, class or function. {MAY_BE}")
    return EnvSource(getattr(env, "__qualname__", type(env).__name__), env, kwargs, folder, share, action_bound)


def fitting(source: EnvSource, inherited: Mapping[str, Any]) -> EnvSource:
    """The source without those inherited arguments that its constructor does not take; a line on stderr names them.

    Args:
        inherited: arguments that a run gave to another environment.
    """
    refused = [key for key in source.unknown_arguments() if key in inherited]
    if not refused:
        return source
    text = f"{source.name} does not take {', '.join(refused)}, which the run's environment got"
    print(f"rltrain: {text}; it is made without", file=sys.stderr)
    return replace(source, kwargs={key: value for key, value in source.kwargs.items() if key not in refused})


def read_spec(source: EnvSource, seed: int, watch: Watch = unwatched) -> EnvSpec:
    """Make one environment, reset it once, and return its spec.

    Args:
        watch: gets the name of each call of the environment before it is made.

    Raises:
        EnvError: the environment cannot be used; one line.
        EnvFault: its own code raised.
    """
    watch("import")
    source.lookup()
    watch("constructor")
    env = begin_progress(source.make())
    try:
        limit = _time_limit(env)
        check_interface(env, source.name)
        watch("reset")
        try:
            result = env.reset(seed=seed)
        except EnvError:
            raise
        except InvalidValue as error:
            raise EnvError(f"{source.name}: {error}") from None
        except Exception as error:
            raise EnvFault(-1, seed, 0, user_traceback(error)) from None
        if getattr(type(env), "spec_of", None) is not None:  # several agents
            spec: EnvSpec = env.spec_of()
            return spec
        info = result[1] if isinstance(result, tuple) and len(result) == 2 else None
        mask_in_info = isinstance(info, dict) and MASK in info
        spaces = env.observation_space, env.action_space
        spec = env_spec(source.name, *spaces, limit, mask_in_info, source.action_bound)
        return replace(spec, obs=stacked(spec.obs, *_frames(env)))
    finally:
        watch("close")
        close(env)


def _time_limit(env: Any) -> int | None:
    """After how many steps episodes are truncated, if Gymnasium's spec or a wrapper tells it. Neither is trusted."""
    limits = [getattr(getattr(env, "spec", None), "max_episode_steps", None)]
    while isinstance(env, gymnasium.Wrapper):
        limits.append(getattr(env, "_max_episode_steps", None))
        env = env.env
    return next((int(limit) for limit in limits if isinstance(limit, int | np.integer) and limit > 0), None)


def check_interface(env: gymnasium.Env[Any, Any], name: str) -> None:
    """Check that an environment has both spaces, and that `reset` takes a seed.

    Raises:
        EnvError: one line that says what is missing.
    """
    game = env.game if getattr(type(env), "spec_of", None) is not None else env  # type: ignore[attr-defined]
    if game is env:
        for attribute in ("observation_space", "action_space"):
            try:
                space = getattr(env, attribute)
            except AttributeError:
                space = None
            if not isinstance(space, Space):
                what = "none" if space is None else described(space)
                raise EnvError(f"{name} needs an attribute {attribute}, a space of gymnasium.spaces; it has {what}")
    inner = getattr(game, "unwrapped", game)
    reset = getattr(type(inner), "reset", None)
    try:
        if reset is not None:
            inspect.signature(reset).bind(inner, seed=0)
    except TypeError:
        raise EnvError(
            f"{name}: its reset takes no seed, so a run cannot be repeated. Define reset(self, *, seed=None, "
            "options=None), and begin it with super().reset(seed=seed)"
        ) from None
    except ValueError:
        pass  # it has no signature: the call itself will raise


def _frames(env: gymnasium.Env[Any, Any]) -> tuple[int, Padding]:
    """The number of frames in an observation, 0 if unknown, and the padding before the first frame of an episode."""
    if isinstance(env, atari.Atari):
        return env.stack, "reset"
    while isinstance(env, gymnasium.Wrapper) and _passes_on(type(env)):
        env = env.env
    if type(env) is FrameStackObservation:
        if env.padding_type == "zero":
            return env.stack_size, "zero"
        return (env.stack_size if env.padding_type == "reset" else 0), "reset"
    return 0, "reset"


def _passes_on(wrapper: type) -> bool:
    """Whether a wrapper passes on each observation: it is in PASS_ON, or does not override `step` and `reset`."""
    if wrapper.__module__ in PASS_ON:
        return True
    base = (gymnasium.Wrapper, gymnasium.ActionWrapper, gymnasium.RewardWrapper)
    return all(any(getattr(wrapper, name) is getattr(kind, name) for kind in base) for name in ("step", "reset"))


def vector_kind(source: EnvSource, total_streams: int, asked: str = "auto", watch: Watch = unwatched) -> str:
    """ "serial" or "native", for a run of `total_streams`; an actor's share of them has no influence.

    "auto" is "native" from 128 streams on, if there is a native vector environment that can be used.

    Raises:
        EnvError: "native" was asked for and cannot be used.
    """
    if asked == "serial" or (asked == "auto" and total_streams < NATIVE_FROM):
        return "serial"
    if asked not in ("auto", "native"):
        raise EnvError(f"unknown kind of vector environment {asked!r}; it may be auto, serial or native")
    try:
        if source.native_id() is None:
            raise EnvError(f"{source.name} registers no usable native vector environment. Use --vector serial.")
        spec = read_spec(source, 0, watch)
        _refuse_progress(source, watch)
        check_autoreset(source.make_block, spec, action_bound=source.action_bound, watch=watch)
    except Exception:  # also of its own code
        if asked == "native":
            raise
        return "serial"
    return "native"


def _refuse_progress(source: EnvSource, watch: Watch) -> None:
    """EnvError if the environment has `set_progress`, which native vector environments do not call."""
    watch("constructor")
    env = source.make()
    try:
        if progress_method(env) is not None:
            raise EnvError(
                f"{source.name} has set_progress, which a native vector environment does not call. Use --vector serial."
            )
    finally:
        watch("close")
        close(env)


def vector(
    source: EnvSource,
    spec: EnvSpec,
    streams: Sequence[int],
    seeds: Sequence[int],
    restore_method: str,
    kind: str = "serial",
    total: int = 0,
    options: EpisodeOptions = EpisodeOptions(),  # noqa: B008, a tuple
) -> VectorEnv:
    """The vector environment of one actor.

    Args:
        streams:        the actor's, ascending; if kind is "native", whole blocks of `native.blocks(total)`.
        seeds:          one per stream; a native block uses the seed of its first stream.
        restore_method: see `restore_check.verify` and `native.verify_native`.
        kind:           see `vector_kind`.
        total:          streams of the whole run; only for "native".
        options:        what the run asks of all streams.
    """
    if kind == "serial":
        return serial(source.make, spec, streams, seeds, restore_method, options)
    seed_of_stream = dict(zip(streams, seeds, strict=True))
    own = [block for block in blocks(total) if block[0] in seed_of_stream]
    if [stream for block in own for stream in block] != list(streams):
        raise ValueError("an actor owns whole blocks of a native vector environment")
    own_seeds = [seed_of_stream[block[0]] for block in own]
    return NativeVectorEnv(source.make_block, spec, own, own_seeds, restore_method, options)


def serial(
    make: Callable[[], gymnasium.Env[Any, Any]],
    spec: EnvSpec,
    streams: Sequence[int],
    seeds: Sequence[int],
    restore_method: str,
    options: EpisodeOptions = EpisodeOptions(),  # noqa: B008, a tuple
) -> SerialVectorEnv:
    """Environments of one agent or of several that are stepped one after the other."""
    if not spec.groups:
        return SerialVectorEnv(make, spec, streams, seeds, restore_method, options)
    from rltrain.envs.vector.serial_multi import SerialMultiVectorEnv

    return SerialMultiVectorEnv(make, spec, streams, seeds, restore_method, options)


def make_env(env: str | Callable[..., Any], **env_args: Any) -> gymnasium.Env[Any, Any]:
    """Make one Gymnasium environment, as each stream of a run does.

    Args:
        env:      a registered id, `module:Id-v0`, `package.module:ClassOrFactory`, `path/to/file.py:ClassOrFactory`,
                  `probe:name`, a name given to `rltrain.register_env`, or a class or function.
        env_args: keywords for its constructor.

    Raises:
        EnvError: the environment cannot be made; one line that says what was looked for and where.
    """
    return resolve(env, env_args).make()
