"""What the platform expects of an algorithm: a structural type, nothing to inherit from. For a policy see `Policy`.

A policy acts (`Policy`, with optional methods: `PolicyHooks`). Learners need more of it, each algorithm something else.
All: `observe`, which updates running statistics, once per delivery: after its updates, for the first delivery before
them. All parameters of a policy are trained by one optimiser.

    ppo, mappo, a2c, appo, impala, a3c
                    `forward`, `value`, `scaled` and `observe(unrolls, gamma)` of `ActorCritic`
    all others      `normalised(obs)`, the observation as every network gets it, `observe(unrolls)`, and with those obs
    dqn, rainbow    `net`: a `QNetwork` with all the policy's parameters; `explore(progress)`, called before each
                    update, returns the epsilon to log
    (with `memory`, obs of dqn and sac is a `History`, and the replay keeps each `core` of the policy)
    sac, tqc, crossq, droq, redq with Box actions
                    `sample(obs, noise [B, A]) -> (action [B, *A] in [-1, 1], log density [B])`, both with gradients
    sac, droq, redq with Discrete actions
                    `distribution(obs, action_mask)`: a `Categorical` with gradients
    td3, ddpg       `actor`: an `EncoderMLP` of one net with all the policy's parameters, whose tanh is the action;
                    `size`, the number of its outputs; `schedule(progress)`, called before each update
    qmix, vdn, iql  `net`: `net(obs, fresh [T, B, N])` returns values [T, B, N, A] (with `last_action` it also gets last
                    actions [T, B, N]), `net.legal(action_mask)` the legal ones; `explore(progress)`
    maddpg          `actors`: a ModuleList with one network per group, with all the policy's parameters, each from
                    {group: [..., n, *O]} to [..., n, a]; `discrete`, `shapes`, `split(joint)`, `schedule(progress)`

Target networks are copies of `net`, `actor` and `actors`, so these must survive `copy.deepcopy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import DataPlan
from rltrain.rollout.tree import Tree, leaves
from rltrain.rollout.types import Act, Noise, Policy, PolicyHooks, hooks_of

__all__ = [
    "Act",
    "Algorithm",
    "MultiMember",
    "Noise",
    "Policy",
    "PolicyHooks",
    "Stateful",
    "Update",
    "check_bounded",
    "check_exploration",
    "gives_values",
    "has_members",
    "hooks_of",
    "members_of",
    "modules_of",
    "observes",
    "shares_updates",
    "state_values",
]


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

    Three attributes are optional: `observes`, False if `observe` has nothing to do, so that it is not called; `sync`, a
    `GradientSync` that the algorithm gives to `step` and `normalised`, so that several learners can share an update;
    and a method `state_value(obs, action_mask)`: [B] values of observations [B, *O], not normalised, for the policy
    that explores, in the unit of the environment's rewards. Recordings store these as `value`, in place of those that
    the policy returns (`PolicyHooks.state_value`). It is called in eval mode, without gradients.
    """

    policy: Any  # a Policy with the methods that this algorithm needs: see above
    plan: DataPlan

    def update(self, batch: Any, progress: float) -> Update: ...  # Trajectory, Gradients or Transition: see `plan`

    def observe(self, unrolls: Any) -> None: ...  # a Trajectory, or a list of Gradients; once per delivery

    def parts(self) -> dict[str, Stateful]: ...


class MultiMember(Algorithm, Protocol):
    """An algorithm that consists of others, its members, each of which learns from its own part of a batch.

    `update(batch)` is `update_members(member_batches(batch))`. Several learners cut each of these batches.
    """

    @property
    def members(self) -> list[Any]: ...

    def member_batches(self, batch: Any) -> list[Any]: ...

    def update_members(self, batches: Sequence[Any], progress: float) -> Update: ...


def observes(algorithm: Algorithm) -> bool:
    """Whether `observe` of the algorithm has something to do; True if it does not say."""
    return bool(getattr(algorithm, "observes", True))


def has_members(algorithm: Algorithm) -> TypeGuard[MultiMember]:
    """Whether the algorithm consists of others."""
    return hasattr(algorithm, "update_members")


def members_of(algorithm: Algorithm) -> list[Any]:
    """The algorithms that make the updates: the members, or the algorithm itself."""
    return algorithm.members if has_members(algorithm) else [algorithm]


def shares_updates(algorithm: Algorithm) -> bool:
    """Whether several learners can share an update of the algorithm: whether it, or each member, has a `sync`."""
    return all(hasattr(one, "sync") for one in members_of(algorithm))


def gives_values(algorithm: Any) -> bool:
    """Whether an algorithm, or a class of them, has the method `state_value`."""
    return hasattr(algorithm if isinstance(algorithm, type) else type(algorithm), "state_value")


def state_values(algorithm: Any, obs: Tree, action_mask: Tensor | None) -> Tensor:
    """[B] the result of the algorithm's `state_value`, in eval mode and without gradients.

    A user's torso may draw random numbers or change its buffers; nothing of that remains.

    Raises:
        ValueError: it is not one number for each observation.
    """
    modules = [module for part in modules_of(algorithm) for module in part.modules()]
    training = [module for module in modules if module.training]
    found = [(module._buffers, name, buffer) for module in modules for name, buffer in module._buffers.items()]
    kept = [None if buffer is None else buffer.clone() for *_, buffer in found]
    rows = len(leaves(obs)[0])
    try:
        for module in training:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            values: Tensor = algorithm.state_value(obs, action_mask)
    finally:
        for module in training:
            module.training = True
        for (owner, name, buffer), before in zip(found, kept, strict=True):
            if buffer is not None and before is not None:
                buffer.copy_(before)
            owner[name] = buffer
    if tuple(values.shape) != (rows,):
        shape, name = tuple(values.shape), type(algorithm).__name__
        raise ValueError(f"state_value of {name} must return one value for each observation, ({rows},); got {shape}")
    return values.detach().float()


def check_exploration(spec: EnvSpec, sde: bool, squash: bool = False) -> None:
    """ValueError with one line if the settings `sde` or `squash` are on and the actions do not suit them."""
    if (sde or squash) and spec.action.kind != "box":
        name = "sde" if sde else "squash"
        raise ValueError(f"{name} is for Box actions; {spec.id} has {spec.action.kind} actions. Turn {name} off")
    if squash and spec.action.unbounded:
        raise ValueError(
            f"squash keeps actions between bounds, and actions of {spec.id} have none. Set them, for example "
            "--action-bound 1.0 for -1.0 to 1.0, or turn squash off"
        )


def check_bounded(spec: EnvSpec) -> None:
    """ValueError with one line if a Box action lacks a bound, for algorithms whose actions are a tanh or clipped."""
    if spec.action.unbounded:
        raise ValueError(
            f"this algorithm chooses actions between bounds, and actions of {spec.id} have none. Set them, for example "
            "--action-bound 1.0 for -1.0 to 1.0, or use ppo, a2c or impala"
        )


def modules_of(algorithm: Algorithm) -> list[nn.Module]:
    """The policy, other networks and target networks of an algorithm."""
    parts = [
        part if isinstance(part, nn.Module) else getattr(part, "module", None) for part in algorithm.parts().values()
    ]
    return [part for part in parts if isinstance(part, nn.Module)]
