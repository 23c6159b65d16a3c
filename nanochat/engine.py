"""Inference: batches of rows that come and go, sampling, tools.

Rows of different lengths share a batch; a finished row leaves at once and a waiting prompt takes
its slot. A row that waits for a slow tool keeps its slot and stands aside, and the others go on.
What a row gets does not depend on its neighbours, nor on how long it waited.

B batch (active rows)  T time  V vocab
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from nanochat import calculator
from nanochat.chat import ToolCalls
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.inference.decode import DecodeStep
from nanochat.inference.detokenizer import Event, Finished, TextStream
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.prefill import Prefixes, Reader
from nanochat.inference.prepacked import packed
from nanochat.inference.sampling import (
    GREEDY,
    Sampling,
    TokenChoice,
    sample_next_token,
    token_choices,
)
from nanochat.inference.tools import Immediate, Tool
from nanochat.runtime import derive_seed
from nanochat.tokenizer import RustBPETokenizer

MAX_OUTPUT_TOKENS = 64  # of one tool call
KEPT_CONTEXTS = 4  # full ones of conversations that may go on
CALCULATOR = Immediate(calculator.evaluate)


# ---- rows


@dataclass
class RowState:
    """One answer in the making."""

    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    rng: random.Random
    tools: ToolCalls
    tokens: list[int] = field(default_factory=list)
    """Of the answer, sampled and forced, the end token included."""
    mask: list[int] = field(default_factory=list)
    """1 for a sampled token, 0 for a forced one."""
    forced: deque[int] = field(default_factory=deque)
    stop: Literal["", "end", "length"] = ""
    num_top_logprobs: int | None = None
    """None, or how many of the most likely tokens are noted beside each that is taken."""
    choice: TokenChoice | None = None
    """The newest token's, where it is noted."""

    def take(self, token: int, is_forced: bool, end_tokens: frozenset[int]) -> None:
        """Add a token and find out whether the answer has ended."""
        self.tokens.append(token)
        self.mask.append(0 if is_forced else 1)
        if not is_forced and token in end_tokens:
            self.stop = "end"
        elif len(self.tokens) >= self.max_tokens:
            self.stop = "length"
        elif not is_forced:
            self.tools.feed(token)


@dataclass(frozen=True)
class Completion:
    """One finished answer."""

    tokens: list[int]
    mask: list[int]
    """1 for a sampled token, 0 for one that a tool forced."""
    stop: Literal["end", "length"]


@dataclass(frozen=True)
class Request:
    """A prompt and how it is to be answered."""

    prompt: list[int]
    max_tokens: int | None = None
    """None: until the context is full."""
    sampling: Sampling = GREEDY
    seed: int = 0
    stop: Sequence[str] = ()
    """Strings that end the answer and are left out of it."""
    num_top_logprobs: int | None = None
    """A number: a `TokenChoice` for each token of text, with so many of the most likely."""


# ---- the engine


@dataclass(frozen=True)
class _Aside:
    """A row whose tool has not answered yet, and what it goes on from."""

    row: RowState
    cache: KVCache
    """Of this row alone."""
    logits: Tensor
    """(V,) of its next token."""


class _Running:
    """The rows of one batch: a cache and, for each row, the logits of its next token."""

    def __init__(
        self, model: GPT, num_rows: int, end_tokens: frozenset[int], prefixes: Prefixes
    ) -> None:
        device = model.embedding.weight.device
        self.end_tokens, self.prefixes = end_tokens, prefixes
        self.reader: Reader[RowState] = Reader(model, prefixes)
        self._new_cache = partial(KVCache, model.config, device=device, dtype=model.compute_dtype)
        self.cache = self._new_cache(num_rows)
        self.decode = DecodeStep(model, self.cache, is_static=device.type == "cuda")
        self.rows: list[RowState] = []
        self.aside: list[_Aside] = []
        self.logits = torch.empty(0, model.config.vocab_size, device=device)

    @property
    def num_free(self) -> int:
        """Rows that there is room for."""
        num_taken = len(self.rows) + len(self.aside) + self.reader.num_rows
        return len(self.cache.lengths) - num_taken

    def read(self) -> None:
        """One pass over prompts that wait; those that end with it take part in the next step."""
        for prompt in self.reader.read():
            self._join(prompt.rows, self.reader.cache, prompt.source, prompt.logits)

    def _join(self, rows: Sequence[RowState], cache: KVCache, place: int, logits: Tensor) -> None:
        """Rows that all go on from one row of another cache, and its logits (V,)."""
        for row in rows:
            self.cache.copy_row(place, len(self.rows), of=cache)
            self.rows.append(row)
        self.logits = torch.cat([self.logits, logits.expand(len(rows), -1)])

    def wait(self) -> None:
        """Until a tool has answered, where nothing else can be done."""
        if self.aside and not self.rows and not self.reader.num_rows:
            calls = [one.row.tools.call for one in self.aside]
            futures.wait([call for call in calls if call], return_when=futures.FIRST_COMPLETED)

    def call_back(self) -> None:
        """Rows whose tools have answered take part in the next step."""
        aside, self.aside = self.aside, []
        for one in aside:
            if one.row.tools.is_waiting:
                self.aside.append(one)
            else:
                self._join([one.row], one.cache, 0, one.logits)

    def step(self) -> list[int]:
        """Give each row its next token; returns the tokens. Rows that end leave the batch."""
        for row in self.rows:
            row.forced.extend(row.tools.forced())
        uniforms = [row.rng.random() if not row.forced else 0.0 for row in self.rows]
        how = [row.sampling for row in self.rows]
        sampled = sample_next_token(self.logits, how, uniforms).tolist()
        taken = []
        for row, token in zip(self.rows, sampled, strict=True):
            is_forced = bool(row.forced)
            token = row.forced.popleft() if is_forced else token
            row.take(token, is_forced, self.end_tokens)
            taken.append(token)
        self._note_choices(taken)
        self.drop_finished()
        if self.rows:
            self.logits = self.decode([row.tokens[-1] for row in self.rows])
        self._set_aside()
        return taken

    def drop_finished(self) -> None:
        """Rows that have ended leave; nobody waits for their tools."""
        ended = [i for i, row in enumerate(self.rows) if row.stop]
        for i in ended:
            self._remember(self.rows[i], self.cache, i)
        self._take_out(ended)
        for one in self.aside:
            if one.row.stop:
                self._remember(one.row, one.cache, 0)
                one.row.tools.cancel()
        self.aside = [one for one in self.aside if not one.row.stop]

    def _set_aside(self) -> None:
        """Rows whose tools take their time make way for the others."""
        waiting = [i for i, row in enumerate(self.rows) if row.tools.is_waiting]
        for i in waiting:
            own = self._new_cache(1)
            own.copy_row(i, 0, of=self.cache)
            self.aside.append(_Aside(self.rows[i], own, self.logits[i].clone()))
        self._take_out(waiting)

    def _take_out(self, places: Sequence[int]) -> None:
        """Fill each place, in ascending order, with the last row."""
        for i in reversed(places):
            last = len(self.rows) - 1
            if i != last:
                self.cache.copy_row(last, i)
                self.rows[i] = self.rows[last]
                self.logits[i] = self.logits[last]
            self.rows.pop()
        self.logits = self.logits[: len(self.rows)]

    def _remember(self, row: RowState, cache: KVCache, place: int) -> None:
        tokens = [*row.prompt, *row.tokens][: cache.lengths[place]]
        self.prefixes.keep(tokens, cache, place)

    def close(self) -> None:
        """Nobody waits for any tool."""
        for one in self.aside:
            one.row.tools.cancel()

    def _note_choices(self, taken: list[int]) -> None:
        """Give the rows that want it the choice that the token just taken was."""
        asked = [(i, row.num_top_logprobs) for i, row in enumerate(self.rows)]
        wanted = {i: number for i, number in asked if number is not None}
        if wanted:
            tokens = torch.tensor([taken[i] for i in wanted], device=self.logits.device)
            choices = token_choices(self.logits[list(wanted)], tokens, max(wanted.values()))
            for (i, number), choice in zip(wanted.items(), choices, strict=True):
                self.rows[i].choice = replace(choice, top_logprobs=choice.top_logprobs[:number])


class Engine:
    """Answers prompts with a model; its tool calls are answered by the calculator, or by `tool`."""

    def __init__(self, model: GPT, tokenizer: RustBPETokenizer, tool: Tool = CALCULATOR) -> None:
        self.tokenizer, self.tool = tokenizer, tool
        self._trained, self._packed, self._version = model, model, -1
        self._prefixes = Prefixes(0)
        self.end_token = tokenizer.encode_special("<|assistant_end|>")
        self.end_tokens = frozenset({self.end_token, tokenizer.get_bos_token_id()})

    @property
    def model(self) -> GPT:
        """The model's twin for inference, made anew when the weights have moved since."""
        version = sum(parameter._version for parameter in self._trained.parameters())
        if version != self._version:
            self._packed = self._trained  # one twin at a time
            self._packed = packed(self._trained, self._trained.compute_dtype)
            self._prefixes = Prefixes(KEPT_CONTEXTS * self._trained.config.sequence_len)
            self._version = version
        return self._packed

    def _row(
        self, prompt: list[int], sampling: Sampling, max_tokens: int | None, seed: int
    ) -> RowState:
        """Raises UserError when the prompt leaves no room for an answer."""
        room = self.model.config.sequence_len - len(prompt)
        if not prompt or room < 1:
            raise UserError(
                f"a prompt of {len(prompt)} tokens does not fit the model's context of"
                f" {self.model.config.sequence_len} with room for an answer; shorten it"
            )
        return RowState(
            prompt=prompt,
            sampling=sampling,
            max_tokens=room if max_tokens is None else min(max_tokens, room),
            rng=random.Random(seed),
            tools=ToolCalls(self.tokenizer, self.tool.ask, MAX_OUTPUT_TOKENS),
        )

    def complete(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | Sequence[int] = 0,
        batch_size: int = 64,
        num_samples: int = 1,
    ) -> list[Completion]:
        """`num_samples` answers to each prompt, those of the first prompt first.

        seed: one for all, or one for each prompt; samples and prompts draw independently.
        Raises UserError when a prompt leaves no room for an answer.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p)
        if isinstance(seed, int):
            seed = [derive_seed(seed, i) for i in range(len(prompts))]
        rows = [
            self._row(prompt, sampling, max_tokens, derive_seed(prompt_seed, sample))
            for prompt, prompt_seed in zip(prompts, seed, strict=True)
            for sample in range(num_samples)
        ]
        for _ in self._run(rows, batch_size):
            pass
        return [Completion(row.tokens, row.mask, row.stop or "length") for row in rows]

    @torch.inference_mode()
    def _run(
        self, rows: list[RowState], batch_size: int, prefixes: Prefixes | None = None
    ) -> Iterator[None]:
        """Work until all rows have ended; yields after each token of those that can go on."""
        num_rows = min(batch_size, max(1, len(rows)))
        waiting = deque(row for row in rows if row.max_tokens > 0)
        batch = _Running(self.model, num_rows, self.end_tokens, prefixes or Prefixes(0))
        with closing(batch) as running:
            while waiting or running.rows or running.aside:
                free = running.num_free
                # Reading a few prompts costs a pass, so slots are refilled a quarter at a time.
                if waiting and (not running.rows or free >= len(running.cache.lengths) // 4 > 0):
                    running.reader.add([waiting.popleft() for _ in range(min(free, len(waiting)))])
                while running.reader.num_rows:
                    running.read()
                running.wait()
                running.call_back()
                running.step()
                yield

    def generate(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Columns of `num_samples` tokens and of their masks (1 sampled, 0 forced), as they come.

        A sample that has ended is filled up with its end token and mask 0; one that waits for a
        tool is waited for.
        """
        sampling = Sampling(temperature, top_k)
        rows = [
            self._row(tokens, sampling, max_tokens, derive_seed(seed, sample))
            for sample in range(num_samples)
        ]
        num_given = 0
        for _ in self._run(rows, num_samples):
            longest = max(len(row.tokens) for row in rows)
            known = min((len(row.tokens) for row in rows if not row.stop), default=longest)
            for i in range(num_given, known):
                yield (
                    [row.tokens[i] if i < len(row.tokens) else self.end_token for row in rows],
                    [row.mask[i] if i < len(row.mask) else 0 for row in rows],
                )
            num_given = known

    def generate_batch(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Whole sequences, prompt included and end token left out, and their masks."""
        done = self.complete(
            [tokens], max_tokens, temperature, top_k, seed=[seed], num_samples=num_samples
        )
        cut = [len(one.tokens) - (one.stop == "end") for one in done]
        results = [tokens + one.tokens[:end] for one, end in zip(done, cut, strict=True)]
        masks = [[0] * len(tokens) + one.mask[:end] for one, end in zip(done, cut, strict=True)]
        return results, masks

    @torch.inference_mode()
    def score(self, tokens: list[int], num_top_logprobs: int = 0) -> list[TokenChoice]:
        """How likely each token but the first is after those before it, as if it had been drawn.

        Raises UserError when they pass the model's context.
        """
        ids = torch.tensor(tokens, device=self.model.embedding.weight.device)
        logits = self.model(ids[None])[0]
        return token_choices(logits[:-1], ids[1:], num_top_logprobs)

    def stream_text(
        self,
        prompt: list[int],
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[Event]:
        """Pieces of one answer as they come; closing the iterator ends the work.

        Text comes in whole code points, without stop strings and special tokens.
        """
        batch = self.open(1)
        batch.admit([Request(prompt, max_tokens, sampling, seed, stop)])
        try:
            while batch.num_answers:
                batch.wait()
                for _, events in batch.step():
                    yield from events
        finally:
            batch.close()

    def open(self, num_slots: int) -> "LiveBatch":
        """Room for `num_slots` answers at once."""
        return LiveBatch(self, num_slots)


class LiveAnswer:
    """One request being answered: its row, and its tokens as events."""

    def __init__(self, engine: Engine, request: Request) -> None:
        """Raises UserError when the prompt leaves no room for an answer, or none is wanted."""
        if request.max_tokens is not None and request.max_tokens < 1:
            raise UserError(f"max_tokens={request.max_tokens} must be 1 or more")
        self.row = engine._row(request.prompt, request.sampling, request.max_tokens, request.seed)
        self.row.num_top_logprobs = request.num_top_logprobs
        self._text = TextStream(engine.tokenizer, request.stop)

    @property
    def call(self) -> futures.Future[str | None] | None:
        """What a tool has been asked and not answered yet; None: nothing."""
        return self.row.tools.call if self.row.tools.is_waiting else None

    def new_events(self) -> Iterator[Event]:
        """What the newest token makes; the last token of an answer makes `Finished`, too."""
        row = self.row
        if row.choice is not None and self._text.is_text(row.tokens[-1]):
            yield row.choice
        yield from self._text.feed(row.tokens[-1], is_forced=not row.mask[-1])
        if self._text.has_stopped:
            row.stop = "end"
        if row.stop:
            yield from self._text.flush()
            yield self._finished()

    def _finished(self) -> Finished:
        reason: Literal["stop", "length"] = "stop" if self.row.stop == "end" else "length"
        is_text = not self.row.tokens or self._text.is_text(self.row.tokens[-1])
        choice = None if is_text else self.row.choice
        return Finished(reason, len(self.row.prompt), len(self.row.tokens), choice)


class LiveBatch:
    """Answers that come and go: each step gives every one of them its next token.

    What an answer and its prompt have left in the cache is kept for a while, so that the next turn
    of a conversation is read from there on.
    """

    def __init__(self, engine: Engine, num_slots: int) -> None:
        self.engine = engine
        model = engine.model
        self._running = _Running(model, num_slots, engine.end_tokens, engine._prefixes)
        self._answers: dict[int, LiveAnswer] = {}

    @property
    def num_answers(self) -> int:
        """Those that have not ended."""
        return len(self._answers)

    @property
    def cache_use(self) -> float:
        """Share of the cache's positions that hold something."""
        cache = self._running.cache
        used = sum(cache.lengths[: len(self._running.rows)])
        return used / (len(cache.lengths) * cache.capacity) if cache.capacity else 0.0

    def admit(self, requests: Sequence[Request]) -> list[LiveAnswer]:
        """Their prompts are read in the next steps; equal ones (the same list) in a row once.

        Raises UserError, and admits none, when a prompt leaves no room for an answer.
        """
        answers = [LiveAnswer(self.engine, request) for request in requests]
        self._running.reader.add([answer.row for answer in answers])
        self._answers |= {id(answer.row): answer for answer in answers}
        return answers

    @torch.inference_mode()
    def step(self) -> list[tuple[LiveAnswer, list[Event]]]:
        """Read a piece of the prompts that wait; then those that are read get their next token.

        Returns these with what the token makes; those that end leave the batch, and those whose
        tool has not answered get none.
        """
        self._running.read()
        self._running.call_back()
        stepped = [self._answers[id(row)] for row in self._running.rows]
        if stepped:
            self._running.step()
        events = [(answer, list(answer.new_events())) for answer in stepped]
        self._leave()
        return events

    def wait(self) -> None:
        """Until a step can do something: not before a tool has answered where all wait for one."""
        self._running.wait()

    def close(self) -> None:
        """The end: nobody waits for any tool."""
        self._running.close()

    @torch.inference_mode()
    def cancel(self, answer: LiveAnswer) -> None:
        """It leaves the batch at once."""
        answer.row.stop = answer.row.stop or "length"
        self._leave()

    def _leave(self) -> None:
        """Those that a stop string or a cancelling has ended leave; the others stay."""
        self._running.drop_finished()
        self._answers = {key: one for key, one in self._answers.items() if not one.row.stop}
