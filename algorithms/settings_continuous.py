"""The settings of SAC, TD3 and DDPG: one line each, with unit and origin. Imports no torch, so that --help is quick."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rltrain.algorithms.settings import Activation, check_widths


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
