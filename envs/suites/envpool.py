"""EnvPool's environments, `envpool:Pong-v5`, written in C++; EnvPool is an optional package.

EnvPool resets an environment in the step after the end of its episode and ignores the action of that step, as this
platform does. A pool can be seeded only when it is made.
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
DEFAULTS = {"repeat_action_probability": 0.25}  # Machado et al. 2018, as in `atari`; EnvPool's own default is 0


class Block:
    """`width` environments of one pool, with the interface that `rltrain.envs.vector.native` needs."""

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
        """New episodes; with a seed, of a new pool, since an existing one cannot be seeded again."""
        if seed is not None:
            self._pool.close()
            self._pool = self._make(seed)
        obs, info = self._pool.reset()
        return obs, info

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of all environments."""
        obs, reward, terminated, truncated, info = self._pool.step(np.asarray(actions, self._dtype))
        return obs, reward, terminated, truncated, info

    def close(self) -> None:
        self._pool.close()


class EnvPool(gymnasium.Env[Any, Any]):
    """A pool with one environment, so that each stream has its own seed."""

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
        life_lost = self._by_life and terminated[0] and not info["terminated"][0]
        new_info = {EPISODE_CONTINUES: True} if life_lost else {}
        return _first(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]), new_info

    def close(self) -> None:
        self._block.close()


def find(name: str) -> Callable[..., EnvPool] | None:
    """The factory of the environment `name`, such as "envpool:Pong-v5"; None if the name is of another form.

    Raises:
        EnvError: EnvPool is not installed, or has no such environment; one line.
    """
    return functools.partial(EnvPool, _task(name)) if name.startswith(PREFIX) else None


def block(name: str) -> Callable[..., Block]:
    """The factory of blocks of the environment `name`: called with a width and keywords."""
    return functools.partial(Block, _task(name))


def _task(name: str) -> str:
    task, known = name.removeprefix(PREFIX), _package(name).list_all_envs()
    if task not in known:
        raise EnvError(f"EnvPool has no {task!r}." + did_you_mean(name, [PREFIX + other for other in known]))
    return task


def _package(name: str) -> Any:
    try:
        return importlib.import_module("envpool")
    except ImportError:
        raise EnvError(f"{name} needs a package without wheels for some platforms: pip install envpool") from None


def _pool(task: str, width: int, seed: int, kwargs: dict[str, Any]) -> Any:
    package = _package(PREFIX + task)
    known = package.make_spec(task).config._fields
    wrong = next((key for key in kwargs if key not in known), None)
    if wrong is not None:
        accepted = ", ".join(sorted(known))
        raise EnvError(f"EnvPool's {task} takes no {wrong!r}.{did_you_mean(wrong, known)} It takes: {accepted}.")
    settings = {key: value for key, value in DEFAULTS.items() if key in known} | kwargs
    pool = package.make_gymnasium(task, num_envs=width, num_threads=1, seed=seed % SEEDS, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium warns that the bounds of its spaces are float64
        _ = pool.observation_space, pool.action_space  # cached properties
    return pool


def _first(obs: Any) -> Any:
    if isinstance(obs, dict):
        return {key: _first(child) for key, child in obs.items()}
    return tuple(_first(child) for child in obs) if isinstance(obs, tuple) else obs[0]
