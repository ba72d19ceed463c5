"""Mutated requests: JSON, sizes, types, nesting, broken HTTP, slow and half-closed connections, WebSocket frames."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from rl_server import summing_policy

import rltrain
from rltrain.deployment.server.app import Limits

FILE = Path(__file__).parents[3] / "benchmarks" / "serving_mutations.py"
LIMIT = 1.0  # seconds of a request


@pytest.fixture(scope="module")
def mutations() -> Any:
    """benchmarks/serving_mutations.py, which sends 10,000 of them."""
    spec = importlib.util.spec_from_file_location("serving_mutations", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_mutated_requests_get_the_right_status_and_others_are_served(mutations: Any, tmp_path: Path) -> None:
    limits = Limits(seconds=LIMIT, sessions=1000)
    with rltrain.serve(summing_policy(tmp_path / "sums.onnx"), limits=limits) as served:
        host, port = served.url.removeprefix("http://").split(":")
        oracle = mutations.Oracle(mutations.get((host, int(port)), "/v1/spec"))
        before = descriptors()
        found = asyncio.run(mutations.run((host, int(port)), oracle, range(200), LIMIT, slow=0.03))
        assert found["faults"] == []
        assert found["late"] < 20
        assert sum(found["cases"].values()) == 200
        assert found["answers to the other client"] > 10
        deadline = time.monotonic() + 20
        while descriptors() > before:  # connections that are kept open end after 5 s
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(served.app.batches) == 0


def test_the_oracle_of_the_mutations_knows_what_is_wrong(mutations: Any) -> None:
    """Else a server that answers everything would pass."""
    leaf = {"leaf": {"kind": "box", "shape": [2], "start": [], "nvec": []}}
    spec = {"obs": leaf, "action": {"nvec": [3]}, "action_mask": True}
    oracle = mutations.Oracle({"policies": {"p": {"spec": spec, "memory": 0}}}, 10_000)
    cases: dict[bytes, int] = {
        b'{"obs": [1, 2.5]}': 200,
        b'{"obs": [1]}': 400,
        b'{"obs": [1, NaN]}': 400,
        b'{"obs": [1, true]}': 400,
        b'{"obs": [1, 2], "action_mask": [0, 0, 0]}': 400,
        b'{"obs": [1, 2], "action_mask": [0, true, 0]}': 200,
        b'{"batch": [[1, 2]], "session": "a"}': 400,
        b'{"obs": [1, 2], "reward": 1}': 400,
        b'{"obs": [1, 2], "reward": 1, "episode": "x"}': 200,
        b" " * 10_001: 413,
    }
    assert {body: oracle.status(body) for body in cases} == {body: {status} for body, status in cases.items()}


def raw(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_slow_and_silent_clients_are_closed(tmp_path: Path) -> None:
    """Headers that never end, by time and by size; a client that only sends empty lines; one that does not read."""
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    with rltrain.serve(summing_policy(tmp_path / "sums.onnx"), limits=Limits(seconds=0.2)) as served:
        with raw(served.url) as silent, raw(served.url) as half, raw(served.url) as endless, raw(served.url) as lines:
            half.sendall(ask)
            endless.sendall(ask + b"X: " + b"y" * 70_000)
            answer = endless.recv(1000)
            assert answer.startswith(b"HTTP/1.1 431")
            for _ in range(5):  # for less than the limit
                lines.sendall(b"\r\n")
                time.sleep(0.1)
            assert half.recv(1000).startswith(b"HTTP/1.1 408")
            assert silent.recv(1000) == b""
            assert lines.recv(1000).startswith(b"HTTP/1.1 408")
        with raw(served.url) as greedy:
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(400):
                try:
                    greedy.sendall((ask.replace(b"/healthz", b"/v1/openapi.json") + b"\r\n") * 30)
                    time.sleep(0.01)
                except OSError:
                    break  # it reads no answer, so it is cut off
            else:
                raise AssertionError("the server went on")


def test_a_half_closed_connection_gets_its_answer(tmp_path: Path) -> None:
    with rltrain.serve(summing_policy(tmp_path / "sums.onnx")) as served, raw(served.url) as client:
        body = b'{"obs": [1, 2, 3], "first": true}'
        client.sendall(b"POST /v1/act HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(1000), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"action":[1.0]' in answer
