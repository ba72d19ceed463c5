"""The keywords of `rltrain.train` with their types, for editors and type checkers. Each is described by `--help`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

from pydantic import BaseModel


class Keywords(TypedDict, total=False):
    """Settings of a run and of its algorithm. An algorithm of your own gets its other settings in `settings`."""

    # of the run
    algo: str | type
    env: str | Callable[..., Any]
    env_args: Mapping[str, Any]
    eval_env: str | Callable[..., Any] | None
    eval_env_args: Mapping[str, Any]
    share: Literal["all", "type", "none"] | Mapping[str, str]
    freeze: Sequence[str]
    action_bound: float | None
    vector: Literal["auto", "serial", "native"]
    opponents: str | PathLike[str] | Sequence[str | PathLike[str]]
    init_from: str | PathLike[str] | None
    init_parts: Sequence[str] | None
    steps: int
    stop_return: float | None
    max_seconds: float | None
    pause_at: int | None
    seed: int | None
    pool_size: int
    pool_every: int
    pool_share: float
    streams: int
    workers: int
    backend: Literal["processes", "local", "dask"] | None
    cluster: Any
    cluster_timeout: float
    tls_ca: str | PathLike[str] | None
    tls_cert: str | PathLike[str] | None
    tls_key: str | PathLike[str] | None
    device: str
    inference: Literal["local", "central"]
    learners: int
    learner_threads: int
    deterministic: bool
    precision: Literal["float32", "bfloat16"]
    compile: bool
    actor_timeout: float
    max_restarts: int
    log_info: Sequence[str]
    callback: Sequence[str]
    out: str | PathLike[str]
    name: str | None
    eval_every: int
    eval_episodes: int
    checkpoint_every: int
    keep: int
    replay_on_disk: bool
    record: str | PathLike[str] | None
    replay_from: str | PathLike[str] | Sequence[str | PathLike[str]] | Mapping[Any, float] | None
    data: str | PathLike[str] | Sequence[str | PathLike[str]] | Mapping[Any, float] | None  # the same as replay_from
    then_online: int
    json: bool
    quiet: bool
    wandb: str | None
    mlflow: str | None
    preset: Literal["auto", "none"]
    settings: BaseModel

    # of the algorithm
    unroll: int
    epochs: int
    minibatches: int
    wait: int | None
    capacity: int
    batch: int
    filter_top: float | str | None
    q_weight: float
    conservative: float
    samples: int
    expectile: float
    advantage_factor: float
    max_weight: float
    norm_rate: float
    cosine: bool
    length: int
    burn_in: int
    warmup: int
    updates_per_step: float
    random_start: bool
    overlap: bool
    max_in_flight: int
    max_lag: int | None
    buffer_size: int
    reuse: int
    lr: float
    lr_q: float | None
    lr_temperature: float | None
    lr_end: float | None
    lr_end_share: float | None
    optimizer: Literal["rmsprop", "adam"]
    rms_alpha: float
    rms_eps: float
    adam_eps: float
    max_grad_norm: float
    gamma: float
    lam: float
    n_step: int
    normalize_advantage: bool
    rho_bar: float
    c_bar: float
    rho_bar_pg: float
    clip_reward: bool
    double: bool
    target_every: int | None
    tau: float | None
    critics: int
    target_critics: int | None
    policy_value: Literal["min", "mean", "first"]
    policy_delay: int
    smoothing: float
    smoothing_clip: float
    clip: float
    clip_end: float | None
    ratio_bar: float
    kl: float
    value_clip: float | None
    value: float
    entropy: float
    entropy_end: float | None
    max_kl: float | None
    loss: Literal["huber", "squared"]
    atoms: int
    v_min: float
    v_max: float
    quantiles: int
    drop: int
    temperature: float
    learn_temperature: bool
    target_entropy: float | None
    target_entropy_share: float
    gumbel: float
    regularize: float
    noise: float
    noise_end: float | None
    noise_kind: Literal["normal", "ou"]
    ou_theta: float
    prioritized: bool
    alpha: float
    beta: float
    priority_eps: float
    epsilon: float
    epsilon_end: float
    epsilon_share: float
    epsilon_per_stream: bool
    noisy: bool
    noise_per_stream: bool
    policy: str | Callable[..., Any]
    torso: str | Callable[..., Any]
    widths: Sequence[int]
    widths_q: Sequence[int] | None
    activation: Literal["tanh", "relu"]
    layer_norm: bool
    dropout: float
    init: Literal["uniform", "orthogonal"]
    dueling: bool
    shared_torso: bool
    log_std_init: float
    squash: bool
    sde: bool
    sde_every: int
    agent_ids: bool
    last_action: bool
    memory: Literal["none", "gru", "lstm"]
    memory_size: int
    critic_memory: bool
    sequence: int
    normalize_obs: bool
    normalize_return: bool
    reward_limit: float | None
    mixer_width: int
    hyper_width: int
