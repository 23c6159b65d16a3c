"""Heartbeats between ranks, so that a lost rank ends the job and does not block its collectives."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from nanochat.runtime import RankStore, Runtime

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
LOST_SECONDS = 40.0  # without a heartbeat; a slow disk or a full store must not look like a loss
LOST_SECONDS_WHEN_LEAVING = 4.0  # a launcher that ends the job has often just lost a rank
MAX_INTERVAL_SECONDS = 10.0  # longer ones count as this: a job suspended as a whole is not lost
LOST_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: run the command again
LOST_KEY = "lost"  # set by the first rank that notices, read by all
LEFT = "left"  # the last heartbeat of a rank that has ended well


class HeartbeatMonitor:
    """Sends the heartbeats of one rank and checks those of the next rank."""

    def __init__(self, store: RankStore, rank: int, world_size: int) -> None:
        self.store, self.rank = store, rank
        self.neighbor = (rank + 1) % world_size  # a ring: each rank is watched by one other
        self.num_sent, self.seconds_without = 0, 0.0
        self.last_received: str | None = None

    def check(self, seconds: float, limit: float) -> str:
        """Send a heartbeat and read the neighbor's; returns why this rank must leave, or "".

        seconds: since the last check.  limit: seconds without a heartbeat that make a lost rank.
        """
        self.num_sent += 1
        received, lost = self.last_received, None
        with suppress(RuntimeError):  # an unreachable store counts as a missing heartbeat
            self.store.set(f"alive/{self.rank}", str(self.num_sent))
            received = self.store.get(f"alive/{self.neighbor}")
            lost = self.store.get(LOST_KEY)
        is_missing = received not in (None, LEFT) and received == self.last_received
        self.last_received = received  # None: the neighbor has not started yet
        elapsed = self.seconds_without + min(seconds, MAX_INTERVAL_SECONDS)
        self.seconds_without = elapsed if is_missing else 0.0
        if lost is None and self.seconds_without >= limit:
            lost = f"no heartbeat of rank {self.neighbor} for {self.seconds_without:.0f} s"
            with suppress(RuntimeError):
                self.store.set(LOST_KEY, lost)
        return lost or ""


@contextmanager
def watchdog(runtime: Runtime, is_leaving: Callable[[], bool]) -> Iterator[None]:
    """Within it, a lost rank ends this process with LOST_EXIT_CODE."""
    is_over = threading.Event()

    def watch() -> None:
        monitor = HeartbeatMonitor(runtime.store, runtime.rank, runtime.world_size)
        before = time.monotonic()
        while not is_over.is_set():
            seconds, before = time.monotonic() - before, time.monotonic()
            reason = monitor.check(
                seconds, LOST_SECONDS_WHEN_LEAVING if is_leaving() else LOST_SECONDS
            )
            if reason and not is_over.is_set():
                logger.error("%s: leaving, the last checkpoint stays; start the job again", reason)
                logging.shutdown()
                os._exit(LOST_EXIT_CODE)  # the main thread may be blocked inside a collective
            is_over.wait(HEARTBEAT_SECONDS)
        with suppress(RuntimeError):
            runtime.store.set(f"alive/{runtime.rank}", LEFT)

    if runtime.world_size > 1:
        threading.Thread(target=watch, daemon=True, name="rank-watchdog").start()
    try:
        yield
    finally:
        is_over.set()
