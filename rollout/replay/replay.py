"""Replay: keeps the rows of all streams once, and hands out uniform, prioritised, n-step and sequence samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rltrain.envs.seeding import REPLAY, seed_of
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.replay.ring import (
    ENDED,
    FIRST,
    MIDST,
    READY,
    TERMINATED,
    TRUNCATED,
    NoStack,
    Ring,
    history,
    row_bytes,
)
from rltrain.rollout.replay.samples import sequences, transitions
from rltrain.rollout.replay.sum_tree import SumTree
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.trajectories import cut_rows
from rltrain.rollout.tree import leaves
from rltrain.rollout.types import Trajectory, Transition

ROW_BITS = 40  # of an index: the row; above them the stream
ROW_MASK = (1 << ROW_BITS) - 1
RARE = 16  # live rows per sampleable one from which those are listed, not looked for by drawing


class Replay:
    """The newest `capacity` rows, shared out equally among the streams, and what can be sampled of them.

    A row is sampleable when its action was really taken, its successor is there, and its n-step target is complete: n
    rows follow, or the episode ended before. The target of a terminated episode does not bootstrap; that of a truncated
    one, or of one that its actor's death cut off, bootstraps from the true final observation. Every sampleable row is
    as likely as any other, or in proportion to its priority (Schaul et al. 2016, arXiv:1511.05952, the proportional
    variant): P(i) = p_i^alpha / sum, p = |error| + eps, weight (N P(i))^-beta / the largest of the batch.

    Args:
        spec:    what the rows hold. Stacks of frames (`Leaf.stack`) are kept as single frames.
        streams: of the whole run.
        plan:    see `ReplayPlan`; `alpha` above 0 asks for priorities, `length` above 1 for sequences.
        seed:    the run's.
        folder:  where memory-mapped files are made for the rows; None keeps them in memory. Same samples either way.

    Raises:
        ValueError: `plan` asks for what cannot be.
    """

    def __init__(self, spec: EnvSpec, streams: int, plan: ReplayPlan, seed: int, folder: Path | None = None) -> None:
        self.spec, self.plan = spec, plan
        self.n_step = plan.n_step if plan.length == 1 else 1
        self._streams = streams
        self._ring = Ring(spec, streams, rows_of(streams, plan), folder)
        self._tree = SumTree(streams * self._ring.size) if plan.alpha else None
        self._count = 0  # sampleable rows
        self._episodes: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # whole ones; None: to be looked for
        self._ends: np.ndarray | None = None  # running numbers of the streams' live rows; None: to be counted again
        self._rng = np.random.Generator(np.random.PCG64(seed_of(seed, REPLAY)))
        self._strata = np.arange(plan.batch, dtype=np.float64)
        self._top = 1.0  # the largest priority seen, before alpha

    @staticmethod
    def bytes_needed(spec: EnvSpec, streams: int, plan: ReplayPlan) -> int:
        """What a full replay takes: in memory, or on disk but for the priorities. ValueError as for the replay."""
        rows = streams * (rows_of(streams, plan) + 1 + history(spec))
        return rows * row_bytes(spec) + (SumTree.bytes_needed(rows) if plan.alpha else 0)

    def __len__(self) -> int:
        """Rows, or whole episodes, that can be sampled now."""
        if not self.plan.whole_episodes:
            return self._count
        if self._episodes is None:
            self._episodes = self._ring.episodes()
        return len(self._episodes[0])

    def append(self, unroll: Trajectory) -> None:
        """Keep an unroll of numpy arrays: any of the streams, each going on from its newest row.

        A stream that does not go on (its actor died, or rows of it are missing) is cut there: its newest observation
        is kept as the last one of what came before, and it begins anew.

        Raises:
            ValueError: rows that were appended before.
            NoStack: stacks of frames that are none. Nothing of the unroll was kept.
        """
        most = self._ring.rows - self.n_step
        if len(unroll.reward) <= most:
            self._append(unroll)
        else:
            for begin in range(0, len(unroll.reward), most):
                self._append(cut_rows(unroll, begin, begin + most))

    def _append(self, unroll: Trajectory) -> None:
        stream, first, obs = unroll.stream, unroll.first, leaves(unroll.obs)
        rows = len(unroll.reward)
        if self._ring.history and not self._ring.stacks(obs, first):
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
                self._begin(unroll, int(column))
            head = ring.head[stream]
        self._retire(stream, head + rows)
        at = ring.at(head + np.arange(rows + 1)[:, None], base)  # [T+1, B]
        begin = 0 if first[0].any() else 1  # row 0 is known, unless its actor died at a reset row
        ring.write_obs(at[begin:], [leaf[begin:] for leaf in obs])
        for name, array in unroll.optional_fields().items():
            ring.flat[name][at[begin:]] = array[begin:]
        ring.flat["action"][at[:-1]] = unroll.action
        ring.flat["reward"][at[:-1]] = unroll.reward
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
        self._ends = self._episodes = None
        self._ready(stream, head - self.n_step + 1, head + rows)

    def _begin(self, unroll: Trajectory, column: int) -> None:
        """A stream's first row, or the first after a cut. What came before keeps its last observation."""
        ring, stream = self._ring, int(unroll.stream[column])
        base, head = stream * ring.size, int(ring.head[stream])
        if head >= 0 and unroll.row[column] < ring.next[stream]:
            raise ValueError(
                f"stream {stream} was appended twice: it stands at row {ring.next[stream]}, and the unroll begins at "
                f"row {unroll.row[column]}"
            )
        alone = np.array([stream])
        if head >= 0 and not ring.flag[base + head % ring.size] & FIRST:
            last = base + (head - 1) % ring.size
            if head and not ring.flag[last] & ENDED:
                ring.flag[last] |= TRUNCATED
                if unroll.alive is not None:
                    ring.flat["truncated"][last] |= ring.flat["alive"][base + head % ring.size]
                self._ready(alone, np.array([head - self.n_step]), np.array([head]))
            head += 1
        head = max(head, 0)
        obs = [leaf[:1, column] for leaf in leaves(unroll.obs)]
        older = 0 if unroll.first[0, column] else ring.history  # in the midst of an episode: older frames, a row each
        self._retire(alone, np.array([head + older]))
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

    def _retire(self, stream: np.ndarray, head: np.ndarray) -> None:
        """Rows that are too old once the newest row of `stream` [B] is `head` [B] cannot be sampled any more."""
        ring = self._ring
        low = ring.low[stream]
        new = np.maximum(head - ring.rows, low)
        most = int((new - low).max())
        if not most:
            return
        row = low + np.arange(most)[:, None]
        at = ring.at(row, stream * ring.size)[row < new]
        gone = at[(ring.flag[at] & READY) != 0]
        ring.flag[gone] &= ~READY
        self._count -= len(gone)
        if self._tree is not None:
            self._tree.set(gone, 0.0)
        ring.low[stream] = new

    def _ready(self, stream: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
        """Mark what has become sampleable of rows begin to end [B] of `stream` [B]; row `end` is the newest."""
        ring = self._ring
        row = begin + np.arange(int((end - begin).max()) + 1)[:, None]  # [W+1, B]
        at = ring.at(row, stream * ring.size)
        flags = ring.flag[at]
        row, at = row[:-1], at[:-1]
        whole = row + self.n_step <= end  # n rows follow
        if self.n_step > 1:
            ended = (flags[:-1] & ENDED) != 0
            whole |= np.logical_or.accumulate(ended[::-1], 0)[::-1]  # or the episode ended before
        ready = whole & ((flags[1:] & FIRST) == 0) & ((flags[:-1] & READY) == 0) & (row >= ring.low[stream])
        new = at[ready]
        ring.flag[new] |= READY
        self._count += len(new)
        if self._tree is not None and len(new):
            self._tree.set(new, self._top**self.plan.alpha)

    def sample(self, progress: float) -> Transition | Trajectory:
        """A batch of numpy arrays that the replay does not touch again; progress in [0, 1] is the share of the run.

        Returns:
            `plan.batch` transitions, with `weight` and `index` where there are priorities. `obs` and `next_obs` of
            stacked frames may share memory: do not write into them. With `plan.length` above 1 a Trajectory [length,
            batch] of consecutive rows: what lies after the end of the episode, or has not been seen yet, is not
            `valid`; where that cuts an episode off, its last valid row is `truncated`. The same of several agents,
            whatever the length. With `plan.whole_episodes` entire episodes, padded to the longest.

        Raises:
            ValueError: nothing can be sampled yet.
        """
        if not len(self):
            raise ValueError("the replay is empty: nothing can be sampled yet")
        plan, ring = self.plan, self._ring
        if self._tree is not None:
            return self._prioritised(self._tree, progress)
        if plan.whole_episodes:
            stream, row, length = self._whole(plan.batch)
            return sequences(ring, stream, row, int(length.max()))
        stream, row, flag = self._draw(plan.batch)
        if plan.length > 1 or self.spec.groups:
            return sequences(ring, stream, row, plan.length)
        return transitions(ring, stream, row, flag, plan.gamma, self.n_step)

    def _whole(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Streams, first rows and lengths [batch] each, uniform over the episodes that are there from end to end."""
        if self._episodes is None:
            self._episodes = self._ring.episodes()
        number = (self._rng.random(batch) * len(self._episodes[0])).astype(np.int64)
        stream, row, length = (array[number] for array in self._episodes)
        return stream, row, length

    def _draw(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Streams, rows and flags [batch] each, uniform over the sampleable rows."""
        ring = self._ring
        if self._ends is None:
            self._ends = np.maximum(ring.head - ring.low, 0).cumsum()
        live = int(self._ends[-1])
        if live > RARE * self._count:
            at = self._rng.choice(np.flatnonzero(ring.flag & READY), batch)
            return *self._rows_at(at), ring.flag[at]
        found = self._live_rows(batch if live == self._count else batch + batch // 16 + 8, live)
        while live != self._count:
            ready = found[2] & READY
            bad = np.flatnonzero(ready[:batch] == 0)
            if not len(bad):
                break
            spare = np.flatnonzero(ready[batch:])[: len(bad)] + batch
            for array in found:
                array[bad[: len(spare)]] = array[spare]
            if len(spare) == len(bad):
                break
            more = self._live_rows(batch, live)
            found = [np.concatenate((array[:batch], new)) for array, new in zip(found, more, strict=True)]
        stream, row, flag = (array[:batch] for array in found)
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
        """Streams and rows that lie at `at`."""
        size = self._ring.size
        stream = at // size
        low = self._ring.low.take(stream)
        return stream, low + (at - stream * size - low) % size

    def _prioritised(self, tree: SumTree, progress: float) -> Transition:
        plan, batch = self.plan, self.plan.batch
        where = self._rng.random(batch)
        where += self._strata
        at, value = tree.sample(where)
        stream, row = self._rows_at(at)
        beta = plan.beta + (1.0 - plan.beta) * progress
        weight = (value / value.min()) ** -beta  # N and the sum cancel in the division by the largest
        flag = self._ring.flag.take(at, mode="clip")
        index = stream << ROW_BITS | row
        return transitions(self._ring, stream, row, flag, plan.gamma, self.n_step, weight.astype(np.float32), index)

    def reprioritise(self, index: np.ndarray, error: np.ndarray) -> None:
        """New priorities |error| [n] of the samples `index` [n]; those overwritten since are left out.

        Raises:
            ValueError: an error is not finite.
        """
        if self._tree is None:
            return
        priority = np.abs(error, dtype=np.float64) + self.plan.priority_eps
        top = float(priority.max())
        if not np.isfinite(top):
            raise ValueError("priorities must be finite")
        self._top = max(self._top, top)
        stream, row = index >> ROW_BITS, index & ROW_MASK
        at = self._ring.at(row, stream * self._ring.size)
        value = priority**self.plan.alpha
        there = row >= self._ring.low[stream]
        if there.all():
            self._tree.set(at, value)
        else:
            self._tree.set(at[there], value[there])

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, to be written before the next `append`, `sample` or `reprioritise`.

        Returns:
            {"small": nested dicts of plain data and arrays, to be written anew each time: pointers, the generator,
                priorities, and the rows that are not in a segment yet;
             "segments": {name: a function that makes a dict of arrays}}: blocks of rows that do not change any more.
            What a name's function made once is good for ever after in this replay, and in one that loaded a state with
            that name: a name that has been written before need not be made again. (A later call may give fewer rows of
            the block, since older ones are overwritten.) Other replays may give the same name to other rows.
        """
        small, segments = self._ring.state(settled=self.n_step)
        small["rng"] = self._rng.bit_generator.state
        if self._tree is not None:
            small |= {"priority": self._tree.leaves.copy(), "top": self._top}
        return {"small": small, "segments": segments}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, exactly: `state["segments"]` has its names and functions that give what was
        made of each when it was written.

        Raises:
            ValueError: it does not fit this replay, or rows are missing.
        """
        small = state["small"]
        then, now = (len(small["head"]), int(small["rows"])), (self._streams, self._ring.rows)
        if then != now:
            raise ValueError(f"the replay was {then[0]} streams of {then[1]} rows, and is {now[0]} of {now[1]} now")
        if ("priority" in small) != (self._tree is not None):
            raise ValueError("the replay was prioritised then or is now, but not both")
        self._ring.load(small, state["segments"])
        self._count = int(np.count_nonzero(self._ring.flag & READY))
        self._ends = self._episodes = None
        self._rng.bit_generator.state = small["rng"]
        if self._tree is not None:
            self._tree.leaves[:] = small["priority"]
            self._tree.rebuild()
            self._top = float(small["top"])


def rows_of(streams: int, plan: ReplayPlan) -> int:
    """Rows kept of each stream. ValueError where the plan asks for what cannot be."""
    rows = -(-plan.capacity // streams)
    least = max(plan.n_step, plan.length) + 1
    if rows < least:
        raise ValueError(
            f"a replay of {plan.capacity} rows keeps {rows} of each of {streams} streams, and needs {least} at least"
        )
    if (plan.length > 1 or plan.whole_episodes) and plan.alpha:
        raise ValueError("sequences are sampled uniformly: length above 1 and priorities do not go together")
    return rows
