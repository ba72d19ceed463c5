"""Examines an environment in a child process with a time limit: the run's own process gets data and runs no user code.

The child needs gymnasium but not torch. So it works while the learner's process still imports torch.
"""

from __future__ import annotations

from typing import NamedTuple

from rltrain.config.run_config import RunConfig
from rltrain.envs.check import Problem, check_env
from rltrain.envs.errors import Watch
from rltrain.envs.lookup import EnvSource
from rltrain.envs.make import read_spec, resolve, vector_kind
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.native import verify_native
from rltrain.envs.vector.restore_check import verify
from rltrain.errors import ConfigError
from rltrain.setup.task_process import TaskProcess

RESTORE_SECONDS = 300.0  # allowed for the whole decision how to restore an environment


class Findings(NamedTuple):
    """The result of an examination."""

    spec: EnvSpec
    problems: tuple[Problem, ...]
    kind: str  # serial or native; see `vector_kind`


class Examination:
    """The tasks of the child. Runs the code of one environment.

    Args:
        watch: gets the name of each call of the environment before it is made.
    """

    def __init__(self, source: EnvSource, watch: Watch) -> None:
        self._source, self._watch = source, watch

    def read_spec(self, seed: int) -> EnvSpec:
        return read_spec(self._source, seed, self._watch)

    def examine(self, seed: int, streams: int, vector: str) -> Findings:
        """The spec of the environment, its problems, and how the streams of a run are stepped."""
        source, watch = self._source, self._watch
        spec = read_spec(source, seed, watch)
        problems = tuple(check_env(source, spec, seed, watch=watch))
        fatal = any(problem.fatal for problem in problems)
        self._findings = Findings(spec, problems, "serial" if fatal else vector_kind(source, streams, vector, watch))
        return self._findings

    def restore_method(self, seed: int) -> str:
        """How a stream is restored on resume. It uses the findings of `examine`."""
        spec, _, kind = self._findings
        if kind == "native":
            return verify_native(self._source.make_block, spec, seed, watch=self._watch)
        return verify(self._source.make, spec, seed, watch=self._watch)


def evaluation_source(config: RunConfig) -> EnvSource | None:
    """The environment of evaluations, if it is not that of the run."""
    if config.eval_env is None and not config.eval_env_args:
        return None
    args = config.eval_env_args if config.eval_env is not None else {**config.env_args, **config.eval_env_args}
    env = config.env if config.eval_env is None else config.eval_env
    return resolve(env, args, config.share, config.action_bound, config.folder)


def look_at(config: RunConfig, new: bool = True) -> TaskProcess:
    """Begin to examine the environment of a run.

    Args:
        new: nothing is known about how its streams are restored.

    Raises:
        ConfigError: the algorithm learns from recorded data alone, and the configuration names none.
    """
    if getattr(config.settings, "data_only", False) and config.replay_from is None:
        raise ConfigError(f"{config.algo} learns from recorded data: add --data DIR, a folder that --record wrote")
    source = resolve(config.env, config.env_args, config.share, config.action_bound, config.folder)
    look = TaskProcess(Examination, source, config.actor_timeout)
    look.start("examine", config.seed, config.streams, config.vector)
    if new and config.acts:
        look.start("restore_method", config.seed)
    return look
