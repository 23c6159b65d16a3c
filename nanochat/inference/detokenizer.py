"""An answer as it is told to people: events made of tokens, text in whole code points."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from nanochat.inference.sampling import TokenChoice
from nanochat.tokenizer import RustBPETokenizer


@dataclass(frozen=True)
class TextPiece:
    """Text in whole code points."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """What was computed and what came out; None when the tool refused."""

    expression: str
    result: str | None


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: Literal["stop", "length"]
    num_prompt_tokens: int
    num_tokens: int
    choice: TokenChoice | None = None
    """That the answer ends here, where likelihoods are noted: the end token is no text."""


Event = TokenChoice | TextPiece | ToolCall | Finished


class TextStream:
    """Turns tokens into events: tool calls as one event, text in whole code points."""

    def __init__(self, tokenizer: RustBPETokenizer, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop = [string for string in stop if string]
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.names = {
            tokenizer.encode_special(name): name for name in tokenizer.get_special_tokens()
        }
        self.held = ""
        self.has_stopped = False
        self.inside = ""
        self.collected: list[int] = []
        self.expression = ""

    def is_text(self, token: int) -> bool:
        """Whether a token is read by people: not special, and not inside of a tool call."""
        return token not in self.names and not self.inside

    def feed(self, token: int, is_forced: bool) -> Iterator[TextPiece | ToolCall]:
        """Events that one more token makes."""
        name = self.names.get(token)
        if name is None and self.inside:
            self.collected.append(token)
        elif name is None:
            yield from self._release(self.decoder.decode(self.tokenizer.decode_bytes([token])))
        elif name in ("<|python_start|>", "<|output_start|>"):
            if name == "<|python_start|>" and self.expression:
                yield self._tool_call(None)
            self.inside, self.collected = name, []
        elif name == "<|python_end|>" and self.inside == "<|python_start|>":
            self.expression, self.inside = self.tokenizer.decode(self.collected), ""
        elif name == "<|output_end|>":
            self.inside = ""
            if is_forced:  # else the model has made the output up
                yield self._tool_call(self.tokenizer.decode(self.collected))

    def _tool_call(self, result: str | None) -> ToolCall:
        call = ToolCall(self.expression, result)
        self.expression = ""
        return call

    def _release(self, new: str, is_last: bool = False) -> Iterator[TextPiece | ToolCall]:
        if new and self.expression:  # text right after a call: the tool has refused
            yield self._tool_call(None)
        self.held += new
        found = [at for at in (self.held.find(string) for string in self.stop) if at >= 0]
        if found:
            self.held, self.has_stopped = self.held[: min(found)], True
        keep = 0 if is_last or self.has_stopped else self._possible_stop()
        released, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        if released:
            yield TextPiece(released)

    def _possible_stop(self) -> int:
        """How many characters at the end could be the beginning of a stop string."""
        longest = max(map(len, self.stop), default=0)
        for length in range(min(longest, len(self.held)), 0, -1):
            if any(string.startswith(self.held[-length:]) for string in self.stop):
                return length
        return 0

    def flush(self) -> Iterator[TextPiece | ToolCall]:
        """What was held back."""
        if not self.has_stopped:
            yield from self._release(self.decoder.decode(b"", final=True), is_last=True)
        if self.expression:
            yield self._tool_call(None)
