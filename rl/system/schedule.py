"""When a recurring event of a run is due: an evaluation, a checkpoint, a copy of the policy for the opponents' pool."""

from __future__ import annotations


class Schedule:
    """Due at the first step at or after each multiple of `every`.

    `next` belongs to a checkpoint: an event may be due there that has not happened yet, and a resumed run must not
    miss it.

    Args:
        every: steps between two events; 0: there are none.
        first: step of the first event. None: `every`.

    Attributes:
        next: the step from which the next event is due.
    """

    def __init__(self, every: int, first: int | None = None) -> None:
        self._every = every
        self.next = every if first is None else first

    def due(self, steps: int) -> bool:
        """True if the next event is due when the run has made `steps` steps."""
        return self._every > 0 and steps >= self.next

    def done(self, steps: int) -> None:
        """The event happened at `steps`; the next one is due at the following multiple."""
        if self._every:
            self.next = (steps // self._every + 1) * self._every
