"""An actor on another machine, as the scheduler sees it: what it answers comes in through the client's event loop."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from multiprocessing import Pipe
from typing import Any

import numpy as np

from rltrain.rollout.shared_memory.heartbeat import HEARTBEAT
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.workers.handle import ActorLost

Run = Callable[[Coroutine[Any, Any, None]], None]  # starts a coroutine in the event loop


class RemoteHandle:
    """Speaks to an actor through its node.

    Answers come in the order of the questions. `waitable` is a pipe with one byte in it for each that has come.

    Args:
        worker: its number.
        ticket: which of the actors that the run has had on this seat.
        base:   what those before it had counted: see `Life`.
        where:  the node, for messages.
        run:    starts a coroutine in the event loop.
        ask:    (number, needs, method, args) -> ("ok", answer) or ("lost", why).
        needs:  which publication of weights must have come to the node before it is asked something now.
        end:    (why) ends the actor; without a reason in good order.
    """

    def __init__(
        self,
        worker: int,
        ticket: int,
        base: np.ndarray,
        where: str,
        run: Run,
        ask: Callable[[int, int, str, Any], Coroutine[Any, Any, tuple[str, Any]]],
        needs: Callable[[], int],
        end: Callable[[str | None], Coroutine[Any, Any, None]],
    ) -> None:
        self.worker, self.ticket, self.base, self.where = worker, ticket, base, where
        self._run, self._ask, self._needs, self._end = run, ask, needs, end
        self.place: Any = None  # the node, as the cluster keeps it
        self._asked = 0
        self._come: dict[int, Any] = {}  # answers that wait for those before them
        self._next = 0
        self._answers: deque[Any] = deque()
        self._lost: str | None = None
        self._ending = False
        self._pipe, self._bell = Pipe(duplex=False)

    @property
    def waitable(self) -> Any:
        return self._pipe

    @property
    def exit_reason(self) -> str | None:
        return self._lost

    def call(self, method: str, *args: Any) -> None:
        number, self._asked = self._asked, self._asked + 1
        self._run(self._answer(number, self._needs(), method, args))

    async def _answer(self, number: int, needs: int, method: str, args: Any) -> None:
        try:
            kind, answer = await self._ask(number, needs, method, args)
        except Exception as error:  # nobody waits for this coroutine, but for its answer
            kind, answer = "lost", f"what it said cannot be used: {error!r}"
        if kind == "lost":
            self.lose(answer)
            return
        self._come[number] = answer
        while self._lost is None and self._next in self._come:
            self._answers.append(self._come.pop(self._next))
            self._next += 1
            self._ring()

    def tell(self, life: SharedMemory, numbers: list[int]) -> None:
        """Put what the actor has counted on top of what those before it on its seat did."""
        begin = 8 * HEARTBEAT * self.worker
        counts, seconds = life.array(begin, (2,), np.int64), life.array(begin + 24, (2,), np.float64)
        now = np.array(numbers, np.int64)
        counts[:] = self.base[:2] + now[:2]
        seconds[:] = self.base[3:].view(np.float64) + now[3:].view(np.float64)

    def lose(self, why: str) -> None:
        """It answers no more, what has come in already apart."""
        if self._lost is None:
            self._lost = why
            self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # closed meanwhile
            self._bell.send_bytes(b"!")

    def result(self) -> Any:
        try:
            if self._answers or self._lost is None:
                self._pipe.recv_bytes()
        except (OSError, EOFError):
            raise ActorLost(self.worker, self._lost or "it was closed") from None
        if self._answers:
            return self._answers.popleft()
        raise ActorLost(self.worker, f"on {self.where}: {self._lost}")

    def kill(self, why: str) -> None:
        self.lose(why)
        if not self._ending:
            self._ending = True
            self._run(self._end(why))

    def stop(self) -> None:
        """Ask it to end, without waiting; several end side by side."""
        if not self._ending:
            self._ending = True
            self._run(self._end(None))

    def close(self) -> None:
        self.stop()
        self._lost = self._lost or "it was closed"
        self._pipe.close()
        self._run(self._hang_up())

    async def _hang_up(self) -> None:
        """In the event loop, which may be about to ring."""
        self._bell.close()
