"""Answers per second of processor time, and latency, of `rlserve` beside FastAPI with onnxruntime.

    python benchmarks/serving.py [--seconds 3] [--pairs 5] [--peer DIR/fastapi/bin/python]
    python benchmarks/serving.py --part reloads|drain|kill|act

The other parts, under 32 clients: a reload every second for a minute, SIGTERM, and SIGKILL of one of two processes.
`act` is one observation in this process, beside onnxruntime.

Each server is started alone, with one process and one thread, and is asked over 1 and 32 connections, each
of which waits for its answer before it asks again. The processor time is that of the server's process, so the figures
hardly move with the load of the machine. Both serve the same ONNX file of a CartPole policy; rlserve validates, counts
metrics and checks a token. The environment of the peer is made by `benchmarks/peers.sh DIR fastapi`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

MAIN = "from rltrain.cli import main_serve; raise SystemExit(main_serve())"
HERE = Path(__file__).resolve().parent
TOKEN = "benchmark-token-0123456789"
BODY = json.dumps({"obs": [0.1, 0.2, 0.3, 0.4]}).encode()


async def client(port: int, path: str, until: float, times: list[float]) -> None:
    """One connection that asks again and again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(BODY)}\r\n\r\n"
    request = head.encode() + BODY
    while time.perf_counter() < until:
        begin = time.perf_counter()
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        size = next(int(line[15:]) for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(size)
        times.append(time.perf_counter() - begin)
    writer.close()


async def load(port: int, path: str, connections: int, seconds: float) -> list[float]:
    times: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, path, until, times) for _ in range(connections)))
    return times


def measure(command: list[str], port: int, path: str, seconds: float) -> dict[str, float]:
    """One server from its start to its end."""
    begin = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    process = psutil.Process(server.pid)
    try:
        while True:
            try:
                asyncio.run(load(port, path, 1, 0.001))
                break
            except OSError:
                if server.poll() is not None:
                    raise RuntimeError(f"{command} ended with status {server.returncode}") from None
                time.sleep(0.01)
        found = {"first answer, s": time.perf_counter() - begin}
        asyncio.run(load(port, path, 8, 0.5))
        for connections in (1, 32):
            before = sum(process.cpu_times()[:2])
            times = asyncio.run(load(port, path, connections, seconds))
            used = sum(process.cpu_times()[:2]) - before
            found[f"per cpu-s, {connections}"] = len(times) / max(used, 1e-9)
            for name, share in (("p50", 50), ("p99", 99)):
                found[f"{name} ms, {connections}"] = float(np.percentile(times, share)) * 1e3
        found["PSS, MB"] = process.memory_full_info().pss / 2**20
        return found
    finally:
        server.terminate()
        server.wait(20)


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
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--peer", help="the Python of the peer's environment")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.part:
            part, usual = PARTS[given.part]
            found = part([sys.executable, "-c", MAIN], folder, usual if given.seconds is None else given.seconds)
            print(json.dumps({"load": os.getloadavg()[0], given.part: found}, indent=1))
            return
        file = policy(folder)
        token = folder / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        ours = [sys.executable, "-c", MAIN, str(file)]
        servers = {"rlserve": ([*ours, "--port", "8123", "--token-file", str(token)], 8123, "/v1/act")}
        if given.peer:
            peer = [given.peer, str(HERE / "peers" / "fastapi_onnx.py"), str(file), "8124"]
            servers["FastAPI + onnxruntime"] = (peer, 8124, "/act")
        rounds: dict[str, list[dict[str, float]]] = {server: [] for server in servers}
        for _ in range(given.pairs):
            for server, arguments in servers.items():
                rounds[server].append(measure(*arguments, given.seconds or 3.0))
        medians: dict[str, Any] = {
            server: {key: round(float(np.median([one[key] for one in found])), 3) for key in found[0]}
            for server, found in rounds.items()
        }
        print(json.dumps({"load": os.getloadavg()[0], "medians": medians}, indent=1))


if __name__ == "__main__":
    main()
