"""Observations for the proof of an export: from the run's environment, from a recording, or random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rltrain.envs.make import serial
from rltrain.envs.seeding import FRESH, seed_of
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.evaluation.evaluate import source_of, this_process
from rltrain.evaluation.policy import Trained
from rltrain.rollout.actor.isolated_env import IsolatedEnv, acting
from rltrain.rollout.actor.noise import DRAWS
from rltrain.rollout.buffers import clear_absent, empty_rows, padded, to_next_step
from rltrain.rollout.tree import Tree, leaves, tree_map, unflatten
from rltrain.storage.recording import Recording


@dataclass(frozen=True)
class Observations:
    """T rows of one stream, as a policy gets them.

    Attributes:
        source: where they are from, in words.
    """

    source: str
    obs: Tree  # [T, *O]
    first: np.ndarray  # [T] bool
    mask: np.ndarray | None  # [T, m] bool
    alive: np.ndarray | None  # [T, N] bool


def observations(trained: Trained, rows: int, seed: int, recording: str | None, trust: bool) -> Observations:
    """Observations of the recording; without one of the run's environment, played with sampled actions.

    A run whose environment is an object of a program gives random numbers.
    """
    if recording is not None:
        return _recorded(trained.spec, Path(recording), rows)
    if trained.config.reloadable:
        return _played(trained, rows, seed, trust)
    return random_observations(trained.spec, rows, seed)


def _played(trained: Trained, count: int, seed: int, trust: bool) -> Observations:
    source, spec, policy = source_of(trained, None, None, trust), trained.spec, trained.policy
    rng, found = np.random.default_rng(seed), list[Any]()
    with this_process(seed):
        env: Any = IsolatedEnv(
            lambda: serial(source.make, spec, range(1), [seed_of(seed, FRESH, 0)], restore_method="none")
        )
        rows, width = empty_rows(spec, 1, 1), padded(1)
        noise = np.zeros((width, policy.noise.columns), np.float32)
        core = torch.zeros(width, policy.core_size) if policy.core_size else None
        env.reset(rows)
        try:
            for _ in range(count):
                optional = rows.action_mask, rows.alive
                found.append(tree_map(lambda array: array[0, 0].copy(), (rows.obs, rows.first, *optional)))
                noise[:, : policy.noise.width] = DRAWS[policy.noise.kind](rng, (width, policy.noise.width))
                with acting(), torch.no_grad():
                    if core is not None and rows.first[0].any():
                        core = core * torch.from_numpy(~rows.first[0])[:, None]
                    obs = tree_map(lambda array: torch.from_numpy(array[0]), rows.obs)
                    mask = None if rows.action_mask is None else torch.from_numpy(rows.action_mask[0])
                    act = policy.act(obs, core, mask, torch.from_numpy(noise), True)
                    core = None if act.core is None else clear_absent(act.core, _first(rows.alive))
                env.step(act.action.numpy()[:1], rows, 0)
                env.check(rows, 1)
                to_next_step(rows)
        finally:
            env.close()
    return Observations(f"{count} steps of {spec.id}, seed {seed}", *_stacked(found))


def _first(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array[0]


def _stacked(found: list[Any]) -> tuple[Tree, Any, Any, Any]:
    obs, first, mask, alive = tree_map(lambda *parts: np.stack(parts), *found)
    return obs, first, mask, alive


def _recorded(spec: EnvSpec, folder: Path, count: int) -> Observations:
    found: list[Any] = []
    for piece in Recording.open(folder, spec).pieces():
        for column, t in _columns(len(piece.reward), len(piece.stream)):
            if len(found) == count:
                break
            row = piece.obs, piece.first, piece.action_mask, piece.alive
            one = tree_map(lambda array, t=t, column=column: array[t, column], row)
            found.append((one[0], np.bool_(one[1] or t == 0), *one[2:]))
    if not found:
        raise ConfigError(f"{folder} holds no observations")
    return Observations(f"{len(found)} recorded steps of {spec.id}", *_stacked(found))


def _columns(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    return ((column, t) for column in range(columns) for t in range(rows))


def random_observations(spec: EnvSpec, count: int, seed: int) -> Observations:
    """Random numbers of the spec's types; a tenth of the rows begins an episode, and most actions are legal."""
    rng = np.random.default_rng(seed)
    flat = []
    for leaf in spec.leaves():
        shape = (count, *leaf.shape)
        if leaf.kind in ("box", "multi_binary"):
            numbers: Any = rng.standard_normal(shape) * 2 if leaf.kind == "box" else rng.integers(0, 2, shape)
        else:
            numbers = rng.integers(
                0, leaf.high + 1 if leaf.kind == "image" else np.resize(leaf.nvec, leaf.shape), shape
            )
        flat.append(numbers.astype(leaf.dtype))
    first = rng.random(count) < 0.1
    first[0] = True
    mask = alive = None
    if spec.action_mask:
        mask = rng.random((count, spec.action.mask_size)) < 0.8
        begin = 0
        for size in spec.action.nvec:
            mask[np.arange(count), begin + rng.integers(0, size, count)] = True
            begin += size
    if spec.groups:
        alive = rng.random((count, len(spec.agents))) < 0.9
        alive[~alive.any(1)] = True
    return Observations(f"{count} rows of random numbers, seed {seed}", unflatten(spec.obs, flat), first, mask, alive)


def flat_inputs(spec: EnvSpec, obs: Tree) -> list[np.ndarray]:
    """The leaves of observations [T, *O] as the environment returns them: discrete ones count from their `start`."""
    return [
        array + np.array(leaf.start, array.dtype).reshape(leaf.shape) if leaf.start else array
        for leaf, array in zip(spec.leaves(), leaves(obs), strict=True)
    ]
