"""What a stream's environment and a run tell each other about episodes: numbers of the last info, and the progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

SUCCESS = "is_success"  # the key of an info that is read in any case


class EpisodeOptions(NamedTuple):
    """What a run asks of all its streams.

    Attributes:
        info_keys:        keys of an episode's last info whose numbers are kept, in addition to `is_success`; `a.b` is
                          the key b in the table a.
        steps_per_stream: steps of one stream in the whole run, for `set_progress`; 0: the progress is always 1.
    """

    info_keys: tuple[str, ...] = ()
    steps_per_stream: float = 0.0

    def progress(self, steps: int) -> float:
        """The share of the run that is done when a stream has made so many steps."""
        return min(max(steps, 0) / self.steps_per_stream, 1.0) if self.steps_per_stream else 1.0


def numbers_in(info: Mapping[str, Any], keys: Iterable[str]) -> dict[str, float]:
    """The numbers of an info under these keys and under `is_success`; booleans are 0 and 1. Others are left out."""
    found = {}
    for key in (SUCCESS, *keys):
        number = _number(_value(info, key))
        if number is not None:
            found[key] = number
    return found


def numbers_of_agents(infos: Mapping[str, Any], keys: Iterable[str]) -> dict[str, float]:
    """The same for the infos of several agents: the mean over agents under KEY, and that of each as KEY/AGENT."""
    keys = tuple(keys)
    by_agent = {agent: numbers_in(info, keys) for agent, info in infos.items() if isinstance(info, dict)}
    found = {}
    for key in dict.fromkeys((SUCCESS, *keys)):
        values = {agent: numbers[key] for agent, numbers in by_agent.items() if key in numbers}
        if values:
            found[key] = sum(values.values()) / len(values)
            found |= {f"{key}/{agent}": value for agent, value in values.items()}
    return found


def progress_method(env: Any) -> Callable[[float], Any] | None:
    """The method `set_progress` of an environment, of a wrapper around it or of the game in it; None without one."""
    seen = 0
    while env is not None and seen < 100:
        method = getattr(type(env), "set_progress", None)  # not of the object, which may answer to every name
        if callable(method):
            bound: Callable[[float], Any] = env.set_progress
            return bound
        inner = getattr(env, "__dict__", {})
        env = next((inner[name] for name in ("game", "env", "aec_env", "par_env", "_inner") if name in inner), None)
        seen += 1
    return None


def begin_progress(env: Any) -> Any:
    """The environment, after `set_progress(0.0)` if it has that, so that it knows it before the first episode."""
    method = progress_method(env)
    if method is not None:
        method(0.0)
    return env


def _value(info: Mapping[str, Any], key: str) -> Any:
    if key in info:
        return info[key]
    first, dot, rest = key.partition(".")
    inner = info.get(first) if dot else None
    return _value(inner, rest) if isinstance(inner, Mapping) else None


def _number(value: Any) -> float | None:
    if type(value) in (bool, int, float):
        return float(value)
    if isinstance(value, np.generic | np.ndarray) and value.size == 1 and value.dtype.kind in "biuf":
        return float(value.reshape(-1)[0])
    return None
