"""Creates the learner of a run with its feed, and restores it or fills its replay from a recording."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltrain.algorithms.protocol import Algorithm, modules_of
from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import EnvSpec
from rltrain.learner.algorithm import require_finite, require_finite_optimizers, torch_device
from rltrain.learner.learner import Learner
from rltrain.setup.initial_networks import initialise
from rltrain.setup.offline import fill
from rltrain.setup.replay import DataSource, make_feed
from rltrain.setup.run_folder import CHECKPOINTS, REPLAY, Saved
from rltrain.storage.checkpoint import Checkpoint
from rltrain.storage.segments import segment_readers
from rltrain.system.torchrun import current_rank

if TYPE_CHECKING:
    from rltrain.learner.data_parallel import LearnerGroup


def open_learner(
    config: RunConfig,
    spec: EnvSpec,
    algorithm: Algorithm,
    data: DataSource,
    folder: Path,
    saved: Saved,
    initial: Checkpoint | None,
    closing: ExitStack,
) -> tuple[Learner, list[str]]:
    """The learner, restored from the checkpoint if there is one.

    Args:
        folder:  the run's; a replay on disk lies in it.
        initial: the checkpoint with whose networks a new run begins.

    Raises:
        CheckpointError: the checkpoint does not fit, or the recording is damaged.
        ConfigError: `initial` does not fit, the recording holds nothing to learn from, or the algorithm cannot share
            its updates.
    """
    files = folder / REPLAY
    closing.callback(shutil.rmtree, files, ignore_errors=True)
    learners: LearnerGroup | None = None
    if config.learners > 1:
        from rltrain.learner.data_parallel import open_learners

        learners = open_learners(config, spec, algorithm, current_rank())
    device, feed = torch_device(config.device), make_feed(config, data, files)
    learner = Learner(algorithm, device, feed, learners)
    closing.callback(learner.close)

    def load(state: dict[str, Any]) -> None:
        learner.load(state["learner"])
        feed.load(state.get("feed", {}), segment_readers(folder / CHECKPOINTS, saved.segments))

    if saved.restore(load):
        assert saved.checkpoint is not None
        require_finite(saved.checkpoint.path, modules_of(algorithm))
        require_finite_optimizers(saved.checkpoint.path, algorithm)
        return learner, []
    notes = [] if initial is None else initialise(learner, initial, config)
    if data.sets:
        notes += fill(learner, [one.recording for one in data.sets], device)
    return learner, notes
