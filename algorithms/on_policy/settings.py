"""Settings of PPO, A2C, IMPALA, APPO and A3C: the values of their papers, except where a note says otherwise."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rltrain.algorithms.settings import (
    CHANGEABLE,
    Actions,
    Activation,
    AdamEps,
    ClipReward,
    Collect,
    Gamma,
    Lr,
    LrEnd,
    MaxGradNorm,
    Network,
    NormalizeObs,
    Optimise,
    Overlap,
    PolicyName,
    Sde,
    SdeEvery,
    Settings,
    Streams,
    TargetEvery,
    TargetNetwork,
    Unroll,
    Widths,
    default,
)

Lam = Annotated[float, Field(ge=0, le=1, description="lambda of GAE or V-trace; 1: n-step returns"), CHANGEABLE]
Entropy = Annotated[float, Field(ge=0, description="weight of the entropy bonus"), CHANGEABLE]
EntropyEnd = Annotated[
    float | None, Field(ge=0, description="entropy at the last step, reached linearly; none keeps it"), CHANGEABLE
]
Value = Annotated[float, Field(ge=0, description="weight of the value loss"), CHANGEABLE]
SequenceLength = Annotated[int, Field(ge=1, description="L, steps that gradients flow back through; divides unroll")]
NormalizeReturn = Annotated[bool, Field(description="divide rewards by the running deviation of the discounted return")]
RewardLimit = Annotated[
    float | None,
    Field(gt=0, description="with normalize_return: largest absolute value of a scaled reward; none: no limit"),
]
NormalizeAdvantage = Annotated[
    bool, Field(description="scale the advantages in each minibatch to mean 0 and deviation 1")
]
Epochs = Annotated[int, Field(ge=1, description="passes over one batch of unrolls")]
Minibatches = Annotated[int, Field(ge=1, description="minibatches per pass; with memory, of whole sequences")]
Clip = Annotated[
    float, Field(gt=0, description="epsilon of the surrogate: the ratio is clipped to 1 +- clip"), CHANGEABLE
]
ClipEnd = Annotated[
    float | None, Field(ge=0, description="clip at the last step, reached linearly; none keeps clip"), CHANGEABLE
]
ValueClip = Annotated[
    float | None,
    Field(gt=0, description="largest change of a value that its loss counts; none: no clipping"),
    CHANGEABLE,
]
MaxKl = Annotated[
    float | None, Field(gt=0, description="approximate KL divergence, in nats, that ends the epochs"), CHANGEABLE
]
Kl = Annotated[float, Field(ge=0, description="weight of KL(target network || policy); 0: not computed"), CHANGEABLE]
RmsEps = Annotated[float, Field(gt=0, description="RMSprop's epsilon, added to the root")]
Wait = Annotated[int | None, Field(ge=1, description="streams that an update waits for; none: all of them")]
MaxInFlight = Annotated[int, Field(ge=1, description="unrolls that an actor may be ahead of the learner")]


MINIBATCH_STEPS = 64  # of the MuJoCo runs of Schulman et al. 2017


class ActorCriticSettings(Collect, Optimise, Network):
    """All actor-critic algorithms."""

    lr_end: LrEnd = 0.0
    adam_eps: AdamEps = 1e-5
    max_grad_norm: MaxGradNorm = 0.5
    gamma: Gamma = 0.99
    lam: Lam = 1.0
    clip_reward: ClipReward = False
    value: Value = 0.5
    entropy: Entropy = 0.01

    policy: PolicyName = "actor_critic"
    widths: Widths = (64, 64)
    activation: Activation = "tanh"
    shared_torso: bool = Field(
        default=False, description="policy and value share torso and hidden layers; with memory they always do"
    )
    log_std_init: float = Field(
        default=0.0,
        description="log of the Gaussian's deviation at the start, for Box actions; with sde that of each weight, for "
        "which -2 is usual",
    )
    squash: bool = Field(default=False, description="Box actions are tanh of a Gaussian, so that none is clipped")
    sde: Sde = False
    sde_every: SdeEvery = 8
    memory: Literal["none", "gru", "lstm"] = Field(default="none", description="recurrent core after the hidden layers")
    memory_size: int = Field(default=64, ge=1, description="H, units of the recurrent core")
    sequence: SequenceLength

    @model_validator(mode="after")
    def _sequences_fill_the_unroll(self) -> Self:
        if self.memory != "none" and self.unroll % self.sequence:
            raise ValueError(f"sequence must divide unroll, got sequence {self.sequence} and unroll {self.unroll}")
        return self


class LearnerActorCriticSettings(ActorCriticSettings):
    """Actor-critic algorithms whose learner has the observations: it can keep running statistics of them."""

    BOX: ClassVar[dict[str, Any]] = {"entropy": 0.0, "normalize_obs": True, "normalize_return": True}

    entropy_end: EntropyEnd = None
    normalize_obs: NormalizeObs = False
    normalize_return: NormalizeReturn = False
    reward_limit: RewardLimit = default(10.0, "from the code of PPO's authors")


class RMSprop(Settings):
    """RMSprop, with Adam as the alternative."""

    optimizer: Literal["rmsprop", "adam"] = Field(default="rmsprop", description="optimiser of the learner")
    rms_alpha: float = Field(default=0.99, gt=0, lt=1, description="RMSprop's decay of squared gradients")
    rms_eps: RmsEps = default(1e-5, "the paper uses 0.1")


class Asynchronous(Settings):
    """Actors that act while the learner learns."""

    overlap: Overlap = True
    max_in_flight: MaxInFlight = default(1, "our choice")
    max_lag: int | None = Field(
        default=None,
        ge=1,
        description="unrolls whose weights are older than this number of updates are dropped; none: never",
    )


class VTrace(Asynchronous):
    """Learning from the first unrolls to arrive, with V-trace."""

    wait: Wait
    rho_bar: float = Field(
        default=1.0, gt=0, description="upper bound of importance weights in the errors; decides what V converges to"
    )
    c_bar: float = Field(
        default=1.0, gt=0, description="upper bound of importance weights in the trace; at most rho_bar"
    )
    rho_bar_pg: float = Field(default=1.0, gt=0, description="upper bound of importance weights of the policy gradient")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.c_bar > self.rho_bar:
            raise ValueError(f"c_bar must be at most rho_bar, got c_bar {self.c_bar} and rho_bar {self.rho_bar}")
        return self


class PPOConfig(LearnerActorCriticSettings):
    """PPO. `lr`, `gamma`, `lam` and `clip` are those of the MuJoCo runs of Schulman et al. 2017.

    For Box actions the others are, too: 2048 steps for an update, 10 passes, minibatches of 64 steps, no entropy bonus;
    and observations and rewards are normalised, as in the authors' code. For Discrete actions without images they are
    the same, but the entropy bonus stays that of Atari, and the step size does not fall, as in Stable-Baselines3.
    """

    BOX: ClassVar[dict[str, Any]] = {
        "unroll": 256,
        "epochs": 10,
        "minibatches": 32,
        **LearnerActorCriticSettings.BOX,
    }
    DISCRETE: ClassVar[dict[str, Any]] = {
        "unroll": 256,
        "epochs": 10,
        "minibatches": 32,
        "lr_end": None,
        "normalize_obs": True,
        "normalize_return": True,
    }

    streams: Streams = default(8, "the value for Atari")
    unroll: Unroll = default(128, "the value for Atari")
    epochs: Epochs = default(4, "our choice")
    minibatches: Minibatches = default(4, "for Box and Discrete actions fewer if they would have less than 64 steps")
    overlap: Overlap = default(False, "unrolls are then one update old")
    lr: Lr = 3e-4
    adam_eps: AdamEps = default(1e-5, "from the authors' code")
    lam: Lam = 0.95
    normalize_advantage: NormalizeAdvantage = True
    clip: Clip = 0.2
    clip_end: ClipEnd = None
    value_clip: ValueClip = None
    value: Value = default(0.5, "the paper's 1.0, without the half of the squared error, is 2.0 here")
    entropy: Entropy = default(0.01, "the value for Atari")
    max_kl: MaxKl = None
    sequence: SequenceLength = 16

    def for_actions(self, actions: Actions, streams: int) -> Self:
        """See `Settings`; minibatches have at least 64 steps."""
        settings = super().for_actions(actions, streams)
        if "minibatches" in self.model_fields_set or "minibatches" not in self.defaults_for(actions):
            return settings
        steps = MINIBATCH_STEPS if self.memory == "none" else max(MINIBATCH_STEPS, self.sequence)
        most = max(1, streams * settings.unroll // steps)
        return settings.model_copy(update={"minibatches": min(settings.minibatches, most)})


class A2CConfig(LearnerActorCriticSettings, RMSprop):
    """A2C. Defaults: Mnih et al. 2016 in its synchronous form, except for those of BOX and DISCRETE.

    Box actions with bounds are tanh of a Gaussian: without it the mean can leave the bounds so far that the environment
    clips all samples to the same action, and nothing moves it back. `lam` for Box actions is RL Zoo's. BOX and
    DISCRETE keep the step size constant, as Stable-Baselines3 does.
    """

    BOX: ClassVar[dict[str, Any]] = {"lr_end": None, "lam": 0.9, "squash": True, **LearnerActorCriticSettings.BOX}
    DISCRETE: ClassVar[dict[str, Any]] = {"lr_end": None, "normalize_obs": True, "normalize_return": True}

    streams: Streams = default(4, "the paper uses 16, for runs of many millions of steps")
    unroll: Unroll = 5
    lr: Lr = 7e-4
    normalize_advantage: NormalizeAdvantage = default(False, "a minibatch is the whole batch here")
    sequence: SequenceLength = default(5, "with a memory and another unroll: the whole unroll")

    @model_validator(mode="before")
    @classmethod
    def _sequence_is_the_unroll(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("memory", "none") != "none" and "sequence" not in data:
            return {**data, "sequence": data["unroll"]} if "unroll" in data else data
        return data


class IMPALAConfig(LearnerActorCriticSettings, RMSprop, VTrace):
    """IMPALA. Defaults: the Atari runs of Espeholt et al. 2018."""

    streams: Streams = default(16, "our choice")
    unroll: Unroll = 20
    wait: Wait = default(8, "the paper uses 32")
    lr: Lr = 6e-4
    rms_eps: RmsEps = default(1e-5, "the paper's 0.1 is for sums of gradients")
    adam_eps: AdamEps = default(1e-5, "our choice")
    max_grad_norm: MaxGradNorm = default(0.5, "the paper's 40 is for sums of gradients")
    sequence: SequenceLength = 20


class APPOConfig(LearnerActorCriticSettings, TargetNetwork, VTrace):
    """APPO. Defaults: RLlib's APPO."""

    streams: Streams = default(16, "our choice")
    unroll: Unroll = 50
    wait: Wait = default(8, "RLlib's batch has 10")
    buffer_size: int = Field(default=4, ge=1, description="batches in the circular buffer")
    reuse: int = Field(default=2, ge=1, description="updates for each new batch, over the batches in the buffer")
    lr: Lr = 5e-4
    lr_end: LrEnd = None
    adam_eps: AdamEps = default(1e-5, "from the code of PPO's authors")
    max_grad_norm: MaxGradNorm = default(0.5, "RLlib uses 40")
    target_every: TargetEvery = 2
    clip: Clip = 0.4
    clip_end: ClipEnd = None
    ratio_bar: float = Field(
        default=2.0, ge=1, description="upper bound of the actor's probability over the target network's"
    )
    kl: Kl = 0.0
    sequence: SequenceLength = 25


class A3CConfig(ActorCriticSettings, RMSprop, Asynchronous):
    """A3C. Defaults: Mnih et al. 2016."""

    BOX: ClassVar[dict[str, Any]] = {"entropy": 1e-4}

    streams: Streams = default(16, "the paper's 16 threads")
    unroll: Unroll = default(8, "the paper uses 5")
    max_in_flight: MaxInFlight = default(1, "the paper's threads: 1")
    lr: Lr = 7e-4
    max_grad_norm: MaxGradNorm = default(0.5, "for each actor")
    sequence: SequenceLength = 8

    FIXED: ClassVar[tuple[str, ...]] = ("entropy", "value", "lam", "max_grad_norm")  # the actors use them

    # Not settings: running statistics need the observations, which stay with the actors.
    normalize_obs: ClassVar[bool] = False
    normalize_return: ClassVar[bool] = False
    reward_limit: ClassVar[None] = None
