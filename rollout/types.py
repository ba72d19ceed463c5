"""The data that actors, replay and learner exchange (Trajectory, Transition, Gradients, Weights), and the Policy.

Letters: T unroll length, B streams, N agents, O observation, A action, S global state, H recurrent width.
Index t is the decision at t: the policy observes obs[t] and takes action[t], reward[t] is its reward, obs[t+1] follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from rltrain.envs.spec import OPTIONAL_FIELDS
from rltrain.rollout.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor

Array = Any  # numpy in actors, torch in the learner
NEWEST = -1  # in place of a snapshot's number: the policy in training
OTHER = -2  # the number of the first policy of another run; the next ones have -3, -4, ...
LONGEST = 10_000  # steps after which an episode of an evaluation is cut off if its environment has no time limit


class Episode(NamedTuple):
    """One finished episode: the sum of its unscaled rewards, and its number of steps."""

    ret: float  # with several agents, the sum over them
    length: int
    agents: tuple[float, ...] = ()  # with several agents, the return of each
    player: int = 0  # in self-play, the index of the learner's player
    opponent: int = NEWEST  # in self-play of two players, the number of the snapshot that acted for the other one
    info: dict[str, float] = {}  # noqa: RUF012, never changed: numbers of the last info, by key; of several agents, also of each as KEY/AGENT
    opponents: tuple[int, ...] = ()  # in self-play, the number of the snapshot that acted for each player, or NEWEST


@dataclass(frozen=True, slots=True)
class Trajectory:
    """T steps of B streams, under next-step autoreset.

    obs[t+1] always follows obs[t], final observations included. After the end of an episode there is one reset row, in
    which the environment resets and ignores the action. `valid` is False in reset rows and in no others.

    With several agents `reward`, `terminated` and `truncated` are [T, B, N], `obs` is {group: [T+1, B, n, *O]} and
    `action` is joint: see `EnvSpec`. An agent that leaves at t has its last reward and its end at t, and its last
    observation at t+1, where it is not alive any more. The episode continues until no agent is alive.

    `rltrain.rollout.trajectories.AXES` is the table of these fields from which operations on them are derived.
    """

    obs: Tree  # [T+1, B, *O]
    action: Array  # [T, B, *A]    as the policy chose it: int64 from 0, or float32
    reward: Array  # [T, B]        float32, unscaled
    terminated: Array  # [T, B]    bool, the MDP ended: do not bootstrap
    truncated: Array  # [T, B]     bool, the time limit was reached: bootstrap, use no later row
    first: Array  # [T+1, B]       bool, obs[t] begins an episode, or follows the loss of an actor
    version: Array  # [B]          int64, of the weights that acted
    stream: Array  # [B]           int64, the number of the column's stream
    row: Array  # [B]              int64, rows of the stream before obs[0]
    extras: dict[str, Array] = field(default_factory=dict)  # [T, B, ...] recorded by the policy: log_prob, ...
    action_mask: Array | None = None  # [T+1, B, n]  bool, legal actions
    core: Array | None = None  # [T/L, B, H]  recurrent state before every L-th row
    episodes: tuple[Episode, ...] = ()  # finished during the unroll
    alive: Array | None = None  # [T+1, B, N]  bool, with several agents: those that take part
    acting: Array | None = None  # [T+1, B, N]  bool, in turns or against opponents: agents of the policy that act now
    state: Array | None = None  # [T+1, B, *S]  float32, global state, which only training uses
    num_rows: Array | None = None  # [B]  int64, number of rows that the actor made, before stretching; None: T
    weight: Array | None = None  # [B]  float32, of a prioritised replay's sequences: as in `Transition`
    index: Array | None = None  # [B]   int64, the same

    @property
    def valid(self) -> Array:
        """[T, B] rows whose action the environment executed."""
        return ~self.first[1:]

    @property
    def episode_end(self) -> Array:
        """[T, B] rows that end an episode: with several agents, those after which no agent is alive."""
        if self.alive is None:
            return self.terminated | self.truncated
        return self.valid & ~self.alive[1:].any(-1)

    def optional_fields(self) -> dict[str, Array]:
        """The fields of `rltrain.envs.spec.OPTIONAL_FIELDS` that are not None, by name."""
        fields = {name: getattr(self, name) for name in OPTIONAL_FIELDS}
        return {name: array for name, array in fields.items() if array is not None}

    @property
    def rows(self) -> int:
        """T, reset rows included."""
        return len(self.reward)

    @property
    def steps(self) -> int:
        """Number of environment steps: rows without the reset rows."""
        return int(self.valid.sum())


def discounts(unrolls: Trajectory, gamma: float) -> Array:
    """[T, B] gamma, and 0 where the target must not bootstrap: at a termination, and in reset rows."""
    return gamma * (unrolls.valid & ~unrolls.terminated)


def traces(unrolls: Trajectory, lam: float) -> Array:
    """[T, B] lambda, and 0 where the episode ended, for any reason, or where no valid row follows."""
    valid = unrolls.valid
    continues = valid & ~(unrolls.terminated | unrolls.truncated)
    continues[:-1] &= valid[1:]
    return lam * continues


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients that an actor computed from its unroll, with the weights that acted; the learner applies them."""

    arrays: dict[str, Array]  # by the name of the policy's parameter
    metrics: dict[str, float]
    version: Array  # [B]  this and the following: as in the unroll
    stream: Array  # [B]
    row: Array  # [B]
    rows: int
    steps: int
    episodes: tuple[Episode, ...] = ()


@dataclass(frozen=True, slots=True)
class Transition:
    """B samples of a replay: an observation, the action, and the result m steps later, m <= n (n-step returns).

    No sample crosses the end of an episode, a restart of its actor or the replay's write pointer.
    """

    obs: Tree  # [B, *O]
    action: Array  # [B, *A]       as the policy chose it
    reward: Array  # [B]           float32, sum of gamma^k reward[t+k], k < m
    discount: Array  # [B]         float32, gamma^m, and 0 if the MDP ended: the factor of the value of next_obs
    next_obs: Tree  # [B, *O]      obs[t+m], the final observation included
    action_mask: Array | None = None  # [B, n]       bool, legal at obs
    next_action_mask: Array | None = None  # [B, n]  bool, legal at next_obs
    weight: Array | None = None  # [B]    float32, prioritised replay: importance weights, at most 1
    index: Array | None = None  # [B]     int64, prioritised replay: identifies the samples in `Replay.reprioritise`


@dataclass(frozen=True, slots=True)
class Weights:
    """One version of the policy: all its parameters and buffers, by name."""

    version: int
    step: int
    arrays: dict[str, np.ndarray]


class Noise(NamedTuple):
    """The random numbers that `Policy.act` needs: `width` independent ones per row, drawn by the actor."""

    kind: Literal["gumbel", "logistic", "normal", "uniform"]
    width: int
    stream: bool = False  # one more column, the last: the number of the row's stream
    hold: int = 1  # rows of a stream that share one draw

    @property
    def columns(self) -> int:
        """K of `Policy.act`'s noise [B, K]."""
        return self.width + self.stream


class Act(NamedTuple):
    """One decision for B streams."""

    action: Tensor  # [B, *A]
    extras: dict[str, Tensor]  # [B, ...] each, recorded for the learner: log_prob, ...
    core: Tensor | None  # [B, H] recurrent state after this row


class Policy(Protocol):
    """Acts in training, in evaluation and for `rltrain.load`. It is an nn.Module.

    A policy may also have any of the methods of `PolicyHooks`.
    """

    noise: Noise
    core_size: int  # H, or 0 without memory
    sequence: int  # L, rows between two stored cores

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object: ...


@dataclass(frozen=True, slots=True)
class PolicyHooks:
    """The optional methods of a policy, each with what is used where the policy does not have it; see `hooks_of`."""

    summarize_unroll: Callable[[dict[str, Tensor], Tensor, Tensor | None], dict[str, Tensor]]
    """`(extras, action, action_mask) -> extras`, all [T, B, ...]: turns the stacked extras of `act` into those that the
    learner gets, once per unroll, so that log-probabilities cost nothing per step. An inference server calls it with
    T = 1. Default: the extras of `act`."""

    set_active_rows: Callable[[int | None], None]
    """`(rows)`: until the next call only the first `rows` rows of every batch are used, the others are padding; None:
    all are. Called where only `act` is called. Default: padding is computed too."""

    core_with_action: Callable[[Tensor, Tensor], Tensor]
    """`(core, action) -> core`: for a core that holds the last action, the core that `act` would have returned, had it
    chosen `action`. Called where random exploration replaced the action. Must be picklable. Default: the same core."""

    fast_layout: Callable[[Tree], Tree]
    """`(obs) -> obs`, [N, *O]: the same numbers in the memory layout that its networks read fastest. Called once before
    several passes over the same rows. Default: unchanged."""

    score: Callable[[Tree, bool], Tensor] | None
    """`(obs, explore) -> [B, ...]`: the floats by which `act` chooses a discrete action, if its extras do not hold
    them. Used to test whether a row has the same bits in every batch, which actions seldom show. Default: None."""

    greedy_network: Callable[[], tuple[Any, Callable[[Tensor], Tensor] | None] | None]
    """`() -> (mlp, choose)`: `act` without exploration is `choose(mlp.forward(obs))` for observations [B, F], float32:
    an `MLP` and a function from its output to the actions; None instead of the function: the index of the largest
    output. `rltrain.load(...).act` uses it for single observations. None in its place: `act` does more. Not for a class
    that replaces `act`. Default: None."""

    quick_act: Callable[[], Callable[[Tensor, Tensor], Act] | None]
    """`() -> function(obs, noise)`: `act` with exploration for observations [B, F], float32, without memory and masks:
    the same `Act` in less time, within `torch.no_grad`. Actors use it. None in its place: there is none. Not for a
    class that replaces `act`. Default: None."""

    action_distribution: Callable[[Tree, Tensor | None, Tensor | None, Tensor], Any] | None
    """`(obs, core, action_mask, noise)` as for `act`: the distribution that `act` draws from if it explores, with a
    method `log_prob(action) -> [B]`, as those of `rltrain.distributions`. None in its place: there is none, or actions
    of consecutive steps are not independent. Used by `--record`, if `log_prob` is not in the extras, and by `rlope`.
    Default: None."""

    state_value: Callable[[Tree, Tensor | None, Tensor | None, Tensor], Tensor] | None
    """`(obs, core, action_mask, noise) -> [B]` as for `act`: the value of the observation for the policy that explores.
    `--record` stores it as `value` beside the `log_prob` of `action_distribution`. Default: None."""


RENAMED_HOOKS = {  # names in version 0.1
    "unrolled": "summarize_unroll",
    "narrow": "set_active_rows",
    "took": "core_with_action",
    "arranged": "fast_layout",
}


def check_hooks(policy: object) -> None:
    """ValueError if the policy has an optional method under its name of version 0.1, which would never be called."""
    classes = [vars(cls) for cls in type(policy).__mro__]
    for old, new in RENAMED_HOOKS.items():
        nearest = next((names for names in classes if old in names or new in names), None)
        if nearest is not None and new not in nearest:
            raise ValueError(f"policy {type(policy).__name__}: its method {old} is now called {new}; rename it")


def hooks_of(policy: object) -> PolicyHooks:
    """The optional methods of `policy`, with the defaults filled in."""
    return PolicyHooks(
        summarize_unroll=getattr(policy, "summarize_unroll", _same_extras),
        set_active_rows=getattr(policy, "set_active_rows", _ignore_rows),
        core_with_action=getattr(policy, "core_with_action", _same_core),
        fast_layout=getattr(policy, "fast_layout", _same_obs),
        score=getattr(policy, "score", None),
        greedy_network=_of_act(policy, "greedy_network") or _nothing,
        quick_act=_of_act(policy, "quick_act") or _nothing,
        action_distribution=_of_act(policy, "action_distribution"),
        state_value=_of_act(policy, "state_value"),
    )


def _of_act(policy: object, method: str) -> Callable[..., Any] | None:
    """A method that describes `act`, if the policy has it and no class derived from its class replaces `act`."""
    classes = [set(vars(cls)) for cls in type(policy).__mro__]
    names = next((names for names in classes if names & {"act", method}), set())
    own = getattr(policy, "__dict__", {})
    replaced = ("act" in names and method not in names) or "act" in own
    return None if replaced and method not in own else getattr(policy, method, None)


def _nothing() -> None:
    return None


def _same_extras(extras: dict[str, Tensor], action: Tensor, action_mask: Tensor | None) -> dict[str, Tensor]:
    return extras


def _ignore_rows(rows: int | None) -> None:
    pass


def _same_core(core: Tensor, action: Tensor) -> Tensor:
    return core


def _same_obs(obs: Tree) -> Tree:
    return obs
