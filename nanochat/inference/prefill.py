"""Chunked prefill: prompts go into a cache in chunks, once per prompt, minus cached prefixes.

A pass takes a bounded number of tokens, so that running sequences hardly wait for it; a long prompt
takes several passes.

B batch (prompts of a pass)  T time  V vocab
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice

import torch
from torch import Tensor

from nanochat.inference.decode import DecodeStep
from nanochat.inference.kv_cache import KVCache, on_device
from nanochat.inference.sequence import RowState

# Tokens of a pass, padding included: where other sequences wait for it, and where none does. On a
# CPU larger passes gain little (dev/LOG.md, 2026-11-24). A GPU needs more to be busy; 512 take it
# a few milliseconds.
TOKENS_PER_PASS = {"cpu": (512, 512), "cuda": (512, 8192)}
TOKENS_PER_PASS_ELSEWHERE = 2048, 2048
PROMPTS_PER_PASS, PACKED_PROMPTS_PER_PASS = 16, 256  # slots of the prefiller's own cache
MAX_PACKED_POSITIONS = 2**15  # of all of these slots: as much as 16 prompts of 2048 tokens
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
        copy.copy_slots([slot], [0], cache, len(tokens))
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
            cache.copy_slots([0], [slot], entry, length)


@dataclass(frozen=True)
class Completed:
    """A prompt that is in a cache, and the rows that continue it."""

    rows: list[RowState]
    slot: int
    logits: Tensor  # (V,) of the first token


class Prefiller:
    """Processes prompts first come, first served, several per pass, in a cache of its own."""

    def __init__(self, decode_step: DecodeStep, prefix_cache: PrefixCache) -> None:
        self.model, self.prefix_cache = decode_step.model, prefix_cache
        self.is_packed, self._new_cache = decode_step.mode.can_pack, decode_step.new_cache
        device = self.model.embedding.weight.device
        self.tokens_per_pass = TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS_ELSEWHERE)
        self.cache = self._new_cache(PROMPTS_PER_PASS)
        # Sequences grouped by prompt: each group is prefilled once. `_active[i]` is in slot i; it
        # is empty once its prompt is complete.
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

    def step(self, is_alone: bool = True) -> list[Completed]:
        """One forward pass, if there is anything to do: the prompts that it completes.

        They stay in their slots of `cache` until the next pass.  is_alone: nothing waits for it.
        """
        self.drop_finished()
        self._fill_slots()
        if not self._active:
            return []
        done = self.cache.lengths[: len(self._active)]
        rest = [group[0].prompt[n:] for group, n in zip(self._active, done, strict=True)]
        lengths, logits = self._pass(rest, self.tokens_per_pass[is_alone])
        self.cache.advance(lengths)
        completed = []
        for slot, (tokens, length) in enumerate(zip(rest, lengths, strict=False)):
            if len(tokens) == length:
                completed.append(Completed([*self._active[slot]], slot, logits[slot]))
                self._active[slot].clear()
        return completed

    def _fill_slots(self) -> None:
        """Take prompts from the queue, as many as there are slots for."""
        if self.is_packed and self._queue:
            if self._active:
                return  # passes take the oldest first in any case
            # Few long prompts or many short ones: the cache is a rectangle of bounded size.
            prompts = [group[0].prompt for group in islice(self._queue, PACKED_PROMPTS_PER_PASS)]
            bound = max(1, MAX_PACKED_POSITIONS // max(map(len, prompts)))
            self.cache = self._new_cache(min(len(prompts), bound))
        while self._queue and len(self._active) < len(self.cache.lengths):
            group = self._queue.popleft()
            self.prefix_cache.restore(group[0].prompt, self.cache, len(self._active))
            self._active.append(group)

    def _pass(self, rest: list[list[int]], max_tokens: int) -> tuple[list[int], Tensor]:
        """Process the next tokens of the prompts: their number, and logits (B, V) after them."""
        if self.is_packed:  # of the first prompts, one after the other and without padding
            starts = accumulate(map(len, rest), initial=0)
            rooms = [max_tokens - start for start in starts if start < max_tokens]
            chunks = [tokens[:room] for tokens, room in zip(rest, rooms, strict=False)]
        else:
            # After a long cached prefix, the padding of short rows must not exceed the context.
            room = self.model.config.sequence_len - max(self.cache.lengths[: len(rest)])
            width = min(max(1, max_tokens // len(rest)), room)
            chunks = [tokens[:width] for tokens in rest]
        lengths = [len(chunk) for chunk in chunks]
        device = self.cache.keys[0].device
        last = on_device(lengths, device)  # the only logits that are needed
        tokens = on_device([[*chain(*chunks)]], device) if self.is_packed else padded(chunks)
        self.cache.num_active = len(chunks)
        self.cache.counts = lengths if self.is_packed else None
        at = last.cumsum(0)[None] - 1 if self.is_packed else last - 1
        logits = self.model(tokens.to(device), kv_cache=self.cache, logits_at=at)
        return lengths, logits.flatten(0, 1)
