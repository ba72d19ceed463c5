"""Self-play: the pool of past policies that are met as opponents, and how strong they and the newest one are.

Ratings are Elo's (The Rating of Chessplayers, 1978): a difference of 400 points is odds of 10 to 1. A game moves the
newest policy's by K times what it scored beyond that, 1 for a win and 0.5 for a draw. A snapshot keeps the rating that
the policy had when it was taken, since it does not change any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rltrain.reporting.metrics import WINDOW
from rltrain.rollout.types import NEWEST, Episode, Weights

START = 1000.0  # rating of the untrained policy
K = 16.0  # points that a game can move at most: FIDE gives 10 to 40
OUTCOMES = ("win", "draw", "loss")
SCORE = {"win": 1.0, "draw": 0.5, "loss": 0.0}


@dataclass(frozen=True)
class Snapshot:
    """A policy as it was; the version of its weights is its number."""

    weights: Weights
    elo: float


class SelfPlay:
    """The pool of a run.

    Args:
        size:  snapshots that are kept; then a new one takes the place of the oldest.
        every: steps between two.
    """

    def __init__(self, size: int, every: int) -> None:
        self._size, self._every = size, every
        self.places: list[Snapshot] = []
        self._taken = 0  # snapshots in all, the number of the next one
        self._next = 0  # step of it
        self.elo = START
        self._recent: deque[str] = deque(maxlen=WINDOW)

    def due(self, steps: int) -> bool:
        """Whether the next snapshot is."""
        return steps >= self._next

    def take(self, weights: Weights) -> tuple[int, Weights]:
        """A snapshot of weights that do not change any more. Returns its place and what to publish there."""
        place, snapshot = self._taken % self._size, Weights(self._taken, weights.step, weights.arrays)
        self.places[place : place + 1] = [Snapshot(snapshot, self.elo)]
        self._taken += 1
        self._next = (weights.step // self._every + 1) * self._every
        return place, snapshot

    def add(self, episodes: Iterable[Episode]) -> None:
        """Take in games, in their order. Those against the newest policy, or against who is gone, say nothing."""
        ratings = {one.weights.version: one.elo for one in self.places}
        for episode in episodes:
            rating = ratings.get(episode.opponent)
            if episode.opponent == NEWEST or rating is None:
                continue
            came = outcome(episode)
            self.elo += K * (SCORE[came] - expected(self.elo, rating))
            self._recent.append(came)

    def metrics(self) -> dict[str, float]:
        """What there is to log; shares of outcomes once a game against a snapshot has ended."""
        told = {"selfplay/elo": self.elo, "selfplay/pool": float(len(self.places))}
        return told | {f"selfplay/{name}": share for name, share in _shares(list(self._recent)).items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        places = [
            {"number": one.weights.version, "step": one.weights.step, "elo": one.elo, "arrays": one.weights.arrays}
            for one in self.places
        ]
        return {"places": places, "taken": self._taken, "elo": self.elo, "recent": list(self._recent)}

    def load(self, state: dict[str, Any]) -> list[Weights]:
        """Go on from `state`. Returns what to publish, by place."""
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
    """The score that ratings foretell, between 0 and 1."""
    return float(1 / (1 + 10 ** ((other - mine) / 400)))


def outcome(episode: Episode) -> str:
    """What a game of two was to the learner: who has the higher return has won."""
    mine, other = episode.agents[episode.seat], episode.agents[1 - episode.seat]
    return "draw" if mine == other else "win" if mine > other else "loss"


def shares(episodes: Sequence[Episode]) -> dict[str, float]:
    """Shares of wins, draws and losses."""
    return _shares([outcome(episode) for episode in episodes])


def _shares(outcomes: Sequence[str]) -> dict[str, float]:
    return {name: outcomes.count(name) / len(outcomes) for name in OUTCOMES} if outcomes else {}
