"""Progress of downloads in bytes, with the time left."""

import sys
import threading
import time
from types import TracebackType

PLAIN_LINE_SECONDS = 10.0  # between lines in a log
LIVE_LINE_SECONDS = 0.5  # between updates of the line on a terminal
GIGABYTE = 1e9


class Transfers:
    """The transfers of some files, in several threads: their progress, and whether they must stop.

    Prints to stderr from the first interval on, so that short downloads print nothing.
    """

    def __init__(self, num_files: int) -> None:
        self.num_files = num_files
        self.canceled = threading.Event()
        self._lock = threading.Lock()
        self._files: dict[str, tuple[int, int]] = {}  # bytes here and in all, of files under way
        self._start_bytes = 0  # that earlier processes had received
        self._started = self._printed = time.monotonic()
        self._is_live = sys.stderr.isatty()
        self._interval = LIVE_LINE_SECONDS if self._is_live else PLAIN_LINE_SECONDS
        self._has_printed = False

    def __enter__(self) -> "Transfers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if self._has_printed:
            self._print(time.monotonic())
            if self._is_live:
                sys.stderr.write("\n")

    def update(self, name: str, num_bytes: int, size: int) -> None:
        """So many of a file's bytes are here now."""
        now = time.monotonic()
        with self._lock:
            if name not in self._files:
                self._start_bytes += num_bytes
            self._files[name] = num_bytes, size
            if now - self._printed >= self._interval:
                self._print(now)

    def _print(self, now: float) -> None:
        self._printed, self._has_printed = now, True
        text = self.line(now - self._started)
        sys.stderr.write(f"\r{text:<78}" if self._is_live else f"{text}\n")
        sys.stderr.flush()

    def line(self, seconds: float) -> str:
        """After so many seconds: `3.2 of 24.0 GB, 85.0 MB/s, 4 min 5 s left`."""
        done = sum(here for here, _ in self._files.values())
        known = sum(size for _, size in self._files.values())
        # Files that have not begun are taken to be as large as the others on average.
        total = known * max(self.num_files, len(self._files)) / max(1, len(self._files))
        rate = (done - self._start_bytes) / max(seconds, 1e-9)
        parts = [f"{done / GIGABYTE:.2f} of {total / GIGABYTE:.2f} GB, {rate / 1e6:.1f} MB/s"]
        if rate > 0 and done < total:
            minutes, rest = divmod(round((total - done) / rate), 60)
            parts.append(f"{minutes} min {rest} s left" if minutes else f"{rest} s left")
        return ", ".join(parts)
