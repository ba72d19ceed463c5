"""What must be the same on all machines of a run, and what to say where it is not."""

from __future__ import annotations

import contextlib
import sys
from importlib import metadata

PACKAGES = ("rltrain", "torch", "gymnasium")


def own_versions() -> dict[str, str | None]:
    """What workers must have too."""
    told: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info))}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            told[name] = metadata.version(name)
    return that_count(told)


def that_count(told: dict[str, str | None]) -> dict[str, str | None]:
    """Those that count, of all that Dask tells."""
    python = ".".join(str(told.get("python")).split(".")[:2])
    return {"python": python, **{name: told.get(name) for name in PACKAGES}}


def differs(found: dict[str, dict[str, str | None]]) -> list[str]:
    """A line for each worker whose versions are not ours."""
    own, lines = own_versions(), []
    for address, versions in found.items():
        wrong = [
            f"{name} {versions[name] or 'missing'} (here {own[name]})" for name in own if versions[name] != own[name]
        ]
        if wrong:
            lines.append(f"the node {address} has {', '.join(wrong)}; install the same there")
    return lines
