"""A trained policy, loaded from a run or a checkpoint: `rltrain.load`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import torch

from rltrain import algorithms
from rltrain.algorithms.networks.mlp import RowPass, for_inference
from rltrain.algorithms.protocol import gives_values, modules_of, state_values
from rltrain.config.consent import NETWORK, SavedConfig, use_saved_algorithm, with_consent
from rltrain.config.run_config import RunConfig
from rltrain.envs.errors import in_user_code
from rltrain.envs.multi_agent.joint_spaces import joint_dtype
from rltrain.envs.spaces import action_reader, split_mask
from rltrain.envs.spec import EnvSpec, Leaf
from rltrain.errors import CheckpointError, ConfigError, as_folder
from rltrain.evaluation.multi_agent import split_actions, write_observations
from rltrain.learner.algorithm import make_algorithm, make_policy, require_finite, uses_own_network
from rltrain.reporting.console import say
from rltrain.rollout.actor.isolated_env import acting
from rltrain.rollout.actor.noise import DRAWS
from rltrain.rollout.buffers import clear_absent, obs_arrays, padded
from rltrain.rollout.tree import Tree, leaves, tree_map
from rltrain.rollout.types import hooks_of
from rltrain.storage import checkpoint, files, schema
from rltrain.storage import retention as checkpoints

MAX_THREADS = 64  # for which inputs are kept


class Trained:
    """A trained policy. `act` takes an observation of the environment and returns an action for `env.step`.

    Attributes:
        spec:   the environment that the policy was trained on.
        policy: the nn.Module; it has the methods of `rltrain.Policy`.
        path:   the checkpoint that it was loaded from.
        own:    True if this user made the run on this machine, or consented to the code that it names.
    """

    def __init__(self, policy: Any, spec: EnvSpec, config: RunConfig, path: Path, own: bool = True) -> None:
        self.policy, self.spec, self.config, self.path, self.own = policy, spec, config, path, own
        self._core: torch.Tensor | None = None
        self._count = 0  # number of observations that the core belongs to
        self._drawn: np.ndarray | None = None  # noise that is held, and the number of calls that it served
        self._calls = 0
        self._rng = np.random.default_rng(config.seed)
        self._read_actions = action_reader(spec.action, joint_dtype(spec.action) if spec.groups else None)
        plain = not (spec.groups or spec.action_mask or policy.core_size)
        leaf = spec.obs if isinstance(spec.obs, Leaf) and plain and not spec.obs.start else None
        self._leaf = leaf if spec.action.kind != "box" or spec.action.shape else None  # of `_act_row`
        self._rows: dict[int, tuple[np.ndarray, torch.Tensor, torch.Tensor]] = {}  # its inputs, by thread
        self._network: tuple[Any, Callable[[torch.Tensor], torch.Tensor] | None] | None = None  # of `_act_row`
        if leaf is not None and leaf.dtype == "float32":
            self._network = hooks_of(policy).greedy_network()
        self._passes: dict[int, RowPass] = {}  # of the MLP, by thread

    def seed(self, seed: Sequence[int]) -> None:
        """Start the random numbers of exploring actions again."""
        self._rng = np.random.default_rng(seed)

    def reset(self) -> None:
        """Clear the memory of the policy, if it has one. Call this when an episode begins."""
        self._core = None

    def act(self, obs: Any, explore: bool = False, action_mask: Any = None) -> Any:
        """An action for one observation, or actions [B, *A] for a batch [B, *O] of observations.

        Args:
            obs:         an observation of the environment, or a batch with a leading dimension in every leaf. For
                         several agents {agent: obs} of all agents that are present, also of those that do not act at
                         this step; the actions are then {agent: action}.
            explore:     sample the action instead of taking the most likely one.
            action_mask: [n] or [B, n] legal actions; {agent: [n]} for several agents.

        Raises:
            ValueError: the observation has the wrong shape.
        """
        leaf = self._leaf
        if leaf is not None and not explore and isinstance(obs, np.ndarray) and obs.shape == leaf.shape:
            return self._act_row(obs, leaf)
        if self.spec.groups:
            return self._act_joint(obs, explore, action_mask or {})
        spec, leaf_specs = self.spec, self.spec.leaves()
        if spec.action_mask:
            obs, mask_in_obs = split_mask(obs)
            action_mask = mask_in_obs if action_mask is None else action_mask
        arrays = [np.asarray(leaf) for leaf in leaves(obs)]
        single = arrays[0].ndim == len(leaf_specs[0].shape)
        count = 1 if single else len(arrays[0])
        for leaf, array in zip(leaf_specs, arrays, strict=True):
            if array.shape != (leaf.shape if single else (count, *leaf.shape)):
                expected = f"{leaf.shape}, or with one leading dimension for a batch"
                raise ValueError(f"{spec.id} has observations of shape {expected}; got {array.shape}")
        rows, mask = self._empty(count)
        for leaf, row, array in zip(leaf_specs, leaves(rows), arrays, strict=True):
            row[0, :count] = array - np.array(leaf.start).reshape(leaf.shape) if leaf.start else array
        if spec.action_mask and action_mask is not None:
            mask[:count] = np.asarray(action_mask, bool)
        actions = self._act(rows, mask, explore, count)
        if single:
            return actions[0, ...] if spec.action.kind == "box" else actions[0]  # an array, also of shape ()
        return actions

    def _act_row(self, obs: np.ndarray, leaf: Leaf) -> Any:
        """The action of one observation that is a single array: the same numbers, without the work for other cases."""
        if self._network is not None:
            mlp, choose = self._network
            row = self._passes.get(get_ident())
            if row is None or row.moved():
                row = self._new_pass(mlp)
            with acting():
                out = row(obs)
                action = row.numbers.argmax(-1) if choose is None else choose(out).numpy()
            return self._read_actions(action)[0]
        inputs = self._rows.get(get_ident())
        if inputs is None:
            if len(self._rows) >= MAX_THREADS:
                self._rows = {}
            width = padded(1)
            rows = torch.from_numpy(np.zeros((width, *leaf.shape), leaf.dtype))
            inputs = rows.numpy(), rows, torch.zeros(width, self.policy.noise.columns)
            self._rows[get_ident()] = inputs
        array, rows, noise = inputs
        array[0] = obs
        with torch.inference_mode():
            action = self.policy.act(rows, None, None, noise, False).action
        return self._read_actions(action.numpy()[:1])[0]

    def _new_pass(self, mlp: Any) -> RowPass:
        """The forward pass of the policy's MLP for this thread."""
        if len(self._passes) >= MAX_THREADS:
            self._passes = {}
        self._passes[get_ident()] = row = RowPass(mlp, padded(1))
        return row

    def _act_joint(self, obs: Mapping[str, Any], explore: bool, action_masks: Mapping[str, Any]) -> dict[str, Any]:
        """The actions of several agents."""
        spec = self.spec
        if spec.turns and self.policy.core_size and self._core is None and len(obs) == 1 < len(spec.agents):
            raise ValueError(
                f"the agents of {spec.id} have a memory of every step: give the observations of all agents that are "
                "present at each step, not only of the agent whose turn it is"
            )
        rows, mask = self._empty(1)
        write_observations(spec, obs, action_masks, rows, mask)
        joint = self._act(rows, mask, explore, 1)[0]
        if self._core is not None:
            present = np.array([agent in obs for agent in spec.agents])
            self._core = clear_absent(self._core, np.tile(present, (len(mask), 1)))
        return split_actions(spec, joint, obs)

    def _empty(self, count: int) -> tuple[Tree, np.ndarray]:
        """Empty rows for `count` observations, and a mask with all actions legal; padded as batches of actors are."""
        width = padded(count)
        return obs_arrays(self.spec, 1, width), np.ones((width, self.spec.action.mask_size), bool)

    def _act(self, rows: Tree, mask: np.ndarray, explore: bool, count: int) -> np.ndarray:
        """Actions [count, *A] for `env.step`, for the first columns of rows of observations."""
        policy, width = self.policy, len(mask)
        if policy.core_size and (self._core is None or self._count != count):
            self._core, self._count = torch.zeros(width, policy.core_size), count
        noise = np.zeros((width, policy.noise.columns), np.float32)  # the last column, the stream number, stays 0
        if explore:
            noise[:, : policy.noise.width] = self._noise(width)
        with torch.inference_mode():
            obs = tree_map(lambda row: torch.from_numpy(row[0]), rows)
            legal = torch.from_numpy(mask) if self.spec.action_mask else None
            act = policy.act(obs, self._core, legal, torch.from_numpy(noise), explore)
        self._core = act.core
        return np.asarray(self._read_actions(act.action.numpy()[:count]))

    def _noise(self, width: int) -> np.ndarray:
        """Noise [width, K]: a new draw, or the one that is held for `noise.hold` calls."""
        kind, columns, _, hold = self.policy.noise
        if self._drawn is None or len(self._drawn) != width or self._calls % hold == 0:
            self._drawn, self._calls = DRAWS[kind](self._rng, (width, columns)), 0
        self._calls += 1
        return self._drawn


def load(path: str | Path, best: bool = False, trust: bool = False) -> Trained:
    """The policy of a checkpoint, or of a run's folder: its newest checkpoint, or its best one, that is intact.

    Args:
        trust: a run that somebody else made may import the code that it names: the module of a torso.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it names code to which the user did not consent.
    """
    return load_for(path, best, trust, uses=NETWORK)


def load_for(path: str | Path, best: bool, trust: bool, uses: Collection[str]) -> Trained:
    """As `load`. `uses`: the settings whose code the caller is going to import."""
    saved, notes = checkpoints.find(as_folder("the first argument", path), best)
    for note in notes:
        say(f"rltrain: {note}", sys.stderr)
    meta = saved.path / checkpoint.META
    schema.require(meta, saved.meta, "config", "spec")
    spec = schema.read_spec(meta, saved.meta["spec"])
    values = SavedConfig(saved.meta["config"], meta, saved.own)
    try:
        use_saved_algorithm(values, trust, uses)
        config = RunConfig.from_json(values.values)
    except ConfigError as error:
        raise CheckpointError(f"{saved.path}: {error}") from None
    config = with_consent(config, values, trust, uses)
    schema.check_sizes(meta, saved.meta["config"], saved.state, critics=False, spec=spec)
    try:
        policy = make_policy(config, spec)()
    except (ConfigError, ValueError) as error:  # the user's own network or policy is not here
        if in_user_code(error):
            raise
        raise CheckpointError(f"{saved.path}: {error}") from None
    except (KeyError, RuntimeError, MemoryError) as error:
        if uses_own_network(config):
            raise  # with the traceback of the user's code
        raise CheckpointError(f"{saved.path} does not fit this version: {files.one_line(error)}") from None
    with checkpoints.mismatch_as_error(saved.path):
        weights = checkpoint.to_tensors(saved.state["learner"]["parts"]["policy"])
        policy.load_state_dict(weights)
    require_finite(saved.path, [policy])
    return Trained(for_inference(policy), spec, config, saved.path, saved.own or trust)


def value_function(trained: Trained) -> Callable[[Tree, torch.Tensor | None], torch.Tensor] | None:
    """The values [B] that the learner of a checkpoint gives to observations: see `Algorithm` for `state_value`.

    None: the algorithm has no such values, the policy has a memory, or the checkpoint lacks the other networks, as that
    of a best policy does.

    Raises:
        CheckpointError: the checkpoint is damaged, or does not fit.
    """
    config, spec, path = trained.config, trained.spec, trained.path
    make = algorithms.algorithm_class(config.algo)
    if spec.groups or trained.policy.core_size or (isinstance(make, type) and not gives_values(make)):
        return None
    saved = checkpoint.load(path)
    parts = saved.state["learner"]["parts"]
    if parts.keys() == {"policy"}:
        return None
    schema.check_sizes(path / checkpoint.META, saved.meta["config"], saved.state, spec=spec)
    try:
        algorithm = make_algorithm(config.model_copy(update={"device": "cpu", "compile": False}), spec)
    except (ConfigError, KeyError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        if in_user_code(error):
            raise
        raise CheckpointError(f"{path}: {files.one_line(error)}") from None
    needed = algorithm.parts()
    if not gives_values(algorithm) or needed.keys() - parts.keys():
        return None
    with checkpoints.mismatch_as_error(path):
        for name, part in needed.items():
            part.load_state_dict(checkpoint.to_tensors(parts[name]))
    require_finite(path, modules_of(algorithm))
    return lambda obs, mask: state_values(algorithm, obs, mask)
