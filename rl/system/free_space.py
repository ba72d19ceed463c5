"""Checks before a run starts that its replay fits into memory or on the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rltrain.errors import ConfigError

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def make_sure(needed: int, on_disk: Path | None) -> str:
    """A line with the size of the replay and the free space.

    Args:
        needed:  bytes of the full replay.
        on_disk: the folder of its files, which need not exist yet; None for memory.

    Raises:
        ConfigError: it does not fit; one line with both numbers and the remedy.
    """
    where, have = ("on disk", free_disk(on_disk)) if on_disk is not None else ("in memory", free_memory())
    if have is not None and needed > have:
        remedy = "a smaller --capacity" if on_disk is not None else "a smaller --capacity or --replay-on-disk"
        raise ConfigError(
            f"the replay would take {amount(needed)} {where} when it is full, and {amount(have)} is free; "
            f"ask for {remedy}"
        )
    of = "" if have is None else f" of {amount(have)} free"
    return f"the replay takes {amount(needed)}{of} {where} when it is full, and up to as much in checkpoints on disk"


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def free_memory() -> int | None:
    """Bytes of memory that are available without swapping, within a container's limit; None if unknown."""
    limits = [limit for limit in (_available(), _group()) if limit is not None]
    return min(limits, default=None)


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # an upper bound: part of it is in use
    except (OSError, ValueError, AttributeError):
        return None


def _group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes left of the memory limit of this process's control group; page cache counts as free. None: no limit."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text())
        parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(int(limit) - used + int(parts.get("inactive_file", 0)), 0)
    except (OSError, ValueError):
        return None


def amount(size: float) -> str:
    """Bytes for a person: 512 B, 1.5 MiB."""
    for unit in UNITS:
        if size < 1024 or unit == UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
