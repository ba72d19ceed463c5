"""Recordings from the episodes of others: merged, split at random, or filtered. The data is read piece by piece.

An episode is copied to the bit, also one that the end of its recording cuts off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from pathlib import Path

import numpy as np

from rltrain.data.check import structure
from rltrain.data.episodes import EpisodeWriter, Recorded, common_extras
from rltrain.data.origin import SELECTIONS, of_mixture, of_part, selections
from rltrain.data.sources import Counted, Source, require_same_environment
from rltrain.errors import CheckpointError, ConfigError


def merge(sources: Sequence[Source], folder: Path) -> tuple[Counted, list[str]]:
    """Writes the episodes of all sources, in their order. The notes say which extras are left out.

    Extras (log-probabilities, values) are kept if every episode has them in the same form.

    Raises:
        ConfigError: the sources are of different environments, or hold no step.
    """
    first = sources[0]
    for other in sources[1:]:
        require_same_environment(first, other)
    kept, notes = common_extras(chain.from_iterable(map(_episodes, sources)))
    about = {"merged": [source.path.name for source in sources], **of_mixture([source.run for source in sources])}
    writer = EpisodeWriter(folder, first.spec, about)
    for source in sources:
        for episode in checked(source):
            extras = {name: array for name, array in episode.extras.items() if name in kept}
            writer.add(replace(episode, extras=extras))
    return Counted(writer.steps, writer.close()), notes


def split(source: Source, folders: tuple[Path, Path], fraction: float, seed: int) -> tuple[Counted, Counted]:
    """Writes a random share `fraction` of the episodes to the first folder, the others to the second one.

    Raises:
        ConfigError: one of them would hold no episode.
    """
    total = sum(1 for _ in source.episodes())
    count = round(fraction * total)
    if not 0 < count < total:
        text = f"--fraction {fraction:g} of the {total:,} episodes of {source.path} are {count:,}"
        raise ConfigError(f"{text}: both parts need at least one episode")
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(seed).permutation(total)[:count]] = True
    about = {"split": source.path.name, "fraction": fraction, "seed": seed, **of_part(source.run)}
    writers = [EpisodeWriter(folder, source.spec, about) for folder in folders]
    for is_first, episode in zip(chosen.tolist(), checked(source), strict=True):
        writers[0 if is_first else 1].add(episode)
    one, other = (Counted(writer.steps, writer.close()) for writer in writers)
    return one, other


@dataclass(frozen=True)
class Conditions:
    """What complete episodes must satisfy to be kept. `top` is the share of those that satisfy the others."""

    top: float | None = None
    min_return: float = -math.inf
    max_return: float = math.inf
    min_length: int = 0
    max_length: float = math.inf


def select(source: Source, folder: Path, wanted: Conditions) -> tuple[Counted, int]:
    """Writes the complete episodes that satisfy the conditions, in their order; also returns the number of all.

    Of equal returns `top` keeps the earlier episodes.

    Raises:
        ConfigError: no episode satisfies them.
    """
    kept, returns, total = [], [], 0
    for episode in source.episodes():
        ret, length = episode.ret, episode.steps
        complete = episode.whole and (episode.terminated or episode.truncated)
        within = wanted.min_return <= ret <= wanted.max_return and wanted.min_length <= length <= wanted.max_length
        kept.append(complete and within)
        total += complete
        returns.append(ret)
    places = np.flatnonzero(kept)
    if not len(places):
        raise ConfigError(f"{source.path}: none of its {len(kept):,} episodes is complete and satisfies the conditions")
    if wanted.top is not None:
        order = np.argsort(-np.array(returns)[places], kind="stable")
        best = places[order[: max(1, int(wanted.top * len(places) + 1e-9))]]  # 0.29 of 100 are 29
        kept = np.isin(np.arange(len(kept)), best).tolist()
    conditions = {name: value for name, value in vars(wanted).items() if value is not None and math.isfinite(value)}
    removed = selections(source.run) + ([conditions] if sum(kept) < total else [])
    about = {"filtered": source.path.name, **conditions, **of_part(source.run), SELECTIONS: removed}
    writer = EpisodeWriter(folder, source.spec, about)
    for episode in compress(checked(source), kept):
        writer.add(episode)
    return Counted(writer.steps, writer.close()), len(kept)


def checked(source: Source) -> Iterator[Recorded]:
    """The episodes; CheckpointError at the first one whose arrays do not have the shapes and types of the spaces."""
    for number, episode in enumerate(source.episodes()):
        if wrong := structure([episode], source.spec):
            raise CheckpointError(f"{source.path}: episode {number}: {wrong[0].text}; nothing was written")
        yield episode


def _episodes(source: Source) -> Iterator[Recorded]:
    """The episodes; ConfigError if there are none."""
    number = -1
    for number, episode in enumerate(source.episodes()):  # noqa: B007, the number of the last one
        yield episode
    if number < 0:
        raise ConfigError(f"{source.path} holds no step of an episode")
