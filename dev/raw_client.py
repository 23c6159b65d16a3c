"""A client of bare sockets: many at once at little cost, and rude where that is wanted."""

import asyncio
import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any

PATIENCE_SECONDS = 120.0  # what takes longer hangs


@dataclass
class Reply:
    """What came back, and when, in seconds since the request was sent."""

    status: int = 0
    """0: nothing that is HTTP."""
    head: bytes = b""
    body: bytes = b""
    first_byte: float = 0.0
    first_token: float = 0.0
    """To the second event of a stream; the first only opens it."""
    end: float = 0.0
    hangs: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether it is made of events."""
        return b"text/event-stream" in self.head


def request(path: str, body: Any = None, method: str = "", more_headers: str = "") -> bytes:
    """A request as bytes, in HTTP/1.0, whose answers are not cut in chunks and end with a close."""
    is_raw = body is None or isinstance(body, bytes)
    content: bytes = (body or b"") if is_raw else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    head = f"{method} {path} HTTP/1.0\r\nHost: x\r\n{more_headers}"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return f"{head}\r\n".encode("utf-8", "surrogateescape") + content


@dataclass
class Client:
    """Asks one server."""

    host: str
    port: int
    rude: list[socket.socket] = field(default_factory=list)
    """Connections that are open and never read."""

    async def ask(self, raw: bytes) -> Reply:
        """The whole answer to a request."""
        began, reply = time.monotonic(), Reply()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._read(raw, reply, began)
        except TimeoutError:
            reply.hangs = True
        except ConnectionError:
            pass
        reply.end = time.monotonic() - began
        reply.head, _, reply.body = reply.body.partition(b"\r\n\r\n")
        line = reply.head.split(b" ", 2)
        if len(line) > 1 and line[0].startswith(b"HTTP/1.") and line[1].isdigit():
            reply.status = int(line[1])
        return reply

    async def _read(self, raw: bytes, reply: Reply, began: float) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(raw)
            num_events = 0
            while piece := await reader.read(65536):
                now = time.monotonic() - began
                reply.first_byte = reply.first_byte or now
                reply.body += piece
                num_events += piece.count(b"\n\n")
                if num_events >= 2:
                    reply.first_token = reply.first_token or now
        finally:
            writer.close()

    async def leave(self, raw: bytes, when: asyncio.Event) -> None:
        """Ask, and go without a word when it is time."""
        _, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(raw)
        await when.wait()
        writer.transport.abort()

    def never_read(self, raw: bytes) -> None:
        """Ask, and leave the answer where it is until `forget`."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((self.host, self.port))
        connection.sendall(raw)
        self.rude.append(connection)

    def forget(self) -> None:
        """Close what was never read."""
        while self.rude:
            self.rude.pop().close()

    async def at_work(self) -> int:
        """Answers that run or wait."""
        counts = json.loads((await self.ask(request("/health"))).body)
        return int(counts["running"] + counts["waiting"])
