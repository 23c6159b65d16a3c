import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nanochat import paths
from nanochat.errors import UserError


def test_every_folder_is_under_the_base_directory_and_not_created_by_its_function(
    base_dir: Path,
) -> None:
    folders = {
        "data/mine": paths.data_dir("mine"),
        "tokenizer": paths.tokenizer_dir(),
        "base_checkpoints": paths.checkpoints_dir("base"),
        "mid_checkpoints": paths.checkpoints_dir("mid"),
        "chatsft_checkpoints": paths.checkpoints_dir("sft"),
        "chatrl_checkpoints": paths.checkpoints_dir("rl"),
        "report": paths.report_dir(),
        "eval_bundle": paths.eval_dir(),
        "task_data": paths.task_dir(),
    }
    assert folders == {name: base_dir / name for name in folders}
    assert not base_dir.exists()


def test_without_the_variable_the_base_directory_is_in_the_home_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv("NANOCHAT_BASE_DIR")
        else:
            monkeypatch.setenv("NANOCHAT_BASE_DIR", value)
        assert paths.base_dir() == Path.home() / ".cache" / "nanochat"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "~/elsewhere")
    assert paths.base_dir() == Path.home() / "elsewhere"


def test_a_file_is_written_with_its_folders_and_no_temporary_file_remains(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    paths.write_atomic(target, "grün\n")
    assert target.read_bytes() == "grün\n".encode()
    paths.write_atomic(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_instead_of_a_file_and_a_long_name_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} is a folder, not a file"):
        paths.write_atomic(tmp_path, "text")
    with pytest.raises(UserError, match=r"the name .* is too long: "):
        paths.write_atomic(tmp_path / ("a" * 300), "text")


def test_an_error_while_writing_leaves_the_old_file_and_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    paths.write_atomic(target, "old")
    with pytest.raises(RuntimeError, match="halfway"), paths.atomic_file(target) as file:
        file.write(b"new")
        raise RuntimeError("halfway")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_does_not_exist_until_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with paths.atomic_file(target) as file:
        file.write(b"first half")
        file.flush()
        assert not target.exists()
    assert target.read_bytes() == b"first half"


def test_kill_9_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    paths.write_atomic(target, "old")
    program = (
        "import os, signal, sys; from pathlib import Path; from nanochat import paths\n"
        "with paths.atomic_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert done.returncode == -9
    assert target.read_text() == "old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_with_path_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    target = tmp_path / "file"
    paths.write_atomic(target, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk is full.*file.*NANOCHAT_BASE_DIR") as caught:
        paths.write_atomic(target, "new")
    assert "\n" not in str(caught.value)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_other_disk_errors_are_not_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        paths.write_atomic(tmp_path / "file", "text")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read_a_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        paths.write_atomic(tmp_path / "file", "content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


# ---- leftovers and writable folders


def test_only_temporary_files_of_atomic_writes_are_removed(tmp_path: Path) -> None:
    kept = {"a.part", ".notes.part", ".a.12345678.partial", ".b.json.0a1b2c3d.part"}
    for name in kept - {".b.json.0a1b2c3d.part"}:
        (tmp_path / name).touch()
    (tmp_path / ".b.json.0a1b2c3d.part").mkdir()  # a folder is not ours
    with pytest.raises(KeyError), paths.atomic_file(tmp_path / "x.json") as file:
        [temporary] = tmp_path.glob(".x.json.*")
        os.link(temporary, tmp_path / ".y.json.89abcdef.part")
        file.write(b"x")
        raise KeyError
    with paths.locked(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    paths.require_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, not a folder"):
        paths.require_writable(tmp_path / "file" / "folder")


@pytest.mark.parametrize("folder", ["/proc/nanochat", "/dev/null/nanochat"])
def test_where_no_folder_can_be_made_is_a_user_error(folder: str) -> None:
    with pytest.raises(UserError, match=rf"{folder}.*set NANOCHAT_BASE_DIR to a writable folder"):
        paths.require_writable(Path(folder))


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EMFILE])
def test_limits_of_the_shell_are_user_errors(tmp_path: Path, number: int) -> None:
    with pytest.raises(UserError, match="raise the limit"), paths.atomic_file(tmp_path / "file"):
        raise OSError(number, os.strerror(number))


def test_a_base_directory_that_is_not_utf_8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", os.fsdecode(b"/tmp/\xff"))
    with pytest.raises(UserError, match=r"'/tmp/\\udcff' is not UTF-8; set NANOCHAT_BASE_DIR"):
        paths.base_dir()


# ---- locks

HOLD = """
import sys, time
from pathlib import Path
from nanochat import paths
with paths.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """A process that holds a lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_a_lock_names_its_holder_and_a_killed_holder_frees_it(tmp_path: Path) -> None:
    holder = hold(tmp_path / "run")
    with pytest.raises(UserError) as refused, paths.locked(tmp_path / "run", "stop it", 0.0):
        pass
    message = str(refused.value)
    assert f"{tmp_path / 'run'} is in use by process {holder.pid} on {os.uname().nodename}" in (
        message
    )
    assert " since 20" in message and "run)" in message and message.endswith("; stop it")
    assert "\n" not in message
    holder.kill()
    holder.wait()
    with paths.locked(tmp_path / "run", wait_seconds=0.0):
        assert (tmp_path / ".run.lock").read_text().startswith(f"process {os.getpid()} on ")


def test_who_waits_for_a_lock_is_told_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(paths, "LOCK_QUIET_SECONDS", 0.0)
    holder = hold(tmp_path / "shard")

    def release_when_told() -> None:
        while not caplog.messages:
            time.sleep(0.01)
        holder.communicate("")

    threading.Thread(target=release_when_told, daemon=True).start()
    with paths.locked(tmp_path / "shard"):
        assert holder.wait() == 0
    [message] = caplog.messages
    assert message.startswith(f"waiting for {tmp_path / 'shard'}, in use by process {holder.pid}")


def test_threads_exclude_each_other_and_the_path_may_be_renamed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with paths.locked(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "run-1")
        (tmp_path / "run").mkdir()
        with (
            pytest.raises(UserError, match="in use by process"),
            paths.locked(tmp_path / "run", wait_seconds=0.0),
        ):
            pass


def test_a_released_lock_is_free_even_if_a_child_was_forked(tmp_path: Path) -> None:
    with paths.locked(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with paths.locked(tmp_path / "run", wait_seconds=0.0):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_without_locks_of_the_file_system_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with paths.locked(tmp_path / "run"):
        pass
    assert "this file system has no locks (No locks available)" in caplog.text


@pytest.mark.parametrize("what", ["fifo", "folder", "loop", "nonsense", "control characters"])
def test_a_hostile_lock_file_is_one_line(tmp_path: Path, what: str) -> None:
    lock_file = tmp_path / ".run.lock"
    if what == "fifo":
        os.mkfifo(lock_file)
    elif what == "folder":
        lock_file.mkdir()
    elif what == "loop":
        lock_file.symlink_to(lock_file)
    descriptor = -1
    if what not in ("folder", "loop"):
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    if what == "nonsense":
        os.write(descriptor, b"[" * 9000)
    elif what == "control characters":
        os.write(descriptor, b"process 1 on a\x1b[2J\n")
    with pytest.raises(UserError) as refused, paths.locked(tmp_path / "run", "wait", 0.0):
        pass
    assert str(refused.value).isprintable()
    if descriptor >= 0:
        assert "in use by another process; wait" in str(refused.value)
        os.close(descriptor)
