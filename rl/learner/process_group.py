"""A group of torch.distributed that shares updates: gloo between CPUs, nccl between CUDA devices.

What each process does in it, whichever of them it is: forming it, taking a part of a batch, merging gradients.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pickle
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from rltrain.algorithms.functions.gradient_sync import Merge, Moments
from rltrain.errors import LearnerLost
from rltrain.rollout.trajectories import select_columns
from rltrain.rollout.types import Trajectory

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class Split(NamedTuple):
    """Which of the B' columns, or rows, of a batch are a learner's own."""

    total: int
    begin: int
    end: int


class Shared:
    """The learners of a run, seen from one of them: an `Group` between processes."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._split = Split(0, 0, 0)
        self._valid: Tensor | None = None  # [T, B'] of the whole batch, where it is a Trajectory
        self._buffer = torch.empty(0)
        self.seconds = 0.0  # spent with the others: sending, receiving, waiting

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        """Around all that is done with the others; LearnerLost, in one line, where one is gone."""
        began = time.perf_counter()
        with lost():
            yield
        self.seconds += time.perf_counter() - began

    def take(self, split: Split, valid: Tensor | None) -> None:
        """The next update's part."""
        self._split, self._valid = split, valid

    @property
    def _idle(self) -> bool:
        """Whether the batch had nothing for this one: it looks at another's column, which does not count."""
        return self._split.begin == self._split.end

    def whole(self, valid: Tensor) -> Tensor:
        assert self._valid is not None
        return self._valid

    def places(self, unrolls: Trajectory) -> Tensor:
        total, begin, end = self._split
        counts = self.whole(unrolls.valid)
        if unrolls.core is not None:
            counts = torch.ones(len(unrolls.core), total, dtype=torch.bool)
        column = torch.arange(total).expand(counts.shape)[counts.cpu()]
        here = (column >= begin) & (column < end)
        return (here.cumsum(0) - 1).masked_fill_(~here, -1)

    def part(self, draw: Callable[[int], Tensor], rows: int, dim: int = 0) -> Tensor:
        total, begin, _ = self._split
        return draw(total).narrow(dim, begin, rows)

    def over(self, rows: int | Tensor, told: dict[str, Tensor]) -> Merge:
        return functools.partial(self._merge, rows, told)

    def _merge(self, rows: int | Tensor, told: dict[str, Tensor], grad: Tensor) -> None:
        count = 0 if self._idle else int(rows.sum()) if isinstance(rows, Tensor) else rows
        size = len(grad)
        if len(self._buffer) < size + len(told) + 1 or self._buffer.dtype != grad.dtype:
            self._buffer = torch.empty(size + len(told) + 1, dtype=grad.dtype, device=grad.device)
        buffer = self._buffer[: size + len(told) + 1]
        if count:
            torch.mul(grad, count, out=buffer[:size])
            if told:
                torch.mul(torch.stack([x.detach().to(grad.dtype) for x in told.values()]), count, out=buffer[size:-1])
            buffer[-1] = count
        else:  # means over nothing are no numbers
            buffer.zero_()
        with self._exchange():
            dist.all_reduce(buffer)
        means = buffer[:-1].div_(buffer[-1].clamp(min=1))
        grad.copy_(means[:size])
        for name, mean in zip(list(told), means[size:].clone(), strict=True):
            told[name] = mean

    def moments(self, x: Tensor) -> Moments:
        if self._idle:
            x = x[:0]
        wide = x.double()  # so that equal numbers have no spread
        mean = wide.mean() if len(x) else wide.sum()
        own = torch.stack([torch.full_like(mean, len(x)), mean, (wide - mean).square().sum()])
        each = [torch.empty_like(own) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(each, own)
        counts, means, squares = torch.stack(each, 1)  # [K] each
        count = counts.sum()
        middle = (counts * means).sum() / count.clamp(min=1)
        spread = squares.sum() + (counts * (means - middle).square()).sum()
        return Moments(int(count), middle.to(x.dtype), (spread / (count - 1).clamp(min=1)).to(x.dtype))

    def _send(self, message: Any, to: int) -> None:
        data = np.frombuffer(pickle.dumps(message, protocol=5), np.uint8).copy()
        with self._exchange():
            dist.send(torch.tensor([len(data)]), to)
            dist.send(torch.from_numpy(data), to)

    def _receive(self, sender: int) -> Any:
        length = torch.empty(1, dtype=torch.int64)
        with self._exchange():
            dist.recv(length, sender)
            data = torch.empty(int(length), dtype=torch.uint8)
            dist.recv(data, sender)
        return pickle.loads(data.numpy().data)  # of this run's own processes


def form(rank: int, size: int, folder: str | None, timeout: timedelta) -> None:
    """Form the group of torch.distributed.

    Args:
        folder: where all of its processes meet, if they are on this machine; None: where torchrun says.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    name, before = "GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME")
    with lost():
        if folder is None:
            theirs, _, _ = next(iter(rendezvous("env://", rank, size, timeout=timeout)))
            store: Any = PrefixStore(_attempt(theirs, rank, size, timeout), theirs)
        else:
            store = FileStore(f"{folder}/store", size)
            os.environ[name] = LOOPBACK
        try:
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        finally:
            if folder is not None:
                os.environ.pop(name) if before is None else os.environ.__setitem__(name, before)


def _attempt(store: Any, rank: int, size: int, timeout: timedelta) -> str:
    """A name for what begins now, on which all processes agree that are there now.

    torchrun's store outlives restarts, and so do addresses of processes that are gone; its own counts of restarts
    differ between machines. So each process says who it is, and the first tells each of them the name.
    """
    mine, end = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    if rank > 0:
        store.set(f"rltrain-hello-{rank}", mine)
        name = str(store.get(f"rltrain-welcome-{mine}").decode())  # waits for it
        store.set(f"rltrain-agreed-{name}-{rank}", "")
        return name
    missing = set(range(1, size))
    while missing:
        for other in list(missing):
            if store.check([f"rltrain-agreed-{mine}-{other}"]):
                missing.remove(other)
            elif store.check([f"rltrain-hello-{other}"]):  # which may be of one that is gone
                store.set(f"rltrain-welcome-{store.get(f'rltrain-hello-{other}').decode()}", mine)
        if missing and time.monotonic() > end:
            raise RuntimeError(f"timed out waiting for learner {min(missing)}")
        time.sleep(0.05)
    return mine


def dissolve() -> None:
    """End what `form` made, if it did: those that wait for this process hear of it."""
    with contextlib.suppress(RuntimeError, AssertionError, ValueError):
        dist.destroy_process_group()


@contextlib.contextmanager
def lost() -> Iterator[None]:
    """What torch.distributed raises when another process is gone, in one line."""
    try:
        yield
    except RuntimeError as error:
        where = re.compile(r"^\[.*?\]:? ?")  # a line of its source
        raise LearnerLost(where.sub("", str(error).strip().splitlines()[0])) from None


def parts_of(batch: Any, size: int) -> list[tuple[Split, Any]]:
    """A batch in `size` parts along B, as even as can be; one that would be empty gets the first column to look at."""
    total = len(batch.stream if isinstance(batch, Trajectory) else batch.reward)
    bounds = [total * rank // size for rank in range(size + 1)]
    found = []
    for begin, end in itertools.pairwise(bounds):
        seen = (begin, end) if begin < end else (0, 1)
        found.append((Split(total, begin, end), select_columns(batch, *seen)))
    return found


def as_arrays(node: Any) -> Any:
    """A state with arrays for tensors: a tensor that is a view would take its whole storage along."""
    if isinstance(node, Tensor):
        return node.detach().cpu().numpy()
    if isinstance(node, dict):
        return {key: as_arrays(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [as_arrays(value) for value in node]
    return node
