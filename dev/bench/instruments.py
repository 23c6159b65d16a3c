"""What the bench of the loop measures with: a clock for the parts of a step, peaks of products."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    """Seconds of each part of a step, on a GPU between events that nobody waits for."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.spans: list[tuple[str, Any, Any]] = []
        self.steps: list[dict[str, float]] = []
        self.paused_for = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile is no part of a step."""
        began = time.perf_counter()
        yield
        self.paused_for += time.perf_counter() - began

    def mark(self) -> Any:
        """A moment, of the device's own time where it has one."""
        if self.runtime.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, part: str, began: Any) -> None:
        """The part ends now."""
        self.spans.append((part, began, self.mark()))

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, its time added to the part."""

        def measured(*arguments: Any, **named: Any) -> Any:
            began = self.mark()
            result = call(*arguments, **named)
            self.add(part, began)
            return result

        return measured

    def end_step(self, seconds: float) -> None:
        """Sum the spans of a step that took `seconds` in all."""
        self.runtime.synchronize()
        sums = dict.fromkeys(PARTS, 0.0)
        for part, began, ended in self.spans:
            on_host = isinstance(began, float)
            sums[part] += ended - began if on_host else began.elapsed_time(ended) / 1000
        self.spans.clear()
        sums["optimizer"] -= sums["communication"]
        self.steps.append({"step": seconds - self.paused_for, **sums})
        self.paused_for = 0.0


class Watched(nn.Module):
    """A model whose forward and backward pass are timed."""

    def __init__(self, model: nn.Module, parameters: GPT, watch: Stopwatch) -> None:
        super().__init__()
        self.model, self.watch = model, watch
        self.backward_began: Any = None
        self.until_first_backward = 0.0  # seconds since the process began
        # Its gradient is the last one to be there.
        first = parameters.embedding.weight
        first.register_post_accumulate_grad_hook(self._backward_ends)

    def _backward_ends(self, _: Tensor) -> None:
        self.watch.add("backward", self.backward_began)
        age = time.time() - psutil.Process().create_time()
        self.until_first_backward = self.until_first_backward or age

    def forward(self, *arguments: Any, **named: Any) -> Any:
        loss = self.watch.timed("forward", self.model)(*arguments, **named)
        self.backward_began = self.watch.mark()
        return loss


class WatchedOptimizer:
    """An optimizer whose step is timed."""

    def __init__(self, optimizer: Any, watch: Stopwatch) -> None:
        self.param_groups = optimizer.param_groups
        self.step = watch.timed("optimizer", optimizer.step)


def watch_collectives(watch: Stopwatch) -> None:
    """Waiting for what the optimizers send counts as communication."""
    for name in COLLECTIVES:
        setattr(dist, name, _begin_watched(getattr(dist, name), watch))


def _begin_watched(call: Callable[..., Any], watch: Stopwatch) -> Callable[..., Any]:
    def begin(*arguments: Any, **named: Any) -> Any:
        work = call(*arguments, **named)
        return work if work is None else WatchedWork(watch.timed("communication", work.wait))

    return begin


@dataclass(frozen=True)
class WatchedWork:
    """What was sent, waited for by the watch."""

    wait: Callable[[], Any]


def timed_batches(batches: Iterator[Batch], watch: Stopwatch) -> Iterator[Batch]:
    """The same batches; waiting for them counts as data."""
    take = watch.timed("data", lambda: next(batches, None))
    while (batch := take()) is not None:
        yield batch


class Peaks:
    """FLOP/s of products of large square matrices: by torch, and by oneDNN where that is here."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.size = runtime, PRODUCT_SIZES[runtime.device.type]
        self.ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"": torch.matmul}
        example = torch.empty(0, device=runtime.device, dtype=runtime.compute_dtype)
        if example.dtype == torch.float32 and cpu_matmul.has_kernels_for(example):
            self.ways[" of oneDNN"] = cpu_matmul.product
        self.seen: dict[str, list[float]] = {way: [] for way in self.ways}

    def measure(self) -> None:
        """Time some products each way."""
        shape, runtime = (self.size, self.size), self.runtime
        a, b = (torch.randn(shape, device=runtime.device).to(runtime.compute_dtype) for _ in "ab")
        for way, multiply in self.ways.items():
            multiply(a, b)
            runtime.synchronize()
            began, count = time.perf_counter(), 5
            for _ in range(count):
                multiply(a, b)
            runtime.synchronize()
            self.seen[way].append(count * 2 * self.size**3 / (time.perf_counter() - began))

    def figures(self, flops: float) -> dict[str, float]:
        """The median of each way, over all ranks, and the share of it that so many FLOP/s are."""
        found = {}
        for way, seen in self.seen.items():
            peak = statistics.median(seen) * self.runtime.world_size
            found[f"peak GFLOP/s{way}"] = round(peak / 1e9, 1)
            found[f"share of peak{way}"] = round(flops / peak, 3)
        return found
