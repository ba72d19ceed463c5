"""The schedule of step sizes reaches every optimiser of an algorithm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.off_policy import BOX, MASKED, batch_of
from torch import Tensor
from torch.testing import assert_close

from rltrain import algorithms

LR, LR_Q, LR_TEMPERATURE = 1e-2, 2e-2, 3e-2
SMALL = {"widths": (8,), "lr": LR, "lr_q": LR_Q, "lr_end_share": 0.25, "adam_eps": 1e-16}
CRITICS = {"crossq": {"widths_q": (8,)}, "tqc": {"widths_q": (8,), "quantiles": 4, "drop": 1}}
CASES = [("sac", BOX), ("sac", MASKED), ("tqc", BOX), ("crossq", BOX), ("td3", BOX), ("ddpg", BOX)]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("algo", "spec"), CASES, ids=lambda x: x if isinstance(x, str) else x.id)
def test_lr_end_share_scales_the_steps_of_policy_critics_and_temperature(algo: str, spec: Any) -> None:
    """Adam's first step is as long as the step size, in every number that has a gradient."""
    soft = algo not in ("td3", "ddpg")
    given = SMALL | CRITICS.get(algo, {}) | ({"lr_temperature": LR_TEMPERATURE} if soft else {})
    given |= {} if algo == "ddpg" else {"policy_delay": 1}
    config = algorithms.settings_class(algo)(**given)
    for progress, share in ((0.0, 1.0), (0.5, 0.625), (1.0, 0.25)):
        algorithm: Any = algorithms.algorithm_class(algo)(spec, config, torch.device("cpu"), 3, 1)
        critics = algorithm.critic_optimizer if algo == "ddpg" else algorithm.critics_optimizer
        lengths: list[tuple[Tensor, float]] = [(algorithm.optimizer.param, LR), (critics.param, LR_Q)]
        lengths += [(algorithm.temperature.log, LR_TEMPERATURE)] if soft else []
        before = [param.clone() for param, _ in lengths]

        algorithm.update(batch_of(spec, 1), progress)

        for (param, lr), old in zip(lengths, before, strict=True):
            assert_close((param - old).abs().max(), torch.tensor(lr * share), atol=1e-9, rtol=1e-5)
