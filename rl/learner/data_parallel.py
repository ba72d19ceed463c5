"""Data-parallel learners: each holds a part of every batch, and the gradients are averaged.

The learner of rank 0 is the run: it has the actors and the feed, publishes weights, logs and writes checkpoints. The
others hold a copy of the algorithm only. Rank 0 updates running statistics on the whole delivery and sends them with
the next update. So all learners hold the same weights after each update, and a checkpoint does not depend on their
number.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rltrain import algorithms
from rltrain.algorithms.networks import products
from rltrain.algorithms.protocol import Algorithm, Update, modules_of, shares_updates
from rltrain.algorithms.registry import policy_factory, register_policy
from rltrain.algorithms.settings import OWN
from rltrain.config.run_config import RunConfig
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError, LearnerLost
from rltrain.learner.algorithm import make_algorithm, torch_device
from rltrain.learner.batches import tensors
from rltrain.learner.changes import change_settings
from rltrain.learner.process_group import ProcessGroup, as_arrays, dissolve, form, shards_of_members, update_members
from rltrain.rollout.specs import DataPlan, GradientPlan, ReplayPlan
from rltrain.rollout.trajectories import map_arrays
from rltrain.rollout.types import Trajectory, Transition
from rltrain.rollout.workers.cleanup import name_prefix
from rltrain.rollout.workers.handle import ActorLost
from rltrain.rollout.workers.process import ProcessHandle
from rltrain.storage.checkpoint import to_tensors
from rltrain.system.torchrun import Rank

FOREVER = timedelta(days=365)  # ranks above 0 wait for rank 0, which may wait for its actors
EXIT_SECONDS = 2.0  # how long to wait for the error report of a learner's process


class LearnerGroup(ProcessGroup):
    """All learners of a run, seen from rank 0.

    Args:
        place: of this process in torchrun; None: this process starts the others.
    """

    def __init__(self, config: RunConfig, spec: EnvSpec, place: Rank | None) -> None:
        super().__init__(0, config.learners)
        self._config, self._spec = config, spec
        self._handles: list[ProcessHandle] = []
        self._algorithm: Algorithm | None = None
        self._changes: dict[str, Any] = {}  # of settings, that the other learners do not have yet
        self._buffers: list[Tensor] | None = None  # running statistics that the other learners do not have yet
        self._formed = False  # the group of torch.distributed exists
        self._healthy = False  # and all its members listen
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # the meeting point, private to this user
        if place is None:
            self._folder = tempfile.TemporaryDirectory(prefix=name_prefix())
            for rank in range(1, self.size):
                make = functools.partial(LearnerRank, Rank(rank, self.size, rank), self._folder.name)
                self._handles.append(ProcessHandle(rank, make))
                self._handles[-1].call("ready")

    def join(self, algorithm: Algorithm) -> None:
        """Wait until all learners have started, and send them the state of the algorithm.

        Raises:
            LearnerLost: a learner did not start.
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
        folder = None if self._folder is None else self._folder.name
        form(0, self.size, folder, timedelta(seconds=config.actor_timeout))
        self._healthy = True
        import cloudpickle

        maker = algorithms.algorithm_class(config.algo), type(config.settings), algorithms.for_several(config.algo)
        policy = getattr(config.settings, "policy", "actor_critic")
        own = {name: OWN[name] for name in (policy, getattr(config.settings, "torso", "auto")) if name in OWN}
        outline = config.model_copy(update={"env": "", "env_args": {}, "eval_env": None, "cluster": None})
        state = {name: as_arrays(part.state_dict()) for name, part in algorithm.parts().items()}
        job = cloudpickle.dumps((outline, self._spec, maker, policy, policy_factory(policy), own, state))
        try:
            for rank in range(1, self.size):
                self._send(job, rank)
        except LearnerLost as lost:
            raise self._explained(lost) from None
        self._algorithm = algorithm
        self.attach(algorithm)

    def update(self, batch: Trajectory | Transition, progress: float) -> Update:
        """One update by all learners, each with its shard of the batch."""
        assert self._algorithm is not None
        shards = shards_of_members(self._algorithm, batch, self.size)
        buffers = None if self._buffers is None else [buffer.cpu().numpy() for buffer in self._buffers]
        seconds = self.seconds
        try:
            for rank, own in enumerate(shards[1:], 1):
                sent = [(shard, map_arrays(_array, part)) for shard, part in own]
                self._send(("update", progress, sent, buffers, self._changes), rank)
            self._buffers, self._changes = None, {}
            self.take([shard for shard, _ in shards[0]])
            update = update_members(self._algorithm, [part for _, part in shards[0]], progress)
            priority = update.priority
            if priority is not None:
                others = [torch.from_numpy(self._receive(rank)).to(priority) for rank in range(1, self.size)]
                priority = torch.cat([priority, *others])
        except LearnerLost as lost:
            raise self._explained(lost) from None
        except BaseException:  # the others wait inside the update and would not learn that it has ended
            self._healthy = False
            dissolve()
            raise
        return Update({**update.metrics, "exchange_seconds": self.seconds - seconds}, priority)

    def change(self, changes: dict[str, Any]) -> None:
        """Send new values of settings with the next update."""
        self._changes = {**self._changes, **changes}

    def observed(self) -> None:
        """Send the running statistics, which have changed here, with the next update."""
        assert self._algorithm is not None
        self._buffers = _buffers(self._algorithm)

    def close(self) -> None:
        """End the other learners."""
        if self._healthy:
            for rank in range(1, self.size):
                with contextlib.suppress(LearnerLost):
                    self._send(("end",), rank)
        if self._formed:
            dissolve()
        for handle in self._handles:
            handle.stop()
        for handle in self._handles:
            handle.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _explained(self, lost: LearnerLost) -> LearnerLost:
        """`lost` with the error of the process that failed first, not of those that only lost their peer."""
        self._healthy = False
        dissolve()  # so that learners that wait for this one end
        silent, until = {handle.waitable: handle for handle in self._handles}, time.monotonic() + EXIT_SECONDS
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


class LearnerRank(ProcessGroup):
    """A learner of rank above 0: takes part in the updates of rank 0 until that ends.

    Args:
        folder: meeting point of the process group; None: torchrun's.
    """

    def __init__(self, place: Rank, folder: str | None) -> None:
        super().__init__(place.rank, place.size)
        self._place, self._folder = place, folder

    def ready(self) -> None:
        """Answers when everything has been imported."""

    def serve(self, joined: Callable[[], object] = lambda: None) -> None:
        """Take part in every update.

        Args:
            joined: called when rank 0 and this learner have found each other.

        Raises:
            LearnerLost: rank 0 is gone.
        """
        try:
            form(self.rank, self.size, self._folder, FOREVER)
            joined()
            self._serve()
        finally:
            dissolve()

    def _serve(self) -> None:
        import cloudpickle

        config, spec, maker, policy, factory, own, state = cloudpickle.loads(self._receive(0))
        if config.device == "cuda":
            config = config.model_copy(update={"device": f"cuda:{self._place.local % torch.cuda.device_count()}"})
        torch.set_num_threads(config.learner_threads)
        products.use(config.products)
        algorithms.register(config.algo, *maker)  # a user's algorithm may have the name of a built-in one
        register_policy(policy, factory)
        OWN.update(own)
        algorithm, device = make_algorithm(config, spec), torch_device(config.device)
        assert shares_updates(algorithm)
        self.attach(algorithm)
        for name, part in algorithm.parts().items():
            part.load_state_dict(to_tensors(state[name]))
        while True:
            command, *arguments = self._receive(0)
            if command == "end":
                break
            progress, own, buffers, changes = arguments
            if changes:
                change_settings(algorithm, changes)
            if buffers is not None:
                for mine, new in zip(_buffers(algorithm), buffers, strict=True):
                    mine.copy_(torch.from_numpy(new))
            self.take([shard for shard, _ in own])
            with products.learning():
                update = update_members(algorithm, [tensors(part, device) for _, part in own], progress)
            if update.priority is not None:
                self._send(update.priority.detach().cpu().numpy(), 0)

    def close(self) -> None:
        """Nothing is open after `serve`."""


def open_learners(config: RunConfig, spec: EnvSpec, algorithm: Algorithm, place: Rank | None) -> LearnerGroup:
    """Start the learners of a run; see `LearnerGroup.join`.

    Raises:
        ConfigError: the algorithm does not share its updates, or a batch is too small for so many learners.
    """
    plan: DataPlan = algorithm.plan
    if isinstance(plan, GradientPlan):
        raise ConfigError(f"--learners {config.learners}: the actors of {config.algo} make its gradients; ask for 1")
    if not shares_updates(algorithm):
        raise ConfigError(f"--learners {config.learners}: {config.algo} does not share its updates; ask for 1")
    width, flag = (plan.batch, "--batch") if isinstance(plan, ReplayPlan) else (config.streams, "--streams")
    if width < config.learners:
        raise ConfigError(f"--learners {config.learners}: a batch has {width} to share ({flag}); ask for fewer")
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
    """The number of CUDA devices of this machine."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _last(lost: ActorLost) -> str:
    """The last line of the detail: of a traceback, the exception."""
    return lost.detail.strip().splitlines()[-1]


def _array(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()


def _buffers(algorithm: Algorithm) -> list[Tensor]:
    """The running statistics and other buffers of all networks of the algorithm, target networks included."""
    return [buffer for module in modules_of(algorithm) for buffer in module.buffers()]
