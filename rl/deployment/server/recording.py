"""`rlserve --record`: the questions and answers of clients as episodes, in a recording that `--replay-from` reads.

An episode is written when it ends, or in parts if it is long. All are rows of one stream, one after the other; each
begins with `first`, and a part that does not follow the rows before it leaves out a number of `row`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.deployment.server.errors import wrong
from rltrain.deployment.server.requests import Outcome, Row
from rltrain.envs.spec import COSMETIC, EnvSpec, Leaf, spec_differences
from rltrain.errors import ConfigError, RunFailed
from rltrain.reporting.console import say
from rltrain.rollout.tree import leaves, unflatten
from rltrain.rollout.types import Episode, Trajectory

PART_BYTES = 8 * 2**20  # of an episode; a longer one is written in parts
ALL_BYTES = 256 * 2**20  # of all episodes that have not ended; more are written in parts
UNWRITTEN_BYTES = 256 * 2**20  # of episodes that the disk does not take; more are lost
ROW_BYTES = 500  # estimated memory of a row in addition to its arrays
FLUSH_SECONDS = 60.0  # between two files


class _Open:
    """An episode, or a part of one, that is not delivered yet. The last action waits for its result."""

    def __init__(self, begins: bool, version: int, number: int) -> None:
        self.begins, self.version, self.number, self.whole = begins, version, number, begins
        self.row = 0  # of its first row that is not delivered
        self.obs: list[list[np.ndarray]] = []
        self.masks: list[np.ndarray | None] = []
        self.alive: list[np.ndarray | None] = []
        self.acting: list[np.ndarray | None] = []
        self.states: list[np.ndarray | None] = []
        self.ended: np.ndarray | None = None  # [N] bool, games in turns: the agents that are not in the game any more
        self.actions: list[np.ndarray] = []
        self.log_probs: list[np.ndarray] = []
        self.results: list[Outcome] = []
        self.ret, self.length, self.bytes = 0.0, 0, 0
        self.agents: np.ndarray | float = 0.0  # the return of each agent
        self.used = 0.0

    def see(self, row: Row, outcome: Outcome | None) -> None:
        self.obs.append(row.obs)
        self.masks.append(row.mask)
        alive = row.present
        if self.ended is not None:
            if outcome is not None:
                self.ended = self.ended | outcome.terminated | outcome.truncated
            alive = ~self.ended
        self.alive.append(alive)
        self.acting.append(row.acting)
        self.states.append(row.state)
        self.bytes += _bytes(row.obs, row.state)


def _bytes(obs: list[np.ndarray], state: np.ndarray | None) -> int:
    """The memory of a row."""
    return ROW_BYTES + sum(array.nbytes for array in obs) + (0 if state is None else state.nbytes)


class Episodes:
    """The episodes of the clients of this process.

    Args:
        spec:    of the environment.
        most:    episodes that may be open; with one more, the episode that was not used for longest is closed.
        seconds: without a question after which an episode is cut.

    Attributes:
        steps:   delivered so far.
    """

    def __init__(self, spec: EnvSpec, most: int, seconds: float) -> None:
        self.spec, self._most, self._seconds = spec, most, seconds
        self._open: OrderedDict[str, _Open] = OrderedDict()  # the one that was used longest ago comes first
        self._finished: list[Trajectory] = []
        self._bytes = self._count = self.steps = 0
        self._to_policy = policy_units(spec)
        self._starts = [_start(leaf) for leaf in spec.leaves()]

    def __len__(self) -> int:
        return len(self._open)

    def require(self, name: str, first: bool, row: Row, outcome: Outcome | None) -> None:
        """Check that a question holds what the recording needs, and that it does not contradict those before.

        In games in turns these are the observations of all agents that are in the game, as a run records them.

        Raises:
            Refused: 400, with the field. What was recorded stays, and the episode can go on.
        """
        spec = self.spec
        if spec.state_shape is not None and row.state is None:
            raise wrong("state", f"the global state of shape {list(spec.state_shape)}, for the recording", "nothing")
        if row.seen is None:
            return
        episode, told = self._open.get(name), np.zeros(len(spec.agents), bool)
        terminated, truncated = (told, told) if outcome is None else (outcome.terminated, outcome.truncated)
        if spec.turns:
            ended = self._ended(name, first, row)
            assert ended is not None
            remaining = ~(ended | terminated | truncated)
            needed = remaining | (truncated & ~ended)
            if row.acting is None:
                raise wrong("turn", "the agent that acts now, for the recording", "nothing")
            if (row.acting & ended).any():
                names = " or ".join(self._names(remaining)) or "no agent, since all have ended"
                raise wrong("turn", f"an agent of this episode: {names}", self._names(row.acting)[0])
        elif episode is not None and not first and episode.alive[-1] is not None:
            needed = truncated & episode.alive[-1]
        else:
            return
        missing = self._names(needed & ~row.seen)
        if missing:
            what = "its observation, since the recording has those of all agents that go on or are truncated"
            raise wrong(f"obs.{missing[0]}", what, "nothing")

    def _names(self, flags: np.ndarray) -> list[str]:
        return [agent for agent, flag in zip(self.spec.agents, flags, strict=True) if flag]

    def _ended(self, name: str, first: bool, row: Row) -> np.ndarray | None:
        """[N] bool, games in turns: the agents that were not in the game before this question.

        Those whose end was told before; of an episode that is not known, those that the question does not name.
        """
        if not self.spec.turns:
            return None
        episode = self._open.get(name)
        if episode is not None and not first:
            return episode.ended
        return None if row.seen is None else ~row.seen

    def note(
        self,
        name: str,
        first: bool,
        row: Row,
        outcome: Outcome | None,
        action: np.ndarray | None,
        log_prob: np.ndarray | None,
        version: int,
        now: float,
    ) -> bool:
        """Add a question and its answer; whether it continues or begins an episode.

        A question without the reward of the last action cuts the episode: what was recorded of it stays.

        Args:
            row:      see `require`.
            action:   as the environment takes it, flat; None: the observation is the last one of the episode.
            log_prob: None: the policy has none.
        """
        episode = self._open.get(name)
        known = episode is not None and not first and outcome is not None and outcome.reward is not None
        if episode is not None and known:
            assert outcome is not None
            self._bytes -= episode.bytes
            if (alive := episode.alive[-1]) is not None:  # an agent that has left gets no reward
                outcome = outcome._replace(reward=outcome.reward * alive)
            episode.results.append(outcome)
            reward = np.asarray(outcome.reward, np.float64)
            episode.agents, episode.ret = episode.agents + reward, episode.ret + float(reward.sum())
            episode.length += 1
        else:
            ended = self._ended(name, first, row)
            if episode is not None:
                self._cut(name)
            if action is None:
                return False
            self._count += 1
            episode = self._open[name] = _Open(first, version, self._count)
            episode.ended = ended
        episode.see(row, outcome)
        if action is None:
            self._deliver(episode, ended=True)
            del self._open[name]
            return True
        episode.actions.append(self._to_policy(action))
        shape = self.spec.agents_shape
        episode.log_probs.append(np.full(shape, np.nan, np.float32) if log_prob is None else log_prob.reshape(shape))
        episode.used = now
        self._bytes += episode.bytes
        self._open.move_to_end(name)
        if episode.bytes > PART_BYTES or (self._bytes > ALL_BYTES and len(episode.results) > 16):
            self._part(episode)
        while len(self._open) > self._most:
            self._cut(next(iter(self._open)))
        return first or known

    def purge(self, now: float) -> None:
        """Cut the episodes whose clients are gone."""
        while self._open:
            name, episode = next(iter(self._open.items()))
            if now - episode.used < self._seconds:
                return
            self._cut(name)

    def take(self) -> list[Trajectory]:
        """The trajectories that are complete, each once: `stream` is the episode, `row` counts from its beginning."""
        finished, self._finished = self._finished, []
        return finished

    def cut_all(self) -> None:
        """Cut all open episodes: the server ends."""
        for name in list(self._open):
            self._cut(name)

    def _cut(self, name: str) -> None:
        episode = self._open.pop(name)
        self._bytes -= episode.bytes
        self._deliver(episode, ended=False)

    def _part(self, episode: _Open) -> None:
        """Deliver the rows so far; the episode goes on with its last observation."""
        self._bytes -= episode.bytes
        self._deliver(episode, ended=False)
        of_rows = (episode.obs, episode.masks, episode.alive, episode.acting, episode.states)
        for values in (*of_rows, episode.actions, episode.log_probs):
            del values[:-1]
        episode.results.clear()
        episode.begins = False
        episode.bytes = _bytes(episode.obs[0], episode.states[0])
        self._bytes += episode.bytes

    def _deliver(self, episode: _Open, ended: bool) -> None:
        rows, spec = len(episode.results), self.spec
        if not rows:
            return

        def column(arrays: list[Any], count: int, dtype: Any = None) -> np.ndarray:
            return np.stack(arrays[:count])[:, None].astype(dtype or np.asarray(arrays[0]).dtype)

        flat = [column([obs[i] for obs in episode.obs], rows + 1) for i in range(len(episode.obs[0]))]
        counted = [array if start is None else array - start for array, start in zip(flat, self._starts, strict=True)]
        first = np.zeros((rows + 1, 1), bool)
        first[0] = episode.begins
        results = episode.results
        optional: dict[str, Any] = {}
        if spec.action_mask:
            legal = [np.ones(spec.action.mask_size, bool) if mask is None else mask for mask in episode.masks]
            optional["action_mask"] = column(legal, rows + 1)
        terminated = column([result.terminated for result in results], rows, bool)
        truncated = column([result.truncated for result in results], rows, bool)
        if spec.groups:
            alive = column(list(episode.alive), rows + 1, bool)
            optional["alive"] = alive
            terminated |= alive[:-1] & ~alive[1:] & ~terminated & ~truncated  # it left without an end
            terminated &= alive[:-1]
            truncated &= alive[:-1] & ~terminated
        if spec.turns:
            optional["acting"] = column(episode.acting, rows + 1, bool)
        if spec.state_shape is not None:
            optional["state"] = column(episode.states, rows + 1, np.float32)
        episodes: tuple[Episode, ...] = ()
        if ended and episode.whole:
            agents = tuple(np.ravel(episode.agents).tolist()) if spec.groups else ()
            episodes = (Episode(episode.ret, episode.length, agents),)
        self._finished.append(
            Trajectory(
                obs=unflatten(spec.obs, counted),
                action=column(episode.actions, rows).reshape(rows, 1, *spec.action.shape),
                reward=column([result.reward for result in results], rows, np.float32),
                terminated=terminated,
                truncated=truncated,
                first=first,
                version=np.array([episode.version]),
                stream=np.array([episode.number]),
                row=np.array([episode.row]),
                extras={"log_prob": column(episode.log_probs, rows)},
                episodes=episodes,
                **optional,
            )
        )
        episode.row += rows
        self.steps += rows


def policy_units(spec: EnvSpec) -> Callable[[np.ndarray], np.ndarray]:
    """A function from an action for the environment, flat, to that of the policy [*A]: the inverse of `action_reader`.

    A number that was clipped or rounded remains so.
    """
    action = spec.action
    if action.kind != "box":
        start = np.array(action.start or 0, np.int64)
        return lambda values: (np.asarray(values, np.int64).reshape(-1) - start).reshape(action.shape)
    low, high = (np.array(bound, np.float64) for bound in (action.low, action.high))
    below, above = np.isfinite(low), np.isfinite(high)
    with np.errstate(invalid="ignore"):
        half = np.where(below & above, high / 2 - low / 2, 1.0)
        middle = np.where(below & above, high / 2 + low / 2, np.where(below, low + 1, np.where(above, high - 1, 0.0)))
    least, most = np.where(below, -1.0, -np.inf), np.where(above, 1.0, np.inf)
    scale = np.where(half > 0, half, 1.0)  # 0 where a bound leaves one value

    def units(values: np.ndarray) -> np.ndarray:
        found = (np.asarray(values, np.float64).reshape(-1) - middle) / scale
        return np.clip(found, least, most).astype(np.float32).reshape(action.shape)

    return units


def _start(leaf: Leaf) -> np.ndarray | None:
    return np.array(leaf.start, leaf.dtype).reshape(leaf.shape) if leaf.start else None


class Writer:
    """Writes trajectories into a folder, as `rltrain --record` does. It continues the recording of an earlier server.

    Args:
        run: what the index says about the server.

    Raises:
        ConfigError: the folder holds something else, or another server writes into it.
        CheckpointError: its recording is damaged.
    """

    def __init__(self, folder: Path, spec: EnvSpec, run: Mapping[str, Any]) -> None:
        from rltrain.storage import files

        self._folder = folder = folder.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--record {folder}: {files.reason(error)}; name an empty folder, or a new one") from None
        self._release = _locked(folder)
        try:
            self._open(folder, spec, run)
        except BaseException:
            self._release()
            raise
        self._backlog: list[Trajectory] = []  # while the disk takes nothing
        self._bytes, self._failed, self._tried = 0, False, time.monotonic()
        self._last: Any = None
        self.lost = 0  # steps

    def _open(self, folder: Path, spec: EnvSpec, run: Mapping[str, Any]) -> None:
        """Create the recorder, at the row that follows those of earlier servers."""
        from rltrain.storage import files
        from rltrain.storage.recording import FORMAT, INDEX, Recorder, Recording

        known = mark = None
        self._row = 0  # of the stream, the next one
        if os.path.lexists(folder / INDEX):
            before = Recording.open(folder)
            index = files.read_hashed_json(folder / INDEX, FORMAT).content
            if index["files"]:
                if not index["run"].get("served"):
                    raise ConfigError(f"--record {folder}: the folder holds the recording of a run; name another one")
                changed = spec_differences(before.spec, spec, ignored=(*COSMETIC, "max_steps"))
                if changed:
                    raise ConfigError(f"--record {folder}: it was recorded with other spaces: {changed}")
                known, mark = len(before.files), str(index["mark"])
                self._row = 2 * before.steps  # at most: each part has a row, and leaves out at most one number
        self._recorder = Recorder(folder, {"streams": 1, "served": True, **run}, spec, known, mark)

    def write(self, unrolls: list[Trajectory], source: int = 0) -> None:
        """Add trajectories of a process; they are on the disk after `FLUSH_SECONDS`.

        What a full disk does not take is kept for a while, and tried again.
        """
        for unroll in unrolls:
            key = source, int(unroll.stream[0])
            row = self._row
            if not unroll.first[0, 0] and self._last != (key, int(unroll.row[0])):
                row += 1  # the rows before are of another episode
            self._last, self._row = (key, int(unroll.row[0]) + unroll.rows), row + unroll.rows
            self._add(replace(unroll, row=np.array([row]), stream=np.zeros(1, np.int64)))
        if time.monotonic() - self._tried > FLUSH_SECONDS:
            with contextlib.suppress(RunFailed):
                self.flush()

    def _add(self, unroll: Trajectory) -> None:
        if self._failed:
            state = () if unroll.state is None else (unroll.state,)
            self._bytes += ROW_BYTES * unroll.rows + sum(array.nbytes for array in (*leaves(unroll.obs), *state))
            if self._bytes > UNWRITTEN_BYTES:
                self.lost += unroll.rows
            else:
                self._backlog.append(unroll)
            return
        try:
            self._recorder.add([unroll])  # writes a file if there is enough for one
        except RunFailed as error:
            self._fail(error)

    def _fail(self, error: RunFailed) -> None:
        if not self._failed:
            say(f"rlserve: --record: {error}; it is tried again every {FLUSH_SECONDS:g} s", sys.stderr)
        self._failed, self._tried = True, time.monotonic()

    def flush(self) -> None:
        """Write everything to the disk; RunFailed if that is impossible."""
        self._tried = time.monotonic()
        try:
            self._recorder.flush()
        except RunFailed as error:
            self._fail(error)
            raise
        backlog, self._backlog = self._backlog, []
        self._failed, self._bytes = False, 0
        for unroll in backlog:
            self._add(unroll)
        if backlog:
            self.flush()

    def close(self) -> None:
        """Write the rest; RunFailed if that is impossible."""
        try:
            self.flush()
        finally:
            self._release()
        if self.lost:
            raise RunFailed(f"--record {self._folder}: {self.lost:,} steps were lost while it could not be written")


def _locked(folder: Path) -> Callable[[], None]:
    """Lock a folder against other servers until the returned function is called; ConfigError if one has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return lambda: None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError(f"--record {folder}: another server writes into it; name another folder") from None
    return lambda: os.close(descriptor)
