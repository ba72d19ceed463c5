"""Multi-agent deep deterministic policy gradient: critics that see all, actors that see what their agent does."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.functions.losses import masked_mean
from rltrain.algorithms.functions.optim import Adam, flatten, step
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.multi_agent.global_state import GlobalState
from rltrain.algorithms.multi_agent.maddpg_policy import allowed
from rltrain.algorithms.multi_agent.settings import MADDPGConfig
from rltrain.algorithms.networks.batched_mlp import BatchedMLP
from rltrain.algorithms.off_policy.target_network import TargetNetwork
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build, placed, policy_factory
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.tree import Tree, tree_map
from rltrain.rollout.types import Trajectory


class Critics(nn.Module):
    """Q_i(x, a_1 .. a_N) of each agent i, of the global state x and everybody's action.

    Agents of a group share a network, which then sees whose value is asked for, as one-hot.

    Args:
        spec:      of several agents.
        config:    widths and activation.
        numbers:   K, of all actions together.
        generator: for the first weights.
    """

    def __init__(self, spec: EnvSpec, config: Any, numbers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.seen = GlobalState(spec, generator)
        self.counts = [len(group.agents) for group in spec.groups]
        self.nets = nn.ModuleList()
        for number, count in enumerate(self.counts):
            ids = count if count > 1 else 0
            self.register_buffer(f"one_hot{number}", torch.eye(count)[:, :ids], persistent=False)
            inputs = self.seen.features + numbers + ids
            self.nets.append(BatchedMLP(inputs, config.widths, 1, 1, config.activation, generator))

    def forward(self, state: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """[..., S] and [..., N, K], for each agent what everybody does, to [..., N].

        With `frozen` only the actions get gradients.
        """
        agents = action.shape[-2]
        x = torch.cat([state.unsqueeze(-2).expand(*state.shape[:-1], agents, -1), action], -1)
        values = []
        for number, (net, part) in enumerate(zip(self.nets, torch.split(x, self.counts, -2), strict=True)):
            lead = part.shape[:-1]  # [..., n]
            ids = self.get_buffer(f"one_hot{number}")
            whole = torch.cat([ids.expand(*lead, -1), part], -1)
            values.append(net(whole.flatten(0, -2), frozen=frozen).view(lead))
        return torch.cat(values, -1)


class MADDPG:
    """Multi-agent DDPG, Lowe et al. 2017 (arXiv:1706.02275).

    Each agent has a critic of its own reward that is told the global state and all actions, and an actor that sees what
    the agent does. In the actor's step the agent's own action is made anew, with gradient, and the others' are those of
    the batch, as in the authors' code. Discrete actions are sampled there by the straight-through Gumbel softmax (Jang
    et al. 2017, arXiv:1611.01144): critics are only ever told one-hot actions. In the target everybody takes the target
    actors' best legal action.

    Deviations: agents with equal spaces share networks, unless `--share none`; all critics step, then all actors, then
    all targets. Who is not there does nothing (zeros) in what critics are told, and its rows do not count. A time limit
    is no death: an agent that ran out of time is bootstrapped from what it saw last.
    """

    observes = False

    def __init__(self, spec: EnvSpec, config: MADDPGConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = ReplayPlan(
            unroll=config.unroll,
            capacity=config.capacity,
            batch=config.batch,
            warmup=config.warmup,
            updates_per_step=config.updates_per_step,
            gamma=config.gamma,
            random_start=config.random_start,
            overlap=config.overlap,
            clip_reward=config.clip_reward,
        )
        self.policy = placed(build(policy_factory(config.policy), spec, config, streams, seed), device)
        owners = [a for n, a in self.policy.shapes for _ in range(n)]
        self.owner = torch.arange(len(owners)).repeat_interleave(torch.tensor(owners)).to(device)  # [K] whose number
        self.mine = self.owner == torch.arange(len(owners), device=device)[:, None]  # [N, K]
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = Critics(spec, config, len(self.owner), generator).to(device)
        flat, critic_flat = flatten(self.policy), flatten(self.critics)
        self.optimizer = Adam(flat, eps=config.adam_eps)
        self.critic_optimizer = Adam(critic_flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.policy.actors, flat)
        self.critic_target = TargetNetwork(self.critics, critic_flat)
        self.rng = Rng(seed)

    def update(self, batch: Trajectory, progress: float) -> Update:
        """One step of the critics, then of the actors; both targets follow."""
        config = self.config
        self.policy.schedule(progress)
        loss_q, q = self.critic_loss(batch)
        norm = step(self.critic_optimizer, loss_q, config.lr_q or config.lr, config.max_grad_norm)
        loss_policy = self.policy_loss(batch, self.noise(batch))
        step(self.optimizer, loss_policy, config.lr, config.max_grad_norm)
        self.target.follow(config.tau)
        self.critic_target.follow(config.tau)
        told: dict[str, Tensor | float] = {
            "loss_q": loss_q.detach(),
            "loss_policy": loss_policy.detach(),
            "q_mean": q,
            "grad_norm": norm,
        }
        return Update(told)

    def critic_loss(self, batch: Trajectory) -> tuple[Tensor, Tensor]:
        """The squared error [] of what critics say of rows [T, B], and the mean of what they say."""
        target, counts = self.targets(batch), self.counts(batch)
        action = self.taken(batch).unsqueeze(-2).expand(*target.shape, -1)  # [T, B, N, K], the same to all
        q = self.critics.forward(self.critics.seen(batch)[:-1], action)  # [T, B, N]
        return masked_mean((q - target).square(), counts), masked_mean(q.detach(), counts)

    @torch.no_grad()
    def targets(self, batch: Trajectory) -> Tensor:
        """[T, B, N] r_i + gamma Q'_i(x', a'_1 .. a'_N), and no Q' where agent i died.

        Those who are there at t+1 act in x'. To an agent whose clock ran out, whoever's clock did so too would go on.
        """
        assert batch.alive is not None
        there = batch.alive[1:]
        bootstraps = (there | batch.truncated) & ~batch.terminated  # [T, B, N], whose value counts
        acts = torch.where(there.unsqueeze(-1), there.unsqueeze(-2), bootstraps.unsqueeze(-2))  # [T, B, N, N] in i's, j
        best = self.best(tree_map(lambda x: x[1:], batch.obs), _cut(batch.action_mask, slice(1, None)))  # [T, B, K]
        critics = self.critic_target.module
        follow = critics(critics.seen(batch)[1:], best.unsqueeze(-2) * acts[..., self.owner])
        target: Tensor = batch.reward + self.config.gamma * follow.masked_fill(~bootstraps, 0.0)
        return target

    def policy_loss(self, batch: Trajectory, noise: Tensor) -> Tensor:
        """[] minus the mean of what critics say of each agent's own new action, and a weight on the logits' size.

        Args:
            noise: [T, B, K] standard Gumbel, for Discrete actions.
        """
        policy, config, counts = self.policy, self.config, self.counts(batch)
        obs, action_mask = tree_map(lambda x: x[:-1], batch.obs), _cut(batch.action_mask, slice(None, -1))
        new, size = [], []
        for actor, legal, drawn in zip(policy.actors, policy.split(action_mask), policy.split(noise), strict=True):
            x = actor(obs)  # [T, B, n, a]
            chosen = straight_through(x, drawn, legal, config.gumbel) if policy.discrete else torch.tanh(x)
            new.append(chosen.flatten(-2))
            size.append((x if legal is None else x.masked_fill(~legal, 0.0)).square().mean(-1))
        own, others = torch.cat(new, -1).unsqueeze(-2), self.taken(batch).unsqueeze(-2)  # [T, B, 1, K]
        with torch.no_grad():
            state = self.critics.seen(batch)[:-1]
        q = self.critics.forward(state, torch.where(self.mine, own, others), frozen=True)  # [T, B, N]
        return masked_mean(config.regularize * torch.cat(size, -1) - q, counts)

    def taken(self, batch: Trajectory) -> Tensor:
        """[T, B, K] the actions of the batch as critics see them: one-hot, or as they are; 0 of who was not there."""
        policy = self.policy
        assert batch.alive is not None
        action: Tensor = batch.action.flatten(2)
        if policy.discrete:
            each = torch.split(action, [n for n, _ in policy.shapes], -1)
            action = torch.cat([F.one_hot(x, a).flatten(-2) for x, (_, a) in zip(each, policy.shapes, strict=True)], -1)
        found: Tensor = action * batch.alive[:-1][..., self.owner].to(batch.reward.dtype)
        return found

    def best(self, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """[..., K] what the target actors would do at obs {group: tree of [..., n, *O]}."""
        policy, found = self.policy, []
        for actor, legal in zip(self.target.module, policy.split(action_mask), strict=True):
            x = actor(obs)
            found.append((_hard(allowed(x, legal)) if policy.discrete else torch.tanh(x)).flatten(-2))
        return torch.cat(found, -1)

    def counts(self, batch: Trajectory) -> Tensor:
        """[T, B, N] whether an agent really acted."""
        assert batch.alive is not None
        found: Tensor = batch.valid.unsqueeze(-1) & batch.alive[:-1]
        return found

    def noise(self, batch: Trajectory) -> Tensor:
        """[T, B, K] standard Gumbel."""
        drawn = torch.zeros(*batch.reward.shape[:2], len(self.owner))
        if self.policy.discrete:
            drawn.exponential_(generator=self.rng.generator)
            drawn.clamp_(min=torch.finfo(drawn.dtype).tiny).log_().neg_()
        return drawn.to(batch.reward.device)

    def observe(self, unrolls: Trajectory) -> None:
        """There are no running statistics."""

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold."""
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "critics": self.critics,
            "critic_optimizer": self.critic_optimizer,
            "target": self.target,
            "critic_target": self.critic_target,
            "rng": self.rng,
        }


def straight_through(logits: Tensor, noise: Tensor, legal: Tensor | None, temperature: float) -> Tensor:
    """[..., a] a one-hot sample of a choice among the legal ones, with the gradient of its softmax.

    Args:
        logits:      [..., a]  carry the gradient.
        noise:       [..., a]  standard Gumbel.
        temperature: of the softmax; the sample does not hang on it.
    """
    soft = torch.softmax(allowed((logits + noise) / temperature, legal), -1)
    return _hard(soft.detach()) + (soft - soft.detach())  # in this order it is exactly 0 or 1


def _hard(score: Tensor) -> Tensor:
    """[..., a] one-hot at the largest."""
    return F.one_hot(score.argmax(-1), score.shape[-1]).to(score.dtype)


def _cut(action_mask: Tensor | None, rows: slice) -> Tensor | None:
    return None if action_mask is None else action_mask[rows]
