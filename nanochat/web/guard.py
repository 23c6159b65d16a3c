"""ASGI middleware around every route: body limits, security headers, metrics, the access log."""

import asyncio
import json
import logging
import time
from datetime import UTC, datetime

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.errors import error_location
from nanochat.web.openai_api import ApiError
from nanochat.web.prometheus import Metrics

access = logging.getLogger("nanochat.web.access")
logger = logging.getLogger(__name__)

BODY_TIMEOUT_SECONDS = 10.0  # a body is at most 256 KiB: a few seconds on a slow connection
MAX_LOGGED_PATH = 120  # clients choose the path; log lines stay short

SECURITY_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    # The chat page sets a policy of its own; everything else may load and embed nothing.
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}
CLOSE = {"Connection": "close"}  # the rest of a refused body is not read


class Guard:
    def __init__(self, app: ASGIApp, max_body_bytes: int, metrics: Metrics) -> None:
        self.app, self.max_body_bytes, self.metrics = app, max_body_bytes, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {
                    name for name, _ in message["headers"]
                }  # headers of the route take precedence
                added = [item for item in SECURITY_HEADERS.items() if item[0] not in names]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            for name, value in scope["headers"]:
                if name == b"content-length":  # refused before a byte of the body is read
                    self._check_size(int(value[:20]))  # 20 digits are too large already
            await self.app(scope, self._limited(receive), send_with_headers)
        except Exception as error:
            if not isinstance(error, ApiError):
                # Not the exception's text: it may quote what the user wrote.
                logger.error("a route failed: %s", error_location(error))
                error = ApiError(500, "internal server error; see the server's log")
            if not status:  # else a part is sent: only closing remains
                response = JSONResponse(error.body(), error.status_code, headers=CLOSE)
                await response(scope, receive, send_with_headers)
        finally:
            self.metrics.requests.labels(status).inc()
            _log_access(scope, status, time.monotonic() - start)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.max_body_bytes:
            message = f"the body is larger than {self.max_body_bytes} bytes"
            raise ApiError(413, message, headers=CLOSE)

    def _limited(self, receive: Receive) -> Receive:
        """`receive` that refuses a body that is too large or too slow."""
        num_bytes, is_complete = 0, False
        deadline = asyncio.get_running_loop().time() + BODY_TIMEOUT_SECONDS

        async def limited() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:  # only a disconnect can follow, possibly minutes later
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                late = f"the body did not arrive within {BODY_TIMEOUT_SECONDS:g} s"
                raise ApiError(408, late, headers=CLOSE) from None
            num_bytes += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            self._check_size(num_bytes)
            return message

        return limited


def _log_access(scope: Scope, status: int, seconds: float) -> None:
    """One line of JSON: escaped, bounded, without query and body, which may hold users' text."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "client": (scope.get("client") or [""])[0],
        "method": scope["method"][:16],
        "path": scope["path"][:MAX_LOGGED_PATH],
        "status": status,
        "ms": round(1000 * seconds),
    }
    access.info("%s", json.dumps(line))
