"""Several learners that share each update.

The first one is the run: it has the actors and the feed, publishes, logs and writes checkpoints. The others hold a copy
of the algorithm and nothing else. For each update every learner gets its part of the batch, and the gradients are
averaged; running statistics are taken by the first, of the whole delivery, and sent along. So all of them hold the same
weights after each update, and a checkpoint does not tell how many there were.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rltrain import algorithms
from rltrain.algorithms.protocol import Algorithm, Update, modules_of, shares_updates
from rltrain.algorithms.registry import policy_factory, register_policy
from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError, LearnerLost
from rltrain.learner.algorithm import make_algorithm, torch_device
from rltrain.learner.batches import tensors
from rltrain.learner.process_group import Shared, as_arrays, dissolve, form, parts_of
from rltrain.rollout.specs import DataPlan, GradientPlan, ReplayPlan
from rltrain.rollout.trajectories import map_arrays
from rltrain.rollout.types import Trajectory
from rltrain.rollout.workers.handle import ActorLost
from rltrain.rollout.workers.process import ProcessHandle
from rltrain.storage.checkpoint import to_tensors
from rltrain.system.torchrun import Rank

FOREVER = timedelta(days=365)  # that a learner waits for the first one, which may wait for its actors
ENDING_SECONDS = 2.0  # that a learner's process may take to tell how it ended


class LearnerGroup(Shared):
    """All learners of a run, seen from the first.

    Args:
        place: of this process among those that torchrun started; None: the others are started here.
    """

    def __init__(self, config: RunConfig, spec: EnvSpec, place: Rank | None) -> None:
        super().__init__(0, config.learners)
        self._config, self._spec = config, spec
        self._handles: list[ProcessHandle] = []
        self._algorithm: Any = None
        self._buffers: list[Tensor] | None = None  # what the others do not know yet
        self._formed = False  # there is a group of torch.distributed
        self._well = False  # and all of it listens
        self._meeting: tempfile.TemporaryDirectory[str] | None = None
        if place is None:
            self._meeting = tempfile.TemporaryDirectory(prefix="rltrain-")  # where nobody else may look
            for rank in range(1, self.size):
                handle = ProcessHandle(
                    rank, functools.partial(LearnerRank, Rank(rank, self.size, rank), self._meeting.name)
                )
                self._handles.append(handle)
                handle.call("ready")

    def join(self, algorithm: Any) -> None:
        """Wait for all of them, and let them have this one's state; afterwards they go with each update.

        Raises:
            LearnerLost: one did not start.
        """
        config = self._config
        for handle in self._handles:
            try:
                if not handle.waitable.poll(config.actor_timeout):
                    raise ActorLost(handle.worker, f"no answer in {config.actor_timeout:g} s (--actor-timeout)")
                handle.result()
            except ActorLost as lost:
                raise LearnerLost(f"learner {handle.worker} of {self.size} did not start: {_last(lost)}") from None
            handle.call("serve")
        self._formed = True
        folder = None if self._meeting is None else self._meeting.name
        form(0, self.size, folder, timedelta(seconds=config.actor_timeout))
        self._well = True
        import cloudpickle

        maker = algorithms.algorithm_class(config.algo), type(config.settings), algorithms.for_several(config.algo)
        policy = getattr(config.settings, "policy", "actor_critic")
        outline = config.model_copy(update={"env": "", "env_args": {}, "cluster": None})
        state = {name: as_arrays(part.state_dict()) for name, part in algorithm.parts().items()}
        job = cloudpickle.dumps((outline, self._spec, maker, policy, policy_factory(policy), state))
        for rank in range(1, self.size):
            self._tell(job, rank)
        self._algorithm = algorithm
        algorithm.group = self

    def update(self, batch: Any, progress: float) -> Update:
        """One update of all learners, each with its part of the batch."""
        parts = parts_of(batch, self.size)
        valid = batch.valid if isinstance(batch, Trajectory) else None
        known = None if valid is None else valid.cpu().numpy()
        buffers = None if self._buffers is None else [buffer.cpu().numpy() for buffer in self._buffers]
        before = self.seconds
        try:
            for rank, (split, part) in enumerate(parts[1:], 1):
                self._send(("update", progress, split, known, map_arrays(_array, part), buffers), rank)
            self._buffers = None
            split, part = parts[0]
            self.take(split, valid)
            update: Update = self._algorithm.update(part, progress)
            priority = update.priority
            if priority is not None:
                rest = [torch.from_numpy(self._receive(rank)).to(priority) for rank in range(1, self.size)]
                priority = torch.cat([priority, *rest])
        except LearnerLost as lost:
            raise self._told(lost) from None
        except BaseException:  # the others wait within the update, and would not hear that it is over
            self._well = False
            dissolve()
            raise
        return Update({**update.metrics, "exchange_seconds": self.seconds - before}, priority)

    def observed(self) -> None:
        """Running statistics have changed here: the others hear of it with the next update."""
        self._buffers = _buffers(self._algorithm)

    def close(self) -> None:
        """Let the others go."""
        if self._well:
            for rank in range(1, self.size):
                with contextlib.suppress(LearnerLost):
                    self._send(("end",), rank)
        if self._formed:
            dissolve()
        for handle in self._handles:
            handle.stop()
        for handle in self._handles:
            handle.close()
        if self._meeting is not None:
            self._meeting.cleanup()

    def _tell(self, message: Any, rank: int) -> None:
        try:
            self._send(message, rank)
        except LearnerLost as lost:
            raise self._told(lost) from None

    def _told(self, lost: LearnerLost) -> LearnerLost:
        """The same, with what the processes have to say: whoever failed, not who only missed the others."""
        self._well = False
        dissolve()  # those that wait for this one hear of it
        silent, until = {handle.waitable: handle for handle in self._handles}, time.monotonic() + ENDING_SECONDS
        while silent and (ready := wait(list(silent), max(0.0, until - time.monotonic()))):
            for pipe in ready:
                handle = silent.pop(pipe)
                try:
                    handle.result()
                except ActorLost as ended:
                    if LearnerLost.__name__ not in ended.detail:
                        return LearnerLost(f"learner {handle.worker} of {self.size} was lost: {_last(ended)}")
        hung = ", ".join(str(handle.worker) for handle in silent.values()) or ("1" if self.size == 2 else "")
        why = str(lost)
        if "imed out" in why:
            why = f"no answer in {self._config.actor_timeout:g} s (--actor-timeout)"
        elif "by peer" in why:
            why = "its process is gone"
        return LearnerLost(f"{f'learner {hung}' if hung else 'a learner'} of {self.size} was lost: {why}")


class LearnerRank(Shared):
    """A learner that is not the first: it does what it is told, until it is told to end.

    Args:
        folder: where all of them meet; None: where torchrun says.
    """

    def __init__(self, place: Rank, folder: str | None) -> None:
        super().__init__(place.rank, place.size)
        self._place, self._folder = place, folder

    def ready(self) -> None:
        """All is imported."""

    def serve(self) -> None:
        """Take part in every update.

        Raises:
            LearnerLost: the first one is gone.
        """
        try:
            form(self.rank, self.size, self._folder, FOREVER)
            self._serve()
        finally:
            dissolve()

    def _serve(self) -> None:
        import cloudpickle

        config, spec, maker, policy, factory, state = cloudpickle.loads(self._receive(0))
        if config.device == "cuda":
            config = config.model_copy(update={"device": f"cuda:{self._place.local % torch.cuda.device_count()}"})
        torch.set_num_threads(config.learner_threads)
        algorithms.register(config.algo, *maker)  # it may be a user's, under a name of ours
        register_policy(policy, factory)
        algorithm, device = make_algorithm(config, spec), torch_device(config.device)
        algorithm.group = self
        for name, part in algorithm.parts().items():
            part.load_state_dict(to_tensors(state[name]))
        while True:
            what, *words = self._receive(0)
            if what == "end":
                break
            progress, split, valid, part, buffers = words
            if buffers is not None:
                for mine, theirs in zip(_buffers(algorithm), buffers, strict=True):
                    mine.copy_(torch.from_numpy(theirs))
            self.take(split, None if valid is None else torch.from_numpy(valid).to(device))
            update = algorithm.update(tensors(part, device), progress)
            if update.priority is not None:
                self._send(update.priority.detach().cpu().numpy(), 0)

    def close(self) -> None:
        """Nothing is left when `serve` has ended."""


def open_learners(config: RunConfig, spec: EnvSpec, algorithm: Any, place: Rank | None) -> LearnerGroup:
    """The learners of a run, started but not joined yet.

    Raises:
        ConfigError: the algorithm does not share its updates, or there is nothing to share.
    """
    plan: DataPlan = algorithm.plan
    if isinstance(plan, GradientPlan):
        raise ConfigError(f"--learners {config.learners}: the actors of {config.algo} make its gradients; ask for 1")
    if not shares_updates(algorithm):
        raise ConfigError(
            f"--learners {config.learners}: {config.algo} does not share its updates"
            + (" between learners where there are several agents" if spec.groups else "")
            + "; ask for 1"
        )
    least, what = (plan.batch, "--batch") if isinstance(plan, ReplayPlan) else (config.streams, "--streams")
    if least < config.learners:
        raise ConfigError(f"--learners {config.learners}: a batch has {least} to share ({what}); ask for fewer")
    if config.device != "cpu" and (config.device != "cuda" or (place is None and cuda_devices() < config.learners)):
        raise ConfigError(
            f"--learners {config.learners}: with --device {config.device} there is none for each; it may be cpu, "
            f"or cuda where each learner has one of its own ({cuda_devices()} here)"
        )
    if place is not None and (place.rank > 0 or place.size != config.learners):
        raise ConfigError(
            f"--learners {config.learners}: torchrun started {place.size}, and this is number {place.rank}; "
            "let it start our command: torchrun ... -m rltrain.train --algo ..."
        )
    if dist.is_available() and dist.is_initialized():
        raise ConfigError(
            f"--learners {config.learners}: this process belongs to a group of torch.distributed already; end it with "
            "destroy_process_group, or ask for 1"
        )
    return LearnerGroup(config, spec, place)


def cuda_devices() -> int:
    """How many there are here."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _last(lost: ActorLost) -> str:
    """The last line of why: of a traceback, what was raised."""
    return lost.detail.strip().splitlines()[-1]


def _array(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()


def _buffers(algorithm: Algorithm) -> list[Tensor]:
    """The running statistics and other buffers of all networks of the algorithm, target networks included."""
    return [buffer for module in modules_of(algorithm) for buffer in module.buffers()]
