"""What must be the same on all machines of a run, and what to say where it is not."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from importlib import metadata

PACKAGES = ("rltrain", "torch", "gymnasium")


def own_versions() -> dict[str, str | None]:
    """What workers must have too."""
    told: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info))}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            told[name] = metadata.version(name)
    return that_count(told)


def that_count(told: Mapping[str, str | None]) -> dict[str, str | None]:
    """Those that count, of all that Dask tells; nothing where it told nothing.

    Of Python 3.x; whether torch is built for CUDA does not count.
    """
    if not told:
        return {}
    python = ".".join(str(told.get("python")).split(".")[:2])
    return {"python": python, **{name: (told.get(name) or "").partition("+")[0] or None for name in PACKAGES}}


def differs(found: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """A line for each worker whose versions are not ours."""
    own, lines = own_versions(), []
    for address, versions in found.items():
        wrong = [
            f"{name} {versions[name] or 'missing'} (here {own[name]})"
            for name in versions
            if versions[name] != own[name]
        ]
        if not versions:
            lines.append(f"the node {address} does not answer")
        elif wrong:
            lines.append(f"the node {address} has {', '.join(wrong)}; install the same there")
    return lines
