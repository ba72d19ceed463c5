"""Native vector environments: one that steps many streams in one call, in blocks of fixed width.

Such an environment has one generator for all its streams, so actors own whole blocks, and which blocks there are
depends on the run's streams only: the bits of a run do not depend on the number of workers.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from rltrain.envs.errors import EnvError, EnvFault
from rltrain.envs.seeding import seed_of
from rltrain.envs.spaces import action_reader, env_spec, random_action
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.plain_data import attributes, from_plain, same, set_attributes, to_plain
from rltrain.envs.vector.unroll_rows import UnrollBuffer

Native = Any  # gymnasium.vector.VectorEnv; its type parameters say nothing here
MakeBlock = Callable[[int], Native]
NATIVE_WAYS = ("attributes", "none")


def blocks(total: int) -> list[tuple[int, ...]]:
    """The streams of each block of a run: at most 8 blocks, of at least 16 streams where there are that many."""
    parts = np.array_split(np.arange(total), max(1, min(8, total // 16)))
    return [tuple(int(stream) for stream in part) for part in parts if part.size]


class NativeVectorEnv:
    """One or several blocks of native vector environments.

    Args:
        make:   makes one of a given width.
        spec:   of one stream.
        blocks: the streams of each block of this actor.
        seeds:  one per block.
        way:    "attributes" or "none", see `prove_native`.
    """

    def __init__(
        self, make: MakeBlock, spec: EnvSpec, blocks: Sequence[tuple[int, ...]], seeds: Sequence[int], way: str
    ) -> None:
        if way not in NATIVE_WAYS:
            raise ValueError(f"unknown way to bring a native environment back: {way!r}; ways: {', '.join(NATIVE_WAYS)}")
        self.spec = spec
        self.streams = tuple(stream for block in blocks for stream in block)
        self._blocks, self._seeds, self._way = list(blocks), list(seeds), way
        ends = np.cumsum([len(block) for block in blocks])
        self._columns = [slice(int(end) - len(block), int(end)) for block, end in zip(blocks, ends, strict=True)]
        self._over = np.zeros(len(self.streams), bool)  # [B] the episode has ended: the next row resets
        self._begun = [0] * len(self._blocks)  # how often a block began anew because it could not be brought back
        self._obs: list[Any] = [None] * len(self._blocks)  # the newest observations of each block
        self.envs: list[Native] = []
        for i, block in enumerate(self._blocks):
            self.envs.append(self._blame(i, 0, lambda block=block: make(len(block))))  # type: ignore[misc]
        self._space = self.envs[0].single_observation_space
        self._actions = native_actions(self.envs[0].single_action_space, spec)

    def reset(self, rows: UnrollBuffer) -> None:
        self._over[:] = False
        for i, env in enumerate(self.envs):
            self._obs[i], _ = self._blame(i, 0, lambda i=i, env=env: env.reset(seed=self._seeds[i]))  # type: ignore[misc]
            self._put(rows, 0, i)
        rows.first[0] = False
        rows.first[0, : len(self.streams)] = True

    def step(self, action: np.ndarray, rows: UnrollBuffer, t: int) -> None:
        count, over = len(self.streams), self._over
        actions = self._actions(action)
        rows.terminated[t] = False
        rows.truncated[t] = False
        rows.first[t + 1] = False
        rows.first[t + 1, :count] = over
        i = 0
        try:
            for i, env in enumerate(self.envs):
                columns = self._columns[i]
                self._obs[i], reward, terminated, truncated, _ = env.step(actions[columns])
                rows.reward[t, columns] = reward
                rows.terminated[t, columns] = terminated
                rows.truncated[t, columns] = truncated
                self._put(rows, t + 1, i)
        except Exception as error:
            raise EnvFault(self._blocks[i][0], self._seeds[i], t, traceback.format_exc()) from error
        if over.any():  # reset rows: no reward, no end
            rows.reward[t, :count][over] = 0.0
            rows.terminated[t, :count][over] = False
            rows.truncated[t, :count][over] = False
        self._over = rows.terminated[t, :count] | rows.truncated[t, :count]

    def end_unroll(self, action: np.ndarray, rows: UnrollBuffer) -> None:
        """Nothing to remember: the state is in the environments."""

    def state(self) -> list[dict[str, Any]]:
        return [
            {
                "way": self._way,
                "streams": list(block),
                "over": self._over[columns].copy(),
                "begun": self._begun[i],
                "obs": to_plain(self._obs[i]),
                "attributes": attributes(self.envs[i].unwrapped) if self._way == "attributes" else {},
            }
            for i, (block, columns) in enumerate(zip(self._blocks, self._columns, strict=True))
        ]

    def load(self, state: list[dict[str, Any]], rows: UnrollBuffer) -> None:
        rows.first[0] = False
        for i, saved in enumerate(state):
            self._begun[i] = int(saved["begun"])
            exact = saved["way"] == self._way == "attributes" and tuple(saved["streams"]) == self._blocks[i]
            if exact:
                self._blame(i, 0, lambda i=i, saved=saved: self._restore(i, saved))  # type: ignore[misc]
            else:
                self._begun[i] += 1
                seed = seed_of(self._seeds[i], self._begun[i])
                self._obs[i], _ = self._blame(i, 0, lambda i=i, seed=seed: self.envs[i].reset(seed=seed))  # type: ignore[misc]
            self._over[self._columns[i]] = saved["over"] if exact else False
            rows.first[0, self._columns[i]] = not exact
            self._put(rows, 0, i)

    def _restore(self, i: int, saved: dict[str, Any]) -> None:
        self.envs[i].reset(seed=self._seeds[i])
        set_attributes(self.envs[i].unwrapped, saved["attributes"])
        self._obs[i] = from_plain(saved["obs"])

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _put(self, rows: UnrollBuffer, t: int, i: int) -> None:
        write_batch(self._space, rows.obs, (t, self._columns[i]), self._obs[i], top=True)

    def _blame(self, i: int, row: int, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except EnvError:
            raise
        except Exception as error:
            detail = error.detail if isinstance(error, EnvFault) else traceback.format_exc()
            raise EnvFault(self._blocks[i][0], self._seeds[i], row, detail) from error


def write_batch(space: spaces.Space[Any], arrays: Any, at: tuple[int, slice], obs: Any, top: bool = False) -> None:
    """Put a batch of observations of `space` into a row of an unroll, the way `spaces.obs_writer` puts one."""
    if isinstance(space, spaces.Dict):
        for key in sorted(arrays):
            write_batch(space.spaces[key], arrays[key], at, obs[key])
    elif isinstance(space, spaces.Tuple):
        for child, array, part in zip(space.spaces, arrays, obs, strict=True):
            write_batch(child, array, at, part)
    else:
        start = getattr(space, "start", None)
        target = arrays[at]
        values = np.asarray(obs).reshape(target.shape)
        target[...] = values if start is None else values - np.ravel(start) if np.ndim(start) else values - start


def native_actions(space: spaces.Space[Any], spec: EnvSpec) -> Callable[[np.ndarray], np.ndarray]:
    """A function from the policy's actions [B, *A] to the batch that a native environment takes."""
    if isinstance(space, spaces.Discrete):
        start, dtype = int(space.start), np.dtype(space.dtype)
        return lambda action: np.asarray(action + start, dtype)
    return action_reader(space, spec.action)


def probe_autoreset(make: MakeBlock, spec: EnvSpec, steps: int = 2_000) -> None:
    """Check in fact that a native environment resets in the step after an episode's end, and is the serial one's equal.

    Two of them take the same steps until an episode ends, then different ones: only if that row is a reset, which
    ignores the action, do they agree in it. Raises EnvError where that fails or no episode ends within `steps`; time
    does not count, since a run's bits depend on the answer.
    """
    pair = [make(4), make(4)]
    try:
        one = pair[0]
        native = env_spec(spec.id, one.single_observation_space, one.single_action_space, spec.max_steps)
        if spec.action_mask or native != spec:
            text = f"{spec.id}: its native vector environment differs from the serial one. Use --vector serial."
            raise EnvError(text)
        claimed = one.metadata.get("autoreset_mode")
        if claimed is not None and getattr(claimed, "name", claimed) not in ("NEXT_STEP", "NextStep"):
            raise _refused(spec, f"says its autoreset mode is {claimed}")
        rng, reader = np.random.default_rng(0), native_actions(one.single_action_space, spec)
        for env in pair:
            env.reset(seed=0)
        for _ in range(steps):
            action = reader(np.stack([random_action(rng, spec.action, None) for _ in range(4)]))
            (_, _, terminated, truncated, info), _ = (env.step(action) for env in pair)
            over = np.asarray(terminated) | np.asarray(truncated)
            if not over.any():
                continue
            if "final_obs" in info or "final_observation" in info:
                raise _refused(spec, "resets in the same step in which an episode ends")
            apart = [reader(np.stack([extreme(spec, high)] * 4)) for high in (0, 1)]
            rows = [env.step(action) for env, action in zip(pair, apart, strict=True)]
            for obs, reward, terminated, truncated, _ in rows:
                if np.any(reward[over]) or np.any(terminated[over]) or np.any(truncated[over]):
                    raise _refused(spec, "does not reset in the step after an episode's end")
                if not same(_at(obs, over), _at(rows[0][0], over)):
                    raise _refused(spec, "obeys the action in the step after an episode's end")
            return
        raise _refused(spec, f"ended no episode in {steps} random steps, so its autoreset mode is unknown")
    finally:
        for env in pair:
            env.close()


def extreme(spec: EnvSpec, high: int) -> np.ndarray:
    """The lowest or the highest action [*A]."""
    action = spec.action
    if action.kind == "box":
        return np.full(action.shape, 1.0 if high else -1.0, np.float32)
    return (np.array(action.nvec, np.int64) * high - high).reshape(action.shape)


def _at(obs: Any, which: np.ndarray) -> Any:
    if isinstance(obs, dict):
        return {key: _at(child, which) for key, child in obs.items()}
    if isinstance(obs, tuple):
        return tuple(_at(child, which) for child in obs)
    return np.asarray(obs)[which]


def _refused(spec: EnvSpec, why: str) -> EnvError:
    what = f"{spec.id}: its native vector environment {why}"
    return EnvError(f"{what}; next-step autoreset is needed. Use --vector serial.")


def prove_native(make: MakeBlock, spec: EnvSpec, seed: int, seconds: float = 2.0) -> str:
    """ "attributes" if a fresh native environment goes on exactly from another one's data attributes, else "none".

    Up to 100 random steps, the state loaded into a fresh one, then up to 100 side by side: all must be identical.
    A slow environment gets fewer; where no step fits, nothing is proven.
    """
    deadline = time.monotonic() + seconds
    rng = np.random.default_rng(seed)
    made: list[Native] = []
    try:
        made.append(make(4))
        reader = native_actions(made[0].single_action_space, spec)
        made[0].reset(seed=seed)
        for t in range(100):
            if t > 0 and time.monotonic() > deadline - seconds / 2:
                break
            made[0].step(reader(np.stack([random_action(rng, spec.action, None) for _ in range(4)])))
        saved = attributes(made[0].unwrapped)
        made.append(make(4))
        made[1].reset(seed=seed + 1)
        set_attributes(made[1].unwrapped, saved)
        for t in range(100):
            if time.monotonic() > deadline:
                return "attributes" if t > 1 else "none"
            action = reader(np.stack([random_action(rng, spec.action, None) for _ in range(4)]))
            one, other = (env.step(action)[:4] for env in made)
            if not same(one, other):
                return "none"
        return "attributes"
    except Exception:  # whatever it raises: it cannot be brought back
        return "none"
    finally:
        for env in made:
            env.close()
