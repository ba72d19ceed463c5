"""Settings of the algorithms that learn from recorded data: the values of their papers, except where a note differs."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from rltrain.algorithms.off_policy.settings import (
    Batch,
    LrQ,
    Memory,
    NStep,
    PolicyDelay,
    RegularizedCritics,
    Share,
    WidthsQ,
)
from rltrain.algorithms.settings import (
    CHANGEABLE,
    Activation,
    AdamEps,
    Gamma,
    Lr,
    LrEnd,
    MaxGradNorm,
    Network,
    NormalizeObs,
    Optimise,
    PolicyName,
    Widths,
    default,
)

LrEndShare = Annotated[
    float | None,
    Field(ge=0, le=1, description="share of all step sizes at the last step, reached linearly; none keeps them"),
    CHANGEABLE,
]
Smoothing = Annotated[
    float, Field(ge=0, description="deviation of the noise on target actions, which are in [-1, 1]"), CHANGEABLE
]
SmoothingClip = Annotated[float, Field(ge=0, description="largest absolute value of that noise"), CHANGEABLE]
AdvantageFactor = Annotated[
    float, Field(ge=0, description="factor of the advantage in the weights exp(factor * advantage)"), CHANGEABLE
]

Conservative = Annotated[
    float, Field(ge=0, description="weight of the term that lowers values outside of the data"), CHANGEABLE
]
LrTemperature = Annotated[
    float | None, Field(gt=0, description="Adam step size of log temperature; none: lr"), CHANGEABLE
]
Temperature = Annotated[float, Field(gt=0, description="weight of the entropy; at the start, if it is learned")]
LearnTemperature = Annotated[bool, Field(description="adjust the temperature until the entropy is target_entropy")]
TargetEntropy = Annotated[float | None, Field(description="nats")]


def share(given: Any) -> Any:
    """The number for a share that is written as a percentage: 0.1 for "10%". Other values are returned unchanged."""
    percent = re.fullmatch(r"(\d+(?:\.\d*)?)\s*%", given.strip()) if isinstance(given, str) else None
    return float(percent[1]) / 100 if percent else given


class Offline(Optimise, Network, Memory):
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

    batch: Batch = default(256, "with memory 32, which are sequences")
    lr: Lr = 3e-4
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
    lr_end: LrEnd = None
    policy: PolicyName = "cloned"


class OfflineCritics(Offline, RegularizedCritics):
    """Critics and their targets."""

    lr_q: LrQ = None
    gamma: Gamma = 0.99
    tau: Share = 0.005


class TD3BCConfig(OfflineCritics):
    """TD3+BC. Defaults: Fujimoto and Gu 2021 (arXiv:2106.06860)."""

    lr: Lr = default(3e-4, "of the policy, and of critics without their own")
    lr_end_share: LrEndShare = None
    policy_delay: PolicyDelay = default(2, "and of all targets")
    smoothing: Smoothing = 0.2
    smoothing_clip: SmoothingClip = 0.5
    q_weight: Annotated[
        float, Field(ge=0, description="weight of the critic against imitation, the paper's alpha"), CHANGEABLE
    ] = 2.5
    normalize_obs: NormalizeObs = True
    policy: PolicyName = "deterministic"


class AdvantageWeighted(OfflineCritics):
    """A policy that imitates the actions of the data, each with the weight exp(advantage_factor * advantage)."""

    lr: Lr = default(3e-4, "of the policy, and of the others without their own")
    advantage_factor: AdvantageFactor
    max_weight: Annotated[float, Field(gt=0, description="largest of these weights"), CHANGEABLE] = 100.0
    policy: PolicyName = "weighted"


class MARWILConfig(Offline):
    """MARWIL. Defaults: Wang et al. 2018, except where a note differs."""

    lr: Lr = default(3e-4, "of the policy and of the value")
    lr_end_share: LrEndShare = None
    gamma: Gamma = 0.99
    n_step: NStep = default(1000, "the rest of an episode of at most so many steps")
    advantage_factor: AdvantageFactor = default(1.0, "the paper's beta; 0: behaviour cloning by likelihood")
    max_weight: Annotated[float, Field(gt=0, description="largest of these weights"), CHANGEABLE] = 100.0
    norm_rate: Annotated[
        float,
        Field(ge=0, le=1, description="share of a batch in the running norm of advantages; 0: they are not divided"),
        CHANGEABLE,
    ] = default(1e-3, "the authors use 1e-8 for each row")
    policy: PolicyName = "weighted"


class ImplicitQConfig(AdvantageWeighted):
    """Implicit Q-learning. Defaults: Kostrikov et al. 2021 (arXiv:2110.06169), for locomotion."""

    expectile: Annotated[
        float, Field(gt=0, lt=1, description="expectile of the critics' values that the value is"), CHANGEABLE
    ] = 0.7
    advantage_factor: AdvantageFactor = default(3.0, "the paper's beta")
    cosine: Annotated[bool, Field(description="the step size of the policy falls to 0, by half a cosine")] = True


class AWACConfig(AdvantageWeighted):
    """AWAC. Defaults: Nair et al. 2020 (arXiv:2006.09359)."""

    batch: Batch = default(1024, "with memory 32, which are sequences")
    lr_end_share: LrEndShare = None
    advantage_factor: AdvantageFactor = default(1.0, "1 / lambda of the paper")


class CQLConfig(OfflineCritics):
    """CQL. Defaults: Kumar et al. 2020 (arXiv:2006.04779) and the authors' code."""

    DISCRETE: ClassVar[dict[str, Any]] = {"conservative": 1.0}

    lr: Lr = default(1e-4, "of the policy")
    lr_q: LrQ = 3e-4
    lr_temperature: LrTemperature = None
    lr_end_share: LrEndShare = None
    conservative: Conservative = 5.0
    samples: Annotated[
        int,
        Field(
            ge=1, description="actions for the term, of each of three kinds: random, of the policy, of its next step"
        ),
    ] = 10
    temperature: Temperature = 1.0
    learn_temperature: LearnTemperature = True
    target_entropy: TargetEntropy = default(None, "none: minus the dimensions of the action")
    widths_q: WidthsQ = default(None, "the authors use 256,256,256 for most tasks")
    policy: PolicyName = "soft"
