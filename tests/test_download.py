import email.utils
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest

from nanochat import runtime
from nanochat.data import download as download_module
from nanochat.data import responses
from nanochat.data.download import HubFile, download
from nanochat.errors import UserError
from tests import processes
from tests.hub import Fault, Hub, running_hub

CONTENT = random.Random(1).randbytes(300_000)
FOLDER = "/datasets/x/y/resolve/main"
NAME = f"{FOLDER}/shard.bin"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(download_module, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(responses, "TIMEOUT_SECONDS", 1.5)  # a hub that stalls does it for 2 s
    with running_hub() as running:
        running.files[NAME] = CONTENT
        yield running


def fetch(hub: Hub, path: Path, name: str = "shard.bin") -> None:
    download([HubFile("x/y", name, path)], hub.url)


def names(folder: Path) -> set[str]:
    """Files of a folder without lock files."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_file_is_downloaded_through_the_redirect_and_only_once(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "shard.bin"
    fetch(hub, path)
    fetch(hub, path)
    assert path.read_bytes() == CONTENT
    assert hub.requests == [NAME]
    assert names(path.parent) == {"shard.bin"}


def test_several_files_are_downloaded_at_the_same_time(hub: Hub, tmp_path: Path) -> None:
    hub.files = {f"{FOLDER}/{i}": b"%d" % i * 1000 for i in range(4)}
    hub.meeting = threading.Barrier(4)
    download([HubFile("x/y", str(i), tmp_path / str(i)) for i in range(4)], hub.url)
    assert [(tmp_path / str(i)).read_bytes() for i in range(4)] == list(hub.files.values())


def test_one_file_that_is_missing_does_not_cost_the_others(hub: Hub, tmp_path: Path) -> None:
    files = [HubFile("x/y", name, tmp_path / name) for name in ("missing", "shard.bin")]
    with pytest.raises(UserError, match="/missing could not be downloaded: HTTP 404"):
        download(files, hub.url)
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT


def test_an_interrupt_stops_every_transfer_and_keeps_what_was_received(
    hub: Hub, tmp_path: Path
) -> None:
    hub.faults = ["stall"] * 100
    process = started(hub, tmp_path / "shard.bin")
    partial = tmp_path / "shard.bin.partial"
    wait_until_larger(partial, 0)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert names(tmp_path) == {"shard.bin.partial"}
    assert CONTENT.startswith(partial.read_bytes())


@pytest.mark.parametrize(
    "fault", ["page", "page as data", "flip", "half", "half, no length", "stall", "500", "503"]
)
def test_after_one_fault_the_next_attempt_receives_the_right_bytes(
    hub: Hub, tmp_path: Path, fault: Fault
) -> None:
    hub.faults = [fault]
    fetch(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT
    assert names(tmp_path) == {"shard.bin"}
    if fault in ("half", "half, no length", "stall"):
        assert hub.requests == [NAME, f"{NAME} from {len(CONTENT) // 2}"]


@pytest.mark.parametrize("fault", ["page", "page as data", "flip", "503"])
def test_a_permanent_fault_ends_in_one_line_and_no_file(
    hub: Hub, tmp_path: Path, fault: Fault
) -> None:
    hub.faults = [fault] * 100
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        fetch(hub, tmp_path / "shard.bin")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "shard.bin").exists()
    assert len(hub.requests) == download_module.MAX_ATTEMPTS


def test_a_connection_that_breaks_repeatedly_but_makes_progress_is_not_given_up(
    hub: Hub, tmp_path: Path
) -> None:
    hub.faults = ["half"] * (download_module.MAX_ATTEMPTS + 3)
    fetch(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT


def test_a_server_that_states_no_checksum_is_not_trusted(hub: Hub, tmp_path: Path) -> None:
    hub.states_checksums = False
    with pytest.raises(UserError, match="states no checksum"):
        fetch(hub, tmp_path / "shard.bin")
    assert names(tmp_path) == set()


def test_a_small_file_is_verified_with_the_checksum_of_git(hub: Hub, tmp_path: Path) -> None:
    hub.is_small_file_store = True
    hub.faults = ["flip"]
    fetch(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT
    assert hub.requests == [NAME, NAME]


def test_a_server_without_range_support_sends_the_complete_file(hub: Hub, tmp_path: Path) -> None:
    hub.supports_ranges = False
    (tmp_path / "shard.bin.partial").write_bytes(CONTENT[:1000])
    fetch(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT


def test_an_empty_file_is_a_file(hub: Hub, tmp_path: Path) -> None:
    hub.files[f"{FOLDER}/empty"] = b""
    fetch(hub, tmp_path / "empty", "empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_partial_file_of_an_earlier_process_is_resumed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "shard.bin.partial").write_bytes(CONTENT[:1000])
    fetch(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT
    assert hub.requests == [f"{NAME} from 1000"]


@pytest.mark.parametrize("partial", [b"something else", CONTENT[:-1] + b"\0", CONTENT + b"more"])
def test_a_partial_file_with_other_content_is_detected_and_replaced(
    hub: Hub, tmp_path: Path, partial: bytes
) -> None:
    (tmp_path / "shard.bin.partial").write_bytes(partial)
    fetch(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["page", "page as data", "503"])
def test_an_error_page_does_not_overwrite_the_partial_file(
    hub: Hub, tmp_path: Path, fault: Fault
) -> None:
    (tmp_path / "shard.bin.partial").write_bytes(CONTENT[:1000])
    hub.faults = [fault]
    fetch(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT
    assert hub.requests == [f"{NAME} from 1000"] * 2


def test_a_complete_partial_file_is_renamed_without_another_download(
    hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "shard.bin.partial").write_bytes(CONTENT)
    fetch(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT
    assert hub.requests == []


def test_a_missing_file_is_reported_without_retries(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "FIRST_WAIT_SECONDS", 60)
    with pytest.raises(UserError, match="404"):
        fetch(hub, tmp_path / "x", "nothing")


def test_an_unreachable_hub_is_reported_soon_with_the_remedy(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refused.*HF_ENDPOINT.*--source primer"):
        download([HubFile("x/y", "shard.bin", tmp_path / "x")], "http://127.0.0.1:9")


def test_a_full_disk_is_reported_and_the_partial_file_kept(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(UserError, match="disk is full"):
        patched.setattr(os, "fsync", full)
        fetch(hub, tmp_path / "shard.bin")
    assert names(tmp_path) == {"shard.bin.partial"}
    fetch(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("is_small", [False, True])
def test_the_token_is_sent_to_the_hub_and_never_to_the_host_of_a_redirect(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_small: bool
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.is_small_file_store = is_small  # by the hub itself, without a redirect
    hub.gated = {NAME}
    fetch(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT
    second = ("127.0.0.1", "Bearer hf_secret") if is_small else ("localhost", "")
    assert hub.tokens == [("HEAD", "127.0.0.1", "Bearer hf_secret"), ("GET", *second)]


def test_no_token_is_sent_without_one(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "_token", lambda: None)  # of this machine
    fetch(hub, tmp_path / "shard.bin")
    assert [token for _, _, token in hub.tokens] == ["", ""]


def test_a_gated_data_set_is_explained(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    hub.gated = {NAME}
    with pytest.raises(UserError, match=r"gated: accept its terms at .*/datasets/x/y and set HF_T"):
        fetch(hub, tmp_path / "shard.bin")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_wrong")
    with pytest.raises(UserError, match="HTTP 401; the data set is gated"):
        fetch(hub, tmp_path / "shard.bin")
    assert "hf_wrong" not in str(names(tmp_path))


def test_the_wait_that_the_hub_asks_for_is_kept(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: waits.append(seconds))
    hub.faults, hub.retry_after = ["429"] * 3, "240"
    fetch(hub, tmp_path / "shard.bin")
    assert [wait for wait in waits if wait == 240] == [240] * 3
    hub.faults, hub.retry_after = ["429"], "86400"
    with pytest.raises(UserError, match=r"HTTP 429; the server asks to wait 24\.0 hours"):
        fetch(hub, tmp_path / "other", "shard.bin")


def test_a_wait_is_seconds_or_a_date() -> None:
    seconds = download_module.retry_after_seconds
    assert [seconds({"Retry-After": text}) for text in ("120", " 5", "", "soon", "-3")] == [
        120, 5, 0, 0, 0,
    ]  # fmt: skip
    date = email.utils.formatdate(time.time() + 300, usegmt=True)
    assert 0 < seconds({"Retry-After": date}) <= 300
    assert seconds({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert seconds({}) == 0


PROGRAM = """
import sys
from pathlib import Path
from nanochat.data import download
download.FIRST_WAIT_SECONDS = 0.01
download.download([download.HubFile("x/y", "shard.bin", Path(sys.argv[1]))], sys.argv[2])
"""


def started(hub: Hub, path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(path), hub.url]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def wait_until_larger(path: Path, size: int) -> None:
    while not path.is_file() or path.stat().st_size <= size:
        time.sleep(0.005)


def test_four_processes_at_once_download_a_file_once(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    running = [started(hub, path) for _ in range(4)]
    assert [process.wait() for process in running] == [0, 0, 0, 0]
    assert path.read_bytes() == CONTENT
    assert hub.requests == [NAME]


def fetch_as_rank(url: str, path: Path) -> None:
    """In a rank: download the file when all ranks have begun, and end."""
    download_module.FIRST_WAIT_SECONDS = 0.01
    runtime.init_runtime("cpu")
    runtime.barrier()
    download([HubFile("x/y", "shard.bin", path)], url)
    sys.exit(0)


def test_a_busy_hub_sends_a_file_once_to_two_processes_and_four_ranks(
    hub: Hub, tmp_path: Path
) -> None:
    path = tmp_path / "shard.bin"
    hub.retry_after = "1"
    hub.metadata_faults, hub.faults = ["429", "500"], ["500", "429"]
    alone = [started(hub, path) for _ in range(2)]
    ranks = processes.start(
        tmp_path / "base", "nanochat.dataset", ranks=4, before=partial(fetch_as_rank, hub.url, path)
    )
    assert [process.wait() for process in alone] == [0, 0]
    assert ranks.wait() == [0, 0, 0, 0], ranks.output()
    assert path.read_bytes() == CONTENT
    assert hub.requests == [NAME] * 3  # twice it was busy


def test_kill_9_during_a_transfer_leaves_no_bad_file_and_the_next_process_resumes(
    hub: Hub, tmp_path: Path
) -> None:
    path, partial = tmp_path / "shard.bin", tmp_path / "shard.bin.partial"
    size = 0
    for _ in range(3):
        hub.faults = ["stall"] * 100
        process = started(hub, path)
        wait_until_larger(partial, size)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not path.exists()
        size = partial.stat().st_size
        assert CONTENT.startswith(partial.read_bytes())
    hub.faults = []
    fetch(hub, path)
    assert path.read_bytes() == CONTENT
    assert hub.requests[-1] == f"{NAME} from {size}"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://127.0.0.1"])
def test_a_proxy_that_cannot_be_used_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    huggingface_hub.close_session()  # which was made without it
    with pytest.raises(UserError, match=r"^the proxy in ALL_PROXY.* cannot be used: .*unset"):
        download([HubFile("x/y", "file", tmp_path / "file")], "http://127.0.0.1:9")
    huggingface_hub.close_session()
