"""A hub on loopback: states size and checksum as the real one, and fails on request.

    python -m tests.hub --port=8765       serves the data of tests/shared_data to dev/rehearse.sh

It has what huggingface_hub calls: resolve addresses with redirects and ranges, revisions, the API
for data sets; and files at plain addresses, such as the bundle of CORE.
"""

import argparse
import hashlib
import json
import re
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal[
    "page", "page as data", "flip", "half", "half, no length", "stall", "500", "503", "429"
]
BUSY: tuple[Fault, ...] = ("500", "503", "429")  # these may also answer a request for metadata
FIRST_COMMIT = "0" * 40
RESOLVE = re.compile(r"(/datasets/(.+?)/resolve/)([^/]+)(/.+)")
API = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/?]+))?(?:\?.*)?")


class Hub:
    """Files by path below the root, and the requests for their content."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        """What goes wrong with the next requests for content, one each; then all is well."""
        self.metadata_faults: list[Fault] = []
        """The same for requests for metadata, HEAD and the API; only those of BUSY."""
        self.commits: dict[str, str] = {}
        """What `main` of a repository is at, if not FIRST_COMMIT. Files of an earlier commit are at
        `/datasets/REPO/resolve/COMMIT/PATH`, those of the latest at `.../resolve/main/PATH`."""
        self.bytes_per_second = 0.0
        """How fast content is sent; 0 means at once."""
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

    def commit(self, repo: str) -> str:
        """The commit that `main` of a repository is at."""
        return self.commits.get(repo, FIRST_COMMIT)

    def find(self, path: str) -> str:
        """The key of the file at this address, whose revision may be a branch or a commit."""
        if path not in self.files and (match := RESOLVE.fullmatch(path)):
            folder, repo, revision, name = match.groups()
            if revision == self.commit(repo):
                return f"{folder}main{name}"
        return path

    def metadata(self, path: str) -> dict[str, str]:
        """The headers in which the hub states what a file is."""
        content = self.files[path]
        if not self.states_checksums:
            return {}
        match = RESOLVE.fullmatch(path)
        _, repo, revision, _ = match.groups() if match else ("", "", "main", "")
        commit = {"X-Repo-Commit": self.commit(repo) if revision == "main" else revision}
        if self.is_small_file_store:
            return {"ETag": f'"{git_sha1(content)}"', **commit}
        digest = hashlib.sha256(content).hexdigest()
        return {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"', **commit}

    def describe(self, repo: str, what: str | None) -> Any:
        """What the API answers about a data set: its commit, or the files at it."""
        start = f"/datasets/{repo}/resolve/main/"
        files = {k.removeprefix(start): v for k, v in self.files.items() if k.startswith(start)}
        if what in ("tree", "paths-info"):
            return [
                {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content),
                 "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content),
                         "pointerSize": 134}}
                for name, content in files.items()
            ]  # fmt: skip
        siblings = [{"rfilename": name} for name in files]
        return {"id": repo, "sha": self.commit(repo), "siblings": siblings, "private": False}


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(is_head=False)

    def _answer(self, *, is_head: bool) -> None:
        path = self.hub.find(self.path.removeprefix("/storage"))
        host, token = self.headers["Host"].partition(":")[0], self.headers.get("Authorization", "")
        self.hub.tokens.append((self.command, host, token))
        api = API.fullmatch(self.path)
        if (is_head or api) and self.hub.metadata_faults:
            self._send_busy(self.hub.metadata_faults.pop(0), is_head)
        elif api:
            answer = json.dumps(self.hub.describe(*api.groups()[:2])).encode()
            self._send(200, answer, {"Content-Type": "application/json"}, is_head)
        elif self.path in self.hub.gated and token != "Bearer hf_secret":
            self._send(401, b"gated", {"X-Error-Code": "GatedRepo"}, is_head)
        elif path not in self.hub.files:
            self._send(404, b"no such file", {}, is_head)
        elif not (self.path.startswith("/storage") or self.hub.is_small_file_store):
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
        if fault in BUSY:
            self._send_busy(fault)
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

    def _send_busy(self, fault: str, is_head: bool = False) -> None:
        headers = {"Retry-After": self.hub.retry_after} if fault == "429" else {}
        self._send(int(fault), b"busy", headers, is_head)

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
        if is_head:
            return
        rate = self.hub.bytes_per_second
        piece = max(1, int(rate / 20)) if rate else max(1, len(content))
        for start in range(0, len(content), piece):
            self.wfile.write(content[start : start + piece])
            if rate:
                time.sleep(piece / rate)


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[str]:
    """The address of a server that runs in a thread until the end of the block."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def running_hub(port: int = 0) -> Iterator[Hub]:
    """A hub that serves until the end of the block; port 0: any that is free."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads, hub.port = True, server.server_address[1]
    with serving(server):
        yield hub


def main() -> None:
    """Serve real data until the process is ended."""
    from tests.shared_data import serve_all  # here: it imports this module

    parser = argparse.ArgumentParser(description="Serve data in the layout of the hub on loopback.")
    parser.add_argument("--port", type=int, required=True)
    with running_hub(parser.parse_args().port) as hub:
        serve_all(hub)
        print(f"{len(hub.files)} files at {hub.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
