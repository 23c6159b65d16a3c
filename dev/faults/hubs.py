"""Hostile hubs: wrong sizes, endless and slow answers, redirects elsewhere, malformed headers."""

import gzip
import hashlib
import random
import socket
import socketserver
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dev.faults.outcome import Group, Outcome, Setting
from nanochat.data import download as download_module
from nanochat.data import responses
from nanochat.data.download import HubFile, download
from nanochat.errors import UserError
from tests.hub import serving

CONTENT = random.Random(3).randbytes(200_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PATIENCE_SECONDS = 20.0  # with the shortened limits no answer may take longer
Send = Callable[[bytes], None]


def head(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1")


CHUNKED = head("200 OK", "Transfer-Encoding: chunked")


def stated(size: object = len(CONTENT), location: str = "PLACE") -> bytes:
    """The answer to HEAD of a hub that states a size and a place, another host by default."""
    return head(
        "302 Found", "X-Repo-Commit: " + "0" * 40, f'X-Linked-Etag: "{DIGEST}"',
        f"X-Linked-Size: {size}", f"Location: {location}", "Content-Length: 0",
    )  # fmt: skip


def full(send: Send, length: object = len(CONTENT), content: bytes = CONTENT) -> None:
    send(head("200 OK", f"Content-Length: {length}", "Connection: close") + content)


def endless(send: Send) -> None:
    send(head("200 OK", "Connection: close"))
    while True:
        send(b"x" * 65_536)


def trickle(send: Send, start: bytes) -> None:
    send(start)
    while True:
        time.sleep(0.05)
        send(b"a")


def wrong_range(send: Send) -> None:
    send(head("206 Partial Content", "Content-Length: 9", "Content-Range: bytes 5-2/x") + b"x" * 9)


# What a hub answers to HEAD (None: what a good one does) and to GET.
HUBS: dict[str, tuple[bytes | None, Callable[[Send], None]]] = {
    "good": (None, full),
    "more than stated, no length": (None, endless),
    "more than stated, with a length": (None, lambda send: full(send, 10**9, CONTENT * 9)),
    "chunks without end": (None, lambda send: send(CHUNKED + b"fffffffff\r\n" + CONTENT * 9)),
    "a byte at a time": (None, lambda send: trickle(send, head("200 OK", "Connection: close"))),
    "a head without end": (None, lambda send: trickle(send, b"HTTP/1.1 200 OK\r\nX: ")),
    "no answer": (None, lambda send: time.sleep(PATIENCE_SECONDS)),
    "content cut": (None, lambda send: full(send, content=CONTENT[:999])),
    "other content": (None, lambda send: full(send, content=CONTENT[::-1])),
    "no HTTP": (None, lambda send: send(b"\x00\xff SSH-2.0\r\n" * 99)),
    "a malformed range": (None, wrong_range),
    "length of words": (None, lambda send: full(send, "many")),
    "length below zero": (None, lambda send: full(send, -5)),
    "length of 5,000 digits": (None, lambda send: full(send, "9" * 5000)),
    "size of words": (stated("many"), full),
    "size below zero": (stated(-5), full),
    "size of 10 PB": (stated(10**16), full),
    "size of 5,000 digits": (stated("9" * 5000), full),
    "size smaller than the content": (stated(1000), full),
    "redirect to ftp": (stated(location="ftp://127.0.0.1/data"), full),
    "redirect to a file": (stated(location="file:///etc/passwd"), full),
    "redirect nowhere": (stated(location="http://[::bad"), full),
    "redirect in circles": (None, lambda send: send(stated(location="/data"))),
    "later redirect to ftp": (None, lambda send: send(stated(location="ftp://127.0.0.1/x"))),
    "later redirect nowhere": (None, lambda send: send(stated(location="http://[::bad"))),
    "redirect to gopher": (stated(location="gopher://127.0.0.1/x"), full),
    "redirect with a line end": (stated(location="/data\rX: y"), full),
    "no place": (stated(location=""), full),
    "size of a fraction": (stated("200000.5"), full),
    "size in Arabic digits": (stated("\u0662".encode().decode("latin-1")), full),
    "gzip that was not asked for": (None, lambda send: send(
        head("200 OK", "Content-Encoding: gzip") + gzip.compress(bytes(10**8)))),
    "two lengths": (None, lambda send: send(
        head("200 OK", "Content-Length: 5", "Content-Length: 200000") + CONTENT)),
    "informational answers without end": (None, lambda send: trickle(
        send, head("100 Continue") * 1000)),
    "a chunk below zero": (None, lambda send: send(CHUNKED + b"-5\r\n" + CONTENT)),
    "unavailable for a century": (None, lambda send: send(
        head("503 Busy", "Retry-After: 3155760000", "Content-Length: 0"))),
    "not found, with a page without end": (None, lambda send: trickle(
        send, head("404 Not Found", "Connection: close") + b"x" * 10**6)),
    "a hundred thousand headers": (head("200 OK", *["X: y"] * 100_000), full),
}  # fmt: skip


@contextmanager
def hub(answer: tuple[bytes | None, Callable[[Send], None]]) -> Iterator[str]:
    """The address of a hub that answers so."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                request = self.request.recv(65_536)
                # Another host than in the request's address, as on the real hub.
                place = f"http://localhost:{self.server.server_address[1]}/data"  # type: ignore[index]
                if request.startswith(b"HEAD"):
                    self.request.sendall((answer[0] or stated()).replace(b"PLACE", place.encode()))
                else:
                    answer[1](self.request.sendall)
                self.request.shutdown(socket.SHUT_RDWR)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close, allow_reuse_address = True, False, True

    with serving(Server(("127.0.0.1", 0), Handler)) as address:
        yield address


@contextmanager
def short_limits() -> Iterator[None]:
    """Limits of tenths of seconds, so that a trial need not wait for a minute."""
    limits = [
        (download_module, "FIRST_WAIT_SECONDS", 0.01), (download_module, "SPEED_SECONDS", 0.4),
        (download_module, "MAX_SECONDS", 6.0), (responses, "TIMEOUT_SECONDS", 0.5),
        (responses, "HEAD_SECONDS", 1.0),
    ]  # fmt: skip
    before = [(module, name, getattr(module, name)) for module, name, _ in limits]
    for module, name, value in limits:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def hostile_hubs(folder: Path, repetitions: int = 1) -> Outcome:
    """Download from each hub: only the good one gives a file, the others one line."""
    harm = "a bad file, more bytes than stated, a traceback or a hang"
    outcome = Outcome("a hostile hub", harm)
    slowest = 0.0
    with short_limits():
        for number in range(repetitions):
            for name, answer in HUBS.items():
                path = folder / f"{number}" / name.replace(" ", "-") / "shard.bin"
                began = time.monotonic()
                with hub(answer) as url:
                    _download(outcome, name, url, path)
                seconds = time.monotonic() - began
                slowest = max(slowest, seconds)
                outcome.expect(seconds < PATIENCE_SECONDS, f"{name}: {seconds:.0f} s")
    outcome.facts["slowest seconds"] = round(slowest, 1)
    return outcome


def _download(outcome: Outcome, name: str, url: str, path: Path) -> None:
    outcome.tried += 1
    message = ""
    try:
        download([HubFile("x/y", "shard.bin", path)], url)
    except UserError as error:
        message = str(error)
        outcome.expect("\n" not in message and len(message) < 1000, f"{name}: not one line")
    except Exception as error:
        outcome.expect(False, f"{name}: {type(error).__name__}: {error}")
    is_same = path.is_file() and path.read_bytes() == CONTENT
    outcome.expect(is_same or not path.exists(), f"{name}: a bad file")
    outcome.expect(is_same or message != "", f"{name}: no file and no error")
    outcome.expect(is_same or name != "good", f"{name}: no file")
    partial = path.with_name("shard.bin.partial")
    size = partial.stat().st_size if partial.exists() else 0
    outcome.expect(size <= len(CONTENT), f"{name}: {size} bytes received")


def groups(setting: Setting) -> dict[str, Group]:
    """The faults of servers, by group."""
    return {"hubs": lambda: [hostile_hubs(setting.folder / "hubs", setting.count(4, 1))]}
