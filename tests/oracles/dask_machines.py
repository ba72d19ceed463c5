"""A real Dask scheduler and its workers, each a process that tests start, kill and look at."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

SECONDS = 60.0  # that a process may take until it is there


class Machines:
    """A scheduler, and workers that are added and killed; all are gone after `close`.

    Args:
        folder: where its files go; workers run in folders of their own below it.
        flags:  for scheduler and workers alike: those of TLS.
    """

    def __init__(self, folder: Path, flags: Sequence[str] = ()) -> None:
        self.folder, self.file, self._flags = folder, folder / "scheduler.json", flags
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.scheduler = self._start("dask_scheduler", "scheduler", "--port", "0", "--host", "127.0.0.1")
        self._until(self.file.exists, "no scheduler")

    @property
    def address(self) -> str:
        return str(json.loads(self.file.read_text())["address"])

    def add(self, name: str, *flags: str, slots: int = 1, env: Mapping[str, str] | None = None) -> None:
        """Start a worker, without a nanny unless `flags` say --nanny; returns when the scheduler knows it."""
        nanny = () if "--nanny" in flags else ("--no-nanny",)
        words = ("--name", name, "--nthreads", str(slots), "--death-timeout", "20", *nanny, *flags)
        self.workers[name] = self._start("dask_worker", name, *words, env=env)
        log = self.folder / f"{name}.log"
        self._until(lambda: "Registered to" in log.read_text(), log)

    def kill(self, name: str) -> None:
        """SIGKILL of a worker."""
        self.workers[name].kill()
        self.workers.pop(name).wait()

    def actors(self, *names: str) -> set[int]:
        """Processes below these workers, or all, that are actors, or fork them."""
        pids = set()
        for process in [self.workers[name] for name in names] or list(self.workers.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        words = " ".join(child.cmdline())
                        if "forkserver" in words or "loky" in words:
                            pids.add(child.pid)
        return pids

    def close(self) -> None:
        for process in (*self.workers.values(), self.scheduler):
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
            process.kill()
            process.wait()

    def _start(
        self, command: str, name: str, *words: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"distributed.cli.{command}",
                    "--scheduler-file",
                    str(self.file),
                    *words,
                    *self._flags,
                ]
                + ["--no-dashboard"],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=home,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})},
            )

    def _until(self, there: object, what: object) -> None:
        until = time.monotonic() + SECONDS
        while not there():  # type: ignore[operator]
            if time.monotonic() > until:
                self.close()
                raise AssertionError(what.read_text() if isinstance(what, Path) else what)
            time.sleep(0.05)


def wait_for(condition: object, seconds: float = 30.0) -> bool:
    """Whether it comes true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False
