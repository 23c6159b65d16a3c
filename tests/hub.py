"""A hub on loopback for tests: states size and checksum as the real one, and fails on request."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["page", "page as data", "flip", "half", "half, no length", "stall", "503", "429"]


class Hub:
    """Files by path below the root, and the requests for their content."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        """What goes wrong with the next requests for content, one each; then all is well."""
        self.requests: list[str] = []
        """For content: `path` or `path from byte`."""
        self.states_checksums = True
        self.is_small_file_store = False
        """Files are kept in the repository itself, under git's own checksum, without a redirect."""
        self.supports_ranges = True
        self.meeting: threading.Barrier | None = None
        """Requests for content are answered when so many are in progress."""
        self.port = 0
        self.retry_after = ""
        """With the fault 429: seconds or a date."""
        self.gated: set[str] = set()
        """Files that need a token."""
        self.tokens: list[tuple[str, str, str]] = []
        """(method, host, Authorization) of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage_url(self) -> str:
        """Another host, so that clients take the metadata from the redirect, as on the real hub."""
        return f"http://localhost:{self.port}/storage"

    def metadata(self, path: str) -> dict[str, str]:
        """The headers in which the hub states what a file is."""
        content = self.files[path]
        if not self.states_checksums:
            return {}
        commit = {"X-Repo-Commit": "0" * 40}
        if self.is_small_file_store:
            blob = b"blob %d\0" % len(content) + content
            return {"ETag": f'"{hashlib.sha1(blob).hexdigest()}"', **commit}
        digest = hashlib.sha256(content).hexdigest()
        return {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"', **commit}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def _answer(self, *, is_head: bool) -> None:
        path = self.path.removeprefix("/storage")
        host, token = self.headers["Host"].partition(":")[0], self.headers.get("Authorization", "")
        self.hub.tokens.append((self.command, host, token))
        if self.path in self.hub.gated and token != "Bearer hf_secret":
            self._send(401, b"gated", {"X-Error-Code": "GatedRepo"}, is_head)
        elif path not in self.hub.files:
            self._send(404, b"no such file", {}, is_head)
        elif self.path == path and not self.hub.is_small_file_store:
            headers = {**self.hub.metadata(path), "Location": f"{self.hub.storage_url}{path}"}
            self._send(302, b"", headers, is_head)
        elif is_head:
            self._send(200, self.hub.files[path], self.hub.metadata(path), is_head)
        else:
            self._send_content(path)

    def _send_content(self, path: str) -> None:
        content, start = self.hub.files[path], 0
        byte_range = self.headers.get("Range")
        if byte_range and self.hub.supports_ranges:
            start = int(byte_range.removeprefix("bytes=").removesuffix("-"))
        self.hub.requests.append(f"{path} from {start}" if byte_range else path)
        if self.hub.meeting:
            self.hub.meeting.wait(timeout=20)
        fault = self.hub.faults.pop(0) if self.hub.faults else None
        headers = (
            {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        )
        status, content = (206 if start else 200), content[start:]
        if fault == "429":
            self._send(429, b"busy", {"Retry-After": self.hub.retry_after})
        elif fault == "503":
            self._send(503, b"busy", {})
        elif fault == "page":
            self._send(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})
        elif fault == "page as data":
            self._send(200, b"<html>Please log in</html>", {"Content-Type": "binary/octet-stream"})
        elif fault == "flip":
            middle = len(content) // 2
            flipped = bytes([content[middle] ^ 1])
            self._send(status, content[:middle] + flipped + content[middle + 1 :], headers)
        elif fault in ("half", "half, no length", "stall"):
            self._send_half(status, content, headers, fault)
        else:
            self._send(status, content, headers)

    def _send_half(self, status: int, content: bytes, headers: dict[str, str], fault: str) -> None:
        self.send_response(status)
        if fault != "half, no length":
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        if fault == "stall":
            time.sleep(2)
        self.close_connection = True

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], is_head: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if not is_head:
            self.wfile.write(content)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that serves until the end of the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
