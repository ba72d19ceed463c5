"""The command rltune: a new or resumed search, its report, and its best settings."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rltrain.config.flags import Parser, spelled, whole
from rltrain.config.run_config import RunConfig
from rltrain.errors import ConfigError
from rltrain.jobs.command import CLUSTER_FLAGS, add_cluster_flags, chosen_cluster
from rltrain.jobs.functions import close
from rltrain.reporting.console import say
from rltrain.tuning.options import SAMPLERS, SCHEDULERS, Options
from rltrain.tuning.report import best_settings, report_text, tuned_line, write_pictures, write_settings
from rltrain.tuning.tune import DECIDED, Tuned, tune

USAGE = """rltune --algo NAME --env ENV [--space SPACE] [flags] [settings of all runs]
       rltune --resume DIR [--trials N] [--parallel N]
       rltune report DIR [--json] [--pictures]
       rltune best DIR [--json] [--write FILE.toml]"""


def run_tune(
    argv: Sequence[str], version: str, parse_run: Callable[[Sequence[str]], tuple[RunConfig, Path | None]]
) -> None:
    """`rltune`.

    Args:
        parse_run: the configuration that flags of rltrain describe.
    """
    words = list(argv)
    if words[:1] == ["report"]:
        _report(words[1:], version)
    elif words[:1] == ["best"]:
        _best(words[1:], version)
    else:
        _tune(words, version, parse_run)


def _tune(words: list[str], version: str, parse_run: Callable[[Sequence[str]], Any]) -> None:
    top = Parser(
        version,
        prog="rltune",
        usage=USAGE,
        description="Searches for settings of an algorithm. Each trial is a run, in its own folder. The winner is run "
        "again with new seeds, next to the default settings.",
        epilog="All other flags are those of rltrain, and hold for all runs: rltrain --algo ppo --help",
    )
    names = {field.name: field.default for field in dataclasses.fields(Options)}
    helps = {
        "trials": "points of the space",
        "seeds": "seeds of the most promising trials; all others have one",
        "confirm": "seeds with which the winner and the default are run again",
        "grace": "share of the steps before a trial can be left behind (asha)",
        "eta": "of so many trials one continues (asha)",
        "population": "members (pbt)",
        "intervals": "generations (pbt)",
        "round": "parts of trials that a round begins (with --deterministic)",
        "parallel": "parts of trials at a time; as many as the cores allow, if not given",
        "cores": "cores of each run",
        "gpus": "GPUs of each run",
        "retries": "new starts of a run whose process was lost",
    }
    top.add_argument("--space", metavar="SPACE", help="lr=1e-5..1e-2:log,batch=64|128,1-gamma=1e-3..1e-1:log")
    top.add_argument("--scheduler", metavar="{" + ",".join(SCHEDULERS) + "}", help="which trials continue [asha]")
    top.add_argument("--sampler", metavar="{" + ",".join(SAMPLERS) + "}", help="where the points come from [tpe]")
    for name, text in helps.items():
        default = names[name]
        shown = "" if default is None else f" [{default}]"
        kind: Any = _number if name == "grace" else whole
        top.add_argument(spelled(name), type=kind, metavar="FLOAT" if name == "grace" else "INT", help=text + shown)
    top.add_argument(
        "--memory-limit",
        dest="memory",
        metavar="SIZE",
        help="memory of each run, as 2G; a run that uses more is ended and fails",
    )
    top.add_argument("--budget-seconds", type=_number, dest="max_seconds", metavar="FLOAT", help="no part begins later")
    top.add_argument(
        "--deterministic",
        action="store_true",
        help="begins parts of trials in rounds: the winner does not depend on the number of processes",
    )
    top.add_argument("--name", metavar="DIR", help="folder of the search; it must not exist")
    top.add_argument("--resume", metavar="DIR", help="continues the search in this folder")
    top.add_argument("--trust", action="store_true", help="imports code that somebody else's search names")
    top.add_argument("--json", action="store_true", help="prints one JSON object as the last line")
    top.add_argument("--quiet", action="store_true", help="prints only the result")
    add_cluster_flags(top)
    own, rest = _split(top, words)
    given = top.parse(own)
    json_line, quiet = given.pop("json", False), given.pop("quiet", False)
    space, name, resume, trust = (given.pop(key, None) for key in ("space", "name", "resume", "trust"))
    trials = given.pop("trials", None)
    from rltrain.tuning.view import View

    with ExitStack() as closing:
        closing.callback(close)
        view = closing.enter_context(View(quiet, sys.stderr if json_line else sys.stdout))
        flags = {name: given.pop(name) for name in CLUSTER_FLAGS if name in given}
        if resume is not None:
            if rest or space is not None or name is not None:
                what = rest[0] if rest else "--space" if space is not None else "--name"
                raise ConfigError(
                    f"{what}: cannot be changed by --resume; what can: --trials, --parallel, --cores, --cluster, ..."
                )
            cluster = chosen_cluster(flags, view.note)
            tuned = tune(resume=resume, trials=trials, trust=bool(trust), options=given, cluster=cluster, watch=view)
        else:
            for key, why in DECIDED.items():
                if spelled(key) in {word.partition("=")[0].replace("_", "-") for word in rest}:
                    raise ConfigError(f"{spelled(key)}: cannot be given to a search: {why}")
            if given.get("deterministic"):
                rest = [*rest, "--deterministic"]  # for runs that overlap
            if not {"--workers", "--backend"} & {word.partition("=")[0] for word in rest}:
                rest = [*rest, "--workers", "0"]
            config, _ = parse_run([*rest, *(["--trust"] if trust else [])])
            cluster = chosen_cluster(flags, view.note)
            tuned = tune(space, trials=trials, name=name, config=config, options=given, cluster=cluster, watch=view)
    say(json.dumps(_plain(tuned)) if json_line else tuned_line(tuned))


def _split(top: Parser, words: list[str]) -> tuple[list[str], list[str]]:
    """The words of the command line that are flags of the search, with their values, and all others."""
    own: list[str] = []
    rest: list[str] = []
    flags: dict[str, Any] = top._option_string_actions
    position = 0
    while position < len(words):
        word = words[position]
        flag = flags.get(word.partition("=")[0].replace("_", "-"))
        takes = 2 if flag is not None and flag.nargs != 0 and "=" not in word else 1
        (rest if flag is None else own).extend(words[position : position + takes])
        position += takes
    return own, rest


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"must be a number, got {text!r}") from None


def _plain(tuned: Tuned) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(tuned).items()}


def _report(words: list[str], version: str) -> None:
    top = Parser(version, prog="rltune report", description="Prints the trials of a search, best first.")
    top.add_argument("folder", metavar="DIR", help="the folder of a search")
    top.add_argument("--json", action="store_true", help="prints one JSON object")
    top.add_argument(
        "--pictures", action="store_true", help="writes curves.png, importance.png and parallel.png into the folder"
    )
    given = top.parse(words)
    folder = Path(given["folder"])
    say(report_text(folder, json_lines=given.get("json", False)))
    if given.get("pictures"):
        for path in write_pictures(folder):
            say(f"wrote {path}", sys.stderr)


def _best(words: list[str], version: str) -> None:
    top = Parser(version, prog="rltune best", description="Prints the settings of a search's best trial, as TOML.")
    top.add_argument("folder", metavar="DIR", help="the folder of a search")
    top.add_argument("--json", action="store_true", help="prints one JSON object")
    top.add_argument("--write", metavar="FILE.toml", help="writes them into a file for rltrain --config")
    given = top.parse(words)
    best = best_settings(Path(given["folder"]))
    if "write" in given:
        write_settings(Path(given["folder"]), Path(given["write"]))
    say(json.dumps(best.as_json()) if given.get("json") else best.as_toml())
