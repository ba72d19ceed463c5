"""Trained policies: load one from a checkpoint, act with it, evaluate it on episodes training never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rltrain import self_play
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.seeding import FRESH, seed_of
from rltrain.envs.source import EnvSource
from rltrain.errors import ConfigError
from rltrain.evaluation.multi_agent import mean_returns
from rltrain.evaluation.policy import Trained, load
from rltrain.evaluation.video import VideoWriter
from rltrain.rollout.actor.play import play
from rltrain.rollout.types import Episode

RESAMPLES = 10_000  # of the bootstrap


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. Returns are undiscounted sums of untouched rewards."""

    return_mean: float
    return_std: float
    return_ci95: tuple[float, float]  # bootstrap interval of the mean
    length_mean: float  # steps
    episodes: int
    checkpoint: Path
    returns: tuple[float, ...]
    agents: dict[str, float] = field(default_factory=dict)  # of several agents, the mean return of each
    groups: dict[str, float] = field(default_factory=dict)  # and of each group, the sum over its agents
    outcomes: dict[str, float] = field(default_factory=dict)  # after self-play: shares of win, draw and loss


def evaluate(
    what: str | Path | Trained,
    episodes: int = 100,
    seed: int = 0,
    stochastic: bool = False,
    video: str | Path | None = None,
    env: str | Callable[..., Any] | None = None,
) -> Evaluation:
    """Whole episodes without exploration, on seeds that neither training nor its evaluations use.

    Args:
        what:       a run's folder, a checkpoint, or what `load` returned.
        stochastic: sample actions, as in training.
        video:      film the first episode into this file (.mp4, .gif).
        env:        an environment with the same spaces, in place of the one it was trained on.

    What played against a pool of opponents plays against somebody who moves at random, from both seats in turn; the
    returns are its own.
    """
    trained = what if isinstance(what, Trained) else load(what)
    source = _source(trained, env)
    spec = read_spec(source, seed)
    if (spec.obs, spec.action) != (trained.spec.obs, trained.spec.action):
        raise ConfigError(f"{spec.id} has other spaces than {trained.spec.id}, which {trained.path} was trained on")
    seeds = [seed_of(seed, FRESH, episode) for episode in range(episodes)]
    film: VideoWriter | None = None
    at_random = trained.config.opponents == "pool"
    if video is not None:
        film = VideoWriter(Path(video))
        source = replace(source, kwargs={**source.kwargs, "render_mode": "rgb_array"})
        first = play(source.make, spec, trained.policy, seeds[:1], stochastic, frame=film.add, at_random=at_random)
        film.write()
        source, seeds = _source(trained, env), seeds[1:]
    else:
        first = []
    found: list[Episode] = [*first, *play(source.make, spec, trained.policy, seeds, stochastic, at_random=at_random)]
    returns = np.array([episode.ret for episode in found])
    by_agent, by_group = mean_returns(spec, found)
    return Evaluation(
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        return_ci95=bootstrap(returns),
        length_mean=float(np.mean([episode.length for episode in found])),
        episodes=len(found),
        checkpoint=trained.path,
        returns=tuple(float(r) for r in returns),
        agents=by_agent,
        groups=by_group,
        outcomes=self_play.shares(found) if at_random else {},
    )


def bootstrap(returns: np.ndarray) -> tuple[float, float]:
    """95% percentile interval of the mean of returns [N]."""
    rng = np.random.default_rng(0)
    means = returns[rng.integers(0, len(returns), (RESAMPLES, len(returns)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _source(trained: Trained, env: str | Callable[..., Any] | None) -> EnvSource:
    if env is None and not trained.config.reloadable:
        raise ConfigError(f"{trained.path} was trained on {trained.spec.id}, an object of a program: give it as `env`")
    config = trained.config
    return resolve(config.env if env is None else env, config.env_args, config.share)
