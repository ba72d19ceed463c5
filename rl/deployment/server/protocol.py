"""The protocols of uvicorn with limits of size and time, for clients that send slowly, stop reading, or never end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD_BYTES = 64 * 2**10  # of the request line and the headers
PIPELINED = 64  # requests of a connection that may wait behind another
DRAINING = 0.5  # seconds that an idle connection stays open when the server ends: a request may be on its way
CLOSING = 5.0  # seconds in which a client must read the rest of what it was sent


def limited(seconds: float) -> tuple[type[HttpToolsProtocol], type[WebSocketsSansIOProtocol]]:
    """The protocols of HTTP and of WebSocket. `seconds`: in which a client must send a request, and read an answer."""

    class Http(_Http):
        limit = seconds

    return Http, _WebSocket


class _Http(HttpToolsProtocol):
    limit: float

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._sending: asyncio.TimerHandle | None = None  # the client sends a request
        self._reading: asyncio.TimerHandle | None = None  # the client reads answers
        self._head, self._in_head = 0, True  # bytes of the headers so far; whether they have not ended
        self._draining = self._too_large = False
        self._over = self._fresh = False  # nothing more is read; the timer of `_sending` has just begun
        self._answers: Any = _Answers(transport)
        self._begin_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def _begin_timer(self) -> None:
        """A request must come in time. The application answers a slow body first, with 408."""
        self._stop_sending()
        self._sending = self.loop.call_later(self.limit + 1.0, self._too_slow)

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _stop_timers(self) -> None:
        self._stop_sending()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _too_slow(self) -> None:
        self._sending = None
        if self._in_head and self._head and not self._busy and not self.transport.is_closing():
            self._refuse(408, f"the request took longer than {self.limit:g} s")
        else:
            self._close()

    @property
    def _busy(self) -> bool:
        """Whether the application works at an answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def _forget(self) -> None:
        """For the application the client is gone."""
        if self._busy:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.pipeline.clear()

    def _close(self) -> None:
        """Close; a client that does not read what it was sent is cut off."""
        self._over = True
        self._forget()
        self.transport.close()
        self.loop.call_later(CLOSING, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._over or self.transport.is_closing():
            return
        self._fresh = self._sending is None
        if self._fresh:
            self._begin_timer()
        if self._in_head:
            self._head += len(data)
        super().data_received(data)
        if self._in_head and self._busy:
            self._stop_sending()
        if self._in_head and self._head > HEAD_BYTES and not self._over:
            self._too_large = True
            self.send_400_response("")
        if len(self.pipeline) > PIPELINED:
            self._over = True
            self._forget()
            self.transport.abort()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has sent its whole request may close its side of the connection, and still gets the answer."""
        if not self._busy or self.cycle.more_body or self.scheme == "https":
            self._forget()
            return False
        self.cycle.keep_alive = False  # the newest one
        return True

    def handle_websocket_upgrade(self) -> None:
        self._stop_timers()
        super().handle_websocket_upgrade()

    def shutdown(self) -> None:
        """The server ends: requests that have arrived get their answers, each with `Connection: close`."""
        self._draining = True
        if self._busy:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(DRAINING, self._close_idle)

    def _close_idle(self) -> None:
        if not self._busy:
            self._close()

    def on_response_complete(self) -> None:
        if self._in_head:
            self._stop_sending()
        super().on_response_complete()

    # Parser callbacks: an exception becomes `send_400_response`

    def on_message_begin(self) -> None:
        if not self._fresh:
            self._begin_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._head > HEAD_BYTES and len(self.url) + sum(len(a) + len(b) for a, b in self.headers) > HEAD_BYTES:
            self._too_large = True
            raise ValueError("the headers are too large")
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.transport = self._answers
            self.cycle.keep_alive &= not self._draining
        self._in_head = False

    def on_message_complete(self) -> None:
        self._head, self._in_head = 0, True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the form of all other faults."""
        if self._busy and not self.cycle.more_body:  # what follows a request is none: its answer is the last one
            self.cycle.keep_alive = False
            self._over = True
        elif not self._in_head and not self._busy:  # the body of a request that was answered already
            self._close()
        elif self._too_large:
            self._refuse(431, f"the request line and the headers are too large: at most {HEAD_BYTES} bytes")
        else:
            self._refuse(400, "the request is not HTTP/1.1")

    def _refuse(self, status: int, message: str) -> None:
        if not (self._busy and self.cycle.response_started):
            body = msgspec.json.encode({"error": {"message": message}})
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self._close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(self.limit, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None


class _Answers:
    """The transport of answers. That of uvloop raises RuntimeError after the client has closed the connection."""

    __slots__ = ("_transport", "close", "is_closing")

    def __init__(self, transport: Any) -> None:
        self._transport, self.close, self.is_closing = transport, transport.close, transport.is_closing

    def write(self, data: bytes) -> None:
        with contextlib.suppress(RuntimeError):
            self._transport.write(data)


class _WebSocket(WebSocketsSansIOProtocol):
    unanswered = 0  # messages that have arrived
    draining = False

    def shutdown(self) -> None:
        """The server ends: messages that have arrived get their answers first."""
        if self.unanswered and not self.close_sent:
            self.draining = True
        else:
            super().shutdown()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.send":
            self.unanswered -= 1
            if self.draining and not self.unanswered and not self.transport.is_closing():
                super().shutdown()

    def send_receive_event_to_app(self) -> None:
        """A text that is not UTF-8 closes the connection with 1007, without the traceback of uvicorn."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.send_close(1007)
                self.handle_parser_exception()
                return
        self.unanswered += 1
        super().send_receive_event_to_app()

    def keepalive_timeout(self) -> None:
        """The client is gone, or does not read what it was sent."""
        super().keepalive_timeout()
        self.loop.call_later(CLOSING, self.transport.abort)
