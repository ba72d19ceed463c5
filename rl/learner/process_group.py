"""The process group of learners that share updates: gloo between CPUs, nccl between CUDA devices.

What every learner needs: forming the group, its shard of a batch, averaging, messages.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import re
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from rltrain.algorithms.functions.gradient_sync import Moments
from rltrain.algorithms.functions.rng import Rng, Shard
from rltrain.algorithms.protocol import Algorithm, Update, has_members, members_of
from rltrain.errors import LearnerLost
from rltrain.rollout.trajectories import select_columns
from rltrain.rollout.types import Trajectory, Transition

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class ProcessGroup:
    """The processes that share updates, seen from one of them."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.seconds = 0.0  # spent in exchanges: sending, receiving, waiting
        self._syncs: list[ProcessGroupSync] = []  # one for each member of the algorithm

    def attach(self, algorithm: Algorithm) -> None:
        """Let the algorithm share its updates through this object."""
        self._syncs = [ProcessGroupSync(self, member) for member in members_of(algorithm)]

    def take(self, shards: Sequence[Shard]) -> None:
        """Set the part of the next batch of each member that this learner holds."""
        for sync, shard in zip(self._syncs, shards, strict=True):
            sync.take(shard)

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """Measures an exchange with the other learners; LearnerLost, with one line, if one of them is gone."""
        began = time.perf_counter()
        with lost():
            yield
        self.seconds += time.perf_counter() - began

    def _send(self, message: Any, to: int) -> None:
        data = np.frombuffer(pickle.dumps(message, protocol=5), np.uint8).copy()
        with self.exchange():
            dist.send(torch.tensor([len(data)]), to)
            dist.send(torch.from_numpy(data), to)

    def _receive(self, sender: int) -> Any:
        length = torch.empty(1, dtype=torch.int64)
        with self.exchange():
            dist.recv(length, sender)
            data = torch.empty(int(length), dtype=torch.uint8)
            dist.recv(data, sender)
        return pickle.loads(data.numpy().data)  # sent by a process of this run


class ProcessGroupSync:
    """The `GradientSync` of one algorithm between processes, seen from one of them.

    Args:
        group:     the processes.
        algorithm: gets this object as its `sync`.
    """

    def __init__(self, group: ProcessGroup, algorithm: Any) -> None:
        self._group = group
        self.rank, self.size = group.rank, group.size
        self._shard = Shard(0, 0, 0)
        self._rngs = [part for part in algorithm.parts().values() if isinstance(part, Rng)]
        self._buffer = torch.empty(0)
        algorithm.sync = self

    def take(self, shard: Shard) -> None:
        """Set the part of the next batch that this learner holds."""
        self._shard = shard
        for rng in self._rngs:
            rng.shard = shard

    @property
    def _idle(self) -> bool:
        """True if no row of the batch belongs to this learner: the rows that it has got have weight 0."""
        return self._shard.begin == self._shard.end

    def average(self, grad: Tensor, rows: int | Tensor, metrics: dict[str, Tensor]) -> None:
        count = 0 if self._idle else int(rows.sum()) if isinstance(rows, Tensor) else rows
        size = len(grad)
        if len(self._buffer) < size + len(metrics) + 1 or self._buffer.dtype != grad.dtype:
            self._buffer = torch.empty(size + len(metrics) + 1, dtype=grad.dtype, device=grad.device)
        buffer = self._buffer[: size + len(metrics) + 1]
        if count:
            torch.mul(grad, count, out=buffer[:size])
            if metrics:
                values = torch.stack([value.detach().to(grad.dtype) for value in metrics.values()])
                torch.mul(values, count, out=buffer[size:-1])
            buffer[-1] = count
        else:  # a mean over no rows is nan
            buffer.zero_()
        with self._group.exchange():
            dist.all_reduce(buffer)
        means = buffer[:-1].div_(buffer[-1].clamp(min=1))
        grad.copy_(means[:size])
        metrics.update(zip(metrics, means[size:].clone(), strict=True))

    def moments(self, x: Tensor, valid: Tensor | None = None) -> Moments:
        x = x.reshape(-1) if valid is None else x[valid]
        if self._idle:
            x = x[:0]
        wide = x.double()  # so that equal numbers have variance 0
        mean = wide.mean() if len(x) else wide.sum()
        own = torch.stack([torch.full_like(mean, len(x)), mean, (wide - mean).square().sum()])
        each = [torch.empty_like(own) for _ in range(self.size)]
        with self._group.exchange():
            dist.all_gather(each, own)
        counts, means, squares = torch.stack(each, 1)  # [K] each
        count = counts.sum()
        mean = (counts * means).sum() / count.clamp(min=1)
        total = squares.sum() + (counts * (means - mean).square()).sum()
        return Moments(mean.to(x.dtype), (total / (count - 1).clamp(min=1)).to(x.dtype))

    def assign(self, x: Tensor, index: Tensor, rows: Tensor) -> None:
        known, values = torch.zeros(len(x), dtype=x.dtype, device=x.device), torch.zeros_like(x)
        if not self._idle:
            known[index], values[index] = 1, rows
        both = torch.cat([values.flatten(1), known[:, None]], 1)
        with self._group.exchange():
            dist.all_reduce(both)  # one learner has the row, and the others have zeros: the sum is exact
        assigned = both[:, -1] > 0
        x[assigned] = both[assigned, :-1].view(-1, *x.shape[1:])


def form(rank: int, size: int, folder: str | None, timeout: timedelta) -> None:
    """Form the process group of torch.distributed.

    Args:
        folder: where its processes meet, if they are all on this machine; None: at torchrun's rendezvous.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    name, before = "GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME")
    with lost():
        if folder is None:
            shared, _, _ = next(iter(rendezvous("env://", rank, size, timeout=timeout)))
            store: Store = PrefixStore(_attempt(shared, rank, size, timeout), shared)
        else:
            store = FileStore(f"{folder}/store", size)
            os.environ[name] = LOOPBACK
        try:
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        finally:
            if folder is not None:
                os.environ.pop(name) if before is None else os.environ.__setitem__(name, before)


def _attempt(store: Store, rank: int, size: int, timeout: timedelta) -> str:
    """A name for this start of the group, on which all running processes agree.

    torchrun's store survives restarts, and so do the addresses of processes that have ended; its own restart counts
    differ between machines. So each process writes an id of its own, and rank 0 answers each of them with the name.
    """
    mine, end = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    if rank > 0:
        store.set(f"rltrain-hello-{rank}", mine)
        name = str(store.get(f"rltrain-welcome-{mine}").decode())  # blocks until rank 0 has answered
        store.set(f"rltrain-agreed-{name}-{rank}", "")
        return name
    missing = set(range(1, size))
    while missing:
        for other in list(missing):
            if store.check([f"rltrain-agreed-{mine}-{other}"]):
                missing.remove(other)
            elif store.check([f"rltrain-hello-{other}"]):  # possibly of a process that has ended
                store.set(f"rltrain-welcome-{store.get(f'rltrain-hello-{other}').decode()}", mine)
        if missing and time.monotonic() > end:
            raise RuntimeError(f"timed out waiting for learner {min(missing)}")
        time.sleep(0.05)
    return mine


def dissolve() -> None:
    """Destroy the process group, if there is one, so that processes that wait for this one get an error."""
    with contextlib.suppress(RuntimeError, AssertionError, ValueError):
        dist.destroy_process_group()


@contextlib.contextmanager
def lost() -> Iterator[None]:
    """Turns the error of torch.distributed about a lost process into a LearnerLost of one line."""
    try:
        yield
    except RuntimeError as error:
        location = re.compile(r"^\[.*?\]:? ?")  # file and line of its source
        raise LearnerLost(location.sub("", str(error).strip().splitlines()[0])) from None


def shards_of(batch: Trajectory | Transition, size: int, burn_in: int | None = None) -> list[tuple[Shard, Any]]:
    """`size` shards of a batch, of equal size as far as possible, each with its columns or samples.

    A shard without a valid row is empty. So that its learner can go through the same code as all others, it gets the
    first column that has a valid row, with weight 0.

    Args:
        burn_in: of a replay's sequences, the number of rows that are not learnt from. None: of unrolls with memory,
                 whole sequences are learnt from.
    """
    items, first = None, 0
    total = len(batch.reward)
    if isinstance(batch, Trajectory):
        total = len(batch.stream)
        valid = batch.valid.cpu()
        if burn_in is not None:
            items = valid = valid[burn_in:]
        elif batch.core is None:
            items = valid
        else:
            items = torch.ones(len(batch.core), total, dtype=torch.bool)
        filled = valid.any(0)  # [B]
        first = int(filled.int().argmax())
    bounds = [total * rank // size for rank in range(size + 1)]
    shards = []
    for begin, end in itertools.pairwise(bounds):
        if begin == end or (items is not None and not filled[begin:end].any()):
            shards.append((Shard(total, begin, begin, items), select_columns(batch, first, first + 1)))
        else:
            shards.append((Shard(total, begin, end, items), select_columns(batch, begin, end)))
    return shards


def shards_of_members(algorithm: Algorithm, batch: Any, size: int) -> list[list[tuple[Shard, Any]]]:
    """`size` shards of a batch: of each learner a list, with a shard and its columns for each member."""
    batches = algorithm.member_batches(batch) if has_members(algorithm) else [batch]
    burn_in = getattr(algorithm.plan, "burn_in", None)
    return [list(parts) for parts in zip(*(shards_of(one, size, burn_in) for one in batches), strict=True)]


def update_members(algorithm: Algorithm, parts: list[Any], progress: float) -> Update:
    """One update of the algorithm with this learner's part of the batch of each member."""
    return algorithm.update_members(parts, progress) if has_members(algorithm) else algorithm.update(parts[0], progress)


def as_arrays(node: Any) -> Any:
    """A state with arrays in place of tensors: pickling a tensor that is a view would copy its whole storage."""
    if isinstance(node, Tensor):
        return node.detach().cpu().numpy()
    if isinstance(node, dict):
        return {key: as_arrays(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [as_arrays(value) for value in node]
    return node
