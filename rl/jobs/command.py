"""The command rljobs: a function of a file or module, once for each set of arguments in a TOML file."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltrain.config.flags import Parser, spelled, whole
from rltrain.config.run_config import RunConfig
from rltrain.envs.lookup import load_file, make_importable
from rltrain.errors import ConfigError, RunFailed
from rltrain.jobs.functions import close, submit
from rltrain.reporting.console import say

if TYPE_CHECKING:
    from rltrain.jobs.cluster import ClusterJobs

CLUSTER_FLAGS = ("cluster", "cluster_timeout", "tls_ca", "tls_cert", "tls_key")


def run_jobs(argv: Sequence[str], version: str) -> None:
    """`rljobs run FILE.py:FUNCTION --each FILE.toml`: one JSON line for each finished job, then their number.

    Raises:
        ConfigError: a flag, the function or the file is wrong, or the request exceeds the machine.
        RunFailed: some jobs failed. All others have run, and their results were printed.
    """
    top = Parser(
        version,
        prog="rljobs",
        usage="rljobs run FILE.py:FUNCTION --each FILE.toml [flags]",
        description="Calls a function with each set of keyword arguments of a TOML file, on all cores of this machine "
        "or of a cluster. Prints one JSON line for each job when it is finished.",
    )
    top.add_argument("action", metavar="run", choices=("run",))
    top.add_argument("function", metavar="FUNCTION", help="path/to/file.py:name or package.module:name")
    top.add_argument(
        "--each",
        metavar="FILE.toml",
        help="each table [[each]] has the arguments of one job, in addition to those above all tables; without such "
        "tables, a job for each combination of the values in lists",
    )
    top.add_argument("--cores", metavar="INT", default=1, type=whole, help="cores of each job [1]")
    top.add_argument("--gpus", metavar="INT", default=0, type=whole, help="GPUs of each job [0]")
    top.add_argument(
        "--memory", metavar="SIZE", default=None, help="memory of each job, as 2G; a job that uses more ends"
    )
    top.add_argument(
        "--retries", metavar="INT", default=1, type=whole, help="new starts of a job whose process was lost [1]"
    )
    add_cluster_flags(top)
    given = top.parse(argv)
    if "each" not in given:
        raise ConfigError("--each is needed: a TOML file with the arguments of the jobs")
    sets = read_sets(Path(given["each"]))
    function = load_function(given["function"])
    request = {name: given[name] for name in ("cores", "gpus", "memory", "retries")}
    failed = 0
    try:
        cluster = chosen_cluster(given, lambda text: say(f"rljobs: {text}", sys.stderr))
        jobs = [submit(functools.partial(function, **values), cluster=cluster, **request) for values in sets]
        numbers: dict[Any, int] = {job: number for number, job in enumerate(jobs)}
        for job in as_completed(jobs):
            number, error = numbers[job], job.exception()
            line: dict[str, Any] = {"job": number, "arguments": sets[number], "attempts": jobs[number].attempts}
            if error is None:
                line["result"] = job.result()
            else:
                failed += 1
                cause = "" if error.__cause__ is None else str(error.__cause__).lstrip("\n")
                line["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
                say(f"rljobs: job {number} failed: {cause or error}", sys.stderr)
            say(json.dumps(line, default=str))
    finally:
        close()
    if failed:
        raise RunFailed(f"{failed} of {len(jobs)} jobs failed")


def add_cluster_flags(parser: Parser) -> None:
    """The flags that name a Dask cluster, with the meaning that they have for rltrain."""
    fields = RunConfig.model_fields
    for name in CLUSTER_FLAGS:
        metavar, kind = ("FLOAT", float) if name == "cluster_timeout" else ("STR", str)
        help = "Dask scheduler: tcp://HOST:PORT or a scheduler file" if name == "cluster" else fields[name].description
        parser.add_argument(spelled(name), metavar=metavar, type=kind, help=help)


def chosen_cluster(given: dict[str, Any], note: Callable[[str], None]) -> ClusterJobs | None:
    """Removes the flags of a cluster from `given` and connects to it; None without --cluster.

    Args:
        note: prints a message for the user.

    Raises:
        ConfigError: the cluster cannot be used; one line for each reason.
    """
    values = {name: given.pop(name, None) for name in CLUSTER_FLAGS}
    where, timeout = values.pop("cluster"), values.pop("cluster_timeout")
    if where is None:
        name = next((name for name in CLUSTER_FLAGS if name in values and values[name] is not None), None)
        if timeout is not None or name is not None:
            raise ConfigError(f"{spelled(name or 'cluster_timeout')}: is for a cluster; add --cluster")
        return None
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"--cluster-timeout must be above 0, got {timeout!r}")
    from rltrain.jobs.cluster import cluster_jobs

    return cluster_jobs(where, timeout or RunConfig.model_fields["cluster_timeout"].default, values, note)


def read_sets(file: Path) -> list[dict[str, Any]]:
    """The arguments of each job; ConfigError in one line if the file does not describe any."""
    try:
        values = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"--each {file}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise ConfigError(f"--each {file}: is not TOML: {error}") from None
    each = values.pop("each", None)
    if each is None:
        lists = {key: value if isinstance(value, list) else [value] for key, value in values.items()}
        sets = [dict(zip(lists, choice, strict=True)) for choice in itertools.product(*lists.values())] if lists else []
    elif isinstance(each, list) and all(isinstance(one, dict) for one in each):
        sets = [{**values, **one} for one in each]
    else:
        raise ConfigError(f"--each {file}: `each` must be tables: [[each]], then the arguments of one job")
    if not sets:
        raise ConfigError(f"--each {file}: holds no arguments, so there is no job")
    return sets


def load_function(name: str) -> Callable[..., Any]:
    """The function `path/to/file.py:name` or `package.module:name`; ConfigError in one line if there is none."""
    where, colon, attribute = name.rpartition(":")
    if not colon or not where or not attribute:
        raise ConfigError(f"FUNCTION must be path/to/file.py:name or package.module:name, got {name!r}")
    make_importable(os.getcwd())
    if where.endswith(".py"):
        if not os.path.isfile(where):
            raise ConfigError(f"{name}: there is no file {where}")
        module = load_file(Path(where).resolve())
    else:
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{name}: there is no module {error.name!r}") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"{name}: {where} has no function {attribute!r}")
    return function  # type: ignore[no-any-return]
