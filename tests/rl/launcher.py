"""Runs commands in forks of a process that has imported everything, and kills them where asked. Run as a script.

A line of JSON on stdin for each: {"argv", "cwd", "main" ("main" or "main_eval"), "kill": {"at", "n"} or null}. `at` is
"step" (before the n-th update), "write" (half-way through the n-th file of a checkpoint) or "rename" (before it).
A line of JSON on stdout answers: {"status", "out", "err"}; status is negative where a signal ended the command.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAR = 10**9


def die(*_: Any) -> None:
    """SIGKILL of the whole run: its process group."""
    os.killpg(0, signal.SIGKILL)


def arm(at: str, n: int) -> None:
    """Let this process die at its n-th `at`."""
    from rltrain.learner.learner import Learner
    from rltrain.storage import files

    count = 0

    def counted(function: Callable[..., Any], dying: Callable[..., Any] = die) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal count
            count += 1
            return dying(*args) if count == n else function(*args)

        return call

    def half(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        die()

    module: Any = files
    if at == "write":
        write, counted_write = files.write_file, counted(files.write_file, half)
        module.write_file = lambda path, data: (counted_write if "checkpoints" in path.parts else write)(path, data)
    elif at == "rename":
        os.replace = counted(os.replace)
        os.rename = counted(os.rename)
    else:
        Learner.step = counted(Learner.step)  # type: ignore[method-assign]


def child(job: dict[str, Any], out: int, err: int) -> None:
    """The command, in a fork; does not return."""
    os.setsid()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(job["cwd"])
    from rltrain import cli

    status = 1
    try:
        if job.get("kill"):
            arm(**job["kill"])
        sys.argv = ["rltrain", *job["argv"]]
        status = getattr(cli, job.get("main", "main"))(job["argv"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    """Answer jobs until stdin ends."""
    import torch

    import rltrain.evaluation.evaluate
    import rltrain.run
    import rltrain.training_loop  # noqa: F401
    from rltrain.setup import task_process

    task_process.start_method = lambda: "fork"
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if pid == 0:
                child(job, out.fileno(), err.fileno())
            _, code = os.waitpid(pid, 0)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        answer = {"status": os.waitstatus_to_exitcode(code), "out": texts[0], "err": texts[1]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
