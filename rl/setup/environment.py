"""Examines the environment of a run: its spec, its problems, how its streams are stepped and restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rltrain import algorithms
from rltrain.algorithms.networks import products
from rltrain.algorithms.settings import TORSOS, Actions
from rltrain.config.flags import as_text
from rltrain.config.run_config import RunConfig
from rltrain.envs.errors import EnvError
from rltrain.envs.lookup import EnvSource
from rltrain.envs.make import vector
from rltrain.envs.seeding import stream_seed
from rltrain.envs.spec import COSMETIC, ActionSpec, EnvSpec, spec_differences
from rltrain.envs.vector import native
from rltrain.envs.vector.episode_info import EpisodeOptions
from rltrain.envs.vector.unroll_rows import VectorEnv
from rltrain.errors import ConfigError
from rltrain.setup.first_look import RESTORE_SECONDS, Examination, evaluation_source, look_at
from rltrain.setup.run_folder import NEW_RUN, Saved
from rltrain.setup.task_process import TaskProcess

RECORDED = "record"  # restore method of a run that learns from a recording: no stream has to be restored


@dataclass(frozen=True)
class Environment:
    """The environment of a run, and how its streams are stepped."""

    source: EnvSource
    spec: EnvSpec
    kind: str  # serial or native
    units: tuple[tuple[int, ...], ...]  # streams that one actor must step together
    restore_method: str  # how a stream is restored on resume; "none": a resumed run is not exact
    options: EpisodeOptions = EpisodeOptions()  # noqa: RUF009, a tuple
    evaluation: tuple[EnvSource, EnvSpec] | None = None  # the environment of evaluations, if it is another one

    @property
    def evaluated(self) -> tuple[EnvSource, EnvSpec]:
        """The environment of evaluations."""
        return self.evaluation or (self.source, self.spec)

    def make_vector(self, seed: int, streams: Sequence[int], generations: Sequence[int]) -> VectorEnv:
        """The vector environment of some streams, which make up complete units.

        Args:
            seed:        of the run.
            generations: how often each stream was started again after a failure.
        """
        seeds = [stream_seed(seed, stream, gen) for stream, gen in zip(streams, generations, strict=True)]
        total = sum(len(unit) for unit in self.units)
        return vector(self.source, self.spec, streams, seeds, self.restore_method, self.kind, total, self.options)


def open_environment(
    config: RunConfig, saved: Saved = NEW_RUN, look: TaskProcess | None = None
) -> tuple[Environment, list[str]]:
    """What an examination of the environment found: how its streams are stepped and restored.

    Args:
        look: the examination, which `look_at` began; it is closed here.

    Raises:
        EnvError, ConfigError: one line for each problem, with what to do about it.
        EnvFault: the environment's own code raised.
        CheckpointError: its observations or actions have changed since the checkpoint.
    """
    with look or look_at(config, new=saved.folder is None) as look:
        source, (spec, problems, kind) = look.subject, look.result()
        restore_method = saved.restore_method if config.acts else RECORDED
        if algorithms.for_several(config.algo) and not spec.groups:
            others = ", ".join(name for name in algorithms.names() if not algorithms.for_several(name))
            raise ConfigError(f"{config.algo} is for several agents; {spec.id} has one agent. Use {others}")
        fatal = [problem.text for problem in problems if problem.fatal]
        if fatal:
            raise EnvError("\n".join(fatal))
        if kind == "native":
            units = tuple(native.blocks(config.streams))
            if config.workers > len(units) and config.vector == "native":
                raise ConfigError(
                    f"--workers {config.workers}: the native vector environment of {spec.id} comes in {len(units)} "
                    f"blocks; use at most {len(units)} workers, or --vector serial"
                )
        else:
            units = tuple((stream,) for stream in range(config.streams))
        if restore_method is None:
            if saved.folder is not None:
                look.start("restore_method", config.seed)
            restore_method = look.result(RESTORE_SECONDS, "it could not be decided how to restore it on resume")
    saved.check(spec)
    notes = [problem.text for problem in problems]
    if restore_method == "none":
        notes.append(f"{spec.id} cannot be restored in mid-episode: a resumed run is not exact (exact: false)")
    options = EpisodeOptions(config.log_info, config.steps / config.streams)
    evaluation = _for_evaluation(config, spec)
    return Environment(source, spec, kind, units, restore_method, options, evaluation), notes


def _for_evaluation(config: RunConfig, spec: EnvSpec) -> tuple[EnvSource, EnvSpec] | None:
    """The environment of evaluations, if it is not that of the run; ConfigError if its spaces are others."""
    source = evaluation_source(config)
    if source is None:
        return None
    with TaskProcess(Examination, source, config.actor_timeout) as look:
        look.start("read_spec", config.seed)
        other: EnvSpec = look.result()
    if changed := spec_differences(spec, other, ignored=(*COSMETIC, "max_steps")):
        raise ConfigError(f"--eval-env {other.id}: its spaces are not those of {spec.id}: {changed}")
    return source, other


def settled(config: RunConfig, environment: Environment) -> tuple[RunConfig, list[str]]:
    """The configuration of a new run, with the values that depend on its environment: defaults for Box actions, and no
    more workers than its native vector environment has blocks. One line about each value that was not given. The
    library of the learner's products depends on the processor.
    """
    notes, spec, units = list[str](), environment.spec, len(environment.units)
    dense = config.precision == "bfloat16" and config.device == "cpu"
    dense = dense and all(leaf.kind != "image" for leaf in spec.leaves())
    if dense and not products.has_bfloat16():
        notes.append("precision bfloat16: this processor has no units for it, so that the learner uses float32")
    library = "bfloat16" if dense and products.has_bfloat16() else products.fastest()
    config = config.model_copy(update={"products": library})
    if config.raised_from is not None:
        notes.append(f"{config.streams} streams, one for each worker (the default is {config.raised_from})")
    if config.workers > units:
        notes.append(f"{units} workers: the native vector environment of {spec.id} comes in {units} blocks")
        config = config.model_copy(update={"workers": units})
    settings: Any = config.settings
    torso = getattr(settings, "torso", "auto")
    if torso in TORSOS[1:] and all(leaf.kind != "image" for leaf in spec.leaves()):
        raise ConfigError(f"--torso {torso} is for images, and observations of {spec.id} are none; leave it out")
    actions = actions_of(spec, settings)
    if actions is not None and getattr(settings, actions.upper(), {}):
        try:
            chosen = settings.for_actions(actions, config.streams)
        except ValueError as error:  # a rule of a user's own settings
            raise ConfigError(f"defaults for {actions} actions: {' '.join(str(error).split())}") from None
        names = [name for name in settings.defaults_for(actions) if name not in settings.model_fields_set]
        if "squash" in names and any(action.unbounded for action in _actions(spec)):
            chosen = type(chosen)(**{**chosen.model_dump(), "squash": False})  # it needs bounds
        config = config.model_copy(update={"settings": chosen})
        if names:
            values = ", ".join(f"{name} {as_text(getattr(chosen, name))}" for name in names)
            notes.append(f"defaults for {actions} actions: {values}")
    return config, notes


def actions_of(spec: EnvSpec, settings: Any) -> Actions | None:
    """The kind of action whose defaults hold for this environment and these settings; None: those of the fields."""
    if all(action.kind == "box" for action in _actions(spec)):
        return "Box"
    memory = getattr(settings, "memory", "none") != "none"
    images = any(leaf.kind == "image" for leaf in spec.leaves())
    return None if spec.groups or spec.action_mask or images or memory else "Discrete"


def _actions(spec: EnvSpec) -> list[ActionSpec]:
    """The actions of the agent, or of each group of agents."""
    return [group.action for group in spec.groups] or [spec.action]
