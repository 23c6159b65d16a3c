"""Attacks on the sandbox: each program prints ESCAPED if it succeeds. None may, as any user."""

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nanochat import execution
from nanochat.errors import UserError
from nanochat.execution import ExecutionResult, execute_code
from nanochat.sandbox import kernel, landlock, policy, seccomp
from nanochat.sandbox.fork_server import NUM_WAITING
from nanochat.sandbox.pool import Pool

pytestmark = pytest.mark.skipif(
    len(policy.available_layers()) < 2, reason="needs seccomp and Landlock or bubblewrap"
)
IS_X86 = platform.machine() == "x86_64"
LONG_SECONDS, ENDLESS_SECONDS = 60.0, 0.6  # time limits
ENDLESS = {
    "a loop", "a loop in C", "a loop that ignores signals", "sleep", "loops in threads",
    "recursion in C", "a closed channel", "an endless report", "memory of threads",
}  # fmt: skip
UNPRIVILEGED = policy.UNPRIVILEGED

PRELUDE = """
import ctypes, fcntl, mmap, os, resource, signal, socket, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
secret, folder, tcp, udp, path, abstract, host = {values}
def call(function, *arguments):
    result = function(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "failed")
    return result
"""

# Harmless outside of a sandbox, where all of them succeed (checked below).
ATTACKS = {
    # files and links
    "read a file": "assert open(secret).read()",
    "read passwd": "assert open('/etc/passwd').read()",
    "read through a file descriptor": "fd = os.open(folder, os.O_PATH)\n"
    "assert os.read(os.open('secret', 0, dir_fd=fd), 9)",
    "read through the parent folder": "fd = os.open(os.path.dirname(os.__file__), os.O_RDONLY)\n"
    "assert os.read(os.open('../' * 20 + 'etc/passwd', 0, dir_fd=fd), 9)",
    "read through /proc/self/root": "assert open('/proc/self/root' + secret).read()",
    "read through a symbolic link": "os.symlink(secret, 'link')\nassert open('link').read()",
    "read through a hard link": "os.link(secret, 'hard')\nassert open('hard').read()",
    "read through a copy": "import shutil; shutil.copy(secret, 'copy'); open('copy').read()",
    "list a folder": "assert os.listdir(folder)",
    "list the root": "assert os.listdir('/')",
    "list other programs' folders": "assert os.listdir('..')",
    "write a file": "open(folder + '/new', 'w').write('x')",
    "write to /dev/shm": "open('/dev/shm/nanochat-attack', 'w').close()\n"
    "os.unlink('/dev/shm/nanochat-attack')",
    "append to a file": "open(secret, 'a').close()",
    "truncate a file": "os.truncate(secret, os.path.getsize(secret))",
    "delete a file": "open(folder + '/extra', 'a').close()\nos.unlink(folder + '/extra')",
    "rename a file": "open('moved', 'a').close()\nos.rename('moved', folder + '/moved')\n"
    "os.unlink(folder + '/moved')",
    "make a folder": "os.mkdir('folder')\nos.rmdir('folder')",
    "make a named pipe": "os.mkfifo('pipe')\nos.unlink('pipe')",
    "change a mode": "os.chmod(secret, 0o644)",
    "change times": "os.utime(secret)",
    "change the folder": "os.chdir('/')",
    # what the host has
    "read the environment of the host": "assert open(f'/proc/{host}/environ', 'rb').read()",
    "read the environment": "assert os.environ",
    "read the own environment file": "assert open('/proc/self/environ').read()",
    "read the command line of the host": "assert open(f'/proc/{host}/cmdline').read()",
    "list processes": "assert [name for name in os.listdir('/proc') if name.isdigit()]",
    # network
    "connect by TCP": "socket.create_connection(('127.0.0.1', tcp))",
    "send by UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
    ".sendto(b'x', ('127.0.0.1', udp))",
    "listen": "socket.create_server(('127.0.0.1', 0))",
    "connect to a socket file": "socket.socket(socket.AF_UNIX).connect(path)",
    "connect to an abstract socket": "socket.socket(socket.AF_UNIX).connect(abstract)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "datagrams from a socket pair": "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    "a.sendto(b'x', path + '.dgram')",
    # processes
    "fork": "if os.fork() == 0: os._exit(0)",
    "subprocess": "subprocess.run([sys.executable, '-c', ''], check=True)",
    "shell": "assert os.system('true') == 0",
    "spawn": "os.posix_spawn(sys.executable, [sys.executable, '-c', ''], {{}})",
    "execute": "os.execv('/bin/echo', ['echo', 'ESCAPED'])",
    "multiprocessing": "import multiprocessing\n"
    "p = multiprocessing.get_context('fork').Process(target=int)\n"
    "p.start(); p.join(); assert p.exitcode == 0",
    "daemon": "if os.fork() == 0:\n  os.setsid()\n  os._exit(0 if os.fork() else 0)",
    # signals to others
    "probe the host": "os.kill(host, 0)",
    "probe every process": "os.kill(-1, 0)",
    "a descriptor of the host": "os.pidfd_open(host)",
    "signals by a descriptor's owner": "a, b = socket.socketpair()\n"
    "fcntl.fcntl(a, fcntl.F_SETOWN, host)",
    "limits of the host": "resource.prlimit(host, resource.RLIMIT_CORE)",
    "a timer": "call(libc.timer_create, 0, None, ctypes.create_string_buffer(8))",
    # shared memory and descriptors that outlive the process
    "memory file": "os.memfd_create('x')",
    "System V shared memory": "i = call(libc.shmget, 0, 4096, 0o1600)\n"
    "call(libc.shmctl, i, 0, None)",
    "message queue": "i = call(libc.msgget, 0, 0o1600)\ncall(libc.msgctl, i, 0, None)",
    "semaphores": "i = call(libc.semget, 0, 1, 0o1600)\ncall(libc.semctl, i, 0, 0)",
    "copy between descriptors": "r, w = os.pipe()\nos.write(w, b'x')\n"
    "a, b = os.pipe()\nos.splice(r, b, 1)",
    "watch files": "call(libc.inotify_init)",
    "name a thread": "call(libc.prctl, 15, b'x', 0, 0, 0)",
    "change the priority": "os.nice(1)",
}  # fmt: skip

# Not to be tried outside.
DANGEROUS = {
    "lower limits": "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "a child that shares memory": "call(libc.vfork) or os._exit(0)",
    "kill the host": "os.kill(host, 9)",
    "kill the fork server": "os.kill(os.getppid(), 9)",
    "kill everything": "os.kill(-1, 9)",
    "kill the group": "os.killpg(0, 9)",
    "kill through a thread": "call(libc.tgkill, host, host, 9)",
    "queue a signal": "call(libc.sigqueue, host, 9, 0)",
    "survive the fork server": "call(libc.prctl, 1, 0, 0, 0, 0)",
    "become dumpable": "call(libc.prctl, 4, 1, 0, 0, 0)",
    "trace the host": "call(libc.ptrace, 16, host, 0, 0)",
    "read memory of the host": "class V(ctypes.Structure):\n"
    "  _fields_ = [('a', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
    "b = ctypes.create_string_buffer(8)\n"
    "call(libc.process_vm_readv, host, ctypes.byref(V(ctypes.addressof(b), 8)), 1,"
    " ctypes.byref(V(ctypes.addressof(b), 8)), 1, 0)",
    "memory file of the host": "open(f'/proc/{host}/mem', 'rb').close()",
    "own memory file": "open('/proc/self/mem', 'rb').close()",
    "raise limits": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "raise the memory limit": "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "a higher priority": "os.setpriority(os.PRIO_PROCESS, 0, -20)",
    "become root": "os.setuid(0); open(secret).read()",
    "become another user": "os.setresuid(1, 1, 1)",
    "change the root": "os.chroot('/')",
    "mount": "call(libc.mount, b'none', b'/tmp', b'tmpfs', 0, None)",
    "unmount": "call(libc.umount2, b'/tmp', 2)",
    "namespaces": "call(libc.unshare, 0x10000000)",
    "enter namespaces": "call(libc.setns, 0, 0)",
    "a thread in a network namespace": "call(libc.syscall, {clone}, 0x40010f00, 0, 0, 0, 0)",
    "a process by clone": "call(libc.syscall, {clone}, 17, 0, 0, 0, 0) or os._exit(0)",
    "a process by clone3": "call(libc.syscall, 435, struct.pack('11Q', *[0] * 4, 17, *[0] * 6), 88)"
    " or os._exit(0)",
    "a device": "os.mknod('device', 0o020666, os.makedev(1, 1)); open('device', 'rb').read(1)",
    "input to the terminal": "fcntl.ioctl(0, 0x5412, b'x')",
    "open the terminal": "os.open('/dev/tty', os.O_RDWR)",
    "empty a file that may be read": "os.close(os.open(os.__file__, os.O_RDONLY | os.O_TRUNC))",
    "change the standard library": "open(os.__file__, 'a').close()",
    "core pattern": "open('/proc/sys/kernel/core_pattern', 'w').write('|/bin/true')",
    "profile": "open('/sys/kernel/debug/x', 'w')",
    "inherited descriptors": "for fd in range(4, 1024):\n"
    "  try: os.fstat(fd)\n  except OSError: continue\n  break\nelse: raise SystemExit",
    "the channel leads nowhere": "os.write(3, b'x' * 9)\n"
    "s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, 3)\ns.sendmsg([b'x'])",
    "send a descriptor": "a, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [0])",
    # bombs
    "memory": "x = bytearray(1 << 30)",
    "memory in small parts": "x = [bytearray(1 << 20) for _ in range(1024)]",
    "memory by mmap": "x = mmap.mmap(-1, 1 << 30)",
    "private memory by mmap": "x = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE)",
    "memory of threads": "def f():\n  x = bytearray(64 << 20); time.sleep(9)\n"
    "for _ in range(16): threading.Thread(target=f).start()\nfor t in threading.enumerate()[1:]:\n"
    "  if not t.is_alive(): raise SystemExit\nwhile len(threading.enumerate()) < 17: pass",
    "threads": "for _ in range(2000):\n  threading.Thread(target=time.sleep, args=(9,)).start()",
    "threads with small stacks": "threading.stack_size(32768)\nwhile True:\n"
    "  threading.Thread(target=time.sleep, args=(9,)).start()",
    "fork bomb": "while True: os.fork()",
    "a large file": "f = open('f', 'wb')\nfor _ in range(64): f.write(bytes(1 << 20))\nf.flush()",
    "a sparse file": "os.truncate('f', 1 << 40) or open('f')",
    "a sparse file by seeking": "f = open('f', 'wb'); f.seek(1 << 40); f.write(b'x'); f.flush()",
    "many files": "for i in range(10**6): open(str(i), 'w').close()",
    "much in many files": "while True:\n"
    "  for i in range(10**3): open(str(i), 'wb').write(bytes(4 << 20))",
    "descriptors": "x = [os.dup(0) for _ in range(1000)]",
    "locked memory": "call(libc.mlock, bytes(1 << 20), 1 << 20)",
    "a loop": "while True: pass",
    "a loop in C": "9 ** 9 ** 9",
    "a loop that ignores signals": "for n in range(1, 65):\n"
    "  try: signal.signal(n, signal.SIG_IGN)\n  except (OSError, ValueError): pass\n"
    "while True: pass",
    "sleep": "time.sleep(1000)",
    "loops in threads": "def f():\n  while True: pass\n"
    "for _ in range(8): threading.Thread(target=f).start()\nf()",
    "recursion in C": "sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "a closed channel": "os.close(3)\nwhile True: time.sleep(1)",
    "an endless report": "while True: os.write(3, b'x' * 99999)",
    "output": "while True: print('x' * 10**6)",
    "errors": "while True: sys.stderr.write('x' * 10**6)",
}  # fmt: skip
if IS_X86:
    MACHINE_CODE = (
        "m = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('{code}'))\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "ctypes.CFUNCTYPE(ctypes.c_long)(address)()"
    )
    DANGEROUS |= {
        "32-bit system calls": MACHINE_CODE.replace("{code}", "b814000000cd80c3"),  # getpid
        "x32 system calls": "libc.syscall(0x40000000 | 39)",
        "bpf": "call(libc.syscall, 321, 0, 0, 0)",
        "io_uring": "call(libc.syscall, 425, 8, bytes(120))",
        "userfaultfd": "call(libc.syscall, 323, 1)",
        "keys": "call(libc.syscall, 248, b'user', b'x', b'y', 1, -3)",
        "request a key": "call(libc.syscall, 249, b'user', b'x', b'', -3)",
        "keyctl": "call(libc.syscall, 250, 0, -3, 1)",
        "perf": "call(libc.syscall, 298, bytes(128), 0, -1, -1, 0)",
        "personality": "call(libc.syscall, 135, 0x0040000)",
        "a secret memory file": "call(libc.syscall, 447, 0)",
        "a file handle": "call(libc.syscall, 304, 0, bytes(64), 0)",
        "take a descriptor of the host": "call(libc.syscall, 438, 3, 0, 0)",
        "execute a descriptor": "call(libc.syscall, 322, 0, b'', 0, 0, 0x1000)",
        "another filter": "call(libc.syscall, 317, 1, 0, 0)",
        "legacy open": "call(libc.syscall, 2, b'/etc/passwd', 0, 0)",
    }

# The filter decides by the number: with any arguments, what it does not list is refused.
EVERY_OTHER_CALL = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
# 335 and 336 on x86-64 serve uprobes: the kernel does not filter them, and kills who calls them.
for number in set(range(600)) - {allowed} - {{335, 336}}:
    assert libc.syscall(number, -1, -1, -1, -1, -1, -1) == -1, number
    assert ctypes.get_errno() in (errno.EPERM, errno.ENOSYS), (number, ctypes.get_errno())
"""


# ---- hosts


def as_ordinary_user() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
        os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)


def deny(numbers: dict[str, tuple[int, int]], error: int) -> None:
    """Have these system calls fail in this process and in all that it starts."""
    column, architecture = seccomp.ARCHITECTURES[platform.machine()]
    denied = {of[column - 1] for of in numbers.values()}
    rules: dict[int, list[seccomp.Condition]] = {n: [] for n in range(600) if n not in denied}
    new_namespaces = 0x7E020080  # CLONE_NEW*
    rules[(56, 220)[column - 1]] = [seccomp.Condition(0, new_namespaces, [0])]
    kernel.prctl(policy.PR_SET_NO_NEW_PRIVS, 1, 0)
    seccomp.install(seccomp.assemble(rules, architecture, error))


def without_namespaces() -> None:
    deny({"unshare": (272, 97), "setns": (308, 268)}, 1)
    with pytest.raises(OSError, match="Operation not permitted"):
        kernel.checked(kernel.libc().unshare(0x10000000), "unshare")


def without_landlock() -> None:
    deny({str(n): (n, n) for n in (444, 445, 446)}, 38)


def public_interpreter() -> str:
    """A Python that every user may start."""
    for name in (str(Path(sys.executable).resolve()), "/usr/bin/python3", "/usr/local/bin/python3"):
        if Path(name).exists() and policy.is_public(name):
            version = subprocess.run([name, "-c", "import sys; print(sys.version_info >= (3, 11))"],
                                     capture_output=True, text=True, check=False)  # fmt: skip
            if version.stdout.strip() == "True":
                return name
    pytest.skip("needs an interpreter that other users can reach")


def in_host(prepare: Callable[[], None], work: Callable[[], Any], interpreter: str = "") -> Any:
    """What `work` returns, as JSON, in a fork of this process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            prepare()
            pool = Pool(interpreter)
            execution._pool = lambda _: pool  # type: ignore[assignment]
            with os.fdopen(writing, "w") as file:
                json.dump(work(), file)
                pool.close()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return json.loads(text)


BUBBLEWRAP = policy.bubblewrap


@pytest.fixture(autouse=True)
def without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two layers that are everywhere have to suffice."""
    monkeypatch.setattr(policy, "bubblewrap", tuple)


def with_bubblewrap() -> None:
    policy.bubblewrap = BUBBLEWRAP


HOSTS = {
    "this user": lambda: None,
    "ordinary user": as_ordinary_user,
    "no namespaces": without_namespaces,
    "bubblewrap": with_bubblewrap,
}


class Targets:
    """What attacks aim at."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        folder.chmod(0o777)
        (folder / "secret").write_text("secret")
        (folder / "secret").chmod(0o666)
        self.tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.udp.bind(("127.0.0.1", 0))
        self.path = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.path.bind(str(folder / "socket"))
        self.path.listen()
        self.datagrams = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.datagrams.bind(str(folder / "socket.dgram"))
        for name in ("socket", "socket.dgram"):
            (folder / name).chmod(0o777)
        self.abstract_name = f"\0nanochat-{os.getpid()}"
        self.abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.abstract.bind(self.abstract_name)
        self.abstract.listen()
        self.names = sorted(path.name for path in folder.iterdir())

    def program(self, attack: str) -> str:
        values = (str(self.folder / "secret"), str(self.folder), self.tcp.getsockname()[1],
                  self.udp.getsockname()[1], str(self.folder / "socket"), self.abstract_name,
                  os.getpid())  # fmt: skip
        attack = attack.replace("{clone}", "56" if IS_X86 else "220").replace("{{}}", "{}")
        return f"{PRELUDE.format(values=values)}{attack}\nprint('ESCAPED')"

    def untouched(self) -> bool:
        for one in (self.tcp, self.udp, self.path, self.datagrams, self.abstract):
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.recv(1) if one in (self.udp, self.datagrams) else one.accept()
                return False
        is_secret = (self.folder / "secret").read_text() == "secret"
        names = sorted(path.name for path in self.folder.iterdir())
        return is_secret and names == self.names


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    folder = tmp_path_factory.mktemp("targets")
    for parent in list(folder.parents)[:2]:
        parent.chmod(0o755)
    with ExitStack() as stack:
        yield Targets(folder, stack)


@pytest.mark.parametrize(
    "host",
    [
        "this user",
        "ordinary user",
        *(pytest.param(h, marks=pytest.mark.slow) for h in [*HOSTS][2:]),
    ],
)
def test_no_attack_succeeds(host: str, targets: Targets) -> None:
    attacks = ATTACKS | DANGEROUS
    if host == "bubblewrap" and not BUBBLEWRAP():
        pytest.skip("needs bubblewrap, and the right to create namespaces")

    def work() -> dict[str, dict[str, Any]]:
        def one(name: str) -> tuple[str, dict[str, Any]]:
            seconds = ENDLESS_SECONDS if name in ENDLESS else LONG_SECONDS
            return name, asdict(execute_code(targets.program(attacks[name]), seconds))

        with ThreadPoolExecutor(4) as threads:
            return dict(threads.map(one, attacks))

    interpreter = public_interpreter() if host == "ordinary user" else ""
    found = in_host(HOSTS[host], work, interpreter)
    results = {name: ExecutionResult(**result) for name, result in found.items()}
    assert len(results) == len(attacks) >= 100
    assert [name for name, result in results.items() if "ESCAPED" in result.stdout] == []
    # Each has failed for its own reason, not because the sandbox does not work.
    assert [name for name, r in results.items() if r.error is None] == []
    assert [name for name, r in results.items() if "sandbox" in (r.error or "")] == []
    reasons = (
        "PermissionError",
        "FileNotFoundError",
        "ConnectionRefusedError",
        "OSError",
        "AssertionError",
        "RuntimeError",
    )
    errors = {name: results[name].error or "" for name in ATTACKS}
    assert {name: e for name, e in errors.items() if not e.startswith(reasons)} == {}
    for name in ("memory", "memory in small parts"):
        assert results[name].memory_exceeded
    for name in ("a loop", "a loop in C", "sleep", "an endless report"):
        assert results[name].timeout
    if IS_X86:
        for name in ("32-bit system calls", "x32 system calls"):
            assert results[name].error == "killed by SIGSYS"
    assert results["threads with small stacks"].error == "it started too many threads"
    assert results["many files"].error == "it wrote too much to its folder"
    assert targets.untouched()


def test_the_harmless_attacks_succeed_outside_of_the_sandbox(
    targets: Targets, tmp_path: Path
) -> None:
    """An attack that could not succeed anywhere would show nothing."""

    def one(name: str) -> str:
        folder = tmp_path / name.replace("/", " ") / "program"
        folder.mkdir(parents=True)
        done = subprocess.run([sys.executable, "-c", targets.program(ATTACKS[name])],
                              cwd=folder, capture_output=True, text=True)  # fmt: skip
        return "" if "ESCAPED" in done.stdout else f"{name}: {done.stderr[-200:]}"

    with ThreadPoolExecutor(4) as threads:
        assert [failed for failed in threads.map(one, ATTACKS) if failed] == []


def test_every_system_call_that_is_not_listed_is_refused() -> None:
    column, _ = seccomp.ARCHITECTURES[platform.machine()]
    entries = seccomp.SYSCALLS.strip().replace("\n", ",").split(",")
    numbers = {int(fields[column]) for entry in entries if (fields := entry.split())[column] != "-"}
    assert 60 < len(numbers) < 100
    result = execute_code(EVERY_OTHER_CALL.format(allowed=numbers), LONG_SECONDS)
    assert result.error is None, result.error


def test_the_tables_agree_with_the_headers_of_the_system() -> None:
    headers = {
        1: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        2: Path("/usr/include/asm-generic/unistd.h"),  # aarch64 uses the generic table
    }
    if not all(header.exists() for header in headers.values()):
        pytest.skip("needs the headers of the kernel")
    for column, header in headers.items():
        named = dict(
            re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", header.read_text(), re.MULTILINE)
        )
        named.setdefault("newfstatat", named.get("fstatat", ""))
        for entry in seccomp.SYSCALLS.strip().replace("\n", ",").split(","):
            fields = entry.split()
            if column == 1 or fields[column] != "-":
                assert named[fields[0]] == fields[column], fields


# ---- missing layers


def test_a_kernel_without_landlock_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    def work() -> list[str]:
        messages = [str(landlock.abi()), execute_code("print(1)", level="limits").stdout]
        for pretend in (False, True):
            if pretend:  # that it had been found, so that the worker is the one to notice
                policy.available_layers = lambda: {"seccomp": "", "landlock": ""}
            try:
                execute_code(f"open({str(tmp_path / 'trace')!r}, 'w')")
            except UserError as error:
                messages.append(str(error))
        return messages

    abi, output, refused, failed = in_host(without_landlock, work)
    assert (abi, output) == ("0", "1\n")
    assert "--sandbox=strict is not available here: Landlock" in refused
    assert "--sandbox=strict is not available here: [Errno 38] system call 446: " in failed
    assert list(tmp_path.iterdir()) == []


# ---- what is left behind


def processes() -> dict[int, list[int]]:
    """Children of each process."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    return children


def is_of(pid: int, name: str) -> bool:
    return name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    until = time.monotonic() + seconds
    while not (result := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    return result


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sandboxes of this test have their folders, and those of no other process."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.mark.parametrize("victim", ["host", "fork server"])
def test_nothing_survives_the_death_of(victim: str, temporary: Path) -> None:
    host = os.fork()
    if host == 0:
        pool = Pool()
        execution._pool = lambda _: pool  # type: ignore[assignment]
        for _ in range(2):
            threading.Thread(target=execute_code, args=("while True: pass", 200)).start()
        time.sleep(200)
        os._exit(0)
    try:
        [server] = wait_for(lambda: processes().get(host))
        # Two that run, and those that wait for a request.
        assert wait_for(lambda: len(processes().get(server, [])) == 2 + NUM_WAITING)
        workers = processes()[server]
        os.kill(host if victim == "host" else server, signal.SIGKILL)
        gone = {server, *workers}
        assert wait_for(lambda: not gone & {pid for pids in processes().values() for pid in pids})
    finally:
        with suppress(ProcessLookupError):
            os.kill(host, signal.SIGKILL)
        os.waitpid(host, 0)
    if victim == "host":
        assert wait_for(lambda: not [*temporary.iterdir()])


def test_many_runs_leave_no_process_descriptor_or_folder(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool()
    monkeypatch.setattr(execution, "_pool", lambda _: pool)
    execute_code("1")
    descriptors = Path("/proc/self/fd")
    before = len([*descriptors.iterdir()])
    for code in ("print(1)", "1/0", "import os; os._exit(1)", "open('a', 'w')", "while True: pass"):
        for _ in range(8):
            execute_code(code, 0.02)
    assert len([*descriptors.iterdir()]) == before
    [folder] = temporary.iterdir()
    # What remains are the workers that wait for a request, with empty folders.
    assert wait_for(lambda: len([*folder.iterdir()]) == NUM_WAITING)
    [server] = [pid for pid in processes()[os.getpid()] if is_of(pid, folder.name)]
    assert wait_for(lambda: len(processes()[server]) == NUM_WAITING)
    assert [*folder.glob("*/*")] == []
    pool.close()
    assert not [*temporary.iterdir()] and server not in processes().get(os.getpid(), [])
