"""Sends mutated requests to `rlserve` and checks each status, while another client asks on.

    python benchmarks/serving_mutations.py [RUN] [--cases 10000] [--first SEED]

A case follows from its seed: a request with changed JSON, sizes, types or nesting, broken HTTP, a slow or half-closed
connection, or a WebSocket with broken frames. Which status is right is decided here, from /v1/spec, by code that shares
nothing with the server. At the end the server must still give its first answer, and hold no more descriptors and not
much more memory than after the first tenth. Without RUN a small policy with a memory and masks is trained first.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import logging
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

CLOSED = "closed"  # the server closes the connection without a status
LARGEST = 3.4028234663852886e38
Status = int | str
Result = tuple[Status, set[Status]]  # what came, and what is right


class Oracle:
    """The right status of a body for /v1/act, from the description of the server.

    Args:
        spec: the reply of /v1/spec, of one policy for a single agent.
    """

    def __init__(self, spec: dict[str, Any], max_body: int = 2**20) -> None:
        ((self.name, policy),) = spec["policies"].items()
        self.obs, self.action = policy["spec"]["obs"], policy["spec"]["action"]
        self.masked, self.memory = policy["spec"]["action_mask"], policy["memory"]
        self.max_body = max_body

    def status(self, body: bytes) -> set[Status]:
        if len(body) > self.max_body:
            return {413}
        try:
            request = json.loads(body.decode(), parse_constant=_refuse)
            json.dumps(request, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        except (ValueError, RecursionError):
            return {400}
        return self.of(request)

    def of(self, request: Any) -> set[Status]:
        """The status of a decoded request."""
        kinds: dict[str, Callable[[Any], bool]] = {
            "obs": lambda x: self._is_obs(self.obs, x),
            "batch": lambda x: (
                isinstance(x, list) and 1 <= len(x) <= 1024 and all(self._is_obs(self.obs, o) for o in x)
            ),
            "action_mask": lambda x: x is None or self._is_mask(x),
            "action_masks": lambda x: x is None or (isinstance(x, list) and all(map(self._is_mask, x))),
            "policy": lambda x: x is None or x == self.name,
            "sample": _is_flag,
            "seed": lambda x: x is None or (type(x) is int and 0 <= x < 2**63),
            "session": lambda x: x is None or _is_name(x),
            "episode": lambda x: x is None or _is_name(x),
            "reward": lambda x: x is None or _is_number(x),
            "terminated": _is_flag,
            "truncated": _is_flag,
            "first": _is_flag,
            "core": lambda x: x is None or self._is_core(x),
            "deadline_ms": lambda x: x is None or (_is_number(x) and 0 < x <= 3_600_000),
            "details": _is_flag,
            "id": lambda x: x is None or isinstance(x, str) or type(x) is int,
        }
        if not isinstance(request, dict) or not all(key in kinds and kinds[key](x) for key, x in request.items()):
            return {400}
        rows = len(request["batch"]) if "batch" in request else 1
        told = request.get("reward") is not None or request.get("terminated") or request.get("truncated")
        over = request.get("terminated") or request.get("truncated")
        named = [request.get(key) for key in ("session", "episode") if request.get(key) is not None]
        core, first = request.get("core"), bool(request.get("first"))
        wrong = [
            request.get("action_masks" if "obs" in request else "action_mask") is not None,
            ("obs" in request) == ("batch" in request),
            named and "batch" in request,
            told and (not named or first or "batch" in request),
            core is not None and (len(core) != rows or request.get("session") is not None),
            request.get("action_masks") is not None and "batch" in request and len(request["action_masks"]) != rows,
            self.memory and core is None and not first and request.get("session") is None and not over,
        ]
        if any(wrong):
            return {400}
        if self.memory and request.get("session") is not None and not first and not over:
            return {409}  # each case has a session of its own
        return {200, 504} if (request.get("deadline_ms") or 1000) < 1000 else {200}

    def _is_obs(self, node: dict[str, Any], value: Any) -> bool:
        if "dict" in node:
            same = isinstance(value, dict) and value.keys() == node["dict"].keys()
            return same and all(self._is_obs(child, value[key]) for key, child in node["dict"].items())
        if "tuple" in node:
            children = node["tuple"]
            same = isinstance(value, list) and len(value) == len(children)
            return same and all(self._is_obs(child, one) for child, one in zip(children, value, strict=True))
        leaf = node["leaf"]
        flat = list(_flat(value, leaf["shape"]))
        if None in flat:
            return False
        if leaf["kind"] == "box":
            return all(map(_is_number, flat))
        if leaf["kind"] == "multi_binary":
            return all(_is_number(x) and 0 <= x <= 1 for x in flat)
        if leaf["kind"] == "image":
            return all(_is_whole(x) and 0 <= x <= leaf["high"] for x in flat)
        starts = leaf["start"] or [0] * len(flat)
        return all(_is_whole(x) and s <= x < s + n for x, s, n in zip(flat, starts, leaf["nvec"], strict=True))

    def _is_mask(self, value: Any) -> bool:
        sizes, begin = self.action["nvec"], 0
        if not self.masked or not isinstance(value, list) or len(value) != sum(sizes):
            return False
        if not all(isinstance(x, bool | int) and x in (0, 1) for x in value):
            return False
        for size in sizes:
            if not any(value[begin : begin + size]):
                return False
            begin += size
        return True

    def _is_core(self, value: Any) -> bool:
        lists = isinstance(value, list) and all(isinstance(one, list) and len(one) == self.memory for one in value)
        return bool(self.memory) and lists and all(_is_number(x) for one in value for x in one)

    def valid(self, rng: random.Random, name: str) -> dict[str, Any]:
        """A request that is right. `name`: of its session."""
        rows = rng.choice((0, 0, 0, 1, 3))
        request: dict[str, Any] = {"batch": [self._obs(rng, self.obs) for _ in range(rows)]}
        if not rows:
            request = {"obs": self._obs(rng, self.obs)}
        if self.masked and rng.random() < 0.5:
            masks = [[True] * sum(self.action["nvec"]) for _ in range(max(rows, 1))]
            request |= {"action_masks": masks} if rows else {"action_mask": masks[0]}
        if not rows and rng.random() < 0.5:
            request |= {rng.choice(("session", "episode")): name}
        kind = rng.random()
        if self.memory and kind < 0.2 and "session" not in request:
            request["core"] = [[rng.uniform(-1, 1) for _ in range(self.memory)] for _ in range(max(rows, 1))]
        elif kind < 0.8 or self.memory:
            request["first"] = True
        elif "session" in request or "episode" in request:
            request |= {"reward": rng.uniform(-5, 5), "truncated": rng.random() < 0.3}
        extras = {"sample": True, "seed": rng.randrange(2**63), "details": True, "id": rng.choice((7, "seven")),
                  "deadline_ms": 5000, "policy": self.name}  # fmt: skip
        for key in rng.sample(list(extras), rng.randrange(3)):
            request[key] = extras[key]
        return request

    def _obs(self, rng: random.Random, node: dict[str, Any]) -> Any:
        if "dict" in node:
            return {key: self._obs(rng, child) for key, child in node["dict"].items()}
        if "tuple" in node:
            return [self._obs(rng, child) for child in node["tuple"]]
        leaf = node["leaf"]
        sizes, starts = iter(leaf["nvec"]), iter(leaf["start"] or [0] * len(leaf["nvec"]))

        def value(shape: list[int]) -> Any:
            if shape:
                return [value(shape[1:]) for _ in range(shape[0])]
            if leaf["kind"] == "box":
                return rng.choice((rng.uniform(-2, 2), rng.randrange(-3, 3), 1e30, -1e-40))
            if leaf["kind"] == "multi_binary":
                return rng.randrange(2)
            return (
                rng.randrange(leaf["high"] + 1)
                if leaf["kind"] == "image"
                else next(starts) + rng.randrange(next(sizes))
            )

        return value(leaf["shape"])


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _flat(value: Any, shape: list[int]) -> Iterator[Any]:
    """The numbers of nested lists; None where the shape is another."""
    if not shape:
        yield value
    elif not isinstance(value, list) or len(value) != shape[0]:
        yield None
    else:
        for one in value:
            yield from _flat(one, shape[1:])


def _is_flag(x: Any) -> bool:
    return isinstance(x, bool)


def _is_whole(x: Any) -> bool:
    return type(x) is int or (isinstance(x, float) and math.isfinite(x) and x == int(x))


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= LARGEST


def _is_name(x: Any) -> bool:
    return isinstance(x, str) and 0 < len(x) <= 128 and x.isprintable()


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, 1.0, 1e39, -1e39, 3.5e38, 1e308, 2**31, 2**53 + 1, 2**63, -(2**63), 2**64),
    *(10**30, 10**400, "", "x", "1", "null", "\x00", "é" * 129, "\ud800", "😀"),
    *([], {}, [[]], [None], {"a": 1}, [1] * 2000),
)  # fmt: skip


def mutated(request: Any, rng: random.Random) -> Any:
    """A copy of JSON data with one change at a random place."""
    request = json.loads(json.dumps(request))
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in children:
            places.append((node, key))
            visit(child)

    visit(request)
    if not places:
        return rng.choice(VALUES)
    node, key = rng.choice(places)
    kind = rng.randrange(7)
    if kind == 0:
        del node[key]
    elif kind == 1:
        node[key] = rng.choice(VALUES)
    elif kind == 2:
        for _ in range(rng.choice((1, 2, 50, 5000))):
            node[key] = [node[key]]
    elif kind == 3 and isinstance(node, list):
        node.insert(key, rng.choice((node[key], *VALUES)))
    elif kind == 4:
        node[key] = str(node[key])
    elif kind == 5:
        request[rng.choice(FIELDS)] = rng.choice(VALUES)
    elif isinstance(node[key], int | float):
        node[key] = rng.choice((-node[key], node[key] + 0.5, node[key] * 10.0 ** rng.randrange(0, 45)))
    return request


FIELDS = "obs batch action_mask action_masks policy sample seed session episode reward terminated truncated".split()
FIELDS += "first core deadline_ms details id observation".split()


def encoded(request: Any, rng: random.Random) -> bytes:
    """JSON, sometimes with changed bytes."""
    try:
        text = json.dumps(request, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except RecursionError:
        text = b"[" * 5000
    if rng.random() < 0.6:
        return text
    body = bytearray(text)
    for _ in range(rng.randrange(1, 4)):
        at, kind = rng.randrange(len(body) + 1), rng.randrange(5)
        if kind == 0:
            del body[at:]
        elif kind == 1:
            del body[at : at + rng.randrange(1, 4)]
        elif kind == 2:
            body[at:at] = rng.choice((b" ", b",", b"\xff", b"\x00", b"[", b"}", b'"', b"NaN", b"-", b"e9", b"\\", b"0"))
        elif kind == 3 and at < len(body):
            body[at] = rng.randrange(256)
        else:
            body[at:at] = rng.choice(
                (b"\xef\xbb\xbf", b"Infinity", b"1e999", b"//", b"\xed\xa0\x80", b"\n\n", body[:50])
            )
    return bytes(body)


class Connection:
    """One connection with a limit of time on everything."""

    def __init__(self, address: tuple[str, int], seconds: float) -> None:
        self.address, self.seconds = address, seconds
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection(*self.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self.writer.wait_closed(), self.seconds)

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.writer.write(data)

    async def status(self, body: bool = True) -> Status:
        """Of the next answer, whose body is read; CLOSED, or "hangs" if nothing comes in time."""
        try:
            async with asyncio.timeout(self.seconds):
                head = await self.reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"HTTP/1.1 101"):
                    return 101
                if not body:
                    return int(head.split()[1])
                sizes = [
                    line.partition(b":")[2]
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                ]
                content = await self.reader.readexactly(int(sizes[0]) if sizes else 0)
                status = int(head.split()[1])
                if status >= 400 and b"json" in head and not json.loads(content)["error"]["message"]:
                    return f"{status} without a message"
                return status
        except TimeoutError:
            return "hangs"
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return CLOSED


def post(
    body: bytes, path: str = "/v1/act", method: str = "POST", headers: tuple[str, ...] = (), size: Any = None
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    if size is not False:
        lines.append(f"Content-Length: {len(body) if size is None else size}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(body: bytes, rng: random.Random) -> bytes:
    """The body in chunks of random sizes."""
    parts = []
    while body:
        size = rng.randrange(1, 40)
        parts.append(b"%x\r\n%s\r\n" % (len(body[:size]), body[:size]))
        body = body[size:]
    return b"".join([*parts, b"0\r\n\r\n"])


class Cases:
    """One case by its seed.

    Args:
        limit: seconds that the server gives to a request.
        slow:  share of the cases that wait for that limit.
    """

    def __init__(self, address: tuple[str, int], oracle: Oracle, limit: float, slow: float = 0.03) -> None:
        self.address, self.oracle, self.limit, self.slow = address, oracle, limit, slow
        self.kinds: list[Callable[[random.Random, str], Awaitable[Result]]] = [
            *[self.changed_json] * 10,
            *[self.broken_http] * 4,
            self.chunks,
            self.sizes,
            self.other_paths,
            self.pipelined,
            self.half_closed,
            self.leaves,
            *[self.websocket] * 2,
            self.broken_frames,
        ]

    async def __call__(self, seed: int) -> tuple[str, Status, set[Status]]:
        """The kind of a case, what came, and what is right."""
        rng = random.Random(seed)
        kind = self.slow_client if rng.random() < self.slow else rng.choice(self.kinds)
        status, right = await kind(rng, f"session {seed}")
        return kind.__name__, status, right

    def connect(self) -> Connection:
        return Connection(self.address, self.limit + 10)

    async def once(self, data: bytes, body: bool = True) -> Status:
        async with self.connect() as connection:
            connection.send(data)
            return await connection.status(body)

    def body(self, rng: random.Random, name: str) -> bytes:
        request: Any = self.oracle.valid(rng, name)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            with contextlib.suppress(TypeError, RecursionError, OverflowError):
                request = mutated(request, rng)
        return encoded(request, rng)

    async def changed_json(self, rng: random.Random, name: str) -> Result:
        body = self.body(rng, name)
        return await self.once(post(body)), self.oracle.status(body)

    async def chunks(self, rng: random.Random, name: str) -> Result:
        body = self.body(rng, name)
        if rng.random() < 0.3:
            data = post(b"", headers=("Transfer-Encoding: chunked",), size=False)
            return await self.once(
                data + rng.choice((b"zz\r\n{}\r\n", b"-5\r\n", b"ffffffffffffffffff\r\n", b"5;x\n{}"))
            ), {400}
        return await self.once(post(b"", headers=("Transfer-Encoding: chunked",), size=False) + chunked(body, rng)), (
            self.oracle.status(body)
        )

    async def sizes(self, rng: random.Random, name: str) -> Result:
        most = self.oracle.max_body
        kind = rng.randrange(4)
        if kind == 0:
            return await self.once(post(b"", size=rng.choice((most + 1, 10**8, 10**18)))), {413}
        if kind == 1:
            return await self.once(post(b"", size=rng.choice((-1, "abc", "1e3", "", 10**30, "5, 6", "0x10")))), {400}
        if kind == 2:  # a large body that is sent whole
            return await self.once(post(b" " * (most + rng.randrange(1, 10**6)))), {413, CLOSED}
        body = encoded({**self.oracle.valid(rng, name), "id": "x" * rng.randrange(1, 300_000)}, random.Random(0))
        return await self.once(post(body)), self.oracle.status(body)

    async def broken_http(self, rng: random.Random, name: str) -> Result:
        body = json.dumps(self.oracle.valid(rng, name)).encode()
        good = post(body)
        cases: list[tuple[bytes, set[Status]]] = [
            (post(body, headers=("no colon",)), {400}),
            (post(body, headers=("X: a\0b",)), {400}),
            (post(body, headers=(": empty",)), {400}),
            (post(body, headers=("X: " + "y" * rng.randrange(70_000, 300_000),)), {431}),
            (post(body, headers=tuple(f"X{i}: {'y' * 100}" for i in range(1000))), {431}),
            (post(body, headers=("X: " + "é" * 20,)), {200}),
            (post(body, headers=tuple(f"X{i}: y" for i in range(200))), {200}),
            (post(body, headers=("Content-Length: 3",)), {400}),
            (post(body, headers=("Transfer-Encoding: chunked",)), {400}),
            (post(body, headers=("Transfer-Encoding: gzip",), size=False), {400}),
            (post(body, headers=("Expect: 100-continue",)), {100}),
            (post(body, headers=("Upgrade: h2c", "Connection: Upgrade"), size=0)[: -len(body)], {400}),
            (post(body, headers=("Origin: http://elsewhere.example",)), {403}),
            (good.replace(b"Host: 127.0.0.1", b"Host: elsewhere.example"), {403}),
            (good.replace(b"Host: 127.0.0.1\r\n", b""), {200}),
            (good.replace(b"HTTP/1.1", b"HTTP/1.0"), {200}),
            (good.replace(b"HTTP/1.1", b"HTTP/3.0"), {400}),
            (good.replace(b"HTTP/1.1", b"HTTP/1.1 x"), {400}),
            (good.replace(b"/v1/act", b"/v1/act\xff"), {400}),
            (good.replace(b"/v1/act", b"/" + b"a" * 80_000), {431}),
            (good.replace(b"/v1/act", b"//v1/act"), {404, 400}),
            (good.replace(b"/v1/act", b"http://[::1/v1/act"), {400}),
            (good.replace(b"/v1/act", b"/v1/act?x=%00#y"), {200}),
            (good.replace(b"POST", rng.choice((b"GET", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"))), {405}),
            (good.replace(b"POST", rng.choice((b"FOO", b"post", b"\x00", b"P OST"))), {400}),
            (good.replace(b"POST /v1/act", b"CONNECT 127.0.0.1:1"), {400, 404}),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200), {400}),
            (b"GET" + rng.randbytes(rng.randrange(1, 2000)) + b"\r\n\r\n", {400}),
            (b"\r\n\r\n" + good, {200}),
        ]
        data, right = rng.choice(cases)
        return await self.once(data), right

    async def other_paths(self, rng: random.Random, name: str) -> Result:
        kind = rng.randrange(7)
        if kind == 0:
            path = rng.choice(("/", "/healthz", "/readyz", "/metrics", "/v1/spec", "/v1/openapi.json"))
            return await self.once(post(b"", path, "GET", size=False)), {200}
        if kind == 1:
            path = "/" + "".join(rng.choice("abc/.%2e0~-") for _ in range(rng.randrange(1, 50)))
            return await self.once(post(b"{}", path)), {404, 400}
        if kind == 2:
            return await self.once(
                post(b"", f"/v1/sessions/{rng.choice(('nobody', '%00', '%ff', '..', 'é', 'a' * 900))}", "DELETE")
            ), {404, 400}
        if kind == 3:
            return await self.once(
                post(rng.choice((b"[]", b"{", b"\xff", b'{"policy": 1}', b'{"policy": "?"}')), "/v1/reload")
            ), {400}
        if kind == 4:
            return await self.once(post(b"", rng.choice(("/v1/spec", "/metrics")), "POST")), {405}
        if kind == 5:
            return await self.once(post(b"", "/v1/stream", "GET")), {404}
        return await self.once(post(b"", "/v1/act", "HEAD", size=False), body=False), {405}

    async def pipelined(self, rng: random.Random, name: str) -> Result:
        bodies = [self.body(rng, f"{name} {i}") for i in range(rng.randrange(2, 6))]
        many = rng.random() < 0.2
        async with self.connect() as connection:
            if many:  # more than may wait: closed, or answered
                connection.send(post(b"", "/healthz", "GET", size=False) * 3000)
                status = await connection.status()
                while status == 200:
                    status = await connection.status()
                return status, {CLOSED}
            connection.send(b"".join(post(body) for body in bodies) + rng.choice((b"", b"garbage\r\n\r\n", b"\x00")))
            for body in bodies[:-1]:
                status = await connection.status()
                if status not in self.oracle.status(body):
                    return status, self.oracle.status(body)
            return await connection.status(), self.oracle.status(bodies[-1])

    async def half_closed(self, rng: random.Random, name: str) -> Result:
        """The client closes its side: after the request it still gets the answer."""
        body = self.body(rng, name)
        data = post(body)
        async with self.connect() as connection:
            if rng.random() < 0.5:
                connection.send(data)
                connection.writer.write_eof()
                return await connection.status(), self.oracle.status(body)
            connection.send(data[: rng.randrange(len(data) - len(body) + 1)])
            connection.writer.write_eof()
            return await connection.status(), {CLOSED, 400} if body else {CLOSED, 400, 200}

    async def leaves(self, rng: random.Random, name: str) -> Result:
        """The client is gone before it has an answer, or in the middle of its request."""
        data = post(self.body(rng, name)) * rng.randrange(1, 4)
        async with self.connect() as connection:
            connection.send(data[: rng.randrange(len(data) + 1)])
            if rng.random() < 0.5:
                connection.writer.transport.abort()
        return CLOSED, {CLOSED}

    async def slow_client(self, rng: random.Random, name: str) -> Result:
        body = json.dumps(self.oracle.valid(rng, name)).encode()
        data = post(body)
        kind = rng.randrange(6)
        async with self.connect() as connection:
            if kind == 0:  # says nothing
                return await connection.status(), {CLOSED}
            if kind == 1:  # stops within the head
                connection.send(data[: rng.randrange(1, len(data) - len(body) - 1)])
                return await connection.status(), {408}
            if kind == 2:  # stops within the body
                connection.send(data[: -rng.randrange(1, len(body))])
                return await connection.status(), {408}
            if kind == 3:  # one byte at a time, fast enough
                for byte in data:
                    connection.send(bytes([byte]))
                    await asyncio.sleep(0)
                return await connection.status(), {200}
            if kind == 4:  # one byte at a time, too slowly; at the end only empty lines
                status = asyncio.ensure_future(connection.status())
                for byte in data[:10] + b"\r\n" * 100:
                    if status.done():
                        break
                    connection.send(bytes([byte]))
                    await asyncio.sleep(self.limit / 8)
                return await status, {400, 404, 408, CLOSED}
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            connection.send(post(b"", "/v1/spec", "GET", size=False) * 60)  # reads no answer
            await asyncio.sleep(self.limit)
            return CLOSED, {CLOSED}

    # WebSocket

    async def websocket(self, rng: random.Random, name: str) -> Result:
        """Some messages, each of which gets the answer that it would get by POST."""
        async with self.connect() as connection:
            connection.send(HANDSHAKE)
            if (status := await connection.status()) != 101:
                return status, {101}
            for number in range(rng.randrange(1, 5)):
                body = self.body(rng, f"{name} {number}")
                with contextlib.suppress(UnicodeDecodeError):
                    body.decode()
                    connection.send(_frames(body, rng))
                    right = self.oracle.status(body)
                    status = await self.reply(connection)
                    if status not in right:
                        return status, right
            return 200, {200}

    async def broken_frames(self, rng: random.Random, name: str) -> Result:
        """The connection is closed, with a close frame or without."""
        broken = (
            b"\x81\x05hello",  # not masked
            b"\xf1" + _frame(b"{}", rng)[1:],  # reserved bits
            b"\x83\x80" + rng.randbytes(4),  # unknown opcode
            b"\x89\xfe\x01\x00" + rng.randbytes(4 + 256),  # a long ping
            _frame(b"\xff\xfe", rng),  # no UTF-8
            b"\x81\xff" + (2**40).to_bytes(8, "big") + rng.randbytes(4),
            b"\x81\xff" + b"\xff" * 8 + rng.randbytes(4),
            b"\x80\x80" + rng.randbytes(4),  # a continuation of nothing
            b"\x88\x82" + bytes(4) + b"\x00\x01",  # a close code that does not exist
        )
        async with self.connect() as connection:
            if rng.random() < 0.3:
                head = HANDSHAKE.replace(*rng.choice(((b"Version: 13", b"Version: 7"), (b"Key: ", b"Kex: "),
                                                      (b"/v1/stream", b"/v1/act"), (b"GET", b"POST"))))  # fmt: skip
                connection.send(head)
                status = await connection.status()
                return status, {400, 403, 404, 405, 426, CLOSED} if status != 101 else {"refused"}
            connection.send(HANDSHAKE)
            if (status := await connection.status()) != 101:
                return status, {101}
            connection.send(rng.choice(broken))
            return await self.reply(connection), {CLOSED}

    async def reply(self, connection: Connection) -> Status:
        """The status in the next message."""
        reader = connection.reader
        try:
            async with asyncio.timeout(connection.seconds):
                kind, size = await reader.readexactly(2)
                if size == 126:
                    size = int.from_bytes(await reader.readexactly(2), "big")
                elif size == 127:
                    size = int.from_bytes(await reader.readexactly(8), "big")
                body = await reader.readexactly(size)
                if kind == 0x88:
                    return CLOSED
                answer = json.loads(body)
                return int(answer["status"]) if "error" in answer else 200
        except TimeoutError:
            return "hangs"
        except (OSError, asyncio.IncompleteReadError):
            return CLOSED


HANDSHAKE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: "
    + base64.b64encode(bytes(range(16)))
    + b"\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def _frame(data: bytes, rng: random.Random, first: int = 0x81) -> bytes:
    mask = rng.randbytes(4)
    size = len(data)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    if size >= 2**16:
        length = b"\xff" + size.to_bytes(8, "big")
    key = int.from_bytes(mask * (size // 4 + 1), "big") >> (8 * ((4 - size % 4) % 4 or 4) if size % 4 else 32)
    masked = (int.from_bytes(data, "big") ^ key).to_bytes(size, "big") if size else b""
    return bytes([first]) + length + mask + masked


def _frames(data: bytes, rng: random.Random) -> bytes:
    """A text message, sometimes in two frames."""
    if rng.random() < 0.7:
        return _frame(data, rng)
    at = rng.randrange(len(data) + 1)
    return _frame(data[:at], rng, 0x01) + _frame(data[at:], rng, 0x80)


async def run(address: tuple[str, int], oracle: Oracle, seeds: range, limit: float, slow: float = 0.03,
              at_once: int = 16, tenth: Callable[[], None] = lambda: None) -> dict[str, Any]:  # fmt: skip
    """All cases, with another client meanwhile; returns counts, faults and the latencies of that client in ms."""
    cases, counts, faults, late = Cases(address, oracle, limit, slow), Counter[str](), list[Any](), list[int]()
    times: list[float] = []
    body = json.dumps({**Oracle.valid(oracle, random.Random(0), "other"), "first": True} | {"seed": 1}).encode()
    over = asyncio.Event()

    async def other() -> None:
        last = time.monotonic()
        while not over.is_set():
            async with Connection(address, 30) as connection:
                while not over.is_set():
                    begin = time.perf_counter()
                    connection.send(post(body))
                    status = await connection.status()
                    if status == CLOSED and time.monotonic() - last > 4:
                        break  # this client itself was stopped for so long that its connection counted as unused
                    if status not in (200, 504):
                        faults.append(("the other client", None, status, oracle.status(body)))
                        return
                    last = time.monotonic()
                    times.append((time.perf_counter() - begin) * 1e3)
                    await asyncio.sleep(0.005)

    async def worker(queue: Iterator[int]) -> None:
        for seed in queue:
            kind, status, right = await cases(seed)
            counts[kind] += 1
            if seed == seeds.start + len(seeds) // 10:
                tenth()
            if status == 504 and 200 in right:
                late.append(seed)  # the machine is busy: the request waited for longer than the limit
            elif status not in right:
                faults.append((kind, seed, status, sorted(map(str, right))))

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it reports each write to a connection that is gone
    queue, client = iter(seeds), asyncio.ensure_future(other())
    await asyncio.gather(*(worker(queue) for _ in range(at_once)))
    over.set()
    await client
    times.sort()
    latency = {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100], "max": times[-1]}
    return {
        "cases": dict(counts),
        "faults": faults,
        "late": len(late),
        "answers to the other client": len(times),
        "latency, ms": latency,
    }


def small_policy(folder: Path) -> Path:
    """A run of a policy with a memory."""
    import rltrain

    result = rltrain.train(algo="ppo", env="CartPole-v1", workers=0, streams=4, unroll=16, steps=64, widths=(8,),
                           memory="gru", eval_every=0, preset="none", quiet=True, out=str(folder))  # fmt: skip
    return Path(result.checkpoint)


def get(address: tuple[str, int], path: str) -> Any:
    import urllib.request

    with urllib.request.urlopen(f"http://{address[0]}:{address[1]}{path}", timeout=30) as reply:
        return json.load(reply)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="what rlserve serves; one policy of a single agent")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--flags", default="", help="more flags of rlserve")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        what = given.run or small_policy(Path(name))
        code = "from rltrain.cli import main_serve; raise SystemExit(main_serve())"
        flags = ["--port", "8125", "--timeout", "1", "--sessions", "100000", *given.flags.split()]
        server = subprocess.Popen([sys.executable, "-c", code, str(what), *flags], stdout=subprocess.DEVNULL)
        process, address = psutil.Process(server.pid), ("127.0.0.1", 8125)
        found: dict[str, Any] = {}
        sizes: dict[str, list[float]] = {"descriptors": [], "memory, MB": []}

        def note() -> None:
            sizes["descriptors"].append(process.num_fds())
            sizes["memory, MB"].append(round(process.memory_full_info().uss / 2**20, 1))

        try:
            while True:
                with contextlib.suppress(OSError):
                    oracle = Oracle(get(address, "/v1/spec"))
                    break
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with status {server.returncode}")
                time.sleep(0.1)
            note()
            begin = time.perf_counter()
            found = asyncio.run(run(address, oracle, range(given.first, given.first + given.cases), 1.0, tenth=note))
            found["seconds"] = round(time.perf_counter() - begin, 1)
            time.sleep(8)  # connections that are kept open end after 5 s
            note()
            found |= {"alive": server.poll() is None, **sizes, "load": os.getloadavg()[0]}
        finally:
            server.terminate()
            found["end"] = server.wait(30)
        print(json.dumps(found, indent=1, default=str))
        before, _, after = sizes["descriptors"]
        grown = sizes["memory, MB"][2] - sizes["memory, MB"][1]
        raise SystemExit(1 if found["faults"] or not found["alive"] or after > before or grown > 30 else 0)


if __name__ == "__main__":
    main()
