"""Continuous batching: sequences share a KV cache and join and leave it at any step.

A finished sequence frees its slot at once, and the next prompt is prefilled into it. A sequence
that waits for a slow tool is suspended and the others continue. What a sequence gets depends
neither on its neighbors nor on how long it waited.

V vocab
"""

from collections.abc import Sequence
from concurrent import futures
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanochat.errors import UserError
from nanochat.inference.decode import DecodeStep
from nanochat.inference.detokenizer import Event
from nanochat.inference.kv_cache import KVCache, on_device
from nanochat.inference.prefill import Completed, Prefiller, PrefixCache
from nanochat.inference.sampling import sample_next_token, token_logprobs
from nanochat.inference.sequence import Draw, RowState


class _Sampled:
    """Tokens of one step that are on their way to the host."""

    def __init__(self, rows: Sequence[RowState | None], draws: list[Draw], tokens: Tensor) -> None:
        """rows: None where a row only takes part because it was not known to have ended."""
        self.rows, self.draws, self.tokens = [*rows], draws, tokens
        is_gpu = tokens.device.type == "cuda"
        self._on_host = tokens.to("cpu", non_blocking=is_gpu)  # into pinned memory
        self._event = torch.cuda.Event() if is_gpu else None
        if self._event:
            self._event.record(torch.cuda.current_stream(tokens.device))

    def read(self) -> list[int]:
        if self._event:
            self._event.synchronize()
        tokens: list[int] = self._on_host.tolist()
        return tokens

    def take_back(self, row: RowState) -> Tensor:
        """Remove a row, and return the token (1,) that it does not get."""
        slot = self.rows.index(row)
        self.rows[slot] = None
        row.take_back(self.draws[slot])
        return self.tokens[slot : slot + 1]


@dataclass(frozen=True)
class _Suspended:
    """A sequence whose tool has no result yet, and what it resumes from."""

    row: RowState
    cache: KVCache  # of one slot: the row keeps nothing in the cache that the others decode in
    logits: Tensor  # (V,) of its next token


class Batch:
    """The sequences of one KV cache; `rows[i]` is in slot i, and row i of the logits is its."""

    def __init__(
        self,
        decode_step: DecodeStep,
        num_slots: int,
        end_tokens: frozenset[int],
        prefix_cache: PrefixCache,
    ) -> None:
        """num_slots: at most those of the step's cache, which the batch has until it is closed."""
        self.decode_step, self.cache = decode_step, decode_step.cache
        self.num_slots, self.end_tokens = num_slots, end_tokens
        self.prefix_cache = prefix_cache
        self.prefiller = Prefiller(decode_step, prefix_cache)
        self.rows: list[RowState] = []
        self.suspended: list[_Suspended] = []
        self._unread: _Sampled | None = None  # of rows in `rows`, where the host reads late
        model = decode_step.model
        device = model.embedding.weight.device
        self.logits = torch.empty(0, model.config.vocab_size, device=device)

    @property
    def num_rows(self) -> int:
        """Unfinished sequences: in prefill, in decode, or suspended. Each holds a slot."""
        return len(self.rows) + len(self.suspended) + self.prefiller.num_rows

    @property
    def cache_use(self) -> float:
        used, allocated = sum(self.cache.lengths[: len(self.rows)]), self.cache.capacity
        return used / (self.num_slots * allocated) if allocated else 0.0

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
        """One pass of prefill, then one token for each sequence in decode, with its events.

        On a GPU the events are those of the tokens before, which is done while it computes.
        """
        self.prefill()
        events = [(row, row.new_events()) for row in self.decode()]
        self._drop_finished()  # those that a stop string has ended
        return events

    @torch.inference_mode()
    def prefill(self) -> None:
        """One pass over queued prompts; those that it completes take part in the next decode."""
        completed = self.prefiller.step(is_alone=not self.rows)
        if completed:
            self._join(completed, self.prefiller.cache)

    @torch.inference_mode()
    def decode(self) -> list[RowState]:
        """One token for each sequence in decode; returns those that have one more. Some may leave.

        Where the host reads late, the next tokens are computed meanwhile from those that it has
        not read. What a row gets after its end or a tool call is taken back.
        """
        self._resume()
        sampled, self._unread = self._unread, None
        # Log-probabilities are read with their tokens, from the logits at hand.
        reads_late = self.decode_step.mode.reads_late and all(
            row.request.num_top_logprobs is None for row in self.rows
        )
        if reads_late and any(row.can_continue for row in self.rows):
            self._unread = self._sample(waits=False)
            if any(row.can_continue for row in self.rows):
                self._forward(self._unread)
        elif sampled is None and self.rows:
            return self._decode_at_once()
        rows = self._append(sampled) if sampled and self.rows else []
        self._drop_finished()
        self._suspend()
        return rows

    def _decode_at_once(self) -> list[RowState]:
        """As `decode` where the host reads a token before the next pass."""
        rows = self._append(self._sample(waits=True))
        self._set_logprobs()
        self._drop_finished()  # before the forward pass, so that none runs for them
        if self.rows:
            tokens = on_device([row.tokens[-1] for row in self.rows], self.logits.device)
            self.logits = self.decode_step(tokens)
        # After the pass: a suspended row then holds the logits that it resumes from.
        self._suspend()
        return rows

    def _sample(self, waits: bool) -> _Sampled:
        """The next token of each row, on the device."""
        rows = [row if row.can_continue else None for row in self.rows]
        draws = [row.draw() if row else Draw(None) for row in rows]
        sampling = [row.request.sampling for row in self.rows]
        uniforms = [draw.uniform for draw in draws]
        tokens = sample_next_token(self.logits, sampling, uniforms, waits)
        if any(draw.forced is not None for draw in draws):
            forced = [-1 if draw.forced is None else draw.forced for draw in draws]
            known = on_device(forced, tokens.device)
            tokens = torch.where(known >= 0, known, tokens)
        return _Sampled(rows, draws, tokens)

    def _forward(self, sampled: _Sampled) -> None:
        """The pass over tokens that the host has not read."""
        last = self.cache.config.sequence_len - 1
        for slot, row in enumerate(sampled.rows):
            if row is None:  # its answer is complete: what the pass writes behind it is not read
                self.cache.lengths[slot] = min(self.cache.lengths[slot], last)
        self.logits = self.decode_step(sampled.tokens)

    def _append(self, sampled: _Sampled) -> list[RowState]:
        """Read the tokens; returns the rows that have one more."""
        tokens = zip(sampled.rows, sampled.draws, sampled.read(), strict=True)
        rows = []
        for row, draw, token in tokens:
            if row is not None and not row.finish_reason:
                row.append(token, draw, self.end_tokens)
                rows.append(row)
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
        """Cancel the calls of tools; the batch is of no more use."""
        for one in self.suspended:
            one.row.tool_calls.cancel()
        self.decode_step.is_taken = False

    def _join(self, completed: Sequence[Completed], cache: KVCache) -> None:
        """Start decoding rows that continue from slots of another cache."""
        slots = [one.slot for one in completed for _ in one.rows]
        targets = range(len(self.rows), len(self.rows) + len(slots))
        self.cache.copy_slots(slots, targets, cache)
        self.rows += [row for one in completed for row in one.rows]
        logits = [one.logits.expand(len(one.rows), -1) for one in completed]
        self.logits = torch.cat([self.logits, *logits])

    def _resume(self) -> None:
        suspended, self.suspended = self.suspended, []
        for one in suspended:
            if one.row.is_suspended:
                self.suspended.append(one)
            else:
                self._join([Completed([one.row], 0, one.logits)], one.cache)

    def _suspend(self) -> None:
        """Take out rows that wait for a tool, and take back what came too early after a call."""
        slots = []
        for slot, row in enumerate(self.rows):
            if row.tool_calls.pending is None:
                continue
            is_suspended = row.is_suspended
            if not is_suspended:
                row.take_output()
            logits = self.logits[slot]
            if self._unread and (is_suspended or row.forced):
                token = self._unread.take_back(row)
                self.cache.lengths[slot] -= 1
                # Without an output the row resumes with this very token: no other can be drawn.
                logits = torch.full_like(logits, -torch.inf).index_fill_(0, token, 0.0)
            if is_suspended:
                cache = self.decode_step.new_cache(1)
                cache.copy_slots([slot], [0], self.cache)
                # A clone: `logits` is overwritten by later steps.
                self.suspended.append(_Suspended(row, cache, logits.clone()))
                slots.append(slot)
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
        # The newest token may not have been through the model: the cache may end before it.
        tokens = [*row.prompt, *row.tokens[:-1]][: cache.lengths[slot]]
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
