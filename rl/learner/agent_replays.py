"""Replays of single agents that are filled with the unrolls of several: for algorithms of one agent and recorded data.

Each group of agents that share a policy has a replay of its own, in which each agent of a stream is a stream. So every
step of an agent is one row, as likely as any other (with memory, sequences begin at its steps), and the algorithm gets
the samples that it gets with one agent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rltrain.algorithms.multi_agent.independent import GroupView, column_slices
from rltrain.algorithms.multi_agent.turns import own_turns
from rltrain.learner.batches import from_checkpoint, tensors, to_checkpoint
from rltrain.rollout.replay.mixture import Mixture
from rltrain.rollout.replay.replay import Replay
from rltrain.rollout.replay.ring import Segment
from rltrain.rollout.trajectories import cut_rows, join_rows, map_arrays, select_columns
from rltrain.rollout.types import Trajectory, Transition


@dataclass
class _Turns:
    """What is kept of an agent of a stream that acts in turns, between two unrolls."""

    row: int = 0  # rows that were added to the replay
    joint_row: int = 0  # rows of the stream so far
    pending: Trajectory | None = None  # [R, 1] from a turn on whose next one is not known yet
    begun: bool = False  # an episode of the agent has begun since the last row

    def state(self) -> dict[str, Any]:
        """The content of a checkpoint."""
        pending = None if self.pending is None else to_checkpoint(self.pending)
        return {"row": self.row, "joint_row": self.joint_row, "begun": self.begun, "pending": pending}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        self.row, self.joint_row, self.begun = int(state["row"]), int(state["joint_row"]), bool(state["begun"])
        saved = state["pending"]
        pending = None if saved is None else from_checkpoint(saved, torch.device("cpu"))
        self.pending = None if pending is None else map_arrays(_numpy, pending)


class AgentRows:
    """The replay of each group, as one replay that takes unrolls of all agents.

    In games in turns only an agent's own turns are rows. The reward of a turn is the sum of the agent's rewards up to
    its next turn; turns whose next one is not known are not added.

    Args:
        views:     of the groups.
        replays:   of the groups, with `streams` times the agents of the group as streams.
        streams:   of the unrolls.
        core_size: of one agent's memory.
    """

    def __init__(self, views: Sequence[GroupView], replays: Sequence[Replay], streams: int, core_size: int) -> None:
        self.replays = list(replays)
        self._views = list(views)
        self._cores = column_slices([view.count * core_size for view in views])
        self._turns = [[_Turns() for _ in range(streams * view.count)] if view.turns else [] for view in views]

    def __len__(self) -> int:
        return sum(map(len, self.replays))

    @property
    def n_step(self) -> int:
        """Of each replay."""
        return self.replays[0].n_step

    def append(self, unroll: Trajectory) -> None:
        """Adds the rows of each agent. Raises as `Replay.append`."""
        joint = tensors(replace(unroll, extras={}), torch.device("cpu"))
        for view, replay, core, turns in zip(self._views, self.replays, self._cores, self._turns, strict=True):
            own = map_arrays(_numpy, view.columns(joint, core))
            if not turns:
                replay.append(own)
                continue
            for column, stream in enumerate(own.stream.tolist()):
                rows = _own_turns(turns[stream], select_columns(own, column, column + 1))
                if rows is not None:
                    replay.append(rows)

    def keep_best(self, share: float) -> int:
        """As `Replay.keep_best`, of the episodes of each agent; returns the number of them, 0 if an agent has none."""
        pairs = zip(self._views, self.replays, strict=True)
        kept = [replay.keep_best(share, view.count) for view, replay in pairs]
        return sum(kept) if all(kept) else 0

    def cut_streams(self) -> None:
        """As `Replay.cut_streams`."""
        for replay in self.replays:
            replay.cut_streams()

    def state(self) -> list[list[dict[str, Any]]]:
        """The content of a checkpoint, apart from the replays."""
        return [[column.state() for column in turns] for turns in self._turns]

    def load(self, state: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """Restores what `state` returned."""
        for turns, saved in zip(self._turns, state, strict=True):
            for column, one in zip(turns, saved, strict=True):
                column.load(one)


class AgentReplays:
    """What the groups of agents learn from, with the interface of one replay.

    Args:
        groups: the replay of each group, or the mixture of its replays.
        data:   the replays of each recording.
        online: the replays of the run's own actors; None: there are none.
        frozen: the numbers of groups that do not learn.
    """

    def __init__(
        self,
        groups: Sequence[Replay | Mixture],
        data: Sequence[AgentRows],
        online: AgentRows | None,
        frozen: Sequence[int] = (),
    ) -> None:
        self.groups, self.data, self._online, self.frozen = list(groups), list(data), online, frozenset(frozen)

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def append(self, unroll: Trajectory) -> None:
        """Adds an unroll of the run's own actors."""
        assert self._online is not None
        self._online.append(unroll)

    def sample(self, progress: float) -> list[Transition | Trajectory | None]:
        """A batch of each group: see `Replay.sample`; None for frozen ones."""
        return [None if n in self.frozen else group.sample(progress) for n, group in enumerate(self.groups)]

    def reprioritise(self, index: np.ndarray, error: np.ndarray) -> None:
        """No-op: algorithms of recorded data have no priorities."""

    def state(self) -> tuple[dict[str, Any], dict[str, Segment]]:
        """The content of a checkpoint: see `Replay.state`."""
        states = [group.state() for group in self.groups]
        small = {"groups": [one for one, _ in states], "turns": None if self._online is None else self._online.state()}
        return small, {f"g{n}-{name}": one for n, (_, blocks) in enumerate(states) for name, one in blocks.items()}

    def load(self, small: dict[str, Any], segments: Mapping[str, Segment]) -> None:
        """Restores what `state` returned. ValueError: it does not fit."""
        if len(small["groups"]) != len(self.groups):
            raise ValueError(f"there were {len(small['groups'])} groups, and there are {len(self.groups)} now")
        for n, (group, one) in enumerate(zip(self.groups, small["groups"], strict=True)):
            start = f"g{n}-"
            own = {name.removeprefix(start): block for name, block in segments.items() if name.startswith(start)}
            group.load(one, own)
        if self._online is not None:
            self._online.load(small["turns"])


def _own_turns(column: _Turns, own: Trajectory) -> Trajectory | None:
    """The rows to add after an unroll [T, 1] of an agent that acts in turns: its turns up to the last one.

    Returns:
        [K, 1], or None if no turn is complete.
    """
    row, first = int(own.row[0]), own.first.copy()
    if column.joint_row != row or first[0]:  # rows are missing, or this follows the loss of an actor: see `first`
        column.row += column.joint_row != row  # the replay begins a new section
        column.begun &= column.joint_row == row
        column.pending = None
    column.joint_row = row + own.rows
    first[0] |= column.begun
    own = replace(own, first=first)
    if column.pending is not None:
        own = join_rows([column.pending, own])
    assert own.acting is not None
    acts = own.acting[:, 0, 0]  # [T+1]
    turn = acts[:-1] & own.valid[:, 0]  # [T]
    end = ((own.terminated | own.truncated) & own.valid)[:, 0] & (turn.cumsum() > 0)
    last_turn, last_end = (int(np.flatnonzero(x)[-1]) if x.any() else -1 for x in (turn, end))
    waits = last_turn > last_end and not acts[-1]  # for the next turn after the last one
    rows = None
    if last_turn >= 0 and not (waits and turn.sum() == 1):
        found = tensors(replace(own, acting=None), torch.device("cpu"))
        rows = map_arrays(_numpy, own_turns(found, torch.from_numpy(own.acting[..., 0]), 1))
        rows = replace(rows, row=np.array([column.row]), num_rows=None)
        column.row += rows.rows
    column.pending = None
    if waits:
        column.pending = map_arrays(np.copy, cut_rows(own, last_turn, own.rows))
        if rows is None:
            column.pending.first[0] = own.first[: last_turn + 1].any()
        column.begun = False
    elif rows is None:
        column.begun = bool(own.first.any())
    else:
        column.begun = not acts[-1]  # the agent has left
    return rows


def _numpy(x: torch.Tensor) -> np.ndarray:
    array: np.ndarray = x.numpy()
    return array
