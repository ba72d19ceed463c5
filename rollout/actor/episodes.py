"""Computes the returns and lengths of the episodes in unrolls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rltrain.rollout.types import Episode


class EpisodeTracker:
    """Sums rewards and counts steps per stream, across unrolls."""

    def __init__(self, streams: int) -> None:
        self.ret = np.zeros(streams, np.float64)
        self.length = np.zeros(streams, np.int64)

    def add(self, reward: np.ndarray, ended: np.ndarray, valid: np.ndarray) -> tuple[Episode, ...]:
        """Add one unroll, all [T, B]; returns the episodes that ended in it, ordered by stream and time."""
        if not ended.any():
            self.ret += reward.sum(0, dtype=np.float64)
            self.length += valid.sum(0)
            return ()
        rows, streams = reward.shape
        columns = np.arange(streams) * rows  # index of each stream's first row in the flattened arrays
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
    """An `EpisodeTracker` for several agents: tracks each agent of each stream, and joins their episodes."""

    def __init__(self, streams: int, agents: int) -> None:
        self._each = EpisodeTracker(streams * agents)
        self.ret = self._each.ret.reshape(streams, agents)
        self.length = self._each.length.reshape(streams, agents)

    def add(self, reward: np.ndarray, ended: np.ndarray, valid: np.ndarray) -> tuple[Episode, ...]:
        """Add one unroll: reward [T, B, N], ended and valid [T, B]; see `EpisodeTracker.add`."""
        rows, _, agents = reward.shape
        single = self._each.add(
            reward.reshape(rows, -1), ended.repeat(agents, axis=1), valid.repeat(agents, axis=1)
        )  # all episodes of a stream's first agent, all of its second, ..., then those of the next stream
        episodes: list[Episode] = []
        begin = 0
        for count in ended.sum(0).tolist():
            of_agents = [single[begin + n * count : begin + (n + 1) * count] for n in range(agents)]
            begin += agents * count
            episodes += [joint_episode(one) for one in zip(*of_agents, strict=True)]
        return tuple(episodes)


def with_infos(
    episodes: Sequence[Episode], ended: np.ndarray, finals: Mapping[tuple[int, int], dict[str, float]]
) -> tuple[Episode, ...]:
    """The episodes with the numbers of their last infos.

    Args:
        episodes: as `EpisodeTracker.add` returns them: those that `ended` [T, B] marks, ordered by stream and time.
        finals:   the numbers, by (row, column).
    """
    ends = zip(*np.nonzero(ended.T), strict=True)  # (column, row)
    found = [finals.get((int(row), int(column))) for column, row in ends]
    return tuple(
        episode if not numbers else episode._replace(info=numbers)
        for episode, numbers in zip(episodes, found, strict=True)
    )


def joint_episode(episodes: Sequence[Episode]) -> Episode:
    """One episode of several agents from their single ones."""
    returns = tuple(episode.ret for episode in episodes)
    return Episode(sum(returns), episodes[0].length, returns)
