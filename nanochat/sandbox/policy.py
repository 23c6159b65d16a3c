"""What confines a worker: levels, kernel layers, resource limits.

strict   seccomp, and Landlock or bubblewrap or both: two kernel layers that fail independently
limits   resource limits and whichever layers there are. Without any, a program can read and change
         the user's files and use the network.

At every level: an isolated interpreter, an empty environment, a session and a folder of its own.
"""

import ctypes
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from nanochat.sandbox import kernel, landlock, seccomp

Level = Literal["strict", "limits"]

UNPRIVILEGED = 65534
MAX_OPEN_FILES = 64
MAX_FILE_BYTES = 16 << 20
# The fork server looks every few milliseconds.
MAX_FOLDER_BYTES, MAX_FOLDER_FILES, MAX_THREADS = 64 << 20, 64, 64

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITY_VERSION_3 = 0x20080522
M_ARENA_MAX = -8
LIBRARY = r" (/\S+\.so[.\d]*)$"  # at the end of a line of /proc/self/maps

# All folders, read-only, which Landlock restricts further.
BUBBLEWRAP_OPTIONS = (
    "--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc",
    "--tmpfs", "/tmp", "--new-session", "--clearenv",
)  # fmt: skip


class SandboxError(Exception):
    """The requested level is not available; the message says what is missing."""


@dataclass(frozen=True)
class Limits:
    memory_bytes: int  # of address space
    cpu_seconds: int


def available_layers() -> dict[str, str]:
    """The kernel layers of this machine, by name, with what a report calls them."""
    layers = {}
    if seccomp.is_available():
        layers["seccomp"] = "seccomp"
    if abi := landlock.abi():
        layers["landlock"] = f"Landlock ABI {abi}"
    if bubblewrap():
        layers["bubblewrap"] = "bubblewrap"
    return layers


@cache
def bubblewrap() -> tuple[str, ...]:
    """The command that starts another one in namespaces of its own.

    Empty where it is not installed or may not create namespaces, as often in containers.
    """
    path = shutil.which("bwrap") or ""
    command = (path, *BUBBLEWRAP_OPTIONS)
    with suppress(OSError, subprocess.TimeoutExpired):
        if (
            path
            and subprocess.run([*command, "true"], capture_output=True, timeout=10).returncode == 0
        ):
            return command
    return ()


def layers_for(level: Level) -> dict[str, str]:
    """The layers to use. Raises SandboxError when there are too few for the level."""
    layers = available_layers()
    missing = []
    if "seccomp" not in layers:
        missing.append("seccomp (Linux on x86-64 or aarch64, CONFIG_SECCOMP_FILTER)")
    if not layers.keys() & {"landlock", "bubblewrap"}:
        missing.append("Landlock (Linux 5.13 or newer, lsm=landlock) or a working bubblewrap")
    if level == "strict" and missing:
        raise SandboxError(" and ".join(missing))
    return layers


def prepare_fork_server() -> None:
    """In the fork server, once: what its workers inherit."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    if sys.platform == "linux":
        with suppress(OSError):  # the kernel kills a worker first when memory runs out
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        # One arena per thread would reserve 64 MB of a worker's address space each.
        with suppress(AttributeError):  # musl has no mallopt
            kernel.libc().mallopt(M_ARENA_MAX, 1)
        if seccomp.is_available():
            seccomp.program()  # cached


def readable_paths() -> dict[str, bool]:
    """The standard library and shared libraries, which a worker may read; true if everybody may."""
    paths = {*sys.path, "/etc/ld.so.cache", "/dev/urandom"}
    with suppress(OSError):
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        paths |= {str(Path(name).parent) for name in re.findall(LIBRARY, maps, re.MULTILINE)}
    return {path: is_public(path) for path in paths if path != "/" and Path(path).exists()}


def is_public(path: str) -> bool:
    """Whether every user can reach a path."""
    folders = [Path(path).resolve(), *Path(path).resolve().parents]
    return all(folder.stat().st_mode & 0o001 for folder in folders if folder.is_dir())


def rules_for(folder: str, readable: Mapping[str, bool]) -> int:
    """The descriptor of a Landlock ruleset for a worker; -1 without Landlock."""
    return landlock.ruleset([*readable], [folder, "/dev/null"]) if landlock.abi() else -1


def user_of_workers(readable: Mapping[str, bool]) -> int:
    """For root, a user without rights."""
    # Where others cannot reach the interpreter, as in /root, it stays root, without capabilities;
    # then only Landlock keeps it from the files of root.
    has_to_stay = landlock.abi() and not all(readable.values())
    return UNPRIVILEGED if os.geteuid() == 0 and not has_to_stay else os.geteuid()


def confine(layers: Sequence[str], limits: Limits, rules: int, user: int, parent: int) -> None:
    """Confine this process for good. Raises OSError, and then nothing untrusted may run in it.

    rules: of `rules_for`.  user: of `user_of_workers`.  parent: whose death ends this process.
    """
    _set_resource_limits(limits, can_fork="seccomp" not in layers)
    if sys.platform != "linux":
        return
    kernel.prctl(PR_SET_NO_NEW_PRIVS, 1, 0)
    if "landlock" in layers:
        landlock.restrict(rules)
    if user != os.geteuid():
        with suppress(OSError):  # a container may map one user only
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
    _drop_capabilities()
    kernel.prctl(PR_SET_DUMPABLE, 0, 0)  # no ptrace, no /proc/PID/mem
    kernel.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0)  # after setresuid, which resets it
    if os.getppid() != parent:  # it has died before
        os._exit(1)
    if "seccomp" in layers:
        seccomp.install(seccomp.program())


def _set_resource_limits(limits: Limits, can_fork: bool) -> None:
    values = {
        "RLIMIT_AS": limits.memory_bytes, "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_FSIZE": MAX_FILE_BYTES, "RLIMIT_NOFILE": MAX_OPEN_FILES,
        "RLIMIT_CORE": 0, "RLIMIT_MEMLOCK": 0, "RLIMIT_MSGQUEUE": 0,
    }  # fmt: skip
    if can_fork:  # also counts threads, and those of the user's other processes
        values["RLIMIT_NPROC"] = 0
    for name, value in values.items():
        # macOS lacks some, and does not accept others.
        with suppress(*(() if sys.platform == "linux" else (AttributeError, ValueError, OSError))):
            resource.setrlimit(getattr(resource, name), (value, value))


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    kernel.checked(kernel.libc().capset(header, nothing), "capset")
