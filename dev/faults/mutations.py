"""Checkpoints that are damaged on purpose, with checksums that match: none may do harm."""

import logging
import math
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from dev.faults import mutators
from dev.faults.mutators import MUTATORS, Rng
from dev.faults.outcome import Group, Outcome, Setting
from nanochat import checkpoint_manager as checkpoints
from nanochat.checkpoint_manager import meta_file
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import init_runtime
from nanochat.training import stage
from nanochat.training.async_checkpoint import TrainState
from nanochat.training.param_groups import build_optimizers
from tests.small_model import small_tokenizer

LIMIT_SECONDS = 60.0  # of one attempt: a second of work, on a machine that may be busy
LIMIT_BYTES = 10**9  # of memory above what was used before
RATES = {"matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 0.004, "weight_decay": 0.0}


def groups(setting: Setting) -> dict[str, Group]:
    """Mutated checkpoints, and weights that are not finite."""
    folder, n, seed = setting.folder, setting.count, setting.seed
    return {
        "mutations": lambda: [mutated_checkpoints(folder / "mutated", n(500, 120), seed)],
        "nan": lambda: [weights_not_finite(folder / "nan", n(100, 10), seed)],
    }


class Run:
    """A small run with two checkpoints, of steps 1 and 2, and what they hold."""

    def __init__(self, folder: Path) -> None:
        self.base = folder
        self.directory = folder / "base_checkpoints" / "d1"
        self.config = GPTConfig.from_depth(
            1, vocab_size=small_tokenizer().get_vocab_size(), sequence_len=16, head_dim=32
        )
        self.model = GPT(self.config)
        self.optimizers = build_optimizers(self.model, **RATES)
        small_tokenizer().save(self.directory)
        self.truth: dict[int, Any] = {}
        for step in (1, 2):
            self.save(step)
            self.truth[step] = self.state(
                TrainState.from_meta(meta_file.read(self.directory, step))
            )

    def save(self, step: int) -> None:
        """Save the checkpoint of a step, with weights and moments of its own."""
        self.model.init_weights(step)
        for optimizer in self.optimizers:
            optimizer.num_steps = step
            for moments in optimizer.moments.values():
                for moment in moments.values():
                    moment.fill_(step)
        loader = {"step": step, "document": 17 * step, "offset": 5, "row": 8 * step}
        meta = {
            "stage": "base", "tokenizer": small_tokenizer().content_hash, "finished": step == 2,
            "settings": {"model_tag": "d1"}, "model": self.config.to_dict(),
            "skipped_steps": [], "micro_batch": ["cpu", 8],
            **TrainState(step, step / 2, 2.5, 3.0, 128 * step, loader).to_meta(),
        }  # fmt: skip
        content = checkpoints.snapshot(self.model, self.optimizers)
        checkpoints.save(self.directory, step, content, meta, keep=2)

    def state(self, start: TrainState) -> Any:
        """Everything that a resumed run starts with, to be compared."""
        moments = [optimizer.state_dict() for optimizer in self.optimizers]
        return start, _bytes_of(self.model.state_dict()), _bytes_of(moments)

    def resume(self) -> Any:
        """What a run resumes from, as the training commands do it."""
        plan: Any = SimpleNamespace(
            directory=self.directory, model=self.model, schedule=SimpleNamespace(num_steps=2)
        )
        return self.state(stage._resume(plan, self.optimizers, init_runtime("cpu"))[0])


def _bytes_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _bytes_of(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_bytes_of(part) for part in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def mutated_checkpoints(folder: Path, count: int, seed: int) -> Outcome:
    """Mutate the newer of two checkpoints; then resume the run and load its model."""
    outcome = Outcome(
        "a mutated checkpoint whose checksums match",
        "a traceback, a hang, 1 GB of memory, other content, or no message of one line",
    )
    rng, used = Rng(seed), {1: 0, 2: 0}
    intact = Run(folder / "intact")
    ways = list(MUTATORS.items())
    for number in range(count):
        name, mutate = ways[number % len(ways)]
        base = folder / f"{number}"
        shutil.copytree(intact.base, base)
        intact.directory = base / "base_checkpoints" / "d1"
        outcome.tried += 1
        changed = mutate(intact.directory, rng)
        with patch.dict(os.environ, {"NANOCHAT_BASE_DIR": str(base)}):
            for what, attempt in (("resume", intact.resume), ("load", _load_model)):
                problem, found, lines = _attempt(attempt, changed)
                outcome.expect(not problem, f"{name} ({changed}), {what}: {problem}")
                step = found[0].step if what == "resume" and found else 0
                if step:
                    used[step] += 1
                    is_true = found == intact.truth[step]
                    outcome.expect(is_true, f"{name} ({changed}): step {step} has other content")
                    outcome.expect(step == 2 or bool(lines), f"{name} ({changed}): no message")
                elif not problem and what == "load":
                    is_true = found in [truth[1] for truth in intact.truth.values()]
                    outcome.expect(is_true, f"{name} ({changed}): other weights are loaded")
        shutil.rmtree(base)
    outcome.facts |= {"passed over": used[1], "harmless": used[2], "kinds": len(ways)}
    return outcome


def _load_model() -> Any:
    """The weights as the chat commands load them; with the facts that other commands read."""
    checkpoints.read_meta("base")
    return _bytes_of(checkpoints.load_model("base", init_runtime("cpu"))[0].state_dict())


def _attempt(call: Callable[[], Any], changed: str) -> tuple[str, Any, list[str]]:
    """What went wrong, or ""; what `call` returned; and what was logged."""
    before, lines = _peak_bytes(), list[str]()
    with _limit(LIMIT_SECONDS), _messages(lines):
        try:
            found = call()
        except Exception as error:  # of any type: that is what is looked for
            return f"{type(error).__name__}: {error}", None, lines
    grown = _peak_bytes() - before
    problem = ""
    if grown > LIMIT_BYTES:
        problem = f"{grown / 1e6:.0f} MB of memory"
    elif not all(line.isprintable() and len(line) < 1000 for line in lines):
        problem = f"a message of several lines: {lines}"
    elif lines and changed and not any(changed in line or "step 2" in line for line in lines):
        problem = f"no message names {changed}: {lines}"
    return problem, found, lines


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside after some seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _messages(lines: list[str]) -> Iterator[None]:
    """Collects what is logged about checkpoints."""
    logger, handler = logging.getLogger("nanochat.checkpoint_manager"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level, propagate, logger.propagate = logger.level, logger.propagate, False
    logger.setLevel(logging.WARNING)  # not the attribute: a logger remembers what it has left out
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


# ---- values that are not finite


def weights_not_finite(folder: Path, count: int, seed: int) -> Outcome:
    """Make one value of the weights or moments infinite or NaN, before saving or in the file."""
    outcome = Outcome("a weight that is NaN or infinite", "it is saved, or loaded")
    rng, run = Rng(seed), Run(folder)
    for number in range(count):
        outcome.tried += 1
        run.save(2)
        tensors = [*run.model.state_dict().values()]
        tensors += [m for o in run.optimizers for each in o.moments.values() for m in each.values()]
        tensor, bad = rng.choice(tensors).view(-1), rng.choice([math.nan, math.inf, -math.inf])
        place = rng.randrange(tensor.numel())
        if number % 2:
            tensor[place] = bad
            try:
                content = checkpoints.snapshot(run.model, run.optimizers)
                meta = {**mutators.read(run.directory), "step": 3}
                checkpoints.save(run.directory, 3, content, meta, keep=3)
                outcome.expect(False, f"{bad} is saved")
            except UserError as error:
                outcome.expect("not finite" in str(error), str(error))
            continue
        kind = "model" if number % 4 else "optim"
        content = mutators.loaded(run.directory, kind)
        state = (
            content if kind == "model" else rng.choice([*rng.choice(content)["tensors"].values()])
        )
        tensor = rng.choice(list(state.values())).view(-1)
        tensor[rng.randrange(tensor.numel())] = bad
        mutators.store(run.directory, kind, mutators.saved(content))
        lines: list[str] = []
        with _messages(lines):
            found = run.resume()
        outcome.expect(found == run.truth[1], f"{bad} is loaded from {kind}")
        outcome.expect(any("not finite" in line for line in lines), f"no message: {lines}")
    return outcome
