"""One clear line for each mistake in a setting: the nearest name, the bound, the names of other libraries."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rltrain import algorithms
from rltrain.envs.errors import nearest
from rltrain.errors import ConfigError

# Former names of settings, in run folders of version 0.1.
RENAMED = {"credits": "max_in_flight", "kept": "buffer_size", "uses": "reuse"}

# Our settings, each with its names in Stable-Baselines3, RLlib, CleanRL and Spinning Up, and with other usual words.
# A name that stands for two of our settings, as batch_size does, means the first one that the algorithm has.
ELSEWHERE = {
    "lr": "learning_rate step_size policy_lr actor_lr",
    "lr_q": "q_lr critic_lr",
    "lr_end": "anneal_lr lr_schedule",
    "gamma": "discount discount_factor",
    "lam": "gae_lambda lambda lambda_",
    "n_step": "n_steps",
    "unroll": "n_steps num_steps rollout rollout_length rollout_fragment_length train_freq train_frequency",
    "epochs": "n_epochs num_epochs update_epochs noptepochs num_sgd_iter",
    "minibatches": "num_minibatches n_minibatches nminibatches batch_size minibatch_size sgd_minibatch_size",
    "batch": "batch_size train_batch_size minibatch_size",
    "capacity": "buffer_size replay_size replay_buffer_size memory_size",
    "warmup": "learning_starts num_steps_sampled_before_learning_starts start_steps",
    "updates_per_step": "gradient_steps training_intensity utd_ratio",
    "target_every": "target_update_interval target_network_frequency target_network_update_freq",
    "tau": "polyak",
    "epsilon": "exploration_initial_eps start_e initial_epsilon",
    "epsilon_end": "exploration_final_eps end_e final_epsilon",
    "epsilon_share": "exploration_fraction epsilon_timesteps",
    "entropy": "ent_coef entropy_coef entropy_coeff",
    "temperature": "ent_coef initial_alpha entropy_coef",
    "learn_temperature": "autotune",
    "policy_delay": "policy_frequency",
    "smoothing": "target_policy_noise policy_noise",
    "smoothing_clip": "target_noise_clip noise_clip",
    "noise": "action_noise exploration_noise",
    "value": "vf_coef value_coef vf_loss_coeff",
    "clip": "clip_range clip_coef clip_param",
    "value_clip": "clip_range_vf clip_vloss vf_clip_param",
    "max_kl": "target_kl",
    "sde": "use_sde",
    "sde_every": "sde_sample_freq",
    "steps": "total_timesteps timesteps total_steps max_steps num_timesteps frames stop_timesteps",
    "streams": "n_envs num_envs envs_per_worker num_envs_per_worker num_envs_per_env_runner",
    "workers": "num_workers n_workers actors num_actors num_rollout_workers num_env_runners",
    "learners": "num_learners",
    "widths": "hidden_sizes hidden net_arch layers hidden_size fcnet_hiddens policy_kwargs",
    "activation": "activation_fn fcnet_activation",
    "torso": "model custom_model features_extractor_class",
    "memory": "use_lstm lstm recurrent",
    "memory_size": "lstm_cell_size lstm_hidden_size",
    "env_args": "env_kwargs env_config",
    "env_arg": "env_kwargs env_config",  # the flag
    "normalize_advantage": "norm_adv",
    "normalize_obs": "norm_obs observation_filter",
    "normalize_return": "norm_reward normalize_reward",
    "max_grad_norm": "grad_clip",
    "device": "cuda num_gpus gpu",
    "quiet": "verbose",
    "deterministic": "torch_deterministic",
    "algo": "algorithm",
    "env": "env_id environment",
    "out": "output logdir log_dir folder tensorboard_log local_dir exp_name",
    "eval_every": "eval_freq eval_interval evaluation_interval",
    "eval_episodes": "n_eval_episodes evaluation_duration",
    "checkpoint_every": "save_every save_freq checkpoint_interval checkpoint_frequency",
}
OTHER_NAMES: dict[str, list[str]] = {former: [name] for former, name in RENAMED.items()}
for _ours, _names in ELSEWHERE.items():
    for _theirs in _names.split():
        OTHER_NAMES.setdefault(_theirs, []).append(_ours)

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

LARGEST = 2**63 - 1  # of an integer

M = TypeVar("M", bound=BaseModel)


def unknown(what: str, name: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """A message about an unknown name: with the known name that was most likely meant, or with all if they are few."""
    known = sorted(known)
    if near := nearest(name, known):
        hint = f"did you mean {spell(near)}?"
    elif len(known) <= 8:
        hint = f"known: {', '.join(map(spell, known))}"
    else:
        hint = f"the nearest is {spell(nearest(name, known, 0.0) or known[0])}"
    return f"unknown {what} {spell(name)}; {hint}"


def unknown_setting(
    what: str,
    name: str,
    known: Collection[str],
    spell: Callable[[str], str],
    algo: str | None,
    of_run: Collection[str] = (),
) -> str:
    """A message about an unknown setting, which may have this name in another library or in another algorithm.

    Args:
        known:  the settings that can stand in this place.
        algo:   the algorithm; None if the command line names none: then `known` are the flags of the run.
        of_run: settings of the run that must stand in another place, above the table of the algorithm.
    """
    key = name.lower().replace("-", "_")
    no = "no_" if what == "flag" and key.startswith("no_") else ""  # the flag that turns a setting off
    key = key.removeprefix(no)
    meant = [no + other for other in (key, *OTHER_NAMES.get(key, ()))]
    for other in meant:
        if other in known:
            return f"unknown {what} {spell(name)}; did you mean {spell(other)}?"
    for other in meant:
        it = "it is" if other == name else f"in rltrain it is {spell(other)},"
        if other in of_run:
            return f"unknown {what} {spell(name)}; {it} a setting of the run: write it above all tables"
        owners = _owners(other.removeprefix(no))
        if owners and algo not in owners:
            if algo is None:
                return f"--algo is needed: {spell(name)} is no flag of a run, but a setting of an algorithm"
            shown = ", ".join(owners) if len(owners) <= 6 else f"{', '.join(owners[:3])} and {len(owners) - 3} others"
            return f"unknown {what} {spell(name)}; {it} a setting of {shown}, and {algo} has none"
    if algo is None and not nearest(name, known):
        return f"--algo is needed: {spell(name)} is no flag of a run, and may be a setting of an algorithm"
    return unknown(what, name, known, spell)


def _owners(setting: str) -> list[str]:
    """The algorithms that have this setting."""
    return [algo for algo in algorithms.names() if setting in algorithms.settings_class(algo).model_fields]


def settings_class(algo: Any, origins: Mapping[str, str]) -> type[BaseModel]:
    """The settings of an algorithm; ConfigError for an unknown one."""
    if algo not in algorithms.names():
        origin = f"{origins['algo']}: " if "algo" in origins else ""
        raise ConfigError(origin + unknown("algorithm", str(algo), algorithms.names(), repr))
    return algorithms.settings_class(algo)


def build(model: type[M], values: Mapping[str, Any], origins: Mapping[str, str]) -> M:
    """A checked model. ConfigError for a wrong value; `origins` has the flag, keyword or line of each value."""
    for key, value in values.items():
        items = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(item, int) and abs(item) > LARGEST for item in items):  # else numpy and torch overflow
            origin = origins.get(key, key)
            place = origin if origin.replace("-", "_").endswith(key) else f"{origin}: {key}"
            raise ConfigError(f"{place} must be between -2^63 and 2^63 - 1")
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
