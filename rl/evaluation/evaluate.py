"""Evaluates a trained policy on complete episodes whose seeds training never used: `rltrain.evaluate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.config.consent import EVALUATION, NETWORK, SavedConfig, with_consent
from rltrain.envs.errors import Watch, fault_of, unwatched
from rltrain.envs.lookup import EnvSource
from rltrain.envs.make import fitting, read_spec, resolve
from rltrain.envs.seeding import FRESH, seed_of
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.evaluation import self_play_ratings as self_play
from rltrain.evaluation.multi_agent import mean_returns
from rltrain.evaluation.policy import Trained, load_for
from rltrain.evaluation.video import VideoWriter, filmed, shown
from rltrain.reporting.intervals import bootstrap
from rltrain.reporting.metrics import info_means
from rltrain.rollout.actor.play import AT_ONCE, play
from rltrain.rollout.types import LONGEST, Episode
from rltrain.rollout.workers.process_state import TORCH, LocalSettings, SeparateSettings
from rltrain.setup.first_look import evaluation_source

FEW = 4  # of so few episodes a bootstrap interval says nothing


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation. Returns are undiscounted sums of the environment's rewards."""

    return_mean: float
    return_std: float
    return_ci95: tuple[float, float] | None  # bootstrap confidence interval of the mean; None with at most FEW episodes
    length_mean: float  # steps
    episodes: int
    checkpoint: Path
    returns: tuple[float, ...]
    agents: dict[str, float] = field(default_factory=dict)  # mean return of each agent; {} for a single agent
    groups: dict[str, float] = field(default_factory=dict)  # mean over episodes of the sum over a group's agents
    info: dict[str, float] = field(default_factory=dict)  # means of numbers of the last infos, by key
    outcomes: dict[str, float] = field(default_factory=dict)  # after self-play: shares of win, draw and loss
    cut_off: int = 0  # episodes that did not end by themselves within LONGEST steps


def evaluate(
    what: str | Path | Trained,
    episodes: int = 100,
    seed: int = 0,
    stochastic: bool = False,
    video: str | Path | None = None,
    env: str | Callable[..., Any] | None = None,
    trust: bool = False,
    log_info: Sequence[str] | None = None,
    *,
    env_args: Mapping[str, Any] | None = None,
    best: bool = False,
    render: bool = False,
) -> Evaluation:
    """Play complete episodes without exploration, on seeds that neither training nor its evaluations use.

    A policy that was trained with `--opponents` plays against random moves, as each of the players in turn; the returns
    are those of the policy.

    Args:
        what:       a run's folder, a checkpoint, or a `Trained`.
        stochastic: sample actions, as in training.
        video:      file (.mp4, .gif) for a video of the first episode.
        env:        an environment with the same spaces, in place of the one that the policy was trained on. It gets
                    those arguments of the run's environment that it takes, unless there are `env_args`.
        trust:      a run that somebody else made may import the code that it names.
        log_info:   keys of the last infos whose means are in `Evaluation.info`; default: those of the run.
        env_args:   keyword arguments of the environment's constructor; without `env` they are added to the run's.
        best:       of a run's folder, the best checkpoint in place of the newest.
        render:     show the episodes in a window, one after the other.

    Raises:
        ConfigError: a number is wrong, or `env` has other spaces.
        CheckpointError: there is no checkpoint, it is damaged, or it names code to which the user did not consent.
    """
    for name, number, least in (("episodes", episodes, 1), ("seed", seed, 0)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise ConfigError(f"{name} must be a whole number, got {number!r}")
        if number < least:
            raise ConfigError(f"{name} must be at least {least}, got {number}")
    trained = what if isinstance(what, Trained) else load_for(what, best, trust, named_by_run(env, env_args))
    words = env, trust, log_info, env_args, render
    return evaluate_watched(unwatched, trained, int(episodes), int(seed), stochastic, video, *words)


def named_by_run(env: object, env_args: object) -> list[str]:
    """The settings of EVALUATION that the run decides, and not the caller."""
    given = dict.fromkeys(("env", "eval_env", "eval_env_args"), env is not None)
    given["env_args"] = env is not None and env_args is not None
    return [key for key in EVALUATION if not given.get(key)]


def evaluate_watched(
    watch: Watch,
    trained: Trained,
    episodes: int,
    seed: int,
    stochastic: bool,
    video: str | Path | None,
    env: str | Callable[..., Any] | None = None,
    trust: bool = False,
    log_info: Sequence[str] | None = None,
    env_args: Mapping[str, Any] | None = None,
    render: bool = False,
) -> Evaluation:
    """As `evaluate`. `watch` gets the name of each call of the environment before it is made."""
    source = source_of(trained, env, env_args, trust)
    if render:
        source = shown(source)
    seeds = [seed_of(seed, FRESH, episode) for episode in range(episodes)]
    with this_process(seed):
        settings = SeparateSettings(TORCH)
        ours = settings.enter()
        try:
            spec = read_spec(source, seed, watch)
        finally:  # what the environment changes reaches no policy
            settings.leave(ours)
        if (spec.obs, spec.action) != (trained.spec.obs, trained.spec.action):
            raise ConfigError(f"{spec.id} has other spaces than {trained.spec.id}, which {trained.path} was trained on")
        keys = trained.config.log_info if log_info is None else tuple(log_info)
        at_once = 1 if render else AT_ONCE
        played = _play(source, spec, trained, seeds, stochastic, video, watch, keys, at_once)
    returns = np.array([episode.ret for episode in played])
    by_agent, by_group = mean_returns(spec, played)
    return Evaluation(
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        return_ci95=bootstrap(returns) if len(returns) > FEW else None,
        length_mean=float(np.mean([episode.length for episode in played])),
        episodes=len(played),
        checkpoint=trained.path,
        returns=tuple(float(r) for r in returns),
        agents=by_agent,
        groups=by_group,
        info=info_means(played),
        outcomes=self_play.shares(played) if trained.config.has_opponents else {},
        cut_off=0 if spec.max_steps is not None else sum(episode.length >= LONGEST for episode in played),
    )


@contextlib.contextmanager
def this_process(seed: int) -> Iterator[None]:
    """For the environment's code: it has settings of its own, and if it ends the process, an EnvFault is raised."""
    settings = LocalSettings()
    try:
        with settings():
            yield
    except Exception:
        raise
    except BaseException as error:
        raise fault_of(error, -1, seed, 0) from error
    finally:
        settings.end()


def _play(
    source: EnvSource,
    spec: EnvSpec,
    trained: Trained,
    seeds: list[int],
    stochastic: bool,
    video: str | Path | None,
    watch: Watch,
    info_keys: tuple[str, ...],
    at_once: int,
) -> list[Episode]:
    """One episode per seed; the first one is filmed."""

    def episodes(
        create: Callable[[], Any], seeds: list[int], film: Callable[[Any], None] | None = None
    ) -> list[Episode]:
        def make() -> Any:
            watch("constructor")
            env = create()
            watch("reset")  # follows the last constructor
            return env

        def frame(env: Any) -> None:
            watch("step")
            if film is not None:
                film(env)

        at_random = trained.config.has_opponents
        return play(make, spec, trained.policy, seeds, stochastic, at_once, frame, at_random, info_keys=info_keys)

    played: list[Episode] = []
    if video is not None:
        writer = VideoWriter(Path(video).absolute(), spec.id)
        played = episodes(filmed(source), seeds[:1], writer.add)
        writer.write()
    return played + episodes(source.make, seeds[len(played) :])


def source_of(
    trained: Trained, env: str | Callable[..., Any] | None, env_args: Mapping[str, Any] | None, trust: bool
) -> EnvSource:
    config = trained.config
    if env is None and not config.reloadable:
        raise ConfigError(
            f"{trained.path} was trained on {trained.spec.id}, an object of a program: give it as `env`, or with --env"
        )
    given = dict(env_args or {})
    of_run = {} if env is not None and env_args is not None else config.env_args
    of_run = {key: value for key, value in of_run.items() if key not in given}
    named = config.model_copy(update={"env_args": of_run})
    uses = [key for key in named_by_run(env, None) if key not in NETWORK]
    config = with_consent(named, SavedConfig({}, trained.path, trained.own), trust, uses)
    if env is None and (of_evaluations := evaluation_source(config)) is not None:
        return resolve(of_evaluations, given)
    name = config.env if env is None else env
    folder = config.folder if env is None else None
    source = resolve(name, {**of_run, **given}, config.share, config.action_bound, folder)
    return source if env is None else fitting(source, of_run)
