"""A trained policy, loaded from a run or a checkpoint: `rltrain.load`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import EnvSpec, from_json
from rltrain.errors import CheckpointError
from rltrain.evaluation import multi_agent as team
from rltrain.learner.algorithm import make_policy
from rltrain.rollout.buffers import clear_absent, obs_arrays, padded
from rltrain.rollout.tree import leaves, tree_map
from rltrain.storage import checkpoint, checkpoints


class Trained:
    """A trained policy. `act` takes an observation as the environment gives it and returns an action it takes.

    Attributes:
        spec:   the environment it was trained on.
        policy: the nn.Module.
        path:   the checkpoint it came from.
    """

    def __init__(self, policy: Any, spec: EnvSpec, config: RunConfig, path: Path) -> None:
        self.policy, self.spec, self.config, self.path = policy, spec, config, path
        self._core: torch.Tensor | None = None
        self._count = 0  # observations that the core is of
        self._rng = np.random.default_rng(config.seed)

    def reset(self) -> None:
        """Forget what was seen: call it where an episode begins, if the policy has memory."""
        self._core = None

    def act(self, obs: Any, explore: bool = False, action_mask: Any = None) -> Any:
        """An action for one observation, or actions [B, *A] for a batch [B, *O] of them.

        Args:
            obs:         an observation of the environment, or a batch with a leading dimension in every leaf. Of
                         several agents what each sees that is there, {agent: obs}, also where it is another's turn;
                         then the actions are {agent: action} too.
            explore:     sample instead of taking the likeliest action.
            action_mask: [n] or [B, n] legal actions; {agent: [n]} of several.

        Raises:
            ValueError: the observation has another shape than the environment's.
        """
        spec = self.spec
        if spec.groups:
            return self._act_together(obs, explore, action_mask or {})
        if spec.action_mask and isinstance(obs, dict) and "action_mask" in obs:
            action_mask = obs["action_mask"] if action_mask is None else action_mask
            rest = {key: value for key, value in obs.items() if key != "action_mask"}
            obs = rest if isinstance(spec.obs, dict) else next(iter(rest.values()))
        arrays = [np.asarray(leaf) for leaf in leaves(obs)]
        known = spec.leaves()
        single = arrays[0].ndim == len(known[0].shape)
        count = 1 if single else len(arrays[0])
        lead = () if single else (count,)
        for leaf, array in zip(known, arrays, strict=True):
            if array.shape != (*lead, *leaf.shape):
                expected = f"{leaf.shape}, or with one leading dimension for a batch"
                raise ValueError(f"{spec.id} has observations of shape {expected}; got {array.shape}")
        width = padded(count)
        rows = obs_arrays(spec, 1, width)
        for leaf, row, array in zip(known, leaves(rows), arrays, strict=True):
            row[0, :count] = array - np.array(leaf.start).reshape(leaf.shape) if leaf.start else array
        mask = None
        if spec.action_mask:
            full = np.ones((width, spec.action.mask_size), bool)
            if action_mask is not None:
                full[:count] = np.asarray(action_mask, bool)
            mask = torch.from_numpy(full)
        actions = self._chosen(rows, mask, explore, count)
        return actions[0] if single else actions

    def _act_together(self, obs: dict[str, Any], explore: bool, action_mask: dict[str, Any]) -> dict[str, Any]:
        spec, width = self.spec, padded(1)
        if spec.turns and self.policy.core_size and self._core is None and len(obs) == 1 < len(spec.agents):
            raise ValueError(
                f"the agents of {spec.id} remember what they see while others act: give the observations of all that "
                "are there each time, not only of whose turn it is"
            )
        rows, legal = obs_arrays(spec, 1, width), np.ones((width, spec.action.mask_size), bool)
        team.put(spec, obs, action_mask, rows, legal)
        mask = torch.from_numpy(legal) if spec.action_mask else None
        joint = self._chosen(rows, mask, explore, 1)[0]
        if self._core is not None:
            self._core = clear_absent(self._core, np.tile([agent in obs for agent in spec.agents], (width, 1)))
        return team.actions(spec, joint, obs)

    def _chosen(self, rows: Any, mask: torch.Tensor | None, explore: bool, count: int) -> np.ndarray:
        """Actions [count, *A], as the environment takes them, for the first columns of rows of observations."""
        width = len(leaves(rows)[0][0])
        if self.policy.core_size and (self._core is None or self._count != count):
            self._core, self._count = torch.zeros(width, self.policy.core_size), count
        noise = self._noise(width) if explore else np.zeros((width, self.policy.noise.columns), np.float32)
        with torch.inference_mode():
            views = tree_map(lambda row: torch.from_numpy(row[0]), rows)
            act = self.policy.act(views, self._core, mask, torch.from_numpy(noise), explore)
        self._core = act.core
        return self._for_env(act.action.numpy()[:count])

    def _noise(self, width: int) -> np.ndarray:
        from rltrain.rollout.actor.noise import DRAWS

        wanted = self.policy.noise
        noise = np.zeros((width, wanted.columns), np.float32)  # where streams differ, everybody is stream 0
        noise[:, : wanted.width] = DRAWS[wanted.kind](self._rng, (width, wanted.width))
        return noise

    def _for_env(self, action: np.ndarray) -> np.ndarray:
        """Policy actions [B, *A] as the environment takes them."""
        spec = self.spec.action
        if spec.kind != "box":
            return action + np.array(spec.start).reshape(spec.shape) if spec.start else action
        low, high = (np.array(bound, np.float32).reshape(spec.shape) for bound in (spec.low, spec.high))
        scaled = np.clip(action, -1.0, 1.0) * ((high - low) / 2) + (high + low) / 2
        bounded: np.ndarray = np.clip(scaled, low, high)
        return (np.rint(scaled) if np.issubdtype(spec.takes, np.integer) else bounded).astype(spec.takes)


def load(path: str | Path, best: bool = False) -> Trained:
    """The policy of a checkpoint, or of a run's folder: its latest checkpoint, or its best one.

    Raises:
        CheckpointError: there is none, or it is damaged; nothing in it is ever executed.
    """
    return _load(path, best)[0]


def _load(path: str | Path, best: bool) -> tuple[Trained, checkpoint.Checkpoint]:
    found = checkpoint.load(checkpoints.locate(path, "best" if best else "latest"))
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where training looked for a torso of the user's
    try:
        config = RunConfig.from_json(found.meta["config"])
        spec = from_json(found.meta["spec"])
        policy = make_policy(config, spec)()
        policy.load_state_dict(checkpoint.to_tensors(found.state["learner"]["parts"]["policy"]))
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{found.path} does not fit this version: {str(error).splitlines()[0]}") from None
    except ValueError as error:  # a torso or policy of the user's that is not here
        raise CheckpointError(f"{found.path}: {error}") from None
    return Trained(policy, spec, config, found.path), found
