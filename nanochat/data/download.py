"""Downloads that are resumed, checked, retried, and safe when several processes ask at once."""

import hashlib
import logging
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from filelock import FileLock

from nanochat import paths
from nanochat.errors import UserError

logger = logging.getLogger(__name__)

NUM_TRIES = 5  # that bring nothing new
NUM_TRIES_UNREACHED = 2  # no answer at all: most likely there is no network
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 20
CHECKSUM_HEADER = "X-Linked-Etag"
FINAL_CODES = (400, 401, 403, 404, 410)


class _Broken(Exception):
    """This try failed; another one may not."""


FAILURES = (_Broken, HTTPException, TimeoutError, urllib.error.URLError, ConnectionError)


@dataclass(frozen=True)
class _Stated:
    """What the hub says a file is."""

    size: int
    checksum: str
    """Hexadecimal sha256 of a large file; of a small one git's sha1 of the blob."""


def download(
    url: str,
    path: Path,
    *,
    first_wait_seconds: float = 1.0,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Bring `url` to `path`, whole, or raise UserError; nothing to do when it is there.

    Size and checksum must be those that the hub states; what an interrupted download has brought
    is continued by a Range request. A try that brings something new costs nothing.
    """
    with paths.named_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            why = (
                ""
                if path.is_file()
                else _try_to_bring(url, path, first_wait_seconds, timeout_seconds)
            )
    if why:
        raise UserError(
            f"{url} could not be downloaded: {why}; check the network (HF_ENDPOINT names another"
            " hub), or work without one: python -m nanochat.dataset --source primer"
        )


def _try_to_bring(url: str, path: Path, first_wait_seconds: float, timeout_seconds: float) -> str:
    """Empty when the file has come, else why the last try failed."""
    partial = path.with_name(path.name + ".partial")
    failures, most = 0, _size(partial)
    while True:
        try:
            _fetch(url, partial, timeout_seconds)
            partial.replace(path)
            return ""
        except FAILURES as error:
            why = str(error) or type(error).__name__
            failures = failures + 1 if _size(partial) <= most else 0
            most = max(most, _size(partial))
            if _is_final(error, failures):
                return why
            logger.warning("%s: %s; trying again", url, why)
        time.sleep(first_wait_seconds * 2 ** max(0, failures - 1))


def _is_final(error: Exception, failures: int) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in FINAL_CODES or failures >= NUM_TRIES
    was_reached = not isinstance(error, urllib.error.URLError)
    return failures >= (NUM_TRIES if was_reached else NUM_TRIES_UNREACHED)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch(url: str, partial: Path, timeout_seconds: float) -> None:
    """Complete `partial`. Raises _Broken when it is then not what the hub states."""
    stated = _ask(url, timeout_seconds)
    have = _size(partial)
    if have > stated.size:
        have = 0  # what is there cannot be trusted
    if have < stated.size or not stated.size:
        have = _receive(url, partial, have, stated.size, timeout_seconds)
    if have != stated.size:
        raise _Broken(f"{have} bytes came and not {stated.size}")
    if _checksum(partial, stated) != stated.checksum:
        partial.unlink()
        raise _Broken("the content differs from the checksum that the hub states")


def _ask(url: str, timeout_seconds: float) -> _Stated:
    """What the hub states of a file, on the redirect to where the content is or on the answer."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        opener = urllib.request.build_opener(_StopWhereStated)
        with opener.open(request, timeout=timeout_seconds) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        if CHECKSUM_HEADER not in error.headers:
            raise
        headers = error.headers
    checksum = headers.get(CHECKSUM_HEADER) or (
        headers.get("ETag", "") if "X-Repo-Commit" in headers else ""
    )
    size = headers.get("X-Linked-Size") or headers.get("Content-Length")
    checksum = checksum.removeprefix("W/").strip('"')
    if len(checksum) not in (40, 64) or size is None:
        raise _Broken("the server states no checksum, so it is no hub (or a page to log in)")
    return _Stated(int(size), checksum)


class _StopWhereStated(urllib.request.HTTPRedirectHandler):
    """Follows redirects up to the one that states the checksum; the storage need not know it."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        if CHECKSUM_HEADER in headers:
            return None  # ends in the HTTPError that has these headers
        further = super().redirect_request(req, fp, code, msg, headers, newurl)
        if further is not None:
            further.method = req.get_method()  # older Pythons turn HEAD into GET
        return further


def _receive(url: str, partial: Path, have: int, size: int, timeout_seconds: float) -> int:
    """Append what is missing to `partial`, flushed to the disk; returns the bytes it has then."""
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
        if answer.status != 206:
            have = 0  # the server does not continue; begin anew
        _refuse_other_file(answer, size - have)
        with partial.open("ab" if have else "wb", buffering=0) as file:
            while chunk := answer.read1(CHUNK_BYTES):
                have += file.write(chunk) or 0
            os.fsync(file.fileno())
    return have


def _refuse_other_file(answer: HTTPResponse, expected_bytes: int) -> None:
    """Raises _Broken before anything is overwritten by a page that stands for the file."""
    if "text/html" in (answer.headers.get("Content-Type") or ""):
        raise _Broken("the server sent an HTML page instead of the file")
    length = answer.headers.get("Content-Length")
    if length is not None and int(length) != expected_bytes:
        raise _Broken(f"the server sends {length} bytes and not {expected_bytes}")


def _checksum(path: Path, stated: _Stated) -> str:
    with path.open("rb") as file:
        if len(stated.checksum) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        blob = hashlib.sha1(b"blob %d\0" % stated.size)
        while chunk := file.read(CHUNK_BYTES):
            blob.update(chunk)
        return blob.hexdigest()
