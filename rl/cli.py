"""The commands rltrain and rleval: flags in, exit status out, errors as one line for a person. Imports no torch."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rltrain import algorithms
from rltrain.config.flags import add_model, env_arg, spelled
from rltrain.config.load import load, reload
from rltrain.config.messages import unknown
from rltrain.config.run_config import INNER, PRELOAD, RunConfig
from rltrain.envs.errors import EnvError, EnvFault
from rltrain.errors import CheckpointError, ConfigError, Interrupted, LearnerLost, RunFailed, Stop
from rltrain.reporting.console import say
from rltrain.storage.run_folder import begun, saved
from rltrain.system.signals import held, sigterm_stops
from rltrain.system.torchrun import Rank, current_rank

if TYPE_CHECKING:
    from rltrain.evaluation.evaluate import Evaluation
    from rltrain.training_loop import Result

STARTED = time.monotonic()
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(re.sub(r"^argument (--[\w-]+)(?:/\S+)?:", r"\1:", message))

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """All that was given, by name; an unknown flag is answered with the nearest known one."""
        known = [option for option in self._option_string_actions if option.startswith("--") and option != "--help"]
        values, rest = self.parse_known_args(_joined(argv))
        for word in rest:
            if word.startswith("-"):
                name = word.partition("=")[0].lstrip("-").replace("-", "_")
                raise ConfigError(unknown("flag", name, (flag[2:].replace("-", "_") for flag in known), spelled))
            raise ConfigError(f"unexpected {word!r}; values follow a flag, as in --seed 1")
        return vars(values)


def main(argv: Sequence[str] | None = None) -> int:
    """`rltrain`. Exit status: 0 done, 1 the run failed, 2 asked wrongly, 130 and 143 interrupted.

    Of the processes that torchrun starts only the first does what the flags say; the others help it to learn.
    """
    here = current_rank()
    if here is not None and here.rank > 0:
        return _help(here)
    return _guarded("rltrain", lambda: _train(list(sys.argv[1:] if argv is None else argv)))


def _help(here: Rank) -> int:
    """A learner that is not the first, until that ends; it has nothing to say, since the first one says all."""
    if {"-h", "--help", "--version"} & set(sys.argv[1:]):
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):  # the first one ends in good order, and says when
        signal.signal(number, signal.SIG_IGN)
    from rltrain.learner.data_parallel import LearnerRank

    try:
        LearnerRank(here, None).serve()
    except (ConfigError, EnvError, LearnerLost) as error:
        say(f"rltrain: learner {here.rank} of {here.size}: {error}", sys.stderr)
        return ConfigError.status if isinstance(error, ConfigError) else RunFailed.status
    return 0


def main_eval(argv: Sequence[str] | None = None) -> int:
    """`rleval`. Exit status as for `rltrain`."""
    return _guarded("rleval", lambda: _evaluate(list(sys.argv[1:] if argv is None else argv)))


def _guarded(command: str, work: Callable[[], None]) -> int:
    try:
        with sigterm_stops():
            work()
    except (ConfigError, CheckpointError, EnvError) as error:
        for line in str(error).splitlines():  # one for each thing that is wrong
            say(f"{command}: {line}", sys.stderr)
        return 2
    except EnvFault as fault:
        from rltrain.rollout.workers.in_process import describe

        say(f"{command}: {describe(fault).rstrip()}", sys.stderr)
        return RunFailed.status
    except RunFailed as error:
        say(f"{command}: {error}", sys.stderr)
        return RunFailed.status
    except Interrupted as error:
        say(f"{command}: {error}", sys.stderr)
        return error.status
    except KeyboardInterrupt as stop:
        say(f"{command}: interrupted", sys.stderr)
        return stop.status if isinstance(stop, Stop) else INTERRUPTED
    return 0


def _train(argv: list[str]) -> None:
    config, resume = _with_all(*parse(argv))
    if config.backend != "local" or (config.learners > 1 and current_rank() is None):
        from rltrain.rollout.workers.fork_server import start_fork_server

        start_fork_server(list(PRELOAD))  # imports torch beside us, while we do too
    with held():
        from rltrain.training_loop import train

    result = train(config) if resume is None else train(config, resume=resume)
    result = replace(result, seconds=time.monotonic() - STARTED)
    if config.json_line:
        say(json.dumps(result_json(result)))
    else:
        say(result_line(result))


def _with_all(config: RunConfig, resume: Path | None) -> tuple[RunConfig, Path | None]:
    """The run with as many learners as torchrun started; after a restart by it, the run that it had begun."""
    here = current_rank()
    if here is None:
        return config, resume
    if config.learners not in (1, here.size) and resume is None:
        raise ConfigError(f"--learners {config.learners}: torchrun starts {here.size}; leave the flag out")
    if resume is None and (before := begun(config)) is not None:
        call = {"json": config.json_line, "quiet": config.quiet, "max_seconds": config.max_seconds}
        config, resume = reload(saved(before), call), before
    return config.model_copy(update={"learners": here.size}), resume


def parse(argv: Sequence[str]) -> tuple[RunConfig, Path | None]:
    """The run that the flags ask for, and the folder of the run that goes on, if one does."""
    early = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag in ("--algo", "--config", "--resume"):
        early.add_argument(flag)
    hints, _ = early.parse_known_args([word for word in _joined(argv) if word not in ("-h", "--help")])
    algo = getattr(hints, "algo", None)
    if algo is None and hasattr(hints, "resume"):
        algo = _algo_of_run(hints.resume)
    if algo is None and hasattr(hints, "config"):
        algo = _algo_of(hints.config)
    given = parser(algo if algo in algorithms.names() else None).parse(argv)
    file, resume = given.pop("config", None), given.pop("resume", None)
    if resume is not None:
        if file is not None:
            raise ConfigError("--config: cannot be changed by --resume")
        return reload(saved(Path(resume)), given, text=True), Path(resume)
    if "env_args" in given:
        given["env_args"] = dict(given["env_args"])
    if "algo" in given and given["algo"] not in algorithms.names():
        raise ConfigError("--algo: " + unknown("algorithm", given["algo"], algorithms.names(), repr))
    return load(given, file, text=True), None


def _algo_of(file: str) -> str | None:
    """The algorithm a TOML file names; what is wrong with the file is said later."""
    import tomllib

    try:
        algo = tomllib.loads(Path(file).read_text()).get("algo")
    except (OSError, ValueError):
        return None
    return algo if isinstance(algo, str) else None


def _algo_of_run(folder: str) -> str | None:
    """The algorithm of the run in a folder; what is wrong with the folder is said later."""
    try:
        return str(saved(Path(folder)).get("algo"))
    except CheckpointError:
        return None


def parser(algo: str | None) -> Parser:
    """Flags of a run and, if the algorithm is known, of its settings."""
    top = Parser(
        prog="rltrain",
        description="Trains an algorithm on an environment. "
        "Of values, a flag wins over --config, that over configs/<algo>/<env>.toml, that over a default.",
        epilog=None if algo else f"Settings of an algorithm: rltrain --algo {algorithms.names()[-1]} --help",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=_formatter,
        usage="rltrain --algo NAME --env ENV [flags]\n       rltrain --resume DIR [flags]",
    )
    top.add_argument("--version", action="version", version=f"rltrain {version()}")
    run = top.add_argument_group("the run")
    words = {"algorithms": ", ".join(algorithms.names())}
    run.add_argument("--config", metavar="FILE.toml", help="values for these flags; a table [ppo] holds ppo's settings")
    run.add_argument("--resume", metavar="DIR", help="goes on with the run in this folder; needs no other flag")
    run.add_argument(
        "--env-arg",
        action="append",
        type=env_arg_or_error,
        dest="env_args",
        metavar="KEY=VALUE",
        help="a keyword for the environment's constructor; may be given again",
    )
    settings = algorithms.settings_class(algo) if algo is not None else None
    defaults = {}
    if settings is not None and "streams" in settings.model_fields:
        defaults["streams"] = str(settings.model_fields["streams"].default)
    add_model(run, RunConfig, skip=(*INNER, "env_args"), words=words, defaults=defaults)
    if settings is not None:
        names = [field.alias or key for key, field in RunConfig.model_fields.items()]
        add_model(top.add_argument_group(f"settings of {algo}"), settings, skip=names)
    return top


def env_arg_or_error(text: str) -> tuple[str, Any]:
    try:
        return env_arg(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def result_json(result: Result) -> dict[str, Any]:
    """The JSON line of a run."""
    keys = (
        "steps seconds steps_per_second episodes train_return eval_return stopped run checkpoint restarts fingerprint"
    )
    return {key: _plain(getattr(result, key)) for key in keys.split()}


def result_line(result: Result) -> str:
    """The last line of a run, for a person."""
    text = f"{result.steps:,} steps in {result.seconds:.1f} s, {result.episodes:,} episodes"
    if result.train_return is not None:
        text += f", training return {result.train_return:.1f}"
    if result.eval_return is not None:
        text += f", evaluation return {result.eval_return:.1f}"
    if result.restarts:
        text += f", {result.restarts} restarts"
    return f"{text}; checkpoint {result.checkpoint}"


def _evaluate(argv: list[str]) -> None:
    top = Parser(
        prog="rleval",
        description="Plays episodes with a trained policy, without exploration, on seeds training never sees.",
        allow_abbrev=False,
        formatter_class=_formatter,
    )
    top.add_argument("path", metavar="RUN_OR_CHECKPOINT", help="a run's folder (its latest checkpoint) or a checkpoint")
    top.add_argument("--episodes", type=_whole, default=100, metavar="INT", help="episodes to play [100]")
    top.add_argument("--seed", type=_whole, default=0, metavar="INT", help="of the episodes [0]")
    top.add_argument("--stochastic", action="store_true", help="acts as in training, by chance")
    top.add_argument("--video", metavar="FILE", help="films the first episode into this file")
    top.add_argument("--json", action="store_true", help="prints one JSON object")
    top.add_argument("--version", action="version", version=f"rltrain {version()}")
    given = top.parse(argv)
    for key, least in (("episodes", 1), ("seed", 0)):
        if given[key] < least:
            raise ConfigError(f"--{key} must be at least {least}, got {given[key]}")
    if not Path(given["path"]).exists():
        raise CheckpointError(f"{given['path']} does not exist")
    with held():
        from rltrain.evaluation.evaluate import evaluate

    found = evaluate(
        given["path"],
        episodes=given["episodes"],
        seed=given["seed"],
        stochastic=given["stochastic"],
        video=given["video"],
    )
    say(json.dumps(evaluation_json(found)) if given["json"] else evaluation_line(found))


def evaluation_json(found: Evaluation) -> dict[str, Any]:
    """The JSON line of an evaluation."""
    keys = "return_mean return_std return_ci95 length_mean episodes checkpoint"
    told = {key: _plain(getattr(found, key)) for key in keys.split()}
    if found.agents:
        told |= {"agents": found.agents, "groups": found.groups}
    return told | {"outcomes": found.outcomes} if found.outcomes else told


def evaluation_line(found: Evaluation) -> str:
    """An evaluation for a person."""
    low, high = found.return_ci95
    each = ", ".join(f"{name} {value:.2f}" for name, value in found.agents.items())
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.outcomes.items())
    return (
        f"return {found.return_mean:.2f} (std {found.return_std:.2f}, 95% interval {low:.2f} to {high:.2f}), "
        + (f"of {each}, " if each else "")
        + (f"{shares} against random play, " if shares else "")
        + f"length {found.length_mean:.1f}, {found.episodes} episodes of {found.checkpoint}"
    )


def version() -> str:
    """The installed version."""
    try:
        return metadata.version("rltrain")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and value != value:  # no return yet
        return None
    return list(value) if isinstance(value, tuple) else value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def _joined(argv: Sequence[str]) -> list[str]:
    """`--flag -1e-3` as `--flag=-1e-3`, which argparse would take for a flag."""
    joined: list[str] = []
    for word in argv:
        if re.fullmatch(r"-\.?\d[\d.e+-]*", word) and joined and re.fullmatch(r"--[\w-]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=30, width=110)
