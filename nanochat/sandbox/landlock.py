"""Landlock, by its three system calls: files that may be read, one folder that may be written.

TCP (from ABI 4), and signals and abstract sockets outside the process (from ABI 6), are forbidden.
"""

import os
import stat
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress

from nanochat.sandbox import kernel

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # on every architecture
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1

WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, TRUNCATE = (
    1 << bit for bit in (1, 2, 3, 5, 8, 14)
)
READ = READ_FILE | READ_DIR
# No folders and no links: the size of a flat folder is quickly added up.
WRITE = READ | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE
FILE_RIGHTS = READ_FILE | WRITE_FILE | TRUNCATE  # those that a rule on a file may have
NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # by ABI; later ones have 16
ALL_TCP = ALL_SCOPES = 0b11


def abi() -> int:
    """The version of the interface, from 1; 0 where the kernel has no Landlock."""
    if sys.platform != "linux":
        return 0
    with suppress(OSError):
        return kernel.syscall(CREATE_RULESET, None, 0, CREATE_RULESET_VERSION)
    return 0


def ruleset(readable: Sequence[str], writable: Sequence[str]) -> int:
    """A descriptor of rules that allow only what is beneath these paths. Raises OSError."""
    version = abi()
    handled = (1 << NUM_FILE_RIGHTS.get(version, 16)) - 1
    fields = [handled, ALL_TCP if version >= 4 else 0, ALL_SCOPES if version >= 6 else 0]
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = kernel.syscall(CREATE_RULESET, struct.pack("=3Q", *fields)[:size], size, 0)
    for paths, rights in ((readable, READ), (writable, WRITE)):
        for path in paths:
            _add_rule(rules, path, rights & handled)
    return rules


def restrict(rules: int) -> None:
    """Restrict this thread to a ruleset. Needs no_new_privs. Raises OSError."""
    kernel.syscall(RESTRICT_SELF, rules, 0)


def _add_rule(rules: int, path: str, rights: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            rights &= FILE_RIGHTS
        kernel.syscall(ADD_RULE, rules, RULE_PATH_BENEATH, struct.pack("=Qi", rights, handle), 0)
    finally:
        os.close(handle)
