"""Returns and lengths of the episodes inside the streams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rltrain.rollout.types import Episode


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
