"""Checks of settings that all families of algorithms share."""

from __future__ import annotations

from typing import Literal

Activation = Literal["tanh", "relu"]


def check_network(widths: tuple[int, ...], memory: str, sequence: int, unroll: int) -> None:
    """What holds between settings of a network; raises ValueError with one line."""
    check_widths(widths)
    if memory != "none" and unroll % sequence:
        raise ValueError(f"sequence must divide unroll, got sequence {sequence} and unroll {unroll}")


def check_widths(widths: tuple[int, ...]) -> None:
    """ValueError with one line if a layer has no unit."""
    if any(width < 1 for width in widths):
        raise ValueError(f"widths must each be at least 1, got {','.join(map(str, widths))}")
