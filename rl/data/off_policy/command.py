"""The command rlope: its flags, and the table of estimates for a person or a program."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rltrain.config.consent import import_code
from rltrain.config.flags import Parser, add_consent, whole
from rltrain.data.off_policy.estimators import METHODS, UPDATES
from rltrain.errors import CheckpointError
from rltrain.system.signals import held

if TYPE_CHECKING:
    from rltrain.data.off_policy.estimate import Estimate, Estimates


def run_ope(argv: Sequence[str], version: str) -> str:
    """What `rlope` prints.

    Raises:
        ConfigError, CheckpointError: wrong usage, or every estimator refuses; one line.
    """
    given = _parser(version).parse(argv)
    as_json, path = given.pop("json"), given.pop("path")
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} does not exist")
    with held():
        from rltrain.data.off_policy.estimate import estimate
    import_code(given.pop("import_code", []))
    result = estimate(path, **given)
    return _json(result) if as_json else _text(result, given["data"], given["stochastic"])


def _parser(version: str) -> Parser:
    top = Parser(
        version,
        prog="rlope",
        description="Estimates the discounted return of a policy from episodes that another policy recorded, without "
        "its environment. Each estimate has a 95% interval. An estimator refuses data that it cannot use.",
    )
    top.add_argument("path", metavar="RUN_OR_CHECKPOINT", help="a run's folder (its latest checkpoint) or a checkpoint")
    top.add_argument("--data", required=True, metavar="DIR", help="a folder that --record wrote")
    top.add_argument(
        "--method",
        default=",".join(METHODS),
        metavar="NAME,...",
        help=f"estimators: {', '.join(METHODS)} [all of them]",
    )
    top.add_argument("--gamma", type=_gamma, default=None, metavar="FLOAT", help="discount per step [that of the run]")
    top.add_argument("--seed", type=_whole, default=0, metavar="INT", help="of the networks and of the intervals [0]")
    top.add_argument("--stochastic", action="store_true", default=False, help="evaluates it as it acts in training")
    top.add_argument("--best", action="store_true", default=False, help="the best checkpoint, not the newest")
    top.add_argument(
        "--updates", type=_whole, default=UPDATES, metavar="INT", help=f"of the networks of fqe and dr [{UPDATES}]"
    )
    top.add_argument("--json", action="store_true", default=False, help="prints one JSON object")
    add_consent(top)
    return top


def _gamma(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def _whole(text: str) -> int:
    value = whole(text)
    if not isinstance(value, int):
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
    return value


def _text(result: Estimates, data: str, stochastic: bool) -> str:
    how = "as it acts in training" if stochastic else "without exploration"
    lines = [
        f"{result.checkpoint}, {how}; gamma {result.gamma:g}",
        f"{data}: {result.steps:,} steps, {result.episodes:,} episodes, {result.complete:,} of them complete",
        f"{'estimator':10} {'value':>12}  {'95% interval':27} effective size",
    ]
    if result.recorded is not None:
        lines.append(_row("recorded", result.recorded))
    for name in METHODS:
        if name in result.estimates:
            lines.append(_row(name, result.estimates[name]))
        elif name in result.refused:
            lines.append(f"{name:10} {'refused':>12}")
    for reason in dict.fromkeys(result.refused.values()):
        names = ", ".join(name for name, text in result.refused.items() if text == reason)
        lines.append(f"{names}: refused: {reason}")
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _row(name: str, found: Estimate) -> str:
    interval = "none" if found.ci95 is None else "{:.4g} to {:.4g}".format(*found.ci95)
    size = "" if found.effective_size is None else f"{found.effective_size:,.1f}"
    return f"{name:10} {found.value:12.4g}  {interval:27} {size}".rstrip()


def _json(result: Estimates) -> str:
    values: dict[str, Any] = {**asdict(result), "checkpoint": str(result.checkpoint)}
    return json.dumps(values, allow_nan=False)
