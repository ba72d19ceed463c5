"""How a stream's environment is brought back on resume: plain data in, the same episode at the same step out.

Four ways; `prove` finds the first that works for an environment:

  offered  the environment has `get_state()`, which returns plain data, and `set_state(data)`, which returns (obs, info)
  rng      the generator's state before the episode's reset, and the episode's actions, played again
  seed     every episode is reset with a seed of its own, and its actions are played again
  none     the episode begins anew

Only "seed" changes how episodes are reset, and so what a run sees: whether it is used is never left to a clock.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from rltrain.envs.seeding import seed_of
from rltrain.envs.vector.plain_data import attributes, from_plain, set_attributes, to_plain

WAYS = ("offered", "rng", "seed", "none")
LONGEST = 100_000  # actions of one episode that are kept; a longer episode begins anew on resume
Env = gymnasium.Env[Any, Any]
Reader = Callable[[np.ndarray], Any]


class Log:
    """What one stream must remember of its current episode, so that the episode can be brought back.

    Args:
        way: one of WAYS.
    """

    def __init__(self, way: str) -> None:
        if way not in WAYS:
            raise ValueError(f"unknown way to bring an environment back: {way!r}; ways: {', '.join(WAYS)}")
        self.way = way
        self.episode = 0  # episodes begun before the current one
        self._seed = 0  # of the stream
        self._base = 0  # what the last seeded reset was seeded with
        self._rng: dict[str, Any] | None = None  # the generator before the current episode's reset, if unseeded
        self._actions: list[np.ndarray] = []  # [t, *A] each, of the current episode, one per unroll
        self._kept = 0
        self._replays = way in ("rng", "seed")

    def begin(self, env: Env, seed: int) -> tuple[Any, dict[str, Any]]:
        """Reset with `seed`: the first episode of the stream."""
        self._seed = self._base = seed
        self.episode, self._rng, self._actions, self._kept = 0, None, [], 0
        return env.reset(seed=seed)

    def again(self, env: Env) -> tuple[Any, dict[str, Any]]:
        """Reset for the next episode."""
        self.episode += 1
        if self.way == "rng":
            self._rng = dict(env.unwrapped.np_random.bit_generator.state)
        elif self.way == "seed":
            self._base = seed_of(self._seed, self.episode)
            return env.reset(seed=self._base)
        return env.reset()

    def extend(self, actions: np.ndarray, first: np.ndarray) -> None:
        """Keep an unroll's actions [T, *A] of the current episode; first[t]: the row after t begins an episode."""
        if not self._replays:
            return
        resets = np.flatnonzero(first)
        if resets.size:
            self._actions, self._kept = [], 0
            actions = actions[resets[-1] + 1 :]
        self._kept += len(actions)
        if self._kept > LONGEST:
            self._actions = []
        elif len(actions):
            self._actions.append(actions.copy())

    def state(self, env: Env) -> dict[str, Any]:
        """Plain data that `load` can go on from."""
        saved: dict[str, Any] = {"way": self.way, "base": self._base, "episode": self.episode}
        if self.way == "offered":
            inner: Any = env.unwrapped
            saved["offered"] = to_plain(inner.get_state())
            saved["wrappers"] = [attributes(wrapper) for wrapper in wrappers(env)]
        elif self._replays and self._kept <= LONGEST:
            saved["rng"] = copy.deepcopy(self._rng)
            saved["now"] = _generator(env)
            saved["actions"] = np.concatenate(self._actions) if self._actions else None
        return saved

    def load(self, env: Env, saved: dict[str, Any], seed: int, reader: Reader) -> tuple[Any, dict[str, Any], bool]:
        """Bring back what `state` saved into `env`, a fresh one: (obs, info, exact).

        Where that fails a new episode begins, on a seed of its own, and `exact` is False.
        A key "over" of `saved` says whether the episode had ended; the replay must agree.
        """
        self._seed, self.episode = seed, int(saved["episode"])
        if saved["way"] == self.way and self.way != "none":
            try:
                brought = self._restore(env, saved) if self.way == "offered" else self._replay(env, saved, reader)
            except Exception:  # whatever an environment may raise: it cannot be brought back
                brought = None
            if brought is not None:
                return *brought, True
        return *self.anew(env), False

    def anew(self, env: Env) -> tuple[Any, dict[str, Any]]:
        """Begin a new episode on a seed of its own, in an environment that could not be brought back."""
        self.episode += 1
        self._base, self._rng, self._actions, self._kept = seed_of(self._seed, self.episode), None, [], 0
        return env.reset(seed=self._base)

    def _restore(self, env: Env, saved: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        inner: Any = env.unwrapped
        self._base = int(saved["base"])
        env.reset(seed=self._base)
        obs, info = inner.set_state(from_plain(saved["offered"]))
        chain = wrappers(env)
        for wrapper, data in zip(chain, saved["wrappers"], strict=True):
            set_attributes(wrapper, data)
        for wrapper in reversed(chain):
            if isinstance(wrapper, gymnasium.ObservationWrapper):
                obs = wrapper.observation(obs)
        return obs, info

    def _replay(self, env: Env, saved: dict[str, Any], reader: Reader) -> tuple[Any, dict[str, Any]] | None:
        if "actions" not in saved:
            return None
        self._base, self._rng = int(saved["base"]), copy.deepcopy(saved["rng"])
        obs, info = env.reset(seed=self._base)
        if self._rng is not None:
            env.unwrapped.np_random.bit_generator.state = self._rng
            obs, info = env.reset()
        actions = saved["actions"]
        over = False
        if actions is not None:
            taken = reader(actions)
            for t in range(len(actions)):
                if over:
                    return None
                obs, _, terminated, truncated, info = env.step(taken[t])
                over = bool(terminated or truncated)
        if over != bool(saved.get("over", over)) or _generator(env) != saved["now"]:
            return None
        self._actions, self._kept = ([], 0) if actions is None else ([np.array(actions)], len(actions))
        return obs, info


def wrappers(env: Env) -> list[gymnasium.Wrapper[Any, Any, Any, Any]]:
    """The wrappers around an environment, the outermost first."""
    chain = []
    while isinstance(env, gymnasium.Wrapper):
        chain.append(env)
        env = env.env
    return chain


def _generator(env: Env) -> dict[str, Any]:
    """The state of an environment's generator now; a copy."""
    return copy.deepcopy(dict(env.unwrapped.np_random.bit_generator.state))
