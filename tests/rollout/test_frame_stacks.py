"""Stacks of frames travel as single frames, and are the same afterwards, to the bit."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf, Padding
from rltrain.rollout.frame_stacks import CompressedFrames, compressed, decompressed, has_stacks
from rltrain.rollout.types import Trajectory

ROWS, STREAMS, SIDE = 12, 3, 5


def unroll(depth: int, padding: Padding, seed: int = 0) -> tuple[EnvSpec, Trajectory]:
    """Stacks made frame by frame, as an environment makes them, beside a vector; the first row is amid an episode, at
    its beginning, and one after it."""
    rng = np.random.default_rng(seed)
    first = rng.random((ROWS + 1, STREAMS)) < 0.2
    first[:2] = [[False, True, False], [False, False, False]]
    stacks = np.zeros((ROWS + 1, STREAMS, depth, SIDE, SIDE), np.uint8)
    for column in range(STREAMS):
        memory = [rng.integers(256, size=(SIDE, SIDE), dtype=np.uint8) for _ in range(depth)]
        if column == 2:  # its episode began a row before this unroll
            memory = [memory[-1] if padding == "reset" else np.zeros_like(memory[0])] * (depth - 1) + [memory[-1]]
        for t in range(ROWS + 1):
            frame = rng.integers(256, size=(SIDE, SIDE), dtype=np.uint8)
            if first[t, column]:
                memory = [frame if padding == "reset" else np.zeros_like(frame)] * depth
            memory = [*memory[1:], frame]
            stacks[t, column] = memory
    image = Leaf("image", (depth, SIDE, SIDE), "uint8", stack=depth, padding=padding)
    spec = EnvSpec("film", {"a": Leaf("box", (2,), "float32"), "b": image}, ActionSpec("discrete", (), (2,)))
    zeros: dict[str, Any] = {"reward": np.zeros((ROWS, STREAMS), np.float32)}
    zeros |= {name: np.zeros((ROWS, STREAMS), bool) for name in ("terminated", "truncated")}
    zeros |= {name: np.zeros(STREAMS, np.int64) for name in ("version", "stream", "row")}
    obs = {"a": rng.standard_normal((ROWS + 1, STREAMS, 2)).astype(np.float32), "b": stacks}
    return spec, Trajectory(obs=obs, action=np.zeros((ROWS, STREAMS), np.int64), first=first, **zeros)


@pytest.mark.parametrize("padding", ["reset", "zero"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_what_is_shown_is_what_was_filmed(depth: int, padding: Padding) -> None:
    for seed in range(5):
        spec, before = unroll(depth, padding, seed)

        film = pickle.loads(pickle.dumps(compressed(before, spec)))

        assert isinstance(film.obs["b"], CompressedFrames)
        after = decompressed(film)
        assert (after.obs["b"] == before.obs["b"]).all()
        assert after.obs["b"].flags.c_contiguous
        assert (after.obs["a"] == before.obs["a"]).all()


def test_each_frame_is_there_once() -> None:
    spec, before = unroll(4, "reset")

    film = compressed(before, spec).obs["b"]

    assert film.nbytes == (ROWS + 1 + 3) * STREAMS * SIDE * SIDE
    assert has_stacks(spec)


def test_what_is_no_stack_in_spite_of_its_name_travels_as_it_is() -> None:
    spec, before = unroll(4, "reset")
    broken = before.obs["b"].copy()
    broken[5, 1, 0, 0, 0] ^= 1
    odd = replace(before, obs={**before.obs, "b": broken})

    found = compressed(odd, spec)

    assert found.obs["b"] is broken
    assert (decompressed(found).obs["b"] == broken).all()
