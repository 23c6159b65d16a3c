"""What was said, as bodies and chunks of the protocol."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse, Response

from nanochat.sampling import TokenChoice
from nanochat.web.openai_api import (
    Envelope,
    Prompt,
    Tokenizer,
    chat_logprobs,
    text_logprobs,
    tool_body,
    usage,
)
from nanochat.web.service import Answers, Said

Chunks = AsyncIterator[dict[str, Any]]


# ---- chat


async def chat_stream(
    answers: Answers, envelope: Envelope, prompt: Prompt, tokenizer: Tokenizer, with_usage: bool
) -> Chunks:
    """The chunks of a chat."""
    begin = {"role": "assistant", "content": ""}
    more = _dropped(prompt)
    for index in range(answers.num_choices):
        yield envelope.chunk([_delta(index, begin)], **more)
    num_tokens = 0
    async for said in answers:
        logprobs = chat_logprobs(said.choices, tokenizer) if said.choices else None
        if said.tool is not None:
            yield envelope.chunk([_delta(said.index, {"tools": [tool_body(said.tool)]})])
        elif said.finished is not None:
            num_tokens += said.finished.num_tokens
            yield envelope.chunk([_delta(said.index, {}, said.finished.reason)])
        else:
            yield envelope.chunk([_delta(said.index, {"content": said.text}, None, logprobs)])
    if with_usage:
        yield envelope.chunk([], usage=usage(len(prompt.tokens), num_tokens))


def _delta(
    index: int, change: dict[str, Any], finish_reason: str | None = None, logprobs: Any = None
) -> dict[str, Any]:
    return {"index": index, "delta": change, "logprobs": logprobs, "finish_reason": finish_reason}


async def chat_body(
    answers: Answers, envelope: Envelope, prompt: Prompt, tokenizer: Tokenizer
) -> Response:
    """A chat answered at once."""
    whole = [_Whole() for _ in range(answers.num_choices)]
    async for said in answers:
        whole[said.index].add(said)
    choices = [
        {
            "index": index,
            "message": {
                "role": "assistant",
                "content": one.text,
                "refusal": None,
                "tools": [tool_body(call) for call in one.tools],
            },
            "logprobs": chat_logprobs(one.choices, tokenizer) if one.choices else None,
            "finish_reason": one.finish_reason,
        }
        for index, one in enumerate(whole)
    ]
    used = usage(len(prompt.tokens), sum(one.num_tokens for one in whole))
    return JSONResponse(envelope.body(choices, usage=used, **_dropped(prompt)))


def _dropped(prompt: Prompt) -> dict[str, int]:
    return {"dropped_messages": prompt.num_dropped} if prompt.num_dropped else {}


class _Whole:
    """One choice, gathered."""

    def __init__(self) -> None:
        self.text = ""
        self.tools: list[Any] = []
        self.choices: list[TokenChoice] = []
        self.finish_reason = "length"
        self.num_tokens = 0

    def add(self, said: Said) -> None:
        """Take what was said next."""
        self.text += said.text
        self.choices += said.choices
        if said.tool is not None:
            self.tools.append(said.tool)
        if said.finished is not None:
            self.finish_reason = said.finished.reason
            self.num_tokens = said.finished.num_tokens


# ---- plain completions


@dataclass(frozen=True)
class Echo:
    """What is shown of the prompts of a completion, for each its text and how likely it was."""

    texts: list[str]
    scores: list[list[TokenChoice | int]]
    num_tokens: int


def completion_choice(
    index: int,
    text: str,
    choices: Sequence[TokenChoice | int],
    tokenizer: Tokenizer,
    finish_reason: str | None,
) -> dict[str, Any]:
    """One choice of a completion."""
    logprobs = text_logprobs(choices, tokenizer) if choices else None
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


async def completion_stream(
    answers: Answers, envelope: Envelope, echo: Echo, tokenizer: Tokenizer, with_usage: bool
) -> Chunks:
    """The chunks of a completion."""
    num_each = answers.num_choices // len(echo.texts)
    for index in range(answers.num_choices):
        text, scores = echo.texts[index // num_each], echo.scores[index // num_each]
        if text:
            yield envelope.chunk([completion_choice(index, text, scores, tokenizer, None)])
    num_tokens = 0
    async for said in answers:
        reason = None
        if said.finished is not None:
            num_tokens, reason = num_tokens + said.finished.num_tokens, said.finished.reason
        if said.text or said.choices or reason:
            choice = completion_choice(said.index, said.text, said.choices, tokenizer, reason)
            yield envelope.chunk([choice])
    if with_usage:
        yield envelope.chunk([], usage=usage(echo.num_tokens, num_tokens))


async def completion_body(
    answers: Answers | None, envelope: Envelope, echo: Echo, tokenizer: Tokenizer, num_each: int
) -> Response:
    """A completion answered at once; without answers (max_tokens 0) just the prompts."""
    whole = [_Whole() for _ in range(num_each * len(echo.texts))]
    if answers is not None:
        async for said in answers:
            whole[said.index].add(said)
    choices = []
    for index, one in enumerate(whole):
        scores = echo.scores[index // num_each]
        text = echo.texts[index // num_each] + one.text
        all_choices = [*scores, *one.choices]
        choices.append(completion_choice(index, text, all_choices, tokenizer, one.finish_reason))
    used = usage(echo.num_tokens, sum(one.num_tokens for one in whole))
    return JSONResponse(envelope.body(choices, usage=used))
