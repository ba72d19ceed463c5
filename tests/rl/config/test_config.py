"""RunConfig: who wins, what an error says, and the way to run.json and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import rltrain
from rltrain import algorithms
from rltrain.algorithms.on_policy.settings import PPOConfig
from rltrain.config import presets
from rltrain.config import run_config as config_module
from rltrain.config.consent import SavedConfig
from rltrain.config.flags import run_parser, spelled
from rltrain.config.load import change, load, reload
from rltrain.config.messages import ELSEWHERE, RENAMED
from rltrain.config.run_config import RunConfig
from rltrain.config.toml_file import line_of
from rltrain.errors import CheckpointError, ConfigError
from rltrain.storage.run_folder import saved_config


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configs/ folder with one preset for ppo on Task-v0."""
    folder = tmp_path / "configs"
    (folder / "ppo").mkdir(parents=True)
    (folder / "ppo" / "Task-v0.toml").write_text(
        "# tuned\nsteps = 5_000\nstreams = 32\n\n[ppo]\nlr = 1e-3\nunroll = 32\n"
    )
    monkeypatch.setattr(presets, "folders", lambda: [folder])
    return folder


def flags(**given: Any) -> RunConfig:
    return load({"algo": "ppo", "env": "Task-v0", **given}, text=True)


def fault(**given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        flags(**given)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_numbers_that_depend_on_others_are_filled_in() -> None:
    config = load({"algo": "ppo", "env": "Task-v1", "steps": 2_000})

    assert config.streams == PPOConfig().streams
    assert config.workers == min(config_module.cores(), config.streams)
    assert config.eval_every == config.checkpoint_every == 200
    assert load({"algo": "ppo", "env": "Task-v1", "streams": 1}).workers == 1


def test_workers_raise_a_smaller_number_of_streams_that_the_user_has_not_set(tuned: Path, tmp_path: Path) -> None:
    raised = [
        flags(algo="sac", workers="8"),
        flags(env="Task-v1", workers="12"),
        flags(workers="40"),  # the preset has 32
        load({"algo": "ppo", "env": "Task-v1", "streams": None, "workers": 12, "settings": PPOConfig(lr=1.0)}),
    ]
    assert [(config.streams, config.workers, config.raised_from) for config in raised] == [
        (8, 8, 1),
        (12, 12, 8),
        (40, 40, 32),
        (12, 12, 8),
    ]
    assert (flags(workers="4").streams, flags(workers="4").raised_from) == (32, None)

    file = tmp_path / "mine.toml"
    for text in ("streams = 4", "[ppo]\nstreams = 4"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="workers must be at most streams, got 9 workers for 4 streams"):
            load({"algo": "ppo", "env": "Task-v0", "workers": 9, "preset": "none"}, file)
    with pytest.raises(ConfigError, match="workers must be at most streams, got 9 workers for 4 streams"):
        load({"algo": "ppo", "env": "Task-v1", "workers": 9, "settings": PPOConfig(streams=4)})


def test_a_flag_wins_over_the_file_over_the_preset_over_the_default(tuned: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("steps = 6_000\nkeep = 7\n[ppo]\nlr = 2e-3\n[a2c]\nlr = 9.0\n")

    config = load({"algo": "ppo", "env": "Task-v0", "keep": "9"}, file, text=True)

    assert (config.keep, config.steps, config.streams) == (9, 6_000, 32)
    assert isinstance(config.settings, PPOConfig)
    assert (config.settings.lr, config.settings.unroll, config.settings.epochs) == (2e-3, 32, PPOConfig().epochs)
    assert config.preset_file == "configs/ppo/Task-v0.toml"


def test_preset_none_ignores_the_tuned_values(tuned: Path) -> None:
    config = flags(preset="none")

    assert config.streams == PPOConfig().streams
    assert config.preset_file is None


def test_algorithm_and_environment_may_stand_in_the_file(tuned: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('algo = "ppo"\nenv = "Task-v0"\n[env_args]\nsize = 3\n')

    config = load({"env_args": {"seed": 1}}, file, text=True)

    assert (config.algo, config.env, config.streams) == ("ppo", "Task-v0", 32)
    assert config.env_args == {"size": 3, "seed": 1}


def test_text_becomes_values() -> None:
    config = flags(steps="1e6", lr="3e-3", widths="32, 16", max_kl="none", value_clip="0.2", normalize_obs="true")
    settings: Any = config.settings

    assert config.steps == 1_000_000
    assert isinstance(config.steps, int)
    assert (settings.lr, settings.widths, settings.max_kl, settings.value_clip) == (3e-3, (32, 16), None, 0.2)
    assert settings.normalize_obs is True


def test_python_values_may_come_from_numpy_and_from_lists() -> None:
    config = load({"algo": "ppo", "env": "X-v0", "steps": np.int64(70), "lr": np.float32(0.5), "widths": [8]})
    settings: Any = config.settings

    assert (config.steps, settings.lr, settings.widths) == (70, 0.5, (8,))


def test_none_from_python_stands_for_the_default() -> None:
    assert load({"algo": "ppo", "env": "X-v0", "workers": None, "max_kl": None}).workers >= 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": "fast"}, "--lr must be a number, got 'fast'"),
        ({"lr": "-1"}, "--lr must be greater than 0, got -1.0"),
        ({"lr": "nan"}, "--lr must be a finite number, got nan"),
        ({"gamma": "1.5"}, "--gamma must be at most 1, got 1.5"),
        ({"steps": "2.5"}, "--steps must be a whole number, got 2.5"),
        ({"epochs": "0"}, "--epochs must be at least 1, got 0"),
        ({"unroll": "1" + 39 * "0"}, "--unroll must be between -2^63 and 2^63 - 1"),
        ({"widths": "8,1" + 39 * "0"}, "--widths must be between -2^63 and 2^63 - 1"),
        ({"activation": "gelu"}, "--activation must be 'tanh' or 'relu', got 'gelu'"),
        ({"memory": "gru", "unroll": "100"}, "sequence must divide unroll, got sequence 16 and unroll 100"),
        ({"widths": "8,x"}, "--widths must be a list of whole numbers, as 64,64, got 'x'"),
        ({"learning_rate": "1"}, "unknown flag --learning-rate; did you mean --lr?"),
        ({"algo": "appo", "credits": "2"}, "unknown flag --credits; did you mean --max-in-flight?"),
        ({"algo": "appo", "kept": "2"}, "unknown flag --kept; did you mean --buffer-size?"),
        ({"algo": "appo", "uses": "2"}, "unknown flag --uses; did you mean --reuse?"),
        ({"wrokers": "1"}, "unknown flag --wrokers; did you mean --workers?"),
        ({"algo": "pp0"}, "--algo: unknown algorithm 'pp0'; did you mean 'ppo'?"),
        ({"algo": "lambda"}, "--algo: unknown algorithm 'lambda'; known: 'a2c', "),
        ({"workers": "9", "streams": "8"}, "--workers: workers must be at most streams, got 9 workers for 8 streams"),
        ({"stop_return": "3", "eval_every": "0"}, "--stop-return: stop_return needs evaluations, but eval_every is 0"),
    ],
)
def test_a_wrong_flag_is_answered_in_one_line(given: dict[str, str], words: str) -> None:
    assert words in fault(**given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = 10\nlearning_rate = 3\n", "line 2: unknown key 'learning_rate'; did you mean 'lr'?"),
        (
            "steps = 10\n\n[ppo]\nepochs = 2\nlearning_rate = 1e-3\n",
            "line 5: unknown key 'learning_rate'; did you mean",
        ),
        ("[ppo]\nlr = 'much'\n", "line 2: lr must be a number, got 'much'"),
        ("steps = '10'\n", "line 1: steps must be a whole number, got '10'"),
        ("[ppo]\nnormalize_obs = 1\n", "line 2: normalize_obs must be true or false, got 1"),
        ("\n[pp]\nlr = 1\n", "line 2: unknown table [pp]; did you mean [ppo]?"),
        ("\n[env_kwargs]\nn = 1\n", "line 2: unknown table [env_kwargs]; did you mean [env_args]?"),
        ("\n[model]\nn = 1\n", "line 2: unknown table [model]; known: [a2c], "),
        ("[ppo]\nsteps = 9\n", "line 2: unknown key 'steps'; it is a setting of the run: write it above all tables"),
        ("[ppo]\nmax_steps = 9\n", "line 2: unknown key 'max_steps'; in rltrain it is 'steps', a setting of the run"),
        ("steps = = 3\n", "is not TOML: "),
        ("keep = -1\n", "line 1: keep must be at least 1, got -1"),
    ],
)
def test_a_wrong_file_is_answered_with_its_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)

    with pytest.raises(ConfigError) as caught:
        load({"algo": "ppo", "env": "X-v0"}, file, text=True)

    assert str(caught.value).startswith(str(file))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_preset_is_named_as_a_person_knows_it(tuned: Path) -> None:
    (tuned / "ppo" / "Task-v0.toml").write_text("[ppo]\nlr = 0\n")

    assert fault() == "configs/ppo/Task-v0.toml, line 2: lr must be greater than 0, got 0"


def test_a_wrong_keyword_is_named_as_one() -> None:
    with pytest.raises(ConfigError, match=r"keyword lr must be a number, got 'x'"):
        load({"algo": "ppo", "env": "X-v0", "lr": "x"})
    with pytest.raises(ConfigError, match="keyword stream: unknown key 'stream'; did you mean 'streams'"):
        load({"algo": "ppo", "env": "X-v0", "stream": 3})
    with pytest.raises(ConfigError, match="env is needed"):
        load({"algo": "ppo"})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read: no such file"):
        load({"algo": "ppo", "env": "X-v0"}, "nowhere.toml")


def test_a_settings_object_is_taken_whole(tuned: Path) -> None:
    config = load({"algo": "ppo", "env": "Task-v0", "settings": PPOConfig(epochs=2), "gamma": 0.5})
    settings: Any = config.settings

    assert (settings.epochs, settings.gamma, settings.lr, settings.unroll) == (2, 0.5, 3e-4, 128)
    with pytest.raises(ConfigError, match="settings must be A2CConfig for a2c"):
        load({"algo": "a2c", "env": "Task-v0", "settings": PPOConfig()})


def test_stopping_at_a_return_takes_at_least_fifty_episodes() -> None:
    assert flags(stop_return="475").eval_episodes == 50
    assert flags(stop_return="475", eval_episodes="10").eval_episodes == 50
    assert flags(stop_return="475", eval_episodes="80").eval_episodes == 80
    assert flags(eval_episodes="10").eval_episodes == 10


def test_workers_zero_and_the_local_backend_mean_each_other() -> None:
    assert flags(workers="0").backend == "local"
    assert flags(backend="local").workers == 0
    assert (flags(backend="local", workers="2").workers, flags(workers="2").backend) == (2, "processes")


def test_a_run_is_frozen_and_refuses_unknown_fields() -> None:
    config = flags()
    with pytest.raises(ValidationError):
        config.steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        RunConfig(algo="ppo", env="X-v0", settings=PPOConfig(), stepz=3)  # type: ignore[call-arg]


def test_there_and_back_through_json() -> None:
    config = flags(widths="8,4", env_args={"size": 3}, stop_return="4", json=True)

    data = json.loads(json.dumps(config.to_json()))

    assert RunConfig.from_json(data) == config
    assert type(RunConfig.from_json(data).settings) is PPOConfig


def test_runs_written_with_the_former_names_of_settings_are_read() -> None:
    data = flags(algo="appo", max_in_flight="2", buffer_size="3", reuse="5").to_json()
    for old, new in RENAMED.items():
        data["settings"][old] = data["settings"].pop(new)

    settings: Any = RunConfig.from_json(data).settings

    assert (settings.max_in_flight, settings.buffer_size, settings.reuse) == (2, 3, 5)


def test_runs_from_before_scaled_rewards_were_limited_have_no_limit() -> None:
    data = flags(algo="ppo").to_json()
    del data["settings"]["reward_limit"]

    settings: Any = RunConfig.from_json(data).settings

    assert settings.reward_limit is None


def test_an_environment_that_is_an_object_is_kept_by_name_only() -> None:
    class Maze:
        pass

    data = json.loads(json.dumps(load({"algo": "ppo", "env": Maze}).to_json()))

    assert data["env"].endswith("Maze")
    with pytest.raises(ConfigError, match=r"Maze was given as an object, which is not kept.*env=\.\.\."):
        reload(SavedConfig(data, Path("run.json")), {})
    assert not RunConfig.from_json(data).reloadable
    again = reload(SavedConfig(data, Path("run.json")), {"env": Maze})
    assert again.env is Maze
    assert not again.reloadable


def test_arguments_that_json_would_change_count_as_objects() -> None:
    config = load({"algo": "ppo", "env": "X-v0", "env_args": {"make": object()}})

    assert config.to_json()["reloadable"] is False
    assert load({"algo": "ppo", "env": "X-v0", "env_args": {"sizes": [1, 2]}}).reloadable


def test_going_on_keeps_the_run_and_forgets_the_call() -> None:
    first = flags(steps="5000", seed="3", json=True, quiet=True, max_seconds="9", workers="0")

    again = reload(SavedConfig(first.to_json(), Path("run.json")), {})
    longer = reload(
        SavedConfig(first.to_json(), Path("run.json")), {"steps": "9000", "workers": "2", "json": True}, text=True
    )

    assert (again.steps, again.seed, again.workers, again.eval_every) == (5000, 3, 0, 500)
    assert (again.json_line, again.quiet, again.max_seconds) == (False, False, None)
    assert (longer.steps, longer.workers, longer.backend, longer.json_line) == (9000, 2, "processes", True)
    assert (longer.seed, longer.eval_every) == (3, 500)


def test_going_on_refuses_what_would_make_it_another_run() -> None:
    data = flags().to_json()
    with pytest.raises(ConfigError, match="--lr: cannot be changed by --resume; what can: steps, workers"):
        reload(SavedConfig(data, Path("run.json")), {"lr": "1"}, text=True)
    with pytest.raises(ConfigError, match="--steps must be a whole number, got 'x'"):
        reload(SavedConfig(data, Path("run.json")), {"steps": "x"}, text=True)
    with pytest.raises(ConfigError, match="--workers: workers must be at most streams"):
        reload(SavedConfig(data, Path("run.json")), {"workers": "20"}, text=True)


def test_a_run_folder_is_read_or_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a run's folder: it has no run\.json"):
        saved_config(tmp_path)
    (tmp_path / "run.json").write_text('{"config": ')
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        saved_config(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"config": flags(seed="5").to_json()}))
    assert reload(saved_config(tmp_path), {}).seed == 5


def test_lines_of_keys_are_found_in_their_table() -> None:
    text = "lr = 1\n[ppo]\n# lr = 2\n'lr' = 3\n[a2c]\nlr = 4\n"

    assert [line_of(text, table, "lr") for table in ("", "ppo", "a2c")] == [1, 4, 6]


THEIRS = {  # by algorithm: names in Stable-Baselines3, CleanRL and RLlib, and ours
    "ppo": "learning_rate:lr n_steps:unroll batch_size:minibatches n_epochs:epochs gae_lambda:lam clip_range:clip "
    "clip_range_vf:value_clip ent_coef:entropy vf_coef:value use_sde:sde sde_sample_freq:sde_every target_kl:max_kl "
    "policy_kwargs:widths tensorboard_log:out verbose:quiet n_envs:streams total_timesteps:steps num_steps:unroll "
    "anneal_lr:lr_end num_minibatches:minibatches update_epochs:epochs norm_adv:normalize_advantage clip_coef:clip "
    "clip_vloss:value_clip torch_deterministic:deterministic cuda:device exp_name:out num_env_runners:workers "
    "rollout_fragment_length:unroll num_sgd_iter:epochs lambda:lam grad_clip:max_grad_norm env_config:env_args "
    "evaluation_interval:eval_every evaluation_duration:eval_episodes fcnet_hiddens:widths num_gpus:device",
    "dqn": "buffer_size:capacity learning_starts:warmup batch_size:batch train_freq:unroll "
    "gradient_steps:updates_per_step target_update_interval:target_every exploration_fraction:epsilon_share "
    "exploration_initial_eps:epsilon exploration_final_eps:epsilon_end "
    "start_e:epsilon end_e:epsilon_end target_network_frequency:target_every",
    "sac": "ent_coef:temperature autotune:learn_temperature policy_lr:lr q_lr:lr_q train_batch_size:batch",
    "td3": "policy_frequency:policy_delay target_policy_noise:smoothing target_noise_clip:smoothing_clip",
}


@pytest.mark.parametrize("algo", THEIRS)
def test_names_of_other_libraries_lead_to_ours(algo: str) -> None:
    for pair in THEIRS[algo].split():
        theirs, _, ours = pair.partition(":")
        with pytest.raises(ConfigError, match=rf"unknown key '{theirs}'; did you mean '{ours}'\?"):
            load({"algo": algo, "env": "CartPole-v1", theirs: 1})


@pytest.mark.parametrize(
    ("algo", "theirs", "said"),
    [
        (
            "ppo",
            "learning_starts",
            "unknown flag --learning-starts; in rltrain it is --warmup, a setting of crossq, ddpg, dqn and 10 others, "
            "and ppo has none",
        ),
        ("sac", "credits", "in rltrain it is --max-in-flight, a setting of a3c, appo, impala, and sac has none"),
        ("ppo", "buffer_size", "unknown flag --buffer-size; it is a setting of appo, and ppo has none"),
        ("ppo", "noisy", "unknown flag --noisy; it is a setting of dqn, rainbow, and ppo has none"),
        ("dqn", "n_steps", "unknown flag --n-steps; did you mean --n-step?"),
        ("sac", "use_sde_at_warmup", "unknown flag --use-sde-at-warmup; rltrain --algo sac --help lists all"),
    ],
)
def test_a_setting_that_only_other_algorithms_have(
    algo: str, theirs: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {name: entry for name, entry in algorithms._registry.items() if isinstance(entry.algorithm, str)}
    monkeypatch.setattr(algorithms, "_registry", ours)  # without those of other tests
    with pytest.raises(ConfigError, match=re.escape(said)):
        load({"algo": algo, "env": "CartPole-v1", theirs: "1"}, text=True)


def test_each_name_of_another_library_leads_to_a_flag_that_exists() -> None:
    flags = set[str]()
    for algo in algorithms.names():
        flags |= set(run_parser(algo, "0")._option_string_actions)
    assert {spelled(ours) for ours in ELSEWHERE} - flags == {"--env-args"}  # the keyword; the flag is --env-arg


def test_keywords_replace_values_of_a_configuration() -> None:
    whole = load({"algo": "sac", "env": "Pendulum-v1", "steps": 500, "lr": 1e-3, "json": False, "workers": 0})
    changed = change(whole, {"steps": 700, "tau": 0.1, "workers": 3})
    assert (changed.steps, changed.workers, changed.streams, changed.raised_from) == (700, 3, 3, 1)
    assert changed.settings.model_dump() == {**whole.settings.model_dump(), "tau": 0.1}
    assert change(whole, {}) is whole
    assert change(whole, {"steps": None, "lr": None}).model_dump() == whole.model_dump()
    saved = RunConfig.from_json(whole.to_json())  # all fields are given, backend too
    assert (change(saved, {"workers": 1}).backend, change(saved, {"steps": 9}).backend) == ("processes", "local")


def test_another_environment_has_its_own_arguments_and_folder(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = RunConfig.from_json({**flags(env_args={"hard": "x"}).to_json(), "folder": "/somewhere"})
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert (first.env_args, first.reloadable) == ({"hard": "x"}, True)

    other = change(first, {"env": "CartPole-v1"})
    assert (other.env_args, other.folder, other.steps) == ({}, str(tmp_path / "elsewhere"), 5_000)  # the preset's steps
    assert change(first, {"env": "CartPole-v1", "env_args": {"b": 1}}).env_args == {"b": 1}
    assert change(first, {"env": "Task-v0"}).env_args == {"hard": "x"}

    made = change(first, {"env": dict})
    assert (made.reloadable, made.env_args, made.to_json()["reloadable"]) == (False, {}, False)
    assert change(made, {"env": "Task-v0"}).reloadable
    odd = change(first, {"env_args": {"made": object()}})
    assert (odd.reloadable, odd.folder) == (False, "/somewhere")
    assert change(odd, {"env_args": {}}).reloadable


def test_beside_resume_only_some_keywords_are_taken(tuned: Path, tmp_path: Path) -> None:
    config = flags(env_args={"hard": "x"})
    for keyword in ({"lr": 1e-4}, {"seed": 3}, {"env_args": {}}, {"settings": None}, {"nonsense": 1}):
        said = f"keyword {next(iter(keyword))}: cannot be changed by --resume; what can: steps, workers, "
        with pytest.raises(ConfigError, match=said):
            rltrain.train(config, resume=tmp_path, **keyword)
        with pytest.raises(ConfigError, match=said):
            change(config, keyword, resumed=True)
    again = change(config, {"env": dict, "steps": 6_000, "workers": 0}, resumed=True)
    assert (again.env, again.env_args, again.steps, again.reloadable) == (dict, {"hard": "x"}, 6_000, False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nonsense": 1}, "keyword nonsense: unknown key 'nonsense'"),
        ({"learning_starts": 1}, "keyword learning_starts: unknown key 'learning_starts'; did you mean 'warmup'"),
        ({"lr": "fast"}, "keyword lr must be a number, got 'fast'"),
        ({"algo": "td3"}, "keyword algo: the configuration is one of sac; make another one"),
        ({"settings": None}, "keyword settings: the configuration is one of sac"),
        ({"preset": "none"}, "keyword preset: the configuration has the values of its preset already; make another"),
        ({"preset_file": "x"}, "unknown key 'preset_file'"),
    ],
)
def test_wrong_keywords_beside_a_configuration_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        change(load({"algo": "sac", "env": "Pendulum-v1"}), given)


@pytest.mark.parametrize(("config", "what"), [("ppo", "'ppo'"), (PPOConfig(), "of type PPOConfig")])
def test_what_is_no_configuration_is_refused(config: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=f"the configuration is {what}, and must be a RunConfig"):
        rltrain.train(config)
