"""Files of data sets on the hub, and files at a plain address: resumed, verified, shared.

huggingface_hub resolves repositories, redirects, sizes and checksums, and keeps the connections.
The transfer itself is here because `hf_hub_download` discards what an interrupted process has
received, does not compare the content with the checksum, and lets an error page replace a file.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from nanochat import paths
from nanochat.data import responses
from nanochat.data.responses import TransferError
from nanochat.data.transfers import Transfers
from nanochat.errors import UserError, named_failures

logger = logging.getLogger(__name__)

NUM_PARALLEL_FILES = 8  # as many as huggingface_hub's snapshot_download
MAX_ATTEMPTS = 5  # in a row that receive nothing new
MAX_ATTEMPTS_UNREACHABLE = 2  # without any answer: most likely there is no network
FIRST_WAIT_SECONDS = 1.0  # doubled after each attempt that receives nothing new
# Below this speed a transfer is stalled, and tried again: a modem of 1998 is faster, and so is each
# of 8 files on a line of 40 KB/s. A shard of 100 MB then takes less than the total limit.
MIN_BYTES_PER_SECOND = 2_000
SPEED_SECONDS = 60.0  # over which the speed is measured
MAX_SECONDS = 24 * 3600.0  # for a file, all attempts together
FINAL_STATUS_CODES = (400, 401, 403, 404, 410)  # another attempt would get the same answer
MAX_RETRY_AFTER_SECONDS = 3600.0  # that a server may ask to wait; the hub's limits are per 5 min
OPAQUE_ETAGS = ("raw.githubusercontent.com",)  # of 64 digits, but no sha256 of the content
HUB_REMEDY = (
    "check the network (HF_ENDPOINT names another hub), or work offline: python -m nanochat.dataset"
    " --source primer"
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class HubFile:
    """A file of a data set on the hub and where it is stored."""

    repo: str
    name: str
    path: Path
    revision: str = "main"
    """A branch or a commit."""

    def url(self, endpoint: str) -> str:
        from huggingface_hub import hf_hub_url  # here: this import takes 0.3 s

        kind, revision = "dataset", self.revision
        return hf_hub_url(
            self.repo, self.name, repo_type=kind, revision=revision, endpoint=endpoint
        )


def download(
    files: Iterable[HubFile], endpoint: str, num_parallel: int = NUM_PARALLEL_FILES
) -> None:
    """Download the missing files from the hub at `endpoint`, several at a time.

    Raises UserError when one fails.
    """
    missing = [file for file in files if not file.path.is_file()]
    with Transfers(len(missing)) as transfers, ThreadPoolExecutor(num_parallel) as pool:
        futures = [
            pool.submit(
                _download_missing, file.url(endpoint), file.path, transfers, HUB_REMEDY, is_hub=True
            )
            for file in missing
        ]
        try:
            for future in futures:
                future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, UserError):  # Ctrl-C: transfers stop at their next bytes
                transfers.canceled.set()
            raise


def latest_commit(file: HubFile, endpoint: str) -> str:
    """The commit that the file's revision is at. Raises UserError when the hub is unavailable."""
    url = file.url(endpoint)
    _prepare_client()
    return _attempt_repeatedly(
        lambda: str(_hub_metadata(url).commit_hash), url, file.path, Transfers(0), HUB_REMEDY, True
    )


def list_files(repo: str, revision: str, endpoint: str) -> tuple[str, list[str]]:
    """The commit of a data set's revision and its files. UserError when they are unavailable."""
    from huggingface_hub import HfApi

    _prepare_client()
    url, seconds = f"{endpoint}/datasets/{repo}", responses.TIMEOUT_SECONDS
    found = _attempt_repeatedly(
        lambda: HfApi(endpoint).dataset_info(repo, revision=revision, timeout=seconds),
        url, Path(repo), Transfers(0), HUB_REMEDY, True,
    )  # fmt: skip
    return str(found.sha), [file.rfilename for file in found.siblings or []]


def download_url(url: str, path: Path, remedy: str) -> None:
    """Download a file that is not on a hub, if it is missing; another call continues a broken one.

    Verified are the size, and the checksum if the server's ETag is a sha256. Raises UserError with
    the remedy when it fails.
    """
    with Transfers(1) as transfers:
        _download_missing(url, path, transfers, remedy, is_hub=False)


def _prepare_client() -> None:
    from huggingface_hub import constants

    # Otherwise every process asks the hub for a list of names to report in its User-Agent.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs a line per request
    _check_proxy()


def _download_missing(
    url: str, path: Path, transfers: Transfers, remedy: str, *, is_hub: bool
) -> None:
    if path.is_file():
        return
    _prepare_client()
    partial = path.with_name(path.name + ".partial")

    def attempt() -> None:
        _complete(url, partial, transfers, is_hub)
        if not transfers.canceled.is_set():
            partial.replace(path)

    with named_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with paths.locked(path):
            if not path.is_file():  # another process may have finished it meanwhile
                _attempt_repeatedly(attempt, url, partial, transfers, remedy, is_hub)


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
    attempt: Callable[[], Result],
    url: str,
    partial: Path,
    transfers: Transfers,
    remedy: str,
    is_hub: bool,
) -> Result:
    """The result of the first attempt that succeeds. Raises UserError when there is none."""
    from huggingface_hub.errors import HfHubHTTPError

    # What huggingface_hub names so differs by its version: httpx or httpx2.
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    failures, most_bytes, began = 0, _size(partial), time.monotonic()
    while not transfers.canceled.is_set():
        attempt_began = time.monotonic()
        try:
            return attempt()
        except (TransferError, httpx.HTTPError, ConnectionError) as error:
            # A connection that breaks again and again but makes progress is not given up.
            new_bytes = _size(partial) - most_bytes
            failures = (
                failures + 1 if new_bytes <= 0 or _is_stalled(new_bytes, attempt_began) else 0
            )
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
            is_late = time.monotonic() - began > MAX_SECONDS
            if is_late:
                reason = f"it is not complete after {MAX_SECONDS / 3600:.0f} hours ({reason})"
            is_final = status in FINAL_STATUS_CODES or pause > MAX_RETRY_AFTER_SECONDS
            if is_final or is_late or failures >= limit:
                message = f"{url} could not be downloaded: {reason}; {remedy}"
                raise UserError(message) from None
            logger.warning("%s: %s; retrying%s", url, reason, f" in {pause:.0f} s" if pause else "")
        transfers.canceled.wait(max(pause, FIRST_WAIT_SECONDS * 2 ** max(0, failures - 1)))
    raise UserError(f"{url} was not downloaded: canceled")


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


def _is_stalled(num_bytes: int, began: float) -> bool:
    """True if so few bytes since a moment are too slow."""
    seconds = time.monotonic() - began
    return seconds > SPEED_SECONDS and num_bytes < MIN_BYTES_PER_SECOND * seconds


def _hub_metadata(url: str) -> Any:
    """What the hub states about a file. Raises TransferError when the server is not a hub."""
    metadata = responses.metadata(url, _token())
    # Other servers have ETags too; only a hub names the commit.
    if metadata.commit_hash is None or len(metadata.etag or "") not in (40, 64):
        raise TransferError("the server states no checksum: it is not a hub, or asks to log in")
    return metadata


def _plain_metadata(url: str) -> Any:
    """What any server states about a file, after redirects."""
    metadata = responses.metadata(url, None)
    if metadata.size is None and metadata.location != url:  # a redirect
        metadata = responses.metadata(metadata.location, None)
    return metadata


def _complete(url: str, partial: Path, transfers: Transfers, is_hub: bool) -> None:
    """Receive what `partial` lacks and verify it. Raises TransferError when it is not the file."""
    token = _token() if is_hub else None
    metadata = _hub_metadata(url) if is_hub else _plain_metadata(url)
    size, checksum = metadata.size, metadata.etag or ""
    # Of other servers only what may be a sha256; those of GitHub look so and are none.
    if not is_hub and (len(checksum) != 64 or urlsplit(url).hostname in OPAQUE_ETAGS):
        checksum = ""
    if size is None or size < 0:
        raise TransferError("the server states no valid size")
    num_bytes = _size(partial)
    free = shutil.disk_usage(partial.parent).free + num_bytes
    if size > free:
        raise UserError(
            f"{url} has {size / 1e9:,.1f} GB and {partial.parent} room for {free / 1e9:,.1f} GB;"
            " free some space or set NANOCHAT_BASE_DIR to a larger disk"
        )
    if num_bytes > size:
        num_bytes = 0  # the start of a different file
    if num_bytes < size or size == 0:
        # The token is the hub's: storage on other hosts gets a signed address instead.
        to_hub = urlsplit(metadata.location)[:2] == urlsplit(url)[:2]
        headers = {"Authorization": f"Bearer {token}"} if token and to_hub else {}
        num_bytes = _receive(metadata.location, partial, num_bytes, size, headers, transfers)
    if num_bytes != size:
        raise TransferError(f"received {num_bytes} bytes instead of {size}")
    if checksum and (sha256 if len(checksum) == 64 else _git_sha1)(partial) != checksum:
        partial.unlink()
        raise TransferError("the content differs from the checksum that the server states")


def _receive(
    url: str, partial: Path, start: int, size: int, headers: dict[str, str],
    transfers: Transfers,
) -> int:  # fmt: skip
    """Append the bytes from `start` on, flushed to the disk; returns the number of bytes then."""
    # Ranges and sizes count bytes of the file itself.
    headers = {**headers, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with closing(responses.get(url, headers)) as response:
        if response.status_code != 206:
            start = 0  # the server ignores ranges and sends everything
        # Before anything is overwritten: proxies and log-in pages answer 200 as well.
        if "text/html" in response.headers.get("Content-Type", ""):
            raise TransferError("the server sent an HTML page instead of the file")
        length = response.headers.get("Content-Length")
        if length is not None and length != str(size - start):
            raise TransferError(f"the server sends {length:.30} bytes instead of {size - start}")
        began, first = time.monotonic(), start
        with partial.open("ab" if start else "wb", buffering=0) as file:
            for chunk in response.iter_raw():
                if len(chunk) > size - start:
                    raise TransferError(f"the server sends more than the {size} bytes it stated")
                start += file.write(chunk) or 0
                transfers.update(str(partial), start, size)
                if transfers.canceled.is_set():
                    raise TransferError("canceled")
                if _is_stalled(start - first, began):
                    raise TransferError(f"slower than {MIN_BYTES_PER_SECOND / 1000:g} KB/s")
                if time.monotonic() - began > SPEED_SECONDS:
                    began, first = time.monotonic(), start
            os.fsync(file.fileno())
    return start


def _git_sha1(path: Path) -> str:
    """git's own checksum, for files that are small enough to be kept in the repository itself."""
    checksum = hashlib.sha1(b"blob %d\0" % _size(path))
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
