"""Bodies and streams of the OpenAI protocol, built from the events of an answer.

Both come from the same chunks, each with one choice: a stream sends them, a body joins them.
"""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastapi.responses import JSONResponse, Response

from nanochat.inference.detokenizer import Finished, TextPiece, ToolCall
from nanochat.inference.sampling import TokenLogprob
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
from nanochat.web.worker import PromptLogprobs

Json = dict[str, Any]


@dataclass
class ResponseBuilder:
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


def completion_response(
    answer: AnswerEvents, envelope: Envelope, tokenizer: Tokenizer, body: CompletionRequest,
    prompts: Sequence[TextPrompt],
) -> ResponseBuilder:  # fmt: skip
    prompt_of = [prompt for prompt in prompts for _ in range(body.n or 1)]  # of each choice
    choices = [_choice(index, "text", "") for index in range(len(prompt_of))]
    num_prompt_tokens = sum(len(prompt.tokens) for prompt in prompts)
    chunks = _completion_chunks(answer, tokenizer, body, prompt_of)
    return ResponseBuilder(answer, envelope, chunks, choices, num_prompt_tokens)


async def _completion_chunks(
    answer: AnswerEvents, tokenizer: Tokenizer, body: CompletionRequest, prompt_of: list[TextPrompt]
) -> AsyncIterator[Json]:
    text_offsets: Counter[int] = Counter()  # characters of each choice so far

    def chunk(
        index: int, text: str, logprobs: Sequence[TokenLogprob] = (), reason: Any = None
    ) -> Json:
        fields = text_logprobs(logprobs, tokenizer, text_offsets[index])
        text_offsets[index] += sum(map(len, fields["tokens"])) if fields else 0
        return _choice(index, "text", text, fields, reason)

    echoes = [tokenizer.decode(prompt.tokens[1:]) for prompt in prompt_of] if body.echo else []
    for index, text in enumerate(echoes if not body.scores_prompt() else []):
        yield chunk(index, text)
    async for index, event in answer:
        if isinstance(event, PromptLogprobs):
            yield chunk(index, echoes[index], prompt_of[index].shown(event.logprobs))
        elif isinstance(event, TextPiece):
            yield chunk(index, event.text, event.logprobs)
        elif isinstance(event, Finished):
            # The end token's logprob, too: lm-eval drops the last token and expects this one.
            yield chunk(index, "", event.logprobs, event.reason)
