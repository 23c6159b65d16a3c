"""Streaming detokenizer: tokens to events, with text in complete code points."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from nanochat.chat import Tokenizer
from nanochat.inference.sampling import TokenLogprob

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TextPiece:
    """Text in complete code points; "" if a token only has a log-probability to report."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()  # of its tokens, if requested


@dataclass(frozen=True)
class ToolCall:
    expression: str
    result: str | None  # None: the tool gave no output


@dataclass(frozen=True)
class Finished:
    reason: FinishReason
    num_prompt_tokens: int
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()  # of the end token, which has no text, if requested


Event = TextPiece | ToolCall | Finished


class Detokenizer:
    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], continues: bool = False) -> None:
        """continues: the prompt ends within a text, which has its space already."""
        self.tokenizer = tokenizer
        self._drops_space = tokenizer.add_prefix_space and not continues
        self.stop = [string for string in stop if string]
        self.has_stopped = False  # whether a stop string was found
        self.num_decoded, self.num_released = 0, 0  # characters of the text
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._special = {
            tokenizer.encode_special(name): name for name in tokenizer.get_special_tokens()
        }
        self._held = ""  # text that could be the beginning of a stop string
        self._section = ""  # the special token that opened a tool's input or output
        self._section_tokens: list[int] = []
        self._expression = ""  # of a call without a result yet

    def is_text(self, token: int) -> bool:
        """Whether a token is part of the text: not special and not of a tool call."""
        return token not in self._special and not self._section

    def feed(self, token: int, is_forced: bool) -> Iterator[Event]:
        name = self._special.get(token)
        if name is None and self._section:
            self._section_tokens.append(token)
        elif name is None:
            new = self.tokenizer.decode_bytes([token])
            if self._drops_space:
                new, self._drops_space = new.removeprefix(b" "), False
            yield from self._release(self._utf8.decode(new))
        elif name in ("<|python_start|>", "<|output_start|>"):
            if name == "<|python_start|>" and self._expression:
                yield self._tool_call(None)
            self._section, self._section_tokens = name, []
        elif name == "<|python_end|>" and self._section == "<|python_start|>":
            self._expression, self._section = self.tokenizer.decode(self._section_tokens), ""
            self._drops_space = self.tokenizer.add_prefix_space
        elif name == "<|output_end|>":
            self._section, self._drops_space = "", self.tokenizer.add_prefix_space
            if is_forced:  # otherwise the model invented the output, and no tool ran
                yield self._tool_call(self.tokenizer.decode(self._section_tokens))

    def flush(self) -> Iterator[Event]:
        """Events still held back when the sequence ends."""
        if not self.has_stopped:
            yield from self._release(self._utf8.decode(b"", final=True), is_last=True)
        if self._expression:
            yield self._tool_call(None)

    def _tool_call(self, result: str | None) -> ToolCall:
        expression, self._expression = self._expression, ""
        return ToolCall(expression, result)

    def _release(self, new: str, is_last: bool = False) -> Iterator[Event]:
        if new and self._expression:  # text directly after a call: the tool gave no result
            yield self._tool_call(None)
        self._held += new
        self.num_decoded += len(new)
        matches = [at for at in map(self._held.find, self.stop) if at >= 0]
        if matches:
            self._held, self.has_stopped = self._held[: min(matches)], True
        keep = 0 if is_last or self.has_stopped else self._partial_stop_length()
        cut = len(self._held) - keep
        released, self._held = self._held[:cut], self._held[cut:]
        self.num_released += len(released)
        if released:
            yield TextPiece(released)

    def _partial_stop_length(self) -> int:
        """Number of characters at the end that could begin a stop string."""
        longest = max(map(len, self.stop), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(string.startswith(self._held[-length:]) for string in self.stop):
                return length
        return 0
