"""A client on bare sockets: cheap enough for hundreds at once, and able to misbehave."""

import asyncio
import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_SECONDS = 120.0  # a response that takes longer counts as hanging


@dataclass
class Reply:
    """A response, with times in seconds since the request was sent."""

    status: int = 0
    """0: not HTTP."""
    head: bytes = b""
    body: bytes = b""
    first_byte: float = 0.0
    first_token: float = 0.0
    """Arrival of the second event of a stream; the first only opens it."""
    end: float = 0.0
    hangs: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether it consists of server-sent events."""
        return b"text/event-stream" in self.head


def request(path: str, body: Any = None, method: str = "", more_headers: str = "") -> bytes:
    """A request as bytes. HTTP/1.0: the response is not chunked and ends when it is closed."""
    is_raw = body is None or isinstance(body, bytes)
    content: bytes = (body or b"") if is_raw else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    head = f"{method} {path} HTTP/1.0\r\nHost: localhost\r\n{more_headers}"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return f"{head}\r\n".encode("utf-8", "surrogateescape") + content


@dataclass
class Client:
    """Sends requests to one server."""

    host: str
    port: int
    unread: list[socket.socket] = field(default_factory=list)
    """Open connections whose responses are never read."""

    async def send(self, raw: bytes) -> Reply:
        """The complete response to a request."""
        start, reply = time.monotonic(), Reply()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._read(raw, reply, start)
        except TimeoutError:
            reply.hangs = True
        except ConnectionError:
            pass  # the status stays 0, unless it has arrived
        reply.end = time.monotonic() - start
        reply.head, _, reply.body = reply.body.partition(b"\r\n\r\n")
        line = reply.head.split(b" ", 2)
        if len(line) > 1 and line[0].startswith(b"HTTP/1.") and line[1].isdigit():
            reply.status = int(line[1])
        return reply

    async def _read(self, raw: bytes, reply: Reply, start: float) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(raw)
            num_events = 0
            while piece := await reader.read(65536):
                now = time.monotonic() - start
                reply.first_byte = reply.first_byte or now
                reply.body += piece
                num_events += piece.count(b"\n\n")
                if num_events >= 2:
                    reply.first_token = reply.first_token or now
        finally:
            writer.close()

    async def send_and_disconnect(self, raw: bytes, when: asyncio.Event) -> None:
        """Send a request and reset the connection when the event is set."""
        _, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(raw)
        await when.wait()
        writer.transport.abort()

    def send_without_reading(self, raw: bytes) -> None:
        """Send a request and leave the response unread until `close_unread`."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # it fills up soon
        connection.connect((self.host, self.port))
        connection.sendall(raw)
        self.unread.append(connection)

    def close_unread(self) -> None:
        """Close the connections that are not read."""
        while self.unread:
            self.unread.pop().close()

    async def num_active(self) -> int:
        """Answers of the server that are being generated or wait."""
        counts = json.loads((await self.send(request("/health"))).body)
        return int(counts["running"] + counts["waiting"])
