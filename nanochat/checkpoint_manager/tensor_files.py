"""Files of plain tensors: written with a checksum, verified, and read without executing anything.

`torch.load` with `weights_only` executes nothing, either, but a file of 400 bytes can state tensors
of 100 GB. What is read here is not compressed, holds only tensors, and no more than its size.
"""

import hashlib
import os
import pickletools
import re
import stat
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from nanochat import paths
from nanochat.errors import UserError

# What the pickle in our files builds; it also names the types of storages.
PLAIN_TYPES = re.compile(
    r"torch\._utils _rebuild_tensor_v2|collections OrderedDict|torch \w+Storage"
)
MAX_VALUES = 1_000_000  # in a file; an optimizer state of a thousand layers has 30,000


class _HashingWriter:
    """A file that hashes what is written, so that it need not be read back for its checksum."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.flush = file.flush

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


def write(path: Path, content: Any) -> dict[str, Any]:
    """Write tensors in lists and dictionaries atomically; returns {"size", "sha256"}."""
    with paths.atomic_file(path) as file:
        writer = _HashingWriter(file)
        torch.save(content, cast(IO[bytes], writer))
    return {"size": writer.size, "sha256": writer.digest.hexdigest()}


def open_regular(path: Path) -> BufferedReader:
    """A file for reading. Raises OSError when it is none, as a FIFO, which would never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "not a regular file")
    return path.open("rb")


def verify(path: Path, facts: dict[str, Any]) -> None:
    """Raises UserError naming the file unless it has the size and sha256 that `write` returned."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size  # a truncated file is found without hashing
            if size != facts["size"]:
                raise UserError(f"{path.name} has {size} bytes, expected {facts['size']}")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror})") from None
    if digest != facts["sha256"]:
        raise UserError(f"checksum mismatch of {path.name}")


def read(path: Path) -> Any:
    """Plain tensors in lists and dictionaries, mapped to the file: only what is used is read.

    Raises UserError when the file holds anything else or states more than it holds.
    """
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        _check_content(content, path.stat().st_size)
    except Exception as error:  # of many types, on a file that we did not write
        raise UserError(
            f"{path} is not a file of plain tensors; restore the one that was saved there"
        ) from error
    return content


def _check_archive(path: Path) -> None:
    """Raises an exception unless the zip file is stored as `torch.save` does it."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        num_bytes = sum(member.file_size for member in members)
        if any(member.compress_type for member in members) or num_bytes > path.stat().st_size:
            raise ValueError("compressed")
        [name] = [m.filename for m in members if m.filename.endswith("/data.pkl")]
        for opcode, argument, _ in pickletools.genops(archive.read(name)):
            if opcode.name in ("BUILD", "NEWOBJ"):
                raise ValueError(opcode.name)
            if opcode.name == "GLOBAL" and not PLAIN_TYPES.fullmatch(str(argument)):
                raise ValueError(argument)


def _check_content(content: Any, num_bytes: int) -> None:
    """Raises ValueError for values of other types, and for more of them than `num_bytes` hold."""
    # Not recursive: lists may be nested deeply, or hold each other again and again.
    pending, num_values = [content], 0
    while pending:
        value = pending.pop()
        num_values += 1
        if isinstance(value, Tensor):
            num_bytes -= value.numel() * value.element_size()  # of views, too, as if copied
        elif isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            pending += value
        elif not isinstance(value, int | float | str | None):
            raise ValueError(type(value))
        if num_bytes < 0 or num_values + len(pending) > MAX_VALUES:
            raise ValueError("more values than the file can hold")


def check_finite(content: Any, name: str = "") -> None:
    """Raises UserError naming the first tensor with an infinite value or NaN."""
    if isinstance(content, Tensor):
        # The sum is cheap, but finite values may overflow in it: then look at each.
        if not content.sum().isfinite() and not content.isfinite().all():
            raise UserError(f"{name} holds values that are not finite")
    elif isinstance(content, dict | list):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            check_finite(value, f"{name}/{key}" if name else str(key))
