"""The cluster that a run asks for, looked at before anything begins: who is there, with what, and who may listen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltrain.algorithms.registry import policy_factory
from rltrain.config.run_config import PRELOAD, RunConfig
from rltrain.envs.pickling import modules_of
from rltrain.envs.source import EnvSource
from rltrain.errors import ConfigError
from rltrain.rollout.workers.handle import ClusterLost

if TYPE_CHECKING:
    from rltrain.rollout.cluster.cluster import Cluster


TLS = {"tls_ca": "tls_ca_file", "tls_cert": "tls_client_cert", "tls_key": "tls_client_key"}


def open_cluster(config: RunConfig) -> Cluster | None:
    """Where actors run with `--backend dask`; None where they run here.

    Raises:
        ConfigError: it cannot be reached, or a node has other versions; a line for each.
    """
    if config.backend != "dask":
        return None
    try:
        from rltrain.rollout.cluster.connect import connect
    except ImportError:
        raise ConfigError("--backend dask needs an extra: pip install 'rltrain[cluster]'") from None
    from rltrain.rollout.cluster.versions import differs

    where = config.cluster
    if isinstance(where, str) and "://" not in where and not Path(where).is_file():
        raise ConfigError(f"--cluster {where}: neither an address (tcp://HOST:PORT) nor a scheduler file that is there")
    if isinstance(where, str) and "://" not in where:
        _readable(where)
    tls = {name: getattr(config, key) for key, name in TLS.items() if getattr(config, key) is not None}
    for key in TLS:
        file = getattr(config, key)
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"--{key.replace('_', '-')} {file}: there is no such file")
    if tls and len(tls) < len(TLS):
        raise ConfigError("--tls-ca, --tls-cert and --tls-key are needed together")
    if tls and not isinstance(where, str):
        raise ConfigError("--tls-ca, --tls-cert, --tls-key: need the address of a cluster, --cluster tls://HOST:PORT")
    if isinstance(where, str) and where.startswith("tls://") and not tls:
        raise ConfigError(f"--cluster {where}: needs --tls-ca, --tls-cert and --tls-key")
    try:
        cluster = connect(where, config.workers, config.cluster_timeout, tls or None)
    except ClusterLost as lost:
        raise ConfigError(
            f"--cluster: {lost}; start one with: dask scheduler, and on each machine: dask worker"
        ) from None
    try:
        wrong = differs(cluster.versions())
    except ClusterLost as lost:
        cluster.close()
        raise ConfigError(f"--cluster: {lost}") from None
    if wrong:
        cluster.close()
        raise ConfigError("\n".join(f"--cluster: {line}" for line in wrong))
    return cluster


def elsewhere(config: RunConfig, here: Any, source: EnvSource, cluster: Any) -> dict[str, Any]:
    """What the plan of a rollout says of actors on a cluster.

    Args:
        here:   the run's `rltrain.setup.environment.World`.
        source: its environment, `carried`.
    """
    if here.kind == "native" and source != here.source:
        raise ConfigError(
            f"{source.name}: its native vector environment comes from a file, which does not travel to other machines; "
            "use --vector serial"
        )
    policy = policy_factory(getattr(config.settings, "policy", "actor_critic"))
    modules = (*modules_of(source.target), *modules_of(policy))
    return {"cluster": cluster, "preload": PRELOAD, "modules": modules, "movable": here.way != "none"}


def _readable(file: str) -> None:
    """ConfigError if it is no scheduler file."""
    try:
        json.loads(Path(file).read_text())["address"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"--cluster {file}: is no scheduler file, as dask scheduler --scheduler-file writes"
        ) from None


def remarks(config: RunConfig, cluster: Cluster | None) -> list[str]:
    """What a person should know of the nodes before the run begins."""
    if cluster is None:
        return []
    from rltrain.rollout.cluster.connect import open_to_others
    from rltrain.rollout.cluster.node import machine

    said, places, here = [], list(cluster.places.values()), machine()
    room = sum(place.slots for place in places)
    said.append(f"{len(places)} node{'s' * (len(places) != 1)} with room for {room} actor{'s' * (room != 1)}")
    if config.workers > room:
        said.append(f"{config.workers} actors share room for {room}: add workers to the cluster, or ask for fewer")
    kinds = {(place.facts["cpu"], place.facts["kernels"]) for place in places}
    if kinds - {(here["cpu"], here["kernels"])}:
        names = ", ".join(sorted(f"{cpu} ({kernels})" for cpu, kernels in kinds))
        said.append(
            f"nodes have processors of another kind ({names}; here {here['cpu']}, {here['kernels']}): "
            "a run may not repeat to the bit when its actors move"
        )
    if open_to_others(cluster.address):
        said.append(
            f"{cluster.address} is not encrypted and asks nobody who they are: whoever reaches it can run code on "
            "every node. On a network you do not trust use TLS: --tls-ca --tls-cert --tls-key"
        )
    return said
