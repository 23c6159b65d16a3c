"""Signals that stop a run: recorded while there is something to save, else carried out at once."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StopRequests:
    """The signal that has requested a stop, if any.

    The exit code is 128 + the number of the signal, as shells and schedulers expect.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.is_deferred = False

    def handle(self, number: int, _frame: object) -> None:
        """The signal handler: exits, or records the signal while that is deferred."""
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait for a save
        self.name = self.name or signal.Signals(number).name
        self._exit_if_requested()

    @contextmanager
    def deferred(self, is_deferred: bool = True) -> Iterator[None]:
        """Inside, a signal is only recorded: there is something to save before the exit."""
        before, self.is_deferred = self.is_deferred, is_deferred
        try:
            self._exit_if_requested()
            yield
        finally:
            self.is_deferred = before
        self._exit_if_requested()

    def immediate(self) -> AbstractContextManager[None]:
        """Within `deferred`, a part in which nothing would be lost by an exit."""
        return self.deferred(False)

    def _exit_if_requested(self) -> None:
        if self.name is not None and not self.is_deferred:
            raise SystemExit(128 + signal.Signals[self.name].value)


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Handle STOP_SIGNALS as `StopRequests` says, inside; SIGHUP unless `nohup` has ignored it."""
    requests = StopRequests()
    survives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [n for n in STOP_SIGNALS if not (n == signal.SIGHUP and survives)]
    before = {number: signal.signal(number, requests.handle) for number in numbers}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
