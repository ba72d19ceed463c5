"""Q-learning of a team, with a mixer between the agents' values and the team's: QMIX, VDN, and none for IQL."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.functions.losses import gather_action, masked_mean
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.multi_agent.mixers import Each, Monotonic, Sum
from rltrain.algorithms.multi_agent.settings import IQLConfig, QMIXConfig, VDNConfig
from rltrain.algorithms.multi_agent.turns import up_to_next_turn, whose_value
from rltrain.algorithms.off_policy.q_policy import greedy
from rltrain.algorithms.off_policy.target_network import TargetNetwork
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build, placed, policy_factory
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory


class MixedQ:
    """One step down the error of the team's value, Rashid et al. 2018, equation 6, with double Q-learning.

    The team's reward is the sum of its agents'. An agent that is not there counts as 0 in the mixer. A time limit is no
    death: what an agent that ran out of time last saw is bootstrapped from, and only a death's value is 0. Agents with
    memory learn from whole episodes, over which they remember from nothing.

    Where agents act in turns, only turns are learnt from. The team's value is that of who acts, the others count as 0;
    without a mixer an agent learns from all that it gets up to its next turn, which must lie in the same sequence.

    Args:
        mixer: see `rltrain.algorithms.multi_agent.mixers`.
    """

    observes = False

    def __init__(self, spec: EnvSpec, config: Any, device: torch.device, seed: int, streams: int, mixer: Any) -> None:
        self.config, self.remembers = config, config.memory != "none"
        self.plan = ReplayPlan(
            unroll=config.unroll,
            capacity=config.capacity,
            batch=config.batch,
            warmup=config.warmup,
            updates_per_step=config.updates_per_step,
            gamma=config.gamma,
            length=max(config.length, 2 * len(spec.agents)) if spec.turns and not mixer.joint else config.length,
            whole_episodes=self.remembers or config.last_action,
            random_start=config.random_start,
            overlap=config.overlap,
            clip_reward=config.clip_reward,
        )
        self.policy = placed(build(policy_factory(config.policy), spec, config, streams, seed), device)
        self.mixer = mixer.to(device)
        self.learned = nn.ModuleDict({"net": self.policy.net, "mixer": self.mixer})
        flat = flatten(self.learned)
        self.target = TargetNetwork(self.learned, flat)
        self.optimizer = Adam(flat, eps=config.adam_eps)

    def update(self, batch: Trajectory, progress: float) -> Update:
        """One step on one sample of the replay; the target networks then follow."""
        config = self.config
        lr = linear(config.lr, config.lr_end, progress)
        epsilon = self.policy.explore(progress)
        loss, q = self.loss(batch)
        norm = step(self.optimizer, loss, lr, config.max_grad_norm)
        if config.tau is not None:
            self.target.follow(config.tau)
        elif self.optimizer.steps % config.target_every == 0:
            self.target.follow(1.0)
        return Update({"loss_q": loss.detach(), "q_mean": q, "grad_norm": norm, "lr": lr, "epsilon": epsilon})

    def loss(self, batch: Trajectory) -> tuple[Tensor, Tensor]:
        """The loss [] of sequences [T, B], and the mean of the values that it is of."""
        assert batch.alive is not None
        mixer, seen = self.mixer, self.seen(batch)
        q, after = self.values(seen)
        acts = batch.alive[:-1] if batch.acting is None else batch.alive[:-1] & batch.acting[:-1]  # [T, B, N]
        mine = gather_action(q, batch.action).masked_fill(~acts, 0.0)  # [T, B, N]
        value = mixer(mine, _cut(mixer.state(batch), slice(None, -1)))  # [T, B], or [T, B, N] where nothing is mixed
        target, known = self.targets(batch, after, seen)
        valid = batch.valid if mixer.joint else batch.valid.unsqueeze(-1) & acts & known
        error = value - target
        if self.config.loss == "squared":
            each = error.square()
        else:
            each = F.huber_loss(error, torch.zeros_like(error), reduction="none")
        return masked_mean(each, valid), masked_mean(value.detach(), valid)

    def values(self, seen: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
        """[T, B, N, A] of the observations that are acted on, with gradients, and of the next ones, without.

        Who has no memory needs not look at the last one to learn from the others, and without double Q-learning nobody.
        """
        net = self.policy.net
        if self.remembers:
            q = net(*seen)  # [T+1, B, N, A]
            return q[:-1], q.detach()[1:]
        q = net(*rows(seen, slice(None, -1)))
        if not self.config.double:
            return q, None
        with torch.no_grad():
            last = net(*rows(seen, slice(-1, None)))
        return q, torch.cat([q.detach()[1:], last])

    @torch.no_grad()
    def targets(self, batch: Trajectory, q: Tensor | None, seen: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """What the value should become, [T, B] or [T, B, N], and whether that is known.

        Args:
            q:    [T, B, N, A] the online network's values of the next observations; None without double Q-learning.
            seen: what networks are given.
        """
        assert batch.alive is not None
        net, mixer = self.target.module["net"], self.target.module["mixer"]
        after = slice(1, None)
        # [T, B, N, A], from a memory of the target network's own
        judged = net(*seen)[after] if self.remembers else net(*rows(seen, after))
        legal = self.policy.net.legal(None if batch.action_mask is None else batch.action_mask[1:])
        best = greedy(judged if q is None else q, legal)  # [T, B, N]
        bootstraps = (batch.alive[1:] | batch.truncated) & ~batch.terminated  # [T, B, N], whose value counts
        follow, gamma = gather_action(judged, best).masked_fill(~bootstraps, 0.0), self.config.gamma
        if mixer.joint:
            if batch.acting is not None:
                follow = follow * whose_value(batch)
            follow = mixer(follow, _cut(mixer.state(batch), after))  # [T, B]
            return batch.reward.sum(-1) + gamma * bootstraps.any(-1) * follow, batch.valid
        if batch.acting is not None:
            return up_to_next_turn(batch, follow, gamma)
        return batch.reward + gamma * follow, torch.ones_like(bootstraps)

    def seen(self, batch: Trajectory) -> tuple[Any, ...]:
        """What the agents' networks are given: observations, where memory begins, and what was done before each."""
        begins = fresh(batch)
        return (batch.obs, begins, before(batch, begins)) if self.config.last_action else (batch.obs, begins)

    def observe(self, unrolls: Trajectory) -> None:
        """There are no running statistics."""

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold; the optimiser's count of steps also times the target's copies."""
        return {
            "policy": self.policy,
            "mixer": self.mixer,
            "target": self.target,
            "optimizer": self.optimizer,
        }


def qmix(spec: EnvSpec, config: QMIXConfig, device: torch.device, seed: int, streams: int) -> MixedQ:
    """QMIX, Rashid et al. 2018 (arXiv:1803.11485): the team's value grows with each agent's, as the state says."""
    generator = torch.Generator().manual_seed(seed + 1)  # apart from the policy's, which actors draw too
    mixer = Monotonic(spec, config.mixer_width, config.hyper_width, generator, config.init)
    return MixedQ(spec, config, device, seed, streams, mixer)


def vdn(spec: EnvSpec, config: VDNConfig, device: torch.device, seed: int, streams: int) -> MixedQ:
    """VDN, Sunehag et al. 2018 (arXiv:1706.05296): the team's value is the sum of the agents'."""
    return MixedQ(spec, config, device, seed, streams, Sum())


def iql(spec: EnvSpec, config: IQLConfig, device: torch.device, seed: int, streams: int) -> MixedQ:
    """Independent Q-learning (Tan 1993): each agent learns from its own reward, the others are its environment."""
    return MixedQ(spec, config, device, seed, streams, Each())


def fresh(unrolls: Trajectory) -> Tensor:
    """[T+1, B, N] bool, where an agent's memory begins: the episode does, or it was not there in the row before."""
    assert unrolls.alive is not None
    found: Tensor = unrolls.first.unsqueeze(-1).expand_as(unrolls.alive).clone()
    found[1:] |= ~unrolls.alive[:-1]
    return found


def rows(seen: tuple[Any, ...], which: slice) -> tuple[Any, ...]:
    """Some rows of what networks are given."""
    found: tuple[Any, ...] = tree_map(lambda x: x[which], seen)
    return found


def before(unrolls: Trajectory, fresh: Tensor) -> Tensor:
    """[T+1, B, N] 1 + what each agent did in the row before, 0 where its memory begins: as `Carried` has it."""
    found = torch.zeros_like(fresh, dtype=unrolls.action.dtype)
    found[1:] = unrolls.action + 1
    return found.masked_fill_(fresh, 0)


def _cut(state: Tensor | None, rows: slice) -> Tensor | None:
    return None if state is None else state[rows]
