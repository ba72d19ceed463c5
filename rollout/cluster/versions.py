"""Versions that must be equal on all machines of a run, and a message for each machine where they are not."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from importlib import metadata

PACKAGES = ("rltrain", "torch", "gymnasium")


def own_versions() -> dict[str, str | None]:
    """The versions of this machine."""
    versions: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info))}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return relevant(versions)


def relevant(versions: Mapping[str, str | None]) -> dict[str, str | None]:
    """The parts that must be equal: Python's major and minor version, and PACKAGES without build tags such as +cu126.

    Empty if `versions` is empty.
    """
    if not versions:
        return {}
    python = ".".join(str(versions.get("python")).split(".")[:2])
    return {"python": python, **{name: (versions.get(name) or "").partition("+")[0] or None for name in PACKAGES}}


def differences(workers: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """A message for each worker whose versions differ from ours."""
    own, lines = own_versions(), []
    for address, versions in workers.items():
        wrong = [
            f"{name} {version or 'missing'} (here {own[name]})"
            for name, version in versions.items()
            if version != own[name]
        ]
        if not versions:
            lines.append(f"the node {address} does not answer")
        elif wrong:
            lines.append(f"the node {address} has {', '.join(wrong)}; install the same there")
    return lines
