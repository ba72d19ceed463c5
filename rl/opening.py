"""A run from its beginning to its end: closed whatever happens, and its failures told as one exception."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rltrain.config import RunConfig
from rltrain.errors import Interrupted, LearnerLost, RunFailed, Stop
from rltrain.evaluations import EvaluationFailed
from rltrain.rollout.replay.ring import NoStack
from rltrain.rollout.scheduler import Failed
from rltrain.rollout.workers.handle import ActorLost, ClusterLost
from rltrain.run import Run
from rltrain.signals import Signals


@contextlib.contextmanager
def open_run(config: RunConfig, resume: str | Path | None = None) -> Iterator[Run]:
    """A run that is closed whatever happens; failures and signals leave a checkpoint behind."""
    with Signals() as signals:
        try:
            run = Run(config, None if resume is None else Path(resume), signals)
        except (Failed, ActorLost, ClusterLost, LearnerLost) as failed:
            what = "started" if resume is None else "resumed; its checkpoints are as they were"
            raise RunFailed(f"it could not be {what}: {failed}") from None
        except Stop as stop:
            raise Interrupted(stop.signum, "interrupted while it started") from None
        try:
            yield run
        except (Failed, ActorLost, ClusterLost, LearnerLost, NoStack) as failed:
            raise run.fail(failed, blind=True) from None
        except EvaluationFailed as failed:
            raise run.fail(failed, blind=False) from None
        except InterruptedError:
            path = run.checkpoint(blind=True)
            raise run.interrupted(f"; checkpoint {path} (exact: false)") from None
        finally:
            run.close()
