"""Checks, before a run, that an environment restored from a snapshot continues exactly as the original."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from rltrain.envs.closing import close, close_all
from rltrain.envs.errors import Watch, unwatched
from rltrain.envs.spaces import action_reader, final_mask, mask_in_obs, mask_of, random_action
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.episode_info import begin_progress
from rltrain.envs.vector.plain_data import same
from rltrain.envs.vector.restore import Env, EpisodeLog


class Rows(NamedTuple):
    """Rows of a round of verification."""

    episode: int  # at most, of each of two episodes before the snapshot
    before: int  # of the third episode, before the snapshot
    after: int  # of original and copy after the snapshot, up to each of two resets


ROUNDS = 5
LONG = Rows(60, 12, 25)
SHORT = Rows(8, 3, 12)  # of the round that decides whether "rng" can work, which is never cut short


def verify(make: Callable[[], Env], spec: EnvSpec, seed: int, seconds: float = 2.0, watch: Watch = unwatched) -> str:
    """The first restore method that works for the environment of `make`, or "none".

    A round: random steps through two episodes (a used instance may differ from a fresh one) and into the third; a fresh
    environment is restored from the state; then original and copy take the same steps up to two resets. Observations,
    rewards, flags and masks must be identical.

    First it is decided whether "seed" is needed: a short round with "rng" fails and ROUNDS with "seed" succeed. Only
    steps count here, so that the load of the machine cannot change the data of a run. Then "offered" and "rng" get
    ROUNDS rounds, or as many as begin within `seconds`. If not even one round ends within 10 times `seconds`, the
    result is "none". If the environment raises an exception, the method does not work.

    Args:
        watch: gets the name of each call of the environment before it is made.
    """

    def watched() -> Env:
        watch("constructor")
        return _Watched(begin_progress(make()), watch)

    methods = ["offered", "rng"] if _offers_state(watched) else ["rng"]
    if methods == ["rng"] and not _restores("rng", watched, spec, seed, 1, SHORT):
        return "seed" if _restores("seed", watched, spec, seed, ROUNDS, LONG) else "none"
    start = time.monotonic()
    for method in methods:
        if _restores(method, watched, spec, seed, ROUNDS, LONG, start + seconds, start + 10 * seconds):
            return method
    return "none"


class _Watched(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Announces each call of an environment."""

    def __init__(self, env: Env, watch: Watch) -> None:
        super().__init__(env)
        self._watch = watch

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._watch("reset")
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._watch("step")
        return self.env.step(action)

    def close(self) -> None:
        self._watch("close")
        self.env.close()


def _offers_state(make: Callable[[], Env]) -> bool:
    try:
        env = make()
    except Exception:  # an environment may raise anything: so it does in the rounds, which decide
        return False
    try:  # not `hasattr`: an environment may answer to every name
        return all(inspect.getattr_static(env.unwrapped, name, None) is not None for name in ("get_state", "set_state"))
    finally:
        close(env)


class _RandomStream:
    """An environment that takes random legal actions, with its log."""

    def __init__(self, env: Env, method: str, spec: EnvSpec, seed: int) -> None:
        self.env, self.spec, self.seed = env, spec, seed
        self.log = EpisodeLog(method)
        self.reader = action_reader(spec.action, env.action_space.dtype)
        self.mask_in_obs = mask_in_obs(env.observation_space)
        self.over = False
        self.mask: np.ndarray | None = None

    def first_reset(self) -> None:
        self._observe(*self.log.first_reset(self.env, self.seed))

    def load(self, saved: dict[str, Any]) -> bool:
        """Restore the state; whether that is exact."""
        obs, info, exact = self.log.load(self.env, saved, self.seed, self.reader)
        self.over = bool(saved["over"])
        self._observe(obs, info)
        return exact

    def _observe(self, obs: Any, info: dict[str, Any]) -> None:
        self.obs = obs.copy() if isinstance(obs, np.ndarray) else copy.deepcopy(obs)
        if self.spec.action_mask and self.over:
            self.mask = final_mask(obs, info, self.mask_in_obs, self.spec.action.nvec)
        elif self.spec.action_mask:
            self.mask = mask_of(obs, info, self.mask_in_obs, self.spec.action.mask_size).copy()

    def step(self, action: np.ndarray, reset: bool) -> tuple[Any, ...]:
        """One row, a reset if the episode is over or `reset`: (obs, reward, terminated, truncated, mask)."""
        reset = reset or self.over
        reward: Any = 0.0
        terminated = truncated = False
        if reset:
            obs, info = self.log.next_reset(self.env)
        else:
            obs, reward, terminated, truncated, info = self.env.step(self.reader(action[None])[0])
        self.over = bool(terminated or truncated)
        self._observe(obs, info)
        self.log.extend(action[None], np.array([reset]))
        return self.obs, reward, bool(terminated), bool(truncated), self.mask


def _restores(
    method: str,
    make: Callable[[], Env],
    spec: EnvSpec,
    seed: int,
    rounds: int,
    rows: Rows,
    soft_deadline: float = math.inf,
    deadline: float = math.inf,
) -> bool:
    """Whether `method` passes the rounds of `verify`; none begins after `soft_deadline`, no step after `deadline`."""
    rng = np.random.default_rng(seed)
    made: list[Env] = []

    def stream() -> _RandomStream:
        made.append(make())
        return _RandomStream(made[-1], method, spec, seed)

    try:
        original = stream()
        original.first_reset()
        for number in range(rounds):
            if number and time.monotonic() > soft_deadline:
                return True
            for _ in range(2):
                _run(rng, [original], rows.episode, deadline, until_reset=True)
            _run(rng, [original], rows.before, deadline, reset=False)
            saved = original.log.state(original.env) | {"over": original.over}
            restored = stream()
            if not restored.load(copy.deepcopy(saved)):
                return False
            if not same((original.obs, original.mask), (restored.obs, restored.mask)):
                return False
            for _ in range(2):
                if not _run(rng, [original, restored], rows.after, deadline):
                    return False
        return True
    except Exception:  # an environment may raise anything: this method does not work
        return False
    finally:
        close_all(made)


def _run(
    rng: np.random.Generator,
    streams: list[_RandomStream],
    rows: int,
    deadline: float,
    reset: bool = True,
    until_reset: bool = False,
) -> bool:
    """Take the same random actions in all streams; whether all rows were identical.

    Args:
        reset:       the last row is a reset, even if the episode has not ended.
        until_reset: stop after the first reset.

    Raises:
        TimeoutError: `deadline` has passed.
    """
    episode = streams[0].log.episode
    for t in range(rows):
        if time.monotonic() > deadline:
            raise TimeoutError
        action = random_action(rng, streams[0].spec.action, streams[0].mask)
        first, *others = [stream.step(action, reset and t == rows - 1) for stream in streams]
        if not all(same(first, row) for row in others):
            return False
        if until_reset and streams[0].log.episode > episode:
            break
    return True
