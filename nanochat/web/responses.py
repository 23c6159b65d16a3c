"""What was said, as bodies and chunks of the protocol."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fastapi.responses import JSONResponse, Response

from nanochat.inference.detokenizer import Finished
from nanochat.inference.sampling import TokenChoice
from nanochat.web.openai_api import (
    Envelope,
    Prompt,
    TextPrompt,
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
        logprobs = chat_logprobs(said.choices, tokenizer)
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
            "logprobs": chat_logprobs(one.choices, tokenizer),
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
        self.choices: list[TokenChoice | int] = []
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
class Plan:
    """The prompts of a completion, what is shown of them, and how many choices follow each."""

    prompts: list[TextPrompt]
    is_echoed: bool
    is_scored: bool
    """Whether the answers begin with scores of the prompts."""
    num_each: int

    @property
    def num_choices(self) -> int:
        """Of all prompts together."""
        return self.num_each * len(self.prompts)

    @property
    def num_tokens(self) -> int:
        """Of all prompts together."""
        return sum(len(prompt.tokens) for prompt in self.prompts)

    def echoes(
        self, number: int, scores: list[TokenChoice], tokenizer: Tokenizer
    ) -> Iterator[Said]:
        """A prompt as the beginning of each of its choices."""
        prompt = self.prompts[number]
        text = tokenizer.decode(prompt.tokens[1:]) if self.is_echoed else ""
        choices = prompt.shown(scores) if self.is_scored else []
        for index in range(number * self.num_each, (number + 1) * self.num_each):
            yield Said(index, text, choices)


async def _all_said(answers: Answers, plan: Plan, tokenizer: Tokenizer) -> AsyncIterator[Said]:
    """What the choices of a completion say, their echoes first."""
    num_scorings = len(plan.prompts) if plan.is_scored else 0
    if plan.is_echoed and not plan.is_scored:
        for number in range(len(plan.prompts)):
            for said in plan.echoes(number, [], tokenizer):
                yield said
    async for said in answers:
        if said.scores is not None:
            for echo in plan.echoes(said.index, said.scores, tokenizer):
                yield echo
        elif said.tool is None:
            end = said.finished.choice if said.finished else None
            choices = [*said.choices, *([end] if end else [])]
            yield replace(said, index=said.index - num_scorings, choices=choices)
    if answers.num_choices == num_scorings:  # max_tokens 0: nothing follows
        for index in range(plan.num_choices):
            yield Said(index, finished=Finished("length", 0, 0))


def _choice(
    said: "Said | _Whole", index: int, finish_reason: str | None, tokenizer: Tokenizer, offset: int
) -> dict[str, Any]:
    return {
        "index": index,
        "text": said.text,
        "logprobs": text_logprobs(said.choices, tokenizer, offset),
        "finish_reason": finish_reason,
    }


async def completion_stream(
    answers: Answers, envelope: Envelope, plan: Plan, tokenizer: Tokenizer, with_usage: bool
) -> Chunks:
    """The chunks of a completion."""
    num_tokens = 0
    offsets: Counter[int] = Counter()  # where in a choice's text its next token begins
    async for said in _all_said(answers, plan, tokenizer):
        reason = said.finished.reason if said.finished else None
        num_tokens += said.finished.num_tokens if said.finished else 0
        choice = _choice(said, said.index, reason, tokenizer, offsets[said.index])
        if said.choices:
            offsets[said.index] += sum(map(len, choice["logprobs"]["tokens"]))
        yield envelope.chunk([choice])
    if with_usage:
        yield envelope.chunk([], usage=usage(plan.num_tokens, num_tokens))


async def completion_body(
    answers: Answers, envelope: Envelope, plan: Plan, tokenizer: Tokenizer
) -> Response:
    """A completion answered at once."""
    whole = [_Whole() for _ in range(plan.num_choices)]
    async for said in _all_said(answers, plan, tokenizer):
        whole[said.index].add(said)
    choices = [
        _choice(one, index, one.finish_reason, tokenizer, 0) for index, one in enumerate(whole)
    ]
    used = usage(plan.num_tokens, sum(one.num_tokens for one in whole))
    return JSONResponse(envelope.body(choices, usage=used))
