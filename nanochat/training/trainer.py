"""The loop of every stage: each minimises sum(weights * nll) / norm, only the batches differ.

A stage hands in an iterator of `Batch`, a schedule and a list of `Every(n, call)`. What is called
gets a frozen `State` and has no way back into the loop, so the gradient is the same for any
device_batch_size and any number of ranks.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nanochat.data.batch import Batch
from nanochat.errors import UserError
from nanochat.metrics import ProgressLine, RunLog
from nanochat.runtime import (
    STOP_SIGNALS,
    Runtime,
    StopRequests,
    all_reduce_sum,
    undisturbed,
    world_size,
)
from nanochat.training import rank_watchdog
from nanochat.training.schedule import Schedule

WIDTH_STEP = 8  # hardware likes it, and padding stays small
QUEUE_SECONDS = 0.2  # how soon the maker of batches sees that nobody wants more


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
    """Call something after each `steps` steps, never when 0, and not after the last one."""

    steps: int
    call: Callable[[State], dict[str, float] | None]
    can_be_left: bool = False
    """The step is saved, so a signal meanwhile ends the process at once."""

    def is_due(self, state: State) -> bool:
        """True when the call is to be made after this step."""
        return self.steps > 0 and not state.is_last and state.step % self.steps == 0


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


class Saver(Protocol):
    """What the loop asks of whoever writes checkpoints; every rank asks alike."""

    @property
    def last(self) -> str:
        """The last one that is whole, in words."""
        ...

    def is_due(self) -> bool:
        """True when too much time has gone by since the last one, by this rank's clock."""
        ...

    def begin(self, state: State) -> object:
        """Begin to save, unless the step is being saved already."""
        ...

    def wait(self) -> str:
        """Wait until what was begun is done; why it failed, or ""."""
        ...


class NotFinite(UserError):
    """The loss or a gradient of a step is no number or infinite; no weight has moved."""

    def __init__(self, step: int, what: str, last_saved: str) -> None:
        super().__init__(
            f"the {what} of step {step} is not finite: stopped before the update; last good"
            f" checkpoint: {last_saved}; lower the learning rates or look at the data, or let"
            " --on_nonfinite=skip leave such steps out, then run the command again"
        )
        self.step = step


def train(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    batches: Iterator[Batch],
    schedule: Schedule,
    start: State,
    *,
    device_batch_size: int,
    every: list[Every],
    saver: Saver,
    runtime: Runtime,
    stop: StopRequests,
    log: RunLog,
    speed: Speed,
    label: str,
    prefetch: bool = True,
    jump: Collection[int] = (),
    observed: Callable[[State], dict[str, float]] = lambda _: {},
) -> State:
    """Run the steps start.step ... schedule.num_steps; returns the last state.

    `every` is called in its order; what is `observed` is logged with each step. On SIGTERM, SIGINT
    or SIGUSR1 the state is saved and the loop returns. The steps of `jump` take their batch and
    leave the weights alone. Raises NotFinite before the update when a loss or a gradient is not
    finite.
    """
    state, last_step = start, schedule.num_steps
    model.zero_grad(set_to_none=True)  # an earlier call may have stopped with some
    if runtime.device.type == "cuda":
        batches = map(_pinned, batches)
    line = ProgressLine(last_step, label, runtime.is_main)
    with (
        line,
        undisturbed(runtime.device),
        _watched(runtime, stop),
        _one_ahead(batches) if prefetch else nullcontext(batches) as ahead,
    ):
        while state.step < last_step:
            began = time.perf_counter()
            batch = next(ahead)
            loss, is_jumped = torch.tensor(math.nan), state.step + 1 in jump
            if not is_jumped:
                loss = accumulate_gradients(model, batch, device_batch_size, runtime.device)
            own = _Own.of(loss, model, batch)
            facts = _agree(own, stop.name, saver.is_due())
            if not is_jumped:
                _refuse_not_finite(facts, state.step + 1, saver)
                update(optimizers, schedule, state.step)
            model.zero_grad(set_to_none=True)
            # A GPU may still be moving weights: it is next waited for where a loss is read.
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
            numbers = _numbers(state, rate, schedule, speed, runtime.world_size) | observed(state)
            numbers |= {"gradient_norm": facts.gradient_norm, "parameter_norm": own.parameter_norm}
            log.log(state.step, **numbers)  # before the save: what is saved is not run again
            line.update(state.step, **_shown(state, rate, numbers))
            if facts.is_save_due:
                saver.begin(state)
            for hook in every:
                if hook.is_due(state):
                    with stop.at_once() if hook.can_be_left else nullcontext():
                        more = hook.call(state)
                    if more:
                        log.log(state.step, **more)
            if facts.signal:
                stop.name = facts.signal  # which another rank may have got
                saver.begin(state)
                break
    return state


def _refuse_not_finite(facts: "_StepFacts", step: int, saver: Saver) -> None:
    if facts.not_finite:
        saver.wait()  # so that it is known which checkpoint is the last
        raise NotFinite(step, facts.not_finite, saver.last)


def _watched(runtime: Runtime, stop: StopRequests) -> AbstractContextManager[None]:
    return rank_watchdog.watched(
        runtime.store, runtime.rank, runtime.world_size, is_leaving=lambda: stop.name is not None
    )


def accumulate_gradients(
    model: nn.Module, batch: Batch, device_batch_size: int, device: torch.device
) -> Tensor:
    """This rank's sum(weights * nll) / norm; its gradient is added to the parameters' `.grad`."""
    total = torch.zeros((), device=device, dtype=torch.float32)
    num_rows = batch.inputs.size(0)
    for first in range(0, num_rows, device_batch_size):
        rows = slice(first, first + device_batch_size)
        cut = rows, slice(width_in_use(batch.targets[rows]))
        inputs, targets = batch.inputs[cut], batch.targets[cut]
        if batch.weights is None:
            weights = torch.ones(targets.shape, device=device)
        else:
            weights = _on(device, batch.weights[cut])
        loss = model(_on(device, inputs), _on(device, targets), weights=weights / batch.norm)
        loss.backward()
        total += loss.detach()
    return total


def width_in_use(targets: Tensor) -> int:
    """Columns up to the last target of any row, in whole steps: what is behind has no effect."""
    last = int((targets >= 0).any(dim=0).nonzero().max()) + 1 if (targets >= 0).any() else 1
    return min(-(-last // WIDTH_STEP) * WIDTH_STEP, targets.size(1))


def tokens_in_use(targets: Tensor) -> int:
    """Tokens up to the last target of each row: padding is no work done."""
    columns = torch.arange(1, targets.size(1) + 1)
    return int(((targets >= 0) * columns).amax(dim=1).sum())


def _pinned(batch: Batch) -> Batch:
    """The same in memory that a GPU reads by itself."""
    weights = None if batch.weights is None else batch.weights.pin_memory()
    return replace(
        batch,
        inputs=batch.inputs.pin_memory(),
        targets=batch.targets.pin_memory(),
        weights=weights,
    )


def _on(device: torch.device, tensor: Tensor) -> Tensor:
    """The tensor there; a GPU fetches what is pinned while the program goes on."""
    return tensor.to(device, non_blocking=device.type == "cuda")


@dataclass(frozen=True)
class _Own:
    """What this rank knows of a step once the device has done it."""

    loss: float
    gradient_norm: float
    parameter_norm: float
    """Before the step."""
    tokens: int

    @classmethod
    def of(cls, loss: Tensor, model: nn.Module, batch: Batch) -> "_Own":
        """The one place in a step where the device is waited for."""
        parameters = [parameter.detach() for parameter in model.parameters()]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms = [nn.utils.get_total_norm(tensors) for tensors in (gradients, parameters)]
        numbers = [tensor.to(norms[1]) for tensor in (loss, *norms)]
        loss_value, gradient_norm, parameter_norm = torch.stack(numbers).tolist()
        return cls(loss_value, gradient_norm, parameter_norm, tokens_in_use(batch.targets))


@dataclass(frozen=True)
class _StepFacts:
    loss: float
    tokens: int
    gradient_norm: float
    """Root mean square of the ranks', before they are averaged."""
    not_finite: str
    """"loss", "gradient" or ""."""
    signal: str | None
    is_save_due: bool


def _agree(own: _Own, signal: str | None, is_save_due: bool) -> _StepFacts:
    """What all ranks know of a step: the mean loss, the sum of tokens, what is to be done."""
    names = [number.name for number in STOP_SIGNALS]
    mine = [own.loss, own.tokens, own.gradient_norm**2, is_save_due]
    mine += [signal == name for name in names]
    total, tokens, square, due, *asked = all_reduce_sum([float(one) for one in mine])
    told = [name for name, count in zip(names, asked, strict=True) if count]
    is_bad = not math.isfinite(square)
    return _StepFacts(
        loss=total / world_size(),
        tokens=int(tokens),
        gradient_norm=math.sqrt(square / world_size()) if not is_bad else square,
        not_finite="loss" if not math.isfinite(total) else "gradient" if is_bad else "",
        signal=told[0] if told else None,
        is_save_due=due > 0,
    )


def update(optimizers: Sequence[Optimizer], schedule: Schedule, step: int) -> None:
    """Set every group's rates for this step and move."""
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


def _numbers(
    state: State, rate: float, schedule: Schedule, speed: Speed, num_devices: int
) -> dict[str, float]:
    numbers = {
        "loss": state.loss,
        "lr_multiplier": schedule.learning_rate(state.step - 1),
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


@contextmanager
def _one_ahead(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """The same batches, the next one made in a thread while this one is trained on.

    Behind it no thread reads what the batches are made of.
    """
    ready: queue.Queue[Batch | Exception | None] = queue.Queue(maxsize=1)
    is_over = threading.Event()

    def hand_over(item: Batch | Exception | None) -> None:
        while not is_over.is_set():
            try:
                return ready.put(item, timeout=QUEUE_SECONDS)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for batch in batches:
                hand_over(batch)
                if is_over.is_set():
                    return
            hand_over(None)
        except Exception as error:  # handed over to the loop, which raises it
            hand_over(error)

    def taken() -> Iterator[Batch]:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    thread = threading.Thread(target=make, daemon=True, name="next-batch")
    thread.start()
    try:
        yield taken()
    finally:
        is_over.set()
        thread.join()
