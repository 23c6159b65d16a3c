"""Conversation -> token ids and loss mask; the state machine of tool calls.

    <|bos|><|user_start|>What is 3 + 4?<|user_end|>
    <|assistant_start|><|python_start|>3 + 4<|python_end|><|output_start|>7<|output_end|>
    3 + 4 is 7.<|assistant_end|>

A conversation is {"messages": [{"role": "system" | "user" | "assistant", "content": ...}, ...]}
with content a string or a list of parts {"type": "text" | "python" | "python_output", "text": ...}.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import groupby
from typing import Any, Protocol

from nanochat.errors import UserError

Message = dict[str, Any]
Conversation = dict[str, Any]


class MessageStyle(Protocol):
    """How the texts of messages are written: part of the tokenizer, for small vocabularies."""

    @property
    def fold_all_caps(self) -> bool:
        """Whether a user's texts and words that are all in capitals are read in lower case."""

    @property
    def add_prefix_space(self) -> bool:
        """Whether a text's first word has a space before it, and so the tokens of other places."""


class Tokenizer(MessageStyle, Protocol):
    def encode(self, text: str) -> list[int]: ...

    def encode_special(self, name: str) -> int: ...

    def decode(self, ids: list[int]) -> str: ...

    def decode_bytes(self, ids: list[int]) -> bytes: ...

    def get_special_tokens(self) -> set[str]: ...


def merge_system(messages: list[Message]) -> list[Message]:
    """The messages with leading system texts merged into the first user message.

    Raises UserError when the rest is not user, assistant, user, ...
    """
    system = []
    while messages and messages[0]["role"] == "system":
        system.append(text_of(messages[0]["content"]))
        messages = messages[1:]
    if system:
        if not messages or messages[0]["role"] != "user":
            raise UserError("a system message must be followed by a user message")
        first = "\n\n".join([*system, text_of(messages[0]["content"])])
        messages = [{"role": "user", "content": first}, *messages[1:]]
    for number, message in enumerate(messages):
        expected = ("user", "assistant")[number % 2]
        if message["role"] != expected:
            raise UserError(
                f"message {number + 1} is by {message['role']!r} where {expected!r} is expected;"
                " user and assistant take turns, after at most one system text"
            )
    if not messages:
        raise UserError("a conversation needs at least one message by the user")
    return messages


def text_of(content: str | list[dict[str, str]]) -> str:
    """The text of a message, without tool calls and their outputs."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def render_conversation(
    conversation: Conversation, tokenizer: Tokenizer, max_tokens: int | None = None
) -> tuple[list[int], list[int]]:
    """ids and mask of a conversation, truncated to `max_tokens`.

    mask: 1 on what the assistant samples (tool calls and the end token included), else 0. A
    conversation {"text": ...} is plain text among conversations: all of it is learned.
    """
    if "text" in conversation:
        text_ids = tokenizer.encode(str(conversation["text"]))
        ids, mask = [tokenizer.encode_special("<|bos|>"), *text_ids], [0] + [1] * len(text_ids)
        return ids[:max_tokens], mask[:max_tokens]
    ids, mask = [tokenizer.encode_special("<|bos|>")], [0]
    for special, text, is_sampled in pieces_of(conversation["messages"], tokenizer):
        # Text is never encoded to special tokens: a user cannot end their turn by writing one.
        new = [tokenizer.encode_special(special)] if special else tokenizer.encode(text)
        ids += new
        mask += [is_sampled] * len(new)
    return ids[:max_tokens], mask[:max_tokens]


Piece = tuple[str, str, int]
"""(special token, "", mask) or ("", text, mask); mask is 1 where the assistant samples."""


def pieces_of(messages: list[Message], style: MessageStyle | None = None) -> list[Piece]:
    """The pieces that a conversation is rendered from. Raises UserError if it is malformed.

    style: None writes the texts as they are.
    """
    turns = merge_system(messages)
    return [piece for message in turns for piece in _message_pieces(message, style)]


def _message_pieces(message: Message, style: MessageStyle | None) -> list[Piece]:
    content = message["content"]
    if message["role"] == "user":
        text = text_of(content)
        text = with_prefix_space(_folded(text) if style and style.fold_all_caps else text, style)
        return [("<|user_start|>", "", 0), ("", text, 0), ("<|user_end|>", "", 0)]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    pieces: list[Piece] = [("<|assistant_start|>", "", 0)]
    for kind, text in _joined_texts(parts):
        if kind == "text":
            pieces += [("", with_prefix_space(text, style), 1)] if text else []
        elif kind == "python":
            pieces += [("<|python_start|>", "", 1), ("", text, 1), ("<|python_end|>", "", 1)]
        elif kind == "python_output":  # not sampled: at inference the engine forces it after a call
            follows_text = pieces[-1][0] == ""  # without a call: what is sampled ends with a token
            pieces.append(("<|output_start|>", "", int(follows_text)))
            pieces += [("", text, 0), ("<|output_end|>", "", 0)]
        else:
            raise UserError(f"a part of type {kind!r}; use text, python or python_output")
    return [*pieces, ("<|assistant_end|>", "", 1)]


def _folded(text: str) -> str:
    """In lower case, if all in capitals; else each word of three characters or more that is."""
    if text == text.upper():
        return text.lower()
    words = text.split(" ")
    return " ".join(w.lower() if len(w) > 2 and w == w.upper() else w for w in words)


def with_prefix_space(text: str, style: MessageStyle | None) -> str:
    """The text, with a space if the style adds one: before a letter, which may share its token."""
    first = text[:1]
    is_added = style is not None and style.add_prefix_space and first.lower() != first.upper()
    return " " + text if is_added else text


def decode_answer(tokens: list[int], tokenizer: Tokenizer) -> str:
    """The text of an answer, special tokens by their names, without the spaces that were added."""
    text = tokenizer.decode(tokens)
    if not tokenizer.add_prefix_space:
        return text
    return re.sub(r"(^|<\|(?:python|output)_end\|>) ", r"\1", text)


def _joined_texts(parts: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    """(type, text) of each part; adjacent texts are one, as the model would write them."""
    for kind, group in groupby(parts, key=lambda part: part["type"]):
        texts = [part["text"] for part in group]
        yield from ((kind, text) for text in (["".join(texts)] if kind == "text" else texts))


def render_for_completion(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """ids of a prompt for the next assistant message; a last assistant message is dropped."""
    messages = merge_system(conversation["messages"])
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    ids, _ = render_conversation({"messages": messages}, tokenizer)
    return [*ids, tokenizer.encode_special("<|assistant_start|>")]


def render_for_continuation(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """ids of a prompt that continues a last assistant message, if there is one."""
    if conversation["messages"][-1:] and conversation["messages"][-1]["role"] == "assistant":
        return render_conversation(conversation, tokenizer)[0][:-1]  # without <|assistant_end|>
    return render_for_completion(conversation, tokenizer)


def trim_to_fit(
    messages: list[Message], tokenizer: Tokenizer, max_prompt_tokens: int
) -> tuple[list[Message], int]:
    """The last turns whose prompt fits, and how many messages were dropped before them.

    System texts stay; a last assistant message is one to continue. Raises UserError when even the
    last turn is too long.
    """
    num_system = sum(message["role"] == "system" for message in messages)
    system, turns = messages[:num_system], messages[num_system:]
    # Sizes of single messages first: rendering every candidate would be quadratic.
    sizes = [
        sum(
            1 if special else len(tokenizer.encode(text))
            for special, text, _ in _message_pieces(turn, tokenizer)
        )
        for turn in turns
    ]
    first = 0
    while first + 2 < len(turns) and sum(sizes[first:]) > max_prompt_tokens:
        first += 2
    for dropped in range(first, max(1, len(turns)), 2):  # a user message with its answer
        kept = [*system, *turns[dropped:]]
        num_tokens = len(render_for_continuation({"messages": kept}, tokenizer))
        if num_tokens <= max_prompt_tokens:
            return kept, dropped
    raise UserError(
        f"the message has {num_tokens} tokens and the model's context has room for"
        f" {max_prompt_tokens}; shorten it"
    )


class ToolCallState:
    """The tool calls of one sequence: runs the tool at <|python_end|> and returns its output.

    >>> calls.feed(token)
    >>> calls.take_output()  # [] or <|output_start|> ... <|output_end|>
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        submit: Callable[[str], Future[str | None]],
        max_output_tokens: int,
    ) -> None:
        self.tokenizer, self.submit = tokenizer, submit
        self.max_output_tokens = max_output_tokens
        self.start, self.end, self.output_start, self.output_end = (
            tokenizer.encode_special(f"<|{name}|>")
            for name in ("python_start", "python_end", "output_start", "output_end")
        )
        self.expression: list[int] | None = None  # tokens since <|python_start|>
        self.pending: Future[str | None] | None = None  # a call whose output was not taken yet

    def feed(self, token: int) -> None:
        """Process a sampled token; the end of an expression submits it to the tool."""
        if token == self.start:
            self.expression = []
        elif token == self.end and self.expression is not None:
            self.pending = self.submit(self.tokenizer.decode(self.expression))
            self.expression = None
        elif self.expression is not None:
            self.expression.append(token)

    @property
    def is_pending(self) -> bool:
        """Whether the tool is still running; the sequence must not continue before."""
        return self.pending is not None and not self.pending.done()

    def take_output(self) -> list[int]:
        """Tokens to force now: a finished call's output, once."""
        if self.pending is None:
            return []
        output, self.pending = self.pending.result(), None
        if output is None:  # in the training data, too, nothing follows such a call
            return []
        tokens = self.tokenizer.encode(output)[: self.max_output_tokens]
        return [self.output_start, *tokens, self.output_end]

    def cancel(self) -> None:
        if self.pending is not None:
            self.pending.cancel()
