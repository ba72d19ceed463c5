"""Changes run folders as damage and attackers would, then loads, evaluates and resumes each one in a watched process.

    .venv/bin/python scripts/mutations.py --cases 1000

Each case is a copy of a small run with one change, used once: `rltrain.load`, `rleval` or `rltrain --resume`, in a
forked process. A case fails if that process executes code that the files name, starts a program, changes anything
outside of the run's folder, prints a traceback, ends with a status other than 0, 1 and 2, or exceeds its limits of time
and memory. Each such case is printed, and each that ends with status 1. The table at the end counts all of these.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import stat
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

import rltrain
from rltrain import cli, run
from rltrain.evaluation import evaluate
from rltrain.setup import task_process
from rltrain.storage import signature

IMPORTED = run, evaluate  # before the forks, so that each of them does not import them again
SECONDS = 60.0  # limit of one case; a usual one takes less than a second
MEMORY = 4 * 2**30  # limit of the address space of one case beyond that of its parent
QUICK: dict[str, Any] = {
    "workers": 0, "streams": 2, "widths": (8,), "steps": 160, "checkpoint_every": 64, "eval_every": 80,
    "eval_episodes": 1, "preset": "none", "quiet": True,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "ppo": {"algo": "ppo", "env": "probe:counter", "unroll": 16, "normalize_obs": True},
    "dqn": {"algo": "dqn", "env": "probe:counter", "capacity": 256, "warmup": 16, "batch": 8, "prioritized": True},
    "sac": {"algo": "sac", "env": "Pendulum-v1", "capacity": 256, "warmup": 16, "batch": 8, "record": "recording"},
    "qmix": {"algo": "qmix", "env": "two-step", "capacity": 256, "warmup": 16, "batch": 4, "memory": "gru"},
}
PAYLOAD = (
    "import pathlib\npathlib.Path({mark!r}).touch()\ndef X(*args, **kwargs):\n    pathlib.Path({mark!r}).touch()\n"
)
CODE = (
    "payload:X", "payload.py:X", "run/payload.py:X", "run.payload:X", "pettingzoo:payload", "subprocess:Popen",
    "os:system", "sys:exit", "builtins:input", "builtins:exec", "payload:X-v0", "../payload.py:X", "envpool:payload",
    "module:payload:X", "payload", "gymnasium:make", "time:sleep", "antigravity:geohash", "this:s", "pty:spawn",
)  # fmt: skip
PATHS = ("../outside", "../outside/precious", "/dev/zero", "/etc/passwd", "../../outside", "{outside}", "{outside}/new")
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x",
    "\x1b[31mred", "a\nb", "é" * 300, "x" * 5000, [], {}, [[]], [None], {"": {}}, {"array": "nothing"}, [1e9], "\udc80",
)  # fmt: skip
USES = ("load", "rleval", "resume")

Mutation = Callable[["Case"], str]


@dataclass
class Case:
    """One changed copy of a run. `root` holds the run, a payload, and a folder outside of the run."""

    root: Path
    rng: random.Random
    names: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def outside(self) -> Path:
        return self.root / "outside"

    def file(self, pattern: str = "*") -> Path:
        """One of the run's files."""
        return self.rng.choice(sorted(path for path in self.run.rglob(pattern) if path.is_file()))

    def any_path(self) -> Path:
        """One of the run's files or folders, or the place of a file that it may write."""
        written = (".run.json", ".lock", ".metrics.jsonl", "replay", "checkpoints/.latest", "checkpoints/.best")
        new = [self.run / name for name in (*written, "checkpoints/segments", "checkpoints/.writing-step-000000000128")]
        return self.rng.choice([*sorted(self.run.rglob("*")), *new])

    def checkpoint(self) -> Path:
        return self.run / "checkpoints" / (self.run / "checkpoints" / "latest").read_text().strip()


# Mutations. Each returns a text for the report.


def flip(case: Case) -> str:
    file, count = case.file(), case.rng.choice((1, 1, 1, 8, 64))
    data = bytearray(file.read_bytes())
    for _ in range(count if data else 0):
        data[case.rng.randrange(len(data))] ^= 1 << case.rng.randrange(8)
    file.write_bytes(data)
    return f"{count} bits of {file.name}"


def cut(case: Case) -> str:
    file = case.file()
    data = file.read_bytes()
    at = case.rng.randrange(len(data) + 1)
    kind = case.rng.choice(("cut", "zeroed", "doubled", "empty", "removed"))
    changed = {"cut": data[:at], "zeroed": data[:at] + bytes(len(data) - at), "doubled": data + data[at:], "empty": b""}
    file.write_bytes(changed[kind]) if kind in changed else file.unlink()
    return f"{file.name} {kind}"


def swap(case: Case) -> str:
    one, two = case.file(), case.file()
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)
    return f"{one.name} and {two.name} exchanged"


def link(case: Case) -> str:
    path = case.any_path()
    folder = path.is_dir() or path.name in ("segments", "replay") or path.name.startswith(".writing")
    moved = case.outside / f"moved-{path.name}"
    if path.exists() and case.rng.random() < 0.5:
        shutil.move(path, moved)
        target = moved
    else:
        target = case.outside / ("folder" if folder else "precious")
        _remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not folder and case.rng.random() < 0.3:
        os.link(target, path)
        return f"{path.relative_to(case.run)} is a hard link"
    path.symlink_to(target if case.rng.random() < 0.5 else os.path.relpath(target, path.parent))
    return f"{path.relative_to(case.run)} is a link to {target.name}"


def special(case: Case) -> str:
    path, kind = case.any_path(), case.rng.choice(("pipe", "socket", "folder", "zero", "full", "huge"))
    _remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket must be short
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
        os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(2**40)
    else:
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5 if kind == "zero" else 7))
        except PermissionError:
            path.symlink_to(f"/dev/{kind}")
    return f"{path.relative_to(case.run)} is a {kind}"


def nested(case: Case) -> str:
    depth = case.rng.choice((50, 150, 300, 900, 5_000, 100_000))
    opening, closing = case.rng.choice((("[", "]"), ('{"a":', "}")))
    file = case.rng.choice([case.run / "run.json", case.checkpoint() / "meta.json"])
    text = opening * depth + "0" * (opening != "[") + closing * depth
    marked = json.loads(file.read_bytes())
    parent, key = case.rng.choice(list(_places(marked)))
    parent[key] = "HERE"
    if depth <= 300:
        parent[key] = json.loads(text)
        _write(file, marked)
    else:
        file.write_text(json.dumps(marked, indent=1).replace('"HERE"', text))
    return f"{depth} levels at {key} of {file.name}"


def odd_value(case: Case) -> str:
    """One value of a JSON document is another one, and its hash is computed again."""
    file = case.rng.choice([case.run / "run.json", *[case.checkpoint() / "meta.json"] * 3])
    content = json.loads(file.read_bytes())
    texts = []
    for _ in range(case.rng.choice((1, 1, 2))):
        parent, key = case.rng.choice(list(_places(content)))
        kind = case.rng.random()
        if kind < 0.15 and isinstance(parent, dict):
            del parent[key]
            texts.append(f"{key} removed")
        elif kind < 0.25 and isinstance(parent, dict):
            parent[f"{key}x"] = parent.pop(key)
            texts.append(f"{key} renamed")
        else:
            parent[key] = _odd(case)
            texts.append(f"{key} = {str(parent[key])[:30]!r}")
    _write(file, content)
    return f"{file.name}: {', '.join(texts)}"


def odd_config(case: Case) -> str:
    """One value of the configuration is another one, in every file."""
    content = json.loads((case.run / "run.json").read_bytes())["config"]
    keys = [(table, key) for table in ("", "settings") for key in (content[table] if table else content)]
    table, key = case.rng.choice(keys)
    value = _odd(case)
    _configure(case, table, key, value)
    return f"{table}.{key} = {str(value)[:40]!r}"


def code(case: Case) -> str:
    """A name of code in a text of the configuration, in every file."""
    content = json.loads((case.run / "run.json").read_bytes())["config"]
    texts = [(table, key) for table in ("", "settings") for key, value in (content[table] if table else content).items()
             if isinstance(value, str) or value is None]  # fmt: skip
    table, key = case.rng.choice([*texts, *[("", "env"), ("settings", "torso")] * 15])
    name = case.rng.choice((*CODE, *(path.format(outside=case.outside) for path in PATHS)))
    _configure(case, table, key, name)
    if case.rng.random() < 0.5:
        _configure(case, "", "env_args", {"args": ["touch", str(case.root / "executed")]})
    return f"{table}.{key} = {name!r}"


def code_anywhere(case: Case) -> str:
    """A name of code or a path in any text of any JSON document, keys of lists of files included."""
    file = case.file("*.json")
    content = json.loads(file.read_bytes())
    texts = [(parent, key) for parent, key in _places(content) if isinstance(parent[key], str)]
    parent, key = case.rng.choice(texts)
    parent[key] = case.rng.choice((*CODE, *(path.format(outside=case.outside) for path in PATHS)))
    _write(file, content)
    return f"{file.name}: {key} = {parent[key]!r}"


def tensors(case: Case) -> str:
    """Other tensors or another header of them, with hashes that match."""
    path = case.checkpoint() / "state.safetensors"
    data = path.read_bytes()
    kind = case.rng.choice(
        ("nan", "shape", "dtype", "missing", "name", "header", "size", "offsets", "garbage", "sparse")
    )
    arrays = safetensors.numpy.load(data)
    name = case.rng.choice(sorted(arrays))
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if kind == "nan":
        arrays = {key: np.full_like(a, np.nan) if a.dtype.kind == "f" else a for key, a in arrays.items()}
    elif kind == "shape":
        arrays[name] = np.zeros(case.rng.choice(((), (0,), (3, 5), (1, 1, 1, 1), (1000,))), arrays[name].dtype)
    elif kind == "dtype":
        arrays[name] = arrays[name].astype(case.rng.choice((np.float64, np.int8, np.bool_, np.uint64, np.float16)))
    elif kind == "missing":
        del arrays[name]
    elif kind == "name":
        arrays[f"{name}/x"] = arrays.pop(name)
    data = safetensors.numpy.save(arrays)
    if kind == "header":
        text = bytearray(json.dumps(header).encode())
        for _ in range(case.rng.choice((1, 3))):
            text[case.rng.randrange(len(text))] ^= 1 << case.rng.randrange(7)
        data = struct.pack("<Q", len(text)) + bytes(text) + body
    elif kind == "size":
        data = struct.pack("<Q", case.rng.choice((10 * 2**30, 2**63, 0, 1, size + 8, size - 8))) + data[8:]
    elif kind == "offsets":
        entry = case.rng.choice([item for key, item in header.items() if key != "__metadata__"])
        key = case.rng.choice(("data_offsets", "shape", "dtype"))
        entry[key] = {"data_offsets": [0, 2**62], "shape": [2**40, 2**40], "dtype": "BF16"}[key]
        text = json.dumps(header).encode()
        data = struct.pack("<Q", len(text)) + text + body
    elif kind == "garbage":
        data = case.rng.randbytes(case.rng.choice((0, 7, 8, 100)))
    path.write_bytes(data)
    meta = json.loads((case.checkpoint() / "meta.json").read_bytes())
    meta["files"][path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if kind == "sparse":
        meta["files"][path.name]["bytes"] = 2**40
        os.truncate(path, 2**40)
    _write(case.checkpoint() / "meta.json", meta)
    return f"tensors: {kind} {name if kind not in ('nan', 'sparse') else ''}"


MUTATIONS: tuple[Mutation, ...] = (
    flip, cut, swap, link, special, nested, odd_value, odd_config, code, code_anywhere, tensors,
)  # fmt: skip


def _odd(case: Case) -> Any:
    values = (*ODD, *CODE[:6], PATHS[1], json.loads("[" * 60 + "]" * 60))
    return case.rng.choice(values)


def _configure(case: Case, table: str, key: str, value: Any) -> None:
    for file in (case.run / "run.json", *(case.run / "checkpoints").glob("*/meta.json")):
        content = json.loads(file.read_bytes())
        (content["config"][table] if table else content["config"])[key] = value
        _write(file, content)


def _write(file: Path, content: dict[str, Any]) -> None:
    """Writes a JSON document with the hash of its new content."""
    content = {key: value for key, value in content.items() if key not in ("sha256", "signature")}
    with contextlib.suppress(RecursionError, ValueError):
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        file.write_bytes(json.dumps({"sha256": digest, **content}, indent=1).encode())


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """All places in a document: (list or dict, index or key)."""
    for key in node if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# The sandbox.


@dataclass
class Report:
    """What one case did."""

    use: str
    change: str
    faults: list[str]
    status: int | None
    text: str
    seconds: float
    memory: int  # bytes, of the resident set


def try_case(case: Case, use: str, change: str) -> Report:
    """Uses the changed run in a forked process, and looks for everything that must not happen."""
    before, began = _snapshot(case), time.monotonic()
    output, log = case.root / "output", case.root / "log"
    child = os.fork()
    if child == 0:
        _child(case, use, output, log)
    status, usage, hung = _wait(child)
    text = output.read_text(errors="replace")
    faults = log.read_text(errors="replace").splitlines() if log.exists() else []
    if (case.root / "executed").exists():
        faults.append("executed: the payload")
    if _snapshot(case) != before:
        faults.append("outside: files have changed")
    if hung:
        faults.append(f"hang: more than {SECONDS:g} s")
    elif status not in (0, 1, 2):
        faults.append(f"status: {status}")
    if "Traceback" in text or (status == 2 and len(text.strip().splitlines()) != 1):
        faults.append("traceback: or more than one line")
    return Report(use, change, faults, status, text, time.monotonic() - began, usage.ru_maxrss * 1024)


def _child(case: Case, use: str, output: Path, log: Path) -> None:
    """Runs in the forked process, and never returns."""
    code = 99
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.setsid()
        os.chdir(case.root)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(n, "w"), write_through=True, errors="replace") for n in (1, 2)
        )
        _watch(case, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        if use == "load":
            try:
                rltrain.load("run")
                code = 0
            except (rltrain.CheckpointError, rltrain.ConfigError) as error:
                print(error)
                code = 2
        elif use == "rleval":
            code = cli.main_eval(["run", "--episodes", "1"])
        else:
            code = cli.main(["--resume", "run", "--steps", "240", "--quiet", "--workers", "0"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _watch(case: Case, log: int) -> None:
    """Logs imports and executions of files in the case's folder, programs, and changes outside of the run."""
    temporary = os.path.join(tempfile.gettempdir(), "rltrain-")  # what our own processes share
    ours = rltrain.__path__[0] + os.sep  # the program that ends children of the environment runs a file of ours
    root, run, recording = os.path.realpath(case.root), os.path.realpath(case.run), str(case.root / "recording")
    programs = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.forkpty", "pty.spawn")
    changes = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod")
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        text = os.path.realpath(os.fsdecode(path))
        return not text.startswith((run + "/", recording, temporary, "/dev/null", "/dev/shm", "/proc/")) and text != run

    def hook(event: str, args: tuple[Any, ...]) -> None:
        found = None
        if event == "exec" and getattr(args[0], "co_filename", "").startswith(root):
            found = f"executed: {args[0].co_filename}"
        elif event == "import" and "payload" in str(args[0]):
            found = f"executed: import of {args[0]}"
        elif event in programs and ours not in str(args):
            found = f"program: {event} {str(args)[:100]}"
        elif event == "open" and isinstance(args[2], int) and args[2] & writes and outside(args[0]):
            found = f"outside: open {args[0]!r}"
        elif event in changes and outside(args[0]) and not any(isinstance(a, int) and a > 2 for a in args[1:]):
            found = f"outside: {event} {args[0]!r}"
        elif event in ("socket.connect", "socket.bind") and "rltrain-" not in str(args[1]):  # our own fork server
            found = f"program: {event} {args[1:]!r}"
        if found is not None:
            os.write(log, (found + "\n").encode(errors="replace"))

    sys.addaudithook(hook)


def _wait(child: int) -> tuple[int | None, resource.struct_rusage, bool]:
    """The status of the process, what it used, and whether it had to be killed."""
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage, False
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    return None, os.wait4(child, 0)[2], True


def _snapshot(case: Case) -> dict[str, Any]:
    """Everything outside of the run that must stay as it is."""
    paths = [*case.outside.rglob("*"), *case.root.glob("*.py")]
    state: dict[str, Any] = {}
    for path in paths:
        status = path.lstat()
        regular = stat.S_ISREG(status.st_mode) and status.st_size < 2**24
        content = path.read_bytes() if regular else b""
        state[str(path)] = (status.st_mode, status.st_size, hashlib.sha256(content).hexdigest())
    return state


# The whole sweep.


def templates(folder: Path, names: Collection[str] = tuple(RUNS)) -> dict[str, Path]:
    """The small runs that are changed."""
    made: dict[str, Path] = {}
    for name in names:
        settings = RUNS[name]
        home = folder / name
        home.mkdir(parents=True)
        if "record" in settings:
            settings = {**settings, "record": str(home / settings["record"])}
        made[name] = rltrain.train(**{**QUICK, **settings}, out=str(home)).run
    return made


def cases(
    made: dict[str, Path], folder: Path, numbers: range, changes: Sequence[Mutation] = MUTATIONS
) -> Iterator[Report]:
    """Tries the cases with these numbers. A number is always the same run, change and use."""
    for number in numbers:
        rng = random.Random(number)
        case = Case(folder / f"case-{number}", rng)
        case.outside.mkdir(parents=True)
        (case.outside / "folder").mkdir()
        for path in (
            case.outside / "precious",
            case.outside / "folder" / "precious",
            case.outside / "folder" / "a.json",
        ):
            path.write_text("precious\n")
        shutil.copytree(made[rng.choice(sorted(made))], case.run)
        for file in (case.root / "payload.py", case.run / "payload.py"):
            file.write_text(PAYLOAD.format(mark=str(case.root / "executed")))
        change = changes[number % len(changes)](case)
        yield try_case(case, USES[number // len(changes) % len(USES)], f"case {number}: {change}")
        shutil.rmtree(case.root, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", choices=[change.__name__ for change in MUTATIONS], help="one kind of change")
    parser.add_argument("--show", action="store_true", help="prints every case")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task_process.start_method = lambda: "fork"  # the child that examines an environment is watched too
    counts: collections.Counter[str] = collections.Counter()
    slowest, most = 0.0, 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        folder = Path(name).resolve()
        os.environ["XDG_CONFIG_HOME"] = str(folder / "author")
        made = templates(folder)
        os.environ["XDG_CONFIG_HOME"] = str(folder / "user")  # the runs are somebody else's
        signature.sign("")  # creates the key, which is outside of the run
        changes = [change for change in MUTATIONS if given.only in (None, change.__name__)]
        for report in cases(made, folder, range(given.first, given.first + given.cases), changes):
            counts["refused" if report.status == 2 else "used" if report.status == 0 else "failed"] += 1
            counts.update({fault.partition(":")[0] for fault in report.faults})
            slowest, most = max(slowest, report.seconds), max(most, report.memory)
            if report.faults or report.status not in (0, 2) or given.show:
                print(f"{report.change} ({report.use}, status {report.status}): {'; '.join(report.faults)}")
                print("\n".join(f"    {line[:300]}" for line in report.text.strip().splitlines()[-12:]), flush=True)
    rows = {
        "cases": given.cases,
        **{f"cases {name}": counts[name] for name in ("refused", "used", "failed")},
        "executions of code in files": counts["executed"],
        "programs and connections": counts["program"],
        "changes outside of the run": counts["outside"],
        "hangs": counts["hang"],
        "tracebacks": counts["traceback"] + counts["status"],
    }
    print("| what | number |\n| --- | ---: |")
    for what, number in rows.items():
        print(f"| {what} | {number:,} |")
    print(f"| slowest case, seconds | {slowest:.1f} |\n| largest resident set, MiB | {most / 2**20:.0f} |")
    return int(any(counts[name] for name in ("executed", "program", "outside", "hang", "traceback", "status")))


if __name__ == "__main__":
    sys.exit(main())
