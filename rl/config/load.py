"""From flags, files and keywords to a RunConfig: defaults < preset < file < flags; unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from rltrain.config import presets
from rltrain.config.flags import from_text, kinds, spelled, whole
from rltrain.config.messages import _built, _settings_class, unknown
from rltrain.config.run_config import CALL, INNER, RESUME, RunConfig
from rltrain.config.toml_file import Given, read
from rltrain.errors import ConfigError


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


def _unknown(origin: str, name: str, flag: bool, known: Mapping[str, Any]) -> str:
    if flag:
        return unknown("flag", name, known, spelled)
    return f"{origin}: {unknown('key', name, known, repr)}"


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
