"""Files of data sets on the hub, and files at a plain address: resumed, verified, shared.

huggingface_hub resolves repositories, redirects, sizes and checksums, and keeps the connections.
The transfer itself is here because `hf_hub_download` discards what an interrupted process has
received, does not compare the content with the checksum, and lets an error page replace a file.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from nanochat.errors import UserError, named_failures

logger = logging.getLogger(__name__)

NUM_PARALLEL_FILES = 8  # as many as huggingface_hub's snapshot_download
MAX_ATTEMPTS = 5  # in a row that receive nothing new
MAX_ATTEMPTS_UNREACHABLE = 2  # without any answer: most likely there is no network
FIRST_WAIT_SECONDS = 1.0  # doubled after each attempt that receives nothing new
TIMEOUT_SECONDS = 30.0  # for a connection, and for the next bytes of a transfer
FINAL_STATUS_CODES = (400, 401, 403, 404, 410)  # another attempt would get the same answer
MAX_RETRY_AFTER_SECONDS = 3600.0  # that a server may ask to wait; the hub's limits are per 5 min
HUB_REMEDY = (
    "check the network (HF_ENDPOINT names another hub), or work offline: python -m nanochat.dataset"
    " --source primer"
)


@dataclass(frozen=True)
class HubFile:
    """A file of a data set on the hub and where it is stored."""

    repo: str
    name: str
    path: Path


class _TransferError(Exception):
    """This attempt failed; another one may succeed."""


def download(files: Iterable[HubFile], endpoint: str) -> None:
    """Download the missing files from the hub at `endpoint`. Raises UserError when one fails."""
    cancelled = threading.Event()
    with ThreadPoolExecutor(NUM_PARALLEL_FILES) as pool:
        futures = [pool.submit(_download_file, file, endpoint, cancelled) for file in files]
        try:
            for future in futures:
                future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, UserError):  # Ctrl-C: transfers stop at their next bytes
                cancelled.set()
            raise


def download_url(url: str, path: Path, remedy: str) -> None:
    """Download a file that is not on a hub, if it is missing; another call continues a broken one.

    Verified are the size, and the checksum if the server's ETag is a sha256. Raises UserError with
    the remedy when it fails.
    """
    _download_missing(url, path, threading.Event(), remedy, is_hub=False)


def _download_file(file: HubFile, endpoint: str, cancelled: threading.Event) -> None:
    if file.path.is_file():
        return
    from huggingface_hub import hf_hub_url  # here: this import takes 0.3 s

    url = hf_hub_url(file.repo, file.name, repo_type="dataset", endpoint=endpoint)
    _download_missing(url, file.path, cancelled, HUB_REMEDY, is_hub=True)


def _download_missing(
    url: str, path: Path, cancelled: threading.Event, remedy: str, *, is_hub: bool
) -> None:
    if path.is_file():
        return
    from huggingface_hub import constants

    # Otherwise every process asks the hub for a list of names to report in its User-Agent.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs a line per request
    _check_proxy()
    with named_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():  # another process may have finished it meanwhile
                logger.info("downloading %s", url)
                _attempt_repeatedly(url, path, cancelled, remedy, is_hub)


def _check_proxy() -> None:
    """Raises UserError if the proxy of the environment cannot be used, as socks without socksio."""
    from huggingface_hub import get_session

    try:
        get_session()
    except (ImportError, ValueError) as error:
        raise UserError(
            f"the proxy in ALL_PROXY, HTTPS_PROXY or HTTP_PROXY cannot be used: {error} For socks,"
            " run uv pip install socksio; or use an http proxy, or unset the variable"
        ) from None


def _attempt_repeatedly(
    url: str, path: Path, cancelled: threading.Event, remedy: str, is_hub: bool
) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    # What huggingface_hub names so differs by its version: httpx or httpx2.
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    partial = path.with_name(path.name + ".partial")
    failures, most_bytes = 0, _size(partial)
    while not cancelled.is_set():
        try:
            _complete(url, partial, cancelled, is_hub)
            partial.replace(path)
            return
        except (_TransferError, httpx.HTTPError, ConnectionError) as error:
            # A connection that breaks again and again but makes progress is not given up.
            failures = failures + 1 if _size(partial) <= most_bytes else 0
            most_bytes = max(most_bytes, _size(partial))
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            text = f"HTTP {status}" if status else str(error) or type(error).__name__
            reason = " ".join(text.split())
            response = error.response if isinstance(error, HfHubHTTPError) else None
            pause = 0.0 if response is None else retry_after_seconds(response.headers)
            unreachable = httpx.ConnectError | httpx.ConnectTimeout | ConnectionError
            limit = MAX_ATTEMPTS_UNREACHABLE if isinstance(error, unreachable) else MAX_ATTEMPTS
            if pause > MAX_RETRY_AFTER_SECONDS:
                remedy = f"the server asks to wait {pause / 3600:.1f} hours: run the command then"
            elif is_hub and status in (401, 403):
                remedy = _log_in_remedy(response, url)
            if status in FINAL_STATUS_CODES or failures >= limit or pause > MAX_RETRY_AFTER_SECONDS:
                message = f"{url} could not be downloaded: {reason}; {remedy}"
                raise UserError(message) from None
            logger.warning("%s: %s; retrying%s", url, reason, f" in {pause:.0f} s" if pause else "")
        cancelled.wait(max(pause, FIRST_WAIT_SECONDS * 2 ** max(0, failures - 1)))


def retry_after_seconds(headers: Mapping[str, str]) -> float:
    """How long a server asks to wait: seconds, or until a date; 0 if it does not say."""
    text = headers.get("Retry-After", "").strip()
    try:
        if text.isdecimal():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time()) if text else 0.0
    except (ValueError, OverflowError):  # malformed
        return 0.0


def _log_in_remedy(response: Any, url: str) -> str:
    """What to do when the hub refuses a file."""
    page = url.partition("/resolve/")[0]
    if response.headers.get("X-Error-Code") == "GatedRepo":
        return f"the data set is gated: accept its terms at {page} and set HF_TOKEN to your token"
    if _token():
        return f"the hub does not accept HF_TOKEN for {page}: correct it, or unset it"
    return f"{page} does not exist, or needs a log-in: set HF_TOKEN"


def _token() -> str | None:
    """HF_TOKEN, or that of `hf auth login`."""
    from huggingface_hub import get_token

    return get_token()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _complete(url: str, partial: Path, cancelled: threading.Event, is_hub: bool) -> None:
    """Receive what `partial` lacks and verify it. Raises _TransferError when it is not the file."""
    from huggingface_hub import get_hf_file_metadata

    token = _token() if is_hub else None
    metadata = get_hf_file_metadata(url, token=token or False, timeout=TIMEOUT_SECONDS)
    if metadata.size is None and metadata.location != url and not is_hub:  # a redirect
        metadata = get_hf_file_metadata(metadata.location, token=False, timeout=TIMEOUT_SECONDS)
    size, checksum = metadata.size, metadata.etag or ""
    if not is_hub:
        checksum = checksum if len(checksum) == 64 else ""  # others have no common meaning
    # Other servers have ETags too; only a hub names the commit.
    elif metadata.commit_hash is None or len(checksum) not in (40, 64):
        raise _TransferError("the server states no checksum: it is not a hub, or asks to log in")
    if size is None:
        raise _TransferError("the server states no size")
    num_bytes = _size(partial)
    if num_bytes > size:
        num_bytes = 0  # the start of a different file
    if num_bytes < size or size == 0:
        # The token is the hub's: storage on other hosts gets a signed address instead.
        to_hub = urlsplit(metadata.location)[:2] == urlsplit(url)[:2]
        headers = {"Authorization": f"Bearer {token}"} if token and to_hub else {}
        num_bytes = _receive(metadata.location, partial, num_bytes, size, headers, cancelled)
    if num_bytes != size:
        raise _TransferError(f"received {num_bytes} bytes instead of {size}")
    if checksum and (sha256 if len(checksum) == 64 else _git_sha1)(partial) != checksum:
        partial.unlink()
        raise _TransferError("the content differs from the checksum that the server states")


def _receive(
    url: str, partial: Path, start: int, size: int, headers: dict[str, str],
    cancelled: threading.Event,
) -> int:  # fmt: skip
    """Append the bytes from `start` on, flushed to the disk; returns the number of bytes then."""
    from huggingface_hub import get_session, hf_raise_for_status

    # Ranges and sizes count bytes of the file itself.
    headers = {**headers, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            start = 0  # the server ignores ranges and sends everything
        # Before anything is overwritten: proxies and log-in pages answer 200 as well.
        if "text/html" in response.headers.get("Content-Type", ""):
            raise _TransferError("the server sent an HTML page instead of the file")
        length = response.headers.get("Content-Length")
        if length is not None and int(length) != size - start:
            raise _TransferError(f"the server sends {length} bytes instead of {size - start}")
        with partial.open("ab" if start else "wb", buffering=0) as file:
            for chunk in response.iter_raw():
                start += file.write(chunk) or 0
                if start > size:
                    raise _TransferError(f"the server sends more than the {size} bytes it stated")
                if cancelled.is_set():
                    raise _TransferError("cancelled")
            os.fsync(file.fileno())
    return start


def _git_sha1(path: Path) -> str:
    """git's own checksum, for files that are small enough to be kept in the repository itself."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
