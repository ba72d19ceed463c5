"""A chain of five states whose values are known, its episodes, and estimators of values written out by loops."""

from __future__ import annotations

import math

import numpy as np

STATES, START, LIMIT, SLIP = 5, 1, 12, 0.1
LEFT, RIGHT = 0, 1
MU = np.array([[0.5, 0.5], [0.5, 0.5], [0.6, 0.4], [0.4, 0.6], [0.5, 0.5]])  # [S, 2] acts
PI = np.array([[0.4, 0.6], [0.35, 0.65], [0.4, 0.6], [0.3, 0.7], [0.4, 0.6]])  # [S, 2] is evaluated
REWARD = np.array([[-0.5, 0.0], [0.1, 0.0], [0.0, 0.2], [0.0, 1.0], [0.5, 3.0]])  # [S, 2]; right in the last state ends


def next_states(state: int, action: int) -> list[tuple[float, int | None]]:
    """Probabilities and next states; None: the episode terminates."""
    left, right = max(state - 1, 0), state + 1 if state + 1 < STATES else None
    intended, other = (left, right) if action == LEFT else (right, left)
    return [(1 - SLIP, intended), (SLIP, other)]


def value(policy: np.ndarray, gamma: float, limit: int = LIMIT) -> float:
    """The expected discounted return from the start, up to the time limit: backwards over the steps."""
    v = np.zeros(STATES)
    for _ in range(limit):
        v = np.array(
            [
                sum(
                    policy[s, a] * (REWARD[s, a] + gamma * sum(p * v[n] for p, n in next_states(s, a) if n is not None))
                    for a in (LEFT, RIGHT)
                )
                for s in range(STATES)
            ]
        )
    return float(v[START])


def sample(policy: np.ndarray, episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """States [N, T + 1], actions [N, T], rewards [N, T] and the mask [N, T + 1] of the states without a termination."""
    rng = np.random.default_rng(seed)
    states = np.full((episodes, LIMIT + 1), START)
    actions, alive = np.zeros((episodes, LIMIT), int), np.ones((episodes, LIMIT + 1), bool)
    for t in range(LIMIT):
        s = states[:, t]
        a = actions[:, t] = (rng.random(episodes) < policy[s, RIGHT]).astype(int)
        right = (a == RIGHT) != (rng.random(episodes) < SLIP)
        alive[:, t + 1] = alive[:, t] & ~((s == STATES - 1) & right)
        states[:, t + 1] = np.clip(s + np.where(right, 1, -1), 0, STATES - 1)
    return states, actions, np.where(alive[:, :-1], REWARD[states[:, :-1], actions], 0.0), alive


def fitted(states: np.ndarray, actions: np.ndarray, alive: np.ndarray, policy: np.ndarray, gamma: float) -> np.ndarray:
    """[S, 2] values of the actions in the Markov chain with the frequencies of these episodes."""
    counts, ended = np.full((STATES, 2, STATES), 1e-3), np.full((STATES, 2), 1e-3)
    s, a, n, made, follows = states[:, :-1], actions, states[:, 1:], alive[:, :-1], alive[:, 1:]
    np.add.at(counts, (s[follows], a[follows], n[follows]), 1)
    np.add.at(ended, (s[made & ~follows], a[made & ~follows]), 1)
    move = counts / (counts.sum(-1) + ended)[..., None]  # [S, 2, S]
    chain = np.einsum("sa,san->sn", policy, move)
    v = np.linalg.solve(np.eye(STATES) - gamma * chain, (policy * REWARD).sum(1))
    return REWARD + gamma * move @ v


def by_loops(
    method: str, ratios: list[list[float]], rewards: list[list[float]], gamma: float, q: list[list[float]],
    v: list[list[float]],
) -> float:  # fmt: skip
    """The estimate of `method` from pi / mu, rewards, q and v of each step of each episode: the papers' sums."""
    count, longest = len(ratios), max(map(len, ratios))

    def weight(i: int, t: int) -> float:  # of the actions 0 ... t of episode i
        return math.prod(ratios[i][: t + 1])

    if method == "is":
        return (
            sum(weight(i, longest) * sum(gamma**t * r for t, r in enumerate(rewards[i])) for i in range(count)) / count
        )
    if method == "pdis":
        return sum(gamma**t * weight(i, t) * r for i in range(count) for t, r in enumerate(rewards[i])) / count
    if method == "wis":
        total = sum(weight(i, longest) for i in range(count))
        return sum(
            weight(i, longest) / total * sum(gamma**t * r for t, r in enumerate(rewards[i])) for i in range(count)
        )
    if method == "pdwis":
        result = 0.0
        for t in range(longest):
            total = sum(weight(i, t) for i in range(count))
            result += gamma**t * sum(weight(i, t) * rewards[i][t] for i in range(count) if t < len(rewards[i])) / total
        return result
    result = 0.0
    for i in range(count):  # Jiang and Li's recursion, from the last step on
        robust = 0.0
        for t in reversed(range(len(rewards[i]))):
            robust = v[i][t] + ratios[i][t] * (rewards[i][t] + gamma * robust - q[i][t])
        result += robust / count
    return result
