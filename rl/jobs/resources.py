"""What a job requests, and what this machine has: cores, GPUs and memory."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rltrain.errors import ConfigError
from rltrain.system.free_space import amount

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class Request:
    """The resources of one job."""

    cores: int = 1
    gpus: int = 0
    memory: int | None = None  # bytes; None: not limited

    @classmethod
    def of(cls, cores: Any = 1, gpus: Any = 0, memory: Any = None) -> Request:
        """A checked request. `memory` is bytes, or text as "2G" or "512 MiB"; ConfigError for a wrong value."""
        for name, value, least in (("cores", cores, 1), ("gpus", gpus, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
        return cls(cores, gpus, None if memory is None else _bytes(memory))


def _bytes(memory: Any) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", str(memory).lower())
    size = 0 if match is None or isinstance(memory, bool) else int(float(match[1]) * UNITS[match[2]])
    if size < 1:
        raise ConfigError(f"memory must be a number of bytes, or text as 2G or 512M, got {memory!r}")
    return size


@dataclass(frozen=True)
class Machine:
    """The cores and GPUs that this process can use, and the machine's memory."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...]
    memory: int | None

    @classmethod
    def here(cls) -> Machine:
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = sorted(os.sched_getaffinity(0)) if has_affinity else range(os.cpu_count() or 1)
        return cls(tuple(cores), _gpus(), _memory())

    def refuse(self, request: Request) -> None:
        """ConfigError in one line if this machine can never grant the request."""
        if request.cores > len(self.cores):
            raise ConfigError(f"cores {request.cores}: this process can use {len(self.cores)} of this machine")
        if request.gpus > len(self.gpus):
            raise ConfigError(f"gpus {request.gpus}: this process can use {len(self.gpus)} of this machine")
        if request.memory is not None and self.memory is not None and request.memory > self.memory:
            raise ConfigError(f"memory {amount(request.memory)}: this machine has {amount(self.memory)}")

    def room(self, request: Request) -> int:
        """How many jobs with this request fit into it."""
        parts = [len(self.cores) // request.cores]
        if request.gpus:
            parts.append(len(self.gpus) // request.gpus)
        if request.memory is not None and self.memory is not None:
            parts.append(self.memory // request.memory)
        return min(parts)


def _gpus() -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip() not in ("", "-1"))
    return tuple(sorted(path.name[6:] for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()))


def _memory() -> int | None:
    """Bytes of memory of the machine, within the limit of a container; None if unknown."""
    sizes: list[int] = []
    try:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError, AttributeError):
        pass
    return min(sizes, default=None)


def own_memory(pids: list[int]) -> int:
    """Bytes of memory that these processes do not share with files or shared memory."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        match = re.search(r"RssAnon:\s*(\d+) kB", text)
        total += int(match[1]) * 1024 if match else 0
    return total
