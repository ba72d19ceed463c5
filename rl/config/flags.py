"""Declares the flags of the commands, parses the command line, and converts the text of flags to typed values."""

from __future__ import annotations

import argparse
import ast
import contextlib
import re
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rltrain import algorithms
from rltrain.algorithms.settings import HELP_ORDER, Actions
from rltrain.config.messages import unknown
from rltrain.config.run_config import INNER, SYNONYMS, RunConfig
from rltrain.errors import ConfigError

DISCRETE = "Defaults for Discrete actions, also MultiDiscrete and MultiBinary, are those of one agent without images, "
DISCRETE += "action masks and memory."
USAGE = "rltrain --algo NAME --env ENV [flags]\n       rltrain --resume DIR [flags]"


def spelled(key: str) -> str:
    """The flag of a setting."""
    return "--" + key.replace("_", "-")


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def from_text(annotation: Any, text: str) -> Any:
    """The value of a flag's text for this type. Text that does not fit is returned unchanged, and rejected later."""
    members = kinds(annotation)
    if type(None) in members and text.lower() == "none":
        return None
    for member in members:
        if member is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if member is int:
            return whole(text)
        if member is float:
            return _float(text)
        if get_origin(member) is dict and "=" in text:
            parts = [part.partition("=") for part in text.replace(" ", "").split(",") if part]
            return {key: value for key, _, value in parts}
        if get_origin(member) is tuple:
            items = [item for item in text.replace(" ", "").strip("()[],").split(",") if item]
            return tuple(items if str in get_args(member) else map(whole, items))
    return text


def whole(value: Any) -> Any:
    """An int for a value that stands for one: "100_000", "1e6", 1e6. Other values are returned unchanged."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value)
        value = _float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _float(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def seeds_of(text: str) -> list[int]:
    """The seeds of a group of runs: `5` is 0 to 4; `3,7` or `3,` are those in the list."""
    words = [word.strip() for word in text.split(",")]
    if len(words) > 1 and not words[-1]:
        words.pop()
    numbers = [whole(word) for word in words]
    if not all(isinstance(number, int) for number in numbers):
        raise argparse.ArgumentTypeError(f"must be a number of runs or a list of seeds such as 0,1,2, got {text!r}")
    if "," not in text:
        if not 1 <= numbers[0] <= 1000:
            raise argparse.ArgumentTypeError(f"must be from 1 to 1000 runs, got {numbers[0]}")
        return list(range(numbers[0]))
    if min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"each seed must be at least 0 and given once, got {text!r}")
    return numbers


def env_arg(text: str) -> tuple[str, Any]:
    """The key and the value of `key=value`; ConfigError without a key."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ConfigError(f"--env-arg takes key=value, got {text!r}")
    return key, literal(value)


def literal(text: str) -> Any:
    """The value that the text stands for in Python or in TOML, otherwise the text itself."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    with contextlib.suppress(tomllib.TOMLDecodeError):
        return tomllib.loads(f"value = {text}")["value"]
    return text


def add_flags(group: Any, fields: Mapping[str, FieldInfo], skip: Iterable[str], defaults: Mapping[str, str]) -> None:
    """Adds a flag for each field. A given flag has its text under the name of the field; others are absent.

    Args:
        group:    an argument group of a parser.
        skip:     names of fields without a flag.
        defaults: shown in the help in place of a default that depends on other settings.
    """
    for key, field in fields.items():
        key = field.alias or key
        if key in skip:
            continue
        default = defaults.get(key, _default(field))
        options: dict[str, Any] = {
            "dest": key,
            "default": argparse.SUPPRESS,
            "help": description(field).replace("%", "%%") + (f" [{default}]" if default else ""),
        }
        if kinds(field.annotation) == (bool,):
            group.add_argument(spelled(key), action=argparse.BooleanOptionalAction, **options)  # a file may say either
        else:
            others = [spelled(other) for other, own in SYNONYMS.items() if own == key]
            group.add_argument(*others, spelled(key), metavar=_metavar(field), **options)


def add_env_arg(group: Any) -> None:
    """Adds the flag for arguments of the environment."""
    group.add_argument(
        "--env-arg",
        action="append",
        type=env_arg,
        dest="env_args",
        metavar="KEY=VALUE",
        help="a keyword argument of the environment's constructor; can be repeated",
    )


def add_consent(group: Any) -> None:
    """Adds the flags by which a user consents to code that a file names; see `rltrain.config.consent`."""
    group.add_argument(
        "--import",
        action="append",
        dest="import_code",
        metavar="MODULE",
        help="imports this module or file.py first, which may register environments; can be repeated",
    )
    group.add_argument(
        "--trust",
        action="store_true",
        help="imports code that the files of somebody else's run, or --config, name",
    )


def in_help_order(fields: Mapping[str, FieldInfo]) -> dict[str, FieldInfo]:
    """The settings of an algorithm in HELP_ORDER; those that are not in it come last."""
    places = {key: place for place, key in enumerate(HELP_ORDER)}
    return dict(sorted(fields.items(), key=lambda item: places.get(item[0], len(places))))


def description(field: FieldInfo) -> str:
    """The description of a setting, with the note on its default if there is one."""
    extra, text = field.json_schema_extra, field.description or ""
    return f"{text}; {extra['note']}" if isinstance(extra, dict) and "note" in extra else text


def _metavar(field: FieldInfo) -> str:
    for member in kinds(field.annotation):
        if get_origin(member) is Literal:
            return "{" + ",".join(map(str, get_args(member))) + "}"
        if get_origin(member) is tuple:
            return "NAME,..." if str in get_args(member) else "INT,..."
        if member in (int, float):
            return str(member.__name__).upper()
    return "TEXT"


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default" in extra:
        return str(extra["default"])
    if field.is_required():
        return ""
    return as_text(field.get_default(call_default_factory=False))


def as_text(value: Any) -> str:
    """The value of a setting, as messages show it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return {None: "none", True: "on", False: "off"}[value] if value is None or isinstance(value, bool) else str(value)


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises ConfigError, and takes -1e-3 for a number."""

    def __init__(self, version: str, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=110),
            **options,
        )
        self._negative_number_matcher = re.compile(r"-\.?\d[\d.e+-]*$")
        self.add_argument("--version", action="version", version=f"rltrain {version}")

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (--[\w-]+)(?:/\S+)?:", r"\1:", message)
        flag, _, fault = message.partition(": ")
        if fault.startswith("ignored explicit argument"):
            raise ConfigError(_without_value(flag) if flag in self._switches() else f"{flag} takes no value")
        if flag == "the following arguments are required":
            example = "CartPole-v1" if fault == "ENV" else "runs/NAME"
            raise ConfigError(f"{fault} is needed, as in {self.prog} {example}")
        raise ConfigError(message)

    def _switches(self) -> set[str]:
        """The flags that turn a setting on, each of which has another flag that turns it off."""
        actions = [action for action in self._actions if isinstance(action, argparse.BooleanOptionalAction)]
        return {action.option_strings[0] for action in actions}

    def parse(
        self, argv: Sequence[str], explain: Callable[[str, str, list[str], Callable[[str], str]], str] = unknown
    ) -> dict[str, Any]:
        """The values of the given flags, by name.

        Args:
            explain: the message about an unknown flag; see `unknown`.

        Raises:
            ConfigError: a flag is unknown; the message names the nearest known one.
        """
        values, rest = self.parse_known_args([_hyphens(word) for word in argv])
        for word in rest:
            typed = word.partition("=")[0]
            name = typed.lstrip("-").replace("-", "_")
            flags = [flag[2:].replace("-", "_") for flag in self._option_string_actions if flag.startswith("--")]
            if not word.startswith("-") or not name:
                before = _hyphens(argv[place - 1]) if (place := list(argv).index(word)) else ""
                if before in self._switches():
                    raise ConfigError(f"unexpected {word!r}; {_without_value(before)}")
                if name in flags:
                    raise ConfigError(f"unexpected {word!r}; did you mean {spelled(name)}{word[len(typed) :]}?")
                one = next((action.metavar for action in self._actions if not action.option_strings), None)
                remedy = "values follow a flag, as in --seed 1" if one is None else f"{self.prog} takes one {one}"
                raise ConfigError(f"unexpected {word!r}; {remedy}")
            flags.remove("help")
            if name in flags:
                raise ConfigError(f"unknown flag {typed}; did you mean {spelled(name)}?")
            raise ConfigError(explain("flag", name, flags, spelled))
        return vars(values)


def _without_value(switch: str) -> str:
    return f"{switch} takes no value: {switch} turns it on, --no-{switch[2:]} turns it off"


def _hyphens(word: str) -> str:
    """A word of the command line; a flag with underscores, as in `--eval_every=100`, gets hyphens."""
    name, sign, value = word.partition("=")
    return name.replace("_", "-") + sign + value if name.startswith("--") else word


def run_parser(algo: str | None, version: str) -> Parser:
    """The flags of a run and, if the algorithm is known, of its settings."""
    top = Parser(
        version,
        prog="rltrain",
        description="Trains an algorithm on an environment. "
        "A flag overrides --config, which overrides configs/<algo>/<env>.toml, which overrides the default.",
        epilog=None if algo else f"Settings of an algorithm: rltrain --algo {algorithms.names()[-1]} --help",
        usage=USAGE,
    )
    run = top.add_argument_group("the run")
    run.add_argument("--config", metavar="FILE.toml", help="values of these flags; a table [ppo] has those of ppo")
    run.add_argument("--resume", metavar="DIR", help="continues the run in this folder; needs no other flag")
    run.add_argument(
        "--seeds",
        type=seeds_of,
        metavar="N or LIST",
        help="makes N runs with the seeds 0 to N - 1, or one for each seed of a list (3,5,8), in one folder",
    )
    add_consent(run)
    add_env_arg(run)
    run.add_argument(
        "--callback",
        action="append",
        metavar="MODULE:CLASS",
        help="a rltrain.Callback, from a module or path/to/file.py; can be repeated",
    )
    run.add_argument(
        "--eval-env-arg",
        action="append",
        type=env_arg,
        dest="eval_env_args",
        metavar="KEY=VALUE",
        help="a keyword argument of the environment in evaluations; can be repeated",
    )
    settings = in_help_order(algorithms.settings_class(algo).model_fields) if algo is not None else {}
    defaults = {"streams": str(settings["streams"].default)} if "streams" in settings else {}
    if algo is not None and not defaults and hasattr(algorithms.settings_class(algo), "streams"):
        defaults = {"streams": "1; only actors have streams"}
    run.add_argument("--algo", metavar="NAME", help=f"algorithm: {', '.join(algorithms.names())}")
    add_flags(run, RunConfig.model_fields, ("algo", "callback", "env_args", "eval_env_args", *INNER), defaults)
    if algo is not None:
        names = [field.alias or key for key, field in RunConfig.model_fields.items()]
        own = algorithms.settings_class(algo)
        about = DISCRETE if getattr(own, "DISCRETE", {}) else None
        add_flags(top.add_argument_group(f"settings of {algo}", about), settings, names, by_actions(own))
    return top


def by_actions(own: Any) -> dict[str, str]:
    """The defaults that depend on the kind of action, as `4; Box actions: 10`."""
    if not hasattr(own, "defaults_for"):  # a user's own settings
        return {}
    by_kind: dict[str, dict[str, Any]] = {kind: own.defaults_for(kind) for kind in get_args(Actions)}
    found = dict[str, str]()
    for key in dict.fromkeys(key for values in by_kind.values() for key in values):
        of_value = dict[str, list[str]]()
        for kind, values in by_kind.items():
            if key in values:
                of_value.setdefault(as_text(values[key]), []).append(kind)
        parts = [f"{' and '.join(words)} actions: {value}" for value, words in of_value.items()]
        found[key] = "; ".join([_default(own.model_fields[key]), *parts])
    return found
