"""Restores the environment of a stream on resume: from plain data to the same step of the same episode.

There are four methods; `restore_check.verify` finds the first one that works for an environment:

  offered  the environment has `get_state()`, which returns plain data, and `set_state(data)`, which returns (obs, info)
  rng      the generator's state before the episode's reset is restored, and the episode's actions are replayed
  seed     each episode is reset with its own seed, and its actions are replayed
  none     a new episode begins

Only "seed" changes how episodes are reset, and so the data of a run: no clock may decide whether it is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from rltrain.envs.seeding import seed_of
from rltrain.envs.vector.plain_data import attributes, from_plain, set_attributes, to_plain

METHODS = ("offered", "rng", "seed", "none")
LONGEST = 100_000  # actions of one episode that are stored; a longer episode begins again on resume
Env = gymnasium.Env[Any, Any]
Reader = Callable[[np.ndarray], Any]


class EpisodeLog:
    """Records what is needed to restore the current episode of one stream.

    Args:
        method: one of METHODS.
    """

    def __init__(self, method: str) -> None:
        if method not in METHODS:
            raise ValueError(f"unknown method to restore an environment: {method!r}; methods: {', '.join(METHODS)}")
        self.method = method
        self.episode = 0  # number of the current episode
        self._seed = 0  # of the stream
        self._base = 0  # seed of the last seeded reset
        self._rng: dict[str, Any] | None = None  # the generator before the current episode's reset, if unseeded
        self._actions: list[np.ndarray] = []  # [t, *A] each: the current episode's, one array per unroll
        self._count = 0  # actions of the current episode
        self._replays = method in ("rng", "seed")

    def first_reset(self, env: Env, seed: int) -> tuple[Any, dict[str, Any]]:
        """Reset with the seed of the stream: its first episode."""
        self._seed, self.episode = seed, 0
        return self._seeded_reset(env, seed)

    def next_reset(self, env: Env) -> tuple[Any, dict[str, Any]]:
        """Reset for the next episode."""
        self.episode += 1
        if self.method == "rng":
            self._rng = dict(env.unwrapped.np_random.bit_generator.state)  # not copied deeply, for speed
        elif self.method == "seed":
            self._base = seed_of(self._seed, self.episode)
            return env.reset(seed=self._base)
        return env.reset()

    def new_episode(self, env: Env) -> tuple[Any, dict[str, Any]]:
        """Begin a new episode, with its own seed, in an environment that could not be restored."""
        self.episode += 1
        return self._seeded_reset(env, seed_of(self._seed, self.episode))

    def _seeded_reset(self, env: Env, seed: int) -> tuple[Any, dict[str, Any]]:
        self._base, self._rng, self._actions, self._count = seed, None, [], 0
        return env.reset(seed=seed)

    def extend(self, actions: np.ndarray, first: np.ndarray) -> None:
        """Store the current episode's actions of an unroll [T, *A]; first[t]: row t + 1 begins an episode."""
        if not self._replays:
            return
        resets = np.flatnonzero(first)
        if resets.size:
            self._actions, self._count = [], 0
            actions = actions[resets[-1] + 1 :]
        self._count += len(actions)
        if self._count > LONGEST:
            self._actions = []
        elif len(actions):
            self._actions.append(actions.copy())

    def state(self, env: Env) -> dict[str, Any]:
        """Plain data for `load`."""
        saved: dict[str, Any] = {"way": self.method, "base": self._base, "episode": self.episode}
        if self.method == "offered":
            inner: Any = env.unwrapped
            saved["offered"] = to_plain(inner.get_state())
            saved["wrappers"] = [attributes(wrapper) for wrapper in wrappers(env)]
        elif self._replays and self._count <= LONGEST:
            saved["rng"] = copy.deepcopy(self._rng)
            saved["now"] = _generator_state(env)
            saved["actions"] = np.concatenate(self._actions) if self._actions else None
        return saved

    def load(self, env: Env, saved: dict[str, Any], seed: int, reader: Reader) -> tuple[Any, dict[str, Any], bool]:
        """Restore `env`, a fresh one, from the result of `state`: (obs, info, exact).

        If that fails, a new episode begins, and `exact` is False. An optional key "over" of `saved` says whether the
        episode had ended, which the replay must reproduce.
        """
        self._seed, self.episode = seed, int(saved["episode"])
        if saved["way"] == self.method and self.method != "none":
            try:
                result = self._set_state(env, saved) if self.method == "offered" else self._replay(env, saved, reader)
            except Exception:  # an environment may raise anything: it cannot be restored
                result = None
            if result is not None:
                return *result, True
        return *self.new_episode(env), False

    def _set_state(self, env: Env, saved: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        inner: Any = env.unwrapped
        self._base = int(saved["base"])
        env.reset(seed=self._base)
        obs, info = inner.set_state(from_plain(saved["offered"]))
        chain = wrappers(env)
        states = saved["wrappers"]
        if len(states) > len(chain):  # of a run whose environments still had the wrapper OrderEnforcing
            states = [state for state in states if "_has_reset" not in state]
        for wrapper, state in zip(chain, states, strict=True):
            set_attributes(wrapper, state)
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
            for action in reader(actions):
                if over:
                    return None
                obs, _, terminated, truncated, info = env.step(action)
                over = bool(terminated or truncated)
        if over != bool(saved.get("over", over)) or _generator_state(env) != saved["now"]:
            return None
        self._actions, self._count = ([], 0) if actions is None else ([np.array(actions)], len(actions))
        return obs, info


def wrappers(env: Env) -> list[gymnasium.Wrapper[Any, Any, Any, Any]]:
    """The wrappers around an environment, the outermost first."""
    chain = []
    while isinstance(env, gymnasium.Wrapper):
        chain.append(env)
        env = env.env
    return chain


def _generator_state(env: Env) -> dict[str, Any]:
    """A copy of the state of an environment's generator."""
    return copy.deepcopy(dict(env.unwrapped.np_random.bit_generator.state))
