"""One clear line for each mistake in a setting: the nearest name, the bound, the words of other libraries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rltrain import algorithms
from rltrain.errors import ConfigError

# Settings under the names that they had before, and have in older run folders.
RENAMED = {"credits": "max_in_flight", "kept": "buffer_size", "uses": "reuse"}
# What other libraries call it, by our name.
ELSEWHERE = {
    "lr": "learning_rate learning-rate step_size",
    "gamma": "discount discount_factor",
    "lam": "gae_lambda lambda lambda_",
    "unroll": "n_steps num_steps rollout rollout_length horizon n_step",
    "epochs": "n_epochs num_epochs update_epochs noptepochs",
    "minibatches": "num_minibatches n_minibatches nminibatches batch_size minibatch_size",
    "entropy": "ent_coef entropy_coef entropy_coeff",
    "value": "vf_coef value_coef vf_loss_coeff",
    "clip": "clip_range clip_coef clip_param",
    "value_clip": "clip_range_vf clip_vloss vf_clip_param",
    "max_kl": "target_kl",
    "steps": "total_timesteps timesteps total_steps max_steps num_timesteps frames",
    "streams": "n_envs num_envs envs_per_worker num_envs_per_worker",
    "workers": "num_workers n_workers actors num_actors",
    "widths": "hidden_sizes hidden net_arch layers hidden_size",
    "env_args": "env_kwargs",
    "normalize_advantage": "norm_adv",
    "normalize_return": "norm_reward normalize_reward",
    "max_grad_norm": "grad_clip",
    "algo": "algorithm",
    "env": "env_id environment",
    "out": "output logdir log_dir folder",
    "eval_every": "eval_freq eval_interval",
    "eval_episodes": "n_eval_episodes",
    "checkpoint_every": "save_every save_freq checkpoint_interval",
}


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that was most likely meant, or None."""
    known = list(known)
    if (renamed := RENAMED.get(name.lower())) in known:
        return renamed
    for ours, theirs in ELSEWHERE.items():
        if ours in known and name.lower() in theirs.split():
            return ours
    found = difflib.get_close_matches(name.lower(), known, n=1, cutoff=cutoff)
    return found[0] if found else None


def unknown(what: str, name: str, known: Iterable[str], spell: Any = str) -> str:
    """What was not known, and the nearest of the known names; a handful of them is listed."""
    known = sorted(known)
    near = nearest(name, known)
    if near:
        hint = f"did you mean {spell(near)}?"
    elif len(known) <= 8:
        hint = f"known: {', '.join(map(spell, known))}"
    else:
        hint = f"the nearest is {spell(nearest(name, known, 0.0))}"
    return f"unknown {what} {spell(name)}; {hint}"


def explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    """The first fault of a model in one line. `origins` tells for a key where its value came from."""
    faults = [fault for fault in error.errors() if fault["type"] != "default_factory_not_called"]
    fault = faults[0]
    key = str(fault["loc"][0]) if fault["loc"] else ""
    if not key:
        # A rule between settings: its text begins with the key it is about.
        text = _words(fault)
        words = text.split()
        origin = next((origins[word] for word in words if word in origins), None)
        return f"{origin}: {text}" if origin else text
    return f"{_named(key, origins)} {_words(fault)}"


def _named(key: str, origins: Mapping[str, str]) -> str:
    """The key as the person wrote it: a flag, a keyword, or a line of a file."""
    origin = origins.get(key)
    if origin is None:
        return key
    return origin if origin.replace("-", "_").endswith(key) else f"{origin}: {key}"


def _words(fault: Mapping[str, Any]) -> str:
    kind, context, given = fault["type"], fault.get("ctx", {}), fault.get("input")
    got = f", got {given!r}"
    match kind:
        case "missing":
            return "is needed"
        case "greater_than":
            return f"must be greater than {context['gt']:g}{got}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}{got}"
        case "less_than":
            return f"must be less than {context['lt']:g}{got}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}{got}"
        case "literal_error":
            return f"must be {context['expected']}{got}"
        case "int_type" | "int_parsing" | "int_from_float" | "int_parsing_size":
            return f"must be a whole number{got}"
        case "float_type" | "float_parsing":
            return f"must be a number{got}"
        case "finite_number":
            return f"must be a finite number{got}"
        case "bool_type" | "bool_parsing":
            return f"must be true or false{got}"
        case "string_type" | "callable_type":
            return f"must be text{got}"
        case "tuple_type":
            return f"must be a list{got}"
        case "dict_type":
            return f"must be a table of key = value{got}"
        case "value_error":
            return str(context["error"])
    return f"is wrong: {fault['msg'].lower()}{got}"


M = TypeVar("M", bound=BaseModel)


def _settings_class(algo: Any, origins: Mapping[str, str]) -> type[BaseModel]:
    if algo not in algorithms.names():
        where = f"{origins['algo']}: " if "algo" in origins else ""
        raise ConfigError(where + unknown("algorithm", str(algo), algorithms.names(), repr))
    return algorithms.settings_class(algo)


def _built(cls: type[M], values: Mapping[str, Any], origins: Mapping[str, str]) -> M:
    try:
        return cls(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, origins)) from None
