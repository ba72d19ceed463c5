"""The whole command under signals: what it leaves behind, how it ends, and that what it wrote can be resumed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTY = ROOT / "tests" / "oracles" / "faulty.py"
RLTRAIN = Path(sys.executable).parent / "rltrain"
WAYS = {
    "module": [sys.executable, "-c", "import sys; from rltrain.cli import main; sys.exit(main())"],
    "script": [RLTRAIN],
}


class Command:
    """rltrain in a session of its own, with a temporary folder of its own."""

    def __init__(self, folder: Path, *argv: object, way: str = "script") -> None:
        self.runs, self.temporary = (
            folder / "runs",
            Path(tempfile.gettempdir(), f"t-{zlib.crc32(str(folder).encode())}"),
        )
        self.temporary.mkdir(exist_ok=True)  # a short path: it will hold a socket
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {"TMPDIR": str(self.temporary), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self.mark = f"TEST_MARK={folder}/{len(list(folder.iterdir()))}-{time.monotonic_ns()}"
        env |= dict([self.mark.split("=", 1)])
        words = [*WAYS[way], *argv] if argv[0] == "--resume" else [*WAYS[way], *argv, "--out", self.runs]
        self.process = subprocess.Popen(
            [str(word) for word in words],
            env=env,
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"nothing happened for {seconds} s"
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.02)

    def acting(self) -> bool:
        return any(self.runs.glob("*/checkpoints/latest"))

    def end(self, seconds: float = 120.0) -> tuple[int, str]:
        try:
            text, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as late:
            alive = [self.process.args] if self.process.poll() is None else []
            pytest.fail(f"after {seconds} s it is alive or holds its output: {alive + self.others()}\n{late.output!r}")
        return self.process.returncode, text

    def others(self) -> list[str]:
        """What is still alive of it: every process that has its environment, whatever session that is in."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        return found

    def pids(self) -> list[int]:
        """The living processes that have its environment, itself not counted."""
        pids = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and int(entry.name) != self.process.pid:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if fields[0] not in "ZX" and self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                        pids.append(int(entry.name))
        return pids

    def kill_all(self) -> None:
        """SIGKILL of every process, so that none can clean up."""
        for pid in (self.process.pid, *self.pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        for pid in (self.process.pid, *self.pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def leftovers(self) -> list[str]:
        """Files in its temporary folder, and semaphores of its number."""
        semaphores = [name for name in os.listdir("/dev/shm") if f"-{self.process.pid}-" in name]
        return sorted([path.name for path in self.temporary.iterdir()] + semaphores)

    def settle(self, seconds: float = 5.0) -> None:
        """Wait until no process is left, at most so long; then there must be none, and nothing else either."""
        end = time.monotonic() + seconds
        while (self.others() or self.leftovers()) and time.monotonic() < end:
            time.sleep(0.05)
        assert not self.others()
        assert not self.leftovers()

    def checkpoint(self) -> dict[str, object]:
        (latest,) = self.runs.glob("*/checkpoints/latest")
        meta: dict[str, object] = json.loads((latest.parent / latest.read_text().strip() / "meta.json").read_text())
        return meta


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*argv: object, way: str = "script") -> Command:
        started.append(Command(tmp_path, *argv, way=way))
        return started[-1]

    yield start
    for one in started:
        one.kill_all()
        one.process.communicate()
        shutil.rmtree(one.temporary, ignore_errors=True)


TINY = "--algo ppo --streams 4 --workers 2 --unroll 16 --epochs 1 --eval-every 0 --checkpoint-every 200 --quiet".split()
LONG = [*TINY, "--env", "probe:counter", "--steps", 10_000_000]


@pytest.mark.sweep
@pytest.mark.parametrize("way", WAYS)
def test_a_whole_run_leaves_nothing(way: str, command: Callable[..., Command]) -> None:
    one = command(*TINY, "--env", "probe:counter", "--steps", 300, "--json", way=way)
    status, text = one.end()
    assert status == 0, text
    (line,) = text.splitlines()  # no tracker prints a warning after it
    assert json.loads(line)["restarts"] == 0
    one.settle()


CENTRAL = ["--inference", "central"]


@pytest.mark.parametrize(
    ("number", "expected", "words"),
    [
        pytest.param(signal.SIGINT, 130, [], marks=pytest.mark.sweep),
        (signal.SIGTERM, 143, []),
        pytest.param(signal.SIGINT, 130, CENTRAL, marks=pytest.mark.sweep),
    ],
)
def test_signals_write_a_checkpoint(
    number: int, expected: int, words: list[str], command: Callable[..., Command]
) -> None:
    one = command(*LONG, *words)
    one.until(one.acting)
    os.killpg(one.process.pid, number) if number == signal.SIGINT else one.process.send_signal(number)
    status, text = one.end()
    assert status == expected, text
    assert "Traceback" not in text
    assert "interrupted; checkpoint" in text
    one.settle()
    meta = one.checkpoint()
    assert meta["exact"] is True
    (folder,) = one.runs.iterdir()
    again = command("--resume", folder, "--steps", int(str(meta["step"])) + 300, "--json")
    status, text = again.end()
    assert status == 0, text
    again.settle()


def test_a_second_ctrl_c_does_not_wait_for_a_hanging_environment(command: Callable[..., Command]) -> None:
    one = command(*TINY, "--env", f"{FAULTY}:Slow", "--env-arg", "seconds=0.02", "--unroll", 2000, "--steps", 10**6)
    one.until(lambda: any(one.runs.glob("*/run.json")) and len(one.others()) >= 6)  # two actors and their supervisors
    time.sleep(3.0)
    os.killpg(one.process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert one.process.poll() is None, "the first one waits for the unrolls under way"
    os.killpg(one.process.pid, signal.SIGINT)
    began = time.monotonic()
    status, text = one.end()
    assert time.monotonic() - began < 8
    assert status == 130, text
    assert "exact: false" in text
    one.settle()
    assert one.checkpoint()["exact"] is False


@pytest.mark.sweep
def test_ctrl_c_while_the_last_evaluation_hangs(command: Callable[..., Command], tmp_path: Path) -> None:
    from rltrain.evaluation.background import evaluation_seeds

    once = tmp_path / "once"
    seeds = ",".join(map(str, evaluation_seeds(0, 2)))
    words = ["--env", f"{FAULTY}:HangsInEvaluation", "--env-arg", f"evaluation='{seeds}'", "--env-arg", "how=hangs"]
    one = command(
        *TINY, *words, "--env-arg", f"once={once}", "--steps", 300, "--eval-every", 10**6, "--eval-episodes", 2
    )
    one.until(once.exists)
    one.until(one.acting)
    time.sleep(0.5)
    os.killpg(one.process.pid, signal.SIGINT)
    status, text = one.end()
    assert status == 130, text
    one.settle()
    (folder,) = one.runs.iterdir()
    again = command("--resume", folder, "--json")
    status, text = again.end()
    assert status == 0, text
    assert json.loads(text.splitlines()[-1])["eval_return"] is not None, "the evaluation was made up for"


@pytest.mark.parametrize(
    "seconds", [0.3, pytest.param(1.0, marks=pytest.mark.sweep), pytest.param(1.8, marks=pytest.mark.sweep)]
)
def test_ctrl_c_while_it_starts(seconds: float, command: Callable[..., Command]) -> None:
    one = command(*LONG)
    time.sleep(seconds)
    os.killpg(one.process.pid, signal.SIGINT)
    status, text = one.end()
    assert status in (130, -signal.SIGINT), text  # the latter before Python is up
    one.settle(30.0)  # the fork server first finishes its imports


@pytest.mark.parametrize(
    ("env", "words"),
    [
        pytest.param("probe:counter", [], id="local", marks=pytest.mark.sweep),
        pytest.param("probe:counter", CENTRAL, id="central"),
        pytest.param(f"{FAULTY}:spins", [], id="spins, local", marks=pytest.mark.sweep),
        pytest.param(f"{FAULTY}:spins", CENTRAL, id="spins, central", marks=pytest.mark.sweep),
    ],
)
def test_sigkill_of_the_command_leaves_no_process(env: str, words: list[str], command: Callable[..., Command]) -> None:
    words = words if "probe" in env else [*words, "--env-arg", "at=500"]
    one = command(*TINY, "--env", env, "--steps", 10_000_000, *words)
    one.until(one.acting)
    if "spins" in env:
        time.sleep(1.5)
    one.process.kill()
    one.process.wait()
    one.settle(60.0)


@pytest.mark.parametrize("learners", [1, pytest.param(2, marks=pytest.mark.sweep)])
def test_the_next_start_sweeps_what_a_killed_group_left(learners: int, command: Callable[..., Command]) -> None:
    one = command(*LONG, "--learners", learners)
    one.until(one.acting)
    one.kill_all()
    time.sleep(0.3)
    left = one.leftovers()
    assert left, "nothing was left: this test tests nothing"
    assert len(list(one.temporary.glob("rltrain-*/store"))) == learners - 1, "the meeting point of the learners"
    assert all(name.startswith(("rltrain-", "sem.rltrain-")) for name in left), left
    other = command(*TINY, "--env", "probe:counter", "--steps", 300)
    assert other.end()[0] == 0
    assert not one.leftovers()
    other.settle()


@pytest.mark.sweep
def test_what_a_command_that_was_killed_before_its_run_began_left_is_swept_too(command: Callable[..., Command]) -> None:
    one = command(*LONG)
    one.until(lambda: any(one.temporary.glob("rltrain-*")))
    one.kill_all()
    assert not any(one.runs.glob("*/run.json")), "it was too late: this test tests nothing"
    assert one.leftovers()

    other = command(*TINY, "--env", "probe:counter", "--steps", 300)

    assert other.end()[0] == 0
    other.settle()


@pytest.mark.sweep
def test_a_failing_run_ends_with_status_1_and_its_story(command: Callable[..., Command]) -> None:
    one = command(*TINY, "--env", f"{FAULTY}:raises", "--env-arg", "at=500", "--steps", 10**6, "--max-restarts", 0)
    status, text = one.end()
    assert status == 1, text
    for word in ("worker", "stream", "seed", "step", "RuntimeError: the probe raises in step 500", "checkpoint"):
        assert word in text
    one.settle()
    (folder,) = one.runs.iterdir()
    again = command("--resume", folder, "--steps", int(str(one.checkpoint()["step"])) + 100)
    assert again.end()[0] == 0


def test_sigterm_to_the_whole_group_writes_a_checkpoint(command: Callable[..., Command]) -> None:
    """Job schedulers signal every process of a job; actors must leave the answer to the command."""
    one = command(*TINY, "--env", "probe:counter", "--steps", 10**7)
    one.until(one.acting)
    os.killpg(one.process.pid, signal.SIGTERM)
    status, text = one.end()
    assert status == 143, text
    assert "Traceback" not in text
    assert "exact: false" not in text
    one.settle()
