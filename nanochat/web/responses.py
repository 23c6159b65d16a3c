"""Bodies and streams of the OpenAI protocol, built from the events of an answer.

Both come from the same chunks, each with one choice: a stream sends them, a body joins them. The
work on many log-probabilities is cut into slices, between which the event loop serves others.
"""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastapi.responses import Response

from nanochat.inference.detokenizer import Finished, TextPiece, ToolCall
from nanochat.inference.sampling import TokenLogprob
from nanochat.web.inference_service import AnswerEvents
from nanochat.web.openai_api import CompletionRequest, Envelope, TextPrompt, Tokenizer
from nanochat.web.worker import PromptLogprobs

Json = dict[str, Any]
MIN_LOGPROB = -9999.0  # stands for -inf, which JSON cannot express
SLICE_TOKENS = 128  # with 20 alternatives each, some 5 ms of work
CHOICE_DEPTH = 4  # body, choices, choice, logprobs: below are lists with an entry per token


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
            yield self.envelope.chunk([], usage=self._usage(), timings=self.answer.timings())

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
        fields = {"usage": self._usage(), "timings": self.answer.timings(), **self.extra_fields}
        pieces = []
        for piece in json_pieces(self.envelope.body(self.choices, **fields)):
            pieces.append(piece)
            if len(piece) > SLICE_TOKENS:
                await asyncio.sleep(0)
        return Response("".join(pieces), media_type="application/json")

    def _usage(self) -> dict[str, int]:
        num_tokens = self.answer.num_tokens
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": self.num_prompt_tokens + num_tokens,
        }


def json_pieces(value: Any, depth: int = CHOICE_DEPTH) -> Iterator[str]:
    """The JSON of a body in short pieces: field by field, the lists of a choice by slices."""
    if depth and value and isinstance(value, dict | list):
        start, end = "{}" if isinstance(value, dict) else "[]"
        labels = [f"{_dumps(key)}: " for key in value] if start == "{" else itertools.repeat("")
        items = value.values() if isinstance(value, dict) else value
        for number, (label, item) in enumerate(zip(labels, items, strict=False)):
            yield (", " if number else start) + label
            yield from json_pieces(item, depth - 1)
        yield end
    elif isinstance(value, list) and value:
        for first in range(0, len(value), SLICE_TOKENS):
            yield (", " if first else "[") + _dumps(value[first : first + SLICE_TOKENS])[1:-1]
        yield "]"
    else:
        yield _dumps(value)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


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
            logprobs = prompt_of[index].shown(event.logprobs)
            yield chunk(index, echoes[index], logprobs[:SLICE_TOKENS])
            for start in range(SLICE_TOKENS, len(logprobs), SLICE_TOKENS):
                await asyncio.sleep(0)
                yield chunk(index, "", logprobs[start : start + SLICE_TOKENS])
        elif isinstance(event, TextPiece):
            yield chunk(index, event.text, event.logprobs)
        elif isinstance(event, Finished):
            # The end token's logprob, too: lm-eval drops the last token and expects this one.
            yield chunk(index, "", event.logprobs, event.reason)


# ---- log-probabilities


def chat_logprobs(logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The `logprobs` of a chat; None where there are none."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        raw = tokenizer.decode_bytes([token])
        text = raw.decode(errors="replace")
        return {"token": text, "logprob": _finite(logprob), "bytes": list(raw)}

    content = []
    for item in logprobs:
        others = [entry(*other) for other in item.top_logprobs]
        content.append({**entry(item.token, item.logprob), "top_logprobs": others})
    return {"content": content} if content else None


def text_logprobs(
    logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer, offset: int
) -> dict[str, Any] | None:
    """The `logprobs` of a completion or None; offset: characters of text before these tokens."""
    if not logprobs:
        return None
    tokens = [token_name(item.token, tokenizer) for item in logprobs]
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(item.logprob) for item in logprobs],
        "top_logprobs": [
            {token_name(token, tokenizer): _finite(value) for token, value in item.top_logprobs}
            if item.logprob is not None
            else None
            for item in logprobs
        ],
        "text_offset": list(itertools.accumulate(map(len, tokens), initial=offset))[:-1],
    }


def _finite(logprob: float | None) -> float | None:
    """JSON has no infinity; None, for the first token of a text, stays."""
    return None if logprob is None else max(logprob, MIN_LOGPROB)


def token_name(token: int, tokenizer: Tokenizer) -> str:
    """A token as text; one that is not valid UTF-8 by itself as OpenAI's `bytes:\\xe6\\xb1`."""
    raw = tokenizer.decode_bytes([token])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
