"""`rltrain.serve`: a server in a thread of this process, for tests and notebooks; and what `rlserve` runs."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rltrain.deployment.export.formats import need
from rltrain.deployment.server.app import LOOPBACK, App, Limits, Settings
from rltrain.deployment.server.models import Source
from rltrain.deployment.server.recording import Writer
from rltrain.errors import ConfigError

KEEP_ALIVE_SECONDS = 75  # that a connection without a request stays open
DRAIN_SECONDS = 10
NAME = "policy"  # of a single policy


def settings_for(
    what: str | Path | Mapping[str, str | Path],
    best: bool = False,
    trust: bool = False,
    host: str = "127.0.0.1",
    token: str | None = None,
    **rest: Any,
) -> Settings:
    """The settings of a server of one policy, or of several by name.

    Raises:
        ConfigError: another address than loopback without a token; or a share of an unknown policy.
    """
    paths = {NAME: what} if isinstance(what, str | Path) else dict(what)
    if not paths:
        raise ConfigError("name at least one policy")
    shares: Mapping[str, float] = rest.get("shares") or {}
    for name, share in shares.items():
        if name not in paths:
            raise ConfigError(f"share: there is no policy {name!r}; there are {', '.join(paths)}")
        if not 0 <= share < float("inf"):
            raise ConfigError(f"share: {name} must have a share from 0 on, got {share}")
    if shares and not sum(shares.values()) > 0:
        raise ConfigError("share: at least one policy must have a share above 0")
    local = is_loopback(host)
    if not local and not token:
        raise ConfigError(f"--host {host} can be reached from other machines: that needs a token, --token-file FILE")
    if token is not None and not (token.isascii() and token.isprintable() and len(token) >= 16 and " " not in token):
        raise ConfigError("the token must have at least 16 characters, in ASCII without spaces")
    sources = {name: Source(Path(path), best, trust) for name, path in paths.items()}
    return Settings(sources, token=token, hosts=LOOPBACK | {host.lower()} if local else None, **rest)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def server_of(app: App, **options: Any) -> Any:
    """A uvicorn server of the application."""
    uvicorn = need("uvicorn", "serve")
    need("httptools", "serve")
    from rltrain.deployment.server.protocol import limited

    http, websocket = limited(app.settings.limits.seconds)
    config = uvicorn.Config(
        app,
        http=http,
        ws=websocket,
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        ws_max_size=app.max_body,
        ws_per_message_deflate=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        **{"loop": "auto", **options},
    )
    return uvicorn.Server(config)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; ConfigError if the address is in use or unknown."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio turns off the delay of small packets, 40 ms, for sockets that name TCP only
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(1024)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f"--host {host} --port {port}: {error}") from None
    return found


def url_of(listening: socket.socket, tls: bool = False) -> str:
    host, port = listening.getsockname()[:2]
    return f"http{'s' * tls}://{f'[{host}]' if ':' in host else host}:{port}"


class Served:
    """A running server. Use it in a `with`, or call `close`.

    Attributes:
        url: such as http://127.0.0.1:41234.
        app: the application.
    """

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        self.app = App(settings)
        self.app.start()
        with contextlib.ExitStack() as opened:
            listening = opened.enter_context(bound_socket(host, port))
            self._writer = recording_of(self.app)
            opened.pop_all()
        self.url = url_of(listening)
        self._server = server_of(self.app, loop="asyncio")
        self._server.install_signal_handlers = lambda: None
        self._server.capture_signals = contextlib.nullcontext
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="rlserve", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer what has arrived, and end; RunFailed if the recording cannot be written."""
        self.app.draining = True
        self._server.should_exit = True
        self._thread.join()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def recording_of(app: App) -> Writer | None:
    """The writer of what the application records; ConfigError if the folder holds something else."""
    if app.settings.record is None or app.episodes is None:
        return None
    writer = Writer(app.settings.record, app.episodes.spec, app.settings.described)
    app.deliver = writer.write
    return writer


def serve(
    what: str | Path | Mapping[str, str | Path],
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    best: bool = False,
    sample: bool = False,
    shares: Mapping[str, float] | None = None,
    token: str | None = None,
    watch: float | None = None,
    record: str | Path | None = None,
    limits: Limits | None = None,
    trust: bool = False,
) -> Served:
    """Serve a policy, or several by name, from a thread of this process; returns at once.

    Args:
        what:   a run's folder, a checkpoint or a file of `rlexport`; or {name: one of these}.
        port:   0: any free one, see `Served.url`.
        best:   the best checkpoint of a run in place of the latest.
        sample: sample actions, unless a request says otherwise.
        shares: weights of the policies that answer requests which name none.
        token:  that requests must send; needed for another host than loopback.
        watch:  seconds between two looks for a newer checkpoint; None: never.
        record: a folder for the episodes of the clients, as `rltrain --record` writes them.
        limits: of sizes, numbers and times.
        trust:  a run or file that somebody else made may import the code that it names.

    Raises:
        ConfigError, CheckpointError: as for `rltrain.load`.
    """
    rest = {"sample": sample, "shares": shares or {}, "watch": watch, "limits": limits or Limits()}
    rest["record"] = None if record is None else Path(record)
    return Served(settings_for(what, best, trust, host, token, **rest), host, port)
