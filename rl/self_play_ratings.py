"""Ratings of self-play: past policies in a pool, and their Elo. Actors draw opponents: rollout/actor/opponents.py.

Ratings follow Elo (The Rating of Chessplayers, 1978): a difference of 400 points means odds of 10 to 1. Each game
changes the rating of the newest policy by K (score - expected score), with a score of 1 for a win and 0.5 for a draw.
A snapshot is a copy of the policy. It keeps the rating that the policy had at that time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rltrain.reporting.metrics import WINDOW
from rltrain.rollout.types import NEWEST, Episode, Weights

START = 1000.0  # rating of the untrained policy
K = 16.0  # largest change of a rating by one game; FIDE uses 10 to 40
OUTCOMES = ("win", "draw", "loss")
SCORE = {"win": 1.0, "draw": 0.5, "loss": 0.0}


@dataclass(frozen=True)
class Snapshot:
    """A copy of a past policy; the version of its weights is the number of the snapshot."""

    weights: Weights
    elo: float


class SelfPlay:
    """The pool of opponents of a run, and the ratings.

    Args:
        size:  largest number of snapshots; a new one then replaces the oldest. 0: the run has no pool.
        every: steps between two snapshots.
    """

    def __init__(self, size: int, every: int) -> None:
        self._size, self._every = size, every
        self.places: list[Snapshot] = []
        self._taken = 0  # snapshots so far: the number of the next one
        self._next = 0  # step at which the next one is due
        self.elo = START
        self._recent: deque[str] = deque(maxlen=WINDOW)

    def due(self, steps: int) -> bool:
        """True if the next snapshot is due."""
        return self._size > 0 and steps >= self._next

    def take(self, weights: Weights) -> tuple[int, Weights]:
        """Adds a snapshot of weights, which must not change later. Returns its place and the weights to publish."""
        place, snapshot = self._taken % self._size, Weights(self._taken, weights.step, weights.arrays)
        self.places[place : place + 1] = [Snapshot(snapshot, self.elo)]
        self._taken += 1
        self._next = (weights.step // self._every + 1) * self._every
        return place, snapshot

    def add(self, episodes: Iterable[Episode]) -> None:
        """Rates games, in their order. Games against the newest policy or a removed snapshot do not count."""
        ratings = {one.weights.version: one.elo for one in self.places}
        for episode in episodes:
            rating = ratings.get(episode.opponent)
            if episode.opponent == NEWEST or rating is None:
                continue
            result = outcome(episode)
            self.elo += K * (SCORE[result] - expected(self.elo, rating))
            self._recent.append(result)

    def metrics(self) -> dict[str, float]:
        """The metrics to log; shares of outcomes are missing before the first game against a snapshot."""
        if not self._size:
            return {}
        metrics = {"selfplay/elo": self.elo, "selfplay/pool": float(len(self.places))}
        return metrics | {f"selfplay/{name}": share for name, share in _shares(list(self._recent)).items()}

    def state(self) -> dict[str, Any] | None:
        """The state for a checkpoint; None without a pool."""
        if not self._size:
            return None
        places = [
            {"number": one.weights.version, "step": one.weights.step, "elo": one.elo, "arrays": one.weights.arrays}
            for one in self.places
        ]
        return {"places": places, "taken": self._taken, "elo": self.elo, "recent": list(self._recent)}

    def load(self, state: dict[str, Any] | None) -> list[Weights]:
        """Restores `state`. Returns the weights to publish, by place."""
        if state is None or not self._size:
            return []
        self.places = [
            Snapshot(Weights(int(one["number"]), int(one["step"]), one["arrays"]), float(one["elo"]))
            for one in state["places"]
        ]
        self._taken, self.elo = int(state["taken"]), float(state["elo"])
        self._recent = deque(state["recent"], maxlen=WINDOW)
        newest = max(one.weights.step for one in self.places)
        self._next = (newest // self._every + 1) * self._every
        return [one.weights for one in self.places]


def expected(mine: float, other: float) -> float:
    """The expected score of `mine` against `other`, between 0 and 1."""
    return float(1 / (1 + 10 ** ((other - mine) / 400)))


def outcome(episode: Episode) -> str:
    """The result of a game of two for the learner: the player with the higher return wins."""
    mine, other = episode.agents[episode.player], episode.agents[1 - episode.player]
    return "draw" if mine == other else "win" if mine > other else "loss"


def shares(episodes: Sequence[Episode]) -> dict[str, float]:
    """Shares of wins, draws and losses; empty without episodes."""
    return _shares([outcome(episode) for episode in episodes])


def _shares(outcomes: Sequence[str]) -> dict[str, float]:
    return {name: outcomes.count(name) / len(outcomes) for name in OUTCOMES} if outcomes else {}
