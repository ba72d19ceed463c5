"""The command rldata: show, check, export and import of recorded data."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.config.consent import code_without_consent, import_code
from rltrain.config.flags import Parser, add_env_arg
from rltrain.data import formats
from rltrain.data.check import findings, structure
from rltrain.data.episodes import Recorded, episodes_of, write
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.spec import EnvSpec
from rltrain.errors import CheckpointError, ConfigError
from rltrain.storage.recording import INDEX, Recording

USAGE = "rldata {show,check,export,import} ..."
VERBS: dict[str, tuple[str, tuple[str, ...]]] = {  # what it does, and its positional arguments
    "show": ("numbers about recorded data", ("DATA",)),
    "check": ("what is wrong with recorded data; exit status 1 if anything is", ("DATA",)),
    "export": ("a recording as a file of another program", ("DATA", "OUT")),
    "import": ("a file of another program as a recording, which --data of rltrain takes", ("DATA", "OUT")),
}


def run_data(argv: Sequence[str], version: str) -> tuple[str, int]:
    """What `rldata` prints, and its exit status.

    Raises:
        ConfigError, CheckpointError, EnvError: wrong usage, or data that cannot be read; one line.
    """
    given = _parse(argv, version)
    verb = given["verb"]
    import_code(given.get("import_code", []))
    source = Path(given["DATA"])
    if not source.exists():
        raise ConfigError(f"{source}: there is no such file or folder")
    episodes, spec, notes = _read(source, given)
    if not episodes:
        raise ConfigError(f"{source} holds no step of an episode")
    actions: dict[str, Callable[[], tuple[list[str], int]]] = {
        "show": lambda: (_shown(source, episodes, spec, given["json"]), 0),
        "check": lambda: _checked(source, episodes, spec, given["json"]),
        "export": lambda: (_exported(source, episodes, spec, given), 0),
        "import": lambda: (_imported(source, episodes, spec, given), 0),
    }
    with np.errstate(all="ignore"):  # numbers may be of any size: `check` says so
        lines, status = actions[verb]()
    return "\n".join([*(lines if given["json"] else [*notes, *lines])]), status


def _parse(argv: Sequence[str], version: str) -> dict[str, Any]:
    verb = argv[0] if argv else None
    if verb not in VERBS:
        if not argv or argv[0] in ("-h", "--help", "--version"):
            top = Parser(version, prog="rldata", usage=USAGE, description=_verbs())
            top.parse(list(argv) or ["--help"])
        raise ConfigError(f"rldata has no {verb!r}; it has {', '.join(VERBS)}")
    what, positions = VERBS[verb]
    top = Parser(version, prog=f"rldata {verb}", description=f"rldata {verb}: {what}.")
    top.add_argument("DATA", help="a recording, or a file or folder of another program")
    if "OUT" in positions:
        top.add_argument("OUT", help="is created; it must not exist")
    top.add_argument("--format", choices=list(formats.READERS), default=None, help="of the other program [by the name]")
    top.add_argument("--env", metavar="ENV", default=None, help="the environment, if the file does not say its spaces")
    add_env_arg(top)
    top.add_argument("--import", action="append", dest="import_code", metavar="MODULE", help="imports it first")
    top.add_argument("--json", action="store_true", default=False, help="prints one JSON object")
    return {**top.parse(argv[1:]), "verb": verb}


def _verbs() -> str:
    flags = "Flags: --format {npz,d4rl,minari}, --env ENV, --env-arg KEY=VALUE, --import MODULE, --json; "
    what = "; ".join(f"{verb}: {what}" for verb, (what, _) in VERBS.items())
    return f"{what}. {flags}rldata VERB --help explains them."


def _read(source: Path, given: dict[str, Any]) -> tuple[list[Recorded], EnvSpec, list[str]]:
    """The episodes of a recording, or of a file of another program."""
    if (source / INDEX).exists():
        recording = Recording.open(source)
        return list(episodes_of(recording)), recording.spec, []
    kind = formats.format_of(source, given["format"])
    spec = None if given["env"] is None else _spec(given)
    if kind == "npz":
        read = formats.read_npz(source)
    elif kind == "minari":
        read = formats.read_minari(source, spec)
    elif spec is None:
        raise ConfigError(f"{source}: add --env ENV, the environment that was recorded")
    else:
        read = formats.read_d4rl(source, spec)
    return read.episodes, read.spec, read.notes


def _spec(given: dict[str, Any]) -> EnvSpec:
    return read_spec(resolve(given["env"], dict(given.get("env_args", [])), folder=os.getcwd()), 0)


def _shown(source: Path, episodes: list[Recorded], spec: EnvSpec, as_json: bool) -> list[str]:
    wrong = structure(episodes, spec)
    if wrong:
        raise CheckpointError(f"{source}: {wrong[0].text}; rldata check lists what is wrong")
    values = numbers(episodes, spec)
    if as_json:
        return [json.dumps(_without_nan(values), allow_nan=False)]
    lines = [f"{source}: {values['steps']:,} steps of {spec.id}, {values['episodes']:,} episodes"]
    ends = ", ".join(f"{values[name]:,} {name.replace('_', ' ')}" for name in ("terminated", "truncated", "not_ended"))
    lines.append(f"ends: {ends}")
    for name in ("return", "length"):
        low, q1, median, q3, high = values[f"{name}_quartiles"]
        lines.append(
            f"{name}: mean {values[name + '_mean']:.2f}; {low:g}, {q1:g}, {median:g}, {q3:g}, {high:g} (quartiles)"
        )
    lines.append(f"observation: {', '.join(f'{leaf.dtype} {leaf.shape}' for leaf in spec.leaves())}")
    lines.append(f"action: {spec.action.kind} {spec.action.nvec or spec.action.shape}")
    for name, value in values["action"].items():
        lines.append(f"  {name}: {value}")
    lines.append(f"also recorded: {', '.join(values['extras']) or 'nothing'}")
    return lines


def numbers(episodes: list[Recorded], spec: EnvSpec) -> dict[str, Any]:
    """Numbers about episodes; returns and lengths of those that are there from their start to their end."""
    whole = [one for one in episodes if one.whole and (one.terminated or one.truncated)]
    returns, lengths = [one.ret for one in whole], [one.steps for one in whole]
    action = np.concatenate([one.action.reshape(one.steps, -1) for one in episodes])
    about: dict[str, Any] = {}
    if spec.action.kind == "discrete":
        size = spec.action.nvec[0]
        known = action[(action >= 0) & (action < size)]  # others may be any number
        counts = np.bincount(known.astype(np.int64), minlength=size)
        about["shares"] = [round(float(count) / len(action), 4) for count in counts]
        if len(known) < len(action):
            about["share out of range"] = round(1 - len(known) / len(action), 4)
    else:
        about["mean"] = [round(float(x), 4) for x in action.mean(0)[:16]]
        about["deviation"] = [round(float(x), 4) for x in action.std(0)[:16]]
    result: dict[str, Any] = {
        "env": spec.id,
        "steps": sum(one.steps for one in episodes),
        "episodes": len(episodes),
        "terminated": sum(one.terminated for one in episodes),
        "truncated": sum(one.truncated and not one.terminated for one in episodes),
        "not_ended": sum(not (one.terminated or one.truncated) for one in episodes),
        "action": about,
        "extras": sorted(episodes[0].extras),
    }
    for name, values in (("return", returns), ("length", lengths)):
        result[f"{name}_mean"] = float(np.mean(values)) if values else float("nan")
        result[f"{name}_quartiles"] = (
            np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist() if values else [float("nan")] * 5
        )
    return result


def _without_nan(node: Any) -> Any:
    """JSON has no NaN and no infinity: null in their place."""
    if isinstance(node, dict):
        return {key: _without_nan(child) for key, child in node.items()}
    if isinstance(node, list):
        return [_without_nan(child) for child in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def _checked(source: Path, episodes: list[Recorded], spec: EnvSpec, as_json: bool) -> tuple[list[str], int]:
    found = findings(episodes, spec)
    if as_json:
        return [json.dumps({"sound": not found, "findings": [finding._asdict() for finding in found]})], int(
            bool(found)
        )
    steps = sum(one.steps for one in episodes)
    if not found:
        return [f"{source}: {steps:,} steps in {len(episodes):,} episodes of {spec.id}; nothing is wrong"], 0
    return [f"{finding.kind}: {finding.text}" for finding in found], 1


def _exported(source: Path, episodes: list[Recorded], spec: EnvSpec, given: dict[str, Any]) -> list[str]:
    out = _new(given["OUT"])
    kind = formats.format_of(out, given["format"])
    if kind == "npz" and out.suffix != ".npz":
        raise ConfigError(f"{out}: the name of an npz file ends in .npz")
    if kind == "minari":
        env = resolve(_env_name(source, spec, given), dict(given.get("env_args", [])), folder=os.getcwd()).make()
        try:
            formats.write_minari(out, episodes, spec, env, f"{out.name}-v0")
        finally:
            env.close()
    elif kind == "npz":
        formats.write_npz(out, episodes, spec)
    else:
        formats.write_d4rl(out, episodes, spec)
    return [f"{out}: {sum(one.steps for one in episodes):,} steps in {len(episodes):,} episodes, {kind}"]


def _env_name(source: Path, spec: EnvSpec, given: dict[str, Any]) -> str:
    """The environment of --env, or that of the data. The data may be from somebody else: it names no code."""
    name = str(given["env"] or spec.id)
    if given["env"] is None and code_without_consent(name) is not None:
        raise ConfigError(f"{source} names the code {name[:100]!r}, which was not imported: add --env ENV to choose it")
    return name


def _imported(source: Path, episodes: list[Recorded], spec: EnvSpec, given: dict[str, Any]) -> list[str]:
    out = _new(given["OUT"])
    found = [finding for finding in findings(episodes, spec) if finding.kind in FATAL]
    if found:
        raise CheckpointError(f"{source}: {found[0].text}; nothing was imported")
    count = write(out, spec, episodes, {"imported": source.name})
    return [
        f"{out}: {sum(one.steps for one in episodes):,} steps in {count:,} episodes; rldata check {out} examines them"
    ]


FATAL = ("mixed spaces", "missing observations", "not finite")  # what a recording cannot hold


def _new(name: str) -> Path:
    out = Path(name)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists already; choose another name")
    return out
