"""Chunked prefill: prompts go into a cache in chunks, once per prompt, minus cached prefixes.

A pass takes a bounded number of tokens, so that running sequences hardly wait for it; a long prompt
takes several passes.

B batch (prompts of a pass)  T time  V vocab
"""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.sequence import RowState

# Padding included. On a CPU larger passes gain little (dev/LOG.md, 2026-11-24); a GPU needs more
# to be busy.
TOKENS_PER_PASS = {"cpu": 512}
TOKENS_PER_PASS_ELSEWHERE = 2048
PROMPTS_PER_PASS = 16  # slots of the prefiller's own cache
MIN_SHARED_TOKENS = 16  # copying a shorter prefix costs as much as computing it


def padded(rows: Sequence[list[int]]) -> Tensor:
    """(B, T) int64 tokens of rows, zero-padded at the end to the longest."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def _num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common prefix."""
    shortest = min(len(left), len(right))
    return next((i for i in range(shortest) if left[i] != right[i]), shortest)


class PrefixCache:
    """Keys and values of finished sequences, so that the next turn of a chat prefills only itself.

    Holds at most `max_tokens` tokens; the oldest entry is evicted first.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._entries: list[tuple[list[int], KVCache]] = []

    def store(self, tokens: list[int], cache: KVCache, slot: int) -> None:
        """Copy a slot; entries that are a prefix of it are replaced."""
        if not MIN_SHARED_TOKENS <= len(tokens) <= self.max_tokens:
            return
        others = [entry for entry in self._entries if _num_shared(entry[0], tokens) < len(entry[0])]
        copy = KVCache(cache.config, 1, cache.keys[0].device, cache.keys[0].dtype)
        copy.copy_slot(slot, 0, source_cache=cache, length=len(tokens))
        self._entries = [*others, (tokens, copy)]
        while sum(len(cached) for cached, _ in self._entries) > self.max_tokens:
            self._entries.pop(0)

    def restore(self, prompt: list[int], cache: KVCache, slot: int) -> None:
        """Fill a slot with the longest cached prefix of a prompt, or empty it."""
        cache.lengths[slot] = 0
        # The last token is always left to compute: its logits are not cached.
        shared = [(_num_shared(tokens, prompt[:-1]), entry) for tokens, entry in self._entries]
        length, entry = max(shared, key=lambda pair: pair[0], default=(0, cache))
        if length >= MIN_SHARED_TOKENS:
            cache.copy_slot(0, slot, source_cache=entry, length=length)


class Prefiller:
    """Processes prompts first come, first served, several per pass, in a cache of its own."""

    def __init__(self, model: GPT, prefix_cache: PrefixCache) -> None:
        device = model.embedding.weight.device
        self.model, self.prefix_cache = model, prefix_cache
        self.tokens_per_pass = TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS_ELSEWHERE)
        self.cache = KVCache(model.config, PROMPTS_PER_PASS, device, model.compute_dtype)
        # Sequences grouped by prompt: each group is prefilled once. `_active[i]` is in slot i.
        self._queue: deque[list[RowState]] = deque()
        self._active: list[list[RowState]] = []

    @property
    def num_rows(self) -> int:
        return sum(map(len, (*self._active, *self._queue)))

    def add(self, rows: Sequence[RowState]) -> None:
        """Queue prompts; consecutive rows with the same list object as prompt form a group."""
        for i, row in enumerate(rows):
            if i > 0 and row.prompt is rows[i - 1].prompt:
                self._queue[-1].append(row)
            else:
                self._queue.append([row])

    def drop_finished(self) -> None:
        """Drop canceled sequences, and the prompts that none is left for."""
        for group in (*self._active, *self._queue):
            group[:] = [row for row in group if not row.finish_reason]
        empty = [slot for slot, group in enumerate(self._active) if not group]
        self.cache.free_slots(empty, self._active)
        self._queue = deque(filter(None, self._queue))

    def step(self) -> Iterator[tuple[list[RowState], int, Tensor]]:
        """One forward pass, if there is anything to do.

        Yields each prompt that it completes: the rows that continue it, its slot in `cache` (until
        the next pass), and the logits (V,) of the first token.
        """
        while self._queue and len(self._active) < len(self.cache.lengths):
            group = self._queue.popleft()
            self.prefix_cache.restore(group[0].prompt, self.cache, len(self._active))
            self._active.append(group)
        if not self._active:
            return
        done = self.cache.lengths[: len(self._active)]
        rest = [group[0].prompt[n:] for group, n in zip(self._active, done, strict=True)]
        # After a long cached prefix, the padding of short rows must not exceed the context.
        room = self.model.config.sequence_len - max(done)
        width = min(max(1, self.tokens_per_pass // len(rest)), room)
        chunks = [tokens[:width] for tokens in rest]
        lengths = [len(chunk) for chunk in chunks]
        device = self.cache.keys[0].device
        last = torch.tensor(lengths, device=device) - 1  # the only logits that are needed
        self.cache.num_active = len(chunks)
        logits = self.model(padded(chunks).to(device), kv_cache=self.cache, logits_at=last)
        self.cache.advance(lengths)
        completed = [slot for slot, tokens in enumerate(rest) if len(tokens) <= width]
        for slot in completed:
            yield self._active[slot], slot, logits[slot, 0]
        self.cache.free_slots(completed, self._active)
