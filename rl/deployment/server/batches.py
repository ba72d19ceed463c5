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
from rltrain.deployment.server.requests import Row
from rltrain.deployment.server.sessions import Session


class Slot:
    """A served policy by name; `model` is replaced between two batches."""

    def __init__(self, model: Model) -> None:
        self.name = model.name
        self.replace(model)

    def replace(self, model: Model) -> None:
        self.model = model
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
    """One row of a batch's outputs, and the model that computed it."""

    model: Model
    action: Any  # as JSON has it
    outputs: dict[str, np.ndarray]
    at: int  # of the row


class Item:
    """One row that waits."""

    __slots__ = ("core", "deadline", "first", "future", "noise", "row", "sample", "session", "slot")

    def __init__(
        self,
        slot: Slot,
        row: Row,
        sample: bool,
        noise: np.ndarray | None,
        first: bool,
        core: np.ndarray | None,
        session: Session | None,
        deadline: float,
        future: asyncio.Future[Answer],
    ) -> None:
        self.slot, self.row, self.sample, self.noise = slot, row, sample, noise
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
        wait: seconds for which the first row of a batch waits for others; 0: the rest of this turn of the event loop.
    """

    def __init__(self, most: int, wait: float, metrics: Metrics, codecs: Any) -> None:
        self._most, self._wait, self._metrics, self._codecs = most, wait, metrics, codecs
        self._queue: deque[Item] = deque()
        self._scheduled = False
        self._held = 0  # rows that wait for an earlier one of their session

    def __len__(self) -> int:
        return len(self._queue) + self._held

    def room(self, rows: int) -> None:
        """Refused with 503 if so many rows more may not wait."""
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
            session.busy = True
        self._queue.append(item)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            if self._wait:
                loop.call_later(self._wait, self._flush)
            else:
                loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        queue, now = self._queue, asyncio.get_running_loop().time()
        if not queue:
            return
        slot, items, others = queue[0].slot, list[Item](), list[Item]()
        model = slot.model
        while queue and len(items) < model.largest:
            item = queue.popleft()
            if item.future.done():  # its client is gone
                self._done(item)
            elif item.deadline < now:
                item.future.set_exception(Refused(504, "the deadline passed while the request waited"))
                self._metrics.late += 1
                self._done(item)
            elif item.slot is slot:
                items.append(item)
            else:
                others.append(item)
        queue.extendleft(reversed(others))
        if items:
            self._compute(slot, items)
        if queue:
            self._schedule()

    def _compute(self, slot: Slot, items: list[Item]) -> None:
        """Computes a batch, and hands out its answers."""
        model = slot.model
        try:
            outputs = slot.compute(items)
            finite = [bool(np.isfinite(array).all()) for array in outputs.values() if array.dtype.kind == "f"]
            if not all(finite):
                raise ValueError("the policy returned numbers that are not finite")
            actions = self._codecs[slot.name].answers(outputs)
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
            item.future.set_result(Answer(model, actions[b], outputs, b))
            self._done(item)

    def _done(self, item: Item) -> None:
        """Let the next row of the session follow."""
        session = item.session
        if session is None:
            return
        session.busy = False
        if session.waiting:
            self._held -= 1
            self.add(session.waiting.popleft())
