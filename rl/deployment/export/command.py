"""`rlexport`: writes a policy into one file, proves it, and checks such files; in Python `rltrain.export`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rltrain
from rltrain.config.consent import import_code
from rltrain.config.flags import Parser, add_consent, whole
from rltrain.errors import CheckpointError
from rltrain.reporting.console import say


def run(argv: Sequence[str]) -> None:
    """The command `rlexport`."""
    if argv[:1] == ["check"]:
        return _check(argv[1:])
    top = Parser(
        rltrain.__version__,
        prog="rlexport",
        description="Writes a trained policy into one file, with everything between observation and action, and proves "
        "that it acts as the policy does. `rlexport check FILE` repeats the proof.",
    )
    top.add_argument("path", metavar="RUN_OR_CHECKPOINT", help="a run's folder (its latest checkpoint) or a checkpoint")
    top.add_argument("file", metavar="FILE", help="the file to write")
    top.add_argument("--to", choices=("onnx", "torch", "torchscript"), default=None,
                     help="format [onnx for .onnx, torch for .pt2, torchscript for .ts]")  # fmt: skip
    top.add_argument("--best", action="store_true", default=False, help="the best checkpoint in place of the latest")
    _add_proof(top)
    given = top.parse(argv)
    import_code(given.pop("import_code", []))
    from rltrain.deployment.export.export import export

    path, file, as_json = given.pop("path"), given.pop("file"), given.pop("json")
    meta = export(path, file, **given)
    _say(file, meta, as_json)
    return None


def _check(argv: Sequence[str]) -> None:
    top = Parser(
        rltrain.__version__,
        prog="rlexport check",
        description="Checks an exported file: its hash, and that it acts as the policy of its checkpoint does.",
    )
    top.add_argument("file", metavar="FILE", help="a file that rlexport wrote")
    top.add_argument("--run", metavar="RUN", default=None, help="run or checkpoint [the one that the file names]")
    _add_proof(top)
    given = top.parse(argv)
    import_code(given.pop("import_code", []))
    from rltrain.deployment.export.export import check

    file, as_json = given.pop("file"), given.pop("json")
    if not os.path.lexists(file):
        raise CheckpointError(f"{file} does not exist")
    _say(file, check(file, **given), as_json)


def _add_proof(top: Any) -> None:
    top.add_argument("--recording", metavar="DIR", default=None, help="observations of the proof [the environment's]")
    top.add_argument("--rows", type=whole, metavar="INT", default=1000, help="observations of the proof [1000]")
    top.add_argument("--seed", type=whole, metavar="INT", default=0, help="of the environment in the proof [0]")
    top.add_argument("--json", action="store_true", default=False, help="prints one JSON object")
    add_consent(top)


def _say(file: str, meta: dict[str, Any], as_json: bool) -> None:
    from rltrain.deployment.export.proof import stored

    if as_json:
        shown = {key: meta[key] for key in ("to", "algo", "env", "step", "checkpoint", "sha256", "proof")}
        return say(json.dumps({"file": str(Path(file)), **shown}))
    return say(f"{file}: {meta['to']}, {meta['algo']} on {meta['env']}, step {meta['step']:,}; {stored(meta['proof'])}")
