"""--init-from: a new run begins with the networks and the normaliser of another run or checkpoint.

Only tensors are read from there: no name in its files is imported, and its optimiser, replay and counters are not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from rltrain.algorithms.protocol import modules_of
from rltrain.config.flags import as_text
from rltrain.config.run_config import RunConfig
from rltrain.errors import CheckpointError, ConfigError
from rltrain.learner.algorithm import require_finite
from rltrain.learner.learner import Learner
from rltrain.storage.checkpoint import Checkpoint, to_tensors
from rltrain.storage.retention import find, mismatch_as_error

MEANING = ("activation", "squash", "v_min", "v_max")  # settings that change what the same weights compute


def open_initial(config: RunConfig, is_new: bool) -> tuple[RunConfig, Checkpoint | None, list[str]]:
    """The checkpoint that the networks come from, if there is one, and the configuration, which names it from now on.

    Args:
        is_new: the run has no checkpoint of its own yet.

    Raises:
        ConfigError: there is no intact checkpoint.
    """
    if config.init_from is None or not is_new:
        return config, None, []
    try:
        found, notes = find(config.init_from)
    except CheckpointError as error:
        raise ConfigError(f"--init-from {config.init_from}: {error}") from None
    path = found.path.absolute()
    return config.model_copy(update={"init_from": str(path)}), found, notes


def initialise(learner: Learner, found: Checkpoint, config: RunConfig) -> list[str]:
    """Give the networks of a new run the tensors of a checkpoint; target networks follow. Returns notes about it.

    Args:
        config: of the new run. `init_parts` are names of parts, or of what is in them; None: all parts that the
            checkpoint has.

    Raises:
        ConfigError: the tensors have other names or shapes; one line, with the parts that fit.
        CheckpointError: the checkpoint has another structure than one of ours.
    """
    algorithm, path, selected = learner.algorithm, found.path, config.init_parts
    parts = {name: part for name, part in algorithm.parts().items() if isinstance(part, nn.Module)}
    with mismatch_as_error(path):
        saved = {name: dict(found.state["learner"]["parts"].get(name, {})) for name in parts}
    there = {f"{part}.{name}": value for part, state in saved.items() for name, value in state.items()}
    here = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    if selected is None:
        names = [
            f"{part}.{name}" for part, state in saved.items() if state for name in {**parts[part].state_dict(), **state}
        ]
    else:
        names = [name for name in {**here, **there} if any(_is_in(name, group) for group in selected)]
    for asked in selected or ():
        if not any(_is_in(name, asked) for name in here):
            raise ConfigError(f"--init-parts {asked}: this run has no such part; it has {_listed(here)}")
    for name in names:
        if problem := _problem(name, here, there):
            fits = [group for group in _groups(here) if _fits(group, here, there)]
            hint = f"; what fits: --init-parts {','.join(_outermost(fits))}" if fits else "; nothing of it fits"
            raise ConfigError(f"--init-from {path}: {problem}{hint}")
    if not names:
        raise ConfigError(f"--init-from {path}: it has none of the parts {_listed(parts)}")
    for part, module in parts.items():
        taken = {name: value for name, value in saved[part].items() if f"{part}.{name}" in names}
        with mismatch_as_error(path):
            module.load_state_dict({**module.state_dict(), **to_tensors(taken)})
    for target in algorithm.parts().values():
        follow = getattr(target, "follow", None)
        if callable(follow):
            follow(1.0)
    require_finite(path, modules_of(algorithm))
    if selected is None:
        learner.keep_statistics()
    taken_parts = _outermost([group for group in _groups(here) if all(n in names for n in here if _is_in(n, group))])
    rest = [part for part in parts if not any(name.startswith(f"{part}.") for name in names)]
    new = f"; new: {', '.join(rest)}" if rest else ""
    return [f"begins with {', '.join(taken_parts)} of {path}{new}", *_other_meanings(found, config)]


def _other_meanings(found: Checkpoint, config: RunConfig) -> list[str]:
    """One line if settings differ that change what the weights compute."""
    before = (found.meta.get("config") or {}).get("settings", {})
    now = config.settings.model_dump()
    differ = [name for name in MEANING if name in before and name in now and before[name] != now[name]]
    there, here = (", ".join(f"{name} {as_text(of[name])[:40]}" for name in differ) for of in (before, now))
    return [f"the networks come from a run with {there}; this run has {here}"] if differ else []


def _is_in(name: str, group: str) -> bool:
    return f"{name}.".startswith(f"{group}.")


def _problem(name: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Why a tensor cannot be taken; "" if it can."""
    if name not in there:
        return f"it has no {name}, which this run has"
    if name not in here:
        return f"its {name} has no place in this run"
    if not isinstance(there[name], np.ndarray):
        return f"its {name} is no tensor"
    before, now = tuple(there[name].shape), tuple(here[name].shape)
    return "" if before == now else f"{name} has the shape {list(before)} there and {list(now)} in this run"


def _groups(here: Mapping[str, Any]) -> list[str]:
    """Names that can be selected: the parts, and what is directly in them."""
    groups = dict[str, None]()
    for name in here:
        words = name.split(".")
        groups |= dict.fromkeys((words[0], ".".join(words[:2])))
    return list(groups)


def _fits(group: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    return not any(_problem(name, here, there) for name in {**here, **there} if _is_in(name, group))


def _outermost(groups: Sequence[str]) -> list[str]:
    """The groups that are in no other one of them."""
    return [group for group in groups if not any(group != other and _is_in(group, other) for other in groups)]


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
