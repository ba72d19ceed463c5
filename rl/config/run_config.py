"""RunConfig: what a run is asked to do. Defaults < preset < --config file < flags; errors name key and origin."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from rltrain.config.messages import RENAMED, build, settings_class


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tenth(data: dict[str, Any]) -> int:
    return max(1, int(data["steps"]) // 10)


class RunConfig(BaseModel):
    """A run, settled: every value is the one that is used. Numbers that depend on others are filled in at birth."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # what learns what
    algo: str = Field(description="algorithm: {algorithms}")
    settings: SerializeAsAny[BaseModel] = Field(description="settings of the algorithm")
    env: str | Callable[..., Any] = Field(
        description="CartPole-v1, module:Id-v0, package.module:ClassOrFactory or path/to/file.py:ClassOrFactory"
    )
    env_args: dict[str, Any] = Field(default_factory=dict, description="keywords for the environment's constructor")
    share: Literal["all", "type", "none"] | dict[str, str] = Field(
        "all",
        description="which of several agents share a policy: all of equal spaces, those of one type by name, or none; "
        "or the policy of each by name: adversary_*=a,agent_0=b",
    )
    vector: Literal["auto", "serial", "native"] = Field(
        "auto", description="environments one by one, or their own vector form; auto decides by the number of streams"
    )

    opponents: Literal["newest", "pool"] = Field(
        "newest", description="who plays against the learner in games of two: its newest policy, or past ones too"
    )

    # how long
    steps: int = Field(100_000, ge=1, description="environment steps of all streams together")
    stop_return: float | None = Field(
        None, description="ends the run when two evaluations in a row, of at least 50 episodes, reach this return"
    )
    max_seconds: float | None = Field(None, gt=0, description="ends the run after so many seconds")
    seed: int = Field(0, ge=0, description="every random number of the run follows from it")

    # with opponents pool
    pool_size: int = Field(10, ge=1, description="past policies kept as opponents; the oldest makes room")
    pool_every: int = Field(
        default_factory=lambda data: max(1, int(data["steps"]) // 20),
        ge=1,
        description="steps after which the policy joins the pool of opponents",
        json_schema_extra={"default": "a twentieth of the run"},
    )
    pool_share: float = Field(0.5, ge=0, le=1, description="share of games against one of the pool, not against itself")

    # who works where
    streams: int = Field(
        default_factory=lambda data: int(getattr(data["settings"], "streams", 8)),
        ge=1,
        description="environments that are stepped in parallel, in total",
        json_schema_extra={"default": "the algorithm's"},
    )
    workers: int = Field(
        default_factory=lambda data: min(cores(), int(data["streams"])),
        ge=0,
        description="actors, a process each; 0 acts in the learner's process",
        json_schema_extra={"default": "one a core"},
    )
    backend: Literal["processes", "local", "dask"] = Field(
        "processes", validate_default=True, description="where actors run; workers 0 means local, cluster means dask"
    )
    cluster: Any = Field(
        None, description="of Dask: tcp://HOST:PORT or a scheduler file; none: with backend dask, one on this machine"
    )
    cluster_timeout: float = Field(300.0, gt=0, description="seconds to wait for a node when the cluster has none left")
    tls_ca: str | None = Field(None, description="certificate of the authority that the cluster trusts")
    tls_cert: str | None = Field(None, description="certificate to show to the cluster")
    tls_key: str | None = Field(None, description="the key of that certificate")
    device: str = Field("cpu", description="where the learner computes: cpu, cuda, cuda:1, mps")
    inference: Literal["local", "central"] = Field(
        "local", description="who decides for actors: their own networks, or one server on the learner's device"
    )
    learners: int = Field(
        1, ge=1, description="learners that share each update, a process each; under torchrun as many as it starts"
    )
    learner_threads: int = Field(1, ge=1, description="threads of the learner; results depend on it to the bit")
    deterministic: bool = Field(
        False, description="takes unrolls in turns, so that a run repeats to the bit though actors go on meanwhile"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="in which the learner computes the features of images; actors keep float32"
    )
    compile: bool = Field(False, description="torch compiles the learner's networks of images; takes a minute at first")
    actor_timeout: float = Field(120.0, gt=0, description="seconds without progress after which an actor is replaced")
    max_restarts: int = Field(5, ge=0, description="failures of an actor in a row that a run survives")

    # what is kept and said
    out: str = Field("runs", description="folder that run folders are made in")
    eval_every: int = Field(
        default_factory=_tenth,
        ge=0,
        description="steps between evaluations; 0: never",
        json_schema_extra={"default": "a tenth of the run"},
    )
    eval_episodes: int = Field(
        20, ge=1, validate_default=True, description="episodes of an evaluation; at least 50 with stop_return"
    )
    checkpoint_every: int = Field(
        default_factory=_tenth,
        ge=0,
        description="steps between checkpoints; 0: only at the end",
        json_schema_extra={"default": "a tenth of the run"},
    )
    keep: int = Field(3, ge=1, description="newest checkpoints kept, beside the best one")
    replay_on_disk: bool = Field(
        False, description="keeps the replay in memory-mapped files of the run's folder instead of memory"
    )
    record: str | None = Field(None, description="an empty folder that every unroll is written into, data only")
    replay_from: str | None = Field(
        None, description="a folder made by record: learns from its unrolls, and nobody acts"
    )
    json_line: bool = Field(False, alias="json", description="the last line of the output is one JSON object")
    quiet: bool = Field(False, description="no progress, only the result")
    preset: Literal["auto", "none"] = Field("auto", description="whether the tuned values of configs/ are used")
    preset_file: str | None = Field(None, description="the file of configs/ that was used")
    reloadable: bool = Field(
        default_factory=lambda data: isinstance(data["env"], str) and _survives_json(data["env_args"]),
        description="whether the environment can be made again from its name",
    )

    @model_validator(mode="before")
    @classmethod
    def _local(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("backend") == "local" and data.get("workers") is None:
            return {**data, "workers": 0}
        if isinstance(data, dict) and data.get("backend") is None and data.get("cluster") is not None:
            return {**data, "backend": "dask"}
        return data

    @field_validator("share", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        wrong = [name for name in (*value, *value.values()) if not (isinstance(name, str) and name)]
        wrong += [name for name in value.values() if name not in wrong and not re.fullmatch(r"[\w-]+", name)]
        if wrong or not value:
            what = f", got {wrong[0]!r}" if wrong else ""
            raise ValueError(f"must name the policy of each agent in letters, digits, _ and -{what}")
        return value

    @field_validator("backend")
    @classmethod
    def _where(cls, value: str, info: Any) -> str:
        return "local" if info.data.get("workers") == 0 else value

    @field_validator("eval_episodes")
    @classmethod
    def _enough(cls, value: int, info: Any) -> int:
        return value if info.data.get("stop_return") is None else max(value, 50)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.workers > self.streams:
            raise ValueError(
                f"workers must be at most streams, got {self.workers} workers for {self.streams} "
                f"stream{'s' * (self.streams > 1)}; ask for more streams or fewer workers"
            )
        if self.inference == "central" and self.backend == "local":
            raise ValueError(
                "inference central decides for actors in processes of their own, and with workers 0 or backend local "
                "there are none; ask for workers, or for inference local"
            )
        if self.cluster is not None and self.backend != "dask":
            raise ValueError(
                "cluster says where actors run, but workers 0 or a backend other than dask has them on this machine"
            )
        if (
            self.cluster is not None
            and not isinstance(self.cluster, str)
            and not hasattr(self.cluster, "scheduler_info")
        ):
            raise ValueError(
                f"cluster must be an address, a scheduler file or a distributed.Client, got "
                f"{type(self.cluster).__name__}; of a cluster object: cluster.get_client()"
            )
        if self.inference == "central" and self.backend == "dask":
            raise ValueError("inference central decides for actors on this machine; ask for inference local")
        if self.record is not None and self.replay_from is not None:
            raise ValueError("record has nothing to record where replay_from lets nobody act; ask for one of them")
        if self.stop_return is not None and self.eval_every == 0:
            raise ValueError("stop_return needs evaluations, but eval_every is 0")
        return self

    @property
    def env_name(self) -> str:
        """The environment's name; a class's or function's own name where one was given."""
        return self.env if isinstance(self.env, str) else getattr(self.env, "__qualname__", repr(self.env))

    def to_json(self) -> dict[str, Any]:
        """Plain data for run.json. An environment that is an object is written by its name; see `reloadable`."""
        known = getattr(getattr(self.cluster, "scheduler", None), "address", None)  # of a client
        cluster = self.cluster if isinstance(self.cluster, str) else known
        data = self.model_dump(mode="json", by_alias=True, exclude={"env", "cluster"}, fallback=repr)
        return {**data, "env": self.env_name, "cluster": cluster}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> Self:
        """The inverse of `to_json`. `origins` tells errors where changed values came from."""
        kind = settings_class(data["algo"], {})
        before = {"init": "orthogonal"} if "init" in kind.model_fields else {}  # runs of before there was a choice
        values = {
            key if key in kind.model_fields else RENAMED.get(key, key): value for key, value in data["settings"].items()
        }
        settings = build(kind, {**before, **values}, {})
        return build(cls, {**data, "settings": settings}, origins or {})


# What an actor's process imports anyway, done once by the server it is forked from.
PRELOAD = (
    "torch",
    "gymnasium",
    "rltrain.algorithms.on_policy.settings",
    "rltrain.algorithms.on_policy.actor_critic",
    "rltrain.algorithms.off_policy.continuous_policy",
    "rltrain.algorithms.off_policy.q_policy",
    "rltrain.algorithms.multi_agent.maddpg_policy",
    "rltrain.algorithms.multi_agent.q_policy",
    "rltrain.setup.rollout",
)
INNER = ("settings", "preset_file", "reloadable")  # not flags: they follow from the others
# What `--resume` may change.
PLACES = ("workers", "learners", "backend", "cluster", "cluster_timeout", "tls_ca", "tls_cert", "tls_key")
RESUME = ("steps", *PLACES, "json", "quiet", "max_seconds")
CALL = {"json": False, "quiet": False, "max_seconds": None}  # of one call, not of the run: forgotten on resume


def _survives_json(value: Any) -> bool:
    """Whether run.json can hold it; that a tuple comes back as a list does not count."""
    try:
        return bool(json.loads(json.dumps(value)) == _listed(value))
    except (TypeError, ValueError):
        return False


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
