"""Requests that arrive in one turn of the event loop become one batch; rows never depend on the batch."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from rltrain.deployment.export.formats import example
from rltrain.deployment.server.errors import Refused
from rltrain.deployment.server.metrics import Metrics
from rltrain.deployment.server.models import Model
from rltrain.deployment.server.requests import Codec, Row
from rltrain.deployment.server.sessions import Session


class Version:
    """One version of a served policy. A row is computed by the version that it began with, also after a reload."""

    def __init__(self, model: Model) -> None:
        self.model, self.codec = model, Codec(model.interface)
        self._inputs = example(model.interface, model.largest)  # rows that are not asked for stay valid
        self._obs = [name for name in self._inputs if name == "obs" or name.startswith("obs.")]

    def compute(self, items: list[Item]) -> dict[str, np.ndarray]:
        """The outputs of a batch."""
        inputs, model, count = self._inputs, self.model, len(items)
        for i, name in enumerate(self._obs):
            array = inputs[name]
            for b, item in enumerate(items):
                array[b] = item.row.obs[i]
        for name in ("action_mask", "present", "core", "noise", "first", "sample"):
            if name in inputs:
                array = inputs[name]
                for b, item in enumerate(items):
                    array[b] = item.value(name)
        if model.batch == "single":
            rows = [model.run({name: array[b : b + 1].copy() for name, array in inputs.items()}) for b in range(count)]
            return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        if model.batch == "any":
            return model.run({name: array[:count] for name, array in inputs.items()})
        return {name: array[:count] for name, array in model.run(inputs).items()}


class Answer(NamedTuple):
    """One row of a batch's outputs."""

    action: Any  # as JSON has it
    outputs: dict[str, np.ndarray]
    at: int  # of the row


class Item:
    """One row that waits."""

    __slots__ = ("core", "deadline", "first", "future", "noise", "row", "sample", "session", "version")

    def __init__(
        self,
        version: Version,
        row: Row,
        sample: bool,
        noise: np.ndarray | None,
        first: bool,
        core: np.ndarray | None,
        session: Session | None,
        deadline: float,
        future: asyncio.Future[Answer],
    ) -> None:
        self.version, self.row, self.sample, self.noise = version, row, sample, noise
        self.first, self.core, self.session = first, core, session
        self.deadline, self.future = deadline, future

    def value(self, name: str) -> Any:
        """The input `name` of this row."""
        if name == "sample":
            return self.sample
        if name == "first":
            return self.first
        if name == "noise":
            return 0.0 if self.noise is None else self.noise
        if name == "core":
            core = self.core if self.session is None else self.session.core
            return 0.0 if core is None else core
        value = self.row.mask if name == "action_mask" else self.row.present
        return True if value is None else value


class Batches:
    """The queue of rows that wait, oldest first.

    Args:
        most: rows that may wait; more are refused with 503.
        wait: seconds for which the first row of a batch waits for others, unless the batch is full before; 0: the rest
              of this turn of the event loop.
    """

    def __init__(self, most: int, wait: float, metrics: Metrics) -> None:
        self._most, self._wait, self._metrics = most, wait, metrics
        self._queue: deque[Item] = deque()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None  # of the rows that wait for others
        self._held = 0  # rows that wait for an earlier one of their session

    def __len__(self) -> int:
        return len(self._queue) + self._held

    def room(self, rows: int) -> None:
        """Refused with 503 if so many rows more may not wait, and with 413 if they never may."""
        if rows > self._most:
            raise Refused(413, "the request has more rows than may wait", "batch", f"at most {self._most}", str(rows))
        if len(self) + rows > self._most:
            raise Refused(503, f"the queue is full: {len(self)} rows wait", retry=1)

    def add(self, item: Item) -> None:
        """Let a row wait; its future gets an `Answer`, or Refused."""
        session = item.session
        if session is not None:
            if session.busy:
                session.waiting.append(item)
                self._held += 1
                return
            if not _continues(session, item):
                return
            session.busy = True
        self._queue.append(item)
        if not self._wait or len(self._queue) >= item.version.model.largest:
            self._schedule()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait, self._schedule)

    def _schedule(self) -> None:
        """Compute what waits in the next turn of the event loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        queue, now = self._queue, asyncio.get_running_loop().time()
        if not queue:
            return
        version, items, others = queue[0].version, list[Item](), list[Item]()
        while queue and len(items) < version.model.largest:
            item = queue.popleft()
            if item.future.done():  # its client is gone
                self._done(item)
            elif item.deadline < now:
                item.future.set_exception(Refused(504, "the deadline passed while the request waited"))
                self._metrics.late += 1
                self._done(item)
            elif item.version is version:
                items.append(item)
            else:
                others.append(item)
        queue.extendleft(reversed(others))
        if items:
            self._compute(version, items)
        if queue:
            self._schedule()

    def _compute(self, version: Version, items: list[Item]) -> None:
        """Computes a batch, and hands out its answers."""
        try:
            outputs = version.compute(items)
            finite = [bool(np.isfinite(array).all()) for array in outputs.values() if array.dtype.kind == "f"]
            if not all(finite):
                raise ValueError("the policy returned numbers that are not finite")
            actions = version.codec.answers(outputs)
        except Exception as error:  # of the network: this batch fails, the server goes on
            text = " ".join(str(error).split())[:200] or type(error).__name__
            for item in items:
                item.future.set_exception(Refused(500, f"the policy failed: {text}"))
                self._done(item)
            return
        self._metrics.batch(len(items))
        cores = outputs.get("next_core")
        for b, item in enumerate(items):
            if item.session is not None and cores is not None:
                item.session.core = cores[b].copy()
            item.future.set_result(Answer(actions[b], outputs, b))
            self._done(item)

    def _done(self, item: Item) -> None:
        """Let the next row of the session follow."""
        session = item.session
        if session is None:
            return
        session.busy = False
        while session.waiting and not session.busy:  # one that is refused lets the next one follow
            self._held -= 1
            self.add(session.waiting.popleft())


def _continues(session: Session, item: Item) -> bool:
    """Whether a row of a session has the memory that it needs; otherwise its client gets 409."""
    if item.first:
        session.core = None  # also if this request fails: what follows is no part of the episode before
    elif item.version.model.interface.core_size and session.core is None and not item.future.done():
        message = "session: its first request failed; begin an episode with first: true"
        item.future.set_exception(Refused(409, message, "session"))
        return False
    return True
