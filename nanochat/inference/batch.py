"""Continuous batching: sequences share a KV cache and join and leave it at any step.

A finished sequence frees its slot at once, and the next prompt is prefilled into it. A sequence
that waits for a slow tool is suspended and the others continue. What a sequence gets depends
neither on its neighbors nor on how long it waited.

V vocab
"""

from collections.abc import Sequence
from concurrent import futures
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.inference.decode import DecodeStep
from nanochat.inference.detokenizer import Event
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.prefill import Prefiller, PrefixCache
from nanochat.inference.sampling import sample_next_token, token_logprobs
from nanochat.inference.sequence import RowState


@dataclass(frozen=True)
class _Suspended:
    """A sequence whose tool has no result yet, and what it resumes from."""

    row: RowState
    cache: KVCache  # of one slot: the row keeps nothing in the cache that the others decode in
    logits: Tensor  # (V,) of its next token


class Batch:
    """The sequences of one KV cache; `rows[i]` is in slot i, and row i of the logits is its."""

    def __init__(
        self, model: GPT, num_slots: int, end_tokens: frozenset[int], prefix_cache: PrefixCache
    ) -> None:
        device = model.embedding.weight.device
        self.end_tokens, self.prefix_cache = end_tokens, prefix_cache
        self.prefiller = Prefiller(model, prefix_cache)
        self._new_cache = partial(KVCache, model.config, device=device, dtype=model.compute_dtype)
        self.cache = self._new_cache(num_slots)
        self.decode_step = DecodeStep(model, self.cache, is_static=device.type == "cuda")
        self.rows: list[RowState] = []
        self.suspended: list[_Suspended] = []
        self.logits = torch.empty(0, model.config.vocab_size, device=device)

    @property
    def num_rows(self) -> int:
        """Unfinished sequences: in prefill, in decode, or suspended. Each holds a slot."""
        return len(self.rows) + len(self.suspended) + self.prefiller.num_rows

    @property
    def cache_use(self) -> float:
        used, allocated = sum(self.cache.lengths[: len(self.rows)]), self.cache.capacity
        return used / (len(self.cache.lengths) * allocated) if allocated else 0.0

    def add(self, rows: Sequence[RowState]) -> None:
        """Queue sequences for prefill; neighbors with the same prompt object share one.

        The caller sees to it that there are free slots. Raises UserError, and adds none, when a
        request asks for no tokens.
        """
        for row in rows:
            if row.max_tokens < 1:
                raise UserError(f"max_tokens={row.max_tokens} must be 1 or more")
        self.prefiller.add(rows)

    @torch.inference_mode()
    def step(self) -> list[tuple[RowState, list[Event]]]:
        """One pass of prefill, then one token for each sequence in decode, with its events."""
        self.prefill()
        events = [(row, row.new_events()) for row in self.decode()]
        self._drop_finished()  # those that a stop string has ended
        return events

    @torch.inference_mode()
    def prefill(self) -> None:
        """One pass over queued prompts; those that it completes take part in the next decode."""
        for rows, slot, logits in self.prefiller.step():
            self._join(rows, self.prefiller.cache, slot, logits)

    @torch.inference_mode()
    def decode(self) -> list[RowState]:
        """One token for each sequence in decode, and returns these. Finished ones leave."""
        self._resume()
        rows = [*self.rows]
        if not rows:
            return rows
        uniforms = [row.draw() for row in rows]
        sampling = [row.request.sampling for row in rows]
        sampled = sample_next_token(self.logits, sampling, uniforms).tolist()
        for row, token in zip(rows, sampled, strict=True):
            row.append(token, self.end_tokens)
        self._set_logprobs()
        self._drop_finished()  # before the forward pass, so that none runs for them
        if self.rows:
            self.logits = self.decode_step([row.tokens[-1] for row in self.rows])
        # After the pass: a suspended row then holds the logits that it resumes from.
        self._suspend()
        return rows

    def wait_for_tool(self) -> None:
        """Block until a tool has a result, if every sequence waits for one."""
        if self.suspended and self.num_rows == len(self.suspended):
            calls = [one.row.tool_calls.pending for one in self.suspended]
            futures.wait(filter(None, calls), return_when=futures.FIRST_COMPLETED)

    @torch.inference_mode()
    def cancel(self, row: RowState) -> None:
        """Remove a sequence now; it gets no further events."""
        row.finish_reason = row.finish_reason or "length"
        self.prefiller.drop_finished()
        self._drop_finished()

    def close(self) -> None:
        for one in self.suspended:
            one.row.tool_calls.cancel()

    def _join(self, rows: Sequence[RowState], cache: KVCache, slot: int, logits: Tensor) -> None:
        """Start decoding rows that all continue from one slot of another cache."""
        for row in rows:
            self.cache.copy_slot(slot, len(self.rows), source_cache=cache)
            self.rows.append(row)
        self.logits = torch.cat([self.logits, logits.expand(len(rows), -1)])

    def _resume(self) -> None:
        suspended, self.suspended = self.suspended, []
        for one in suspended:
            if one.row.is_suspended:
                self.suspended.append(one)
            else:
                self._join([one.row], one.cache, 0, one.logits)

    def _suspend(self) -> None:
        slots = [slot for slot, row in enumerate(self.rows) if row.is_suspended]
        for slot in slots:
            cache = self._new_cache(1)
            cache.copy_slot(slot, 0, source_cache=self.cache)
            # A clone: `logits` is overwritten by later steps.
            self.suspended.append(_Suspended(self.rows[slot], cache, self.logits[slot].clone()))
        self._free(slots)

    def _drop_finished(self) -> None:
        finished = [slot for slot, row in enumerate(self.rows) if row.finish_reason]
        for slot in finished:
            self._store_prefix(self.rows[slot], self.cache, slot)
        self._free(finished)
        for one in self.suspended:
            if one.row.finish_reason:  # canceled
                self._store_prefix(one.row, one.cache, 0)
                one.row.tool_calls.cancel()
        self.suspended = [one for one in self.suspended if not one.row.finish_reason]

    def _free(self, slots: Sequence[int]) -> None:
        """Remove the rows of these slots, in ascending order."""
        for source, target in self.cache.free_slots(slots, self.rows):
            self.logits[target] = self.logits[source]
        self.logits = self.logits[: len(self.rows)]

    def _store_prefix(self, row: RowState, cache: KVCache, slot: int) -> None:
        # The newest token has not been through the model: the cache ends before it.
        tokens = [*row.prompt, *row.tokens][: cache.lengths[slot]]
        self.prefix_cache.store(tokens, cache, slot)

    def _set_logprobs(self) -> None:
        counts = {
            slot: row.request.num_top_logprobs
            for slot, row in enumerate(self.rows)
            if row.request.num_top_logprobs is not None
        }
        if counts:
            tokens = torch.tensor([self.rows[slot].tokens[-1] for slot in counts])
            logits = self.logits[[*counts]]
            found = token_logprobs(logits, tokens.to(logits.device), max(counts.values()))
            for (slot, count), one in zip(counts.items(), found, strict=True):
                self.rows[slot].logprob = replace(one, top_logprobs=one.top_logprobs[:count])
