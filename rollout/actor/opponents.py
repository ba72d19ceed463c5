"""Opponents in games of several players: snapshots of the policy, policies of other runs, or random actions.

In a game against the pool the newest policy is one of the players, and an opponent is drawn for each of the others; the
actions of opponents are not learned: see `Opponents.learning`. In the other games the newest policy is all players.
Player and opponents are drawn when a game begins, from random numbers that belong to the stream and its row, so they do
not depend on which actor draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from rltrain.envs.seeding import OPPONENT, OTHERS, seed_of
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.unroll_rows import UnrollBuffer
from rltrain.rollout.actor.noise import RandomStart, StreamNoise
from rltrain.rollout.buffers import clear_absent, padded
from rltrain.rollout.shared_memory.memory import SharedMemory, Ticket
from rltrain.rollout.shared_memory.weights import WeightsBoard, is_published
from rltrain.rollout.specs import OpponentPool, OtherPolicy
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import NEWEST, OTHER, Act, Episode, Policy, hooks_of

STORED = {"seat": "player", "place": "index", "opponent": "opponent"}  # keys in checkpoints -> attributes of Opponents


class Opponents:
    """The games of an actor's streams.

    Args:
        spec:        of several agents: each is a player.
        make_policy: makes a policy that a snapshot's weights are read into.
        boards:      the memory of the snapshots, one for each index of the pool; they are filled in order.
    """

    def __init__(
        self,
        seed: int,
        streams: Sequence[int],
        unroll: int,
        pool: OpponentPool,
        spec: EnvSpec,
        make_policy: Callable[[], Policy],
        boards: Sequence[Ticket | SharedMemory],
    ) -> None:
        count, players = len(streams), len(spec.agents)
        self._pool, self._make_policy, self._players = pool, make_policy, players
        self._columns = _columns(spec)
        self._boards = [SharedMemory.attach(board) for board in boards]
        self._others = [_Other(number, other, seed, streams, unroll) for number, other in enumerate(pool.others)]
        self._snapshots: list[_Snapshot] = []
        # Random numbers per game: the newest policy's player; against the pool or not; the opponents of the others
        self._drawn = np.zeros((unroll, count, 1 + players), np.float32)
        self._draw = StreamNoise(seed, streams, "uniform", 1 + players, branch=OPPONENT)
        self.player = np.zeros(count, np.int64)  # [B] which player is the newest policy
        self.index = np.full((count, players), NEWEST)  # [B, N] of each player's opponent: other runs' first
        self.opponent = np.full((count, players), NEWEST)  # [B, N] id of the opponent when the game began
        self._cores: dict[int, torch.Tensor] = {}  # by index, [padded B, H] of an opponent with a memory
        self._learning = np.ones((unroll + 1, count, players), bool)
        self._games = np.zeros((unroll, count, 1 + players), np.int64)  # player and opponents of each row

    def begin(self, rows: np.ndarray, generations: Sequence[int]) -> None:
        """Begin an unroll at each stream's `rows[b]`, and read the snapshots that were published since the last one."""
        self._draw.fill(self._drawn, rows, generations)
        for other in self._others:
            other.begin(rows, generations)
        for index, board in enumerate(self._boards):
            if index == len(self._snapshots):
                if not is_published(board):
                    break
                self._snapshots.append(_Snapshot(self._make_policy(), board))
            self._snapshots[index].read()
        for b, player in np.argwhere(self.index != NEWEST):
            if self._at(self.index[b, player]).id != self.opponent[b, player]:
                self.opponent[b, player] = NEWEST  # replaced during the game, whose result is not that of one opponent

    def act(
        self, t: int, rows: UnrollBuffer, noise: torch.Tensor, obs: Tree, mask: torch.Tensor | None, action: np.ndarray
    ) -> None:
        """Row t: draw the games that begin, and write the opponents' actions into the joint actions [>=B, *A]."""
        count = len(self.player)
        for b in np.flatnonzero(rows.first[t, :count]):
            self._begin_game(int(b), self._drawn[t, b])
        newest = self.index == NEWEST  # [B, N]
        self._learning[t] = self._learning[t + 1] = newest
        self._games[t, :, 0], self._games[t, :, 1:] = self.player, self.opponent
        acting = rows.alive if rows.acting is None else rows.acting
        assert acting is not None
        moves = acting[t, :count] & ~newest  # [B, N] an opponent acts now
        flat = action.reshape(len(action), -1)  # a view
        for index in np.unique(self.index[~newest]).tolist():
            opponent, own = self._at(index), moves & (self.index == index)
            if not opponent.core_size and not own.any():
                continue  # one with a memory sees each row, also when it is another player's turn
            core = self._core_before(index, rows.first[t])
            act = opponent.act(t, noise, obs, core, mask)
            columns = own @ self._columns  # [B, A]
            flat[:count][columns] = act.action.numpy().reshape(flat.shape)[:count][columns]
            if act.core is not None:
                core = hooks_of(opponent.policy).core_with_action(act.core, torch.from_numpy(action))
                self._cores[index] = clear_absent(core, None if rows.alive is None else rows.alive[t])

    def learning(self, unroll: int) -> np.ndarray:
        """[T+1, B, N] players whose actions are the newest policy's."""
        return self._learning[: unroll + 1]

    def assign(self, episodes: tuple[Episode, ...], ended: np.ndarray) -> tuple[Episode, ...]:
        """The episodes of an unroll, ordered by stream and row, with their player and opponents; `ended` is [T, B]."""
        games = self._games[: len(ended)].transpose(1, 0, 2)[ended.T].tolist()
        return tuple(
            episode._replace(
                player=player,
                opponent=opponents[1 - player] if len(opponents) == 2 else NEWEST,
                opponents=tuple(opponents),
            )
            for episode, (player, *opponents) in zip(episodes, games, strict=True)
        )

    def state(self, columns: slice) -> dict[str, Any]:
        """The games in progress of these streams, for a checkpoint."""
        cores = {}
        for index, core in sorted(self._cores.items()):
            plays = (self.index[columns] == index).any(1)
            if plays.any():
                cores[str(index)] = core[: len(self.player)][columns].numpy() * plays[:, None]
        return {**{key: getattr(self, name)[columns].copy() for key, name in STORED.items()}, "cores": cores}

    def load(self, games: Sequence[dict[str, Any]]) -> None:
        """Continue from `state`, in the order of the streams. Older ones hold the one opponent of two players."""
        self._cores.clear()
        begin = 0
        for game in games:
            end = begin + len(game["seat"])
            for index, core in game.get("cores", {}).items():
                whole = self._cores.setdefault(int(index), torch.zeros(padded(len(self.player)), core.shape[-1]))
                whole[begin:end] = torch.from_numpy(np.asarray(core))
            begin = end
        for key, name in STORED.items():
            saved, mine = np.concatenate([np.asarray(game[key]) for game in games]), getattr(self, name)
            if saved.ndim < mine.ndim:
                mine[:] = NEWEST
                mine[np.arange(len(saved)), 1 - self.player] = saved
            else:
                mine[:] = saved

    def _at(self, index: int) -> _Opponent:
        others = len(self._others)
        return self._others[index] if index < others else self._snapshots[index - others]

    def _core_before(self, index: int, first: np.ndarray) -> torch.Tensor | None:
        """The memory [padded B, H] of an opponent before a row; zero where an episode begins (`first` [padded B])."""
        size = self._at(index).core_size
        if not size:
            return None
        core = self._cores.get(index)
        if core is None:
            return torch.zeros(len(first), size)
        return core * torch.from_numpy(~first)[:, None] if first.any() else core

    def _begin_game(self, b: int, drawn: np.ndarray) -> None:
        player, pool, *which = (float(x) for x in drawn)
        self.player[b] = int(player * self._players)
        self.index[b] = self.opponent[b] = NEWEST
        count = len(self._others) + len(self._snapshots)
        if count and pool < self._pool.share:
            rest = np.arange(self._players) != self.player[b]
            self.index[b, rest] = [int(x * count) for x in which]
            self.opponent[b, rest] = [self._at(index).id for index in self.index[b, rest]]


class RandomOpponent:
    """Acts uniformly among the legal actions for all players but one, the policy's: the next one in each episode.

    Args:
        seeds:   of the episodes that run at once.
        begin:   number of the first of them.
        longest: steps of an episode, at most.
    """

    def __init__(self, spec: EnvSpec, seeds: Sequence[int], begin: int, longest: int) -> None:
        self.players = [(begin + number) % len(spec.agents) for number in range(len(seeds))]  # [B] of the policy
        self._theirs = ~_columns(spec)[self.players]  # [B, A] numbers of the opponents' actions
        self._each = [RandomStart(seed, [0], spec.action, longest) for seed in seeds]

    def act(self, step: int, mask: np.ndarray | None, action: np.ndarray) -> np.ndarray:
        """The joint actions [B, *A], with the opponents' in place of those in `action`."""
        drawn = action.copy()
        for b, one in enumerate(self._each):
            one.begin(1, np.array([step]), [0])
            one.replace(0, drawn[b : b + 1], None if mask is None else mask[b : b + 1])
        mixed: np.ndarray = np.where(self._theirs.reshape(action.shape), drawn, action)
        return mixed


class _Opponent(Protocol):
    """A policy that plays for some players of some streams."""

    id: int
    policy: Policy
    core_size: int

    def act(
        self, t: int, noise: torch.Tensor, obs: Tree, core: torch.Tensor | None, mask: torch.Tensor | None
    ) -> Act: ...


class _Snapshot:
    """A policy with the weights that were last read from its board. It uses the newest policy's noise."""

    def __init__(self, policy: Policy, memory: SharedMemory) -> None:
        self.policy, self.core_size = policy, policy.core_size
        self._parameters = {name: tensor.numpy() for name, tensor in policy.state_dict().items()}
        self._board = WeightsBoard(self._parameters, memory)
        self._sequence = 0
        self.id = NEWEST

    def read(self) -> None:
        if self._board.sequence != self._sequence:
            self._sequence = self._board.sequence
            self.id = self._board.read(self._parameters)[0]

    def act(self, t: int, noise: torch.Tensor, obs: Tree, core: torch.Tensor | None, mask: torch.Tensor | None) -> Act:
        """Joint actions [>=B, *A]."""
        return self.policy.act(obs, core, mask, noise, True)


class _Other:
    """A policy of another run. Its noise may be of another kind than the newest policy's, so it has its own."""

    def __init__(self, number: int, other: OtherPolicy, seed: int, streams: Sequence[int], unroll: int) -> None:
        self.policy, self.id = other.make_policy(), OTHER - number
        self.core_size = self.policy.core_size
        for name, tensor in self.policy.state_dict().items():
            tensor.numpy()[...] = other.arrays[name]
        noise = self.policy.noise
        self._draw = StreamNoise(seed_of(seed, OTHERS, number), streams, *noise)
        self._drawn = np.zeros((unroll, padded(len(streams)), noise.columns), np.float32)
        self._rows = torch.from_numpy(self._drawn).unbind(0)

    def begin(self, rows: np.ndarray, generations: Sequence[int]) -> None:
        self._draw.fill(self._drawn, rows, generations)

    def act(self, t: int, noise: torch.Tensor, obs: Tree, core: torch.Tensor | None, mask: torch.Tensor | None) -> Act:
        """Joint actions [>=B, *A]."""
        return self.policy.act(obs, core, mask, self._rows[t], True)


def _columns(spec: EnvSpec) -> np.ndarray:
    """[N, A] bool, the numbers of each player's action in the joint action."""
    columns = np.zeros((len(spec.agents), spec.action.size), bool)
    for player, part in enumerate(spec.layout.agents):
        columns[player, part.action] = True
    return columns
