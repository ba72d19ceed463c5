"""The policy of the on-policy algorithms: actor and critic, for every space, with or without memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.networks.distributions import Distribution, distribution, head_size, noise_of
from rltrain.algorithms.networks.encoder import Encoder, load_torso
from rltrain.algorithms.networks.mlp import MLP, ActorPass
from rltrain.algorithms.networks.normalize import Normalizer, ReturnScale
from rltrain.algorithms.networks.recurrent import RecurrentCore, core_size
from rltrain.algorithms.networks.state_noise import StateDependentNoise
from rltrain.algorithms.on_policy.settings import A2CConfig, A3CConfig, APPOConfig, IMPALAConfig, PPOConfig
from rltrain.algorithms.protocol import Act, Noise, check_exploration
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree, tree_map
from rltrain.rollout.types import Trajectory

Config = PPOConfig | A2CConfig | IMPALAConfig | APPOConfig | A3CConfig


class ActorCritic(nn.Module):
    """A stochastic policy and a value function.

    Observations pass through an encoder (`Encoder`, or the user's torso), hidden layers, and with memory a GRU or an
    LSTM. Policy and value have encoder and hidden layers of their own, or share them; they always share the memory, and
    an encoder without parameters. Running statistics are buffers, so they are published with the weights.

    Args:
        spec:      the environment.
        config:    the settings of an on-policy algorithm.
        streams:   number of streams, for the statistics of returns.
        generator: draws the first weights.
        private:   key of a Dict observation that only the value gets; the value then has layers of its own, and with
                   `critic_memory` a memory of its own. Actors do not have this key: the learner runs that memory.

    Below, core is [N, core_size] for actors. For the learner of a critic with memory it has the critic's core behind
    that of the actor: see `with_critic_cores`.
    """

    critic_core: Tensor  # [streams, C] of a critic with memory, before the next row of each stream

    def __init__(
        self, spec: EnvSpec, config: Config, streams: int, generator: torch.Generator, private: str | None = None
    ) -> None:
        super().__init__()
        self.spec, self.private = spec, private
        self.noise = noise_of(spec.action)
        self.recurrent = config.memory != "none"
        self.core_size = core_size(config.memory, config.memory_size)
        self.sequence = config.sequence if self.recurrent else config.unroll
        self.normalizer = Normalizer(spec) if config.normalize_obs else None
        self.return_scale = ReturnScale(streams) if config.normalize_return else None
        self.clip_reward = config.clip_reward
        self.reward_limit: float | None = getattr(config, "reward_limit", None)
        self.encoder = load_torso(config.torso, _without(spec, private), generator)
        shared = self.recurrent or config.shared_torso
        learns = any(parameter.requires_grad for parameter in self.encoder.parameters())
        separate = private is not None or (learns and not shared)
        self.value_encoder = load_torso(config.torso, spec, generator) if separate else None
        mlp = partial(MLP, activation=config.activation, generator=generator)
        features, outputs = self.encoder.features, head_size(spec.action)
        self.trunk: MLP | None = None
        self.memory: RecurrentCore | None = None
        widths = config.widths
        if shared:
            self.trunk = mlp(features, widths)
            features, widths = self.trunk.features, ()
        if config.memory != "none":
            self.memory = RecurrentCore(features, config.memory_size, generator, config.memory)
            features = config.memory_size
        self.hidden: MLP | None = None
        self.state_noise: StateDependentNoise | None = None
        inputs, layers = features, widths
        check_exploration(spec, config.sde, config.squash)
        if config.sde:
            if widths:  # their output is what the noise depends on
                self.hidden = mlp(features, widths)
                inputs, layers = self.hidden.features, ()
            self.state_noise = StateDependentNoise(inputs, outputs, config.log_std_init)
            self.noise = Noise("normal", self.state_noise.size, hold=config.sde_every)
        self.squash = config.squash
        self.actor = mlp(inputs, layers, outputs, gain=0.01)
        self.value_trunk: MLP | None = None
        self.value_memory: RecurrentCore | None = None
        if private is not None and self.value_encoder is not None:
            features, widths = self.value_encoder.features, config.widths
            if config.memory != "none" and getattr(config, "critic_memory", False):
                self.value_trunk = mlp(features, widths)
                self.value_memory = RecurrentCore(
                    self.value_trunk.features, config.memory_size, generator, config.memory
                )
                features, widths = config.memory_size, ()
                self.register_buffer("critic_core", torch.zeros(streams, self.core_size))
        self.critic = mlp(features, widths, 1, gain=1.0)
        self.log_std: nn.Parameter | None = None
        if spec.action.kind == "box" and not config.sde:
            self.log_std = nn.Parameter(torch.full((outputs,), config.log_std_init))
        # `act` reports V(obs) to PPO if that costs one matrix product, because the layers are shared (and no user's).
        ours = type(self) is ActorCritic and isinstance(self.encoder, Encoder) and isinstance(config, PPOConfig)
        self.reports_value = ours and learns and shared and not self.recurrent and private is None

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """One decision for B streams: a sample, or the most likely action; see `summarize_unroll` for its log_prob."""
        x = self.features(obs)
        if self.memory is not None:
            assert core is not None
            core = self.memory.step(x, core)
            x = self.memory.output(core)
        h, head, log_std = self._head(x)
        dist = distribution(self.spec.action, head, action_mask, log_std, self.squash)
        if not explore:
            return Act(dist.mode(), {}, core)
        extras = {"head": head}
        if self.state_noise is not None and log_std is not None:
            extras["log_std"] = log_std
            noise = self.state_noise.normal(h, log_std, noise)
        if self.reports_value:
            extras["value"] = self.critic.row_wise(x)
        return Act(dist.sample(noise), extras, core)

    def _head(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """From the policy's features: what its noise depends on, the last layer's output, and the log deviation."""
        h = x if self.hidden is None else self.hidden.forward(x)
        log_std = self.log_std if self.state_noise is None else self.state_noise.log_std(h.detach())
        return h, self.actor.forward(h), log_std

    def set_active_rows(self, rows: int | None) -> None:
        """See `PolicyHooks`."""
        if isinstance(self.encoder, Encoder):
            self.encoder.set_active_rows(rows)

    def greedy_network(self) -> tuple[MLP, Callable[[Tensor], Tensor] | None] | None:
        """See `PolicyHooks`."""
        if not self._is_one_mlp() or self.normalizer is not None:
            return None
        action, log_std, squash = self.spec.action, self.log_std, self.squash
        if action.kind == "discrete":
            return self.actor, None
        return self.actor, lambda head: distribution(action, head, None, log_std, squash).mode().clone()

    def quick_act(self) -> Callable[[Tensor, Tensor], Act] | None:
        """See `PolicyHooks`."""
        if not self._is_one_mlp() or self.spec.action_mask:
            return None
        action, log_std, squash, normalise = self.spec.action, self.log_std, self.squash, self.normalizer
        head_of = ActorPass(self.actor.pairs, self.actor.hidden, self.actor.activation_name)

        def act_discrete(obs: Tensor, noise: Tensor) -> Act:
            head = head_of(obs if normalise is None else normalise.forward(obs))
            return Act((head + noise).argmax(-1), {"head": head}, None)

        def act(obs: Tensor, noise: Tensor) -> Act:
            head = head_of(obs if normalise is None else normalise.forward(obs))
            return Act(distribution(action, head, None, log_std, squash).sample(noise), {"head": head}, None)

        return act_discrete if action.kind == "discrete" else act

    def _is_one_mlp(self) -> bool:
        """Whether `act` passes a flat observation, perhaps normalised, through one MLP and nothing else."""
        others = (self.private, self.trunk, self.memory, self.hidden, self.state_noise)
        plain = isinstance(self.encoder, Encoder) and self.encoder.plain
        return plain and type(self) is ActorCritic and all(other is None for other in others)

    def summarize_unroll(
        self, extras: dict[str, Tensor], action: Tensor, action_mask: Tensor | None
    ) -> dict[str, Tensor]:
        """See `PolicyHooks`: log_prob [T, B], and the value if `act` computed it."""
        log_std = extras.get("log_std", self.log_std)
        dist = distribution(self.spec.action, extras["head"], action_mask, log_std, self.squash)
        return {"log_prob": dist.log_prob(action), **{name: extras[name] for name in extras if name == "value"}}

    def action_distribution(
        self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor
    ) -> Distribution | None:
        """See `PolicyHooks`."""
        if self.noise.hold > 1:  # steps share their noise
            return None
        x = self.features(obs)
        if self.memory is not None:
            assert core is not None
            x = self.memory.output(self.memory.step(x, core))
        _, head, log_std = self._head(x)
        return distribution(self.spec.action, head, action_mask, log_std, self.squash)

    def forward(
        self, obs: Tree, action_mask: Tensor | None = None, core: Tensor | None = None, first: Tensor | None = None
    ) -> tuple[Distribution, Tensor]:
        """The distributions over actions and the values, for obs with any leading dims.

        With memory obs is [L, N, *O], core [N, H] belongs to the first row, and is reset where first [L, N] is True.
        """
        if self.value_encoder is None:
            x = x_value = self.recall(obs, core, first)
        elif self.private is None:
            inputs = self.normalised(obs)
            x, x_value = self.encoder.forward(inputs), self.value_encoder.forward(inputs)
        else:
            x, x_value = self.recall(obs, core, first), self.recall_value(obs, core, first)
        _, head, log_std = self._head(x)
        dist = distribution(self.spec.action, head, action_mask, log_std, self.squash)
        return dist, self.critic.forward(x_value).squeeze(-1)

    def value(self, obs: Tree, core: Tensor | None = None, first: Tensor | None = None) -> Tensor:
        """V(obs) only; arguments as in `forward`."""
        x = self.recall(obs, core, first) if self.value_encoder is None else self.recall_value(obs, core, first)
        return self.critic.forward(x).squeeze(-1)

    def fast_layout(self, obs: Tree) -> Tree:
        """See `PolicyHooks`."""
        if self.private is not None or not isinstance(self.encoder, Encoder):
            return obs
        return self.encoder.fast_layout(obs)

    def scaled(self, reward: Tensor) -> Tensor:
        """[T, B] rewards in the unit of the value function: clipped to [-1, 1], then scaled, each if configured.

        Without the limit the first reward of a sparse task, in units of the small returns before it, would be so large
        that the gradient of its value leaves nothing of the policy's within `max_grad_norm`.
        """
        if self.clip_reward:
            reward = reward.clamp(-1.0, 1.0)
        if self.return_scale is None:
            return reward
        scaled, limit = reward * self.return_scale.scale(), self.reward_limit
        return scaled if limit is None else scaled.clamp(-limit, limit)

    def observe(self, unrolls: Trajectory, gamma: float) -> None:
        """Update the running statistics on a delivery: each observation that was acted on counts once."""
        if self.normalizer is not None:
            self.normalizer.update(tree_map(lambda x: x[:-1], unrolls.obs), unrolls.valid)
        if self.return_scale is not None:
            ended = unrolls.terminated | unrolls.truncated
            begins = unrolls.first[0]
            reward = unrolls.reward.clamp(-1.0, 1.0) if self.clip_reward else unrolls.reward
            span = unrolls.row, unrolls.rows if unrolls.num_rows is None else unrolls.num_rows
            self.return_scale.update(reward, ended, unrolls.valid, unrolls.stream, gamma, begins, span)

    def normalised(self, obs: Tree) -> Tree:
        """The observation as the encoders get it."""
        return obs if self.normalizer is None else self.normalizer.forward(obs)

    def features(self, obs: Tree) -> Tensor:
        """The input of the policy's head (or of the memory), and of the value's head if they share layers."""
        inputs = self.normalised(obs)
        if self.private is not None:
            inputs = {key: x for key, x in inputs.items() if key != self.private}
        x = self.encoder.forward(inputs)
        return x if self.trunk is None else self.trunk.forward(x)

    def recall(self, obs: Tree, core: Tensor | None, first: Tensor | None) -> Tensor:
        """Features; with memory, its outputs along the rows."""
        x = self.features(obs)
        if self.memory is None:
            return x
        assert core is not None
        assert first is not None
        return self.memory.unroll(x, core[..., : self.core_size], first, self.sequence)

    def recall_value(self, obs: Tree, core: Tensor | None, first: Tensor | None) -> Tensor:
        """Features of the value with layers of its own; with a memory of its own, the outputs along the rows."""
        assert self.value_encoder is not None
        x = self.value_encoder.forward(self.normalised(obs))
        if self.value_memory is None:
            return x
        assert self.value_trunk is not None
        assert core is not None
        assert first is not None
        return self.value_memory.unroll(self.value_trunk.forward(x), core[..., self.core_size :], first, self.sequence)

    @torch.no_grad()
    def with_critic_cores(self, unrolls: Trajectory, sync: GradientSync = SINGLE) -> Trajectory:
        """The unrolls with the cores of a critic with memory behind those of the actor, [T / L, B, core_size + C].

        The critic continues from its core after the previous unrolls, as the authors' critic does while it collects.
        """
        memory, trunk, encoder = self.value_memory, self.value_trunk, self.value_encoder
        if memory is None or trunk is None or encoder is None or unrolls.core is None:
            return unrolls
        rows, pieces = len(unrolls.reward), len(unrolls.core)
        x = trunk.forward(encoder.forward(self.normalised(tree_map(lambda leaf: leaf[:rows], unrolls.obs))))
        first, core, cores = unrolls.first[:rows, :, None], self.critic_core[unrolls.stream], list[Tensor]()
        for t in range(rows):
            core = core.masked_fill(first[t], 0.0)
            cores.append(core)
            core = memory.step(x[t], core)
        before = torch.stack(cores)[:: rows // pieces]  # [T / L, B, C]
        if unrolls.num_rows is not None:  # rows of padding follow
            core = torch.stack([*cores, core])[unrolls.num_rows, torch.arange(len(core), device=core.device)]
        sync.assign(self.critic_core, unrolls.stream, core)
        return replace(unrolls, core=torch.cat([unrolls.core, before], -1))


def evaluate_actions(policy: ActorCritic, unrolls: Trajectory) -> tuple[Distribution, Tensor, Tensor]:
    """The policy's distributions [T+1, B], log pi(a_t|o_t) [T, B] and V(o_t) [T+1, B], for whole unrolls."""
    core = None if unrolls.core is None else unrolls.core[0]  # [B, H] before row 0
    dist, value = policy.forward(unrolls.obs, unrolls.action_mask, core, unrolls.first)
    action = torch.cat([unrolls.action, unrolls.action[-1:]])  # [T+1, B, *A]; the last row has no action of its own
    return dist, dist.log_prob(action)[:-1], value


@torch.no_grad()
def reward_value(policy: ActorCritic, obs: Tree) -> Tensor:
    """[B] V(obs) of a policy without memory, in the unit of the environment's rewards."""
    value: Tensor = policy.value(obs)
    scale: ReturnScale | None = getattr(policy, "return_scale", None)  # a user's policy may have none
    return value if scale is None else value / scale.scale().to(value.dtype)


def _without(spec: EnvSpec, private: str | None) -> EnvSpec:
    """`spec` without the key `private` of its Dict observation."""
    if private is None:
        return spec
    if not isinstance(spec.obs, dict) or private not in spec.obs:
        raise ValueError(f"policy central is for several agents, as of mappo; {spec.id} tells no {private!r}")
    return replace(spec, obs={key: obs for key, obs in spec.obs.items() if key != private})


def central(spec: EnvSpec, config: Config, streams: int, generator: torch.Generator) -> ActorCritic:
    """The policy of MAPPO: the actor gets an agent's own observation, the critic also the global state."""
    return ActorCritic(spec, config, streams, generator, private="state")
