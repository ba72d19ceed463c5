"""Self-play on tic-tac-toe: against random moves it hardly loses, against perfect ones it draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles.minimax import Board, perfect, worth

import rltrain
from rltrain.envs.problems.games import TicTacToe

pytestmark = pytest.mark.learning


def test_the_oracle_knows_the_game() -> None:
    assert worth((0,) * 9) == 0
    assert worth((1, 1, 0, -1, -1, 0, 0, 0, 0)) == 1
    assert worth((-1, 0, 0, 0, 1, 0, -1, 0, -1)) == -1  # two ways at once, and it must stop both


def results(trained: Any, other: Callable[[Board], int], games: int) -> list[float]:
    """What the policy earned, in the first seat and the second in turn."""
    found = []
    for number in range(games):
        env = TicTacToe()
        env.reset()
        mine = env.possible_agents[number % 2]
        while not any(env.terminations.values()):
            agent = env.agent_selection
            seen = env.observe(agent)
            if agent == mine:
                env.step(trained.act({agent: seen})[agent])
            else:
                marks = seen["observation"].astype(int)
                env.step(other(tuple((marks[0] - marks[1]).tolist())))
        found.append(env.rewards[mine])
    return found


def test_it_plays_tic_tac_toe(tmp_path: Path) -> None:
    result = rltrain.train(
        algo="ppo", env="tic-tac-toe", workers=0, quiet=True, checkpoint_every=0, eval_every=0, out=str(tmp_path)
    )
    trained, rng = rltrain.load(result.run), np.random.default_rng(0)

    def at_random(board: Board) -> int:
        return int(rng.choice([cell for cell in range(9) if board[cell] == 0]))

    against_random = results(trained, at_random, 100)
    assert against_random.count(-1.0) <= 5
    assert against_random.count(1.0) >= 80
    against_perfect = results(trained, lambda board: perfect(board, rng), 100)
    assert against_perfect.count(1.0) == 0
    assert against_perfect.count(0.0) > 50
