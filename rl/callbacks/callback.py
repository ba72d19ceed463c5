"""`Callback`, from which users derive their own callbacks, and its state as plain data."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rltrain.envs.vector.plain_data import from_plain, to_plain

if TYPE_CHECKING:
    from rltrain.callbacks.run_view import RunView
    from rltrain.evaluation.background import Evaluated
    from rltrain.rollout.types import Episode

HOOKS = ("on_start", "on_update", "on_log", "on_episode", "on_evaluation", "on_checkpoint", "on_end")


class Callback:
    """Code that a run calls at certain moments. Derive from it, and override the hooks that you need; others cost
    nothing. Callbacks are called in the learner's process, between updates.

    A run that was killed and resumed calls the hooks with the same steps and values as an uninterrupted one, and so
    ends with the same weights. Exceptions are `on_log`, which depends on the clock, and hooks that are called once in
    each process: `on_start` and `on_end`.
    """

    def on_start(self, run: RunView) -> None:
        """Before the first step, and again in each process that resumes the run, before `load_state`. What it asks of
        the run (`change`, `log`, ...) is done once, when the run begins."""

    def on_update(self, run: RunView) -> None:
        """After the updates that follow one delivery of unrolls; during a replay's warmup there are none."""

    def on_log(self, run: RunView, values: dict[str, float]) -> None:
        """After a line of metrics about the progress was written, about once a second; `values` by name."""

    def on_episode(self, run: RunView, episode: Episode) -> None:
        """After each training episode, in the order of the streams: `episode.ret`, `length`, `agents`, `info`."""

    def on_evaluation(self, run: RunView, evaluation: Evaluated) -> None:
        """After each evaluation, for which the run waits if a callback has this hook."""

    def on_checkpoint(self, run: RunView, path: Path) -> None:
        """After a checkpoint was written; a resumed run repeats this call for the checkpoint that it continues."""

    def on_end(self, run: RunView) -> None:
        """At the end of the process's part of the run, also after Ctrl-C or a failure; `run.stopped` says why."""

    def state(self) -> Any:
        """Plain data that belongs to a checkpoint. Default: all attributes of the object that are plain data."""
        return {name: value for name, value in vars(self).items() if _is_plain(value)}

    def load_state(self, state: Any) -> None:
        """Continue from what `state` returned at the checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)


def overrides(callback: object, hook: str) -> bool:
    """True if the callback has this hook, and it is not the empty one of `Callback`."""
    method = getattr(callback, hook, None)
    return callable(method) and getattr(method, "__func__", None) is not getattr(Callback, hook)


def packed(value: Any) -> Any:
    """Plain data in the form in which a checkpoint stores it; `unpacked` returns it with the same types.

    Plain data are None, booleans, numbers, text, arrays, tensors, random generators of numpy, and lists, tuples,
    dicts, sets and deques of them.

    Raises:
        TypeError: something else is in it.
    """
    if isinstance(value, torch.Tensor):
        return {"tensor": value.detach().cpu().numpy().copy()}
    if type(value) is list:
        return [packed(child) for child in value]
    if type(value) in (tuple, set, frozenset):
        children = sorted(value, key=repr) if type(value) is not tuple else value
        return {type(value).__name__: [packed(child) for child in children]}
    if type(value) is deque:
        return {"deque": [value.maxlen, [packed(child) for child in value]]}
    if type(value) is dict:
        return {"items": [[packed(key), packed(child)] for key, child in value.items()]}
    return to_plain(value)


def unpacked(data: Any) -> Any:
    """The inverse of `packed`."""
    if isinstance(data, list):
        return [unpacked(child) for child in data]
    if not isinstance(data, dict):
        return from_plain(data)
    ((kind, inner),) = data.items()
    if kind == "tensor":
        return torch.from_numpy(np.array(inner))
    if kind in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](unpacked(child) for child in inner)
    if kind == "deque":
        return deque((unpacked(child) for child in inner[1]), maxlen=inner[0])
    if kind == "items":
        return {unpacked(key): unpacked(child) for key, child in inner}
    return from_plain(data)


def _is_plain(value: Any) -> bool:
    try:
        packed(value)
    except (TypeError, RecursionError):
        return False
    return True
