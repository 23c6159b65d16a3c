"""What ranks tell one another beside the collectives: notes on a board, and that they are alive."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
SILENT_SECONDS = 40.0  # then a rank is lost: stopped, or cut off
SILENT_SECONDS_WHEN_LEAVING = 4.0  # a launcher that ends the job has often lost a rank just before
LONGEST_BEAT_SECONDS = 10.0  # counted at most, so that a job suspended as a whole goes on
LOST_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: run it again
LOST = "lost"
LEFT = "left"  # in the place of the last beat


class Store(Protocol):
    """What is asked of a key-value store that all ranks reach; any call may raise RuntimeError."""

    def set(self, key: str, value: str, /) -> None: ...

    def get(self, key: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool: ...

    def delete_key(self, key: str, /) -> bool: ...


class Board:
    """Short notes by key that every rank can leave and read, from any thread."""

    def __init__(self, store: Store | None = None) -> None:
        """Without a store for a single rank, which reads its own notes."""
        self.store, self.own = store, dict[str, str]()

    def put(self, key: str, note: str) -> None:
        """Leave a note in the place of an earlier one."""
        if self.store is None:
            self.own[key] = note
        else:
            self.store.set(key, note)

    def get(self, key: str) -> str | None:
        """The note, or None when there is none yet."""
        if self.store is None:
            return self.own.get(key)
        return self.store.get(key).decode() if self.store.check([key]) else None

    def take(self, key: str) -> str | None:
        """The note, which is then gone."""
        note = self.get(key)
        if note is not None and self.store is not None:
            self.store.delete_key(key)
        self.own.pop(key, None)
        return note


class Watch:
    """One rank's eye on the next one: whether its beats go on."""

    def __init__(self, board: Board, rank: int, world_size: int) -> None:
        self.board, self.rank = board, rank
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
            self.board.put(f"alive/{self.rank}", str(self.beats))
            heard = self.board.get(f"alive/{self.neighbour}")
            lost = self.board.get(LOST)
        is_silent = heard not in (None, LEFT) and heard == self.last_heard  # None: not begun yet
        self.last_heard = heard
        silence = self.silent_seconds + min(seconds, LONGEST_BEAT_SECONDS)
        self.silent_seconds = silence if is_silent else 0.0
        if lost is None and self.silent_seconds >= limit:
            lost = f"rank {self.neighbour} has not been heard of for {self.silent_seconds:.0f} s"
            with suppress(RuntimeError):
                self.board.put(LOST, lost)
        return lost or ""


@contextmanager
def watched(
    board: Board, rank: int, world_size: int, is_leaving: Callable[[], bool]
) -> Iterator[None]:
    """Within it, a rank that is lost ends the others too, so that the job can be started again.

    Collectives would wait for it for minutes.
    """
    over = threading.Event()

    def look() -> None:
        watch, before = Watch(board, rank, world_size), time.monotonic()
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
            board.put(f"alive/{rank}", LEFT)

    if world_size > 1:
        threading.Thread(target=look, daemon=True, name="peers").start()
    try:
        yield
    finally:
        over.set()
