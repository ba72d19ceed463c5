"""MADDPG: deterministic policies that see what their agent sees, critics that see everything."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import masked_mean
from rltrain.algorithms.functions.optim import Adam, flatten, step
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.multi_agent.global_state import GlobalState
from rltrain.algorithms.multi_agent.maddpg_policy import allowed
from rltrain.algorithms.multi_agent.settings import MADDPGConfig
from rltrain.algorithms.networks.batched_mlp import BatchedMLP
from rltrain.algorithms.off_policy.target_network import TargetNetwork, replay_plan
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory


class Critics(nn.Module):
    """Q_i(x, a_1 .. a_N) of each agent i, of the global state x and the actions of all agents.

    Agents of a group share a network. Its additional input is the number of the agent i in the group, as one-hot.

    Args:
        spec:      of several agents.
        config:    widths and activation.
        size:      K, numbers of the actions of all agents.
        generator: for the first weights.
    """

    def __init__(self, spec: EnvSpec, config: Any, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.seen = GlobalState(spec, generator)  # checkpoints have this name
        self.counts = [len(group.agents) for group in spec.groups]
        self.nets = nn.ModuleList()
        for number, count in enumerate(self.counts):
            ids = count if count > 1 else 0
            self.register_buffer(f"one_hot{number}", torch.eye(count)[:, :ids], persistent=False)
            self.nets.append(
                BatchedMLP(self.seen.features + size + ids, config.widths, 1, 1, config.activation, generator)
            )

    def forward(self, state: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """[..., S] states and [..., N, K], for each critic the actions of all agents, to values [..., N].

        With `frozen` only the actions get gradients.
        """
        agents = action.shape[-2]
        x = torch.cat([state.unsqueeze(-2).expand(*state.shape[:-1], agents, -1), action], -1)
        values = []
        for number, (net, part) in enumerate(zip(self.nets, torch.split(x, self.counts, -2), strict=True)):
            lead = part.shape[:-1]  # [..., n]
            inputs = torch.cat([self.get_buffer(f"one_hot{number}").expand(*lead, -1), part], -1)
            values.append(net(inputs.flatten(0, -2), frozen=frozen).view(lead))
        return torch.cat(values, -1)


class MADDPG:
    """Multi-agent DDPG, Lowe et al. 2017 (arXiv:1706.02275).

        L(theta_i) = (Q_i(x, a_1 .. a_N) - y_i)^2,    y_i = r_i + gamma Q'_i(x', a'_1 .. a'_N),  a'_j = mu'_j(o'_j)
        J(mu_i)    =  Q_i(x, a_1, .., mu_i(o_i), .., a_N)

    The other agents' actions in J are those of the batch, as in the authors' code. Discrete actions mu_i(o_i) in J are
    samples of the straight-through Gumbel softmax (Jang et al. 2017, arXiv:1611.01144), so that critics see one-hot
    actions only; in the target they are the best legal actions of the target policies.

    Deviations: agents with equal spaces share networks, unless `--share none`. All critics take a step, then all
    policies, then all targets. The actions of absent agents are zeros in the critics' input, and their rows are masked
    in the losses. A time limit is not a death: the last observation of a truncated agent is bootstrapped from.
    """

    observes = False

    def __init__(self, spec: EnvSpec, config: MADDPGConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = replay_plan(config)
        self.policy = build_policy(spec, config, device, seed, streams)
        sizes = [size for count, size in self.policy.shapes for _ in range(count)]  # of each agent's action
        agents = torch.arange(len(sizes), device=device)
        self.owner = agents.repeat_interleave(torch.tensor(sizes, device=device))  # [K] the agent of each number
        self.own = self.owner == agents[:, None]  # [N, K] the numbers of each agent
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = Critics(spec, config, len(self.owner), generator).to(device)
        flat, critic_flat = flatten(self.policy), flatten(self.critics)
        self.optimizer = Adam(flat, eps=config.adam_eps)
        self.critic_optimizer = Adam(critic_flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.policy.actors, flat)
        self.critic_target = TargetNetwork(self.critics, critic_flat)
        self.rng = Rng(seed)
        self.sync: GradientSync = SINGLE

    def update(self, batch: Trajectory, progress: float) -> Update:
        """One step of the critics, then of the policies; then both targets follow."""
        config = self.config
        self.policy.schedule(progress)
        valid, limit = self.valid(batch), config.max_grad_norm
        loss_q, q_mean = self.critic_loss(batch)
        metrics = {"loss_q": loss_q.detach(), "q_mean": q_mean}
        norm = step(self.critic_optimizer, loss_q, config.lr_q or config.lr, limit, self.sync, valid, metrics)
        loss_policy = self.policy_loss(batch, self.noise(batch))
        policy_metrics = {"loss_policy": loss_policy.detach()}
        step(self.optimizer, loss_policy, config.lr, limit, self.sync, valid, policy_metrics)
        self.target.follow(config.tau)
        self.critic_target.follow(config.tau)
        return Update({**metrics, **policy_metrics, "grad_norm": norm})

    def critic_loss(self, batch: Trajectory) -> tuple[Tensor, Tensor]:
        """The mean squared error [] of the critics at rows [T, B], and the mean of their values."""
        target, valid = self.targets(batch), self.valid(batch)
        action = (
            self.batch_actions(batch).unsqueeze(-2).expand(*target.shape, -1)
        )  # [T, B, N, K], equal for all critics
        q = self.critics.forward(self.critics.seen(batch)[:-1], action)  # [T, B, N]
        return masked_mean((q - target).square(), valid), masked_mean(q.detach(), valid)

    @torch.no_grad()
    def targets(self, batch: Trajectory) -> Tensor:
        """y [T, B, N]; without Q' for agents that terminated.

        Agents present at t+1 act in x'. For the critic of a truncated agent, all agents truncated in this step act too.
        """
        assert batch.alive is not None
        alive, after = batch.alive[1:], slice(1, None)
        bootstraps = (alive | batch.truncated) & ~batch.terminated  # [T, B, N]
        acts = torch.where(alive.unsqueeze(-1), alive.unsqueeze(-2), bootstraps.unsqueeze(-2))  # [T, B, N, N] j for i
        obs, action_mask = tree_map(lambda x: x[after], (batch.obs, batch.action_mask))
        actions = []
        for actor, legal in zip(self.target.module, self.policy.split(action_mask), strict=True):
            x = actor(obs)
            actions.append((_hard(allowed(x, legal)) if self.policy.discrete else torch.tanh(x)).flatten(-2))
        action = torch.cat(actions, -1).unsqueeze(-2) * acts[..., self.owner]  # [T, B, N, K]
        critics = self.critic_target.module
        value = critics(critics.seen(batch)[after], action).masked_fill(~bootstraps, 0.0)
        target: Tensor = batch.reward + self.config.gamma * value
        return target

    def policy_loss(self, batch: Trajectory, noise: Tensor) -> Tensor:
        """[] minus the mean of Q_i at each agent's own new action, plus a penalty on the size of its logits.

        Args:
            noise: [T, B, K] standard Gumbel, for Discrete actions.
        """
        policy, config = self.policy, self.config
        obs, action_mask = tree_map(lambda x: x[:-1], (batch.obs, batch.action_mask))
        actions, sizes = [], []
        for actor, legal, drawn in zip(policy.actors, policy.split(action_mask), policy.split(noise), strict=True):
            x = actor(obs)  # [T, B, n, a]
            new = straight_through(x, drawn, legal, config.gumbel) if policy.discrete else torch.tanh(x)
            actions.append(new.flatten(-2))
            sizes.append((x if legal is None else x.masked_fill(~legal, 0.0)).square().mean(-1))
        own, others = torch.cat(actions, -1).unsqueeze(-2), self.batch_actions(batch).unsqueeze(-2)  # [T, B, 1, K]
        with torch.no_grad():
            state = self.critics.seen(batch)[:-1]
        q = self.critics.forward(state, torch.where(self.own, own, others), frozen=True)  # [T, B, N]
        return masked_mean(config.regularize * torch.cat(sizes, -1) - q, self.valid(batch))

    def batch_actions(self, batch: Trajectory) -> Tensor:
        """[T, B, K] the actions of the batch as critics see them: one-hot or Box; zeros for absent agents."""
        shapes = self.policy.shapes
        assert batch.alive is not None
        action: Tensor = batch.action.flatten(2)
        if self.policy.discrete:
            parts = torch.split(action, [count for count, _ in shapes], -1)
            one_hot = [F.one_hot(x, size).flatten(-2) for x, (_, size) in zip(parts, shapes, strict=True)]
            action = torch.cat(one_hot, -1)
        result: Tensor = action * batch.alive[:-1][..., self.owner].to(batch.reward.dtype)
        return result

    def valid(self, batch: Trajectory) -> Tensor:
        """[T, B, N] where an agent acted."""
        assert batch.alive is not None
        valid: Tensor = batch.valid.unsqueeze(-1) & batch.alive[:-1]
        return valid

    def noise(self, batch: Trajectory) -> Tensor:
        """[T, B, K] standard Gumbel."""
        shape = *batch.reward.shape[:2], len(self.owner)
        drawn = self.rng.gumbel(*shape) if self.policy.discrete else torch.zeros(shape)
        return drawn.to(batch.reward.device)

    def observe(self, unrolls: Trajectory) -> None:
        """No running statistics."""

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
    """[..., a] one-hot samples of the legal choices, with the gradient of their softmax.

    Args:
        logits:      [..., a]  carry the gradient.
        noise:       [..., a]  standard Gumbel.
        temperature: of the softmax; it has no influence on the sample.
    """
    soft = torch.softmax(allowed((logits + noise) / temperature, legal), -1)
    return _hard(soft.detach()) + (soft - soft.detach())  # in this order it is exactly 0 or 1


def _hard(score: Tensor) -> Tensor:
    """[..., a] one-hot at the largest score."""
    return F.one_hot(score.argmax(-1), score.shape[-1]).to(score.dtype)
