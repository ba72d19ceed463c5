"""Connects to the Dask cluster of a run and checks it: addresses, certificates, versions of its nodes, encryption."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from rltrain.config.run_config import PRELOAD, RunConfig
from rltrain.envs.pickling import modules_of
from rltrain.errors import ConfigError
from rltrain.learner.algorithm import portable_factory
from rltrain.rollout.workers.handle import ClusterLost
from rltrain.setup.environment import Environment

if TYPE_CHECKING:
    from rltrain.rollout.cluster.cluster import Cluster
    from rltrain.rollout.cluster.nodes import Nodes


TLS = {"tls_ca": "tls_ca_file", "tls_cert": "tls_client_cert", "tls_key": "tls_client_key"}


def open_cluster(config: RunConfig, note: Callable[[str], None], closing: ExitStack) -> Cluster | None:
    """Connect to the cluster of `--backend dask`; None if actors run on this machine.

    Args:
        note: prints a message for the user during the run.

    Raises:
        ConfigError: the cluster cannot be reached, or a node has other versions; one line for each node.
    """
    if config.backend != "dask":
        return None
    _need_dask("--backend dask")
    from rltrain.rollout.cluster.cluster import Cluster

    tls = {key: getattr(config, key) for key in TLS}
    cluster = connected(Cluster, config.cluster, config.workers, config.cluster_timeout, tls)
    closing.callback(cluster.close)
    cluster.note = note
    return cluster


def _need_dask(what: str) -> None:
    """ConfigError in one line if Dask is not installed."""
    try:
        import rltrain.rollout.cluster.connect  # noqa: F401
    except ImportError:
        raise ConfigError(f"{what} needs an extra: pip install 'rltrain[cluster]'") from None


Kind = TypeVar("Kind", bound="Nodes[Any]")


def connected(kind: Callable[..., Kind], where: Any, room: int, timeout: float, tls: Mapping[str, str | None]) -> Kind:
    """Connect to a cluster whose nodes have this machine's versions.

    Args:
        kind:    makes the result of a client: a subclass of `Nodes`.
        where:   an address, a scheduler file or a `distributed.Client`; None starts a cluster on this machine.
        room:    actors that a cluster on this machine has room for.
        timeout: seconds to wait for a node when there is none.
        tls:     paths of files by the names tls_ca, tls_cert and tls_key; None for those that were not given.

    Raises:
        ConfigError: the cluster cannot be reached, or a node has other versions; one line for each node.
    """
    _need_dask("--cluster")
    from rltrain.rollout.cluster.connect import connect
    from rltrain.rollout.cluster.versions import differences

    files = _checked_address(where, tls)
    try:
        cluster = connect(kind, where, room, timeout, files or None)
    except ClusterLost as lost:
        raise ConfigError(
            f"--cluster: {lost}; start one with: dask scheduler, and on each machine: dask worker"
        ) from None
    try:
        faults = differences(cluster.versions())
        if faults:
            raise ConfigError("\n".join(f"--cluster: {line}" for line in faults))
    except BaseException as error:
        cluster.close()
        if isinstance(error, ClusterLost):
            raise ConfigError(f"--cluster: {error}") from None
        raise
    return cluster


def cluster_options(
    config: RunConfig, environment: Environment, portable: Environment, cluster: Cluster | None
) -> dict[str, Any]:
    """The fields of a `RolloutSpec` that concern actors on a cluster.

    Args:
        environment: as it is on this machine.
        portable:    the same, with a source that can be sent to other machines.
    """
    source = portable.source
    if environment.kind == "native" and source != environment.source:
        raise ConfigError(
            f"{source.name}: its native vector environment comes from a file, which does not travel to other machines; "
            "use --vector serial"
        )
    policy = portable_factory(config.settings)
    modules = (*modules_of(source.target), *modules_of(policy))
    movable = environment.restore_method != "none"
    return {"cluster": cluster, "preload": PRELOAD, "modules": modules, "movable": movable}


def remarks(config: RunConfig, cluster: Cluster) -> list[str]:
    """Notes on the nodes of a cluster that has begun: their number and room, their processors, missing encryption."""
    room = sum(node.slots for node in cluster.nodes.values())
    notes = remarks_on_nodes(cluster)
    if config.workers > room:
        notes.insert(1, f"{config.workers} actors share room for {room}: add workers to the cluster, or ask for fewer")
    return notes


def remarks_on_nodes(cluster: Nodes[Any]) -> list[str]:
    """Notes on nodes, whatever runs there: their number and room, their processors, missing encryption."""
    from rltrain.rollout.cluster.connect import open_to_others
    from rltrain.rollout.cluster.node import machine

    nodes, local = list(cluster.nodes.values()), machine()
    room = sum(node.slots for node in nodes)
    notes = [f"{len(nodes)} node{'s' * (len(nodes) != 1)} with room for {room} {cluster.units(room)}"]
    processors = {(node.facts["cpu"], node.facts["kernels"]) for node in nodes}
    if processors - {(local["cpu"], local["kernels"])}:
        names = ", ".join(sorted(f"{cpu} ({kernels})" for cpu, kernels in processors))
        notes.append(
            f"nodes have processors of another kind ({names}; here {local['cpu']}, {local['kernels']}): "
            "a run may not repeat to the bit when its actors move"
        )
    if open_to_others(cluster.address):
        notes.append(
            f"{cluster.address} is not encrypted and does not authenticate clients: anyone who reaches it can run code "
            "on every node. On a network you do not trust use TLS: --tls-ca --tls-cert --tls-key"
        )
    return notes


def _checked_address(address: Any, files: Mapping[str, str | None]) -> dict[str, str]:
    """Dask's names of the TLS files, after a check that `--cluster` and these files can be used; {} without TLS."""
    if isinstance(address, str) and "://" not in address:
        _check_scheduler_file(Path(address))
    elif isinstance(address, str):
        _check_port(address)
    tls = {name: str(files[key]) for key, name in TLS.items() if files.get(key) is not None}
    for key, name in TLS.items():
        if name in tls and not os.path.isfile(tls[name]):
            raise ConfigError(f"--{key.replace('_', '-')} {tls[name]}: there is no such file")
    if tls and len(tls) < len(TLS):
        raise ConfigError("--tls-ca, --tls-cert and --tls-key are needed together")
    if tls and not isinstance(address, str):
        raise ConfigError("--tls-ca, --tls-cert, --tls-key: need the address of a cluster, --cluster tls://HOST:PORT")
    if isinstance(address, str) and address.startswith("tls://") and not tls:
        raise ConfigError(f"--cluster {address}: needs --tls-ca, --tls-cert and --tls-key")
    return tls


def _check_port(address: str) -> None:
    """ConfigError if the address has a port that is none; Dask would find out late, and with a traceback."""
    try:
        parts = urlsplit(address)
        known = parts.scheme not in ("tcp", "tls") or (parts.hostname and parts.port is not None)
    except ValueError:
        known = False
    if not known:
        raise ConfigError(f"--cluster {address}: is no address; give tcp://HOST:PORT or tls://HOST:PORT")


def _check_scheduler_file(file: Path) -> None:
    """ConfigError if the file is missing, or is not a scheduler file of Dask."""
    if not os.path.isfile(file):
        raise ConfigError(f"--cluster {file}: neither an address (tcp://HOST:PORT) nor a scheduler file that exists")
    try:
        json.loads(file.read_text())["address"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"--cluster {file}: is no scheduler file, as dask scheduler --scheduler-file writes"
        ) from None
