"""Finds out from an environment's wrappers how many frames its observations consist of."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import FrameStackObservation

from rltrain.envs.spec import Padding
from rltrain.envs.suites import atari

PASS_ON = {  # modules of Gymnasium's wrappers that neither change nor drop observations
    f"gymnasium.wrappers.{name}"
    for name in ("common", "rendering", "stateful_reward", "transform_action", "transform_reward")
}


def frames(env: gymnasium.Env[Any, Any]) -> tuple[int, Padding]:
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
