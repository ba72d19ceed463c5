"""The tree of seeds of a run: seed sequences below the run's seed, one branch for each purpose.

Streams, not workers, have seeds, so that a run does not depend on the number of workers.
"""

from __future__ import annotations

import numpy as np

# The first element of the path below the run's seed.
LEARNER, STREAM, EVALUATION, NOISE, FRESH, REPLAY, START, OPPONENT, RECORDED, OTHERS = range(10)


def seed_of(seed: int, *path: int) -> int:
    """A 31-bit seed at `path` below the run's seed; different paths give independent seeds."""
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint32)[0] >> 1)


def stream_seed(seed: int, stream: int, generation: int = 0) -> int:
    """The seed of a stream's environment; `generation` counts how often the stream was restarted."""
    return seed_of(seed, STREAM, stream, generation)


def evaluation_seed(seed: int, episode: int) -> int:
    """The seed of an evaluation episode; training never uses it."""
    return seed_of(seed, EVALUATION, episode)
