"""MADDPG written anew: one sequence, one row, one agent at a time; the gradient through a sample by its formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from oracles.teams import episodes, state_of, team_spec
from torch import Tensor

from rltrain.envs.spec import ActionSpec, AgentGroup, EnvSpec, Leaf
from rltrain.rollout.types import Trajectory

Params = dict[str, Tensor]

SWIMMER = AgentGroup(
    "swimmer", ("a", "b"), Leaf("box", (3,), "float32"), ActionSpec("box", (2,), (), (-1.0,) * 2, (1.0,) * 2)
)
FLYER = AgentGroup("flyer", ("c",), Leaf("box", (2,), "float32"), ActionSpec("box", (3,), (), (-1.0,) * 3, (1.0,) * 3))


def box_spec(*groups: AgentGroup, told: bool = True) -> EnvSpec:
    """As `team_spec`, for agents with Box actions: flat where their sizes differ."""
    sizes = [group.action.shape[0] for group in groups for _ in group.agents]
    shape = (len(sizes), sizes[0]) if len(set(sizes)) == 1 else (sum(sizes),)
    bounds = (-1.0,) * sum(sizes), (1.0,) * sum(sizes)
    blank = team_spec(*(replace(group, action=ActionSpec("discrete", (), (2,))) for group in groups), told=told)
    return replace(blank, groups=groups, action=ActionSpec("box", shape, (), *bounds))


def rows(spec: EnvSpec, seed: int, **sizes: int) -> Trajectory:
    """`episodes`, with actions as the spec has them."""
    if spec.action.kind != "box":
        return episodes(spec, seed, **sizes)
    each = replace(spec.action, kind="multi_discrete", nvec=(2,) * len(spec.agents))
    found = episodes(replace(spec, action=each), seed, **sizes)
    generator = torch.Generator().manual_seed(seed)
    action = 2 * torch.rand(*found.reward.shape[:2], *spec.action.shape, generator=generator) - 1
    return replace(found, action=action)


def params_of(module: Any) -> Params:
    """A copy of the parameters by name, with gradients of their own."""
    return {name: x.detach().clone().requires_grad_() for name, x in module.named_parameters()}


def network(p: Params, name: str, x: Tensor) -> Tensor:
    """Linear layers, relu between."""
    count = sum(key.startswith(f"{name}.weight") for key in p)
    for n in range(count):
        x = p[f"{name}.weight{n}"][0] @ x + p[f"{name}.bias{n}"][0, 0]
        if n < count - 1:
            x = torch.where(x > 0, x, 0.0)
    return x


class Oracle:
    """What is to be learnt of a batch.

    Args:
        actors, critics:             parameters of the online networks,
        target_actors, target_critics: and of the slow ones; actors by the number of their group.
        noise:                       [T, B, K] Gumbel of the agents' own new actions.
    """

    def __init__(
        self,
        spec: EnvSpec,
        batch: Trajectory,
        actors: Params,
        critics: Params,
        target_actors: Params,
        target_critics: Params,
        noise: Tensor,
        config: Any,
    ) -> None:
        self.spec, self.batch, self.noise, self.config = spec, batch, noise, config
        self.actors, self.critics = actors, critics
        self.target_actors, self.target_critics = target_actors, target_critics
        self.seats = [(g, k, group) for g, group in enumerate(spec.groups) for k in range(len(group.agents))]
        self.discrete = spec.groups[0].action.kind == "discrete"
        self.sizes = [group.action.nvec[0] if self.discrete else group.action.shape[0] for _, _, group in self.seats]
        steps, width = batch.valid.shape
        self.counted = [
            (t, b, i)
            for t in range(steps)
            for b in range(width)
            for i in range(len(self.seats))
            if batch.valid[t, b] and batch.alive[t, b, i]
        ]

    def put_out(self, p: Params, t: int, b: int, i: int) -> Tensor:
        g, k, group = self.seats[i]
        x = self.batch.obs[group.name][t, b, k]
        if len(group.agents) > 1:
            x = torch.cat([x, torch.eye(len(group.agents))[k]])
        return network(p, f"{g}.dense", x)

    def legal(self, t: int, b: int, i: int) -> list[int]:
        begin = sum(self.sizes[:i])
        return [
            a for a in range(self.sizes[i]) if self.batch.action_mask is None or self.batch.action_mask[t, b, begin + a]
        ]

    def value(self, p: Params, t: int, b: int, i: int, actions: list[Tensor]) -> Tensor:
        g, k, group = self.seats[i]
        x = torch.cat([torch.from_numpy(state_of(self.spec, self.batch, t, b)), *actions])
        if len(group.agents) > 1:
            x = torch.cat([torch.eye(len(group.agents))[k], x])
        return network(p, f"nets.{g}", x)[0]

    def taken(self, t: int, b: int) -> list[Tensor]:
        found, flat, begin = [], self.batch.action[t, b].flatten(), 0
        for i, size in enumerate(self.sizes):
            if self.discrete:
                action = torch.eye(size)[int(flat[i])]
            else:
                action = flat[begin : begin + size]
                begin += size
            found.append(action if self.batch.alive[t, b, i] else torch.zeros(size))
        return found

    def best(self, t: int, b: int, i: int) -> Tensor:
        out = self.put_out(self.target_actors, t, b, i).detach()
        if not self.discrete:
            return torch.tanh(out)
        return torch.eye(self.sizes[i])[max(self.legal(t, b, i), key=lambda a: float(out[a]))]

    def target(self, t: int, b: int, i: int) -> float:
        batch = self.batch
        reward = float(batch.reward[t, b, i])
        if batch.terminated[t, b, i] or not (batch.alive[t + 1, b, i] or batch.truncated[t, b, i]):
            return reward
        actions = []
        for j, size in enumerate(self.sizes):
            acts = bool(batch.alive[t + 1, b, j])
            if not batch.alive[t + 1, b, i]:  # i ran out of time: so may j have, which else would act too
                acts = (acts or bool(batch.truncated[t, b, j])) and not batch.terminated[t, b, j]
            actions.append(self.best(t + 1, b, j) if acts else torch.zeros(size))
        with torch.no_grad():
            return reward + self.config.gamma * float(self.value(self.target_critics, t + 1, b, i, actions))

    def critic_loss(self) -> Tensor:
        """[] with a graph to the critics' parameters."""
        errors = [
            self.value(self.critics, t, b, i, self.taken(t, b)) - self.target(t, b, i) for t, b, i in self.counted
        ]
        return sum(error**2 for error in errors) / len(errors)  # type: ignore[return-value]

    def policy_loss(self) -> tuple[float, Tensor]:
        """The loss, and a number [] whose gradient along the actors' parameters is the loss's."""
        loss, surrogate = 0.0, torch.zeros(())
        critics = {name: x.detach() for name, x in self.critics.items()}
        for t, b, i in self.counted:
            out, legal = self.put_out(self.actors, t, b, i), self.legal(t, b, i)
            if self.discrete:
                begin = sum(self.sizes[:i])
                noisy = (out.detach() + self.noise[t, b, begin : begin + self.sizes[i]]) / self.config.gumbel
                total = sum(float(torch.exp(noisy[a])) for a in legal)
                y = [float(torch.exp(noisy[a])) / total if a in legal else 0.0 for a in range(self.sizes[i])]
                own = torch.eye(self.sizes[i])[max(legal, key=lambda a: float(noisy[a]))]
            else:
                own = torch.tanh(out.detach())
            own.requires_grad_()
            actions = self.taken(t, b)
            actions[i] = own
            q = self.value(critics, t, b, i, actions)
            (slope,) = torch.autograd.grad(q, own)
            if self.discrete:  # along the logits: y_k (slope_k - sum_j y_j slope_j) / temperature
                mean = sum(y[j] * float(slope[j]) for j in range(len(y)))
                along = torch.tensor([y[k] * (float(slope[k]) - mean) / self.config.gumbel for k in range(len(y))])
                size = sum(out[a] ** 2 for a in legal) / len(out)
            else:
                along = slope * (1 - own.detach() ** 2)
                size = (out**2).sum() / len(out)
            loss += float(self.config.regularize * size.detach() - q.detach())
            surrogate = surrogate + self.config.regularize * size - (along * out).sum()
        return loss / len(self.counted), surrogate / len(self.counted)
