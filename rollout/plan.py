"""What a replay is asked for, and whether that can be."""

from __future__ import annotations

from typing import Protocol


class Plan(Protocol):
    """What a replay is asked for: `rltrain.algorithms.protocol.ReplayPlan`."""

    @property
    def capacity(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def gamma(self) -> float: ...
    @property
    def n_step(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def whole(self) -> bool: ...
    @property
    def alpha(self) -> float: ...
    @property
    def beta(self) -> float: ...
    @property
    def priority_eps(self) -> float: ...


def rows_of(streams: int, plan: Plan) -> int:
    """Rows kept of each stream. ValueError where the plan asks for what cannot be."""
    rows = -(-plan.capacity // streams)
    least = max(plan.n_step, plan.length) + 1
    if rows < least:
        raise ValueError(
            f"a replay of {plan.capacity} rows keeps {rows} of each of {streams} streams, and needs {least} at least"
        )
    if (plan.length > 1 or plan.whole) and plan.alpha:
        raise ValueError("sequences are sampled uniformly: length above 1 and priorities do not go together")
    return rows
