"""One decode step: a forward pass over the newest token of each sequence.

With `Graphs` it runs with fixed shapes, which are recorded once and replayed: the number of rows is
rounded up to a power of two, and attention takes lengths from a tensor. The cache grows by
doubling, so a run records a pass for few pairs of rows and capacity.

B batch (rows)  V vocab
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.inference.cuda_graphs import Graphs
from nanochat.inference.kv_cache import KVCache, on_device
from nanochat.kernels.attention import can_pack


@dataclass(frozen=True)
class Mode:
    """How passes run; what is fastest depends on the device. The defaults are those of a CPU."""

    cuda: Any = None  # `torch.cuda`, to record passes; None: kernels are launched one by one
    can_pack: bool = False  # prompts one after the other without padding, cached rows in place
    reads_late: bool = False  # the host reads tokens while the device computes the next ones

    @classmethod
    def of(cls, model: GPT) -> "Mode":
        device = model.embedding.weight.device
        if device.type != "cuda":
            return cls()
        is_packed = can_pack(device, model.compute_dtype, model.config.head_dim)
        return cls(torch.cuda, is_packed, reads_late=True)


class DecodeStep:
    """The step, its cache and its graphs, which one batch after the other uses."""

    def __init__(self, model: GPT, num_slots: int, mode: Mode) -> None:
        self.model, self.mode = model, mode
        device = model.embedding.weight.device
        self.graphs = Graphs(device, mode.cuda) if mode.cuda else None
        self.is_taken = False  # by a batch that is not closed
        self.new_cache = partial(
            KVCache, model.config, device=device, dtype=model.compute_dtype, can_pack=mode.can_pack
        )
        self.cache = self.new_cache(num_slots)
        # Graphs read their inputs from these addresses, so they are filled and never replaced.
        self._tokens = torch.zeros(num_slots, 1, dtype=torch.int64, device=device)
        self._starts = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._logits: dict[int, Tensor] = {}  # by number of rows, filled by the pass
        self._capacity = 0  # of the cache when the graphs were recorded

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, V) logits after appending tokens (B,) int64 to the rows, until the next call."""
        self.cache.num_active = len(tokens)
        if self.graphs is None:
            logits = self.model(tokens[:, None], kv_cache=self.cache)[:, 0]
        else:
            logits = self._static(tokens, self.graphs)
        self.cache.advance([1] * len(tokens))
        return logits

    def _static(self, tokens: Tensor, graphs: Graphs) -> Tensor:
        cache, count = self.cache, len(tokens)
        cache.reserve(1)
        if self._capacity != cache.capacity:  # graphs would write to the old allocation
            graphs.drop()
            self._capacity = cache.capacity
        num_rows = min(1 << (count - 1).bit_length(), len(self._starts))
        padding = [0] * (num_rows - count)  # free slots, overwritten when they are used
        self._tokens[:count, 0] = tokens
        self._starts[:num_rows] = on_device(cache.lengths[:count] + padding, tokens.device)
        if num_rows not in self._logits:
            shape = num_rows, self.model.config.vocab_size
            self._logits[num_rows] = torch.empty(shape, device=tokens.device)
        graphs.run(num_rows, lambda: self._forward(num_rows))
        cache.num_active = count
        return self._logits[num_rows][:count]

    def _forward(self, num_rows: int) -> None:
        """The pass with fixed shapes, from and to the tensors of this object."""
        self.cache.num_active = num_rows
        self.cache.static_starts = self._starts[:num_rows]
        try:
            logits = self.model(self._tokens[:num_rows], kv_cache=self.cache)
            self._logits[num_rows].copy_(logits[:, 0])
        finally:
            self.cache.static_starts = None
