"""The replay: keeps the newest rows of all streams and draws uniform, prioritised, n-step and sequence samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.envs.seeding import REPLAY, seed_of
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.replay.gather import LONG, Returns, returns_of, sequences, transitions, windows
from rltrain.rollout.replay.ring import (
    ENDED,
    FIRST,
    MIDST,
    READY,
    TERMINATED,
    TRUNCATED,
    NoStack,
    Ring,
    Segment,
    history,
    row_bytes,
)
from rltrain.rollout.replay.sum_tree import SumTree
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.trajectories import cut_rows
from rltrain.rollout.tree import leaves
from rltrain.rollout.types import Trajectory, Transition

ROW_BITS = 40  # an index holds the row in its lower bits, and the stream above them
ROW_MASK = (1 << ROW_BITS) - 1
SPARSE = 16  # live rows per sampleable row above which the sampleable rows are listed, instead of drawn by rejection


class Replay:
    """The newest `plan.capacity` rows, divided equally among the streams.

    A row can be sampled if its action was really taken, its successor is stored, and its n-step target is complete: n
    rows follow, or the episode ended before. The target of a terminated episode does not bootstrap. That of a truncated
    episode, or of one that the loss of its actor cut off, bootstraps from the true final observation. Rows are drawn
    uniformly, or in proportion to their priorities (Schaul et al. 2016, arXiv:1511.05952, the proportional variant):
    P(i) = p_i^alpha / sum, p = |error| + eps, weight (N P(i))^-beta / the largest weight of the batch.

    For a policy with memory (`plan.core_size`) a sample is a window of `burn_in + length` rows of a stream, as in R2D2
    (Kapturowski et al. 2019), with the recurrent state that the actor had before its first row. A window may extend
    over several episodes; its first row may be any row for which all the others are stored.

    Args:
        spec:    the content of the rows. Stacks of frames (`Leaf.stack`) are stored as single frames.
        streams: the number of streams of the run.
        plan:    the algorithm's; `alpha` above 0 asks for priorities, `length` above 1 for sequences.
        seed:    the run's.
        folder:  where memory-mapped files hold the rows; None: in memory. The samples are the same.

    Raises:
        ValueError: parts of the plan contradict each other.
    """

    def __init__(self, spec: EnvSpec, streams: int, plan: ReplayPlan, seed: int, folder: Path | None = None) -> None:
        self.spec, self.plan = spec, plan
        self.n_step = plan.n_step if plan.length == 1 else 1
        self._following = plan.window if plan.core_size else self.n_step  # rows that complete a sampleable row
        self._streams = streams
        self._ring = Ring(spec, streams, rows_per_stream(streams, plan), folder, plan.core_size)
        self._tree = SumTree(streams * self._ring.size) if plan.alpha else None
        self._count = 0  # sampleable rows
        self._episodes: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # complete ones; None: not searched yet
        self._returns: Returns | None = None  # for long n-step targets; None: not computed yet
        self._ends: np.ndarray | None = None  # cumulative numbers of live rows, by stream; None: not counted yet
        self._rng = np.random.Generator(np.random.PCG64(seed_of(seed, REPLAY)))
        self._strata = np.arange(plan.batch, dtype=np.float64)
        self._max_priority = 1.0  # the largest priority so far, before the exponent alpha

    @staticmethod
    def bytes_needed(spec: EnvSpec, streams: int, plan: ReplayPlan) -> int:
        """Bytes of a full replay: in memory, or on disk except for the priorities. ValueError as for the replay."""
        rows = streams * (rows_per_stream(streams, plan) + 1 + history(spec))
        return rows * row_bytes(spec, plan.core_size) + (SumTree.bytes_needed(rows) if plan.alpha else 0)

    def __len__(self) -> int:
        """The number of rows, or of complete episodes, that can be sampled now."""
        return len(self._complete_episodes()[0]) if self.plan.whole_episodes else self._count

    def _complete_episodes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Streams, first rows and lengths of the episodes that are stored from their first row to their end."""
        if self._episodes is None:
            self._episodes = self._ring.episodes()
        return self._episodes

    def keep_best(self, share: float, kinds: int = 1) -> int:
        """Samples no other rows from now on than those of the complete episodes with the highest returns.

        Args:
            share: of the complete episodes; at least one is kept. Of equal returns the earlier episodes are kept.
            kinds: number of kinds of streams whose episodes are ranked apart: stream s is of kind s % kinds.

        Returns:
            The number of episodes that are kept; 0, without a change, if no episode of some kind is complete.
        """
        ring = self._ring
        stream, first, length = self._complete_episodes()
        if len(set((stream % kinds).tolist())) < kinds:
            return 0
        rows = [
            ring.at(np.arange(row, row + n), s * ring.size) for s, row, n in zip(stream, first, length, strict=True)
        ]
        reward = ring.flat["reward"]
        returns = np.array([reward[at].sum(dtype=np.float64) for at in rows])
        best: list[int] = []
        for kind in range(kinds):
            own = np.flatnonzero(stream % kinds == kind)
            count = max(1, int(share * len(own) + 1e-9))  # 0.29 of 100 are 29
            best += own[np.argsort(-returns[own], kind="stable")[:count]].tolist()
        kept = np.zeros(len(ring.flag), bool)
        for number in best:
            kept[rows[number]] = True
        dropped = np.flatnonzero((ring.flag & READY != 0) & ~kept)
        ring.flag[dropped] &= ~READY
        self._count -= len(dropped)
        if self._tree is not None:
            self._tree.set(dropped, 0.0)
        return len(best)

    def append(self, unroll: Trajectory) -> None:
        """Stores an unroll of numpy arrays, of any of the streams. Each column continues at its stream's newest row.

        If it does not (its actor was lost, or rows are missing), the stream is cut: its newest observation is kept as
        the final one of the rows before, and the unroll starts a new section.

        Raises:
            ValueError: the rows were appended before.
            NoStack: leaves declared as stacks of frames are not. Nothing of the unroll was stored.
        """
        limit = self._ring.rows - self._following
        if unroll.rows <= limit:
            self._append(unroll)
        else:
            for begin in range(0, unroll.rows, limit):
                self._append(cut_rows(unroll, begin, begin + limit))

    def _append(self, unroll: Trajectory) -> None:
        stream, first, obs = unroll.stream, unroll.first, leaves(unroll.obs)
        rows = unroll.rows
        if self._ring.history and not self._ring.holds_stacks(obs, first):
            raise NoStack(
                f"the observations of {self.spec.id} are not the newest frames of its episodes, although its outermost "
                "wrapper, FrameStackObservation, makes them so: does the environment return the same array each time? "
                "Let it return a copy"
            )
        ring = self._ring
        base, head = stream * ring.size, ring.head[stream]
        follows = (head >= 0) & (unroll.row == ring.next[stream])
        follows &= ~first[0] | ((ring.flag.take(ring.at(head, base), mode="clip") & FIRST) != 0)
        if not follows.all():
            for column in np.flatnonzero(~follows):
                self._begin_section(unroll, int(column))
            head = ring.head[stream]
        self._retire(stream, head + rows)
        at = ring.at(head + np.arange(rows + 1)[:, None], base)  # [T+1, B]
        begin = 0 if first[0].any() else 1  # row 0 is stored already, unless its actor was lost at a reset row
        ring.write_obs(at[begin:], [leaf[begin:] for leaf in obs])
        for name, array in unroll.optional_fields().items():
            ring.flat[name][at[begin:]] = array[begin:]
        ring.flat["action"][at[:-1]] = unroll.action
        ring.flat["reward"][at[:-1]] = unroll.reward
        if self.plan.core_size:
            ring.flat["core"][at[:-1]] = 0.0 if unroll.core is None else unroll.core
        flags = first * FIRST
        flags[0] = ring.flag[at[0]] & (FIRST | MIDST)
        terminated, truncated = unroll.terminated, unroll.truncated
        if unroll.alive is not None:
            ring.flat["terminated"][at[:-1]], ring.flat["truncated"][at[:-1]] = terminated, truncated
            truncated = unroll.episode_end & (truncated & ~terminated).any(-1)
            terminated = unroll.episode_end & ~truncated
        flags[:-1] |= terminated * TERMINATED | truncated * TRUNCATED
        ring.flag[at] = flags
        if ring.history:
            ring.write_ages(at, first)
        ring.head[stream] = head + rows
        ring.next[stream] = unroll.row + rows
        self._ends = self._episodes = self._returns = None
        unmarked = head - self._following + 1
        if self.plan.core_size and not follows.all():
            unmarked -= 1  # the first row of a new section completes a window too
        self._mark_ready(stream, unmarked, head + rows)

    def _begin_section(self, unroll: Trajectory, column: int) -> None:
        """Stores row 0 of a column that does not continue its stream. The rows before keep their final observation."""
        ring, stream = self._ring, int(unroll.stream[column])
        base, head = stream * ring.size, int(ring.head[stream])
        if head >= 0 and unroll.row[column] < ring.next[stream]:
            raise ValueError(
                f"stream {stream} was appended twice: it is at row {ring.next[stream]}, and the unroll begins at "
                f"row {unroll.row[column]}"
            )
        streams = np.array([stream])
        if self._cut(stream):
            head += 1
        head = max(head, 0)
        obs = [leaf[:1, column] for leaf in leaves(unroll.obs)]
        older = 0 if unroll.first[0, column] else ring.history  # within an episode: a row for each older frame
        self._retire(streams, np.array([head + older]))
        if older:
            ring.write_older(base, head, obs)
            head += older
        at = ring.at(np.array([head]), base)
        ring.write_obs(at, obs)
        for name, array in unroll.optional_fields().items():
            ring.flat[name][at] = array[:1, column]
        ring.flag[at] = FIRST if unroll.first[0, column] else FIRST | MIDST
        if ring.history:
            ring.flat["age"][at] = ring.history + 1 if older else 0
        ring.head[stream] = head

    def cut_streams(self) -> None:
        """No rows follow: the newest observation of each stream is the final one of the rows before."""
        for stream in range(self._streams):
            self._cut(stream)
        self._episodes = self._returns = None

    def _cut(self, stream: int) -> bool:
        """The same for one stream; False if its newest row is a reset row, or there is none."""
        ring, base, head = self._ring, stream * self._ring.size, int(self._ring.head[stream])
        if head < 0 or ring.flag[base + head % ring.size] & FIRST:
            return False
        last = base + (head - 1) % ring.size
        if head and not ring.flag[last] & ENDED:
            ring.flag[last] |= TRUNCATED
            if "alive" in ring.flat:
                ring.flat["truncated"][last] |= ring.flat["alive"][base + head % ring.size]
            self._mark_ready(np.array([stream]), np.array([head - self._following]), np.array([head]))
        return True

    def _retire(self, stream: np.ndarray, head: np.ndarray) -> None:
        """Excludes the rows that are too old once the newest row of `stream` [B] is `head` [B]."""
        ring = self._ring
        low = ring.low[stream]
        new = np.maximum(head - ring.rows, low)
        most = int((new - low).max())
        if not most:
            return
        row = low + np.arange(most)[:, None]
        at = ring.at(row, stream * ring.size)[row < new]
        retired = at[(ring.flag[at] & READY) != 0]
        ring.flag[retired] &= ~READY
        self._count -= len(retired)
        if self._tree is not None:
            self._tree.set(retired, 0.0)
        ring.low[stream] = new

    def _mark_ready(self, stream: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
        """Marks the rows from `begin` to `end` [B] of `stream` [B] that have become sampleable. `end` is the newest."""
        ring = self._ring
        row = begin + np.arange(int((end - begin).max()) + 1)[:, None]  # [W+1, B]
        at = ring.at(row, stream * ring.size)
        flags = ring.flag[at]
        if self.plan.core_size:
            row, at, ready = self._whole_windows(row, at, flags, end)
        else:
            row, at = row[:-1], at[:-1]
            complete = row + self.n_step <= end  # n rows follow
            if self.n_step > 1:
                ended = (flags[:-1] & ENDED) != 0
                complete |= np.logical_or.accumulate(ended[::-1], 0)[::-1]  # or the episode ended before
            ready = complete & ((flags[1:] & FIRST) == 0)
        new = at[ready & ((flags[: len(row)] & READY) == 0) & (row >= ring.low[stream])]
        ring.flag[new] |= READY
        self._count += len(new)
        if self._tree is not None and len(new):
            self._tree.set(new, self._max_priority**self.plan.alpha)

    def _whole_windows(
        self, row: np.ndarray, at: np.ndarray, flags: np.ndarray, end: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of consecutive rows [W+1, B] those behind which there are enough others; and where a window may begin.

        It may not if a later row begins a section within an episode, of which the recurrent state would be unknown, or
        if the first row to learn from is a reset row.
        """
        window, burn_in = self.plan.window, self.plan.burn_in
        count = max(len(row) - window, 0)
        sections = ((flags & MIDST) != 0).cumsum(0)
        ready = (row[:count] + window <= end) & (sections[window:] == sections[:count])
        ready &= (flags[burn_in + 1 : burn_in + 1 + count] & FIRST) == 0
        return row[:count], at[:count], ready

    def sample(self, progress: float, count: int | None = None) -> Transition | Trajectory:
        """A batch of numpy arrays, which the replay does not change later.

        Args:
            progress: the share of the run that is done, in [0, 1]: beta grows to 1 with it.
            count:    of uniform samples; None: `plan.batch`.

        Returns:
            `plan.batch` transitions, with `weight` and `index` if there are priorities. `obs` and `next_obs` of stacked
            frames may share memory: do not write into them. With `plan.core_size` a Trajectory of windows, in which
            priorities add `weight` and `index` too. With `plan.length` above 1, and always with several
            agents, a Trajectory [length, batch] of consecutive rows. Rows after the end of the episode, or not stored
            yet, are not `valid`; if the latter cuts an episode off, its last valid row is `truncated`. With
            `plan.whole_episodes` a Trajectory of complete episodes, with as many rows as the longest of the batch.

        Raises:
            ValueError: there is nothing to sample.
        """
        if not len(self):
            raise ValueError("the replay is empty: nothing can be sampled yet")
        plan, ring = self.plan, self._ring
        weight = index = None
        if self._tree is not None:
            stream, row, flag, weight, index = self._prioritised(self._tree, progress)
        elif plan.whole_episodes:
            episodes = self._complete_episodes()
            number = (self._rng.random(plan.batch) * len(episodes[0])).astype(np.int64)
            stream, row, length = (array[number] for array in episodes)
            return sequences(ring, stream, row, int(length.max()))
        else:
            stream, row, flag = self._draw(plan.batch if count is None else count)
        if plan.core_size:
            return windows(ring, stream, row, plan.window, weight, index)
        if plan.length > 1 or self.spec.groups:
            return sequences(ring, stream, row, plan.length)
        if self.n_step > LONG and self._returns is None:
            self._returns = returns_of(ring, plan.gamma)
        return transitions(ring, stream, row, flag, plan.gamma, self.n_step, weight, index, self._returns)

    def _draw(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Streams, rows and flags [batch] each, uniform over the sampleable rows: by rejection, or from a list."""
        ring = self._ring
        if self._ends is None:
            self._ends = np.maximum(ring.head - ring.low, 0).cumsum()
        live = int(self._ends[-1])
        if live > SPARSE * self._count:
            at = self._rng.choice(np.flatnonzero(ring.flag & READY), batch)
            return *self._rows_at(at), ring.flag[at]
        drawn = self._live_rows(batch if live == self._count else batch + batch // 16 + 8, live)
        while live != self._count:
            ready = drawn[2] & READY
            rejected = np.flatnonzero(ready[:batch] == 0)
            if not len(rejected):
                break
            spare = np.flatnonzero(ready[batch:])[: len(rejected)] + batch
            for array in drawn:
                array[rejected[: len(spare)]] = array[spare]
            if len(spare) == len(rejected):
                break
            more = self._live_rows(batch, live)
            drawn = [np.concatenate((array[:batch], new)) for array, new in zip(drawn, more, strict=True)]
        stream, row, flag = (array[:batch] for array in drawn)
        return stream, row, flag

    def _live_rows(self, count: int, live: int) -> list[np.ndarray]:
        """Streams, rows and flags [count] each, uniform over the `live` rows, sampleable or not."""
        ring, ends = self._ring, self._ends
        number = (self._rng.random(count) * live).astype(np.int64)
        if self._streams == 1 or ends is None:
            stream = np.zeros(count, np.int64)
            number += ring.low[0]
            return [stream, number, ring.flag.take(number % ring.size, mode="clip")]
        stream = ends.searchsorted(number, "right")
        number -= ends.take(stream)
        number += ring.head.take(stream)
        return [stream, number, ring.flag.take(ring.at(number, stream * ring.size), mode="clip")]

    def _rows_at(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Streams and rows at the positions `at` of the ring."""
        size = self._ring.size
        stream = at // size
        low = self._ring.low.take(stream)
        return stream, low + (at - stream * size - low) % size

    def _prioritised(
        self, tree: SumTree, progress: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Streams, rows, flags, importance weights and indices [batch] each, drawn by their priorities."""
        plan = self.plan
        where = self._rng.random(plan.batch)
        where += self._strata
        at, value = tree.sample(where)
        stream, row = self._rows_at(at)
        beta = plan.beta + (1.0 - plan.beta) * progress
        weight = (value / value.min()) ** -beta  # N and the sum cancel in the division by the largest weight
        flag = self._ring.flag.take(at, mode="clip")
        return stream, row, flag, weight.astype(np.float32), stream << ROW_BITS | row

    def reprioritise(self, index: np.ndarray, error: np.ndarray) -> None:
        """Sets the priorities of the samples `index` [n] to |error| [n]; samples overwritten since are ignored.

        Raises:
            ValueError: an error is not finite.
        """
        if self._tree is None:
            return
        priority = np.abs(error, dtype=np.float64) + self.plan.priority_eps
        largest = float(priority.max())
        if not np.isfinite(largest):
            raise ValueError("priorities must be finite")
        self._max_priority = max(self._max_priority, largest)
        stream, row = index >> ROW_BITS, index & ROW_MASK
        at = self._ring.at(row, stream * self._ring.size)
        value = priority**self.plan.alpha
        stored = row >= self._ring.low[stream]
        if stored.all():
            self._tree.set(at, value)
        else:
            self._tree.set(at[stored], value[stored])

    def state(self) -> tuple[dict[str, Any], dict[str, Segment]]:
        """The content of a checkpoint, to be written before the next `append`, `sample` or `reprioritise`.

        Returns:
            Plain data and arrays that are written each time: pointers, the generator, priorities, and the rows that are
            not in a segment yet.
            Segments, by name: functions that make the arrays of blocks of rows that do not change any more. A segment
            that was written once need not be made again, in this replay and in one that loaded its state. (A later call
            may give fewer rows of the block, since older ones are overwritten.) Other replays may use the same names.
        """
        small, segments = self._ring.state(settled=self._following)
        small["rng"] = self._rng.bit_generator.state
        if self._tree is not None:
            small |= {"priority": self._tree.leaves.copy(), "top": self._max_priority}
        return small, segments

    def load(self, small: dict[str, Any], segments: Mapping[str, Segment]) -> None:
        """Restores exactly what `state` returned; `segments` return the arrays that were written.

        Raises:
            ValueError: the state does not fit this replay, or rows are missing.
        """
        saved, own = (len(small["head"]), int(small["rows"])), (self._streams, self._ring.rows)
        if saved != own:
            raise ValueError(f"the replay was {saved[0]} streams of {saved[1]} rows, and is {own[0]} of {own[1]} now")
        if ("priority" in small) != (self._tree is not None):
            raise ValueError("the replay was prioritised then or is now, but not both")
        self._ring.load(small, segments)
        self._count = int(np.count_nonzero(self._ring.flag & READY))
        self._ends = self._episodes = self._returns = None
        self._rng.bit_generator.state = small["rng"]
        if self._tree is not None:
            self._tree.leaves[:] = small["priority"]
            self._tree.rebuild()
            self._max_priority = float(small["top"])


def rows_per_stream(streams: int, plan: ReplayPlan) -> int:
    """Rows kept of each stream. ValueError if parts of the plan contradict each other."""
    rows = -(-plan.capacity // streams)
    least = (plan.window if plan.core_size else max(plan.n_step, plan.length)) + 1
    if rows < least:
        why = f": with memory burn_in + length = {plan.window} rows in a row" if plan.core_size else ""
        raise ValueError(
            f"a replay of {plan.capacity} rows keeps {rows} of each of {streams} streams, and needs {least} at least"
            f"{why}"
        )
    if (plan.length > 1 or plan.whole_episodes) and plan.alpha and not plan.core_size:
        raise ValueError("sequences are sampled uniformly: length above 1 and priorities do not go together")
    return rows
