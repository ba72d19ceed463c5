"""Ratings of self-play: past policies in a pool, and their strength. Actors draw opponents: rollout/actor/opponents.py.

A snapshot is a copy of the policy. Ratings are those of Bradley and Terry (1952) on the scale of Elo: a difference of
400 points means odds of 10 to 1, and a draw counts as half a win. They are fitted to all games of the snapshots in the
pool, so that a rating does not depend on the order of games. The policy changes between two snapshots: its rating is
linear in the steps from one to the next. A normal prior of each change, as in Whole-History Rating (Coulom 2008), keeps
the ratings finite when all games are won.

A game of more than two players is one comparison with each opponent: the higher return of the two wins.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rltrain.reporting.metrics import WINDOW
from rltrain.rollout.types import NEWEST, OTHER, Episode, Weights
from rltrain.system.schedule import Schedule

START = 1000.0  # rating of the untrained policy
SCALE = 400 / math.log(10)  # points per unit of log odds
DRIFT = 100.0  # points, standard deviation of the prior of the change between two snapshots
WIDE = 400.0  # points, standard deviation of the prior of the rating of another run's policy, around START
BINS = 16  # games between two snapshots are counted in so many intervals of steps
OUTCOMES = ("win", "draw", "loss")
SCORE = {"win": 1.0, "draw": 0.5, "loss": 0.0}


@dataclass(frozen=True)
class Snapshot:
    """A copy of a past policy; the version of its weights is the number of the snapshot."""

    weights: Weights
    elo: float


@dataclass(frozen=True)
class Games:
    """Games of the policy between snapshots `policy - 1` and `policy` against `opponent`."""

    policy: int
    share: float  # of the way from the one to the other: its rating is (1 - share) r[policy - 1] + share r[policy]
    opponent: int
    count: int
    score: float  # wins, and half of the draws


class SelfPlay:
    """The pool of opponents of a run, and the ratings.

    Args:
        size:   largest number of snapshots; a new one then replaces the oldest. 0: the run has no pool.
        every:  steps between two snapshots.
        others: number of policies of other runs in the pool.
        own:    snapshots are opponents. False: only policies of other runs are, and snapshots only divide the run into
                intervals with a rating each.
    """

    def __init__(self, size: int, every: int, others: int = 0, own: bool = True) -> None:
        self._size, self._every, self._own = size, every, own
        self._others = {OTHER - number: START for number in range(others)}  # ratings by number
        self._schedule = Schedule(every, first=0)
        self.places: list[Snapshot] = []
        self._taken = 0  # snapshots so far: the number of the next one, which is also that of the newest policy
        self._step = 0  # of the newest policy
        self._elo = START  # of the newest policy when the last snapshot was taken
        self._ratings: dict[int, tuple[int, float]] = {}  # step and rating of each snapshot that games refer to
        self._games: dict[tuple[int, int, int], tuple[int, float]] = {}  # (policy, bin, opponent): count, score
        self._recent: deque[str] = deque(maxlen=WINDOW)

    @property
    def begun(self) -> bool:
        """True if there was a snapshot."""
        return self._taken > 0

    def due(self, steps: int) -> bool:
        """True if the next snapshot is due."""
        return self._size > 0 and self._schedule.due(steps)

    def take(self, weights: Weights) -> tuple[int, Weights] | None:
        """Adds a snapshot of weights, which must not change later. Returns its place and the weights to publish; None
        if snapshots are no opponents.

        The ratings of all snapshots in the pool are fitted; those that have left it keep their last rating.
        """
        self._step = max(self._step, weights.step)
        ratings, _ = self.fitted()
        self._elo = ratings.pop(self._taken)
        self._others = {number: ratings.pop(number) for number in self._others}
        place, snapshot = self._taken % self._size, Weights(self._taken, weights.step, weights.arrays)
        if self._own:
            self.places[place : place + 1] = [Snapshot(snapshot, self._elo)]
        steps = {number: step for number, (step, _) in self._ratings.items()} | {self._taken: weights.step}
        ratings[self._taken] = self._elo
        self.places = [Snapshot(one.weights, ratings[one.weights.version]) for one in self.places]
        self._taken += 1
        self._games = {key: game for key, game in self._games.items() if key[0] >= self._taken - self._size}
        needed = set(range(max(self._taken - self._size, 0), self._taken))
        needed.update(number for key in self._games for number in (key[0] - 1, key[2]) if number >= 0)
        self._ratings = {number: (steps[number], ratings[number]) for number in sorted(needed)}
        self._schedule.done(weights.step)
        return (place, snapshot) if self._own else None

    def add(self, episodes: Iterable[Episode], steps: int) -> None:
        """Counts games that ended at `steps`. Games against the newest policy or a removed snapshot do not count."""
        present = {one.weights.version for one in self.places} | self._others.keys()
        self._step = max(self._step, steps)
        for opponent, result in (pair for episode in episodes for pair in comparisons(episode)):
            if opponent not in present:
                continue
            interval = (self._step - self._ratings[self._taken - 1][0]) * BINS // self._every
            key = self._taken, interval, opponent
            count, score = self._games.get(key, (0, 0.0))
            self._games[key] = count + 1, score + SCORE[result]
            self._recent.append(result)

    def fitted(self) -> tuple[dict[int, float], float]:
        """Ratings by number, and half the width of the 95% interval of the newest policy's."""
        ratings = {number: rating for number, (_, rating) in self._ratings.items()} | {self._taken: self._elo}
        ratings |= self._others
        steps = {number: step for number, (step, _) in self._ratings.items()} | {self._taken: self._step}
        games = []
        for (policy, interval, opponent), (count, score) in self._games.items():
            passed, all_steps = (interval + 0.5) * self._every / BINS, max(steps[policy] - steps[policy - 1], 1)
            games.append(Games(policy, min(passed / all_steps, 1.0), opponent, count, score))
        numbers = range(max(self._taken - self._size, 0) + 1, self._taken + 1)
        drift = [DRIFT * math.sqrt(max(steps[n] - steps[n - 1], 1) / self._every) for n in numbers if self._taken]
        return fit(ratings, games, drift)

    def metrics(self) -> dict[str, float]:
        """The metrics to log; interval and shares of outcomes are missing before the first game against a snapshot."""
        if not self._size:
            return {}
        ratings, interval = self.fitted()
        metrics = {"selfplay/elo": ratings[self._taken], "selfplay/pool": float(len(self.places) + len(self._others))}
        metrics |= {f"selfplay/elo_other_{1 + OTHER - number}": ratings[number] for number in self._others}
        if self._recent:
            metrics["selfplay/elo_interval"] = interval
        return metrics | {f"selfplay/{name}": share for name, share in _shares(list(self._recent)).items()}

    def state(self) -> dict[str, Any] | None:
        """The state for a checkpoint; None without a pool."""
        if not self._size:
            return None
        places = [
            {"number": one.weights.version, "step": one.weights.step, "elo": one.elo, "arrays": one.weights.arrays}
            for one in self.places
        ]
        return {
            "places": places,
            "taken": self._taken,
            "elo": self._elo,
            "step": self._step,
            "recent": list(self._recent),
            "ratings": [[number, *rating] for number, rating in self._ratings.items()],
            "games": [[*key, *game] for key, game in self._games.items()],
            **({"others": list(self._others.values())} if self._others else {}),
        }

    def load(self, state: dict[str, Any] | None) -> list[Weights]:
        """Restores `state`. Returns the weights to publish, by place. A state of version 0.1 has no games."""
        if state is None or not self._size:
            return []
        self.places = [
            Snapshot(Weights(int(one["number"]), int(one["step"]), one["arrays"]), float(one["elo"]))
            for one in state["places"]
        ]
        self._taken, self._elo = int(state["taken"]), float(state["elo"])
        self._recent = deque(state["recent"], maxlen=WINDOW)
        known = [(one.weights.version, one.weights.step, one.elo) for one in self.places]
        every = [(int(number), int(step), float(elo)) for number, step, elo in [*known, *state.get("ratings", ())]]
        self._ratings = {number: (step, elo) for number, step, elo in sorted(every, key=lambda one: one[0])}
        self._games = {
            (int(policy), int(interval), int(opponent)): (int(count), float(score))
            for policy, interval, opponent, count, score in state.get("games", ())
        }
        saved_others = state.get("others", [])
        if len(saved_others) != len(self._others):
            raise ValueError(f"it has {len(saved_others)} policies of other runs, and the run {len(self._others)}")
        self._others = dict(zip(self._others, map(float, saved_others), strict=True))
        newest = max(step for step, _ in self._ratings.values())
        self._step = int(state.get("step", newest))
        self._schedule.done(newest)
        return [one.weights for one in self.places]


def fit(ratings: dict[int, float], games: Sequence[Games], drift: Sequence[float]) -> tuple[dict[int, float], float]:
    """The ratings of largest posterior, by Newton's method, and half the width of the newest one's 95% interval.

        P(win) = 1 / (1 + exp(-(r_policy - r_opponent) / SCALE)),    r[n] - r[n - 1] ~ Normal(0, drift[n])

    Those of other runs' policies, whose numbers are negative, are fitted too: r ~ Normal(START, WIDE).

    Args:
        ratings: by number, of all policies in `games`. The newest len(drift) are fitted, other snapshots' are given.
        games:   see `Games`.
        drift:   points, of each fitted rating, the newest one last.
    """
    size = len(drift)
    if not size:
        return ratings, 0.0
    start = max(ratings) + 1 - size  # number of the first fitted rating
    fitted = [*range(start, start + size), *(number for number in ratings if number < 0)]
    column = {number: place for place, number in enumerate(fitted)}
    x = np.array([ratings[number] for number in fitted])
    factors, given = np.zeros((len(games), len(x))), np.zeros(len(games))  # difference of ratings: factors @ x + given
    for row, game in enumerate(games):
        for number, factor in ((game.policy - 1, 1 - game.share), (game.policy, game.share), (game.opponent, -1.0)):
            if number in column:
                factors[row, column[number]] += factor
            else:
                given[row] += factor * ratings[number]
    count, score = np.array([game.count for game in games]), np.array([game.score for game in games])
    change, before = np.eye(len(x)) / WIDE, np.full(len(x), START / WIDE)
    change[:size, :size] = (np.eye(size) - np.eye(size, k=-1)) / np.array(drift)[:, None]  # since the rating before
    before[:size] = 0.0
    before[0] = ratings[start - 1] / drift[0]
    for _ in range(100):
        chance = 1 / (1 + np.exp(-(factors @ x + given) / SCALE))
        slope = factors.T @ (score - count * chance) / SCALE - change.T @ (change @ x - before)
        curvature = (factors.T * (count * chance * (1 - chance) / SCALE**2)) @ factors + change.T @ change
        move = np.linalg.solve(curvature, slope)
        x += np.clip(move, -SCALE, SCALE)
        if np.abs(move).max() < 1e-9:
            break
    deviation = math.sqrt(np.linalg.inv(curvature)[size - 1, size - 1])
    return ratings | dict(zip(fitted, x.tolist(), strict=True)), 1.96 * deviation


def outcomes(episode: Episode) -> dict[int, str]:
    """The result of a game for the learner against each other player: the higher return of the two wins."""
    mine = episode.agents[episode.player]
    others = {player: ret for player, ret in enumerate(episode.agents) if player != episode.player}
    return {player: "draw" if mine == ret else "win" if mine > ret else "loss" for player, ret in others.items()}


def comparisons(episode: Episode) -> list[tuple[int, str]]:
    """The number of each opponent from the pool in a game, and the result for the learner."""
    opponents = episode.opponents
    if not opponents:  # of a game of two
        opponents = (episode.opponent,) * len(episode.agents)
    results = outcomes(episode) if any(number != NEWEST for number in opponents) else {}
    return [(opponents[player], result) for player, result in results.items() if opponents[player] != NEWEST]


def shares(episodes: Sequence[Episode]) -> dict[str, float]:
    """Shares of wins, draws and losses among the comparisons with each other player; empty without episodes."""
    return _shares([result for episode in episodes for result in outcomes(episode).values()])


def _shares(outcomes: Sequence[str]) -> dict[str, float]:
    return {name: outcomes.count(name) / len(outcomes) for name in OUTCOMES} if outcomes else {}
