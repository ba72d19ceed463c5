"""What torchrun says of the processes that it starts: `torchrun --nproc-per-node 2 -m rltrain.train --algo ppo ...`.

It sets environment variables, and when a process dies it ends all of them and starts them again. The first then goes
on with the run that it had begun.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rltrain.config import RunConfig

LAUNCH = "launch"  # key in run.json
RUN_FILE = "run.json"


class Place(NamedTuple):
    """Of a process among those that share each update."""

    rank: int
    size: int
    local: int  # its number on its machine


def place() -> Place | None:
    """Where torchrun has put this process; None if it did not start it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Place(rank, size, local)


def launch() -> str | None:
    """What tells this call of torchrun from others, the same after a restart; None without it."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        return None
    return run if run != "none" else f"{socket.gethostname()}:{os.getppid()}"  # it has not been given a name


def begun(config: RunConfig) -> Path | None:
    """The newest such run that this call of torchrun began, if processes of it were lost; None if none was."""
    found, asked = [], (config.algo, config.env_name, config.seed)
    for file in Path(config.out).glob(f"*/{RUN_FILE}"):
        try:
            said = json.loads(file.read_text())
            same = (said["config"]["algo"], said["config"]["env"], said["config"]["seed"]) == asked
            if same and said.get(LAUNCH) == launch() and file.stat().st_mtime > _agent_began():
                found.append(file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return max(found, key=lambda file: file.stat().st_mtime).parent if found else None


def _agent_began() -> float:
    """When the process of torchrun on this machine began: what it began is younger."""
    import psutil

    return float(psutil.Process(os.getppid()).create_time())
