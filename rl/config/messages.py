"""One clear line for each mistake in a setting: the nearest name, the bound, the names of other libraries."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rltrain import algorithms
from rltrain.envs.errors import made_already, nearest
from rltrain.errors import ConfigError

# Former names of settings, in run folders of version 0.1.
RENAMED = {"credits": "max_in_flight", "kept": "buffer_size", "uses": "reuse"}

# Our settings, each with its names in Stable-Baselines3, RLlib, CleanRL and Spinning Up, and with other usual words.
# A name that stands for two of our settings, as batch_size does, means the first one that the algorithm has.
ELSEWHERE = {
    "lr": "learning_rate step_size policy_lr actor_lr pi_lr",
    "lr_q": "q_lr critic_lr qf_lr vf_lr",
    "lr_end": "anneal_lr lr_schedule lr_decay",
    "gamma": "discount discount_factor",
    "lam": "gae_lambda lambda lambda_",
    "n_step": "n_steps",
    "unroll": "n_steps horizon num_steps rollout rollout_length rollout_fragment_length train_freq train_frequency",
    "epochs": "n_epochs num_epochs update_epochs noptepochs num_sgd_iter",
    "max_grad_norm": "grad_clip grad_clip_norm clip_grad_norm max_grad",
    "double": "double_q double_dqn",
    "prioritized": "prioritized_replay per use_per prioritized_replay_buffer",
    "dueling": "dueling_dqn",
    "atoms": "n_atoms num_atoms",
    "minibatches": "num_minibatches n_minibatches nminibatches batch_size minibatch_size sgd_minibatch_size",
    "batch": "batch_size train_batch_size minibatch_size",
    "data": "dataset dataset_path offline_data input_ input input_path replay_path data_path",
    "conservative": "cql_alpha min_q_weight conservative_weight",
    "samples": "cql_n_actions n_action_samples",
    "advantage_factor": "inverse_temperature awac_lambda iql_beta awr_beta marwil_beta",
    "max_weight": "exp_adv_max adv_clip weight_clip",
    "expectile": "iql_tau",
    "norm_rate": "moving_average_sqd_adv_norm_update_rate",
    "filter_top": "frac top_fraction top filter_percent",
    "capacity": "buffer_size replay_size replay_buffer_size memory_size",
    "warmup": "learning_starts num_steps_sampled_before_learning_starts start_steps",
    "updates_per_step": "gradient_steps training_intensity utd_ratio",
    "target_every": "target_update_interval target_network_frequency target_network_update_freq",
    "tau": "polyak",
    "epsilon": "exploration_initial_eps start_e initial_epsilon",
    "epsilon_end": "exploration_final_eps end_e final_epsilon",
    "epsilon_share": "exploration_fraction epsilon_timesteps",
    "entropy": "ent_coef entropy_coef entropy_coeff",
    "temperature": "ent_coef initial_alpha entropy_coef init_temperature",
    "learn_temperature": "autotune automatic_entropy_tuning",
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
    "device": "cuda num_gpus gpus gpu use_cuda num_gpus_per_learner",
    "quiet": "verbose silent",
    "deterministic": "torch_deterministic",
    "algo": "algorithm agent",
    "config": "config_file hyperparams conf_file",
    "resume": "load checkpoint restore load_model load_path model_path pretrained trained_agent continue",
    "env": "env_id environment env_name gym_id task",
    "out": "output logdir log_dir folder tensorboard_log local_dir exp_name",
    "eval_every": "eval_freq eval_interval evaluation_interval",
    "eval_episodes": "n_eval_episodes evaluation_duration",
    "checkpoint_every": "save_every save_freq checkpoint_interval checkpoint_frequency",
}
OTHER_NAMES: dict[str, list[str]] = {former: [name] for former, name in RENAMED.items()}
for _ours, _names in ELSEWHERE.items():
    for _theirs in _names.split():
        OTHER_NAMES.setdefault(_theirs, []).append(_ours)

# Words of other libraries for which rltrain has no setting, and what a user does instead.
ALWAYS = "metrics are always written: TensorBoard events and metrics.jsonl in the folder of the run"
INSTEAD = {
    **dict.fromkeys("track wandb wandb_project wandb_project_name wandb_entity mlflow tensorboard".split(), ALWAYS),
    "log_interval": ALWAYS,
    **dict.fromkeys("progress progress_bar".split(), "progress is always shown; --quiet prints only the result"),
    **dict.fromkeys(
        "video record_video capture_video save_video".split(), "after the run: rleval RUN --video FILE.mp4"
    ),
    **dict.fromkeys("render render_mode render_human visualize".split(), "after the run: rleval RUN --render"),
    **dict.fromkeys(
        "save save_model save_path save_replay_buffer".split(),
        "checkpoints are always written, the replay included; --checkpoint-every sets how often",
    ),
    **dict.fromkeys("framework torch tf backend_framework".split(), "rltrain uses PyTorch, so there is no choice"),
    **dict.fromkeys("train_batch_size".split(), "a batch has streams * unroll steps: set --streams and --unroll"),
    "set": "each setting has a flag of its own, as in --lr 3e-4",
    "help_me": "see --help",
    "help": "see rltrain --algo NAME --help",
    "alpha": "the temperature of SAC is --temperature",
}
# Names of algorithms elsewhere, without - and _.
ALGORITHMS = {
    **dict.fromkeys(("recurrentppo", "ppolstm", "ppornn", "lstmppo", "rppo"), "it is ppo with --memory lstm"),
    **dict.fromkeys(("maskableppo", "ppomask"), "it is ppo, which uses the action masks of an environment"),
    **dict.fromkeys(("ippo", "multiagentppo", "pposhared"), "it is ppo, which trains several agents independently"),
    **dict.fromkeys(("doubledqn", "ddqn", "doubleq"), "it is dqn with --double"),
    **dict.fromkeys(("duelingdqn", "d3qn", "duelingdoubledqn"), "it is dqn with --double --dueling"),
    **dict.fromkeys(("c51", "distributionaldqn", "categoricaldqn"), "it is dqn with --atoms 51"),
    **dict.fromkeys(("noisydqn", "noisynet"), "it is dqn with --noisy"),
    **dict.fromkeys(("per", "prioritizeddqn"), "it is dqn with --prioritized"),
    **dict.fromkeys(("apex", "apexdqn"), "it is dqn with --prioritized --epsilon-per-stream, --overlap and --workers"),
    **dict.fromkeys(("r2d2", "drqn", "recurrentdqn"), "it is dqn with --memory lstm"),
    **dict.fromkeys(("pg", "vpg", "reinforce", "policygradient", "a2cgae", "ac"), "the nearest is a2c"),
    **dict.fromkeys(("discretesac", "sacdiscrete", "softactorcritic", "sacd"), "it is sac, also for Discrete actions"),
    **dict.fromkeys(("qlearning", "deepqnetwork", "deepq"), "it is dqn"),
    **dict.fromkeys(("selfplay", "alphazero", "muzero"), "the nearest is ppo with --opponents pool"),
    "sde": "it is a setting: --sde of ppo or sac",
}
# Names of policies elsewhere.
POLICIES = {
    "MlpPolicy": "leave --policy out; --widths sets the hidden layers",
    "CnnPolicy": "leave --policy out; images get a convolutional network, which --torso chooses",
    "MultiInputPolicy": "leave --policy out; Dict observations are read by every policy",
    "MlpLstmPolicy": "leave --policy out; --memory lstm adds a recurrent core",
    "CnnLstmPolicy": "leave --policy out; --memory lstm adds a recurrent core",
}

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

FEW = 24  # names that a message lists
LARGEST = 2**63 - 1  # of an integer

M = TypeVar("M", bound=BaseModel)


def unknown(what: str, name: str, known: Iterable[str], spell: Callable[[str], str] = str, more: str = "") -> str:
    """A message about an unknown name: with the known name that was most likely meant, or with all if they are few.

    Args:
        more: where all of them are listed.
    """
    known = sorted(known)
    if near := nearest(name, known):
        hint = f"did you mean {spell(near)}?"
    elif len(known) <= FEW or not more:
        hint = f"known: {', '.join(map(spell, known))}"
    else:
        hint = more
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
    if key not in OTHER_NAMES and key not in INSTEAD and not _owners(key):
        key = _written_apart(key, [*OTHER_NAMES, *INSTEAD, *known]) or key
    meant = [no + other for other in (key, *OTHER_NAMES.get(key, ()))]
    for other in meant:
        if other in known:
            return f"unknown {what} {spell(name)}; did you mean {spell(other)}?"
    if key in INSTEAD:
        return f"unknown {what} {spell(name)}; {INSTEAD[key]}"
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
    if near := nearest(key, [*known, *(theirs for theirs, ours in OTHER_NAMES.items() if set(ours) & set(known))]):
        near = near if near in known else next(ours for ours in OTHER_NAMES[near] if ours in known)
        return f"unknown {what} {spell(name)}; did you mean {spell(no + near if no + near in known else near)}?"
    if algo is None:
        return f"--algo is needed: {spell(name)} is no flag of a run, and may be a setting of an algorithm"
    return unknown(what, name, known, spell, f"rltrain --algo {algo} --help lists all")


def _written_apart(name: str, known: Iterable[str]) -> str | None:
    """The known name that has the same letters and digits: "learningrate" is learning_rate."""
    letters = name.replace("_", "")
    return next((other for other in known if other.replace("_", "") == letters), None)


def _owners(setting: str) -> list[str]:
    """The algorithms that have this setting."""
    return [algo for algo in algorithms.names() if setting in algorithms.settings_class(algo).model_fields]


def settings_class(algo: Any, origins: Mapping[str, str]) -> type[BaseModel]:
    """The settings of an algorithm; ConfigError for an unknown one."""
    if not isinstance(algo, str) or algo not in algorithms.names():
        origin = f"{origins['algo']}: " if "algo" in origins else ""
        raise ConfigError(origin + _unknown_algorithm(algo))
    return algorithms.settings_class(algo)


def _unknown_algorithm(algo: Any) -> str:
    known = algorithms.names()
    if not isinstance(algo, str):
        return f"an algorithm is a name or a class, got {algo!r}; known: {', '.join(map(repr, known))}"
    if algo.endswith(".py"):
        return f"add the name of the class: {algo}:Class"
    theirs = ALGORITHMS.get(re.sub(r"[-_ ]", "", algo.lower()))
    if theirs is not None and algo.lower() not in known:
        return f"unknown algorithm {algo!r}; {theirs}"
    return unknown("algorithm", algo, known, repr)


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


def _hint(value: Any, kind: str) -> str:
    """The end of the message about a value that is no number: how the same number is written."""
    if not kind.startswith(("int_", "float_")):
        return ""
    if callable(value):
        return "; a setting that changes during a run has another one for its last value, as lr_end"
    match = re.fullmatch(r"([\d.,_]*\d)\s*([kmb%]?)", value.strip().lower()) if isinstance(value, str) else None
    if match is None:
        return ""
    digits, unit = match.groups()
    whole = re.fullmatch(r"\d{1,3}(,\d{3})+", digits) is not None
    try:
        number = float(digits.replace(",", "" if whole else ".")) * SCALES[unit]
    except ValueError:
        return ""
    return f"; write {int(number):_}" if number.is_integer() else f"; write {number:g}"


SCALES = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "%": 0.01}


def _explain(fault: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if fault["loc"][:1] == ("env",) and kind in ("callable_type", "string_type"):
        text = made_already(fault["input"]) or f"must be a name, a class or a function, got {fault['input']!r}"
    elif kind == "value_error":
        text = str(context["error"])
    elif kind == "missing":
        text = "is needed"
    else:
        text = FAULTS[kind].format_map(context) if kind in FAULTS else f"is wrong: {fault['msg'].lower()}"
        if kind == "string_type" and fault["loc"][:1] in (("torso",), ("policy",)):
            text = "must be a class, or its name as module:Class"
        elif fault["loc"][:1] == ("callback",):
            text = "must be a list of names, as module:Class; objects are given as callbacks=[...]"
        elif len(fault["loc"]) > 1 and kind.startswith("int_"):
            text = "must be a list of whole numbers, as 64,64"
        text += f", got {fault.get('input')!r}{_hint(fault.get('input'), kind)}"
    if not fault["loc"]:  # a rule between settings: the first one that it names and that was given has the origin
        origin = next((origins[word] for word in text.split() if word in origins), None)
        return f"{origin}: {text}" if origin else text
    key = str(fault["loc"][0])
    origin = origins.get(key, key)  # a flag and a keyword end in the name of the setting
    return f"{origin} {text}" if origin.replace("-", "_").endswith(key) else f"{origin}: {key} {text}"
