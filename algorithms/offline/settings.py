"""Settings of the algorithms that learn from recorded data: the values of their papers, except where a note differs."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from rltrain.algorithms.off_policy.settings import Batch
from rltrain.algorithms.settings import (
    Activation,
    AdamEps,
    Lr,
    LrEnd,
    MaxGradNorm,
    Network,
    NormalizeObs,
    Optimise,
    PolicyName,
    Widths,
)


def share(given: Any) -> Any:
    """The number for a share that is written as a percentage: 0.1 for "10%". Other values are returned unchanged."""
    percent = re.fullmatch(r"(\d+(?:\.\d*)?)\s*%", given.strip()) if isinstance(given, str) else None
    return float(percent[1]) / 100 if percent else given


class Offline(Optimise, Network):
    """Learning from recorded data: each step of the run is one update, and all of the data is in the replay."""

    data_only: ClassVar[bool] = True
    streams: ClassVar[int] = 1
    unroll: ClassVar[int] = 1
    capacity: ClassVar[int] = 1  # of a plan without data; see `rltrain.setup.replay`
    warmup: ClassVar[int] = 0
    updates_per_step: ClassVar[float] = 1.0
    random_start: ClassVar[bool] = False
    # exploration of a deterministic policy, where a program asks for it
    noise: ClassVar[float] = 0.1
    noise_kind: ClassVar[str] = "normal"
    ou_theta: ClassVar[float] = 0.15

    batch: Batch = 256
    lr: Lr = 3e-4
    lr_end: LrEnd = None
    adam_eps: AdamEps = 1e-8
    max_grad_norm: MaxGradNorm = 0.0
    widths: Widths = (256, 256)
    activation: Activation = "relu"
    normalize_obs: NormalizeObs = False


class BCConfig(Offline):
    """Behaviour cloning. Defaults: those of the tables in CORL (Tarasov et al. 2022, arXiv:2210.07105)."""

    filter_top: Annotated[float | None, BeforeValidator(share)] = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the complete episodes to learn from, those of highest return, as 10% or 0.1; none: all "
        "of the data",
    )
    policy: PolicyName = "cloned"
