"""Creates the rollout of a run: its specification, its actors, its opponents."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rltrain.algorithms.networks.mlp import turned
from rltrain.config.run_config import RunConfig
from rltrain.envs.pickling import self_contained
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.learner.algorithm import make_policy
from rltrain.rollout.actor.batch_invariance import InBlocks, rows_agree, rows_move
from rltrain.rollout.actor.opponents import PLAYERS
from rltrain.rollout.inference.client import inference_of
from rltrain.rollout.scheduler import Rollout
from rltrain.rollout.specs import DataPlan, GradientPlan, OpponentPool, ReplayPlan, RolloutSpec, StreamPlan
from rltrain.rollout.types import Weights
from rltrain.rollout.workers.handle import ActorLost
from rltrain.setup.cluster import elsewhere
from rltrain.setup.environment import World, _vector
from rltrain.setup.offline import OfflineRollout
from rltrain.system.torch_setup import one_thread


def _turned(make: Callable[[], Any]) -> Any:
    return turned(make())


def rollout_plan(config: RunConfig, here: World, plan: DataPlan, cluster: Any = None) -> RolloutSpec:
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
        ahead = {"max_in_flight": 1 if config.deterministic else plan.max_in_flight, "max_lag": plan.max_lag}
    if isinstance(plan, GradientPlan):
        if config.record is not None:
            raise ConfigError(f"--record: the unrolls of {config.algo} stay with its actors; use another algorithm")
        ahead["reduce"] = plan.reduce
    if config.opponents == "pool":
        ahead["pool"] = _pool(config, here.spec, plan)
    policy = functools.partial(_turned, make_policy(config, here.spec))
    acting = policy()
    if config.backend == "dask":
        source = self_contained(here.source)
        here, ahead = replace(here, source=source), ahead | elsewhere(config, here, source, cluster)
    with one_thread():  # as all that acts has
        alone = not rows_move(acting, here.spec, config.streams)
        if alone or not rows_agree(acting, here.spec, config.streams):
            policy = functools.partial(_in_blocks, policy, alone)
    if config.inference == "central":
        _can_be_central(config, plan)
        ahead["inference"] = inference_of(acting, here.spec, config.device)
    return RolloutSpec(
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


def _pool(config: RunConfig, spec: EnvSpec, plan: DataPlan) -> OpponentPool:
    """The pool of opponents; ConfigError where the game or the algorithm is not for that."""
    if not spec.turns or len(spec.agents) != PLAYERS:
        raise ConfigError(
            f"--opponents pool: needs a game of two agents that take turns, as tic-tac-toe; {spec.id} is none"
        )
    if not isinstance(plan, StreamPlan):
        raise ConfigError(f"--opponents pool: {config.algo} learns from a replay; use ppo, mappo, a2c, impala or appo")
    if config.inference == "central":
        raise ConfigError("--opponents pool: actors hold the networks of their opponents; use --inference local")
    return OpponentPool(config.pool_size, config.pool_share)


def _can_be_central(config: RunConfig, plan: DataPlan) -> None:
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
    config: RunConfig, plan: RolloutSpec, weights: Weights, on_restart: Callable[[ActorLost], None]
) -> Rollout | OfflineRollout:
    """Actors, or what stands in their place where the unrolls were recorded."""
    if config.replay_from is not None:
        return OfflineRollout(config.streams * plan.unroll)
    return Rollout(plan, weights, on_restart)


def random_rows(plan: DataPlan, streams: int) -> int:
    """Rows at the start of each stream that are acted at random, so that all together make `warmup`."""
    return -(-plan.warmup // streams) if isinstance(plan, ReplayPlan) and plan.random_start else 0


def _in_blocks(policy: Callable[[], Any], alone: bool) -> InBlocks:
    return InBlocks(policy(), alone)
