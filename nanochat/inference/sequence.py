"""One request to the engine and the sequence that is generated for it."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.chat import Tokenizer, ToolCallState
from nanochat.errors import UserError
from nanochat.inference.detokenizer import Detokenizer, Event, Finished, FinishReason, TextPiece
from nanochat.inference.sampling import GREEDY, Sampling, TokenLogprob
from nanochat.inference.tools import Tool

MAX_TOOL_OUTPUT_TOKENS = 64  # of one call: a runaway output must not fill the context


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    max_tokens: int | None = None  # None: until the context is full
    sampling: Sampling = GREEDY
    seed: int = 0
    stop: Sequence[str] = ()  # strings that end the answer; its text stops before them
    num_top_logprobs: int | None = None  # alternatives to report per token; None: no logprobs
    score_prompt: bool = False  # report logprobs of the prompt, too (done by web.worker)


class RowState:
    """A sequence in the making. The batch that generates it is its only writer."""

    def __init__(
        self, request: Request, tokenizer: Tokenizer, tool: Tool, context_length: int
    ) -> None:
        """Raises UserError when the prompt is empty or leaves no room for an answer."""
        room = context_length - len(request.prompt)
        if not request.prompt or room < 1:
            raise UserError(
                f"a prompt of {len(request.prompt)} tokens does not fit the model's context of"
                f" {context_length} with room for an answer; shorten it"
            )
        self.request = request
        self.max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)
        self.rng = random.Random(request.seed)
        self.tool_calls = ToolCallState(tokenizer, tool.submit, MAX_TOOL_OUTPUT_TOKENS)
        self.detokenizer = Detokenizer(tokenizer, request.stop)
        self.tokens: list[int] = []  # of the answer: sampled and forced, the end token included
        self.mask: list[int] = []  # 1 for a sampled token, 0 for a forced one
        self.forced: deque[int] = deque()  # tokens of a tool's output that come next
        self.finish_reason: FinishReason | None = None
        self.logprob: TokenLogprob | None = None  # of the newest token, if requested
        self.unreported: list[tuple[int, TokenLogprob]] = []  # with where the token's text starts
        self.publish: Callable[[list[Any]], object] | None = None  # a server's event callback

    @property
    def prompt(self) -> list[int]:
        """The request's prompt; samples of one prompt share the list object, and its prefill."""
        return self.request.prompt

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens to process before the first one is generated."""
        return len(self.prompt) * (2 if self.request.score_prompt else 1)  # scored, then prefilled

    @property
    def is_suspended(self) -> bool:
        """Whether a tool has been called and has no result yet."""
        return self.tool_calls.is_pending

    def draw(self) -> float:
        """A uniform number in [0, 1) that decides the next token, 0 if that is forced."""
        self.forced.extend(self.tool_calls.take_output())
        # Forced tokens consume no random number: what is sampled does not depend on their count.
        return 0.0 if self.forced else self.rng.random()

    def append(self, sampled: int, end_tokens: frozenset[int]) -> None:
        """Append the next forced token, or else `sampled`, and set `finish_reason` at the end."""
        is_forced = bool(self.forced)
        token = self.forced.popleft() if is_forced else sampled
        self.tokens.append(token)
        self.mask.append(0 if is_forced else 1)
        if not is_forced and token in end_tokens:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"
        elif not is_forced:  # a finished sequence calls no tool
            self.tool_calls.feed(token)

    def new_events(self) -> list[Event]:
        """Events of the newest token, `Finished` last; a stop string sets `finish_reason`."""
        token, text = self.tokens[-1], self.detokenizer
        if self.logprob and text.is_text(token):
            self.unreported.append((text.num_decoded, self.logprob))
        events = list(text.feed(token, is_forced=not self.mask[-1]))
        if text.has_stopped:
            self.finish_reason = "stop"
        if self.finish_reason:
            events += text.flush()
        events = [*self._reported_logprobs(), *events]
        if self.finish_reason:
            # An end token has no text piece to carry its logprob.
            logprobs = () if text.is_text(token) or not self.logprob else (self.logprob,)
            num_tokens = len(self.prompt), len(self.tokens)
            events.append(Finished(self.finish_reason, *num_tokens, logprobs))
        return events

    def _reported_logprobs(self) -> list[Event]:
        """Those of tokens whose text is out: what a stop string cuts off has none, either."""
        text = self.detokenizer
        is_all_out = text.num_released == text.num_decoded
        found = [logprob for at, logprob in self.unreported if is_all_out or at < text.num_released]
        self.unreported = self.unreported[len(found) :]
        return [TextPiece("", tuple(found))] if found else []
