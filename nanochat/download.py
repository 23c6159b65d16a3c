"""Downloads that are resumed, checked, retried, and safe when several processes ask at once."""

import hashlib
import logging
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from filelock import FileLock

from nanochat.errors import UserError

logger = logging.getLogger(__name__)

NUM_TRIES = 5
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 20


class _Broken(Exception):
    """This try failed; another one may not."""


def download(url: str, path: Path, *, first_wait_seconds: float = 1.0) -> None:
    """Bring `url` to `path`, whole, or raise UserError; nothing to do when it is there.

    A hub's headers X-Linked-Size and X-Linked-Etag (sha256) are checked; what an interrupted
    download has brought is continued by a Range request.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        why = ""
        for attempt in range(NUM_TRIES):
            if path.is_file():
                return
            if attempt:
                time.sleep(first_wait_seconds * 2 ** (attempt - 1))
            try:
                _fetch(url, path)
                return
            except (_Broken, HTTPException, TimeoutError, urllib.error.URLError, ConnectionError) as e:
                why = str(e) or type(e).__name__
                if isinstance(e, urllib.error.HTTPError) and e.code in (401, 403, 404):
                    break
                logger.warning("%s: %s", url, why)
    raise UserError(
        f"{url} could not be downloaded: {why}; check the network (HF_ENDPOINT names another hub),"
        " or work without one: python -m nanochat.dataset --source primer"
    )


def _fetch(url: str, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    size, digest = _expected(url)
    have = partial.stat().st_size if partial.is_file() else 0
    if size is None or have > size:
        have = 0  # what is there cannot be trusted
    if have != size:
        have = _receive(url, partial, have)
    if size is not None and have != size:
        raise _Broken(f"{have} bytes came and not {size}")
    if digest is not None and _sha256(partial) != digest:
        partial.unlink()
        raise _Broken("the content differs from the hub's sha256")
    partial.replace(path)


def _expected(url: str) -> tuple[int | None, str | None]:
    """Size and sha256 that the hub states; None for what it does not state."""
    redirect = _Redirect()
    request = urllib.request.Request(url, method="HEAD")
    with urllib.request.build_opener(redirect).open(request, timeout=TIMEOUT_SECONDS) as answer:
        headers = {name.lower(): value for name, value in answer.headers.items()}
    headers.update(redirect.linked)
    size = headers.get("x-linked-size") or headers.get("content-length")
    digest = headers.get("x-linked-etag", "").strip('"')
    return (int(size) if size else None), (digest if len(digest) == 64 else None)


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects; a hub states size and digest on them, not on what they lead to."""

    def __init__(self) -> None:
        self.linked: dict[str, str] = {}

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        lower = {name.lower(): value for name, value in headers.items()}
        self.linked |= {k: v for k, v in lower.items() if k.startswith("x-linked")}
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive(url: str, partial: Path, have: int) -> int:
    """Append what is missing to `partial`; returns the bytes it has then."""
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        _refuse_page(answer)
        if answer.status != 206:
            have = 0  # the server does not continue; begin anew
        with partial.open("ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
    return have


def _refuse_page(answer: HTTPResponse) -> None:
    if "text/html" in (answer.headers.get("Content-Type") or ""):
        raise _Broken("the server sent an HTML page instead of the file")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
