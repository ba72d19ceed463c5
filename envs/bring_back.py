"""How a stream's environment is brought back on resume: plain data in, the same episode at the same step out.

Four ways; `prove` finds the first that works for an environment:

  offered  the environment has `get_state()`, which returns plain data, and `set_state(data)`, which returns (obs, info)
  rng      the generator's state before the episode's reset, and the episode's actions, played again
  seed     every episode is reset with a seed of its own, and its actions are played again
  none     the episode begins anew

Only "seed" changes how episodes are reset, and so what a run sees: whether it is used is never left to a clock.
"""

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
from rltrain.envs.seeding import seed_of
from rltrain.envs.spaces import MASK, action_reader, final_mask, mask_of, random_action
from rltrain.envs.spec import EnvSpec

WAYS = ("offered", "rng", "seed", "none")
ROUNDS = 5  # of a proof
LONG = (60, 12, 25)  # rows of a round: at most in each of two episodes, in a third, side by side until each reset
SHORT = (8, 3, 12)  # of the round that tells whether "rng" can work, which is never cut short
PATIENCE = 300.0  # seconds for what must not be cut short; an environment that needs more is refused
LONGEST = 100_000  # actions of one episode that are kept; a longer episode begins anew on resume
ARRAYS = {"bool", *(np.dtype(code).name for code in "bBhHiIlLqQefd")}  # what safetensors can hold

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


def prove(make: Callable[[], Env], spec: EnvSpec, seed: int, seconds: float = 2.0, patience: float = PATIENCE) -> str:
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
    """Whether `way` brings an environment back, see `prove`; no round begins after `soft`, no step after `hard`."""
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


def same(one: Any, other: Any) -> bool:
    """Whether two trees of values are identical; NaN equals NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict | tuple | list) or isinstance(other, dict | tuple | list):
        return False
    a, b = np.asarray(one), np.asarray(other)
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc"))


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


def attributes(thing: object) -> dict[str, Any]:
    """Those attributes of an object that are data, generators included, as plain data; the others are left out."""
    kept = {}
    for name, value in vars(thing).items():
        try:
            kept[name] = to_plain(value)
        except TypeError:
            continue
    return kept


def set_attributes(thing: object, saved: dict[str, Any]) -> None:
    """Write what `attributes` kept into a fresh object of the same making."""
    for name, data in saved.items():
        setattr(thing, name, from_plain(data))


def to_plain(value: Any) -> Any:
    """A copy of `value` from None, bool, int, float, str, arrays, lists and dicts; TypeError where it is no data.

    Arrays are of bools, integers or floats of at most 64 bits, the ones that a checkpoint holds.
    Dicts stand for what these cannot say, by a key of their own: a dict itself, a tuple, a numpy scalar, a generator.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray) and value.dtype.name in ARRAYS:
        return value.copy()
    if isinstance(value, np.generic) and value.dtype.name in ARRAYS:
        return {"scalar": np.array(value)}
    if type(value) is list:
        return [to_plain(child) for child in value]
    if type(value) is tuple:
        return {"tuple": [to_plain(child) for child in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: to_plain(child) for key, child in value.items()}}
    if isinstance(value, np.random.Generator):
        return {"generator": copy.deepcopy(dict(value.bit_generator.state))}
    raise TypeError(f"not plain data: {type(value).__name__}")


def from_plain(data: Any) -> Any:
    """The inverse of `to_plain`."""
    if isinstance(data, np.ndarray):
        return data.copy()
    if isinstance(data, list):
        return [from_plain(child) for child in data]
    if not isinstance(data, dict):
        return data
    ((kind, inner),) = data.items()
    if kind == "scalar":
        return inner[()]
    if kind == "tuple":
        return tuple(from_plain(child) for child in inner)
    if kind == "dict":
        return {key: from_plain(child) for key, child in inner.items()}
    bits: Any = getattr(np.random, inner["bit_generator"])()
    bits.state = inner
    return np.random.Generator(bits)
