"""Policies of the algorithms that learn from recorded data."""

from __future__ import annotations

from typing import Any

import torch

from rltrain.algorithms.off_policy.continuous_policy import Deterministic, SoftCategorical
from rltrain.envs.spec import EnvSpec


def require_one_of(spec: EnvSpec, *kinds: str) -> None:
    """ValueError with one line if the kind of the actions is not one of `kinds`."""
    if spec.action.kind not in kinds:
        known = " or ".join({"box": "Box", "discrete": "Discrete"}[kind] for kind in kinds)
        raise ValueError(f"this algorithm needs {known} actions; {spec.id} has {spec.action.kind} actions")


def cloned(spec: EnvSpec, config: Any, streams: int, generator: torch.Generator) -> Deterministic | SoftCategorical:
    """The policy of behaviour cloning: deterministic for Box actions, a categorical distribution for Discrete ones."""
    require_one_of(spec, "box", "discrete")
    kind = Deterministic if spec.action.kind == "box" else SoftCategorical
    return kind(spec, config, streams, generator)
