"""Instrumentation of the processes under test: what they are doing and what they train on.

Every function runs in the forked process, before its command.
"""

import functools
import json
import math
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SAVING, EVALUATING, STEP, SAVED = range(4)
FORMAT = "4i"


class Marker:
    """What a process is doing, in shared memory that outlives it: saving, evaluating, steps."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            self.page = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def set(self, field: int, value: int) -> None:
        struct.pack_into("i", self.page, 4 * field, value)

    def get(self, field: int) -> int:
        value: int = struct.unpack_from(FORMAT, self.page)[field]
        return value

    @property
    def phase(self) -> str:
        """save, evaluation or step."""
        if self.get(SAVING):
            return "save"
        return "evaluation" if self.get(EVALUATING) else "step"

    def clear(self) -> None:
        self.page[:16] = bytes(16)


def _during(marker: Marker, field: int, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def marked(*arguments: Any, **more: Any) -> Any:
        marker.set(field, 1)
        try:
            return call(*arguments, **more)
        finally:
            marker.set(field, 0)

    return marked


def observe(folder: Path, poison: tuple[int, str] | None = None) -> None:
    """Mark what the process is doing; append each step's rows and loss to folder/trace-RANK.jsonl.

    poison: (step, "loss" or "gradient"): makes that of the step not finite on the last rank;
    (step, "skip"): the step is skipped from the start.
    """
    from nanochat import checkpoint_manager
    from nanochat.training import stage, trainer

    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    marker = Marker(folder / f"marker-{rank}")
    marker.clear()
    trace = folder / f"trace-{rank}.jsonl"
    if trace.exists() and not trace.read_bytes().endswith(b"\n"):
        trace.write_bytes(trace.read_bytes() + b"\n")  # a kill has truncated the last line
    checkpoint_manager.save = _during(marker, SAVING, checkpoint_manager.save)
    stage.evaluate = _during(marker, EVALUATING, stage.evaluate)
    accumulate = trainer.accumulate_gradients

    def observed(model: Any, batch: Any, *more: Any, **named: Any) -> torch.Tensor:
        loss = accumulate(model, batch, *more, **named)
        step = batch.resume["step"]
        marker.set(STEP, step)
        if poison is not None and poison[0] == step and rank == ranks - 1:
            if poison[1] == "loss":
                return torch.full_like(loss, math.nan)
            next(model.parameters()).grad.view(-1)[-1] = math.inf
        rows = range(rank, len(batch.inputs) * ranks, ranks)  # of the step
        tokens = torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1).tolist()
        line = {"step": step, "rows": dict(zip(rows, tokens, strict=True)), "loss": float(loss)}
        with trace.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return loss

    trainer.accumulate_gradients = observed
    if poison is not None and poison[1] == "skip":
        train = trainer.train
        trainer.train = lambda *a, **more: train(*a, **{**more, "skip_steps": {poison[0]}})


def save_forever(folder: Path) -> None:
    """Save a model whose every value is the step number, again and again."""
    from nanochat import checkpoint_manager
    from nanochat.gpt import GPT, GPTConfig

    marker = Marker(folder / "marker-0")
    marker.clear()
    model = GPT(GPTConfig.from_depth(1, vocab_size=1024, sequence_len=8))
    checkpoints = folder / "checkpoints"
    checkpoint_manager.remove_leftovers(checkpoints)
    found = checkpoint_manager.newest_complete(checkpoints)
    step = found.step if found else 0
    marker.set(SAVED, step)
    while True:
        step += 1
        for parameter in model.parameters():
            parameter.data.fill_(step)
        moments = {"moment": torch.full((200_000,), float(step))}
        content = {**checkpoint_manager.snapshot(model, []), "optim": [moments]}
        meta = {"tokenizer": "t", "settings": {}, "finished": False, "loader": {"step": step}}
        marker.set(SAVING, 1)
        checkpoint_manager.save(checkpoints, step, content, meta, keep=2)
        marker.set(SAVED, step)
        marker.set(SAVING, 0)
