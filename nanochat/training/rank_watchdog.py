"""What ranks tell one another beside the collectives: notes on a store, and that they are alive."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from nanochat.runtime import RankStore

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
SILENT_SECONDS = 40.0  # then a rank is lost: stopped, or cut off
SILENT_SECONDS_WHEN_LEAVING = 4.0  # a launcher that ends the job has often lost a rank just before
LONGEST_BEAT_SECONDS = 10.0  # counted at most, so that a job suspended as a whole goes on
LOST_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: run it again
LOST = "lost"
LEFT = "left"  # in the place of the last beat


class Watch:
    """One rank's eye on the next one: whether its beats go on."""

    def __init__(self, store: RankStore, rank: int, world_size: int) -> None:
        self.store, self.rank = store, rank
        self.neighbour = (rank + 1) % world_size
        self.beats, self.silent_seconds = 0, 0.0
        self.last_heard: str | None = None

    def beat(self, seconds: float, limit: float) -> str:
        """Say that this rank lives and listen to the next one; why to leave, or "".

        seconds: since the beat before.  limit: seconds of silence.
        """
        self.beats += 1
        heard, lost = self.last_heard, None
        with suppress(RuntimeError):  # a store that is out of reach is silent
            self.store.set(f"alive/{self.rank}", str(self.beats))
            heard = self.store.get(f"alive/{self.neighbour}")
            lost = self.store.get(LOST)
        is_silent = heard not in (None, LEFT) and heard == self.last_heard  # None: not begun yet
        self.last_heard = heard
        silence = self.silent_seconds + min(seconds, LONGEST_BEAT_SECONDS)
        self.silent_seconds = silence if is_silent else 0.0
        if lost is None and self.silent_seconds >= limit:
            lost = f"rank {self.neighbour} has not been heard of for {self.silent_seconds:.0f} s"
            with suppress(RuntimeError):
                self.store.set(LOST, lost)
        return lost or ""


@contextmanager
def watched(
    store: RankStore, rank: int, world_size: int, is_leaving: Callable[[], bool]
) -> Iterator[None]:
    """Within it, a rank that is lost ends the others too, so that the job can be started again.

    Collectives would wait for it for minutes.
    """
    over = threading.Event()

    def look() -> None:
        watch, before = Watch(store, rank, world_size), time.monotonic()
        while not over.is_set():
            seconds, before = time.monotonic() - before, time.monotonic()
            limit = SILENT_SECONDS_WHEN_LEAVING if is_leaving() else SILENT_SECONDS
            why = watch.beat(seconds, limit)
            if why and not over.is_set():
                logger.error("%s: leaving, the last checkpoint stays; start the job again", why)
                logging.shutdown()
                os._exit(LOST_EXIT_CODE)
            over.wait(BEAT_SECONDS)
        with suppress(RuntimeError):
            store.set(f"alive/{rank}", LEFT)

    if world_size > 1:
        threading.Thread(target=look, daemon=True, name="peers").start()
    try:
        yield
    finally:
        over.set()
