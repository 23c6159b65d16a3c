"""Prompts into a cache: a piece at a time, once for all samples, and only what is not known yet.

A pass takes so many tokens that those who are being answered hardly wait for it; a long prompt
takes several. What was read for one turn of a conversation is not read again for the next.

B batch (prompts of a pass)  T time  V vocab
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.inference.kv_cache import KVCache

TOKENS_PER_PASS = {"cpu": 512}  # padding included; more is little faster, dev/LOG.md 2026-11-24
TOKENS_PER_PASS_ELSEWHERE = 2048
PROMPTS_PER_PASS = 16  # each of them has a row of the reader's cache
LEAST_SHARED = 16  # tokens below which a known beginning is not worth a copy


def padded(rows: Sequence[list[int]]) -> Tensor:
    """(B, T) int64 of rows of tokens, with zeros behind those that are shorter than the longest."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    shortest = min(len(left), len(right))
    return next((i for i in range(shortest) if left[i] != right[i]), shortest)


class Prefixes:
    """Keys and values of texts that may go on, the newest last, of so many tokens in all."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._kept: list[tuple[list[int], KVCache]] = []

    def keep(self, tokens: list[int], cache: KVCache, row: int) -> None:
        """Remember what a row of a cache holds; what this text goes on from is dropped."""
        if not LEAST_SHARED <= len(tokens) <= self.max_tokens:
            return
        others = [one for one in self._kept if num_shared(one[0], tokens) < len(one[0])]
        own = KVCache(cache.config, 1, cache.keys[0].device, cache.keys[0].dtype)
        own.copy_row(row, 0, of=cache, length=len(tokens))
        self._kept = [*others, (tokens, own)]
        while sum(len(text) for text, _ in self._kept) > self.max_tokens:
            self._kept.pop(0)

    def begin(self, prompt: list[int], cache: KVCache, row: int) -> None:
        """Give a row the longest beginning of the prompt that is known; its last token never is."""
        cache.lengths[row] = 0
        found = [(num_shared(text, prompt[:-1]), own) for text, own in self._kept]
        length, own = max(found, key=lambda one: one[0], default=(0, cache))
        if length >= LEAST_SHARED:
            cache.copy_row(0, row, of=own, length=length)


class Row(Protocol):
    """What reading asks of an answer that is to follow a prompt."""

    @property
    def prompt(self) -> list[int]: ...

    @property
    def stop(self) -> str:
        """Not empty: it is no longer wanted."""


RowType = TypeVar("RowType", bound=Row)


@dataclass
class _Prompt(Generic[RowType]):
    """One prompt and all answers that are to follow it."""

    tokens: list[int]
    rows: list[RowType] = field(default_factory=list)


@dataclass(frozen=True)
class Read(Generic[RowType]):
    """A prompt that has been read."""

    rows: list[RowType]
    source: int
    """Its row in the reader's cache, until the next pass."""
    logits: Tensor
    """(V,) of the first token."""


class Reader(Generic[RowType]):
    """Reads prompts in the order in which they came, several at once, into a cache of its own."""

    def __init__(self, model: GPT, prefixes: Prefixes) -> None:
        device = model.embedding.weight.device
        self.model, self.prefixes = model, prefixes
        self.tokens_per_pass = TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS_ELSEWHERE)
        self.cache = KVCache(model.config, PROMPTS_PER_PASS, device, model.compute_dtype)
        self._waiting: deque[_Prompt[RowType]] = deque()
        self._begun: list[_Prompt[RowType]] = []

    @property
    def num_rows(self) -> int:
        """Answers that wait for their prompt to be read."""
        prompts = [*self._begun, *self._waiting]
        return sum(not row.stop for prompt in prompts for row in prompt.rows)

    def add(self, rows: Sequence[RowType]) -> None:
        """Prompts to be read; equal ones (the same list) after another are read once."""
        for i, row in enumerate(rows):
            if i == 0 or row.prompt is not rows[i - 1].prompt:
                self._waiting.append(_Prompt(row.prompt))
            self._waiting[-1].rows.append(row)

    def read(self) -> Iterator[Read[RowType]]:
        """One pass, if there is anything to read; yields the prompts that end with it."""
        self._begin_some()
        if not self._begun:
            return
        starts = self.cache.lengths[: len(self._begun)]
        rest = [one.tokens[n:] for one, n in zip(self._begun, starts, strict=True)]
        # Where a known beginning is long, padding must not pass the end of the context.
        room = self.model.config.sequence_len - max(starts)
        width = min(max(1, self.tokens_per_pass // len(rest)), room)
        pieces = [tokens[:width] for tokens in rest]
        logits = self._forward(padded(pieces), [len(piece) for piece in pieces])
        ended = [i for i, tokens in enumerate(rest) if len(tokens) <= width]
        for i in ended:
            rows = [row for row in self._begun[i].rows if not row.stop]
            yield Read(rows, i, logits[i])
        self._drop(ended)

    def _forward(self, tokens: Tensor, lengths: list[int]) -> Tensor:
        device = self.cache.keys[0].device
        self.cache.look_at(0, len(lengths))
        at = torch.tensor(lengths, device=device) - 1
        logits = self.model(tokens.to(device), kv_cache=self.cache, logits_at=at)
        self.cache.advance(lengths)
        return logits[:, 0]

    def _begin_some(self) -> None:
        self._drop([i for i, one in enumerate(self._begun) if all(row.stop for row in one.rows)])
        while self._waiting and len(self._begun) < len(self.cache.lengths):
            prompt = self._waiting.popleft()
            if not all(row.stop for row in prompt.rows):
                self.prefixes.begin(prompt.tokens, self.cache, len(self._begun))
                self._begun.append(prompt)

    def _drop(self, places: Sequence[int]) -> None:
        """Fill the place of each with the last of the prompts that were begun."""
        for i in reversed(places):
            last = len(self._begun) - 1
            if i != last:
                self.cache.copy_row(last, i)
                self._begun[i] = self._begun[last]
            self._begun.pop()
