"""A socket, and uvicorn on it: connections that are slow to ask or slow to read are closed."""

import asyncio
import errno
import json
import signal
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanochat.errors import UserError
from nanochat.web.openai_api import error_body

HEAD_SECONDS = 10.0  # for the head of a request
STALL_SECONDS = 30.0  # for a client that reads nothing while there is something to read
DRAIN_SECONDS = 7  # for answers that run when the server is told to stop
BACKLOG = 1024
SEND_BUFFER_BYTES = 256 * 1024  # of each connection, with the kernel; what is beyond waits here


def bind(host: str, port: int) -> socket.socket:
    """A bound socket. Raises UserError when the port is taken or cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        raise UserError(f"--host={host} is not an address of this machine; use 127.0.0.1") from None
    except OverflowError:
        raise UserError(f"--port={port} is not a port; use 1024 to 65535") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind(address)
        listener.listen(BACKLOG)  # now, so that a taken port is found now
    except OSError as error:
        listener.close()
        reasons = {errno.EADDRINUSE: "is taken", errno.EACCES: "may not be used by this user"}
        reason = reasons.get(error.errno or 0, f"cannot be used ({error.strerror})")
        other = port + 1 if 1024 <= port < 65535 else 8000
        raise UserError(
            f"--port={port} on {host} {reason}; use another, as in --port={other}"
        ) from None
    return listener


class DrainingServer(uvicorn.Server):
    """When told to stop, lets answers end for a while, then tells the rest that it goes."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        pool = self.config.app.state.service.pool  # type: ignore[union-attr]
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, pool.close)
        await super().shutdown(sockets)


def server_of(app: Any) -> uvicorn.Server:
    """A server for `app`; its `run(sockets=[...])` serves until it is told to stop."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS + 1,
    )
    return DrainingServer(config)


def serve(app: Any, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; running answers get a few seconds to end."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn, which obeyed it, raises it again
    server_of(app).run(sockets=[listener])


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with a limit on how long a head may take to come and an answer to be read."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.access_log = False  # the guard writes one that holds no text of users
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Whoever sends waits until the kernel has all of it: nothing piles up for a slow reader.
        transport.set_write_buffer_limits(high=0)
        self._abort_after(HEAD_SECONDS, "head")

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered in the form of all errors."""
        body = json.dumps(error_body(400, msg)).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start = h11.Response(
            status_code=400, headers=[*headers, ("Connection", "close")], reason=b"Bad Request"
        )
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for name in [*self._timers]:
            self._go_on(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._go_on("head")  # it is whole
        elif "head" not in self._timers:
            self._abort_after(HEAD_SECONDS, "head")  # part of a next one

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_after(STALL_SECONDS, "stall")

    def resume_writing(self) -> None:
        self._go_on("stall")
        super().resume_writing()

    def _abort_after(self, seconds: float, name: str) -> None:
        self._go_on(name)
        self._timers[name] = self.loop.call_later(seconds, self.transport.abort)

    def _go_on(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()
