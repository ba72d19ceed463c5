"""The process side of jobs: one object in each worker, which runs one job after the other."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import sys
import traceback
from typing import Any

from rltrain.jobs.arrays import Place, loads

IN_JOB = "RLTRAIN_IN_JOB"  # environment variable of processes of jobs
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def environment_of(cores: int, gpus: tuple[str, ...]) -> dict[str, str]:
    """The environment variables that limit a worker to its cores and GPUs, and say that this is one."""
    return {**dict.fromkeys(THREADS, str(cores)), "CUDA_VISIBLE_DEVICES": ",".join(gpus), IN_JOB: "1"}


class JobRunner:
    """Runs jobs. Each job finds the process as the first one did; only modules stay imported.

    Args:
        cores: numbers of the cores on which all threads of this process, and its children, run.
        gpus:  the GPUs that it sees.
    """

    def __init__(self, cores: tuple[int, ...], gpus: tuple[str, ...]) -> None:
        os.environ.update(environment_of(len(cores), gpus))
        if hasattr(os, "sched_setaffinity"):
            for thread in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ["0"]:
                with contextlib.suppress(OSError):  # the thread has ended
                    os.sched_setaffinity(int(thread), cores)
        self._cores = len(cores)
        self._environ, self._variables = dict(os.environ), _variables()
        self._path, self._argv = list(sys.path), list(sys.argv)
        self._folder = os.getcwd()

    def run(self, function: tuple[bytes, list[Place]], arguments: tuple[bytes, list[Place]]) -> tuple[str, Any]:
        """("result", pickled result), or ("error", (pickled exception or None, its traceback as text)).

        Args:
            function, arguments: as `Pickled.sent` has them.
        """
        import cloudpickle

        self._restore()
        try:
            args, keywords = loads(*arguments)
            return "result", cloudpickle.dumps(loads(*function)(*args, **keywords))
        except BaseException as error:  # also sys.exit in a job
            own = None if error.__traceback__ is None else error.__traceback__.tb_next or error.__traceback__
            text = "".join(traceback.format_exception(type(error), error, own))
            pickled = None
            with contextlib.suppress(Exception):
                pickled = cloudpickle.dumps(error)
                pickle.loads(pickled)
            return "error", (pickled, text)
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    stream.flush()

    def close(self) -> None:
        """Nothing is kept."""

    def _restore(self) -> None:
        """Undo what the last job has set for the whole process."""
        if _variables() != self._variables:
            os.environ.clear()
            os.environ.update(self._environ)
        sys.path[:], sys.argv[:] = self._path, self._argv
        with contextlib.suppress(OSError):  # the folder was removed
            os.chdir(self._folder)
        random.seed()
        if "numpy" in sys.modules:
            import numpy as np

            np.random.seed()
            np.seterr(divide="warn", over="warn", under="ignore", invalid="warn")
        if "torch" in sys.modules:
            _restore_torch(self._cores)


def _variables() -> dict[bytes, bytes]:
    data: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]  # a copy of os.environ takes far longer
    return data.copy()


def _restore_torch(threads: int) -> None:
    """The settings that torch has after its import, and its first state of random numbers."""
    import torch

    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)
    torch.set_float32_matmul_precision("highest")
    torch.set_autocast_enabled("cpu", False)
    torch.set_flush_denormal(False)
    torch.manual_seed(torch.Generator().initial_seed())  # that of a new process
