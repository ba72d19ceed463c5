"""Untrained policies of every algorithm and kind of space, saved as checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from rltrain.config.load import load
from rltrain.envs.multi_agent.joint_spaces import groups_of, joint_action, joint_obs
from rltrain.envs.spaces import env_spec
from rltrain.envs.spec import EnvSpec
from rltrain.learner.algorithm import make_policy
from rltrain.rollout.types import Weights
from rltrain.storage.retention import CheckpointWriter

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
DICT = spaces.Dict(a=VECTOR, b=spaces.Discrete(4, start=2), c=spaces.MultiBinary(3), d=spaces.MultiDiscrete([2, 3]))
IMAGES = spaces.Tuple((spaces.Box(0, 255, (12, 12, 3), np.uint8), VECTOR))
LARGE_IMAGE = spaces.Box(0, 255, (40, 40), np.uint8)
BOX = spaces.Box(np.array([0, -3], np.float32), np.array([4, -1], np.float32))
WHOLE = spaces.Box(np.array([0, -3]), np.array([4, -1]), dtype=np.int32)
ONE_SIDED = spaces.Box(np.array([[0, -np.inf]]), np.array([[np.inf, np.inf]]), dtype=np.float64)
CASES: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {
    "ppo-discrete": ("ppo", VECTOR, spaces.Discrete(3, start=5), {}),
    "ppo-dict-gru": ("ppo", DICT, spaces.MultiDiscrete([2, 3]), {"memory": "gru", "memory_size": 8}),
    "ppo-images": ("ppo", IMAGES, spaces.Discrete(3), {}),
    "ppo-nature": ("ppo", LARGE_IMAGE, spaces.Discrete(3), {}),
    "ppo-impala": ("ppo", IMAGES, spaces.Discrete(3), {"torso": "impala"}),
    "ppo-binary": ("ppo", VECTOR, spaces.MultiBinary(3), {}),
    "ppo-box-lstm": ("ppo", VECTOR, BOX, {"memory": "lstm", "memory_size": 8}),
    "ppo-box-sde": ("ppo", VECTOR, BOX, {"sde": True, "squash": True}),
    "ppo-whole": ("ppo", VECTOR, WHOLE, {}),
    "ppo-one-sided": ("ppo", VECTOR, ONE_SIDED, {}),
    "a2c": ("a2c", VECTOR, BOX, {}),
    "dqn": ("dqn", VECTOR, spaces.Discrete(3), {}),
    "dqn-gru": ("dqn", VECTOR, spaces.Discrete(3), {"memory": "gru", "memory_size": 8}),
    "rainbow": ("rainbow", VECTOR, spaces.Discrete(3), {}),
    "sac": ("sac", VECTOR, BOX, {}),
    "sac-sde": ("sac", VECTOR, BOX, {"sde": True}),
    "sac-discrete": ("sac", VECTOR, spaces.Discrete(3), {}),
    "td3-ou": ("td3", VECTOR, BOX, {"noise_kind": "ou"}),
    "crossq": ("crossq", VECTOR, BOX, {}),
}
AGENTS: dict[str, tuple[str, dict[str, tuple[Any, Any]], dict[str, Any]]] = {  # {agent: its spaces}
    "ippo": ("ppo", {"a": (VECTOR, BOX), "b": (VECTOR, BOX), "c": (DICT, BOX)}, {}),
    "mappo-gru": (
        "mappo",
        {"a": (VECTOR, spaces.Discrete(3)), "b": (VECTOR, spaces.Discrete(3))},
        {"memory": "gru", "memory_size": 8},
    ),
    "cql-each": (
        "cql",
        {"a": (VECTOR, spaces.Discrete(3)), "b": (VECTOR, spaces.Discrete(3)), "c": (DICT, spaces.Discrete(2))},
        {"memory": "gru", "memory_size": 8},
    ),
    "cql-arms": ("cql", {"a": (VECTOR, BOX), "b": (VECTOR, BOX), "c": (DICT, BOX)}, {}),
    "bc-arms": ("bc", {"a": (VECTOR, BOX), "b": (VECTOR, BOX)}, {}),
    "qmix-gru": (
        "qmix",
        {"a": (VECTOR, spaces.Discrete(3)), "b": (VECTOR, spaces.Discrete(3)), "c": (VECTOR, spaces.Discrete(2))},
        {"memory": "gru", "memory_size": 8, "last_action": True},
    ),
    "maddpg": ("maddpg", {"a": (VECTOR, BOX), "b": (VECTOR, BOX)}, {}),
    "maddpg-discrete": (
        "maddpg",
        {"a": (VECTOR, spaces.Discrete(3)), "b": (VECTOR, spaces.Discrete(2))},
        {},
    ),
}


def spec_of(name: str, masked: bool = True) -> EnvSpec:
    """The spec of a case."""
    if name in CASES:
        _, obs, action, _ = CASES[name]
        return env_spec(name, obs, action, 10, mask_in_info=masked)
    raise KeyError(name)


def save(folder: Path, name: str, spec: EnvSpec, algo: str, settings: dict[str, Any], seed: int = 0) -> Path:
    """A checkpoint with random weights and running statistics. Its environment is an object of a program."""
    config = load({"algo": algo, "env": object, "widths": [8, 8], "preset": "none", "seed": seed, **settings})
    policy: Any = make_policy(config, spec)()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in policy.state_dict().items():
            if key.rpartition(".")[2].startswith(("shift", "log_std")):
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
            elif key.endswith((".weight1", "actor.weight2", "dense.weight2")):
                value.mul_(3.0)
    arrays = {key: value.numpy() for key, value in policy.state_dict().items()}
    writer = CheckpointWriter(folder / "checkpoints", config, spec, "none", None)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    writer.save_best(Weights(0, seed, arrays), None)
    return folder


def agents_spec(name: str, turns: bool = False) -> EnvSpec:
    """The spec of a case with several agents."""
    _, members, _ = AGENTS[name]
    obs, actions = ({agent: spaces_of[i] for agent, spaces_of in members.items()} for i in (0, 1))
    groups = groups_of(name, list(members), obs, actions, "all")
    action = joint_action(groups)
    return EnvSpec(name, joint_obs(groups), action, action.kind != "box", 10, groups, None, turns)


def saved(folder: Path, name: str) -> Path:
    """The checkpoint of a case."""
    if name in CASES:
        algo, _, _, settings = CASES[name]
        return save(folder, name, spec_of(name), algo, settings)
    algo, _, settings = AGENTS[name]
    return save(folder, name, agents_spec(name), algo, settings)
