"""Settings of DQN, SAC, TD3 and DDPG: the values of their papers, unless a line says otherwise."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rltrain.algorithms.settings import Activation, check_widths


class DQNConfig(BaseModel):
    """Settings of DQN and Rainbow. Defaults: those of Stable-Baselines3's DQN, unless a line says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # what is collected, kept and sampled
    streams: int = Field(8, ge=1, description="environments stepped side by side, in all; ours, acting is cheaper so")
    unroll: int = Field(8, ge=1, description="T, steps per stream between two rounds of updates; ours")
    capacity: int = Field(1_000_000, ge=1, description="rows the replay keeps, of all streams together")
    batch: int = Field(32, ge=1, description="transitions per update")
    warmup: int = Field(1000, ge=0, description="steps before the first update; the paper uses 50_000 on Atari")
    updates_per_step: float = Field(0.25, gt=0, description="updates per environment step, kept exactly")
    random_start: bool = Field(True, description="actions are random, not the policy's, during the warmup")
    overlap: bool = Field(False, description="actors go on while the learner learns; repeats with deterministic only")

    # step size and its schedule, linear in the share of the run that is done
    lr: float = Field(1e-4, gt=0, description="Adam step size at the start")
    lr_end: float | None = Field(None, ge=0, description="Adam step size at the last step; none keeps lr")
    adam_eps: float = Field(1e-8, gt=0, description="Adam's epsilon; Rainbow uses 1.5e-4")
    max_grad_norm: float = Field(10.0, ge=0, description="L2 norm over all gradients; 0 turns clipping off")

    # targets
    gamma: float = Field(0.99, ge=0, le=1, description="discount per step")
    n_step: int = Field(1, ge=1, description="rewards summed before the bootstrap; Rainbow uses 3")
    clip_reward: bool = Field(False, description="learn from rewards clipped to [-1, 1]; reports have the raw ones")
    double: bool = Field(False, description="double Q-learning: the online network chooses the next action")
    target_every: int | None = Field(
        1000,
        ge=0,
        description="updates between copies of the target network; 0: one before each round of updates; none: tau",
    )
    tau: float | None = Field(
        None, gt=0, le=1, description="share by which the target network follows after each update; none: target_every"
    )
    loss: Literal["huber", "squared"] = Field("huber", description="of the error of a value; C51 has the cross-entropy")

    # distributional: C51
    atoms: int = Field(1, ge=1, description="returns that a value's distribution is over; 1: plain values, C51 has 51")
    v_min: float = Field(-10.0, description="the lowest of those returns")
    v_max: float = Field(10.0, description="the highest of those returns")

    # prioritised replay; defaults of the paper's proportional variant
    prioritized: bool = Field(False, description="samples are drawn by their last error")
    alpha: float = Field(0.6, gt=0, description="exponent of priorities; Rainbow uses 0.5")
    beta: float = Field(0.4, ge=0, le=1, description="exponent of importance weights at the start; 1 at the end")
    priority_eps: float = Field(1e-6, gt=0, description="added to each error, so that no sample is forgotten")

    # exploration
    epsilon: float = Field(1.0, ge=0, le=1, description="probability of a random action at the start")
    epsilon_end: float = Field(0.05, ge=0, le=1, description="probability of a random action after epsilon_share")
    epsilon_share: float = Field(0.1, gt=0, le=1, description="share of the run's steps over which epsilon falls")
    epsilon_per_stream: bool = Field(
        False, description="stream i of N explores with epsilon^(1 + 7 i / (N - 1)), as in Ape-X"
    )
    noisy: bool = Field(False, description="noisy layers in place of epsilon; their noise is drawn at each update")

    # networks
    policy: str = Field("q", description="name of the policy; users add theirs with rltrain.register_policy")
    torso: str = Field(
        "auto",
        description="auto, nature, impala, or module:Class of an nn.Module that turns observations into features",
    )
    widths: tuple[int, ...] = Field((64, 64), strict=False, description="units of the hidden layers")
    activation: Activation = Field("relu", description="function between the layers")
    init: Literal["uniform", "orthogonal"] = Field(
        "uniform",
        description="first weights behind the torso: uniform in +-1 / sqrt(inputs), or orthogonal; not of noisy layers",
    )
    dueling: bool = Field(False, description="value and advantages apart, each with its own last hidden layer")

    # normalisation, kept as buffers of the policy
    normalize_obs: bool = Field(False, description="observations by running mean and deviation, clipped at 10")

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_follow(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("tau") is not None and "target_every" not in data:
            return {**data, "target_every": None}
        return data

    @model_validator(mode="after")
    def _together(self) -> DQNConfig:
        check_widths(self.widths)
        if (self.tau is None) == (self.target_every is None):
            raise ValueError(
                f"the target network either copies every target_every updates or follows by tau, got target_every "
                f"{_named(self.target_every)} and tau {_named(self.tau)}; set one of them to none"
            )
        if self.atoms > 1 and self.v_min >= self.v_max:
            raise ValueError(f"v_min must be below v_max, got {self.v_min:g} and {self.v_max:g}")
        return self


def _named(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


class SACConfig(BaseModel):
    """Settings of SAC. Defaults: Haarnoja et al. 2018 (arXiv:1812.05905), unless a line says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # what is collected, kept and sampled
    streams: int = Field(1, ge=1, description="environments stepped side by side, in all")
    unroll: int = Field(1, ge=1, description="T, steps per stream between two rounds of updates")
    capacity: int = Field(1_000_000, ge=1, description="rows the replay keeps, of all streams together")
    batch: int = Field(256, ge=1, description="transitions per update")
    warmup: int = Field(1000, ge=0, description="steps before the first update; Stable-Baselines3 uses 100")
    updates_per_step: float = Field(1.0, gt=0, description="updates per environment step, kept exactly")
    random_start: bool = Field(True, description="actions are random, not the policy's, during the warmup")
    overlap: bool = Field(False, description="actors go on while the learner learns; repeats with deterministic only")

    # steps
    lr: float = Field(3e-4, gt=0, description="Adam step size of the policy, and of what has none of its own")
    lr_q: float | None = Field(None, gt=0, description="Adam step size of the critics; none: lr")
    lr_temperature: float | None = Field(None, gt=0, description="Adam step size of log temperature; none: lr")
    lr_end_share: float | None = Field(
        None, ge=0, le=1, description="share of all step sizes that is left at the last step, linear; none keeps them"
    )
    adam_eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    max_grad_norm: float = Field(0.0, ge=0, description="L2 norm over all gradients of a network; 0 turns clipping off")

    # targets
    gamma: float = Field(0.99, ge=0, le=1, description="discount per step")
    n_step: int = Field(1, ge=1, description="rewards summed before the bootstrap; their entropy bonus is left out")
    tau: float = Field(0.005, gt=0, le=1, description="share by which target critics follow")
    target_every: int = Field(1, ge=1, description="updates between two steps of the target critics")

    # entropy
    temperature: float = Field(1.0, ge=0, description="weight of the entropy, at the start where it is learnt")
    learn_temperature: bool = Field(True, description="move the temperature until the entropy is target_entropy")
    target_entropy: float | None = Field(
        None, description="nats; none: minus the dimensions of a Box action, or for Discrete ones target_entropy_share"
    )
    target_entropy_share: float = Field(
        0.89, gt=0, le=1, description="of the log of the number of legal Discrete actions; the paper's 0.98 is too high"
    )

    # prioritised replay; defaults of the paper's proportional variant (Schaul et al. 2016)
    prioritized: bool = Field(False, description="samples are drawn by their last error")
    alpha: float = Field(0.6, gt=0, description="exponent of priorities")
    beta: float = Field(0.4, ge=0, le=1, description="exponent of importance weights at the start; 1 at the end")
    priority_eps: float = Field(1e-6, gt=0, description="added to each error, so that no sample is forgotten")

    # networks
    policy: str = Field("soft", description="name of the policy; users add theirs with rltrain.register_policy")
    torso: str = Field(
        "auto",
        description="auto, nature, impala, or module:Class of an nn.Module that turns observations into features",
    )
    widths: tuple[int, ...] = Field((256, 256), strict=False, description="units of the hidden layers")
    activation: Activation = Field("relu", description="function between the layers")

    # normalisation, kept as buffers of the policy
    normalize_obs: bool = Field(False, description="observations by running mean and deviation, clipped at 10")

    @model_validator(mode="after")
    def _together(self) -> SACConfig:
        check_widths(self.widths)
        if self.learn_temperature and self.temperature == 0:
            raise ValueError("temperature must be above 0 to be learnt; for none at all set learn_temperature to false")
        return self


class TD3Config(BaseModel):
    """Settings of TD3. Defaults: Fujimoto et al. 2018 and their code, unless a line says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # what is collected, kept and sampled
    streams: int = Field(1, ge=1, description="environments stepped side by side, in all")
    unroll: int = Field(1, ge=1, description="T, steps per stream between two rounds of updates")
    capacity: int = Field(1_000_000, ge=1, description="rows the replay keeps, of all streams together")
    batch: int = Field(256, ge=1, description="transitions per update; the paper uses 100, the authors' code 256")
    warmup: int = Field(10_000, ge=0, description="steps before the first update; the authors' code uses 25_000")
    updates_per_step: float = Field(1.0, gt=0, description="updates per environment step, kept exactly")
    random_start: bool = Field(True, description="actions are random, not the policy's, during the warmup")
    overlap: bool = Field(False, description="actors go on while the learner learns; repeats with deterministic only")

    # steps
    lr: float = Field(3e-4, gt=0, description="Adam step size of the policy, and of the critics if they have none")
    lr_q: float | None = Field(None, gt=0, description="Adam step size of the critics; none: lr")
    lr_end_share: float | None = Field(
        None, ge=0, le=1, description="share of all step sizes that is left at the last step, linear; none keeps them"
    )
    adam_eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    max_grad_norm: float = Field(0.0, ge=0, description="L2 norm over all gradients of a network; 0 turns clipping off")

    # targets
    gamma: float = Field(0.99, ge=0, le=1, description="discount per step")
    n_step: int = Field(1, ge=1, description="rewards summed before the bootstrap")
    tau: float = Field(0.005, gt=0, le=1, description="share by which all targets follow, whenever the policy moves")
    policy_delay: int = Field(2, ge=1, description="updates of the critics for one of the policy and all targets")
    smoothing: float = Field(0.2, ge=0, description="deviation of the noise on target actions, which are in [-1, 1]")
    smoothing_clip: float = Field(0.5, ge=0, description="largest size of that noise")

    # exploration
    noise: float = Field(0.1, ge=0, description="deviation of the noise on actions, which are in [-1, 1]")
    noise_end: float | None = Field(None, ge=0, description="the same at the last step, reached linearly; none: noise")
    noise_kind: Literal["normal", "ou"] = Field("normal", description="independent, or Ornstein-Uhlenbeck")
    ou_theta: float = Field(0.15, gt=0, le=1, description="share by which Ornstein-Uhlenbeck noise falls back per step")

    # prioritised replay; defaults of the paper's proportional variant (Schaul et al. 2016)
    prioritized: bool = Field(False, description="samples are drawn by their last error")
    alpha: float = Field(0.6, gt=0, description="exponent of priorities")
    beta: float = Field(0.4, ge=0, le=1, description="exponent of importance weights at the start; 1 at the end")
    priority_eps: float = Field(1e-6, gt=0, description="added to each error, so that no sample is forgotten")

    # networks
    policy: str = Field(
        "deterministic", description="name of the policy; users add theirs with rltrain.register_policy"
    )
    torso: str = Field(
        "auto",
        description="auto, nature, impala, or module:Class of an nn.Module that turns observations into features",
    )
    widths: tuple[int, ...] = Field((256, 256), strict=False, description="units of the hidden layers")
    activation: Activation = Field("relu", description="function between the layers")

    # normalisation, kept as buffers of the policy
    normalize_obs: bool = Field(False, description="observations by running mean and deviation, clipped at 10")

    @model_validator(mode="after")
    def _together(self) -> TD3Config:
        check_widths(self.widths)
        return self


class DDPGConfig(BaseModel):
    """Settings of DDPG. Defaults: Lillicrap et al. 2016 (arXiv:1509.02971), unless a line says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # what is collected, kept and sampled
    streams: int = Field(1, ge=1, description="environments stepped side by side, in all")
    unroll: int = Field(1, ge=1, description="T, steps per stream between two rounds of updates")
    capacity: int = Field(1_000_000, ge=1, description="rows the replay keeps, of all streams together")
    batch: int = Field(256, ge=1, description="transitions per update; the paper uses 64")
    warmup: int = Field(10_000, ge=0, description="steps before the first update; ours, as for TD3")
    updates_per_step: float = Field(1.0, gt=0, description="updates per environment step, kept exactly")
    random_start: bool = Field(True, description="actions are random, not the policy's, during the warmup")
    overlap: bool = Field(False, description="actors go on while the learner learns; repeats with deterministic only")

    # steps
    lr: float = Field(1e-4, gt=0, description="Adam step size of the policy")
    lr_q: float | None = Field(1e-3, gt=0, description="Adam step size of the critic; none: lr")
    lr_end_share: float | None = Field(
        None, ge=0, le=1, description="share of all step sizes that is left at the last step, linear; none keeps them"
    )
    adam_eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    max_grad_norm: float = Field(0.0, ge=0, description="L2 norm over all gradients of a network; 0 turns clipping off")

    # targets
    gamma: float = Field(0.99, ge=0, le=1, description="discount per step")
    n_step: int = Field(1, ge=1, description="rewards summed before the bootstrap")
    tau: float = Field(0.005, gt=0, le=1, description="share by which both targets follow; the paper uses 0.001")

    # exploration
    noise: float = Field(0.1, ge=0, description="deviation of the noise on actions, in [-1, 1]; the paper has OU 0.2")
    noise_end: float | None = Field(None, ge=0, description="the same at the last step, reached linearly; none: noise")
    noise_kind: Literal["normal", "ou"] = Field("normal", description="independent, or Ornstein-Uhlenbeck")
    ou_theta: float = Field(0.15, gt=0, le=1, description="share by which Ornstein-Uhlenbeck noise falls back per step")

    # prioritised replay; defaults of the paper's proportional variant (Schaul et al. 2016)
    prioritized: bool = Field(False, description="samples are drawn by their last error")
    alpha: float = Field(0.6, gt=0, description="exponent of priorities")
    beta: float = Field(0.4, ge=0, le=1, description="exponent of importance weights at the start; 1 at the end")
    priority_eps: float = Field(1e-6, gt=0, description="added to each error, so that no sample is forgotten")

    # networks
    policy: str = Field(
        "deterministic", description="name of the policy; users add theirs with rltrain.register_policy"
    )
    torso: str = Field(
        "auto",
        description="auto, nature, impala, or module:Class of an nn.Module that turns observations into features",
    )
    widths: tuple[int, ...] = Field((400, 300), strict=False, description="units of the hidden layers")
    activation: Activation = Field("relu", description="function between the layers")

    # normalisation, kept as buffers of the policy
    normalize_obs: bool = Field(False, description="observations by running mean and deviation, clipped at 10")

    @model_validator(mode="after")
    def _together(self) -> DDPGConfig:
        check_widths(self.widths)
        return self
