"""Algorithms of recorded data with memory: whole updates against the oracle's, and what a sequence must not know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import memory
from oracles.cases import poisoned
from oracles.off_policy import BOX, DISCRETE, MASKED, run
from oracles.offline import (
    AWACReference,
    BCReference,
    CQLReference,
    DiscreteCQLReference,
    ImplicitQReference,
    MARWILReference,
    TD3BCReference,
    flat,
)
from torch.testing import assert_close

from rltrain.algorithms import algorithm_class
from rltrain.algorithms.offline import settings as offline
from rltrain.algorithms.offline.cql import CQL

SMALL: dict[str, Any] = {"widths": (8, 6), "lr": 1e-2, "memory": "gru", "memory_size": 5, "length": 6, "burn_in": 3}
CONFIGS = {
    "bc": offline.BCConfig,
    "td3_bc": offline.TD3BCConfig,
    "marwil": offline.MARWILConfig,
    "implicit_q": offline.ImplicitQConfig,
    "awac": offline.AWACConfig,
    "cql": offline.CQLConfig,
}
LSTM = {"memory": "lstm", "activation": "tanh", "max_grad_norm": 0.2}
NO_BURN_IN = {"burn_in": 0, "length": 4}
CASES = [
    ("bc", BOX, {}),
    ("bc", MASKED, LSTM),
    ("td3_bc", BOX, {"policy_delay": 1, "normalize_obs": False}),
    ("td3_bc", BOX, {**LSTM, "normalize_obs": False}),
    ("marwil", BOX, {"n_step": 3}),
    ("marwil", MASKED, {**NO_BURN_IN, "norm_rate": 0.3}),
    ("implicit_q", BOX, LSTM),
    ("implicit_q", MASKED, {"lr_q": 2e-2, "widths_q": (7,)}),
    ("awac", BOX, NO_BURN_IN),
    ("awac", DISCRETE, {}),
    ("cql", BOX, {"samples": 3}),
    ("cql", BOX, {"samples": 2, **LSTM}),
    ("cql", MASKED, {}),
    ("cql", DISCRETE, NO_BURN_IN),
]


def make(algo: str, spec: Any, **settings: Any) -> Any:
    more = {} if algo in ("bc", "marwil") else {"tau": 0.1}
    config = CONFIGS[algo](**{**SMALL, **more, **settings})
    return algorithm_class(algo)(spec, config, torch.device("cpu"), 3, 1)


def batch_for(algorithm: Any, spec: Any, seed: int) -> Any:
    plan = algorithm.plan
    return memory.sequences(spec, seed, plan.window, 4, algorithm.policy.core_size, weighted=False)


def reference_of(algo: str, ours: Any, spec: Any) -> Any:
    if algo == "bc":
        return BCReference(ours)
    if algo == "marwil":
        return MARWILReference(ours)
    if algo == "cql" and spec is not BOX:
        return DiscreteCQLReference(ours)
    kinds = {"td3_bc": TD3BCReference, "implicit_q": ImplicitQReference, "awac": AWACReference, "cql": CQLReference}
    return kinds[algo](ours, 3)


def weights(network: Any) -> list[torch.Tensor]:
    """Those of each net, layer by layer, and of the memory: in the order of `oracles.offline.flat`."""
    cell, dense = network.encoder.memory, network.dense
    of_nets = [x for n in range(dense.nets) for w, b in dense.pairs for x in (w[n], b[n, 0])]
    return [x.detach() for x in (*of_nets, cell.weight_x, cell.weight_h, cell.bias_x, cell.bias_h)]


@pytest.mark.parametrize(("algo", "spec", "settings"), CASES, ids=lambda x: x if isinstance(x, str) else None)
def test_three_updates_equal_those_of_the_oracle(algo: str, spec: Any, settings: dict[str, Any]) -> None:
    """With ends of every kind before, in and behind the burn-in."""
    ours = make(algo, spec, **settings)
    reference = reference_of(algo, ours, spec)
    networks = {"actor": ours.policy.actor}
    networks |= {name: getattr(ours, name) for name in ("critics", "value") if hasattr(ours, name)}
    if hasattr(reference, "target_critics"):
        networks["target_critics"] = (getattr(ours, "critics_target", None) or ours.target).module
    if hasattr(reference, "target_actor"):
        networks["target_actor"] = ours.target.module
    start = {name: [x.clone() for x in weights(network)] for name, network in networks.items()}
    for seed in range(3):
        batch = batch_for(ours, spec, seed)
        expected = memory.samples(batch, ours.plan)
        more = [0.25 * seed] if algo in ("implicit_q", "marwil") else []
        reference.update(expected, *more)
        ours.update(batch, 0.25 * seed)

    for name, network in networks.items():
        after = weights(network)
        assert_close(after, [x.detach() for x in flat(getattr(reference, name))], atol=1e-7, rtol=0)
        for new, old in zip(after[-4:], start[name][-4:], strict=True):
            assert (new - old).abs().max() > 1e-4, f"the memory of {name} learns nothing"


@pytest.mark.parametrize(("algo", "spec"), [(algo, BOX) for algo in CONFIGS] + [("cql", DISCRETE), ("bc", DISCRETE)])
def test_reset_rows_and_what_follows_a_termination_do_not_matter(algo: str, spec: Any) -> None:
    extra = {"normalize_obs": False}
    first, second = make(algo, spec, **extra), make(algo, spec, **extra)
    for seed in range(2):
        batch = batch_for(first, spec, seed)
        first.update(batch, 0.0)
        other = poisoned(batch)
        if isinstance(first, CQL):  # actions are proposed at next observations, also behind a termination
            other = replace(other, obs=batch.obs)
        second.update(other, 0.0)

    assert torch.equal(first.optimizer.param, second.optimizer.param)


@pytest.mark.parametrize("algo", CONFIGS)
def test_with_memory_a_batch_has_fewer_sequences_than_it_would_have_steps(algo: str) -> None:
    assert CONFIGS[algo](memory="gru").batch == 32
    assert CONFIGS[algo](memory="gru", batch=7).batch == 7
    assert CONFIGS[algo]().batch in (256, 1024)


@pytest.mark.parametrize(
    ("algo", "spec"), [*((algo, BOX) for algo in CONFIGS), ("bc", DISCRETE), ("cql", DISCRETE), ("awac", DISCRETE)]
)
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_the_policy_acts_from_what_it_has_seen(algo: str, spec: Any, kind: str) -> None:
    """Oracle: the cell is applied to each row of the stream, and the layers to its output."""
    ours = make(algo, spec, memory=kind, normalize_obs=False)
    policy = ours.policy
    (net,) = reference_of(algo, ours, spec).actor
    generator = torch.Generator().manual_seed(7)
    obs = torch.randn(5, 3, *spec.obs.shape, generator=generator)
    drawn = torch.zeros(3, policy.noise.width)
    core = expected = torch.zeros(3, policy.core_size)
    for row in obs:
        act = policy.act(row, core, None, drawn, False)
        assert act.core is not None
        core = act.core
        expected = torch.stack([memory.cell(kind, net.memory, x, c) for x, c in zip(row, expected, strict=True)])
        assert_close(core, expected.detach(), atol=1e-6, rtol=0)
        out = run(net, expected[:, : SMALL["memory_size"]], activation=policy.config.activation).detach()
        if spec is BOX:
            assert_close(act.action.flatten(1), torch.tanh(out[:, : act.action[0].numel()]), atol=1e-6, rtol=0)
        else:
            assert act.action.tolist() == out.argmax(1).tolist()
