"""A seccomp filter of about 80 allowed system calls, in BPF, for x86-64 and aarch64.

Left out are fork and exec, signals to others, everything about networks, namespaces, other
processes, kernel keys, shared memory, and descriptors that outlive limits. What is left can reach
files only through openat, which Landlock restricts.
"""

import ctypes
import errno
import platform
import struct
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from nanochat.sandbox import kernel

# name, number on x86-64, number on aarch64 (- where it has no such call)
SYSCALLS = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, lseek 8 62
close 3 57, fstat 5 80, newfstatat 262 79, stat 4 -, lstat 6 -, statx 332 291, access 21 -
faccessat 269 48, faccessat2 439 439, getcwd 79 17, getdents64 217 61, unlink 87 -, unlinkat 263 35
rename 82 -, renameat 264 38, renameat2 316 276, ftruncate 77 46, openat 257 56
dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, ioctl 16 29, fcntl 72 25
mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233, brk 12 214
clone 56 220, futex 202 98, set_robust_list 273 99, rseq 334 293, sched_yield 24 124
sched_getaffinity 204 123, gettid 186 178, getpid 39 172, getppid 110 173, getuid 102 174
geteuid 107 175, getgid 104 176, getegid 108 177, prlimit64 302 261, getrusage 98 165
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132
restart_syscall 219 128, exit 60 93, exit_group 231 94, setitimer 38 103, alarm 37 -, pause 34 -
clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101
gettimeofday 96 169, time 201 -, times 100 153, getrandom 318 278, uname 63 160
poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create1 291 20, epoll_ctl 233 21
epoll_wait 232 -, epoll_pwait 281 22, socketpair 53 199, sendto 44 206, recvfrom 45 207
"""
CLONE3 = 435  # on both
# Of glibc's pthread_create, exactly: a thread, and no namespace. musl sets CLONE_DETACHED, too.
THREAD_FLAGS, CLONE_DETACHED = 0x3D0F00, 0x400000
O_ACCMODE, O_TRUNC = 0o3, 0o1000
WORD = 0xFFFFFFFF


class Condition(NamedTuple):
    """`values` holds a 32-bit word of the arguments: 2i is the low half of argument i."""

    word: int
    mask: int
    values: Sequence[int]


CONDITIONS: dict[str, list[Condition]] = {
    "clone": [Condition(0, WORD & ~CLONE_DETACHED, [THREAD_FLAGS])],
    # Before ABI 3, Landlock lets O_TRUNC empty a file that may only be read.
    "openat": [Condition(4, O_ACCMODE | O_TRUNC, [0, 1, 2, O_TRUNC | 1, O_TRUNC | 2])],
    # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: what Python's files and sockets use.
    "ioctl": [Condition(2, WORD, [0x5401, 0x541B, 0x5421, 0x5450, 0x5451])],
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC. F_SETOWN would make the kernel
    # send signals to other processes.
    "fcntl": [Condition(2, WORD, [0, 1, 2, 3, 4, 1030])],
    "prlimit64": [Condition(word, WORD, [0]) for word in (0, 4, 5)],  # own limits, only read
    # AF_UNIX, SOCK_STREAM (with CLOEXEC and NONBLOCK): what asyncio wakes itself up with.
    "socketpair": [Condition(0, WORD, [1]), Condition(2, WORD & ~0o2004000, [1])],
    "sendto": [Condition(word, WORD, [0]) for word in (8, 9)],  # no address
}

# AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64, by the column in the table
ARCHITECTURES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}
X32_BIT = 0x40000000  # calls of the x32 ABI have the same architecture

LOAD, AND, JUMP_EQUAL, JUMP_GREATER_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER_OFFSET, ARCHITECTURE_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16  # in struct seccomp_data

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2


def is_available() -> bool:
    """Whether the kernel has seccomp, and this architecture a table."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        return False
    # Without an address of a filter: EFAULT where filters are supported, else EINVAL.
    try:
        kernel.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, None)
    except OSError as error:
        return error.errno == errno.EFAULT
    return False


@cache
def program() -> bytes:
    """The filter for this machine."""
    column, architecture = ARCHITECTURES[platform.machine()]
    rules: dict[int, Sequence[Condition]] = {}
    for entry in SYSCALLS.strip().replace("\n", ",").split(","):
        fields = entry.split()
        if fields[column] != "-":
            rules[int(fields[column])] = CONDITIONS.get(fields[0], ())
    return assemble(rules, architecture)


def assemble(
    rules: Mapping[int, Sequence[Condition]], architecture: int, otherwise: int = errno.EPERM
) -> bytes:
    """A filter that allows calls by number if all conditions hold; others fail with `otherwise`.

    A call by another ABI, such as int 0x80 on x86-64, kills the process: its numbers mean other
    calls.
    """
    code = [
        _instruction(LOAD, ARCHITECTURE_OFFSET),
        _instruction(JUMP_EQUAL, architecture, 1, 0),
        _instruction(RETURN, KILL_PROCESS),
        _instruction(LOAD, NUMBER_OFFSET),
        _instruction(JUMP_GREATER_EQUAL, X32_BIT, 0, 1),
        _instruction(RETURN, KILL_PROCESS),
        # glibc then falls back to clone, whose flags a filter can see.
        _instruction(JUMP_EQUAL, CLONE3, 0, 1),
        _instruction(RETURN, ERRNO | errno.ENOSYS),
    ]
    for number, conditions in rules.items():
        body: list[bytes] = []
        for word, mask, values in conditions:
            body += [_instruction(LOAD, ARGUMENTS_OFFSET + 4 * word), _instruction(AND, mask)]
            for place, value in enumerate(values):
                body.append(_instruction(JUMP_EQUAL, value, len(values) - place, 0))
            body.append(_instruction(RETURN, ERRNO | otherwise))
        body.append(_instruction(RETURN, ALLOW))
        code += [_instruction(JUMP_EQUAL, number, 0, len(body)), *body]
    return b"".join([*code, _instruction(RETURN, ERRNO | otherwise)])


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install(filter_program: bytes) -> None:
    """Filter the calls of this thread from now on. Needs no_new_privs. Raises OSError."""
    argument = _Program(len(filter_program) // 8, filter_program)
    kernel.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(argument))
