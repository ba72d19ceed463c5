"""Action noise that belongs to a stream: counter-based, so that it does not matter which actor draws it.

Numpy's Philox is keyed by the run's seed and the stream; its counter stands at the stream's row and incarnation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from envs.seeding import NOISE, seed_of

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

DRAWS: dict[str, Draw] = {
    "gumbel": lambda generator, size: generator.gumbel(size=size),
    "logistic": lambda generator, size: generator.logistic(size=size),
    "normal": lambda generator, size: generator.standard_normal(size, dtype=np.float32),
    "uniform": lambda generator, size: generator.random(size, dtype=np.float32),
}


class StreamNoise:
    """Draws the noise of whole unrolls.

    Args:
        seed:    the run's seed.
        streams: whose noise.
        kind:    one of DRAWS.
        width:   K, numbers per row.
    """

    def __init__(self, seed: int, streams: Sequence[int], kind: str, width: int) -> None:
        self._key = seed_of(seed, NOISE)
        self._streams = tuple(streams)
        self._draw = DRAWS[kind]
        self._width = width
        self._generators = [np.random.Generator(np.random.Philox(key=[self._key, s])) for s in streams]

    def fill(self, out: np.ndarray, rows: np.ndarray, incarnations: Sequence[int]) -> None:
        """Write the noise of the unroll that begins at each stream's `rows[b]` into out [T, >=B, K]."""
        size = (out.shape[0], self._width)
        for b, (generator, stream) in enumerate(zip(self._generators, self._streams, strict=True)):
            generator.bit_generator.state = {
                "bit_generator": "Philox",
                "state": {
                    "counter": np.array([0, int(rows[b]), incarnations[b], 0], np.uint64),
                    "key": np.array([self._key, stream], np.uint64),
                },
                "buffer": np.zeros(4, np.uint64),
                "buffer_pos": 4,
                "has_uint32": 0,
                "uinteger": 0,
            }
            out[:, b] = self._draw(generator, size)
