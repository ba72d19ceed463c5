"""The whole of a policy as one module: from observations of the environment to its actions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rltrain.algorithms.functions.losses import gather_action
from rltrain.algorithms.multi_agent.independent import JointPolicy
from rltrain.algorithms.multi_agent.maddpg_policy import MADDPGPolicy
from rltrain.algorithms.multi_agent.q_policy import MultiAgentQPolicy
from rltrain.algorithms.networks.distributions import Categorical
from rltrain.algorithms.off_policy.continuous_policy import SoftCategorical, SquashedGaussian, StateDependentGaussian
from rltrain.algorithms.off_policy.q_policy import QPolicy
from rltrain.algorithms.on_policy.actor_critic import ActorCritic
from rltrain.deployment.export.interface import Interface
from rltrain.envs.multi_agent.joint_spaces import joint_dtype
from rltrain.envs.spec import ActionSpec, EnvSpec
from rltrain.rollout.buffers import WIDTH
from rltrain.rollout.tree import Tree, unflatten
from rltrain.rollout.types import Act

DTYPES = {
    name: getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
}


class DeployedPolicy(nn.Module):
    """Preprocessing, policy, memory, sampling and action scaling; see `Interface` for inputs and outputs.

    Args:
        policy: in eval mode; its statistics are constants from here on.
        pad:    compute rows in batches of a multiple of 16, as training does: then a row has the same bits in every
                batch, and those of `Trained.act`.
        scores: return the scores too.
    """

    def __init__(self, policy: Any, spec: EnvSpec, pad: bool = True, scores: bool = True) -> None:
        super().__init__()
        self.policy, self.spec, self.pad = policy, spec, pad
        found = interface_of(policy, spec)
        self.interface = found if scores else replace(found, scores=None)
        self._inputs = self.interface.inputs
        self._starts = [
            None if not leaf.start else torch.tensor(leaf.start).reshape(leaf.shape) for leaf in spec.leaves()
        ]
        self._to_environment = ToEnvironment(spec)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in the order of `Interface.outputs`, for inputs in the order of `Interface.inputs`."""
        spec, policy, rows = self.spec, self.policy, inputs[0].shape[0]
        if self.pad:  # with copies of the last row
            width = (rows + WIDTH - 1) // WIDTH * WIDTH
            inputs = tuple(x.index_select(0, torch.arange(width).clamp(max=rows - 1)) for x in inputs)
        given = {port.name: x for port, x in zip(self._inputs, inputs, strict=True)}
        flat = [x if start is None else x - start for x, start in zip(inputs, self._starts, strict=False)]
        obs, mask, core, sample = (
            unflatten(spec.obs, flat),
            given.get("action_mask"),
            given.get("core"),
            given["sample"],
        )
        if core is not None:
            core = torch.where(given["first"].unsqueeze(-1), torch.zeros_like(core), core)
        noise = given["noise"] if "noise" in given else torch.zeros(sample.shape[0], 0)
        if policy.noise.stream:  # the number of the stream: 0, that of the largest epsilon
            noise = torch.cat([noise, torch.zeros(sample.shape[0], 1)], -1)
        greedy, sampled, none_sampled = self._decide(obs, core, mask, noise, sample)
        joint = torch.where(_like(sample, sampled.action), sampled.action, greedy.action)
        outputs = list(self._to_environment(joint))
        if core is not None:
            assert sampled.core is not None
            assert greedy.core is not None
            after = torch.where(sample.unsqueeze(-1), sampled.core, greedy.core)
            if spec.groups:
                present = given["present"]
                after = (after.view(*present.shape, -1) * present.unsqueeze(-1)).view_as(after)
            outputs.append(after)
        if none_sampled:
            outputs += [torch.zeros(sample.shape[0], *spec.agents_shape)] * self.interface.log_prob
        elif self.interface.log_prob or self.interface.scores is not None:
            log_prob, scores = _density(policy, obs, core, mask, noise, sampled, greedy)
            if self.interface.log_prob and log_prob is not None:
                outputs.append(torch.where(_like(sample, log_prob), log_prob, torch.zeros_like(log_prob)))
            if self.interface.scores is not None and scores is not None:
                outputs.append(scores)
        return tuple(x.index_select(0, torch.arange(rows)) if self.pad else x for x in outputs)

    def _decide(
        self, obs: Tree, core: Tensor | None, mask: Tensor | None, noise: Tensor, sample: Tensor
    ) -> tuple[Act, Act, bool]:
        """The greedy and the sampled decisions, and whether no row is sampled.

        An exported graph and scores need both; else those that no row asks for are not computed.
        """
        act, both = self.policy.act, _traced() or self.interface.scores is not None
        some = both or bool(sample.any())
        if some and (both or not bool(sample.all()) or self.interface.log_prob):
            return act(obs, core, mask, noise, False), act(obs, core, mask, noise, True), False
        one = act(obs, core, mask, noise, some)
        return one, one, not some


def _traced() -> bool:
    return torch.compiler.is_compiling() or bool(torch._C._is_tracing())


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """[B] to [B, 1, ...] with as many axes as x."""
    return rows.reshape(-1, *(1,) * (x.ndim - 1))


def interface_of(policy: Any, spec: EnvSpec) -> Interface:
    """The inputs and outputs of this policy."""
    scores: tuple[int, ...] | None = None
    one = policy.policies[0] if isinstance(policy, JointPolicy) else policy  # of one agent
    probable = isinstance(one, ActorCritic | SquashedGaussian | StateDependentGaussian | SoftCategorical)
    if isinstance(policy, QPolicy):
        scores = (spec.action.mask_size,)
    elif isinstance(policy, MultiAgentQPolicy):
        scores = (policy.net.agents, policy.net.actions)
    elif isinstance(policy, MADDPGPolicy) and policy.discrete:
        scores = (spec.action.mask_size,)
    elif isinstance(one, ActorCritic | SoftCategorical) and spec.action.kind != "box":
        scores = (spec.action.mask_size if spec.action.kind != "multi_binary" else spec.action.size,)
    probable |= isinstance(policy, MultiAgentQPolicy)
    probable |= isinstance(policy, QPolicy) and not policy.net.noisy
    probable |= isinstance(policy, MADDPGPolicy) and policy.discrete
    return Interface(spec, policy.noise, policy.core_size, probable, scores)


def _density(
    policy: Any, obs: Tree, core: Tensor | None, mask: Tensor | None, noise: Tensor, sampled: Act, greedy: Act
) -> tuple[Tensor | None, Tensor | None]:
    """The log probability of the sampled actions [B], or [B, N] of several agents, and the scores [B, ...]."""
    if isinstance(policy, ActorCritic):
        log_prob = policy.summarize_unroll(sampled.extras, sampled.action, mask)["log_prob"]
        return log_prob, sampled.extras["head"]
    if isinstance(policy, JointPolicy) and not isinstance(policy.policies[0], ActorCritic):
        return _density_of_groups(policy, obs, core, mask, sampled)
    if isinstance(policy, JointPolicy):
        added = {name: x.unsqueeze(0) for name, x in sampled.extras.items()}
        joint_mask = None if mask is None else mask.unsqueeze(0)
        summary = policy.summarize_unroll(added, sampled.action.unsqueeze(0), joint_mask)
        prefixes = [policy.prefix(number) for number in range(len(policy.views))]
        heads = [sampled.extras[f"{prefix}head"].flatten(1) for prefix in prefixes]
        return torch.cat([summary[f"{prefix}log_prob"][0] for prefix in prefixes], -1), torch.cat(heads, -1)
    if isinstance(policy, SquashedGaussian | StateDependentGaussian):
        head, _ = policy.actor.step(policy.normalised(obs), core)
        if isinstance(policy, StateDependentGaussian):
            head = policy.activate(head)
        return policy._distribution(head).log_prob(sampled.action), None
    if isinstance(policy, SoftCategorical):
        logits, _ = policy.actor.step(policy.normalised(obs), core)
        return gather_action(Categorical(logits, mask).log_probs, sampled.action), logits  # nll_loss is not exported
    if isinstance(policy, QPolicy):
        score, _ = policy.step(obs, core, False, None)
        return _epsilon_greedy(policy.epsilon[:1], score, mask, sampled.action, greedy.action), score
    if isinstance(policy, MultiAgentQPolicy):
        memory, last = core, None
        if policy.config.last_action and core is not None:
            memory, last = policy.last_actions.split(core)
        score, _ = policy.net.step(obs, memory, last)
        legal = policy.net.legal(mask)
        return _epsilon_greedy(policy.epsilon, score, legal, sampled.action, greedy.action), score
    assert isinstance(policy, MADDPGPolicy)
    logits = policy.score(obs)
    parts = zip(policy.split(logits), policy.split(mask), torch.split(sampled.action, _agents(policy), -1), strict=True)
    return torch.cat([Categorical(x, m).log_probs.gather(-1, a.unsqueeze(-1)).squeeze(-1) for x, m, a in parts
                      if x is not None], -1), logits  # fmt: skip


def _density_of_groups(
    policy: JointPolicy, obs: Tree, core: Tensor | None, mask: Tensor | None, sampled: Act
) -> tuple[Tensor | None, Tensor | None]:
    """As `_density`, from the policy of one agent of each group, which records nothing when it acts."""
    log_probs, scores = [], []
    for number, (view, one) in enumerate(zip(policy.views, policy.policies, strict=True)):

        def own(x: Tensor, columns: slice, agents: int = view.count) -> Tensor:  # [B, ...] to [B * n, ...]
            flat = x.flatten(1)[:, columns]
            return flat.reshape(-1, flat.shape[1] // agents)

        action = own(sampled.action, view.part.action).reshape(-1, *view.group.action.shape)
        act = Act(action, {}, None)
        own_core = None if core is None else own(core, policy.cores[number])
        own_mask = None if mask is None else own(mask, view.part.mask)
        log_prob, score = _density(one, view.obs(obs, 0), own_core, own_mask, action, act, act)
        assert log_prob is not None
        log_probs.append(log_prob.reshape(-1, view.count))
        if score is not None:
            scores.append(score.reshape(-1, view.count * score.shape[-1]))
    return torch.cat(log_probs, -1), torch.cat(scores, -1) if scores else None


def _agents(policy: MADDPGPolicy) -> list[int]:
    return [n for n, _ in policy.shapes]


def _epsilon_greedy(epsilon: Tensor, score: Tensor, legal: Tensor | None, action: Tensor, greedy: Tensor) -> Tensor:
    """[...] log probability: epsilon / number of legal actions, plus 1 - epsilon for the action of highest value."""
    count = torch.full_like(score[..., 0], score.shape[-1]) if legal is None else legal.sum(-1).to(score.dtype)
    return torch.log(epsilon / count + (1 - epsilon) * (action == greedy))


class ToEnvironment(nn.Module):
    """A policy's actions [B, *A] as those of the environment: the numbers of `rltrain.envs.spaces.action_reader`."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.spec, self.action = spec, spec.action
        action = spec.action
        if action.kind != "box":
            self.start = torch.tensor(action.start).reshape(action.shape) if action.start else None
            return
        dtype = np.dtype(joint_dtype(action) if spec.groups else action.takes)
        low, high = (np.array(bound, np.float64).reshape(action.shape) for bound in (action.low, action.high))
        with np.errstate(over="ignore", invalid="ignore"):
            fits = bool((np.maximum(abs(low), abs(high)) < np.finfo(np.float32).max / 4).all())
        self.single = dtype == np.float32 and fits
        if self.single:
            low32, high32 = low.astype(np.float32), high.astype(np.float32)
            self.unit = bool((low32 == -1).all() and (high32 == 1).all())
            half, middle = (high32 - low32) / 2, (high32 + low32) / 2
            self.scale, self.offset, self.low, self.high = (_tensor(x) for x in (half, middle, low32, high32))
        else:
            below, above = np.isfinite(low), np.isfinite(high)
            least, most = np.where(below, -1.0, -np.inf), np.where(above, 1.0, np.inf)
            with np.errstate(invalid="ignore"):
                half = np.where(below & above, high / 2 - low / 2, 1.0)
                one_sided = np.where(below, low + 1, np.where(above, high - 1, 0.0))
                middle = np.where(below & above, high / 2 + low / 2, one_sided)
            self.least, self.most, self.scale, self.offset = (_tensor(x) for x in (least, most, half, middle))
            self.cast = Caster(action, dtype.name)
        self.casts = [Caster(group.action, group.action.takes) for group in spec.groups]

    def forward(self, joint: Tensor) -> list[Tensor]:
        """[B, *A], or for each group [B, n, *A]"""
        numbers = self.numbers(joint)
        if self.action.kind == "box" and not self.single:
            numbers = self.cast(numbers)
        if not self.spec.groups:
            return [numbers]
        parts, flat = [], numbers.reshape(numbers.shape[0], -1)
        for i, part in enumerate(self.spec.layout.groups):
            own = flat[:, part.action].reshape(-1, part.count, *part.group.action.shape)
            parts.append(self.casts[i](own) if self.action.kind == "box" else own)
        return parts

    def numbers(self, joint: Tensor) -> Tensor:
        """[B, *A] in the environment's units, before they become whole numbers if it wants those."""
        if self.action.kind != "box":
            return joint if self.start is None else joint + self.start
        if self.single:
            x = joint.clamp(-1.0, 1.0)
            return x if self.unit else torch.minimum(torch.maximum(x * self.scale + self.offset, self.low), self.high)
        return torch.minimum(torch.maximum(joint.double(), self.least), self.most) * self.scale + self.offset


class Caster(nn.Module):
    """Numbers [..., *A] of a Box as numbers of `dtype` within its bounds: `rltrain.envs.spaces.action_caster`."""

    def __init__(self, action: ActionSpec, dtype: str) -> None:
        super().__init__()
        kind = np.dtype(dtype)
        self.whole = kind.kind != "f"
        self.dtype = DTYPES.get(dtype, torch.int64)
        shape = action.shape
        if not self.whole:
            most = float(np.finfo(kind).max)
            bounds = [
                np.clip(np.array(bound, np.float64), -most, most).astype(kind) for bound in (action.low, action.high)
            ]
            self.low, self.high = (_tensor(bound.reshape(shape)) for bound in bounds)
            self.below, self.above = self.low.double(), self.high.double()
            return
        least, largest = (0, 1) if kind.kind == "b" else (int(np.iinfo(kind).min), int(np.iinfo(kind).max))
        largest = min(largest, 2**63 - 1)
        lows = [least if value == -math.inf else max(least, math.ceil(value)) for value in action.low]
        highs = [largest if value == math.inf else min(largest, math.floor(value)) for value in action.high]
        inside = 2.0**63 - 1024  # the largest float64 below 2^63
        self.low, self.high = (torch.tensor(bound, dtype=torch.int64).reshape(shape) for bound in (lows, highs))
        self.below, self.above = (
            torch.tensor([max(-inside, min(inside, float(value))) for value in bound], dtype=torch.float64)
            for bound in (lows, highs)
        )
        self.below, self.above = self.below.reshape(shape), self.above.reshape(shape)

    def forward(self, values: Tensor) -> Tensor:
        wide = torch.minimum(
            torch.maximum((torch.round(values) if self.whole else values).double(), self.below), self.above
        )
        if not self.whole:
            return torch.minimum(torch.maximum(wide.to(self.dtype), self.low), self.high)
        return torch.minimum(torch.maximum(wide.to(torch.int64), self.low), self.high).to(self.dtype)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))
