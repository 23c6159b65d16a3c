"""The base directory, the folders under it, and atomic file writes."""

import itertools
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nanochat.errors import named_failures

STAGE_FOLDERS = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}
REPLACED = "replaced"  # folder for what --fresh has replaced; no tag may have this name


def base_dir() -> Path:
    """Where all output goes: NANOCHAT_BASE_DIR, else ~/.cache/nanochat."""
    # `or`: an empty variable must not mean the current folder.
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").expanduser()


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
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
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
