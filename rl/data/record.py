"""Records complete episodes of a trained policy, of a function, or of uniformly random actions.

Episode i has its own seed, for the environment and for the choice of actions, so it does not depend on the others.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from itertools import count as counting
from typing import Any

import numpy as np
import torch

from rltrain.data.episodes import Recorded, parts
from rltrain.data.formats import of_space, policy_actions
from rltrain.envs.errors import EnvFault, user_traceback
from rltrain.envs.lookup import EnvSource
from rltrain.envs.make import serial
from rltrain.envs.seeding import NOISE, RECORDED, seed_of
from rltrain.envs.spaces import random_action
from rltrain.envs.spec import ActionSpec, EnvSpec
from rltrain.envs.vector.unroll_rows import UnrollBuffer
from rltrain.errors import RunFailed
from rltrain.rollout.actor.isolated_env import IsolatedEnv, acting
from rltrain.rollout.actor.noise import StreamNoise
from rltrain.rollout.buffers import empty_rows, padded, to_next_step
from rltrain.rollout.inference.client import lacks_log_prob
from rltrain.rollout.tree import Tree, leaves, tree_map, unflatten
from rltrain.rollout.types import LONGEST, Policy, Trajectory, hooks_of

AT_ONCE = 16  # episodes; their rows are in memory
FRAME_BYTES = 10_000  # of an observation from which one episode is played at a time

Extras = dict[str, np.ndarray]


class NetworkPlayer:
    """Acts with a trained policy, and records what the learner would get: log-probabilities, values.

    Args:
        values: [B] values of observations, from the policy's learner; they replace those of the policy.
    """

    def __init__(
        self,
        policy: Policy,
        explore: bool,
        values: Callable[[Tree, torch.Tensor | None], torch.Tensor] | None = None,
    ) -> None:
        self._policy, self._explore, self._hooks = policy, explore, hooks_of(policy)
        self._values = values if explore else None

    def begin(self, spec: EnvSpec, seeds: list[int], env: Any) -> None:
        """Episodes with these seeds begin."""
        policy, self._count = self._policy, len(seeds)
        lacks = self._explore and lacks_log_prob(policy, spec)
        self._density = self._hooks.action_distribution if lacks else None
        self._value = self._hooks.state_value if lacks else None
        self._noises = [StreamNoise(seed, [0], *policy.noise) for seed in seeds]
        self._noise = np.zeros((1, padded(len(seeds)), policy.noise.columns), np.float32)
        self._core = torch.zeros(padded(len(seeds)), policy.core_size) if policy.core_size else None
        self._extras: list[dict[str, torch.Tensor]] = []
        self._added: list[dict[str, torch.Tensor]] = []  # to those of `act`
        self._actions: list[torch.Tensor] = []
        self._masks: list[torch.Tensor] = []

    def act(self, step: int, rows: UnrollBuffer, over: np.ndarray) -> np.ndarray:
        """The actions [B, *A] of one step."""
        if self._explore:
            for column, noise in enumerate(self._noises):
                noise.fill(self._noise[:, column : column + 1], np.array([step]), [0])
        if self._core is not None and rows.first[0].any():  # also after a lost life, as in training
            self._core = self._core * torch.from_numpy(~rows.first[0])[:, None]
        obs = tree_map(lambda array: torch.from_numpy(array[0]), rows.obs)
        mask = None if rows.action_mask is None else torch.from_numpy(rows.action_mask[0].copy())
        noise_row = torch.from_numpy(self._noise[0])
        with acting():
            act = self._policy.act(obs, self._core, mask, noise_row, self._explore)
            extras, added = dict(act.extras) if self._explore else {}, {}
            if self._density is not None and (dist := self._density(obs, self._core, mask, noise_row)) is not None:
                added["log_prob"] = dist.log_prob(act.action)
                if self._value is not None and "value" not in extras:
                    added["value"] = self._value(obs, self._core, mask, noise_row)
            if self._values is not None:
                added["value"] = self._values(obs, mask)
        self._core = act.core
        self._extras.append({name: value.clone() for name, value in extras.items()})
        self._added.append({name: value.clone() for name, value in added.items()})
        self._actions.append(act.action.clone())
        self._masks += [] if mask is None else [mask]
        return act.action.numpy()[: self._count]

    def extras(self) -> Extras:
        """[T, B, ...] of all steps since `begin`."""
        stacked, added = (
            {name: torch.stack([row[name] for row in rows]) for name in rows[0]} for rows in (self._extras, self._added)
        )
        mask = torch.stack(self._masks) if self._masks else None
        if self._explore:
            stacked = self._hooks.summarize_unroll(stacked, torch.stack(self._actions), mask) if stacked else {}
            stacked |= added
        return {name: value[:, : self._count].numpy() for name, value in stacked.items()}


class RandomPlayer:
    """Acts uniformly at random among the legal actions, and records their log-probabilities."""

    def begin(self, spec: EnvSpec, seeds: list[int], env: Any) -> None:
        self._spec, self._rngs = spec.action, [np.random.default_rng(seed_of(seed, NOISE)) for seed in seeds]
        self._log_probs: list[list[float]] = []

    def act(self, step: int, rows: UnrollBuffer, over: np.ndarray) -> np.ndarray:
        masks = [None] * len(self._rngs) if rows.action_mask is None else rows.action_mask[0]
        pairs = list(zip(self._rngs, masks, strict=False))
        self._log_probs.append([_log_uniform(self._spec, mask) for _, mask in pairs])
        return np.stack([random_action(rng, self._spec, mask) for rng, mask in pairs])

    def extras(self) -> Extras:
        return {"log_prob": np.array(self._log_probs, np.float32)}


class FunctionPlayer:
    """Acts with a function: `act(obs)` returns an action of the environment.

    It may also have parameters named `env`, `action_mask` and `rng`: the environment, the legal actions, and a NumPy
    generator with the seed of the episode. Observations are as the environment returns them.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name, self._function = name, function
        known = inspect.signature(function).parameters
        self._wants = [name for name in ("env", "action_mask", "rng") if name in known]

    def begin(self, spec: EnvSpec, seeds: list[int], env: Any) -> None:
        self._spec, self._seeds, self._env = spec, seeds, env
        self._rngs = [np.random.default_rng(seed_of(seed, NOISE)) for seed in seeds]

    def act(self, step: int, rows: UnrollBuffer, over: np.ndarray) -> np.ndarray:
        spec, actions = self._spec, np.zeros((len(self._seeds), *self._spec.action.shape), self._spec.action.dtype)
        resets = rows.episode_end(0)  # the last step ended an episode, perhaps by a lost life: no action is taken
        for column, seed in enumerate(self._seeds):
            if over[column] or resets[column]:
                continue
            own = unflatten(spec.obs, of_space([leaf[0, column].copy() for leaf in leaves(rows.obs)], spec))
            mask = None if rows.action_mask is None else rows.action_mask[0, column].copy()
            given = {"env": self._env.envs[column], "action_mask": mask, "rng": self._rngs[column]}
            try:
                action = self._function(own, **{name: given[name] for name in self._wants})
            except Exception as error:
                where = f"{self._name} raised an exception in an episode with seed {seed}, at step {step}"
                raise RunFailed(f"{where}:\n{user_traceback(error).rstrip()}") from None
            actions[column] = self._checked(action, step)
        return actions

    def extras(self) -> Extras:
        return {}

    def _checked(self, action: Any, step: int) -> np.ndarray:
        """The action in the units of a policy; RunFailed if it is none of the environment's."""
        spec = self._spec.action
        try:
            array = np.asarray(action)
            if array.dtype.kind not in ("iufb" if spec.kind == "box" else "iub"):
                raise ValueError("not numbers of the right type")
            own: np.ndarray = policy_actions(array.reshape(1, *spec.shape), spec)[0]
        except (ValueError, TypeError):
            own = np.array(np.nan)
        sizes = np.array(spec.nvec).reshape(spec.shape) if spec.nvec else None
        if not np.isfinite(own).all() or (sizes is not None and bool(((own < 0) | (own >= sizes)).any())):
            shown = " ".join(repr(action).split())[:100]
            text = f"{self._name} returned {shown} at step {step}, which is no action of {self._spec.id}"
            raise RunFailed(f"{text}: {spec.kind} {spec.nvec or spec.shape}")
        return own if sizes is not None or spec.unbounded else own.clip(-1.0, 1.0)


Player = NetworkPlayer | RandomPlayer | FunctionPlayer


def _log_uniform(spec: ActionSpec, mask: np.ndarray | None) -> float:
    """The logarithm of the probability, or of the density in [-1, 1], of one uniformly random legal action."""
    if spec.kind == "box":
        return -spec.size * math.log(2.0)
    if mask is None:
        return -sum(math.log(size) for size in spec.nvec)
    return -sum(math.log(head.sum()) for head in np.split(mask, np.cumsum(spec.nvec)[:-1]))


def episodes(source: EnvSource, spec: EnvSpec, player: Player, seed: int) -> Iterator[list[Recorded]]:
    """Complete episodes without end, in order; a list has those of one seed, of which a lost life may make several.

    An episode of an environment without a time limit is cut off after LONGEST steps.
    """
    large = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in spec.leaves()) > FRAME_BYTES
    at_once = 1 if large else AT_ONCE
    for begin in counting(0, at_once):
        yield from _play(source, spec, player, seed, range(begin, begin + at_once))


def _play(source: EnvSource, spec: EnvSpec, player: Player, seed: int, numbers: range) -> list[list[Recorded]]:
    count, seeds = len(numbers), [seed_of(seed, RECORDED, number) for number in numbers]
    env: Any = IsolatedEnv(lambda: serial(source.make, spec, range(count), seeds, "none"))
    rows = empty_rows(spec, 1, count)
    obs: list[list[np.ndarray]] = []
    kept: dict[str, list[np.ndarray]] = {name: [] for name in ("action", "reward", "terminated", "truncated")}
    firsts, masks = list[np.ndarray](), list[np.ndarray]()
    length, over, step = np.zeros(count, np.int64), np.zeros(count, bool), 0

    def note(row: int) -> None:
        """Copies of what is known before a decision."""
        obs.append([leaf[row, :count].copy() for leaf in leaves(rows.obs)])
        firsts.append(rows.first[row, :count].copy())
        if rows.action_mask is not None:
            masks.append(rows.action_mask[row, :count].copy())

    try:
        env.reset(rows)
        note(0)
        with torch.no_grad():
            player.begin(spec, seeds, env)
            while not over.all() and (spec.max_steps is not None or step < LONGEST):
                action = player.act(step, rows, over)
                try:
                    env.step(action, rows, 0)
                    env.check(rows, 1)
                except EnvFault as fault:
                    number = numbers[fault.stream] if fault.stream >= 0 else fault.stream
                    raise EnvFault(number, fault.seed, step, fault.detail) from None
                kept["action"].append(np.array(action, spec.action.dtype))
                for name in ("reward", "terminated", "truncated"):
                    kept[name].append(getattr(rows, name)[0, :count].copy())
                note(1)
                length[~over] = step + 1
                ended = rows.episode_end(0)[:count] & ~rows.episode_continues[0, :count]
                if (ended & ~over).any():
                    over |= ended
                    env.rest(over)
                to_next_step(rows)
                step += 1
            extras = player.extras()
    finally:
        env.close()
    stacked: dict[str, Any] = {name: np.stack(arrays) for name, arrays in kept.items()}
    leaf_rows = [np.stack([row[i] for row in obs]) for i in range(len(obs[0]))]
    none = np.zeros(1, np.int64)
    return [
        list(
            parts(
                Trajectory(
                    obs=unflatten(spec.obs, [leaf[: n + 1, [b]] for leaf in leaf_rows]),
                    **{name: array[:n, [b]] for name, array in stacked.items()},
                    first=np.stack(firsts)[: n + 1, [b]],
                    version=none,
                    stream=none,
                    row=none,
                    extras={name: array[:n, [b]] for name, array in extras.items()},
                    action_mask=np.stack(masks)[: n + 1, [b]] if masks else None,
                ),
                spec,
            )
        )
        for b, n in enumerate(length.tolist())
    ]


def limited(played: Iterator[list[Recorded]], most: int | None, steps: int | None) -> Iterator[Recorded]:
    """The first `most` episodes; or as many as have `steps` steps together, of which the last one is complete too."""
    done = 0
    for number in counting():
        if (most is not None and number >= most) or (steps is not None and done >= steps):
            return
        for episode in next(played):
            done += episode.steps
            yield episode
