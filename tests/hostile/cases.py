"""The hostile environments as cases: what each one is expected to do, one run of it, and what was wrong with the run.

Each class in `environments/` says in EXPECT what must happen; the classes are read, not imported. Without EXPECT a run
must end as that of `Harmless` does, with the same fingerprint. Keys of EXPECT:

    when     events at which it is hostile, a case each; default one case, at all events
    status   of the command, or several that are right; default 0 without `says`, else 2 at the start, 1 "later"
    says     pattern of the line that a failed run prints
    notes    pattern of a line that a run prints although it trains
    traceback  True: the user's traceback is printed; None: it may be
    dies     it ends the process that it runs in, so with --workers 0 the run itself
    alone    other values with --workers 0, where it runs in the process of the run
    twin     class with the same fingerprint; None: the fingerprint need only be the same for all numbers of workers
    flags    more flags
    algos    algorithms, a case each; default ppo
    workers  numbers of workers that apply
    signal   sent to the run once it trains
    file     name of the file that contains the class; beside: files that raise when they are imported; as: its name
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORKERS = (0, 2, 8)
MARKER = "RLTRAIN_HOSTILE_CASE"
SETTINGS = {
    "streams": 8, "steps": 320, "eval-every": 160, "eval-episodes": 5, "checkpoint-every": 160, "preset": "none",
    "max-restarts": 1, "actor-timeout": 30,
}  # fmt: skip
ALGORITHMS = {  # settings of the small networks and buffers of each
    "on-policy": {"unroll": 8, "widths": [8]},
    "replay": {"warmup": 64, "batch": 8, "capacity": 1000, "widths": [8]},
}
REPLAY = ("dqn", "sac", "td3", "ddpg", "qmix", "vdn", "iql", "maddpg")
ENTRY = "import sys\nfrom rltrain.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
SCRIPT_SETTINGS = "dict(algo='ppo', out='runs', quiet=True, {})"


@dataclass(frozen=True)
class Case:
    """One class of `environments/` or one of `scripts/`, at one event, with one algorithm."""

    module: str
    name: str
    text: str  # what it does
    when: str = ""
    algo: str = "ppo"
    expect: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def id(self) -> str:
        more = ",".join(part for part in (self.when, self.algo if self.algo != "ppo" else "") if part)
        return f"{self.module}.{self.name}" + (f"[{more}]" if more else "")

    @property
    def workers(self) -> tuple[int, ...]:
        return tuple(self.expect.get("workers", WORKERS))

    @property
    def trains(self) -> bool:
        return "says" not in self.expect and self.expect.get("status", 0) == 0

    @property
    def acts(self) -> bool:
        """Whether actors are started: other runs end at the first look, and no backend is used."""
        return self.trains or self.when in ("later", "close") or "signal" in self.expect

    @property
    def statuses(self) -> tuple[int, ...]:
        """The right ones."""
        default = 0 if "says" not in self.expect else 1 if self.when == "later" else 2
        if default == 2 and self.expect.get("traceback"):
            return tuple(self.expect.get("statuses", (1, 2)))
        status = self.expect.get("status", default)
        return (status,) if isinstance(status, int) else tuple(status)

    @property
    def twin(self) -> str | None:
        """The id of the case with the same fingerprint, or None."""
        twin = self.expect.get("twin", "harmless")
        if twin is None or (twin == self.name and not self.when):
            return None
        module = "harmless" if twin.lower() == "harmless" else self.module
        return f"{module}.{'Harmless' if module == 'harmless' else twin}"


def cases() -> list[Case]:
    """All, in the order of the files."""
    found = [Case("harmless", "Harmless", "Does nothing that it should not.", expect={"twin": None})]
    for file in sorted((HERE / "environments").glob("*.py")):
        if file.stem != "harmless":
            found += _cases_of(file)
    for file in sorted((HERE / "scripts").glob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        found.append(Case("scripts", file.stem, text.splitlines()[0]))
    return found


def _cases_of(file: Path) -> list[Case]:
    tree = ast.parse(file.read_text())
    constants: dict[str, Any] = {}
    found = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with contextlib.suppress(ValueError, TypeError):
                constants[node.targets[0].id] = ast.literal_eval(node.value)
        text = ast.get_docstring(node) if isinstance(node, ast.ClassDef) else None
        if not isinstance(node, ast.ClassDef) or text is None or node.name.startswith("_"):
            continue
        expect: dict[str, Any] | None = None
        for line in node.body:
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "EXPECT":
                expect = ast.literal_eval(_Names(constants).visit(line.value))
        bases = {ast.unparse(base) for base in node.bases}
        if expect is None and not bases - {"BaseException", "Exception", "object"}:
            continue  # a helper
        found += [
            Case(file.stem, node.name, text.splitlines()[0].strip(), when, algo, expect or {})
            for when in (expect or {}).get("when", [""])
            for algo in (expect or {}).get("algos", ["ppo"])
        ]
    return found


class _Names(ast.NodeTransformer):
    """Puts the values of constants in the place of their names."""

    def __init__(self, constants: dict[str, Any]) -> None:
        self.constants = constants

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.parse(repr(self.constants[node.id]), mode="eval").body


@dataclass
class Outcome:
    """How the run of a case ended."""

    status: int | None  # None: it did not end
    out: str
    err: str
    seconds: float
    left: list[str]  # processes, files and shared memory that were left over

    @property
    def fingerprint(self) -> str:
        lines = self.out.strip().splitlines() or [""]
        with contextlib.suppress(ValueError):
            return str(json.loads(lines[-1]).get("fingerprint", ""))
        return lines[-1]


def run(case: Case, workers: int, limit: float = 90.0, backend: str = "") -> Outcome:
    """Run a case in a folder of its own, and end whatever is left of it."""
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        return _run(case, workers, limit, backend, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _run(case: Case, workers: int, limit: float, backend: str, root: Path) -> Outcome:
    folder, temporary = root / "here", root / "tmp"
    folder.mkdir()
    temporary.mkdir()
    command = [sys.executable, *_command(case, workers, backend, root)]
    environ = {**os.environ, MARKER: uuid.uuid4().hex, "TMPDIR": str(temporary)}
    memory = root / "shm"
    memory.mkdir()
    if own_shared_memory():
        command = [*UNSHARE, "sh", "-c", 'mount --bind "$0" /dev/shm && exec "$@"', str(memory), *command]
    start = time.monotonic()
    with (root / "out").open("w") as out, (root / "err").open("w") as err:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environ, start_new_session=True
        )
        try:
            if "signal" in case.expect:
                _wait_for_training(process, folder, limit)
                process.send_signal(getattr(signal, case.expect["signal"]))
            status: int | None = process.wait(max(0.1, start + limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = None
    seconds = time.monotonic() - start
    left: list[str] = []
    if status is not None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            left = _left_over(environ[MARKER], temporary, memory)
            if not left:
                break
            time.sleep(0.1)
    for pid in _marked(environ[MARKER]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    texts = [(root / name).read_text(errors="backslashreplace") for name in ("out", "err")]
    return Outcome(status, *texts, seconds, left)


def _command(case: Case, workers: int, backend: str, root: Path) -> list[str]:
    """Arguments of Python; writes the files of the case."""
    folder = root / "here"
    for file in (HERE / "environments").glob("*.py"):
        shutil.copy(file, folder)
    settings = SETTINGS | ALGORITHMS["replay" if case.algo in REPLAY else "on-policy"]
    if case.module == "scripts":
        settings["actor-timeout"] = 120  # without a fork server each worker imports torch
        shutil.copy(HERE / "scripts" / f"{case.name}.py", folder)
        words = ", ".join(f"{key.replace('-', '_')}={value!r}" for key, value in settings.items())
        return [f"{case.name}.py", str(workers), SCRIPT_SETTINGS.format(words)]
    name = case.expect.get("file", f"{case.module}.py")
    if name != f"{case.module}.py":
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / f"{case.module}.py", folder / name)
        if (folder / name).parent != folder:
            shutil.copy(folder / "harmless.py", (folder / name).parent)
    for other in case.expect.get("beside", ()):
        (folder / other).write_text(f"raise ImportError('{other} is not for this')\n")
    (root / "bin").mkdir()
    (root / "bin" / "rltrain").write_text(ENTRY)
    flags = ["--algo", case.algo, "--env", case.expect.get("as", f"{name}:{case.name}"), "--out", "runs"]
    flags += ["--workers", str(workers), "--json", *([] if "notes" in case.expect else ["--quiet"])]
    for key, value in settings.items():
        flags += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    flags += case.expect.get("flags", "").split()
    if case.when:
        flags += ["--env-arg", f"when={case.when}"]
    if backend:
        flags += ["--backend", backend]
    return [str(root / "bin" / "rltrain"), *flags]


def _wait_for_training(process: subprocess.Popen[Any], folder: Path, limit: float) -> None:
    """Until the run folder exists, and half a second more."""
    end = time.monotonic() + limit
    while process.poll() is None and not (folder / "runs").exists() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.5)


def _marked(marker: str) -> list[int]:
    """Processes that inherited the marker in their environment."""
    wanted = f"{MARKER}={marker}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


@functools.cache
def own_shared_memory() -> bool:
    """Whether each run can get a /dev/shm of its own, in which nothing of other programs is seen."""
    return (
        subprocess.run([*UNSHARE, "mount", "--bind", "/tmp", "/dev/shm"], check=False, capture_output=True).returncode
        == 0
    )


def _left_over(marker: str, temporary: Path, memory: Path) -> list[str]:
    left = []
    for pid in _marked(marker):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            left.append(f"process {words[:100]}")
    left += [f"file {path.name}" for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]
    left += [f"shared memory {path.name}" for path in memory.iterdir()]
    return left


def wrong(case: Case, workers: int, outcome: Outcome, twin: str | None = None) -> list[str]:
    """What is not as expected; empty: all is right.

    Args:
        twin: the fingerprint that it must have, if that is known.
    """
    if workers == 0 and "alone" in case.expect:
        case = replace(case, expect=case.expect | case.expect["alone"])
    expect = case.expect
    status, err = outcome.status, outcome.err
    if status is None:
        return ["it did not end"]
    found = [f"left over: {thing}" for thing in outcome.left]
    if expect.get("dies") and workers == 0 and case.when in ("later", "close"):
        return found  # it ended the run's own process: nothing can be said
    if status not in case.statuses:
        found.append(f"status {status}, not {' or '.join(map(str, case.statuses))}")
    if status == 0:
        if "notes" in expect and not re.search(expect["notes"], err):
            found.append(f"no line matches {expect['notes']!r}")
        if not outcome.fingerprint:
            found.append("no result")
        elif twin and outcome.fingerprint != twin:
            found.append("another fingerprint than its twin's")
    elif "says" in expect and not re.search(expect["says"], err):
        found.append(f"no line matches {expect['says']!r}")
    traceback = "Traceback (most recent call last)" in err
    allowed = expect.get("traceback", False)
    if traceback and allowed is False:
        found.append("a traceback")
    if not traceback and allowed is True and status != 0:
        found.append("no traceback of the user's code")
    if (
        traceback
        and allowed is not False
        and not re.search(r"(harmless|endings|at_import|children|odd_spaces|agents)\.py|import_", err)
    ):
        found.append("a traceback without the user's code")
    if status == 2 and not traceback:
        lines = [line for line in err.splitlines() if line.strip()]
        if not 1 <= len(lines) <= 3:
            found.append(f"{len(lines)} lines")
    return found
