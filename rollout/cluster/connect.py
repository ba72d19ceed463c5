"""Connects to a Dask cluster, by its address or scheduler file, or starts one on this machine."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import dask
from distributed import Client, LocalCluster, get_worker
from distributed.security import Security

from rltrain.rollout.cluster.nodes import Nodes
from rltrain.rollout.workers.cleanup import name_prefix, own_folder
from rltrain.rollout.workers.handle import ClusterLost

CONNECT_SECONDS = 20.0


# A learner may hold the interpreter for a long time, which must neither end connections nor cause warnings.
SETTINGS = {"distributed.comm.timeouts.connect": "20s", "distributed.admin.tick.limit": "1h"}


Kind = TypeVar("Kind", bound=Nodes[Any])


def connect(
    kind: Callable[..., Kind], where: Any, workers: int, limit: float, tls: dict[str, str] | None = None
) -> Kind:
    """Connect to a cluster.

    Args:
        kind:    makes the result of a client: a subclass of `Nodes`.
        where:   tcp://HOST:PORT, a scheduler file, or a `distributed.Client`; None starts a cluster on this machine.
        workers: number of actors that a cluster on this machine has room for.
        limit:   seconds that the run waits for a node when there is none.
        tls:     files of Dask's Security: tls_ca_file, tls_client_cert, tls_client_key.

    Raises:
        ClusterLost: there is no scheduler, or it refuses the connection.
    """
    if isinstance(where, Client):
        if where.status != "running" or where.scheduler is None:
            raise ClusterLost("no scheduler can be reached by this distributed.Client: it was closed")
        return kind(where, lambda: None, limit)
    dask.config.set(SETTINGS)
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # this package reports what matters
    security = Security(require_encryption=True, **tls) if tls else None
    if where is None:
        return _own(kind, max(workers, 1), limit)
    if "://" in where:
        return _client(kind, where, limit, security=security)
    return _client(kind, None, limit, security=security, scheduler_file=str(where))


def _own(kind: Callable[..., Kind], room: int, limit: float) -> Kind:
    """A cluster of one node, which is part of this process; the actors are processes of this machine."""
    # within the folder that the fork server removes if this process is killed; without a fork server the next run does
    folder = tempfile.mkdtemp(prefix=name_prefix(), dir=own_folder())
    own = LocalCluster(
        1,
        threads_per_worker=room,
        processes=False,
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
        local_directory=folder,
        scheduler_kwargs={"local_directory": folder},
        memory_limit=0,  # the worker must not watch the memory of the learner
    )

    def close() -> None:
        own.close()
        shutil.rmtree(folder, ignore_errors=True)

    cluster = _client(kind, own, limit, close)
    cluster.own = True
    return cluster


def _client(
    kind: Callable[..., Kind], address: Any, limit: float, then: Callable[[], None] | None = None, **ways: Any
) -> Kind:
    """Connect a client that the cluster closes; then `then` is called."""
    name = address if isinstance(address, str) else ways.get("scheduler_file", "the cluster on this machine")
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False, direct_to_workers=True, **ways)
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        if then is not None:
            then()
        text = " ".join(str(error).split()) or type(error).__name__
        raise ClusterLost(f"no scheduler can be reached at {name}: {text}") from None

    def close() -> None:
        with contextlib.suppress(Exception):
            client.close(timeout=CONNECT_SECONDS)
        if then is not None:
            with contextlib.suppress(Exception):
                then()

    return kind(client, close, limit)


def who_wants() -> Callable[[Any], bool]:
    """In a Dask worker: says of a Dask actor whether the scheduler wants it, that is, whether its client is there."""
    try:
        worker = get_worker()
    except ValueError:  # not in a Dask worker
        return lambda actor: True
    return lambda actor: any(one is actor for one in list(worker.state.actors.values()))


def open_to_others(address: str) -> bool:
    """True if other machines may be able to reach a scheduler that does not authenticate them."""
    parts = urlsplit(address)
    if parts.scheme not in ("tcp", "ws"):
        return False
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    return parts.hostname != "localhost"
