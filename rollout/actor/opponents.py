"""Opponents in games of two players: snapshots of the policy from a pool, or random actions.

In each game the newest policy is one of the players. The other player is the newest policy too, and then both learn, or
a snapshot, and then its actions are not learned: see `Opponents.learning`. Player and opponent are drawn when a game
begins, from random numbers that belong to the stream and its row, so they do not depend on which actor draws them.
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
from rltrain.rollout.shared_memory.memory import SharedMemory, Ticket
from rltrain.rollout.shared_memory.weights import WeightsBoard, is_published
from rltrain.rollout.specs import OpponentPool
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import NEWEST, Episode, Policy

PLAYERS = 2
DRAWN = 3  # random numbers per game: which player is the newest policy; play a snapshot or not; which snapshot
STORED = {"seat": "player", "place": "index", "opponent": "opponent"}  # keys in checkpoints -> attributes of Opponents


class Opponents:
    """The games of an actor's streams.

    Args:
        make_policy: makes a policy that a snapshot's weights are read into.
        boards:      the memory of the snapshots, one for each index of the pool; they are filled in order.
    """

    def __init__(
        self,
        seed: int,
        streams: Sequence[int],
        unroll: int,
        pool: OpponentPool,
        make_policy: Callable[[], Policy],
        boards: Sequence[Ticket | SharedMemory],
    ) -> None:
        count = len(streams)
        self._pool, self._make_policy = pool, make_policy
        self._boards = [SharedMemory.attach(board) for board in boards]
        self._snapshots: list[_Snapshot] = []
        self._drawn = np.zeros((unroll, count, DRAWN), np.float32)
        self._draw = StreamNoise(seed, streams, "uniform", DRAWN, branch=OPPONENT)
        self.player = np.zeros(count, np.int64)  # [B] which player is the newest policy
        self.index = np.full(count, NEWEST)  # [B] of the opponent in the pool
        self.opponent = np.full(count, NEWEST)  # [B] id of the opponent when the game began
        self._learning = np.ones((unroll + 1, count, PLAYERS), bool)
        self._games = np.zeros((unroll, count, 2), np.int64)  # player and opponent of each row

    def begin(self, rows: np.ndarray, generations: Sequence[int]) -> None:
        """Begin an unroll at each stream's `rows[b]`, and read the snapshots that were published since the last one."""
        self._draw.fill(self._drawn, rows, generations)
        for index, board in enumerate(self._boards):
            if index == len(self._snapshots):
                if not is_published(board):
                    break
                self._snapshots.append(_Snapshot(self._make_policy(), board))
            self._snapshots[index].read()
        for b in np.flatnonzero(self.index != NEWEST):
            if self._snapshots[self.index[b]].id != self.opponent[b]:
                self.opponent[b] = NEWEST  # replaced during the game, whose result is not that of one opponent

    def act(
        self, t: int, rows: UnrollBuffer, noise: torch.Tensor, obs: Tree, mask: torch.Tensor | None, action: np.ndarray
    ) -> None:
        """Row t: draw the games that begin, and write the snapshots' actions into the joint actions [>=B, *A]."""
        count = len(self.player)
        for b in np.flatnonzero(rows.first[t, :count]):
            self._begin_game(int(b), self._drawn[t, b])
        against_snapshot = self.index != NEWEST
        newest = np.arange(PLAYERS) == self.player[:, None]  # [B, N]
        self._learning[t] = self._learning[t + 1] = newest | ~against_snapshot[:, None]
        self._games[t] = np.stack([self.player, self.opponent], -1)
        assert rows.acting is not None
        moves = against_snapshot & (rows.acting[t, :count] & ~newest).any(-1)  # [B] a snapshot acts now
        for index in np.unique(self.index[moves]):
            chosen = self._snapshots[index].policy.act(obs, None, mask, noise, True).action.numpy()
            where = np.flatnonzero(moves & (self.index == index))
            action[where] = chosen[where]  # the action of the other player is ignored, and masked in the loss

    def learning(self, unroll: int) -> np.ndarray:
        """[T+1, B, N] players whose actions are the newest policy's."""
        return self._learning[: unroll + 1]

    def assign(self, episodes: tuple[Episode, ...], ended: np.ndarray) -> tuple[Episode, ...]:
        """The episodes of an unroll, ordered by stream and row, with their player and opponent; `ended` is [T, B]."""
        games = self._games[: len(ended)].transpose(1, 0, 2)[ended.T].tolist()
        return tuple(
            episode._replace(player=player, opponent=opponent)
            for episode, (player, opponent) in zip(episodes, games, strict=True)
        )

    def state(self, columns: slice) -> dict[str, Any]:
        """The games in progress of these streams, for a checkpoint."""
        return {key: getattr(self, name)[columns].copy() for key, name in STORED.items()}

    def load(self, games: Sequence[dict[str, Any]]) -> None:
        """Continue from `state`, in the order of the streams."""
        for key, name in STORED.items():
            getattr(self, name)[:] = np.concatenate([np.asarray(game[key]) for game in games])

    def _begin_game(self, b: int, drawn: np.ndarray) -> None:
        player, snapshot, which = (float(x) for x in drawn)
        self.player[b] = int(player * PLAYERS)
        self.index[b] = self.opponent[b] = NEWEST
        if self._snapshots and snapshot < self._pool.share:
            self.index[b] = int(which * len(self._snapshots))
            self.opponent[b] = self._snapshots[self.index[b]].id


class RandomOpponent:
    """Acts uniformly among the legal actions; the policy's player alternates from episode to episode.

    Args:
        seeds:   of the episodes that run at once.
        begin:   number of the first of them.
        longest: steps of an episode, at most.
    """

    def __init__(self, spec: EnvSpec, seeds: Sequence[int], begin: int, longest: int) -> None:
        self.players = [(begin + number) % PLAYERS for number in range(len(seeds))]  # [B] of the policy
        self._theirs = np.zeros((len(seeds), spec.action.size), bool)  # [B, A] numbers of the opponent's action
        for b, player in enumerate(self.players):
            self._theirs[b, spec.layout.agents[1 - player].action] = True
        self._each = [RandomStart(seed, [0], spec.action, longest) for seed in seeds]

    def act(self, step: int, mask: np.ndarray | None, action: np.ndarray) -> np.ndarray:
        """The joint actions [B, *A], with the opponent's in place of those in `action`."""
        drawn = action.copy()
        for b, one in enumerate(self._each):
            one.begin(1, np.array([step]), [0])
            one.replace(0, drawn[b : b + 1], None if mask is None else mask[b : b + 1])
        mixed: np.ndarray = np.where(self._theirs.reshape(action.shape), drawn, action)
        return mixed


class _Snapshot:
    """A policy with the weights that were last read from its board."""

    def __init__(self, policy: Policy, memory: SharedMemory) -> None:
        self.policy = policy
        self._parameters = {name: tensor.numpy() for name, tensor in policy.state_dict().items()}
        self._board = WeightsBoard(self._parameters, memory)
        self._sequence = 0
        self.id = NEWEST

    def read(self) -> None:
        if self._board.sequence != self._sequence:
            self._sequence = self._board.sequence
            self.id = self._board.read(self._parameters)[0]
