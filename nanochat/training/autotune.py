"""How a run uses its device: compiled or eager, and how many rows per forward pass.

GPUs get the largest micro-batch that fits, CPUs the fastest; neither changes results.
"""

import gc
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from nanochat import metrics
from nanochat.data.batch import Batch
from nanochat.gpt import GPT
from nanochat.kernels import cpu_matmul
from nanochat.kernels.documents import can_join
from nanochat.runtime import (
    Runtime,
    all_reduce_max,
    all_reduce_sum,
    gc_and_trim_disabled,
    keep_compiled_code,
)
from nanochat.training import memory_estimate
from nanochat.training.config import Plan
from nanochat.training.trainer import accumulate_gradients

logger = logging.getLogger(__name__)

# Of work at the device's peak, from which compiling and searching pay. On a GPU one block takes
# seconds, later processes find it on the disk, and eager code needs 1.7 times as long.
TUNING_PAYS_FROM_SECONDS = {"cuda": 5}
TUNING_PAYS_ELSEWHERE = 60  # dev/LOG.md
RECOMPUTE_BELOW_TOKENS = 16_384  # of a forward pass that fits: fewer do not occupy a large GPU
CPU_TOKENS = 2048  # per forward pass without a search: its activations stay in the cache
CPU_SEARCH_TOKENS = range(1024, 8193)  # outside, nothing was ever faster; dev/LOG.md
MEMORY_SHARE_EXPECTED = 0.95  # of the device's memory, in an estimate that is only shown
MEMORY_SHARE_TRIED = 1.1  # an estimate may be too high: a real pass decides


def peak_tokens_per_second(model: GPT, runtime: Runtime) -> float:
    """Tokens/s of all devices at 100 % MFU; the peak is from a data sheet or a measured matmul."""
    peak = metrics.peak_flops(_device_name(runtime), runtime.compute_dtype)
    if peak is None:
        peak = measure_matmul_peak(runtime.device, runtime.compute_dtype)
        logger.info("peak of this device, measured by a matmul: %.0f GFLOP/s", peak / 1e9)
    return peak * runtime.world_size / model.flops_per_token()


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 0) -> float:
    """FLOP/s of the fastest of a few square matrix products on this device, in under a second."""
    size = size or (1024 if device.type == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = math.inf
    # Training uses the second one, which on a CPU may be faster by half than torch's own.
    for multiply in (torch.matmul, cpu_matmul.product):
        for _ in range(8):
            start = time.perf_counter()
            multiply(a, b)[0, 0].item()  # reading a value waits for the device
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def hardware_key(runtime: Runtime) -> list[Any]:
    """Where a micro-batch size was found; elsewhere another one may be better."""
    return [_device_name(runtime), runtime.world_size]


def _device_name(runtime: Runtime) -> str:
    if runtime.device.type == "cuda":
        return torch.cuda.get_device_name(runtime.device)
    return runtime.device.type.upper()


def _is_short(plan: Plan, peak_tokens_per_second: float, runtime: Runtime) -> bool:
    num_tokens = plan.schedule.num_steps * plan.rows * plan.model.config.sequence_len
    seconds = TUNING_PAYS_FROM_SECONDS.get(runtime.device.type, TUNING_PAYS_ELSEWHERE)
    return num_tokens < seconds * peak_tokens_per_second


def joined_length(plan: Plan, runtime: Runtime) -> int:
    """Tokens that rows are joined to where they vary in length and a kernel exists, else 0."""
    config = plan.model.config
    if runtime.device.type == "cpu" and plan.compile == "on":
        return 0  # the code for each length would be compiled
    if plan.has_fixed_shape or not can_join(runtime.device, runtime.compute_dtype, config.head_dim):
        return 0
    return config.sequence_len


# ---- compile decision


def compiled(plan: Plan, peak_tokens_per_second: float, runtime: Runtime) -> nn.Module:
    """The model, compiled where that pays and works; the decision is logged.

    On a GPU its regions are compiled, in place, which takes equally long at any depth.
    """
    reason, on_gpu = "", runtime.device.type == "cuda"
    if plan.compile == "off":
        reason = "--compile=off"
    elif plan.compile == "auto" and not plan.has_fixed_shape and not on_gpu:
        reason = "the rows of this stage vary in length"  # each length would be compiled again
    elif plan.compile == "auto" and runtime.device.type == "mps":
        reason = "not on this device"
    elif plan.compile == "auto" and plan.sampled_softmax is not None:
        reason = "only the last steps, with the full softmax, would gain"
    elif plan.compile == "auto" and _is_short(plan, peak_tokens_per_second, runtime):
        reason = "the run is too short to make up for the time of compiling"
    else:
        if on_gpu:  # the base directory: all stages and depths share what is compiled
            keep_compiled_code(plan.directory.parents[1] / "compiled")
        try:
            torch.compile(torch.sin)(torch.ones(1, device=runtime.device))
        except Exception as error:  # a missing compiler raises many types
            reason = f"torch.compile fails here ({type(error).__name__})"
    if reason:
        logger.info("eager, not compiled: %s", reason)
        return plan.model
    logger.info("compiling the model: the first step takes longer")
    if on_gpu:
        recomputes = needs_recomputation(plan, runtime)
        plan.model.compile_regions(dynamic=not plan.has_fixed_shape, recomputes=recomputes)
        return plan.model
    module: nn.Module = torch.compile(plan.model, dynamic=False)  # type: ignore[assignment]
    return module


def needs_recomputation(plan: Plan, runtime: Runtime) -> bool:
    """Whether so little fits into memory that computing cheap activations again pays."""
    rank_rows, length = plan.rank_rows(runtime.world_size), plan.model.config.sequence_len
    if not plan.model.keeps_activations:
        return False
    fitting = _estimated_to_fit(plan.model, halvings(rank_rows), runtime, MEMORY_SHARE_EXPECTED)
    rows = next(iter(fitting), 0)
    return rows < rank_rows and rows * length < RECOMPUTE_BELOW_TOKENS


# ---- micro-batch search


def micro_batch_rows(
    plan: Plan, peak_tokens_per_second: float, runtime: Runtime, meta: dict[str, Any]
) -> int:
    """Rows of a forward pass: as given, as the checkpoint notes for this hardware, or searched."""
    if plan.device_batch_size < 1:
        *found_on, rows = meta.get("micro_batch", [0])
        if found_on == hardware_key(runtime):  # a resumed run stays bitwise equal
            return int(rows)
        is_worth_it = plan.has_fixed_shape and not _is_short(plan, peak_tokens_per_second, runtime)
        if runtime.device.type == "cuda" or (runtime.device.type == "cpu" and is_worth_it):
            return search(plan, runtime)
    return expected_rows(plan, runtime)


def expected_rows(plan: Plan, runtime: Runtime) -> int:
    """Rows of a forward pass without a search: as given, of CPU_TOKENS, or what may fit a GPU."""
    rank_rows = plan.rank_rows(runtime.world_size)
    if plan.device_batch_size > 0:
        return min(plan.device_batch_size, rank_rows)
    if runtime.device.type == "cuda":
        fitting = _estimated_to_fit(plan.model, halvings(rank_rows), runtime, MEMORY_SHARE_EXPECTED)
        return next(iter(fitting), 1)
    return max(1, min(rank_rows, CPU_TOKENS // plan.model.config.sequence_len))


def halvings(rank_rows: int) -> list[int]:
    """The rows of a rank, halved again and again, rounded up, down to 1."""
    return [-(-rank_rows // 2**n) for n in range((rank_rows - 1).bit_length() + 1)]


def search(plan: Plan, runtime: Runtime) -> int:
    """The best of the halvings of a rank's rows, the same on every rank. Collective."""
    model, sizes = plan.model, halvings(plan.rank_rows(runtime.world_size))
    if runtime.device.type == "cuda":
        rank_rows, length = sizes[0], joined_length(plan, runtime)
        sizes = _estimated_to_fit(model, sizes, runtime, MEMORY_SHARE_TRIED)
        # What will run: compiled, and with the gradients of an earlier pass if there is one.
        return largest_that_fits(
            sizes, lambda rows: _run_pass(model, rows, runtime, 1 + (rows < rank_rows), length)
        )

    def seconds(rows: int) -> float:
        _run_pass(model, rows, runtime)  # warm-up: allocations, kernel selection
        began = time.perf_counter()
        _run_pass(model, rows, runtime)
        return time.perf_counter() - began

    sizes = [rows for rows in sizes if rows * model.config.sequence_len in CPU_SEARCH_TOKENS]
    with gc_and_trim_disabled(runtime.device):
        return fastest(sizes or [expected_rows(plan, runtime)], seconds)


def largest_that_fits(sizes: Iterable[int], attempt: Callable[[int], object]) -> int:
    """The first of the falling sizes that fits into the memory of every rank, else 1."""
    for rows in sizes:
        try:
            attempt(rows)
            failed = 0.0
        except torch.OutOfMemoryError:
            failed = 1.0
        if not all_reduce_max([failed])[0]:
            return rows
        gc.collect()  # the error and its frames may refer to each other, and to all activations
        logger.info("micro-batches of %d rows do not fit", rows)
    return 1


def fastest(sizes: Iterable[int], seconds: Callable[[int], float]) -> int:
    """The size with the fewest seconds per row, summed over ranks."""
    best, best_seconds = 1, math.inf
    for rows in sizes:
        row_seconds, num_ranks = all_reduce_sum([seconds(rows) / rows, 1.0])
        logger.info("micro-batches of %d rows: %.3f s per row", rows, row_seconds / num_ranks)
        if row_seconds < best_seconds:
            best, best_seconds = rows, row_seconds
    return best


def _estimated_to_fit(model: GPT, sizes: list[int], runtime: Runtime, share: float) -> list[int]:
    """The sizes whose estimated memory is at most that share of the device's."""
    capacity = torch.cuda.mem_get_info(runtime.device)[1]
    return [n for n in sizes if memory_estimate.of(model, n, runtime).total <= share * capacity]


def _run_pass(
    model: GPT, rows: int, runtime: Runtime, num_passes: int = 1, joined_length: int = 0
) -> None:
    """Forward and backward passes of arbitrary tokens; the gradients are dropped."""
    tokens = torch.arange(num_passes * rows * model.config.sequence_len) % model.config.vocab_size
    tokens = tokens.view(num_passes * rows, -1)
    batch = Batch(tokens, tokens, torch.zeros(tokens.shape), 1.0, 0.0, {})
    try:
        accumulate_gradients(model, batch, rows, runtime.device, joined_length=joined_length)
        runtime.synchronize()
    finally:  # also when out of memory: the next size needs the space
        model.zero_grad(set_to_none=True)
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()
