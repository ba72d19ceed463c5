"""Whether a replay fits into memory or on the disk, found out before the run begins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rltrain.errors import ConfigError

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def make_sure(needed: int, on_disk: Path | None) -> str:
    """A line about what a replay of `needed` bytes takes, and of how much.

    Args:
        on_disk: the folder its files would lie in, which need not be there yet; None for memory.

    Raises:
        ConfigError: it does not fit; one line with both numbers and what to do.
    """
    where, have = ("on disk", free_disk(on_disk)) if on_disk is not None else ("in memory", free_memory())
    if have is not None and needed > have:
        way = "a smaller --capacity" if on_disk is not None else "a smaller --capacity or --replay-on-disk"
        raise ConfigError(
            f"the replay would take {amount(needed)} {where} when it is full, and {amount(have)} is free; ask for {way}"
        )
    of = "" if have is None else f" of {amount(have)} free"
    return f"the replay takes {amount(needed)}{of} {where} when it is full, and up to as much in checkpoints on disk"


def free_disk(folder: Path) -> int:
    """Bytes that may be written where `folder` is, or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def free_memory() -> int | None:
    """Bytes of memory that can be had without swapping; a container's limit counts. None where nobody tells."""
    found = [bytes_ for bytes_ in (_available(), _group()) if bytes_ is not None]
    return min(found, default=None)


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # of which some is in use; better than nothing
    except (OSError, ValueError, AttributeError):
        return None


def _group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the memory limit of this process's control group leaves, page cache that can be dropped counted as free."""
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
