"""Environments that go wrong, importable in actors, and a plan of actors for tests of the rollout."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rltrain.config.load import load
from rltrain.config.run_config import RunConfig
from rltrain.envs.make import resolve
from rltrain.envs.problems.probes import Counter, Masked, Step
from rltrain.learner.algorithm import make_algorithm
from rltrain.rollout.scheduler import Rollout
from rltrain.rollout.types import Weights
from rltrain.rollout.workers.handle import ActorLost
from rltrain.rollout.workers.process import ProcessHandle
from rltrain.setup.environment import open_environment
from rltrain.setup.rollout import rollout_spec


def made(once: str) -> bool:
    """Create the file `once`; True for the one caller that created it, among all processes."""
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


class Faulty(Counter):
    """A Counter that calls `fault` in its `at`-th step, counted over the life of the instance.

    Args:
        at:   the step; below 1000 it may be reached by the checks before a run.
        once: a file; the fault does not happen if it exists, and creates it: one fault in all processes.
    """

    def __init__(self, fault: Callable[[], None], at: int = 2000, once: str = "") -> None:
        super().__init__()
        self._fault, self._at, self._once, self._steps = fault, at, once, 0

    def step(self, action: Any) -> Step:
        self._steps += 1
        if self._steps == self._at and (not self._once or made(self._once)):
            self._fault()
        return super().step(action)


def raises(at: int = 2000, once: str = "") -> Faulty:
    """Raises RuntimeError in its `at`-th step."""

    def fault() -> None:
        raise RuntimeError(f"the probe raises in step {at}, as it was asked to")

    return Faulty(fault, at, once)


def hangs(at: int = 2000, once: str = "") -> Faulty:
    """Sleeps for ever in its `at`-th step."""

    def fault() -> None:
        while True:
            time.sleep(3600)

    return Faulty(fault, at, once)


def killed(at: int = 200, once: str = "") -> Faulty:
    """SIGKILLs its own process in its `at`-th step."""

    def fault() -> None:
        assert "pytest" not in sys.modules, "the first look of a run came to the step that was meant for an actor"
        os.kill(os.getpid(), signal.SIGKILL)

    return Faulty(fault, at, once)


def spins(at: int = 200, once: str = "") -> Faulty:
    """Hangs in C code that never lets go of the interpreter's lock."""

    def fault() -> None:
        sum(range(10**12))

    return Faulty(fault, at, once)


class HangsInReset(Counter):
    """Sleeps for ever in its `at`-th reset; `reached` is a file that is made then."""

    def __init__(self, at: int, reached: str) -> None:
        super().__init__()
        self._resets, self._at_reset, self._reached = 0, at, reached

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._resets += 1
        if self._resets == self._at_reset:
            Path(self._reached).touch()
            time.sleep(3600)
        return super().reset(seed=seed, options=options)


class OfferingCounter(Counter):
    """A Counter with get_state and set_state."""

    def get_state(self) -> dict[str, Any]:
        return {"t": self._t, "length": self._length, "rng": dict(self.np_random.bit_generator.state)}

    def set_state(self, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._t, self._length = state["t"], state["length"]
        self.np_random.bit_generator.state = state["rng"]
        return self._obs(), {}


class Slow(Counter):
    """A Counter whose steps take `seconds` each."""

    def __init__(self, seconds: float = 0.01) -> None:
        super().__init__()
        self._seconds = seconds

    def step(self, action: Any) -> Any:
        time.sleep(self._seconds)
        return super().step(action)


class HangsInEvaluation(Counter):
    """Hangs, or kills its process, once, in the episodes whose seeds are listed in `evaluation`, by commas."""

    def __init__(self, evaluation: str, how: str, once: str) -> None:
        super().__init__()
        self._evaluation = {int(seed) for seed in evaluation.split(",")}
        self._how, self._once, self._bad = how, once, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._bad = seed in self._evaluation
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        if self._bad and made(self._once):
            if self._how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600)
        return super().step(action)


class NotFinite(Counter):
    """A Counter whose reward or observation is `value` in step `at` of its life."""

    def __init__(self, what: str, at: int, value: float = float("nan")) -> None:
        super().__init__()
        self._what, self._at, self._value, self._steps = what, at, value, 0

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        self._steps += 1
        if self._steps == self._at:
            if self._what == "reward":
                reward = self._value
            else:
                obs[1] = self._value
        return obs, reward, terminated, truncated, info


class NothingLegal(Masked):
    """A Masked whose mask is all False after step `at` of its life."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at, self._steps = at, 0

    def step(self, action: Any) -> Any:
        self._steps += 1
        obs, reward, terminated, truncated, info = super().step(action)
        if self._steps == self._at:
            info = {"action_mask": np.zeros(4, np.int8)}
        return obs, reward, terminated, truncated, info


class Picture(gymnasium.Env[Any, Any]):
    """A big uint8 image drawn from the stream's seed, and drawn again at every step; episodes of 5 steps."""

    observation_space = spaces.Box(0, 255, (48, 48, 3), np.uint8)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._t = 0
        return self._draw(), {}

    def step(self, action: Any) -> Any:
        self._t += 1
        return self._draw(), float(action), self._t == 5, False, {}

    def _draw(self) -> np.ndarray:
        return self.np_random.integers(0, 256, (48, 48, 3)).astype(np.uint8)


def config_of(env: Any, **given: Any) -> RunConfig:
    """The config of a tiny run, of PPO unless told otherwise, that nothing interrupts."""
    tiny = {"algo": "ppo", "env": env, "streams": 5, "workers": 0, "unroll": 8}
    if given.get("algo", "ppo") == "ppo":
        tiny |= {"epochs": 1, "minibatches": 2}
    return load(tiny | {"eval_every": 0, "checkpoint_every": 0, "quiet": True, "preset": "none"} | given)


def open_rollout(
    env: Any, on_restart: Callable[[ActorLost], None] = lambda lost: None, looks_like: Any = None, **given: Any
) -> tuple[Rollout, Any]:
    """A rollout of such a run with its first weights published, and the policy that has them.

    `looks_like` is what the first look sees in place of an environment that would not pass it.
    """
    config = config_of(looks_like or env, **given)
    here = replace(open_environment(config)[0], source=resolve(env))
    algorithm = make_algorithm(config, here.spec)
    plan = rollout_spec(config, here, algorithm.plan)
    opened.append(Rollout(plan, weights_of(algorithm.policy), on_restart))
    return opened[-1], algorithm.policy


opened: list[Rollout] = []  # by the test under way; closed after it, whatever became of it


def weights_of(policy: Any, version: int = 0) -> Weights:
    """A policy's weights as actors get them."""
    return Weights(version, 0, {name: tensor.numpy() for name, tensor in policy.state_dict().items()})


def pids(rollout: Rollout) -> list[int]:
    """The processes of a rollout's actors."""
    return [actor.handle.pid for actor in rollout._actors if isinstance(actor.handle, ProcessHandle)]
