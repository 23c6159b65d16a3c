"""ASGI middleware around every route: checks of host and body, headers, metrics, access log."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address

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
AUTHORITY = re.compile(r"\[?([^\[\]/@*]*?)\]?(:\d*)?")  # host and port, an IPv6 address in brackets


class Guard:
    def __init__(
        self, app: ASGIApp, allowed_hosts: Sequence[str], max_body_bytes: int, metrics: Metrics
    ) -> None:
        """allowed_hosts: see `is_host_allowed`."""
        self.app, self.max_body_bytes, self.metrics = app, max_body_bytes, metrics
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

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
            self._check_host(scope)
            # The server drops the body of a response to HEAD; the application knows GET only.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            limited = self._limited(receive, dict(scope["headers"]).get(b"content-length", b"0"))
            await self.app({**scope, "method": method}, limited, send_with_headers)
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

    def _check_host(self, scope: Scope) -> None:
        """Raises ApiError for a name that is not this server's.

        A page of another site can make its own name resolve to this machine (DNS rebinding): for
        the browser, this server's answers then belong to that site.
        """
        host = dict(scope["headers"]).get(b"host")
        if host is not None and not is_host_allowed(host.decode("latin-1"), self.allowed_hosts):
            name = host.decode("latin-1").partition(":")[0][:80]
            message = f"unknown host {name!r}; start the server with --allowed_hosts={name}"
            raise ApiError(403, message, code="unknown_host", headers=CLOSE)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.max_body_bytes:
            message = f"the body is larger than {self.max_body_bytes} bytes"
            raise ApiError(413, message, headers=CLOSE)

    def _limited(self, receive: Receive, content_length: bytes) -> Receive:
        """`receive` that refuses a body that is too large or too slow."""
        num_bytes, is_complete = 0, False
        deadline = asyncio.get_running_loop().time() + BODY_TIMEOUT_SECONDS

        async def limited() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:  # only a disconnect can follow, possibly minutes later
                return await receive()
            self._check_size(int(content_length[:20]))  # before a byte of the body is read
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


def is_host_allowed(header: str, allowed: frozenset[str]) -> bool:
    """Whether a Host header names this server.

    IP addresses and localhost always do, as no site can make them resolve to this machine.
    allowed: further names in lower case; "*.name" is every name below one, "*" any name.
    """
    match = AUTHORITY.fullmatch(header.strip().lower())
    host = match[1].removesuffix(".") if match else ""
    try:
        ip_address(host.partition("%")[0])
        return True
    except ValueError:
        dot = host.find(".")
        names = {host, "*"} | ({f"*{host[dot:]}"} if dot > 0 else set())
        return not names.isdisjoint(allowed | {"localhost", "*.localhost"})


def _log_access(scope: Scope, status: int, seconds: float) -> None:
    """One line of JSON: escaped, bounded, without query and body, which may hold users' text."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "client": _address(scope),
        "method": scope["method"][:16],
        "path": scope["path"][:MAX_LOGGED_PATH],
        "status": status,
        "ms": round(1000 * seconds),
    }
    access.info("%s", json.dumps(line))


def _address(scope: Scope) -> str:
    """The client's IP address; behind a proxy it comes from a header, which may hold anything."""
    host = (scope.get("client") or [""])[0]
    try:
        return str(ip_address(host))
    except ValueError:
        return "unknown"
