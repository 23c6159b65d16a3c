"""Uvicorn on a bound socket, with timeouts for clients that send or read slowly."""

import asyncio
import errno
import json
import signal
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanochat.errors import UserError
from nanochat.web.openai_api import ApiError

HEADER_TIMEOUT_SECONDS = 10.0
WRITE_TIMEOUT_SECONDS = 30.0  # without progress: a client that does not read its answer
GRACEFUL_SHUTDOWN_SECONDS = 7  # for running answers; Docker and Kubernetes kill after 10 and 30
BACKLOG = 1024  # connections that the kernel queues: a burst must not be reset
# Per connection in the kernel. More backpressures the writer, so that a client that does not read
# holds at most this much memory.
SEND_BUFFER_BYTES = 256 * 1024


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError when the address or the port cannot be used."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        raise UserError(f"--host={host} is not an address of this machine; use 127.0.0.1") from None
    is_dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # --host=:: is IPv4, too
    try:  # listens at once: a port in use fails before the model is loaded
        listener = socket.create_server(
            address, family=family, backlog=BACKLOG, dualstack_ipv6=is_dual
        )
    except OSError as error:
        reasons = {errno.EADDRINUSE: "is in use", errno.EACCES: "is not permitted for this user"}
        reason = reasons.get(error.errno or 0, f"cannot be used ({error.strerror})")
        other = port + 1 if 1024 <= port < 65535 else 8000
        raise UserError(f"--port={port} on {host} {reason}; try --port={other}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # for accepted ones
    return listener


class GracefulServer(uvicorn.Server):
    """On shutdown, lets running answers finish for a while, then fails the rest."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        pool = self.config.app.state.service.pool  # type: ignore[union-attr]
        asyncio.get_running_loop().call_later(GRACEFUL_SHUTDOWN_SECONDS, pool.close)
        await super().shutdown(sockets)


def make_server(app: Any) -> uvicorn.Server:
    """A server for `app`; `run(sockets=[listener])` serves until it is stopped."""
    config = uvicorn.Config(
        app,
        http=TimeoutProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # One second more than the pool gets, to send the errors of the answers it failed.
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS + 1,
    )
    return GracefulServer(config)


def serve(app: Any, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    # Uvicorn raises the signal again after its shutdown, which would exit with 143 instead of 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    make_server(app).run(sockets=[listener])


class TimeoutProtocol(H11Protocol):
    """HTTP/1.1 that drops connections whose headers or whose reading take too long."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False  # guard.py writes one, without queries
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Writers wait until the kernel has taken everything: no buffer grows for a slow client.
        transport.set_write_buffer_limits(high=0)
        self._start_timer("headers", HEADER_TIMEOUT_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP with the JSON body of all errors."""
        body = json.dumps(ApiError(400, msg).body()).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
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
