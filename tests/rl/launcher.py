"""Runs commands in forks of a process that has imported everything, and kills them where asked. Run as a script.

A line of JSON on stdin begins a command: {"argv", "cwd", "main" ("main" or "main_eval"), "kill": {"at", "n"} or null,
"exits"}. `at` is "step" (before the n-th update), "write" (half-way through the n-th file of a checkpoint) or "rename"
(before it); with "exits" the interpreter exits as that of a command does. A line of JSON on stdout answers: {"pid"}.
{"end": pid, "seconds"} waits for it at most so long, then kills it: {"status", "out", "err"}; status is negative where
a signal ended the command.

A command starts its fork server with a new Python, which imports torch. Here that server is a fork too, made before the
command began, so it knows nothing of the command but what it is told.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import fcntl
import gc
import json
import multiprocessing.util
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NoReturn

FAR = 10**9
MOST = 1 << 20  # bytes of a request for a fork server
SAFE = 500  # a file descriptor that no request names


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


def prepare_fork_server() -> None:
    """Make the process that becomes the fork server of this command if it starts one; otherwise it ends with it."""
    ours, theirs = socket.socketpair()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    pid = os.fork()
    if pid == 0:
        ours.close()
        become_fork_server(theirs)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    start = multiprocessing.util.spawnv_passfds  # type: ignore[attr-defined]
    asked = False

    def spawn(path: Any, words: Sequence[Any], fds: Sequence[int]) -> int:
        nonlocal asked
        if asked or "multiprocessing.forkserver" not in str(words[-1]):
            return int(start(path, words, fds))
        asked = True
        message = json.dumps({"code": words[-1], "fds": list(fds), "environ": dict(os.environ)}).encode()
        ours.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        ours.close()
        return pid

    multiprocessing.util.spawnv_passfds = spawn  # type: ignore[attr-defined]


def become_fork_server(request: socket.socket) -> NoReturn:
    """Wait for the request, then do what a new Python would do."""
    message, received, _, _ = socket.recv_fds(request, MOST, 8)
    while more := request.recv(MOST):  # until the other end is closed
        message += more
    if not message:
        os._exit(0)
    asked = json.loads(message)
    safe = [fcntl.fcntl(fd, fcntl.F_DUPFD, SAFE) for fd in received]
    os.closerange(3, SAFE)
    for fd, wanted in zip(safe, asked["fds"], strict=True):
        os.dup2(fd, wanted)
        os.close(fd)
    os.environ.clear()
    os.environ.update(asked["environ"])
    del sys.path[0]  # the folder of this script
    sys.argv = ["-c"]
    sys.modules["__main__"] = ModuleType("__main__")
    atexit._clear()
    from rltrain.rollout.workers import cleanup

    cleanup._in_fork_server(os.environ.pop(cleanup.FOLDER))
    status = 1
    try:
        exec(asked["code"], {})
        status = 0
    except SystemExit:
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        atexit._run_exitfuncs()
        os._exit(status)


def child(job: dict[str, Any], out: int, err: int) -> None:
    """The command, in a fork; does not return, but raises SystemExit with `exits`."""
    os.setsid()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(job["cwd"])
    prepare_fork_server()
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
        if not job.get("exits"):
            os._exit(status)
    sys.exit(status)


def begin(job: dict[str, Any]) -> tuple[int, list[IO[bytes]]]:
    """Start a command. Returns its process, and the files of its output."""
    if "--cluster" in job["argv"]:
        with contextlib.suppress(ImportError):
            import rltrain.rollout.cluster.connect  # noqa: F401
    files: list[IO[bytes]] = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]  # noqa: SIM115
    pid = os.fork()
    if pid == 0:
        child(job, *(file.fileno() for file in files))
    return pid, files


def end(pid: int, files: list[IO[bytes]], seconds: float) -> dict[str, Any]:
    """Wait for a command, at most so long, and return how it ended."""
    until = time.monotonic() + seconds
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > until:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.005)
    _, code = os.waitpid(pid, 0)
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read().decode())
        file.close()
    return {"status": os.waitstatus_to_exitcode(code), "out": texts[0], "err": texts[1]}


def serve() -> None:
    """Answer jobs until stdin ends."""
    import torch

    import rltrain.evaluation.evaluate
    import rltrain.run
    import rltrain.training_loop  # noqa: F401
    from rltrain.setup import task_process

    sys.path.insert(1, str(Path(__file__).parents[1]))
    import watches

    del sys.path[1]
    watches.use_forks()
    os.fsync = lambda _: None  # no test takes the power away
    task_process.start_method = lambda: "fork"
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    begun: dict[int, list[IO[bytes]]] = {}  # by process
    for line in sys.stdin:
        job = json.loads(line)
        if "end" in job:
            answer = end(job["end"], begun.pop(job["end"]), job["seconds"])
        else:
            pid, files = begin(job)
            begun[pid] = files
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
