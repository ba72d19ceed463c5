"""Episodes of a recording, and a recording made of episodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.rollout.tree import leaves, unflatten
from rltrain.rollout.types import Episode, Trajectory
from rltrain.storage import recording
from rltrain.storage.recording import Recorder, Recording

PIECE_STEPS = 100_000  # steps after which a new piece begins


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded episode of L steps: L + 1 observations, L actions as the policy chose them."""

    obs: list[np.ndarray]  # [L+1, *O] each, the leaves in the order of `EnvSpec.leaves`
    action: np.ndarray  # [L, *A]
    reward: np.ndarray  # [L] float32
    terminated: bool  # by its last step
    truncated: bool  # by its last step; neither: the recording ends before the episode does
    mask: np.ndarray | None = None  # [L+1, n] bool
    extras: dict[str, np.ndarray] = field(default_factory=dict)  # [L, ...] each: log_prob, ...
    whole: bool = True  # obs[0] is the first one of its episode

    @property
    def steps(self) -> int:
        return len(self.reward)

    @property
    def ret(self) -> float:
        """The undiscounted return."""
        return float(self.reward.sum(dtype=np.float64))


def episodes_of(source: Recording) -> Iterator[Recorded]:
    """The episodes of a recording, in the order in which they end; those that do not end come last, by stream.

    Raises:
        ConfigError: several agents were recorded.
        CheckpointError: a file is missing, cut or changed.
    """
    if source.spec.groups:
        raise ConfigError(f"{source.folder}: several agents were recorded; rldata reads the data of one agent")
    parts: dict[int, list[Recorded]] = {}  # of the episode of each stream that has not ended
    following: dict[int, int] = {}  # the row of each stream at which its next piece must begin
    for piece in source.pieces():
        for column, stream in enumerate(piece.stream.tolist()):
            if parts.get(stream) and (piece.first[0, column] or following[stream] != int(piece.row[column])):
                yield from _joined(parts.pop(stream))  # its actor was lost
            for part, ended in _parts(piece, column, source.spec):
                parts.setdefault(stream, []).append(part)
                if ended:
                    yield from _joined(parts.pop(stream))
            following[stream] = int(piece.row[column]) + piece.rows
    for stream in sorted(parts):
        yield from _joined(parts[stream])


def common_extras(episodes: Iterable[Recorded]) -> tuple[list[str], list[str]]:
    """The extras that all episodes have in the same form, and a note for each other one."""
    common, seen = dict[str, Any](), dict[str, None]()
    for number, one in enumerate(episodes):
        forms = {name: (array.shape[1:], array.dtype) for name, array in one.extras.items()}
        common = {k: form for k, form in common.items() if forms.get(k) == form} if number else forms
        seen |= dict.fromkeys(forms)
    others = sorted(seen.keys() - common.keys())
    text = "is left out, because not all of the data has it in the same form"
    return list(common), [f"{name} {text}" for name in others]


def parts(piece: Trajectory, spec: EnvSpec) -> Iterator[Recorded]:
    """The episodes, and the parts of them, in a trajectory of one column."""
    for part, _ in _parts(piece, 0, spec):
        if part.steps:
            yield part


def _parts(piece: Trajectory, column: int, spec: EnvSpec) -> Iterator[tuple[Recorded, bool]]:
    """The part of each episode in one column of a piece; True if the next one begins behind it."""
    first = piece.first[:, column]
    begins = np.flatnonzero(first)
    bounds = [0, *(int(at) for at in begins if at), piece.rows + 1]
    for begin, end in pairwise(bounds):
        last = end - 1  # the row of the last observation; a reset row, or the end of the piece
        rows, ended = slice(begin, last), end <= piece.rows
        terminated, truncated = piece.terminated[rows, column], piece.truncated[rows, column]
        yield (
            Recorded(
                obs=[leaf[begin : last + 1, column] for leaf in leaves(piece.obs)],
                action=piece.action[rows, column],
                reward=piece.reward[rows, column],
                terminated=bool(terminated[-1:].any()),
                truncated=bool(truncated[-1:].any()),
                mask=None if piece.action_mask is None else piece.action_mask[begin : last + 1, column],
                extras={name: array[rows, column] for name, array in piece.extras.items()},
                whole=bool(first[begin]),
            ),
            ended,
        )


def _joined(parts: list[Recorded]) -> list[Recorded]:
    """The parts of an episode, each of which repeats the last observation before it, as one; none without a step."""
    head, last = parts[0], parts[-1]
    if not sum(part.steps for part in parts):
        return []
    ends = [part for part in parts if part.steps][-1]
    return [
        Recorded(
            obs=[np.concatenate([head.obs[i], *(part.obs[i][1:] for part in parts[1:])]) for i in range(len(head.obs))],
            action=np.concatenate([part.action for part in parts]),
            reward=np.concatenate([part.reward for part in parts]),
            terminated=ends.terminated,
            truncated=ends.truncated,
            mask=None
            if head.mask is None or last.mask is None
            else np.concatenate([head.mask, *(part.mask[1:] for part in parts[1:] if part.mask is not None)]),
            extras={name: np.concatenate([part.extras[name] for part in parts]) for name in common_extras(parts)[0]},
            whole=head.whole,
        )
    ]


class EpisodeWriter:
    """Writes episodes as a recording of one stream, in their order.

    Args:
        folder: a new or empty one.
        about:  plain data about their origin, for record.json.

    Attributes:
        steps: added so far.

    Raises:
        ConfigError: the folder holds something.
    """

    def __init__(self, folder: Path, spec: EnvSpec, about: Mapping[str, Any]) -> None:
        self._recorder, self._spec = Recorder(folder, {**about, "streams": 1}, spec), spec
        self._group: list[Recorded] = []  # of the next piece
        self._row = self._bytes = self._waiting = self._count = self.steps = 0

    def add(self, episode: Recorded) -> None:
        """Adds an episode; it is written when there is enough for a piece."""
        group = self._group
        if group and (not episode.whole or len(common_extras([group[0], episode])[1])):
            self._flush()
        group.append(episode)
        self._count += 1
        self.steps += episode.steps
        self._bytes += sum(array.nbytes for array in (*episode.obs, episode.action, *episode.extras.values()))
        ends = episode.terminated or episode.truncated
        self._waiting += episode.steps
        if not ends or self._waiting >= PIECE_STEPS or self._bytes >= recording.FILE_BYTES:
            self._flush()  # behind an episode that does not end a new section begins

    def close(self) -> int:
        """Writes everything to the disk; returns the number of episodes. ConfigError if there are none."""
        if not self._count:
            raise ConfigError("there are no episodes to write")
        self._flush()
        self._recorder.flush()
        return self._count

    def _flush(self) -> None:
        if self._group:
            piece = _piece(self._group, self._spec, self._row)
            self._recorder.add([piece])
            self._row += piece.rows + 1
            self._group.clear()
            self._bytes = self._waiting = 0


def write(folder: Path, spec: EnvSpec, episodes: Iterable[Recorded], about: Mapping[str, Any]) -> int:
    """Writes episodes as a recording; returns their number. See `EpisodeWriter`."""
    writer = EpisodeWriter(folder, spec, about)
    for episode in episodes:
        writer.add(episode)
    return writer.close()


def _piece(group: list[Recorded], spec: EnvSpec, row: int) -> Trajectory:
    """Episodes one after the other, with a reset row between two."""
    rows = sum(episode.steps + 1 for episode in group) - 1

    def steps(arrays: list[np.ndarray]) -> np.ndarray:
        """[T, 1, ...] with zeros in reset rows."""
        out = np.zeros((rows + 1, 1, *arrays[0].shape[1:]), arrays[0].dtype)
        at = 0
        for array in arrays:
            out[at : at + len(array), 0] = array
            at += len(array) + 1
        return out[:-1]

    first = np.zeros((rows + 1, 1), bool)
    terminated, truncated = np.zeros((rows, 1), bool), np.zeros((rows, 1), bool)
    at = 0
    for episode in group:
        first[at] = episode.whole
        last = at + episode.steps - 1
        terminated[last], truncated[last] = episode.terminated, episode.truncated
        at += episode.steps + 1
    obs = [np.concatenate([episode.obs[i] for episode in group])[:, None] for i in range(len(group[0].obs))]
    masks = [episode.mask for episode in group if episode.mask is not None]
    ended = [episode for episode in group if episode.terminated or episode.truncated]
    return Trajectory(
        obs=unflatten(spec.obs, obs),
        action=steps([episode.action for episode in group]),
        reward=steps([episode.reward for episode in group]),
        terminated=terminated,
        truncated=truncated,
        first=first,
        version=np.zeros(1, np.int64),
        stream=np.zeros(1, np.int64),
        row=np.array([row], np.int64),
        extras={name: steps([episode.extras[name] for episode in group]) for name in group[0].extras},
        action_mask=np.concatenate(masks)[:, None] if masks else None,
        episodes=tuple(Episode(episode.ret, episode.steps) for episode in ended if episode.whole),
    )
