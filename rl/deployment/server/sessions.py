"""The memory of policies between the requests of a session: bounded in number and in time."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import numpy as np

from rltrain.deployment.server.errors import Refused


class Session:
    """One client's episode after episode. Its requests are answered one after the other.

    Attributes:
        policy:  the name of the policy that it keeps to.
        core:    the memory after the last answer.
        busy:    a request of it is being computed.
        waiting: requests that came meanwhile, in order.
    """

    __slots__ = ("busy", "core", "number", "policy", "used", "waiting")

    def __init__(self, policy: str, number: int) -> None:
        self.policy, self.number = policy, number
        self.core: np.ndarray | None = None
        self.busy = False
        self.waiting: deque[Any] = deque()
        self.used = 0.0


class Sessions:
    """The sessions of this process.

    Args:
        most: their number. A new one replaces the oldest that has not been used for `ttl`; else it is refused.
        ttl:  seconds without a request after which a session ends.
    """

    def __init__(self, most: int, ttl: float) -> None:
        self._most, self._ttl = most, ttl
        self._by_id: OrderedDict[str, Session] = OrderedDict()  # the one that was used longest ago comes first
        self._count = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def purge(self, now: float) -> None:
        """Forget the sessions whose time is over."""
        while self._by_id:
            name, session = next(iter(self._by_id.items()))
            if now - session.used < self._ttl or session.busy:
                return
            del self._by_id[name]

    def get(self, name: str, first: bool, policy: str, needs_memory: bool, now: float) -> Session:
        """The session with this id; a new one if the request begins an episode.

        Raises:
            Refused: 409, the session is not known or has ended, or belongs to another policy; 503, there are too many.
        """
        self.purge(now)
        session = self._by_id.get(name)
        if session is not None and session.policy != policy:
            if not first or session.busy:
                raise Refused(
                    409, f"session: it belongs to the policy {session.policy}", "session", session.policy, policy
                )
            session = None
        if session is None:
            if not first and needs_memory:
                raise Refused(
                    409, "session: it is not known here, or has ended; begin an episode with first: true", "session"
                )
            if len(self._by_id) >= self._most and name not in self._by_id:
                raise Refused(503, f"session: there are {self._most} sessions already", "session", retry=60)
            self._count += 1
            session = self._by_id[name] = Session(policy, self._count)
        session.used = now
        self._by_id.move_to_end(name)
        return session

    def policy_of(self, name: str) -> str | None:
        """The policy that a session keeps to; None if there is no such session."""
        session = self._by_id.get(name)
        return None if session is None else session.policy

    def end(self, name: str) -> bool:
        """Forget a session; False if there is none."""
        return self._by_id.pop(name, None) is not None

    def end_all(self, policy: str) -> None:
        """End the sessions of a policy, whose memory has another meaning from now on."""
        for name in [name for name, session in self._by_id.items() if session.policy == policy]:
            del self._by_id[name]
