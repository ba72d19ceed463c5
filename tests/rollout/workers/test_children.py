"""Processes that an environment starts: they work as in a program started by hand, and all end with their worker."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import pytest

from rltrain.rollout.workers import cleanup
from rltrain.rollout.workers.fork_server import without_main
from rltrain.rollout.workers.handle import ActorLost
from rltrain.rollout.workers.parent_state import starting_python
from rltrain.rollout.workers.process import ProcessHandle
from rltrain.rollout.workers.process_tree import descendants

METHODS = ("fork", "spawn", "forkserver")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def worker(fork_server: None) -> Iterator[ProcessHandle]:
    handle = ProcessHandle(0, Simulators)
    yield handle
    handle.close()


def answer(handle: ProcessHandle, method: str, *args: Any) -> Any:
    handle.call(method, *args)
    return handle.result()


def square(number: int) -> int:
    return number * number


def sleep() -> None:
    time.sleep(600)


def signal_state(queue: Any) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    expected = [signal.default_int_handler, signal.SIG_DFL]
    queue.put((handlers == expected, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))))


class Simulators:
    """Stands for an environment."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def signals_of_a_program(self) -> dict[str, int]:
        text = subprocess.run(["cat", "/proc/self/status"], stdout=subprocess.PIPE, text=True, check=True).stdout
        fields = dict(line.split(":", 1) for line in text.splitlines())
        return {name: int(fields[name], 16) for name in ("SigIgn", "SigBlk")}

    def signals_of_a_fork(self) -> Any:
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=signal_state, args=(queue,))
        child.start()
        state = queue.get(timeout=30)
        child.join()
        return state

    def garbage(self) -> tuple[bool, int, bool]:
        """Whether collection is on, the number of objects that it never visits, and whether it finds a cycle."""

        class Node:
            pass

        node: Any = Node()
        node.itself = node
        alive = weakref.ref(node)
        del node
        for _ in range(10 * gc.get_threshold()[0]):
            self.kept.append([])
        return gc.isenabled(), gc.get_freeze_count(), alive() is None

    def terminate(self) -> int:
        process = subprocess.Popen(["sleep", "600"])
        process.terminate()
        return process.wait(30)

    def fork(self, how: str) -> int:
        """The exit code of a forked child."""
        child = os.fork()
        if child == 0:
            if how == "leaves":
                sys.exit(5)
            if how == "raises":
                raise RuntimeError("in a child")
            time.sleep(600)
        if how == "terminated":
            os.kill(child, signal.SIGTERM)  # possibly before the child runs
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def compute(self, method: str, kind: str) -> Any:
        context: Any = multiprocessing.get_context(method)
        if kind == "executor":
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
                return executor.submit(square, 7).result(60)
        with context.Pool(1) as pool:
            return pool.apply_async(square, (7,)).get(60)

    def start(self, kind: str) -> list[int]:
        """Start something that does not end by itself. Returns the pids of its processes."""
        context: Any = multiprocessing.get_context("spawn" if kind == "spawn" else "fork")
        before = set(descendants(os.getpid()))
        if kind == "program":
            self.kept.append(subprocess.Popen(["sleep", "600"]))
        elif kind == "session":
            self.kept.append(subprocess.Popen(["sleep", "600"], start_new_session=True))
        elif kind == "daemon":
            env = {**os.environ, "DAEMON_OF": str(os.getpid())}
            subprocess.run(["sh", "-c", "setsid sleep 600 & setsid sh -c 'setsid sleep 600 &' &"], env=env, check=True)
            time.sleep(0.3)
            return _daemons()
        elif kind == "stubborn":
            self.kept.append(subprocess.Popen(["sh", "-c", "trap '' TERM INT HUP; while true; do sleep 0.1; done"]))
            time.sleep(0.2)
        elif kind == "pool":
            self.kept.append(context.Pool(2))
        else:
            self.kept.append(context.Process(target=sleep, daemon=False))
            self.kept[-1].start()
            threading.Thread(target=sleep, daemon=False).start()
        return [pid for pid in descendants(os.getpid()) if pid not in before]

    def shared(self) -> str:
        """The name of shared memory that is never unlinked."""
        self.kept.append(shared_memory.SharedMemory(create=True, size=64))
        return str(self.kept[-1].name)

    def names(self) -> tuple[str, str | None, bool]:
        process = multiprocessing.current_process()
        return process.name, multiprocessing.get_start_method(allow_none=True), process.daemon

    def at_exit(self) -> str:
        """The path of a folder that is removed at the end of the program."""
        self.kept.append(tempfile.TemporaryDirectory())
        return str(self.kept[-1].name)

    def pid(self) -> int:
        return os.getpid()

    def hang(self) -> None:
        time.sleep(600)

    def close(self) -> None:
        """Leaves everything behind."""


def _daemons() -> list[int]:
    """Programs that are no descendants any more, known by the environment variable of this test."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"DAEMON_OF={os.getpid()}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
    return found


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pids)


def test_programs_and_forks_have_default_handlers_and_an_empty_mask(worker: ProcessHandle) -> None:
    state = answer(worker, "signals_of_a_program")
    bits = 1 << (signal.SIGINT - 1) | 1 << (signal.SIGTERM - 1)

    assert state["SigIgn"] & bits == 0
    assert state["SigBlk"] == 0
    assert answer(worker, "signals_of_a_fork") == (True, [])


def test_a_program_that_is_terminated_ends(worker: ProcessHandle) -> None:
    assert answer(worker, "terminate") == -signal.SIGTERM


@pytest.mark.parametrize(("how", "code"), [("leaves", 5), ("raises", 1), ("terminated", -signal.SIGTERM)])
def test_a_fork_ends_where_it_leaves_the_environment(how: str, code: int, worker: ProcessHandle) -> None:
    for _ in range(20):
        assert answer(worker, "fork", how) == code


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["executor", "pool"])
def test_multiprocessing_works(method: str, kind: str, worker: ProcessHandle) -> None:
    assert answer(worker, "compute", method, kind) == 49


def test_a_worker_looks_like_a_program_started_by_hand(worker: ProcessHandle) -> None:
    here = multiprocessing.get_start_method(allow_none=True)
    assert answer(worker, "names") == ("MainProcess", here, False)


ENDINGS = ("close", "kill", "worker", "supervisor")


@pytest.mark.parametrize("ending", ENDINGS)
def test_everything_ends_with_its_worker(ending: str, worker: ProcessHandle) -> None:
    kinds = ["program", "session", "daemon", "stubborn", "pool", "process", "spawn"]
    pids = [pid for kind in kinds for pid in answer(worker, "start", kind)]
    assert len(alive(pids)) >= len(kinds)
    pid = answer(worker, "pid")
    if ending == "kill":
        worker.kill("as a test")
    elif ending != "close":
        os.kill(pid if ending == "worker" else worker._process.pid, signal.SIGKILL)
        with pytest.raises(ActorLost, match="SIGKILL"):
            worker.result()
    worker.close()

    assert gone([*pids, pid])


@pytest.mark.parametrize("ending", ["close", "kill"])
def test_shared_memory_is_removed(ending: str, worker: ProcessHandle) -> None:
    name = answer(worker, "shared")
    assert Path("/dev/shm", name).exists()
    if ending == "kill":
        worker.call("hang")
        worker.kill("as a test")
    worker.close()

    assert not Path("/dev/shm", name).exists()


def test_functions_at_exit_are_called(worker: ProcessHandle) -> None:
    folder = answer(worker, "at_exit")
    worker.close()

    assert not Path(folder).exists()


def test_a_worker_collects_garbage_but_not_what_it_was_forked_with(worker: ProcessHandle) -> None:
    """The fork server imports without collection."""
    enabled, frozen, found = answer(worker, "garbage")

    assert enabled
    assert found
    assert frozen > 10_000  # objects of the imported modules, of which torch has hundreds of thousands


def test_ctrl_c_of_a_terminal_does_not_reach_a_worker(worker: ProcessHandle) -> None:
    """It is sent to the process group of the command."""
    assert os.getpgid(answer(worker, "pid")) not in (os.getpgid(0), os.getpgid(worker._process.pid))
    assert os.getpgid(worker._process.pid) != os.getpgid(0)
    os.kill(answer(worker, "pid"), signal.SIGTERM)  # a job scheduler signals every process of a job
    os.kill(answer(worker, "pid"), signal.SIGINT)

    assert answer(worker, "terminate") == -signal.SIGTERM


KILLED = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
from test_children import Simulators, answer
from rltrain.rollout.workers.fork_server import start_fork_server
from rltrain.rollout.workers.parent_state import starting_python
from rltrain.rollout.workers.process import ProcessHandle
if {server}:
    start_fork_server([])
handle = ProcessHandle(0, Simulators)
pids = [pid for kind in ("program", "daemon", "stubborn", "pool") for pid in answer(handle, "start", kind)]
name, folder = answer(handle, "shared"), answer(handle, "at_exit")
print(*pids, answer(handle, "pid"), handle._process.pid, name, folder, flush=True)
if {hangs}:
    handle.call("hang")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("server", "hangs"), [(True, False), pytest.param(False, True, marks=pytest.mark.sweep)])
def test_nothing_remains_after_sigkill_of_the_learner(server: bool, hangs: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:  # tmp_path would be too long for a socket
        text = KILLED.format(tests=str(Path(__file__).parent), server=server, hangs=hangs)
        env = {**os.environ, "TMPDIR": temporary}
        with subprocess.Popen([sys.executable, "-c", text], env=env, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            *pids, name, folder = process.stdout.readline().split()
            assert process.wait(60) == -signal.SIGKILL

        assert len(pids) >= 6
        assert gone([int(pid) for pid in pids], 15.0)
        until = time.monotonic() + 10.0
        expected = {Path(folder).name} if hangs else set()  # an environment that hangs cannot be closed
        while set(os.listdir(temporary)) > expected and time.monotonic() < until:
            time.sleep(0.02)
        assert set(os.listdir(temporary)) == expected
        assert not Path("/dev/shm", name).exists()


LOCAL = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_children import Simulators, answer
from rltrain.rollout.workers.in_process import LocalHandle
handle = LocalHandle(0, Simulators)
pids = [pid for kind in ("program", "session", "daemon", "stubborn", "pool") for pid in answer(handle, "start", kind)]
print(*(pid for pid in pids if pid != handle._settings._children._watch.pid), flush=True)
handle.close() if {closes} else os.kill(os.getpid(), signal.SIGKILL)
os._exit(0)
"""


@pytest.mark.parametrize("closes", [pytest.param(True, marks=pytest.mark.sweep), False])
def test_children_of_a_worker_in_this_process_end_with_it(closes: bool) -> None:
    text = LOCAL.format(tests=str(Path(__file__).parent), closes=closes)
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split() if int(pid) not in (process.pid, os.getpid())]
        assert process.wait(60) == (0 if closes else -signal.SIGKILL)

    assert len(pids) >= 5
    assert gone(pids)


@pytest.mark.parametrize(("gone", "code"), [(True, 1), (False, 7)])
def test_a_worker_ends_whose_parent_died_while_it_started(gone: bool, code: int) -> None:
    """The death of a parent that died before `die_with_parent` sends no signal; loky's queue would not show it."""
    text = f"""
import os
from multiprocessing import Pipe
from rltrain.rollout.workers.worker_process import remember
pipe, link = Pipe(), Pipe()
link[0].send_bytes(b"kill")
if {gone}:
    link[0].close()
remember(pipe[1], link[1], ())
assert link[1].recv_bytes() == b"kill"
os._exit(7)
"""
    assert subprocess.run([sys.executable, "-c", text], check=False, timeout=60).returncode == code


def test_a_worker_that_starts_does_not_react_to_ctrl_c(fork_server: None) -> None:
    """Its Python gets its own handlers only after some tenths of a second."""
    text = (
        "import os, signal; os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM); print('lives')"
    )
    with starting_python():
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        done = subprocess.run([sys.executable, "-c", text], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"lives\n"
    assert {signal.SIGINT, signal.SIGTERM} <= blocked
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_threads_start_processes_one_after_the_other() -> None:
    """The nodes of a cluster in this process are threads. What a start changes for a while belongs to all of them."""
    main = sys.modules["__main__"]
    before = os.environ.get("PYTHONSAFEPATH"), main.__spec__, getattr(main, "__file__", None)

    def start() -> None:
        with without_main(), starting_python():
            pass

    other = threading.Thread(target=start)
    with without_main(), starting_python():
        other.start()
        other.join(0.3)
        assert other.is_alive()
        assert os.environ["PYTHONSAFEPATH"] == "1"
    other.join()
    assert (os.environ.get("PYTHONSAFEPATH"), main.__spec__, getattr(main, "__file__", None)) == before
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize(("ending", "code", "lines"), [("5", 5, 0), ("None", 0, 0), ("'told'", 1, 1)])
def test_a_fork_that_leaves_by_sys_exit_shows_no_traceback(ending: str, code: int, lines: int) -> None:
    """Also if an EnvFault was made from the SystemExit on its way out."""
    text = f"""
import os, sys
from rltrain.envs.errors import fault_of
from rltrain.rollout.workers.forks import ends_forks
with ends_forks():
    child = os.fork()
    if child == 0:
        try:
            sys.exit({ending})
        except BaseException as error:
            raise fault_of(error, 0, 0, 0) from error
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == code
    assert done.stderr.count("\n") == lines, done.stderr


@pytest.mark.parametrize(("error", "shown"), [(FileNotFoundError(2, "gone"), False), (ValueError("wrong"), True)])
def test_a_process_that_is_not_needed_any_more_shows_no_traceback(
    error: Exception, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the fork server: Ctrl-C has removed the semaphores that a worker was to get."""
    cleanup._unless_given_up(type(error), error, None)
    assert ("wrong" in capsys.readouterr().err) == shown


def test_a_program_too_sweeps_what_a_killed_run_left_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: Any, **keywords: Any) -> None:
        raise OSError("no process today")

    left, others = tmp_path / "rltrain-999999999-1-x", tmp_path / f"{cleanup.name_prefix()}x"
    left.mkdir()
    others.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cleanup, "_swept_by", None)
    monkeypatch.setattr("rltrain.rollout.workers.process.has_fork_server", lambda: False)
    monkeypatch.setattr("loky.ProcessPoolExecutor", refuses)

    with pytest.raises(ActorLost, match="no process today"):
        ProcessHandle(0, list)
    assert list(tmp_path.iterdir()) == [others]

    monkeypatch.setattr(os, "scandir", lambda folder: pytest.fail(f"{folder} is searched at each worker"))
    with pytest.raises(ActorLost, match="no process today"):
        ProcessHandle(1, list)


def test_a_forked_program_sweeps_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "rltrain-999999999-1-x"
    left.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cleanup, "_swept_by", os.getppid())

    cleanup.sweep()

    assert not left.exists()
