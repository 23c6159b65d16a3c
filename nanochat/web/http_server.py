"""Uvicorn on bound sockets, with timeouts for clients that send or read slowly."""

import asyncio
import errno
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanochat.errors import UserError
from nanochat.web.guard import SECURITY_HEADERS
from nanochat.web.openai_api import ApiError

logger = logging.getLogger(__name__)

HEADER_TIMEOUT_SECONDS = 10.0
WRITE_TIMEOUT_SECONDS = 30.0  # without progress: a client that does not read its answer
GRACEFUL_SHUTDOWN_SECONDS = 7  # for running answers; Docker and Kubernetes kill after 10 and 30
MAX_BODY_PIECES = 4096  # chunks of a body; each takes 6 µs, and 240 KB could be 240,000 of them
BACKLOG = 1024  # connections that the kernel queues: a burst must not be reset
# Per connection in the kernel. More backpressures the writer, so that a client that does not read
# holds at most this much memory.
SEND_BUFFER_BYTES = 256 * 1024


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets: for localhost one per address family, else one.

    They listen at once: a port in use fails before the model is loaded. Raises UserError when the
    address or the port cannot be used.
    """
    if host != "localhost":
        return [_listen(host, port)]
    # Browsers and clients try ::1 or 127.0.0.1 first, and some of them only one.
    sockets = [_listen("127.0.0.1", port)]
    with suppress(_NoSuchAddress):  # without IPv6
        sockets.append(_listen("::1", sockets[0].getsockname()[1]))
    return sockets


class _NoSuchAddress(UserError):
    """The machine does not have the address."""


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # --host=:: is IPv4, too; ::1 is not.
        is_dual = host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(
            address, family=family, backlog=BACKLOG, dualstack_ipv6=is_dual
        )
    except OSError as error:
        absent = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        if isinstance(error, socket.gaierror) or error.errno in absent:
            message = f"--host={host} is not an address of this machine; use localhost"
            raise _NoSuchAddress(message) from None
        reasons = {errno.EADDRINUSE: "is in use", errno.EACCES: "is not permitted for this user"}
        reason = reasons.get(error.errno or 0, f"cannot be used ({error.strerror})")
        other = port + 1 if 1024 <= port < 65535 else 8000
        raise UserError(f"--port={port} on {host} {reason}; try --port={other}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # for accepted ones
    return listener


class GracefulServer(uvicorn.Server):
    """On shutdown, lets running answers finish for a while, then fails the rest."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            # At once: threads may be in a forward pass that lasts, and hold no files open.
            sys.stderr.write("interrupted\n")
            sys.stderr.flush()
            os._exit(128 + signal.SIGINT)
        super().handle_exit(sig, frame)
        logger.info(
            "stopping after running answers, in %d s at most; Ctrl-C stops now",
            GRACEFUL_SHUTDOWN_SECONDS,
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        models = self.config.app.state.service.models  # type: ignore[union-attr]
        asyncio.get_running_loop().call_later(GRACEFUL_SHUTDOWN_SECONDS, models.close)
        await super().shutdown(sockets)


def make_server(app: Any, trusted_proxies: Sequence[str] = ()) -> uvicorn.Server:
    """A server for `app`; `run(sockets=...)` serves until it is stopped.

    trusted_proxies: addresses whose X-Forwarded-For names the client.
    """
    config = uvicorn.Config(
        app,
        http=TimeoutProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=[*trusted_proxies],
        # One second more than the pool gets, to send the errors of the answers it failed.
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS + 1,
    )
    return GracefulServer(config)


def serve(app: Any, listeners: list[socket.socket], trusted_proxies: Sequence[str] = ()) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises UserError where an event loop is running."""
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise UserError(
            "a notebook cannot serve: use a terminal, or a cell with !python -m scripts.chat_web"
        )
    # Uvicorn raises the signal again after its shutdown, which would exit with 143 instead of 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    gc.collect()
    gc.freeze()  # a collection of all imported modules' objects would stall every client
    make_server(app, trusted_proxies).run(sockets=listeners)


class _Connection(h11.Connection):
    """The parser, which refuses a body in very many chunks."""

    _num_pieces = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._num_pieces = 0
        self._num_pieces += isinstance(event, h11.Data)
        if self._num_pieces > MAX_BODY_PIECES:
            raise h11.RemoteProtocolError(f"more than {MAX_BODY_PIECES} chunks")
        return event


class TimeoutProtocol(H11Protocol):
    """HTTP/1.1 that drops connections whose headers or whose reading take too long."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = _Connection(h11.SERVER)
        self.access_log = False  # guard.py writes one, without queries
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Writers wait until the kernel has taken everything: no buffer grows for a slow client.
        transport.set_write_buffer_limits(high=0)
        self._start_timer("headers", HEADER_TIMEOUT_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP with the JSON body of all errors, unless another answer has begun."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        body = json.dumps(ApiError(400, msg).body()).encode()
        headers = {
            **SECURITY_HEADERS,
            b"content-type": b"application/json",
            b"content-length": b"%d" % len(body),
            b"connection": b"close",
        }
        lines = [b"HTTP/1.1 400 Bad Request", *(b"%s: %s" % item for item in headers.items())]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for name in [*self._timers]:
            self._cancel_timer(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel_timer("headers")  # a request is being answered
        elif "headers" not in self._timers:
            self._start_timer("headers", HEADER_TIMEOUT_SECONDS)  # part of the next request

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_timer("write", WRITE_TIMEOUT_SECONDS)

    def resume_writing(self) -> None:
        self._cancel_timer("write")
        super().resume_writing()

    def _start_timer(self, name: str, seconds: float) -> None:
        self._cancel_timer(name)
        self._timers[name] = self.loop.call_later(seconds, self.transport.abort)

    def _cancel_timer(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()
