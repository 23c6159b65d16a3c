"""One decode step: a forward pass over the newest token of each sequence.

On CUDA a small pass takes less time than launching its kernels from Python, so it is captured once
as a graph and replayed. A graph replays fixed shapes: the number of rows is rounded up to a power
of two, and attention runs over the whole capacity of the cache under a mask.

B batch (rows)  V vocab
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.inference.kv_cache import KVCache

logger = logging.getLogger(__name__)

WARM_UP_PASSES = 2  # before capture: libraries allocate workspaces and pick kernels in the first


class DecodeStep:
    def __init__(self, model: GPT, cache: KVCache, is_static: bool) -> None:
        """is_static: use fixed shapes, and CUDA graphs where the device has them."""
        self.model, self.cache, self.is_static = model, cache, is_static
        device, num_slots = model.embedding.weight.device, len(cache.lengths)
        # Graphs read their inputs from these addresses, so they are filled and never replaced.
        self._tokens = torch.zeros(num_slots, 1, dtype=torch.int64, device=device)
        self._starts = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._captured: dict[int, tuple[Callable[[], None], Tensor]] = {}
        self._capacity = 0  # of the cache when the graphs were captured
        self._memory_pool: Any = None  # shared by all graphs, which never run at the same time

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """(B, V) logits after appending one token to each row; valid until the next call."""
        self.cache.num_active = len(tokens)
        logits = self._static(tokens) if self.is_static else self._eager(tokens)
        self.cache.advance([1] * len(tokens))
        return logits

    def _eager(self, tokens: Sequence[int]) -> Tensor:
        idx = torch.tensor(tokens, device=self._tokens.device)[:, None]
        return self.model(idx, kv_cache=self.cache)[:, 0]

    def _static(self, tokens: Sequence[int]) -> Tensor:
        self.cache.reserve(1)
        if self._capacity != self.cache.capacity:  # graphs would write to the old allocation
            self._captured, self._capacity = {}, self.cache.capacity
        num_rows = min(1 << (len(tokens) - 1).bit_length(), len(self._starts))
        padding = [0] * (num_rows - len(tokens))  # free slots, overwritten when they are used
        self._tokens[:num_rows, 0] = torch.tensor([*tokens, *padding])
        self._starts[:num_rows] = torch.tensor([*self.cache.lengths[: len(tokens)], *padding])
        if num_rows not in self._captured:
            self._captured[num_rows] = self._capture(num_rows)
        replay, logits = self._captured[num_rows]
        replay()
        self.cache.num_active = len(tokens)  # the forward pass has set it to num_rows
        return logits[: len(tokens)]

    def _capture(self, num_rows: int) -> tuple[Callable[[], None], Tensor]:
        """A function that runs the pass, and the logits that it fills."""
        logits = torch.empty(num_rows, self.model.config.vocab_size, device=self._tokens.device)

        def forward() -> None:
            self.cache.num_active = num_rows
            self.cache.static_starts = self._starts[:num_rows]
            logits.copy_(self.model(self._tokens[:num_rows], kv_cache=self.cache)[:, 0])
            self.cache.static_starts = None

        if self._tokens.device.type != "cuda":
            return forward, logits
        return self._cuda_graph(forward), logits

    def _cuda_graph(self, forward: Callable[[], None]) -> Callable[[], None]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # warm up on a side stream, as capture requires
            for _ in range(WARM_UP_PASSES):
                forward()
        torch.cuda.current_stream().wait_stream(stream)
        self._memory_pool = self._memory_pool or torch.cuda.graph_pool_handle()
        try:
            # thread_local: other threads may use other devices during the capture.
            with torch.cuda.graph(graph, pool=self._memory_pool, capture_error_mode="thread_local"):
                forward()
        except RuntimeError as error:
            logger.warning("CUDA graph capture failed, running kernels eagerly: %s", error)
            return forward
        return graph.replay
