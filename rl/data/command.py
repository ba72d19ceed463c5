"""The command rldata: its verbs, their flags, and what it prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.algorithms.offline.settings import share
from rltrain.config.consent import code_without_consent, import_code
from rltrain.config.flags import Parser, add_consent, add_env_arg, spelled, whole
from rltrain.data import columnar, formats
from rltrain.data.check import findings, structure
from rltrain.data.episodes import Recorded, common_extras, write
from rltrain.data.select import Conditions, merge, select, split
from rltrain.data.sources import Counted, Outcome, Source, line_of, new_output, open_source, require_apart, values_of
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.spec import EnvSpec
from rltrain.errors import CheckpointError, ConfigError
from rltrain.storage.recording import reference_of

VERBS: dict[str, tuple[str, tuple[str, ...]]] = {  # what it does, and its positional arguments
    "show": ("numbers about recorded data", ("DATA",)),
    "check": ("what is wrong with recorded data; exit status 1 if anything is", ("DATA",)),
    "export": ("a recording as a file of another program", ("DATA", "OUT")),
    "import": ("a file of another program as a recording, which --data of rltrain takes", ("DATA", "OUT")),
    "merge": ("the episodes of several recordings of one environment, as one", ("DATA", "OUT")),
    "split": ("two recordings, with a random share of the episodes and with the others", ("DATA", "OUT", "OTHER")),
    "record": ("episodes of a trained policy, a function or random actions, as a recording", ("POLICY", "OUT")),
    "make": ("a data set by the recipe of D4RL, with the reference scores of the environment", ("ENV", "OUT")),
    "filter": ("those complete episodes that satisfy all conditions, as a recording", ("DATA", "OUT")),
}
HELP = {
    "DATA": "a recording, or a file or folder of another program",
    "OUT": "is created; it must not exist",
    "OTHER": "of the other episodes; the same",
    "ENV": "the environment",
    "POLICY": "a run, a checkpoint, random, or a function: module:function or path/to/file.py:function",
}


def run_data(argv: Sequence[str], version: str) -> tuple[str, int]:
    """What `rldata` prints, and its exit status.

    Raises:
        ConfigError, CheckpointError, EnvError: wrong usage, or data that cannot be read; one line.
    """
    given = _parse(argv, version)
    import_code(given.get("import_code", []))
    if given["verb"] in ("record", "make"):
        from rltrain.data.generate import recorded
        from rltrain.data.make import make

        made = recorded(given) if given["verb"] == "record" else make(given)
        return json.dumps(made.values) if given["json"] else "\n".join(made.lines), 0
    paths = given["DATA"] if isinstance(given["DATA"], list) else [given["DATA"]]
    require_apart([given[name] for name in ("OUT", "OTHER") if name in given], paths)
    spec = None if given["env"] is None else lambda: _spec(given)
    sources = [open_source(Path(path), given["format"], spec) for path in paths]
    for source in sources:
        if next(source.episodes(), None) is None:
            raise ConfigError(f"{source.path} holds no step of an episode")
    actions: dict[str, Callable[[], Outcome]] = {
        "show": lambda: _shown(sources[0]),
        "check": lambda: _checked(sources[0]),
        "export": lambda: _exported(sources[0], given),
        "import": lambda: _imported(sources[0], given),
        "merge": lambda: _merged(sources, given),
        "split": lambda: _split(sources[0], given),
        "filter": lambda: _filtered(sources[0], given),
    }
    with np.errstate(all="ignore"):  # numbers may be of any size: `check` says so
        lines, values, status = actions[given["verb"]]()
    if given["json"]:
        return json.dumps(_without_nan(values), allow_nan=False), status
    return "\n".join([*(note for source in sources for note in source.notes), *lines]), status


def _parse(argv: Sequence[str], version: str) -> dict[str, Any]:
    verb = argv[0] if argv else None
    if verb not in VERBS:
        if not argv or argv[0] in ("-h", "--help", "--version"):
            top = Parser(version, prog="rldata", usage=_usage(), description=_verbs())
            top.parse(list(argv) or ["--help"])
        raise ConfigError(f"rldata has no {verb!r}; it has {', '.join(VERBS)}")
    what, positions = VERBS[verb]
    top = Parser(version, prog=f"rldata {verb}", description=f"rldata {verb}: {what}.")
    for name in positions:
        top.add_argument(name, help=HELP[name], nargs="+" if (verb, name) == ("merge", "DATA") else None)
    if verb in ("record", "make"):
        (_add_record if verb == "record" else _add_make)(top)
        top.add_argument("--seed", type=_whole, default=0, metavar="INT", help="of the episodes and the actions [0]")
        add_env_arg(top)
        add_consent(top)
        top.add_argument("--json", action="store_true", default=False, help="prints one JSON object")
        given = {**top.parse(argv[1:]), "verb": verb}
        if verb == "make" and given["kind"] is None:
            raise ConfigError(f"rldata make needs --kind: {', '.join(KINDS)}")
        return given
    top.add_argument("--format", choices=formats.FORMATS, default=None, help="of the other program [by the name]")
    top.add_argument("--env", metavar="ENV", default=None, help="the environment, if the file does not say its spaces")
    add_env_arg(top)
    top.add_argument("--import", action="append", dest="import_code", metavar="MODULE", help="imports it first")
    top.add_argument("--json", action="store_true", default=False, help="prints one JSON object")
    if verb == "split":
        top.add_argument(
            "--fraction", type=_share, default=0.9, metavar="SHARE", help="of the episodes, for OUT: 0.9 or 90%% [0.9]"
        )
        top.add_argument("--seed", type=_whole, default=0, metavar="INT", help="of the random choice [0]")
    if verb == "filter":
        top.add_argument(
            "--top",
            type=_share,
            metavar="SHARE",
            help="the episodes of highest return, as 10%% or 0.1, of those that satisfy the other conditions",
        )
        for name in ("return", "length"):
            kind, metavar = (_number, "FLOAT") if name == "return" else (_whole, "INT")
            for least, words in (("min", "at least"), ("max", "at most")):
                top.add_argument(f"--{least}-{name}", type=kind, metavar=metavar, help=f"the {name} is {words} this")
    return {**top.parse(argv[1:]), "verb": verb}


def _add_record(top: Parser) -> None:
    top.add_argument("--env", metavar="ENV", default=None, help="the environment [that of the run]")
    top.add_argument("--episodes", type=_positive, metavar="INT", help="number of episodes [100]")
    top.add_argument("--steps", type=_positive, metavar="INT", help="complete episodes of at least so many steps")
    top.add_argument("--greedy", action="store_true", default=False, help="the most likely action; no log-probability")
    top.add_argument("--best", action="store_true", default=False, help="of a run, the best checkpoint, not the newest")


KINDS = ("random", "medium", "medium-replay", "medium-expert", "expert")


def _add_make(top: Parser) -> None:
    top.add_argument("--kind", choices=KINDS, default=None, help="of the policies that act; see docs/offline.md")
    top.add_argument("--run", metavar="DIR", default=None, help="a run with the policies [a new one is trained]")
    top.add_argument("--algo", metavar="NAME", default=None, help="of a new run [sac; Discrete actions: dqn]")
    top.add_argument("--train-steps", type=_positive, metavar="INT", help="of a new run [those of rltrain]")
    top.add_argument("--workers", type=_whole, metavar="INT", help="of a new run [one per core]")
    top.add_argument(
        "--steps", type=_positive, default=1_000_000, metavar="INT", help="of complete episodes, at least [1000000]"
    )


def _positive(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return value


def _share(text: str) -> float:
    value = share(text)
    with contextlib.suppress(ValueError):
        value = float(value)
    if not isinstance(value, float) or not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share above 0 and at most 1, as 10% or 0.1, got {text!r}")
    return value


def _whole(text: str) -> int:
    value = whole(text)
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return value


def _number(text: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")


def _usage() -> str:
    """The verbs with their arguments and flags."""
    more = {
        "split": "[--fraction SHARE] [--seed INT]",
        "filter": "[--top SHARE] [--min-return X] [--max-return X] [--min-length N] [--max-length N]",
        "record": "[--env ENV] [--episodes N | --steps N] [--seed INT] [--greedy] [--best] [--trust]",
        "make": "--kind KIND [--run DIR | --algo NAME --train-steps N --workers N] [--steps N] [--seed INT] [--trust]",
    }
    lines = ["rldata VERB ... [--format NAME] [--env ENV] [--env-arg KEY=VALUE] [--import MODULE] [--json]"]
    lines += [
        " ".join(["rldata", verb, *(["DATA", "..."] if verb == "merge" else []), *where, more.get(verb, "")]).rstrip()
        for verb, (_, where) in VERBS.items()
    ]
    return "\n       ".join(lines)


def _verbs() -> str:
    what = "; ".join(f"{verb}: {what}" for verb, (what, _) in VERBS.items())
    return f"{what}. rldata VERB --help explains the flags."


def _spec(given: dict[str, Any]) -> EnvSpec:
    return read_spec(resolve(given["env"], dict(given.get("env_args", [])), folder=os.getcwd()), 0)


def _shown(source: Source) -> Outcome:
    episodes, spec = list(source.episodes()), source.spec
    wrong = structure(episodes, spec)
    if wrong:
        raise CheckpointError(f"{source.path}: {wrong[0].text}; rldata check lists what is wrong")
    values = numbers(episodes, spec)
    lines = [f"{source.path}: {values['steps']:,} steps of {spec.id}, {values['episodes']:,} episodes"]
    ends = ", ".join(f"{values[name]:,} {name.replace('_', ' ')}" for name in ("terminated", "truncated", "not_ended"))
    lines.append(f"ends: {ends}")
    for name in ("return", "length"):
        low, q1, median, q3, high = values[f"{name}_quartiles"]
        lines.append(
            f"{name}: mean {values[name + '_mean']:.2f}; {low:g}, {q1:g}, {median:g}, {q3:g}, {high:g} (quartiles)"
        )
    if (reference := reference_of(source.run, spec)) is not None:
        values["score"] = reference.score(values["return_mean"])
        ends = f"0: random actions, return {reference.random:.2f}; 100: the expert, return {reference.expert:.2f}"
        lines.append(f"score: {values['score']:.1f} ({ends})")
    lines.append(f"observation: {', '.join(f'{leaf.dtype} {leaf.shape}' for leaf in spec.leaves())}")
    lines.append(f"action: {spec.action.kind} {spec.action.nvec or spec.action.shape}")
    for name, value in values["action"].items():
        lines.append(f"  {name}: {value}")
    lines.append(f"also recorded: {', '.join(values['extras']) or 'nothing'}")
    return Outcome(lines, values)


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


def _checked(source: Source) -> Outcome:
    episodes = list(source.episodes())
    found, steps = findings(episodes, source.spec), sum(one.steps for one in episodes)
    values = {"sound": not found, "findings": [finding._asdict() for finding in found]}
    fine = f"{source.path}: {steps:,} steps in {len(episodes):,} episodes of {source.spec.id}; nothing is wrong"
    lines = [f"{finding.kind}: {finding.text}" for finding in found] or [fine]
    return Outcome(lines, values, int(bool(found)))


FORMAT_OF_MINARI = {"minari": "hdf5", "minari-arrow": "arrow"}


def _exported(source: Source, given: dict[str, Any]) -> Outcome:
    spec, name = source.spec, given["OUT"]
    with new_output(name) as out:
        kind = formats.format_of(Path(name), given["format"])
        if kind == "npz" and out.suffix != ".npz":
            raise ConfigError(f"{name}: the name of an npz file ends in .npz")
        episodes, notes = list(source.episodes()), list[str]()
        if not kind.startswith("minari"):  # whose episodes may have different extras
            kept, notes = common_extras(episodes)
            episodes = [replace(one, extras={key: one.extras[key] for key in kept}) for one in episodes]
        if kind.startswith("minari"):
            env = resolve(_env_name(source.path, spec, given), dict(given.get("env_args", [])), folder=os.getcwd())
            made = env.make()
            try:
                formats.write_minari(out, episodes, spec, made, f"{out.name}-v0", FORMAT_OF_MINARI[kind])
            finally:
                made.close()
        elif kind == "parquet":
            columnar.write_parquet(out, episodes, spec)
        elif kind == "npz":
            formats.write_npz(out, episodes, spec)
        else:
            formats.write_d4rl(out, episodes, spec)
    written = Counted(sum(one.steps for one in episodes), len(episodes))
    return Outcome([*notes, f"{line_of(name, written)}, {kind}"], {**values_of(name, written), "format": kind})


def _env_name(source: Path, spec: EnvSpec, given: dict[str, Any]) -> str:
    """The environment of --env, or that of the data. The data may be from somebody else: it names no code."""
    name = str(given["env"] or spec.id)
    if given["env"] is None and code_without_consent(name) is not None:
        raise ConfigError(f"{source} names the code {name[:100]!r}, which was not imported: add --env ENV to choose it")
    return name


def _imported(source: Source, given: dict[str, Any]) -> Outcome:
    episodes = list(source.episodes())
    found = [finding for finding in findings(episodes, source.spec) if finding.kind in FATAL]
    if found:
        raise CheckpointError(f"{source.path}: {found[0].text}; nothing was imported")
    name = given["OUT"]
    with new_output(name) as out:
        count = write(out, source.spec, episodes, {"imported": source.path.name})
    written = Counted(sum(one.steps for one in episodes), count)
    return Outcome([f"{line_of(name, written)}; rldata check {name} examines them"], values_of(name, written))


FATAL = ("mixed spaces", "missing observations", "not finite")  # what a recording cannot hold


def _merged(sources: Sequence[Source], given: dict[str, Any]) -> Outcome:
    if len(sources) < 2:
        raise ConfigError("rldata merge needs at least two recordings and OUT")
    with new_output(given["OUT"]) as out:
        written, notes = merge(sources, out)
    return Outcome([*notes, line_of(given["OUT"], written)], values_of(given["OUT"], written))


def _split(source: Source, given: dict[str, Any]) -> Outcome:
    names = given["OUT"], given["OTHER"]
    with new_output(names[0]) as one, new_output(names[1]) as other:
        parts = split(source, (one, other), given["fraction"], given["seed"])
    lines = [line_of(name, part) for name, part in zip(names, parts, strict=True)]
    return Outcome(lines, {"parts": [values_of(name, part) for name, part in zip(names, parts, strict=True)]})


def _filtered(source: Source, given: dict[str, Any]) -> Outcome:
    names = ("top", "min_return", "max_return", "min_length", "max_length")
    conditions = {name: given[name] for name in names if name in given}
    if not conditions:
        raise ConfigError(f"rldata filter needs a condition: {', '.join(map(spelled, names))}")
    with new_output(given["OUT"]) as out:
        written, total = select(source, out, Conditions(**conditions))
    line = f"{line_of(given['OUT'], written)}, of {total:,}"
    return Outcome([line], {**values_of(given["OUT"], written), "of": total})
