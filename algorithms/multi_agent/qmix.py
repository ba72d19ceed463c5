"""Q-learning of a team: QMIX and VDN, which mix the agents' values, and independent Q-learning (IQL)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import gather_action, masked_mean
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.q_losses import td_loss
from rltrain.algorithms.multi_agent.mixers import Each, Monotonic, Sum
from rltrain.algorithms.multi_agent.q_policy import network_inputs, online_values, values
from rltrain.algorithms.multi_agent.settings import IQLConfig, QMIXConfig, VDNConfig
from rltrain.algorithms.multi_agent.turns import agent_targets, bootstrap_weights
from rltrain.algorithms.off_policy.q_policy import greedy
from rltrain.algorithms.off_policy.target_network import TargetNetwork, replay_plan
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.types import Trajectory


class Loss(NamedTuple):
    """The loss of a batch, and what it is a mean over."""

    loss: Tensor  # []
    q_mean: Tensor  # []  mean of Q_tot over the same rows
    valid: Tensor  # [T, B], or [T, B, N] without mixing: bool, the rows that count


class MixedQ:
    """QMIX, Rashid et al. 2018 (arXiv:1803.11485), equation 6, with double Q-learning; VDN and IQL differ in the mixer.

        L(theta) = mean (y_tot - Q_tot(tau, u, s; theta))^2
        y_tot = r + gamma Q_tot(tau', u', s'; theta'),    u'_a = argmax_u Q_a(tau'_a, u; theta)

    The reward of the team is the sum over its agents. The value of an absent agent is 0 in the mixer. A time limit is
    not a death: the last observation of a truncated agent is bootstrapped from; the value of a terminated agent is 0.
    Agents with memory learn from whole episodes, from an empty memory on. If agents act in turns, only the values of
    acting agents are learnt; without a mixer, see `agent_targets`.
    """

    observes = False

    def __init__(self, spec: EnvSpec, config: Any, device: torch.device, seed: int, streams: int, mixer: Any) -> None:
        self.config, self.recurrent = config, config.memory != "none"
        length = max(config.length, 2 * len(spec.agents)) if spec.turns and not mixer.joint else config.length
        self.plan = replay_plan(config, length=length, whole_episodes=self.recurrent or config.last_action)
        self.policy = build_policy(spec, config, device, seed, streams)
        self.mixer = mixer.to(device)
        self.learned = nn.ModuleDict({"net": self.policy.net, "mixer": self.mixer})
        flat = flatten(self.learned)
        self.target = TargetNetwork(self.learned, flat)
        self.optimizer = Adam(flat, eps=config.adam_eps)
        self.sync: GradientSync = SINGLE

    def update(self, batch: Trajectory, progress: float) -> Update:
        """One gradient step on a sample of the replay; then the target networks follow."""
        config = self.config
        lr, epsilon = linear(config.lr, config.lr_end, progress), self.policy.explore(progress)
        loss, q_mean, valid = self.loss(batch)
        metrics = {"loss_q": loss.detach(), "q_mean": q_mean}
        norm = step(self.optimizer, loss, lr, config.max_grad_norm, self.sync, valid, metrics)
        self.target.follow_on_schedule(config.tau, config.target_every, self.optimizer.steps)
        return Update({**metrics, "grad_norm": norm, "lr": lr, "epsilon": epsilon})

    def loss(self, batch: Trajectory) -> Loss:
        """The loss of sequences [T, B]."""
        assert batch.alive is not None
        mixer, inputs = self.mixer, network_inputs(batch, self.config.last_action)
        q, next_q = online_values(self.policy.net, inputs, self.recurrent, self.config.double)
        acts = batch.alive[:-1] if batch.acting is None else batch.alive[:-1] & batch.acting[:-1]  # [T, B, N]
        chosen = gather_action(q, batch.action).masked_fill(~acts, 0.0)  # [T, B, N]
        q_tot = mixer(chosen, mixer.state(batch, slice(None, -1)))  # [T, B], or [T, B, N] without mixing
        target, known = self.targets(batch, inputs, next_q)
        valid = batch.valid if mixer.joint else batch.valid.unsqueeze(-1) & acts & known
        return Loss(td_loss(q_tot, target, valid, self.config.loss), masked_mean(q_tot.detach(), valid), valid)

    @torch.no_grad()
    def targets(self, batch: Trajectory, inputs: tuple[Any, ...], next_q: Tensor | None) -> tuple[Tensor, Tensor]:
        """y_tot [T, B], or [T, B, N] without mixing, and whether each is known.

        Args:
            inputs: of the agents' networks.
            next_q: [T, B, N, A] values by the online network of the next observations; None without double Q-learning.
        """
        assert batch.alive is not None
        net, mixer, gamma = self.target.module["net"], self.target.module["mixer"], self.config.gamma
        after = slice(1, None)
        target_q = values(net, inputs, self.recurrent, after)  # [T, B, N, A]
        legal = self.policy.net.legal(None if batch.action_mask is None else batch.action_mask[after])
        best = greedy(target_q if next_q is None else next_q, legal)  # [T, B, N]
        bootstraps = (batch.alive[after] | batch.truncated) & ~batch.terminated  # [T, B, N]
        value = gather_action(target_q, best).masked_fill(~bootstraps, 0.0)
        if not mixer.joint:
            return agent_targets(batch, value, gamma)
        next_tot = mixer(value * bootstrap_weights(batch), mixer.state(batch, after))  # [T, B]
        return batch.reward.sum(-1) + gamma * bootstraps.any(-1) * next_tot, batch.valid

    def observe(self, unrolls: Trajectory) -> None:
        """No running statistics."""

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold; the optimiser's count of steps also times the target's copies."""
        return {"policy": self.policy, "mixer": self.mixer, "target": self.target, "optimizer": self.optimizer}


def qmix(spec: EnvSpec, config: QMIXConfig, device: torch.device, seed: int, streams: int) -> MixedQ:
    """QMIX, Rashid et al. 2018 (arXiv:1803.11485): Q_tot is a monotonic function of the agents' values."""
    mixer = Monotonic(spec, config.mixer_width, config.hyper_width, seed + 1, config.init)  # the policy uses seed
    return MixedQ(spec, config, device, seed, streams, mixer)


def vdn(spec: EnvSpec, config: VDNConfig, device: torch.device, seed: int, streams: int) -> MixedQ:
    """VDN, Sunehag et al. 2018 (arXiv:1706.05296): Q_tot is the sum of the agents' values."""
    return MixedQ(spec, config, device, seed, streams, Sum())


def iql(spec: EnvSpec, config: IQLConfig, device: torch.device, seed: int, streams: int) -> MixedQ:
    """Independent Q-learning (Tan 1993): each agent learns from its own reward; others are part of its environment."""
    return MixedQ(spec, config, device, seed, streams, Each())
