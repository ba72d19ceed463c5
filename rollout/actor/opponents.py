"""Who plays against the learner in games of two: past policies from a pool, or somebody who moves at random.

In each game of a stream one seat is the learner's. The other is played by the newest policy, and then both learn, or by
a snapshot, and then that seat's turns are not the learner's: see `Opponents.learning`. Seat and opponent are drawn when
a game begins, from numbers that belong to the stream and its row, so that it does not matter which actor draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rltrain.envs.seeding import OPPONENT
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.unroll_rows import UnrollBuffer
from rltrain.rollout.actor.noise import RandomStart, StreamNoise
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.shared_memory.weights import WeightsBoard, published
from rltrain.rollout.specs import OpponentPool
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import NEWEST, Episode

PLAYERS = 2
DRAWN = 3  # numbers of a game: whose seat, whether against the newest policy, else against which of the others


class Opponents:
    """The games of an actor's streams.

    Args:
        make_policy: an empty policy, to hold a snapshot.
        boards:      where snapshots are published, one for each place of the pool.
    """

    def __init__(
        self,
        seed: int,
        streams: Sequence[int],
        unroll: int,
        pool: OpponentPool,
        make_policy: Callable[[], Any],
        boards: Sequence[Any],
    ) -> None:
        count = len(streams)
        self._pool, self._make = pool, make_policy
        self._memories = [SharedMemory.attach(one) if isinstance(one, tuple) else one for one in boards]
        self._policies: list[_Snapshot] = []
        self._drawn = np.zeros((unroll, count, DRAWN), np.float32)
        self._draw = StreamNoise(seed, streams, "uniform", DRAWN, branch=OPPONENT)
        self.seat = np.zeros(count, np.int64)  # [B] of the learner
        self.place = np.full(count, NEWEST)  # [B] of the opponent in the pool
        self.opponent = np.full(count, NEWEST)  # [B] its number, when the game began
        self._learning = np.ones((unroll + 1, count, PLAYERS), bool)
        self._games = np.zeros((unroll, count, 2), np.int64)  # seat and opponent, of each row

    def begin(self, rows: np.ndarray, incarnations: Sequence[int]) -> None:
        """A new unroll, which begins at each stream's `rows[b]`: what was published since is taken in."""
        self._draw.fill(self._drawn, rows, incarnations)
        for place, memory in enumerate(self._memories):
            if place == len(self._policies):
                if not published(memory):
                    break  # places are filled in turn
                self._policies.append(_Snapshot(self._make(), memory))
            self._policies[place].read()
        for b in np.flatnonzero(self.place != NEWEST):
            if self._policies[self.place[b]].number != self.opponent[b]:
                self.opponent[b] = NEWEST  # another has taken its place in the middle of the game, which says nothing

    def act(self, t: int, rows: UnrollBuffer, noise: torch.Tensor, obs: Tree, mask: Any, action: np.ndarray) -> None:
        """Row t: draw for games that begin, and write what snapshots do into the joint actions [>=B, *A]."""
        count = len(self.seat)
        for b in np.flatnonzero(rows.first[t, :count]):
            self._begin_game(int(b), self._drawn[t, b])
        against = self.place != NEWEST
        seats = np.arange(PLAYERS) == self.seat[:, None]  # [B, N]
        self._learning[t] = self._learning[t + 1] = seats | ~against[:, None]
        self._games[t] = np.stack([self.seat, self.opponent], -1)
        assert rows.acting is not None
        moves = against & (rows.acting[t, :count] & ~seats).any(-1)  # [B]
        for place in np.unique(self.place[moves]):
            chosen = self._policies[place].policy.act(obs, None, mask, noise, True).action.numpy()
            where = np.flatnonzero(moves & (self.place == place))
            action[where] = chosen[where]  # of who is not on nothing is played, or learnt from

    def learning(self, unroll: int) -> np.ndarray:
        """[T+1, B, N] the seats that the newest policy plays."""
        return self._learning[: unroll + 1]

    def tell(self, episodes: tuple[Episode, ...], ended: np.ndarray) -> tuple[Episode, ...]:
        """Episodes of an unroll, in the order of streams and rows, with who played them; `ended` [T, B]."""
        games = self._games[: len(ended)].transpose(1, 0, 2)[ended.T].tolist()
        return tuple(
            one._replace(seat=seat, opponent=opponent) for one, (seat, opponent) in zip(episodes, games, strict=True)
        )

    def state(self, columns: slice) -> dict[str, Any]:
        """Of these streams, for a checkpoint: the games under way."""
        return {name: getattr(self, name)[columns].copy() for name in ("seat", "place", "opponent")}

    def load(self, games: Sequence[dict[str, Any]]) -> None:
        """Go on from `state`, unit by unit."""
        for name in ("seat", "place", "opponent"):
            getattr(self, name)[:] = np.concatenate([np.asarray(game[name]) for game in games])

    def _begin_game(self, b: int, drawn: np.ndarray) -> None:
        seat, old, which = (float(x) for x in drawn)
        self.seat[b] = int(seat * PLAYERS)
        self.place[b] = self.opponent[b] = NEWEST
        if self._policies and old < self._pool.share:
            self.place[b] = int(which * len(self._policies))
            self.opponent[b] = self._policies[self.place[b]].number


class AtRandom:
    """Moves uniformly among the legal ones against a policy, whose seat changes from episode to episode.

    Args:
        seeds: of the episodes side by side; the first has number `begin`.
    """

    def __init__(self, spec: EnvSpec, seeds: Sequence[int], begin: int, longest: int) -> None:
        self.seats = [(begin + number) % PLAYERS for number in range(len(seeds))]
        self._theirs = np.zeros((len(seeds), spec.action.size), bool)  # [B, A]
        for b, seat in enumerate(self.seats):
            self._theirs[b, spec.layout.agents[1 - seat].action] = True
        self._each = [RandomStart(seed, [0], spec.action, longest) for seed in seeds]

    def act(self, step: int, mask: np.ndarray | None, action: np.ndarray) -> np.ndarray:
        """The joint actions [B, *A] with the other seat's in them."""
        found = action.copy()
        for b, one in enumerate(self._each):
            one.begin(1, np.array([step]), [0])
            one.replace(0, found[b : b + 1], None if mask is None else mask[b : b + 1])
        theirs = self._theirs.reshape(action.shape)
        mixed: np.ndarray = np.where(theirs, found, action)
        return mixed


class _Snapshot:
    """A policy of the past, as it was last read from its board."""

    def __init__(self, policy: Any, memory: SharedMemory) -> None:
        self.policy = policy
        self._parameters = {name: tensor.numpy() for name, tensor in policy.state_dict().items()}
        self._board = WeightsBoard(self._parameters, memory)
        self._sequence = 0
        self.number = NEWEST

    def read(self) -> None:
        if self._board.sequence != self._sequence:
            self._sequence = self._board.sequence
            self.number = self._board.read(self._parameters)[0]
