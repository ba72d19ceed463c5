"""Environments that return wrong or strange values: at their reset, at each step, or from some step on."""

from __future__ import annotations

import collections
import decimal
import fractions
import threading
import types
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from harmless import Harmless, Spoilt

ALWAYS = ["reset", "step", "later"]
STEPS = ["step", "later"]


# --- shapes ---


class TooLong(Spoilt):
    """Three numbers for two."""

    EXPECT = {"when": ALWAYS, "says": r"shape"}

    def spoil(self, values: Any) -> Any:
        return [np.zeros(3, np.float32), *values[1:]]


class Broadcast(Spoilt):
    """Shape (1,) for (2,)."""

    EXPECT = {"when": ALWAYS, "says": r"shape"}

    def spoil(self, values: Any) -> Any:
        return [np.zeros(1, np.float32), *values[1:]]


class Scalar(Spoilt):
    """A number for an array."""

    EXPECT = {"when": ALWAYS, "says": r"shape"}

    def spoil(self, values: Any) -> Any:
        return [0.0, *values[1:]]


class Batched(Spoilt):
    """Shape (1, 2) for (2,)."""

    EXPECT = {"when": ALWAYS, "says": r"shape"}

    def spoil(self, values: Any) -> Any:
        return [values[0][None], *values[1:]]


class Ragged(Spoilt):
    """Lists of unequal length."""

    EXPECT = {"when": ALWAYS, "says": r"shape|ragged|numbers"}

    def spoil(self, values: Any) -> Any:
        return [[[1.0], [1.0, 2.0]], *values[1:]]


class Missing(Spoilt):
    """None for an observation."""

    EXPECT = {"when": ALWAYS, "says": r"None|NoneType|object"}

    def spoil(self, values: Any) -> Any:
        return [None, *values[1:]]


class Text(Spoilt):
    """Text for numbers."""

    EXPECT = {"when": ALWAYS, "says": r"str|text|<U"}

    def spoil(self, values: Any) -> Any:
        return [np.array(["1", "2"]), *values[1:]]


class Objects(Spoilt):
    """An array of objects."""

    EXPECT = {"when": ALWAYS, "says": r"object"}

    def spoil(self, values: Any) -> Any:
        return [values[0].astype(object), *values[1:]]


class Complex(Spoilt):
    """Complex numbers."""

    EXPECT = {"when": ALWAYS, "says": r"complex"}

    def spoil(self, values: Any) -> Any:
        return [values[0].astype(complex), *values[1:]]


class NotANumber(Spoilt):
    """nan in an observation."""

    EXPECT = {"when": ALWAYS, "says": r"nan|finite"}

    def spoil(self, values: Any) -> Any:
        values[0][1] = np.nan
        return values


class Infinite(Spoilt):
    """inf in an observation."""

    EXPECT = {"when": ALWAYS, "says": r"inf|finite"}

    def spoil(self, values: Any) -> Any:
        values[0][0] = -np.inf
        return values


class TooLarge(Spoilt):
    """1e300, a float64 that is infinite as float32."""

    EXPECT = {"when": ALWAYS, "says": r"1e\+300|inf|finite", "status": [1, 2]}

    def spoil(self, values: Any) -> Any:
        return [np.array([1e300, 0.0]), *values[1:]]


class Outside(Spoilt):
    """Values outside the bounds of a float Box."""

    EXPECT = {"when": ["step"], "status": 0, "notes": "outside", "twin": None}

    def spoil(self, values: Any) -> Any:
        return [values[0] + 100, *values[1:]]


# --- kinds of numbers ---


class Bytes(Spoilt):
    """Base of environments whose observations are bytes."""

    EXPECT = {"twin": None}
    observation_space = spaces.Box(0, 255, (2,), np.uint8)

    def observation(self) -> Any:
        return np.array([self.place + 100, self.clock], np.uint8)


class FractionBytes(Bytes):
    """0.7 into uint8."""

    EXPECT = {"when": ALWAYS, "says": r"float|uint8"}

    def spoil(self, values: Any) -> Any:
        return [values[0] * 0.7, *values[1:]]


class NegativeBytes(Bytes):
    """-5 into uint8."""

    EXPECT = {"when": ALWAYS, "says": r"-5|int64|uint8"}

    def spoil(self, values: Any) -> Any:
        return [np.array([-5, 3]), *values[1:]]


class LargeBytes(Bytes):
    """300 into uint8."""

    EXPECT = {"when": ALWAYS, "says": r"300|int64|uint8"}

    def spoil(self, values: Any) -> Any:
        return [[300, 3], *values[1:]]


class Index(Spoilt):
    """An observation that is one of four."""

    EXPECT = {"twin": None}
    observation_space = spaces.Discrete(4)

    def observation(self) -> Any:
        return self.clock % 4


class IndexTooLarge(Index):
    """7 of Discrete(4)."""

    EXPECT = {"when": ALWAYS, "says": r"7"}

    def spoil(self, values: Any) -> Any:
        return [7, *values[1:]]


class IndexNegative(Index):
    """-1 of Discrete(4)."""

    EXPECT = {"when": ALWAYS, "says": r"-1"}

    def spoil(self, values: Any) -> Any:
        return [-1, *values[1:]]


class IndexFraction(Index):
    """2.7 of Discrete(4)."""

    EXPECT = {"when": ALWAYS, "says": r"float|2\.7"}

    def spoil(self, values: Any) -> Any:
        return [2.7, *values[1:]]


class IndexArray(Index):
    """An array of one number for Discrete(4)."""

    EXPECT = {"when": ALWAYS, "says": r"shape|array"}

    def spoil(self, values: Any) -> Any:
        return [np.array([values[0]]), *values[1:]]


class Many(Spoilt):
    """An observation of several whole numbers."""

    EXPECT = {"twin": None}
    observation_space = spaces.MultiDiscrete([3, 5])

    def observation(self) -> Any:
        return np.array([self.clock % 3, self.clock % 5])


class ManyTooLarge(Many):
    """(1, 5) of MultiDiscrete([3, 5])."""

    EXPECT = {"when": ALWAYS, "says": r"5"}

    def spoil(self, values: Any) -> Any:
        return [np.array([1, 5]), *values[1:]]


class Bits(Spoilt):
    """An observation of bits."""

    EXPECT = {"twin": None}
    observation_space = spaces.MultiBinary(3)

    def observation(self) -> Any:
        return np.array([self.clock & 1, self.clock & 2 > 0, 0], np.int8)


class BitsTooLarge(Bits):
    """2 in MultiBinary."""

    EXPECT = {"when": ALWAYS, "says": r"2"}

    def spoil(self, values: Any) -> Any:
        return [np.array([0, 2, 0], np.int8), *values[1:]]


# --- the same numbers in another form: they train as the harmless twin does ---


class Doubles(Spoilt):
    """float64 for float32."""

    def spoil(self, values: Any) -> Any:
        return [values[0].astype(np.float64), *values[1:]]


class Whole(Spoilt):
    """Integers for floats."""

    def spoil(self, values: Any) -> Any:
        return [values[0].astype(np.int64), *values[1:]]


class Lists(Spoilt):
    """A list for an array."""

    def spoil(self, values: Any) -> Any:
        return [values[0].tolist(), *values[1:]]


class BigEndian(Spoilt):
    """Numbers of the other byte order, in memory that is not contiguous and read-only."""

    def spoil(self, values: Any) -> Any:
        array = np.repeat(values[0].astype(">f4"), 2)[::2]
        array.flags.writeable = False
        return [array, *values[1:]]


class Tensors(Spoilt):
    """A torch tensor as observation."""

    def spoil(self, values: Any) -> Any:
        return [torch.from_numpy(values[0]), *values[1:]]


class NumPyFlags(Spoilt):
    """Flags and reward as NumPy scalars."""

    def spoil(self, values: Any) -> Any:
        return [values[0], np.float32(values[1]), np.bool_(values[2]), np.bool_(values[3]), values[4]]


class Reused(Harmless):
    """Returns one array again and again and changes it later."""

    buffer: Any = None

    def observation(self) -> Any:
        if self.buffer is None:
            self.buffer = np.zeros(2, np.float32)
        self.buffer[:] = self.place, self.clock
        return self.buffer

    def step(self, action: Any) -> Any:
        if self.buffer is not None:
            self.buffer[:] = 1e9
        return super().step(action)


class Boxes(Harmless):
    """Twin with a Box action."""

    EXPECT = {"twin": None}
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)


class ChangesAction(Boxes):
    """Overwrites the action that it gets."""

    EXPECT = {"twin": "Boxes"}

    def step(self, action: Any) -> Any:
        values = super().step(action)
        action[:] = np.nan
        return values


class Unpicklable(Spoilt):
    """Locks, lambdas, generators and open files in its attributes and in info."""

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        self.things = threading.Lock(), lambda: None, (i for i in ()), open(__file__)  # noqa: SIM115

    def spoil(self, values: Any) -> Any:
        return [*values[:4], {"lock": threading.Lock(), "call": lambda: None, 3: object()}]


class InfoKeys(Spoilt):
    """Keys in info that platforms use themselves."""

    def spoil(self, values: Any) -> Any:
        keys = ("goes_on", "episode_continues", "episode", "final_observation", "final_info", "terminal_observation")
        more = ("TimeLimit.truncated", "_episode", "lives", "valid", "first", "alive", "acting", "state", "is_success")
        return [*values[:4], dict.fromkeys((*keys, *more), True)]


# --- rewards ---


class RewardNone(Spoilt):
    """None as reward."""

    EXPECT = {"when": STEPS, "says": r"reward"}

    def spoil(self, values: Any) -> Any:
        return [values[0], None, *values[2:]]


class RewardText(Spoilt):
    """ "1.0" as reward."""

    EXPECT = {"when": STEPS, "says": r"reward"}

    def spoil(self, values: Any) -> Any:
        return [values[0], "1.0", *values[2:]]


class RewardNan(Spoilt):
    """nan as reward."""

    EXPECT = {"when": STEPS, "says": r"reward.*(nan|finite)"}

    def spoil(self, values: Any) -> Any:
        return [values[0], float("nan"), *values[2:]]


class RewardInfinite(Spoilt):
    """inf as reward."""

    EXPECT = {"when": STEPS, "says": r"reward.*(inf|finite)"}

    def spoil(self, values: Any) -> Any:
        return [values[0], float("inf"), *values[2:]]


class RewardArray(Spoilt):
    """An array of two rewards."""

    EXPECT = {"when": STEPS, "says": r"reward"}

    def spoil(self, values: Any) -> Any:
        return [values[0], np.zeros(2), *values[2:]]


class RewardComplex(Spoilt):
    """A complex reward."""

    EXPECT = {"when": STEPS, "says": r"reward"}

    def spoil(self, values: Any) -> Any:
        return [values[0], 1j, *values[2:]]


class RewardHuge(Spoilt):
    """A whole number that no float can hold."""

    EXPECT = {"when": STEPS, "says": r"reward"}

    def spoil(self, values: Any) -> Any:
        return [values[0], 10**400, *values[2:]]


class RewardLarge(Spoilt):
    """1e200, infinite as float32."""

    EXPECT = {"when": STEPS, "says": r"reward"}

    def spoil(self, values: Any) -> Any:
        return [values[0], 1e200, *values[2:]]


class RewardTensor(Spoilt):
    """A torch tensor as reward: taken, or refused."""

    EXPECT = {"when": ["step"], "status": [0, 2], "says": r"reward is a Tensor"}

    def spoil(self, values: Any) -> Any:
        return [values[0], torch.tensor(values[1]), *values[2:]]


class RewardFraction(Spoilt):
    """A Fraction as reward."""

    def spoil(self, values: Any) -> Any:
        return [values[0], fractions.Fraction(int(values[1])), *values[2:]]


# --- flags ---


class FlagNone(Spoilt):
    """None as terminated."""

    EXPECT = {"when": STEPS, "says": r"terminated"}

    def spoil(self, values: Any) -> Any:
        return [*values[:2], None, *values[3:]]


class FlagText(Spoilt):
    """ "False" as truncated."""

    EXPECT = {"when": STEPS, "says": r"truncated"}

    def spoil(self, values: Any) -> Any:
        return [*values[:3], "False", values[4]]


class FlagArray(Spoilt):
    """An array of two as terminated."""

    EXPECT = {"when": STEPS, "says": r"terminated"}

    def spoil(self, values: Any) -> Any:
        return [*values[:2], np.array([values[2], values[2]]), *values[3:]]


class FlagDict(Spoilt):
    """A dict as truncated."""

    EXPECT = {"when": STEPS, "says": r"truncated"}

    def spoil(self, values: Any) -> Any:
        return [*values[:3], {}, values[4]]


class FlagNan(Spoilt):
    """nan as terminated."""

    EXPECT = {"when": STEPS, "says": r"terminated"}

    def spoil(self, values: Any) -> Any:
        return [*values[:2], float("nan"), *values[3:]]


# --- tuples and infos ---


class Four(Spoilt):
    """Four values, as in the old gym."""

    EXPECT = {"when": STEPS, "says": r"4 values|5"}

    def spoil(self, values: Any) -> Any:
        return [*values[:3], values[4]]


class Six(Spoilt):
    """Six values."""

    EXPECT = {"when": STEPS, "says": r"6 values|5"}

    def spoil(self, values: Any) -> Any:
        return [*values, None]


class Nothing(Spoilt):
    """None instead of a tuple."""

    EXPECT = {"when": STEPS, "says": r"None"}

    def spoil(self, values: Any) -> Any:
        return None


class OldReset(Harmless):
    """reset returns the observation alone."""

    EXPECT = {"status": 2, "says": r"reset returned"}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0]


class InfoNone(Spoilt):
    """None as info."""

    EXPECT = {"when": ALWAYS, "says": r"info"}

    def spoil(self, values: Any) -> Any:
        return [*values[:4], None]


class InfoList(Spoilt):
    """A list as info."""

    EXPECT = {"when": ALWAYS, "says": r"info"}

    def spoil(self, values: Any) -> Any:
        return [*values[:4], [1]]


# --- keys of a Dict ---


class Keys(Spoilt):
    """Twin with a Dict of two parts."""

    EXPECT = {"twin": None}
    observation_space = spaces.Dict(place=spaces.Box(-9, 9, (1,)), clock=spaces.Box(-9, 9, (1,)))

    def observation(self) -> Any:
        return {"place": np.array([self.place], np.float32), "clock": np.array([self.clock], np.float32)}


class KeysSwapped(Keys):
    """The keys of a Dict in another order."""

    EXPECT = {"twin": "Keys"}

    def spoil(self, values: Any) -> Any:
        return [dict(sorted(values[0].items(), reverse=self.clock % 2 == 0)), *values[1:]]


class KeyMissing(Keys):
    """A key of a Dict is missing."""

    EXPECT = {"when": ALWAYS, "says": r"clock"}

    def spoil(self, values: Any) -> Any:
        del values[0]["clock"]
        return values


class KeyOther(Keys):
    """Another key in place of one of a Dict."""

    EXPECT = {"when": ALWAYS, "says": r"time|clock"}

    def spoil(self, values: Any) -> Any:
        values[0]["time"] = values[0].pop("clock")
        return values


class KeyMore(Keys):
    """One key more than a Dict has."""

    EXPECT = {"when": ALWAYS, "says": r"more"}

    def spoil(self, values: Any) -> Any:
        values[0]["more"] = 1.0
        return values


class KeyShape(Keys):
    """A part of a Dict has another shape."""

    EXPECT = {"when": ALWAYS, "says": r"place.*shape|shape.*place"}

    def spoil(self, values: Any) -> Any:
        values[0]["place"] = np.zeros((1, 1), np.float32)
        return values


class NoKeys(Keys):
    """A list for a Dict."""

    EXPECT = {"when": ALWAYS, "says": r"list|Dict"}

    def spoil(self, values: Any) -> Any:
        return [list(values[0].values()), *values[1:]]


class Parts(Spoilt):
    """An observation that is a tuple."""

    EXPECT = {"twin": None}
    observation_space = spaces.Tuple((spaces.Box(-9, 9, (1,)), spaces.Discrete(8)))

    def observation(self) -> Any:
        return np.array([self.place], np.float32), self.clock


class PartMissing(Parts):
    """A part of a tuple is missing."""

    EXPECT = {"when": ALWAYS, "says": r"[Tt]uple"}

    def spoil(self, values: Any) -> Any:
        return [values[0][:1], *values[1:]]


# --- masks ---


class Masked(Spoilt):
    """Twin with three actions and a mask of the legal ones."""

    EXPECT = {"twin": None}
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = super().reset(seed=seed)
        return obs, {"action_mask": self.mask(), **info}

    def step(self, action: Any) -> Any:
        assert self.mask()[int(action)], f"illegal action {action}"
        values = super().step(action)
        if isinstance(values[4], dict):
            values[4].setdefault("action_mask", self.mask())
        return values

    def mask(self) -> Any:
        return np.array([1, 1, self.clock % 2], np.int8)


class MaskAbsent(Masked):
    """The mask is missing at some steps."""

    EXPECT = {"when": STEPS, "says": r"action_mask"}

    def step(self, action: Any) -> Any:
        values = super().step(action)
        if self.when == "step" or self.late():
            del values[4]["action_mask"]
        return values


class MaskNotAtReset(Masked):
    """The mask is missing at reset alone: it is taken from the steps, or refused."""

    EXPECT = {"status": 2, "says": r"action_mask"}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0], {}


class MaskShort(Masked):
    """A mask of two for three actions."""

    EXPECT = {"when": STEPS, "says": r"action_mask.*(shape|3)"}

    def spoil(self, values: Any) -> Any:
        return [*values[:4], {"action_mask": np.ones(2, np.int8)}]


class MaskOne(Masked):
    """A mask of shape (1,), which would fit any number of actions."""

    EXPECT = {"when": STEPS, "says": r"action_mask.*(shape|3)"}

    def spoil(self, values: Any) -> Any:
        return [*values[:4], {"action_mask": np.ones(1, np.int8)}]


class MaskEmpty(Masked):
    """No action is legal, in mid-episode."""

    EXPECT = {"when": STEPS, "says": r"action_mask.*(no action|legal)"}

    def spoil(self, values: Any) -> Any:
        return [*values[:4], {"action_mask": np.zeros(3, np.int8)}]


class MaskText(Masked):
    """A mask of text."""

    EXPECT = {"when": STEPS, "says": r"action_mask"}

    def spoil(self, values: Any) -> Any:
        return [*values[:4], {"action_mask": "110"}]


class MaskLogits(Masked):
    """A mask of numbers that are neither 0 nor 1."""

    EXPECT = {"when": STEPS, "says": r"action_mask"}

    def spoil(self, values: Any) -> Any:
        return [*values[:4], {"action_mask": np.array([0.2, 0.5, np.nan])}]


class MaskNone(Masked):
    """None as mask."""

    EXPECT = {"when": STEPS, "says": r"action_mask"}

    def spoil(self, values: Any) -> Any:
        return [*values[:4], {"action_mask": None}]


class MaskBooleans(Masked):
    """The mask as a list of bools, empty after the end of an episode."""

    EXPECT = {"twin": "Masked"}

    def spoil(self, values: Any) -> Any:
        over = values[2] or values[3]
        return [*values[:4], {"action_mask": [not over and bool(x) for x in self.mask()]}]


# --- the same rewards and flags in another form ---


class RewardNoAxes(Spoilt):
    """An array without axes as reward."""

    def spoil(self, values: Any) -> Any:
        return [values[0], np.array(values[1]), *values[2:]]


class RewardOne(Spoilt):
    """An array of one reward."""

    def spoil(self, values: Any) -> Any:
        return [values[0], np.array([values[1]], np.float32), *values[2:]]


class RewardDecimal(Spoilt):
    """A Decimal as reward: taken, or refused."""

    EXPECT = {"when": STEPS, "status": [0, 1, 2], "twin": "Harmless", "says": r"reward is a Decimal"}

    def spoil(self, values: Any) -> Any:
        return [values[0], decimal.Decimal(int(values[1])), *values[2:]]


class RewardMasked(Spoilt):
    """numpy.ma.masked as reward."""

    EXPECT = {"when": STEPS, "says": r"reward"}

    def spoil(self, values: Any) -> Any:
        return [values[0], np.ma.masked, *values[2:]]


class RewardTime(Spoilt):
    """A timedelta64 as reward."""

    EXPECT = {"when": STEPS, "says": r"reward"}

    def spoil(self, values: Any) -> Any:
        return [values[0], np.timedelta64(int(values[1]), "s"), *values[2:]]


class FlagWhole(Spoilt):
    """0 and 1 as flags, and NumPy's own."""

    def spoil(self, values: Any) -> Any:
        return [*values[:2], int(values[2]), np.int64(values[3]), values[4]]


class FlagNoAxes(Spoilt):
    """Arrays without axes as flags."""

    def spoil(self, values: Any) -> Any:
        return [*values[:2], np.array(values[2]), np.array(int(values[3]), np.uint8), values[4]]


# --- results and infos ---


class GeneratorReset(Harmless):
    """reset is a generator function."""

    EXPECT = {"status": 2, "says": r"generator"}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        yield super().reset(seed=seed)


class InfoHuge(Spoilt):
    """20 MB in each info."""

    def spoil(self, values: Any) -> Any:
        return [*values[:4], {"film": np.zeros(20_000_000, np.uint8)}]


class InfoItself(Spoilt):
    """An info that contains itself, and keys that are None, nan and tuples."""

    def spoil(self, values: Any) -> Any:
        info: dict[Any, Any] = {None: 1, float("nan"): 2, (1, 2): 3, b"x": 4}
        info["itself"] = info
        return [*values[:4], info]


class InfoDefault(Spoilt):
    """A defaultdict as info, which has a value for each key."""

    def spoil(self, values: Any) -> Any:
        return [*values[:4], collections.defaultdict(lambda: [1, 2, 3])]


class InfoProxy(Spoilt):
    """A mapping as info that is no dict."""

    EXPECT = {"when": ALWAYS, "says": r"info"}

    def spoil(self, values: Any) -> Any:
        return [*values[:4], types.MappingProxyType({})]


# --- memory ---


class SharedBuffer(Harmless):
    """Observations are views of one buffer that all environments of a process share."""

    shared = np.zeros(4, np.float32)

    def observation(self) -> Any:
        self.shared[:] = np.nan
        view = self.shared[1:3]
        view[:] = self.place, self.clock
        return view


class KeepsActions(Boxes):
    """Keeps each action, and looks whether it changes later."""

    EXPECT = {"twin": "Boxes"}

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        self.kept: list[Any] = []

    def step(self, action: Any) -> Any:
        for array, copy in self.kept[-50:]:
            assert np.array_equal(array, copy), "an action has changed later"
        self.kept.append((action, np.copy(action)))
        return super().step(action)


class MaskedArray(Spoilt):
    """A number of an observation is masked."""

    EXPECT = {"when": ALWAYS, "says": "masked"}

    def spoil(self, values: Any) -> Any:
        return [np.ma.masked_array(values[0], [False, True]), *values[1:]]


class ArrayRaises(Spoilt):
    """An observation whose __array__ raises."""

    EXPECT = {"when": ALWAYS, "says": "observation"}

    def spoil(self, values: Any) -> Any:
        return [_Array(), *values[1:]]


class _Array:
    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no array")


class SubclassArray(Spoilt):
    """An array of a subclass whose operators raise."""

    def spoil(self, values: Any) -> Any:
        return [values[0].view(_Strict), *values[1:]]


class _Strict(np.ndarray):
    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no arithmetic")


class MaskShared(Masked):
    """The mask is a view of one buffer that changes later."""

    EXPECT = {"twin": "Masked"}
    buffer = np.zeros(3, np.int8)

    def mask(self) -> Any:
        self.buffer[:] = 1, 1, self.clock % 2
        return self.buffer

    def step(self, action: Any) -> Any:
        self.buffer[:] = 0
        return super().step(action)
