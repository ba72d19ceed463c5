"""The rank of this process under torchrun: `torchrun --nproc-per-node 2 -m rltrain.train --algo ppo ...`.

torchrun sets environment variables. When a process dies, it ends all processes and starts them again; rank 0 then
resumes the run that it had started.
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple


class Rank(NamedTuple):
    """The place of a process among the learners."""

    rank: int
    size: int
    local: int  # the rank on its machine


def current_rank() -> Rank | None:
    """The rank of this process; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Rank(rank, size, local)


def launch() -> str | None:
    """An identifier of this call of torchrun, which a restart does not change; None without torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        return None
    return run if run != "none" else f"{socket.gethostname()}:{os.getppid()}"  # no --rdzv-id was given
