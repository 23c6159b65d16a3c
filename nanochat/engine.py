"""Inference: continuous batching, sampling, tool calls. The entry point to `nanochat.inference`.

engine = Engine(model, tokenizer)
engine.complete(prompts)        all answers to many prompts, for evaluation and RL
engine.stream_text(prompt)      one answer as events, for a terminal
engine.open(num_slots)          a `Batch` that a server adds sequences to at any time
engine.logits_at(rows, at)      logits of given sequences, a shared prefix computed once
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat import calculator
from nanochat.gpt import GPT
from nanochat.inference import shared_prefix
from nanochat.inference.batch import Batch
from nanochat.inference.decode import DecodeStep, Mode
from nanochat.inference.detokenizer import Event, Finished, FinishReason, TextPiece, ToolCall
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.prefill import PrefixCache
from nanochat.inference.prepacked import prepack, refresh
from nanochat.inference.sampling import GREEDY, Sampling, TokenLogprob, token_logprobs
from nanochat.inference.sequence import Request, RowState
from nanochat.inference.tools import InlineTool, ThreadedTool, Tool
from nanochat.runtime import derive_seed, set_device
from nanochat.tokenizer import RustBPETokenizer

# The public interface of inference: commands import from here only.
__all__ = [
    "Completion", "Engine", "Event", "Finished", "KVCache", "Request", "RowState", "Sampling",
    "TextPiece", "ThreadedTool", "Tool", "ToolCall", "derive_seed",
]  # fmt: skip

CACHED_CONTEXTS = 4  # size of the prefix cache: a few full conversations
CALCULATOR = InlineTool(calculator.evaluate)


@dataclass(frozen=True)
class Completion:
    tokens: list[int]
    mask: list[int]  # 1 for a sampled token, 0 for one that a tool's output forced
    finish_reason: FinishReason


class Engine:
    """Answers prompts with a model. Its tool calls go to the calculator, or to `tool`."""

    def __init__(
        self,
        model: GPT,
        tokenizer: RustBPETokenizer,
        tool: Tool = CALCULATOR,
        mode: Mode | None = None,
    ) -> None:
        """mode: how passes run; None: as is fastest on the model's device."""
        self.tokenizer, self.tool = tokenizer, tool
        self._source_model, self._packed_model, self._version = model, model, -1
        self.mode = mode or Mode.of(model)
        self._kept_step: DecodeStep | None = None  # with its cache and graphs, for the next batch
        self._prefix_cache = PrefixCache(0)
        self.end_token = tokenizer.encode_special("<|assistant_end|>")
        # A base model has not learned <|assistant_end|>: it ends a document with the next <|bos|>.
        self.end_tokens = frozenset({self.end_token, tokenizer.get_bos_token_id()})

    @property
    def model(self) -> GPT:
        """The model with weights laid out for inference, packed again when they have changed."""
        model = self._source_model
        # PyTorch counts in-place updates per tensor, so no trainer has to notify the engine.
        version = sum(parameter._version for parameter in model.parameters())
        if version != self._version:
            if self._version < 0:
                self._packed_model = prepack(model, model.compute_dtype)
            else:
                refresh(self._packed_model)
            self._prefix_cache = PrefixCache(CACHED_CONTEXTS * model.config.sequence_len)
            self._version = version
        return self._packed_model

    def bind_to_thread(self) -> None:
        """Make the model's GPU the calling thread's current device, which CUDA keeps per thread."""
        set_device(self._source_model.embedding.weight.device)

    def new_row(self, request: Request) -> RowState:
        """The sequence of a request. Raises UserError when the prompt leaves no room."""
        context_length = self._source_model.config.sequence_len
        return RowState(request, self.tokenizer, self.tool, context_length)

    def open(self, num_slots: int) -> Batch:
        """A batch of at most `num_slots` sequences at a time, with the engine's prefix cache."""
        decode_step = self._take_step(num_slots)  # may replace the prefix cache
        return Batch(decode_step, num_slots, self.end_tokens, self._prefix_cache)

    def _take_step(self, num_slots: int) -> DecodeStep:
        """The kept one if it is free and has the slots, or a new one."""
        model, step = self.model, self._kept_step
        if step is None or step.is_taken or len(step.cache.lengths) < num_slots:
            step = self._kept_step = None  # frees it before the new one is made
            step = DecodeStep(model, num_slots, self.mode)
            if step.graphs:  # memory alone is as soon allocated
                self._kept_step = step
        step.is_taken, step.cache.lengths = True, [0] * len(step.cache.lengths)
        return step

    def logits_at(self, rows: Sequence[shared_prefix.Row], positions: Tensor) -> Tensor:
        """As `shared_prefix.logits_at`, to score given texts."""
        return shared_prefix.logits_at(self.model, rows, positions)

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

        seed: one for all prompts or one per prompt; samples draw independently either way.
        Raises UserError when a prompt leaves no room for an answer.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p)
        if isinstance(seed, int):
            seed = [derive_seed(seed, i) for i in range(len(prompts))]
        rows = [
            self.new_row(Request(prompt, max_tokens, sampling, derive_seed(prompt_seed, sample)))
            for prompt, prompt_seed in zip(prompts, seed, strict=True)
            for sample in range(num_samples)
        ]
        for _ in self._run(rows, batch_size):
            pass
        return [Completion(row.tokens, row.mask, row.finish_reason or "length") for row in rows]

    def _run(self, rows: list[RowState], batch_size: int) -> Iterator[None]:
        """Generate all rows, in a batch that is refilled; yields after each decode step."""
        num_slots = min(batch_size, max(1, len(rows)))
        waiting = deque(row for row in rows if row.max_tokens > 0)
        # Without a prefix cache: evaluation prompts seldom continue each other.
        step = self._take_step(num_slots)
        batch = Batch(step, num_slots, self.end_tokens, PrefixCache(0))
        with closing(batch):
            while waiting or batch.num_rows:
                num_free = num_slots - batch.num_rows
                # A pass for one prompt costs nearly as much as one for many, so slots are
                # refilled a quarter at a time.
                if waiting and (not batch.rows or num_free >= num_slots // 4 > 0):
                    batch.add([waiting.popleft() for _ in range(min(num_free, len(waiting)))])
                while batch.prefiller.num_rows:
                    batch.prefill()
                batch.wait_for_tool()
                batch.decode()
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
        """Columns of `num_samples` tokens and of their masks (1 sampled, 0 forced), streamed.

        A finished sample is padded with its end token and mask 0. A column is complete only when
        the slowest sample has it, so one that waits for a tool delays the others' columns.
        """
        sampling = Sampling(temperature, top_k)
        rows = [
            self.new_row(Request(tokens, max_tokens, sampling, derive_seed(seed, sample)))
            for sample in range(num_samples)
        ]
        num_yielded = 0
        for _ in self._run(rows, num_samples):
            longest = max(len(row.tokens) for row in rows)
            unfinished = [len(row.tokens) for row in rows if not row.finish_reason]
            num_complete = min(unfinished, default=longest)
            for i in range(num_yielded, num_complete):
                yield (
                    [row.tokens[i] if i < len(row.tokens) else self.end_token for row in rows],
                    [row.mask[i] if i < len(row.mask) else 0 for row in rows],
                )
            num_yielded = num_complete

    def generate_batch(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Complete sequences, with the prompt and without the end token, and their masks."""
        completions = self.complete(
            [tokens], max_tokens, temperature, top_k, seed=[seed], num_samples=num_samples
        )
        results, masks = [], []
        for one in completions:
            end = len(one.tokens) - (one.finish_reason == "stop")
            results.append(tokens + one.tokens[:end])
            masks.append([0] * len(tokens) + one.mask[:end])
        return results, masks

    def stream_text(
        self,
        prompt: list[int],
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[Event]:
        """Events of one answer, streamed; closing the iterator stops the work."""
        row = self.new_row(Request(prompt, max_tokens, sampling, seed, stop))
        with closing(self.open(1)) as batch:
            batch.add([row])
            while batch.num_rows:
                batch.wait_for_tool()
                for _, events in batch.step():
                    yield from events

    @torch.inference_mode()
    def score(self, tokens: list[int], num_top_logprobs: int = 0) -> list[TokenLogprob]:
        """Log-probability of each token but the first. Raises UserError past the context."""
        ids = torch.tensor(tokens, device=self.model.embedding.weight.device)
        logits = self.model(ids[None])[0]
        return token_logprobs(logits[:-1], ids[1:], num_top_logprobs)
