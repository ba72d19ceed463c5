"""Requests per second of processor time, latency, start and memory of `rlserve` beside other servers.

    python benchmarks/serving.py [--peers DIR] [--only NAME,NAME] [--seconds 3] [--rounds 5]
    python benchmarks/serving.py --part reloads|drain|kill|act

Each server is started alone and answers with the same ONNX file of a CartPole policy, on one thread of onnxruntime.
`rlserve with torch` answers from the checkpoint itself. rlserve validates each value, counts metrics and checks a
token; the others check what their tutorials show. wrk asks over 1 and 32 connections, each of which waits for its
answer before it asks again. hey then asks 200 times per second in all over 20 connections. The processor time is that
of all processes of the server, so that `per cpu-s` hardly moves with the load of the machine. PSS is the memory of
all of them.

The other parts, under 32 clients: a reload every second for a minute, SIGTERM, and SIGKILL of one of two processes.
`act` is one observation in this process, beside onnxruntime. wrk and hey are packages of Debian. The environments of
the peers are made by `benchmarks/peers.sh DIR fastapi rayserve litserve bentoml`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

MAIN = "from rltrain.cli import main_serve; raise SystemExit(main_serve())"
HERE = Path(__file__).resolve().parent
TOKEN = "benchmark-token-0123456789"
BODY = json.dumps({"obs": [0.1, 0.2, 0.3, 0.4]}).encode()
MARK = "BENCHMARK_SERVER"  # a variable of the environment: the processes of one server share its value
PEERS = {
    "FastAPI + onnxruntime": ("fastapi", "serve_fastapi.py"),
    "LitServe": ("litserve", "serve_litserve.py"),
    "BentoML": ("bentoml", "serve_bentoml.py"),
    "Ray Serve": ("rayserve", "serve_ray.py"),
}


# What wrk sends, and the one line that it prints at the end.
SCRIPT = """
wrk.method, wrk.body = "POST", '%s'
wrk.headers["Content-Type"], wrk.headers["Authorization"] = "application/json", "Bearer %s"
function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print("RESULT", summary.requests, latency:percentile(50), latency:percentile(99), failed)
end
"""


def ask(url: str) -> bool:
    """Whether the server answers one request."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, BODY, headers), timeout=2) as answer:
            return b"action" in answer.read()
    except OSError:
        return False


def closed_loop(url: str, connections: int, seconds: float, script: Path) -> tuple[int, float, float]:
    """wrk: the number of answers, and the median and the 99th percentile of their times in ms."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(script), url]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    answers, p50, p99, failed = (float(word) for word in printed.split("RESULT", 1)[1].split())
    if failed:
        raise RuntimeError(f"{failed:.0f} of {answers:.0f} requests of wrk to {url} failed")
    return int(answers), p50 / 1e3, p99 / 1e3


def open_loop(url: str, rate: int, seconds: float) -> tuple[float, float]:
    """hey: the median and the 99th percentile in ms, at a fixed number of requests per second over 20 connections."""
    workers = 20
    command = ["hey", "-z", f"{seconds:g}s", "-c", str(workers), "-q", str(rate / workers), "-m", "POST", "-o", "csv"]
    command += ["-T", "application/json", "-H", f"Authorization: Bearer {TOKEN}", "-d", BODY.decode(), url]
    rows = list(csv.DictReader(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()))
    if any(row["status-code"] != "200" for row in rows):
        raise RuntimeError(f"{url} refused a request of hey")
    times = [float(row["response-time"]) * 1e3 for row in rows]
    return float(np.percentile(times, 50)), float(np.percentile(times, 99))


def processes_of(mark: str) -> list[psutil.Process]:
    """All processes that a server has started: each has inherited `mark` in its environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def processor_time(mark: str) -> float:
    total = 0.0
    for process in processes_of(mark):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def measure(command: list[str], url: str, seconds: float, script: Path) -> dict[str, float]:
    """One server from its start to its end."""
    mark = f"{os.getpid()}-{time.time()}"
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    begin = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                              env={**os.environ, **single, MARK: mark})  # fmt: skip
    try:
        while not ask(url):
            if server.poll() is not None:
                raise RuntimeError(f"{command} ended with status {server.returncode}")
            time.sleep(0.01)
        found = {"first answer, s": time.perf_counter() - begin}
        closed_loop(url, 8, 1, script)
        for connections in (1, 32):
            before = processor_time(mark)
            answers, p50, p99 = closed_loop(url, connections, seconds, script)
            used = processor_time(mark) - before
            found[f"per cpu-s, {connections}"] = answers / max(used, 1e-9)
            found[f"per s, {connections}"] = answers / seconds
            found[f"p50 ms, {connections}"], found[f"p99 ms, {connections}"] = p50, p99
        found["p50 ms, 200/s"], found["p99 ms, 200/s"] = open_loop(url, 200, seconds)
        found["PSS, MB"] = sum(process.memory_full_info().pss for process in processes_of(mark)) / 2**20
        found["processes"] = len(processes_of(mark))
        return found
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        for process in processes_of(mark):
            with contextlib.suppress(psutil.Error):
                process.kill()


def policy(folder: Path, steps: int = 512) -> Path:
    """An ONNX file of a policy of CartPole."""
    import rltrain

    file = folder / f"policy-{steps}.onnx"
    result = rltrain.train(algo="ppo", env="CartPole-v1", workers=0, streams=4, unroll=64, steps=steps, eval_every=0,
                  widths=(64, 64), quiet=True, out=str(folder))  # fmt: skip
    rltrain.export(result.checkpoint, file, rows=100)
    return file


async def checked_client(port: int, over: asyncio.Event, right: dict[int, Any], counts: Counter[str],
                         times: list[float]) -> None:  # fmt: skip
    """One connection that asks on; counts what is wrong. A connection is opened again when the server has closed it."""
    body = json.dumps({"obs": [0.1, 0.2, 0.3, 0.4], "details": True}).encode()
    request = b"POST /v1/act HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    connection: Any = None
    while not over.is_set():
        if connection is None:
            try:
                connection = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                counts["refused connections"] += 1
                await asyncio.sleep(0.02)
                continue
        reader, writer = connection
        begin = time.perf_counter()
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            answer = json.loads(await reader.readexactly(size))
        except (OSError, asyncio.IncompleteReadError):
            counts["requests without an answer"] += 1
            writer.close()
            connection = None
            continue
        times.append(time.perf_counter() - begin)
        counts[f"status {head.split()[1].decode()}"] += 1
        if b"200 OK" in head[:20]:
            counts[f"of step {answer['step']}"] += 1
            if right.setdefault(answer["step"], (answer["action"], answer["scores"])) != (
                answer["action"],
                answer["scores"],
            ):
                counts["mixed answers"] += 1
        if b"connection: close" in head.lower():
            writer.close()
            connection = None
    if connection is not None:
        connection[1].close()


def start(arguments: list[str], port: int) -> subprocess.Popen[bytes]:
    """A server that answers."""
    server = subprocess.Popen([*arguments, "--port", str(port)], stdout=subprocess.DEVNULL)
    while server.poll() is None:
        try:
            asyncio.run(asyncio.open_connection("127.0.0.1", port))
            return server
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"the server ended with status {server.returncode}")


async def under_load(port: int, right: dict[int, Any], work: Any) -> dict[str, Any]:
    """32 clients ask while `work` runs; their counts and latencies."""
    over, counts, times = asyncio.Event(), Counter[str](), list[float]()
    clients = [asyncio.ensure_future(checked_client(port, over, right, counts, times)) for _ in range(32)]
    found = await work() or {}
    over.set()
    await asyncio.gather(*clients)
    latency = {f"p{share} ms": round(float(np.percentile(times, share)) * 1e3, 2) for share in (50, 99)}
    return {**counts, **latency, **found}


async def post(port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    status = int((await reader.readuntil(b"\r\n\r\n")).split()[1])
    writer.close()
    return status


def reloads(ours: list[str], folder: Path, seconds: float) -> dict[str, Any]:
    """A reload every second, of two files in turn."""
    files = [policy(folder, step) for step in (512, 1024)]
    served, right = folder / "served.onnx", dict[int, Any]()

    def take(number: int) -> None:
        copy = folder / "copy.onnx"
        copy.write_bytes(files[number % 2].read_bytes())
        copy.replace(served)

    take(0)
    server = start([*ours, str(served)], 8126)

    async def quiet() -> None:
        await asyncio.sleep(5)

    async def reload() -> dict[str, Any]:
        statuses: Counter[str] = Counter()
        for number in range(1, round(seconds) + 1):
            begin = time.perf_counter()
            take(number)
            statuses[f"reloads with {await post(8126, '/v1/reload')}"] += 1
            await asyncio.sleep(max(0.0, 1 - (time.perf_counter() - begin)))
        return dict(statuses)

    try:
        before = asyncio.run(under_load(8126, right, quiet))
        return {"without reloads": before, "with reloads": asyncio.run(under_load(8126, right, reload))}
    finally:
        server.terminate()
        server.wait(30)


def drain(ours: list[str], folder: Path, seconds: float) -> dict[str, Any]:
    """SIGTERM while 32 clients ask: every request that was sent is answered."""
    server = start([*ours, str(policy(folder))], 8127)

    async def work() -> dict[str, Any]:
        await asyncio.sleep(seconds)
        begin = time.perf_counter()
        server.terminate()
        status = await asyncio.to_thread(server.wait, 30)
        return {"exit status": status, "seconds to the end": round(time.perf_counter() - begin, 2)}

    return asyncio.run(under_load(8127, {}, work))


def kill(ours: list[str], folder: Path, seconds: float) -> dict[str, Any]:
    """SIGKILL of one of two processes: the other answers, and the process is replaced."""
    server = start([*ours, str(policy(folder)), "--workers", "2"], 8128)

    def workers() -> set[int]:
        return {
            child.pid for child in psutil.Process(server.pid).children() if "spawn_main" in " ".join(child.cmdline())
        }

    async def work() -> dict[str, Any]:
        while len(workers()) < 2:
            await asyncio.sleep(0.05)
        await asyncio.sleep(seconds)
        before, begin = workers(), time.perf_counter()
        os.kill(min(before), signal.SIGKILL)
        while len(workers() - {min(before)}) < 2:
            await asyncio.sleep(0.05)
        replaced = time.perf_counter() - begin
        await asyncio.sleep(seconds)
        return {"seconds to the start of a new process": round(replaced, 2)}

    try:
        return asyncio.run(under_load(8128, {}, work))
    finally:
        server.terminate()
        server.wait(30)


def act(ours: list[str], folder: Path, seconds: float) -> dict[str, Any]:
    """One observation by `Trained.act` and by onnxruntime, in microseconds: medians and the least of 300 rounds."""
    import onnxruntime
    import torch

    import rltrain

    torch.set_num_threads(1)
    file = policy(folder)
    trained = rltrain.load(next(folder.glob("ppo-*")))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(file), options)
    obs = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    row = {"obs": obs[None], "noise": np.zeros((1, 2), np.float32), "sample": np.zeros(1, bool)}
    found: dict[str, Any] = {}
    for name, call in (("act", lambda: trained.act(obs)), ("onnxruntime", lambda: session.run(None, row))):
        rounds = []
        for _ in range(300):
            begin = time.perf_counter()
            for _ in range(100):
                call()
            rounds.append((time.perf_counter() - begin) / 100 * 1e6)
        found[name] = {"median us": round(float(np.median(rounds)), 1), "least us": round(min(rounds), 1)}
    return found


PARTS = {"reloads": (reloads, 60.0), "drain": (drain, 3.0), "kill": (kill, 5.0), "act": (act, 0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="in place of the comparison")
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", type=Path, help="the folder with the peers' environments")
    parser.add_argument("--only", help="names of servers, separated by commas")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.part:
            part, usual = PARTS[given.part]
            found = part([sys.executable, "-c", MAIN], folder, usual if given.seconds is None else given.seconds)
            print(json.dumps({"load": os.getloadavg()[0], given.part: found}, indent=1))
            return
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # this process must not share torch with the servers
            file = pool.submit(policy, folder).result()
        token, script = folder / "token", folder / "request.lua"
        token.write_text(TOKEN)
        token.chmod(0o600)
        script.write_text(SCRIPT % (BODY.decode(), TOKEN))
        ours = [sys.executable, "-c", MAIN]
        closed = ["--port", "8123", "--token-file", str(token)]
        address = "http://127.0.0.1:8123/v1/act"
        servers = {"rlserve": ([*ours, str(file), *closed], address),
                   "rlserve with torch": ([*ours, str(next(folder.glob("ppo-*"))), *closed], address)}  # fmt: skip
        for name, (environment, program) in PEERS.items():
            if given.peers and (python := given.peers / environment / "bin" / "python").exists():
                peer = [str(python), str(HERE / "peers" / program), str(file), "8124"]
                servers[name] = (peer, "http://127.0.0.1:8124/act")
        if given.only:
            servers = {name: servers[name] for name in given.only.split(",")}
        rounds: dict[str, list[dict[str, float]]] = {server: [] for server in servers}
        for number in range(given.rounds):
            for server, (command, url) in servers.items():
                rounds[server].append(measure(command, url, given.seconds or 3.0, script))
                print(f"round {number + 1}: {server} {rounds[server][-1]}", file=sys.stderr, flush=True)
        medians: dict[str, Any] = {
            server: {key: round(float(np.median([one[key] for one in found])), 3) for key in found[0]}
            for server, found in rounds.items()
        }
        print(json.dumps({"load": os.getloadavg()[0], "medians": medians}, indent=1))


if __name__ == "__main__":
    main()
