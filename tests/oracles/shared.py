"""Six updates in float64, by one learner or by one of several in forks of a process: shared.py SIZE FOLDER.

Every learner sees whole batches, and takes its shard as `rltrain.learner.data_parallel` cuts it.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from oracles import cases, maddpg, memory, off_policy
from oracles.maddpg import FLYER, SWIMMER, box_spec
from oracles.teams import THREE, TWO, team_spec
from torch import Tensor

from rltrain.algorithms import algorithm_class, settings_class
from rltrain.algorithms.functions.losses import normalised
from rltrain.algorithms.multi_agent.independent import Independent
from rltrain.algorithms.off_policy.ddpg import DDPG
from rltrain.algorithms.off_policy.dqn import DQN
from rltrain.algorithms.off_policy.settings import DDPGConfig, DQNConfig, DroQConfig, SACConfig, TD3Config, TQCConfig
from rltrain.algorithms.off_policy.td3 import TD3
from rltrain.algorithms.on_policy.a2c import A2C
from rltrain.algorithms.on_policy.appo import APPO
from rltrain.algorithms.on_policy.impala import IMPALA
from rltrain.algorithms.on_policy.ppo import PPO
from rltrain.algorithms.on_policy.settings import A2CConfig, APPOConfig, IMPALAConfig, PPOConfig
from rltrain.envs.spec import Leaf

UPDATES, CPU = 6, torch.device("cpu")
SMALL = {"widths": (8, 7), "lr": 1e-2}
STREAM = SMALL | {"unroll": 16, "normalize_obs": True, "normalize_return": True}
GRU = {"memory": "gru", "memory_size": 6, "sequence": 8}
SEQUENCES = {"memory": "gru", "memory_size": 6, "length": 4, "burn_in": 3}
IMAGES = SMALL | {"unroll": 16, "shared_torso": True}
PICTURES = replace(cases.DISCRETE, id="pictures", obs=Leaf("image", (2, 12, 12), "uint8"))
ROWS = 13  # of a sample: no number of learners divides it
RAINBOW = {"double": True, "dueling": True, "prioritized": True, "noisy": True, "atoms": 11, "v_min": -3, "v_max": 4}

# name: algorithm, its settings, environment, streams
STREAMS: dict[str, tuple[Any, Any, Any, int]] = {
    "ppo": (PPO, PPOConfig(**STREAM, max_kl=0.05), cases.DISCRETE, 4),
    "ppo masked": (PPO, PPOConfig(**STREAM, value_clip=0.2), cases.MASKED, 3),
    "ppo box": (PPO, PPOConfig(**STREAM), cases.BOX, 4),
    "ppo gru": (PPO, PPOConfig(**STREAM, **GRU), cases.DISCRETE, 3),
    "ppo one stream": (PPO, PPOConfig(**STREAM), cases.DISCRETE, 1),
    "a2c": (A2C, A2CConfig(**STREAM, normalize_advantage=True), cases.DISCRETE, 4),
    "ppo many pieces": (PPO, PPOConfig(**STREAM, minibatches=48), cases.DISCRETE, 3),
    "ppo images": (PPO, PPOConfig(**IMAGES, minibatches=30), PICTURES, 3),
    "ppo images gru": (PPO, PPOConfig(**IMAGES, **GRU), PICTURES, 3),
    "impala": (IMPALA, IMPALAConfig(**STREAM), cases.DISCRETE, 3),
    "impala box gru": (IMPALA, IMPALAConfig(**STREAM, **GRU), cases.BOX, 4),
    "impala one stream": (IMPALA, IMPALAConfig(**STREAM), cases.DISCRETE, 1),
    "appo": (APPO, APPOConfig(**STREAM, kl=0.1), cases.DISCRETE, 4),
    "appo one stream": (APPO, APPOConfig(**STREAM), cases.BOX, 1),
}
REPLAYS: dict[str, tuple[Any, Any, Any]] = {
    "dqn": (DQN, DQNConfig(**SMALL, target_every=3), cases.DISCRETE),
    "rainbow": (DQN, DQNConfig(**SMALL, **RAINBOW), cases.MASKED),
    "sac": (algorithm_class("sac"), SACConfig(**SMALL), off_policy.BOX),
    "sac discrete": (algorithm_class("sac"), SACConfig(**SMALL), off_policy.MASKED),
    "droq and redq": (algorithm_class("droq"), DroQConfig(**SMALL, critics=3, target_critics=2), off_policy.BOX),
    "droq discrete": (algorithm_class("droq"), DroQConfig(**SMALL, critics=3, target_critics=2), off_policy.MASKED),
    "tqc": (algorithm_class("tqc"), TQCConfig(**SMALL, quantiles=4, drop=1, widths_q=(8, 8)), off_policy.BOX),
    "dqn gru": (DQN, DQNConfig(**SMALL, **SEQUENCES, prioritized=True, n_step=2), cases.MASKED),
    "sac lstm": (algorithm_class("sac"), SACConfig(**SMALL, **SEQUENCES | {"memory": "lstm"}), off_policy.BOX),
    "droq gru": (algorithm_class("droq"), DroQConfig(**SMALL, **SEQUENCES, policy_delay=1), off_policy.MASKED),
    "td3": (TD3, TD3Config(**SMALL), off_policy.BOX),
    "ddpg": (DDPG, DDPGConfig(**SMALL), off_policy.BOX),
}
TURNS, TEAM = team_spec(THREE, TWO, turns=True), team_spec(THREE, TWO, masked=True)
UNTOLD, BOXES = team_spec(THREE, TWO, told=False), box_spec(SWIMMER, FLYER)
AGENTS = STREAM | {"unroll": 6}
AGENT_GRU = {"memory": "gru", "memory_size": 6, "sequence": 3}
# name: algorithm, its settings, environment of several agents, columns of a batch
TEAMS: dict[str, tuple[str, dict[str, Any], Any, int]] = {
    "qmix": ("qmix", SMALL | {"target_every": 3}, TEAM, 5),
    "qmix clipped": ("qmix", SMALL | {"max_grad_norm": 0.01, "loss": "huber"}, UNTOLD, 5),
    "qmix gru": ("qmix", SMALL | {"memory": "gru", "memory_size": 6}, TEAM, 5),
    "qmix turns": ("qmix", SMALL, TURNS, 5),
    "vdn": ("vdn", SMALL | {"last_action": True}, TEAM, 5),
    "iql": ("iql", SMALL, TEAM, 5),
    "iql turns": ("iql", SMALL | {"memory": "gru", "memory_size": 6}, TURNS, 5),
    "maddpg": ("maddpg", SMALL, TEAM, 5),
    "maddpg box": ("maddpg", SMALL, BOXES, 5),
    "maddpg clipped": ("maddpg", SMALL | {"max_grad_norm": 0.01}, UNTOLD, 5),
    "mappo": ("mappo", AGENTS | {"normalize_advantage": True}, TEAM, 5),
    "mappo gru": ("mappo", AGENTS | AGENT_GRU, TEAM, 5),
    "mappo turns": ("mappo", AGENTS, TURNS, 5),
    "agents ppo": ("ppo", AGENTS | {"max_kl": 0.05}, TEAM, 5),
    "agents ppo gru": ("ppo", AGENTS | AGENT_GRU, TEAM, 4),
    "agents ppo turns": ("ppo", AGENTS | {"minibatches": 2}, TURNS, 5),
    "agents ppo one stream": ("ppo", AGENTS, TEAM, 1),
    "agents ppo away": ("ppo", AGENTS, TEAM, 5),
    "agents ppo frozen": ("ppo", AGENTS, TEAM, 5),
    "agents ppo box": ("ppo", AGENTS, box_spec(SWIMMER), 5),
    "agents a2c": ("a2c", AGENTS | {"normalize_advantage": True}, TEAM, 5),
    "agents a2c away": ("a2c", AGENTS, TEAM, 5),
    "agents impala": ("impala", AGENTS, TEAM, 5),
    "agents appo": ("appo", AGENTS, TEAM, 5),
}
NAMES = [*STREAMS, *REPLAYS, *TEAMS]
THREE_LEARNERS = ["qmix", "iql turns", "maddpg", "mappo", "agents ppo", "agents ppo turns", "agents ppo away"]
WITH = {
    2: NAMES,
    3: ["ppo", "ppo gru", "impala", "dqn", "dqn gru", "sac", *THREE_LEARNERS],
}  # number of learners: algorithms; a few of each kind for the second


def environment() -> dict[str, str]:
    """That of a process which finds rltrain and the oracles."""
    root = Path(__file__).parents[2]
    folders = [str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}


def updated(name: str, group: Any = None) -> dict[str, Tensor]:
    """All tensors of an algorithm after its updates, the numbers it told, and its priorities, by name."""
    if name in STREAMS:
        make, config, spec, streams = STREAMS[name]
    elif name in TEAMS:
        algo, settings, spec, streams = TEAMS[name]
        config, make = settings_class(algo)(**settings), algorithm_class(algo)
        if algo in ("ppo", "a2c", "impala", "appo"):
            make = partial(Independent, make)
    else:
        (make, config, spec), streams = REPLAYS[name], 1
    algorithm = make(spec, config, CPU, 3, streams)
    cases.shaken(algorithm.policy, 3)
    if name.endswith("frozen"):
        algorithm.freeze(["three"])
    found: dict[str, Tensor] = {}
    for seed in range(UPDATES):
        if name in STREAMS:
            batch = (
                pictures(seed, streams)
                if spec is PICTURES
                else cases.unroll(spec, algorithm.policy, seed, streams=streams)
            )
            batch = replace(batch, version=torch.zeros(streams, dtype=torch.int64), stream=torch.arange(streams))
        elif name in TEAMS:
            batch = of_agents(name, spec, algorithm, seed, streams)
        elif algorithm.plan.core_size:
            plan = algorithm.plan
            batch = memory.sequences(spec, seed, plan.window, 5, plan.core_size, bool(plan.alpha))
        else:
            batch = off_policy.batch_of(spec, seed, ROWS)
        update = step(algorithm, batch, seed / UPDATES, group)
        if name in STREAMS or isinstance(algorithm, Independent):
            algorithm.observe(batch)
        for key, value in update.metrics.items():
            found[f"told {seed} {key}"] = torch.as_tensor(value)
        if update.priority is not None:
            found[f"priority {seed}"] = update.priority
    for key, part in algorithm.parts().items():
        flatten(part.state_dict(), key, found)
    return found


def of_agents(name: str, spec: Any, algorithm: Any, seed: int, columns: int) -> Any:
    """Six rows of several agents that come and leave; for `Independent` with what the policies recorded.

    In "away" cases all columns but the last lack the third agent.
    """
    batch = maddpg.rows(spec, seed, batch=columns)
    ints = {key: getattr(batch, key).long() for key in ("version", "stream", "row")}
    batch = replace(batch, **ints)
    if name.endswith("away"):
        alive = batch.alive.clone()
        alive[:, :-1, 2] = False
        batch = replace(batch, alive=alive)
    if not isinstance(algorithm, Independent):
        return batch
    g = torch.Generator().manual_seed(seed)
    extras = {
        f"{algorithm.policy.prefix(n)}log_prob": -torch.rand(6, columns, view.count, generator=g)
        for n, view in enumerate(algorithm.views)
    }
    core = None
    if algorithm.policy.core_size:
        core = torch.randn(6 // AGENT_GRU["sequence"], columns, algorithm.policy.core_size, generator=g)
    mask = None if batch.action_mask is None else torch.ones_like(batch.action_mask)  # the actions do not ask
    return replace(batch, extras=extras, core=core, action_mask=mask)


def pictures(seed: int, streams: int) -> Any:
    """An unroll of images, with cores; log_probs are near those of equal chances, so that ratios are near 1."""
    actor = PPO(cases.DISCRETE, PPOConfig(**STREAM), CPU, 3, streams).policy
    plain = cases.unroll(cases.DISCRETE, actor, seed, streams=streams)
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (*plain.first.shape, 2, 12, 12), dtype=torch.uint8, generator=g)
    log_prob = -1.4 + 0.1 * torch.randn(plain.reward.shape, generator=g)
    core = torch.randn(2, streams, GRU["memory_size"], generator=g)
    return replace(plain, obs=images, extras={"log_prob": log_prob}, core=core)


def step(algorithm: Any, batch: Any, progress: float, group: Any) -> Any:
    if group is None:
        return algorithm.update(batch, progress)
    from rltrain.learner.process_group import shards_of_members, update_members

    group.attach(algorithm)
    shards = shards_of_members(algorithm, batch, group.size)[group.rank]
    group.take([shard for shard, _ in shards])
    return update_members(algorithm, [part for _, part in shards], progress)


def flatten(node: Any, name: str, found: dict[str, Tensor]) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            flatten(value, f"{name}.{key}", found)
    else:
        found[name] = torch.as_tensor(node).clone()


def main(rank: int, size: int, folder: Path) -> None:
    import torch.distributed as dist

    from rltrain.algorithms.functions.rng import Shard
    from rltrain.learner.process_group import ProcessGroup

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{size}"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    group, algorithm = ProcessGroup(rank, size), SimpleNamespace(parts=dict)
    found = {name: updated(name, group) for name in WITH[size]}
    group.attach(algorithm)
    group.take([Shard(7 * size, 7 * rank, 7 * rank + 7)])
    equal = torch.full((7,), 2.7, dtype=torch.float32)
    found["equal"] = {"normalised": normalised(equal, None, algorithm.sync)}
    torch.save(found, folder / f"{rank}-of-{size}.pt")
    dist.destroy_process_group()


def forked(rank: int, size: int, folder: Path) -> int:
    """The id of a process that is learner `rank`; all have the modules that this one has imported."""
    pid = os.fork()
    if pid == 0:
        try:
            main(rank, size, folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


if __name__ == "__main__":
    import rltrain.learner.process_group  # noqa: F401  # before the forks

    learners = [forked(rank, int(sys.argv[1]), Path(sys.argv[2])) for rank in range(int(sys.argv[1]))]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(learner, 0)[1]) != 0 for learner in learners))
