"""The policy of an actor with `--inference central`: sends each observation to the inference server and waits."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.buffers import WIDTH, policy_inputs
from rltrain.rollout.inference.requests import RequestBuffers
from rltrain.rollout.specs import ArraySpec, Inference
from rltrain.rollout.tree import Tree, leaves
from rltrain.rollout.types import Act, Policy, hooks_of

WAKE = b"."  # sent through a pipe when a request or response was written
WAKE_BYTES = 64  # read at once from such a pipe


class RunEnded(Exception):
    """The run is over, so the server does not answer."""


def decide(
    policy: Policy, obs: Tree, core: Tensor | None, mask: Tensor | None, noise: Tensor, log_prob: bool = False
) -> Act:
    """One call of `act` that explores, with the extras summarised row by row, because actors do not hold the policy.

    Args:
        log_prob: add what recordings store: see `PolicyHooks.action_distribution` and `state_value`.
    """
    act = policy.act(obs, core, mask, noise, True)
    one = {name: value[None] for name, value in act.extras.items()}  # an unroll of one row
    extras = hooks_of(policy).summarize_unroll(one, act.action[None], None if mask is None else mask[None])
    extras = {name: value[0] for name, value in extras.items()}
    find, value = hooks_of(policy).action_distribution, hooks_of(policy).state_value
    if log_prob and find is not None:
        extras["log_prob"] = find(obs, core, mask, noise).log_prob(act.action)
        if value is not None and "value" not in extras:
            extras["value"] = value(obs, core, mask, noise)
    return act._replace(extras=extras)


def lacks_log_prob(policy: Policy, spec: EnvSpec) -> bool:
    """Whether a policy has a distribution over actions, but no log probabilities in its extras."""
    find, inputs = hooks_of(policy).action_distribution, policy_inputs(spec, policy.noise, policy.core_size, WIDTH)
    with torch.inference_mode():
        return find is not None and find(*inputs) is not None and "log_prob" not in decide(policy, *inputs).extras


def inference_of(policy: Policy, spec: EnvSpec, device: str, log_prob: bool = False) -> Inference:
    """What actors must know of a policy; its shapes are found by one call."""
    with torch.inference_mode():
        act = decide(policy, *policy_inputs(spec, policy.noise, policy.core_size, WIDTH), log_prob)

    def row(value: Tensor) -> ArraySpec:
        return tuple(value.shape[1:]), str(value.numpy().dtype)

    extras = {name: row(value) for name, value in act.extras.items()}
    replaced = hooks_of(policy).core_with_action
    row_of = row(act.action)
    return Inference(device, policy.noise, policy.core_size, policy.sequence, row_of, extras, replaced, log_prob)


class InferenceClient:
    """Acts as a policy; the server decides.

    Args:
        inference: what is known of the server's policy.
        requests:  the buffers of all actors.
        worker:    number of this actor.
        pipe:      wakes the server, and this actor.
        over:      True if the run is over, so that no response may come.
    """

    def __init__(
        self, inference: Inference, requests: RequestBuffers, worker: int, pipe: Any, over: Callable[[], bool]
    ) -> None:
        self.noise, self.core_size, self.sequence = inference.noise, inference.core_size, inference.sequence
        self.core_with_action = inference.core_with_action
        self.version: int | None = None  # version of the oldest weights used since `begin`
        self._requests, self._worker, self._over = requests, worker, over
        self._pipe = pipe  # the descriptor is closed when this object is collected
        self._descriptor = pipe.fileno()
        self._count, buffer = requests.streams[worker], requests.buffers[worker]
        self._obs = [leaf[: self._count] for leaf in leaves(buffer["obs"])]
        self._noise = buffer["noise"][: self._count]
        self._mask, self._core = buffer.get("mask"), buffer.get("core")
        self._action = torch.from_numpy(buffer["action"])
        self._extras = {name: torch.from_numpy(array) for name, array in buffer["extras"].items()}
        self._core_after = torch.from_numpy(buffer["core_after"]) if self._core is not None else None

    def begin(self) -> None:
        """Begin a new unroll."""
        self.version = None

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """One decision for this actor's streams; the server always explores.

        Raises:
            RunEnded:     the run is over.
            RuntimeError: the policy raised; the text is its traceback.
        """
        count, requests, worker = self._count, self._requests, self._worker
        for mine, leaf in zip(self._obs, leaves(obs), strict=True):
            np.copyto(mine, leaf.numpy()[:count])
        np.copyto(self._noise, noise.numpy()[:count])
        if action_mask is not None:
            np.copyto(self._mask[:count], action_mask.numpy()[:count])
        if core is not None:
            np.copyto(self._core[:count], core.numpy()[:count])
        requests.asked[worker] += 1
        os.write(self._descriptor, WAKE)
        while requests.answered[worker] != requests.asked[worker]:
            if self._over():
                raise RunEnded
            if not os.read(self._descriptor, WAKE_BYTES):
                raise EOFError("the other end of the inference server's pipe is closed")
        if error := requests.error(worker):
            raise RuntimeError(f"the inference server could not act:\n{error}")
        version = int(requests.version[worker])
        self.version = version if self.version is None else min(version, self.version)
        after = self._core_after
        return Act(
            self._action.clone(),  # the buffer will be overwritten
            {name: value.clone() for name, value in self._extras.items()},
            None if after is None else after.clone(),
        )
