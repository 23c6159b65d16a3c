"""The forward pass that gives every row its next token; on a CUDA device replayed as one graph.

A small pass on a GPU is over sooner than Python can launch its kernels. Where nothing about it
changes but the numbers in a few tensors, CUDA records it once and launches it as a whole. So the
number of rows is rounded up to a power of two, and attention looks at the whole capacity of the
cache, what is not there yet masked.

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

WARM_UP_PASSES = 2  # before recording: libraries set themselves up in the first


class DecodeStep:
    """One token for each of the first rows of a cache."""

    def __init__(self, model: GPT, cache: KVCache, is_static: bool) -> None:
        self.model, self.cache, self.is_static = model, cache, is_static
        device, num_rows = model.embedding.weight.device, len(cache.lengths)
        self._tokens = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
        self._starts = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._recorded: dict[int, tuple[Callable[[], None], Tensor]] = {}
        self._capacity = 0
        self._pool: Any = None  # of memory, one for all graphs

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """(B, V) logits after one more token of each row; valid until the next call."""
        self.cache.look_at(0, len(tokens))
        logits = self._static(tokens) if self.is_static else self._plain(tokens)
        self.cache.advance([1] * len(tokens))
        return logits

    def _plain(self, tokens: Sequence[int]) -> Tensor:
        idx = torch.tensor(tokens, device=self._tokens.device)[:, None]
        return self.model(idx, kv_cache=self.cache)[:, 0]

    def _static(self, tokens: Sequence[int]) -> Tensor:
        self.cache.make_room(1)
        if self._capacity != self.cache.capacity:  # what was recorded writes to the old place
            self._recorded, self._capacity = {}, self.cache.capacity
        count = min(1 << (len(tokens) - 1).bit_length(), len(self._starts))
        rest = [0] * (count - len(tokens))  # free rows: what is written there is never read
        self._tokens[:count, 0] = torch.tensor([*tokens, *rest])
        self._starts[:count] = torch.tensor([*self.cache.lengths[: len(tokens)], *rest])
        if count not in self._recorded:
            self._recorded[count] = self._record(count)
        replay, logits = self._recorded[count]
        replay()
        self.cache.look_at(0, len(tokens))
        return logits[: len(tokens)]

    def _record(self, count: int) -> tuple[Callable[[], None], Tensor]:
        """What does the pass again, and where its logits are then."""
        logits = torch.empty(count, self.model.config.vocab_size, device=self._tokens.device)

        def forward() -> None:
            self.cache.look_at(0, count)
            self.cache.follow(self._starts[:count])
            logits.copy_(self.model(self._tokens[:count], kv_cache=self.cache)[:, 0])
            self.cache.follow(None)

        if self._tokens.device.type != "cuda":
            return forward, logits
        return self._graph_of(forward), logits

    def _graph_of(self, forward: Callable[[], None]) -> Callable[[], None]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_PASSES):
                forward()
        torch.cuda.current_stream().wait_stream(stream)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:  # other threads may work on other devices meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                forward()
        except RuntimeError as error:
            logger.warning("no CUDA graph, kernels are launched one by one: %s", error)
            return forward
        return graph.replay
