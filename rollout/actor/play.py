"""Plays complete episodes with fixed weights, for evaluation: in this process, or in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rltrain.envs.errors import EnvFault
from rltrain.envs.make import serial
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.episode_info import EpisodeOptions
from rltrain.rollout.actor.episodes import joint_episode
from rltrain.rollout.actor.isolated_env import IsolatedEnv, acting
from rltrain.rollout.actor.noise import StreamNoise
from rltrain.rollout.actor.opponents import RandomOpponent
from rltrain.rollout.buffers import clear_absent, empty_rows, padded, to_next_step
from rltrain.rollout.shared_memory.memory import SharedMemory, Ticket
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import LONGEST, Episode, Policy

AT_ONCE = 64  # episodes


def play(
    make: Callable[[], Any],
    spec: EnvSpec,
    policy: Policy,
    seeds: Sequence[int],
    explore: bool = False,
    at_once: int = AT_ONCE,
    frame: Callable[[Any], None] | None = None,
    at_random: bool = False,
    info_keys: tuple[str, ...] = (),
) -> list[Episode]:
    """Play one complete episode per seed, so that short episodes are not overrepresented.

    An episode of an environment without a time limit is cut off after LONGEST steps.

    Args:
        make:      makes one environment.
        seeds:     one per episode, for the environment's reset and the action noise.
        explore:   sample actions; False takes the most likely one.
        at_once:   number of episodes that run at the same time.
        frame:     called with the first environment before each of its steps (for videos).
        at_random: all players but one act at random: the policy is the first player in the first episode, the second
                   in the next, and so on. The return is that of the policy's player.
        info_keys: see `EpisodeOptions`.
    """
    episodes: list[Episode] = []
    for begin in range(0, len(seeds), at_once):
        now = seeds[begin : begin + at_once]
        opponent = RandomOpponent(spec, now, begin, LONGEST) if at_random else None
        episodes += _play(make, spec, policy, now, explore, frame, opponent, info_keys)
    return episodes


def _play(
    make: Callable[[], Any],
    spec: EnvSpec,
    policy: Policy,
    seeds: Sequence[int],
    explore: bool,
    frame: Callable[[Any], None] | None,
    opponent: RandomOpponent | None,
    info_keys: tuple[str, ...],
) -> list[Episode]:
    count, options = len(seeds), EpisodeOptions(info_keys)
    env: Any = IsolatedEnv(lambda: serial(make, spec, range(count), seeds, "none", options))
    infos: list[dict[str, float]] = [{} for _ in seeds]
    rows = empty_rows(spec, 1, count)
    noises = [StreamNoise(seed, [0], *policy.noise) for seed in seeds]
    noise = np.zeros((1, padded(count), policy.noise.columns), np.float32)
    core = torch.zeros(padded(count), policy.core_size) if policy.core_size else None
    ret, length, ended = np.zeros((count, *spec.agents_shape)), np.zeros(count, np.int64), np.zeros(count, bool)
    env.reset(rows)
    step = 0
    try:
        with torch.no_grad():
            while not ended.all() and (spec.max_steps is not None or step < LONGEST):
                if explore:
                    for b, one in enumerate(noises):
                        one.fill(noise[:, b : b + 1], np.array([step]), [0])
                with acting():
                    if core is not None and rows.first[0].any():  # also after a lost life, as in training
                        core = core * torch.from_numpy(~rows.first[0])[:, None]
                    obs = tree_map(lambda array: torch.from_numpy(array[0]), rows.obs)
                    mask = None if rows.action_mask is None else torch.from_numpy(rows.action_mask[0])
                    act = policy.act(obs, core, mask, torch.from_numpy(noise[0]), explore)
                    alive = None if rows.alive is None else rows.alive[0]
                    core = None if act.core is None else clear_absent(act.core, alive)
                if frame is not None:
                    frame(env.envs[0])
                action = act.action.numpy()[:count]
                if opponent is not None:
                    legal = None if rows.action_mask is None else rows.action_mask[0]
                    action = opponent.act(step, legal, action)
                try:
                    env.step(action, rows, 0)
                    env.check(rows, 1)
                except EnvFault as fault:
                    raise EnvFault(fault.stream, fault.seed, step, fault.detail) from None
                ret[~ended] += rows.reward[0, :count][~ended]
                length += ~(ended | rows.first[1, :count])
                over = rows.episode_end(0)[:count] & ~rows.episode_continues[0, :count]
                if (over & ~ended).any():
                    for b in np.flatnonzero(over & ~ended).tolist():
                        infos[b] = env.finals.get((0, b), {})
                    ended |= over
                    env.rest(ended)
                to_next_step(rows)
                step += 1
    finally:
        env.close()
    if spec.groups:
        episodes = [
            joint_episode([Episode(r, n) for r in each])._replace(info=info)
            for each, n, info in zip(ret.tolist(), length.tolist(), infos, strict=True)
        ]
        if opponent is None:
            return episodes
        players = zip(episodes, opponent.players, strict=True)
        return [episode._replace(ret=episode.agents[player], player=player) for episode, player in players]
    return [Episode(float(r), int(n), info=info) for r, n, info in zip(ret, length, infos, strict=True)]


class _CutOff(Exception):
    """The time of an evaluation is over."""


@dataclass(frozen=True)
class EvaluatorJob:
    """Everything that an evaluator is made from. Travels to its process."""

    spec: EnvSpec
    make: Callable[[], Any]  # one environment
    make_policy: Callable[[], Policy]
    at_random: bool = False  # see `play`
    info_keys: tuple[str, ...] = ()


class Evaluator:
    """Plays episodes with the weights of each call.

    Args:
        progress: memory for the number of steps made (int64), and for the monotonic time at which an evaluation is
            cut off (float64).
    """

    def __init__(self, job: EvaluatorJob, progress: Ticket | SharedMemory) -> None:
        self.job = job
        memory = SharedMemory.attach(progress)
        self._steps, self._end = memory.array(0, (1,), np.int64), memory.array(8, (1,), np.float64)
        self.policy = job.make_policy()
        self._parameters = {name: tensor.numpy() for name, tensor in self.policy.state_dict().items()}

    def evaluate(self, arrays: dict[str, np.ndarray], seeds: list[int], explore: bool) -> list[Episode]:
        """One episode per seed with these weights; see `play`. [] if they were cut off."""
        for name, array in self._parameters.items():
            array[...] = arrays[name]

        def count(_: Any) -> None:
            self._steps[0] += 1
            if time.monotonic() >= self._end[0]:
                raise _CutOff

        job = self.job
        try:
            return play(
                job.make,
                job.spec,
                self.policy,
                seeds,
                explore,
                frame=count,
                at_random=job.at_random,
                info_keys=job.info_keys,
            )
        except _CutOff:
            return []

    def close(self) -> None:
        """No-op: environments are closed at the end of each call."""
