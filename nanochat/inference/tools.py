"""Tools that a model may ask while it answers: at once, or in a thread while its row waits."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from nanochat.errors import where_it_failed

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 4096  # of an output, far more than the tokens of it that an answer gets
MAX_THREADS = 64  # of a tool: calls that never end are bounded, too

Answer = Callable[[str], str | None]
"""What comes out of an expression; None: it is refused."""


class Tool(Protocol):
    """What is asked when a call of a model has ended."""

    def ask(self, expression: str) -> Future[str | None]:
        """The output, as soon as it is there; None where there is none to be had. Never fails."""


@dataclass(frozen=True)
class Immediate:
    """A tool that answers in microseconds, in the thread that asks."""

    answer: Answer

    def ask(self, expression: str) -> Future[str | None]:
        """The output, which is there."""
        call: Future[str | None] = Future()
        call.set_result(_output(self.answer, expression))
        return call


class Slow:
    """A tool that takes its time, each call in a thread of its own.

    A call that has not ended in `timeout_seconds`, with the wait for a thread, has no output. What
    `answer` does needs an end of its own: a thread cannot be ended.
    """

    def __init__(self, answer: Answer, timeout_seconds: float) -> None:
        self.answer, self.timeout_seconds = answer, timeout_seconds
        self._free = threading.Semaphore(MAX_THREADS)

    def ask(self, expression: str) -> Future[str | None]:
        """The output, when it is there; what is cancelled before it has begun never begins."""
        call: Future[str | None] = Future()
        late = threading.Timer(self.timeout_seconds, _settle, (call, None))
        call.add_done_callback(lambda _: late.cancel())
        work = threading.Thread(target=self._work, args=(expression, call), name="tool")
        for thread in (late, work):
            thread.daemon = True  # a program that ends waits for no tool
            thread.start()
        return call

    def _work(self, expression: str, call: Future[str | None]) -> None:
        if self._free.acquire(timeout=self.timeout_seconds):
            try:
                if not call.done():
                    _settle(call, _output(self.answer, expression))
            finally:
                self._free.release()


def _output(answer: Answer, expression: str) -> str | None:
    """None, too, when the tool fails: the answer has to go on."""
    try:
        output = answer(expression)
        return None if output is None else output[:MAX_CHARACTERS]
    except Exception as error:
        logger.error("a tool failed: %s", where_it_failed(error))
        return None


def _settle(call: Future[str | None], output: str | None) -> None:
    """The first word counts; what comes after it, or after a cancelling, is dropped."""
    with suppress(InvalidStateError):
        call.set_result(output)
