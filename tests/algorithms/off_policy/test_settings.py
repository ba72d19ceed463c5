"""Defaults that are said to be those of Stable-Baselines3 are, or their note says what that has."""

from __future__ import annotations

import pytest
import torch

from rltrain.algorithms.functions.optim import Adam, flatten
from rltrain.algorithms.off_policy.settings import DDPGConfig, DQNConfig, SACConfig, TD3Config

SB3 = {  # stable_baselines3.DQN of version 2.7, in the units here
    "lr": 1e-4,
    "capacity": 1_000_000,
    "warmup": 100,
    "batch": 32,
    "gamma": 0.99,
    "updates_per_step": 0.25,
    "target_every": 10_000 // 4,
    "n_step": 1,
    "epsilon": 1.0,
    "epsilon_end": 0.05,
    "epsilon_share": 0.1,
    "max_grad_norm": 10.0,
    "adam_eps": 1e-8,
    "widths": (64, 64),
    "activation": "relu",
    "loss": "huber",
    "double": False,
}


@pytest.mark.parametrize("name", SB3)
def test_defaults_of_dqn_are_those_that_it_names(name: str) -> None:
    field = DQNConfig.model_fields[name]
    note = (field.json_schema_extra or {}).get("note", "")  # type: ignore[union-attr]

    assert field.default == SB3[name] or "Stable-Baselines3" in str(note)


@pytest.mark.parametrize("config", [DQNConfig, SACConfig, TD3Config, DDPGConfig])
def test_a_run_of_ten_thousand_steps_learns_from_most_of_them(config: type[DQNConfig]) -> None:
    """Pendulum-v1 is learnt in that time: with a warmup of 10,000 steps nothing is."""
    assert config().warmup <= 1000


def test_a_constant_factor_of_a_gradient_has_no_effect_with_adam() -> None:
    """So dueling does without the 1 / sqrt(2) of Wang et al. 2016."""
    plain, scaled = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    scaled.load_state_dict(plain.state_dict())
    for net, factor in ((plain, 1.0), (scaled, 2**-0.5)):
        optimizer = Adam(flatten(net), eps=1e-8)
        for seed in range(5):
            gradient = torch.randn(18, generator=torch.Generator().manual_seed(seed))
            flat = torch.cat([x.grad.flatten() for x in net.parameters() if x.grad is not None])
            assert flat.shape == gradient.shape
            begin = 0
            for x in net.parameters():
                assert x.grad is not None
                x.grad.copy_(factor * gradient[begin : begin + x.numel()].view_as(x))
                begin += x.numel()
            optimizer.update(0.1)

    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
