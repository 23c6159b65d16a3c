"""Inference: a cache of keys and values with a slot for each row, sampling, tools, batches.

Rows of different lengths share a batch; a finished row leaves at once and a waiting prompt takes
its slot. What a row gets does not depend on its neighbours.

# B batch (active rows)  T time  H heads  K kv heads  D head dim  V vocab
"""

import codecs
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat import calculator, runtime
from nanochat.chat import ToolCalls
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig, attend_causally
from nanochat.tokenizer import RustBPETokenizer

CAPACITY_STEP = 128  # positions by which a cache grows
GREEDY_BELOW = 1e-4  # temperatures under this are greedy: dividing by them overflows
MAX_OUTPUT_TOKENS = 64  # of one tool call


# ---- the cache


class KVCache:
    """Keys and values of rows 0 ... B-1, each with its own length; a forward sees a window of rows.

    The rows in use are kept together at the front, so that a batch is a slice and not a copy.
    """

    def __init__(
        self, config: GPTConfig, num_rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config = config
        self.lengths = [0] * num_rows
        shape = num_rows, config.n_kv_head, 0, config.head_dim
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        self.window = slice(0, num_rows)

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return self.keys[0].size(2)

    def look_at(self, first: int, count: int) -> None:
        """The next forward passes are about rows first ... first + count - 1."""
        self.window = slice(first, first + count)

    def positions(self, num_new: int) -> Tensor:
        """(B, T) int64 positions of the next tokens; makes room for them.

        Raises UserError when they pass the end of the model's context.
        """
        lengths = self.lengths[self.window]
        needed, limit = max(lengths) + num_new, self.config.sequence_len
        if needed > limit:
            raise UserError(f"{needed} tokens are more than the model's context of {limit}")
        self._grow_to(needed)
        device = self.keys[0].device
        starts = torch.tensor(lengths, device=device)
        self._positions = starts[:, None] + torch.arange(num_new, device=device)
        self._visible = self._mask(lengths, num_new)
        return self._positions

    def _mask(self, lengths: list[int], num_new: int) -> Tensor | None:
        """(B, 1, T, S) True where a query may look; None where causal or full look will do."""
        is_level = min(lengths) == max(lengths)
        if is_level and (num_new == 1 or lengths[0] == 0):
            return None
        keys = torch.arange(max(lengths) + num_new, device=self._positions.device)
        return (keys <= self._positions[:, :, None])[:, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep k and v (B, K, T, D), return attention of q (B, H, T, D) over all that is kept."""
        num_new, end = q.size(2), max(self.lengths[self.window]) + q.size(2)
        keys, values = self.keys[layer][self.window], self.values[layer][self.window]
        rows = torch.arange(keys.size(0), device=keys.device)[:, None]
        keys[rows, :, self._positions] = k.transpose(1, 2).to(keys.dtype)
        values[rows, :, self._positions] = v.transpose(1, 2).to(values.dtype)
        if self._visible is None and num_new > 1:
            return attend_causally(q, k, v)
        return F.scaled_dot_product_attention(
            q, keys[:, :, :end], values[:, :, :end], attn_mask=self._visible,
            enable_gqa=q.size(1) != k.size(1),
        )  # fmt: skip

    def advance(self, counts: Sequence[int]) -> None:
        """The rows of the window have taken in so many tokens each."""
        for row, count in zip(range(self.window.start, self.window.stop), counts, strict=True):
            self.lengths[row] += count

    def copy_row(self, source: int, target: int) -> None:
        """Make a row what another one is."""
        length = self.lengths[source]
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]
        self.lengths[target] = length

    def _grow_to(self, needed: int) -> None:
        if needed <= self.capacity:
            return
        steps = -(-max(needed, 2 * self.capacity) // CAPACITY_STEP)
        extra = min(steps * CAPACITY_STEP, self.config.sequence_len) - self.capacity
        self.keys = [F.pad(store, (0, 0, 0, extra)) for store in self.keys]
        self.values = [F.pad(store, (0, 0, 0, extra)) for store in self.values]


# ---- sampling


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_k: int | None = None
    """Only the k likeliest; None, 0 and below, or more than the vocabulary: all."""
    top_p: float = 1.0
    """Only the likeliest that together reach this probability."""
    min_p: float = 0.0
    """Only what has at least this share of the likeliest one's probability."""

    def num_candidates(self, num_tokens: int) -> int:
        """How many of `num_tokens` tokens top_k leaves."""
        return min(self.top_k, num_tokens) if self.top_k and self.top_k > 0 else num_tokens


def sample_next_token(logits: Tensor, how: Sequence[Sampling], uniforms: Sequence[float]) -> Tensor:
    """(B,) int64 tokens from logits (B, V), each row in its own way.

    uniforms: a number in [0, 1) for each row, which alone decides its draw.
    """
    likeliest = logits.argmax(dim=-1)
    if all(one.temperature < GREEDY_BELOW for one in how):
        return likeliest
    num_tokens = logits.size(-1)
    limits = [one.num_candidates(num_tokens) for one in how]
    values, tokens = logits.float().topk(max(limits), dim=-1)

    def column(numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, device=logits.device)[:, None]

    heat = column([max(one.temperature, GREEDY_BELOW) for one in how])
    ranks = torch.arange(values.size(-1), device=logits.device)
    values = (values / heat).masked_fill(ranks >= column(limits), -torch.inf)
    shares = values.softmax(dim=-1)
    before = shares.cumsum(dim=-1) - shares  # what the likelier ones have together
    top_p, min_p = column([one.top_p for one in how]), column([one.min_p for one in how])
    out = ((before >= top_p) & (ranks > 0)) | (shares < min_p * shares[:, :1])
    summed = shares.masked_fill(out, 0.0).cumsum(dim=-1)
    aims = column(uniforms) * summed[:, -1:]  # in float32 this may be all of the sum
    chosen = (summed < aims).sum(dim=-1, keepdim=True)
    drawn = tokens.gather(-1, chosen).squeeze(-1)
    is_greedy = column([float(one.temperature < GREEDY_BELOW) for one in how]).squeeze(-1) > 0
    return torch.where(is_greedy, likeliest, drawn)


# ---- rows


@dataclass
class RowState:
    """One answer in the making."""

    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    dice: random.Random
    tools: ToolCalls
    tokens: list[int] = field(default_factory=list)
    """Of the answer, sampled and forced, the end token included."""
    mask: list[int] = field(default_factory=list)
    """1 for a sampled token, 0 for a forced one."""
    forced: deque[int] = field(default_factory=deque)
    stop: Literal["", "end", "length"] = ""
    num_likeliest: int | None = None
    """None, or how many of the likeliest tokens are noted beside each that is taken."""
    choice: "TokenChoice | None" = None
    """The newest token's, where it is noted."""

    def take(self, token: int, is_forced: bool, end_tokens: frozenset[int]) -> None:
        """Add a token and find out whether the answer has ended."""
        self.tokens.append(token)
        self.mask.append(0 if is_forced else 1)
        if not is_forced:
            self.forced.extend(self.tools.feed(token))
            if token in end_tokens:
                self.stop = "end"
        if not self.stop and len(self.tokens) >= self.max_tokens:
            self.stop = "length"


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
    sampling: Sampling = Sampling()
    seed: int = 0
    stop: Sequence[str] = ()
    """Strings that end the answer and are left out of it."""
    num_likeliest: int | None = None
    """A number: a `TokenChoice` for each token of text, with so many of the likeliest."""


@dataclass(frozen=True)
class TokenChoice:
    """How likely a token was, before temperature, and what was likeliest in its place."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]
    """(token, logprob), the likeliest first."""


@dataclass(frozen=True)
class TextPiece:
    """Text in whole code points."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """What was computed and what came out; None when the tool refused."""

    expression: str
    result: str | None


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: Literal["stop", "length"]
    num_prompt_tokens: int
    num_tokens: int


Event = TokenChoice | TextPiece | ToolCall | Finished


# ---- the engine


def padded(rows: Sequence[list[int]]) -> Tensor:
    """(B, T) int64 of rows of tokens, with zeros behind those that are shorter than the longest."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


class _Running:
    """The rows of one batch: a cache and, for each row, the logits of its next token."""

    def __init__(self, model: GPT, num_rows: int, end_tokens: frozenset[int]) -> None:
        device = model.embedding.weight.device
        self.model, self.end_tokens = model, end_tokens
        self.cache = KVCache(model.config, num_rows, device, model.compute_dtype)
        self.rows: list[RowState] = []
        self.logits = torch.empty(0, model.config.vocab_size, device=device)

    def admit(self, rows: list[RowState]) -> None:
        """Read the prompts, padded on the right; equal prompts one after another are read once."""
        firsts = [i for i, row in enumerate(rows) if i == 0 or row.prompt is not rows[i - 1].prompt]
        prompts = [rows[i].prompt for i in firsts]
        start, lengths = len(self.rows), [len(prompt) for prompt in prompts]
        for row in range(start, start + len(rows)):
            self.cache.lengths[row] = 0
        logits = self._forward(start, padded(prompts), lengths)
        source = torch.bucketize(torch.arange(len(rows)), torch.tensor(firsts), right=True) - 1
        for i in reversed(range(len(rows))):  # backwards: a source is read before it is written
            if i != int(source[i]):
                self.cache.copy_row(start + int(source[i]), start + i)
        self.logits = torch.cat([self.logits, logits[source.to(logits.device)]])
        self.rows += rows

    def step(self) -> list[int]:
        """Give each row its next token; returns the tokens. Rows that end leave the batch."""
        uniforms = [row.dice.random() if not row.forced else 0.0 for row in self.rows]
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
            last = torch.tensor([[row.tokens[-1]] for row in self.rows])
            self.logits = self._forward(0, last, [1] * len(self.rows))
        return taken

    def drop_finished(self) -> None:
        """Fill the place of each row that has ended with the last row."""
        for i in reversed(range(len(self.rows))):
            if self.rows[i].stop:
                last = len(self.rows) - 1
                if i != last:
                    self.cache.copy_row(last, i)
                    self.rows[i] = self.rows[last]
                    self.logits[i] = self.logits[last]
                self.rows.pop()
        self.logits = self.logits[: len(self.rows)]

    def _note_choices(self, taken: list[int]) -> None:
        """Give the rows that want it the choice that the token just taken was."""
        asked = [(i, row.num_likeliest) for i, row in enumerate(self.rows)]
        wanted = {i: number for i, number in asked if number is not None}
        if wanted:
            tokens = torch.tensor([taken[i] for i in wanted], device=self.logits.device)
            choices = token_choices(self.logits[list(wanted)], tokens, max(wanted.values()))
            for (i, number), choice in zip(wanted.items(), choices, strict=True):
                self.rows[i].choice = replace(choice, likeliest=choice.likeliest[:number])

    def _forward(self, first: int, tokens: Tensor, lengths: list[int]) -> Tensor:
        """(B, V) logits after the last token of each row."""
        device = self.logits.device
        self.cache.look_at(first, len(lengths))
        at = torch.tensor(lengths, device=device) - 1
        logits = self.model(tokens.to(device), kv_cache=self.cache, logits_at=at)
        self.cache.advance(lengths)
        return logits[:, 0]


def token_choices(logits: Tensor, tokens: Tensor, num_likeliest: int) -> list[TokenChoice]:
    """A choice for each of tokens (N,), drawn from logits (N, V)."""
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(-1, tokens[:, None]).squeeze(-1).tolist()
    values, likeliest = logprobs.topk(min(num_likeliest, logits.size(-1)), dim=-1)
    rows = zip(tokens.tolist(), own, likeliest.tolist(), values.tolist(), strict=True)
    return [
        TokenChoice(token, logprob, tuple(zip(others, theirs, strict=True)))
        for token, logprob, others, theirs in rows
    ]


class Engine:
    """Answers prompts with a model; tool calls are evaluated by the calculator."""

    def __init__(self, model: GPT, tokenizer: RustBPETokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.end_token = tokenizer.encode_special("<|assistant_end|>")
        self.end_tokens = frozenset({self.end_token, tokenizer.get_bos_token_id()})

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
            dice=random.Random(seed),
            tools=ToolCalls(self.tokenizer, calculator.evaluate, MAX_OUTPUT_TOKENS),
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
            seed = [runtime.derive_seed(seed, i) for i in range(len(prompts))]
        rows = [
            self._row(prompt, sampling, max_tokens, runtime.derive_seed(prompt_seed, sample))
            for prompt, prompt_seed in zip(prompts, seed, strict=True)
            for sample in range(num_samples)
        ]
        for _ in self._run(rows, batch_size):
            pass
        return [Completion(row.tokens, row.mask, row.stop or "length") for row in rows]

    @torch.inference_mode()
    def _run(self, rows: list[RowState], batch_size: int) -> Iterator[None]:
        """Work until all rows have ended; yields after each token of the running ones."""
        running = _Running(self.model, min(batch_size, max(1, len(rows))), self.end_tokens)
        waiting = deque(row for row in rows if row.max_tokens > 0)
        while waiting or running.rows:
            free = len(running.cache.lengths) - len(running.rows)
            # Reading a few prompts costs a pass, so slots are refilled a quarter at a time.
            if waiting and (not running.rows or free >= len(running.cache.lengths) // 4 > 0):
                running.admit([waiting.popleft() for _ in range(min(free, len(waiting)))])
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

        A sample that has ended is filled up with its end token and mask 0.
        """
        sampling = Sampling(temperature, top_k)
        rows = [
            self._row(tokens, sampling, max_tokens, runtime.derive_seed(seed, sample))
            for sample in range(num_samples)
        ]
        for i, _ in enumerate(self._run(rows, num_samples)):
            yield (
                [row.tokens[i] if i < len(row.tokens) else self.end_token for row in rows],
                [row.mask[i] if i < len(row.mask) else 0 for row in rows],
            )

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
    def score(self, tokens: list[int], num_likeliest: int = 0) -> list[TokenChoice]:
        """How likely each token but the first is after those before it, as if it had been drawn.

        Raises UserError when they pass the model's context.
        """
        ids = torch.tensor(tokens, device=self.model.embedding.weight.device)
        logits = self.model(ids[None])[0]
        return token_choices(logits[:-1], ids[1:], num_likeliest)

    def stream_text(
        self,
        prompt: list[int],
        max_tokens: int | None = None,
        sampling: Sampling = Sampling(),
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[Event]:
        """Pieces of one answer as they come; closing the iterator ends the work.

        Text comes in whole code points, without stop strings and special tokens.
        """
        answer = LiveAnswer(self, Request(prompt, max_tokens, sampling, seed, stop))
        if answer.row.max_tokens == 0:
            yield answer.finished()
        for _ in self._run([answer.row], 1):
            yield from answer.new_events()
            if answer.row.stop:  # by a stop string, perhaps
                return

    def open(self, num_slots: int) -> "LiveBatch":
        """Room for `num_slots` answers at once."""
        return LiveBatch(self, num_slots)


class LiveAnswer:
    """One request being answered: its row, and its tokens as events."""

    def __init__(self, engine: Engine, request: Request) -> None:
        """Raises UserError when the prompt leaves no room for an answer."""
        self.row = engine._row(request.prompt, request.sampling, request.max_tokens, request.seed)
        self.row.num_likeliest = request.num_likeliest
        self._text = _TextStream(engine.tokenizer, request.stop)

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
            yield self.finished()

    def finished(self) -> Finished:
        """The end of it, as it stands."""
        reason: Literal["stop", "length"] = "stop" if self.row.stop == "end" else "length"
        return Finished(reason, len(self.row.prompt), len(self.row.tokens))


class LiveBatch:
    """Answers that come and go: each step gives every one of them its next token."""

    def __init__(self, engine: Engine, num_slots: int) -> None:
        self.engine = engine
        self._running = _Running(engine.model, num_slots, engine.end_tokens)
        self._answers: dict[int, LiveAnswer] = {}

    @property
    def cache_use(self) -> float:
        """Share of the cache's positions that hold something."""
        cache = self._running.cache
        used = sum(cache.lengths[: len(self._running.rows)])
        return used / (len(cache.lengths) * cache.capacity) if cache.capacity else 0.0

    @torch.inference_mode()
    def admit(self, requests: Sequence[Request]) -> list[LiveAnswer]:
        """Read their prompts; equal ones (the same list) after another are read once.

        Raises UserError, and admits none, when a prompt leaves no room for an answer.
        """
        answers = [LiveAnswer(self.engine, request) for request in requests]
        self._running.admit([answer.row for answer in answers])
        self._answers |= {id(answer.row): answer for answer in answers}
        return answers

    @torch.inference_mode()
    def step(self) -> list[tuple[LiveAnswer, list[Event]]]:
        """Each answer with what its next token makes; those that end leave the batch."""
        stepped = [self._answers[id(row)] for row in self._running.rows]
        self._running.step()
        events = [(answer, list(answer.new_events())) for answer in stepped]
        self._leave()
        return events

    @torch.inference_mode()
    def cancel(self, answer: LiveAnswer) -> None:
        """It leaves the batch at once."""
        answer.row.stop = answer.row.stop or "length"
        self._leave()

    def _leave(self) -> None:
        """Those that a stop string or a cancelling has ended leave; the others stay."""
        self._running.drop_finished()
        self._answers = {id(row): self._answers[id(row)] for row in self._running.rows}


class _TextStream:
    """Turns tokens into events: tool calls as one event, text in whole code points."""

    def __init__(self, tokenizer: RustBPETokenizer, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop = [string for string in stop if string]
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.names = {
            tokenizer.encode_special(name): name for name in tokenizer.get_special_tokens()
        }
        self.held = ""
        self.has_stopped = False
        self.inside = ""
        self.collected: list[int] = []
        self.expression = ""

    def is_text(self, token: int) -> bool:
        """Whether a token is read by people: not special, and not inside of a tool call."""
        return token not in self.names and not self.inside

    def feed(self, token: int, is_forced: bool) -> Iterator[TextPiece | ToolCall]:
        """Events that one more token makes."""
        name = self.names.get(token)
        if name is None and self.inside:
            self.collected.append(token)
        elif name is None:
            yield from self._release(self.decoder.decode(self.tokenizer.decode_bytes([token])))
        elif name in ("<|python_start|>", "<|output_start|>"):
            if name == "<|python_start|>" and self.expression:
                yield self._tool_call(None)
            self.inside, self.collected = name, []
        elif name == "<|python_end|>" and self.inside == "<|python_start|>":
            self.expression, self.inside = self.tokenizer.decode(self.collected), ""
        elif name == "<|output_end|>":
            self.inside = ""
            if is_forced:  # else the model has made the output up
                yield self._tool_call(self.tokenizer.decode(self.collected))

    def _tool_call(self, result: str | None) -> ToolCall:
        call = ToolCall(self.expression, result)
        self.expression = ""
        return call

    def _release(self, new: str, is_last: bool = False) -> Iterator[TextPiece | ToolCall]:
        if new and self.expression:  # text right after a call: the tool has refused
            yield self._tool_call(None)
        self.held += new
        found = [at for at in (self.held.find(string) for string in self.stop) if at >= 0]
        if found:
            self.held, self.has_stopped = self.held[: min(found)], True
        keep = 0 if is_last or self.has_stopped else self._possible_stop()
        released, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        if released:
            yield TextPiece(released)

    def _possible_stop(self) -> int:
        """How many characters at the end could be the beginning of a stop string."""
        longest = max(map(len, self.stop), default=0)
        for length in range(min(longest, len(self.held)), 0, -1):
            if any(string.startswith(self.held[-length:]) for string in self.stop):
                return length
        return 0

    def flush(self) -> Iterator[TextPiece | ToolCall]:
        """What was held back."""
        if not self.has_stopped:
            yield from self._release(self.decoder.decode(b"", final=True), is_last=True)
        if self.expression:
            yield self._tool_call(None)
