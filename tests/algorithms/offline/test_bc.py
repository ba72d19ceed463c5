"""Behaviour cloning: whole updates against those written out; which actions it takes; what `filter_top` accepts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.off_policy import BOX, DISCRETE, MASKED, batch_of, flat, nets
from oracles.offline import BCReference
from torch.testing import assert_close

from rltrain.algorithms.offline.bc import BC
from rltrain.algorithms.offline.settings import BCConfig
from rltrain.config.load import load
from rltrain.errors import ConfigError

SMALL: dict[str, Any] = {"widths": (8, 6), "lr": 1e-2, "batch": 12}


@pytest.mark.parametrize("settings", [{}, {"activation": "tanh", "max_grad_norm": 0.05}], ids=["default", "clipped"])
@pytest.mark.parametrize("spec", [BOX, DISCRETE, MASKED], ids=lambda spec: spec.id)
def test_six_updates_equal_those_written_out(spec, settings):
    bc = BC(spec, BCConfig(**{**SMALL, **settings}), torch.device("cpu"), 3, 1)
    reference = BCReference(bc)
    start = bc.optimizer.param.clone()
    for seed in range(6):
        batch = batch_of(spec, seed, weighted=False)
        reference.update(batch)
        bc.update(batch, 0.5)

    assert_close(flat(nets(bc.policy.actor.dense)), flat(reference.actor), atol=1e-9, rtol=0)
    assert (bc.optimizer.param - start).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("given", "share"), [("10%", 0.1), ("2.5 %", 0.025), ("0.1", 0.1), ("100%", 1.0), ("none", None)]
)
def test_the_share_of_episodes_may_be_a_percentage(given, share):
    config = load({"algo": "bc", "env": "X-v0", "filter_top": given}, text=True)
    assert config.settings.filter_top == share


@pytest.mark.parametrize("given", ["0%", "150%", "0", "2", "ten%", "-5%"])
def test_a_wrong_share_is_refused(given):
    with pytest.raises(ConfigError, match="--filter-top"):
        load({"algo": "bc", "env": "X-v0", "filter_top": given}, text=True)
