"""Calls of the C library that Python does not have."""

import ctypes
import os
from functools import cache
from typing import Any


@cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """Raises OSError."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return checked(libc().syscall(ctypes.c_long(number), *wide), f"system call {number}")


def prctl(option: int, value: int, argument: Any = None) -> None:
    """Raises OSError."""
    checked(libc().prctl(option, value, argument, 0, 0), f"prctl {option}")


def checked(result: int, what: str) -> int:
    """The result of a call. Raises OSError when it is negative."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result
