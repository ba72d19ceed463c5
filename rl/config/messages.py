"""One clear line for each mistake in a setting: the nearest name, the bound, the names of other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rltrain import algorithms
from rltrain.envs.errors import nearest
from rltrain.errors import ConfigError

# Former names of settings, in run folders of version 0.1.
RENAMED = {"credits": "max_in_flight", "kept": "buffer_size", "uses": "reuse"}

# Names of our settings in other libraries.
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
OTHER_NAMES = RENAMED | {theirs: ours for ours, names in ELSEWHERE.items() for theirs in names.split()}

# What is wrong with a value, by pydantic's type of the error.
FAULTS = {
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("string_type", "callable_type"), "must be text"),
    "tuple_type": "must be a list",
    "dict_type": "must be a table of key = value",
}

M = TypeVar("M", bound=BaseModel)


def unknown(what: str, name: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """A message about an unknown name: with the known name that was most likely meant, or with all if they are few."""
    known = sorted(known)
    near = OTHER_NAMES.get(name.lower())
    near = near if near in known else nearest(name, known)
    if near:
        hint = f"did you mean {spell(near)}?"
    elif len(known) <= 8:
        hint = f"known: {', '.join(map(spell, known))}"
    else:
        hint = f"the nearest is {spell(nearest(name, known, 0.0) or known[0])}"
    return f"unknown {what} {spell(name)}; {hint}"


def settings_class(algo: Any, origins: Mapping[str, str]) -> type[BaseModel]:
    """The settings of an algorithm; ConfigError for an unknown one."""
    if algo not in algorithms.names():
        origin = f"{origins['algo']}: " if "algo" in origins else ""
        raise ConfigError(origin + unknown("algorithm", str(algo), algorithms.names(), repr))
    return algorithms.settings_class(algo)


def build(model: type[M], values: Mapping[str, Any], origins: Mapping[str, str]) -> M:
    """A checked model. ConfigError for a wrong value; `origins` has the flag, keyword or line of each value."""
    try:
        return model(**values)
    except ValidationError as error:
        fault = next(fault for fault in error.errors() if fault["type"] != "default_factory_not_called")
        raise ConfigError(_explain(fault, origins)) from None


def _explain(fault: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "value_error":
        text = str(context["error"])
    elif kind == "missing":
        text = "is needed"
    else:
        text = FAULTS[kind].format_map(context) if kind in FAULTS else f"is wrong: {fault['msg'].lower()}"
        text += f", got {fault.get('input')!r}"
    if not fault["loc"]:  # a rule between settings: the first one that it names and that was given has the origin
        origin = next((origins[word] for word in text.split() if word in origins), None)
        return f"{origin}: {text}" if origin else text
    key = str(fault["loc"][0])
    origin = origins.get(key, key)  # a flag and a keyword end in the name of the setting
    return f"{origin} {text}" if origin.replace("-", "_").endswith(key) else f"{origin}: {key} {text}"
