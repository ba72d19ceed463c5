"""V-trace written out as equation 1 of Espeholt et al. 2018, and whole updates that are made of it.

Sums of products, one stream and one row at a time. They read the flags of the environment, not `discount` and `trace`,
so that a mistake in those shows too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from oracles.targets import _episode_end, td_error
from oracles.updates import Params, Reference, entropy_of, outputs
from torch import Tensor
from torch.distributions import kl_divergence

from rltrain.rollout.types import Trajectory


def vtrace_by_definition(  # type: ignore[no-untyped-def]
    ratio, reward, value, terminated, truncated, valid, gamma, lam, rho_bar, c_bar, rho_bar_pg
) -> tuple[np.ndarray, np.ndarray]:
    """v_s = V(x_s) + sum over t of gamma^(t-s) (prod of lam min(c_bar, ratio)) min(rho_bar, ratio_t) delta_t, and the
    weights of the policy gradient, min(rho_bar_pg, ratio_s) (r_s + gamma q - V(x_s)); NaN at reset rows. There
    q = (1 - lam) V(x_{s+1}) + lam v_{s+1}.

    Where the clock ran out or the unroll ends, v_{s+1} is the value of the observation that followed.
    """
    rows, streams = reward.shape
    target, advantage = np.full((rows, streams), np.nan), np.full((rows, streams), np.nan)
    for b in range(streams):
        for s in range(rows):
            if not valid[s, b]:
                continue
            total = float(value[s, b])
            for t in range(s, _last(s, b, terminated, truncated, valid) + 1):
                product = 1.0
                for i in range(s, t):
                    product *= lam * min(c_bar, float(ratio[i, b]))
                rho = min(rho_bar, float(ratio[t, b]))
                total += gamma ** (t - s) * product * rho * td_error(reward, value, terminated, gamma, t, b)
            target[s, b] = total
        for s in range(rows):
            if not valid[s, b]:
                continue
            if terminated[s, b]:
                follow = 0.0
            elif s == _last(s, b, terminated, truncated, valid):
                follow = float(value[s + 1, b])
            else:
                follow = (1 - lam) * float(value[s + 1, b]) + lam * target[s + 1, b]
            weight = min(rho_bar_pg, float(ratio[s, b]))
            advantage[s, b] = weight * (float(reward[s, b]) + gamma * follow - float(value[s, b]))
    return target, advantage


def _last(t: int, b: int, terminated: np.ndarray, truncated: np.ndarray, valid: np.ndarray) -> int:
    """The last row of the episode that row t belongs to, or of the unroll, or before its padding."""
    end = _episode_end(t, b, terminated, truncated)
    while not valid[t : end + 1, b].all():
        end -= 1
    return end


class AsyncReference(Reference):
    """Whole updates of IMPALA and APPO written anew, as `oracles.updates` has those of PPO and A2C.

    With memory everything is run anew from the core before the unroll's first row, whatever other cores say.
    """

    def __init__(self, policy: Any, config: Any, scale: float = 1.0) -> None:
        super().__init__(policy, config, scale)
        self.slow = self.weights(policy)  # of the target network
        self.updates = 0

    def rows(self, p: Params, u: Trajectory) -> tuple[list[Any], Tensor, Tensor, Tensor]:
        """Distributions of each piece of `sequence` rows, and log_prob, entropy [T, B] and value [T+1, B].

        No gradient passes from one piece to the one before it.
        """
        core = None if u.core is None else u.core[0]
        length = len(u.reward) if core is None else self.config.sequence
        dists, log_prob, entropy, values = [], [], [], []
        for begin in range(0, len(u.reward), length):
            part = slice(begin, begin + length)
            mask = None if u.action_mask is None else u.action_mask[part]
            dist, value = outputs(p, u.obs[part], mask, core, u.first[part])
            dists.append(dist)
            log_prob.append(dist.log_prob(u.action[part]))
            entropy.append(entropy_of(dist, mask))
            values.append(value)
            if core is not None:
                for t in range(begin, begin + length):
                    core = torch.where(u.first[t][:, None], 0.0, core)
                    core = self.remember(p, u.obs[t], core).detach()
        last = outputs(p, u.obs[-1:], None, core, u.first[-1:])[1]
        return dists, torch.cat(log_prob), torch.cat(entropy), torch.cat([*values, last])

    def corrected(self, u: Trajectory, log_ratio: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and advantages [T, B]; NaN at reset rows."""
        config = self.config
        flags = [x.numpy() for x in (u.terminated, u.truncated, u.valid)]
        arrays = [x.detach().numpy() for x in (log_ratio.exp(), u.reward * self.scale, value)]
        bounds = config.rho_bar, config.c_bar, config.rho_bar_pg
        target, advantage = vtrace_by_definition(*arrays, *flags, config.gamma, config.lam, *bounds)
        return torch.from_numpy(target), torch.from_numpy(advantage)

    def impala(self, u: Trajectory, progress: float) -> None:
        """One update of IMPALA, with means over the valid rows."""
        config, keep = self.config, u.valid
        _, log_prob, entropy, value = self.rows(self.p, u)
        target, advantage = self.corrected(u, log_prob - u.extras["log_prob"], value)
        policy_loss = -(log_prob[keep] * advantage[keep]).mean()
        value_loss = 0.5 * ((value[:-1][keep] - target[keep]) ** 2).mean()
        bonus = self.scheduled("entropy", progress) * entropy[keep].mean()
        self.apply(policy_loss + config.value * value_loss - bonus, self.scheduled("lr", progress))

    def appo(self, u: Trajectory, progress: float) -> None:
        """One update of APPO: the surrogate as RLlib writes it, and the target network's turn."""
        config, keep, acted = self.config, u.valid, u.extras["log_prob"]
        clip = self.scheduled("clip", progress)
        with torch.no_grad():
            slow, slow_log_prob, _, _ = self.rows(self.slow, u)
        dists, log_prob, entropy, value = self.rows(self.p, u)
        target, advantage = self.corrected(u, slow_log_prob - acted, value)
        ratio = torch.exp(acted - slow_log_prob).clip(0, config.ratio_bar) * torch.exp(log_prob - acted)
        ratio, advantage = ratio[keep], advantage[keep]
        worse = torch.minimum(ratio * advantage, ratio.clip(1 - clip, 1 + clip) * advantage)
        value_loss = 0.5 * ((value[:-1][keep] - target[keep]) ** 2).mean()
        bonus = self.scheduled("entropy", progress) * entropy[keep].mean()
        loss = -worse.mean() + config.value * value_loss - bonus
        if config.kl:
            kl = torch.cat([kl_divergence(a, b) for a, b in zip(slow, dists, strict=True)])
            loss = loss + config.kl * kl[keep].mean()
        self.apply(loss, self.scheduled("lr", progress))
        self.updates += 1
        for name, x in self.p.items():
            if config.tau is not None:
                self.slow[name] = (1 - config.tau) * self.slow[name] + config.tau * x.detach()
            elif self.updates % config.target_every == 0:
                self.slow[name] = x.detach().clone()
