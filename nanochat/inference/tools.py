"""Tools that a model may call: inline, or in a thread while the sequence is suspended."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from nanochat.errors import error_location

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 4096  # of an output; a sequence takes 64 tokens of it, but encoding costs by size
MAX_THREADS = 64  # per tool: calls that hang are bounded, too

ToolFunction = Callable[[str], str | None]  # expression -> output; None: no output


class Tool(Protocol):
    """What the engine calls at <|python_end|>."""

    def submit(self, expression: str) -> Future[str | None]:
        """The output, as soon as it is available, or None. The future never raises."""


@dataclass(frozen=True)
class InlineTool:
    """A tool that takes microseconds and runs in the calling thread."""

    function: ToolFunction

    def submit(self, expression: str) -> Future[str | None]:
        future: Future[str | None] = Future()
        future.set_result(_run(self.function, expression))
        return future


class ThreadedTool:
    """A slow tool, one thread per call.

    A call that takes more than `timeout_seconds`, the wait for a thread included, has no output.
    `function` must end by itself: Python cannot kill a thread.
    """

    def __init__(self, function: ToolFunction, timeout_seconds: float) -> None:
        self.function, self.timeout_seconds = function, timeout_seconds
        self._free_threads = threading.Semaphore(MAX_THREADS)

    def submit(self, expression: str) -> Future[str | None]:
        """The output, later; a call that is canceled before it starts never starts."""
        future: Future[str | None] = Future()
        timeout = threading.Timer(self.timeout_seconds, _set_result, (future, None))
        future.add_done_callback(lambda _: timeout.cancel())
        call = threading.Thread(target=self._call, args=(expression, future), name="tool")
        for thread in (timeout, call):
            thread.daemon = True  # a hanging tool must not keep the process from exiting
            thread.start()
        return future

    def _call(self, expression: str, future: Future[str | None]) -> None:
        if self._free_threads.acquire(timeout=self.timeout_seconds):
            try:
                if not future.done():
                    _set_result(future, _run(self.function, expression))
            finally:
                self._free_threads.release()


def _run(function: ToolFunction, expression: str) -> str | None:
    """The output, or None if the tool fails: the sequence continues without one."""
    try:
        output = function(expression)
        return None if output is None else output[:MAX_CHARACTERS]
    except Exception as error:
        logger.error("a tool failed: %s", error_location(error))
        return None


def _set_result(future: Future[str | None], output: str | None) -> None:
    # The first result wins: a timeout or a cancellation may have come before this one.
    with suppress(InvalidStateError):
        future.set_result(output)
