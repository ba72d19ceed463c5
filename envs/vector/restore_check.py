"""Checks, before a run, that an environment restored from a snapshot continues exactly as the original."""

from __future__ import annotations

import contextlib
import copy
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from rltrain.envs.errors import EnvError
from rltrain.envs.spaces import MASK, action_reader, final_mask, mask_of, random_action
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.plain_data import same
from rltrain.envs.vector.restore import Env, Log

ROUNDS = 5  # of a proof
LONG = (60, 12, 25)  # rows of a round: at most in each of two episodes, in a third, side by side until each reset
SHORT = (8, 3, 12)  # of the round that tells whether "rng" can work, which is never cut short
PATIENCE = 300.0  # seconds for what must not be cut short; an environment that needs more is refused


def verify(make: Callable[[], Env], spec: EnvSpec, seed: int, seconds: float = 2.0, patience: float = PATIENCE) -> str:
    """The first way that brings an environment of `make` back, shown by doing it; "none" if no way does.

    A round: random steps through two episodes (a used instance may differ from a fresh one) and into the next, the
    state loaded into a fresh environment, then both side by side to two resets: observations, rewards, flags and masks
    must be identical.

    First it is told whether "seed" is needed: one short round fails with "rng" and ROUNDS succeed with "seed", counted
    in steps alone, so that load cannot change what a run sees. Then "offered" and "rng" get ROUNDS, or as many as
    begin within `seconds`, and "none" is the answer where not even one ends within 10 times that.
    What the environment raises means "not this way". An environment that hangs is left behind in its thread.

    Raises:
        EnvError: `patience` seconds were not enough to tell whether "seed" is needed.
    """
    found: list[str] = []
    told = threading.Event()  # "seed" or not

    def search() -> None:
        offers, plain = _offers(make), True
        if not offers and not _survives("rng", make, spec, seed, 1, SHORT):
            plain = False
            if _survives("seed", make, spec, seed, ROUNDS, LONG):
                found.append("seed")
        told.set()
        begun = time.monotonic()
        for way in ("offered", "rng") if offers else ("rng",) if plain else ():
            if _survives(way, make, spec, seed, ROUNDS, LONG, begun + seconds, begun + 10 * seconds):
                found.append(way)
                return

    thread = threading.Thread(target=search, daemon=True)
    thread.start()
    if not told.wait(patience):
        raise EnvError(
            f"{spec.id}: how it can be brought back on resume could not be told in {patience:g} s. "
            "Does a second instance of it hang, or is one step of it that slow?"
        )
    thread.join(10 * seconds)
    return found[0] if found else "none"


def _offers(make: Callable[[], Env]) -> bool:
    with contextlib.suppress(Exception), contextlib.closing(make()) as env:
        return all(hasattr(env.unwrapped, name) for name in ("get_state", "set_state"))
    return False


class _Walk:
    """One stream that takes random legal actions."""

    def __init__(self, env: Env, way: str, spec: EnvSpec, seed: int) -> None:
        self.env, self.spec, self.seed = env, spec, seed
        self.log = Log(way)
        self.reader = action_reader(env.action_space, spec.action)
        self.in_obs = isinstance(env.observation_space, gymnasium.spaces.Dict) and MASK in env.observation_space.spaces
        self.over = False
        self.mask: np.ndarray | None = None

    def begin(self) -> None:
        self.saw(*self.log.begin(self.env, self.seed))

    def load(self, saved: dict[str, Any]) -> bool:
        obs, info, exact = self.log.load(self.env, saved, self.seed, self.reader)
        self.over = bool(saved["over"])
        self.saw(obs, info)
        return exact

    def saw(self, obs: Any, info: dict[str, Any]) -> None:
        self.obs = obs.copy() if isinstance(obs, np.ndarray) else copy.deepcopy(obs)
        if self.spec.action_mask and self.over:
            self.mask = final_mask(obs, info, self.in_obs, self.spec.action.nvec)
        elif self.spec.action_mask:
            self.mask = mask_of(obs, info, self.in_obs).copy()

    def step(self, action: np.ndarray, reset: bool) -> tuple[Any, ...]:
        """One row: what came of it. A reset row where the episode is over or `reset` asks for it."""
        reset = reset or self.over
        reward, terminated, truncated = 0.0, False, False
        if reset:
            obs, info = self.log.again(self.env)
        else:
            obs, reward, terminated, truncated, info = self.env.step(self.reader(action[None])[0])  # type: ignore[assignment]
        self.over = bool(terminated or truncated)
        self.saw(obs, info)
        self.log.extend(action[None], np.array([reset]))
        return self.obs, reward, bool(terminated), bool(truncated), self.mask


def _survives(
    way: str,
    make: Callable[[], Env],
    spec: EnvSpec,
    seed: int,
    rounds: int,
    sizes: tuple[int, int, int],
    soft: float = math.inf,
    hard: float = math.inf,
) -> bool:
    """Whether `way` brings an environment back, see `verify`; no round begins after `soft`, no step after `hard`."""
    rng = np.random.default_rng(seed)
    made: list[Env] = []
    to_next, into, beside = sizes
    try:
        made.append(make())
        old = _Walk(made[0], way, spec, seed)
        old.begin()
        for done in range(rounds):
            if done and time.monotonic() > soft:
                return True
            for _ in range(2):
                _steps(rng, to_next, [old], "next episode", hard)
            _steps(rng, into, [old], "steps", hard)
            saved = old.log.state(old.env) | {"over": old.over}
            made.append(make())
            new = _Walk(made[-1], way, spec, seed)
            if not new.load(copy.deepcopy(saved)) or not same((old.obs, old.mask), (new.obs, new.mask)):
                return False
            for _ in range(2):  # a reset between them
                if not _steps(rng, beside, [old, new], "steps and a reset", hard):
                    return False
        return True
    except Exception:  # whatever an environment may raise: not this way
        return False
    finally:
        for env in made:
            with contextlib.suppress(Exception):
                env.close()


def _steps(rng: np.random.Generator, most: int, walks: list[_Walk], what: str, hard: float) -> bool:
    """Take `most` rows; whether all walks agree in all of them. TimeoutError after `hard`.

    what: "steps", "steps and a reset" (the last row), or "next episode" (stop at its first row, forced at last).
    """
    episode = walks[0].log.episode
    for t in range(most):
        if time.monotonic() > hard:
            raise TimeoutError
        action = random_action(rng, walks[0].spec.action, walks[0].mask)
        rows = [walk.step(action, t == most - 1 and what != "steps") for walk in walks]
        if not all(same(rows[0], row) for row in rows[1:]):
            return False
        if what == "next episode" and walks[0].log.episode > episode:
            break
    return True
