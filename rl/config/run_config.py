"""RunConfig: the settings of a run, with the rules between them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    SkipValidation,
    field_validator,
    model_validator,
)

from rltrain.config.messages import RENAMED, build, settings_class


def cores() -> int:
    """Number of cores that this process can use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tenth(data: dict[str, Any]) -> int:
    return max(1, int(data["steps"]) // 10)


class RunConfig(BaseModel):
    """The settings of a run. Defaults that depend on other settings are filled in when the object is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    _trusts: bool = PrivateAttr(default=False)

    # algorithm and environment
    algo: str = Field(description="name of the algorithm")
    settings: SerializeAsAny[BaseModel] = Field(description="settings of the algorithm")
    env: str | Callable[..., Any] = Field(
        description="CartPole-v1, module:Id-v0, package.module:ClassOrFactory or path/to/file.py:ClassOrFactory"
    )
    env_args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the environment's constructor"
    )
    eval_env: str | Callable[..., Any] | None = Field(
        default=None, description="another environment, with the same spaces, for evaluations; none: env"
    )
    eval_env_args: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of eval_env; without eval_env, of env in evaluations, in addition to env_args",
    )
    share: Literal["all", "type", "none"] | dict[str, str] = Field(
        default="all",
        description="agents that share a policy: all with equal spaces, those of one type by name, or none; "
        "or the policy of each agent: adversary_*=a,agent_0=b",
    )
    freeze: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="policies that act and do not learn, by the names that share gives them; see init_parts",
    )
    action_bound: float | None = Field(
        default=None,
        gt=0,
        description="bound of Box actions that have none: they lie between -X and X; none: unbounded",
    )
    vector: Literal["auto", "serial", "native"] = Field(
        default="auto",
        description="step environments one by one, or in their own vector form; auto: by the number of streams",
    )

    # self-play
    opponents: str = Field(
        default="newest",
        description="opponents in games: newest, the policy itself; pool, past policies too; or runs and checkpoints "
        "whose policies are opponents, as RUN,RUN or pool,RUN",
    )

    # beginning
    init_from: str | None = Field(
        default=None, description="a run or a checkpoint: begins with its networks and normaliser, with a new optimiser"
    )
    init_parts: tuple[str, ...] | None = Field(
        default=None,
        description="parts of init_from to take, as policy or policy.encoder,critics; none: all",
        min_length=1,
    )

    # length
    steps: int = Field(default=100_000, ge=1, description="environment steps of all streams together")
    stop_return: float | None = Field(
        default=None,
        description="ends the run when two consecutive evaluations, of at least 50 episodes, reach this return",
    )
    max_seconds: float | None = Field(default=None, gt=0, description="ends the run after this number of seconds")
    pause_at: int | None = Field(
        default=None,
        ge=1,
        description="ends the run at its first checkpoint from this step on; --resume continues it exactly",
    )
    seed: int = Field(default=0, ge=0, description="seed of all random numbers of the run; none: a random one")

    # opponents pool
    pool_size: int = Field(
        default=10,
        ge=1,
        le=2**16,
        description="past policies that are kept as opponents; a new one replaces the oldest",
    )
    pool_every: int = Field(
        default_factory=lambda data: max(1, int(data["steps"]) // 20),
        ge=1,
        description="steps between two copies of the policy into the pool of opponents",
        json_schema_extra={"default": "a twentieth of the run"},
    )
    pool_share: float = Field(
        default=0.5, ge=0, le=1, description="share of games against the pool; the others are against the newest policy"
    )

    # processes and devices
    streams: int = Field(
        default_factory=lambda data: int(getattr(data["settings"], "streams", 8)),
        ge=1,
        le=2**20,
        description="environments that are stepped in parallel, in total",
        json_schema_extra={"default": "the algorithm's"},
    )
    workers: int = Field(
        default_factory=lambda data: min(cores(), int(data["streams"])),
        ge=0,
        description="actor processes; 0 acts in the learner's process",
        json_schema_extra={"default": "one per core"},
    )
    backend: Literal["processes", "local", "dask"] = Field(
        default="processes",
        validate_default=True,
        description="where actors run; workers 0 implies local, cluster implies dask",
    )
    cluster: Any = Field(
        default=None,
        description="Dask scheduler: tcp://HOST:PORT or a scheduler file; none: with backend dask, a new local one",
    )
    cluster_timeout: float = Field(
        default=300.0, gt=0, description="seconds to wait for a node if the cluster has none"
    )
    tls_ca: str | None = Field(default=None, description="certificate of the cluster's certificate authority")
    tls_cert: str | None = Field(default=None, description="certificate of this client")
    tls_key: str | None = Field(default=None, description="private key of tls_cert")
    device: str = Field(default="cpu", description="device of the learner: cpu, cuda, cuda:1, mps")
    inference: Literal["local", "central"] = Field(
        default="local",
        description="where actions are computed: in each actor, or by one server on the learner's device",
    )
    learners: int = Field(
        default=1,
        ge=1,
        le=2**12,
        description="learner processes that share each update; under torchrun, the number that it starts",
    )
    learner_threads: int = Field(
        default=1, ge=1, le=2**12, description="threads of the learner; it affects the last bits of results"
    )
    deterministic: bool = Field(
        default=False, description="takes unrolls in a fixed order: a run with overlap is then reproducible to the bit"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="precision of the learner's image networks, or of all products without images; actors use float32",
    )
    compile: bool = Field(
        default=False, description="compiles the learner's image networks; this takes a minute at the start"
    )
    actor_timeout: float = Field(
        default=120.0, gt=0, description="seconds without progress after which an actor is restarted"
    )
    max_restarts: int = Field(default=5, ge=0, description="consecutive failures of one actor that the run tolerates")

    # callbacks and infos
    log_info: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="keys of the last info of an episode to log, as is_success is in any case; a.b is b in the table a",
    )
    callback: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="module:Class or path/to/file.py:Class of a rltrain.Callback; can be repeated"
    )
    own_callbacks: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="the classes of the callbacks that a program gave as objects"
    )

    # output
    out: str = Field(default="runs", description="folder that contains the run folders")
    name: str | None = Field(
        default=None, description="name of the run's folder; none: made of algorithm, environment, seed and time"
    )
    eval_every: int = Field(
        default_factory=_tenth,
        ge=0,
        description="steps between evaluations; 0: never",
        json_schema_extra={"default": "a tenth of the run"},
    )
    eval_episodes: int = Field(
        default=20, ge=1, validate_default=True, description="episodes of an evaluation; at least 50 with stop_return"
    )
    checkpoint_every: int = Field(
        default_factory=_tenth,
        ge=0,
        description="steps between checkpoints; 0: only at the end",
        json_schema_extra={"default": "a tenth of the run"},
    )
    keep: int = Field(default=3, ge=1, description="number of newest checkpoints to keep, in addition to the best one")
    replay_on_disk: bool = Field(
        default=False, description="keeps the replay in memory-mapped files in the run's folder"
    )
    record: str | None = Field(default=None, description="an empty folder to write all unrolls to")
    replay_from: str | None = Field(
        default=None,
        description="a folder that record wrote: learn from its unrolls, without actors; or several, as DIR,DIR or, "
        "with their shares of the samples, as DIR=0.7,DIR=0.3",
    )
    then_online: int = Field(
        default=0, ge=0, description="of the steps of a run with replay_from, the last ones that actors make"
    )
    offline_steps: int | None = Field(
        default_factory=lambda data: int(data["steps"]) - data["then_online"] if data["then_online"] else None,
        description="steps before actors act",
    )
    json_line: bool = Field(default=False, alias="json", description="prints one JSON object as the last line")
    quiet: bool = Field(default=False, description="prints only the result")
    wandb: str | None = Field(
        default=None,
        min_length=1,
        description="a project of Weights & Biases to which a process of its own sends the metrics",
    )
    mlflow: str | None = Field(
        default=None,
        min_length=1,
        description="the address of an MLflow server to which a process of its own sends the metrics",
    )
    preset: Literal["auto", "none"] = Field(default="auto", description="auto: use the tuned values of configs/")
    preset_file: str | None = Field(default=None, description="the file of configs/ in use")
    raised_from: int | None = Field(
        default=None, description="the streams of the preset or algorithm, fewer than the workers"
    )
    products: Literal["mkl", "onednn", "bfloat16"] = Field(
        default="mkl", description="how the learner multiplies matrices"
    )
    reloadable: bool = Field(
        default_factory=lambda data: (
            _is_named(data["env"], data["env_args"]) and _is_named(data["eval_env"] or "", data["eval_env_args"])
        ),
        description="true if the environment can be made from its name",
    )

    folder: Annotated[str, SkipValidation] = Field(
        default_factory=os.getcwd, description="folder from which modules and files that settings name are imported"
    )

    @model_validator(mode="before")
    @classmethod
    def _local_and_cluster(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("backend") == "local" and data.get("workers") is None:
            return {**data, "workers": 0}
        if isinstance(data, dict) and data.get("backend") is None and data.get("cluster") is not None:
            return {**data, "backend": "dask"}
        return data

    @field_validator("share", mode="before")
    @classmethod
    def _policy_names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        wrong = [name for name in (*value, *value.values()) if not (isinstance(name, str) and name)]
        wrong += [name for name in value.values() if name not in wrong and not re.fullmatch(r"[\w-]+", name)]
        if wrong or not value:
            what = f", got {wrong[0]!r}" if wrong else ""
            raise ValueError(f"must name the policy of each agent in letters, digits, _ and -{what}")
        return value

    @field_validator("name")
    @classmethod
    def _one_folder(cls, value: str | None) -> str | None:
        if value is not None and (value in ("", ".", "..") or re.search(r"[/\\\0\n\r]", value)):
            raise ValueError(f"must be the name of a folder, without / or \\, got {value!r}; --out names the place")
        return value

    @field_validator("replay_from", mode="before")
    @classmethod
    def _several_folders(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and all(isinstance(item, str | os.PathLike) for item in value):
            return ",".join(map(os.fspath, value))
        if isinstance(value, dict):
            return ",".join(f"{name}={share}" for name, share in value.items())
        return value

    @field_validator("record", "replay_from")
    @classmethod
    def _named_folder(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must name a folder, got an empty text")
        return value

    @field_validator("init_from", mode="before")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        return os.path.abspath(value) if isinstance(value, str | os.PathLike) else value

    @field_validator("opponents", mode="before")
    @classmethod
    def _several_opponents(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and all(isinstance(item, str | os.PathLike) for item in value):
            items = list(map(os.fspath, value))
        elif isinstance(value, str) and value != "newest":
            items = value.split(",")
        elif isinstance(value, os.PathLike):
            items = [os.fspath(value)]
        else:
            return value
        words = [word.strip() for word in items]
        if wrong := [word for word in words if "," in word]:
            raise ValueError(f"cannot name a path that contains a comma, got {wrong[0]!r}")
        if wrong := [word for word in words if not word or word == "newest"]:
            raise ValueError(f"must be newest, pool, or runs and checkpoints with commas between, got {wrong[0]!r}")
        if words.count("pool") > 1:
            raise ValueError("must name pool once")
        named = [word if word == "pool" else os.path.abspath(word) for word in words]
        if wrong := [word for word in named if named.count(word) > 1]:
            raise ValueError(f"must name each opponent once, got {wrong[0]} more often")
        return ",".join(named)

    @field_validator("backend")
    @classmethod
    def _local_without_workers(cls, value: str, info: Any) -> str:
        return "local" if info.data.get("workers") == 0 else value

    @field_validator("eval_episodes")
    @classmethod
    def _enough_to_stop(cls, value: int, info: Any) -> int:
        return value if info.data.get("stop_return") is None else max(value, 50)

    @model_validator(mode="after")
    def _rules_between_settings(self) -> Self:
        if self.workers > self.streams:
            raise ValueError(
                f"workers must be at most streams, got {self.workers} workers for {self.streams} "
                f"stream{'s' * (self.streams > 1)}; ask for more streams or fewer workers"
            )
        if self.inference == "central" and self.backend == "local":
            raise ValueError(
                "inference central serves actor processes, and with workers 0 or backend local there are none; "
                "ask for workers, or for inference local"
            )
        if self.inference == "central" and self.backend == "dask":
            raise ValueError("inference central serves actors on this machine only; ask for inference local")
        if self.cluster is not None and self.backend != "dask":
            raise ValueError(
                "cluster says where actors run, but workers 0 or a backend other than dask has them on this machine"
            )
        if not (self.cluster is None or isinstance(self.cluster, str) or hasattr(self.cluster, "scheduler_info")):
            raise ValueError(
                f"cluster must be an address, a scheduler file or a distributed.Client, got "
                f"{type(self.cluster).__name__}; of a cluster object: cluster.get_client()"
            )
        if self.init_parts is not None and self.init_from is None:
            raise ValueError("init_parts names parts of init_from, which is not given")
        if self.record is not None and self.replay_from is not None:
            raise ValueError("record is for unrolls of actors, and replay_from takes their place; ask for one of them")
        if self.then_online and self.replay_from is None:
            raise ValueError("then_online follows learning from recorded data; add replay_from")
        if self.then_online >= self.steps:
            raise ValueError(
                f"then_online must be less than steps, got {self.then_online} of {self.steps}: the steps before are "
                "those of learning from recorded data"
            )
        if self.stop_return is not None and self.eval_every == 0:
            raise ValueError("stop_return needs evaluations, but eval_every is 0")
        return self

    @property
    def acts(self) -> bool:
        """True if the run has actors, from its start or later."""
        return self.replay_from is None or self.then_online > 0

    @property
    def has_opponents(self) -> bool:
        """True if some games are against other policies than the newest."""
        return self.opponents != "newest"

    @property
    def keeps_pool(self) -> bool:
        """True if past policies of this run are opponents."""
        return "pool" in self.opponents.split(",")

    @property
    def trusts(self) -> bool:
        """True if the user consents, by --trust, to the code that files of other people name."""
        return self._trusts

    def trusting(self, trust: bool) -> Self:
        """This configuration, with or without this consent."""
        changed = self.model_copy()
        changed._trusts = trust
        return changed

    @property
    def other_runs(self) -> list[str]:
        """The runs and checkpoints whose policies are opponents."""
        return [word for word in self.opponents.split(",") if word not in ("newest", "pool")]

    @property
    def env_name(self) -> str:
        """The name of the environment, or of the class or function that makes it."""
        return _name_of(self.env)

    def flat(self) -> dict[str, Any]:
        """The values that describe the run, by name, with the settings and the arguments of the environment."""
        values = self.to_json()
        settings, args = values.pop("settings"), values.pop("env_args")
        for name in FLAT_OMITS:
            values.pop(name)
        return {**values, **settings, **{f"env_args.{key}": value for key, value in args.items()}}

    def to_json(self) -> dict[str, Any]:
        """The JSON data for run.json. Of an environment that is an object only the name is kept; see `reloadable`."""
        address = getattr(getattr(self.cluster, "scheduler", None), "address", None)  # of a distributed.Client
        cluster = self.cluster if isinstance(self.cluster, str) else address
        data = self.model_dump(
            mode="json", by_alias=True, exclude={"env", "eval_env", "cluster", "folder"}, fallback=repr
        )
        eval_env = None if self.eval_env is None else _name_of(self.eval_env)
        return {**data, "env": self.env_name, "eval_env": eval_env, "cluster": cluster, "folder": self.folder}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> Self:
        """The inverse of `to_json`, also for runs of older versions. `origins`: of changed values, for messages."""
        own = settings_class(data["algo"], {})
        values = {
            name if name in own.model_fields else RENAMED.get(name, name): value
            for name, value in data["settings"].items()
        }
        if "init" in own.model_fields:
            values.setdefault("init", "orthogonal")  # the only choice, before there was this setting
        for name in ("noise_per_stream", "critic_memory"):  # likewise
            if name in own.model_fields:
                values.setdefault(name, False)
        if "reward_limit" in own.model_fields:
            values.setdefault("reward_limit", None)
        settings = build(own, values, {})
        return build(cls, {**data, "settings": settings}, origins or {})


# Modules that an actor process needs. The server that it is forked from imports them once.
PRELOAD = (
    "torch",
    "gymnasium",
    "rltrain.algorithms.on_policy.actor_critic",
    "rltrain.algorithms.off_policy.continuous_policy",
    "rltrain.algorithms.off_policy.q_policy",
    "rltrain.algorithms.offline.policies",
    "rltrain.algorithms.multi_agent.independent",
    "rltrain.algorithms.multi_agent.maddpg_policy",
    "rltrain.algorithms.multi_agent.q_policy",
    "rltrain.setup.rollout",
)


def preload(config: RunConfig) -> list[str]:
    """Those of PRELOAD that the actors of one run need."""
    family = type(config.settings).__module__.rpartition(".")[0]  # the package of its algorithm
    packages = {f"rltrain.algorithms.{name}" for name in ("on_policy", "off_policy", "offline", "multi_agent")}
    if family not in packages or family.endswith("multi_agent"):  # a user's algorithm, or several agents
        return list(PRELOAD)
    needed = {family, *(("rltrain.algorithms.off_policy",) if family.endswith("offline") else ())}
    return [module for module in PRELOAD if module.rpartition(".")[0] not in packages - needed]


SYNONYMS = {"data": "replay_from"}  # other names of settings, in flags, files and keywords
# Settings that are not flags: they follow from others.
INNER = ("settings", "preset_file", "raised_from", "products", "reloadable", "folder", "own_callbacks", "offline_steps")
# Not part of a run's description in TensorBoard.
FLAT_OMITS = (
    "folder",
    "reloadable",
    "json",
    "quiet",
    "out",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "raised_from",
    "wandb",
    "mlflow",
)
# The settings that can change on resume; those of CALL are reset.
PLACES = ("workers", "learners", "backend", "cluster", "cluster_timeout", "tls_ca", "tls_cert", "tls_key")
RESUME = ("steps", *PLACES, "json", "quiet", "max_seconds", "pause_at", "callback", "log_info", "wandb", "mlflow")
CALL = {"json": False, "quiet": False, "max_seconds": None, "pause_at": None, "wandb": None, "mlflow": None}


def _name_of(env: str | Callable[..., Any]) -> str:
    return env if isinstance(env, str) else str(getattr(env, "__qualname__", repr(env)))


def _is_named(env: Any, env_args: Any) -> bool:
    """True if an environment can be made from its name and its arguments in a file."""
    return isinstance(env, str) and _survives_json(env_args)


def _survives_json(value: Any) -> bool:
    """True if the value is the same after it was written to JSON and read back, apart from tuples that become lists."""
    try:
        return bool(json.loads(json.dumps(value)) == _listed(value))
    except (TypeError, ValueError):
        return False


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
