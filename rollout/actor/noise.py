"""Action noise of a stream, from a counter-based generator, so that it does not depend on which actor draws it.

The key of NumPy's Philox is the run's seed and the stream; its counter is the stream's row and generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rltrain.envs.seeding import NOISE, START, seed_of
from rltrain.envs.spec import ActionSpec

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
        streams: one column of noise each.
        kind:    a key of DRAWS.
        width:   random numbers per row.
        number:  add a last column that holds the number of the stream.
        hold:    rows that share one draw: those whose row counters are equal, divided by this number and rounded down.
        branch:  of the tree of seeds: see `rltrain.envs.seeding`.
    """

    def __init__(
        self,
        seed: int,
        streams: Sequence[int],
        kind: str,
        width: int,
        number: bool = False,
        hold: int = 1,
        branch: int = NOISE,
    ) -> None:
        self._key = seed_of(seed, branch)
        self._streams = tuple(streams)
        self._draw = DRAWS[kind]
        self._width, self._number, self._hold = width, number, hold
        self._generators = [np.random.Generator(np.random.Philox(key=[self._key, s])) for s in streams]

    def fill(self, out: np.ndarray, rows: np.ndarray, generations: Sequence[int]) -> None:
        """Write the noise of an unroll that begins at each stream's `rows[b]` into out [T, >=B, >=K]."""
        size, hold = (out.shape[0], self._width), self._hold
        for b, stream in enumerate(self._streams):
            if hold == 1:
                out[:, b, : self._width] = self._drawn(b, int(rows[b]), generations[b], size)
            else:
                row, end = int(rows[b]), int(rows[b]) + len(out)
                for begin in range(row - row % hold, end, hold):
                    drawn = self._drawn(b, begin, generations[b], (1, self._width))
                    out[max(begin - row, 0) : begin - row + hold, b, : self._width] = drawn
            if self._number:
                out[:, b, self._width] = stream

    def _drawn(self, b: int, row: int, generation: int, size: tuple[int, int]) -> np.ndarray:
        """The noise of stream number b of this object, from its row `row` on."""
        generator = self._generators[b]
        generator.bit_generator.state = {
            "bit_generator": "Philox",
            "state": {
                "counter": np.array([0, row, generation, 0], np.uint64),
                "key": np.array([self._key, self._streams[b]], np.uint64),
            },
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._draw(generator, size)


class RandomStart:
    """Uniform random legal actions for the first `rows` rows of every stream.

    Actions are as a policy makes them: integers from 0, or a Box in [-1, 1]. They are independent of the noise.

    Args:
        seed:    the run's seed.
        streams: one column of actions each.
        rows:    of each stream, reset rows included.
    """

    def __init__(self, seed: int, streams: Sequence[int], spec: ActionSpec, rows: int) -> None:
        self._spec, self._rows = spec, rows
        self._heads = len(spec.nvec) or int(np.prod(spec.shape, dtype=int))
        self._uniform = StreamNoise(seed, streams, "uniform", self._heads, branch=START)
        self._drawn = np.zeros((0, len(streams), self._heads), np.float32)
        self._random = np.zeros((0, len(streams)), bool)

    def begin(self, unroll: int, rows: np.ndarray, generations: Sequence[int]) -> bool:
        """Begin an unroll at each stream's `rows[b]`. Returns True if any of its rows is random."""
        if int(rows.min()) >= self._rows:
            return False
        self._drawn = np.zeros((unroll, len(rows), self._heads), np.float32)
        self._uniform.fill(self._drawn, rows, generations)
        self._random = rows + np.arange(unroll)[:, None] < self._rows
        return True

    def log_prob(self, t: int, log_prob: np.ndarray, mask: np.ndarray | None) -> None:
        """Write the log probabilities of the random actions of row t into log_prob; mask as for `replace`.

        log_prob is [>=B], or with several agents of one number each [>=B, N].
        """
        where, spec = np.flatnonzero(self._random[t]), self._spec
        if spec.kind == "box":
            each = np.full((len(where), self._heads), 2.0)
        elif mask is None:
            each = np.tile(np.array(spec.nvec), (len(where), 1))
        else:
            heads = np.cumsum((0, *spec.nvec))[:-1]
            each = np.add.reduceat(mask[where].astype(np.int64), heads, 1)
        log_prob[where] = -np.log(each) if log_prob.ndim > 1 else -np.log(each).sum(1)

    def replace(self, t: int, action: np.ndarray, mask: np.ndarray | None) -> None:
        """Write the random actions of row t into action [>=B, *A]; mask [>=B, n] is True for legal actions."""
        where = np.flatnonzero(self._random[t])
        if not len(where):
            return
        uniform = self._drawn[t, where]  # [b, heads], in [0, 1)
        if self._spec.kind == "box":
            drawn = 2 * uniform - 1
        elif mask is None:
            drawn = (uniform * self._spec.nvec).astype(np.int64)
        else:
            columns, begin = [], 0
            for head, size in enumerate(self._spec.nvec):
                legal = mask[where, begin : begin + size]
                order = (uniform[:, head] * legal.sum(1)).astype(np.int64)  # index among the legal actions
                columns.append((legal.cumsum(1) > order[:, None]).argmax(1))
                begin += size
            drawn = np.stack(columns, 1)
        action[where] = drawn.reshape(len(where), *self._spec.shape)
