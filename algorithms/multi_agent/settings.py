"""The settings of algorithms for several agents: one line each, with unit and origin. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rltrain.algorithms.on_policy.settings import PPOConfig
from rltrain.algorithms.settings import Activation, check_widths


class VDNConfig(BaseModel):
    """Settings of VDN. Defaults: those of EPyMARL's QMIX and VDN, unless a line says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # what is collected, kept and sampled
    streams: int = Field(8, ge=1, description="environments stepped side by side, in all; ours, acting is cheaper so")
    unroll: int = Field(8, ge=1, description="T, steps per stream between two rounds of updates; ours")
    capacity: int = Field(100_000, ge=1, description="rows the replay keeps, of all streams together; ours")
    batch: int = Field(32, ge=1, description="sequences per update; with memory or last_action, whole episodes")
    length: int = Field(
        1, ge=1, description="consecutive rows of a sequence; with memory or last_action it is the episode's"
    )
    warmup: int = Field(1000, ge=0, description="steps before the first update; ours")
    updates_per_step: float = Field(0.25, gt=0, description="updates per environment step, kept exactly; ours")
    random_start: bool = Field(True, description="actions are random, not the policy's, during the warmup")
    overlap: bool = Field(False, description="actors go on while the learner learns; repeats with deterministic only")

    # step size and its schedule, linear in the share of the run that is done
    lr: float = Field(5e-4, gt=0, description="Adam step size at the start")
    lr_end: float | None = Field(None, ge=0, description="Adam step size at the last step; none keeps lr")
    adam_eps: float = Field(1e-5, gt=0, description="Adam's epsilon")
    max_grad_norm: float = Field(10.0, ge=0, description="L2 norm over all gradients; 0 turns clipping off")

    # targets
    gamma: float = Field(0.99, ge=0, le=1, description="discount per step")
    clip_reward: bool = Field(False, description="learn from rewards clipped to [-1, 1]; reports have the raw ones")
    double: bool = Field(True, description="double Q-learning: the online network chooses the next actions")
    target_every: int | None = Field(200, ge=1, description="updates between copies of the target network; none: tau")
    tau: float | None = Field(
        None, gt=0, le=1, description="share by which the target network follows after each update; none: target_every"
    )
    loss: Literal["huber", "squared"] = Field("squared", description="of the error of a value")

    # exploration
    epsilon: float = Field(1.0, ge=0, le=1, description="probability of a random action at the start, for each agent")
    epsilon_end: float = Field(0.05, ge=0, le=1, description="probability of a random action after epsilon_share")
    epsilon_share: float = Field(0.1, gt=0, le=1, description="share of the run's steps over which epsilon falls; ours")

    # networks
    policy: str = Field("team_q", description="name of the policy; users add theirs with rltrain.register_policy")
    torso: str = Field(
        "auto",
        description="auto, nature, impala, or module:Class of an nn.Module that turns observations into features",
    )
    widths: tuple[int, ...] = Field((64, 64), strict=False, description="units of the agents' hidden layers")
    activation: Activation = Field("relu", description="function between the layers")
    init: Literal["uniform", "orthogonal"] = Field(
        "uniform",
        description="first weights and biases: uniform in +-1 / sqrt(inputs), or orthogonal and 0; not the torso",
    )
    agent_ids: bool = Field(True, description="agents that share a network see which of them they are")
    last_action: bool = Field(False, description="agents see what they did in the step before; ours, theirs do")

    # memory
    memory: Literal["none", "gru"] = Field("none", description="recurrent core behind an agent's hidden layers")
    memory_size: int = Field(64, ge=1, description="H, units of the recurrent core")

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_follow(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("tau") is not None and "target_every" not in data:
            return {**data, "target_every": None}
        return data

    @model_validator(mode="after")
    def _together(self) -> VDNConfig:
        check_widths(self.widths)
        if (self.tau is None) == (self.target_every is None):
            raise ValueError("the target network either copies every target_every updates or follows by tau: set one")
        return self


class QMIXConfig(VDNConfig):
    """Settings of QMIX: those of VDN, and its mixer's."""

    mixer_width: int = Field(32, ge=1, description="units of the mixer's hidden layer; the paper's 32")
    hyper_width: int = Field(
        64,
        ge=0,
        description="units of the hidden layer between state and the mixer's weights; 0: none, as in the paper",
    )


class MAPPOConfig(PPOConfig):
    """Settings of MAPPO: those of PPO, with defaults of the authors' code where a line says so."""

    epochs: int = Field(10, ge=1, description="passes over one batch of unrolls; the authors' 10")
    minibatches: int = Field(1, ge=1, description="pieces per pass; the authors' 1, whole batches")
    lr: float = Field(5e-4, gt=0, description="Adam step size at the start; the authors'")
    max_grad_norm: float = Field(
        10.0, ge=0, description="L2 norm over all gradients; 0 turns clipping off; the authors'"
    )
    value_clip: float | None = Field(0.2, gt=0, description="largest change of a value in its loss; none: unclipped")
    value: float = Field(1.0, ge=0, description="weight of the value loss; the authors' 1")
    policy: str = Field("central", description="name of the policy; central: its value sees the global state")
    normalize_return: bool = Field(True, description="rewards by the running deviation of the discounted return")


class IQLConfig(VDNConfig):
    """Settings of independent Q-learning: those of VDN."""


class MADDPGConfig(BaseModel):
    """Settings of MADDPG. Defaults: those of the authors' code (Lowe et al. 2017), unless a line says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # what is collected, kept and sampled
    streams: int = Field(8, ge=1, description="environments stepped side by side, in all; ours, acting is cheaper so")
    unroll: int = Field(8, ge=1, description="T, steps per stream between two rounds of updates; ours")
    capacity: int = Field(200_000, ge=1, description="rows the replay keeps, of all streams; the authors' 1,000,000")
    batch: int = Field(256, ge=1, description="rows per update, all agents in each; the authors' 1024")
    warmup: int = Field(2000, ge=0, description="steps before the first update; the authors' 25,600")
    updates_per_step: float = Field(0.05, gt=0, description="updates per environment step; the authors' 0.01")
    random_start: bool = Field(True, description="actions are random, not the policy's, during the warmup; ours")
    overlap: bool = Field(False, description="actors go on while the learner learns; repeats with deterministic only")

    # steps
    lr: float = Field(1e-2, gt=0, description="Adam step size of the actors, and of the critics if they have none")
    lr_q: float | None = Field(None, gt=0, description="Adam step size of the critics; none: lr")
    adam_eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    max_grad_norm: float = Field(
        0.5, ge=0, description="L2 norm over the gradients of all actors, or all critics; 0 turns clipping off"
    )

    # targets
    gamma: float = Field(0.95, ge=0, le=1, description="discount per step")
    tau: float = Field(0.01, gt=0, le=1, description="share by which all targets follow after each update")
    clip_reward: bool = Field(False, description="learn from rewards clipped to [-1, 1]; reports have the raw ones")

    # policy
    gumbel: float = Field(1.0, gt=0, description="temperature of the Gumbel softmax; Discrete actions only")
    regularize: float = Field(1e-3, ge=0, description="weight of the mean square of what actors put out, as logits")
    noise: float = Field(0.1, ge=0, description="deviation of the noise on Box actions, which are in [-1, 1]; ours")
    noise_end: float | None = Field(None, ge=0, description="the same at the last step, reached linearly; none: noise")

    # networks
    policy: str = Field("team_actors", description="name of the policy; users add theirs with rltrain.register_policy")
    torso: str = Field(
        "auto",
        description="auto, nature, impala, or module:Class of an nn.Module that turns observations into features",
    )
    widths: tuple[int, ...] = Field((64, 64), strict=False, description="units of the hidden layers")
    activation: Activation = Field("relu", description="function between the layers")
    agent_ids: bool = Field(True, description="agents that share an actor see which of them they are; ours")

    @model_validator(mode="after")
    def _together(self) -> MADDPGConfig:
        check_widths(self.widths)
        return self
