"""The one exception that is meant for users; disk errors as such; what logs may say of others."""

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """An error that the user can fix: its one-line message names value, bound and remedy."""


def one_line(error: Exception) -> str:
    """The message of an error, without its line breaks."""
    return " ".join(str(error).split())


def error_location(error: Exception) -> str:
    """The type and the location of an error for a log, without its message."""
    # The message may quote what a user of the server wrote, which is not logged.
    return type(error).__name__ + ":\n" + "".join(traceback.format_tb(error.__traceback__)[-4:])


@contextmanager
def named_failures(path: Path) -> Iterator[None]:
    """Turns disk errors that a person can fix (full, not writable) into a UserError on `path`."""
    try:
        yield
    except OSError as error:
        failure = disk_failure(error)
        if failure is None:
            raise
        problem, remedy = failure
        raise UserError(
            f"{problem}: {path} was not written, and its previous version stays; {remedy}, then run"
            " the command again"
        ) from error


def disk_failure(error: OSError) -> tuple[str, str] | None:
    """(problem, remedy) of a disk error; None when a person cannot fix it, as a broken disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full", "free some space or set NANOCHAT_BASE_DIR to a larger disk"
    remedy = "set NANOCHAT_BASE_DIR to a writable folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission for {error.filename}", remedy
    if error.errno == errno.ENOENT and error.filename:  # as /proc answers to a new folder
        return f"{error.filename} does not exist and cannot be made", remedy
    if error.errno in (errno.EFBIG, errno.EMFILE):
        return os.strerror(error.errno).lower(), "raise the limit (ulimit -a shows it)"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{error.filename} is a file, not a folder", remedy
    if error.errno == errno.EISDIR:
        # The target of a rename is the second name.
        return f"{error.filename2 or error.filename} is a folder, not a file", "move it away"
    if error.errno == errno.ELOOP:
        return f"{error.filename} is a link that leads to itself", "remove it"
    if error.errno == errno.ENAMETOOLONG:
        return f"the name {error.filename} is too long", "use a shorter one"
    return None


def check_context(length: int, limit: int) -> None:
    """Raises UserError when `length` tokens do not fit into a context of `limit`."""
    if length > limit:
        raise UserError(
            f"{length} tokens are more than the model's context of {limit}; send a shorter text"
            " or ask for fewer new tokens"
        )
