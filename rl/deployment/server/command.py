"""`rlserve`: the flags, and the process that serves until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import os
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rltrain
from rltrain.config.consent import import_code
from rltrain.config.flags import Parser, add_consent, whole
from rltrain.errors import CheckpointError, ConfigError
from rltrain.reporting.console import say


def run(argv: Sequence[str]) -> None:
    """The command `rlserve`."""
    given = parser().parse(argv)
    import_code(given.pop("import_code", []))
    from rltrain.deployment.server.app import App, Limits
    from rltrain.deployment.server.serve import bound_socket, recording_of, server_of, settings_for, url_of

    host, port = given["host"], given["port"]
    what = _policies(given["policies"])
    limits = Limits(
        batch=given["batch"],
        wait=given["batch_wait"] / 1000,
        queue=given["queue"],
        body=given["max_body"],
        seconds=given["timeout"],
        sessions=given["sessions"],
        ttl=given["session_ttl"],
    )
    token = None if given["token_file"] is None else read_token(Path(given["token_file"]))
    shares = dict(_share(text) for text in given["share"])
    watch = given.get("watch")
    settings = settings_for(
        what, given["best"], given.get("trust", False), host, token, sample=given["sample"], shares=shares,
        watch=watch, limits=limits, record=None if given["record"] is None else Path(given["record"]),
    )  # fmt: skip
    tls = _tls(given["tls_cert"], given["tls_key"])
    if given["workers"] > 1:
        from rltrain.deployment.server.workers import supervise

        supervise(settings, host, port, given["workers"], tls)
        return
    app = App(settings)
    listening = bound_socket(host, port)
    with contextlib.closing(listening):
        app.start()
        writer = recording_of(app)
        server = server_of(app, **tls)
        for line in lines(app, url_of(listening, bool(tls))):
            say(line)
        with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again after it has ended in order
            server.run([listening])
        if writer is not None:
            writer.close()
    return


def lines(app: Any, url: str) -> list[str]:
    """What a server says when it is ready."""
    found = []
    for name, version in app.served.items():
        model = version.model
        spec = model.interface.spec
        memory = ", with memory" if model.interface.core_size else ""
        found.append(f"rlserve: {name}: {model.algo} on {spec.id}, step {model.step:,}{memory} ({model.path})")
    return [*found, f"rlserve: {url}, one thread; POST {url}/v1/act, Ctrl-C or SIGTERM ends it"]


def parser() -> Parser:
    top = Parser(
        rltrain.__version__,
        prog="rlserve",
        description="Serves trained policies over HTTP and WebSocket: observations in, actions out.",
    )
    top.add_argument(
        "policies",
        nargs="+",
        metavar="RUN",
        help="a run's folder, a checkpoint or a file of rlexport; several as NAME=RUN",
    )
    top.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="[127.0.0.1]; others need --token-file")
    top.add_argument("--port", type=_within(0, 65535), default=8000, metavar="INT", help="[8000]")
    top.add_argument("--best", action="store_true", default=False, help="the best checkpoint in place of the latest")
    top.add_argument("--sample", action="store_true", default=False, help="samples actions, as in training")
    top.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="NAME=WEIGHT",
        help="the share of a policy of the requests that name none; can be repeated [the first policy gets all]",
    )
    top.add_argument(
        "--watch", type=_number(0.1), nargs="?", const=2.0, metavar="SECONDS", help="takes newer checkpoints [2 s]"
    )
    top.add_argument("--record", default=None, metavar="DIR", help="a folder for the episodes of the clients")
    top.add_argument("--token-file", default=None, metavar="FILE", help="file with the token that requests must send")
    top.add_argument("--tls-cert", default=None, metavar="FILE", help="certificate chain, for https")
    top.add_argument("--tls-key", default=None, metavar="FILE", help="its private key")
    top.add_argument("--workers", type=_within(1, 256), default=1, metavar="INT", help="processes behind the port [1]")
    top.add_argument("--batch", type=_within(1, 4096), default=64, metavar="INT", help="rows of a batch [64]")
    top.add_argument(
        "--batch-wait", type=_number(0.0), default=0.0, metavar="MS", help="waits for a batch; for slow networks [0]"
    )
    top.add_argument("--queue", type=_within(1, 10**6), default=1024, metavar="INT", help="rows that may wait [1024]")
    top.add_argument("--timeout", type=_number(0.001), default=10.0, metavar="SECONDS", help="of a request [10]")
    top.add_argument(
        "--max-body", type=_within(1, 2**31), default=None, metavar="BYTES", help="of a request [1 MiB, or as needed]"
    )
    top.add_argument("--sessions", type=_within(1, 10**7), default=1000, metavar="INT", help="limit of sessions [1000]")
    top.add_argument(
        "--session-ttl", type=_number(0.001), default=600.0, metavar="SECONDS", help="life of an unused session [600]"
    )
    add_consent(top)
    return top


def _within(least: int, most: int) -> Any:
    def integer(text: str) -> int:
        value = whole(text)
        if not isinstance(value, int) or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, got {text!r}")
        return value

    return integer


def _number(least: float) -> Any:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value < 1e9:
            raise argparse.ArgumentTypeError(f"must be a number from {least:g} on, got {text!r}")
        return value

    return number


def _policies(words: list[str]) -> Any:
    """The path of a single policy, or {name: path}."""
    if len(words) == 1 and ("=" not in words[0] or os.path.lexists(words[0])):
        found: Any = words[0]
        paths = [words[0]]
    else:
        pairs = [word.partition("=") for word in words]
        wrong = next((word for word, (name, mark, path) in zip(words, pairs, strict=True) if not (name and path)), None)
        if wrong is not None:
            raise ConfigError(f"several policies need names: NAME=RUN, got {wrong!r}")
        found = {name: path for name, _, path in pairs}
        if len(found) < len(pairs):
            raise ConfigError("two policies have the same name")
        paths = list(found.values())
    for path in paths:
        if not os.path.lexists(path):
            raise CheckpointError(f"{path} does not exist")
    return found


def _share(text: str) -> tuple[str, float]:
    name, _, weight = text.partition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise ConfigError(f"--share: expected NAME=WEIGHT, got {text!r}") from None


def read_token(path: Path) -> str:
    """The token in a file that only its owner can read."""
    try:
        status = path.stat()
        if os.name != "nt" and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"--token-file {path}: others can read it; chmod 600 {path}")
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path}: {error}") from None


def _tls(cert: str | None, key: str | None) -> dict[str, Any]:
    if (cert is None) != (key is None):
        raise ConfigError("--tls-cert and --tls-key belong together")
    for flag, path in (("--tls-cert", cert), ("--tls-key", key)):
        if path is not None and not os.path.isfile(path):
            raise ConfigError(f"{flag} {path}: there is no such file")
    if cert is None:
        return {}
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"--tls-cert {cert} --tls-key {key}: they are no certificate and its key: {error}") from None
    return {"ssl_certfile": cert, "ssl_keyfile": key}
