"""The base directory, the folders under it, atomic file writes, and locks."""

import fcntl
import itertools
import logging
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from nanochat.errors import UserError, named_failures

logger = logging.getLogger(__name__)

STAGE_FOLDERS = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}
REPLACED = "replaced"  # folder for what --fresh has replaced; no tag may have this name
TEMPORARY_NAME = r"\..+\.[0-9a-f]+\.part"  # of `atomic_file`
LOCK_POLL_SECONDS = 0.02
LOCK_QUIET_SECONDS = 1.0  # of waiting, before a message says for whom


def base_dir() -> Path:
    """Where all output goes: NANOCHAT_BASE_DIR, else ~/.cache/nanochat. UserError if not UTF-8."""
    # `or`: an empty variable must not mean the current folder.
    folder = Path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").expanduser()
    if any("\udc80" <= character <= "\udcff" for character in str(folder)):  # of no character
        raise UserError(f"the base directory {str(folder)!a} is not UTF-8; set NANOCHAT_BASE_DIR")
    return folder


def data_dir(source: str) -> Path:
    """Parquet shards of a text source."""
    return base_dir() / "data" / source


def tokenizer_dir() -> Path:
    return base_dir() / "tokenizer"


def checkpoints_dir(stage: str) -> Path:
    """Checkpoint folders, one per tag, of stage base, mid, sft or rl."""
    return base_dir() / STAGE_FOLDERS[stage]


def report_dir() -> Path:
    return base_dir() / "report"


def eval_dir() -> Path:
    """The bundle of the CORE metric."""
    return base_dir() / "eval_bundle"


def task_dir() -> Path:
    """Files of chat tasks, by repository."""
    return base_dir() / "task_data"


def replaced_path(path: Path) -> Path:
    """A free name for what --fresh replaces: replaced/NAME-1, NAME-2 ... beside it."""
    folder = path.parent / REPLACED
    names = (folder / f"{path.name}-{number}" for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def tracker_dir() -> Path:
    """Where the tracker writes, its log and caches included; created."""
    folder = base_dir() / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(name, str(folder))
    return folder


def forget_plot_backend() -> None:
    """Unset an MPLBACKEND that may be unknown here; a notebook's own, a module, is always valid."""
    if not os.environ.get("MPLBACKEND", "").startswith("module://"):
        os.environ.pop("MPLBACKEND", None)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` only when all of it is on the disk.

    On an error, or when the process is killed, what was there before stays. Raises UserError as
    `named_failures` does.
    """
    with named_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder: a rename is atomic only within a file system. Not of tempfile, whose
        # files are private: the umask decides who may read this one.
        temporary = path.parent / f".{path.name}.{os.urandom(4).hex()}.part"
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # before the rename, or a power loss leaves an empty file
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a small file atomically; text is UTF-8. Raises UserError as `named_failures` does."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed processes left of `atomic_file`; only for the holder of the lock."""
    for path in folder.rglob(".*.part"):
        if re.fullmatch(TEMPORARY_NAME, path.name) and path.is_file():
            path.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Raises UserError, now and not after hours, when no file can be written to a folder."""
    with named_failures(folder):
        folder.mkdir(parents=True, exist_ok=True)
        from tempfile import TemporaryFile  # not needed by --help, which imports this module

        with TemporaryFile(dir=folder) as file:
            file.write(b"x")


# ---- locks


@contextmanager
def locked(path: Path, remedy: str = "", wait_seconds: float = math.inf) -> Iterator[None]:
    """Hold the lock of `path`, which need not exist: that of the kernel on .NAME.lock beside it.

    The kernel releases it when the process ends, however that happens. Raises UserError with the
    holder and the remedy after `wait_seconds`; a file system without locks gets a warning.
    """
    lock_file = path.with_name(f".{path.name}.lock")  # beside it: `path` itself may be renamed
    with named_failures(lock_file):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Never blocks, not even on a FIFO of that name.
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    try:
        began, is_told = time.monotonic(), False
        while not _try_lock(descriptor, lock_file):
            seconds = time.monotonic() - began
            if seconds >= wait_seconds:
                raise UserError(f"{path} is in use by {_holder(descriptor)}; {remedy}")
            if seconds >= LOCK_QUIET_SECONDS and not is_told:
                is_told = True
                logger.warning("waiting for %s, in use by %s", path, _holder(descriptor))
            time.sleep(LOCK_POLL_SECONDS)
        with suppress(OSError):  # a full disk: the lock itself needs no space
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _this_process().encode(errors="replace"), 0)
        remove_temporary_files(path)
        yield
    finally:
        with suppress(OSError):  # closing is not enough while a forked child has the file open
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _try_lock(descriptor: int, lock_file: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # of some network file systems
        warning = "%s: this file system has no locks (%s); do not start the same command twice"
        logger.warning(warning, lock_file, error.strerror)
    return True


def _this_process() -> str:
    import shlex  # not needed by --help, which imports this module

    command = shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    short = " ".join(command.split())[:300]
    return f"process {os.getpid()} on {os.uname().nodename} since {since} ({short})"


def _holder(descriptor: int) -> str:
    """Who holds a lock, from its file."""
    text = ""
    with suppress(OSError):
        text = os.pread(descriptor, 4000, 0).decode(errors="replace")
    is_ours = text.startswith("process ") and text.isprintable()
    return text if is_ours else "another process"  # which has not written it yet
