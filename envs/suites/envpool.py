"""EnvPool's environments, `envpool:Pong-v5`: C++ behind a package that is only used where it is installed.

EnvPool resets an environment in the step after its end and ignores that step's action, which is the layout of ours;
the observation of the end itself is the final one. It can be seeded only when it is made.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from rltrain.envs.errors import EnvError, did_you_mean
from rltrain.envs.spaces import EPISODE_CONTINUES

PREFIX = "envpool:"
SEEDS = 2**31 - 1  # EnvPool's are 32 bits wide
STICKY = {
    "repeat_action_probability": 0.25
}  # Machado et al. 2018, as in `rltrain.envs.suites.atari`; EnvPool's own default is 0


class Block:
    """`width` environments of one pool, as `rltrain.envs.vector.native` takes them: reset in the step after an end."""

    def __init__(self, task: str, width: int, **kwargs: Any) -> None:
        self._make: Callable[[int], Any] = lambda seed: _pool(task, width, seed, kwargs)
        self._pool = self._make(0)
        self.metadata: dict[str, Any] = {}
        self.single_observation_space: spaces.Space[Any] = self._pool.observation_space
        self.single_action_space: spaces.Space[Any] = self._pool.action_space
        self._dtype = np.int32 if isinstance(self.single_action_space, spaces.Discrete) else None
        self.max_steps: int | None = getattr(self._pool.spec.config, "max_episode_steps", None)

    @property
    def unwrapped(self) -> Block:
        return self

    def reset(self, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """New episodes; with a seed from a new pool, since one that is there cannot be seeded again."""
        if seed is not None:
            self._pool.close()
            self._pool = self._make(seed)
        obs, info = self._pool.reset()
        return obs, info

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One row of all of them."""
        obs, reward, terminated, truncated, info = self._pool.step(np.asarray(actions, self._dtype))
        return obs, reward, terminated, truncated, info

    def close(self) -> None:
        self._pool.close()


class EnvPool(gymnasium.Env[Any, Any]):
    """One environment of EnvPool, alone in its pool, so that a stream can have a seed of its own."""

    def __init__(self, task: str, **kwargs: Any) -> None:
        self._block = Block(task, 1, **kwargs)
        self.observation_space = self._block.single_observation_space
        self.action_space = self._block.single_action_space
        self.spec = EnvSpec(f"envpool/{task}", max_episode_steps=self._block.max_steps)
        self._by_life = bool(kwargs.get("episodic_life", False))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        obs, _ = self._block.reset(seed)
        return _first(obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self._block.step(np.asarray(action)[None])
        told = {EPISODE_CONTINUES: True} if self._by_life and terminated[0] and not info["terminated"][0] else {}
        return _first(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]), told

    def close(self) -> None:
        self._block.close()


def find(name: str) -> Callable[..., EnvPool] | None:
    """What makes the environment that `name` stands for, "envpool:Pong-v5"; None if it names none.

    Raises:
        EnvError: EnvPool is not installed, or has no such environment; one line.
    """
    return functools.partial(EnvPool, _task(name)) if name.startswith(PREFIX) else None


def block(name: str) -> Callable[..., Block]:
    """The same for blocks of them: called with a width and keywords."""
    return functools.partial(Block, _task(name))


def _task(name: str) -> str:
    task, known = name.removeprefix(PREFIX), _package(name).list_all_envs()
    if task not in known:
        raise EnvError(f"EnvPool has no {task!r}." + did_you_mean(name, [PREFIX + one for one in known]))
    return task


def _package(name: str) -> Any:
    try:
        return importlib.import_module("envpool")
    except ImportError:
        raise EnvError(f"{name} needs a package that has no wheel everywhere: pip install envpool") from None


def _pool(task: str, width: int, seed: int, kwargs: dict[str, Any]) -> Any:
    package = _package(PREFIX + task)
    known = package.make_spec(task).config._fields
    wrong = next((key for key in kwargs if key not in known), None)
    if wrong is not None:
        hint = did_you_mean(wrong, known)
        raise EnvError(f"EnvPool's {task} takes no {wrong!r}.{hint} It takes: {', '.join(sorted(known))}.")
    asked = {key: value for key, value in STICKY.items() if key in known} | kwargs
    made = package.make_gymnasium(task, num_envs=width, num_threads=1, seed=seed % SEEDS, **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the bounds of its spaces are float64, which gymnasium warns of
        _ = made.observation_space, made.action_space  # made here, and kept
    return made


def _first(obs: Any) -> Any:
    if isinstance(obs, dict):
        return {key: _first(child) for key, child in obs.items()}
    return tuple(_first(child) for child in obs) if isinstance(obs, tuple) else obs[0]
