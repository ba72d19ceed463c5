"""The types that travel: Trajectory from actor to learner, Transition out of a replay, Weights back.

Letters: T unroll length, B streams, N agents, O observation, A action, S global state, H recurrent width.
Index t is the decision at t: obs[t] is seen, action[t] is taken, reward[t] is its reward, obs[t+1] follows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rltrain.envs.spec import OPTIONAL_FIELDS
from rltrain.rollout.tree import Tree

Array = Any  # numpy in actors, torch in the learner
NEWEST = -1  # in place of a snapshot's number: the policy that learns


class Episode(NamedTuple):
    """One finished episode: the sum of its untouched rewards and its number of steps."""

    ret: float  # of several agents, the sum over them
    length: int
    agents: tuple[float, ...] = ()  # the return of each, where there are several
    seat: int = 0  # which of them was the learner's, where it has opponents
    opponent: int = NEWEST  # the number of the snapshot that the others were played by


@dataclass(frozen=True, slots=True)
class Trajectory:
    """T steps of B streams, under next-step autoreset.

    obs[t+1] is always what followed obs[t], final observations included. After an episode ends there is one
    row in which the environment resets and ignores the action; `valid` is False there and nowhere else.

    With several agents `reward` and both ends are [T, B, N], `obs` is {group: [T+1, B, n, *O]} and `action` joint: see
    `EnvSpec`. An agent that leaves at t has its last reward and its end there, and its last observation at
    t+1, where it is not alive any more; the episode goes on until none is.
    """

    obs: Tree  # [T+1, B, *O]
    action: Array  # [T, B, *A]    as the policy made it: int64 from 0, or float32
    reward: Array  # [T, B]        float32, untouched
    terminated: Array  # [T, B]    bool, the MDP ended: do not bootstrap
    truncated: Array  # [T, B]     bool, the clock ran out: bootstrap, do not look further
    first: Array  # [T+1, B]       bool, obs[t] begins an episode (or follows a broken stream)
    version: Array  # [B]          int64, the weights that acted
    stream: Array  # [B]           int64, which stream this column is
    row: Array  # [B]              int64, the stream's own count of rows at obs[0]
    extras: dict[str, Array] = field(default_factory=dict)  # [T, B, ...] what the policy said: log_prob, ...
    action_mask: Array | None = None  # [T+1, B, n]  bool, legal actions
    core: Array | None = None  # [T/L, B, H]  recurrent state before every L-th row
    episodes: tuple[Episode, ...] = ()  # finished during the unroll
    alive: Array | None = None  # [T+1, B, N]  bool, of several agents, those that take part
    acting: Array | None = None  # [T+1, B, N]  bool, where they take turns, whose it is
    state: Array | None = None  # [T+1, B, *S]  float32, what only training sees
    num_rows: Array | None = None  # [B]  int64, rows that the stream made, the first ones of T; None: all of them

    @property
    def valid(self) -> Array:
        """[T, B] rows whose action was really taken."""
        return ~self.first[1:]

    @property
    def episode_end(self) -> Array:
        """[T, B] rows that end an episode: with several agents, those after which none is left."""
        if self.alive is None:
            return self.terminated | self.truncated
        return self.valid & ~self.alive[1:].any(-1)

    def optional_fields(self) -> dict[str, Array]:
        """The fields of `rltrain.envs.spec.OPTIONAL_FIELDS` that are there, by name."""
        fields = {name: getattr(self, name) for name in OPTIONAL_FIELDS}
        return {name: array for name, array in fields.items() if array is not None}

    @property
    def rows(self) -> int:
        """T, reset rows included."""
        return len(self.reward)

    @property
    def steps(self) -> int:
        """Environment steps inside: rows without the reset rows."""
        return int(self.valid.sum())


def discounts(unrolls: Trajectory, gamma: float) -> Array:
    """[T, B] gamma, and 0 where nothing can be bootstrapped."""
    return gamma * (unrolls.valid & ~unrolls.terminated)


def traces(unrolls: Trajectory, lam: float) -> Array:
    """[T, B] lambda, and 0 where the episode ended, for whichever reason, or where no row follows that counts."""
    valid = unrolls.valid
    goes_on = valid & ~(unrolls.terminated | unrolls.truncated)
    goes_on[:-1] &= valid[1:]
    return lam * goes_on


@dataclass(frozen=True, slots=True)
class Gradients:
    """What an actor made of an unroll with the weights that acted in it, to be applied by the learner."""

    arrays: dict[str, Array]  # by the name of the policy's parameter
    metrics: dict[str, float]
    version: Array  # [B]  as in the unroll, all of the following
    stream: Array  # [B]
    row: Array  # [B]
    rows: int
    steps: int
    episodes: tuple[Episode, ...] = ()


@dataclass(frozen=True, slots=True)
class Transition:
    """B samples of a replay: what was seen, done, and what came of it m steps later, m <= n (n-step returns).

    No sample crosses the end of an episode, a stream, a restart of its actor or the replay's write pointer.
    """

    obs: Tree  # [B, *O]
    action: Array  # [B, *A]       as the policy made it
    reward: Array  # [B]           float32, sum of gamma^k reward[t+k], k < m
    discount: Array  # [B]         float32, gamma^m, and 0 where the MDP ended: what next_obs counts for
    next_obs: Tree  # [B, *O]      obs[t+m], the final observation included
    action_mask: Array | None = None  # [B, n]       bool, legal at obs
    next_action_mask: Array | None = None  # [B, n]  bool, legal at next_obs
    weight: Array | None = None  # [B]    float32, prioritised: importance weights, at most 1
    index: Array | None = None  # [B]     int64, prioritised: which samples these are, for their new priorities


@dataclass(frozen=True, slots=True)
class Weights:
    """One version of the policy: every parameter and buffer of it, by name."""

    version: int
    step: int
    arrays: dict[str, np.ndarray]
