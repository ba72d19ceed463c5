"""The only scheduler: starts unrolls, gathers them, publishes weights, replaces actors that are lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any, Literal

import numpy as np

from rltrain.rollout.backends import Backend, Elsewhere, Here
from rltrain.rollout.inference.supervisor import InferenceSupervisor
from rltrain.rollout.shared_memory.heartbeat import HEARTBEAT, Heartbeat
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.specs import ActorJob, RolloutSpec
from rltrain.rollout.supervision import Guard, SupervisedActor, length
from rltrain.rollout.types import Episode, Trajectory, Weights
from rltrain.rollout.workers.handle import ActorLost, NoNode

POLL = 0.25  # seconds between two looks at whether actors make progress and whether somebody asked to stop
ANSWER_SECONDS = 5.0  # that the reading of an answer may take, if the timeout is shorter


class Failed(Exception):
    """An actor was lost more often in a row than allowed."""


class Rollout:
    """Acting, as the training loop sees it.

    Args:
        plan:    what to run.
        weights: the first ones; actors can begin as soon as this returns.
        on_restart: told the text of each failure that is answered with a restart.
    """

    def __init__(self, plan: RolloutSpec, weights: Weights, on_restart: Callable[[ActorLost], None]) -> None:
        self.plan = plan
        self.steps = 0
        self.restarts = 0
        self.seconds = 0.0  # spent waiting for unrolls
        self.dropped = 0  # unrolls that were too old
        self.patience = float("inf")  # monotonic time after which `gather` gives up: somebody asked to stop
        self._on_restart = on_restart
        streams = sum(len(unit) for unit in plan.units)
        self.rows = np.zeros(streams, np.int64)
        self.incarnations = np.zeros(streams, np.int64)
        seats = max(plan.workers, 1)
        self._local = plan.backend == "local" or plan.workers == 0
        self._max_in_flight = 1 if self._local else plan.max_in_flight
        self._life = SharedMemory(8 * HEARTBEAT * seats)
        self._turn = 0  # whose unroll is taken next, where they take turns
        self._lags: list[int] = []  # of unrolls taken since they were last told
        self._looked = 0.0  # when actors were last looked after
        self._orphans: tuple[Episode, ...] = ()  # finished in unrolls that were dropped
        self._published = weights.version, weights.step
        shares = np.array_split(np.arange(len(plan.units)), seats)
        self._seats = [
            SupervisedActor(
                worker, tuple(stream for unit in share for stream in plan.units[unit]), Heartbeat(self._life, worker)
            )
            for worker, share in enumerate(shares)
        ]
        self._central: InferenceSupervisor | None = None
        self._guard = Guard(self._answer_seconds)
        here = Here(plan, self._local, weights, self._life) if plan.cluster is None else None
        self._backend: Backend = here or Elsewhere(plan, plan.cluster, weights, self._life)
        try:
            self._backend.start()
            if plan.inference is not None and here is not None:
                counts = tuple(len(seat.streams) for seat in self._seats)
                self._central = InferenceSupervisor(plan, counts, here.board, self._count)
            for seat in self._seats:
                self._open(seat)
        except BaseException:
            self.close()
            raise

    # --- the training loop's four calls ---

    def start(self) -> None:
        """Every idle actor begins an unroll; at most `max_in_flight` per actor."""
        began = time.perf_counter()
        for seat in self._seats:
            if self.plan.movable and seat.handle is not None and self._backend.crowded(seat.handle):
                if seat.busy:
                    continue
                self._move(seat)
            while seat.handle is not None and len(seat.begun) < self._max_in_flight:
                self._begin(seat)
        self.seconds += time.perf_counter() - began  # a local actor acts right here

    def gather(self, streams: int | Literal["all"] = "all") -> list[Trajectory]:
        """Wait for unrolls of at least so many streams; ordered by stream. Lost actors are replaced meanwhile.

        The arrays of an unroll may be written to again once `start` was called twice.

        Raises:
            Failed: an actor was lost more than `max_restarts` times in a row.
            InterruptedError: `patience` is over; unrolls under way are given up.
        """
        wanted = len(self.rows) if streams == "all" else streams
        unrolls: list[Trajectory] = []
        began = time.perf_counter()
        with self._all_or_nothing(unrolls):
            while (missing := wanted - sum(len(unroll.stream) for unroll in unrolls)) > 0:
                self._take(unrolls, missing)
                if time.monotonic() > self.patience and sum(len(unroll.stream) for unroll in unrolls) < wanted:
                    raise InterruptedError
        return self._in_order(unrolls, began)

    def rest(self) -> list[Trajectory]:
        """Gather all that is under way, and begin nothing: afterwards nobody acts."""
        unrolls: list[Trajectory] = []
        began = time.perf_counter()
        with self._all_or_nothing(unrolls):
            while any(seat.busy or seat.handle is None for seat in self._seats):
                self._take(unrolls, len(self.rows) * self._max_in_flight, resting=True)
                if time.monotonic() > self.patience and any(seat.busy or seat.handle is None for seat in self._seats):
                    raise InterruptedError
        return self._in_order(unrolls, began)

    def publish(self, weights: Weights) -> None:
        """Let the unrolls that begin from now on use these weights."""
        if (weights.version, weights.step) != self._published:  # running statistics move without an update too
            self._until_read()
            self._backend.publish(weights)
            self._published = weights.version, weights.step

    def keep(self, place: int, snapshot: Weights) -> None:
        """Let the games that begin from now on meet this one too; its version is its number."""
        self._until_read()
        self._backend.keep(place, snapshot)

    def _until_read(self) -> None:
        for seat in self._seats if self.plan.deterministic else ():
            seat.wait_until_read(self.plan.actor_timeout, self.patience)

    def metrics(self) -> dict[str, float]:
        """What there is to log: how far weights had moved on when unrolls came in, and who waited for whom."""
        told = {"rollout/dropped": float(self.dropped), **self._backend.metrics()}
        if self._lags:
            told["rollout/policy_lag_mean"] = sum(self._lags) / len(self._lags)
            told["rollout/policy_lag_max"] = float(max(self._lags))
            self._lags.clear()
        return told if self._central is None else told | self._central.metrics()

    @property
    def waited(self) -> float:
        """Share of the actors' time that they waited for the learner."""
        acted = sum(seat.life.acted for seat in self._seats)
        waited = sum(seat.life.waited for seat in self._seats)
        return waited / max(acted + waited, 1e-9)

    def close(self) -> None:
        """End all actors."""
        self._guard.close()
        for seat in self._seats:
            seat.life.end()
        for seat in self._seats:
            if seat.handle is not None:
                seat.handle.stop()
        if self._central is not None:
            self._central.release()
        for seat in self._seats:
            if seat.handle is not None:
                seat.handle.close()
                seat.handle = None
        if self._central is not None:
            self._central.close()
            self._central = None
        self._life.close()
        self._backend.close()

    # --- for checkpoints; nobody may be acting ---

    def state(self) -> dict[str, Any]:
        """Where every stream stands, whatever the number of actors. An actor lost here is replaced first."""
        units: list[dict[str, Any]] = []
        for seat in self._seats:
            units += self._ask(seat, "state")
        return {"units": units, **self._counts()}

    def blind_state(self) -> dict[str, Any]:
        """The same where actors cannot be asked: every stream will begin anew, as its next incarnation."""
        return {"units": [], "rows": self.rows.copy(), "incarnations": self.incarnations + 1, **self._counts()}

    def _counts(self) -> dict[str, Any]:
        turn = [self._turn, len(self._seats)]
        return {"steps": self.steps, "restarts": self.restarts, "dropped": self.dropped, "turn": turn}

    def load(self, state: dict[str, Any]) -> bool:
        """Go on from `state`. Returns whether every stream was brought back exactly."""
        self.steps, self.restarts, self.dropped = (int(state.get(name, 0)) for name in ("steps", "restarts", "dropped"))
        turn, seats = state.get("turn", (0, 0))
        self._turn = int(turn) if int(seats) == len(self._seats) else 0
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

    def _job(self, seat: SupervisedActor) -> ActorJob:
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
            max_in_flight=self._max_in_flight,
            reduce=plan.reduce,
            pool=plan.pool,
            inference=plan.inference,
        )

    def _open(self, seat: SupervisedActor) -> bool:
        """Put an actor on the seat; nobody yet, and False, while there is no machine for one."""
        try:
            seat.taken(self._backend.open(self._job(seat), self._central))
        except NoNode:
            seat.handle, seat.restart_at = None, time.monotonic() + POLL
        return seat.handle is not None

    def _reopen(self, seat: SupervisedActor) -> None:
        if seat.handle is not None:
            seat.handle.close()
        self._open(seat)

    def _move(self, seat: SupervisedActor) -> None:
        """Let its actor go on, where it stands, on a machine that has more room."""
        units = self._ask(seat, "state")
        self._reopen(seat)
        self._ask(seat, "load", units)

    def _begin(self, seat: SupervisedActor) -> None:
        plan = self.plan
        seat.begin(length(seat, self._seats, plan.unroll) if plan.shorten else None)

    def _take(self, unrolls: list[Trajectory], most: int, resting: bool = False) -> None:
        """Add what has come in, the oldest first, until there are `most` more streams; waits POLL seconds at most.

        Args:
            resting: nothing is begun in the place of unrolls that are too old.
        """
        for seat in self._ready():
            if most <= 0:
                break
            try:
                assert seat.handle is not None
                with self._guard.reading(seat.handle):
                    answer = seat.handle.result()
                unroll: Trajectory = self._backend.whole(seat.worker, answer)
            except ActorLost as lost:
                self._lost(seat, lost)
                continue
            seat.delivered(unroll.rows)
            if self._central is not None:
                self._central.delivered()
            self._turn = (seat.worker + 1) % len(self._seats)
            self.steps += unroll.steps
            self.rows[unroll.stream] = unroll.row + unroll.rows
            lag = self._published[0] - int(unroll.version.min())
            self._lags.append(lag)
            if self.plan.max_lag is not None and lag > self.plan.max_lag:
                self.dropped += len(unroll.stream)
                self._orphans += unroll.episodes
                if not resting:
                    self._begin(seat)
                continue
            if self._orphans:
                unroll, self._orphans = replace(unroll, episodes=self._orphans + unroll.episodes), ()
            unrolls.append(unroll)
            most -= len(unroll.stream)

    @contextlib.contextmanager
    def _all_or_nothing(self, unrolls: list[Trajectory]) -> Iterator[None]:
        """If the wait is given up, what has come meanwhile does not count either: nobody will learn from it."""
        try:
            yield
        except BaseException:
            for unroll in reversed(unrolls):
                self.steps -= unroll.steps
                self.rows[unroll.stream] = unroll.row
            raise

    def _answer_seconds(self) -> float:
        """How long the reading of an answer may take."""
        return 0.0 if time.monotonic() > self.patience else max(self.plan.actor_timeout, ANSWER_SECONDS)

    def _in_order(self, unrolls: list[Trajectory], began: float) -> list[Trajectory]:
        """By the age of their weights and by stream, unless each is to be learnt from as it came."""
        if self.plan.reduce is None:
            unrolls.sort(key=lambda unroll: (int(unroll.version.min()), int(unroll.stream[0]), int(unroll.row[0])))
        self.seconds += time.perf_counter() - began
        return unrolls

    def _ready(self) -> list[SupervisedActor]:
        """Seats with an answer, after waiting for one at most POLL seconds; hung actors are killed here."""
        now = time.monotonic()
        self._backend.check()
        for seat in self._seats:
            if seat.handle is None and now >= seat.restart_at:
                try:
                    if self._open(seat):
                        self._begin(seat)
                except ActorLost as lost:
                    self._lost(seat, lost)
        busy = [seat for seat in self._seats if seat.busy and seat.handle is not None]
        here = [seat for seat in busy if seat.handle is not None and seat.handle.waitable is None]
        if here:
            return sorted(here, key=lambda seat: seat.begun[0])
        if self.plan.deterministic:
            busy = self._whose_turn(busy)
        pipes = {seat.handle.waitable: seat for seat in busy if seat.handle is not None}
        if not pipes:
            time.sleep(POLL / 10)
        ready = [pipes[pipe] for pipe in wait(list(pipes), POLL)]
        if not ready or now - self._looked > POLL:
            self._looked = now
            for seat in busy:
                if seat not in ready:
                    self._watch(seat)
        return sorted(ready, key=lambda seat: seat.begun[0])

    def _whose_turn(self, busy: list[SupervisedActor]) -> list[SupervisedActor]:
        """The one whose unroll is to be taken next; nobody while it is being replaced."""
        seats = self._seats[self._turn :] + self._seats[: self._turn]
        seat = next((seat for seat in seats if seat.busy or seat.handle is None), None)
        return [seat] if seat in busy and seat is not None else []

    def _watch(self, seat: SupervisedActor) -> None:
        """End an actor that makes no progress; while one waits for the server, that is who must make some."""
        if self._central is not None and self._central.owes(seat.worker):
            seat.seen = time.monotonic()
            self._central.watch()
        else:
            seat.watch(self.plan.actor_timeout)

    def _lost(self, seat: SupervisedActor, lost: ActorLost) -> None:
        """Its streams start anew, as their next incarnation."""
        self._backend.check()  # what is lost may be more than an actor
        self.incarnations[list(seat.streams)] += 1
        failures = seat.failures
        seat.lost()
        self._count(lost, failures)

    def _count(self, lost: ActorLost, failures: int) -> None:
        """One more is replaced, after so many failures in a row; Failed if that is too often."""
        if failures >= self.plan.max_restarts:
            raise Failed(
                f"{lost.who} failed {failures + 1} times in a row (--max-restarts {self.plan.max_restarts}); "
                f"the last time: {lost.detail}"
            )
        self.restarts += 1
        self._on_restart(lost)

    def _ask(self, seat: SupervisedActor, method: str, *args: Any) -> Any:
        """One call outside unrolls, on an actor that is replaced as often as it takes."""
        while True:
            try:
                if seat.handle is None:
                    self._backend.check()
                    time.sleep(max(0.0, seat.restart_at - time.monotonic()))
                    if not self._open(seat):
                        if time.monotonic() > self.patience:
                            raise InterruptedError
                        continue
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
