"""From flags, files and keywords to a RunConfig. Flags override the file, which overrides the preset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_origin

from pydantic import BaseModel

from rltrain import algorithms
from rltrain.config import presets
from rltrain.config.consent import TRAINING, SavedConfig, require_consent, use_saved_algorithm, with_consent
from rltrain.config.flags import from_text, kinds, spelled, whole
from rltrain.config.messages import build, settings_class, unknown_setting
from rltrain.config.run_config import CALL, INNER, RESUME, SYNONYMS, RunConfig
from rltrain.config.toml_file import Given, read
from rltrain.config.user_code import use_algorithm
from rltrain.errors import ConfigError


def load(
    given: Mapping[str, Any], file: str | Path | None = None, text: bool = False, trust: bool = False
) -> RunConfig:
    """The configuration of a new run.

    Args:
        given: values by name, of the run and of its algorithm; `settings` can hold the latter as one object, which
               replaces the preset and the file.
        file:  a TOML file; `given` overrides its values.
        text:  the values of `given` are the text of command-line flags.
        trust: code that the file names may be imported.

    Raises:
        ConfigError: one line with the key, its origin and the nearest known name or the bound; or the file names code
                     to which the user did not consent.
    """
    asked = {
        SYNONYMS.get(key, key): Given(value, spelled(key) if text else f"keyword {key}") for key, value in given.items()
    }
    filed = {} if file is None else read(Path(file), str(file))
    filed = {SYNONYMS.get(key, key): value for key, value in filed.items()}
    layers = [filed, asked]
    top = {key: value for layer in layers for key, value in layer.items()}
    for key in ("algo", "env"):
        if key not in top or top[key].value in (None, ""):
            raise ConfigError(_needed(key, text))
    algo, env = top["algo"], top["env"]
    if algo is filed.get("algo"):
        require_consent(SimpleNamespace(algo=algo.value, settings=None), str(file), trust, ("algo",))
    algo = Given(use_algorithm(algo.value, os.getcwd()), algo.origin)
    cls = settings_class(algo.value, {"algo": algo.origin})
    preset = None
    if isinstance(env.value, str) and top.get("preset", Given("auto", "")).value == "auto":
        preset = presets.find(algo.value, env.value)
    if preset is not None:
        layers.insert(0, read(preset, presets.shown(preset)))

    of_run, of_algo = _annotations(RunConfig), {key: field.annotation for key, field in cls.model_fields.items()}
    run: dict[str, Any] = {"preset_file": None if preset is None else presets.shown(preset)}
    settings: dict[str, Any] = {}
    origins: dict[str, str] = {}
    of_file, file_args = set[str](), dict[str, Any]()  # settings whose value comes from the file; of env_args the keys
    if (complete := asked.pop("settings", None)) is not None:
        if not isinstance(complete.value, cls):
            raise ConfigError(
                f"settings must be {cls.__name__} for {algo.value}, got {complete.value!r}; give {cls.__name__}(...), "
                "or single values as keywords, as lr=1e-3"
            )
        settings = complete.value.model_dump(exclude_unset=True)
    for layer in layers:
        flags = text and layer is asked
        for key, item in layer.items():
            table, _, name = key.rpartition(".")
            if table not in ("", algo.value):
                continue  # the settings of another algorithm
            values, known = (settings, of_algo) if table or name not in of_run else (run, of_run)
            if name not in known:
                names = of_algo if table else {**of_algo, **of_run}
                where = "" if flags else f"{item.origin}: "
                what, spell = ("flag", spelled) if flags else ("key", repr)
                raise ConfigError(where + unknown_setting(what, name, names, spell, algo.value, of_run))
            if values is settings and complete is not None and layer is not asked:
                continue
            value = _plain(item.value, known[name], flags)
            if name == "seed" and (value is None or value in ("none", "random")):
                value = _random_seed()  # the first line of the run and run.json show it
            if value is None and type(None) not in kinds(known[name]):
                continue  # None from Python stands for the default
            if name == "eval_env_args" and isinstance(value, dict):
                value = {**run.get(name, {}), **value}
            if name == "env_args" and isinstance(value, dict):
                file_args = value if layer is filed else {k: v for k, v in file_args.items() if k not in value}
                value = {**run.get("env_args", {}), **value}
            (of_file.add if layer is filed else of_file.discard)(name)
            values[name], origins[name] = value, item.origin
    run["algo"] = algo.value
    chosen: Any = build(cls, settings, origins)
    if "alpha" in asked and hasattr(chosen, "temperature") and not getattr(chosen, "prioritized", True):
        what = "is the exponent of priorities, which need prioritized; the temperature is another setting, temperature"
        raise ConfigError(f"{origins['alpha']} {what}")
    chose = complete is not None and "streams" in complete.value.model_fields_set
    chose = chose or any(top[key].value is not None for key in ("streams", f"{algo.value}.streams") if key in top)
    workers, streams = run.get("workers"), run.get("streams", getattr(chosen, "streams", None))
    if not chose and isinstance(workers, int) and isinstance(streams, int) and workers > streams:
        run |= {"streams": workers, "raised_from": streams}  # each worker needs a stream
    config = build(RunConfig, {**run, "settings": chosen}, origins)
    if file is not None:
        named = config.model_copy(update={"env_args": file_args})
        require_consent(named, str(file), trust, {*of_file, "env_args"} - {"record"})
    return config.trusting(trust)


EXAMPLE = "rltrain.train(algo='ppo', env='CartPole-v1', steps=100_000)"


def _random_seed() -> int:
    return int.from_bytes(os.urandom(4)) >> 1


def _needed(key: str, text: bool) -> str:
    if not text:
        return f"{key} is needed, as in {EXAMPLE}"
    if key == "env":
        return "--env is needed, as in --env CartPole-v1"
    return f"--algo is needed; algorithms: {', '.join(algorithms.names())}"


def change(config: Any, given: Mapping[str, Any], resumed: bool = False) -> RunConfig:
    """A configuration with some other values.

    Another `env` has the `env_args` of `given`, or none. All other values stay, also those that the preset of the old
    environment set.

    Args:
        given:   values by name, of the run and of its algorithm. None stands for the present value.
        resumed: for a run that is resumed: only `env`, given as the same class or function, and RESUME can change.

    Raises:
        ConfigError: one line: `config` is no RunConfig, or a value is wrong or cannot change.
    """
    if not isinstance(config, RunConfig):
        what = repr(config) if isinstance(config, str | type) else f"of type {type(config).__name__}"
        remedy = f"or give the values as keywords: {EXAMPLE}"
        if isinstance(config, dict):
            remedy = "or give a dict with two stars: rltrain.train(**config)"
        elif isinstance(config, BaseModel) or (isinstance(config, type) and issubclass(config, BaseModel)):
            remedy = "or give it as settings=: rltrain.train(algo='ppo', env='CartPole-v1', settings=PPOConfig())"
        raise ConfigError(f"the configuration is {what}, and must be a RunConfig; {remedy}")
    if not given:
        return config
    if resumed:
        _only_resumable(given)
    origins = {SYNONYMS.get(key, key): f"keyword {key}" for key in given}
    given = {SYNONYMS.get(key, key): value for key, value in given.items()}
    settings: Any = config.settings
    of_run, of_algo = (
        _annotations(RunConfig),
        {key: field.annotation for key, field in type(settings).model_fields.items()},
    )
    run: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in given.items():
        if key in ("algo", "settings"):
            raise ConfigError(f"keyword {key}: the configuration is one of {config.algo}; make another one")
        if key == "preset":
            raise ConfigError(
                "keyword preset: the configuration has the values of its preset already; make another one"
            )
        if key not in of_run and key not in of_algo:
            known = {**of_algo, **of_run}
            raise ConfigError(f"keyword {key}: {unknown_setting('key', key, known, repr, config.algo)}")
        annotation = {**of_algo, **of_run}[key]
        if key == "seed" and value is None:
            value = _random_seed()
        if value is not None or type(None) in kinds(annotation):
            (run if key in of_run else own)[key] = _plain(value, annotation, False)
    fields = RunConfig.model_fields
    values = {fields[key].alias or key: getattr(config, key) for key in config.model_fields_set}
    if run.get("env", config.env) != config.env and not resumed:
        values = {key: value for key, value in values.items() if key not in ("env_args", "folder")}
    if run.keys() & {"env", "env_args", "eval_env", "eval_env_args"}:
        values.pop("reloadable", None)  # follows from both
    if "workers" in run and config.workers == 0:
        values.pop("backend", None)  # workers 0 implied local
    workers = run.get("workers")
    if "streams" not in {**run, **values} and isinstance(workers, int) and workers > config.streams:
        run |= {"streams": workers, "raised_from": config.streams}  # as in `load`
    settings = build(type(settings), {**settings.model_dump(exclude_unset=True), **own}, origins)
    return build(RunConfig, {**values, **run, "settings": settings}, origins)


def reload(saved: SavedConfig, given: Mapping[str, Any], text: bool = False, trust: bool = False) -> RunConfig:
    """The configuration of a resumed run: that of its run.json, with changes to settings of RESUME.

    Args:
        saved: the configuration in run.json.
        given: the changes; from Python also `env`.
        text:  the values of `given` are the text of command-line flags.
        trust: code that run.json names may be imported.

    Raises:
        ConfigError: a change is wrong.
        CheckpointError: run.json is wrong, or names code to which the user did not consent.
    """
    _only_resumable(given, text)
    origins = {key: spelled(key) if text else f"keyword {key}" for key in given}
    known = _annotations(RunConfig)
    changes = {**CALL, **{key: _plain(value, known[key], text) for key, value in given.items()}}
    values = {**saved.values, **changes}
    if "backend" not in changes:
        on_cluster = values.get("cluster") is not None or values.get("backend") == "dask"
        values["backend"] = "dask" if on_cluster else "processes" if values.get("workers") else "local"
    elif changes["backend"] != "dask":
        values["cluster"] = changes.get("cluster")
    if given.keys() & {"env", "eval_env"}:
        values.pop("reloadable", None)
    elif not values.get("reloadable", True):
        raise ConfigError(
            f"the run's environment {values['env']} was given as an object, which is not kept; "
            "resume from Python with rltrain.train(resume=..., env=...)"
        )
    use_saved_algorithm(saved, trust, [key for key in TRAINING if key not in given])
    config = RunConfig.from_json(values, origins)
    if callable(config.env) and config.env_args:
        from rltrain.envs.make import fitting, resolve

        source = fitting(resolve(config.env, config.env_args), config.env_args)
        config = config.model_copy(update={"env_args": source.kwargs})
    config = with_consent(config, saved, trust, [key for key in TRAINING if key not in given])
    return config.trusting(trust)


def with_callbacks(config: RunConfig, given: Any, resumed: bool) -> RunConfig:
    """The configuration with the names of the callbacks that a program gives as objects.

    Raises:
        ConfigError: `given` is no list; or a run that is resumed had such callbacks, and they are not given again.
    """
    if given is None:
        if resumed and config.own_callbacks:
            raise ConfigError(
                f"the run's callbacks {', '.join(config.own_callbacks)} were given as objects, which are not kept; "
                "resume from Python with rltrain.train(resume=..., callbacks=[...]), or callbacks=[] to leave them out"
            )
        return config
    if isinstance(given, str | type) or not isinstance(given, Iterable):
        raise ConfigError(f"keyword callbacks: must be a list of callbacks, got {given!r}")
    names = tuple(getattr(each, "__qualname__", type(each).__qualname__) for each in given)
    return config.model_copy(update={"own_callbacks": names})


def _only_resumable(given: Mapping[str, Any], text: bool = False) -> None:
    for key in given:
        if key not in RESUME and (text or key not in ("env", "eval_env")):
            origin = spelled(key) if text else f"keyword {key}"
            raise ConfigError(f"{origin}: cannot be changed by --resume; what can: {', '.join(RESUME)}")


def _annotations(model: type[RunConfig]) -> dict[str, Any]:
    """The types of the settings that a user can give, by name."""
    return {field.alias or key: field.annotation for key, field in model.model_fields.items() if key not in INNER}


def _plain(value: Any, annotation: Any, flag: bool) -> Any:
    """The value as its type wants it: flags parsed, numpy numbers and lists as Python's numbers and tuples."""
    if flag and isinstance(value, str):
        value = from_text(annotation, value)
    members = kinds(annotation)
    if isinstance(value, os.PathLike) and str in members:
        value = os.fspath(value)
    if not isinstance(value, str | type) and callable(getattr(value, "item", None)) and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if int in members and float not in members and isinstance(value, float):
        return whole(value)
    if isinstance(value, list) and any(get_origin(member) is tuple for member in members):
        return tuple(value)
    return value
