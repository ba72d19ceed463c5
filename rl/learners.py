"""Several learners that share each update.

The first one is the run: it has the actors and the feed, publishes, logs and writes checkpoints. The others hold a copy
of the algorithm and nothing else. For each update every learner gets its part of the batch, and the gradients are
averaged; running statistics are taken by the first, of the whole delivery, and sent along. So all of them hold the same
weights after each update, and a checkpoint does not tell how many there were.
"""

from __future__ import annotations

import contextlib
import functools
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import algorithms
from algorithms.policies import policy_factory, register_policy
from algorithms.protocol import GradientPlan, Plan, ReplayPlan, Update
from envs.spec import EnvSpec
from rl.checkpoint import to_tensors
from rl.config import RunConfig
from rl.errors import ConfigError, LearnerLost
from rl.feed import tensors
from rl.setup import make_algorithm, torch_device
from rl.shared import Shared, as_arrays, dissolve, form, parts_of, plain
from rl.torchrun import Place
from rollout.handle import ActorLost
from rollout.processes import ProcessHandle
from rollout.types import Trajectory

FOREVER = timedelta(days=365)  # that a learner waits for the first one, which may wait for its actors
ENDING_SECONDS = 2.0  # that a learner's process may take to tell how it ended


class Learners(Shared):
    """All learners of a run, seen from the first.

    Args:
        place: of this process among those that torchrun started; None: the others are started here.
    """

    def __init__(self, config: RunConfig, spec: EnvSpec, place: Place | None) -> None:
        super().__init__(0, config.learners)
        self._config, self._spec, self._place = config, spec, place
        self._handles: list[ProcessHandle] = []
        self._algorithm: Any = None
        self._buffers: list[Tensor] | None = None  # what the others do not know yet
        self._joined = False
        if place is None:
            self._store = TCPStore("127.0.0.1", 0, self.size, True, wait_for_workers=False)
            for rank in range(1, self.size):
                handle = ProcessHandle(rank, functools.partial(Second, Place(rank, self.size, rank), self._store.port))
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
                handle.result()
            except ActorLost as lost:
                raise LearnerLost(f"learner {handle.worker} did not start: {lost.detail.strip()}") from None
            handle.call("serve")
        form(0, self.size, config.device, None if self._place else self._store, timedelta(seconds=config.actor_timeout))
        self._joined = True
        import cloudpickle

        maker = algorithms.algorithm_class(config.algo), type(config.settings), algorithms.for_several(config.algo)
        policy = getattr(config.settings, "policy", "actor_critic")
        plain = config.model_copy(update={"env": "", "env_args": {}, "cluster": None})
        state = {name: as_arrays(part.state_dict()) for name, part in algorithm.parts().items()}
        job = cloudpickle.dumps((plain, self._spec, maker, policy, policy_factory(policy), state))
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
                self._send(("update", progress, split, known, plain(part), buffers), rank)
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
        return Update({**update.metrics, "exchange_seconds": self.seconds - before}, priority)

    def observed(self) -> None:
        """Running statistics have changed here: the others hear of it with the next update."""
        self._buffers = _buffers(self._algorithm)

    def close(self) -> None:
        """Let the others go."""
        if self._joined:
            for rank in range(1, self.size):
                with contextlib.suppress(LearnerLost):
                    self._send(("end",), rank)
            dissolve()
        for handle in self._handles:
            handle.stop()
        for handle in self._handles:
            handle.close()

    def _tell(self, message: Any, rank: int) -> None:
        try:
            self._send(message, rank)
        except LearnerLost as lost:
            raise self._told(lost) from None

    def _told(self, lost: LearnerLost) -> LearnerLost:
        """The same, with what its process had to say."""
        self._joined = False
        for handle in self._handles:
            if handle.waitable.poll(ENDING_SECONDS):
                try:
                    handle.result()
                except ActorLost as ended:
                    return LearnerLost(f"learner {handle.worker} of {self.size} was lost: {ended.detail.strip()}")
        who = f"learner 1 of {self.size}" if self.size == 2 else f"a learner of {self.size}"
        why = str(lost)
        if "imed out" in why:
            why = f"no answer in {self._config.actor_timeout:g} s (--actor-timeout)"
        elif "by peer" in why:
            why = "its process is gone"
        return LearnerLost(f"{who} was lost: {why}")


class Second(Shared):
    """A learner that is not the first: it does what it is told, until it is told to end.

    Args:
        port: where the first one waits; None: where torchrun says.
    """

    def __init__(self, place: Place, port: int | None) -> None:
        super().__init__(place.rank, place.size)
        self._place, self._port = place, port

    def ready(self) -> None:
        """All is imported."""

    def serve(self) -> None:
        """Take part in every update.

        Raises:
            LearnerLost: the first one is gone.
        """
        import cloudpickle

        store = None if self._port is None else TCPStore("127.0.0.1", self._port, self.size, False)
        form(self.rank, self.size, "cuda" if torch.cuda.is_available() else "cpu", store, FOREVER)
        config, spec, maker, policy, factory, state = cloudpickle.loads(self._receive(0))
        if config.device == "cuda":
            config = config.model_copy(update={"device": f"cuda:{self._place.local % torch.cuda.device_count()}"})
        torch.set_num_threads(config.learner_threads)
        if config.algo not in algorithms.names():
            algorithms.register(config.algo, *maker)
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
        dissolve()

    def close(self) -> None:
        """Nothing is left when `serve` has ended."""


def open_learners(config: RunConfig, spec: EnvSpec, algorithm: Any, place: Place | None) -> Learners:
    """The learners of a run, started but not joined yet.

    Raises:
        ConfigError: the algorithm does not share its updates, or there is nothing to share.
    """
    plan: Plan = algorithm.plan
    if isinstance(plan, GradientPlan):
        raise ConfigError(f"--learners {config.learners}: the actors of {config.algo} make its gradients; ask for 1")
    if not hasattr(algorithm, "group"):
        raise ConfigError(
            f"--learners {config.learners}: {config.algo} does not share its updates"
            + (" between learners where there are several agents" if spec.groups else "")
            + "; ask for 1"
        )
    least, what = (plan.batch, "--batch") if isinstance(plan, ReplayPlan) else (config.streams, "--streams")
    if least < config.learners:
        raise ConfigError(f"--learners {config.learners}: a batch has {least} to share ({what}); ask for fewer")
    if dist.is_available() and dist.is_initialized():
        raise ConfigError(
            f"--learners {config.learners}: this process belongs to a group of torch.distributed already; end it with "
            "destroy_process_group, or ask for 1"
        )
    return Learners(config, spec, place)


def _buffers(algorithm: Any) -> list[Tensor]:
    """Statistics and the like, of all modules that the algorithm keeps."""
    return [buffer for part in algorithm.parts().values() if isinstance(part, nn.Module) for buffer in part.buffers()]
