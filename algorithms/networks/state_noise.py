"""Exploration by noise that depends on the state and is held for several steps (gSDE)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.networks import products

EPSILON = 1e-6  # added to a variance


class StateDependentNoise(nn.Module):
    """Generalised state-dependent exploration, Raffin et al. 2021 (arXiv:2005.05719), equations 7 and 8.

        action = mean + h E,   E_ij ~ N(0, sigma_ij^2),   so that action_j ~ N(mean_j, sum_i h_i^2 sigma_ij^2)

    h are the features of the state, and E is drawn once for several steps, so the exploration is a smooth function of
    the state in between. Losses use the distribution of a single action, whose deviation is `log_std(h)`.

    Args:
        features: F, numbers of h.
        actions:  A.
        log_std:  log sigma at the start.
    """

    def __init__(self, features: int, actions: int, log_std: float) -> None:
        super().__init__()
        self.size = features * actions
        self.weight = nn.Parameter(torch.full((features, actions), log_std))  # log sigma

    def log_std(self, h: Tensor) -> Tensor:
        """[..., A] log deviation of the actions at features [..., F]."""
        squares, deviations = h.square(), self.weight.exp().square()
        if products.SLOW_MKL and not torch.is_grad_enabled():  # the bits of an actor's row depend on no position
            turned = deviations.t().contiguous()
            variance = F.linear(products.aligned(squares, turned), turned)
        else:
            variance = torch.matmul(squares, deviations)
        return 0.5 * torch.log(variance + EPSILON)

    def normal(self, h: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
        """[B, A] h E in units of its deviation, from noise [B, F * A], standard normal: a sample for a distribution.

        The bits of a row do not depend on other rows.
        """
        matrix = noise[:, : self.size].view(-1, *self.weight.shape) * self.weight.exp()  # [B, F, A]
        if products.SLOW_MKL:
            sample = (h.unsqueeze(-1) * matrix).sum(-2)
        else:
            sample = torch.bmm(h.unsqueeze(1), matrix).squeeze(1)
        return sample * torch.exp(-log_std)
