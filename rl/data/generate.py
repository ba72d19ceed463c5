"""`rldata record`: which policy plays in which environment, and the recording that is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rltrain.config.user_code import is_code, load_code
from rltrain.data.episodes import EpisodeWriter
from rltrain.data.origin import ENV_ARGS
from rltrain.data.record import FunctionPlayer, NetworkPlayer, Player, RandomPlayer, episodes, limited
from rltrain.data.sources import Counted, Outcome, line_of, new_output, values_of
from rltrain.envs.lookup import EnvSource
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.evaluation.evaluate import named_by_run, source_of, this_process
from rltrain.evaluation.policy import load_for, value_function

EPISODES = 100
RANDOM = "random"


@dataclass(frozen=True)
class PolicyAndEnv:
    """A policy, its environment, and what a recording says about them."""

    player: Player
    source: EnvSource
    about: dict[str, Any] = field(default_factory=dict)


def recorded(given: Mapping[str, Any]) -> Outcome:
    """Does what `rldata record` asks for."""
    if "episodes" in given and "steps" in given:
        raise ConfigError("--episodes and --steps: give one of them")
    steps = given.get("steps")
    most = None if steps is not None else given.get("episodes", EPISODES)
    with new_output(given["OUT"]) as out, this_process(given["seed"]):
        played = _named(given)
        written = record(played, out, given["seed"], most, steps)
    return Outcome([line_of(given["OUT"], written)], values_of(given["OUT"], written))


def record(played: PolicyAndEnv, folder: Path, seed: int, most: int | None, steps: int | None) -> Counted:
    """Writes complete episodes: `most` of them, or as many as have `steps` steps.

    Raises:
        ConfigError: several agents act in the environment.
    """
    spec = _spec(played, seed)
    about = {**played.about, ENV_ARGS: played.source.kwargs, "seed": seed}
    writer = EpisodeWriter(folder, spec, about)
    for episode in limited(episodes(played.source, spec, played.player, seed), most, steps):
        writer.add(episode)
    return Counted(writer.steps, writer.close())


def _spec(played: PolicyAndEnv, seed: int) -> EnvSpec:
    spec = read_spec(played.source, seed)
    if spec.groups:
        raise ConfigError(f"{spec.id}: several agents act, and rldata records one; --record of rltrain records several")
    return spec


def _named(given: Mapping[str, Any]) -> PolicyAndEnv:
    """The policy and the environment that the flags name."""
    name, env_args = str(given["POLICY"]), dict(given.get("env_args", []))
    if name != RANDOM and not is_code(name):
        return of_run(name, given)
    if given["env"] is None:
        raise ConfigError(f"{name}: add --env ENV, the environment in which it acts")
    for flag in ("best", "greedy"):
        if given[flag]:
            raise ConfigError(f"--{flag}: {name} is no trained policy")
    source = resolve(given["env"], env_args, folder=os.getcwd())
    player: Player = RandomPlayer()
    if name != RANDOM:
        player = FunctionPlayer(name, load_code(f"the policy {name!r}", name, os.getcwd()))
    return PolicyAndEnv(player, source, {"recorded": name})


def of_run(path: str, given: Mapping[str, Any]) -> PolicyAndEnv:
    """The policy of a run or a checkpoint, in the environment of the run or in another one with the same spaces."""
    if not os.path.lexists(path):
        raise ConfigError(f"{path}: there is no such run; a function is named module:function")
    env, env_args = given.get("env"), dict(given["env_args"]) if given.get("env_args") else None
    trust, best, greedy = (bool(given.get(name)) for name in ("trust", "best", "greedy"))
    trained = load_for(path, best, trust, named_by_run(env, env_args))
    source = source_of(trained, env, env_args, trust)
    spec = read_spec(source, int(given["seed"]))
    if (spec.obs, spec.action) != (trained.spec.obs, trained.spec.action):
        raise ConfigError(f"{spec.id} has other spaces than {trained.spec.id}, which {trained.path} was trained on")
    about = {"recorded": trained.config.algo, "checkpoint": trained.path.name, "greedy": greedy}
    values = None if greedy else value_function(trained)
    return PolicyAndEnv(NetworkPlayer(trained.policy, not greedy, values), source, about)
