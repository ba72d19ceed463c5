"""What a run keeps: its checkpoints, the best policy, and the segments of a replay that they share.

What a resumed run goes on from: the checkpoint, and whether environment and settings still fit it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import EnvSpec, from_json, to_json
from rltrain.errors import CheckpointError
from rltrain.rollout.types import Weights
from rltrain.storage import checkpoint
from rltrain.storage.checkpoint import Checkpoint
from rltrain.storage.run_folder import versions
from rltrain.storage.segments import Listed, Segments

if TYPE_CHECKING:
    from rltrain.config.run_config import RunConfig


class Keeper:
    """Writes the checkpoints of a run into a folder.

    Args:
        folder: where they lie.
        way:    how streams are brought back on resume; "none" means that a resumed run is not exact.
        saved:  the checkpoint that the run goes on from.
    """

    def __init__(self, folder: Path, config: RunConfig, spec: EnvSpec, way: str, saved: Checkpoint | None) -> None:
        self.folder, self._config, self._spec, self._way = folder, config, spec, way
        listed: Listed = {} if saved is None else saved.meta.get("segments", {})
        self._segments = Segments(folder, listed)

    def save(self, step: int, version: int, state: Any, segments: Mapping[str, Any], blind: bool) -> Path:
        """A whole checkpoint, named by `latest` from now on; older ones and segments nobody needs are removed.

        Args:
            segments: of the replay, by name; functions that make their arrays.
            blind:    the actors were not asked, so that a run that goes on from here is not exact.

        Raises:
            RunFailed: the disk is full, or the like. What was there before is as it was.
        """
        exact = self._way != "none" and not blind
        meta = {**self._meta(step, version, exact), "kind": "run", "segments": self._segments.write(segments)}
        path = checkpoint.save(self.folder, f"step-{step:012d}", state, meta)
        checkpoint.point(self.folder, "latest", path.name)
        checkpoint.prune(self.folder, self._config.keep)
        self._segments.collect()
        return path

    def save_best(self, weights: Weights, value: float | None) -> None:
        """The policy alone, as it was evaluated."""
        meta = {**self._meta(weights.step, weights.version, self._way != "none"), "kind": "policy"}
        state = {"learner": {"parts": {"policy": weights.arrays}}}
        path = checkpoint.save(self.folder, f"best-{weights.step:012d}", state, {**meta, "eval_return": value})
        checkpoint.point(self.folder, "best", path.name)
        checkpoint.prune(self.folder, self._config.keep)

    def _meta(self, step: int, version: int, exact: bool) -> dict[str, Any]:
        return {
            "step": step,
            "version": version,
            "exact": exact,
            "way": self._way,
            "config": self._config.to_json(),
            "spec": to_json(self._spec),
            "versions": versions(),
        }


NAMES = ("id", "stack", "padding")  # parts of a spec that say nothing of what the policy sees


def newest(checkpoints: Path, notes: list[str]) -> Checkpoint | None:
    """The checkpoint that `latest` names. Where there is no `latest`: the newest that loads, and a note of that.

    Raises:
        CheckpointError: what is there cannot be loaded. None is returned only if nothing was ever written.
    """
    if (checkpoints / "latest").exists():
        return checkpoint.load(checkpoint.find(checkpoints))
    there = sorted((path for path in checkpoints.glob("step-*") if path.is_dir()), key=_age, reverse=True)
    damaged: list[str] = []
    for path in there:
        try:
            found = checkpoint.load(path)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        notes.append(f"{checkpoints / 'latest'} is missing: going on from {path.name}, the newest that can be loaded")
        notes += [f"{text}; it will be removed when the next checkpoint is written" for text in damaged]
        checkpoint.point(checkpoints, "latest", path.name)
        return found
    if there:
        raise CheckpointError(f"{checkpoints / 'latest'} is missing, and no other can be loaded: {damaged[0]}")
    return None


def _age(path: Path) -> tuple[str, int]:
    """step-000000000128 before step-000000000128.2."""
    step, _, number = path.name.partition(".")
    return step, int(number) if number.isdecimal() else 1


def same_environment(saved: Checkpoint, spec: EnvSpec) -> None:
    """CheckpointError if what the policy sees and does has changed since; the environment's name may have."""
    with fits(saved.path):
        then = from_json(saved.meta["spec"])
    changed = differences(then, spec, but=NAMES)
    if changed:
        raise CheckpointError(f"{saved.path} was trained on another {then.id} than {spec.id} is now: {changed}")


def differences(then: EnvSpec, now: EnvSpec, but: Collection[str]) -> str:
    """How two specs differ, for a person; "" where they do not, the keys `but` apart."""
    old, new = _flat(to_json(then)), _flat(to_json(now))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key) and key.rpartition(".")[2] not in but]
    return "; ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed[:3])


def _flat(node: Any, name: str = "") -> dict[str, Any]:
    """A spec's JSON by path: {"obs.shape": (4,), ...}."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return {name: node}
    found: dict[str, Any] = {}
    for key, child in node.items():
        found |= _flat(child, name if key in ("leaf", "dict", "tuple") else f"{name}.{key}".lstrip("."))
    return found


@contextlib.contextmanager
def fits(path: Path) -> Iterator[None]:
    """What a checkpoint lacks, or has in another shape, is a CheckpointError."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{path} does not fit this run: it has no {error}") from None
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit this run: {text[:300]}") from None
