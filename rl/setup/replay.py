"""Decides what a run learns from, checks that memory suffices, and creates the feed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.learner.algorithm import torch_device
from rltrain.learner.feed import Feed, GradientFeed, ReplayFeed, StreamFeed
from rltrain.rollout.replay.replay import Replay, rows_per_stream
from rltrain.rollout.replay.ring import history
from rltrain.rollout.specs import DataPlan, GradientPlan, ReplayPlan, StreamPlan
from rltrain.setup.offline import OfflineFeed, steps_each
from rltrain.storage.recording import Recording
from rltrain.system.free_space import make_sure


@dataclass(frozen=True)
class DataSource:
    """What a run learns from: the unrolls of its actors, or a recording in their place."""

    plan: DataPlan  # of the algorithm
    spec: EnvSpec  # of the rows; a recording has its own
    streams: int
    recording: Recording | None = None


def open_data(
    config: RunConfig, spec: EnvSpec, plan: DataPlan, folder: Path | None = None
) -> tuple[DataSource, list[str]]:
    """What the run learns from; the note says how much memory or disk space a replay takes.

    Args:
        folder: the run's, if it exists already.

    Raises:
        ConfigError: the replay does not fit into memory or on the disk, or its settings contradict each other.
        CheckpointError: the recording is damaged, or is of another environment.
    """
    if not isinstance(plan, ReplayPlan):
        for flag, value in (("replay-on-disk", config.replay_on_disk), ("replay-from", config.replay_from)):
            if value:
                what = f"{config.algo} learns from each unroll once and keeps no replay"
                raise ConfigError(f"--{flag}: {what}; use dqn, sac or td3")
        return DataSource(plan, spec, config.streams), []
    data = DataSource(plan, spec, config.streams)
    if config.replay_from is not None:
        recording = Recording.open(Path(config.replay_from).absolute(), spec)
        rows = recording.rows_per_stream(history(recording.spec))
        if plan.data_only:
            rows = rows + plan.n_step if plan.n_step > 1 else max(rows, plan.n_step + 1)
            plan = dataclasses.replace(plan, capacity=recording.streams * rows)
        data = DataSource(plan, recording.spec, recording.streams, recording)
    warmup = 0 if config.replay_from else plan.warmup
    least = max(plan.batch, warmup)
    if plan.capacity < least and not plan.data_only:
        raise ConfigError(
            f"--capacity {plan.capacity} is smaller than --{'batch' if least == plan.batch else 'warmup'} {least}; "
            "the replay must hold what the first update is made from"
        )
    if warmup >= config.steps:
        raise ConfigError(
            f"--warmup {plan.warmup} leaves nothing to learn in --steps {config.steps}; "
            "ask for more steps or a smaller warmup"
        )
    if plan.core_size and not config.replay_from and config.steps < config.streams * plan.window:
        raise ConfigError(
            f"--burn-in {plan.burn_in} and --length {plan.length} ask for sequences of {plan.window} steps, and with "
            f"--steps {config.steps} each of {config.streams} streams has {config.steps // config.streams}: ask for "
            "more steps, shorter sequences or fewer --streams"
        )
    try:
        needed = Replay.bytes_needed(data.spec, data.streams, plan)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    rows = rows_per_stream(data.streams, plan)
    if plan.whole_episodes and spec.max_steps is not None and spec.max_steps > rows:
        raise ConfigError(
            f"--capacity {plan.capacity} keeps {rows} steps of each of {data.streams} streams, and an episode may have "
            f"{spec.max_steps} steps: agents with memory learn from complete episodes. Ask for a larger --capacity or "
            "fewer --streams"
        )
    return data, [make_sure(needed, (folder or Path(config.out)) if config.replay_on_disk else None)]


def make_feed(config: RunConfig, data: DataSource, files: Path | None = None) -> Feed:
    """Makes the learner's batches from what is delivered, as the algorithm's plan says.

    Args:
        files: folder of a replay on disk.
    """
    device, plan = torch_device(config.device), data.plan
    if isinstance(plan, StreamPlan):
        return StreamFeed(device, plan)
    if isinstance(plan, GradientPlan):
        return GradientFeed()
    try:
        replay = Replay(data.spec, data.streams, plan, config.seed, files if config.replay_on_disk else None)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if data.recording is not None:
        return OfflineFeed(replay, plan, device, steps_each(config, plan))
    return ReplayFeed(replay, plan, device)
