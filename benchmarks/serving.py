"""Answers per second of processor time, and latency, of `rlserve` beside FastAPI with onnxruntime.

    python benchmarks/serving.py [--seconds 3] [--pairs 5] [--peer DIR/fastapi/bin/python]

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
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

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


def policy(folder: Path) -> Path:
    """An ONNX file of a policy of CartPole."""
    import rltrain

    file = folder / "policy.onnx"
    result = rltrain.train(algo="ppo", env="CartPole-v1", workers=0, streams=4, unroll=64, steps=512, eval_every=0,
                  widths=(64, 64), quiet=True, out=str(folder))  # fmt: skip
    rltrain.export(result.checkpoint, file, rows=100)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--peer", help="the Python of the peer's environment")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = policy(folder)
        token = folder / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        ours = [sys.executable, "-c", "from rltrain.cli import main_serve; raise SystemExit(main_serve())", str(file)]
        servers = {"rlserve": ([*ours, "--port", "8123", "--token-file", str(token)], 8123, "/v1/act")}
        if given.peer:
            peer = [given.peer, str(HERE / "peers" / "fastapi_onnx.py"), str(file), "8124"]
            servers["FastAPI + onnxruntime"] = (peer, 8124, "/act")
        rounds: dict[str, list[dict[str, float]]] = {server: [] for server in servers}
        for _ in range(given.pairs):
            for server, arguments in servers.items():
                rounds[server].append(measure(*arguments, given.seconds))
        medians: dict[str, Any] = {
            server: {key: round(float(np.median([one[key] for one in found])), 3) for key in found[0]}
            for server, found in rounds.items()
        }
        print(json.dumps({"load": os.getloadavg()[0], "medians": medians}, indent=1))


if __name__ == "__main__":
    main()
