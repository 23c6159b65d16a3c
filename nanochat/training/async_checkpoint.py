"""Checkpoints written by a thread while training continues.

The loop waits only for the copy of the tensors. Each rank writes its own files and reports them
through the store; the main rank's thread completes the checkpoint when all ranks have reported.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import Meta, Share
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.runtime import Runtime, on_main_first

logger = logging.getLogger(__name__)

SHARE_TIMEOUT_SECONDS = (
    600.0  # how much longer the slowest rank's disk may take than the main rank's
)
SHARE_TIMEOUT_LEAVING_SECONDS = 5.0  # other ranks may be gone
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class TrainState:
    """The state of a run after a step, beside weights and moments; by default that of the start."""

    step: int = 0  # optimizer steps done
    progress: float = 0.0  # share of the stage that is done, from 0 to 1
    loss: float = math.nan  # of the last step, over all ranks
    train_seconds: float = 0.0  # in training steps since the first one, restarts included
    tokens: int = 0  # trained on since the first step, restarts included
    loader: dict[str, Any] = field(default_factory=dict)  # `Batch.resume`, equal on all ranks
    loss_scale: float = 65536.0  # of gradients in float16: 2^16, as everywhere in use
    scale_since: int = 0  # the step of its last change

    @classmethod
    def from_meta(cls, meta: Meta) -> "TrainState":
        """The state that a checkpoint records. Raises UserError when it is incomplete."""
        added = ("loss_scale", "scale_since")  # runs from before have none, and need none
        meta = {name: cls.__dataclass_fields__[name].default for name in added} | meta
        missing = cls.__dataclass_fields__.keys() - meta.keys()
        if missing or meta["loader"].get("step", meta["step"]) != meta["step"]:
            raise UserError(f"its meta file has no {', '.join(missing) or 'loader of its step'}")
        values = {name: meta[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "loss": math.nan if meta["loss"] is None else meta["loss"]})

    def to_meta(self) -> Meta:
        """What a checkpoint records of the state; JSON has no NaN."""
        return {**vars(self), "loss": self.loss if math.isfinite(self.loss) else None}


class CheckpointSaver:
    """Writes the checkpoints of one run and knows the last complete one."""

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
        """minutes: at most so many between checkpoints; 0: no limit."""
        self.directory, self.model, self.optimizers = directory, model, optimizers
        self.runtime, self.keep, self.minutes = runtime, keep, minutes
        self.run_meta: Meta = {}
        self.step = self.last_step = -1  # last started; last completed
        self.num_saves = 0  # a retried step must not read the shares of its first attempt
        self.failure = ""  # of the last save
        self.thread: threading.Thread | None = None
        self.is_leaving = threading.Event()
        self.began_at = time.monotonic()

    @property
    def last(self) -> str:
        """The last complete checkpoint, for messages."""
        return f"step {self.last_step} in {self.directory}" if self.last_step >= 0 else "none"

    def start_from(self, step: int, run_meta: Meta) -> None:
        """Resume after the checkpoint of `step` (-1: none); `run_meta` goes into each meta file."""
        self.step = self.last_step = step
        self.run_meta = run_meta

    def is_due(self) -> bool:
        """True if the last save began more than `minutes` ago, by this rank's clock."""
        seconds = time.monotonic() - self.began_at
        return self.minutes > 0 and seconds > self.minutes * 60

    def begin(self, state: TrainState) -> dict[str, float]:
        """Begin to save the state unless that was done; returns the wait. Every rank calls it."""
        if state.step == self.step:
            return {}
        began = time.perf_counter()
        if self.thread is not None:
            self.thread.join()  # one copy in memory at a time
        self.step, self.failure, self.began_at = state.step, "", time.monotonic()
        self.num_saves += 1
        content, failure = dict[str, Any](), ""
        try:
            content = checkpoint_manager.snapshot(
                self.model if self.runtime.is_main else None, self.optimizers
            )
        except RuntimeError as error:  # the other ranks must learn of it through `save`
            failure = f"no memory for the copy: {error}"
        meta = {**self.run_meta, "finished": False, **state.to_meta()}
        arguments = (state.step, content, meta, failure)
        self.thread = threading.Thread(
            target=self._write, args=arguments, daemon=True, name="checkpoint"
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
        except Exception as error:  # of any type: a failed save must not end the run
            self.failure = str(error) if isinstance(error, UserError) else repr(error)
            logger.error("%s; training continues, last checkpoint: %s", self.failure, self.last)

    def _gather(self, share: Share) -> list[Share]:
        """The shares of all ranks on the main rank; the others put theirs into the store."""
        if not self.runtime.is_main:
            self.runtime.store.set(self._key(self.runtime.rank), json.dumps(share))
            return []
        return [share, *(self._share(rank) for rank in range(1, self.runtime.world_size))]

    def _key(self, rank: int) -> str:
        return f"save {self.num_saves} rank {rank}"

    def _share(self, rank: int) -> Share:
        # Not a collective: those belong to the training thread, which is in the next step already.
        began = time.monotonic()
        while (text := self.runtime.store.pop(self._key(rank))) is None:
            seconds = (
                SHARE_TIMEOUT_LEAVING_SECONDS if self.is_leaving.is_set() else SHARE_TIMEOUT_SECONDS
            )
            if time.monotonic() - began > seconds:
                raise UserError(f"rank {rank} has not written its share within {seconds:.0f} s")
            time.sleep(POLL_SECONDS)
        share: Share = json.loads(text)
        return share

    def complete(self, state: TrainState) -> str:
        """Save the state and wait for it; returns why that failed, or "". Every rank calls it."""
        self.begin(state)
        return self.wait()

    def wait(self) -> str:
        """Wait for a save in progress; returns why it failed, or "". Every rank calls it."""
        if self.thread is not None:
            self.thread.join()
        # Only the main rank knows whether the checkpoint is complete.
        failure, self.last_step = on_main_first(lambda: (self.failure, self.last_step))
        return str(failure)

    def close(self) -> None:
        """Finish a save in progress without waiting for ranks that may be gone."""
        self.is_leaving.set()
        if self.thread is not None:
            self.thread.join()
