"""The only scheduler: starts unrolls, gathers them, publishes weights, replaces actors that are lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import Any, Literal

import numpy as np

from envs.spec import EnvSpec
from envs.vector import VectorEnv
from rollout.actor import SLOTS, Actor, ActorJob, Links, needs_slots
from rollout.episodes import obs_arrays, padded
from rollout.handle import ActorLost, Handle
from rollout.local import LocalHandle
from rollout.memory import SharedMemory, tree_at
from rollout.tree import tree_map
from rollout.types import Trajectory, Weights
from rollout.weights import WeightsBoard

POLL = 0.25  # seconds between two looks at whether actors make progress and whether somebody asked to stop
START_SECONDS = 30.0  # that an actor may take until its first step, if the timeout is shorter
BACKOFF = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)  # seconds before the n-th restart in a row


@dataclass(frozen=True)
class RolloutPlan:
    """What a rollout is made from. `units` are what cannot be split between actors: streams, or blocks of them."""

    spec: EnvSpec
    seed: int
    unroll: int
    workers: int  # 0: one actor in this process
    backend: Literal["local", "processes"]
    units: tuple[tuple[int, ...], ...]
    make_env: Callable[[Sequence[int], Sequence[int]], VectorEnv]
    make_policy: Callable[[], Any]
    actor_timeout: float = 120.0
    max_restarts: int = 5
    random_rows: int = 0  # of each stream, acted at random before the policy does


class Failed(Exception):
    """An actor was lost more often in a row than allowed."""


@dataclass
class _Seat:
    """One actor's place: who sits there, and what its successor must know."""

    worker: int
    streams: tuple[int, ...]
    handle: Handle | None = None
    busy: bool = False
    failures: int = 0  # in a row
    restart_at: float = 0.0
    alive: int = -1  # its last count of vector steps, and when that was seen
    seen: float = 0.0
    opened_at: int = 0  # that count when it was opened


class Rollout:
    """Acting, as the training loop sees it.

    Args:
        plan:    what to run.
        weights: the first ones; actors can begin as soon as this returns.
        on_restart: told the text of each failure that is answered with a restart.
    """

    def __init__(self, plan: RolloutPlan, weights: Weights, on_restart: Callable[[ActorLost], None]) -> None:
        self.plan = plan
        self.steps = 0
        self.restarts = 0
        self.seconds = 0.0  # spent waiting for unrolls
        self.patience = float("inf")  # monotonic time after which `gather` gives up: somebody asked to stop
        self._on_restart = on_restart
        streams = sum(len(unit) for unit in plan.units)
        self.rows = np.zeros(streams, np.int64)
        self.incarnations = np.zeros(streams, np.int64)
        seats = max(plan.workers, 1)
        self._progress = SharedMemory(8 * seats)
        self._alive = self._progress.array(0, (seats,), np.int64)
        self._board = WeightsBoard(weights.arrays)
        self._board.publish(weights)
        self._published = weights.version, weights.step
        shares = np.array_split(np.arange(len(plan.units)), seats)
        self._seats = [
            _Seat(worker, tuple(stream for unit in share for stream in plan.units[unit]))
            for worker, share in enumerate(shares)
        ]
        self._slots: dict[int, SharedMemory] = {}
        try:
            for seat in self._seats:
                self._open(seat)
        except BaseException:
            self.close()
            raise

    # --- the training loop's four calls ---

    def start(self) -> None:
        """Every idle actor begins an unroll."""
        began = time.perf_counter()
        for seat in self._seats:
            if not seat.busy and seat.handle is not None:
                self._begin(seat)
        self.seconds += time.perf_counter() - began  # a local actor acts right here

    def gather(self, streams: int | Literal["all"] = "all") -> list[Trajectory]:
        """Wait for unrolls of at least so many streams; ordered by stream. Lost actors are replaced meanwhile.

        Raises:
            Failed: an actor was lost more than `max_restarts` times in a row.
            InterruptedError: `patience` is over; unrolls under way are given up.
        """
        wanted = len(self.rows) if streams == "all" else streams
        unrolls: list[Trajectory] = []
        began = time.perf_counter()
        while sum(len(unroll.stream) for unroll in unrolls) < wanted:
            for seat in self._ready():
                try:
                    assert seat.handle is not None
                    unroll = self._open_obs(seat, seat.handle.result())
                except ActorLost as lost:
                    self._lost(seat, lost)
                    continue
                seat.busy, seat.failures = False, 0
                unrolls.append(unroll)
            if time.monotonic() > self.patience and sum(len(unroll.stream) for unroll in unrolls) < wanted:
                raise InterruptedError
        unrolls.sort(key=lambda unroll: int(unroll.stream[0]))
        for unroll in unrolls:
            self.steps += unroll.steps
            self.rows[unroll.stream] = unroll.row + self.plan.unroll
        self.seconds += time.perf_counter() - began
        return unrolls

    def rest(self) -> list[Trajectory]:
        """Gather all that is under way, and begin nothing: afterwards nobody acts."""
        acting = [seat for seat in self._seats if seat.busy or seat.handle is None]
        return self.gather(sum(len(seat.streams) for seat in acting)) if acting else []

    def publish(self, weights: Weights) -> None:
        """Let the unrolls that begin from now on use these weights."""
        if (weights.version, weights.step) != self._published:  # running statistics move without an update too
            self._board.publish(weights)
            self._published = weights.version, weights.step

    def close(self) -> None:
        """End all actors."""
        for seat in self._seats:
            if seat.handle is not None:
                seat.handle.stop()
        for seat in self._seats:
            if seat.handle is not None:
                seat.handle.close()
                seat.handle = None
        for memory in (self._progress, self._board.memory, *self._slots.values()):
            memory.close()

    # --- for checkpoints; nobody may be acting ---

    def state(self) -> dict[str, Any]:
        """Where every stream stands, whatever the number of actors. An actor lost here is replaced first."""
        units: list[dict[str, Any]] = []
        for seat in self._seats:
            units += self._ask(seat, "state")
        return {"units": units, "steps": self.steps, "restarts": self.restarts}

    def blind_state(self) -> dict[str, Any]:
        """The same where actors cannot be asked: every stream will begin anew, as its next incarnation."""
        return {
            "units": [],
            "rows": self.rows.copy(),
            "incarnations": self.incarnations + 1,
            "steps": self.steps,
            "restarts": self.restarts,
        }

    def load(self, state: dict[str, Any]) -> bool:
        """Go on from `state`. Returns whether every stream was brought back exactly."""
        self.steps, self.restarts = int(state["steps"]), int(state["restarts"])
        if not state["units"]:
            self.rows[:], self.incarnations[:] = state["rows"], state["incarnations"]
            for seat in self._seats:
                self._reopen(seat)
            return False
        by_first = {int(unit["streams"][0]): unit for unit in state["units"]}
        exact, restarts = True, self.restarts
        for unit in state["units"]:
            self.rows[unit["streams"]] = unit["row"]
            self.incarnations[unit["streams"]] = unit["incarnation"]
        for seat in self._seats:
            units = [by_first[stream] for stream in seat.streams if stream in by_first]
            if any(self.incarnations[list(seat.streams)]):
                self._reopen(seat)
            exact &= bool(self._ask(seat, "load", units))
        return exact and self.restarts == restarts  # one that was lost on the way acts with new noise

    # --- the parts ---

    def _job(self, seat: _Seat) -> ActorJob:
        plan, streams = self.plan, list(seat.streams)
        return ActorJob(
            worker=seat.worker,
            spec=plan.spec,
            unroll=plan.unroll,
            seed=plan.seed,
            streams=seat.streams,
            incarnations=tuple(int(i) for i in self.incarnations[streams]),
            rows=tuple(int(row) for row in self.rows[streams]),
            make_env=plan.make_env,
            make_policy=plan.make_policy,
            random_rows=plan.random_rows,
        )

    def _open(self, seat: _Seat) -> None:
        """Put an actor on the seat."""
        job = self._job(seat)
        if self.plan.backend == "local" or self.plan.workers == 0:
            links = Links(self._board.memory, self._progress)
            seat.handle = LocalHandle(seat.worker, lambda: Actor(job, links))
        else:
            from rollout.processes import ProcessHandle

            size = needs_slots(job)
            if size and seat.worker not in self._slots:
                self._slots[seat.worker] = SharedMemory(SLOTS * size)
            slots = self._slots[seat.worker].ticket() if size else None
            tickets = (self._board.memory.ticket(), self._progress.ticket(), slots)
            try:
                seat.handle = ProcessHandle(seat.worker, _Build(job), *tickets)
            except (OSError, EOFError) as error:
                raise ActorLost(seat.worker, f"its process could not be started: {error!r}") from None
        seat.busy, seat.alive, seat.seen = False, -1, time.monotonic()
        seat.opened_at = int(self._alive[seat.worker])

    def _reopen(self, seat: _Seat) -> None:
        if seat.handle is not None:
            seat.handle.close()
        self._open(seat)

    def _begin(self, seat: _Seat) -> None:
        assert seat.handle is not None
        seat.busy, seat.seen = True, time.monotonic()
        seat.handle.call("collect")

    def _ready(self) -> list[_Seat]:
        """Seats with an answer, after waiting for one at most POLL seconds; hung actors are killed here."""
        now = time.monotonic()
        for seat in self._seats:
            if seat.handle is None and now >= seat.restart_at:
                try:
                    self._open(seat)
                except ActorLost as lost:
                    self._lost(seat, lost)
                    continue
                self._begin(seat)
        busy = [seat for seat in self._seats if seat.busy and seat.handle is not None]
        here = [seat for seat in busy if seat.handle is not None and seat.handle.waitable is None]
        if here:
            return here
        pipes = {seat.handle.waitable: seat for seat in busy if seat.handle is not None}
        if not pipes:
            time.sleep(POLL / 10)
        ready = [pipes[pipe] for pipe in wait(list(pipes), POLL)]
        if ready:
            return ready
        for seat in busy:
            self._watch(seat)
        return []

    def _watch(self, seat: _Seat) -> None:
        """Kill the actor if it has made no step for too long."""
        alive, now = int(self._alive[seat.worker]), time.monotonic()
        if seat.handle is not None and seat.handle.over:
            seat.handle.kill(seat.handle.over)
        elif alive != seat.alive:
            seat.alive, seat.seen = alive, now
        elif now - seat.seen > self._timeout(seat) and seat.handle is not None:
            seat.handle.kill(f"it made no step for {self._timeout(seat):g} s, so it was ended")

    def _timeout(self, seat: _Seat) -> float:
        """Longer for an actor that has not made its first step: its process must start and make environments."""
        new = int(self._alive[seat.worker]) == seat.opened_at
        return max(self.plan.actor_timeout, START_SECONDS) if new else self.plan.actor_timeout

    def _lost(self, seat: _Seat, lost: ActorLost) -> None:
        """Its streams start anew, as their next incarnation, after a pause that grows with every failure in a row."""
        if seat.handle is not None:
            seat.handle.close()
        seat.handle, seat.busy = None, False
        self.incarnations[list(seat.streams)] += 1
        if seat.failures >= self.plan.max_restarts:
            raise Failed(
                f"worker {seat.worker} failed {seat.failures + 1} times in a row (--max-restarts "
                f"{self.plan.max_restarts}); the last time: {lost.detail}"
            )
        seat.restart_at = time.monotonic() + BACKOFF[min(seat.failures, len(BACKOFF) - 1)]
        seat.failures += 1
        self.restarts += 1
        self._on_restart(lost)

    def _ask(self, seat: _Seat, method: str, *args: Any) -> Any:
        """One call outside unrolls, on an actor that is replaced as often as it takes."""
        while True:
            try:
                if seat.handle is None:
                    time.sleep(max(0.0, seat.restart_at - time.monotonic()))
                    self._open(seat)
                assert seat.handle is not None
                seat.handle.call(method, *args)
                pipe, seat.seen = seat.handle.waitable, time.monotonic()
                while pipe is not None and not wait([pipe], POLL):
                    self._watch(seat)
                    if time.monotonic() > self.patience:
                        raise InterruptedError
                return seat.handle.result()
            except ActorLost as lost:
                self._lost(seat, lost)

    def _open_obs(self, seat: _Seat, answer: Any) -> Trajectory:
        """The unroll; observations that were left in a slot are looked up there."""
        unroll: Trajectory = answer[0]
        slot: int | None = answer[1]
        if slot is None:
            return unroll
        width = padded(len(seat.streams))
        like = obs_arrays(self.plan.spec, self.plan.unroll + 1, width)
        obs = tree_map(lambda a: a[:, : len(seat.streams)], tree_at(self._slots[seat.worker], slot, like))
        return replace(unroll, obs=obs)


class _Build:
    """Makes the actor in its process: cloudpickled there, since environments may be closures."""

    def __init__(self, job: ActorJob) -> None:
        self.job = job

    def __call__(self, weights: Any, progress: Any, slots: Any) -> Actor:
        return Actor(self.job, Links(weights, progress, slots))
