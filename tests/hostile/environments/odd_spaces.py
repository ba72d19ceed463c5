"""Environments with unusual spaces, or none, and such that check each action that they get."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from harmless import Harmless

HUGE = 1e300
INF = np.inf


class Checked(Harmless):
    """Each action must be in its space and have its dtype and type."""

    EXPECT = {"twin": None}

    def step(self, action: Any) -> Any:
        space = self.action_space
        assert space.contains(action), f"{action!r} is not in {space}"
        if isinstance(space, spaces.Box):
            assert isinstance(action, np.ndarray)
            assert action.dtype == space.dtype
        if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
            assert action.dtype == space.dtype
        return super().step(action)


class Half(Checked):
    """Actions in a Box of float16."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(-0.1, 0.1, (2,), np.float16)


class Double(Checked):
    """Actions in a Box of float64 with bounds that float32 cannot hold."""

    EXPECT = {"twin": None, "algos": ["ppo", "sac", "td3"]}
    action_space = spaces.Box(-0.1, 0.1, (2,), np.float64)


class Signed8(Checked):
    """Actions in a Box of int8."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(-128, 127, (2,), np.int8)


class Unsigned8(Checked):
    """Actions in a Box of uint8."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(0, 255, (2,), np.uint8)


class Signed32(Checked):
    """Actions in a Box of int32 up to its ends."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(-(2**31), 2**31 - 1, (2,), np.int32)


class Signed64(Checked):
    """Actions in a Box of int64 up to its ends."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(-(2**63), 2**63 - 1, (2,), np.int64)


class Huge(Checked):
    """Actions between -1e300 and 1e300."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(-HUGE, HUGE, (2,), np.float64)


class Full32(Checked):
    """Actions between the smallest and the largest float32."""

    EXPECT = {"twin": None, "algos": ["ppo", "sac"]}
    action_space = spaces.Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (2,), np.float32)


class Tiny(Checked):
    """Actions between 1 and the next float32."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(1.0, np.nextafter(np.float32(1), np.float32(2)), (1,), np.float32)


class Fixed(Checked):
    """Actions of which a part has equal bounds."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(np.array([3.0, -1.0], np.float32), np.array([3.0, 1.0], np.float32))


class Unbounded(Checked):
    """Actions without bounds."""

    EXPECT = {"twin": None, "algos": ["ppo", "a2c"]}
    action_space = spaces.Box(-INF, INF, (2,), np.float32)


class UnboundedSquashed(Checked):
    """Actions without bounds, with an algorithm that needs bounds."""

    EXPECT = {"status": 2, "says": r"--action-bound", "algos": ["sac", "td3", "ddpg"]}
    action_space = spaces.Box(-INF, INF, (2,), np.float32)


class OneSided(Checked):
    """Actions with a lower bound alone."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(0.0, INF, (2,), np.float32)


class OtherSide(Checked):
    """Actions with an upper bound alone, of float64."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(-INF, np.array([0.5, 2.0]), (2,), np.float64)


class Matrix(Checked):
    """Actions that are a matrix."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(-1.0, 1.0, (2, 3), np.float32)


class NoShape(Checked):
    """Actions that are one number without an axis."""

    EXPECT = {"twin": None, "algos": ["ppo", "sac", "td3", "ddpg"]}
    action_space = spaces.Box(-1.0, 1.0, (), np.float32)


class Start(Checked):
    """Discrete actions from -3 on."""

    EXPECT = {"twin": None, "algos": ["ppo", "dqn"]}
    action_space = spaces.Discrete(4, start=-3)


class Small(Checked):
    """Discrete actions of uint8."""

    EXPECT = {"twin": None}
    action_space = spaces.Discrete(3, dtype=np.uint8)


class Several(Checked):
    """MultiDiscrete actions with starts, of int8."""

    EXPECT = {"twin": None}
    action_space = spaces.MultiDiscrete([2, 3], dtype=np.int8, start=[-1, 5])


class SeveralMatrix(Checked):
    """MultiDiscrete actions that are a matrix."""

    EXPECT = {"status": [0, 2], "twin": None, "says": r"MultiDiscrete|shape"}
    action_space = spaces.MultiDiscrete([[2, 3], [4, 2]])


class Binary(Checked):
    """MultiBinary actions."""

    EXPECT = {"twin": None}
    action_space = spaces.MultiBinary(3)


class One(Checked):
    """One action."""

    EXPECT = {"twin": None}
    action_space = spaces.Discrete(1)


class Frozen(Checked):
    """Spaces of classes of its own that cannot be pickled."""

    EXPECT = {"twin": None}

    def __init__(self, when: str = "") -> None:
        class Own(spaces.Box):
            call = staticmethod(lambda: None)

        self.action_space = Own(-1.0, 1.0, (2,), np.float32)
        self.action_space.hook = lambda: None
        super().__init__(when)


# --- spaces that cannot be used: one line each ---


class EmptyActions(Harmless):
    """Box actions of shape (0,)."""

    EXPECT = {"status": 2, "says": r"action.*(empty|0,|no )"}
    action_space = spaces.Box(-1.0, 1.0, (0,), np.float32)


class EmptyObservations(Harmless):
    """Observations of shape (0,)."""

    EXPECT = {"status": 2, "says": r"observation.*(empty|0,|no )"}
    observation_space = spaces.Box(-1.0, 1.0, (0,), np.float32)

    def observation(self) -> Any:
        return np.zeros(0, np.float32)


class EmptyDict(Harmless):
    """Observations that are a Dict without keys."""

    EXPECT = {"status": 2, "says": r"observation.*(empty|Dict|no )"}
    observation_space = spaces.Dict({})

    def observation(self) -> Any:
        return {}


class EmptySeveral(Harmless):
    """MultiDiscrete([])"""

    EXPECT = {"status": 2, "says": r"action.*(empty|no |MultiDiscrete)"}
    action_space = spaces.MultiDiscrete([])


class TooMany(Harmless):
    """Discrete(2**40) actions."""

    EXPECT = {"status": 2, "says": r"1099511627776|2\*\*40|Discrete"}
    action_space = spaces.Discrete(2**40)


class TooManyObservations(Harmless):
    """Observations that are Discrete(2**40)."""

    EXPECT = {"status": 2, "says": r"1099511627776|2\*\*40|Discrete"}
    observation_space = spaces.Discrete(2**40)

    def observation(self) -> Any:
        return 5


class MixedKeys(Harmless):
    """A Dict whose keys are text and numbers."""

    EXPECT = {"status": [0, 2], "twin": None, "says": r"key"}
    observation_space = spaces.Dict({1: spaces.Box(-9, 9, (1,)), "a": spaces.Box(-9, 9, (1,))})

    def observation(self) -> Any:
        return {1: np.zeros(1, np.float32), "a": np.zeros(1, np.float32)}


class OddKeys(Harmless):
    """A Dict whose keys hold dots, slashes, line ends and other letters."""

    EXPECT = {"twin": None}
    observation_space = spaces.Dict(
        {"a.b": spaces.Box(-9, 9, (1,)), "c/d\n": spaces.Box(-9, 9, (1,)), "é": Harmless.observation_space}
    )

    def observation(self) -> Any:
        return {"a.b": np.zeros(1, np.float32), "c/d\n": np.ones(1, np.float32), "é": super().observation()}


class OnlyText(Harmless):
    """Observations that are text."""

    EXPECT = {"status": 2, "says": r"[Tt]ext"}
    observation_space = spaces.Text(10)

    def observation(self) -> Any:
        return "abc"


class SequenceSpace(Harmless):
    """Observations that are a Sequence."""

    EXPECT = {"status": 2, "says": r"Sequence"}
    observation_space = spaces.Sequence(spaces.Discrete(3))

    def observation(self) -> Any:
        return (1, 2)


class GraphSpace(Harmless):
    """Observations that are a Graph."""

    EXPECT = {"status": 2, "says": r"Graph"}
    observation_space = spaces.Graph(spaces.Discrete(3), None)


class OneOfSpace(Harmless):
    """Actions that are OneOf."""

    EXPECT = {"status": 2, "says": r"OneOf"}
    action_space = spaces.OneOf([spaces.Discrete(3), spaces.Box(-1, 1, (1,))])


class DictActions(Harmless):
    """Actions that are a Dict."""

    EXPECT = {"status": 2, "says": r"Dict"}
    action_space = spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-1, 1, (1,)))


class NanBounds(Harmless):
    """Bounds that are nan."""

    EXPECT = {"status": 2, "says": r"nan|bound"}

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space.low = np.full(2, np.nan, np.float32)


class TurnedBounds(Harmless):
    """A lower bound above the upper one."""

    EXPECT = {"status": 2, "says": r"low|bound"}

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space.low = np.full(2, 2.0, np.float32)


class NoActionSpace(gymnasium.Env):
    """No action_space."""

    EXPECT = {"status": 2, "says": r"action_space"}
    observation_space = Harmless.observation_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}


class NoObservationSpace(gymnasium.Env):
    """No observation_space."""

    EXPECT = {"status": 2, "says": r"observation_space"}
    action_space = Harmless.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}


class SpaceIsNone(Harmless):
    """action_space is None."""

    EXPECT = {"status": 2, "says": r"action_space"}
    action_space = None


class SpaceIsClass(Harmless):
    """action_space is a class."""

    EXPECT = {"status": 2, "says": r"action_space"}
    action_space = spaces.Discrete


class SpaceIsMethod(Harmless):
    """action_space is a method."""

    EXPECT = {"status": 2, "says": r"action_space"}

    def action_space(self) -> Any:  # type: ignore[override]
        return spaces.Discrete(2)


class SpaceRaises(Harmless):
    """action_space is a property that raises."""

    EXPECT = {"status": [1, 2], "says": r"not ready", "traceback": None}

    @property
    def action_space(self) -> Any:  # type: ignore[override]
        raise RuntimeError("not ready")


class Space:
    """Looks like a space of the old gym."""

    n, shape, dtype = 2, (), np.int64

    def sample(self) -> int:
        return 0

    def contains(self, x: Any) -> bool:
        return True


class OldSpaces(Harmless):
    """Spaces that are not Gymnasium's."""

    EXPECT = {"status": 2, "says": r"action_space|space"}
    action_space = Space()


class Permissive(Harmless):
    """__getattr__ returns itself for each name."""

    EXPECT = {"twin": "Harmless"}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_np_random"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self


class Proxy:
    """Not an Env, but passes each name on to one."""

    EXPECT = {"twin": None, "status": [0, 2], "says": r"Proxy|Env"}

    def __init__(self) -> None:
        self.inner = Harmless()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class NoSeed(gymnasium.Env):
    """reset takes no seed."""

    EXPECT = {"status": [0, 2], "twin": None, "says": r"seed"}
    observation_space, action_space = Harmless.observation_space, Harmless.action_space

    def reset(self) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, False, True, {}


class NeedsOptions(gymnasium.Env):
    """reset needs options."""

    EXPECT = {"status": 2, "says": r"options"}
    observation_space, action_space = Harmless.observation_space, Harmless.action_space

    def reset(self, *, seed: int | None, options: Any) -> Any:
        return np.zeros(2, np.float32), {}


class ChangesShape(Harmless):
    """Each second instance has another observation space."""

    EXPECT = {"status": [1, 2], "says": r"shape|space"}
    made = 0

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        type(self).made += 1
        self.width = 2 + type(self).made % 2
        self.observation_space = spaces.Box(-10.0, 10.0, (self.width,), np.float32)

    def observation(self) -> Any:
        return np.zeros(self.width, np.float32)


class LateSpaces(Harmless):
    """Spaces that exist only after reset."""

    EXPECT = {"status": [0, 2], "twin": None, "says": r"space"}

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        self.action_space = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.action_space = spaces.Discrete(2)
        return super().reset(seed=seed)


class LargeImage(Harmless):
    """One image of 5 MB."""

    EXPECT = {"status": 2, "says": r"memory|GB|smaller|large"}
    observation_space = spaces.Box(0, 255, (1300, 1300, 3), np.uint8)

    def observation(self) -> Any:
        return np.zeros((1300, 1300, 3), np.uint8)


class WideObservation(Harmless):
    """A vector of 60,000 numbers."""

    EXPECT = {"twin": None, "algos": ["ppo"]}
    observation_space = spaces.Box(-1, 1, (60_000,), np.float32)

    def observation(self) -> Any:
        return np.zeros(60_000, np.float32)


class NotAnEnvironment:
    """A class that is no environment at all."""

    EXPECT = {"status": 2, "says": r"NotAnEnvironment"}


class ReturnsOther:
    """A constructor whose object is no environment but a list."""

    EXPECT = {"status": 2, "says": r"list"}

    def __new__(cls) -> Any:
        return [1, 2]


class VectorEnvironment:
    """Makes a vector environment in place of one environment."""

    EXPECT = {"status": 2, "says": r"[Vv]ector"}

    def __new__(cls) -> Any:
        return gymnasium.vector.SyncVectorEnv([Harmless, Harmless])


class NeedsArguments(Harmless):
    """A constructor with an argument that was not given."""

    EXPECT = {"status": 2, "says": r"path"}

    def __init__(self, path: str) -> None:
        super().__init__()


class Unsigned64(Checked):
    """Actions in a Box of uint64 up to its ends."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(0, 2**64 - 1, (2,), np.uint64)


class LongDouble(Checked):
    """Actions in a Box of longdouble."""

    EXPECT = {"twin": None, "status": [0, 2], "says": "longdouble|float128"}
    action_space = spaces.Box(-1, 1, (2,), np.longdouble)


class PartlyTurned(Harmless):
    """A lower bound of the observations above the upper one in one of 12 places."""

    EXPECT = {"status": 2, "says": r"low.*\[1, 2\]"}

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        self.observation_space = spaces.Box(-1.0, 1.0, (3, 4), np.float32)
        self.observation_space.low[1, 2] = 3.0

    def observation(self) -> Any:
        return np.zeros((3, 4), np.float32)


class EmptyPart(Harmless):
    """A Dict with a part of shape (0, 3)."""

    EXPECT = {"status": 2, "says": r"empty|\(0, 3\)"}
    observation_space = spaces.Dict(a=spaces.Box(-9, 9, (2,)), b=spaces.Box(-9, 9, (0, 3)))

    def observation(self) -> Any:
        return {"a": np.zeros(2, np.float32), "b": np.zeros((0, 3), np.float32)}


class ObservationNoAxes(Harmless):
    """Observations that are one number, in a Box of shape ()."""

    EXPECT = {"twin": None, "algos": ["ppo", "dqn"]}
    observation_space = spaces.Box(-10.0, 10.0, (), np.float32)

    def observation(self) -> Any:
        return np.float32(self.place)


class OneValue(Harmless):
    """Discrete(1, start=5) as observation and as action."""

    EXPECT = {"twin": None, "algos": ["ppo", "dqn"]}
    observation_space = spaces.Discrete(1, start=5)
    action_space = spaces.Discrete(1, start=-7)

    def observation(self) -> Any:
        return 5

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return super().step(1)


class FarStart(Harmless):
    """Discrete observations from -2**62 on, MultiDiscrete actions from 2**40 on."""

    EXPECT = {"twin": None}
    observation_space = spaces.Discrete(8, start=-(2**62))
    action_space = spaces.MultiDiscrete([2, 1], start=[2**40, -3])

    def observation(self) -> Any:
        return -(2**62) + self.clock

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return super().step(action[0] - 2**40)


class ManyStarts(Harmless):
    """MultiDiscrete observations that are a matrix with starts, of uint8."""

    EXPECT = {"twin": None}
    observation_space = spaces.MultiDiscrete(np.array([[3, 9], [1, 4]]), np.uint8, start=np.array([[0, 5], [7, 1]]))

    def observation(self) -> Any:
        return np.array([[1, 5 + self.clock], [7, 2]], np.uint8)


class BinaryMatrix(Harmless):
    """MultiBinary observations and actions that are a matrix."""

    EXPECT = {"twin": None, "status": [0, 2], "says": "MultiBinary"}
    observation_space = spaces.MultiBinary((2, 3))
    action_space = spaces.MultiBinary((2, 2))

    def observation(self) -> Any:
        return np.array([[1, 0, 1], [0, 0, 1]], np.int8)

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return super().step(action)


class TextInside(Harmless):
    """A Dict with a Text part."""

    EXPECT = {"twin": None}
    observation_space = spaces.Dict(a=spaces.Box(-9, 9, (2,)), mission=spaces.Text(30))

    def observation(self) -> Any:
        return {"a": np.array([self.place, self.clock], np.float32), "mission": "go home"}


class SequenceInside(Harmless):
    """A Dict with a Sequence inside a Tuple."""

    EXPECT = {"status": 2, "says": r"Sequence"}
    observation_space = spaces.Dict(
        a=spaces.Box(-9, 9, (2,)), b=spaces.Tuple((spaces.Discrete(2), spaces.Sequence(spaces.Discrete(2))))
    )

    def observation(self) -> Any:
        return {"a": np.zeros(2, np.float32), "b": (1, (1, 0))}


class KeyNames(Harmless):
    """A Dict whose keys are words of our own files: leaf, dict, tuple, array, value, items, and ""."""

    EXPECT = {"twin": None, "flags": "--record film"}
    observation_space = spaces.Dict(
        {key: spaces.Box(-9, 9, (1,)) for key in ("leaf", "dict", "tuple", "array", "value", "items", "list", "", "'")}
    )

    def observation(self) -> Any:
        return {key: np.array([self.place], np.float32) for key in self.observation_space.spaces}


class OnlyMask(Harmless):
    """A Dict with the single key action_mask."""

    EXPECT = {"status": 2, "says": r"empty|action_mask|no numbers"}
    observation_space = spaces.Dict(action_mask=spaces.MultiBinary(2))

    def observation(self) -> Any:
        return {"action_mask": np.ones(2, np.int8)}


class MaskSpace(Harmless):
    """A key action_mask whose space has another size than there are actions."""

    EXPECT = {"status": 2, "says": r"mask"}
    observation_space = spaces.Dict(a=spaces.Box(-9, 9, (2,)), action_mask=spaces.MultiBinary(5))

    def observation(self) -> Any:
        return {"a": np.zeros(2, np.float32), "action_mask": np.ones(5, np.int8)}


class TooDeep(Harmless):
    """A Dict of 200 levels."""

    EXPECT = {"twin": None, "status": [0, 2], "says": "deep|level|nested"}

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        self.observation_space: Any = spaces.Box(-10.0, 10.0, (2,), np.float32)
        for _ in range(200):
            self.observation_space = spaces.Dict({"a": self.observation_space})

    def observation(self) -> Any:
        obs = super().observation()
        for _ in range(200):
            obs = {"a": obs}
        return obs


class Numbers64(Harmless):
    """Observations in Boxes of int64, uint64 and float64 up to their ends."""

    EXPECT = {"twin": None}
    observation_space = spaces.Dict(
        a=spaces.Box(-(2**63), 2**63 - 1, (2,), np.int64),
        b=spaces.Box(0, 2**64 - 1, (2,), np.uint64),
        c=spaces.Box(-1e300, 1e300, (2,), np.float64),
    )

    def observation(self) -> Any:
        return {
            "a": np.array([-(2**63), 2**63 - 1]),
            "b": np.array([0, 2**64 - 1], np.uint64),
            "c": np.array([self.place, self.clock], np.float64),
        }


class ObservationSpaceChanges(Harmless):
    """After the first reset observation_space has another shape, and so have the observations."""

    EXPECT = {"status": 2, "says": r"shape|space"}
    resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        result = super().reset(seed=seed)
        self.resets += 1
        if self.resets == 1:
            self.observation_space = spaces.Box(-10.0, 10.0, (3,), np.float32)
        return result

    def observation(self) -> Any:
        return np.zeros(2 if self.resets == 0 else 3, np.float32)


class ActionSpaceChanges(Harmless):
    """After the first reset action_space has more actions."""

    EXPECT = {"status": 2, "says": r"action"}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        result = super().reset(seed=seed)
        self.action_space = spaces.Discrete(5)
        return result


class SlotsOnly(Harmless):
    """Attributes cannot be set from outside."""

    EXPECT = {"twin": "Harmless"}
    mine = ("when", "place", "clock", "steps", "_np_random", "_np_random_seed", "np_random")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.mine:
            raise AttributeError(name)
        super().__setattr__(name, value)


class FalseEnvironment(Harmless):
    """Its truth value, its length and its comparisons raise."""

    EXPECT = {"twin": "Harmless"}

    def __bool__(self) -> bool:
        raise ValueError("neither")

    def __len__(self) -> int:
        raise ValueError("no length")

    def __eq__(self, other: object) -> bool:
        raise ValueError("not comparable")

    __hash__ = None  # type: ignore[assignment]


class OddStates(Harmless):
    """get_state and set_state that do something else: they get a path, and return None."""

    EXPECT = {"twin": "Harmless"}

    def get_state(self, path: str) -> None:
        raise RuntimeError("there is no such file")

    def set_state(self, path: str) -> None:
        raise RuntimeError("there is no such file")


class GrowingState(Harmless):
    """get_state returns an array that the environment goes on to change."""

    EXPECT = {"twin": "Harmless"}

    def __init__(self, when: str = "") -> None:
        self.memory = np.zeros(2)
        super().__init__(when)

    def get_state(self) -> Any:
        self.memory[:] = self.place, self.clock
        return {"memory": self.memory, "rng": self.np_random.bit_generator.state}

    def set_state(self, state: Any) -> None:
        self.place, self.clock = (int(n) for n in state["memory"])
        self.np_random.bit_generator.state = state["rng"]


class ReadOnlySpaces(Harmless):
    """Spaces of own subclasses whose sample, contains and __eq__ raise."""

    EXPECT = {"twin": "Harmless"}

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        self.observation_space, self.action_space = _Box(-10.0, 10.0, (2,), np.float32), _Discrete(2)


class _Silent:
    def sample(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no samples")

    def contains(self, x: Any) -> bool:
        raise RuntimeError("unknown")

    def seed(self, seed: Any = None) -> Any:
        raise RuntimeError("no seed")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    __hash__ = None  # type: ignore[assignment]


class _Box(_Silent, spaces.Box):
    pass


class _Discrete(_Silent, spaces.Discrete):  # type: ignore[misc]
    pass
