"""The command rldoctor: its flags, the child process that examines, and the report for a person or a program."""

from __future__ import annotations

import argparse
import json
import os
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rltrain.config.consent import import_code
from rltrain.config.flags import Parser, add_env_arg, whole
from rltrain.doctor.examination import EFFORTS, TASKS, Examination, Subject
from rltrain.doctor.findings import FAULT, NOTE, WARNING, Finding, Report
from rltrain.envs.errors import EnvError, EnvFault, describe
from rltrain.envs.make import resolve
from rltrain.errors import ConfigError
from rltrain.setup.task_process import EnvLost, TaskProcess, may_fork

TIMEOUT = 60.0  # seconds that one call of the environment may take


def examine(argv: Sequence[str], version: str) -> tuple[str, int]:
    """`rldoctor`: what it prints, and its exit status.

    Raises:
        ConfigError, EnvError: wrong usage, or there is no such environment.
    """
    given = _parser(version).parse(argv)
    import_code(given.get("import_code", []))
    effort = EFFORTS["quick" if given["quick"] else "deep" if given["deep"] else "normal"]
    if given["quick"] and given["deep"]:
        raise ConfigError("--quick and --deep: give one of them")
    source = resolve(given["env"], dict(given.get("env_args", [])), folder=os.getcwd())
    began = time.monotonic()
    may_fork()
    report = _examined(Subject(source, given["seed"], effort), given["timeout"])
    seconds = time.monotonic() - began
    return (_json(report, seconds) if given["json"] else _text(report, seconds)), report.status


def _parser(version: str) -> Parser:
    top = Parser(
        version,
        prog="rldoctor",
        description="Examines an environment: spaces, seeds, resets, ends, rewards, masks, leaks, times. Each line "
        "says what to do and how it was seen. Exit status: 0 sound, 1 a fault or a warning, 2 wrong usage.",
    )
    top.add_argument("env", metavar="ENV", help="as --env of rltrain takes it: CartPole-v1, my.py:Env")
    add_env_arg(top)
    top.add_argument("--quick", action="store_true", default=False, help="about two seconds: less play, no rendering")
    top.add_argument("--deep", action="store_true", default=False, help="about a minute: longer play, more episodes")
    top.add_argument("--json", action="store_true", default=False, help="prints one JSON object")
    top.add_argument("--seed", type=_seed, default=0, metavar="INT", help="seed of the play [0]")
    top.add_argument(
        "--timeout",
        type=_seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help=f"time that one call of the environment may take [{TIMEOUT:g}]",
    )
    top.add_argument(
        "--import",
        action="append",
        dest="import_code",
        metavar="MODULE",
        help="imports this module or file.py first, which may register environments; can be repeated",
    )
    return top


def _seed(text: str) -> int:
    value = whole(text)
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**31 - 1}, got {text!r}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _examined(subject: Subject, timeout: float) -> Report:
    """The report. If the environment hangs or ends its process, the examination ends with a line about that."""
    report = Report(subject.name)
    with TaskProcess(Examination, subject, timeout) as child:
        task = "spec"
        try:
            child.start("spec")
            spec, found = child.result()
            report.findings += found
            if spec is None:
                return report
            for task in TASKS:
                child.start("run", task)
                result = child.result()
                if task == "survey":
                    found, report.measured, report.advice = result
                elif task == "restore":
                    found, report.measured["restore"] = result
                else:
                    found = result
                kinds = {finding.kind for finding in report.findings}
                report.findings += [one for one in found if not _is_known(one, kinds)]
                if any(
                    finding.level == FAULT and finding.kind in ("interface", "exception", "second") for finding in found
                ):
                    return _unfinished(report, task)  # the rest would show the same fault again
        except EnvLost as lost:
            hint = "no call may hang or end the process; a run restarts the actor, and gives up after --max-restarts"
            text = str(lost).removeprefix(f"{subject.name}: ").replace(" (--actor-timeout)", " (--timeout)")
            report.findings.append(Finding(FAULT, "lost", text, hint, f"the task {task!r} of the examination"))
            return _unfinished(report, task)
        except EnvFault as fault:
            raise EnvError(describe(fault)) from None
    return report


ONCE = ("seed", "second")  # kinds that one cause shows in several tasks
CAUSES = {"seed", "determinism", "reset", "shared", "second"}  # of episodes that cannot be restored


def _is_known(finding: Finding, kinds: set[str]) -> bool:
    """True if the report says this already, given the kinds of its findings."""
    return (finding.kind in ONCE and finding.kind in kinds) or (finding.kind == "restore" and bool(kinds & CAUSES))


def _unfinished(report: Report, task: str) -> Report:
    left = TASKS[TASKS.index(task) + 1 :] if task in TASKS else TASKS
    if left:
        text = f"not examined because of the fault before: {', '.join(left)}"
        report.findings.append(Finding(NOTE, "unfinished", text, "repair the fault, and examine again", "-"))
    return report


def _json(report: Report, seconds: float) -> str:
    return json.dumps(
        {
            "env": report.env,
            "sound": report.status == 0,
            "seconds": round(seconds, 3),
            "findings": [asdict(finding) for finding in report.findings],
            "measured": report.measured,
            "advice": report.advice,
        }
    )


def _text(report: Report, seconds: float) -> str:
    counts = {level: sum(f.level == level for f in report.findings) for level in (FAULT, WARNING, NOTE)}
    said = ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items() if count)
    verdict = "sound" if report.status == 0 else "not sound"
    lines = [f"{report.env}: {verdict}{f' ({said})' if said else ''}, examined in {seconds:.1f} s"]
    order = (FAULT, WARNING, NOTE)
    for finding in sorted(report.findings, key=lambda finding: order.index(finding.level)):
        lines += ["", *_wrapped(f"{finding.level}: {finding.text}", "")]
        lines += [*_wrapped(f"do: {finding.hint}", "    "), *_wrapped(f"seen: {finding.seen}", "    ")]
    if report.measured:
        lines += ["", "measured", *(f"    {line}" for line in _measured(report.measured))]
    if report.advice:
        lines += ["", "advice", *(f"    {line}" for line in report.advice)]
    return "\n".join(lines)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 118, initial_indent=indent, subsequent_indent=indent + "    ")


def _measured(values: dict[str, Any]) -> list[str]:
    times = [f"{name} {_time(values[f'{name}_seconds'])}" for name in ("make", "reset", "step")]
    lines = [f"times: {', '.join(times)}"]
    if values.get("episodes"):
        ends = f"{values['terminated']:.0%} of them terminated"
        lines.append(
            f"random play: {values['episodes']:,} episodes of {values['length_mean']:.1f} steps, return "
            f"{values['return_mean']:.4g}, {ends}"
        )
    if "reward_min" in values:
        lines.append(f"rewards from {values['reward_min']:.4g} to {values['reward_max']:.4g}")
    if "observation_min" in values:
        low, high = values["observation_min"], values["observation_max"]
        lines.append(f"observations: {values['observation_numbers']:,} numbers from {low:.4g} to {high:.4g}")
    if values.get("restore"):
        lines.append(f"resume: episodes are restored by {values['restore']!r} (docs/environments.md)")
    return lines


def _time(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 0.1
        else f"{seconds * 1e3:.2f} ms"
        if seconds >= 1e-3
        else f"{seconds * 1e6:.0f} us"
    )
