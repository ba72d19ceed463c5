"""Settings that families of algorithms share: types with bounds and help texts, and groups that a class inherits.

The settings of one algorithm are one class next to its family. The class inherits the groups that the algorithm has,
and declares what its paper adds or changes. A changed default keeps the bounds and the help text of its type:
`lr: Lr = default(7e-4, "the paper's")`. `--help` lists settings in the order of HELP_ORDER. Imports no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

HELP_ORDER = """
    streams unroll epochs minibatches wait capacity batch filter_top length burn_in warmup updates_per_step random_start
    overlap max_in_flight max_lag buffer_size reuse
    lr lr_q lr_temperature lr_end lr_end_share optimizer rms_alpha rms_eps adam_eps max_grad_norm
    gamma lam n_step normalize_advantage rho_bar c_bar rho_bar_pg clip_reward
    double target_every tau critics target_critics policy_value policy_delay smoothing smoothing_clip
    clip clip_end ratio_bar kl value_clip value entropy entropy_end max_kl loss atoms v_min v_max quantiles drop
    q_weight expectile advantage_factor max_weight norm_rate cosine
    conservative samples
    temperature learn_temperature target_entropy target_entropy_share
    gumbel regularize noise noise_end noise_kind ou_theta
    prioritized alpha beta priority_eps epsilon epsilon_end epsilon_share epsilon_per_stream noisy noise_per_stream
    policy torso widths widths_q activation layer_norm dropout
    init dueling shared_torso log_std_init squash sde sde_every agent_ids last_action
    memory memory_size critic_memory sequence normalize_obs normalize_return reward_limit mixer_width hyper_width
""".split()


Actions = Literal["Box", "Discrete"]  # kinds of action that have defaults of their own
TORSOS = ("auto", "nature", "impala")  # others are "module:Class", which is imported
OWN: dict[str, Callable[..., Any]] = {}  # torsos and policies of the user's in this process, by "module:Class"


@dataclass(frozen=True)
class Changeable:
    """In the type of a setting: a callback may change it during a run, since the algorithm reads it at each update."""


CHANGEABLE = Changeable()


def changeable(settings: type[BaseModel]) -> list[str]:
    """The settings of an algorithm that can change during a run, in the order of HELP_ORDER."""
    fixed = getattr(settings, "FIXED", ())
    names = [key for key, field in settings.model_fields.items() if CHANGEABLE in field.metadata and key not in fixed]
    return sorted(names, key=lambda key: HELP_ORDER.index(key) if key in HELP_ORDER else len(HELP_ORDER))


def default(value: Any, note: str) -> Any:
    """A default value with a note on its origin, which `--help` adds to the description of the setting."""
    return Field(default=value, json_schema_extra={"note": note})


# data
Streams = Annotated[int, Field(ge=1, description="environments that are stepped in parallel, in total")]
Unroll = Annotated[int, Field(ge=1, description="T, steps per stream in one unroll")]
Overlap = Annotated[
    bool, Field(description="actors act while the learner learns; reproducible only with deterministic")
]

# optimiser
Lr = Annotated[float, Field(gt=0, description="step size of the optimiser at the start"), CHANGEABLE]
LrEnd = Annotated[
    float | None, Field(ge=0, description="step size at the last step, reached linearly; none keeps lr"), CHANGEABLE
]
AdamEps = Annotated[float, Field(gt=0, description="Adam's epsilon")]
MaxGradNorm = Annotated[
    float, Field(ge=0, description="largest L2 norm of all gradients together; 0: no clipping"), CHANGEABLE
]

# targets
Gamma = Annotated[float, Field(ge=0, le=1, description="discount per step")]
ClipReward = Annotated[
    bool, Field(description="learn from rewards clipped to [-1, 1]; reported returns are not clipped")
]
TargetEvery = Annotated[
    int | None, Field(ge=1, description="updates between two copies of the target network; none: use tau")
]
Tau = Annotated[
    float | None,
    Field(gt=0, le=1, description="share by which the target network follows after each update; none: target_every"),
    CHANGEABLE,
]


def name_of_class(given: Any) -> Any:
    """The name "module:Class" of a torso or a policy that is given as a class or a function, which OWN keeps."""
    if not callable(given) or not hasattr(given, "__qualname__"):
        return given
    name = f"{given.__module__}:{given.__qualname__}"
    OWN[name] = given
    return name


# networks
PolicyName = Annotated[
    str,
    BeforeValidator(name_of_class),
    Field(description="name of the policy, module:Class or file.py:Class; rltrain.register_policy adds others"),
]
Widths = Annotated[tuple[int, ...], Field(strict=False, description="units of the hidden layers")]
Activation = Annotated[Literal["tanh", "relu"], Field(description="activation function of the hidden layers")]
NormalizeObs = Annotated[
    bool, Field(description="scale observations by their running mean and deviation, clipped at 10")
]


Sde = Annotated[
    bool,
    Field(description="explore Box actions by gSDE: noise that depends on the state, held for sde_every steps"),
]
SdeEvery = Annotated[int, Field(ge=1, description="steps for which one draw of sde's noise is held")]


class Settings(BaseModel):
    """What the settings of all algorithms have in common: they are checked strictly, and never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

    # Defaults for a kind of action, where they are not the defaults of the fields. They replace values that were not
    # given. DISCRETE holds for one agent with actions other than Box, without images, action masks and memory.
    BOX: ClassVar[dict[str, Any]] = {}
    DISCRETE: ClassVar[dict[str, Any]] = {}

    # Settings that cannot change during a run of this algorithm, although their types are CHANGEABLE.
    FIXED: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def defaults_for(cls, actions: Actions) -> dict[str, Any]:
        """BOX or DISCRETE, without the settings that a subclass declares: its default holds for all actions."""
        name = actions.upper()
        place = next(n for n, base in enumerate(cls.__mro__) if name in vars(base))
        declared = {setting for base in cls.__mro__[:place] for setting in inspect.get_annotations(base)}
        return {setting: value for setting, value in getattr(cls, name).items() if setting not in declared}

    def for_actions(self, actions: Actions, streams: int) -> Self:
        """These settings with the defaults for this kind of action, for a run of so many streams."""
        defaults = self.defaults_for(actions)
        changes = {name: value for name, value in defaults.items() if name not in self.model_fields_set}
        return type(self)(**{**self.model_dump(), **changes})


class Collect(Settings):
    """How experience is collected."""

    streams: Streams
    unroll: Unroll


class Optimise(Settings):
    """One optimiser."""

    lr: Lr
    adam_eps: AdamEps
    max_grad_norm: MaxGradNorm


class Network(Settings):
    """The networks of a policy."""

    policy: PolicyName
    torso: Annotated[str, BeforeValidator(name_of_class)] = Field(
        default="auto",
        description="auto, nature, impala, or module:Class or file.py:Class of an nn.Module: observations to features",
    )
    widths: Widths
    activation: Activation

    @model_validator(mode="after")
    def _layers_have_units(self) -> Self:
        if any(width < 1 for width in self.widths):
            raise ValueError(f"widths must each be at least 1, got {','.join(map(str, self.widths))}")
        return self


class TargetNetwork(Settings):
    """A target network that is copied every `target_every` updates or follows by `tau`: exactly one of them is set."""

    target_every: TargetEvery
    tau: Tau = None

    @model_validator(mode="before")
    @classmethod
    def _tau_replaces_the_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("tau") is not None and "target_every" not in data:
            return {**data, "target_every": None}
        return data

    @model_validator(mode="after")
    def _copies_or_follows(self) -> Self:
        if (self.tau is None) == (self.target_every is None):
            every, tau = ("none" if value is None else f"{value:g}" for value in (self.target_every, self.tau))
            raise ValueError(
                "the target network either copies every target_every updates or follows by tau, "
                f"got target_every {every} and tau {tau}; set one of them to none"
            )
        return self
