"""Answers of servers that may be hostile: redirects checked, bounded in time."""

import queue
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

from nanochat.errors import UserError

TIMEOUT_SECONDS = 30.0  # for a connection, and for the next bytes of a transfer
HEAD_SECONDS = 90.0  # for the complete head of an answer, which may trickle in
MAX_REDIRECTS = 5


class TransferError(Exception):
    """This attempt failed; another one may succeed."""


def in_time(request: Callable[[], Any]) -> Any:
    """What a request returns or raises. Raises TransferError when there is no complete head."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def answer() -> None:
        try:
            answers.put(request())
        except Exception as error:
            answers.put(error)

    # The client's own timeout starts again with each byte. A daemon: the process need not wait.
    threading.Thread(target=answer, daemon=True).start()
    try:
        found = answers.get(timeout=HEAD_SECONDS)
    except queue.Empty:
        raise TransferError(f"no complete answer within {HEAD_SECONDS:.0f} s") from None
    if isinstance(found, ValueError):  # of an address that the client cannot read
        raise TransferError(str(found))
    if isinstance(found, Exception):
        raise found
    return found


def metadata(url: str, token: str | None) -> Any:
    """Size, checksum and address of a file. Raises UserError when its redirect is not allowed."""
    from huggingface_hub import get_hf_file_metadata

    timeout = TIMEOUT_SECONDS
    found = in_time(lambda: get_hf_file_metadata(url, token=token or False, timeout=timeout))
    check_redirect(url, found.location)
    return found


def check_redirect(url: str, target: str) -> str:
    """The complete target. UserError unless it is HTTP, and encrypted if what came before is."""
    allowed = ("https",) if urlsplit(url).scheme == "https" else ("http", "https")
    try:
        target = urljoin(url, target)
        scheme = urlsplit(target).scheme
    except ValueError:
        scheme = ""
    if scheme not in allowed:
        raise UserError(
            f"{url} redirects to {target!r:.200}, which is not {' or '.join(allowed)}; check the"
            " network and HF_ENDPOINT"
        )
    return target


def get(url: str, headers: dict[str, str]) -> Any:
    """The response after redirects, its content not read; to be closed."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError

    session = get_session()
    for _ in range(MAX_REDIRECTS + 1):
        request = session.build_request("GET", url, headers=headers, timeout=TIMEOUT_SECONDS)

        def send(request: Any = request) -> Any:
            return session.send(request, stream=True, follow_redirects=False)

        response = in_time(send)
        if not response.has_redirect_location:
            if response.is_error:  # hf_raise_for_status reads the page, which may be endless
                response.close()
                raise HfHubHTTPError(f"HTTP {response.status_code}", response=response)
            return response
        response.close()
        target = check_redirect(url, response.headers["Location"])
        if urlsplit(target)[:2] != urlsplit(url)[:2]:  # the token is not for other hosts
            headers = {name: text for name, text in headers.items() if name != "Authorization"}
        url = target
    raise TransferError(f"more than {MAX_REDIRECTS} redirects")
