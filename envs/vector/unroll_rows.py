"""The arrays into which a vector environment writes its steps, and the interface of vector environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rltrain.envs.spec import EnvSpec


@dataclass(frozen=True, slots=True)
class UnrollBuffer:
    """The arrays of one unroll that environments write. B may be larger than the number of streams (padding)."""

    obs: Any  # tree of [T+1, B, *O]
    reward: np.ndarray  # [T, B]; [T, B, N] with several agents, also for `terminated` and `truncated`
    terminated: np.ndarray  # [T, B]
    truncated: np.ndarray  # [T, B]
    first: np.ndarray  # [T+1, B]
    action_mask: np.ndarray | None  # [T+1, B, n]
    episode_continues: np.ndarray  # [T, B] the end is for learning only, such as a lost life; the game continues
    alive: np.ndarray | None = None  # [T+1, B, N] several agents: those present
    acting: np.ndarray | None = None  # [T+1, B, N] turn-based games: those that act
    state: np.ndarray | None = None  # [T+1, B, *S] the global state, for training only

    def optional_fields(self) -> list[np.ndarray]:
        """Those fields of `rltrain.envs.spec.OPTIONAL_FIELDS` that are not None, in that order."""
        return [array for array in (self.action_mask, self.alive, self.acting, self.state) if array is not None]

    def episode_end(self, t: int) -> np.ndarray:
        """[B] whether row t ended the stream's episode; with several agents: whether no agent is left."""
        ended: np.ndarray
        if self.alive is None:
            ended = self.terminated[t] | self.truncated[t]
        else:
            ended = ~self.first[t + 1] & ~self.alive[t + 1].any(-1)
        return ended


class VectorEnv(Protocol):
    """Several streams of one environment."""

    spec: EnvSpec
    streams: tuple[int, ...]  # the stream of each column, ascending
    finals: dict[tuple[int, int], dict[str, float]]  # by (row, column): numbers of the infos that ended episodes
    made: np.ndarray | None  # [B] rows that each stream had made before the unroll; the actor keeps it up to date

    def reset(self, rows: UnrollBuffer) -> None:
        """Begin all streams: writes row 0 of obs, first and the optional fields."""

    def step(self, action: np.ndarray, rows: UnrollBuffer, t: int) -> None:
        """Take action [B, *A]: writes row t of reward and ends, row t+1 of obs, first and the optional fields.

        The actor calls it for t = 0, 1, 2, ... of each unroll. At t = 0 a vector may set `terminated`, `truncated`,
        `episode_continues` and the later rows of `first` to False for the whole unroll; then it writes True only.
        """

    def check(self, rows: UnrollBuffer, unroll: int) -> dict[int, int]:
        """Check the numbers of an unroll of `unroll` rows.

        Returns:
            How many numbers are outside of a float Box, by the index of the array in `EnvSpec.leaves`.

        Raises:
            EnvFault: a number is not finite or, of whole numbers, outside of its space; or a mask allows no action.
        """

    def end_unroll(self, action: np.ndarray, rows: UnrollBuffer) -> None:
        """Called after the last row with all actions [T, B, *A]: record what `state` needs."""

    def state(self) -> list[dict[str, Any]]:
        """Plain data for `load`, one dict per stream or block of streams."""

    def load(self, state: list[dict[str, Any]], rows: UnrollBuffer) -> None:
        """Continue from `state`: writes row 0. `first` is True where a new episode had to begin."""

    def close(self) -> None:
        """Close the environments."""
