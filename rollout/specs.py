"""Specifications of a rollout and its parts, and the plan by which an algorithm asks for its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.unroll_rows import VectorEnv
from rltrain.rollout.types import Gradients, Noise, Policy, Trajectory

if TYPE_CHECKING:
    from torch import Tensor

ArraySpec = tuple[tuple[int, ...], str]  # shape and dtype of one row of an array


@dataclass(frozen=True)
class Inference:
    """What actors must know of a policy that only the inference server holds."""

    device: str  # of the server
    noise: Noise
    core_size: int
    sequence: int
    action: ArraySpec
    extras: dict[str, ArraySpec]
    core_with_action: Callable[[Tensor, Tensor], Tensor]  # see `rltrain.rollout.types.PolicyHooks`
    log_prob: bool = False  # as in `RolloutSpec`


@dataclass(frozen=True)
class OtherPolicy:
    """A policy of another run, which serves as an opponent; its weights never change."""

    make_policy: Callable[[], Policy]
    arrays: dict[str, np.ndarray]  # its parameters and buffers, by name


@dataclass(frozen=True)
class OpponentPool:
    """Snapshots of the policy, and policies of other runs, that serve as opponents."""

    size: int  # a new snapshot replaces the oldest one of so many; 0: there are none
    share: float  # of the games that are played against opponents of the pool
    others: tuple[OtherPolicy, ...] = ()


@dataclass(frozen=True)
class RolloutSpec:
    """Everything that a rollout is made from.

    `units` are the sets of streams that cannot be split between actors: single streams, or blocks of them.
    """

    spec: EnvSpec
    seed: int  # of the run
    unroll: int  # T
    workers: int  # 0: one actor in this process
    backend: Literal["local", "processes", "dask"]
    units: tuple[tuple[int, ...], ...]
    make_env: Callable[[Sequence[int], Sequence[int]], VectorEnv]  # (streams, generations) -> environments
    make_policy: Callable[[], Policy]
    actor_timeout: float = 120.0
    max_restarts: int = 5
    random_rows: int = 0  # first rows of each stream, whose actions are random
    max_in_flight: int = 1  # unrolls of an actor that may be in flight, or finished and not yet taken
    max_lag: int | None = None  # versions since an unroll's weights, above which it is dropped
    shorten: bool = False  # give shorter unrolls to an actor that is many times slower than the others
    deterministic: bool = False  # take unrolls in turn, and publish weights only after all actors have read theirs
    reduce: Callable[[Any, Trajectory], Gradients] | None = None  # its result is sent in place of the unroll
    log_prob: bool = False  # add the log probabilities of actions to the extras: see `PolicyHooks.action_distribution`
    pool: OpponentPool | None = None
    inference: Inference | None = None  # the policy of the inference server; None: each actor has its own
    cluster: Any = None  # with backend "dask": a `rltrain.rollout.cluster.cluster.Cluster`
    preload: tuple[str, ...] = ()  # modules that actors import; the fork server of a node imports them first
    modules: tuple[str, ...] = ()  # modules from files of the user, which are pickled by value
    movable: bool = True  # an actor can continue on another machine from its current state
    known: bool = False  # actors run Gymnasium's and our code only: see `rltrain.envs.known`

    def without_user_code(self) -> RolloutSpec:
        """A copy that every machine can unpickle: without the functions that only an actor calls."""
        return replace(
            self,
            make_env=_unavailable,
            make_policy=_unavailable,
            reduce=None if self.reduce is None else _unavailable,
            cluster=None,
            pool=None if self.pool is None else replace(self.pool, others=()),
        )


def _unavailable(*_: Any) -> Any:
    raise AssertionError("only an actor calls this function")


@dataclass(frozen=True)
class ActorJob:
    """Everything that an actor is made from. Travels to its process."""

    plan: RolloutSpec  # with `cluster` None
    worker: int
    streams: tuple[int, ...]  # ascending
    generations: tuple[int, ...]  # number of times each stream was started over
    rows: tuple[int, ...]  # rows that each stream has made


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
    core_size: int = 0  # H of a policy with memory; above 0: samples are Trajectories [burn_in + length, B] with `core`
    burn_in: int = 0  # with memory, first rows of a sequence, which are not learnt from
    whole_episodes: bool = False  # samples are complete episodes, Trajectories as long as the longest of the batch
    alpha: float = 0.0  # exponent of priorities; 0: uniform
    beta: float = 0.4  # exponent of importance weights at the start; 1 at the end of the run
    priority_eps: float = 1e-6  # added to each priority, so that none is 0
    random_start: bool = True  # the first `warmup` steps are random actions
    clip_reward: bool = False  # rewards are clipped to [-1, 1] before they are stored
    data_only: bool = False  # no actor acts: the replay holds all of the recorded data, and each step is one update
    best: float | None = None  # of recorded data, the share of complete episodes to sample from, by return; None: all
    wait: int | Literal["all"] = "all"  # streams a delivery waits for
    overlap: bool = False  # actors continue while the learner updates

    @property
    def window(self) -> int:
        """Consecutive rows of a stream that a sample with memory consists of."""
        return self.burn_in + self.length


DataPlan = StreamPlan | GradientPlan | ReplayPlan  # which data an algorithm learns from
