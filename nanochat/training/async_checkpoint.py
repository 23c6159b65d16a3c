"""A run's checkpoints, written in a thread while the run goes on.

The loop waits only until what is to be saved is copied. Each rank writes its own files and leaves a
note on the store; the main rank's thread completes the checkpoint when all notes are there.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import Meta, Share
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.runtime import Runtime, on_main_first
from nanochat.training.trainer import State

logger = logging.getLogger(__name__)

NOTE_SECONDS = 600.0  # that the slowest rank's disk may take longer than the main one's
NOTE_SECONDS_WHEN_LEAVING = 5.0  # others may be gone
POLL_SECONDS = 0.01


class Saver:
    """Writes checkpoints of one run and knows the last one that is whole."""

    def __init__(
        self,
        directory: Path,
        model: GPT,
        optimizers: Sequence[Any],
        runtime: Runtime,
        *,
        keep: int,
        minutes: float,
    ) -> None:
        """minutes: between checkpoints, at most; 0 means that only steps count."""
        self.directory, self.model, self.optimizers = directory, model, optimizers
        self.runtime, self.keep, self.minutes = runtime, keep, minutes
        self.facts: Meta = {}
        self.step = self.last_step = -1
        self.number = 0
        self.failure = ""
        self.thread: threading.Thread | None = None
        self.is_leaving = threading.Event()
        self.began_at = time.monotonic()

    @property
    def last(self) -> str:
        """The last checkpoint that is whole, in words."""
        return f"step {self.last_step} in {self.directory}" if self.last_step >= 0 else "none"

    def start_from(self, step: int, facts: Meta) -> None:
        """A checkpoint of this step is there (-1: none); `facts` go into each meta from now on."""
        self.step = self.last_step = step
        self.facts = facts

    def is_due(self) -> bool:
        """True when the last checkpoint was begun too many minutes ago, by this rank's clock."""
        seconds = time.monotonic() - self.began_at
        return self.minutes > 0 and seconds > self.minutes * 60

    def begin(self, state: State) -> dict[str, float]:
        """Begin to save the state, unless that was done; returns what the loop waited for it.

        Every rank calls it. A checkpoint that cannot be written is an error in the log, and the
        run goes on.
        """
        if state.step == self.step:
            return {}
        began = time.perf_counter()
        if self.thread is not None:
            self.thread.join()
        self.step, self.failure, self.began_at = state.step, "", time.monotonic()
        self.number += 1
        content, failure = dict[str, Any](), ""
        try:
            content = checkpoint_manager.snapshot(
                self.model if self.runtime.is_main else None, self.optimizers
            )
        except RuntimeError as error:
            failure = f"no memory for the copy: {error}"
        meta = {
            **self.facts,
            "finished": False,
            "progress": state.progress,
            "loss": state.loss if math.isfinite(state.loss) else None,
            "train_seconds": state.seconds,
            "tokens": state.tokens,
            "loader": state.resume,
        }
        self.thread = threading.Thread(
            target=self._write,
            args=(state.step, content, meta, failure),
            daemon=True,
            name="checkpoint",
        )
        self.thread.start()
        return {"save_wait_seconds": time.perf_counter() - began}

    def _write(self, step: int, content: dict[str, Any], meta: Meta, failure: str) -> None:
        try:
            checkpoint_manager.save(
                self.directory, step, content, meta,
                rank=self.runtime.rank, keep=self.keep, gather=self._gather, failure=failure,
            )  # fmt: skip
            self.last_step = step
        except Exception as error:  # whatever it is, the run is worth more
            self.failure = str(error) if isinstance(error, UserError) else repr(error)
            logger.error("%s; the run goes on, the last good one: %s", self.failure, self.last)

    def _gather(self, share: Share) -> list[Share]:
        """All ranks' shares on the main rank, [] on the others, which leave theirs as a note."""
        store, number = self.runtime.store, self.number
        if not self.runtime.is_main:
            store.set(f"save {number} rank {self.runtime.rank}", json.dumps(share))
            return []
        return [share, *(self._note(number, rank) for rank in range(1, self.runtime.world_size))]

    def _note(self, number: int, rank: int) -> Share:
        began = time.monotonic()
        while (note := self.runtime.store.pop(f"save {number} rank {rank}")) is None:
            seconds = NOTE_SECONDS_WHEN_LEAVING if self.is_leaving.is_set() else NOTE_SECONDS
            if time.monotonic() - began > seconds:
                raise UserError(f"rank {rank} has not written its share within {seconds:.0f} s")
            time.sleep(POLL_SECONDS)
        share: Share = json.loads(note)
        return share

    def complete(self, state: State) -> str:
        """Save the state and wait for it; why that failed, or "". Every rank calls it."""
        self.begin(state)
        return self.wait()

    def wait(self) -> str:
        """Wait for a save that is under way; why it failed, or "". Every rank calls it."""
        if self.thread is not None:
            self.thread.join()
        failure, self.last_step = on_main_first(lambda: (self.failure, self.last_step))
        return str(failure)

    def close(self) -> None:
        """End a save that is under way without the help of ranks that may be gone."""
        self.is_leaving.set()
        if self.thread is not None:
            self.thread.join()
