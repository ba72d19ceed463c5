"""One tree of seeds for a run: every random number's place in it is written here.

Streams, not workers, own seeds, so that a run does not depend on the number of workers.
"""

from __future__ import annotations

import numpy as np

# The first branch below the run's seed.
LEARNER, STREAM, EVALUATION, NOISE, FRESH, REPLAY, START, OPPONENT = range(8)


def seed_of(seed: int, *path: int) -> int:
    """A 31-bit seed at `path` below the run's seed; different paths give independent seeds."""
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint32)[0] >> 1)


def stream_seed(seed: int, stream: int, incarnation: int = 0) -> int:
    """What the environment of a stream is seeded with; a restarted stream is a new incarnation."""
    return seed_of(seed, STREAM, stream, incarnation)


def evaluation_seed(seed: int, episode: int) -> int:
    """The seed of an evaluation episode: never one that training uses."""
    return seed_of(seed, EVALUATION, episode)
