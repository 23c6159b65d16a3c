"""The OpenAI protocol: what requests may hold, what answers and errors look like.

Two things are added to it, and clients that do not know them lose nothing: a message's content may
have parts of type `python` and `python_output` (as in `chat`), and an answer names its tool calls
under `tools` beside the text.
"""

import itertools
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from nanochat import chat
from nanochat.chat import Message, render_to_go_on, trim_to_fit
from nanochat.errors import UserError
from nanochat.inference.detokenizer import ToolCall
from nanochat.inference.sampling import Sampling, TokenChoice

MAX_MESSAGES = 1000
MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 200
MAX_INT = 2**31 - 1
LEAST_LOGPROB = -9999.0
PART_TYPES = ("text", "python", "python_output")


class Tokenizer(chat.Tokenizer, Protocol):
    """What the protocol asks of a tokenizer."""

    def decode_bytes(self, ids: list[int]) -> bytes: ...

    def get_vocab_size(self) -> int: ...


# ---- errors


class ApiError(HTTPException):
    """An answer other than 200, in the protocol's form."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        """{"error": {message, type, param, code}}."""
        return error_body(self.status_code, self.detail, self.param, self.code)


ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of every answer that is not 200."""
    usual = "invalid_request_error" if status < 500 else "server_error"
    kind = ERROR_TYPES.get(status, usual)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The form of `error_body`, for the description of the interface."""

    error: ErrorDetail


# ---- requests


class Loose(BaseModel):
    """Fields that are not known are ignored; numbers are finite."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Part(Loose):
    """A piece of a message: text, or what the assistant computed and what came out."""

    type: str
    text: str = ""


class ChatMessage(Loose):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class StreamOptions(Loose):
    """What a stream may end with."""

    include_usage: bool | None = None


class Generation(Loose):
    """What both kinds of request say about how to answer."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_INT)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)

    def stop_strings(self) -> tuple[str, ...]:
        """The strings that end an answer. Raises ApiError on too many or too long ones."""
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(strings) > MAX_STOP_STRINGS:
            message = f"stop has {len(strings)} strings; at most {MAX_STOP_STRINGS}"
            raise ApiError(400, message, param="stop")
        if max(map(len, strings), default=0) > MAX_STOP_CHARACTERS:
            message = f"a stop string has more than {MAX_STOP_CHARACTERS} characters"
            raise ApiError(400, message, param="stop")
        return tuple(filter(None, strings))

    def wants_usage(self) -> bool:
        """Whether a stream is to end with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    trim: bool | None = None
    """Leave the oldest turns out when the conversation outgrows the context (ours)."""

    def num_top_logprobs(self) -> int | None:
        """How many most likely tokens are wanted beside each; None: no logprobs at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Generation):
    """POST /v1/completions: plain text gone on with."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(None, ge=0, le=MAX_INT)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)

    def num_top_logprobs(self) -> int | None:
        """How many most likely tokens are wanted beside each; None: no logprobs at all."""
        return self.logprobs


@dataclass(frozen=True)
class Defaults:
    """What holds where a request says nothing."""

    temperature: float = 0.0
    top_k: int = 50
    max_tokens: int = 512


def sampling_of(request: Generation, defaults: Defaults) -> Sampling:
    """How the tokens of the answer are drawn."""
    temperature, top_k = request.temperature, request.top_k
    return Sampling(
        temperature=defaults.temperature if temperature is None else temperature,
        top_k=defaults.top_k if top_k is None else max(0, top_k),
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
    )


def seed_of(request: Generation) -> int:
    """The seed asked for, else one that nobody has had."""
    return secrets.randbits(63) if request.seed is None else request.seed


# ---- a conversation as a prompt


@dataclass(frozen=True)
class Prompt:
    """Tokens to go on from, and how many messages were left out before them."""

    tokens: list[int]
    num_dropped: int = 0


def prompt_of(request: ChatRequest, tokenizer: Tokenizer, max_tokens: int) -> Prompt:
    """The conversation as tokens, at most `max_tokens` when the request allows it to be trimmed.

    A last message by the assistant is gone on with. Raises ApiError on what is no conversation.
    """
    try:
        messages, dropped = in_turns(request.messages), 0
        if request.trim:
            messages, dropped = trim_to_fit(messages, tokenizer, max_tokens)
        return Prompt(render_to_go_on({"messages": messages}, tokenizer), dropped)
    except UserError as error:
        code = "context_length_exceeded" if "context" in str(error) else None
        raise ApiError(400, str(error), param="messages", code=code) from None


@dataclass(frozen=True)
class TextPrompt:
    """A plain text as tokens that begin with <|bos|>."""

    tokens: list[int]
    is_bos_hidden: bool
    """True where we put it there: it is not shown."""

    def shown(self, choices: list[TokenChoice]) -> list[TokenChoice | int]:
        """What is known of each token that the client has sent."""
        return [*choices] if self.is_bos_hidden else [self.tokens[0], *choices]


def prompts_of(request: CompletionRequest, tokenizer: Tokenizer) -> list[TextPrompt]:
    """Each prompt of a completion. Raises ApiError when there is none, or an id is unknown."""
    asked = request.prompt
    texts: list[str | list[int]]
    if isinstance(asked, str):
        texts = [asked]
    elif asked and isinstance(asked[0], int):
        texts = [[token for token in asked if isinstance(token, int)]]
    else:
        texts = [text for text in asked if not isinstance(text, int)]
    if not 1 <= len(texts) <= MAX_PROMPTS:
        raise ApiError(400, f"{len(texts)} prompts; between 1 and {MAX_PROMPTS}", param="prompt")
    return [_text_prompt(text, tokenizer) for text in texts]


def _text_prompt(text: str | list[int], tokenizer: Tokenizer) -> TextPrompt:
    tokens = tokenizer.encode(text) if isinstance(text, str) else text
    limit = tokenizer.get_vocab_size()
    if wrong := [token for token in tokens if not 0 <= token < limit]:
        message = f"token {wrong[0]} is not between 0 and {limit - 1}"
        raise ApiError(400, message, param="prompt")
    bos = tokenizer.encode_special("<|bos|>")
    is_hidden = tokens[:1] != [bos]
    return TextPrompt([bos, *tokens] if is_hidden else tokens, is_hidden)


def in_turns(messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages as `chat` wants them: a system text first, then user and assistant in turns.

    Messages of one role after another are joined, a system text between turns goes to the next
    user text.
    """
    turns: list[Message] = []
    pending: list[str] = []
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        parts = _parts(message)
        if role == "system":
            pending.append(_text(parts))
            continue
        if role == "user":
            text = "\n\n".join([*pending, _text(parts)])
            pending, parts = [], [{"type": "text", "text": text}]
        if turns and turns[-1]["role"] == role:
            gap = [{"type": "text", "text": "\n\n"}]
            turns[-1]["content"] += [*gap, *parts]
        else:
            turns.append({"role": role, "content": parts})
    if pending:
        turns.append({"role": "user", "content": [{"type": "text", "text": "\n\n".join(pending)}]})
    return turns


def _parts(message: ChatMessage) -> list[dict[str, str]]:
    content = message.content
    if not isinstance(content, list):
        return [{"type": "text", "text": content or ""}]
    for part in content:
        if part.type not in PART_TYPES or (part.type != "text" and message.role != "assistant"):
            raise ApiError(
                400, f"content of type {part.type[:40]!r} is not understood; this model reads text",
                param="messages",
            )  # fmt: skip
    return [{"type": part.type, "text": part.text} for part in content]


def _text(parts: list[dict[str, str]]) -> str:
    return "".join(part["text"] for part in parts)


# ---- answers


@dataclass(frozen=True)
class Envelope:
    """What every body and every chunk of one answer begins with."""

    id: str
    model: str
    created: int
    kind: Literal["chat.completion", "text_completion"]

    @classmethod
    def new(cls, kind: Literal["chat.completion", "text_completion"], model: str) -> "Envelope":
        """Of an answer that begins now."""
        prefix = "chatcmpl" if kind == "chat.completion" else "cmpl"
        return cls(f"{prefix}-{secrets.token_hex(12)}", model, int(time.time()), kind)

    def body(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A whole answer."""
        return {**self._head(self.kind), "choices": choices, **more}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A piece of a stream."""
        name = "chat.completion.chunk" if self.kind == "chat.completion" else self.kind
        return {**self._head(name), "choices": choices, **more}

    def _head(self, name: str) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


def usage(num_prompt_tokens: int, num_tokens: int) -> dict[str, int]:
    """How many tokens were read and written."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
    }


def tool_body(call: ToolCall) -> dict[str, Any]:
    """A tool call as JSON."""
    return {"expression": call.expression, "result": call.result}


def chat_logprobs(
    choices: Sequence[TokenChoice | int], tokenizer: Tokenizer
) -> dict[str, Any] | None:
    """Choices as a chat's `logprobs`; None where there are none."""
    if not choices:
        return None

    def token(number: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.decode_bytes([number])
        text = raw.decode(errors="replace")
        return {"token": text, "logprob": finite(logprob), "bytes": list(raw)}

    return {
        "content": [
            {
                **token(one.token, one.logprob),
                "top_logprobs": [token(*other) for other in one.top_logprobs],
            }
            for one in choices
            if isinstance(one, TokenChoice)
        ]
    }


def text_logprobs(
    choices: Sequence[TokenChoice | int], tokenizer: Tokenizer, offset: int
) -> dict[str, Any] | None:
    """Choices as a completion's `logprobs`, None where there are none.

    offset: characters of the text before them.
    """
    if not choices:
        return None
    tokens, known = [], []
    for one in choices:
        tokens.append(token_name(one if isinstance(one, int) else one.token, tokenizer))
        known.append(None if isinstance(one, int) else one)
    offsets = itertools.accumulate(map(len, tokens), initial=offset)
    return {
        "tokens": tokens,
        "token_logprobs": [None if one is None else finite(one.logprob) for one in known],
        "top_logprobs": [
            None
            if one is None
            else {token_name(token, tokenizer): finite(value) for token, value in one.top_logprobs}
            for one in known
        ],
        "text_offset": list(offsets)[:-1],
    }


def token_name(token: int, tokenizer: Tokenizer) -> str:
    """A token as text; one that is no text alone, as `bytes:` and its bytes."""
    raw = tokenizer.decode_bytes([token])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, LEAST_LOGPROB)


def server_sent(body: dict[str, Any]) -> bytes:
    """One event of a stream."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


DONE = b"data: [DONE]\n\n"
