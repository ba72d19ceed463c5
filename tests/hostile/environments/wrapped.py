"""Environments inside Gymnasium's wrappers, and with time limits of every kind."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from harmless import Harmless


class Boxed(Harmless):
    """Twin with a Box action."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)


class NormalizesObservations(wrappers.NormalizeObservation):
    """NormalizeObservation"""

    EXPECT = {"twin": None, "notes": r"--normalize-obs"}

    def __init__(self) -> None:
        super().__init__(Harmless())


class NormalizesRewards(wrappers.NormalizeReward):
    """NormalizeReward"""

    EXPECT = {"twin": None, "notes": r"--normalize-return"}

    def __init__(self) -> None:
        super().__init__(Harmless())


class Clips(wrappers.ClipAction):
    """ClipAction, whose own space has no bounds."""

    EXPECT = {"twin": None}

    def __init__(self) -> None:
        super().__init__(Boxed())


class Rescales(wrappers.RescaleAction):
    """RescaleAction"""

    EXPECT = {"twin": None, "algos": ["ppo", "sac"]}

    def __init__(self) -> None:
        super().__init__(Boxed(), np.float32(-1), np.float32(1))


class ClipsInside(wrappers.TransformAction):
    """An unbounded action whose environment clips it."""

    EXPECT = {"twin": None}

    def __init__(self) -> None:
        super().__init__(Boxed(), lambda action: np.clip(action, -2, 2), spaces.Box(-np.inf, np.inf, (1,), np.float32))


class Limited(wrappers.TimeLimit):
    """TimeLimit of three steps."""

    EXPECT = {"twin": None}

    def __init__(self) -> None:
        super().__init__(Harmless(), 3)


class Stacks(wrappers.FrameStackObservation):
    """FrameStackObservation"""

    EXPECT = {"twin": None}

    def __init__(self) -> None:
        super().__init__(Harmless(), 3)


class Counts(wrappers.RecordEpisodeStatistics):
    """RecordEpisodeStatistics, which puts "episode" into info."""

    EXPECT = {"twin": "harmless"}

    def __init__(self) -> None:
        super().__init__(Harmless())


class ResetsItself(wrappers.Autoreset):
    """Autoreset, which resets by itself at the step after the end."""

    EXPECT = {"twin": None, "status": [0, 2], "says": r"[Aa]utoreset"}

    def __init__(self) -> None:
        super().__init__(Harmless())


class KnowsTime(wrappers.TimeAwareObservation):
    """TimeAwareObservation"""

    EXPECT = {"twin": None}

    def __init__(self) -> None:
        super().__init__(wrappers.TimeLimit(Harmless(), 5))


class Casts(wrappers.DtypeObservation):
    """DtypeObservation to float64"""

    EXPECT = {"twin": "harmless"}

    def __init__(self) -> None:
        super().__init__(Harmless(), np.float64)


class Ordered(wrappers.OrderEnforcing):
    """OrderEnforcing"""

    EXPECT = {"twin": "harmless"}

    def __init__(self) -> None:
        super().__init__(Harmless())


class Checked(wrappers.PassiveEnvChecker):
    """PassiveEnvChecker"""

    EXPECT = {"twin": "harmless"}

    def __init__(self) -> None:
        super().__init__(Harmless())


class Deep(gymnasium.Wrapper):
    """Fifty wrappers."""

    EXPECT = {"twin": "harmless"}

    def __init__(self) -> None:
        env: Any = Harmless()
        for _ in range(50):
            env = gymnasium.Wrapper(env)
        super().__init__(env)


class NoEnd(Harmless):
    """Episodes that never end."""

    EXPECT = {"twin": None, "flags": "--eval-every 0"}

    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = super().step(action)
        return np.clip(obs, -9, 9), reward, False, False, info


class OneStep(Harmless):
    """Each episode has one step."""

    EXPECT = {"twin": None}

    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = super().step(action)
        return obs, reward, True, False, info


class BothFlags(Harmless):
    """terminated and truncated at once."""

    EXPECT = {"twin": None}

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, terminated or truncated, info


class StepsAfterEnd(Harmless):
    """A step after the end of an episode, or before the first reset, raises."""

    EXPECT = {"twin": "harmless"}
    over = True

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.over = False
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        assert not self.over, "a step after the end"
        values = super().step(action)
        self.over = values[2] or values[3]
        return values
