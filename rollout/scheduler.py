"""The scheduler of the actors: starts unrolls, gathers them, publishes weights, replaces lost actors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any, Literal

import numpy as np

from rltrain.envs.spec import leaf_names
from rltrain.rollout.backends import Backend, LocalBackend
from rltrain.rollout.inference.supervisor import InferenceSupervisor
from rltrain.rollout.shared_memory.heartbeat import HEARTBEAT, Heartbeat
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.specs import ActorJob, RolloutSpec
from rltrain.rollout.supervision import ReadWatchdog, SupervisedActor, SupervisedWorker, unroll_length
from rltrain.rollout.types import Episode, Trajectory, Weights
from rltrain.rollout.workers.handle import ActorLost, Handle, NotPlaced

POLL = 0.25  # seconds between two checks of the actors' progress and of the deadline
MIN_READ_SECONDS = 5.0  # allowed for reading an answer, if the actors' timeout is shorter


class Rollout:
    """All actors of a run, as the training loop sees them.

    Args:
        plan:       what to run.
        weights:    the first weights; actors can act as soon as the constructor returns.
        on_restart: called with each failure that is followed by a restart.
    """

    def __init__(self, plan: RolloutSpec, weights: Weights, on_restart: Callable[[ActorLost], None]) -> None:
        self.plan = plan
        self.steps = 0
        self.restarts = 0
        self.seconds = 0.0  # spent waiting for unrolls
        self.dropped = 0  # unrolls that were too old
        self.deadline = float("inf")  # monotonic time after which `gather` gives up, since the run is to stop
        self._on_restart = on_restart
        streams = sum(len(unit) for unit in plan.units)
        self.rows = np.zeros(streams, np.int64)
        self.generations = np.zeros(streams, np.int64)  # number of times each stream was started over
        in_process = plan.backend == "local" or plan.workers == 0
        self._max_in_flight = 1 if in_process else plan.max_in_flight
        count = max(plan.workers, 1)
        self._heartbeats = SharedMemory(8 * HEARTBEAT * count)
        self._turn = 0  # with `deterministic`: the actor whose unroll is taken next
        self._lags: list[int] = []  # of the unrolls taken since the last `metrics`
        self._last_watch = 0.0  # monotonic time at which the actors' progress was last checked
        self._dropped_episodes: tuple[Episode, ...] = ()  # finished in unrolls that were dropped
        self._published = weights.version, weights.step
        shares = np.array_split(np.arange(len(plan.units)), count)
        self._actors = [
            self._actor(number, tuple(stream for unit in share for stream in plan.units[unit]))
            for number, share in enumerate(shares)
        ]
        self._inference: InferenceSupervisor | None = None
        self._watchdog = ReadWatchdog(self._read_seconds)
        self._backend: Backend = plan.cluster or LocalBackend(plan, weights, self._heartbeats)
        try:
            if plan.cluster is not None:
                plan.cluster.begin(plan, weights, self._heartbeats)
            if plan.inference is not None and isinstance(self._backend, LocalBackend):
                counts = tuple(len(actor.streams) for actor in self._actors)
                self._inference = InferenceSupervisor(plan, counts, self._backend.board, self._restarted)
            for actor in self._actors:
                actor.open()
        except BaseException:
            self.close()
            raise

    # --- the calls of the training loop ---

    def start(self) -> None:
        """Start unrolls until every actor has as many in flight as it may."""
        began = time.perf_counter()
        for actor in self._actors:
            if self.plan.movable and actor.handle is not None and self._backend.crowded(actor.handle):
                if actor.busy:
                    continue
                self._move(actor)
            while actor.handle is not None and len(actor.in_flight) < self._max_in_flight:
                self._begin(actor)
        self.seconds += time.perf_counter() - began  # a local actor acts inside `begin`

    def gather(self, streams: int | Literal["all"] = "all") -> list[Trajectory]:
        """Wait for unrolls of at least `streams` streams; ordered by stream. Lost actors are replaced meanwhile.

        The arrays of an unroll may be overwritten after the second following call of `start`.

        Raises:
            WorkerFailed: an actor was lost more than `max_restarts` times in a row.
            InterruptedError: the deadline passed; unrolls in flight are given up.
        """
        wanted = len(self.rows) if streams == "all" else streams
        return self._gather(lambda taken: max(wanted - taken, 0))

    def drain(self) -> list[Trajectory]:
        """Gather all unrolls in flight and start none: afterwards all actors are idle. Raises as `gather`."""
        most = len(self.rows) * self._max_in_flight
        return self._gather(
            lambda _: most if any(actor.busy or actor.handle is None for actor in self._actors) else 0, draining=True
        )

    def publish(self, weights: Weights) -> None:
        """Publish the weights of all unrolls that begin from now on."""
        if (weights.version, weights.step) != self._published:  # running statistics change without an update too
            self._wait_until_read()
            self._backend.publish(weights)
            self._published = weights.version, weights.step

    def publish_opponent(self, index: int, snapshot: Weights) -> None:
        """Publish an opponent for all games that begin from now on, at `index` of the pool; its version is its id."""
        self._wait_until_read()
        self._backend.publish_opponent(index, snapshot)

    def metrics(self) -> dict[str, float]:
        """Metrics of this rollout; the lag is the number of versions between an unroll's weights and the newest."""
        metrics = {"rollout/dropped": float(self.dropped), **self._backend.metrics()}
        if outside := sum(actor.heartbeat.outside for actor in self._actors):
            metrics["rollout/outside_bounds"] = float(outside)
        if self._lags:
            metrics["rollout/policy_lag_mean"] = sum(self._lags) / len(self._lags)
            metrics["rollout/policy_lag_max"] = float(max(self._lags))
            self._lags.clear()
        return metrics if self._inference is None else metrics | self._inference.metrics()

    @property
    def waited(self) -> float:
        """Share of the actors' time that they waited for the learner."""
        acted = sum(actor.heartbeat.acted for actor in self._actors)
        waited = sum(actor.heartbeat.waited for actor in self._actors)
        return waited / max(acted + waited, 1e-9)

    @property
    def outside_bounds(self) -> str | None:
        """The name of an array of the observation that had a number outside of its float Box; None if none had."""
        leaf = next((actor.heartbeat.outside_leaf for actor in self._actors if actor.heartbeat.outside), None)
        return None if leaf is None else leaf_names(self.plan.spec.obs)[leaf]

    def close(self) -> None:
        """End all actors."""
        self._watchdog.close()
        for actor in self._actors:
            actor.heartbeat.stop()
        for actor in self._actors:
            if actor.handle is not None:
                actor.handle.stop()
        if self._inference is not None:
            self._inference.release()
        for actor in self._actors:
            actor.worker.close()
        if self._inference is not None:
            self._inference.close()
            self._inference = None
        self._heartbeats.close()
        self._backend.release()

    # --- checkpoints; all actors must be idle ---

    def state(self) -> dict[str, Any]:
        """The state of every stream, independent of the number of actors. An actor that is lost is replaced first."""
        units: list[dict[str, Any]] = []
        for actor in self._actors:
            units += self._ask(actor, "state")
        return {"units": units, **self._counters()}

    def state_without_actors(self) -> dict[str, Any]:
        """A state for when actors cannot be asked: each stream will start over, as its next generation."""
        return {"units": [], "rows": self.rows.copy(), "incarnations": self.generations + 1, **self._counters()}

    def load(self, state: dict[str, Any]) -> bool:
        """Continue from `state`. Returns whether every stream was restored exactly.

        Raises:
            ValueError: the state of a stream has the wrong kind of numbers.
        """
        self.steps, self.restarts, self.dropped = (int(state.get(name, 0)) for name in ("steps", "restarts", "dropped"))
        self._dropped_episodes = tuple(
            Episode(ret, length, tuple(agents), *others) for ret, length, agents, *others in state.get("episodes", ())
        )
        turn, actors = state.get("turn", (0, 0))
        self._turn = int(turn) if int(actors) == len(self._actors) else 0
        if not state["units"]:
            self.rows[:], self.generations[:] = state["rows"], state["incarnations"]
            for actor in self._actors:
                actor.open()
            return False
        by_first = {int(unit["streams"][0]): unit for unit in state["units"]}
        exact, restarts = True, self.restarts
        for unit in state["units"]:
            _check_unit(unit)
            self.rows[unit["streams"]] = unit["row"]
            self.generations[unit["streams"]] = unit["incarnation"]
        for actor in self._actors:
            units = [by_first[stream] for stream in actor.streams if stream in by_first]
            if any(self.generations[list(actor.streams)]):
                actor.open()
            exact &= bool(self._ask(actor, "load", units))
        return exact and self.restarts == restarts  # an actor that was lost meanwhile acts with new noise

    def _counters(self) -> dict[str, Any]:
        turn = [self._turn, len(self._actors)]
        counters = {"steps": self.steps, "restarts": self.restarts, "dropped": self.dropped}
        return {**counters, "turn": turn, "episodes": [list(episode) for episode in self._dropped_episodes]}

    # --- actors: open, move, watch, replace ---

    def _actor(self, number: int, streams: tuple[int, ...]) -> SupervisedActor:
        heartbeat = Heartbeat(self._heartbeats, number)
        worker = SupervisedWorker(
            lambda: self._open_handle(number, streams),
            lambda: heartbeat.steps,
            self.plan.actor_timeout,
            self.plan.max_restarts,
        )
        return SupervisedActor(number, streams, heartbeat, worker)

    def _open_handle(self, number: int, streams: tuple[int, ...]) -> Handle:
        generations, rows = self.generations[list(streams)].tolist(), self.rows[list(streams)].tolist()
        job = ActorJob(replace(self.plan, cluster=None), number, streams, tuple(generations), tuple(rows))
        return self._backend.open(job, self._inference)

    def _move(self, actor: SupervisedActor) -> None:
        """Continue the actor, from its current state, on a machine that has more room."""
        units = self._ask(actor, "state")
        actor.open()
        self._ask(actor, "load", units)

    def _begin(self, actor: SupervisedActor) -> None:
        plan = self.plan
        actor.begin(unroll_length(actor, self._actors, plan.unroll) if plan.shorten else None)

    def _watch(self, actor: SupervisedActor) -> None:
        """Kill the actor if it makes no progress; while it waits for the inference server, that one must."""
        if self._inference is not None and self._inference.is_pending(actor.number):
            actor.worker.reset_timer()
            self._inference.watch()
        else:
            actor.worker.watch()

    def _lost(self, actor: SupervisedActor, lost: ActorLost) -> None:
        """Schedule the actor's restart; its streams will start over, as their next generation, if it was started."""
        self._backend.check()  # the whole cluster may be lost
        if isinstance(lost, NotPlaced):
            actor.lost(lost)
            return
        self.generations[list(actor.streams)] += 1
        actor.lost(lost)
        self._restarted(lost)

    def _restarted(self, lost: ActorLost) -> None:
        self.restarts += 1
        self._on_restart(lost)

    def _ask(self, actor: SupervisedActor, method: str, *args: Any) -> Any:
        """The answer to one call between unrolls; the actor is replaced until it answers."""
        while True:
            try:
                if actor.handle is None:
                    self._backend.check()
                    time.sleep(max(0.0, actor.worker.restart_at - time.monotonic()))
                    if not actor.open():
                        self._check_deadline()
                        continue
                actor.worker.call(method, *args)
                actor.worker.reset_timer()
                while not actor.worker.ready(POLL):
                    self._watch(actor)
                    self._check_deadline()
                return actor.worker.result()
            except ActorLost as lost:
                self._lost(actor, lost)

    def _check_deadline(self) -> None:
        if time.monotonic() > self.deadline:
            raise InterruptedError

    def _read_seconds(self) -> float:
        """How long the reading of an answer may take."""
        return 0.0 if time.monotonic() > self.deadline else max(self.plan.actor_timeout, MIN_READ_SECONDS)

    def _wait_until_read(self) -> None:
        for actor in self._actors if self.plan.deterministic else ():
            actor.wait_until_read(self.deadline)

    # --- unrolls ---

    def _gather(self, missing: Callable[[int], int], draining: bool = False) -> list[Trajectory]:
        """Take unrolls while `missing(streams taken)` is above 0; it is the number of streams still to be taken.

        If the wait is given up, the unrolls taken meanwhile are not counted either, since they will not be learned.
        """
        unrolls: list[Trajectory] = []
        began = time.perf_counter()
        try:
            while (most := missing(sum(len(unroll.stream) for unroll in unrolls))) > 0:
                self._take(unrolls, most, draining)
                if missing(sum(len(unroll.stream) for unroll in unrolls)) > 0:
                    self._check_deadline()
        except BaseException:
            for unroll in reversed(unrolls):
                self.steps -= unroll.steps
                self.rows[unroll.stream] = unroll.row
            raise
        if self.plan.reduce is None:  # else each is applied in the order of its arrival
            unrolls.sort(key=lambda unroll: (int(unroll.version.min()), int(unroll.stream[0]), int(unroll.row[0])))
        self.seconds += time.perf_counter() - began
        return unrolls

    def _take(self, unrolls: list[Trajectory], most: int, draining: bool) -> None:
        """Append the unrolls that arrived, oldest first, up to `most` streams; waits at most POLL seconds.

        Args:
            draining: do not start an unroll in place of one that is too old.
        """
        for actor in self._ready():
            if most <= 0:
                break
            try:
                assert actor.handle is not None
                with self._watchdog.reading(actor.handle):
                    answer = actor.handle.result()
                unroll: Trajectory = self._backend.unpack(actor.number, answer)
            except ActorLost as lost:
                self._lost(actor, lost)
                continue
            actor.received(unroll.rows)
            if self._inference is not None:
                self._inference.worker.succeeded()
            self._turn = (actor.number + 1) % len(self._actors)
            self.steps += unroll.steps
            self.rows[unroll.stream] = unroll.row + unroll.rows
            lag = self._published[0] - int(unroll.version.min())
            self._lags.append(lag)
            if self.plan.max_lag is not None and lag > self.plan.max_lag:
                self.dropped += len(unroll.stream)
                self._dropped_episodes += unroll.episodes
                if not draining:
                    self._begin(actor)
                continue
            if self._dropped_episodes:
                unroll = replace(unroll, episodes=self._dropped_episodes + unroll.episodes)
                self._dropped_episodes = ()
            unrolls.append(unroll)
            most -= len(unroll.stream)

    def _ready(self) -> list[SupervisedActor]:
        """The actors with an answer, oldest unroll first. Waits at most POLL seconds; replaces lost and hung actors."""
        now = time.monotonic()
        self._backend.check()
        for actor in self._actors:
            if actor.worker.restart_due:
                try:
                    if actor.open():
                        self._begin(actor)
                except ActorLost as lost:
                    self._lost(actor, lost)
        busy = [actor for actor in self._actors if actor.busy and actor.handle is not None]
        local = [actor for actor in busy if actor.handle is not None and actor.handle.waitable is None]
        if local:
            return sorted(local, key=lambda actor: actor.in_flight[0])
        if self.plan.deterministic:
            busy = self._next_in_turn(busy)
        pipes = {actor.handle.waitable: actor for actor in busy if actor.handle is not None}
        if not pipes:
            time.sleep(POLL / 10)
        ready = [pipes[pipe] for pipe in wait(list(pipes), POLL)]
        if not ready or now - self._last_watch > POLL:
            self._last_watch = now
            for actor in busy:
                if actor not in ready:
                    self._watch(actor)
        return sorted(ready, key=lambda actor: actor.in_flight[0])

    def _next_in_turn(self, busy: list[SupervisedActor]) -> list[SupervisedActor]:
        """The actor whose unroll is taken next; empty while that actor is being replaced."""
        actors = self._actors[self._turn :] + self._actors[: self._turn]
        following = next((actor for actor in actors if actor.busy or actor.handle is None), None)
        return [following] if following in busy and following is not None else []


def _check_unit(unit: dict[str, Any]) -> None:
    """ValueError if the arrays of a stream's state (of a block's) are not those that `Actor.state` returns."""
    width = len(unit["streams"])
    kinds = {"row": "i", "first": "b", "length": "i", "ret": "f"} | ({} if unit["core"] is None else {"core": "f"})
    for name, kind in kinds.items():
        array = unit[name]
        wrong = {"i": array < 0, "b": False, "f": ~np.isfinite(array)}
        if array.dtype.kind != kind or len(array) != width or np.any(wrong[kind]):
            raise ValueError(f"{name} of the streams {unit['streams']} is damaged")
