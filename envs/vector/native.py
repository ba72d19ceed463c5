"""Native vector environments, which step many streams in one call, in blocks of fixed width.

A block has one random generator for all its streams. Therefore actors own whole blocks, and the blocks depend only on
the number of streams of the run: its results do not depend on the number of workers, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from rltrain.envs.closing import close_all
from rltrain.envs.errors import EnvError, EnvFault, InvalidValue, Watch, fault_of, unwatched
from rltrain.envs.seeding import seed_of
from rltrain.envs.spaces import MASK, action_reader, env_spec, random_action
from rltrain.envs.spec import EnvSpec, Leaf, ObsSpec
from rltrain.envs.values import (
    FIX,
    array_of,
    described,
    in_range,
    is_image,
    out_of_range,
    promised,
    reset_result,
    step_result,
)
from rltrain.envs.vector.episode_info import EpisodeOptions, numbers_in
from rltrain.envs.vector.plain_data import attributes, from_plain, same, set_attributes, to_plain
from rltrain.envs.vector.row_checks import InvalidRow, RowChecks
from rltrain.envs.vector.unroll_rows import UnrollBuffer

Native = Any  # gymnasium.vector.VectorEnv, or EnvPool's
MakeBlock = Callable[[int], Native]
NATIVE_METHODS = ("attributes", "none")
SERIAL = "use --vector serial"


def blocks(total: int) -> list[tuple[int, ...]]:
    """The streams of each block of a run: at most 8 blocks, of at least 16 streams if the run has that many."""
    parts = np.array_split(np.arange(total), max(1, min(8, total // 16)))
    return [tuple(int(stream) for stream in part) for part in parts if part.size]


class NativeVectorEnv:
    """One or several blocks of native vector environments.

    Args:
        make:           makes a block of a given width.
        spec:           of one stream.
        blocks:         the streams of each block of this actor.
        seeds:          one per block.
        restore_method: "attributes" or "none", see `verify_native`.
        options:        what the run asks of all streams.
    """

    def __init__(
        self,
        make: MakeBlock,
        spec: EnvSpec,
        blocks: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
        restore_method: str,
        options: EpisodeOptions = EpisodeOptions(),  # noqa: B008, a tuple
    ) -> None:
        if restore_method not in NATIVE_METHODS:
            methods = ", ".join(NATIVE_METHODS)
            raise ValueError(f"unknown method to restore a native environment: {restore_method!r}; methods: {methods}")
        self.spec, self._options = spec, options
        self.finals: dict[tuple[int, int], dict[str, float]] = {}
        self.made: np.ndarray | None = None
        self.streams = tuple(stream for block in blocks for stream in block)
        self._blocks, self._seeds, self._method = list(blocks), list(seeds), restore_method
        ends = np.cumsum([len(block) for block in blocks])
        self._columns = [slice(int(end) - len(block), int(end)) for block, end in zip(blocks, ends, strict=True)]
        self._over = np.zeros(len(self.streams), bool)  # [B] the episode has ended: the next row is a reset
        self._restarts = [0] * len(self._blocks)  # how often each block could not be restored
        self._obs: list[Any] = [None] * len(self._blocks)  # the newest observations of each block
        self.envs: list[Native] = []
        for i, block in enumerate(self._blocks):
            self.envs.append(self._call(i, lambda block=block: make(len(block))))  # type: ignore[misc]
        self._space = self.envs[0].single_observation_space
        self._actions = native_actions(self.envs[0].single_action_space, spec)
        self._checks = RowChecks(spec, self._space)

    def reset(self, rows: UnrollBuffer) -> None:
        self._over[:] = False
        for i, seed in enumerate(self._seeds):
            self._call(i, lambda i=i, seed=seed: self._begin(i, seed, rows))  # type: ignore[misc]
        rows.first[0] = False
        rows.first[0, : len(self.streams)] = True

    def step(self, action: np.ndarray, rows: UnrollBuffer, t: int) -> None:
        count, over = len(self.streams), self._over
        actions = self._actions(action)
        rows.terminated[t] = False
        rows.truncated[t] = False
        rows.first[t + 1] = False
        rows.first[t + 1, :count] = over
        if t == 0:
            self.finals.clear()
        i = 0
        try:
            for i, env in enumerate(self.envs):
                columns = self._columns[i]
                width = len(self._blocks[i])
                self._obs[i], reward, terminated, truncated, info = native_step(env, actions[columns], self.spec)
                rows.reward[t, columns] = native_rewards(reward, width)
                rows.terminated[t, columns] = native_flags(terminated, width, "terminations")
                rows.truncated[t, columns] = native_flags(truncated, width, "truncations")
                if info:
                    ended = (rows.terminated[t, columns] | rows.truncated[t, columns]) & ~over[columns]
                    for column in np.flatnonzero(ended).tolist():
                        own = {key: _of_column(info, key, column, width) for key in info if not key.startswith("_")}
                        self.finals[t, columns.start + column] = numbers_in(own, self._options.info_keys)
                self._put(rows, t + 1, i)
        except BaseException as error:
            raise fault_of(error, self._blocks[i][0], self._seeds[i], t) from error
        if over.any():  # reset rows: no reward, no end
            rows.reward[t, :count][over] = 0.0
            rows.terminated[t, :count][over] = False
            rows.truncated[t, :count][over] = False
        self._over = rows.terminated[t, :count] | rows.truncated[t, :count]

    def check(self, rows: UnrollBuffer, unroll: int) -> dict[int, int]:
        try:
            return self._checks(rows, unroll, len(self.streams))
        except InvalidRow as wrong:
            seed = next(seed for seed, at in zip(self._seeds, self._columns, strict=True) if wrong.b < at.stop)
            raise EnvFault(self.streams[wrong.b], seed, wrong.t, wrong.text) from None

    def end_unroll(self, action: np.ndarray, rows: UnrollBuffer) -> None:
        """Nothing to record: the state is in the environments."""

    def state(self) -> list[dict[str, Any]]:
        return [
            {
                "way": self._method,
                "streams": list(block),
                "over": self._over[columns].copy(),
                "begun": self._restarts[i],
                "obs": to_plain(self._obs[i]),
                "attributes": attributes(self.envs[i].unwrapped) if self._method == "attributes" else {},
            }
            for i, (block, columns) in enumerate(zip(self._blocks, self._columns, strict=True))
        ]

    def load(self, state: list[dict[str, Any]], rows: UnrollBuffer) -> None:
        rows.first[0] = False
        for i, saved in enumerate(state):
            self._restarts[i] = int(saved["begun"])
            exact = saved["way"] == self._method == "attributes" and tuple(saved["streams"]) == self._blocks[i]
            if exact:
                self._call(i, lambda i=i, saved=saved: self._restore(i, saved, rows))  # type: ignore[misc]
            else:
                self._restarts[i] += 1
                seed = seed_of(self._seeds[i], self._restarts[i])
                self._call(i, lambda i=i, seed=seed: self._begin(i, seed, rows))  # type: ignore[misc]
            self._over[self._columns[i]] = saved["over"] if exact else False
            rows.first[0, self._columns[i]] = not exact

    def _begin(self, i: int, seed: int, rows: UnrollBuffer) -> None:
        self._obs[i] = native_reset(self.envs[i], seed, self.spec)
        self._put(rows, 0, i)

    def _restore(self, i: int, saved: dict[str, Any], rows: UnrollBuffer) -> None:
        self.envs[i].reset(seed=self._seeds[i])
        set_attributes(self.envs[i].unwrapped, saved["attributes"])
        self._obs[i] = from_plain(saved["obs"])
        self._put(rows, 0, i)

    def close(self) -> None:
        close_all(self.envs)

    def _put(self, rows: UnrollBuffer, t: int, i: int) -> None:
        write_batch(self._space, rows.obs, (t, self._columns[i]), self._obs[i])

    def _call(self, i: int, function: Callable[[], Any]) -> Any:
        """Call code of block i; its exceptions, except EnvError, become EnvFaults."""
        try:
            return function()
        except EnvError:
            raise
        except BaseException as error:
            raise fault_of(error, self._blocks[i][0], self._seeds[i], 0) from error


def _of_column(info: dict[str, Any], key: str, column: int, width: int) -> Any:
    """The value of one stream in the info of a block: `_key` says which streams have one."""
    value, there = info[key], info.get(f"_{key}")
    if isinstance(value, dict):
        return {name: _of_column(value, name, column, width) for name in value if not name.startswith("_")}
    if there is not None and not np.asarray(there).reshape(-1)[column]:
        return None
    return value[column] if isinstance(value, np.ndarray | list | tuple) and len(value) == width else None


def write_batch(
    space: spaces.Space[Any], arrays: Any, at: tuple[int, slice], obs: Any, name: str = "the observations"
) -> None:
    """Write a batch of observations of `space` into an unroll at (row, columns), like `spaces.obs_writer`.

    Raises:
        InvalidValue: the batch has another structure, shape or kind than `space`.
    """
    if isinstance(space, spaces.Dict):
        for key in sorted(arrays):
            if not isinstance(obs, dict) or key not in obs or len(obs) != len(space.spaces):
                raise InvalidValue(
                    f"{name} are {described(obs)}; their space promises the keys {sorted(space.spaces)}. {FIX}"
                )
            write_batch(space.spaces[key], arrays[key], at, obs[key], f"{name}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple) or len(obs) != len(space.spaces):
            raise InvalidValue(
                f"{name} are {described(obs)}; their space promises a tuple of {len(space.spaces)}. {FIX}"
            )
        for i, (child, array, part) in enumerate(zip(space.spaces, arrays, obs, strict=True)):
            write_batch(child, array, at, part, f"{name}[{i}]")
    else:
        start, target, values = getattr(space, "start", None), arrays[at], array_of(obs)
        floats = isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f"
        if values.shape != (len(target), *(space.shape or ())) or values.dtype.kind not in (
            "biuf" if floats else "biu"
        ):
            raise InvalidValue(
                f"{name} are {described(obs)}; for each of {len(target)} streams {promised(space)}. {FIX}"
            )
        if is_image(space) and values.dtype != np.uint8:
            within = in_range(values, space).reshape(len(values), -1).all(-1)
            if not within.all():
                raise InvalidValue(out_of_range(name, values[int(np.argmin(within))], space))
        values = values.reshape(target.shape)
        target[...] = values if start is None else values - np.ravel(start) if np.ndim(start) else values - start


def native_reset(env: Native, seed: int, spec: EnvSpec) -> Any:
    """The first observations of a block; InvalidValue if `reset` returns something else."""
    obs, info = reset_result(env.reset(seed=seed))
    _without_mask(info, spec)
    return obs


def native_step(env: Native, actions: np.ndarray, spec: EnvSpec) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
    """The five results of a step of a block; InvalidValue if it returns something else."""
    result = step_result(env.step(actions))
    _without_mask(result[4], spec)
    return result


def _without_mask(info: dict[str, Any], spec: EnvSpec) -> None:
    if MASK in info and spec.action.kind != "box":
        raise InvalidValue(f"info has {MASK!r}, which a native vector environment cannot have: {SERIAL}")


def native_rewards(values: Any, width: int) -> np.ndarray:
    """The rewards [width] of a block; InvalidValue if they are something else."""
    array = array_of(values)
    if array.shape != (width,) or array.dtype.kind not in "biuf":
        raise InvalidValue(f"the rewards are {described(values)}; they must be numbers of shape ({width},)")
    return array


def native_flags(values: Any, width: int, name: str) -> np.ndarray:
    """Flags [width] of a block, True and False or 1 and 0; InvalidValue if they are something else."""
    array = array_of(values)
    if (
        array.shape != (width,)
        or array.dtype.kind not in "biu"
        or (array.dtype != bool and not np.isin(array, (0, 1)).all())
    ):
        raise InvalidValue(f"the {name} are {described(values)}; they must be booleans of shape ({width},)")
    return array


def native_actions(space: spaces.Space[Any], spec: EnvSpec) -> Callable[[np.ndarray], np.ndarray]:
    """A function from the policy's actions [B, *A] to the batch of actions for a native environment."""
    if isinstance(space, spaces.Discrete):
        start, dtype = int(space.start), np.dtype(space.dtype)
        return lambda action: (action + start).astype(dtype, copy=False)
    reader = action_reader(spec.action, space.dtype)
    return lambda action: np.asarray(reader(action))


def check_autoreset(
    make: MakeBlock, spec: EnvSpec, steps: int = 2_000, action_bound: float | None = None, watch: Watch = unwatched
) -> None:
    """Check that a native environment has the spec of the serial one, and resets in the step after an episode's end.

    Two copies take the same steps until an episode ends, and then different actions: they agree in this row only if it
    is a reset, which ignores the action. There is no time limit, because the results of a run depend on this check.

    Raises:
        EnvError: the check failed, or no episode ended within `steps`.
    """
    watch("constructor")
    pair = [make(4), make(4)]
    try:
        first = pair[0]
        for name in ("single_observation_space", "single_action_space"):
            if not isinstance(getattr(first, name, None), spaces.Space):
                raise _refused(spec, f"has no {name}, a space of gymnasium.spaces")
        native = env_spec(
            spec.id,
            first.single_observation_space,
            first.single_action_space,
            spec.max_steps,
            action_bound=action_bound,
        )
        if spec.action_mask or native != spec:
            text = f"{spec.id}: its native vector environment differs from the serial one. Use --vector serial."
            raise EnvError(text)
        claimed = (getattr(first, "metadata", None) or {}).get("autoreset_mode")
        if claimed is not None and getattr(claimed, "name", claimed) not in ("NEXT_STEP", "NextStep"):
            raise _refused(spec, f"says its autoreset mode is {claimed}")
        rng, reader = np.random.default_rng(0), native_actions(first.single_action_space, spec)
        space, room = first.single_observation_space, _zeros(spec.obs, 4)

        def step(env: Native, action: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, dict[str, Any]]:
            obs, reward, terminated, truncated, info = native_step(env, action, spec)
            write_batch(space, room, (0, slice(4)), obs)
            ended = native_flags(terminated, 4, "terminations") | native_flags(truncated, 4, "truncations")
            return obs, native_rewards(reward, 4), ended != 0, info

        watch("reset")
        for env in pair:
            write_batch(space, room, (0, slice(4)), native_reset(env, 0, spec))
        for _ in range(steps):
            watch("step")
            action = reader(np.stack([random_action(rng, spec.action, None) for _ in range(4)]))
            (_, _, over, info), _ = (step(env, action) for env in pair)
            if not over.any():
                continue
            if "final_obs" in info or "final_observation" in info:
                raise _refused(spec, "resets in the same step in which an episode ends")
            different = [reader(np.stack([extreme_action(spec, high)] * 4)) for high in (0, 1)]
            rows = [step(env, action) for env, action in zip(pair, different, strict=True)]
            for obs, reward, ended, _ in rows:
                if np.any(reward[over]) or np.any(ended[over]):
                    raise _refused(spec, "does not reset in the step after an episode's end")
                if not same(_select(obs, over), _select(rows[0][0], over)):
                    raise _refused(spec, "uses the action in the step after an episode's end")
            return
        raise _refused(spec, f"ended no episode in {steps} random steps, so its autoreset mode is unknown")
    except InvalidValue as error:
        advice = "" if SERIAL in str(error) else f". Or {SERIAL}"
        raise EnvError(f"{spec.id}: of its native vector environment, {error}{advice}") from None
    finally:
        watch("close")
        close_all(pair)


def _zeros(obs: ObsSpec, width: int) -> Any:
    """Arrays [1, width, *O] for a batch of observations."""
    if isinstance(obs, Leaf):
        return np.zeros((1, width, *obs.shape), obs.dtype)
    if isinstance(obs, dict):
        return {key: _zeros(child, width) for key, child in obs.items()}
    return tuple(_zeros(child, width) for child in obs)


def extreme_action(spec: EnvSpec, high: int) -> np.ndarray:
    """The lowest (`high` 0) or the highest (`high` 1) action [*A]."""
    action = spec.action
    if action.kind == "box":
        return np.full(action.shape, 1.0 if high else -1.0, np.float32)
    return (np.array(action.nvec, np.int64) * high - high).reshape(action.shape)


def _select(obs: Any, which: np.ndarray) -> Any:
    if isinstance(obs, dict):
        return {key: _select(child, which) for key, child in obs.items()}
    if isinstance(obs, tuple):
        return tuple(_select(child, which) for child in obs)
    return np.asarray(obs)[which]


def _refused(spec: EnvSpec, why: str) -> EnvError:
    what = f"{spec.id}: its native vector environment {why}"
    return EnvError(f"{what}; next-step autoreset is needed. Use --vector serial.")


def verify_native(make: MakeBlock, spec: EnvSpec, seed: int, seconds: float = 2.0, watch: Watch = unwatched) -> str:
    """ "attributes" if a native environment can be restored from its attributes that are data, else "none".

    Up to 100 random steps; a fresh environment gets the attributes; then both take up to 100 equal steps, whose results
    must be identical. A slow environment takes fewer steps; if not even two fit, the result is "none".
    """
    deadline = time.monotonic() + seconds
    rng = np.random.default_rng(seed)
    made: list[Native] = []
    try:
        watch("constructor")
        made.append(make(4))
        reader = native_actions(made[0].single_action_space, spec)
        watch("reset")
        made[0].reset(seed=seed)
        for t in range(100):
            watch("step")
            if t > 0 and time.monotonic() > deadline - seconds / 2:
                break
            made[0].step(reader(np.stack([random_action(rng, spec.action, None) for _ in range(4)])))
        saved = attributes(made[0].unwrapped)
        watch("constructor")
        made.append(make(4))
        watch("reset")
        made[1].reset(seed=seed + 1)
        set_attributes(made[1].unwrapped, saved)
        for t in range(100):
            watch("step")
            if time.monotonic() > deadline:
                return "attributes" if t > 1 else "none"
            action = reader(np.stack([random_action(rng, spec.action, None) for _ in range(4)]))
            first, second = (env.step(action)[:4] for env in made)
            if not same(first, second):
                return "none"
        return "attributes"
    except Exception:  # it may raise anything: it cannot be restored
        return "none"
    finally:
        watch("close")
        close_all(made)
