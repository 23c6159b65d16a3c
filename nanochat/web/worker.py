"""The seam between a server and an engine: questions go in, events come out.

A worker is a thread that owns an engine; nobody else touches it. What it accepts is bounded, and
every question accepted ends with exactly one `Finished` or `Failed`. Nothing here knows HTTP.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nanochat.engine import Engine, Event, Finished, Sampling
from nanochat.errors import UserError

logger = logging.getLogger(__name__)


class Busy(Exception):
    """No room in the queue."""


@dataclass(frozen=True)
class Question:
    """A prompt and how it is to be answered."""

    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    seed: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """The end of an answer that did not come to its end; `reason` is for the client."""

    reason: str


WorkerEvent = Event | Failed
Deliver = Callable[[WorkerEvent], None]


class Ticket:
    """One question that was accepted."""

    def __init__(self, question: Question, deliver: Deliver) -> None:
        self.question, self.deliver = question, deliver
        self.is_cancelled = False

    def cancel(self) -> None:
        """End the work on it; from any thread, at any time. No event follows the next token."""
        self.is_cancelled = True


class Worker:
    """A thread with an engine and a bounded queue."""

    def __init__(self, engine: Engine, max_waiting: int) -> None:
        self.engine, self.max_waiting = engine, max_waiting
        self.num_running = 0
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End the work after the next token; what still waits or runs fails."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """False before the start, after the stop, and when the thread has died."""
        return self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Questions that have been accepted and not begun."""
        return len(self._waiting)

    def submit(self, questions: list[tuple[Question, Deliver]]) -> list[Ticket]:
        """Accept all of them or none. `deliver` is called in the worker's thread.

        Raises Busy when there is no room for all.
        """
        tickets = [Ticket(*one) for one in questions]
        with self._changed:
            self._drop_cancelled()
            if self._is_stopping or len(self._waiting) + len(tickets) > self.max_waiting:
                raise Busy
            self._waiting += tickets
            self._changed.notify()
        return tickets

    def _drop_cancelled(self) -> None:
        self._waiting = deque(one for one in self._waiting if not one.is_cancelled)

    def _next(self) -> Ticket | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_stopping)
            return None if self._is_stopping else self._waiting.popleft()

    def _work(self) -> None:
        while (ticket := self._next()) is not None:
            self.num_running = 1
            try:
                self._answer(ticket)
            except UserError as error:
                ticket.deliver(Failed(str(error)))
            except Exception:  # one answer fails, the server goes on
                logger.exception("the engine failed")
                ticket.deliver(Failed("the engine failed; the server's log says why"))
            self.num_running = 0
        for ticket in self._waiting:
            ticket.deliver(Failed("the server is shutting down"))

    def _answer(self, ticket: Ticket) -> None:
        asked = ticket.question
        events = self.engine.stream_text(
            asked.prompt, asked.max_tokens, asked.sampling, asked.seed, asked.stop
        )
        for event in events:
            if ticket.is_cancelled:
                events.close()  # type: ignore[attr-defined]
                return
            if self._is_stopping and not isinstance(event, Finished):
                ticket.deliver(Failed("the server is shutting down"))
                return
            ticket.deliver(event)
