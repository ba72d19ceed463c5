"""Settings of PPO, A2C, IMPALA, APPO and A3C: the values of their papers, unless a line says otherwise."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rltrain.algorithms.settings import Activation, check_network


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


class IMPALAConfig(BaseModel):
    """Settings of IMPALA. Defaults: the Atari runs of Espeholt et al. 2018, unless a line says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # what data an update gets
    streams: int = Field(16, ge=1, description="environments stepped side by side, in all; ours")
    unroll: int = Field(20, ge=1, description="T, steps per stream and unroll")
    wait: int | None = Field(8, ge=1, description="streams an update waits for; none: all of them; the paper has 32")
    overlap: bool = Field(True, description="actors go on while the learner learns; repeats with deterministic only")
    max_in_flight: int = Field(1, ge=1, description="unrolls an actor may be ahead of the learner; ours")
    max_lag: int | None = Field(
        None, ge=1, description="updates since an unroll's weights, above which it is dropped; none: never"
    )

    # step size and its schedule, linear in the share of the run that is done
    lr: float = Field(6e-4, gt=0, description="step size at the start")
    lr_end: float | None = Field(0.0, ge=0, description="step size at the last step; none keeps lr")
    optimizer: Literal["rmsprop", "adam"] = Field("rmsprop", description="what turns gradients into steps")
    rms_alpha: float = Field(0.99, gt=0, lt=1, description="RMSprop's memory of squared gradients")
    rms_eps: float = Field(1e-5, gt=0, description="RMSprop's epsilon, added to the root; the paper's 0.1 is for sums")
    adam_eps: float = Field(1e-5, gt=0, description="Adam's epsilon; ours")
    max_grad_norm: float = Field(
        0.5, ge=0, description="L2 norm over all gradients; 0 turns clipping off; the paper's 40 is for sums"
    )

    # targets
    gamma: float = Field(0.99, ge=0, le=1, description="discount per step")
    lam: float = Field(1.0, ge=0, le=1, description="lambda of V-trace; 1 is n-step returns where the data is fresh")
    rho_bar: float = Field(1.0, gt=0, description="bound of importance weights in the errors: what V converges to")
    c_bar: float = Field(1.0, gt=0, description="bound of importance weights along the trace; at most rho_bar")
    rho_bar_pg: float = Field(1.0, gt=0, description="bound of importance weights of the policy's gradient")
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
    sequence: int = Field(20, ge=1, description="L, rows a gradient goes back through; divides unroll")

    # normalisation, kept as buffers of the policy
    normalize_obs: bool = Field(False, description="observations by running mean and deviation, clipped at 10")
    normalize_return: bool = Field(False, description="rewards by the running deviation of the discounted return")

    @model_validator(mode="after")
    def _together(self) -> IMPALAConfig:
        check_network(self.widths, self.memory, self.sequence, self.unroll)
        check_bounds(self.rho_bar, self.c_bar)
        return self


class APPOConfig(BaseModel):
    """Settings of APPO. Defaults: RLlib's APPO, unless a line says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # what data an update gets
    streams: int = Field(16, ge=1, description="environments stepped side by side, in all; ours")
    unroll: int = Field(50, ge=1, description="T, steps per stream and unroll")
    wait: int | None = Field(8, ge=1, description="streams an update waits for; none: all of them; RLlib's batch is 10")
    overlap: bool = Field(True, description="actors go on while the learner learns; repeats with deterministic only")
    max_in_flight: int = Field(1, ge=1, description="unrolls an actor may be ahead of the learner; ours")
    max_lag: int | None = Field(
        None, ge=1, description="updates since an unroll's weights, above which it is dropped; none: never"
    )
    buffer_size: int = Field(4, ge=1, description="batches in the circular buffer")
    reuse: int = Field(2, ge=1, description="updates for each batch that comes in, over those in the buffer")

    # step size and its schedule, linear in the share of the run that is done
    lr: float = Field(5e-4, gt=0, description="Adam step size at the start")
    lr_end: float | None = Field(None, ge=0, description="Adam step size at the last step; none keeps lr")
    adam_eps: float = Field(1e-5, gt=0, description="Adam's epsilon; that of PPO's authors")
    max_grad_norm: float = Field(0.5, ge=0, description="L2 norm over all gradients; 0 turns clipping off; RLlib's 40")

    # targets
    gamma: float = Field(0.99, ge=0, le=1, description="discount per step")
    lam: float = Field(1.0, ge=0, le=1, description="lambda of V-trace; 1 is n-step returns where the data is fresh")
    rho_bar: float = Field(1.0, gt=0, description="bound of importance weights in the errors: what V converges to")
    c_bar: float = Field(1.0, gt=0, description="bound of importance weights along the trace; at most rho_bar")
    rho_bar_pg: float = Field(1.0, gt=0, description="bound of importance weights of the policy's gradient")
    target_every: int | None = Field(2, ge=1, description="updates between copies of the target network; none: tau")
    tau: float | None = Field(
        None, gt=0, le=1, description="share by which the target network follows after each update; none: target_every"
    )
    clip_reward: bool = Field(False, description="learn from rewards clipped to [-1, 1]; reports have the raw ones")

    # loss
    clip: float = Field(0.4, gt=0, description="epsilon of the surrogate: the ratio is kept within 1 +- clip")
    clip_end: float | None = Field(None, ge=0, description="clip at the last step; none keeps clip")
    ratio_bar: float = Field(2.0, ge=1, description="bound of the actor's probability over the target network's")
    kl: float = Field(0.0, ge=0, description="weight of KL(target network || policy); 0: left out")
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
    sequence: int = Field(25, ge=1, description="L, rows a gradient goes back through; divides unroll")

    # normalisation, kept as buffers of the policy
    normalize_obs: bool = Field(False, description="observations by running mean and deviation, clipped at 10")
    normalize_return: bool = Field(False, description="rewards by the running deviation of the discounted return")

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_follow(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("tau") is not None and "target_every" not in data:
            return {**data, "target_every": None}
        return data

    @model_validator(mode="after")
    def _together(self) -> APPOConfig:
        check_network(self.widths, self.memory, self.sequence, self.unroll)
        check_bounds(self.rho_bar, self.c_bar)
        if (self.target_every is None) == (self.tau is None):
            raise ValueError(
                "the target network either copies every target_every updates or follows by tau; set one of them to none"
            )
        return self


class A3CConfig(BaseModel):
    """Settings of A3C. Defaults: Mnih et al. 2016, unless a line says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # what data a gradient is made of
    streams: int = Field(16, ge=1, description="environments stepped side by side, in all; the paper's 16 threads")
    unroll: int = Field(8, ge=1, description="T, steps per stream and gradient; the paper uses 5")
    overlap: bool = Field(True, description="actors go on while the learner learns; repeats with deterministic only")
    max_in_flight: int = Field(
        1, ge=1, description="unrolls an actor may be ahead of the learner; the paper's threads: 1"
    )
    max_lag: int | None = Field(
        None, ge=1, description="updates since a gradient's weights, above which it is dropped; none: never"
    )

    # step size and its schedule, linear in the share of the run that is done
    lr: float = Field(7e-4, gt=0, description="step size at the start")
    lr_end: float | None = Field(0.0, ge=0, description="step size at the last step; none keeps lr")
    optimizer: Literal["rmsprop", "adam"] = Field("rmsprop", description="what turns gradients into steps, for all")
    rms_alpha: float = Field(0.99, gt=0, lt=1, description="RMSprop's memory of squared gradients")
    rms_eps: float = Field(1e-5, gt=0, description="RMSprop's epsilon, added to the root; the paper uses 0.1")
    adam_eps: float = Field(1e-5, gt=0, description="Adam's epsilon")
    max_grad_norm: float = Field(0.5, ge=0, description="L2 norm over all gradients of an actor; 0 turns clipping off")

    # targets
    gamma: float = Field(0.99, ge=0, le=1, description="discount per step")
    lam: float = Field(1.0, ge=0, le=1, description="lambda of the returns; 1 is the paper's n-step return")
    clip_reward: bool = Field(False, description="learn from rewards clipped to [-1, 1]; reports have the raw ones")

    # loss
    value: float = Field(0.5, ge=0, description="weight of the value loss")
    entropy: float = Field(0.01, ge=0, description="weight of the entropy bonus")

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

    # no settings: running statistics would need the observations, and these stay with the actors
    normalize_obs: ClassVar[bool] = False
    normalize_return: ClassVar[bool] = False

    @model_validator(mode="after")
    def _together(self) -> A3CConfig:
        check_network(self.widths, self.memory, self.sequence, self.unroll)
        return self


def check_bounds(rho_bar: float, c_bar: float) -> None:
    """What V-trace asks of its bounds; raises ValueError with one line."""
    if c_bar > rho_bar:
        raise ValueError(f"c_bar must be at most rho_bar, got c_bar {c_bar} and rho_bar {rho_bar}")
