"""One request to the engine and the sequence that is generated for it."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Draw(NamedTuple):
    """What decides the next token of a sequence: a tool's output, or else a random number."""

    forced: int | None
    uniform: float = 0.0  # in [0, 1)


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
        before_text = ("<|assistant_start|>", "<|python_end|>", "<|output_end|>")
        continues = request.prompt[-1] not in map(tokenizer.encode_special, before_text)
        self.detokenizer = Detokenizer(tokenizer, request.stop, continues)
        self.tokens: list[int] = []  # of the answer: sampled and forced, the end token included
        self.mask: list[int] = []  # 1 for a sampled token, 0 for a forced one
        self.forced: deque[int] = deque()  # tokens of a tool's output that come next
        self.num_drawn = 0  # tokens that were drawn, `tokens` and those not read yet
        self._returned: list[float] = []  # a random number that was drawn and not used
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

    @property
    def can_continue(self) -> bool:
        """Whether there may be tokens after those that were drawn."""
        return self.num_drawn < self.max_tokens

    def take_output(self) -> None:
        """The output of a finished tool call comes next."""
        self.forced.extend(self.tool_calls.take_output())

    def draw(self) -> Draw:
        """What decides the next token. `append` takes the draws in the same order."""
        self.num_drawn += 1
        self.take_output()
        if self.forced:
            return Draw(self.forced.popleft())
        # Forced tokens consume no random number: what is sampled does not depend on their count.
        return Draw(None, self._returned.pop() if self._returned else self.rng.random())

    def take_back(self, draw: Draw) -> None:
        """Undo the last draw of a token to be sampled."""
        self.num_drawn -= 1
        self._returned.append(draw.uniform)

    def append(self, token: int, draw: Draw, end_tokens: frozenset[int]) -> None:
        """Append the token of a draw, and set `finish_reason` at the end."""
        is_forced = draw.forced is not None
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
