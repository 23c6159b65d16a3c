"""Bodies and streams of the OpenAI protocol, built from the events of an answer.

Both come from the same chunks, each with one choice: a stream sends them, a body joins them.
"""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastapi.responses import JSONResponse, Response

from nanochat.engine import Request
from nanochat.inference.detokenizer import Finished, TextPiece, ToolCall
from nanochat.web.inference_service import AnswerEvents
from nanochat.web.openai_api import (
    CompletionRequest,
    Envelope,
    TextPrompt,
    Tokenizer,
    chat_logprobs,
    text_logprobs,
    usage,
)
from nanochat.web.worker import PromptLogprobs, WorkerEvent

Json = dict[str, Any]


@dataclass
class ResponseBuilder:
    """One answer, to be sent as a stream or as a body."""

    answer: AnswerEvents
    envelope: Envelope
    chunks: AsyncIterator[Json]  # choices as a stream sends them
    choices: list[Json]  # choices as a body has them, still empty
    num_prompt_tokens: int
    extra_fields: Json = field(default_factory=dict)

    async def stream(self, with_usage: bool) -> AsyncIterator[Json]:
        """The chunks, and at the end one with the usage if the client asks for it."""
        async for chunk in self.chunks:
            is_first = "role" in chunk.get("delta", ())
            yield self.envelope.chunk([chunk], **(self.extra_fields if is_first else {}))
        if with_usage:
            yield self.envelope.chunk([], usage=self._usage())

    async def body(self) -> Response:
        """The complete answer."""
        async for chunk in self.chunks:
            choice = self.choices[chunk["index"]]
            joined, new = choice.get("message", choice), chunk.get("delta", chunk)
            for name in {"text", "content", "tools"} & new.keys():
                joined[name] += new[name]
            for name, values in (chunk["logprobs"] or {}).items():
                choice["logprobs"] = choice["logprobs"] or {}
                choice["logprobs"].setdefault(name, []).extend(values)
            choice["finish_reason"] = chunk["finish_reason"]  # None until the last chunk
        return JSONResponse(
            self.envelope.body(self.choices, usage=self._usage(), **self.extra_fields)
        )

    def _usage(self) -> dict[str, int]:
        return usage(self.num_prompt_tokens, self.answer.num_tokens)


def _choice(index: int, name: str, value: Any, logprobs: Any = None, reason: Any = None) -> Json:
    return {"index": index, name: value, "logprobs": logprobs, "finish_reason": reason}


# ---- POST /v1/chat/completions


def chat_response(
    answer: AnswerEvents,
    envelope: Envelope,
    tokenizer: Tokenizer,
    num_prompt_tokens: int,
    num_dropped: int,
) -> ResponseBuilder:
    """The response to a chat."""
    choices = []
    for index in range(answer.num_choices):
        message: Json = {"role": "assistant", "content": "", "refusal": None, "tools": []}
        choices.append(_choice(index, "message", message))
    extra_fields = {"dropped_messages": num_dropped} if num_dropped else {}
    chunks = _chat_chunks(answer, tokenizer)
    return ResponseBuilder(answer, envelope, chunks, choices, num_prompt_tokens, extra_fields)


async def _chat_chunks(answer: AnswerEvents, tokenizer: Tokenizer) -> AsyncIterator[Json]:
    for index in range(answer.num_choices):
        yield _choice(index, "delta", {"role": "assistant", "content": ""})
    async for index, event in answer:
        if isinstance(event, TextPiece):
            logprobs = chat_logprobs(event.logprobs, tokenizer)
            yield _choice(index, "delta", {"content": event.text}, logprobs)
        elif isinstance(event, ToolCall):
            yield _choice(index, "delta", {"tools": [asdict(event)]})
        elif isinstance(event, Finished):
            yield _choice(index, "delta", {}, reason=event.reason)


# ---- POST /v1/completions


def scoring_requests(body: CompletionRequest, prompts: Sequence[TextPrompt]) -> list[Request]:
    """One per prompt if `echo` and `logprobs` ask for its log-probabilities, else none.

    They are submitted before the choices, so that a stream shows them first.
    """
    if not body.echo or body.logprobs is None:
        return []
    # Copies: for the scheduler the same list object means a shared prefill.
    return [
        Request([*prompt.tokens], num_top_logprobs=body.logprobs, score_prompt=True)
        for prompt in prompts
    ]


def completion_response(
    answer: AnswerEvents, envelope: Envelope, tokenizer: Tokenizer, body: CompletionRequest,
    prompts: Sequence[TextPrompt],
) -> ResponseBuilder:  # fmt: skip
    """The response to a plain completion."""
    num_scoring, num_each = len(scoring_requests(body, prompts)), body.n or 1
    num_choices = len(prompts) * num_each

    def echo(number: int, logprobs: Any) -> list[tuple[int, WorkerEvent]]:
        piece = TextPiece(tokenizer.decode(prompts[number].tokens[1:]), logprobs)
        return [(number * num_each + i, piece) for i in range(num_each)]

    async def events() -> AsyncIterator[tuple[int, WorkerEvent]]:
        for number in range(len(prompts) if body.echo and not num_scoring else 0):
            for echoed in echo(number, ()):
                yield echoed
        async for index, event in answer:
            if isinstance(event, PromptLogprobs):
                for echoed in echo(index, prompts[index].shown(event.logprobs)):
                    yield echoed
            else:
                yield index - num_scoring, event
        for index in range(num_choices if answer.num_choices == num_scoring else 0):
            yield index, Finished("length", 0, 0)  # max_tokens=0: nothing was generated

    async def chunks() -> AsyncIterator[Json]:
        text_offsets: Counter[int] = Counter()  # characters of each choice so far
        async for index, event in events():
            if isinstance(event, TextPiece | Finished):
                # The end token's logprob, too: lm-eval drops the last token and expects this one.
                logprobs = text_logprobs(event.logprobs, tokenizer, text_offsets[index])
                text_offsets[index] += sum(map(len, logprobs["tokens"])) if logprobs else 0
                text = event.text if isinstance(event, TextPiece) else ""
                reason = event.reason if isinstance(event, Finished) else None
                yield _choice(index, "text", text, logprobs, reason)

    return ResponseBuilder(
        answer, envelope, chunks(), [_choice(index, "text", "") for index in range(num_choices)],
        sum(len(prompt.tokens) for prompt in prompts),
    )  # fmt: skip
