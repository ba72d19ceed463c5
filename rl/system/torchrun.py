"""What torchrun says of the processes that it starts: `torchrun --nproc-per-node 2 -m rltrain.train --algo ppo ...`.

It sets environment variables, and when a process dies it ends all of them and starts them again. The first then goes
on with the run that it had begun.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    pass


class Rank(NamedTuple):
    """Of a process among those that share each update."""

    rank: int
    size: int
    local: int  # its number on its machine


def current_rank() -> Rank | None:
    """Where torchrun has put this process; None if it did not start it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Rank(rank, size, local)


def launch() -> str | None:
    """What tells this call of torchrun from others, the same after a restart; None without it."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        return None
    return run if run != "none" else f"{socket.gethostname()}:{os.getppid()}"  # it has not been given a name
