"""Replay, slow and obvious: a world whose streams end, are cut and go on, and the list of all legal transitions."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf
from rltrain.rollout.tree import Tree, leaves, tree_map
from rltrain.rollout.types import Trajectory

DISCRETE, BOX = ActionSpec("discrete", (), (4,)), ActionSpec("box", (2,), low=(-1.0,) * 2, high=(1.0,) * 2)
PIXELS = Leaf("image", (3, 2, 2), "uint8")
SPECS = {
    "box": EnvSpec("box", Leaf("box", (3,), "float32"), BOX),
    "masked": EnvSpec("masked", Leaf("box", (3,), "float32"), DISCRETE, action_mask=True),
    "tree": EnvSpec(
        "tree",
        {"b": (Leaf("discrete", (), "int64", (9,)), Leaf("image", (3, 2, 2), "uint8", stack=3)), "a": PIXELS},
        DISCRETE,
        action_mask=True,
    ),
    "stack": EnvSpec("stack", Leaf("image", (4, 2, 2), "uint8", stack=4), DISCRETE),
    "zeros": EnvSpec("zeros", Leaf("image", (4, 2, 2), "uint8", stack=4, padding="zero"), DISCRETE),
}


class World:
    """Streams of nonsense, no two frames of it alike, under next-step autoreset."""

    def __init__(self, spec: EnvSpec, streams: int, seed: int, ends: float = 0.2) -> None:
        self.spec, self.rng, self.ends = spec, np.random.default_rng(seed), ends
        self.streams = [_Running() for _ in range(streams)]
        self.num_rows = 0

    def unroll(self, columns: list[int], rows: int) -> Trajectory:
        """The next rows of some streams, as an actor delivers them."""
        parts = [self._column(self.streams[stream], rows) for stream in columns]

        def beside(name: str) -> np.ndarray:
            return np.stack([part[name] for part in parts], 1)

        return Trajectory(
            obs=tree_map(lambda *arrays: np.stack(arrays, 1), *(part["obs"] for part in parts)),
            action=beside("action"),
            reward=beside("reward"),
            terminated=beside("terminated"),
            truncated=beside("truncated"),
            first=beside("first"),
            version=np.zeros(len(columns), np.int64),
            stream=np.array(columns, np.int64),
            row=np.array([part["row"] for part in parts], np.int64),
            action_mask=beside("mask") if self.spec.action_mask else None,
        )

    def kill(self, stream: int) -> None:
        """Its actor dies: it begins anew, and what it did since its last delivery is lost."""
        self.streams[stream].over, self.streams[stream].now = True, None

    def lose(self, stream: int, rows: int) -> None:
        """An unroll of it is lost on its way."""
        self._column(self.streams[stream], rows)

    def _column(self, running: _Running, rows: int) -> dict[str, Any]:
        rng, spec = self.rng, self.spec
        first, obs, mask = np.zeros(rows + 1, bool), [], []
        reward = rng.normal(size=rows).astype(np.float32)
        terminated, truncated = np.zeros(rows, bool), np.zeros(rows, bool)
        if running.now is None:
            running.now, running.first, running.over = self._obs(running, True), True, False
            running.mask = self._mask()
        first[0] = running.first
        obs.append(running.now)
        mask.append(running.mask)
        for t in range(rows):
            if running.over:
                reward[t], first[t + 1] = 0.0, True
            else:
                end = rng.integers(1, 4) if rng.random() < self.ends else 0
                terminated[t], truncated[t] = end in (1, 3), end in (2, 3)
            running.now, running.first = self._obs(running, bool(first[t + 1])), bool(first[t + 1])
            running.mask = self._mask()
            running.over = bool(terminated[t] | truncated[t])
            obs.append(running.now)
            mask.append(running.mask)
        size = (rows, *spec.action.shape)
        action = rng.integers(0, 4, size) if spec.action.kind == "discrete" else rng.uniform(-1, 1, size)
        begin, running.row = running.row, running.row + rows
        return {
            "obs": tree_map(lambda *arrays: np.stack(arrays), *obs),
            "action": action.astype(spec.action.dtype),
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "first": first,
            "row": begin,
            "mask": np.stack(mask),
        }

    def _mask(self) -> np.ndarray:
        return self.rng.random(max(self.spec.action.mask_size, 1)) < 0.5

    def _obs(self, running: _Running, begins: bool) -> Tree:
        self.num_rows += 1
        whole = np.frombuffer(np.int64(self.num_rows).tobytes(), np.uint8)

        def one(leaf: Leaf, frames: deque[np.ndarray]) -> np.ndarray:
            if not leaf.stack:
                return np.resize(whole if leaf.dtype == "uint8" else self.num_rows, leaf.shape).astype(leaf.dtype)
            frame = np.resize(whole, leaf.shape[1:])
            if begins:
                frames.extend([frame if leaf.padding == "reset" else np.zeros_like(frame)] * (leaf.stack - 1))
            frames.append(frame)
            while len(frames) > leaf.stack:
                frames.popleft()
            return np.stack(frames)

        if running.frames is None:
            running.frames = tree_map(lambda leaf: deque(), self.spec.obs)
        return tree_map(one, self.spec.obs, running.frames)


@dataclass
class _Running:
    """Where a stream stands."""

    now: Any = None
    mask: Any = None
    first: bool = True
    over: bool = False
    row: int = 0
    frames: Any = None


@dataclass
class _Episode:
    """What was seen and done from a first row on; base is that row's number."""

    base: int
    obs: list[Tree]
    masks: list[np.ndarray | None]
    began: bool  # with a reset, not in the midst
    steps: list[tuple[np.ndarray, float]] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False
    cut: bool = False

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated or self.cut

    @property
    def newest(self) -> int:
        return self.base + len(self.steps)


class Expected:
    """Every episode of every stream; nothing is ever overwritten."""

    def __init__(self, spec: EnvSpec, streams: int) -> None:
        self.older = max((leaf.stack - 1 for leaf in spec.leaves() if leaf.stack), default=0)
        self.episodes: list[list[_Episode]] = [[] for _ in range(streams)]
        self.next = [0] * streams

    def append(self, unroll: Trajectory) -> None:
        for column, stream in enumerate(unroll.stream.tolist()):
            self._column(unroll, column, stream)

    def _column(self, unroll: Trajectory, column: int, stream: int) -> None:
        def seen(t: int) -> tuple[Tree, np.ndarray | None]:
            mask = None if unroll.action_mask is None else np.copy(unroll.action_mask[t, column])
            return tree_map(lambda leaf: np.copy(leaf[t, column]), unroll.obs), mask

        def begin(t: int, base: int, first: bool) -> None:
            obs, mask = seen(t)
            episodes.append(_Episode(base, [obs], [mask], first))

        episodes, first = self.episodes[stream], bool(unroll.first[0, column])
        base = 0 if not episodes else episodes[-1].newest + 1
        if episodes and not episodes[-1].steps and episodes[-1].began:
            if first or unroll.row[column] != self.next[stream]:
                base = episodes.pop().base  # nothing was done in it: its place is taken
                begin(0, base if first else base + self.older, first)
        elif not episodes or first or unroll.row[column] != self.next[stream]:
            if episodes:
                episodes[-1].cut = not episodes[-1].over
            begin(0, base if first else base + self.older, first)
        for t in range(len(unroll.reward)):
            episode = episodes[-1]
            if episode.over or unroll.first[t + 1, column]:
                begin(t + 1, episode.newest + 1, True)
                continue
            obs, mask = seen(t + 1)
            episode.obs.append(obs)
            episode.masks.append(mask)
            episode.steps.append((unroll.action[t, column], float(unroll.reward[t, column])))
            episode.terminated = bool(unroll.terminated[t, column])
            episode.truncated = bool(unroll.truncated[t, column])
        self.next[stream] = int(unroll.row[column]) + len(unroll.reward)

    def rows(self, keep: int, n_step: int) -> dict[tuple[int, int], tuple[_Episode, int]]:
        """(stream, row) -> (episode, t) of all rows that may be sampled where each stream keeps so many."""
        found = {}
        for stream, episodes in enumerate(self.episodes):
            for episode in episodes:
                for t in range(len(episode.steps)):
                    complete = episode.over or t + n_step <= len(episode.steps)
                    if complete and episode.base + t >= episodes[-1].newest - keep:
                        found[stream, episode.base + t] = episode, t
        return found

    @staticmethod
    def transition(episode: _Episode, t: int, n_step: int, gamma: float) -> dict[str, Any]:
        """The n-step transition that begins at step t of an episode."""
        reward, discount, end = 0.0, 1.0, t
        while end < len(episode.steps) and end < t + n_step:
            reward += discount * episode.steps[end][1]
            discount *= gamma
            end += 1
        if episode.terminated and end == len(episode.steps):
            discount = 0.0
        return {
            "obs": episode.obs[t],
            "action": episode.steps[t][0],
            "reward": reward,
            "discount": discount,
            "next_obs": episode.obs[end],
            "action_mask": episode.masks[t],
            "next_action_mask": episode.masks[end],
        }


def name_of(obs: Tree) -> int:
    """What tells one frame of a world from all others."""
    leaf = leaves(obs)[0]
    if leaf.dtype != np.uint8:
        return int(leaf.flat[0])
    return int.from_bytes(leaf[-1].tobytes()[:4], "little") if leaf.ndim == 3 else int(leaf.flat[0])
