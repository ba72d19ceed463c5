"""The settings of the algorithms: one line each, with unit and origin. Imports no torch, so that --help is quick."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Activation = Literal["tanh", "relu"]


class PPOConfig(BaseModel):
    """Settings of PPO. Defaults: the MuJoCo runs of Schulman et al. 2017, unless a line says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # what data an update gets
    streams: int = Field(8, ge=1, description="environments stepped side by side, in all; the Atari runs' 8")
    unroll: int = Field(128, ge=1, description="T, steps per stream and update; the Atari runs' 128")
    epochs: int = Field(4, ge=1, description="passes over one batch of unrolls")
    minibatches: int = Field(4, ge=1, description="pieces per pass; with memory, pieces of whole sequences")
    overlap: bool = Field(
        False, description="actors go on while the learner learns, one unroll behind; repeats with deterministic only"
    )

    # step sizes and their schedules, linear in the share of the run that is done
    lr: float = Field(3e-4, gt=0, description="Adam step size at the start")
    lr_end: float | None = Field(0.0, ge=0, description="Adam step size at the last step; none keeps lr")
    adam_eps: float = Field(1e-5, gt=0, description="Adam's epsilon; the authors' code, not the paper")
    max_grad_norm: float = Field(0.5, ge=0, description="L2 norm over all gradients; 0 turns clipping off")

    # targets
    gamma: float = Field(0.99, ge=0, le=1, description="discount per step")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of GAE")
    normalize_advantage: bool = Field(True, description="advantages to mean 0 and deviation 1 in each minibatch")
    clip_reward: bool = Field(False, description="learn from rewards clipped to [-1, 1]; reports have the raw ones")

    # loss
    clip: float = Field(0.2, gt=0, description="epsilon of the surrogate: the ratio is kept within 1 +- clip")
    clip_end: float | None = Field(None, ge=0, description="clip at the last step; none keeps clip")
    value_clip: float | None = Field(None, gt=0, description="largest change of a value in its loss; none: unclipped")
    value: float = Field(0.5, ge=0, description="weight of the value loss; the paper uses 1.0")
    entropy: float = Field(0.01, ge=0, description="weight of the entropy bonus; the Atari runs' 0.01")
    entropy_end: float | None = Field(None, ge=0, description="entropy weight at the last step; none keeps entropy")
    max_kl: float | None = Field(None, gt=0, description="ends the epochs once the approximate KL passes it, in nats")

    # networks
    policy: str = Field("actor_critic", description="name of the policy; users add theirs with rltrain.register_policy")
    torso: str = Field(
        "auto",
        description="auto, nature, impala, or module:Class of an nn.Module that turns observations into features",
    )
    widths: tuple[int, ...] = Field((64, 64), strict=False, description="units of the hidden layers")
    activation: Activation = Field("tanh", description="function between the layers")
    shared_torso: bool = Field(
        False, description="one torso and one set of hidden layers for policy and value, as always with memory"
    )
    log_std_init: float = Field(0.0, description="log of the Gaussian's deviation at the start, for Box actions")

    # memory
    memory: Literal["none", "gru", "lstm"] = Field("none", description="recurrent core behind the torso")
    memory_size: int = Field(64, ge=1, description="H, units of the recurrent core")
    sequence: int = Field(16, ge=1, description="L, rows a gradient goes back through; divides unroll")

    # normalisation, kept as buffers of the policy
    normalize_obs: bool = Field(False, description="observations by running mean and deviation, clipped at 10")
    normalize_return: bool = Field(False, description="rewards by the running deviation of the discounted return")

    @model_validator(mode="after")
    def _together(self) -> PPOConfig:
        check_network(self.widths, self.memory, self.sequence, self.unroll)
        return self


class A2CConfig(BaseModel):
    """Settings of A2C. Defaults: Mnih et al. 2016 in its synchronous form, unless a line says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # what data an update gets
    streams: int = Field(16, ge=1, description="environments stepped side by side, in all; the paper's 16 threads")
    unroll: int = Field(8, ge=1, description="T, steps per stream and update; the paper uses 5")

    # step size and its schedule, linear in the share of the run that is done
    lr: float = Field(7e-4, gt=0, description="step size at the start")
    lr_end: float | None = Field(0.0, ge=0, description="step size at the last step; none keeps lr")
    optimizer: Literal["rmsprop", "adam"] = Field("rmsprop", description="what turns gradients into steps")
    rms_alpha: float = Field(0.99, gt=0, lt=1, description="RMSprop's memory of squared gradients")
    rms_eps: float = Field(1e-5, gt=0, description="RMSprop's epsilon, added to the root; the paper uses 0.1")
    adam_eps: float = Field(1e-5, gt=0, description="Adam's epsilon")
    max_grad_norm: float = Field(0.5, ge=0, description="L2 norm over all gradients; 0 turns clipping off")

    # targets
    gamma: float = Field(0.99, ge=0, le=1, description="discount per step")
    lam: float = Field(1.0, ge=0, le=1, description="lambda of GAE; 1 is the paper's n-step return")
    normalize_advantage: bool = Field(False, description="advantages to mean 0 and deviation 1 in each update")
    clip_reward: bool = Field(False, description="learn from rewards clipped to [-1, 1]; reports have the raw ones")

    # loss
    value: float = Field(0.5, ge=0, description="weight of the value loss")
    entropy: float = Field(0.01, ge=0, description="weight of the entropy bonus")
    entropy_end: float | None = Field(None, ge=0, description="entropy weight at the last step; none keeps entropy")

    # networks
    policy: str = Field("actor_critic", description="name of the policy; users add theirs with rltrain.register_policy")
    torso: str = Field(
        "auto",
        description="auto, nature, impala, or module:Class of an nn.Module that turns observations into features",
    )
    widths: tuple[int, ...] = Field((64, 64), strict=False, description="units of the hidden layers")
    activation: Activation = Field("tanh", description="function between the layers")
    shared_torso: bool = Field(
        False, description="one torso and one set of hidden layers for policy and value, as always with memory"
    )
    log_std_init: float = Field(0.0, description="log of the Gaussian's deviation at the start, for Box actions")

    # memory
    memory: Literal["none", "gru", "lstm"] = Field("none", description="recurrent core behind the torso")
    memory_size: int = Field(64, ge=1, description="H, units of the recurrent core")
    sequence: int = Field(8, ge=1, description="L, rows a gradient goes back through; divides unroll")

    # normalisation, kept as buffers of the policy
    normalize_obs: bool = Field(False, description="observations by running mean and deviation, clipped at 10")
    normalize_return: bool = Field(False, description="rewards by the running deviation of the discounted return")

    @model_validator(mode="after")
    def _together(self) -> A2CConfig:
        check_network(self.widths, self.memory, self.sequence, self.unroll)
        return self


def check_network(widths: tuple[int, ...], memory: str, sequence: int, unroll: int) -> None:
    """What holds between settings of a network; raises ValueError with one line."""
    check_widths(widths)
    if memory != "none" and unroll % sequence:
        raise ValueError(f"sequence must divide unroll, got sequence {sequence} and unroll {unroll}")


def check_widths(widths: tuple[int, ...]) -> None:
    """ValueError with one line if a layer has no unit."""
    if any(width < 1 for width in widths):
        raise ValueError(f"widths must each be at least 1, got {','.join(map(str, widths))}")
