"""How many rows go through the model at once: the most that fit on a GPU, the fastest on a CPU."""

import logging
import math
import time
from collections.abc import Callable, Iterable

import torch

from nanochat.gpt import GPT
from nanochat.runtime import Runtime, all_reduce_max, all_reduce_sum, undisturbed, world_size
from nanochat.training import memory_estimate

logger = logging.getLogger(__name__)

CPU_TOKENS = 2048  # in one forward pass, where searching does not pay: see dev/LOG.md
CPU_RANGE = range(1024, 8193)  # beyond, nothing was ever faster


def usual(rank_rows: int, sequence_len: int) -> int:
    """Rows for a CPU without a search."""
    return max(1, min(rank_rows, CPU_TOKENS // sequence_len))


def likely(model: GPT, rank_rows: int, runtime: Runtime) -> int:
    """What a search would come to, guessed from the estimated memory."""
    if runtime.device.type != "cuda":
        return usual(rank_rows, model.config.sequence_len)
    return next(iter(_promising(sizes(rank_rows), model, runtime, 0.95)), 1)


def sizes(rank_rows: int) -> list[int]:
    """The rows of a rank whole and halved, rounded up, until there is one."""
    return [-(-rank_rows // 2**n) for n in range((rank_rows - 1).bit_length() + 1)]


def search(model: GPT, rank_rows: int, runtime: Runtime) -> int:
    """The best of the `sizes` of the rows that a rank has; every rank comes to the same."""
    parts = sizes(rank_rows)
    if runtime.device.type == "cuda":
        parts = _promising(parts, model, runtime, 1.5)
        return largest_that_fits(parts, lambda n: _pass(model, n, runtime))
    length = model.config.sequence_len
    near = [n for n in parts if n * length in CPU_RANGE] or [usual(rank_rows, length)]
    with undisturbed(runtime.device):
        return fastest(near, lambda n: _seconds(model, n, runtime))


def largest_that_fits(sizes: Iterable[int], attempt: Callable[[int], object]) -> int:
    """The first of falling sizes that no rank runs out of memory with, else 1."""
    for size in sizes:
        try:
            attempt(size)
            failed = 0.0
        except torch.OutOfMemoryError:
            failed = 1.0
        if not all_reduce_max([failed])[0]:
            return size
        logger.info("micro-batches of %d rows do not fit", size)
    return 1


def fastest(sizes: Iterable[int], seconds: Callable[[int], float]) -> int:
    """The size with the fewest seconds a row, all ranks together."""
    best, best_rate = 1, math.inf
    for size in sizes:
        rate = all_reduce_sum([seconds(size) / size])[0]
        logger.info("micro-batches of %d rows: %.3f s a row", size, rate / world_size())
        if rate < best_rate:
            best, best_rate = size, rate
    return best


def _promising(sizes: list[int], model: GPT, runtime: Runtime, share: float) -> list[int]:
    """Those that are estimated to need at most that share of the device's memory."""
    capacity = torch.cuda.mem_get_info(runtime.device)[1]
    return [n for n in sizes if memory_estimate.of(model, n, runtime).total <= share * capacity]


def _pass(model: GPT, rows: int, runtime: Runtime) -> None:
    """Forward and backward of some tokens; the gradients are dropped."""
    length = model.config.sequence_len
    tokens = torch.arange(rows * length, device=runtime.device) % model.config.vocab_size
    tokens = tokens.view(rows, length)
    try:
        loss = model(tokens, tokens, weights=torch.zeros(tokens.shape, device=runtime.device))
        loss.backward()
        runtime.synchronize()
    finally:
        model.zero_grad(set_to_none=True)
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()


def _seconds(model: GPT, rows: int, runtime: Runtime) -> float:
    _pass(model, rows, runtime)
    began = time.perf_counter()
    _pass(model, rows, runtime)
    return time.perf_counter() - began
