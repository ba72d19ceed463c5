"""How many frames an observation is made of, as the environment's wrappers say."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import FrameStackObservation

from rltrain.envs.spec import Padding
from rltrain.envs.suites import atari

HAND_ON = {  # gymnasium's wrappers that change no observation and leave none out
    f"gymnasium.wrappers.{name}"
    for name in ("common", "rendering", "stateful_reward", "transform_action", "transform_reward")
}


def frames(env: gymnasium.Env[Any, Any]) -> tuple[int, Padding]:
    """How many of the newest frames an observation is, and what stands for those before the first; 0: not known."""
    if isinstance(env, atari.Atari):
        return env.stack, "reset"
    while isinstance(env, gymnasium.Wrapper) and _hands_on(type(env)):
        env = env.env
    if type(env) is FrameStackObservation:
        if env.padding_type == "zero":
            return env.stack_size, "zero"
        return (env.stack_size if env.padding_type == "reset" else 0), "reset"
    return 0, "reset"


def _hands_on(wrapper: type) -> bool:
    """Whether a wrapper hands on each observation as it comes: it is known to, or leaves `step` and `reset` alone."""
    if wrapper.__module__ in HAND_ON:
        return True
    own = (gymnasium.Wrapper, gymnasium.ActionWrapper, gymnasium.RewardWrapper)
    return all(any(getattr(wrapper, name) is getattr(kind, name) for kind in own) for name in ("step", "reset"))
