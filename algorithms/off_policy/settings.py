"""Settings of DQN, SAC, TD3 and DDPG: the values of their papers, except where a note says otherwise."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rltrain.algorithms.settings import (
    CHANGEABLE,
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
    TargetNetwork,
    Unroll,
    Widths,
    default,
)

Capacity = Annotated[int, Field(ge=1, description="steps that the replay keeps, of all streams together")]
Batch = Annotated[int, Field(ge=1, description="samples per update")]
Warmup = Annotated[int, Field(ge=0, description="steps before the first update")]
UpdatesPerStep = Annotated[float, Field(gt=0, description="updates per environment step, kept exactly")]
RandomStart = Annotated[bool, Field(description="actions are random during the warmup")]
LrQ = Annotated[float | None, Field(gt=0, description="Adam step size of the critics; none: lr"), CHANGEABLE]
Share = Annotated[
    float, Field(gt=0, le=1, description="share by which the target networks follow at each update"), CHANGEABLE
]
ActionNoise = Annotated[
    float, Field(ge=0, description="deviation of the noise on actions, which are in [-1, 1]"), CHANGEABLE
]
NoiseEnd = Annotated[
    float | None, Field(ge=0, description="noise at the last step, reached linearly; none keeps it"), CHANGEABLE
]
NStep = Annotated[int, Field(ge=1, description="rewards summed before the bootstrap")]
Alpha = Annotated[float, Field(gt=0, description="exponent of priorities")]
NumCritics = Annotated[int, Field(ge=1, description="number of critics, whose smallest value is the target's")]
TargetCritics = Annotated[
    int | None,
    Field(ge=1, description="number of critics in the target, drawn at random at each update; none: all"),
]
LayerNorm = Annotated[bool, Field(description="layer normalisation in the hidden layers of the critics")]
Dropout = Annotated[float, Field(ge=0, lt=1, description="share of the critics' hidden units that are set to 0")]
WidthsQ = Annotated[
    tuple[int, ...] | None,
    Field(strict=False, description="units of the hidden layers of the critics; none: widths"),
]
PolicyDelay = Annotated[int, Field(ge=1, description="updates of the critics for one of the policy")]
PolicyValue = Annotated[
    Literal["min", "mean", "first"],
    Field(description="value that the policy maximises: the smallest of the critics, their mean, or the first"),
]
Epsilon = Annotated[float, Field(ge=0, le=1, description="probability of a random action at the start"), CHANGEABLE]
EpsilonShare = Annotated[
    float, Field(gt=0, le=1, description="share of the run's steps over which epsilon falls"), CHANGEABLE
]
Double = Annotated[bool, Field(description="double Q-learning: the online network chooses the next actions")]
CopyEvery = Annotated[
    int | None,
    Field(
        ge=0,
        description="updates between two copies of the target network; 0: one before each round of updates; "
        "none: use tau",
    ),
]
Atoms = Annotated[int, Field(ge=1, description="atoms of the distribution of returns; 1: plain values")]
Noisy = Annotated[
    bool, Field(description="noisy layers instead of epsilon; the learner draws their noise at each update")
]
Dueling = Annotated[bool, Field(description="separate value and advantages, each with its own last hidden layer")]
UsePriorities = Annotated[bool, Field(description="draw samples with probabilities that follow from their last error")]
ValueLoss = Annotated[Literal["huber", "squared"], Field(description="loss of the error of a value")]
Init = Annotated[
    Literal["uniform", "orthogonal"],
    Field(description="first weights after the torso: uniform in +-1 / sqrt(inputs), or orthogonal with biases 0"),
]


class Replay(Collect, Optimise, Network):
    """Learning from a replay."""

    streams: Streams = 1
    unroll: Unroll = default(1, "a round of updates follows each")
    capacity: Capacity = 1_000_000
    batch: Batch = 256
    warmup: Warmup = 1000
    updates_per_step: UpdatesPerStep = 1.0
    random_start: RandomStart = True
    overlap: Overlap = False
    adam_eps: AdamEps = 1e-8
    gamma: Gamma = 0.99
    activation: Activation = "relu"


class Prioritized(Settings):
    """What replays for one agent offer: n-step returns, priorities (Schaul et al. 2016, the proportional variant)."""

    n_step: NStep = 1
    prioritized: UsePriorities = False
    alpha: Alpha = 0.6
    beta: float = Field(
        default=0.4, ge=0, le=1, description="exponent of importance weights at the start; 1 at the end"
    )
    priority_eps: float = Field(
        default=1e-6, gt=0, description="added to each error, so that every sample can be drawn"
    )
    normalize_obs: NormalizeObs = False


SEQUENCES = 32  # of a batch with memory, if the batch is not given


class Memory(Settings):
    """A memory that is learnt from sequences of the replay, as in R2D2, Kapturowski et al. 2019."""

    length: int = Field(default=20, ge=1, description="with memory: steps of a sequence that are learnt from")
    burn_in: int = Field(default=10, ge=0, description="with memory: steps before them that only warm it up")
    memory: Literal["none", "gru", "lstm"] = Field(
        default="none", description="recurrent core behind the torso; updates are then made from sequences"
    )
    memory_size: int = Field(default=64, ge=1, description="H, units of the recurrent core")

    @model_validator(mode="before")
    @classmethod
    def _sequences_are_fewer(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("memory", "none") != "none" and "batch" not in data:
            return {**data, "batch": SEQUENCES}
        return data


class QLearning(Replay, TargetNetwork):
    """Values of discrete actions, epsilon-greedy exploration."""

    streams: Streams = default(8, "our choice, since it makes acting cheaper")
    unroll: Unroll = default(8, "a round of updates follows each; our choice")
    batch: Batch = 32
    updates_per_step: UpdatesPerStep = 0.25
    lr_end: LrEnd = None
    max_grad_norm: MaxGradNorm = 10.0
    clip_reward: ClipReward = False
    double: Double = False
    loss: ValueLoss
    epsilon: Epsilon = 1.0
    epsilon_end: Annotated[float, CHANGEABLE] = Field(
        default=0.05, ge=0, le=1, description="probability of a random action after epsilon_share"
    )
    epsilon_share: EpsilonShare = 0.1
    widths: Widths = (64, 64)
    init: Init = "uniform"


class DQNConfig(QLearning, Prioritized, Memory):
    """DQN and Rainbow. Defaults: Stable-Baselines3's DQN, except where a note says otherwise.

    Its step size and its target network are made for images. Without images the step size is five times larger, the
    target network is copied four times as often as with them, and Q-learning is double Q-learning.
    """

    DISCRETE: ClassVar[dict[str, Any]] = {"lr": 5e-4, "target_every": 250, "double": True}

    warmup: Warmup = default(1000, "Stable-Baselines3 uses 100, the paper 50_000 on Atari")
    lr: Lr = 1e-4
    adam_eps: AdamEps = default(1e-8, "Rainbow uses 1.5e-4")
    n_step: NStep = default(1, "Rainbow uses 3")
    target_every: CopyEvery = default(1000, "our choice; Stable-Baselines3's 10_000 steps are 2500 updates")
    loss: ValueLoss = default("huber", "C51 uses the cross-entropy")
    atoms: Atoms = default(1, "C51 uses 51")
    v_min: float = Field(default=-10.0, description="return of the lowest atom")
    v_max: float = Field(default=10.0, description="return of the highest atom")
    alpha: Alpha = default(0.6, "Rainbow uses 0.5")
    epsilon_per_stream: bool = Field(
        default=False, description="stream i of N explores with epsilon^(1 + 7 i / (N - 1)), as in Ape-X"
    )
    noisy: Noisy = False
    noise_per_stream: bool = Field(
        default=True,
        description="each step of each stream has its own noise of noisy layers; off: the noise of the last update",
    )
    policy: PolicyName = "q"
    init: Init = default("uniform", "not of noisy layers")
    dueling: Dueling = False

    @model_validator(mode="after")
    def _atoms_have_a_range(self) -> Self:
        if self.atoms > 1 and self.v_min >= self.v_max:
            raise ValueError(f"v_min must be below v_max, got {self.v_min:g} and {self.v_max:g}")
        return self


class RainbowConfig(DQNConfig):
    """Rainbow: DQN with all its extensions and the settings of Hessel et al. 2018 (arXiv:1710.02298) for Atari."""

    warmup: Warmup = 20_000
    lr: Lr = 6.25e-5
    adam_eps: AdamEps = 1.5e-4
    n_step: NStep = 3
    target_every: CopyEvery = default(2000, "32,000 frames")
    double: Double = True
    atoms: Atoms = 51
    prioritized: UsePriorities = True
    alpha: Alpha = 0.5
    noisy: Noisy = True
    dueling: Dueling = True


class Continuous(Replay, Prioritized):
    """One policy and its critics, each with an optimiser."""

    policy_norm: ClassVar[Literal["none", "batch"]] = "none"  # of the policy's hidden layers

    lr_q: LrQ = None
    lr_end_share: Annotated[float | None, CHANGEABLE] = Field(
        default=None,
        ge=0,
        le=1,
        description="share of all step sizes at the last step, reached linearly; none keeps them",
    )
    max_grad_norm: MaxGradNorm = default(0.0, "for each network")
    widths: Widths = (256, 256)


class Critics(Settings):
    """Several critics."""

    critics: NumCritics = 2
    widths_q: WidthsQ = None

    @model_validator(mode="after")
    def _layers_of_critics_have_units(self) -> Self:
        if any(width < 1 for width in self.widths_q or ()):
            raise ValueError(f"widths_q must each be at least 1, got {','.join(map(str, self.widths_q or ()))}")
        return self


class RegularizedCritics(Critics):
    """Critics with dropout and layer normalisation, as of DroQ."""

    layer_norm: LayerNorm = False
    dropout: Dropout = 0.0


class CriticSubsets(RegularizedCritics):
    """A random subset of the critics makes the target, as in REDQ."""

    target_critics: TargetCritics = None
    policy_value: PolicyValue = "min"

    @model_validator(mode="after")
    def _a_subset_is_no_larger(self) -> Self:
        if self.target_critics is not None and self.target_critics > self.critics:
            raise ValueError(
                f"target_critics must be at most critics, got target_critics {self.target_critics} "
                f"and critics {self.critics}"
            )
        return self


class NoisyActions(Settings):
    """Exploration by noise on actions."""

    noise: ActionNoise = 0.1
    noise_end: NoiseEnd = None
    noise_kind: Literal["normal", "ou"] = Field(default="normal", description="independent, or Ornstein-Uhlenbeck")
    ou_theta: float = Field(
        default=0.15, gt=0, le=1, description="share of Ornstein-Uhlenbeck noise that decays per step"
    )


class SoftSettings(Continuous):
    """SAC and the algorithms that are made from it: the entropy and its temperature."""

    warmup: Warmup = default(1000, "Stable-Baselines3 uses 100")
    lr: Lr = default(3e-4, "of the policy, and of the others without their own")
    lr_temperature: Annotated[float | None, CHANGEABLE] = Field(
        default=None, gt=0, description="Adam step size of log temperature; none: lr"
    )
    n_step: NStep = default(1, "without their entropy bonus")
    policy_delay: PolicyDelay = default(1, "and of the temperature")
    temperature: float = Field(default=1.0, ge=0, description="weight of the entropy; at the start, if it is learned")
    learn_temperature: bool = Field(
        default=True, description="adjust the temperature until the entropy is target_entropy"
    )
    target_entropy: float | None = Field(
        default=None,
        description="nats; none: minus the dimensions of a Box action; for Discrete ones target_entropy_share",
    )
    policy: PolicyName = "soft"

    @model_validator(mode="after")
    def _temperature_can_be_learned(self) -> Self:
        if self.learn_temperature and self.temperature == 0:
            raise ValueError("temperature must be above 0 to be learnt; for none at all set learn_temperature to false")
        return self


class SoftTargets(Settings):
    """Target networks that follow by a share."""

    tau: Share = 0.005
    target_every: int = Field(default=1, ge=1, description="updates between two steps of the target networks")


class StateDependentExploration(Settings):
    """gSDE, Raffin et al. 2021."""

    sde: Sde = False
    sde_every: SdeEvery = 8
    log_std_init: float = Field(default=-3.0, description="with sde: log of the deviation of each weight at the start")


class SACConfig(SoftSettings, SoftTargets, CriticSubsets, StateDependentExploration, Memory):
    """SAC. Defaults: Haarnoja et al. 2018 (arXiv:1812.05905)."""

    warmup: Warmup = default(100, "as in Stable-Baselines3; the authors' code uses 1000")
    batch: Batch = default(256, "with memory 32, which are sequences")
    target_entropy_share: float = Field(
        default=0.89,
        gt=0,
        le=1,
        description="of the log of the number of legal Discrete actions; the paper's 0.98 is too high",
    )


class REDQConfig(SACConfig):
    """REDQ: SAC with the settings of Chen et al. 2021 (arXiv:2101.05982)."""

    warmup: Warmup = 5000
    updates_per_step: UpdatesPerStep = 20.0
    policy_delay: PolicyDelay = default(20, "and of the temperature")
    critics: NumCritics = 10
    target_critics: TargetCritics = 2
    policy_value: PolicyValue = "mean"


class DroQConfig(SACConfig):
    """DroQ: SAC with the settings of Hiraoka et al. 2022 (arXiv:2110.02034)."""

    warmup: Warmup = 5000
    updates_per_step: UpdatesPerStep = 20.0
    policy_delay: PolicyDelay = default(20, "and of the temperature")
    policy_value: PolicyValue = "mean"
    layer_norm: LayerNorm = True
    dropout: Dropout = default(
        0.01, "the paper uses 0.0001 for Hopper, 0.005 for Walker2d, 0.01 for Ant, 0.1 for Humanoid"
    )


class TQCConfig(SoftSettings, SoftTargets, RegularizedCritics, StateDependentExploration):
    """TQC. Defaults: Kuznetsov et al. 2020 (arXiv:2005.04269)."""

    critics: Annotated[int, Field(ge=1, description="number of critics")] = 5
    widths_q: WidthsQ = (512, 512, 512)
    quantiles: int = Field(default=25, ge=1, description="quantiles of the return that a critic learns")
    drop: int = Field(
        default=2,
        ge=0,
        description="quantiles for each critic that the target leaves out, the largest; the paper uses 0 for "
        "HalfCheetah, 5 for Hopper",
    )

    @model_validator(mode="after")
    def _some_quantiles_are_kept(self) -> Self:
        if self.drop >= self.quantiles:
            raise ValueError(f"drop must be below quantiles, got drop {self.drop} and quantiles {self.quantiles}")
        return self


class CrossQConfig(SoftSettings, Critics):
    """CrossQ. Defaults: Bhatt et al. 2024 (arXiv:1902.05605)."""

    policy_norm: ClassVar[Literal["none", "batch"]] = "batch"

    warmup: Warmup = 5000
    lr: Lr = default(1e-3, "of the policy, and of the others without their own")
    policy_delay: PolicyDelay = default(3, "and of the temperature")
    widths_q: WidthsQ = default((2048, 2048), "256,256 takes a small part of the time")


class TD3Config(Continuous, CriticSubsets, NoisyActions):
    """TD3. Defaults: Fujimoto et al. 2018 and the authors' code."""

    batch: Batch = default(256, "the paper uses 100, the authors' code 256")
    warmup: Warmup = default(100, "as in Stable-Baselines3; the authors' code uses 25_000 for 1,000,000 steps")
    lr: Lr = default(1e-3, "of the policy, and of critics without their own; the authors' later code uses 3e-4")
    tau: Share = default(0.005, "each update of the policy")
    widths: Widths = default((400, 300), "as in the paper; the authors' later code uses 256,256")
    policy_delay: PolicyDelay = default(2, "and of all targets")
    policy_value: PolicyValue = "first"
    smoothing: Annotated[float, CHANGEABLE] = Field(
        default=0.2, ge=0, description="deviation of the noise on target actions, which are in [-1, 1]"
    )
    smoothing_clip: Annotated[float, CHANGEABLE] = Field(
        default=0.5, ge=0, description="largest absolute value of that noise"
    )
    policy: PolicyName = "deterministic"


class DDPGConfig(Continuous, NoisyActions):
    """DDPG. Defaults: Lillicrap et al. 2016 (arXiv:1509.02971)."""

    batch: Batch = default(256, "the paper uses 64")
    warmup: Warmup = default(1000, "our choice")
    lr: Lr = default(1e-4, "of the policy")
    lr_q: LrQ = 1e-3
    tau: Share = default(0.005, "the paper uses 0.001")
    noise: ActionNoise = default(0.1, "the paper uses Ornstein-Uhlenbeck noise of 0.2")
    policy: PolicyName = "deterministic"
    widths: Widths = (400, 300)
