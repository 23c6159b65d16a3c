"""Bodies and streams of the OpenAI protocol, built from the events of an answer."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse, Response

from nanochat.engine import Request
from nanochat.inference.detokenizer import Finished, TextPiece, ToolCall
from nanochat.inference.sampling import TokenLogprob
from nanochat.web.inference_service import AnswerEvents
from nanochat.web.openai_api import (
    CompletionRequest,
    Envelope,
    Prompt,
    TextPrompt,
    Tokenizer,
    chat_logprobs,
    text_logprobs,
    tool_body,
    usage,
)
from nanochat.web.worker import PromptLogprobs, WorkerEvent

Events = AsyncIterator[tuple[int, WorkerEvent]]


@dataclass
class _Choice:
    """The events of one choice, collected."""

    text: str = ""
    tools: list[ToolCall] = field(default_factory=list)
    logprobs: tuple[TokenLogprob, ...] = ()
    end: Finished = field(default_factory=lambda: Finished("length", 0, 0))

    def add(self, event: WorkerEvent) -> None:
        if isinstance(event, TextPiece):
            self.text += event.text
            self.logprobs += event.logprobs
        elif isinstance(event, ToolCall):
            self.tools.append(event)
        elif isinstance(event, Finished):
            self.end = event


async def stream(
    response: "ChatResponse | CompletionResponse", with_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream."""
    num_tokens = 0
    for choice in response.opening():
        yield response.envelope.chunk([choice], **response.extra_fields)
    async for index, event in response.events():
        num_tokens += event.num_tokens if isinstance(event, Finished) else 0
        yield response.envelope.chunk([response.delta(index, event)])
    if with_usage:
        yield response.envelope.chunk([], usage=usage(response.num_prompt_tokens, num_tokens))


async def body(response: "ChatResponse | CompletionResponse") -> Response:
    """The complete answer."""
    choices = [_Choice() for _ in range(response.num_choices)]
    async for index, event in response.events():
        choices[index].add(event)
    bodies = [response.choice(index, choice) for index, choice in enumerate(choices)]
    used = usage(response.num_prompt_tokens, sum(choice.end.num_tokens for choice in choices))
    return JSONResponse(response.envelope.body(bodies, usage=used, **response.extra_fields))


class ChatResponse:
    """An answer to POST /v1/chat/completions."""

    def __init__(
        self, answer: AnswerEvents, envelope: Envelope, tokenizer: Tokenizer, prompt: Prompt
    ) -> None:
        self.answer, self.envelope, self.tokenizer = answer, envelope, tokenizer
        self.num_choices, self.num_prompt_tokens = answer.num_choices, len(prompt.tokens)
        self.extra_fields = {"dropped_messages": prompt.num_dropped} if prompt.num_dropped else {}

    def events(self) -> Events:
        """The events of the choices."""
        return aiter(self.answer)

    def opening(self) -> list[dict[str, Any]]:
        """The first chunk of each choice, which names the role."""
        delta = {"role": "assistant", "content": ""}
        return [self._delta(index, delta) for index in range(self.num_choices)]

    def delta(self, index: int, event: WorkerEvent) -> dict[str, Any]:
        """An event as a choice of a chunk."""
        if isinstance(event, ToolCall):
            return self._delta(index, {"tools": [tool_body(event)]})
        if isinstance(event, TextPiece):
            logprobs = chat_logprobs(event.logprobs, self.tokenizer)
            return self._delta(index, {"content": event.text}, logprobs)
        assert isinstance(event, Finished)
        return self._delta(index, {}, finish_reason=event.reason)

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: Any = None
    ) -> dict[str, Any]:
        fields = {"delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {"index": index, **fields}

    def choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        """A choice of a body."""
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": choice.text,
                "refusal": None,
                "tools": [tool_body(call) for call in choice.tools],
            },
            "logprobs": chat_logprobs(choice.logprobs, self.tokenizer),
            "finish_reason": choice.end.reason,
        }


def scoring_requests(body: CompletionRequest, prompts: Sequence[TextPrompt]) -> list[Request]:
    """One for each prompt, if `echo` and `logprobs` ask for its log-probabilities.

    They are submitted before the choices, so that a stream shows them first.
    """
    if not body.echo or body.logprobs is None:
        return []
    # A new list: the scheduler takes requests that share one to share the prefill, too.
    return [
        Request([*prompt.tokens], num_top_logprobs=body.logprobs, score_prompt=True)
        for prompt in prompts
    ]


class CompletionResponse:
    """An answer to POST /v1/completions."""

    def __init__(
        self, answer: AnswerEvents, envelope: Envelope, tokenizer: Tokenizer,
        body: CompletionRequest, prompts: Sequence[TextPrompt],
    ) -> None:  # fmt: skip
        self.answer, self.envelope, self.tokenizer = answer, envelope, tokenizer
        self.extra_fields: dict[str, int] = {}
        self.prompts, self.is_echoed = prompts, bool(body.echo)
        self.num_scoring = len(scoring_requests(body, prompts))
        self.choices_per_prompt = body.n or 1
        self.num_choices = self.choices_per_prompt * len(prompts)
        self.num_prompt_tokens = sum(len(prompt.tokens) for prompt in prompts)
        self._text_offsets: Counter[int] = Counter()  # characters so far, for a stream's logprobs

    def opening(self) -> list[dict[str, Any]]:
        """A completion has no chunk before its first event."""
        return []

    async def events(self) -> Events:
        """Echoed prompts and the choices, without tool calls."""
        if self.is_echoed and not self.num_scoring:
            for number in range(len(self.prompts)):
                for echo in self._echo(number, None):
                    yield echo
        async for index, event in self.answer:
            if isinstance(event, PromptLogprobs):
                for echo in self._echo(index, event.logprobs):
                    yield echo
            elif not isinstance(event, ToolCall):
                yield index - self.num_scoring, event
        if self.answer.num_choices == self.num_scoring:  # max_tokens=0: no choice was generated
            for index in range(self.num_choices):
                yield index, Finished("length", 0, 0)

    def _echo(
        self, number: int, logprobs: tuple[TokenLogprob, ...] | None
    ) -> list[tuple[int, WorkerEvent]]:
        """A prompt as the first event of each of its choices."""
        prompt = self.prompts[number]
        text = self.tokenizer.decode(prompt.tokens[1:])
        piece = TextPiece(text, () if logprobs is None else prompt.shown(logprobs))
        first = number * self.choices_per_prompt
        return [(index, piece) for index in range(first, first + self.choices_per_prompt)]

    def delta(self, index: int, event: WorkerEvent) -> dict[str, Any]:
        """An event as a choice of a chunk."""
        choice = _Choice()
        choice.add(event)
        delta = self.choice(index, choice, self._text_offsets[index])
        delta["finish_reason"] = event.reason if isinstance(event, Finished) else None
        if delta["logprobs"]:
            self._text_offsets[index] += sum(map(len, delta["logprobs"]["tokens"]))
        return delta

    def choice(self, index: int, choice: _Choice, text_offset: int = 0) -> dict[str, Any]:
        """A choice of a body; text_offset: characters of its text before this part."""
        # The end token's logprob is included: lm-eval drops the last token's and expects this one.
        end = (choice.end.logprob,) if choice.end.logprob else ()
        logprobs = text_logprobs([*choice.logprobs, *end], self.tokenizer, text_offset)
        head = {"index": index, "text": choice.text, "logprobs": logprobs}
        return {**head, "finish_reason": choice.end.reason}
