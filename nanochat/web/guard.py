"""What stands before every route: limits on what comes in, headers on what goes out, a log."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from nanochat.errors import where_it_failed
from nanochat.web.openai_api import ApiError
from nanochat.web.prometheus import Metrics

access = logging.getLogger("nanochat.web.access")
logger = logging.getLogger(__name__)

BODY_SECONDS = 10.0
MAX_LOGGED_PATH = 120

HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
STRICT_POLICY = b"default-src 'none'; frame-ancestors 'none'"  # of all but the page

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: App, max_body_bytes: int, metrics: Metrics) -> None:
        self.app, self.max_body_bytes, self.metrics = app, max_body_bytes, metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        response = _Response(send)
        began = time.monotonic()
        try:
            self._refuse_declared_size(scope)
            await self.app(scope, self._bounded(receive), response.send)
        except ApiError as error:
            await response.fail(error)
        except Exception as error:
            logger.error("a route failed: %s", where_it_failed(error))
            await response.fail(ApiError(500, "the server failed; its log says where"))
        finally:
            self.metrics.count("nanochat_requests_total", f'status="{response.status}"')
            _log(scope, response.status, time.monotonic() - began)

    def _refuse_declared_size(self, scope: MutableMapping[str, Any]) -> None:
        """Before a byte of it is read. Raises ApiError."""
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value[:20]) > self.max_body_bytes:
                raise self._too_large()

    def _too_large(self) -> ApiError:
        message = f"the body has more than {self.max_body_bytes} bytes"
        return ApiError(413, message, headers={"Connection": "close"})

    def _bounded(self, receive: Receive) -> Receive:
        """`receive` that refuses a body that is too large or too slow."""
        size, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + BODY_SECONDS

        async def bounded() -> Message:
            nonlocal size, is_whole
            if is_whole:  # only the client's leaving can follow, and that may take long
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                late = f"the body did not come within {BODY_SECONDS:g} s"
                raise ApiError(408, late, headers={"Connection": "close"}) from None
            size += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if size > self.max_body_bytes:
                raise self._too_large()
            return message

        return bounded


class _Response:
    """What goes out: adds the headers, remembers the status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            names = {name for name, _ in message["headers"]}
            added = {**HEADERS, b"content-security-policy": STRICT_POLICY}
            more = [(name, value) for name, value in added.items() if name not in names]
            message = {**message, "headers": [*message["headers"], *more]}
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Answer with an error and close the connection, unless an answer has begun."""
        if self.status:
            return
        body = json.dumps(error.body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        start = {"type": "http.response.start", "status": error.status_code, "headers": headers}
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


def _log(scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
    """One line of JSON: escaped, bounded, without query and body."""
    client = scope.get("client") or ("", 0)
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "client": client[0],
        "method": scope["method"][:16],
        "path": scope["path"][:MAX_LOGGED_PATH],
        "status": status,
        "ms": round(1000 * seconds),
    }
    access.info("%s", json.dumps(line))
