"""Data that describes a rollout and its parts, and the plan by which an algorithm asks for its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.unroll_rows import VectorEnv
from rltrain.rollout.types import Gradients, Noise, Trajectory

if TYPE_CHECKING:
    from torch import Tensor

Kind = tuple[tuple[int, ...], str]  # shape and type of what a policy says of one row


@dataclass(frozen=True)
class Inference:
    """A policy that a server acts with, as actors must know it, who do not hold it."""

    device: str  # of the server
    noise: Noise
    core_size: int
    sequence: int
    action: Kind
    extras: dict[str, Kind]
    core_with_action: Callable[[Tensor, Tensor], Tensor]  # see `rltrain.rollout.types.PolicyHooks`


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


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """The algorithm learns from unrolls in the order in which actors made them, joined in the order of their streams.

    With `wait="all"` and no overlap the data is on-policy. Otherwise the weights change while actors collect: `max_lag`
    limits by how many updates, and `max_in_flight` how many unrolls an actor may be ahead.
    """

    unroll: int  # T, rows per stream and unroll
    wait: int | Literal["all"] = "all"  # streams an update waits for
    overlap: bool = False  # actors continue while the learner updates
    max_in_flight: int = 1  # unrolls that an actor may have begun or finished before the learner has received them
    max_lag: int | None = None  # updates since the weights of an unroll; older unrolls are dropped and counted
    buffer_size: int = 1  # batches in the circular buffer of IMPACT
    reuse: int = 1  # updates per batch received, over the batches in the buffer


@dataclass(frozen=True, slots=True)
class GradientPlan:
    """Actors compute gradients from their own unrolls; the learner applies each in the order of arrival."""

    unroll: int  # T, rows per stream and gradient
    reduce: Callable[[Any, Trajectory], Gradients]  # (policy, unroll) -> gradients; picklable, runs in the actor
    wait: int | Literal["all"] = 1  # streams the learner waits for before it applies the gradients received
    overlap: bool = True  # actors continue while the learner updates
    max_in_flight: int = 1  # unrolls that an actor may have begun or finished before the learner has received them
    max_lag: int | None = None  # updates since the weights of an unroll; older gradients are dropped and counted


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """Off-policy: a replay keeps the unrolls, and the algorithm learns from samples, a fixed number per step."""

    unroll: int  # T, rows per stream between two deliveries
    capacity: int  # rows kept, of all streams together
    batch: int  # B, transitions (or sequences) per update
    warmup: int  # steps before the first update
    updates_per_step: float  # updates per environment step after `warmup`, kept exactly
    gamma: float  # discount per step, of n-step rewards
    n_step: int = 1
    length: int = 1  # above 1, or with several agents: samples are Trajectories [length, B]
    whole_episodes: bool = False  # samples are complete episodes, Trajectories as long as the longest of the batch
    alpha: float = 0.0  # exponent of priorities; 0: uniform
    beta: float = 0.4  # exponent of importance weights at the start; 1 at the end of the run
    priority_eps: float = 1e-6  # added to each priority, so that none is 0
    random_start: bool = True  # the first `warmup` steps are random actions
    clip_reward: bool = False  # rewards are clipped to [-1, 1] before they are stored
    wait: int | Literal["all"] = "all"  # streams a delivery waits for
    overlap: bool = False  # actors continue while the learner updates


DataPlan = StreamPlan | GradientPlan | ReplayPlan  # which data an algorithm learns from
