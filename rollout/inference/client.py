"""What stands in an actor in place of a policy, where a server decides for all actors: it asks and waits."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.buffers import WIDTH, obs_arrays
from rltrain.rollout.inference.requests import RequestBuffers
from rltrain.rollout.specs import Inference
from rltrain.rollout.tree import Tree, leaves, tree_map
from rltrain.rollout.types import Act, Policy, hooks_of

WAKE = b"."  # says that there is something to look at; what, stands on the desk
SIPS = 64  # bytes read at once from a pipe of such


class Ended(Exception):
    """The run is over, and so nobody answers."""


def decide(policy: Policy, obs: Tree, core: Tensor | None, mask: Tensor | None, noise: Tensor) -> Act:
    """One exploring `act`, with the extras summarised row by row, because actors do not hold the policy."""
    act = policy.act(obs, core, mask, noise, True)
    one = {name: value[None] for name, value in act.extras.items()}  # an unroll of one row
    extras = hooks_of(policy).summarize_unroll(one, act.action[None], None if mask is None else mask[None])
    return act._replace(extras={name: value[0] for name, value in extras.items()})


def inference_of(policy: Policy, spec: EnvSpec, device: str) -> Inference:
    """What actors must know of a policy; found out by acting once."""
    obs = tree_map(lambda array: torch.from_numpy(array[0]), obs_arrays(spec, 1, WIDTH))
    core = torch.zeros(WIDTH, policy.core_size) if policy.core_size else None
    mask = torch.ones(WIDTH, spec.action.mask_size, dtype=torch.bool) if spec.action_mask else None
    with torch.inference_mode():
        answer = decide(policy, obs, core, mask, torch.zeros(WIDTH, policy.noise.columns))

    def kind(value: Tensor) -> tuple[tuple[int, ...], str]:
        return tuple(value.shape[1:]), str(value.numpy().dtype)

    extras = {name: kind(value) for name, value in answer.extras.items()}
    replaced = hooks_of(policy).core_with_action
    return Inference(device, policy.noise, policy.core_size, policy.sequence, kind(answer.action), extras, replaced)


class InferenceClient:
    """Has an actor's decisions made by the server.

    Args:
        inference: the policy, as far as it is known here.
        desks:     where this actor's, number `worker`, is one.
        pipe:      to wake the server, and to be woken.
        over:      whether the run is, so that no answer may come.
    """

    def __init__(
        self, inference: Inference, desks: RequestBuffers, worker: int, pipe: Any, over: Callable[[], bool]
    ) -> None:
        self.noise, self.core_size, self.sequence = inference.noise, inference.core_size, inference.sequence
        self.core_with_action = inference.core_with_action
        self.version: int | None = None  # the oldest weights that have decided since `begin`
        self._desks, self._worker, self._over = desks, worker, over
        self._pipe = pipe  # kept, since the descriptor is closed with it
        self._descriptor = pipe.fileno()
        count, desk = desks.streams[worker], desks.desks[worker]
        self._count = count
        self._obs = [leaf[:count] for leaf in leaves(desk["obs"])]
        self._noise = desk["noise"][:count]
        self._mask, self._core = desk.get("mask"), desk.get("core")
        self._action = torch.from_numpy(desk["action"])
        self._extras = {name: torch.from_numpy(array) for name, array in desk["extras"].items()}
        self._core_after = torch.from_numpy(desk["core_after"]) if self._core is not None else None

    def begin(self) -> None:
        """A new unroll."""
        self.version = None

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """One decision for this actor's streams; actors always explore.

        Raises:
            Ended:        the run is over.
            RuntimeError: the policy raised; with its traceback.
        """
        count, desks, worker = self._count, self._desks, self._worker
        for mine, seen in zip(self._obs, leaves(obs), strict=True):
            np.copyto(mine, seen.numpy()[:count])
        np.copyto(self._noise, noise.numpy()[:count])
        if action_mask is not None:
            np.copyto(self._mask[:count], action_mask.numpy()[:count])
        if core is not None:
            np.copyto(self._core[:count], core.numpy()[:count])
        desks.asked[worker] += 1
        os.write(self._descriptor, WAKE)
        while desks.answered[worker] != desks.asked[worker]:
            if self._over():
                raise Ended
            if not os.read(self._descriptor, SIPS):
                raise EOFError("nobody holds the other end of the inference server's pipe")
        if failed := desks.failed(worker):
            raise RuntimeError(f"the inference server could not act:\n{failed}")
        version = int(desks.version[worker])
        self.version = version if self.version is None else min(version, self.version)
        after = self._core_after
        return Act(
            self._action.clone(),  # the desk is written to again
            {name: value.clone() for name, value in self._extras.items()},
            None if after is None else after.clone(),
        )
