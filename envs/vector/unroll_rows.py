"""The arrays that a vector of environments writes its steps into, and the interface of such a vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rltrain.envs.spec import EnvSpec


@dataclass(frozen=True, slots=True)
class UnrollBuffer:
    """The arrays of one unroll that environments write. They may be wider than the streams (padding)."""

    obs: Any  # tree of [T+1, B, *O]
    reward: np.ndarray  # [T, B], and of several agents [T, B, N], as the two ends
    terminated: np.ndarray  # [T, B]
    truncated: np.ndarray  # [T, B]
    first: np.ndarray  # [T+1, B]
    action_mask: np.ndarray | None  # [T+1, B, n]
    episode_continues: (
        np.ndarray
    )  # [T, B]  an end for learning only, as of a life: reports go on to the end of the game
    alive: np.ndarray | None = None  # [T+1, B, N]  of several agents, those that take part
    acting: np.ndarray | None = None  # [T+1, B, N]  where they take turns, whose it is
    state: np.ndarray | None = None  # [T+1, B, *S]  what only training sees

    def optional_fields(self) -> list[np.ndarray]:
        """The fields of `rltrain.envs.spec.OPTIONAL_FIELDS` that are there, in that order."""
        return [array for array in (self.action_mask, self.alive, self.acting, self.state) if array is not None]

    def episode_end(self, t: int) -> np.ndarray:
        """[B] the streams whose episode row t has ended: with several agents, when none of them is left."""
        if self.alive is None:
            ended: np.ndarray = self.terminated[t] | self.truncated[t]
            return ended
        gone: np.ndarray = ~self.first[t + 1] & ~self.alive[t + 1].any(-1)
        return gone


class VectorEnv(Protocol):
    """Several streams side by side."""

    spec: EnvSpec
    streams: tuple[int, ...]  # the streams these columns are, ascending

    def reset(self, rows: UnrollBuffer) -> None:
        """Begin all streams anew: writes row 0 of obs, first and action_mask."""

    def step(self, action: np.ndarray, rows: UnrollBuffer, t: int) -> None:
        """Take action [B, *A]: writes row t of reward and flags, row t+1 of obs, first and action_mask."""

    def end_unroll(self, action: np.ndarray, rows: UnrollBuffer) -> None:
        """Called once after the last row, with all actions [T, B, *A]: remember what `state` needs."""

    def state(self) -> list[dict[str, Any]]:
        """One dict of plain data per stream (or block of streams), enough for `load` to go on from here."""

    def load(self, state: list[dict[str, Any]], rows: UnrollBuffer) -> None:
        """Go on from `state`: writes row 0 of obs, first and action_mask. `first` is True where it began anew."""

    def close(self) -> None:
        """Close the environments."""
