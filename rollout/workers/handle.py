"""The interface of every worker, and the exceptions of workers that are lost."""

from __future__ import annotations

from typing import Any, Protocol

# In place of an actor's number: the evaluating worker, the inference server, the worker that films.
EVALUATOR, SERVER, FILMER = -1, -2, -3


class ActorLost(Exception):
    """A worker cannot continue: it was killed, hangs, or its environment raised. `detail` is for the user."""

    def __init__(self, worker: int, detail: str, seconds: float = 0.0) -> None:
        super().__init__(worker, detail)
        self.worker, self.detail, self.seconds = worker, detail, seconds

    @property
    def who(self) -> str:
        """The worker's name in messages."""
        names = {EVALUATOR: "the evaluating worker", SERVER: "the inference server", FILMER: "the filming worker"}
        return names.get(self.worker, f"worker {self.worker}")

    def __str__(self) -> str:
        return f"{self.who}: {self.detail}"


class NotPlaced(ActorLost):
    """The machine on which an actor was placed was lost before the actor was started: no failure of the actor."""


class Handle(Protocol):
    """A worker: an object in this process or in another, whose methods are called one at a time."""

    worker: int

    def call(self, method: str, *args: Any) -> None:
        """Start `method(*args)`; `result` returns the answer."""

    @property
    def waitable(self) -> Any:
        """An object for `multiprocessing.connection.wait`; None if answers are available at once."""

    @property
    def exit_reason(self) -> str | None:
        """Why there will be no more answers, if `waitable` does not show it; None while there may be."""

    def result(self) -> Any:
        """The answer to the oldest call. Raises ActorLost if there will be none."""

    def kill(self, why: str) -> None:
        """End the worker at once; `result` will then raise ActorLost with `why`."""

    def stop(self) -> None:
        """Ask the worker to end, without waiting."""

    def close(self) -> None:
        """End the worker in good order."""


class NoNode(Exception):
    """No machine is available for an actor at the moment; one may be later."""


class ClusterLost(Exception):
    """The cluster is lost. The text is for the user."""
