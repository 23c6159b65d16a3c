import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.data import download as download_module
from nanochat.data.download import download
from nanochat.errors import UserError
from tests.hub import Fault, Hub, running_hub

CONTENT = random.Random(1).randbytes(300_000)
NAME = "/datasets/x/y/resolve/main/shard.bin"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(download_module, "CHUNK_BYTES", 4096)
    with running_hub() as running:
        running.files[NAME] = CONTENT
        yield running


def bring(hub: Hub, path: Path, name: str = NAME) -> None:
    download(f"{hub.url}{name}", path, first_wait_seconds=0.01, timeout_seconds=0.5)


def names(folder: Path) -> set[str]:
    """What stands in a folder, lock files aside."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_file_arrives_through_the_redirect_and_is_not_asked_for_twice(
    hub: Hub, tmp_path: Path
) -> None:
    path = tmp_path / "a" / "b" / "shard.bin"
    bring(hub, path)
    bring(hub, path)
    assert path.read_bytes() == CONTENT
    assert hub.requests == [NAME]
    assert names(path.parent) == {"shard.bin"}


@pytest.mark.parametrize(
    "fault", ["page", "page as data", "flip", "half", "half, no length", "stall", "503"]
)
def test_after_one_fault_the_next_try_brings_the_right_bytes(
    hub: Hub, tmp_path: Path, fault: Fault
) -> None:
    hub.faults = [fault]
    bring(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT
    assert names(tmp_path) == {"shard.bin"}
    if fault in ("half", "half, no length", "stall"):
        assert hub.requests == [NAME, f"{NAME} from {len(CONTENT) // 2}"]


@pytest.mark.parametrize("fault", ["page", "page as data", "flip", "503"])
def test_a_fault_that_stays_ends_in_one_line_and_no_file(
    hub: Hub, tmp_path: Path, fault: Fault
) -> None:
    hub.faults = [fault] * 100
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        bring(hub, tmp_path / "shard.bin")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "shard.bin").exists()
    assert len(hub.requests) == download_module.NUM_TRIES


def test_a_connection_that_breaks_again_and_again_but_moves_is_not_given_up(
    hub: Hub, tmp_path: Path
) -> None:
    hub.faults = ["half"] * (download_module.NUM_TRIES + 3)
    bring(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT


def test_a_server_that_states_no_checksum_is_not_believed(hub: Hub, tmp_path: Path) -> None:
    hub.states_checksums = False
    with pytest.raises(UserError, match="states no checksum"):
        bring(hub, tmp_path / "shard.bin")
    assert names(tmp_path) == set()


def test_a_small_file_is_checked_against_the_checksum_of_git(hub: Hub, tmp_path: Path) -> None:
    hub.is_small_file_store = True
    hub.faults = ["flip"]
    bring(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT
    assert hub.requests == [NAME, NAME]


def test_a_server_that_does_not_continue_sends_the_whole(hub: Hub, tmp_path: Path) -> None:
    hub.continues = False
    (tmp_path / "shard.bin.partial").write_bytes(CONTENT[:1000])
    bring(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT


def test_an_empty_file_is_a_file(hub: Hub, tmp_path: Path) -> None:
    hub.files["/empty"] = b""
    bring(hub, tmp_path / "empty", "/empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_what_an_earlier_process_brought_is_continued(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "shard.bin.partial").write_bytes(CONTENT[:1000])
    bring(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT
    assert hub.requests == [f"{NAME} from 1000"]


@pytest.mark.parametrize("rest", [b"something else", CONTENT[:-1] + b"\0", CONTENT + b"more"])
def test_a_rest_of_something_else_is_found_and_replaced(
    hub: Hub, tmp_path: Path, rest: bytes
) -> None:
    (tmp_path / "shard.bin.partial").write_bytes(rest)
    bring(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["page", "page as data", "503"])
def test_a_page_in_place_of_the_rest_does_not_cost_what_is_there(
    hub: Hub, tmp_path: Path, fault: Fault
) -> None:
    (tmp_path / "shard.bin.partial").write_bytes(CONTENT[:1000])
    hub.faults = [fault]
    bring(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT
    assert hub.requests == [f"{NAME} from 1000"] * 2


def test_a_file_killed_between_the_last_byte_and_the_name_is_not_fetched_again(
    hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "shard.bin.partial").write_bytes(CONTENT)
    bring(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT
    assert hub.requests == []


def test_a_file_that_is_not_there_is_said_at_once(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="404"):
        download(f"{hub.url}/nothing", tmp_path / "x", first_wait_seconds=60)


def test_a_hub_that_cannot_be_reached_is_said_soon_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refused.*HF_ENDPOINT.*--source primer"):
        download("http://127.0.0.1:9/x", tmp_path / "x", first_wait_seconds=0.01)


def test_a_full_disk_is_said_and_what_came_is_kept_for_the_next_time(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(UserError, match="disk is full"):
        patched.setattr(os, "fsync", full)
        bring(hub, tmp_path / "shard.bin")
    assert names(tmp_path) == {"shard.bin.partial"}
    bring(hub, tmp_path / "shard.bin")
    assert (tmp_path / "shard.bin").read_bytes() == CONTENT


PROGRAM = """
import sys
from pathlib import Path
from nanochat.data import download
download.CHUNK_BYTES = 1024
download.download(sys.argv[1], Path(sys.argv[2]), first_wait_seconds=0.01)
"""


def started(hub: Hub, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, f"{hub.url}{NAME}", str(path)])


def test_four_processes_at_once_bring_a_file_once(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    processes = [started(hub, path) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0, 0]
    assert path.read_bytes() == CONTENT
    assert hub.requests == [NAME]


def test_kill_9_in_the_middle_leaves_no_bad_file_and_the_next_process_goes_on(
    hub: Hub, tmp_path: Path
) -> None:
    path, partial = tmp_path / "shard.bin", tmp_path / "shard.bin.partial"
    have = 0
    for _ in range(3):
        hub.faults = ["stall"]
        process = started(hub, path)
        while not partial.is_file() or partial.stat().st_size <= have:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not path.exists()
        have = partial.stat().st_size
        assert CONTENT.startswith(partial.read_bytes())
    hub.faults = []
    bring(hub, path)
    assert path.read_bytes() == CONTENT
    assert hub.requests[-1] == f"{NAME} from {have}"
