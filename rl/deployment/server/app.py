"""The server as an ASGI application: routes, limits, tokens, sessions and reloads."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import sys
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from rltrain.deployment.server.batches import Answer, Batches, Item, Version
from rltrain.deployment.server.errors import Refused, wrong
from rltrain.deployment.server.metrics import Metrics, summed
from rltrain.deployment.server.models import Model, Source, load_model, noise_rows
from rltrain.deployment.server.page import PAGE
from rltrain.deployment.server.recording import Episodes
from rltrain.deployment.server.requests import Options, Row, numbers_of
from rltrain.deployment.server.schema import openapi
from rltrain.deployment.server.sessions import Sessions
from rltrain.envs.spec import COSMETIC, spec_differences, to_json
from rltrain.errors import CheckpointError, ConfigError
from rltrain.reporting.console import say
from rltrain.rollout.types import Trajectory

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
LOOPBACK = frozenset(["localhost", "127.0.0.1", "[::1]"])
OPEN = frozenset(["/", "/healthz", "/readyz"])  # need no token
PATHS = ("/", "/v1/act", "/v1/spec", "/v1/reload", "/v1/stream", "/v1/openapi.json", "/healthz", "/readyz", "/metrics")
JSON, TEXT, HTML = b"application/json", b"text/plain; version=0.0.4", b"text/html; charset=utf-8"
GONE = (OSError, RuntimeError)  # a WebSocket: the second is that of uvloop, for a transport that has closed
encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Limits:
    """What a server bears."""

    batch: int = 64  # rows of a batch
    wait: float = 0.0  # seconds, see `Batches`
    queue: int = 1024  # rows that wait
    body: int | None = None  # bytes of a request; None: as the observation needs
    seconds: float = 10.0  # of a request: to send its body, and to wait
    sessions: int = 1000
    ttl: float = 600.0  # seconds without a request after which a session ends


@dataclass(frozen=True)
class Settings:
    """What a server does. `shares` are the policies of requests that name none, by name, with their weights."""

    sources: Mapping[str, Source]
    shares: Mapping[str, float] = field(default_factory=dict)
    sample: bool = False
    token: str | None = None
    hosts: frozenset[str] | None = LOOPBACK  # names under which it may be asked; None: any
    watch: float | None = None  # seconds between two looks for a new checkpoint
    record: Path | None = None  # folder of the recording of all episodes
    limits: Limits = Limits()

    @property
    def described(self) -> dict[str, Any]:
        """What a recording says about this server."""
        return {"policies": {name: str(source.path) for name, source in self.sources.items()}}


class App:
    """The application. `start` loads all policies.

    Attributes:
        ready:    False before the policies are loaded, and after the last answer.
        draining: the server ends when it has answered what has arrived.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, limits = settings, settings.limits
        self.served: dict[str, Version] = {}  # the newest version of each policy
        self.metrics = Metrics()
        self.sessions = Sessions(limits.sessions, limits.ttl)
        self.batches = Batches(limits.queue, limits.wait, self.metrics)
        self.ready = self.draining = False
        self.peers: Any = None  # with several processes: `Peers`
        self.opened: Callable[[], None] = lambda: None  # called once the peers can reach this process
        self._loading = asyncio.Lock()
        self._rng = np.random.default_rng()
        self._watcher: asyncio.Task[None] | None = None
        self.episodes: Episodes | None = None  # with `record`, those of the clients of this process
        self.deliver: Callable[[list[Trajectory]], None] = list.clear  # called in a thread, never twice at once
        self._deliverer: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._token = None if settings.token is None else f"Bearer {settings.token}".encode()
        shares = dict(settings.shares) or {next(iter(settings.sources)): 1.0}
        self._names = list(shares)
        weights = np.array(list(shares.values()), np.float64)
        self._bounds = (np.cumsum(weights) / weights.sum()).tolist()

    def start(self) -> None:
        """Load all policies; CheckpointError or ConfigError if one cannot be served."""
        for name, source in self.settings.sources.items():
            model = load_model(name, source, self.settings.limits.batch)
            self.served[name] = Version(model)
        codecs = [version.codec for version in self.served.values()]
        first = self.served[self._names[0]].codec
        for name in self._names[1:]:
            changed = spec_differences(first.spec, self.served[name].codec.spec, ignored=COSMETIC)
            if changed:
                raise ConfigError(f"{self._names[0]} and {name} cannot share requests: {changed}")
        specs = {str({**to_json(codec.spec), "id": ""}) for codec in codecs}
        self._one_codec = len(specs) == 1
        numbers = max(numbers_of(codec.spec) for codec in codecs)
        cores = max(codec.interface.core_size for codec in codecs)
        self.max_body = self.settings.limits.body or max(2**20, 64 * (numbers + cores))
        if self.settings.record is not None:
            if not self._one_codec:
                raise ConfigError("--record: all policies must have equal spaces; serve one of them")
            self.episodes = Episodes(first.spec, self.settings.limits.sessions, self.settings.limits.ttl)
        self.ready = True

    # ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                if self.peers is not None:
                    await self.peers.open()
                self.opened()
                if self.settings.watch is not None:
                    self._watcher = asyncio.get_running_loop().create_task(self._watch(self.settings.watch))
                if self.episodes is not None:
                    self._deliverer = asyncio.get_running_loop().create_task(self._deliver(self.episodes))
            else:
                if self.peers is not None:
                    await self.peers.wait_for_end()
                self.ready = False
                if self._watcher is not None:
                    self._watcher.cancel()
                if self._deliverer is not None:
                    self._ending.set()
                    await self._deliverer
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop, path = asyncio.get_running_loop(), scope["path"]
        begin, kind, extra = loop.time(), JSON, []
        try:
            self._admit(scope)
            if path == "/v1/act":
                if scope["method"] != "POST":
                    raise Refused(405, "use POST")
                status, body = 200, await self.act(await self._body(scope, receive))
            else:
                status, kind, body = await self._other(path, scope, receive)
        except Refused as refused:
            status, body = refused.status, encode(refused.body)
            if refused.retry:
                extra.append((b"retry-after", str(refused.retry).encode()))
            if status == 401:
                extra.append((b"www-authenticate", b"Bearer"))
            if status in (408, 413):
                extra.append((b"connection", b"close"))
        self.metrics.answered(path if path in PATHS else "other", status, loop.time() - begin)
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *extra]
        with contextlib.suppress(OSError):
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _other(self, path: str, scope: Scope, receive: Receive) -> tuple[int, bytes, bytes]:
        method = scope["method"]
        if path == "/v1/reload":
            if method != "POST":
                raise Refused(405, "use POST")
            return 200, JSON, await self._reload_request(await self._body(scope, receive))
        if path.startswith("/v1/sessions/") and method == "DELETE":
            name = path.removeprefix("/v1/sessions/")
            owner = None if self.peers is None else self.peers.owner(name)
            if self.peers is not None and owner != self.peers.index:
                return 200, JSON, await self.peers.ask(owner, b"D", name.encode())
            return 200, JSON, self.end_session(name)
        if path not in PATHS or path == "/v1/stream":
            raise Refused(404, f"there is no {path[:100]}; there are {', '.join(PATHS)}")
        if method not in ("GET", "HEAD"):
            raise Refused(405, "use GET")
        if path == "/healthz":
            return 200, JSON, b'{"alive":true}'
        if path == "/readyz":
            ready = self.ready and not self.draining
            return (200 if ready else 503), JSON, encode({"ready": ready})
        if path == "/metrics":
            text = self.metrics_here()
            if self.peers is not None:
                text = summed([text, *(other.decode() for other in await self.peers.ask_all(b"M", b""))])
            return 200, TEXT, text.encode()
        if path == "/v1/spec":
            return 200, JSON, encode(self.description())
        if path == "/v1/openapi.json":
            return 200, JSON, encode(openapi(self.served[self._names[0]].codec.spec))
        return 200, HTML, PAGE

    def metrics_here(self) -> str:
        """The metrics of this process."""
        steps = {name: version.model.step for name, version in self.served.items()}
        recorded = None if self.episodes is None else self.episodes.steps
        return self.metrics.text(len(self.batches), len(self.sessions), steps, recorded)

    def end_session(self, name: str) -> bytes:
        """End a session of this process; 404 if there is none."""
        if not self.sessions.end(name):
            raise Refused(404, "there is no such session")
        return b"{}"

    def description(self) -> dict[str, Any]:
        """What /v1/spec tells."""
        policies = {
            name: {
                "algo": version.model.algo,
                "step": version.model.step,
                "memory": version.model.interface.core_size,
                "noise": version.model.interface.noise._asdict(),
                "log_prob": version.model.interface.log_prob,
                "spec": to_json(version.model.interface.spec),
            }
            for name, version in self.served.items()
        }
        bounds = [0.0, *self._bounds]
        shares = {name: bounds[i + 1] - bounds[i] for i, name in enumerate(self._names)}
        return {"policies": _without_infinities(policies), "shares": shares, "sample": self.settings.sample}

    def _admit(self, scope: Scope) -> None:
        """Refused if the request comes from a page of another site, under another name, or without the token."""
        origin = host = authorization = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1")
            elif name == b"authorization":
                authorization = value
            elif name == b"origin":
                origin = value.decode("latin-1")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refused(403, "requests of pages of other sites are refused", "origin")
        if self._token is None:
            hosts = self.settings.hosts
            if hosts is not None and host is not None and _name_of(host) not in hosts:
                raise Refused(403, f"this server is not called {host[:100]}", "host", " or ".join(sorted(hosts)), host)
        elif scope["path"] not in OPEN and not hmac.compare_digest(authorization or b"", self._token):
            given = scope.get("subprotocols", ())  # of a WebSocket from a browser, which can send no header
            if not any(hmac.compare_digest(b"Bearer " + name.encode(), self._token) for name in given):
                raise Refused(401, "a token is needed: send the header Authorization: Bearer TOKEN")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The body of a request; Refused if it is too large, slow, or cut."""
        for name, value in scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or int(value) > self.max_body):
                raise self._too_large(value.decode("latin-1"))
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            try:
                async with asyncio.timeout(self.settings.limits.seconds):
                    parts = [body]
                    size = len(body)
                    while message.get("more_body"):
                        message = await receive()
                        parts.append(message.get("body", b""))
                        size += len(parts[-1])
                        if size > self.max_body:
                            raise self._too_large(f"{size} or more")
                    body = b"".join(parts)
            except TimeoutError:
                raise Refused(408, f"the body took longer than {self.settings.limits.seconds:g} s") from None
        if message["type"] == "http.disconnect":
            raise Refused(400, "the connection was closed before the body was complete")
        if len(body) > self.max_body:
            raise self._too_large(str(len(body)))
        return body

    def _too_large(self, received: str) -> Refused:
        return Refused(413, "the body is too large", "", f"at most {self.max_body} bytes", received[:40])

    # Acting

    async def act(self, body: bytes | str, passed_on: bool = False) -> bytes:
        """The answer to a request for actions. `passed_on`: by the process that got it."""
        if not self.ready:
            raise Refused(503, "the server is not ready", retry=1)
        loop, limits = asyncio.get_running_loop(), self.settings.limits
        parser = self.served[self._names[0] if self._one_codec else self._named_in(body)].codec
        request = parser.parse(body)
        episode = request.episode if self.episodes is not None else None
        owned = request.session or episode
        if self.peers is not None and owned is not None and not passed_on:
            owner = self.peers.owner(owned)
            if owner != self.peers.index:
                reply_of_owner: bytes = await self.peers.ask(
                    owner, b"A", body.encode() if isinstance(body, str) else body
                )
                return reply_of_owner
        version = self._version(request.policy, request.session, episode)
        model, codec = version.model, version.codec
        rows, options = codec.read(request)
        if self.episodes is not None and options.episode is not None:
            self.episodes.require(options.episode, options.first, rows[0], options.outcome)
        interface, now = model.interface, loop.time()
        over = options.outcome is not None and options.outcome.over
        if over:  # there is no action to choose
            ended: dict[str, Any] = {"action": None, "policy": model.name, "step": model.step}
            if request.id is not None:
                ended["id"] = request.id
            return self._reply(ended, options, rows[0], None, False, model)
        self.batches.room(len(rows))
        session = None
        if options.session is not None:
            session = self.sessions.get(options.session, options.first, model.name, bool(interface.core_size), now)
        sample, seed = options.sample or self.settings.sample, options.seed
        if sample and seed is None:
            seed = int(self._rng.integers(2**53))
        core = None if options.core is None else np.array(options.core, np.float32)
        deadline = now + min(limits.seconds, options.deadline or limits.seconds)
        futures = []
        for i, row in enumerate(rows):
            noise = noise_rows(interface, seed, i) if sample and seed is not None and interface.noise.width else None
            future: asyncio.Future[Answer] = loop.create_future()
            own = None if core is None else core[i]
            self.batches.add(Item(version, row, sample, noise, options.first, own, session, deadline, future))
            futures.append(future)
        try:
            answers = [await future for future in futures]
        except BaseException:
            for future in futures:
                if not future.cancel() and not future.cancelled():
                    future.exception()
            raise
        actions = [codec.named(answer.action, row) for answer, row in zip(answers, rows, strict=True)]
        single = request.batch is msgspec.UNSET
        reply: dict[str, Any] = {"action": actions[0]} if single else {"actions": actions}
        first = answers[0]
        reply["policy"], reply["step"] = model.name, model.step
        if request.id is not None:
            reply["id"] = request.id
        if sample:
            reply["seed"] = seed
        if interface.core_size and session is None:
            reply["core"] = [answer.outputs["next_core"][answer.at].tolist() for answer in answers]
        if options.details or sample:
            for name in ("log_prob", "scores") if options.details else ("log_prob",):
                if name in first.outputs:
                    values = [answer.outputs[name][answer.at].tolist() for answer in answers]
                    reply[name] = values[0] if single else values
        return self._reply(reply, options, rows[0], first, sample, model)

    def _reply(
        self, reply: dict[str, Any], options: Options, row: Row, answer: Answer | None, sample: bool, model: Model
    ) -> bytes:
        """The JSON of an answer, which is recorded if it belongs to an episode."""
        episodes, outputs = self.episodes, {} if answer is None else answer.outputs
        if episodes is not None and options.episode is not None:
            action = log_prob = None
            if answer is not None:
                action = np.concatenate([np.ravel(outputs[port][answer.at]) for port in model.interface.action_names])
                if sample:
                    log_prob = outputs["log_prob"][answer.at] if "log_prob" in outputs else None
                elif model.interface.spec.action.kind != "box":
                    log_prob = np.zeros(model.interface.spec.agents_shape, np.float32)  # the only possible action
            now = asyncio.get_running_loop().time()
            reply["recorded"] = episodes.note(
                options.episode, options.first, row, options.outcome, action, log_prob, model.step, now
            )
        return encode(reply)

    async def _deliver(self, episodes: Episodes) -> None:
        """Hand over complete episodes every second, and all of them at the end."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), 1.0)
            over = self._ending.is_set()
            if over:
                episodes.cut_all()
            else:
                episodes.purge(asyncio.get_running_loop().time())
            try:
                await asyncio.to_thread(self.deliver, episodes.take())
            except Exception as error:  # a bug must not end the server, nor the recording of later episodes
                say(f"rlserve: --record: {type(error).__name__}: {error}", sys.stderr)
            if over:
                return

    def _named_in(self, body: bytes | str) -> str:
        """The policy that a request names, if not all have the same observations."""
        try:
            name = msgspec.json.decode(body, type=_Named).policy
        except msgspec.ValidationError:
            name = None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}", "", "JSON", str(error)[:200]) from None
        return name if name in self.served else self._names[0]

    def _version(self, name: str | None, session: str | None, episode: str | None) -> Version:
        """The policy of a request: the one that it names, that of its session, or one by the shares.

        A session and an episode keep to their policy.
        """
        if name is None and len(self._names) > 1:
            name = None if session is None else self.sessions.policy_of(session)
            if name is None:
                key = session or episode
                at = secrets.randbelow(2**32) if key is None else zlib.crc32(key.encode())
                name = next(one for one, bound in zip(self._names, self._bounds, strict=True) if at / 2**32 < bound)
        name = self._names[0] if name is None else name
        if name not in self.served:
            raise wrong("policy", " or ".join(self.served), name)
        return self.served[name]

    # Streams

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Each message is a request as for /v1/act, and gets its answer; answers come in order."""
        await receive()
        try:
            self._admit(scope)
            if scope["path"] != "/v1/stream":
                raise Refused(404, "the stream is /v1/stream")
        except Refused:
            await send({"type": "websocket.close", "code": 1008})
            return
        # A browser sends the token as a subprotocol, and closes a connection that does not confirm it.
        await send({"type": "websocket.accept", "subprotocol": next(iter(scope.get("subprotocols", ())), None)})
        metrics, loop = self.metrics, asyncio.get_running_loop()
        metrics.connections += 1
        try:
            while True:
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    return
                begin, status = loop.time(), 200
                body = message.get("text") or message.get("bytes") or b""
                try:
                    if len(body) > self.max_body:
                        raise self._too_large(str(len(body)))
                    reply = await self.act(body)
                except Refused as refused:
                    status, reply = refused.status, encode({**refused.body, "status": refused.status})
                metrics.answered("/v1/stream", status, loop.time() - begin)
                await send({"type": "websocket.send", "text": reply.decode()})
        except GONE:
            return
        finally:
            metrics.connections -= 1

    # Reloads

    async def _reload_request(self, body: bytes) -> bytes:
        reply = await self.reload_here(body)
        if self.peers is not None:
            await self.peers.ask_all(b"R", body)
        return reply

    async def reload_here(self, body: bytes) -> bytes:
        """Reload in this process what a request names."""
        try:
            asked = msgspec.json.decode(body or b"{}", type=_Named, strict=True)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(400, f"the body is not a reload: {error}", "", '{"policy": NAME} or {}', str(error)) from None
        if asked.policy is not None and asked.policy not in self.served:
            raise wrong("policy", " or ".join(self.served), asked.policy)
        names = [asked.policy] if asked.policy is not None else list(self.served)
        return encode({"steps": {name: await self.reload(name) for name in names}})

    async def reload(self, name: str) -> int:
        """Load the newest version of a policy next to the old one, verify it, and put it in its place.

        The old one answers meanwhile, also what has arrived by then, and stays if the new one is refused. Sessions keep
        their memory; if the new version has another kind of it, they end, and their next request gets 409.

        Raises:
            Refused: 409, the new version cannot be served.
        """
        async with self._loading:
            old = self.served[name].model
            try:
                source = self.settings.sources[name]
                new: Model = await asyncio.to_thread(load_model, name, source, self.settings.limits.batch)
                changed = spec_differences(old.interface.spec, new.interface.spec, ignored=COSMETIC)
                if changed:
                    raise CheckpointError(f"it has other spaces: {changed}")
            except (CheckpointError, ConfigError) as error:
                self.metrics.failed_reloads += 1
                raise Refused(409, f"step {old.step} stays: {error}") from None
            if (new.interface.core_size, new.memory) != (old.interface.core_size, old.memory):
                self.sessions.end_all(name)
            self.served[name] = Version(new)
            self.metrics.reloads += 1
            return new.step

    async def _watch(self, seconds: float) -> None:
        """Reload a policy whenever its run has written another checkpoint."""
        seen = {name: _mark(source) for name, source in self.settings.sources.items()}
        while True:
            await asyncio.sleep(seconds)
            for name, source in self.settings.sources.items():
                mark = await asyncio.to_thread(_mark, source)
                if mark == seen[name]:
                    continue
                seen[name] = mark
                try:
                    say(f"rlserve: {name} is at step {await self.reload(name):,}")
                except Refused as refused:
                    say(f"rlserve: {name}: {refused}")
                except Exception as error:  # a bug in one reload must not end the watch
                    say(f"rlserve: {name} was not reloaded: {type(error).__name__}: {error}")


class _Named(msgspec.Struct):
    policy: str | None = None


def _name_of(host: str) -> str:
    """The name in a Host header, without the port."""
    return f"{host.partition(']')[0]}]" if host.startswith("[") else host.partition(":")[0].lower()


def _mark(source: Source) -> Any:
    """Something that changes when a run writes a checkpoint, or a file is replaced."""
    if source.is_file:
        paths = [source.path]
    else:
        link = "best" if source.best else "latest"
        paths = [source.path / "checkpoints" / link, source.path / link]
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            return status.st_mtime_ns, status.st_ino
    return None


def _without_infinities(node: Any) -> Any:
    """Plain data where a missing bound is null, as JSON has no infinity."""
    if isinstance(node, dict):
        return {key: _without_infinities(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_infinities(value) for value in node]
    return None if isinstance(node, float) and not np.isfinite(node) else node
