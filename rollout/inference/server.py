"""The inference server: holds the policy, on the learner's device, and decides for all actors.

One call of `act` answers all pending requests; the server never waits for more. On a CPU the batches follow the rule of
`batch_invariance`, so decisions have the same bits as with a policy in each actor.
"""

from __future__ import annotations

import contextlib
import os
import selectors
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltrain.envs.errors import whole_traceback
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.buffers import padded, policy_inputs
from rltrain.rollout.inference.client import WAKE, WAKE_BYTES, decide
from rltrain.rollout.inference.requests import RequestBuffers
from rltrain.rollout.shared_memory.memory import SharedMemory, Ticket
from rltrain.rollout.shared_memory.weights import WeightsBoard
from rltrain.rollout.specs import Inference
from rltrain.rollout.tree import Tree, leaves, tree_map
from rltrain.rollout.types import hooks_of


@dataclass(frozen=True)
class ServerJob:
    """Everything that a server is made from. Travels to its process."""

    spec: EnvSpec
    inference: Inference
    streams: tuple[int, ...]  # B of each actor
    make_policy: Callable[[], Any]


class Server:
    """Answers requests; see `serve`.

    Args:
        weights, requests: tickets of memory.
        pipes:             one for each actor.
        control:           the learner closes it to end the server.
    """

    def __init__(self, job: ServerJob, weights: Ticket, requests: Ticket, pipes: list[Any], control: Any) -> None:
        self.policy = job.make_policy()
        self._device, self._log_prob = torch.device(job.inference.device), job.inference.log_prob
        self._weights = {name: tensor.numpy() for name, tensor in self.policy.state_dict().items()}
        if self._device.type != "cpu":
            self._weights = {name: array.copy() for name, array in self._weights.items()}  # copies on the CPU
            self.policy.to(self._device)
        self._board = WeightsBoard(self._weights, SharedMemory.attach(weights))
        self._sequence = 0  # of the board, when weights were last read
        self._version = -1
        self._requests = RequestBuffers(job.spec, job.inference, job.streams, SharedMemory.attach(requests))
        self._pipes, self._control = pipes, control
        self._input = _input(job, pinned=self._device.type == "cuda")
        self._rows = [rows.numpy() for rows in leaves(self._input)]
        outputs = {"action", "extras", "core_after"}
        self._inputs_of = [self._arrays(worker, set(self._input)) for worker in range(len(pipes))]
        self._outputs_of = [self._arrays(worker, outputs) for worker in range(len(pipes))]

    def serve(self) -> None:
        """Answer requests until the learner closes `control`."""
        with selectors.DefaultSelector() as selector:
            for pipe in (self._control, *self._pipes):
                selector.register(pipe, selectors.EVENT_READ)
            for pipe in self._pipes:
                _wake(pipe)  # the predecessor may have answered without waking the actor
            while True:
                if pending := self._requests.pending():
                    self._answer(pending)
                for key, _ in selector.select():
                    if key.fileobj is self._control:
                        return
                    with contextlib.suppress(BlockingIOError):
                        os.read(key.fd, WAKE_BYTES)

    def _answer(self, workers: list[int]) -> None:
        """Answer these actors in one call; if it fails, one by one, so that an invalid request fails alone."""
        requests = [int(self._requests.asked[worker]) for worker in workers]
        try:
            self._act(workers, requests)
        except Exception as error:
            self._clear_input()
            if len(workers) > 1:
                for worker in workers:
                    self._answer([worker])
                return
            self._requests.respond(workers[0], requests[0], self._version, whole_traceback(error))
            _wake(self._pipes[workers[0]])
            if self._device.type != "cpu":  # an error may have left the device unusable
                raise

    def _act(self, workers: list[int], requests: list[int]) -> None:
        places, rows = list[slice](), 0
        for worker in workers:
            places.append(slice(rows, rows := rows + self._requests.streams[worker]))
            for mine, theirs in zip(self._rows, self._inputs_of[worker], strict=True):
                mine[places[-1]] = theirs
        hooks_of(self.policy).set_active_rows(rows)
        self._read_weights()
        batch = {name: self._to_device(tree, padded(rows)) for name, tree in self._input.items()}
        with torch.inference_mode():
            inputs = batch["obs"], batch.get("core"), batch.get("mask"), batch["noise"]
            act = decide(self.policy, *inputs, self._log_prob)
        output = {"action": act.action, "extras": act.extras}
        if act.core is not None:
            output["core_after"] = act.core
        values = [value.cpu().numpy() for value in leaves(output)]
        self._requests.totals[:] += 1, rows
        for worker, place, request in zip(workers, places, requests, strict=True):
            for theirs, value in zip(self._outputs_of[worker], values, strict=True):
                theirs[:] = value[place]
            self._requests.respond(worker, request, self._version)
            _wake(self._pipes[worker])

    def _clear_input(self) -> None:
        """Remove an invalid request, since old rows fill up the batches that follow."""
        for name, tree in self._input.items():
            for rows in leaves(tree):
                rows.fill_(name == "mask")

    def _read_weights(self) -> None:
        """Read the newest weights; between two calls of the policy, so that a call uses one version."""
        sequence = self._board.sequence
        if sequence == self._sequence:
            return
        self._version, _ = self._board.read(self._weights)
        self._sequence = sequence
        if self._device.type != "cpu":
            for name, tensor in self.policy.state_dict().items():
                tensor.copy_(torch.from_numpy(self._weights[name]))

    def _arrays(self, worker: int, names: set[str]) -> list[np.ndarray]:
        """Arrays [B, ...] of an actor's buffer, in the order of their names."""
        parts = {name: tree for name, tree in self._requests.buffers[worker].items() if name in names}
        return [array[: self._requests.streams[worker]] for array in leaves(parts)]

    def _to_device(self, tree: Tree, width: int) -> Tree:
        """The first `width` rows, on the policy's device."""
        return tree_map(lambda rows: rows[:width].to(self._device, non_blocking=True), tree)

    def close(self) -> None:
        """No-op: the process ends."""


def _input(job: ServerJob, pinned: bool) -> dict[str, Any]:
    """Tensors for the requests of all actors together, named as in a request buffer."""
    inference, width = job.inference, padded(sum(job.streams))
    inputs = policy_inputs(job.spec, inference.noise, inference.core_size, width)
    tensors = {name: x for name, x in zip(("obs", "core", "mask", "noise"), inputs, strict=True) if x is not None}
    return tree_map(Tensor.pin_memory, tensors) if pinned else tensors


def _wake(pipe: Any) -> None:
    with contextlib.suppress(OSError):  # the pipe is full, so the actor will wake anyway; or the actor is gone
        os.write(pipe.fileno(), WAKE)
