"""The network and the policy of DQN: action values, and epsilon-greedy or noisy exploration."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.functions.optim import linear
from rltrain.algorithms.networks.distributions import Categorical
from rltrain.algorithms.networks.encoder import Encoder
from rltrain.algorithms.networks.memory import MemoryEncoder, make_encoder
from rltrain.algorithms.networks.mlp import MLP
from rltrain.algorithms.networks.noisy import NoisyMLP, squashed
from rltrain.algorithms.networks.normalize import NormalizedPolicy
from rltrain.algorithms.protocol import Act, Noise
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree, leaves

SPREAD = 7.0  # alpha of Ape-X: range of the exponents of the streams' epsilons


class QNetwork(nn.Module):
    """Values Q(o, a) of n actions, or their distributions over `atoms` returns (C51, Bellemare et al. 2017).

    Dueling (Wang et al. 2016): value and advantages have a last hidden layer each, and Q = V + A - mean(A) over all n
    actions, legal or not; C51 computes this on logits, as Rainbow does.

    Args:
        spec:      an environment with discrete actions.
        config:    a `DQNConfig`.
        generator: for the initial weights.
    """

    support: Tensor  # [atoms] the returns that distributions are over

    def __init__(self, spec: EnvSpec, config: Any, generator: torch.Generator) -> None:
        super().__init__()
        (self.actions,), self.atoms, self.noisy = spec.action.nvec, config.atoms, config.noisy
        kind: Any = NoisyMLP if config.noisy else partial(MLP, init=config.init)
        layers = partial(kind, activation=config.activation, generator=generator)
        self.encoder = make_encoder(spec, config, generator, acts=True)
        features, widths = self.encoder.features, config.widths
        self.trunk: MLP | NoisyMLP | None = None
        self.value: MLP | NoisyMLP | None = None
        if config.dueling:
            if len(widths) > 1:
                self.trunk = layers(features, widths[:-1])
                features = self.trunk.features
            widths = widths[-1:]
            self.value = layers(features, widths, self.atoms)
        self.advantage = layers(features, widths, self.actions * self.atoms)
        if self.atoms > 1:
            self.register_buffer("support", torch.linspace(config.v_min, config.v_max, self.atoms))

    def forward(self, obs: Tree, noisy: bool | Tensor = True) -> Tensor:
        """tree of [B, *O], normalised, to [B, n] values, or to [B, n, atoms] logits; with memory obs is a `History`.

        Args:
            noisy: as for `NoisyMLP`; as a tensor it is [B, sum of noise_sizes].
        """
        return self.values(self.encoder.forward(obs), noisy)

    def values(self, x: Tensor, noisy: bool | Tensor = True) -> Tensor:
        """As `forward`, from the encoder's features [B, F]."""
        parts = torch.split(noisy, self.noise_sizes, -1) if isinstance(noisy, Tensor) else [noisy] * 3
        trunk, advantage, values = parts
        if self.trunk is not None:
            x = _apply(self.trunk, x, trunk)
        out = _apply(self.advantage, x, advantage)
        if self.atoms > 1:
            out = out.view(*out.shape[:-1], self.actions, self.atoms)
        if self.value is None:
            return out
        value = _apply(self.value, x, values)  # [B, 1] or [B, atoms]
        if self.atoms > 1:
            return value.unsqueeze(-2) + out - out.mean(-2, keepdim=True)
        return value + out - out.mean(-1, keepdim=True)

    def expected(self, out: Tensor) -> Tensor:
        """[B, n] values, from the result of `forward`."""
        return out if self.atoms == 1 else torch.softmax(out, -1) @ self.support

    @property
    def noise_sizes(self) -> list[int]:
        """Numbers of the noise of trunk, advantages and value."""
        layers = (self.trunk, self.advantage, self.value)
        return [sum(part.sizes) if isinstance(part, NoisyMLP) else 0 for part in layers]

    def draw(self, generator: torch.Generator) -> None:
        """Draw new noise for all noisy layers."""
        for layers in (self.trunk, self.value, self.advantage):
            if isinstance(layers, NoisyMLP):
                layers.draw(generator)


def _apply(layers: MLP | NoisyMLP, x: Tensor, noisy: bool | Tensor) -> Tensor:
    return layers.forward(x, noisy) if isinstance(layers, NoisyMLP) else layers.forward(x)


class QPolicy(NormalizedPolicy):
    """Chooses the legal action of highest value. Exploration: a uniform legal one with probability epsilon, or noise.

    Epsilon and the statistics of observations are buffers, so actors receive them with the weights.

    Args:
        spec:      the environment.
        config:    a `DQNConfig`.
        streams:   number of streams, which may have an epsilon each.
        generator: for the initial weights.

    Raises:
        ValueError: the actions are not Discrete.
    """

    epsilon: Tensor  # [1], or [streams]

    def __init__(self, spec: EnvSpec, config: Any, streams: int, generator: torch.Generator) -> None:
        super().__init__(spec, config)
        if spec.action.kind != "discrete":
            raise ValueError(
                f"this algorithm needs Discrete actions; {spec.id} has {spec.action.kind} actions. "
                "Use ppo, or for Box actions sac, td3 or ddpg"
            )
        self.net = QNetwork(spec, config, generator)
        self.each = config.epsilon_per_stream and not config.noisy
        self.row_noise = config.noisy and config.noise_per_stream
        if self.row_noise:
            self.noise = Noise("normal", sum(self.net.noise_sizes))
        else:
            self.noise = Noise("uniform", 0 if config.noisy else 1 + self.net.actions, stream=self.each)
        self.register_buffer("epsilon", torch.empty(streams if self.each else 1))
        self.explore(0.0)

    def explore(self, progress: float) -> float:
        """Set epsilon for `progress`, the completed share of the run, and return that of stream 0, the largest.

        With `epsilon_per_stream`, stream i of N has epsilon^(1 + 7 i / (N - 1)), as in Ape-X (Horgan et al. 2018).
        """
        config = self.config
        epsilon = linear(config.epsilon, config.epsilon_end, progress / config.epsilon_share)
        if self.each:
            power = 1 + SPREAD * torch.arange(len(self.epsilon)) / max(len(self.epsilon) - 1, 1)
            self.epsilon.copy_(epsilon**power)
        else:
            self.epsilon.fill_(epsilon)
        return epsilon

    def set_active_rows(self, rows: int | None) -> None:
        """See `PolicyHooks`."""
        encoder: Any = self.net.encoder
        if isinstance(encoder, MemoryEncoder):
            encoder = encoder.encoder
        if isinstance(encoder, Encoder):
            encoder.set_active_rows(rows)

    def greedy_network(self) -> tuple[MLP, None] | None:
        """See `PolicyHooks`."""
        net = self.net
        between = (self.normalizer, net.trunk, net.value)
        plain = isinstance(net.encoder, Encoder) and net.encoder.plain and type(self) is QPolicy
        if (
            not plain
            or not isinstance(net.advantage, MLP)
            or net.atoms > 1
            or any(part is not None for part in between)
        ):
            return None
        return net.advantage, None

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """One decision for B streams.

        Args:
            noise: [B, 1 + n], uniform: the decision to explore, and a score per action. Of noisy layers [B, N], normal.
        """
        score, core = self.step(obs, core, explore, noise)  # [B, n]
        if explore and not self.net.noisy:
            score = torch.where(noise[:, :1] < self._epsilon(noise), noise[:, 1 : 1 + self.net.actions], score)
        return Act(greedy(score, action_mask), {}, core)

    def _epsilon(self, noise: Tensor) -> Tensor:
        """[1], or [B, 1] of each row's stream, whose index is the last column of noise."""
        epsilon = self.epsilon
        return epsilon[noise[:, -1].long().clamp(0, len(epsilon) - 1)].unsqueeze(-1) if self.each else epsilon

    def action_distribution(
        self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor
    ) -> Categorical | None:
        """See `PolicyHooks`; None with noisy layers."""
        if self.net.noisy:
            return None
        return epsilon_greedy(self.step(obs, core, False, None)[0], action_mask, self._epsilon(noise))

    def state_value(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor) -> Tensor:
        """See `PolicyHooks`: the mean value of the actions, each with the probability that epsilon-greedy gives it."""
        q = self.step(obs, core, False, None)[0]
        return (epsilon_greedy(q, action_mask, self._epsilon(noise)).log_probs.exp() * q).sum(-1)

    def score(self, obs: Tree, explore: bool, noise: Tensor | None = None) -> Tensor:
        """[B, n] the values that `act` maximises with an empty memory; noise of noisy layers [B, N] is 1 by default."""
        rows = len(leaves(obs)[0])
        if noise is None and explore and self.row_noise:
            noise = torch.ones(rows, self.noise.width, device=self.epsilon.device)
        core = torch.zeros(rows, self.core_size, device=self.epsilon.device) if self.core_size else None
        return self.step(obs, core, explore, noise)[0]

    def step(self, obs: Tree, core: Tensor | None, explore: bool, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, n] the values that `act` maximises, and the next core."""
        noisy = squashed(noise) if explore and self.row_noise and noise is not None else explore
        net, obs = self.net, self.normalised(obs)
        encoder: Any = net.encoder
        features, core = (encoder.forward(obs), None) if core is None else encoder.step(obs, core)
        return net.expected(net.values(features, noisy)), core

    def q(self, obs: Tree, noisy: bool | Tensor = False) -> Tensor:
        """[B, n] values of the actions at obs, a tree of [B, *O], or with memory a `History`."""
        return self.net.expected(self.net.forward(self.normalised(obs), noisy))

    def value(self, obs: Tree) -> Tensor:
        """[B] the highest value over all actions."""
        return self.q(obs).amax(-1)


def epsilon_greedy(score: Tensor, action_mask: Tensor | None, epsilon: Tensor) -> Categorical:
    """The legal action of highest score [..., n], and with probability epsilon [..., 1] a uniform legal one."""
    legal = torch.ones_like(score) if action_mask is None else action_mask.expand_as(score).to(score.dtype)
    uniform = legal / legal.sum(-1, keepdim=True).clamp(min=1)
    best = F.one_hot(greedy(score, action_mask), score.shape[-1])
    return Categorical(torch.log(epsilon * uniform + (1 - epsilon) * best))


def greedy(score: Tensor, action_mask: Tensor | None) -> Tensor:
    """[B] int64, the legal action of highest score [B, n]; 0 if none is legal, as after the end of an episode."""
    if action_mask is not None:
        score = score.masked_fill(~action_mask, -torch.inf)
    return score.argmax(-1)
