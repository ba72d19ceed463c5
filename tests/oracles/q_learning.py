"""Deep Q-learning written anew, sample by sample: networks by formulas, targets in loops, torch's own optimiser.

Nothing here comes from `algorithms` but the first weights. Observations are one vector each; everything is float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

Params = dict[str, Tensor]


def projected(probs: np.ndarray, support: np.ndarray, reward: float, discount: float) -> np.ndarray:
    """Equation 7 of Bellemare et al. 2017: each atom takes of each shifted one by the hat function around itself."""
    width = support[1] - support[0]
    found = np.zeros_like(probs)
    for i, atom in enumerate(support):
        for j, other in enumerate(support):
            shifted = min(max(reward + discount * other, support[0]), support[-1])
            found[i] += probs[j] * min(max(1 - abs(shifted - atom) / width, 0.0), 1.0)
    return found


def squash(e: Tensor) -> Tensor:
    """f(x) = sign(x) sqrt|x|, one number at a time."""
    return torch.tensor([math.copysign(math.sqrt(abs(x)), x) for x in e.tolist()], dtype=e.dtype)


def layers(p: Params, name: str) -> int:
    return sum(key.startswith(f"{name}.weight") and "sigma" not in key for key in p)


def dense(p: Params, name: str, x: Tensor, noise: Tensor | None, last_is_linear: bool) -> Tensor:
    """The layers `name`, relu between; noisy if there is noise: f(e) of inputs and outputs, layer by layer."""
    at = 0
    for i in range(layers(p, name)):
        weight, bias = p[f"{name}.weight{i}"], p[f"{name}.bias{i}"]
        if noise is not None:
            outputs, inputs = weight.shape
            e_in, e_out = noise[at : at + inputs], noise[at + inputs : at + inputs + outputs]
            weight = weight + p[f"{name}.weight_sigma{i}"] * e_out[:, None] * e_in[None, :]
            bias = bias + p[f"{name}.bias_sigma{i}"] * e_out
            at += inputs + outputs
        x = x @ weight.T + bias
        if not (last_is_linear and i == layers(p, name) - 1):
            x = torch.where(x > 0, x, 0.0)
    return x


def outputs(p: Params, noise: dict[str, Tensor] | None, obs: Tensor, actions: int, atoms: int) -> Tensor:
    """[B, n, atoms] values (one atom) or logits."""
    noise = noise or {}
    x = dense(p, "trunk", obs, noise.get("trunk"), last_is_linear=False)
    out = dense(p, "advantage", x, noise.get("advantage"), True).reshape(-1, actions, atoms)
    if any(key.startswith("value") for key in p):
        value = dense(p, "value", x, noise.get("value"), True).reshape(-1, 1, atoms)
        mean = sum(out[:, a] for a in range(actions)) / actions
        out = value + out - mean[:, None]
    return out


class Reference:
    """DQN. `config` is the algorithm's own settings object.

    Args:
        net:     whose weights to begin with.
        actions: n.
        seed:    of the noise of noisy layers.
    """

    def __init__(self, net: Any, config: Any, actions: int, seed: int) -> None:
        self.config, self.actions = config, actions
        self.p: Params = {name: x.detach().clone().requires_grad_() for name, x in net.named_parameters()}
        self.target: Params = {name: x.detach().clone() for name, x in self.p.items()}
        self.optimizer = torch.optim.Adam(self.p.values(), lr=1.0, eps=config.adam_eps)
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0
        self.support = torch.linspace(config.v_min, config.v_max, config.atoms)
        if config.noisy:
            self.draw()

    def draw(self) -> dict[str, Tensor]:
        """New noise of all layers."""
        found = {}
        for name in ("trunk", "value", "advantage"):
            sizes = [sum(self.p[f"{name}.weight{i}"].shape) for i in range(layers(self.p, name))]
            if sizes:
                found[name] = squash(torch.randn(sum(sizes), generator=self.generator))
        return found

    def q(self, out: Tensor) -> Tensor:
        """[..., atoms] to [...]"""
        if self.config.atoms == 1:
            return out[..., 0]
        return (torch.softmax(out, -1) * self.support).sum(-1)

    def see(self, p: Params, obs: Any) -> Tensor:
        """[B, F] what the layers get: the observations themselves."""
        return obs

    def update(self, batch: Any, progress: float) -> tuple[Tensor, Tensor]:
        """Returns the loss [] and the priorities [B]."""
        config, n = self.config, self.actions
        noise_target = self.draw() if config.noisy else None
        noise_choice = self.draw() if config.noisy and config.double else None
        noise_online = self.draw() if config.noisy else None
        with torch.no_grad():
            judged = outputs(self.target, noise_target, self.see(self.target, batch.next_obs), n, config.atoms)
            chooser = judged
            if config.double:
                chooser = outputs(self.p, noise_choice, self.see(self.p, batch.next_obs), n, config.atoms)
        out = outputs(self.p, noise_online, self.see(self.p, batch.obs), n, config.atoms)
        losses, errors = [], []
        for b in range(len(batch.action)):
            legal = range(n)
            if batch.next_action_mask is not None:
                legal = [a for a in range(n) if batch.next_action_mask[b, a]] or [0]
            best = max(legal, key=lambda a: self.q(chooser[b, a]).item())
            mine, theirs = out[b, batch.action[b]], judged[b, best]
            reward, discount = batch.reward[b].item(), batch.discount[b].item()
            if config.atoms > 1:
                probs = torch.softmax(theirs, -1).numpy()
                target = torch.from_numpy(projected(probs, self.support.numpy(), reward, discount))
                each = -(target * torch.log(torch.softmax(mine, -1))).sum()
                errors.append(each.item())
            else:
                error = mine[0] - (reward + discount * theirs[0])
                each = error**2
                if config.loss == "huber":
                    each = 0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5
                errors.append(abs(error.item()))
            losses.append(each if batch.weight is None else batch.weight[b] * each)
        loss = torch.stack(losses).mean()
        self.optimizer.zero_grad()
        loss.backward()
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.p.values(), config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr if config.lr_end is None else config.lr + (config.lr_end - config.lr) * progress
        self.optimizer.step()
        self.updates += 1
        for name, x in self.p.items():
            if config.tau is not None:
                self.target[name] = (1 - config.tau) * self.target[name] + config.tau * x.detach()
            elif self.updates % config.target_every == 0:
                self.target[name] = x.detach().clone()
        return loss.detach(), torch.tensor(errors)
