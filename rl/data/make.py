"""`rldata make`: data sets by the recipe of D4RL, Fu et al. 2020 (arXiv:2004.07219), from runs of our own.

random          uniformly random actions
medium          a policy of about a third of the expert's return above that of random actions
medium-replay   all steps of the training of that policy
medium-expert   one half of medium, one half of expert
expert          the last policy of the run
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rltrain.config.load import load
from rltrain.data.episodes import EpisodeWriter, episodes_of
from rltrain.data.generate import PolicyAndEnv, of_run
from rltrain.data.origin import ENV_ARGS, REFERENCE, of_part
from rltrain.data.record import RandomPlayer, episodes, limited
from rltrain.data.sources import Counted, Outcome, line_of, new_output, values_of
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.seeding import RECORDED, seed_of
from rltrain.envs.spec import EnvSpec, spec_differences
from rltrain.errors import CheckpointError, ConfigError, RunFailed
from rltrain.evaluation.evaluate import this_process
from rltrain.reporting.console import short_path
from rltrain.storage import checkpoint, retention
from rltrain.storage.recording import Recording
from rltrain.training_loop import train

MEDIUM = 1 / 3  # of the way from random actions to the expert
SEARCHED = 10  # episodes that estimate the return of one checkpoint
SCORED = 100  # episodes of a reference score
SCORES_SEED = 1_000_003  # so that scores and data come from different episodes
CHECKPOINTS = 20  # of a new run


class Policy(NamedTuple):
    """The policy of a checkpoint, with its mean return."""

    path: Path
    played: PolicyAndEnv
    ret: float

    def about(self) -> dict[str, Any]:
        meta = checkpoint.load(self.path).meta
        return {"step": int(meta["step"]), "return": self.ret, "sha256": meta["files"]["state.safetensors"]["sha256"]}


def make(given: Mapping[str, Any]) -> Outcome:
    """Does what `rldata make` asks for."""
    kind, name, seed = given["kind"], given["OUT"], given["seed"]
    source = resolve(given["ENV"], dict(given.get("env_args", [])), folder=os.getcwd())
    with new_output(name) as out:
        spec = read_spec(source, seed)
        run = Path(given["run"]) if given["run"] is not None else _trained(given, spec)
        with this_process(seed):
            random = PolicyAndEnv(RandomPlayer(), source)
            random_return, expert, medium = _policies(run, given, spec, random)
            about: dict[str, Any] = {
                "made": kind,
                "seed": seed,
                ENV_ARGS: source.kwargs,
                "checkpoints": {"expert": expert.about()},
            }
            if medium is not None:
                about["checkpoints"]["medium"] = medium.about()
            about[REFERENCE] = {
                "env": spec.id,
                "env_args": source.kwargs,
                "random": random_return,
                "expert": expert.ret,
                "episodes": SCORED,
            }
            if kind == "medium-replay":
                assert medium is not None
                replay = _until(run, medium.path, spec)
                writer = EpisodeWriter(out, spec, {**of_part(replay.run), **about})
                for episode in episodes_of(replay):
                    writer.add(episode)
            else:
                writer = EpisodeWriter(out, spec, about)
                parts = kind.split("-")
                policies = {
                    "random": random,
                    "expert": expert.played,
                    **({} if medium is None else {"medium": medium.played}),
                }
                for number, part in enumerate(parts):
                    own = seed_of(seed, RECORDED, number) if number else seed  # no two parts begin in the same states
                    played = episodes(source, spec, policies[part].player, own)
                    for episode in limited(played, None, -(-given["steps"] // len(parts))):
                        writer.add(episode)
            written = Counted(writer.steps, writer.close())
    scores = f"random {random_return:.2f}, expert {expert.ret:.2f}" + (
        f", medium {medium.ret:.2f}" if medium is not None else ""
    )
    line = f"{line_of(name, written)}; mean returns: {scores}; the policies are those of {short_path(run)}"
    return Outcome([line], {**values_of(name, written), **about, "run": str(run)})


def _trained(given: Mapping[str, Any], spec: EnvSpec) -> Path:
    """The folder of a new run, which records all its steps and keeps policies of all its stages."""
    algo = given["algo"] or ("sac" if spec.action.kind == "box" else "dqn")
    name = f"make-{algo}-{Path(given['OUT']).name}"
    wanted = {"algo": algo, "env": given["ENV"], "env_args": dict(given.get("env_args", [])), "seed": given["seed"]}
    wanted |= {"steps": given["train_steps"]} if "train_steps" in given else {}
    wanted |= {"workers": given["workers"]} if "workers" in given else {}
    config = load({**wanted, "name": name, "keep": CHECKPOINTS + 1, "eval_every": 0, "quiet": given["json"]})
    every, record = max(1, config.steps // CHECKPOINTS), Path(config.out, f"{name}-record").absolute()
    return train(config, checkpoint_every=every, record=str(record)).run


def _policies(
    run: Path, given: Mapping[str, Any], spec: EnvSpec, random: PolicyAndEnv
) -> tuple[float, Policy, Policy | None]:
    """The mean return of random actions, the last policy of a run, and for some kinds the medium one."""
    newest, seed = retention.find(run)[0].path, given["seed"]

    def played(path: Path) -> PolicyAndEnv:
        found = of_run(str(path), {"trust": given.get("trust"), "seed": seed})
        own = read_spec(found.source, seed)
        changed = spec_differences(own, spec, ignored=())
        if own.id == spec.id and found.source.kwargs != dict(given.get("env_args", [])):
            changed = f"its arguments were {found.source.kwargs}"
        if changed:
            raise ConfigError(f"--run {run} was trained in another environment than {given['ENV']}: {changed}")
        return found

    last = played(newest)
    random_return, last_return = (_mean_return(one, spec, seed, SCORED) for one in (random, last))
    if not last_return > random_return:
        text = f"the last policy of {run} has the mean return {last_return:.2f}, and random actions have"
        raise RunFailed(f"{text} {random_return:.2f}: train for more steps")
    expert = Policy(newest, last, last_return)
    if not given["kind"].startswith("medium"):
        return random_return, expert, None
    wanted = random_return + MEDIUM * (last_return - random_return)
    others: list[Policy] = []
    for path in sorted(newest.parent.glob(f"{retention.STEPS}*")):
        with contextlib.suppress(CheckpointError):  # damaged
            if path != newest:
                earlier = played(path)
                others.append(Policy(path, earlier, _mean_return(earlier, spec, seed, SEARCHED)))
    if not others:
        raise ConfigError(f"--run {run} has no earlier checkpoints: train with --keep {CHECKPOINTS}")
    best = min(others, key=lambda one: abs(one.ret - wanted))
    return random_return, expert, best._replace(ret=_mean_return(best.played, spec, seed, SCORED))


def _mean_return(played: PolicyAndEnv, spec: EnvSpec, seed: int, count: int) -> float:
    """The mean return of complete episodes, which are not those of the data."""
    scored = limited(episodes(played.source, spec, played.player, seed + SCORES_SEED), count, None)
    return float(np.mean([one.ret for one in scored]))


def _until(run: Path, path: Path, spec: EnvSpec) -> Recording:
    """The part of a run's recording that was made before a checkpoint."""
    saved = checkpoint.load(path)
    folder = saved.meta["config"].get("record")
    if folder is None:
        raise ConfigError(f"--run {run}: medium-replay needs the recording of its training: train with --record DIR")
    recording = Recording.open(Path(folder), spec)
    return replace(recording, files=recording.files[: int(saved.state["recorded"])])
