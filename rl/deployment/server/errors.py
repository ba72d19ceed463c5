"""What a request can be answered with in place of an action."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """A request that gets no action.

    Args:
        status:   of HTTP.
        message:  one line.
        field:    of the request, such as obs[2]; "" if it is not about one.
        expected: in words.
        received: in words.
        retry:    seconds after which the same request may succeed, of a 503.
    """

    def __init__(
        self, status: int, message: str, field: str = "", expected: str = "", received: str = "", retry: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.retry = status, retry
        parts = {"message": message, "field": field, "expected": expected, "received": received}
        self.body: dict[str, Any] = {"error": {key: value for key, value in parts.items() if value}}


def wrong(field: str, expected: str, received: str) -> Refused:
    """400: a field of the request has a wrong value."""
    received = received if len(received) <= 200 else f"{received[:200]}..."
    return Refused(400, f"{field}: expected {expected}, received {received}", field, expected, received)
