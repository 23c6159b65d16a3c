"""The host's side: starts the fork server, asks it for workers, watches what they do.

A `Pool` may be used from any thread. It belongs to the process that made it: a fork of that process
needs its own.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from nanochat.sandbox import messages, policy
from nanochat.sandbox.messages import MessageError
from nanochat.sandbox.policy import SandboxError

MAX_OUTPUT_BYTES = 1 << 20  # of stdout, and of stderr
MAX_RUNS = 16  # at once; each may take its whole memory limit
START_SECONDS = 30.0  # of a loaded machine
END_SECONDS = 10.0  # from the kill of a worker to the end of it
BOOT = (
    "import sys; sys.path.append({root!r}); from nanochat.sandbox import fork_server;"
    " sys.path.remove({root!r}); fork_server.main()"
)


@dataclass
class Outcome:
    """How a worker ended."""

    report: dict[str, Any] | None = None  # its last message; None if it ended without one
    exit_code: int | None = None  # -N for signal N; None if the fork server has died
    killed_for: str = ""  # a limit that the fork server enforces
    is_timeout: bool = False
    is_output_exceeded: bool = False
    outputs: list[bytearray] = field(default_factory=list)  # stdout and stderr, if asked for

    @property
    def error(self) -> str | None:
        """What kept the program from reaching its end, or None."""
        if self.is_output_exceeded:
            return f"the output reached {MAX_OUTPUT_BYTES} bytes"
        if self.report is not None:
            error = self.report.get("error", "the report is malformed")
            return None if error is None else str(error)
        if self.exit_code is None:
            return "the sandbox was killed"
        if self.exit_code < 0:
            return self.killed_for or f"killed by {signal.Signals(-self.exit_code).name}"
        return f"exited with code {self.exit_code} before the end"


class Worker:
    """A process that does one job. A context manager: on exit it is killed."""

    def __init__(self, control: socket.socket, channel: socket.socket, outputs: list[int]) -> None:
        self.control, self.channel, self.outputs = control, channel, outputs
        self.outcome = Outcome(outputs=[bytearray() for _ in outputs])

    def give(self, job: Mapping[str, Any]) -> None:
        """Send the job. `confirm` says whether it has arrived."""
        self.channel.settimeout(START_SECONDS)
        with suppress(OSError):
            messages.send(self.channel, job)

    def confirm(self) -> None:
        """Raises SandboxError when the worker does not say that it is confined."""
        try:
            refused = messages.receive(self.channel)["refused"]
        except (OSError, MessageError) as error:
            raise SandboxError(f"its process does not start ({error})") from None
        if refused is not None:
            raise SandboxError(refused)

    def kill(self) -> None:
        with suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)

    def stop(self) -> Outcome:
        """End it, unless it has ended by itself."""
        self.kill()
        return self.watch(END_SECONDS)

    def watch(self, seconds: float) -> Outcome:
        """Wait for the end, which comes after `seconds` at the latest."""
        poller = select.poll()
        control, channel = self.control.fileno(), self.channel.fileno()
        for descriptor in (control, channel, *self.outputs):
            poller.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + seconds
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                if self.outcome.is_timeout:
                    return self.outcome  # the fork server does not respond
                self.outcome.is_timeout = True
                self.kill()
                deadline += END_SECONDS
            ready = {fd for fd, _ in poller.poll(max(0, remaining) * 1000)}
            # A report ends the job; without one the exit code tells how the process ended.
            if channel in ready and not self._read_report():
                poller.unregister(channel)
            if control in ready:
                with suppress(OSError, ValueError):
                    code, reason = json.loads(self.control.recv(1024))
                    self.outcome.exit_code, self.outcome.killed_for = code, reason
                self._read_report()
            if self.outcome.report is not None or control in ready:
                for number in range(len(self.outputs)):
                    while self._read_output(number):
                        pass
                return self.outcome
            for number, output in enumerate(self.outputs):
                if output in ready and not self._read_output(number):
                    poller.unregister(output)  # closed or full
            if self.outcome.is_output_exceeded:
                self.kill()

    def _read_report(self) -> bool:
        with suppress(OSError, MessageError):
            self.channel.setblocking(False)  # it is short, so it arrives whole
            report = messages.receive(self.channel)
            self.outcome.report = report if isinstance(report, dict) else {}
            return True
        return False

    def _read_output(self, number: int) -> bool:
        """Read what there is, within the limit; False if there will not be more."""
        taken = self.outcome.outputs[number]
        try:
            chunk = os.read(self.outputs[number], 1 << 16)
        except BlockingIOError:
            return False
        taken += chunk[: MAX_OUTPUT_BYTES - len(taken)]
        self.outcome.is_output_exceeded |= len(taken) == MAX_OUTPUT_BYTES
        return bool(chunk) and not self.outcome.is_output_exceeded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for output in self.outputs:
            os.close(output)
        self.channel.close()
        self.control.close()  # whereupon the fork server kills it


class Pool:
    """Workers of one fork server, which is started when it is needed and when it has died."""

    def __init__(self, interpreter: str = "") -> None:
        # Not the virtual environment's: nothing installed there is for programs.
        self.interpreter = interpreter or str(Path(sys.executable).resolve())
        self.slots = threading.BoundedSemaphore(MAX_RUNS)
        self._lock = threading.Lock()
        self._server: socket.socket | None = None
        self._stop: Callable[[], object] = lambda: None

    def start(self, has_output: bool = False, link: socket.socket | None = None) -> Worker:
        """A new worker, which waits for its job. Raises SandboxError.

        has_output: its stdout and stderr are read.  link: what it has in common with another one.
        """
        control, control_end = socket.socketpair()
        channel, channel_end = socket.socketpair()
        pipes = [os.pipe() for _ in range(2)] if has_output else []
        for reading, _ in pipes:
            os.set_blocking(reading, False)
        worker = Worker(control, channel, [reading for reading, _ in pipes])
        given = [control_end.fileno(), channel_end.fileno(), *(writing for _, writing in pipes)]
        if link is not None:
            given.append(link.fileno())
        kind = b"l" if link else b"o" if pipes else b"-"
        try:
            try:
                socket.send_fds(self._running_server(None), [kind], given)
            except OSError:  # it has died since the last request
                socket.send_fds(self._running_server(self._server), [kind], given)
        except OSError as error:
            worker.__exit__()
            raise SandboxError(f"its process does not start ({error})") from None
        finally:
            control_end.close()
            channel_end.close()
            for _, writing in pipes:
                os.close(writing)
        return worker

    @contextmanager
    def start_linked(self) -> Iterator[tuple[Worker, Worker]]:
        """Two workers with a link between them."""
        first, second = socket.socketpair()
        with ExitStack() as stack:
            with first, second:  # closed here, or neither would notice that the other has ended
                workers = [stack.enter_context(self.start(link=end)) for end in (first, second)]
            yield workers[0], workers[1]

    def _running_server(self, dead: socket.socket | None) -> socket.socket:
        """The socket of the fork server, started if there is none but `dead`."""
        with self._lock:
            if self._server is None or self._server is dead:
                self.close()
                self._server, theirs = socket.socketpair()
                root = str(Path(__file__).parents[2])
                folder = tempfile.mkdtemp(prefix="nanochat-sandbox-")
                boot = BOOT.format(root=root)
                command = [self.interpreter, "-I", "-S", "-X", "utf8", "-c", boot, folder]
                if "bubblewrap" in policy.available_layers():
                    command = [*policy.bubblewrap(), "--ro-bind", root, root, *command]
                with theirs:
                    process = subprocess.Popen(
                        command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env={}, cwd="/",
                        start_new_session=True,
                    )  # fmt: skip
                self._stop = weakref.finalize(self, _stop_server, process, self._server, folder)
            return self._server

    def close(self) -> None:
        """End the fork server and its workers."""
        self._stop()
        self._server, self._stop = None, lambda: None


def _stop_server(process: subprocess.Popen[bytes], server: socket.socket, folder: str) -> None:
    server.close()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)  # if it was killed
