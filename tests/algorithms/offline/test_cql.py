"""CQL for Box and for Discrete actions: whole updates against those written out, and what the term does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.off_policy import BOX, DISCRETE, MASKED, batch_of, flat, nets
from oracles.offline import CQLReference, DiscreteCQLReference
from torch.testing import assert_close

from rltrain.algorithms import algorithm_class
from rltrain.algorithms.offline.cql import CQL
from rltrain.algorithms.offline.settings import CQLConfig

SMALL: dict[str, Any] = {"widths": (8, 6), "lr": 1e-2, "lr_q": 2e-2, "batch": 12, "tau": 0.1, "samples": 3}


def made(spec: Any, **settings: Any) -> Any:
    return algorithm_class("cql")(spec, CQLConfig(**{**SMALL, **settings}), torch.device("cpu"), 3, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"samples": 1, "conservative": 0.3, "activation": "tanh", "lr_q": None, "critics": 3, "temperature": 0.3},
        {"max_grad_norm": 0.1, "learn_temperature": False},
        {"target_entropy": 0.5, "lr_temperature": 0.05, "widths_q": (7,)},
    ],
    ids=["default", "one sample", "clipped", "entropy"],
)
def test_six_updates_equal_those_written_out(settings):
    cql = made(BOX, **settings)
    reference = CQLReference(cql, seed=3)
    for seed in range(6):
        batch = batch_of(BOX, seed, weighted=False)
        reference.update(batch)
        cql.update(batch, 0.5)

    assert type(cql) is CQL
    for ours, theirs in [
        (cql.policy.actor, reference.actor),
        (cql.critics, reference.critics),
        (cql.target.module, reference.target_critics),
    ]:
        assert_close(flat(nets(ours.dense)), flat(theirs), atol=1e-7, rtol=0)
    assert_close(cql.temperature.log[0], reference.log_temperature.detach(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"conservative": 0.2, "max_grad_norm": 0.1, "lr_q": None}])
@pytest.mark.parametrize("spec", [DISCRETE, MASKED], ids=lambda spec: spec.id)
def test_updates_for_discrete_actions_equal_those_written_out(spec, settings):
    cql = made(spec, **settings)
    reference = DiscreteCQLReference(cql)
    for seed in range(6):
        batch = batch_of(spec, seed, weighted=False)
        reference.update(batch)
        cql.update(batch, 0.5)

    assert_close(flat(nets(cql.policy.actor.dense)), flat(reference.actor), atol=1e-7, rtol=0)
    assert_close(flat(nets(cql.target.module.dense)), flat(reference.target_actor), atol=1e-7, rtol=0)


@pytest.mark.parametrize("spec", [BOX, DISCRETE], ids=lambda spec: spec.id)
def test_the_term_lowers_other_actions_against_those_of_the_data(spec):
    batch = batch_of(spec, 0, rows=40, weighted=False)
    gaps = []
    for conservative in (0.0, 5.0):
        cql = made(spec, conservative=conservative)
        for _ in range(100):
            update = cql.update(batch, 0.0)
        gaps.append(float(update.metrics["conservative_gap"]))
    assert gaps[1] < gaps[0] - 0.2
