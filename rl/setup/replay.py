"""Creates the feed of a run: from streams, from a replay, or from a recording; checks that memory suffices."""

from __future__ import annotations

from pathlib import Path

from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.learner.algorithm import torch_device
from rltrain.learner.feed import Feed, GradientFeed, ReplayFeed, StreamFeed
from rltrain.rollout.replay.replay import rows_of
from rltrain.rollout.specs import DataPlan, GradientPlan, ReplayPlan, StreamPlan
from rltrain.setup.offline import OfflineFeed
from rltrain.storage.recording import Recording
from rltrain.system import free_space as room


def recording_of(config: RunConfig, spec: EnvSpec, plan: DataPlan) -> Recording | None:
    """What the replay is to be filled from in place of actors; None: nothing, or there is none, see `room_for`.

    Raises:
        CheckpointError: it is no recording, is damaged, or is of something else.
    """
    if config.replay_from is None or not isinstance(plan, ReplayPlan):
        return None
    return Recording.open(Path(config.replay_from), spec)


def room_for(
    config: RunConfig,
    spec: EnvSpec,
    plan: DataPlan,
    folder: Path | None,
    recording: Recording | None = None,
) -> list[str]:
    """What a person should know of the replay before the run begins; nothing where there is none.

    Args:
        folder:    of the run, where it is there already.
        recording: what the replay is to be filled from.

    Raises:
        ConfigError: it does not fit, or its settings do not fit each other.
    """
    if not isinstance(plan, ReplayPlan):
        for flag, asked in (("replay-on-disk", config.replay_on_disk), ("replay-from", config.replay_from)):
            if asked:
                raise ConfigError(f"--{flag}: {config.algo} learns from each unroll once and keeps no replay")
        return []
    warmup = 0 if config.replay_from else plan.warmup
    least = max(plan.batch, warmup)
    if plan.capacity < least:
        raise ConfigError(
            f"--capacity {plan.capacity} is smaller than --{'batch' if least == plan.batch else 'warmup'} {least}; "
            "the replay must hold what the first update is made from"
        )
    if warmup >= config.steps:
        raise ConfigError(
            f"--warmup {plan.warmup} leaves nothing to learn in --steps {config.steps}; "
            "ask for more steps or a smaller warmup"
        )
    from rltrain.rollout.replay.replay import Replay

    kept_spec, streams = _kept(config, spec, recording)
    try:
        needed = Replay.bytes_needed(kept_spec, streams, plan)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if plan.whole_episodes and spec.max_steps is not None and spec.max_steps > rows_of(streams, plan):
        raise ConfigError(
            f"--capacity {plan.capacity} keeps {rows_of(streams, plan)} steps of each of {streams} streams, and an "
            f"episode may have {spec.max_steps}: agents that remember learn from whole ones. Ask for more, or for "
            "fewer --streams"
        )
    return [room.make_sure(needed, (folder or Path(config.out)) if config.replay_on_disk else None)]


def make_feed(
    config: RunConfig,
    spec: EnvSpec,
    plan: DataPlan,
    folder: Path | None = None,
    recording: Recording | None = None,
) -> Feed:
    """Where the learner's batches come from, as the algorithm's plan says.

    Args:
        folder:    where a replay's files lie; None keeps it in memory.
        recording: what it is to be filled from, in place of actors.
    """
    device = torch_device(config.device)
    if isinstance(plan, StreamPlan):
        return StreamFeed(device, plan)
    if isinstance(plan, GradientPlan):
        return GradientFeed()
    from rltrain.rollout.replay.replay import Replay

    try:
        replay = Replay(*_kept(config, spec, recording), plan, config.seed, folder)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if recording is not None:
        return OfflineFeed(replay, plan, device, config.streams * plan.unroll)
    return ReplayFeed(replay, plan, device)


def _kept(config: RunConfig, spec: EnvSpec, recording: Recording | None) -> tuple[EnvSpec, int]:
    """What the rows of a replay hold, and of how many streams they are."""
    return (spec, config.streams) if recording is None else (recording.spec, recording.streams)
