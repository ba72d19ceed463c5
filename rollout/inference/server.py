"""The server that decides for all actors: it holds the policy, on the learner's device, and answers whoever waits.

All who wait are answered by one `act`; nobody is waited for. On a CPU rows keep the rule of `batch_invariance`, so they
have the bits that actors with networks of their own would give them.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.buffers import obs_arrays, padded
from rltrain.rollout.inference.client import SIPS, WAKE, decide
from rltrain.rollout.inference.requests import RequestBuffers
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.shared_memory.weights import WeightsBoard
from rltrain.rollout.specs import Inference
from rltrain.rollout.tree import Tree, leaves, tree_map
from rltrain.rollout.types import hooks_of


@dataclass(frozen=True)
class ServerJob:
    """Everything a server is made from. Travels to its process."""

    spec: EnvSpec
    inference: Inference
    streams: tuple[int, ...]  # B of each actor
    make_policy: Callable[[], Any]


class Server:
    """Decides; see `serve`.

    Args:
        weights, desks: tickets of memory.
        pipes:          one for each actor.
        control:        is closed by the learner when nobody is to be answered any more.
    """

    def __init__(self, job: ServerJob, weights: Any, desks: Any, pipes: list[Any], control: Any) -> None:
        self.policy = job.make_policy()
        self._device = torch.device(job.inference.device)
        self._weights = {name: tensor.numpy() for name, tensor in self.policy.state_dict().items()}
        if self._device.type != "cpu":
            self._weights = {name: array.copy() for name, array in self._weights.items()}  # on this side of the way
            self.policy.to(self._device)
        self._board = WeightsBoard(self._weights, SharedMemory.attach(weights))
        self._read = 0  # how often something had been published when weights were read last
        self._version = -1
        self._desks = RequestBuffers(job.spec, job.inference, job.streams, SharedMemory.attach(desks))
        self._pipes, self._control = pipes, control
        self._input = _input(job, pinned=self._device.type == "cuda")
        self._rows = [rows.numpy() for rows in leaves(self._input)]
        answered = {"action", "extras", "core_after"}
        self._questions = [self._of(worker, set(self._input)) for worker in range(len(pipes))]
        self._answers = [self._of(worker, answered) for worker in range(len(pipes))]

    def serve(self) -> None:
        """Answer until the learner closes `control`."""
        with selectors.DefaultSelector() as selector:
            for pipe in (self._control, *self._pipes):
                selector.register(pipe, selectors.EVENT_READ)
            for pipe in self._pipes:
                _wake(pipe)  # a server before this one may have answered without waking
            while True:
                if waiting := self._desks.waiting():
                    self._answer(waiting)
                for key, _ in selector.select():
                    if key.fileobj is self._control:
                        return
                    with contextlib.suppress(BlockingIOError):
                        os.read(key.fd, SIPS)

    def _answer(self, workers: list[int]) -> None:
        """Answer these in one call. If that fails, each alone, so that who asks what cannot be answered harms none."""
        asked = [int(self._desks.asked[worker]) for worker in workers]
        try:
            self._act(workers, asked)
        except Exception:
            self._clear()
            if len(workers) > 1:
                for worker in workers:
                    self._answer([worker])
                return
            self._desks.answer(workers[0], asked[0], self._version, traceback.format_exc())
            _wake(self._pipes[workers[0]])
            if self._device.type != "cpu":  # which may be good for nothing any more
                raise

    def _act(self, workers: list[int], asked: list[int]) -> None:
        places, rows = list[slice](), 0
        for worker in workers:
            places.append(slice(rows, rows := rows + self._desks.streams[worker]))
            for mine, theirs in zip(self._rows, self._questions[worker], strict=True):
                mine[places[-1]] = theirs
        hooks_of(self.policy).set_active_rows(rows)
        self._newest()
        seen = {name: self._placed(tree, padded(rows)) for name, tree in self._input.items()}
        with torch.inference_mode():
            answer = decide(self.policy, seen["obs"], seen.get("core"), seen.get("mask"), seen["noise"])
        said = {"action": answer.action, "extras": answer.extras}
        if answer.core is not None:
            said["core_after"] = answer.core
        values = [value.cpu().numpy() for value in leaves(said)]
        self._desks.totals[:] += 1, rows
        for worker, place, number in zip(workers, places, asked, strict=True):
            for theirs, value in zip(self._answers[worker], values, strict=True):
                theirs[:] = value[place]
            self._desks.answer(worker, number, self._version)
            _wake(self._pipes[worker])

    def _clear(self) -> None:
        """What was asked before fills up the batches that follow, so nothing of what failed may stay."""
        for name, tree in self._input.items():
            for rows in leaves(tree):
                rows.fill_(name == "mask")

    def _newest(self) -> None:
        """Have the newest weights; between two calls of the policy, so that a call has one version."""
        published = self._board.sequence
        if published == self._read:
            return
        self._version, _ = self._board.read(self._weights)
        self._read = published
        if self._device.type != "cpu":
            for name, tensor in self.policy.state_dict().items():
                tensor.copy_(torch.from_numpy(self._weights[name]))

    def _of(self, worker: int, names: set[str]) -> list[np.ndarray]:
        """Arrays [B, ...] of an actor's desk, in the order of their names."""
        desk = self._desks.desks[worker]
        parts = {name: tree for name, tree in desk.items() if name in names}
        return [array[: self._desks.streams[worker]] for array in leaves(parts)]

    def _placed(self, tree: Tree, width: int) -> Tree:
        """The first `width` rows, where the policy is."""
        return tree_map(lambda rows: rows[:width].to(self._device, non_blocking=True), tree)

    def close(self) -> None:
        """Nothing to close: the process ends."""


def _input(job: ServerJob, pinned: bool) -> dict[str, Any]:
    """Tensors that hold what all actors together may ask: by the names of a desk, with masks that allow all."""
    width, spec, inference = padded(sum(job.streams)), job.spec, job.inference
    obs = tree_map(lambda array: torch.from_numpy(array[0]), obs_arrays(spec, 1, width))
    found: dict[str, Any] = {"obs": obs, "noise": torch.zeros(width, inference.noise.columns)}
    if spec.action_mask:
        found["mask"] = torch.ones(width, spec.action.mask_size, dtype=torch.bool)
    if inference.core_size:
        found["core"] = torch.zeros(width, inference.core_size)

    def placed(rows: Tensor) -> Tensor:
        return rows.pin_memory() if pinned else rows

    return tree_map(placed, found)  # type: ignore[no-any-return]


def _wake(pipe: Any) -> None:
    with contextlib.suppress(OSError):  # full: it will wake anyway; broken: it is gone
        os.write(pipe.fileno(), WAKE)
