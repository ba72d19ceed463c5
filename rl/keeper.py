"""What a run keeps: its checkpoints, the best policy, and the segments of a replay that they share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rltrain import checkpoint
from rltrain.checkpoint import Checkpoint
from rltrain.config import RunConfig
from rltrain.envs.spec import EnvSpec, to_json
from rltrain.folder import versions
from rltrain.rollout.types import Weights
from rltrain.segments import Listed, Segments


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
