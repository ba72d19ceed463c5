"""Settings of VDN, QMIX, IQL, MAPPO and MADDPG: the values of their papers, except where a note says otherwise."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rltrain.algorithms.off_policy.settings import (
    ActionNoise,
    Batch,
    Capacity,
    Double,
    Epsilon,
    EpsilonShare,
    LrQ,
    NoiseEnd,
    QLearning,
    RandomStart,
    Replay,
    Share,
    UpdatesPerStep,
    ValueLoss,
    Warmup,
)
from rltrain.algorithms.on_policy.settings import (
    Epochs,
    Minibatches,
    NormalizeReturn,
    PPOConfig,
    RewardLimit,
    Value,
    ValueClip,
)
from rltrain.algorithms.settings import (
    CHANGEABLE,
    AdamEps,
    ClipReward,
    Gamma,
    Lr,
    MaxGradNorm,
    PolicyName,
    Streams,
    TargetEvery,
    Unroll,
    Widths,
    default,
)

AgentIds = Annotated[bool, Field(description="agents that share a network observe their own number")]


class VDNConfig(QLearning):
    """VDN. Defaults: EPyMARL's QMIX and VDN, except where a note says otherwise."""

    capacity: Capacity = default(100_000, "our choice")
    batch: Batch = default(
        32, "each a sequence of length steps; with memory or last_action an entire episode, as EPyMARL's 32 always are"
    )
    length: int = Field(
        default=1, ge=1, description="steps of a sequence; with memory or last_action, of the entire episode"
    )
    warmup: Warmup = default(1000, "our choice")
    updates_per_step: UpdatesPerStep = default(0.25, "our choice")
    lr: Lr = 5e-4
    adam_eps: AdamEps = 1e-5
    double: Double = True
    target_every: TargetEvery = 200
    loss: ValueLoss = "squared"
    epsilon: Epsilon = default(1.0, "for each agent")
    epsilon_share: EpsilonShare = default(0.1, "our choice")
    policy: PolicyName = "team_q"
    agent_ids: AgentIds = True
    last_action: bool = Field(
        default=False, description="agents observe their previous action; our choice, EPyMARL uses it"
    )
    memory: Literal["none", "gru"] = Field(default="none", description="recurrent core after an agent's hidden layers")
    memory_size: int = Field(default=64, ge=1, description="H, units of the recurrent core")


class QMIXConfig(VDNConfig):
    """QMIX: VDN with a mixing network."""

    mixer_width: int = Field(default=32, ge=1, description="units of the mixer's hidden layer; the paper's 32")
    hyper_width: int = Field(
        default=64,
        ge=0,
        description="hidden units from the state to the mixer's weights; 0: no hidden layer, as in the paper",
    )


class IQLConfig(VDNConfig):
    """Independent Q-learning: VDN without the sum of values."""


class MAPPOConfig(PPOConfig):
    """MAPPO: PPO with a central value function. Defaults with a note are those of the authors' code."""

    BOX: ClassVar[dict[str, Any]] = {}  # the authors use one set of values
    DISCRETE: ClassVar[dict[str, Any]] = {}

    epochs: Epochs = default(10, "the authors use 10")
    minibatches: Minibatches = default(1, "the authors use 1")
    lr: Lr = default(5e-4, "the authors' value")
    max_grad_norm: MaxGradNorm = default(10.0, "the authors' value")
    value_clip: ValueClip = 0.2
    value: Value = default(1.0, "the authors' value")
    policy: PolicyName = default("central", "central: its value function uses the global state")
    critic_memory: bool = Field(
        default=True, description="with memory, the value function has one of its own; off: it sees one state only"
    )
    normalize_return: NormalizeReturn = True
    reward_limit: RewardLimit = default(None, "the authors normalise values instead of rewards")


class MADDPGConfig(Replay):
    """MADDPG. Defaults: the code of Lowe et al. 2017."""

    streams: Streams = default(8, "our choice, since it makes acting cheaper")
    unroll: Unroll = default(8, "a round of updates follows each; our choice")
    capacity: Capacity = default(200_000, "the authors use 1_000_000")
    batch: Batch = default(256, "each with all agents; the authors use 1024")
    warmup: Warmup = default(2000, "the authors use 25_600")
    updates_per_step: UpdatesPerStep = default(0.05, "the authors use 0.01")
    random_start: RandomStart = default(True, "our choice")
    lr: Lr = default(1e-2, "of the actors, and of critics without their own")
    lr_q: LrQ = None
    max_grad_norm: MaxGradNorm = default(0.5, "of all actors, or of all critics")
    gamma: Gamma = 0.95
    tau: Share = 0.01
    clip_reward: ClipReward = False
    gumbel: float = Field(default=1.0, gt=0, description="temperature of the Gumbel softmax; Discrete actions only")
    regularize: Annotated[float, CHANGEABLE] = Field(
        default=1e-3, ge=0, description="weight of the mean square of the actors' outputs, as logits"
    )
    noise: ActionNoise = default(0.1, "Box actions only; our choice")
    noise_end: NoiseEnd = None
    policy: PolicyName = "team_actors"
    widths: Widths = (64, 64)
    agent_ids: AgentIds = default(True, "our choice")
