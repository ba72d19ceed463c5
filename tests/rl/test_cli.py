"""The commands: flags, help, one-line errors and exit statuses. Whole runs are tested elsewhere."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rltrain import algorithms, cli
from rltrain.algorithms.settings import HELP_ORDER
from rltrain.config import run_config as config
from rltrain.config.flags import literal
from rltrain.config.load import load
from rltrain.config.run_config import RunConfig
from rltrain.envs.errors import EnvError
from rltrain.envs.make import read_spec, resolve
from rltrain.errors import CheckpointError, ConfigError, Interrupted, RunFailed
from rltrain.learner.algorithm import make_algorithm
from rltrain.rollout.workers.process import ProcessHandle
from rltrain.storage import run_folder

OURS = sorted(name for name, entry in algorithms._registry.items() if isinstance(entry.algorithm, str))  # not a test's
HELP = ["--help"], ["--algo", "ppo", "--help"], ["--algo=a2c", "--help"]


@dataclass
class Result:
    steps: int = 1000
    seconds: float = 2.0
    train_seconds: float = 1.0
    steps_per_second: float = 500.0
    episodes: int = 10
    train_return: float | None = 1.5
    eval_return: float | None = None
    stopped: str = "steps"
    run: Path = Path("runs/x")
    checkpoint: Path = Path("runs/x/checkpoints/step-1")
    restarts: int = 0
    fingerprint: str = "abc"


def refused(capsys: pytest.CaptureFixture[str], *argv: str, command: Any = cli.main) -> str:
    """The one line that answers a wrong call."""
    assert command(list(argv)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line.partition(": ")[2]


def parsed(*argv: str) -> RunConfig:
    return cli.parse(["--algo", "ppo", "--env", "X-v0", *argv])[0]


@pytest.mark.parametrize("argv", HELP, ids=" ".join)
def test_help_imports_no_large_package(argv: list[str]) -> None:
    """The time of help is that of its imports."""
    large = {"asyncio", "dask", "gymnasium", "loky", "multiprocessing", "numpy", "pettingzoo", "rich", "tensorboard"}
    text = (
        f"import sys; from rltrain.cli import main\ntry: main(sys.argv[1:])\n"
        f"finally: print(sorted({large | {'torch'}} & set(sys.modules)), len(sys.modules) < 400)"
    )
    done = subprocess.run([sys.executable, "-c", text, *argv], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] True"


@pytest.mark.parametrize("algo", OURS)
def test_every_setting_has_a_flag_with_its_default(algo: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--algo", algo, "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())

    fields = {**RunConfig.model_fields, **algorithms.settings_class(algo).model_fields}
    for key, field in fields.items():
        key = field.alias or key
        if key in config.INNER:
            continue
        flag = "--" + key.replace("_", "-").removesuffix("s" if key in ("env_args", "eval_env_args") else "")
        assert f" {flag} " in text or f" {flag}, " in text, flag
        assert key in ("env_args", "eval_env_args") or field.description, key
    assert "--max-kl FLOAT approximate KL divergence, in nats, that ends the epochs [none]" in text or algo != "ppo"
    assert "--lr FLOAT step size of the optimiser at the start; of the policy [0.0001]" in text or algo != "ddpg"
    assert f"--streams INT environments that are stepped in parallel, in total [{fields_default(algo)}]" in text


def test_help_lists_settings_in_one_order_for_all_algorithms(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {key for algo in OURS for key in algorithms.settings_class(algo).model_fields}
    assert settings == set(HELP_ORDER)
    assert len(HELP_ORDER) == len(settings)

    with pytest.raises(SystemExit):
        cli.main(["--algo", "dqn", "--help"])
    text = capsys.readouterr().out.partition("settings of dqn")[2]
    flags = [f"--{key.replace('_', '-')}" for key in ("unroll", "lr", "gamma", "tau", "epsilon", "widths")]
    assert sorted(flags, key=text.index) == flags


def fields_default(algo: str) -> str:
    fields = algorithms.settings_class(algo).model_fields
    return str(fields["streams"].default) if "streams" in fields else "1; only actors have streams"


def test_flags_become_a_run() -> None:
    config = parsed("--lr", "1e-3", "--steps=2e3", "--widths", "8,8", "--normalize-obs", "--no-normalize-advantage")
    settings: Any = config.settings

    assert (settings.lr, config.steps, settings.widths) == (1e-3, 2000, (8, 8))
    assert (settings.normalize_obs, settings.normalize_advantage, settings.shared_torso) == (True, False, False)


def test_what_a_preset_turns_on_a_flag_turns_off() -> None:
    """The one tuned for LunarLander has both."""
    lunar = ["--algo", "dqn", "--env", "LunarLander-v3"]
    tuned: Any = parsed(*lunar).settings
    plain: Any = parsed(*lunar, "--no-double", "--no-prioritized").settings

    assert (tuned.double, tuned.prioritized) == (True, True)
    assert (plain.double, plain.prioritized) == (False, False)


def test_negative_values_are_values() -> None:
    settings: Any = parsed("--log-std-init", "-5e-1").settings

    assert settings.log_std_init == -0.5
    assert parsed("--stop-return", "-200").stop_return == -200.0


def test_environment_arguments_are_values() -> None:
    given = ["size=3", "name=maze", "path=a=b", "wind=true", "goal=(1, 2)", "rate=1e-3", "none=None", "text='3'"]

    config = parsed(*(word for item in given for word in ("--env-arg", item)))

    assert config.env_args == {
        "size": 3, "name": "maze", "path": "a=b", "wind": True, "goal": (1, 2), "rate": 1e-3, "none": None, "text": "3"
    }  # fmt: skip
    assert literal("[1, 2]") == [1, 2]


def test_the_file_chooses_the_algorithm_whose_flags_are_known(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('algo = "a2c"\nenv = "X-v0"\n[a2c]\nrms_eps = 1e-3\n')

    config, _ = cli.parse(["--config", str(file), "--rms-alpha", "0.5"])
    settings: Any = config.settings

    assert (config.algo, settings.rms_eps, settings.rms_alpha) == ("a2c", 1e-3, 0.5)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--algo", "ppp", "--env", "X-v0"], "--algo: unknown algorithm 'ppp'; did you mean 'ppo'?"),
        (["--env", "X-v0"], "--algo is needed"),
        (["--env", "X-v0", "--learning-rate", "1"], "--algo is needed: --learning-rate is no flag of a run, but a"),
        (["--env", "X-v0", "--clip=1"], "--algo is needed: --clip is no flag of a run, but a setting of an algorithm"),
        (["--env", "X-v0", "--nonsense"], "--algo is needed: --nonsense is no flag of a run, and may be a setting of"),
        (
            ["--env", "X-v0", "--no-noisy"],
            "--algo is needed: --no-noisy is no flag of a run, but a setting of an algori",
        ),
        (["--algo", "ppo", "--env", "X-v0", "-lr", "3"], "unknown flag -lr; did you mean --lr?"),
        (["--algo", "ppo", "--env", "X-v0", "---lr=3"], "unknown flag ---lr; did you mean --lr?"),
        (["--algo", "ppo", "--env", "X-v0", "--no-lr"], "unknown flag --no-lr; "),
        (
            ["--algo", "ppo", "--env", "X-v0", "--no-norm-obs"],
            "unknown flag --no-norm-obs; did you mean --no-normalize-",
        ),
        (["--algo", "ppo", "--env", "X-v0", "--no-noisy"], "unknown flag --no-noisy; it is a setting of "),
        (["--algo", "ppo", "--env", "X-v0", "--=3"], "unexpected '--=3'; values follow a flag, as in --seed 1"),
        (["--env", "X-v0", "--n-envs", "3"], "unknown flag --n-envs; did you mean --streams?"),
        (["--env", "X-v0", "--stpes", "3"], "unknown flag --stpes; did you mean --steps?"),
        (["--algo", "ppp", "--env", "X-v0", "--lr", "1"], "--algo: unknown algorithm 'ppp'; did you mean 'ppo'?"),
        (["--algo", "alpha", "--env", "X-v0"], "--algo: unknown algorithm 'alpha'; known: 'a2c', "),
        (
            ["--algo", "ppo", "--env", "X-v0", "--env-kwargs", "a=1"],
            "unknown flag --env-kwargs; did you mean --env-arg",
        ),
        (["--resume", "nowhere", "--nonsense"], "nowhere is not a run's folder: it has no run.json"),
        (["--config", "nowhere.toml", "--nonsense"], "nowhere.toml: cannot be read: no such file or directory"),
        (["--algo", "ppo"], "--env is needed"),
        (
            ["--algo", "ppo", "--env", "X-v0", "--learning-rate", "1"],
            "unknown flag --learning-rate; did you mean --lr?",
        ),
        (["--algo", "ppo", "--env", "X-v0", "--eval-evry=1"], "unknown flag --eval-evry; did you mean --eval-every?"),
        (["--algo", "ppo", "--env", "X-v0", "--lr"], "--lr: expected one argument"),
        (["--algo", "ppo", "--env", "X-v0", "--lr", "-1"], "--lr must be greater than 0, got -1.0"),
        (["--algo", "ppo", "--env", "X-v0", "--env-arg", "3"], "--env-arg takes key=value, got '3'"),
        (["--algo", "ppo", "--env", "X-v0", "stray"], "unexpected 'stray'; values follow a flag, as in --seed 1"),
        (["--algo", "ppo", "--env", "X-v0", "--step", "3"], "unknown flag --step; did you mean --steps?"),
        (
            ["--algo", "ppo", "--env", "X-v0", "--workers", "9", "--streams", "8"],
            "--workers: workers must be at most streams",
        ),
        (["--resume", "nowhere"], "nowhere is not a run's folder: it has no run.json"),
        (["--resume", "nowhere", "--config", "x.toml"], "--config: cannot be changed by --resume"),
        (["--config", "nowhere.toml"], "nowhere.toml: cannot be read: no such file or directory"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *argv).startswith(words)


def test_flags_may_have_underscores() -> None:
    config = parsed("--normalize_obs", "--eval_every=70", "--env-arg", "a_b=c_d", "--out", "some_where")
    assert (config.settings.normalize_obs, config.eval_every) == (True, 70)  # type: ignore[attr-defined]
    assert (config.env_args, config.out) == ({"a_b": "c_d"}, "some_where")


def test_a_loop_over_runs_that_catches_exceptions_ends_at_ctrl_c() -> None:
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "RUN_OR_CHECKPOINT is needed, as in rleval runs/NAME"),
        (["nowhere"], "nowhere does not exist"),
        ([".", "--episodes", "0"], "--episodes: must be at least 1, got 0"),
        ([".", "--episodes", "x"], "--episodes: must be a whole number, got 'x'"),
        ([".", "--episode", "3"], "unknown flag --episode; did you mean --episodes?"),
        ([".", "--n-eval-episodes", "3"], "unknown flag --n-eval-episodes; did you mean --episodes?"),
        (
            [".", "--learning-rate", "3"],
            "unknown flag --learning-rate; known: --best, --env, --env-arg, --episodes, --import, ",
        ),
    ],
)
def test_rleval_answers_in_one_line_too(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *argv, command=cli.main_eval).startswith(words)


def test_resume_takes_a_folder_and_few_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = parsed("--seed", "4", "--lr", "1e-3", "--workers", "0")
    (tmp_path / run_folder.RUN_FILE).write_text(json.dumps({"config": first.to_json()}))

    again, folder = cli.parse(["--resume", str(tmp_path)])
    longer, _ = cli.parse(["--resume", str(tmp_path), "--steps", "200000", "--json"])

    assert (again, folder) == (first, tmp_path)
    assert (longer.steps, longer.json_line, longer.seed, longer.settings) == (200_000, True, 4, first.settings)
    assert refused(capsys, "--resume", str(tmp_path), "--lr", "1").startswith("--lr: cannot be changed by --resume")
    assert refused(capsys, "--resume", str(tmp_path), "--seed", "1").startswith("--seed: cannot be changed")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("no"), 2),
        (CheckpointError("no"), 2),
        (EnvError("no"), 2),
        (RunFailed("a\nb"), 1),
        (Interrupted(signal.SIGINT), 130),
        (Interrupted(signal.SIGTERM), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_goes_wrong_has_its_status(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "_train", fail)

    assert cli.main(["--quiet"]) == status
    assert capsys.readouterr().err.startswith("rltrain: ")


def test_the_result_as_json_and_for_a_person() -> None:
    result: Any = Result()

    data = json.loads(json.dumps(cli.as_json(result)))

    words = (
        "steps seconds train_seconds steps_per_second episodes train_return eval_return stopped run checkpoint restarts"
    )
    assert list(data) == [*words.split(), "fingerprint"]
    assert (data["eval_return"], data["run"]) == (None, "runs/x")
    assert cli.result_line(Result(steps_per_second=1000.0)) == (  # type: ignore[arg-type]
        "1,000 steps in 2.0 s (1.0 s of training, 1,000 steps/s), 10 episodes, training return 1.5; "
        "checkpoint runs/x/checkpoints/step-1"
    )
    assert cli.result_line(result).startswith("1,000 steps, 500 of them now, in 2.0 s (1.0 s of training, 500 steps/s)")
    nothing: Any = Result(train_seconds=0.0, steps_per_second=0.0)
    assert cli.result_line(nothing).startswith("1,000 steps, 0 of them now, in 2.0 s, 10 episodes")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "all 1,000 steps are done; to continue: rltrain --resume runs/x --steps 2000"),
        ({"stopped": "seconds"}, "--max-seconds 9 are over; to continue: rltrain --resume runs/x"),
        (
            {"stopped": "seconds", "seconds": 11.5},
            "--max-seconds 9 are over, 2.5 s ago; to continue: rltrain --resume ",
        ),
        (
            {"stopped": "return"},
            "two evaluations in a row reached --stop-return 5; to continue: rltrain --resume runs/x",
        ),
        ({"stopped": "a plateau"}, "a plateau; to continue: rltrain --resume runs/x"),
    ],
)
def test_the_last_line_says_why_the_run_ended(values: dict[str, Any], line: str) -> None:
    result: Any = Result(**values)

    assert cli.ending(result, parsed("--steps", "1000", "--max-seconds", "9", "--stop-return", "5")).startswith(
        f"ended: {line}"
    )


def test_the_command_alone_prints_usage_algorithms_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2

    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("usage: rltrain --algo NAME --env ENV [flags]\n")
    groups = dict(line.strip().split("  ", 1) for line in printed.out.splitlines() if "actions  " in line)
    names = {name: group for group, listed in groups.items() for name in listed.strip().split(", ")}
    assert set(OURS) <= set(names)
    assert (names["ppo"], names["dqn"], names["td3"]) == ("any actions", "Discrete actions", "Box actions")
    assert names["qmix"] == "several agents, Discrete actions"
    examples = printed.out.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 3
    for example in examples:
        config, _ = cli.parse(example.split()[1:])
        assert config.algo in names


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "spread", "probe:multi-discrete"])
def test_the_overview_says_which_actions_an_algorithm_learns(env: str) -> None:
    source = resolve(env, {}, "all", None, "")
    spec = read_spec(source, 0)
    kind = spec.action.kind
    for name in OURS:
        if algorithms.for_several(name) != bool(spec.groups):
            continue
        claimed = algorithms._registry[name].actions
        works = claimed == algorithms.ANY or kind in claimed.lower()
        config = load({"algo": name, "env": env, "preset": "none", "widths": (8,)})
        with contextlib.nullcontext() if works else pytest.raises(ConfigError):
            make_algorithm(config, spec)


def test_a_named_run_lies_in_its_folder_and_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parsed("--name", "my run", "--out", "here")

    assert run_folder.make_folder(config) == tmp_path / "here" / "my run"

    again = ["--algo", "ppo", "--env", "CartPole-v1", "--name", "my run", "--out", "here", "--quiet"]
    folder = tmp_path / "here" / "my run"
    assert refused(capsys, *again) == f"--name my run: {folder} exists already; choose another name"
    (folder / run_folder.RUN_FILE).touch()
    assert refused(capsys, *again).endswith(f"choose another name, or continue the run with --resume '{folder}'")
    for name in ("a/b", "..", "", "a\\b", "a\nb"):
        assert refused(capsys, *again[:4], "--name", name).startswith("--name must be the name of a folder")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])

    assert capsys.readouterr().out.startswith("rltrain ")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.ENOMEM])
def test_a_resource_that_is_used_up_is_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise OSError(number, os.strerror(number))

    assert cli._guarded("rltrain", work) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rltrain: the system refused: {os.strerror(number).lower()}; ")


def test_other_errors_of_the_system_keep_their_traceback() -> None:
    """Those that code of ours raised."""
    with pytest.raises(FileNotFoundError):
        cli._guarded("rltrain", partial(os.stat, "/nowhere"))


@pytest.mark.usefixtures("fork_server")
def test_a_command_ends_after_the_threads_of_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They unlink and unregister semaphores: if the process ends between the two, a message about a leak appears."""

    def work() -> None:
        handle = ProcessHandle(0, list)
        handle.call("__len__")
        handle.result()
        handle.close()

    monkeypatch.setattr(cli, "_exit_now", lambda status: pytest.fail("a thread was still at work"))

    assert cli._guarded("rltrain", work) == 0
