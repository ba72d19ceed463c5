"""The commands rltrain and rleval: from flags to an exit status, with one line for each mistake. Imports no torch."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import rltrain
from rltrain import algorithms
from rltrain.config.consent import TRAINING, import_code, require_consent, use_saved_algorithm
from rltrain.config.flags import USAGE, Parser, add_consent, add_env_arg, run_parser, whole
from rltrain.config.load import load, reload
from rltrain.config.messages import OTHER_NAMES, settings_class, unknown, unknown_setting
from rltrain.config.run_config import RunConfig, preload
from rltrain.config.toml_file import read
from rltrain.config.user_code import use_algorithm
from rltrain.envs.errors import EnvError, EnvFault, describe, in_user_code, user_traceback
from rltrain.errors import CheckpointError, ConfigError, Interrupted, LearnerLost, RunFailed, Stop
from rltrain.reporting.console import resume_command, say, short_path
from rltrain.storage.run_folder import SEEDS_FILE, hide_arguments, run_of_this_launch, saved_config
from rltrain.system import time_limit
from rltrain.system.signals import held, sigterm_stops
from rltrain.system.time_limit import TimeLimit
from rltrain.system.torchrun import Rank, current_rank

if TYPE_CHECKING:
    from rltrain.evaluation.evaluate import Evaluation
    from rltrain.reporting.report import Result


IMPORTED = time.monotonic()
EXAMPLES = (
    "rltrain --algo ppo --env CartPole-v1",
    "rltrain --algo sac --env Pendulum-v1 --steps 20000 --name pendulum",
    "rltrain --algo ppo --env my_env.py:MyEnv --workers 4 --max-seconds 3600",
)
REMEDIES = {  # errors of the operating system for which nothing in the program is to blame
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer workers or environments",
    errno.ENFILE: "end other programs, or use fewer workers",
    errno.ENOSPC: "free some space: in /dev/shm, in the folder for temporary files or on the disk of the run",
    errno.ENOMEM: "free some memory, or use fewer workers or environments",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or use fewer workers",
}


def main(argv: Sequence[str] | None = None) -> int:
    """`rltrain`. Exit status: 0 success, 1 the run failed, 2 wrong usage, 130 and 143 interrupted.

    Under torchrun, the process of rank 0 executes the command; the others are its learners.
    """
    here = current_rank()
    if here is not None and here.rank > 0:
        return _serve_learner(here)
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        say(overview())
        return ConfigError.status
    began = time.monotonic() if time.monotonic() - IMPORTED > 1 else IMPORTED - time_limit.process_age()
    with time_limit.command(began):
        return _guarded("rltrain", lambda: _train(argv))


def _serve_learner(here: Rank) -> int:
    """A learner with rank above 0: works until rank 0 ends. Rank 0 does the reporting."""
    if {"-h", "--help", "--version"} & set(sys.argv[1:]):
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 handles signals, and ends the others
    from rltrain.learner.data_parallel import LearnerRank

    def joined() -> None:  # before, SIGTERM ends this process: torchrun sends it if rank 0 refuses its flags
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    try:
        LearnerRank(here, None).serve(joined)
    except (ConfigError, EnvError, LearnerLost) as error:
        say(f"rltrain: learner {here.rank} of {here.size}: {error}", sys.stderr)
        return ConfigError.status if isinstance(error, ConfigError) else RunFailed.status
    return 0


def main_eval(argv: Sequence[str] | None = None) -> int:
    """`rleval`. Exit status as for `rltrain`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return _guarded("rleval", lambda: _evaluate(argv))


def main_compare(argv: Sequence[str] | None = None) -> int:
    """`rlcompare`. Exit status as for `rltrain`."""
    from rltrain.comparison.command import compare_runs

    argv = list(sys.argv[1:] if argv is None else argv)
    return _guarded("rlcompare", lambda: say(compare_runs(argv, rltrain.__version__)))


def main_plot(argv: Sequence[str] | None = None) -> int:
    """`rlplot`. Exit status as for `rltrain`."""
    from rltrain.comparison.command import plot_runs

    argv = list(sys.argv[1:] if argv is None else argv)
    return _guarded("rlplot", lambda: say(plot_runs(argv, rltrain.__version__)))


def main_send(argv: Sequence[str] | None = None) -> int:
    """`rlsend`. Exit status as for `rltrain`."""
    argv = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        from rltrain.reporting.send import run_send

        say(run_send(argv, rltrain.__version__))

    return _guarded("rlsend", work)


def main_doctor(argv: Sequence[str] | None = None) -> int:
    """`rldoctor`. Exit status: 0 the environment is sound, 1 it is not, 2 wrong usage, 130 and 143 interrupted."""
    argv, status = list(sys.argv[1:] if argv is None else argv), 0

    def examine() -> None:
        nonlocal status
        from rltrain.doctor import command

        text, status = command.examine(argv, rltrain.__version__)
        say(text)

    return _guarded("rldoctor", examine) or status


def main_data(argv: Sequence[str] | None = None) -> int:
    """`rldata`. Exit status: 0 done, 1 `check` found something, 2 wrong usage, 130 and 143 interrupted."""
    argv, status = list(sys.argv[1:] if argv is None else argv), 0

    def work() -> None:
        nonlocal status
        from rltrain.data.command import run_data

        text, status = run_data(argv, rltrain.__version__)
        say(text)

    return _guarded("rldata", work) or status


def main_ope(argv: Sequence[str] | None = None) -> int:
    """`rlope`. Exit status as for `rltrain`."""
    argv = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        from rltrain.data.off_policy.command import run_ope

        say(run_ope(argv, rltrain.__version__))

    return _guarded("rlope", work)


def main_jobs(argv: Sequence[str] | None = None) -> int:
    """`rljobs`. Exit status as for `rltrain`."""
    argv = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        from rltrain.jobs.command import run_jobs

        run_jobs(argv, rltrain.__version__)

    return _guarded("rljobs", work)


def main_tune(argv: Sequence[str] | None = None) -> int:
    """`rltune`. Exit status as for `rltrain`."""
    argv = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        from rltrain.tuning.command import run_tune

        run_tune(argv, rltrain.__version__, parse)

    return _guarded("rltune", work)


def main_export(argv: Sequence[str] | None = None) -> int:
    """`rlexport`. Exit status as for `rltrain`."""
    argv = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        from rltrain.deployment.export.command import run

        run(argv)

    return _guarded("rlexport", work)


def main_serve(argv: Sequence[str] | None = None) -> int:
    """`rlserve`. Exit status as for `rltrain`; 0 after SIGTERM and Ctrl-C, which end it in order."""
    argv = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        from rltrain.deployment.server.command import run

        run(argv)

    return _guarded("rlserve", work)


def _guarded(command: str, work: Callable[[], None]) -> int:
    """Does the work of a command. Prints an expected exception as one line and returns its exit status."""
    before = threading.enumerate()
    text, status = _status(command, work)
    if text:
        say(text, sys.stderr)
    if "loky" in sys.modules:
        from rltrain.rollout.workers.process import join_closed

        join_closed()
    if any(not thread.daemon for thread in threading.enumerate() if thread not in before):
        _exit_now(status)  # threads that an environment has left would keep the process alive
    return status


def _exit_now(status: int) -> NoReturn:
    """End the process as Python does, but without waiting for its threads."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def _status(command: str, work: Callable[[], None]) -> tuple[str, int]:
    """Does the work of a command. Returns the lines about an expected exception, and the exit status."""
    try:
        with sigterm_stops(), hide_arguments():
            work()
        return "", 0
    except (ConfigError, CheckpointError, EnvError) as error:
        text, status = "\n".join(f"{command}: {line}" for line in str(error).splitlines()), ConfigError.status
    except EnvFault as fault:
        text, status = f"{command}: {describe(fault).rstrip()}", RunFailed.status
    except (RunFailed, Interrupted) as error:
        text, status = f"{command}: {error}", error.status
    except KeyboardInterrupt as stop:
        started = " while it started; no checkpoint was written" if command == "rltrain" else ""
        text, status = f"{command}: interrupted{started}", stop.status if isinstance(stop, Stop) else Stop().status
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REMEDIES:
            text = f"the system refused: {os.strerror(error.errno).lower()}; {REMEDIES[error.errno]}"
        elif in_user_code(error):
            text = f"your code raised an exception:\n{user_traceback(error).rstrip()}"
        else:
            raise
        text, status = f"{command}: {text}", RunFailed.status
    return text, status


def _train(argv: list[str]) -> None:
    early = _early(argv)
    if early.seeds is not None or (early.resume is not None and os.path.lexists(Path(early.resume, SEEDS_FILE))):
        _train_seeds(argv, early)
        return
    config, resume = _under_torchrun(*parse(argv))
    stream = sys.stderr if config.json_line else sys.stdout
    if not config.quiet and stream is not None and stream.isatty():  # for a person, since the imports take seconds
        what = f"{config.algo} on {config.env_name}" if resume is None else f"{short_path(resume)} is continued"
        say(f"rltrain: {what}; starting", stream)
    if config.backend != "local" or (config.learners > 1 and current_rank() is None):
        from rltrain.rollout.workers.fork_server import start_fork_server

        start_fork_server(preload(config))  # imports torch in parallel with this process
    from rltrain.setup.task_process import may_fork
    from rltrain.training_loop import train

    may_fork()
    limit = TimeLimit(config.max_seconds)
    result = train(config) if resume is None else train(config, resume=resume)
    result = replace(result, seconds=limit.elapsed)
    say(json.dumps(as_json(result)) if config.json_line else f"{result_line(result)}\n{ending(result, config)}")


def _train_seeds(argv: list[str], early: argparse.Namespace) -> None:
    """Several runs of one command line, or their continuation."""
    from rltrain import seed_runs

    if current_rank() is not None:
        raise ConfigError("--seeds: torchrun starts the processes of one run; leave the flag or torchrun out")
    if early.resume is None:
        config, _ = parse(argv)
        if "seed" in config.model_fields_set:
            raise ConfigError("--seed and --seeds: give one of them")
        seeds = run_parser(config.algo, rltrain.__version__).parse(argv)["seeds"]
        group = seed_runs.new_group(config, seeds, seed_runs.without(argv, "--seeds"))
    elif early.seeds is not None:
        raise ConfigError("--seeds: cannot be changed by --resume")
    else:
        extra = seed_runs.without(argv, "--resume")
        group = seed_runs.saved_group(Path(early.resume), extra, "--trust" in extra)
        config = parse(group.example)[0]
    result = seed_runs.execute(group, config, TimeLimit(config.max_seconds))
    say(json.dumps(result) if config.json_line else seed_runs.ending(group, config))


def _under_torchrun(config: RunConfig, resume: Path | None) -> tuple[RunConfig, Path | None]:
    """Adds what torchrun decides: the number of learners, and after its restart of a run, which run is resumed."""
    here = current_rank()
    if here is None:
        return config, resume
    if config.learners not in (1, here.size) and resume is None:
        raise ConfigError(f"--learners {config.learners}: torchrun starts {here.size}; leave the flag out")
    if resume is None and (before := run_of_this_launch(config)) is not None:
        call = {"json": config.json_line, "quiet": config.quiet, "max_seconds": config.max_seconds}
        config, resume = reload(saved_config(before), call, trust=True), before  # of this command line
    return config.model_copy(update={"learners": here.size}), resume


def parse(argv: Sequence[str]) -> tuple[RunConfig, Path | None]:
    """The configuration that the flags describe, and with --resume the folder of the run."""
    early = _early(argv)
    import_code(early.import_code)  # it may register the algorithm
    algo = None
    with contextlib.suppress(CheckpointError, ConfigError):  # reported later, or with an unknown flag
        algo = _named_algorithm(early)

    def explain(what: str, flag: str, known: list[str], spell: Callable[[str], str]) -> str:
        return unknown_setting(what, flag, known, spell, _named_algorithm(early))

    given = run_parser(algo, rltrain.__version__).parse(argv, explain)
    file, resume, trust = given.pop("config", None), given.pop("resume", None), given.pop("trust", False)
    given.pop("import_code", None)
    given.pop("seeds", None)
    if resume is not None:
        if file is not None:
            raise ConfigError("--config: cannot be changed by --resume")
        return reload(saved_config(Path(resume)), given, text=True, trust=trust), Path(resume)
    for key in ("env_args", "eval_env_args"):
        if key in given:
            given[key] = dict(given[key])
    return load(given, file, text=True, trust=trust), None


def _named_algorithm(flags: argparse.Namespace) -> str | None:
    """The algorithm that --algo, the run of --resume or the file of --config names; None if there is none.

    Raises:
        ConfigError, CheckpointError: it is unknown, or the file or the run cannot be read.
    """
    algo, origins = flags.algo, {"algo": "--algo"}
    if algo is None and flags.resume is not None:
        saved = saved_config(Path(flags.resume))
        use_saved_algorithm(saved, flags.trust, TRAINING)
        algo, origins = saved.values["algo"], {}
    elif algo is None and flags.config is not None:
        named = read(Path(flags.config), flags.config).get("algo")
        algo, origins = (None, {}) if named is None else (named.value, {"algo": named.origin})
        require_consent(SimpleNamespace(algo=algo, settings=None), flags.config, flags.trust, ("algo",))
    use_algorithm(algo, os.getcwd())
    if algo is not None:
        settings_class(algo, origins)
    return None if algo is None else str(algo)


def _early(argv: Sequence[str]) -> argparse.Namespace:
    """The flags that decide which other flags there are. A wrong command line is reported later."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--algo", "--resume", "--config", "--seeds"):
        early.add_argument(flag)
    early.add_argument("--import", action="append", dest="import_code", default=[])
    early.add_argument("--trust", action="store_true")
    try:
        return early.parse_known_args(argv)[0]
    except argparse.ArgumentError:
        return early.parse_args([])


def _evaluate(argv: list[str]) -> None:
    top = Parser(
        rltrain.__version__,
        prog="rleval",
        description="Plays episodes with a trained policy, without exploration, on seeds that training never uses.",
    )
    top.add_argument("path", metavar="RUN_OR_CHECKPOINT", help="a run's folder (its latest checkpoint) or a checkpoint")
    top.add_argument("--episodes", type=_at_least(1), default=100, metavar="INT", help="number of episodes [100]")
    top.add_argument("--seed", type=_at_least(0), default=0, metavar="INT", help="seed of the episodes [0]")
    top.add_argument("--stochastic", action="store_true", default=False, help="samples actions, as in training")
    top.add_argument("--best", action="store_true", default=False, help="plays the best checkpoint, not the newest")
    top.add_argument(
        "--env", metavar="ENV", default=None, help="plays another environment with the same spaces [that of the run]"
    )
    add_env_arg(top)
    top.add_argument("--render", action="store_true", default=False, help="shows the episodes in a window")
    top.add_argument("--video", metavar="FILE", default=None, help="writes a video of the first episode to this file")
    top.add_argument(
        "--log-info",
        type=lambda text: tuple(key for key in text.replace(" ", "").split(",") if key),
        default=None,
        metavar="TEXT,...",
        help="keys of the last info of each episode whose means are printed [those of the run]",
    )
    top.add_argument("--json", action="store_true", default=False, help="prints one JSON object")
    add_consent(top)
    given = top.parse(argv, _unknown_flag)
    json_line, path = given.pop("json"), given.pop("path")
    given["env_args"] = dict(given["env_args"]) if "env_args" in given else None
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} does not exist")
    with held():
        from rltrain.evaluation.in_child import evaluate_in_child

    evaluation = evaluate_in_child(path, given.pop("import_code", []), given)
    if given.get("video") is not None:
        say(f"the video of the first episode is {given['video']}", sys.stderr if json_line else None)
    say(json.dumps(as_json(evaluation)) if json_line else evaluation_line(evaluation))


OF_EVALUATION = {  # other words for flags of rleval, and what a user does instead of those that it does not have
    "deterministic": "episodes are played without exploration; --stochastic samples actions",
    "device": "evaluations run on the cpu",
    "checkpoint": "give the folder of a checkpoint, RUN/checkpoints/NAME, in place of RUN, or --best",
    "load": "give the folder of a run or of a checkpoint",
}


def _unknown_flag(what: str, flag: str, known: list[str], spell: Callable[[str], str]) -> str:
    """The message about an unknown flag of rleval."""
    ours = [flag, *OTHER_NAMES.get(flag, ())]
    for name in ours:
        if name.removeprefix("eval_") in known:
            return f"unknown {what} {spell(flag)}; did you mean {spell(name.removeprefix('eval_'))}?"
        if name in OF_EVALUATION:
            return f"unknown {what} {spell(flag)}; {OF_EVALUATION[name]}"
    return unknown(what, flag, known, spell)


def _at_least(least: int) -> Callable[[str], int]:
    """The type of a flag that takes an integer from `least` on."""

    def integer(text: str) -> int:
        value = whole(text)
        if not isinstance(value, int):
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return integer


def as_json(result: Result | Evaluation) -> dict[str, Any]:
    """The JSON line of a run or of an evaluation: its fields, without single returns, empty tables and `cut_off` 0."""
    values = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "returns"}
    return {name: _plain(value) for name, value in values.items() if value != {} and (name, value) != ("cut_off", 0)}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value != value:  # the mean of no episodes
        return None
    return str(value) if isinstance(value, Path) else value


def result_line(result: Result) -> str:
    """The result of a run, for a person."""
    made = round(result.train_seconds * result.steps_per_second)
    now = f", {made:,} of them now," if made < result.steps else ""
    text = f"{result.steps:,} steps{now} in {result.seconds:.1f} s"
    if made:
        text += f" ({result.train_seconds:.1f} s of training, {result.steps_per_second:,.0f} steps/s)"
    text += f", {result.episodes:,} episodes"
    if result.train_return is not None:
        text += f", training return {result.train_return:.1f}"
    if result.eval_return is not None:
        text += f", evaluation return {result.eval_return:.1f}"
    if result.restarts:
        text += f", {result.restarts} restarts"
    return f"{text}; checkpoint {short_path(result.checkpoint)}"


def ending(result: Result, config: RunConfig) -> str:
    """Why a run ended, and how to continue it: the last line of a run, for a person."""
    why = {
        "steps": f"all {config.steps:,} steps are done",
        "return": f"two evaluations in a row reached --stop-return {config.stop_return:g}"
        if config.stop_return is not None
        else "",
        "seconds": f"--max-seconds {config.max_seconds:g} are over" if config.max_seconds is not None else "",
    }.get(result.stopped, result.stopped)
    if result.stopped == "seconds" and config.max_seconds is not None and result.seconds > config.max_seconds + 1:
        why += f", {result.seconds - config.max_seconds:.1f} s ago"
    more = f" --steps {2 * config.steps}" if result.stopped in ("steps", "return") else ""
    return f"ended: {why}; to continue: {resume_command(result.run)}{more}"


def overview() -> str:
    """What `rltrain` without flags prints: usage, the algorithms by kind of action, examples."""
    groups = algorithms.by_actions()
    width = max(map(len, groups))
    return "\n".join(
        [
            f"usage: {USAGE}",
            "",
            "algorithms:",
            *(f"  {group:{width}}  {', '.join(names)}" for group, names in groups.items()),
            "",
            "examples:",
            *(f"  {example}" for example in EXAMPLES),
            "",
            "rltrain --help lists the flags of a run, rltrain --algo ppo --help also the settings of ppo.",
        ]
    )


def evaluation_line(evaluation: Evaluation) -> str:
    """The result of an evaluation, for a person."""
    agents = ", ".join(f"{name} {value:.2f}" for name, value in evaluation.agents.items())
    outcomes = ", ".join(f"{name} {share:.0%}" for name, share in evaluation.outcomes.items())
    infos = "".join(f"{key} {value:.4g}, " for key, value in evaluation.info.items())
    interval = (
        "" if evaluation.return_ci95 is None else ", 95% interval {:.2f} to {:.2f}".format(*evaluation.return_ci95)
    )
    from rltrain.rollout.types import LONGEST

    count = f"{evaluation.episodes} episode{'s' if evaluation.episodes > 1 else ''}"
    return (
        f"return {evaluation.return_mean:.2f} (std {evaluation.return_std:.2f}{interval}), "
        + (f"of {agents}, " if agents else "")
        + infos
        + (f"{outcomes} against random play, " if outcomes else "")
        + f"length {evaluation.length_mean:.1f}, {count} of {evaluation.checkpoint}"
        + (f"; {evaluation.cut_off} did not end within {LONGEST:,} steps" if evaluation.cut_off else "")
    )
