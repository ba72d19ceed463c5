"""RunConfig: what a run is asked to do. Defaults < preset < --config file < flags; errors name key and origin."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from rltrain import algorithms, presets
from rltrain.errors import CheckpointError, ConfigError
from rltrain.explain import explain, unknown
from rltrain.file import Given, read
from rltrain.flags import from_text, kinds, spelled, whole
from rltrain.torchrun import LAUNCH, RUN_FILE

M = TypeVar("M", bound=BaseModel)


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
        description="environments stepped side by side, in all",
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
        kind = _settings_class(data["algo"], {})
        before = {"init": "orthogonal"} if "init" in kind.model_fields else {}  # runs of before there was a choice
        settings = _built(kind, {**before, **data["settings"]}, {})
        return _built(cls, {**data, "settings": settings}, origins or {})


# What an actor's process imports anyway, done once by the server it is forked from.
PRELOAD = (
    "torch",
    "gymnasium",
    "rltrain.algorithms.on_policy.settings",
    "rltrain.algorithms.on_policy.actor_critic",
    "rltrain.setup",
)
INNER = ("settings", "preset_file", "reloadable")  # not flags: they follow from the others
# What `--resume` may change.
PLACES = ("workers", "learners", "backend", "cluster", "cluster_timeout", "tls_ca", "tls_cert", "tls_key")
RESUME = ("steps", *PLACES, "json", "quiet", "max_seconds")
CALL = {"json": False, "quiet": False, "max_seconds": None}  # of one call, not of the run: forgotten on resume


def load(given: Mapping[str, Any], file: str | Path | None = None, text: bool = False) -> RunConfig:
    """A run from what was asked for.

    Args:
        given: by name, settings of the run and of its algorithm alike; `settings` may hold the latter as one object.
        file:  a TOML file whose values lie below those of `given`.
        text:  the values of `given` are the text of command-line flags.

    Raises:
        ConfigError: one line that names the key, where it came from and the nearest right name.
    """
    asked = {key: Given(value, spelled(key) if text else f"keyword {key}") for key, value in given.items()}
    layers = [asked] if file is None else [read(Path(file), str(file)), asked]
    top = {key: value for layer in layers for key, value in layer.items()}
    for key in ("algo", "env"):
        if key not in top:
            raise ConfigError(f"{spelled(key) if text else key} is needed")
    algo, env = top["algo"], top["env"]
    settings_class = _settings_class(algo.value, {"algo": algo.origin})
    preset = None
    if isinstance(env.value, str) and top.get("preset", Given("auto", "")).value == "auto":
        preset = presets.find(algo.value, env.value)
    if preset is not None:
        layers.insert(0, read(preset, presets.shown(preset)))

    run = {field.alias or key: field.annotation for key, field in RunConfig.model_fields.items() if key not in INNER}
    mine = {key: field.annotation for key, field in settings_class.model_fields.items() if key not in run}
    whole_settings = asked.pop("settings", None)
    values: dict[str, dict[str, Any]] = {"run": {}, "settings": {}}
    origins: dict[str, str] = {}
    for layer in layers:
        for key, item in layer.items():
            table, _, name = key.rpartition(".")
            if table and table != algo.value:
                continue  # the settings of another algorithm
            part, annotation = ("run", run.get(name)) if name in run and not table else ("settings", mine.get(name))
            if table and name in settings_class.model_fields:
                annotation = settings_class.model_fields[name].annotation
            if annotation is None:
                raise ConfigError(
                    _unknown(item.origin, name, text and layer is asked, mine if table else {**run, **mine})
                )
            value = item.value
            if text and layer is asked and isinstance(value, str):
                value = from_text(annotation, value)
            value = _plain(value, annotation)
            if value is None and type(None) not in kinds(annotation):
                continue  # None from Python stands for the default
            if name == "env_args" and isinstance(value, dict):
                value = {**values["run"].get("env_args", {}), **value}
            values[part][name] = value
            origins[name] = item.origin
    if whole_settings is not None:
        if not isinstance(whole_settings.value, settings_class):
            raise ConfigError(
                f"settings must be {settings_class.__name__} for {algo.value}, got {whole_settings.value!r}"
            )
        own = {key: item.value for key, item in asked.items() if key in mine}
        values["settings"] = {**whole_settings.value.model_dump(), **own}
    settings = _built(settings_class, values["settings"], origins)
    chosen = presets.shown(preset) if preset is not None else None
    return _built(RunConfig, {**values["run"], "settings": settings, "preset_file": chosen}, origins)


def reload(saved: Mapping[str, Any], given: Mapping[str, Any], text: bool = False) -> RunConfig:
    """The run of a run.json, going on with some values changed: those of RESUME, and from Python `env`."""
    origins = {key: spelled(key) if text else f"keyword {key}" for key in given}
    allowed = (*RESUME, "env") if not text else RESUME
    for key in given:
        if key not in allowed:
            raise ConfigError(f"{origins[key]}: cannot be changed by --resume; what can: {', '.join(RESUME)}")
    annotations = {field.alias or key: field.annotation for key, field in RunConfig.model_fields.items()}
    changes: dict[str, Any] = dict(CALL)
    for key, value in given.items():
        value = from_text(annotations[key], value) if text and isinstance(value, str) else value
        changes[key] = _plain(value, annotations[key])
    values = {**saved, **changes}
    if "backend" not in changes:
        elsewhere = values.get("cluster") is not None or saved.get("backend") == "dask"
        values["backend"] = "dask" if elsewhere else "processes" if values.get("workers") else "local"
    elif changes["backend"] != "dask":
        values["cluster"] = changes.get("cluster")
    if "env" in given:
        values.pop("reloadable", None)
    elif not values.get("reloadable", True):
        raise ConfigError(
            f"the run's environment {values['env']} was given as an object, which is not kept; "
            "resume from Python with rltrain.train(resume=..., env=...)"
        )
    return RunConfig.from_json(values, origins)


def saved(folder: Path) -> dict[str, Any]:
    """What the run.json of a run's folder says about its RunConfig."""
    file = folder / RUN_FILE
    try:
        whole_file = json.loads(file.read_text())
        data = whole_file["config"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a run's folder: it has no {RUN_FILE}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if LAUNCH in whole_file and isinstance(data, dict):
        data["learners"] = 1  # as many as torchrun starts, and here that is another time
    if not (isinstance(data, dict) and "algo" in data and isinstance(data.get("settings"), dict)):
        raise CheckpointError(f"{file} is damaged: its config is no table with an algorithm and its settings")
    return data


def _settings_class(algo: Any, origins: Mapping[str, str]) -> type[BaseModel]:
    if algo not in algorithms.names():
        where = f"{origins['algo']}: " if "algo" in origins else ""
        raise ConfigError(where + unknown("algorithm", str(algo), algorithms.names(), repr))
    return algorithms.settings_class(algo)


def _unknown(origin: str, name: str, flag: bool, known: Mapping[str, Any]) -> str:
    if flag:
        return unknown("flag", name, known, spelled)
    return f"{origin}: {unknown('key', name, known, repr)}"


def _built(cls: type[M], values: Mapping[str, Any], origins: Mapping[str, str]) -> M:
    try:
        return cls(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, origins)) from None


def _plain(value: Any, annotation: Any) -> Any:
    """Numbers of other libraries as Python's, lists as tuples, and whole floats as ints, where the type wants them."""
    members = kinds(annotation)
    if not isinstance(value, str | type) and callable(getattr(value, "item", None)) and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if int in members and float not in members and isinstance(value, float):
        return whole(value)
    if isinstance(value, list) and any(get_origin(member) is tuple for member in members):
        return tuple(value)
    return value


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
