"""Random unrolls for whole updates of PPO and A2C, in float64, with resets, masks, Box actions and memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from oracles.streams import BOTH, RUN, TERMINATED, TRUNCATED, make
from oracles.updates import Reference, outputs

from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf
from rltrain.rollout.types import Trajectory

OBS = Leaf("box", (3,), "float32")
DISCRETE = EnvSpec("discrete", OBS, ActionSpec("discrete", (), (4,)))
MASKED = EnvSpec("masked", OBS, ActionSpec("discrete", (), (4,)), action_mask=True)
BOX = EnvSpec("box", OBS, ActionSpec("box", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)))
SPECS = {spec.id: spec for spec in (DISCRETE, MASKED, BOX)}


def unroll(spec: EnvSpec, policy: Any, seed: int, rows: int = 16, streams: int = 4, lag: float = 0.3) -> Trajectory:
    """An unroll whose log_probs are those of `policy`, off by `lag` or so; its cores are what `policy` would have."""
    rng = np.random.default_rng(seed)
    ends = rng.choice([RUN, TERMINATED, TRUNCATED, BOTH], (rows, streams), p=[0.7, 0.12, 0.12, 0.06]).tolist()
    plain, _ = make(ends, [0, 1, 2, 0][:streams], seed)
    obs, reward = plain.obs.double(), plain.reward.double()
    action, mask, core = plain.action, None, None
    if spec.action.kind == "box":
        action = torch.from_numpy(1.5 * rng.normal(size=(rows, streams, 2)))
        action = torch.tanh(action) if policy.squash else action
    if spec.action_mask:
        mask = torch.from_numpy(rng.random((rows + 1, streams, 4)) < 0.4)
        mask[:-1].scatter_(-1, action[..., None], True)
        mask[-1, :, 0] = True
    p = Reference.weights(policy)
    with torch.no_grad():
        if policy.core_size:
            before = torch.from_numpy(rng.normal(size=(streams, policy.core_size)))
            cores = []
            for t in range(rows):
                before = torch.where(plain.first[t][:, None], 0.0, before)
                if t % policy.sequence == 0:
                    cores.append(before)
                before = Reference.remember(p, obs[t], before)
            core = torch.stack(cores)
        before = None if core is None else core[0]
        dist, _ = outputs(p, obs[:-1], None if mask is None else mask[:-1], before, plain.first, policy.squash)
        log_prob = dist.log_prob(action) + lag * torch.from_numpy(rng.normal(size=(rows, streams)))
    return replace(
        plain, obs=obs, reward=reward, action=action, action_mask=mask, core=core, extras={"log_prob": log_prob}
    )


def shaken(policy: Any, seed: int) -> None:
    """Move a policy away from its flat start, where mistakes are small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in policy.named_parameters():
            if name.startswith(("actor", "log_std", "state_noise")):
                x.add_(0.3 * torch.randn(x.shape, generator=generator))


def poisoned(u: Trajectory, poison: float = 1e6) -> Trajectory:
    """The same unroll with nonsense wherever nothing may be learnt from."""
    valid = u.valid
    action = u.action.clone()
    action[~valid] = 0 if action.dtype == torch.int64 else poison
    obs = u.obs.clone()  # a terminated episode's final observation: neither acted on nor bootstrapped from
    obs[1:][u.terminated] = poison
    return replace(
        u,
        obs=obs,
        action=action,
        reward=torch.where(valid, u.reward, poison),
        extras={"log_prob": torch.where(valid, u.extras["log_prob"], -poison)},
    )


def parameters(policy: Any) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in policy.named_parameters()}
