"""The structure that the JSON files of a run must have, checked before anything uses them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf, from_json, iter_leaves
from rltrain.errors import CheckpointError

MAX_OBS = 2**28  # limit of the numbers of one observation
MAX_ACTION = 2**24  # limit of the numbers of one action, and of its mask
DTYPES = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
DTYPES |= {"float16", "float32", "float64"}  # of observations and actions
MAX_TEXT = 4096  # limit of a text in a configuration

Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", defer_build=True)


class Digest(_Part):
    """Size and hash of a file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: Count


class _Config(_Part):
    """The configuration of a run, as far as it can be checked without its algorithm."""

    algo: str
    settings: dict[str, Any]
    env: str


class _Meta(_Part):
    """meta.json of a checkpoint. Parts of the platform need some of the optional entries: see `require`."""

    files: dict[str, Digest]
    structure: dict[str, Any]
    step: Count = 0
    version: Count = 0
    exact: bool = False
    way: str = ""
    kind: str = ""
    config: _Config | None = None
    spec: dict[str, Any] | None = None
    versions: dict[str, str] = {}
    segments: dict[str, Digest] = {}


class _RecordedFile(Digest):
    name: str = Field(pattern=r"^unrolls-\d{6,12}\.safetensors$")
    steps: Count


class _RecordedRun(_Part):
    streams: Count


class _Index(_Part):
    """record.json of a recording."""

    files: list[_RecordedFile]
    run: _RecordedRun
    spec: dict[str, Any]
    mark: str | None = None


def check_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """CheckpointError if an entry of a checkpoint's meta.json has the wrong type, or `files` lacks the state."""
    _check(path, _Meta, meta)
    if "state.safetensors" not in meta["files"]:
        raise CheckpointError(f"{path} is damaged: it lists no state.safetensors")
    if meta.get("config") is not None:
        check_config(path, meta["config"])


def check_index(path: Path, index: Mapping[str, Any]) -> None:
    """CheckpointError if the index of a recording lacks an entry, or one has the wrong type."""
    _check(path, _Index, index)


def check_config(path: Path, config: Any) -> dict[str, Any]:
    """The same; CheckpointError if this is no configuration of a run, or a text in it cannot be shown in a message."""
    _check(path, _Config, config)
    nodes = [(key, node) for key, node in config.items() if key not in ("env_args", "eval_env_args")]
    while nodes:
        key, node = nodes.pop()
        if isinstance(node, dict):
            nodes += node.items()
        elif isinstance(node, list):
            nodes += [(key, child) for child in node]
        if any(isinstance(text, str) and not _is_shown(text) for text in (key, node)):
            raise CheckpointError(f"{path} is damaged: a text of its config is too long or has control characters")
    return dict(config)


def require(path: Path, meta: Mapping[str, Any], *names: str) -> None:
    """CheckpointError if an entry of a checkpoint's meta.json is missing."""
    for name in names:
        if meta.get(name) is None:
            raise CheckpointError(f"{path} is damaged: it has no {name!r}")


def read_spec(path: Path, data: Any) -> EnvSpec:
    """The spec of an environment; CheckpointError if `data` describes none, or one of impossible size."""
    try:
        spec = from_json(data)
        for obs, action in ((spec.obs, spec.action), *((group.obs, group.action) for group in spec.groups)):
            leaves = [_type_of(Leaf).validate_python(asdict(leaf)) for leaf in iter_leaves(obs)]
            _type_of(ActionSpec).validate_python(asdict(action))
            for dtype in (action.takes, *(leaf.dtype for leaf in leaves)):
                if dtype not in DTYPES:
                    raise ValueError(f"no numbers are of type {dtype!r}")
            sizes = [size for leaf in leaves for size in (*leaf.shape, *leaf.nvec)] + [*action.shape, *action.nvec]
            if min(sizes, default=0) < 0:
                raise ValueError("a negative size")
            if sum(math.prod(leaf.shape) + sum(leaf.nvec) for leaf in leaves) > MAX_OBS:
                raise ValueError("an observation is too large")
            if max(action.size, action.mask_size) > MAX_ACTION:
                raise ValueError("an action is too large")
        if not (isinstance(spec.id, str) and all(isinstance(name, str) for name in spec.agents)):
            raise ValueError("a name is not text")
    except Exception as error:  # of any kind: the data may be anything
        why = f"{type(error).__name__} {error}" if not isinstance(error, ValidationError) else _first(error)
        raise CheckpointError(f"{path} is damaged: its spec is wrong: {' '.join(why.split())[:200]}") from None
    return spec


@functools.cache
def _type_of(cls: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def check_sizes(
    path: Path, config: Mapping[str, Any], state: Any, critics: bool = True, spec: EnvSpec | None = None
) -> None:
    """CheckpointError if the networks or the streams of the configuration are larger than the saved state allows.

    So a small checkpoint cannot ask for all memory.

    Args:
        critics: the critics of the state are used too. A best policy is saved without them.
        spec:    the environment's; None: the layers next to observations and actions are not checked.
    """
    numbers, nodes = 0, [state]
    while nodes:
        node = nodes.pop()
        numbers += getattr(node, "size", 1)
        if isinstance(node, dict | list):
            nodes += node.values() if isinstance(node, dict) else node
    settings = config["settings"]
    for key in ("atoms", "critics", "quantiles") if critics else ("atoms",):
        count = settings.get(key)
        if type(count) is int and count > numbers:
            raise CheckpointError(f"{path} is damaged: {key} {count} do not fit its {numbers:,} numbers")
    for key in ("widths", "widths_q") if critics else ("widths",):
        widths = settings.get(key) or ()
        if isinstance(widths, list) and all(type(width) is int for width in widths):
            outputs = 1 if spec is None or key == "widths_q" else _outputs(spec, settings)
            copies = 1
            if critics and _has_critics(spec, config) and (key == "widths_q" or not settings.get("widths_q")):
                copies, quantiles = (_count(settings, name) for name in ("critics", "quantiles"))
                outputs = outputs if copies == 1 else quantiles  # the policy is smaller than all critics
            inputs = 0 if spec is None else _inputs(spec, settings)
            inner = sum(a * b for a, b in itertools.pairwise(widths)) + sum(widths)
            least = inner + (inputs * widths[0] + widths[-1] * outputs if widths else 0)
            if copies * least > numbers:
                what = f"{key} {widths[:10]}" if copies == 1 else f"{copies} critics with layers of {widths[:10]}"
                raise CheckpointError(f"{path} is damaged: {what} do not fit its {numbers:,} numbers")
    size = settings.get("memory_size")
    if settings.get("memory", "none") != "none" and type(size) is int and size**2 > numbers:
        raise CheckpointError(f"{path} is damaged: memory_size {size} does not fit its {numbers:,} numbers")
    with contextlib.suppress(KeyError, TypeError):  # the policy alone
        rollout = state["rollout"]
        units = [unit["streams"] for unit in rollout["units"]] or [rollout["rows"]]  # rows: the actors were lost
        streams = sum(map(len, units))
        if config.get("streams") != streams:
            raise CheckpointError(f"{path} is damaged: it holds {streams} streams, and not {config.get('streams')!r}")


def _count(settings: Mapping[str, Any], name: str) -> int:
    """A number of networks or outputs; 1 if the settings have none."""
    count = settings.get(name)
    return count if type(count) is int and count > 0 else 1


def _has_critics(spec: EnvSpec | None, config: Mapping[str, Any]) -> bool:
    """True if the settings `critics` and `widths_q` are used: CQL with Discrete actions has no critics."""
    return not (spec is None or spec.groups or (config.get("algo") == "cql" and spec.action.kind == "discrete"))


def _is_plain(spec: EnvSpec, settings: Mapping[str, Any]) -> bool:
    """True if layers of `widths` are known to follow the observation, and to come before the action."""
    from rltrain.algorithms.registry import BUILT_IN

    own = settings.get("policy") not in BUILT_IN or settings.get("torso", "auto") != "auto"
    return not (own or spec.groups or settings.get("memory", "none") != "none")


def _inputs(spec: EnvSpec, settings: Mapping[str, Any]) -> int:
    """The numbers of an observation that its first layer gets, or less: images pass through others before."""
    if not _is_plain(spec, settings):
        return 0
    return sum(sum(leaf.nvec) or math.prod(leaf.shape) for leaf in spec.leaves() if leaf.kind != "image")


def _outputs(spec: EnvSpec, settings: Mapping[str, Any]) -> int:
    """The outputs of the policy's last layer, or less."""
    if not _is_plain(spec, settings):
        return 1
    from rltrain.algorithms.networks.distributions import head_size

    return head_size(spec.action) * _count(settings, "atoms")


def _check(path: Path, model: type[BaseModel], data: Any) -> None:
    try:
        model.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    """The first fault, in words."""
    fault = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, fault["loc"]))[:100] or "it"
    return f"{where}: {fault['msg'].lower()}"


def _is_shown(text: str) -> bool:
    return len(text) <= MAX_TEXT and all(char.isprintable() or "\udc80" <= char <= "\udcff" for char in text)
