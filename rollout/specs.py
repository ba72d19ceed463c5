"""What describes a rollout and its parts: the data that an actor, a pool of opponents and an inference server need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.unroll_rows import VectorEnv
from rltrain.rollout.types import Trajectory

Kind = tuple[tuple[int, ...], str]  # shape and type of what a policy says of one row


@dataclass(frozen=True)
class Inference:
    """A policy that a server acts with, as actors must know it, who do not hold it."""

    device: str  # of the server
    noise: Any  # what `act` wants to be random: see `rltrain.algorithms.protocol.Noise`
    core_size: int
    sequence: int
    action: Kind
    extras: dict[str, Kind]
    took: Any = None  # see `rltrain.algorithms.protocol.Policy`


@dataclass(frozen=True)
class RolloutSpec:
    """What a rollout is made from. `units` are what cannot be split between actors: streams, or blocks of them."""

    spec: EnvSpec
    seed: int
    unroll: int
    workers: int  # 0: one actor in this process
    backend: Literal["local", "processes", "dask"]
    units: tuple[tuple[int, ...], ...]
    make_env: Callable[[Sequence[int], Sequence[int]], VectorEnv]
    make_policy: Callable[[], Any]
    actor_timeout: float = 120.0
    max_restarts: int = 5
    random_rows: int = 0  # of each stream, acted at random before the policy does
    max_in_flight: int = 1  # unrolls of an actor that may be under way, or finished and not yet taken
    max_lag: int | None = None  # versions since an unroll's weights, above which it is dropped
    shorten: bool = False  # whether an actor that is many times slower than the others is given shorter unrolls
    deterministic: bool = False  # unrolls are taken in turns, and weights are published when all have read theirs
    reduce: Callable[[Any, Trajectory], Any] | None = None  # what actors make of their unrolls: see `ActorJob`
    pool: OpponentPool | None = None  # of past policies, as opponents
    inference: Inference | None = None  # a server decides for all actors with such a policy; None: each has its own
    cluster: Any = None  # where actors run with backend "dask": see `rltrain.rollout.cluster.cluster.Cluster`
    preload: tuple[str, ...] = ()  # modules that actors import, for whoever starts them there
    modules: tuple[str, ...] = ()  # that come from files of the user's, and travel by value
    movable: bool = True  # whether an actor can go on elsewhere where it stands


@dataclass(frozen=True)
class ActorJob:
    """Everything an actor is made from. Travels to its process."""

    worker: int
    spec: EnvSpec
    unroll: int  # T
    seed: int  # the run's
    streams: tuple[int, ...]  # ascending
    incarnations: tuple[int, ...]  # how often each stream was started anew
    rows: tuple[int, ...]  # rows each stream has behind it
    make_env: Callable[[Sequence[int], Sequence[int]], VectorEnv]  # (streams, incarnations) -> environments
    make_policy: Callable[[], Any]
    random_rows: int = 0  # of each stream, acted at random whatever the policy says
    max_in_flight: int = 1  # unrolls that may be under way at once
    reduce: Callable[[Any, Trajectory], Any] | None = None  # (policy, unroll) -> what is sent in the unroll's place
    pool: OpponentPool | None = None  # past policies as opponents
    inference: Inference | None = None  # the policy, where a server has it and none is made here

    @property
    def slots(self) -> int:
        """Slots for big observations: those under way, and as many that the learner is still looking at."""
        return 2 * self.max_in_flight


@dataclass(frozen=True)
class OpponentPool:
    """Snapshots that are kept, and how often they are met."""

    size: int  # places; a new snapshot takes that of the oldest
    share: float  # of games that are played against one
