"""THE loop: every stage minimises sum(weights * nll) / norm; only the batches differ.

A stage hands in an iterator of `Batch`, a schedule and a list of `Every(n, call)`. What is called
gets a frozen `State` and has no way back into the loop, so the gradient is the same for any
device_batch_size and any number of ranks.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nanochat import runtime
from nanochat.batch import Batch
from nanochat.errors import UserError
from nanochat.metrics import ProgressLine, RunLog
from nanochat.runtime import Runtime
from nanochat.schedule import Schedule

WIDTH_STEP = 8  # hardware likes it, and padding stays small


class Optimizer(Protocol):
    """What the loop asks of an optimizer; reducing gradients over ranks is its own affair."""

    param_groups: list[dict[str, Any]]

    def step(self) -> None: ...


@dataclass(frozen=True)
class State:
    """Where a run is after a step."""

    step: int
    """Optimizer steps done."""
    progress: float
    loss: float
    """Of the last step, over all ranks."""
    seconds: float
    """Spent in training steps since the first one, restarts included."""
    tokens: int
    """Tokens trained on since the first step, restarts included."""
    resume: dict[str, Any]
    """The loader's state on this rank."""
    is_last: bool


@dataclass(frozen=True)
class Every:
    """Call something after each `steps` steps (never when 0), and after the last one."""

    steps: int
    call: Callable[[State], dict[str, float] | None]
    at_end: bool = True

    def is_due(self, state: State) -> bool:
        """True when the call is to be made after this step."""
        if state.is_last:
            return self.at_end
        return self.steps > 0 and state.step % self.steps == 0


@dataclass(frozen=True)
class Speed:
    """What tokens/s are compared with."""

    flops_per_token: float
    peak_flops: float | None
    """Of one device, FLOP/s; None when it is not known."""

    def share_of_peak(self, tokens_per_second: float, num_devices: int) -> float | None:
        """Model FLOP utilisation from 0 to 1, or None."""
        if self.peak_flops is None:
            return None
        return tokens_per_second * self.flops_per_token / (self.peak_flops * num_devices)


@dataclass(frozen=True)
class Stopped:
    """Why the loop came back before its last step."""

    signal: str


def train(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    batches: Iterator[Batch],
    schedule: Schedule,
    start: State,
    *,
    device_batch_size: int,
    every: list[Every],
    save: Callable[[State], object],
    place: Runtime,
    log: RunLog,
    speed: Speed,
    label: str,
    prefetch: bool = True,
    last_saved: Callable[[], str] = lambda: "none",
) -> tuple[State, Stopped | None]:
    """Run the steps start.step ... schedule.num_steps; returns the last state and why it ended.

    `every` is called in its order. On SIGTERM or Ctrl-C `save` is called and the loop returns.
    Raises UserError before the update when the loss is not finite, naming step and `last_saved()`.
    """
    state, last_step = start, schedule.num_steps
    if prefetch:
        batches = _one_ahead(batches)
    line = ProgressLine(last_step, label, place.is_main)
    with line, runtime.stop_requests() as stop_requested:
        while state.step < last_step:
            began = time.perf_counter()
            batch = next(batches)
            loss = accumulate_gradients(model, batch, device_batch_size, place.device)
            facts = _agree(loss, tokens_in_use(batch.targets), stop_requested())
            if not math.isfinite(facts.loss):
                raise UserError(
                    f"the loss of step {state.step + 1} is {facts.loss}: stopped before the update;"
                    f" last good checkpoint: {last_saved()}; lower the learning rates or look at"
                    " the data, then run the command again"
                )
            multiplier = update(optimizers, schedule, state.step)
            model.zero_grad(set_to_none=True)
            place.synchronize()
            seconds = time.perf_counter() - began
            state = State(
                step=state.step + 1,
                progress=batch.progress,
                loss=facts.loss,
                seconds=state.seconds + seconds,
                tokens=state.tokens + facts.tokens,
                resume=batch.resume,
                is_last=state.step + 1 == last_step,
            )
            rate = facts.tokens / seconds
            numbers = _numbers(state, rate, multiplier, speed, place.world_size)
            for hook in every:
                if hook.is_due(state):
                    numbers.update(hook.call(state) or {})
            log.log(state.step, **numbers)
            line.update(state.step, **_shown(state, rate, numbers))
            if facts.signal and not state.is_last:
                save(state)
                return state, Stopped(facts.signal)
    return state, None


def accumulate_gradients(
    model: nn.Module, batch: Batch, device_batch_size: int, device: torch.device
) -> float:
    """This rank's sum(weights * nll) / norm; its gradient is added to the parameters' `.grad`."""
    total = torch.zeros((), device=device, dtype=torch.float32)
    num_rows = batch.inputs.size(0)
    for first in range(0, num_rows, device_batch_size):
        rows = slice(first, first + device_batch_size)
        cut = rows, slice(width_in_use(batch.targets[rows]))
        nll = model(_on(device, batch.inputs[cut]), _on(device, batch.targets[cut]))
        if batch.weights is not None:
            nll = nll * _on(device, batch.weights[cut])
        loss = nll.sum() / batch.norm
        loss.backward()
        total += loss.detach()
    return float(total)


def width_in_use(targets: Tensor) -> int:
    """Columns up to the last target of any row, in whole steps: what is behind has no effect."""
    last = int((targets >= 0).any(dim=0).nonzero().max()) + 1 if (targets >= 0).any() else 1
    return min(-(-last // WIDTH_STEP) * WIDTH_STEP, targets.size(1))


def tokens_in_use(targets: Tensor) -> int:
    """Tokens up to the last target of each row: padding is no work done."""
    columns = torch.arange(1, targets.size(1) + 1)
    return int(((targets >= 0) * columns).amax(dim=1).sum())


def _on(device: torch.device, tensor: Tensor) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class _StepFacts:
    loss: float
    tokens: int
    signal: str | None


def _agree(loss: float, tokens: int, signal: str | None) -> _StepFacts:
    """What all ranks know of a step: mean loss, sum of tokens, whether any was told to stop."""
    signals = ("", "SIGINT", "SIGTERM")
    asked = [float(signal == name) for name in signals[1:]]
    mean, total, *asked = runtime.all_reduce_sum([loss, float(tokens), *asked])
    told = [name for name, count in zip(signals[1:], asked, strict=True) if count]
    return _StepFacts(
        loss=mean / runtime.world_size(), tokens=int(total), signal=told[0] if told else None
    )


def update(optimizers: Sequence[Optimizer], schedule: Schedule, step: int) -> float:
    """Set every group's rates for this step and move; returns the learning rate's multiplier."""
    multiplier = schedule.learning_rate(step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
            if "momentum" in group:
                group["momentum"] = schedule.momentum(step)
            if "initial_weight_decay" in group:
                decay = schedule.weight_decay(step)
                group["weight_decay"] = group["initial_weight_decay"] * decay
        optimizer.step()
    return multiplier


def _numbers(
    state: State, rate: float, multiplier: float, speed: Speed, num_devices: int
) -> dict[str, float]:
    numbers = {
        "loss": state.loss,
        "lr_multiplier": multiplier,
        "tokens": state.tokens,
        "tokens_per_second": rate,
        "train_seconds": state.seconds,
        "progress": state.progress,
    }
    share = speed.share_of_peak(rate, num_devices)
    if share is not None:
        numbers["mfu"] = share
    return numbers


def _shown(state: State, rate: float, numbers: dict[str, float]) -> dict[str, str]:
    shown = {"loss": f"{state.loss:.4f}", "tok/s": f"{rate:,.0f}"}
    shown["peak"] = f"{numbers['mfu']:.0%}" if "mfu" in numbers else "n/a"
    return shown


def _one_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the next one made in a thread while this one is trained on."""
    ready: queue.Queue[Batch | Exception | None] = queue.Queue(maxsize=1)

    def make() -> None:
        try:
            for batch in batches:
                ready.put(batch)
            ready.put(None)
        except Exception as error:  # handed over to the loop, which raises it
            ready.put(error)

    threading.Thread(target=make, daemon=True, name="next-batch").start()
    while (item := ready.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield item
