"""Returns and lengths of the episodes inside streams, and the playing of whole episodes for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rltrain.envs.make import serial
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.unroll_rows import Rows
from rltrain.rollout.noise import StreamNoise
from rltrain.rollout.opponents import AtRandom
from rltrain.rollout.tree import Tree, tree_map
from rltrain.rollout.types import Episode

LONGEST = 10_000  # steps after which an episode is cut off that has no time limit of its own
WIDTH = 16  # a network's row has the same bits in every batch whose width is a multiple of this


def padded(streams: int) -> int:
    """The width of the arrays that hold `streams` columns."""
    return -(-streams // WIDTH) * WIDTH


def obs_arrays(spec: EnvSpec, rows: int, width: int) -> Tree:
    """Zeroed observation arrays [rows, width, *O] for each leaf of the spec."""

    def node(obs: Any) -> Tree:
        if isinstance(obs, dict):
            return {key: node(obs[key]) for key in sorted(obs)}
        if isinstance(obs, tuple):
            return tuple(node(child) for child in obs)
        return np.zeros((rows, width, *obs.shape), obs.dtype)

    return node(spec.obs)


def empty_rows(spec: EnvSpec, unroll: int, streams: int, obs: Tree | None = None) -> Rows:
    """Arrays for an unroll of `unroll` rows, as wide as `padded(streams)`. Masks begin as all legal."""
    width, each = padded(streams), spec.each
    beside: dict[str, Any] = {
        name: np.full((unroll + 1, width, *shape), name == "action_mask", dtype)
        for name, (shape, dtype) in spec.beside().items()
    }
    return Rows(
        obs=obs_arrays(spec, unroll + 1, width) if obs is None else obs,
        reward=np.zeros((unroll, width, *each), np.float32),
        terminated=np.zeros((unroll, width, *each), bool),
        truncated=np.zeros((unroll, width, *each), bool),
        first=np.zeros((unroll + 1, width), bool),
        goes_on=np.zeros((unroll, width), bool),
        **{"action_mask": None, **beside},
    )


def kept(core: torch.Tensor, alive: np.ndarray | None) -> torch.Tensor:
    """The memory [B, N * H] after a row in which the agents `alive` [B, N] were there; that of the others is empty."""
    if alive is None:
        return core
    return (core.view(*alive.shape, -1) * torch.from_numpy(alive).unsqueeze(-1)).view_as(core)


class EpisodeTracker:
    """Sums rewards and counts steps per stream, across unrolls."""

    def __init__(self, streams: int) -> None:
        self.ret = np.zeros(streams, np.float64)
        self.length = np.zeros(streams, np.int64)

    def add(self, reward: np.ndarray, ended: np.ndarray, valid: np.ndarray) -> tuple[Episode, ...]:
        """One unroll, all [T, B]; returns the episodes that ended in it, in the order of their streams and time."""
        if not ended.any():
            self.ret += reward.sum(0, dtype=np.float64)
            self.length += valid.sum(0)
            return ()
        rows, streams = reward.shape
        columns = np.arange(streams) * rows  # where each stream begins, once they lie one after the other
        stream, row = np.nonzero(ended.T)
        ends = stream * rows + row
        starts = np.union1d(columns, ends + 1)  # of pieces of episodes
        starts = starts[starts < rows * streams]
        sums = np.add.reduceat(np.ravel(reward.T).astype(np.float64), starts)
        steps = np.add.reduceat(np.ravel(valid.T).astype(np.int64), starts)
        firsts = np.searchsorted(starts, columns)
        sums[firsts] += self.ret
        steps[firsts] += self.length
        lasts = np.append(firsts[1:], len(starts)) - 1
        self.ret[:] = np.where(ended[-1], 0.0, sums[lasts])
        self.length[:] = np.where(ended[-1], 0, steps[lasts])
        done = np.searchsorted(starts, ends, side="right") - 1
        return tuple(map(Episode, sums[done].tolist(), steps[done].tolist()))


class TeamTracker:
    """The same for several agents: each is followed as a stream is, and an episode is the sum of theirs."""

    def __init__(self, streams: int, agents: int) -> None:
        self._each = EpisodeTracker(streams * agents)
        self.ret = self._each.ret.reshape(streams, agents)
        self.length = self._each.length.reshape(streams, agents)

    def add(self, reward: np.ndarray, ended: np.ndarray, valid: np.ndarray) -> tuple[Episode, ...]:
        """One unroll: reward [T, B, N], ended and valid [T, B]; as for `EpisodeTracker`."""
        rows, _, agents = reward.shape
        found = self._each.add(
            reward.reshape(rows, -1), ended.repeat(agents, axis=1), valid.repeat(agents, axis=1)
        )  # all episodes of a stream's first agent, all of its second, ..., then those of the next stream
        episodes: list[Episode] = []
        begin = 0
        for count in ended.sum(0).tolist():
            of_agents = [found[begin + n * count : begin + (n + 1) * count] for n in range(agents)]
            begin += agents * count
            episodes += [_together(one) for one in zip(*of_agents, strict=True)]
        return tuple(episodes)


def _together(episodes: Sequence[Episode]) -> Episode:
    """An episode of several agents from what it was to each."""
    returns = tuple(episode.ret for episode in episodes)
    return Episode(sum(returns), episodes[0].length, returns)


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
    env = serial(make, spec, range(count), seeds, way="none")
    rows = empty_rows(spec, 1, count)
    noises = [StreamNoise(seed, [0], *policy.noise) for seed in seeds]
    noise = np.zeros((1, padded(count), policy.noise.columns), np.float32)
    core = torch.zeros(padded(count), policy.core_size) if policy.core_size else None
    ret, length, ended = np.zeros((count, *spec.each)), np.zeros(count, np.int64), np.zeros(count, bool)
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
                core = None if act.core is None else kept(act.core, None if rows.alive is None else rows.alive[0])
                if frame is not None:
                    frame(env.envs[0])
                action = act.action.numpy()[:count]
                if other is not None:
                    legal = None if rows.action_mask is None else rows.action_mask[0]
                    action = other.act(step, legal, action)
                env.step(action, rows, 0)
                ret[~ended] += rows.reward[0, :count][~ended]
                length += ~(ended | rows.first[1, :count])
                over = rows.over(0)[:count] & ~rows.goes_on[0, :count]
                if (over & ~ended).any():
                    ended |= over
                    env.rest(ended)
                tree_map(lambda array: np.copyto(array[0], array[1]), rows.obs)
                for array in rows.beside():
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
