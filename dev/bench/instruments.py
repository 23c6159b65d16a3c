"""Instruments of the training benchmark: a stopwatch for the parts of a step, and the peak."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.data.batch import Batch
from nanochat.gpt import GPT
from nanochat.kernels import cpu_matmul
from nanochat.runtime import Runtime

PARTS = ("data", "forward", "backward", "optimizer", "communication")
COLLECTIVES = ("all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor")
PRODUCT_SIZES = {"cpu": 1024, "cuda": 8192, "mps": 4096}


class Stopwatch:
    """Seconds of each part of a step; on a GPU between events, which do not stall it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.spans: list[tuple[str, Any, Any]] = []
        self.steps: list[dict[str, float]] = []
        self.paused_for = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude what runs inside from the step."""
        start = time.perf_counter()
        yield
        self.paused_for += time.perf_counter() - start

    def mark(self) -> Any:
        """The current time, as a CUDA event on a GPU."""
        if self.runtime.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, part: str, start: Any) -> None:
        """Add the time from `start` until now to a part."""
        self.spans.append((part, start, self.mark()))

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function with its time added to the part."""

        def measured(*arguments: Any, **named: Any) -> Any:
            start = self.mark()
            result = call(*arguments, **named)
            self.add(part, start)
            return result

        return measured

    def end_step(self, seconds: float) -> None:
        """Sum the spans of a step of `seconds` by part."""
        self.runtime.synchronize()
        sums = dict.fromkeys(PARTS, 0.0)
        for part, start, end in self.spans:
            on_host = isinstance(start, float)
            sums[part] += end - start if on_host else start.elapsed_time(end) / 1000  # from ms
        self.spans.clear()
        sums["optimizer"] -= sums["communication"]  # which happens inside of it
        self.steps.append({"step": seconds - self.paused_for, **sums})
        self.paused_for = 0.0


class TimedModel(nn.Module):
    """A model whose forward and backward pass are timed."""

    def __init__(self, model: nn.Module, parameters: GPT, watch: Stopwatch) -> None:
        super().__init__()
        self.model, self.watch = model, watch
        self.backward_start: Any = None
        self.until_first_backward = 0.0  # seconds since the process started
        # The gradient of the embedding is the last one that is computed.
        embedding = parameters.embedding.weight
        embedding.register_post_accumulate_grad_hook(self._backward_ends)

    def _backward_ends(self, _: Tensor) -> None:
        self.watch.add("backward", self.backward_start)
        age = time.time() - psutil.Process().create_time()
        self.until_first_backward = self.until_first_backward or age

    def forward(self, *arguments: Any, **named: Any) -> Any:
        loss = self.watch.timed("forward", self.model)(*arguments, **named)
        self.backward_start = self.watch.mark()
        return loss


class TimedOptimizer:
    """An optimizer whose reduction of gradients and step are timed."""

    def __init__(self, optimizer: Any, watch: Stopwatch) -> None:
        self.param_groups = optimizer.param_groups
        self.reduce_gradients = watch.timed("optimizer", optimizer.reduce_gradients)
        self.start_step = watch.timed("optimizer", optimizer.start_step)
        self.finish_step = watch.timed("optimizer", optimizer.finish_step)
        self.buckets, self.transport = optimizer.buckets, optimizer.transport


def time_collectives(watch: Stopwatch) -> None:
    """Count the waits for the optimizers' collectives as communication."""
    for name in COLLECTIVES:
        setattr(dist, name, _timed_collective(getattr(dist, name), watch))


def _timed_collective(call: Callable[..., Any], watch: Stopwatch) -> Callable[..., Any]:
    def start(*arguments: Any, **named: Any) -> Any:
        handle = call(*arguments, **named)
        return handle and SimpleNamespace(wait=watch.timed("communication", handle.wait))

    return start


def timed_batches(batches: Iterator[Batch], watch: Stopwatch) -> Iterator[Batch]:
    """The same batches; the waits for them count as data."""
    take = watch.timed("data", lambda: next(batches, None))
    while (batch := take()) is not None:
        yield batch


class Peak:
    """FLOP/s of large square matrix products by the fastest library of this device."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.size = runtime, PRODUCT_SIZES[runtime.device.type]
        # torch's own library, and the one that the model uses: on a CPU it may be another.
        self.libraries: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "torch": torch.matmul,
            "kernels": cpu_matmul.product,
        }
        self.samples: dict[str, list[float]] = {name: [] for name in self.libraries}

    def measure(self) -> None:
        """Time some products by each library."""
        shape, runtime = (self.size, self.size), self.runtime
        a, b = (torch.randn(shape, device=runtime.device).to(runtime.compute_dtype) for _ in "ab")
        for name, multiply in self.libraries.items():
            multiply(a, b)
            runtime.synchronize()
            start, count = time.perf_counter(), 5
            for _ in range(count):
                multiply(a, b)
            runtime.synchronize()
            seconds = time.perf_counter() - start
            self.samples[name].append(count * 2 * self.size**3 / seconds)

    def figures(self, flops: float) -> dict[str, float]:
        """The peak of all ranks and the share of it that `flops` FLOP/s are."""
        peak = max(statistics.median(samples) for samples in self.samples.values())
        peak *= self.runtime.world_size
        return {"peak GFLOP/s": round(peak / 1e9, 1), "share of peak": round(flops / peak, 3)}
