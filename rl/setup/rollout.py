"""Creates the rollout of a run: its specification, its actors, its pool of opponents."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rltrain.algorithms.networks.mlp import for_actors
from rltrain.config.run_config import RunConfig
from rltrain.envs.known import is_gymnasiums
from rltrain.envs.names import code_in
from rltrain.envs.pickling import self_contained
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.learner.algorithm import make_policy, uses_own_network
from rltrain.learner.learner import Learner
from rltrain.rollout.actor.batch_invariance import Blockwise, is_position_invariant, is_width_invariant
from rltrain.rollout.inference.client import inference_of, lacks_log_prob
from rltrain.rollout.scheduler import Rollout
from rltrain.rollout.specs import DataPlan, GradientPlan, OpponentPool, OtherPolicy, ReplayPlan, RolloutSpec, StreamPlan
from rltrain.rollout.supervision import WorkerFailed
from rltrain.rollout.workers.handle import ActorLost
from rltrain.setup.cluster import cluster_options, remarks
from rltrain.setup.environment import Environment
from rltrain.setup.offline import OfflineRollout, OfflineThenOnline, steps_each
from rltrain.setup.run_folder import Saved
from rltrain.system.torch_setup import one_thread

if TYPE_CHECKING:
    from rltrain.rollout.cluster.cluster import Cluster


def rollout_spec(
    config: RunConfig,
    environment: Environment,
    plan: DataPlan,
    cluster: Cluster | None = None,
    others: Sequence[tuple[RunConfig, dict[str, np.ndarray]]] = (),
) -> RolloutSpec:
    """What the rollout is made from.

    Args:
        plan:    the algorithm's.
        cluster: where the actors run; None: on this machine.
        others:  the policies of other runs that are opponents: the configuration of the run, and the weights.

    Raises:
        ConfigError: the configuration asks for a combination that is not possible.
    """
    if plan.wait != "all" and plan.wait > config.streams:
        raise ConfigError(
            f"--wait {plan.wait}: there are {config.streams} streams; ask for more of them, or wait for less"
        )
    options: dict[str, Any] = {}
    if not isinstance(plan, ReplayPlan):
        if config.record is not None and plan.max_lag is not None:
            raise ConfigError("--record keeps every row, and --max-lag drops some: add --max-lag none")
        options = {"max_in_flight": 1 if config.deterministic else plan.max_in_flight, "max_lag": plan.max_lag}
    if isinstance(plan, GradientPlan):
        if config.record is not None:
            raise ConfigError(f"--record: the unrolls of {config.algo} stay with its actors; use another algorithm")
        options["reduce"] = plan.reduce
    policy, acting = _policy_of_actors(config, environment.spec, config.streams)
    if config.has_opponents:
        _check_opponents(config, environment.spec, plan)
        found = [
            OtherPolicy(_policy_of_actors(other, environment.spec, config.streams)[0], arrays)
            for other, arrays in others
        ]
        options["pool"] = OpponentPool(config.pool_size if config.keeps_pool else 0, config.pool_share, tuple(found))
    log_prob = config.record is not None and lacks_log_prob(acting, environment.spec)
    if config.backend == "dask":
        portable = replace(environment, source=self_contained(environment.source))
        options |= cluster_options(config, environment, portable, cluster)
        environment = portable
    if config.inference == "central":
        _check_central_inference(config, plan)
        options["inference"] = inference_of(acting, environment.spec, config.device, log_prob)
    return RolloutSpec(
        spec=environment.spec,
        seed=config.seed,
        unroll=plan.unroll,
        workers=config.workers,
        backend=config.backend,
        units=environment.units,
        make_env=functools.partial(environment.make_vector, config.seed),
        make_policy=policy,
        actor_timeout=config.actor_timeout,
        max_restarts=config.max_restarts,
        random_rows=random_rows(plan, config.streams),
        log_prob=log_prob,
        shorten=isinstance(plan, StreamPlan) and plan.wait != "all" and not config.deterministic,
        deterministic=config.deterministic and plan.overlap,
        known=_known(config, environment, plan),
        **options,
    )


def _known(config: RunConfig, environment: Environment, plan: DataPlan) -> bool:
    """Whether an actor runs no code of the user's, and its environments are Gymnasium's own."""
    source = environment.source
    ours = type(config.settings).__module__.startswith("rltrain.") and not uses_own_network(config)
    return ours and not isinstance(plan, GradientPlan) and is_gymnasiums(source.target, source.kwargs)


def open_actors(
    config: RunConfig,
    plan: RolloutSpec,
    learner: Learner,
    cluster: Cluster | None,
    saved: Saved,
    on_restart: Callable[[ActorLost], None],
    closing: ExitStack,
) -> tuple[Rollout | OfflineRollout, list[str]]:
    """Start the actors and restore their streams; a run that only learns from recordings gets an `OfflineRollout`.

    Args:
        on_restart: is called with each failure that is followed by a restart.
    """
    rollout: Rollout | OfflineRollout
    each = steps_each(config, learner.algorithm.plan)
    if not config.acts:
        rollout = OfflineRollout(each)
    elif config.offline_steps is not None:
        rollout = OfflineThenOnline(plan, learner.weights(0), on_restart, config.offline_steps, each)
    else:
        rollout = Rollout(plan, learner.weights(0), on_restart)
    closing.callback(rollout.close)
    notes = [] if cluster is None else remarks(config, cluster)

    def load(state: dict[str, Any]) -> None:
        try:
            exact = rollout.load(state["rollout"])
        except WorkerFailed as failed:
            if saved.is_own or not (isinstance(config.env, str) and code_in(config.env) is None):
                raise  # the environment's own code may have failed: with its traceback
            raise ValueError(str(failed).strip().splitlines()[-1]) from None
        if isinstance(rollout, Rollout):
            _check_rows(rollout.rows, state.get("feed", {}).get("replay", {}).get("next"))
        if not exact:
            notes.append("some streams could not be restored: they begin a new episode (exact: false)")
        rollout.publish(learner.weights(rollout.steps))

    saved.restore(load)
    return rollout, notes


def random_rows(plan: DataPlan, streams: int) -> int:
    """Rows with random actions at the start of each stream; those of all streams together make up `warmup`."""
    return -(-plan.warmup // streams) if isinstance(plan, ReplayPlan) and plan.random_start else 0


def _check_rows(rows: np.ndarray, stored: np.ndarray | None) -> None:
    """ValueError if a stream continues at a row that is in the replay already: see `Replay.append`."""
    if stored is not None and len(stored) == len(rows) and (behind := np.flatnonzero(rows < stored)).size:
        stream = int(behind[0])
        raise ValueError(f"stream {stream} is at row {rows[stream]}, and the replay holds {stored[stream]} rows of it")


def _policy_of_actors(config: RunConfig, spec: EnvSpec, streams: int) -> tuple[Callable[[], Any], Any]:
    """A function that makes the policy as actors need it, so that its rows have the same bits in every batch, and a
    policy that is not prepared for that."""
    policy: Callable[[], Any] = functools.partial(_make_for_actors, make_policy(config, spec))
    acting = policy()
    with one_thread():  # actors have one thread too
        single_rows = not is_position_invariant(acting, spec, streams)
        if single_rows or not is_width_invariant(acting, spec, streams):
            policy = functools.partial(_blockwise, policy, single_rows)
    return policy, acting


def _check_opponents(config: RunConfig, spec: EnvSpec, plan: DataPlan) -> None:
    """ConfigError if the game or the algorithm does not allow opponents."""
    flag = f"--opponents {config.opponents}"
    if len(spec.agents) < 2:
        raise ConfigError(f"{flag}: needs a game of at least two agents, as tic-tac-toe; {spec.id} is none")
    if not isinstance(plan, StreamPlan):
        raise ConfigError(f"{flag}: {config.algo} learns from a replay; use ppo, mappo, a2c, impala or appo")
    if config.inference == "central":
        raise ConfigError(f"{flag}: actors hold the networks of their opponents; use --inference local")


def _check_central_inference(config: RunConfig, plan: DataPlan) -> None:
    """ConfigError if an inference server cannot choose the actions of this algorithm's actors."""
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


def _make_for_actors(make: Callable[[], Any]) -> Any:
    return for_actors(make())


def _blockwise(policy: Callable[[], Any], single_rows: bool) -> Blockwise:
    return Blockwise(policy(), single_rows)
