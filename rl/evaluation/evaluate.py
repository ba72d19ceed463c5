"""Evaluates a trained policy on complete episodes whose seeds training never used: `rltrain.evaluate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rltrain import self_play_ratings as self_play
from rltrain.config.consent import EVALUATION, SavedConfig, with_consent
from rltrain.envs.errors import Watch, fault_of, unwatched
from rltrain.envs.lookup import EnvSource
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.seeding import FRESH, seed_of
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.evaluation.multi_agent import mean_returns
from rltrain.evaluation.policy import Trained, load_for
from rltrain.evaluation.video import VideoWriter
from rltrain.reporting.metrics import info_means
from rltrain.rollout.actor.play import play
from rltrain.rollout.types import Episode
from rltrain.rollout.workers.process_state import LocalSettings
from rltrain.setup.first_look import evaluation_source

RESAMPLES = 10_000  # for the bootstrap
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
    outcomes: dict[str, float] = field(default_factory=dict)  # after self-play: fractions of win, draw and loss


def evaluate(
    what: str | Path | Trained,
    episodes: int = 100,
    seed: int = 0,
    stochastic: bool = False,
    video: str | Path | None = None,
    env: str | Callable[..., Any] | None = None,
    trust: bool = False,
    log_info: Sequence[str] | None = None,
) -> Evaluation:
    """Play complete episodes without exploration, on seeds that neither training nor its evaluations use.

    A policy that was trained with `--opponents pool` plays against random moves, as each of the two players in turn;
    the returns are those of the policy.

    Args:
        what:       a run's folder, a checkpoint, or a `Trained`.
        stochastic: sample actions, as in training.
        video:      file (.mp4, .gif) for a video of the first episode.
        env:        an environment with the same spaces, in place of the one that the policy was trained on.
        trust:      a run that somebody else made may import the code that it names.
        log_info:   keys of the last infos whose means are in `Evaluation.info`; default: those of the run.

    Raises:
        ConfigError: episodes is less than 1, or `env` has other spaces.
        CheckpointError: there is no checkpoint, it is damaged, or it names code to which the user did not consent.
    """
    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {episodes}")
    uses = [key for key in EVALUATION if key != "env" or env is None]
    trained = what if isinstance(what, Trained) else load_for(what, False, trust, uses)
    return evaluate_watched(unwatched, trained, episodes, seed, stochastic, video, env, trust, log_info)


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
) -> Evaluation:
    """As `evaluate`. `watch` gets the name of each call of the environment before it is made."""
    source = _source(trained, env, trust)
    seeds = [seed_of(seed, FRESH, episode) for episode in range(episodes)]
    with _this_process(seed):
        spec = read_spec(source, seed, watch)
        if (spec.obs, spec.action) != (trained.spec.obs, trained.spec.action):
            raise ConfigError(f"{spec.id} has other spaces than {trained.spec.id}, which {trained.path} was trained on")
        keys = trained.config.log_info if log_info is None else tuple(log_info)
        played = _play(source, spec, trained, seeds, stochastic, video, watch, keys)
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
        outcomes=self_play.shares(played) if trained.config.opponents == "pool" else {},
    )


@contextlib.contextmanager
def _this_process(seed: int) -> Iterator[None]:
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
) -> list[Episode]:
    """One episode per seed; the first one is filmed."""

    def episodes(source: EnvSource, seeds: list[int], film: Callable[[Any], None] | None = None) -> list[Episode]:
        def make() -> Any:
            watch("constructor")
            env = source.make()
            watch("reset")  # follows the last constructor
            return env

        def frame(env: Any) -> None:
            watch("step")
            if film is not None:
                film(env)

        at_random = trained.config.opponents == "pool"
        return play(
            make, spec, trained.policy, seeds, stochastic, frame=frame, at_random=at_random, info_keys=info_keys
        )

    played: list[Episode] = []
    if video is not None:
        writer = VideoWriter(Path(video).absolute())
        filmed = replace(source, kwargs={**source.kwargs, "render_mode": "rgb_array"})
        played = episodes(filmed, seeds[:1], writer.add)
        writer.write()
    return played + episodes(source, seeds[len(played) :])


def bootstrap(returns: np.ndarray) -> tuple[float, float]:
    """95% confidence interval of the mean of returns [N], by the percentile bootstrap."""
    rng = np.random.default_rng(0)
    means = returns[rng.integers(0, len(returns), (RESAMPLES, len(returns)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _source(trained: Trained, env: str | Callable[..., Any] | None, trust: bool) -> EnvSource:
    config = trained.config
    if env is None and not config.reloadable:
        raise ConfigError(f"{trained.path} was trained on {trained.spec.id}, an object of a program: give it as `env`")
    saved = SavedConfig({}, trained.path, trained.own)
    config = with_consent(config, saved, trust, ("env_args",) if env is not None else EVALUATION[:-1])
    source = evaluation_source(config) if env is None else None
    if source is not None:
        return source
    name = config.env if env is None else env
    return resolve(name, config.env_args, config.share, config.action_bound, config.folder)
