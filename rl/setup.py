"""From a RunConfig to the parts of a run: environment, algorithm, rollout, evaluating worker."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rltrain import algorithms, room
from rltrain.algorithms.multi_agent.independent import Independent, together
from rltrain.algorithms.networks.encoder import Encoder
from rltrain.algorithms.networks.mlp import turned
from rltrain.algorithms.protocol import GradientPlan, Plan, ReplayPlan, StreamPlan
from rltrain.algorithms.registry import build, policy_factory
from rltrain.config import RunConfig
from rltrain.envs.check import first_look
from rltrain.envs.errors import EnvError
from rltrain.envs.make import choose, look, resolve, vector
from rltrain.envs.pickling import carried
from rltrain.envs.seeding import LEARNER, evaluation_seed, seed_of, stream_seed
from rltrain.envs.source import EnvSource
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector import native
from rltrain.envs.vector.restore_check import prove
from rltrain.envs.vector.unroll_rows import VectorEnv
from rltrain.errors import ConfigError
from rltrain.feed import Feed, GradientFeed, ReplayFeed, StreamFeed
from rltrain.machines import elsewhere
from rltrain.offline import OfflineFeed, OfflineRollout
from rltrain.process import keep_memory, one_thread
from rltrain.record import Recording
from rltrain.rollout.actor.batch_invariance import InBlocks, rows_agree, rows_move
from rltrain.rollout.actor.opponents import SEATS
from rltrain.rollout.actor.play import Evaluator, EvaluatorJob
from rltrain.rollout.inference.client import inference_of
from rltrain.rollout.replay.replay import rows_of
from rltrain.rollout.scheduler import Rollout
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.specs import Pool, RolloutPlan
from rltrain.rollout.types import Weights
from rltrain.rollout.workers.handle import EVALUATOR, ActorLost, Handle
from rltrain.rollout.workers.in_process import LocalHandle

DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class World:
    """The environment of a run, looked at."""

    source: EnvSource
    spec: EnvSpec
    kind: str  # serial or native
    units: tuple[tuple[int, ...], ...]  # streams that an actor takes together
    way: str  # how a stream is brought back on resume; "none" means that a resumed run is not exact
    warnings: tuple[str, ...]


def world(config: RunConfig, way: str | None = None) -> World:
    """Make the environment once, look at it, and decide how its streams are stepped and brought back.

    Args:
        way: how they are brought back, where a checkpoint says it; else it is found out here.

    Raises:
        EnvError, ConfigError: a line for each thing that is wrong, with what to do.
        EnvFault: the environment's own code raised.
    """
    source = resolve(config.env, config.env_args, config.share)
    spec = look(source, config.seed)
    for_as_many(config.algo, spec)
    problems = first_look(source, spec, config.seed)
    fatal = [problem.text for problem in problems if problem.fatal]
    if fatal:
        raise EnvError("\n".join(fatal))
    kind = choose(source, config.streams, config.vector)
    if kind == "native":
        units = tuple(native.blocks(config.streams))
        way = way or native.prove_native(source.make_block, spec, config.seed)
        if config.workers > len(units):
            raise ConfigError(
                f"--workers {config.workers}: the native vector environment of {spec.id} comes in {len(units)} blocks; "
                f"use at most {len(units)} workers, or --vector serial"
            )
    else:
        units = tuple((stream,) for stream in range(config.streams))
        way = way or prove(source.make, spec, config.seed)
    return World(source, spec, kind, units, way, tuple(p.text for p in problems if not p.fatal))


def for_as_many(algo: str, spec: EnvSpec) -> None:
    """ConfigError where an algorithm for several agents meets an environment of one."""
    if algorithms.for_several(algo) and not spec.groups:
        others = ", ".join(name for name in algorithms.names() if not algorithms.for_several(name))
        raise ConfigError(f"{algo} is for several agents; {spec.id} has one agent. Use {others}")


def make_algorithm(config: RunConfig, spec: EnvSpec) -> Any:
    """The algorithm, on its device, its first weights drawn from the run's seed."""
    device = torch_device(config.device)
    seed = seed_of(config.seed, LEARNER)
    try:
        make: Any = algorithms.algorithm_class(config.algo)
        if as_if_alone(config, spec):
            make = functools.partial(Independent, make)
        algorithm = make(spec, config.settings, device, seed, config.streams)
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError) and "float64" not in str(error):  # else a device that cannot hold it
            raise
        raise ConfigError(str(error).splitlines()[0]) from None
    for one in getattr(algorithm, "inner", (algorithm,)):
        hasten(one, config)
    if any(leaf.kind == "image" for leaf in spec.leaves()):
        keep_memory()
    return algorithm


def as_if_alone(config: RunConfig, spec: EnvSpec) -> bool:
    """Whether an algorithm for one agent is to teach several."""
    return bool(spec.groups) and not algorithms.for_several(config.algo)


def hasten(algorithm: Any, config: RunConfig) -> None:
    """Let the learner's networks of images, target networks included, compute as the run asks."""
    precision = torch.bfloat16 if config.precision == "bfloat16" else None
    if precision is None and not config.compile:
        return
    parts = [getattr(value, "module", value) for value in vars(algorithm).values()]
    modules = {id(module): module for part in parts if isinstance(part, torch.nn.Module) for module in part.modules()}
    for module in modules.values():
        if isinstance(module, Encoder):
            module.hasten(precision, config.compile)


def torch_device(name: str) -> torch.device:
    """The device called `name`; ConfigError if it is unknown or not there."""
    if name.partition(":")[0] not in DEVICES:
        raise ConfigError(f"--device {name} is not known; it may be {', '.join(DEVICES)}, or with a number, cuda:1")
    try:
        device = torch.device(name)
        if device.type != "cpu":
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} is not there: {str(error).splitlines()[0]}") from None
    return device


def make_policy(config: RunConfig, spec: EnvSpec) -> Callable[[], Any]:
    """A picklable maker of the policy, for actors and evaluation."""
    settings: Any = config.settings
    factory = policy_factory(getattr(settings, "policy", "actor_critic"))
    seed = seed_of(config.seed, LEARNER)
    if spec.groups and algorithms.acts_for_one(config.algo):
        factory = functools.partial(together, factory)
    return functools.partial(_acting, factory, spec, settings, config.streams, seed)


def _acting(*words: Any) -> Any:
    """A policy that acts: whatever of a user's network differs between learning and use is in use."""
    policy = build(*words)
    return policy.eval() if isinstance(policy, torch.nn.Module) else policy


def _turned(make: Callable[[], Any]) -> Any:
    return turned(make())


def recording_of(config: RunConfig, spec: EnvSpec, plan: Plan) -> Recording | None:
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
    plan: Plan,
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
    if plan.whole and spec.max_steps is not None and spec.max_steps > rows_of(streams, plan):
        raise ConfigError(
            f"--capacity {plan.capacity} keeps {rows_of(streams, plan)} steps of each of {streams} streams, and an "
            f"episode may have {spec.max_steps}: agents that remember learn from whole ones. Ask for more, or for "
            "fewer --streams"
        )
    return [room.make_sure(needed, (folder or Path(config.out)) if config.replay_on_disk else None)]


def make_feed(
    config: RunConfig,
    spec: EnvSpec,
    plan: Plan,
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


def rollout_plan(config: RunConfig, here: World, plan: Plan, cluster: Any = None) -> RolloutPlan:
    """What the rollout is made from.

    Args:
        cluster: where its actors run, if not here.
    """
    if plan.wait != "all" and plan.wait > config.streams:
        raise ConfigError(
            f"--wait {plan.wait}: there are {config.streams} streams; ask for more of them, or wait for less"
        )
    ahead: dict[str, Any] = {}
    if not isinstance(plan, ReplayPlan):
        if config.record is not None and plan.max_lag is not None:
            raise ConfigError("--record keeps every row, and --max-lag drops some: add --max-lag none")
        ahead = {"credits": 1 if config.deterministic else plan.credits, "max_lag": plan.max_lag}
    if isinstance(plan, GradientPlan):
        if config.record is not None:
            raise ConfigError(f"--record: the unrolls of {config.algo} stay with its actors; use another algorithm")
        ahead["reduce"] = plan.reduce
    if config.opponents == "pool":
        ahead["pool"] = _pool(config, here.spec, plan)
    policy = functools.partial(_turned, make_policy(config, here.spec))
    acting = policy()
    if config.backend == "dask":
        source = carried(here.source)
        here, ahead = replace(here, source=source), ahead | elsewhere(config, here, source, cluster)
    with one_thread():  # as all that acts has
        alone = not rows_move(acting, here.spec, config.streams)
        if alone or not rows_agree(acting, here.spec, config.streams):
            policy = functools.partial(_in_blocks, policy, alone)
    if config.inference == "central":
        _can_be_central(config, plan)
        ahead["inference"] = inference_of(acting, here.spec, config.device)
    return RolloutPlan(
        spec=here.spec,
        seed=config.seed,
        unroll=plan.unroll,
        workers=config.workers,
        backend=config.backend,
        units=here.units,
        make_env=functools.partial(_vector, here, config.seed),
        make_policy=policy,
        actor_timeout=config.actor_timeout,
        max_restarts=config.max_restarts,
        random_rows=random_rows(plan, config.streams),
        shorten=isinstance(plan, StreamPlan) and plan.wait != "all" and not config.deterministic,
        deterministic=config.deterministic and plan.overlap,
        **ahead,
    )


def _pool(config: RunConfig, spec: EnvSpec, plan: Plan) -> Pool:
    """The pool of opponents; ConfigError where the game or the algorithm is not for that."""
    if not spec.turns or len(spec.agents) != SEATS:
        raise ConfigError(
            f"--opponents pool: needs a game of two agents that take turns, as tic-tac-toe; {spec.id} is none"
        )
    if not isinstance(plan, StreamPlan):
        raise ConfigError(f"--opponents pool: {config.algo} learns from a replay; use ppo, mappo, a2c, impala or appo")
    if config.inference == "central":
        raise ConfigError("--opponents pool: actors hold the networks of their opponents; use --inference local")
    return Pool(config.pool_size, config.pool_share)


def _can_be_central(config: RunConfig, plan: Plan) -> None:
    """ConfigError where a server cannot decide for the actors."""
    if isinstance(plan, GradientPlan):
        raise ConfigError(
            f"--inference central: the actors of {config.algo} make gradients and need networks of their own; "
            "use --inference local"
        )
    if config.deterministic and plan.overlap:
        raise ConfigError(
            "--inference central: actors that do not wait for the learner meet new weights in the middle of unrolls, "
            "so --deterministic cannot be kept; use --inference local"
        )


def open_rollout(
    config: RunConfig, plan: RolloutPlan, weights: Weights, on_restart: Callable[[ActorLost], None]
) -> Rollout | OfflineRollout:
    """Actors, or what stands in their place where the unrolls were recorded."""
    if config.replay_from is not None:
        return OfflineRollout(config.streams * plan.unroll)
    return Rollout(plan, weights, on_restart)


def random_rows(plan: Plan, streams: int) -> int:
    """Rows at the start of each stream that are acted at random, so that all together make `warmup`."""
    return -(-plan.warmup // streams) if isinstance(plan, ReplayPlan) and plan.random_start else 0


def _in_blocks(policy: Callable[[], Any], alone: bool) -> InBlocks:
    return InBlocks(policy(), alone)


def _vector(here: World, seed: int, streams: Sequence[int], incarnations: Sequence[int]) -> VectorEnv:
    """The environments of some streams, or of whole blocks of them, in an actor."""
    seeds = [stream_seed(seed, stream, inc) for stream, inc in zip(streams, incarnations, strict=True)]
    total = sum(len(unit) for unit in here.units)
    return vector(here.source, here.spec, streams, seeds, here.way, here.kind, total)


def evaluation_seeds(seed: int, episodes: int) -> list[int]:
    """The seeds of evaluation episodes: the same each time, and none that training uses."""
    return [evaluation_seed(seed, episode) for episode in range(episodes)]


class EvaluationWorker:
    """Opens the evaluating worker, and watches that it makes steps."""

    def __init__(self, config: RunConfig, here: World) -> None:
        at_random = config.opponents == "pool"
        self._job = EvaluatorJob(here.spec, here.source.make, make_policy(config, here.spec), at_random)
        self._local = config.backend == "local" or config.workers == 0
        self._progress = SharedMemory(8)
        self._steps = self._progress.array(0, (1,), "int64")

    def open(self) -> Handle:
        """A new worker."""
        if self._local:
            return LocalHandle(EVALUATOR, functools.partial(Evaluator, self._job, self._progress))
        from rltrain.rollout.workers.process import ProcessHandle

        return ProcessHandle(EVALUATOR, functools.partial(Evaluator, self._job), self._progress.ticket())

    def alive(self) -> int:
        """How many vector steps were made."""
        return int(self._steps[0])

    def close(self) -> None:
        self._progress.close()
