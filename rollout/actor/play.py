"""Plays whole episodes with frozen weights, for evaluation: in this process, or in a worker of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rltrain.envs.make import serial
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.actor.episodes import _together
from rltrain.rollout.actor.noise import StreamNoise
from rltrain.rollout.actor.opponents import AtRandom
from rltrain.rollout.buffers import clear_absent, empty_rows, padded
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Episode

LONGEST = 10_000  # steps after which an episode is cut off that has no time limit of its own


def play(
    make: Callable[[], Any],
    spec: EnvSpec,
    policy: Any,
    seeds: Sequence[int],
    explore: bool = False,
    at_once: int = 64,
    frame: Callable[[Any], None] | None = None,
    at_random: bool = False,
) -> list[Episode]:
    """Play one whole episode per seed, so that short episodes are not preferred.

    An environment without a time limit might never end one: it is cut off after LONGEST steps.

    Args:
        make:    makes one environment.
        seeds:   an episode each; its environment is reset with it, its action noise drawn from it.
        explore: sample actions, or take the most likely one.
        at_once: episodes side by side.
        frame:   called with the environment before each step of the first one (for videos).
        at_random: of two agents one moves at random, the second in the first episode, the first in the next, and so on;
                 the return is the other's.
    """
    episodes: list[Episode] = []
    for begin in range(0, len(seeds), at_once):
        now = seeds[begin : begin + at_once]
        other = AtRandom(spec, now, begin, LONGEST) if at_random else None
        episodes += _play(make, spec, policy, now, explore, frame, other)
    return episodes


def _play(
    make: Callable[[], Any],
    spec: EnvSpec,
    policy: Any,
    seeds: Sequence[int],
    explore: bool,
    frame: Callable[[Any], None] | None,
    other: AtRandom | None,
) -> list[Episode]:
    count = len(seeds)
    env = serial(make, spec, range(count), seeds, restore_method="none")
    rows = empty_rows(spec, 1, count)
    noises = [StreamNoise(seed, [0], *policy.noise) for seed in seeds]
    noise = np.zeros((1, padded(count), policy.noise.columns), np.float32)
    core = torch.zeros(padded(count), policy.core_size) if policy.core_size else None
    ret, length, ended = np.zeros((count, *spec.agents_shape)), np.zeros(count, np.int64), np.zeros(count, bool)
    env.reset(rows)
    step = 0
    try:
        with torch.inference_mode():
            while not ended.all() and (spec.max_steps is not None or step < LONGEST):
                if explore:
                    for b, one in enumerate(noises):
                        one.fill(noise[:, b : b + 1], np.array([step]), [0])
                obs = tree_map(lambda array: torch.from_numpy(array[0]), rows.obs)
                mask = None if rows.action_mask is None else torch.from_numpy(rows.action_mask[0])
                act = policy.act(obs, core, mask, torch.from_numpy(noise[0]), explore)
                alive = None if rows.alive is None else rows.alive[0]
                core = None if act.core is None else clear_absent(act.core, alive)
                if frame is not None:
                    frame(env.envs[0])
                action = act.action.numpy()[:count]
                if other is not None:
                    legal = None if rows.action_mask is None else rows.action_mask[0]
                    action = other.act(step, legal, action)
                env.step(action, rows, 0)
                ret[~ended] += rows.reward[0, :count][~ended]
                length += ~(ended | rows.first[1, :count])
                over = rows.episode_end(0)[:count] & ~rows.episode_continues[0, :count]
                if (over & ~ended).any():
                    ended |= over
                    env.rest(ended)
                tree_map(lambda array: np.copyto(array[0], array[1]), rows.obs)
                for array in rows.optional_fields():
                    array[0] = array[1]
                step += 1
    finally:
        env.close()
    if spec.groups:
        found = [
            _together([Episode(r, n) for r in each]) for each, n in zip(ret.tolist(), length.tolist(), strict=True)
        ]
        if other is None:
            return found
        seats = zip(found, other.seats, strict=True)
        return [one._replace(ret=one.agents[seat], seat=seat) for one, seat in seats]
    return [Episode(float(r), int(n)) for r, n in zip(ret, length, strict=True)]


@dataclass(frozen=True)
class EvaluatorJob:
    """Everything an evaluator is made from."""

    spec: EnvSpec
    make: Callable[[], Any]  # one environment
    make_policy: Callable[[], Any]
    at_random: bool = False  # against somebody who moves so


class Evaluator:
    """Plays episodes with the weights it is given."""

    def __init__(self, job: EvaluatorJob, progress: Any) -> None:
        self.job = job
        memory = SharedMemory.attach(progress) if isinstance(progress, tuple) else progress
        self._progress = memory.array(0, (1,), np.int64)
        self.policy = job.make_policy()
        self._parameters = {name: tensor.numpy() for name, tensor in self.policy.state_dict().items()}

    def evaluate(self, arrays: dict[str, np.ndarray], seeds: list[int], explore: bool) -> list[Episode]:
        """One episode per seed with these weights; exploration is off unless asked for."""
        for name, array in self._parameters.items():
            array[...] = arrays[name]

        def alive(_: Any) -> None:
            self._progress[0] += 1

        return play(
            self.job.make, self.job.spec, self.policy, seeds, explore, frame=alive, at_random=self.job.at_random
        )

    def close(self) -> None:
        """Nothing to close: environments live as long as a call."""
