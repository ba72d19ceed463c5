"""What the platform expects of an algorithm and of a policy. Structural: nothing to inherit from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from rltrain.rollout.specs import DataPlan
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory

NoiseKind = Literal["gumbel", "logistic", "normal", "uniform"]


class Noise(NamedTuple):
    """What `Policy.act` wants to be random: `width` independent numbers per row, drawn by the actor.

    With `stream` a row has one more column, the last: the number of its stream, for what differs between streams.
    """

    kind: NoiseKind
    width: int
    stream: bool = False

    @property
    def columns(self) -> int:
        """Numbers per row in all: the K of `Policy.act`'s noise [B, K]."""
        return self.width + self.stream


class Act(NamedTuple):
    """One decision for B streams."""

    action: Tensor  # [B, *A]
    extras: dict[str, Tensor]  # [B, ...] each, what the learner wants to know later: log_prob, ...
    core: Tensor | None  # [B, H] recurrent state after this row


class Policy(Protocol):
    """An nn.Module that acts. The same object acts in training, in evaluation and for `rltrain.load`.

    It may also have `unrolled(extras, action, action_mask) -> extras`: called once per unroll with what `act` returned,
    stacked to [T, B, ...], it says what the learner gets instead. What is computed there costs nothing per step.
    With `--inference central` the server calls it for each row, T = 1, since actors do not hold the policy.
    And `narrow(rows)`, where nothing but `act` is called: only the first `rows` of every batch are looked at from then
    on, the others fill it up; None: all are.

    And `score(obs, explore) -> [B, ...]`, floats that `act` chooses whole-numbered actions by, where its extras hold
    none: whether its rows have the same bits in every batch is judged by them, since choices seldom show it.

    And `took(core, action) -> core`, picklable, of a core that holds what was done: `act`'s core, had it chosen this
    action. It is called where a random start replaced the choice.

    The learner asks for more, each algorithm for something of its own. Of all, `observe`: a delivery for running
    statistics, once, after its updates. All parameters are trained, by one optimiser.

    ppo, mappo, a2c, appo, impala, a3c: `forward`, `value`, `scaled`, `observe(unrolls, gamma)`: see
    `ActorCritic`. ppo makes use of `valued` and `arranged` too, where there are such. The others
    want `normalised(obs)`, the observation as every network sees it, and `observe(unrolls)`, and

    dqn             `net`, which has what `QNetwork` has and all the policy's parameters, and
                    `explore(progress)`, called before each update, which returns what is logged as epsilon
    sac, Box        `sample(obs, noise [B, A]) -> (action [B, *A] in [-1, 1], log density [B])`, both with gradients
    sac, Discrete   `distribution(obs, action_mask)`, an `Categorical` with gradients
    td3, ddpg       `actor`, an `Tower` of one net that holds all the policy's parameters and whose
                    tanh is the action, `size`, its outputs, and `schedule(progress)`, called before each update

    qmix, vdn, iql  `net`, of which `net(obs, fresh [T, B, N])` are values [T, B, N, A] (with `last_action` it gets
                    last actions [T, B, N] too) and `net.legal(action_mask)` the legal ones, see
                    `rltrain.algorithms.multi_agent.q_policy`, and `explore(progress)`
    maddpg          `actors`, a ModuleList of one for each group that holds all the policy's parameters, each of which
                    puts out [..., n, a] of {group: [..., n, *O]}; `discrete`, `shapes`, `split(joint)` and
                    `schedule(progress)`, see `rltrain.algorithms.multi_agent.maddpg_policy`

    where obs are normalised. Targets are copies of `net`, `actor` and `actors`, so that those must survive
    `copy.deepcopy`.
    """

    noise: Noise
    core_size: int  # H, or 0 without memory
    sequence: int  # L, rows between two stored cores

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act: ...


class Stateful(Protocol):
    """Anything that can be written into a checkpoint: nested dicts and lists of tensors and plain numbers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass(frozen=True, slots=True)
class Update:
    """What one update reports. Metrics are summed up later: tensors that nothing writes to afterwards, or numbers."""

    metrics: dict[str, Tensor | float] = field(default_factory=dict)
    priority: Tensor | None = None  # [B]  absolute errors, of prioritised samples


class Algorithm(Protocol):
    """Built as `Name(spec, config, device, seed, streams)`.

    It may also have `observes: bool`; where that is False `observe` has nothing to do, and is not called.
    """

    policy: Any  # Policy
    plan: DataPlan

    def update(self, batch: Any, progress: float) -> Update: ...  # Trajectory, Gradients or Transition, as `plan` asks

    def observe(self, unrolls: Trajectory) -> None: ...  # once per delivery, after its updates

    def parts(self) -> dict[str, Stateful]: ...
