import errno
import os
import subprocess
import sys
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
