"""The OpenAI protocol: request schemas, prompts made of requests, envelopes and errors.

How a chat request becomes tokens: `ChatRequest` validates the body of POST /v1/chat/completions
(route in `nanochat/web/server.py`); `chat_prompt`, below, is the only place that turns it into ids:

    messages of the request
      merge_turns              alternating user and assistant turns; system text joins a user turn
      chat.trim_to_fit         with `trim`, drops the oldest turns that exceed the context
      chat.render_for_continuation   <|bos|><|user_start|>text<|user_end|><|assistant_start|>;
                               text by `tokenizer.encode`, which never makes special tokens

Plain completions have `text_prompts`: <|bos|> and the encoded text.

Two extensions, which clients that do not know them can ignore: a message's content may have parts
of type `python` and `python_output` (as in `chat`), and an answer lists its tool calls under
`tools` beside the text.
"""

import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, FailFast, Field
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from nanochat import chat
from nanochat.chat import Message, render_for_continuation, trim_to_fit
from nanochat.errors import UserError
from nanochat.inference.sampling import Sampling, TokenLogprob

# Bounds on the work of one request; OpenAI has the same two for stop strings and top_logprobs.
MAX_STOP_STRINGS = 4
MAX_TOP_LOGPROBS = 20
MAX_STOP_CHARACTERS = 200  # every piece of text is searched for each of them
MAX_MESSAGES = 1000
MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_INT = 2**31 - 1
MAX_CONTAINERS = 10_000  # lists and objects in one body: parsing them takes 25 ms
PART_TYPES = ("text", "python", "python_output")
# Fields that would change the answer and are not supported, with the values that would not.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (),
    "logit_bias": ({},), "frequency_penalty": (0,), "presence_penalty": (0,),
    "repetition_penalty": (1,), "suffix": ("",), "use_beam_search": (False,), "min_tokens": (0,),
    "ignore_eos": (False,), "typical_p": (1,), "guided_json": (), "guided_regex": (),
    "guided_choice": (), "guided_grammar": (), "structured_outputs": (), "grammar": ("",),
}  # fmt: skip


class Tokenizer(chat.Tokenizer, Protocol):
    """A chat tokenizer that also names its tokens."""

    def decode_bytes(self, ids: list[int]) -> bytes: ...

    def get_vocab_size(self) -> int: ...


# ---- errors

ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every response of status 4xx and 5xx."""

    error: ErrorDetail


class ApiError(HTTPException):
    """A refusal or failure, reported in the protocol's form."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        default = "invalid_request_error" if self.status_code < 500 else "server_error"
        detail = ErrorDetail(
            message=self.detail,
            type=ERROR_TYPES.get(self.status_code, default),
            param=self.param,
            code=self.code,
        )
        return ErrorBody(error=detail).model_dump()


# ---- requests

# An unclosed one extends to the end: searched again from each quote, 240 KB would take minutes.
STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)


def parse_json(content: bytes) -> Any:
    """The value of a body. Raises ApiError on NaN, lone surrogates and too many or deep lists."""
    if content.count(b"[") + content.count(b"{") > MAX_CONTAINERS:
        bare = STRING.sub(b"", content)  # text may have any number of brackets
        if bare.count(b"[") + bare.count(b"{") > MAX_CONTAINERS:
            message = f"the body has more than {MAX_CONTAINERS} lists and objects"
            raise ApiError(400, message)
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None


class _FailFast(FailFast):
    """A list is refused at its first wrong item: an error for each of 100,000 takes a second."""

    __hash__ = object.__hash__  # pydantic's has none, which a union needs


FAIL_FAST = _FailFast()


class Schema(BaseModel):
    """Unknown fields are ignored, as OpenAI's clients send many; numbers are finite."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Part(Schema):
    type: str  # PART_TYPES; others are refused with a better message than pydantic's
    text: str = ""


class ChatMessage(Schema):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], FAIL_FAST] | None = None


class StreamOptions(Schema):
    include_usage: bool | None = None


class Generation(Schema):
    """Fields of both kinds of request; None is the server's default."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)  # for `refuse_unsupported`

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_INT)  # -1 and 0: no limit, as in vLLM
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], FAIL_FAST] | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)

    def refuse_unsupported(self) -> None:
        """Raises ApiError on a field that would change the answer, were it supported."""
        extra = self.model_extra or {}
        for name, neutral in (NEUTRAL_VALUES | {"best_of": (1, self.n)}).items():
            value = extra.get(name)
            if value is not None and value not in neutral:
                message = f"{name} is not supported by this server; leave it out"
                raise ApiError(400, message, param=name, code="unsupported_parameter")

    def stop_strings(self) -> tuple[str, ...]:
        """Raises ApiError when there are too many or one is too long."""
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(strings) > MAX_STOP_STRINGS:
            message = f"{len(strings)} stop strings; send at most {MAX_STOP_STRINGS}"
            raise ApiError(400, message, param="stop")
        if max(map(len, strings), default=0) > MAX_STOP_CHARACTERS:
            message = f"a stop string has more than {MAX_STOP_CHARACTERS} characters"
            raise ApiError(400, message, param="stop")
        return tuple(filter(None, strings))

    def sampling(self, defaults: Sampling) -> Sampling:
        """The server's defaults, overridden by the fields that the request sets."""
        fields = {"temperature", "top_k", "top_p", "min_p"}
        return replace(defaults, **self.model_dump(include=fields, exclude_none=True))


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], FAIL_FAST, Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT)  # replaces max_tokens
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    trim: bool | None = None  # an extension: drop the oldest turns that exceed the context

    def num_top_logprobs(self) -> int | None:
        """Alternatives to report for each token; None: no logprobs at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Generation):
    """POST /v1/completions: plain text to continue."""

    prompt: (
        str
        | Annotated[list[str], FAIL_FAST]
        | Annotated[list[int], FAIL_FAST]
        | Annotated[list[Annotated[list[int], FAIL_FAST]], FAIL_FAST]
    )
    max_tokens: int | None = Field(None, ge=0, le=MAX_INT)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    def num_top_logprobs(self) -> int | None:
        return self.logprobs

    def scores_prompt(self) -> bool:
        """Whether the prompt is echoed with its log-probabilities."""
        return bool(self.echo) and self.logprobs is not None


# ---- prompts


def chat_prompt(
    request: ChatRequest, tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[int], int]:
    """The conversation as tokens, and how many of the oldest messages were trimmed.

    max_tokens: of the prompt, where the request allows trimming. A final assistant message is
    continued. Raises ApiError on an invalid conversation.
    """
    try:
        messages, num_dropped = merge_turns(request.messages), 0
        if request.trim:
            messages, num_dropped = trim_to_fit(messages, tokenizer, max_tokens)
        return render_for_continuation({"messages": messages}, tokenizer), num_dropped
    except UserError as error:
        code = "context_length_exceeded" if "context" in str(error) else None
        raise ApiError(400, str(error), param="messages", code=code) from None


@dataclass(frozen=True)
class TextPrompt:
    """A plain text as tokens, the first of which is <|bos|>."""

    tokens: list[int]
    is_bos_hidden: bool  # the client did not send the <|bos|> and does not get it back

    def shown(self, logprobs: tuple[TokenLogprob, ...]) -> tuple[TokenLogprob, ...]:
        """Log-probabilities of the tokens that the client sent; its own <|bos|> has none."""
        return logprobs if self.is_bos_hidden else (TokenLogprob(self.tokens[0], None), *logprobs)


def text_prompts(request: CompletionRequest, tokenizer: Tokenizer) -> list[TextPrompt]:
    """The prompts of a completion. Raises ApiError on none, too many or an unknown token id."""
    prompts: Any = request.prompt
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        prompts = [prompts]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        message = f"{len(prompts)} prompts; send between 1 and {MAX_PROMPTS}"
        raise ApiError(400, message, param="prompt")
    bos, num_tokens = tokenizer.encode_special("<|bos|>"), tokenizer.get_vocab_size()
    encoded = []
    for prompt in prompts:
        tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if unknown := [token for token in tokens if not 0 <= token < num_tokens]:
            message = f"token {unknown[0]} is not between 0 and {num_tokens - 1}"
            raise ApiError(400, message, param="prompt")
        is_bos_hidden = tokens[:1] != [bos]
        encoded.append(TextPrompt([bos, *tokens] if is_bos_hidden else tokens, is_bos_hidden))
    return encoded


def merge_turns(messages: Sequence[ChatMessage]) -> list[Message]:
    """Alternating user and assistant messages, as `chat` renders them.

    Consecutive messages of one role are joined; a system message is put before the next user text.
    """
    turns: list[Message] = []
    system: list[str] = []
    for message in messages:
        parts = _parts(message)
        if message.role in ("system", "developer"):
            system.append(chat.text_of(parts))
            continue
        if message.role == "user":
            text = "\n\n".join([*system, chat.text_of(parts)])
            system, parts = [], [{"type": "text", "text": text}]
        if turns and turns[-1]["role"] == message.role:
            turns[-1]["content"] += [{"type": "text", "text": "\n\n"}, *parts]
        else:
            turns.append({"role": message.role, "content": parts})
    if system:  # nothing follows it: a conversation of instructions only is a question
        turns.append({"role": "user", "content": [{"type": "text", "text": "\n\n".join(system)}]})
    return turns


def _parts(message: ChatMessage) -> list[dict[str, str]]:
    if not isinstance(message.content, list):
        return [{"type": "text", "text": message.content or ""}]
    for part in message.content:
        # Only the assistant's turns hold tool calls: a user's would become special tokens.
        if part.type not in (PART_TYPES if message.role == "assistant" else ("text",)):
            reason = f"content of type {part.type[:40]!r} is not supported; send text"
            raise ApiError(400, reason, param="messages")
    return [{"type": part.type, "text": part.text} for part in message.content]


# ---- answers


@dataclass(frozen=True)
class Envelope:
    """The fields that begin every body and every chunk of one answer."""

    id: str
    model: str
    created: int
    kind: Literal["chat.completion", "text_completion"]

    @classmethod
    def new(cls, kind: Literal["chat.completion", "text_completion"], model: str) -> "Envelope":
        prefix = "chatcmpl" if kind == "chat.completion" else "cmpl"
        return cls(f"{prefix}-{secrets.token_hex(12)}", model, int(time.time()), kind)

    def body(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": self.kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        name = "chat.completion.chunk" if self.kind == "chat.completion" else self.kind
        return {**self.body(choices, **more), "object": name}


def server_sent_event(body: dict[str, Any]) -> bytes:
    # Compact, and no line break can stand inside: JSON escapes them.
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


DONE = b"data: [DONE]\n\n"
