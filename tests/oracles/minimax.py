"""Tic-tac-toe played perfectly: the whole tree is searched, and equal moves are chosen between by chance."""

from __future__ import annotations

from functools import cache

import numpy as np

LINES = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]
Board = tuple[int, ...]  # of each cell 1: who moves next, -1: the other, 0: free


@cache
def worth(board: Board) -> int:
    """1 if who moves next can win, -1 if the other can whatever it does, else 0."""
    if any(all(board[cell] == -1 for cell in line) for line in LINES):
        return -1
    moves = [cell for cell in range(9) if board[cell] == 0]
    return max((-worth(after(board, cell)) for cell in moves), default=0)


def after(board: Board, cell: int) -> Board:
    """The board as the other sees it when this move was made."""
    made = list(board)
    made[cell] = 1
    return tuple(-mark for mark in made)


def perfect(board: Board, rng: np.random.Generator) -> int:
    """One of the best moves."""
    moves = [cell for cell in range(9) if board[cell] == 0]
    return int(rng.choice([cell for cell in moves if -worth(after(board, cell)) == worth(board)]))
