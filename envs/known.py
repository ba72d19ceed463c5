"""Environments that change no setting of the process in which they run: those of Gymnasium itself."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

PACKAGES = tuple(f"gymnasium.envs.{name}." for name in ("box2d", "classic_control", "mujoco", "toy_text"))
WRAPPERS = (OrderEnforcing, PassiveEnvChecker, TimeLimit)  # that `gymnasium.make` adds


def keeps_settings(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether all code that runs in its steps and resets is Gymnasium's, and draws no pictures.

    `tests/envs/test_known.py` plays these environments and compares the settings of the process.
    """
    while type(env) in WRAPPERS:
        if not _is_original(env):
            return False
        env = env.env  # type: ignore[attr-defined]
    return type(env).__module__.startswith(PACKAGES) and _is_original(env) and env.render_mode is None


def _is_original(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether nobody has replaced its methods, neither those of the object nor those of its class."""
    methods = ("step", "reset")
    return not vars(env).keys() & set(methods) and all(
        getattr(type(env), name).__module__.startswith("gymnasium.") for name in methods
    )
