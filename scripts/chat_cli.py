"""Talk to a model in the terminal.

    python -m scripts.chat_cli
    python -m scripts.chat_cli -p "What is 347 + 588?"
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from nanochat import checkpoint_manager, runtime, stage
from nanochat.chat import render_for_completion, trim_to_fit
from nanochat.configurator import parse, run, short
from nanochat.engine import Engine, Event, Finished, Sampling, TextPiece, ToolCall
from nanochat.errors import UserError

HELP = """/help   these lines
/clear  begin a new conversation
/retry  another answer to the last question
/stats  how fast the last answer came
/quit   leave (or Ctrl-D)
Ctrl-C stops an answer."""
MIN_ANSWER_TOKENS = 64  # room that a prompt must leave in the context


@dataclass(frozen=True)
class Options:
    """Talk to a model in the terminal."""

    prompt: Annotated[str, short("-p")] = ""
    """Answer this one question and leave."""
    source: Annotated[Literal["latest", "base", "mid", "sft", "rl"], short("-i")] = "latest"
    """Stage whose model answers; latest is the furthest that there is."""
    model_tag: str = ""
    """Folder of the checkpoint; empty means the newest."""
    step: int = -1
    """Step of the checkpoint; -1 means the newest."""
    temperature: float = 0.0
    """0 takes the likeliest token; 1 draws as the model was trained."""
    top_k: int = 50
    """Likeliest tokens that are drawn from; 0 means all."""
    max_tokens: int = 512
    """Tokens of an answer at most."""
    seed: int = 42
    """Of the draws; each answer of a conversation draws anew."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest that is there."""


def main(argv: list[str] | None = None) -> None:
    """Load the model, then answer."""
    options = parse(Options, argv)
    if options.max_tokens < 1:
        raise UserError(f"--max_tokens={options.max_tokens} must be 1 or more")
    with stage.opened(options.device_type) as place:
        source = checkpoint_manager.find_stage() if options.source == "latest" else options.source
        step = None if options.step == -1 else options.step
        tag = options.model_tag or None
        model, tokenizer, meta = checkpoint_manager.load_model(source, place, tag, step)
        chat = Chat(Engine(model, tokenizer), options)
        if options.prompt:
            chat.answer(options.prompt)
            return
        name = f"{meta['settings']['model_tag']} {source}, step {meta['step']}"
        converse(chat, f"nanochat ({name}). Type /help for the commands.")


class Chat:
    """One conversation: its messages, and answers printed as they come."""

    def __init__(self, engine: Engine, options: Options) -> None:
        self.engine, self.options = engine, options
        self.messages: list[dict[str, Any]] = []
        self.num_answers = 0
        self.stats = "no answer yet"

    def answer(self, text: str) -> None:
        """Answer one message of the user, and keep both. Ctrl-C ends the answer where it is."""
        asked = [*self.messages, {"role": "user", "content": text}]
        limit = self.engine.model.config.sequence_len
        room = limit - min(MIN_ANSWER_TOKENS, limit // 4)
        asked, num_dropped = trim_to_fit(asked, self.engine.tokenizer, room)
        if num_dropped:
            print(f"(the first {num_dropped} messages no longer fit and are forgotten)")
        content: list[dict[str, str]] = []
        try:
            for event in self._events(asked):
                self._show(event, content)
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        print(flush=True)
        self.messages = [*asked, {"role": "assistant", "content": content}]

    def _events(self, asked: list[dict[str, Any]]) -> Iterator[Event]:
        prompt = render_for_completion({"messages": asked}, self.engine.tokenizer)
        sampling = Sampling(self.options.temperature, self.options.top_k)
        # A prompt that is repeated draws anew: the seed counts the answers.
        seed = runtime.derive_seed(self.options.seed, self.num_answers)
        self.num_answers += 1
        return self.engine.stream_text(prompt, self.options.max_tokens, sampling, seed)

    def _show(self, event: Event, content: list[dict[str, str]]) -> None:
        if isinstance(event, TextPiece):
            print(event.text, end="", flush=True)
            content.append({"type": "text", "text": event.text})
        elif isinstance(event, ToolCall):
            result = "no result" if event.result is None else event.result
            print(f"[{event.expression} = {result}] ", end="", flush=True)
            content.append({"type": "python", "text": event.expression})
            if event.result is not None:
                content.append({"type": "python_output", "text": event.result})
        elif isinstance(event, Finished):
            if event.reason == "length":
                print(" (cut: --max_tokens or the context is used up)", end="")
            self.stats = f"{event.num_prompt_tokens} tokens read, {event.num_tokens} written"

    def retry(self) -> None:
        """Answer the last question again."""
        if len(self.messages) < 2:
            print("there is no question yet")
            return
        question = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        self.answer(question)


def converse(chat: Chat, greeting: str) -> None:
    """Questions from a person at a prompt, or from the lines of a pipe, until they end."""
    if sys.stdin.isatty():
        print(greeting)
    for line in lines():
        text = line.strip()
        if text in ("/quit", "/exit"):
            return
        if not text:
            continue
        try:
            obey(chat, text) if text.startswith("/") else chat.answer(text)
        except UserError as error:  # a message that does not fit; the conversation goes on
            print(error)


def obey(chat: Chat, text: str) -> None:
    """Do what a line that begins with / says."""
    if text == "/clear":
        chat.messages = []
        print("a new conversation")
    elif text == "/retry":
        chat.retry()
    elif text == "/stats":
        print(chat.stats)
    else:
        print(HELP)


def lines() -> Iterator[str]:
    """Lines that a person types, with history and editing; or those of a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    for _ in itertools.count():
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            print("(Ctrl-D or /quit to leave)")
        except EOFError:
            return


if __name__ == "__main__":
    run(main)
