"""Policies of SAC, TD3 and DDPG: squashed Gaussian, categorical, and deterministic with exploration noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rltrain.algorithms.functions.optim import linear
from rltrain.algorithms.networks.batched_mlp import EncoderMLP
from rltrain.algorithms.networks.distributions import Categorical, TanhGaussian
from rltrain.algorithms.networks.mlp import MLP
from rltrain.algorithms.networks.normalize import NormalizedPolicy
from rltrain.algorithms.networks.normalized_mlp import Norm
from rltrain.algorithms.networks.state_noise import StateDependentNoise
from rltrain.algorithms.protocol import Act, Noise, check_bounded, check_exploration
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree, leaves

LOG_STD = (-20.0, 2.0)  # the authors' bounds of the log standard deviation
MEAN = 2.0  # largest mean before tanh, with gSDE


class SquashedGaussian(NormalizedPolicy):
    """Box actions: tanh of a Gaussian with mean and log_std from the network; without exploration tanh(mean)."""

    def __init__(self, spec: EnvSpec, config: Any, streams: int, generator: torch.Generator) -> None:
        super().__init__(spec, config)
        check_bounded(spec)
        self.size = math.prod(spec.action.shape)
        self.noise = Noise("normal", self.size)
        norm: Norm = getattr(config, "policy_norm", "none")  # CrossQ's is batch normalisation
        self.actor = EncoderMLP(spec, config, 0, 2 * self.size, 1, generator, norm=norm, acts=True)

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """One decision for B streams, from noise [B, A]."""
        head, core = self.actor.step(self.normalised(obs), core)
        dist = self._distribution(head)
        return Act(dist.sample(noise) if explore else dist.mode(), {}, core)

    def action_distribution(
        self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor
    ) -> TanhGaussian:
        """See `PolicyHooks`."""
        return self._distribution(self.actor.step(self.normalised(obs), core)[0])

    def sample(self, obs: Tree, noise: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Actions [B, *A] and their log densities [B] at normalised obs, from noise [B, A]; both with gradients.

        Args:
            noise:   or [K, B, A] for K actions in each row: [K, B, *A] and [K, B].
            options: of the network; CrossQ's have `batch_statistics`.
        """
        head = self.actor.forward(obs, **options)[0]
        if noise.ndim > 2:
            head = head.expand(len(noise), *head.shape)
        return self._distribution(head).sample_with_log_prob(noise)

    def _distribution(self, head: Tensor) -> TanhGaussian:
        mean, log_std = head.chunk(2, -1)
        return TanhGaussian(mean, log_std.clamp(*LOG_STD), self.spec.action.shape)


class StateDependentGaussian(NormalizedPolicy):
    """`SquashedGaussian` with gSDE: the deviation, and the noise that is held, depend on the last hidden layer.

    As in Stable-Baselines3's SAC, gradients pass through these features, and the mean before tanh is within +-2. In
    updates each action has noise of its own, with the same distribution.
    """

    def __init__(self, spec: EnvSpec, config: Any, streams: int, generator: torch.Generator) -> None:
        super().__init__(spec, config)
        check_bounded(spec)
        if not config.widths:
            raise ValueError("sde needs a hidden layer, whose units its noise depends on: widths must not be empty")
        *widths, last = config.widths
        self.size = math.prod(spec.action.shape)
        self.actor = EncoderMLP(spec, config, 0, last, 1, generator, widths, acts=True)  # the last hidden layer
        self.head = MLP(last, (), self.size, generator=generator, init="uniform")
        self.state_noise = StateDependentNoise(last, self.size, config.log_std_init)
        self.activate = {"tanh": torch.tanh, "relu": torch.relu}[config.activation]
        self.noise = Noise("normal", self.state_noise.size, hold=config.sde_every)

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """One decision for B streams, from noise [B, F * A]."""
        h, core = self.actor.step(self.normalised(obs), core)
        h = self.activate(h)
        dist = self._distribution(h)
        return Act(dist.sample(self.state_noise.normal(h, dist.log_std, noise)) if explore else dist.mode(), {}, core)

    def action_distribution(
        self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor
    ) -> TanhGaussian | None:
        """See `PolicyHooks`."""
        if self.noise.hold > 1:  # steps share their noise
            return None
        return self._distribution(self.activate(self.actor.step(self.normalised(obs), core)[0]))

    def sample(self, obs: Tree, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [B, *A] and their log densities [B] at normalised obs, from noise [B, A]; both with gradients."""
        return self._distribution(self.activate(self.actor.forward(obs)[0])).sample_with_log_prob(noise)

    def _distribution(self, h: Tensor) -> TanhGaussian:
        mean = self.head.forward(h).clamp(-MEAN, MEAN)
        return TanhGaussian(mean, self.state_noise.log_std(h), self.spec.action.shape)


class SoftCategorical(NormalizedPolicy):
    """Discrete actions: a sample of the softmax over the legal actions; without exploration the most likely one."""

    def __init__(self, spec: EnvSpec, config: Any, streams: int, generator: torch.Generator) -> None:
        super().__init__(spec, config)
        (actions,) = spec.action.nvec
        self.noise = Noise("gumbel", actions)
        self.actor = EncoderMLP(spec, config, 0, actions, 1, generator, acts=True)

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """One decision for B streams, from noise [B, n]."""
        logits, core = self.actor.step(self.normalised(obs), core)
        dist = Categorical(logits, action_mask)
        return Act(dist.sample(noise) if explore else dist.mode(), {}, core)

    def action_distribution(
        self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor
    ) -> Categorical:
        """See `PolicyHooks`."""
        return Categorical(self.actor.step(self.normalised(obs), core)[0], action_mask)

    def score(self, obs: Tree, explore: bool) -> Tensor:
        """[B, n] logits of the actions, with an empty memory."""
        core = torch.zeros(len(leaves(obs)[0]), self.core_size) if self.core_size else None
        return self.actor.step(self.normalised(obs), core)[0]

    def distribution(self, obs: Tree, action_mask: Tensor | None) -> Categorical:
        """The distribution over actions at normalised obs, with gradients."""
        return Categorical(self.actor.forward(obs)[0], action_mask)


def soft(
    spec: EnvSpec, config: Any, streams: int, generator: torch.Generator
) -> SquashedGaussian | StateDependentGaussian | SoftCategorical:
    """The policy of SAC for the action space; ValueError with one line if there is none."""
    sde = getattr(config, "sde", False)
    check_exploration(spec, sde)
    if spec.action.kind == "box":
        if sde:
            return StateDependentGaussian(spec, config, streams, generator)
        return SquashedGaussian(spec, config, streams, generator)
    if spec.action.kind == "discrete":
        return SoftCategorical(spec, config, streams, generator)
    raise ValueError(
        f"this algorithm needs Box or Discrete actions; {spec.id} has {spec.action.kind} actions. Use ppo or a2c"
    )


def require_box(spec: EnvSpec) -> None:
    """ValueError with one line if the actions are not Box."""
    if spec.action.kind != "box":
        raise ValueError(
            f"this algorithm needs Box actions; {spec.id} has {spec.action.kind} actions. "
            "Use ppo, or for Discrete actions dqn or sac"
        )


class Deterministic(NormalizedPolicy):
    """Box actions: tanh of the network's output, plus noise of standard deviation `sigma` during exploration.

    The noise is independent in each step, or Ornstein-Uhlenbeck: x' = (1 - theta) x + sigma * normal. Its state x is
    the `core` of the stream, 0 at the start of an episode. The sum is clipped to [-1, 1], and the clipped action is
    what the replay stores.
    """

    sigma: Tensor  # [] a buffer, so that actors receive it with the weights

    def __init__(self, spec: EnvSpec, config: Any, streams: int, generator: torch.Generator) -> None:
        super().__init__(spec, config)
        require_box(spec)
        check_bounded(spec)
        self.size = math.prod(spec.action.shape)
        self.noise = Noise("normal", self.size)
        self.decay = 1.0 - config.ou_theta
        self.correlated = config.noise_kind == "ou"
        if self.correlated:
            self.core_size = self.size
        self.actor = EncoderMLP(spec, config, 0, self.size, 1, generator, acts=True)
        self.register_buffer("sigma", torch.tensor(config.noise))

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """One decision for B streams, from noise [B, A]."""
        out, memory = self.actor.step(self.normalised(obs), None if self.correlated else core)
        action, core = torch.tanh(out), core if self.correlated else memory  # [B, A]
        if explore:
            noise = noise * self.sigma
            if self.correlated and core is not None:
                noise = core = core * self.decay + noise
            action = (action + noise).clamp(-1.0, 1.0)
        return Act(action.reshape(-1, *self.spec.action.shape), {}, core)

    def schedule(self, progress: float) -> None:
        """Set sigma for `progress`, the completed share of the run."""
        self.sigma.fill_(linear(self.config.noise, self.config.noise_end, progress))


def deterministic(actor: EncoderMLP, obs: Tree) -> Tensor:
    """[B, A] the actions of a deterministic policy's network, or of its target network, at normalised obs."""
    return torch.tanh(actor.forward(obs).squeeze(0))
