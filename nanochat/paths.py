"""The base directory, every folder under it, and files that are whole or absent."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nanochat.errors import UserError

STAGE_FOLDERS = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}


def base_dir() -> Path:
    """Where everything that is made goes: NANOCHAT_BASE_DIR, else ~/.cache/nanochat."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").expanduser()


def data_dir(source: str) -> Path:
    """Parquet shards of a source of text."""
    return base_dir() / "data" / source


def tokenizer_dir() -> Path:
    """The trained tokenizer."""
    return base_dir() / "tokenizer"


def checkpoints_dir(stage: str) -> Path:
    """Folders of checkpoints, one a tag, of stage base, mid, sft or rl."""
    return base_dir() / STAGE_FOLDERS[stage]


def report_dir() -> Path:
    """The report and its sections."""
    return base_dir() / "report"


def eval_dir() -> Path:
    """The bundle of the CORE metric."""
    return base_dir() / "eval_bundle"


def task_dir() -> Path:
    """Files of chat tasks, by repository."""
    return base_dir() / "task_data"


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name only when all of it is on the disk.

    Raises UserError as `named_failures` does; what stood under the name before stays.
    """
    temporary: Path | None = None
    with named_failures(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(
                prefix=f".{path.name}.", suffix=".part", dir=path.parent
            )
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@contextmanager
def named_failures(path: Path) -> Iterator[None]:
    """Turns what a person can mend about a disk (full, not writable) into a UserError on `path`."""
    try:
        yield
    except OSError as error:
        failure = disk_failure(error)
        if failure is None:
            raise
        what, remedy = failure
        raise UserError(
            f"{what}: {path} was not written, and what was there stays; {remedy}, then run the"
            " command again"
        ) from error


def disk_failure(error: OSError) -> tuple[str, str] | None:
    """What is wrong with the disk and what helps; None when that is not for people to mend."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full", "free some space or set NANOCHAT_BASE_DIR to a larger disk"
    remedy = "set NANOCHAT_BASE_DIR to a folder where you may write"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission for {error.filename}", remedy
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"a file stands in the way of the folder {error.filename}", remedy
    if error.errno == errno.EISDIR:
        place = error.filename2 or error.filename
        return f"a folder stands in the way of the file {place}", "move it away"
    if error.errno == errno.ENAMETOOLONG:
        return f"{error.filename} is too long a name", "use a shorter one"
    return None


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a small file that is whole or absent; text is UTF-8. Raises UserError as above."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
