"""Decides what a run learns from, checks that memory suffices, and creates the feed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rltrain.config.run_config import RunConfig
from rltrain.envs.seeding import REPLAY, seed_of
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.learner.algorithm import torch_device
from rltrain.learner.feed import Feed, GradientFeed, ReplayFeed, StreamFeed
from rltrain.rollout.replay.mixture import Mixture
from rltrain.rollout.replay.replay import Replay, rows_per_stream
from rltrain.rollout.replay.ring import history
from rltrain.rollout.specs import DataPlan, GradientPlan, ReplayPlan, StreamPlan
from rltrain.setup.offline import OfflineFeed, data_sets, steps_each
from rltrain.storage.recording import Recording, Reference, reference_of
from rltrain.system.free_space import make_sure

if TYPE_CHECKING:
    from rltrain.algorithms.multi_agent.independent import GroupView
    from rltrain.learner.agent_replays import AgentReplays


class DataSet(NamedTuple):
    """A recording, and how its replay keeps all of it."""

    recording: Recording
    plan: ReplayPlan
    share: float | None  # of the samples; None: in proportion to its rows


@dataclass(frozen=True)
class DataSource:
    """What a run learns from: the unrolls of its actors, or a recording in their place."""

    plan: DataPlan  # of the algorithm
    spec: EnvSpec  # of the rows; a recording has its own
    streams: int
    sets: tuple[DataSet, ...] = ()
    online: ReplayPlan | None = None  # of the rows of actors that act later

    def reference(self, config: RunConfig, spec: EnvSpec) -> Reference | None:
        """The reference scores of the recordings, if all say the same ones and evaluations are in that environment."""
        if config.eval_env is not None or config.eval_env_args:
            return None
        found = {reference_of(one.recording.run, spec, config.env_args) for one in self.sets}
        return found.pop() if len(found) == 1 else None

    @property
    def by_agent(self) -> bool:
        """True if the algorithm of one agent learns from a recording of several: each group has replays of its own."""
        return isinstance(self.plan, ReplayPlan) and self.plan.data_only and bool(self.spec.groups)

    def views(self) -> list[GroupView | None]:
        """Of the groups of agents that have replays of their own; [None]: there is one for all."""
        if not self.by_agent:
            return [None]
        from rltrain.algorithms.multi_agent.independent import group_views

        return [*group_views(self.spec)]

    @property
    def mixed(self) -> bool:
        """True if samples come from several replays."""
        return len(self.sets) > 1 or self.online is not None


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
        data = _recorded(config, spec, plan)
        plan = plan if data.mixed else data.sets[0].plan
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
        needed = sum(Replay.bytes_needed(*one) for view in data.views() for one in _replays(data, view))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    rows = None if data.mixed or data.by_agent else rows_per_stream(data.streams, plan)
    if plan.whole_episodes and spec.max_steps is not None and rows is not None and spec.max_steps > rows:
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
    folder = files if config.replay_on_disk else None
    replay: Replay | Mixture | AgentReplays
    try:
        if data.by_agent:
            replay = _agent_replays(config, data, plan, folder)
        else:
            replay, _ = _replay(data, None, plan, config.seed, folder)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if data.sets:
        return OfflineFeed(replay, plan, device, steps_each(config, plan))
    return ReplayFeed(replay, plan, device)


def _replay(
    data: DataSource, view: GroupView | None, plan: ReplayPlan, seed: int, folder: Path | None
) -> tuple[Replay | Mixture, list[Replay]]:
    """What the run, or a group of agents, learns from, and the replays that it consists of: that of actors is last."""
    if not data.mixed:
        ((spec, streams, of_one),) = _replays(data, view)
        replay = Replay(spec, streams, of_one, seed, folder)
        return replay, [replay]
    parts = [
        Replay(spec, streams, of_one, seed_of(seed, REPLAY, n), None if folder is None else folder / str(n))
        for n, (spec, streams, of_one) in enumerate(_replays(data, view))
    ]
    shares = [one.share for one in data.sets if one.share is not None]
    recorded, online = (parts, None) if data.online is None else (parts[:-1], parts[-1])
    return Mixture(recorded, shares, online, plan.batch, seed), parts


def _agent_replays(config: RunConfig, data: DataSource, plan: ReplayPlan, folder: Path | None) -> AgentReplays:
    """The replays of each group of agents."""
    from rltrain.learner.agent_replays import AgentReplays, AgentRows

    views = [view for view in data.views() if view is not None]
    made = [
        _replay(
            data, view, plan, seed_of(config.seed, REPLAY, len(data.sets) + 1, n),
            None if folder is None else folder / f"group{n}",
        )
        for n, view in enumerate(views)
    ]  # fmt: skip
    streams = [one.recording.streams for one in data.sets] + [config.streams] * (data.online is not None)
    rows = [
        AgentRows(views, [parts[n] for _, parts in made], of_source, plan.core_size)
        for n, of_source in enumerate(streams)
    ]
    online = None if data.online is None else rows.pop()
    frozen = [n for n, view in enumerate(views) if view.group.name in config.freeze]
    return AgentReplays([replay for replay, _ in made], rows, online, frozen)


def _recorded(config: RunConfig, spec: EnvSpec, plan: ReplayPlan) -> DataSource:
    """The recordings that `--data` names, and the replay of later actors. Raises as `open_data`."""
    named = data_sets(str(config.replay_from))
    mixed = len(named) > 1 or config.then_online > 0
    what = "several folders" if len(named) > 1 else "--then-online"
    if mixed and (plan.alpha or plan.whole_episodes):
        kind = "priorities" if plan.alpha else "samples of whole episodes, which the memory here needs,"
        raise ConfigError(f"--data: {what} and {kind} do not go together")
    if plan.best is not None and (mixed or plan.core_size):
        other = what if mixed else "--memory"
        instead = "" if spec.groups else "; rldata filter selects episodes before"
        raise ConfigError(f"--filter-top and {other} do not go together{instead}")
    if config.then_online and config.algo == "bc":
        raise ConfigError("--then-online: bc would imitate its own actions; use another algorithm")
    sets = []
    for folder, share in named:
        recording = Recording.open(folder.absolute(), spec)
        of_one = plan
        rows = recording.rows_per_stream(history(recording.spec))
        if plan.data_only or mixed:
            following = _following(plan)
            rows = rows + following if following > 1 else max(rows, following + 1)
            of_one = dataclasses.replace(plan, capacity=recording.streams * rows)
        sets.append(DataSet(recording, of_one, share))
    first = sets[0]
    if not mixed:
        return DataSource(first.plan, first.recording.spec, first.recording.streams, (first,))
    online = None
    if config.then_online:
        least = config.streams * (_following(plan) + plan.unroll + 1)
        online = dataclasses.replace(plan, capacity=max(plan.capacity, least, config.then_online * plan.data_only))
    return DataSource(plan, spec, config.streams, tuple(sets), online)


def _following(plan: ReplayPlan) -> int:
    """Rows of a stream that a sample consists of at most."""
    return plan.window if plan.core_size else max(plan.n_step, plan.length)


def _replays(data: DataSource, view: GroupView | None) -> list[tuple[EnvSpec, int, ReplayPlan]]:
    """The spec, the streams and the plan of each replay; that of later actors comes last.

    Args:
        view: of a group of agents, each of which is a stream of its own; None: of the run.
    """
    if not data.mixed:
        assert isinstance(data.plan, ReplayPlan)
        found = [(data.spec, data.streams, data.plan)]
    else:
        found = [(one.recording.spec, one.recording.streams, one.plan) for one in data.sets]
        if data.online is not None:
            found.append((data.spec, data.streams, data.online))
    if view is None:
        return found
    return [
        (view.spec, streams * view.count, dataclasses.replace(plan, capacity=plan.capacity * view.count))
        for _, streams, plan in found
    ]
