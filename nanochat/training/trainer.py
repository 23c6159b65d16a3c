"""The training loop of every stage: minimize sum(weights * nll) / norm; only the batches differ.

A stage supplies an iterator of `Batch`, a schedule, and a list of `Every(n, fn)`. The functions get
a frozen `TrainState` and cannot influence the loop, so the gradient is the same for any
device_batch_size and any number of ranks.
"""

import gc
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.adamw import OverlappedReduction, ShardedOptimizer
from nanochat.data.batch import Batch
from nanochat.errors import UserError
from nanochat.metrics import ProgressLine, RunLog
from nanochat.runtime import Runtime, all_reduce_sum, gc_and_trim_disabled
from nanochat.training import rank_watchdog
from nanochat.training.async_checkpoint import CheckpointSaver, TrainState
from nanochat.training.micro_batch import micro_batches, used_lengths
from nanochat.training.sampled_softmax import SampledSoftmax
from nanochat.training.schedule import Schedule
from nanochat.training.stop_requests import STOP_SIGNALS, StopRequests

logger = logging.getLogger(__name__)

SCALE_STEPS = 2000  # without overflow until the loss scale is doubled, as everywhere in use


@dataclass(frozen=True)
class Every:
    """Call `fn` after each `steps` steps (0: never), except after the last one."""

    steps: int
    fn: Callable[[TrainState], object]  # a dictionary that it returns is logged as metrics


@dataclass(frozen=True)
class RunContext:
    """What a run works with, beside its model and data."""

    runtime: Runtime
    saver: CheckpointSaver
    stop: StopRequests
    log: RunLog
    label: str  # of the progress line
    peak_tokens_per_second: float  # of all devices together, at 100 % MFU


class NonFiniteError(UserError):
    """The loss or a gradient of a step is infinite or NaN; no weight has changed."""

    def __init__(self, step: int, what: str, last_saved: str) -> None:
        super().__init__(
            f"the {what} of step {step} is not finite: stopped before the update; last good"
            f" checkpoint: {last_saved}; lower the learning rates or look at the data, or use"
            " --on_nonfinite=skip to skip such steps, then run the same command again"
        )
        self.step = step


def train(
    model: nn.Module, optimizers: Sequence[ShardedOptimizer], batches: Iterator[Batch],
    schedule: Schedule, start: TrainState, context: RunContext, *,
    device_batch_size: int, every: Sequence[Every] = (), prefetch: bool = True,
    skip_steps: Collection[int] = (), joined_length: int = 0,
    sampled_softmax: SampledSoftmax | None = None,
) -> TrainState:  # fmt: skip
    """Run the steps start.step ... schedule.num_steps; returns the last state.

    The functions of `every` are called in order. STOP_SIGNALS save the state and end the loop.
    `skip_steps`, and batches without a signal, update nothing. Raises NonFiniteError.
    joined_length: see `micro_batches`.
    """
    state, runtime, saver, stop = start, context.runtime, context.saver, context.stop
    model.zero_grad(set_to_none=True)  # an earlier call may have raised before its update
    gradients = _Gradients(model, optimizers, start, context, device_batch_size, joined_length)
    with (
        closing(gradients),
        ProgressLine(schedule.num_steps, context.label, runtime.is_main) as line,
        gc_and_trim_disabled(runtime.device),
        rank_watchdog.watchdog(runtime, is_leaving=lambda: stop.name is not None),
        _prefetched(batches, runtime) if prefetch else nullcontext(batches) as upcoming,
    ):
        while state.step < schedule.num_steps:
            began, began_cpu = time.perf_counter(), time.process_time()
            batch = next(upcoming)
            if state.step + 1 in skip_steps or not batch.has_signal:
                loss = torch.tensor(math.nan if batch.has_signal else 0.0)
                stats = _step_stats(model, batch, loss, [], context)
            else:
                factors = sampled_softmax.factors(state.step + 1) if sampled_softmax else None
                stats = gradients.of(batch, state.step + 1, factors)
                _require_finite(stats, state.step + 1, saver)
                update(optimizers, schedule, state.step, stats.gradient_norm)
            model.zero_grad(set_to_none=True)
            # A GPU may still be updating: the host waits for it where the next loss is read.
            seconds = time.perf_counter() - began
            state = TrainState(
                step=state.step + 1,
                progress=batch.progress,
                loss=stats.loss,
                train_seconds=state.train_seconds + seconds,
                tokens=state.tokens + stats.tokens,
                loader=batch.resume,
                loss_scale=gradients.scale,
                scale_since=gradients.scale_since,
            )
            cpu_seconds = time.process_time() - began_cpu
            _log_step(state, batch, stats, seconds, cpu_seconds, schedule, context, line)
            if stats.is_save_due:
                saver.begin(state)
            for fn in _due(every, state.step, schedule.num_steps):
                if isinstance(metrics := fn(state), dict) and metrics:
                    context.log.log(state.step, **metrics)
            if stats.signal:
                stop.name = stats.signal  # possibly received by another rank
                saver.begin(state)
                break
    return state


def accumulate_gradients(
    model: nn.Module, batch: Batch, device_batch_size: int, device: torch.device,
    *, joined_length: int = 0, scale: float = 1.0, reduction: OverlappedReduction | None = None,
    threads: Executor | None = None, softmax_factors: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """This rank's sum(weights * nll) / norm; adds its gradient, times scale, to `.grad`.

    joined_length: see `micro_batches`. scale: so that small gradients are no zeros in float16.
    reduction: begins to average the gradients during the last backward pass. threads: two, for the
    halves of a batch that is at most two passes. softmax_factors: see `weighted_cross_entropy`.
    """
    if threads is not None and 2 <= batch.inputs.size(0) <= 2 * device_batch_size:
        halves = [batch.rows(slice(first, None, 2)) for first in (0, 1)]  # similar lengths
        half = partial(
            accumulate_gradients, model, device_batch_size=device_batch_size, device=device,
            joined_length=joined_length, scale=scale, softmax_factors=softmax_factors,
        )  # fmt: skip
        # The sum of two gradients is the same in either order, of more it would not be.
        first, second = threads.map(half, halves)
        return first + second
    if softmax_factors is not None:
        softmax_factors = softmax_factors.to(device)
        # Each sample has another size, for which a compiled model would be compiled again.
        model = getattr(model, "_orig_mod", model)
    total = torch.zeros((), device=device, dtype=torch.float32)
    passes = micro_batches(batch, device_batch_size, joined_length, device)
    upcoming = next(passes, None)
    while upcoming is not None:
        (inputs, targets, named), upcoming = upcoming, next(passes, None)
        # The weights are scaled, not the loss, which computes its gradient in the forward pass.
        named["weights"] = named["weights"] / (batch.norm / scale)
        if softmax_factors is not None:
            named["softmax_factors"] = softmax_factors
        if reduction is not None:
            reduction.expect_last(upcoming is None)
        loss = model(inputs, targets, **named)
        loss.backward()
        total += loss.detach()
    if reduction is not None:
        reduction.start_rest()
    return total if scale == 1.0 else total / scale


class _Gradients:
    """Gradients of one step after the other, whatever memory and float16 demand."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[ShardedOptimizer], start: TrainState,
        context: RunContext, rows: int, joined_length: int,
    ) -> None:  # fmt: skip
        self.model, self.optimizers, self.context = model, optimizers, context
        self.rows, self.joined_length = rows, joined_length
        self.is_scaled = context.runtime.compute_dtype == torch.float16
        self.scale = start.loss_scale if self.is_scaled else 1.0
        self.scale_since = start.scale_since  # the step of its last change
        self.reduction: OverlappedReduction | None = None
        if context.runtime.device.type == "cuda" and context.runtime.world_size > 1:
            self.reduction = OverlappedReduction(optimizers, model.parameters())
        self.threads = two_threads(model, context.runtime)

    def close(self) -> None:
        if self.threads is not None:
            self.threads.shutdown()
        if self.reduction is not None:
            self.reduction.close()

    def of(self, batch: Batch, step: int, softmax_factors: Tensor | None) -> "_StepStats":
        """Average this step's gradients for the optimizers; every rank gets the same stats.

        In float16 a gradient that overflows is computed again at half the scale.
        """
        if self.is_scaled and step - self.scale_since > SCALE_STEPS:
            self.scale, self.scale_since = self.scale * 2, step
        while True:
            loss = self._within_memory(batch, softmax_factors)
            scaled = (self.scale,) if self.is_scaled else ()
            squared_norms = [optimizer.reduce_gradients(*scaled) for optimizer in self.optimizers]
            stats = _step_stats(self.model, batch, loss, squared_norms, self.context)
            if not (stats.not_finite and self.is_scaled and self.scale > 1):
                return stats
            self.scale, self.scale_since = self.scale / 2, step
            logger.info("step %d overflows: loss scale %g, computed again", step, self.scale)
            self.model.zero_grad(set_to_none=True)

    def _within_memory(self, batch: Batch, softmax_factors: Tensor | None) -> Tensor:
        """Halves the rows of a pass until the step fits into memory, for all later steps, too."""
        device = self.context.runtime.device
        named: dict[str, Any] = {"joined_length": self.joined_length} if self.joined_length else {}
        if self.is_scaled:
            named["scale"] = self.scale
        if self.reduction is not None:
            named["reduction"] = self.reduction
        if self.threads is not None:
            named["threads"] = self.threads
        if softmax_factors is not None:
            named["softmax_factors"] = softmax_factors
        while True:
            try:
                return accumulate_gradients(self.model, batch, self.rows, device, **named)
            except torch.OutOfMemoryError:
                pass
            # Its frames keep the activations. If they refer to the error, only a collection, which
            # does not happen by itself here, frees them.
            gc.collect()
            rows = min(self.rows, batch.inputs.size(0))
            if rows == 1:
                raise UserError(
                    f"{device} runs out of memory with one row at a time; use"
                    " --activation_checkpointing, a smaller model or a shorter --max_seq_len"
                )
            self.rows = -(-rows // 2)
            logger.warning("out of memory: micro-batches of %d rows from here on", self.rows)
            self.model.zero_grad(set_to_none=True)  # of the passes that did fit
            if device.type == "cuda":
                torch.cuda.empty_cache()


def two_threads(model: nn.Module, runtime: Runtime) -> ThreadPoolExecutor | None:
    """Threads with half of the cores each, where products are too short to be divided well."""
    is_cpu, num_threads = runtime.device.type == "cpu", torch.get_num_threads()
    is_compiled = hasattr(model, "_orig_mod")
    if not is_cpu or runtime.compute_dtype != torch.bfloat16 or num_threads < 2 or is_compiled:
        return None
    both = Barrier(2)

    def start(_: int) -> None:
        torch.set_num_threads(num_threads // 2)
        torch.get_num_threads()  # the first call in a thread takes over the latest number of all
        both.wait()

    pool = ThreadPoolExecutor(2, "half")
    list(pool.map(start, range(2)))
    torch.set_num_threads(num_threads)
    return pool


def tokens_in_use(targets: Tensor) -> int:
    """Tokens up to the last target of each row: padding does not count as throughput."""
    return int(used_lengths(targets).sum())


def _pin(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which a GPU copies while the host goes on."""
    inputs, targets = batch.inputs.pin_memory(), batch.targets.pin_memory()
    weights = None if batch.weights is None else batch.weights.pin_memory()
    return replace(batch, inputs=inputs, targets=targets, weights=weights)


@dataclass(frozen=True)
class _StepStats:
    """What all ranks know of a step before its update."""

    loss: float  # mean over ranks
    tokens: int
    gradient_norm: float  # of the gradient averaged over ranks
    parameter_norm: float  # before the update
    not_finite: str  # "parameter norm", "loss", "gradient" or ""
    signal: str | None  # received by any rank
    is_save_due: bool


def _step_stats(
    model: nn.Module, batch: Batch, loss: Tensor, squared_norms: list[Tensor], context: RunContext
) -> _StepStats:
    """squared_norms: this rank's part of the gradient's squared norm, one per optimizer."""
    norm = nn.utils.get_total_norm([parameter.detach() for parameter in model.parameters()])
    # The only place in a step where the host waits for the device.
    local, parameter_norm, *squares = torch.stack(
        [tensor.to(norm) for tensor in (loss, norm, *squared_norms)]
    ).tolist()
    names = [number.name for number in STOP_SIGNALS]
    sums = [local, tokens_in_use(batch.targets), sum(squares), context.saver.is_due()]
    sums += [parameter_norm, *(context.stop.name == name for name in names)]
    total, tokens, square, due, norms, *signaled = all_reduce_sum([float(value) for value in sums])
    found = {"parameter norm": norms, "loss": total, "gradient": square}
    bad = [name for name, value in found.items() if not math.isfinite(value)]
    return _StepStats(
        loss=total / context.runtime.world_size,
        tokens=int(tokens),
        gradient_norm=math.sqrt(square),
        parameter_norm=parameter_norm,
        not_finite=bad[0] if bad else "",
        signal=next((name for name, count in zip(names, signaled, strict=True) if count), None),
        is_save_due=due > 0,  # the clocks of the ranks differ
    )


def _require_finite(stats: _StepStats, step: int, saver: CheckpointSaver) -> None:
    if stats.not_finite:
        saver.wait()  # the message names the last checkpoint
        raise NonFiniteError(step, stats.not_finite, saver.last)


def update(
    optimizers: Sequence[ShardedOptimizer], schedule: Schedule, step: int, gradient_norm: float
) -> None:
    """Set the scheduled values of every parameter group and update the parameters."""
    multiplier = schedule.learning_rate(step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
            if "momentum" in group:
                group["momentum"] = schedule.momentum(step)
            if "initial_weight_decay" in group:
                decay = schedule.weight_decay(step)
                group["weight_decay"] = group["initial_weight_decay"] * decay
        optimizer.start_step(schedule.gradient_scale(gradient_norm))
    for optimizer in optimizers:  # the gathers of all of them overlap
        optimizer.finish_step()


def _log_step(
    state: TrainState, batch: Batch, stats: _StepStats, seconds: float, cpu_seconds: float,
    schedule: Schedule, context: RunContext, line: ProgressLine,
) -> None:  # fmt: skip
    """Log a step; called before it is saved, because a saved step is not run again."""
    rate = stats.tokens / seconds
    mfu = rate / context.peak_tokens_per_second
    metrics = {
        "loss": state.loss,
        "lr_multiplier": schedule.learning_rate(state.step - 1),
        "tokens": state.tokens,
        "tokens_per_second": rate,
        "mfu": mfu,
        "train_seconds": state.train_seconds,
        "step_cpu_seconds": cpu_seconds,  # of all threads: repeatable on a busy machine
        "progress": state.progress,
        "gradient_norm": stats.gradient_norm,
        "parameter_norm": stats.parameter_norm,
        "memory_bytes": context.runtime.peak_bytes(),
    }
    context.log.log(state.step, **metrics, **batch.metrics)
    line.update(
        state.step, **{"loss": f"{state.loss:.4f}", "tok/s": f"{rate:,.0f}", "MFU": f"{mfu:.0%}"}
    )


def _due(every: Sequence[Every], step: int, num_steps: int) -> list[Callable[..., object]]:
    return [e.fn for e in every if e.steps and step % e.steps == 0 and step < num_steps]


@contextmanager
def _prefetched(batches: Iterator[Batch], runtime: Runtime) -> Iterator[Iterator[Batch]]:
    """The same batches, the next one prepared by a thread while one is trained on.

    The thread has ended when the context is left, so the caller may close what it reads from.
    """
    if runtime.device.type == "cuda":
        batches = map(_pin, batches)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as executor:

        def upcoming() -> Iterator[Batch]:
            pending = executor.submit(next, batches, None)
            while (batch := pending.result()) is not None:  # raises what preparing it raised
                pending = executor.submit(next, batches, None)
                yield batch

        yield upcoming()
