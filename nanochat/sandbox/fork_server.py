"""The process that workers are forked from: small, isolated, with common modules imported.

A request is one byte and descriptors over the socket at descriptor 0: a socket on which this server
tells how the worker ended, the worker's channel to the host, and by the byte

    o    pipes for stdout and stderr
    l    a link to another worker
    -    nothing else

Some workers are forked ahead and wait for a request. A worker is killed when the host closes the
first socket or its writing side, and all of them when the host ends. Single-threaded, so a worker
has no lock that another thread held.
"""

import fcntl
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanochat.sandbox import messages, policy, worker
from nanochat.sandbox.policy import Limits

PRELOADED = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "itertools", "json", "math", "operator", "random", "re",
    "statistics", "string", "textwrap", "threading", "typing",
)  # fmt: skip
POLL_MS = 20  # between looks at the folders and the threads of workers
IDLE_POLL_MS = 1000  # between looks at the host
NUM_WAITING = 2  # workers forked ahead: a program and its grader
CHANNEL, LINK, RULES, REQUEST = 3, 4, 5, 6  # descriptors of a worker
ASIDE = 16  # descriptors are moved above it, out of the way of the final ones


@dataclass
class Worker:
    """A worker, as the server sees it."""

    folder: Path
    # While it waits, where its request is sent; then where its end is reported.
    control: socket.socket
    killed_for: str = ""


def main() -> None:
    """Serve until the host ends."""
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    os.environ.clear()  # Python adds LC_CTYPE, bubblewrap PWD
    policy.prepare_fork_server()
    for name in PRELOADED:
        importlib.import_module(name)
    root = Path(sys.argv[1])
    root.mkdir(exist_ok=True)  # bubblewrap has a /tmp of its own
    root.chmod(0o711)  # the folders in it belong to the workers' user
    try:
        ForkServer(control, root).serve()
    finally:
        shutil.rmtree(root, ignore_errors=True)


class ForkServer:
    def __init__(self, control: socket.socket, root: Path) -> None:
        self.control, self.root = control, root
        self.running: dict[int, Worker] = {}  # by process id
        self.waiting: dict[int, Worker] = {}
        self.num_started = 0
        self.next_look = 0.0  # time.monotonic()
        self.host = os.getppid()
        self.readable = policy.readable_paths()
        self.user = policy.user_of_workers(self.readable)
        self.wakeup, self.wakeup_end = socket.socketpair()
        self.wakeup.setblocking(False)
        self.wakeup_end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakeup_end.fileno(), warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()  # collections in workers would copy shared pages

    def serve(self) -> None:
        while os.getppid() == self.host:
            poller = select.poll()
            for source in (
                self.control,
                self.wakeup,
                *(one.control for one in self.running.values()),
            ):
                poller.register(source, select.POLLIN)
            is_short = len(self.waiting) < NUM_WAITING
            ready = {fd for fd, _ in poller.poll(
                0 if is_short else POLL_MS if self.running else IDLE_POLL_MS
            )}  # fmt: skip
            now = time.monotonic()
            is_due = now >= self.next_look
            self.next_look = now + POLL_MS / 1000 if is_due else self.next_look
            for pid, one in self.running.items():
                if is_due:
                    one.killed_for = one.killed_for or _excess(pid, one.folder)
                if one.control.fileno() in ready or one.killed_for:
                    _kill(pid)
            if self.wakeup.fileno() in ready:
                self.wakeup.recv(4096)
            self._reap()
            if self.control.fileno() in ready and not self._accept():
                break
            if is_short and not ready:
                self._fork()
        for pid in (*self.running, *self.waiting):
            _kill(pid)
        self._reap(block=True)

    def _accept(self) -> bool:
        """Give one request to a worker; False at the end of requests."""
        kind, descriptors, _, _ = socket.recv_fds(self.control, 1, 4)
        if not kind:
            return False
        control, *descriptors = descriptors
        if not self.waiting:
            self._fork()
        pid, worker = self.waiting.popitem()
        with suppress(OSError):  # it has been killed, which will be reported
            socket.send_fds(worker.control, [kind], descriptors)
        worker.control.close()
        worker.control = socket.socket(fileno=control)
        self.running[pid] = worker
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def _fork(self) -> None:
        """Fork a worker that waits for a request."""
        self.num_started += 1
        folder = self.root / str(self.num_started)
        folder.mkdir(0o700)
        with suppress(OSError):  # a container may map one user only
            os.chown(folder, self.user, -1)
        # Made here, where memory is not shared: a worker copies each page that it touches.
        rules = policy.rules_for(str(folder), self.readable)
        requests, worker_end = socket.socketpair()
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                if _take_request(worker_end.fileno(), rules):
                    _work(folder, self.user, server)
            finally:
                os._exit(1)
        worker_end.close()
        if rules >= 0:
            os.close(rules)
        self.waiting[pid] = Worker(folder, requests)

    def _reap(self, block: bool = False) -> None:
        """Report workers that have ended, and remove what they left."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, 0 if block else os.WNOHANG)
                if pid == 0:
                    return
                _kill(pid, only_group=True)  # where it could fork
                one = self.waiting.pop(pid, None) or self.running.pop(pid)
                shutil.rmtree(one.folder, ignore_errors=True)
                code = os.waitstatus_to_exitcode(status)
                with suppress(OSError):
                    one.control.send(json.dumps([code, one.killed_for]).encode())
                one.control.close()


def _kill(pid: int, only_group: bool = False) -> None:
    # The group exists from its setsid on.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if not only_group:
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the id is still its own


def _excess(pid: int, folder: Path) -> str:
    """Which limit a worker exceeds, of those that the kernel does not enforce; empty for none."""
    num_bytes = num_files = num_threads = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            num_files += 1
            num_bytes += entry.stat(follow_symlinks=False).st_size
            if num_files > policy.MAX_FOLDER_FILES or num_bytes > policy.MAX_FOLDER_BYTES:
                return "it wrote too much to its folder"
    with suppress(OSError, ValueError, IndexError):  # Linux
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        num_threads = int(status.rpartition(")")[2].split()[17])
    return "it started too many threads" if num_threads > policy.MAX_THREADS else ""


def _take_request(source: int, rules: int) -> bool:
    """In the worker: wait for a request, and have its descriptors and no others; False if none."""
    moved = [fcntl.fcntl(fd if fd >= 0 else 0, fcntl.F_DUPFD, ASIDE) for fd in (rules, source)]
    for target in (1, 2, CHANNEL, LINK):
        os.dup2(0, target)  # /dev/null
    for descriptor, target in zip(moved, (RULES, REQUEST), strict=True):
        os.dup2(descriptor, target)
    os.closerange(REQUEST + 1, 1024)  # RLIMIT_NOFILE of the server
    with socket.socket(fileno=REQUEST) as requests:
        kind, descriptors, _, _ = socket.recv_fds(requests, 1, 3)
    if not kind:
        return False
    targets = {b"o": (CHANNEL, 1, 2), b"l": (CHANNEL, LINK), b"-": (CHANNEL,)}[kind]
    for descriptor, target in zip(descriptors, targets, strict=True):
        os.dup2(descriptor, target, inheritable=False)
    if kind != b"l":
        os.close(LINK)
    os.closerange(REQUEST, 1024)
    return True


def _work(folder: Path, user: int, server: int) -> None:
    """In the worker: read the job, confine this process, say so, do it; does not return."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    channel = socket.socket(fileno=CHANNEL)
    job = messages.receive(channel)
    link = socket.socket(fileno=LINK) if job["kind"] != "run" else None
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    try:
        policy.confine(job["layers"], Limits(**job["limits"]), RULES, user, server)
        os.close(RULES)
    except OSError as error:
        messages.send(channel, {"refused": str(error)})
        os._exit(1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # when killed, too
    messages.send(channel, {"refused": None})
    worker.execute(job, channel, link)
