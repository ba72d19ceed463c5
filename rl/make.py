"""`rltrain.make_env`: one environment by the name that `--env` takes, as an actor makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium

from rltrain.envs.make import resolve


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
