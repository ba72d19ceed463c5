"""Servers in tests: the application without a socket, a small policy without torch, and a server process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from onnx import TensorProto, helper, numpy_helper

from rltrain.deployment.export.formats import to_bytes
from rltrain.deployment.export.interface import Interface
from rltrain.deployment.export.observations import flat_inputs
from rltrain.deployment.server.app import App
from rltrain.deployment.server.serve import settings_for
from rltrain.envs.spaces import env_spec
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import unflatten
from rltrain.rollout.types import Noise


class Client:
    """One client, as uvicorn calls the application."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, method: str, path: str, body: Any = None, headers: Any = (), chunks: int = 1) -> Any:
        """The status, the headers and the decoded body."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        size = -(-len(data) // chunks) or 1
        parts = [data[i : i + size] for i in range(0, len(data), size)] or [b""]
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages[-1]["more_body"] = False
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        known = {b"host": b"127.0.0.1:8000", **{key.encode(): value.encode() for key, value in headers}}
        scope = {"type": "http", "method": method, "path": path, "headers": list(known.items())}
        await self.app(scope, receive, send)
        text = sent[1]["body"]
        kind = dict(sent[0]["headers"])
        return sent[0]["status"], kind, json.loads(text) if kind[b"content-type"] == b"application/json" else text

    async def act(self, status: int = 200, **request: Any) -> Any:
        found, _, body = await self("POST", "/v1/act", request)
        assert found == status, body
        return body


def app_of(what: Any, **rest: Any) -> App:
    app = App(settings_for(what, best=True, **rest))
    app.start()
    return app


def with_client(app: App, work: Callable[[Client], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(work(Client(app)), 60))  # type: ignore[arg-type]


def plain(obs: Any) -> Any:
    """An observation as JSON has it."""
    if isinstance(obs, dict):
        return {key: plain(value) for key, value in obs.items()}
    return [plain(value) for value in obs] if isinstance(obs, tuple) else np.asarray(obs).tolist()


def counted(spec: EnvSpec, obs: Any) -> Any:
    return unflatten(spec.obs, flat_inputs(spec, obs))


SUMS = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-np.inf, np.inf, (1,), np.float32)


def summing_policy(file: Path, gain: float = 1.0, step: int = 0) -> Path:
    """Writes an ONNX file of a policy with a memory: its action is the sum of gain * obs[0] over the episode.

    A server of it starts without torch.
    """
    interface = Interface(env_spec("sums", *SUMS, 10), Noise("normal", 0), 1, False, None)
    kinds = {"float32": TensorProto.FLOAT, "bool": TensorProto.BOOL}
    ports = [
        [helper.make_tensor_value_info(port.name, kinds[port.dtype], ["B", *port.shape]) for port in side]
        for side in (interface.inputs, interface.outputs)
    ]
    constants = {"zero": np.zeros(1, np.float32), "one": np.ones(1, np.int64), "gain": np.array([gain], np.float32)}
    constants["index"] = np.zeros(1, np.int64)
    nodes = [
        helper.make_node("Unsqueeze", ["first", "one"], ["begins"]),
        helper.make_node("Where", ["begins", "zero", "core"], ["before"]),
        helper.make_node("Gather", ["obs", "index"], ["number"], axis=1),
        helper.make_node("Mul", ["number", "gain"], ["more"]),
        helper.make_node("Add", ["before", "more"], ["next_core"]),
        helper.make_node("Identity", ["next_core"], ["action"]),
    ]
    arrays = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "sums", *ports, arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    meta = {"to": "onnx", "algo": "sums", "step": step, "interface": interface.to_json()}
    temporary = file.with_suffix(".new")
    temporary.write_bytes(to_bytes(model, "onnx", meta))
    temporary.replace(file)
    return file


@contextlib.contextmanager
def served(what: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process of `what`, and its address; it is killed at the end if it has not ended."""
    code = "from rltrain.cli import main_serve; raise SystemExit(main_serve())"
    command = [sys.executable, "-c", code, str(what), "--port", "0", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        while "http" not in line and line:
            line = server.stdout.readline()
        assert line, server.communicate()[1]
        yield server, line.split()[1].rstrip(",")
    finally:
        server.kill()
        server.communicate()


def ask(url: str, path: str = "/v1/act", **request: Any) -> Any:
    """The answer of a server to a POST; urllib.error.HTTPError for one that is not 200."""
    with urllib.request.urlopen(urllib.request.Request(url + path, json.dumps(request).encode()), timeout=20) as reply:
        return json.load(reply)
