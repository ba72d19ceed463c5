"""The one shape every backend has: start something, wait for it, ask, publish, close."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    pass


EVALUATOR, SERVER = -1, -2  # in place of an actor's number: the evaluating worker, and the inference server


class ActorLost(Exception):
    """An actor cannot go on: killed, hung, or its environment raised. `detail` is for the person at the keyboard."""

    def __init__(self, worker: int, detail: str, seconds: float = 0.0) -> None:
        super().__init__(worker, detail)
        self.worker, self.detail, self.seconds = worker, detail, seconds

    @property
    def who(self) -> str:
        """What it is called."""
        names = {EVALUATOR: "the evaluating worker", SERVER: "the inference server"}
        return names.get(self.worker, f"worker {self.worker}")

    def __str__(self) -> str:
        return f"{self.who}: {self.detail}"


class Handle(Protocol):
    """A worker: an object living here or in a process, whose methods are called one at a time."""

    worker: int

    def call(self, method: str, *args: Any) -> None:
        """Ask for `method(*args)`; the answer is fetched with `result`."""

    @property
    def waitable(self) -> Any:
        """Something for `multiprocessing.connection.wait`, or None where the answer is already there."""

    @property
    def exit_reason(self) -> str | None:
        """Why it can answer no more, where `waitable` does not tell; None while it can."""

    def result(self) -> Any:
        """The answer. Raises ActorLost if there will be none."""

    def kill(self, why: str) -> None:
        """End it without asking; `result` will then raise ActorLost with `why`."""

    def stop(self) -> None:
        """Ask it to end, without waiting for that."""

    def close(self) -> None:
        """End it in good order."""


class NoNode(Exception):
    """There is no machine for an actor at the moment; later there may be."""


class ClusterLost(Exception):
    """There is no cluster any more. The text is for the person at the keyboard."""
