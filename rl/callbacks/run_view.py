"""The run, as callbacks see it: its steps, metrics, policy and folder, and what they may ask of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from torch import nn

from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.evaluation.policy import Trained
from rltrain.learner.algorithm import make_policy
from rltrain.learner.changes import checked_change
from rltrain.setup.environment import Environment

# First parts of the names of the platform's own metrics.
TAKEN = "cluster eval eval_agents eval_groups eval_info learner replay rollout rollout_agents rollout_groups".split()
TAKEN += "rollout_info selfplay time".split()
BY_THE_CLOCK = "on_log is called by the clock, so that a resumed run would not repeat this; use on_update"


@dataclass
class Requests:
    """What callbacks have asked for and what has not been done yet. Part of a checkpoint.

    Attributes:
        changes: new values of settings, since the run began.
        logged:  the newest value of each metric of `log` that is not in a line yet.
    """

    stop: str | None = None
    evaluate: bool = False
    checkpoint: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; {} if there is none."""
        self.stop = None if state.get("stop") is None else str(state["stop"])
        self.evaluate, self.checkpoint = bool(state.get("evaluate")), bool(state.get("checkpoint"))
        self.changes = dict(state.get("changes", {}))
        self.logged = {str(name): float(value) for name, value in state.get("logged", {}).items()}


class RunView:
    """The run, as callbacks see it.

    Attributes:
        resumed: True if this process has resumed the run.
        stopped: why the run ends: steps, return, seconds, the reason given to `stop`, interrupted or failed; None while
                 it continues.
    """

    def __init__(self, run: Any, requests: Requests) -> None:
        self._run, self._requests = run, requests
        self._policy: Any = None  # a copy, made at the first use
        self._metrics = LiveMetrics(run)
        self.hook = ""  # that is called now
        self.muted = False  # requests are ignored
        self.resumed = False
        self.stopped: str | None = None

    @property
    def steps(self) -> int:
        """Environment steps of all streams together."""
        return int(self._run.rollout.steps)

    @property
    def updates(self) -> int:
        """Updates of the weights so far."""
        return int(self._run.learner.version)

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        return float(self._run.progress)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self._run.folder)

    @property
    def config(self) -> RunConfig:
        """The configuration with which the run began."""
        config: RunConfig = self._run.config
        return config

    @property
    def settings(self) -> BaseModel:
        """The settings of the algorithm, with the changes that callbacks have made."""
        return self.config.settings.model_copy(update=self._requests.changes)

    @property
    def spec(self) -> EnvSpec:
        """The environment."""
        spec: EnvSpec = self._run.spec
        return spec

    @property
    def environment(self) -> Environment:
        """How the environments of the run and of its evaluations are made."""
        environment: Environment = self._run.environment
        return environment

    @property
    def metrics(self) -> Mapping[str, float]:
        """The newest value of each metric, by name: see `LiveMetrics`."""
        return self._metrics

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks in training, with the gradients of their newest update: policy, critics, target, ..."""
        parts = {name: getattr(part, "module", part) for name, part in self._run.learner.algorithm.parts().items()}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    @property
    def policy(self) -> Trained:
        """The policy with the weights of now, to act with: a copy, as `rltrain.load` returns it."""
        if self._policy is None:
            self._policy = make_policy(self.config, self.spec)()
        arrays = self._run.learner.weights(self.steps).arrays
        for name, tensor in self._policy.state_dict().items():
            tensor.numpy()[...] = arrays[name]
        trained = Trained(self._policy, self.spec, self.config, self.folder)
        trained.seed((self.config.seed, self.steps))  # not the noise of other calls: a resumed run has the same
        return trained

    def log(self, name: str, value: float) -> None:
        """Add a metric to the next line of metrics; of several values under one name, the newest."""
        if not isinstance(name, str) or not name or name in ("step", "seconds") or name.partition("/")[0] in TAKEN:
            raise ConfigError(f"run.log: the platform itself writes {name!r}; choose another name, such as my/{name}")
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"run.log: {name} must be a number, got {value!r}") from None
        if not self.muted:
            self._requests.logged[name] = number

    def histogram(self, name: str, values: Any) -> None:
        """Write a histogram of numbers, an array or a tensor, to TensorBoard."""
        numbers = as_numbers(values)
        if numbers.size:
            self._run.metrics.histogram(self.steps, name, numbers)

    def video(self, name: str, gif: bytes, width: int, height: int, step: int | None = None) -> None:
        """Write a GIF to TensorBoard, which shows it as a video."""
        self._run.metrics.image(self.steps if step is None else step, name, gif, width, height)

    def note(self, text: str) -> None:
        """Print a line on the console."""
        self._run.console.note(str(text))

    def stop(self, reason: str) -> None:
        """End the run after this step, with an evaluation and a checkpoint as usual; `reason` is in the result."""
        if not self.muted and self._requests.stop is None:
            self._requests.stop = " ".join(str(reason).split()) or "a callback"

    def evaluate(self) -> None:
        """Evaluate the weights of this step in addition to `eval_every`, as soon as the hooks of this step are done."""
        self._not_by_the_clock("evaluate")
        self._requests.evaluate |= not self.muted

    def checkpoint(self) -> None:
        """Write a checkpoint in addition to `checkpoint_every`, as soon as the hooks of this step are done."""
        self._not_by_the_clock("checkpoint")
        self._requests.checkpoint |= not self.muted

    def change(self, setting: str, value: Any) -> None:
        """Change a setting of the algorithm from the next update on. It stays changed when the run is resumed.

        Raises:
            ConfigError: the setting cannot change during a run, or its value is wrong.
        """
        self._not_by_the_clock("change")
        value = checked_change(self.settings, setting, value)
        if not self.muted:
            self._run.learner.change({setting: value})
            self._requests.changes[setting] = value

    def _not_by_the_clock(self, what: str) -> None:
        if self.hook == "on_log":
            raise ConfigError(f"run.{what}: {BY_THE_CLOCK}")


class LiveMetrics(Mapping[str, float]):
    """The newest metrics. They depend on the steps and not on the clock, so that decisions from them are repeated.

    `rollout/return_mean`, `rollout/length_mean` and the like are over the last 100 episodes; `learner/...` are of the
    newest update; `eval/...` of the newest evaluation, for which it waits. Others are in `on_log` only.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def __getitem__(self, name: str) -> float:
        return self._found(str(name).partition("/")[0])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found(None))

    def __len__(self) -> int:
        return len(self._found(None))

    def __repr__(self) -> str:
        return repr(self._found(None))

    def _found(self, group: str | None) -> dict[str, float]:
        """The metrics of a group, which is the first part of their names; None: all."""
        run, values = self._run, dict[str, float]()
        if group is None or group.startswith("rollout"):
            values |= run.window_metrics()
        if group is None or group == "learner":
            values |= {f"learner/{name}": float(value) for name, value in run.learner.newest.items()}
        if group is None or group.startswith("eval"):
            if run.evaluation.pending:
                run.evaluation.collect(run.rollout.steps, run.metrics, True, lambda: _passed(run.rollout.deadline))
            values |= run.evaluation.metrics
        return values


def _passed(deadline: float) -> bool:
    return time.monotonic() > deadline


def as_numbers(values: Any) -> np.ndarray:
    """The finite numbers of an array or of a tensor on any device [N]."""
    array = values.detach().float().cpu().numpy() if hasattr(values, "detach") else np.asarray(values, np.float64)
    numbers: np.ndarray = array[np.isfinite(array)]
    return numbers
