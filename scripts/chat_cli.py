"""Talk to a model in the terminal.

python -m scripts.chat_cli
python -m scripts.chat_cli -p "What is 347 + 588?"      just the answer, ready for a pipe
"""

import difflib
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from nanochat import checkpoint_manager, paths
from nanochat.chat import Message, pieces_of, render_for_completion, trim_to_fit
from nanochat.configurator import FolderName, at_least, between, parse, run, short
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.inference.detokenizer import Event, Finished, TextPiece, ToolCall
from nanochat.inference.sampling import Sampling
from nanochat.runtime import derive_seed
from nanochat.training import stage
from nanochat.web import markdown

if TYPE_CHECKING:
    from prompt_toolkit.history import History

COMMANDS = {
    "/help": "these lines",
    "/clear": "begin a new conversation",
    "/system": "TEXT is put before the first message; without TEXT nothing is",
    "/retry": "another answer to the last question",
    "/save": "FILE keeps the conversation",
    "/load": "FILE goes on with one that was kept",
    "/stats": "how fast the last answer came",
    "/quit": "leave (or Ctrl-D)",
}
MIN_ANSWER_TOKENS = 64  # room that a prompt must leave in the context
RETRY_TEMPERATURE = 0.7  # a second answer at temperature 0 would be the first again
FRAMES_PER_SECOND = 12
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a terminal would obey them


@dataclass(frozen=True)
class Options:
    """Talk to a model in the terminal."""

    prompt: Annotated[str, short("-p")] = ""
    """Answer this one question and leave."""
    source: Annotated[Literal["latest", "base", "mid", "sft", "rl"], short("-i")] = "latest"
    """Stage whose model answers; latest is the furthest that there is."""
    model_tag: Annotated[str, FolderName()] = ""
    """Folder of the checkpoint; empty means the newest."""
    step: Annotated[int, at_least(0, besides=-1)] = -1
    """Step of the checkpoint; -1 means the newest."""
    temperature: Annotated[float, between(0, 2)] = 0.0
    """0 takes the most likely token; 1 draws as the model was trained."""
    top_k: Annotated[int, at_least(0)] = 50
    """Likeliest tokens that are drawn from; 0 means all."""
    max_tokens: Annotated[int, at_least(1)] = 512
    """Tokens of an answer at most."""
    seed: int = 42
    """Of the draws; each answer of a conversation draws anew."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest that is there."""


def main(argv: list[str] | None = None) -> None:
    """Load the model, then answer. Leaves with 2 when a message of a pipe could not be answered."""
    options = parse(Options, argv)
    with stage.opened(options.device_type) as runtime:
        source = checkpoint_manager.find_stage() if options.source == "latest" else options.source
        model, tokenizer, meta = checkpoint_manager.load_model(
            source, runtime, options.model_tag, options.step
        )
        face: Face = Terminal() if sys.stdout.isatty() else Pipe()
        chat = Chat(Engine(model, tokenizer), options, face)
        if options.prompt:
            if not chat.answer(options.prompt):
                raise KeyboardInterrupt
            return
        name = f"{meta['settings']['model_tag']} {source}, step {meta['step']}"
        if not converse(chat, f"nanochat ({name}). /help lists the commands."):
            sys.exit(2)


# ---- how an answer is shown


class Face(Protocol):
    """Where answers and notes appear."""

    def answering(self) -> AbstractContextManager[object]:
        """Around one answer."""

    def show_text(self, text: str) -> None:
        """More of the answer."""

    def show_tool(self, call: ToolCall) -> None:
        """What was computed, and what came out."""

    def note(self, text: str) -> None:
        """Something that is not the model's."""


def tool_line(call: ToolCall) -> str:
    """A tool call in one line."""
    return f"{call.expression} = {'no result' if call.result is None else call.result}"


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def set_markdown(text: str) -> Markdown:
    """Markdown for a terminal: HTML is text, and a line ends where it does in the answer."""
    shown = Markdown("")
    shown.parsed = markdown.tokens_of(printable(text))
    return shown


class Pipe:
    """The answer alone on stdout, one line more at its end; the rest on stderr."""

    def answering(self) -> AbstractContextManager[object]:
        """A line that is ended, also when the answer is stopped."""
        return _Line()

    def show_text(self, text: str) -> None:
        """As it comes."""
        print(text, end="", flush=True)

    def show_tool(self, call: ToolCall) -> None:
        """On stderr."""
        self.note(f"[{tool_line(call)}]")

    def note(self, text: str) -> None:
        """On stderr."""
        print(printable(text), file=sys.stderr, flush=True)


class _Line(nullcontext[None]):
    def __exit__(self, *_: object) -> None:
        print(flush=True)


class Terminal:
    """Markdown that grows in place; tool calls and notes between, dim."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.text = ""
        self.live: Live | None = None

    def answering(self) -> AbstractContextManager[object]:
        """What is left of the text is set when it ends."""
        return _Setting(self)

    def show_text(self, text: str) -> None:
        """The end of it in place, as far as the screen is high."""
        self.text += text
        if self.live is None:
            self.live = Live(
                console=self.console, refresh_per_second=FRAMES_PER_SECOND, transient=True
            )
            self.live.start()
        tail = "\n".join(self.text.splitlines()[-max(1, self.console.height - 2) :])
        self.live.update(set_markdown(tail))

    def show_tool(self, call: ToolCall) -> None:
        """In one dim line."""
        self.set_text()
        self.console.print(Text(printable(f"  {tool_line(call)}"), style="cyan dim"))

    def note(self, text: str) -> None:
        """In one dim line."""
        self.set_text()
        self.console.print(Text(printable(text), style="dim"))

    def set_text(self) -> None:
        """What has grown in place stays where it is."""
        if self.live is not None:
            self.live.stop()
            self.console.print(set_markdown(self.text))
        self.live, self.text = None, ""


class _Setting(nullcontext[None]):
    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self.terminal = terminal

    def __exit__(self, *_: object) -> None:
        self.terminal.set_text()


# ---- the conversation


class Chat:
    """One conversation: its messages, and answers shown as they come."""

    def __init__(self, engine: Engine, options: Options, face: Face) -> None:
        self.engine, self.options, self.face = engine, options, face
        self.system = ""
        self.messages: list[Message] = []
        self.num_answers = 0
        self.stats = "no answer yet"

    def answer(self, text: str, temperature: float | None = None) -> bool:
        """Answer one message of the user, and keep both; False when Ctrl-C has ended it.

        Raises UserError, and keeps nothing, when the message is too long for the model.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = self._prompt(asked)
        content: list[dict[str, str]] = []
        events = self._events(prompt, temperature)
        is_whole = True
        with self.face.answering():
            try:
                for event in events:
                    self._show(event, content)
            except KeyboardInterrupt:
                is_whole = False
        if not is_whole:
            self.face.note("(stopped)")
        elif not content:
            self.face.note("(no answer)")
        self.messages = [*asked, {"role": "assistant", "content": content}]
        return is_whole

    def _prompt(self, asked: list[Message]) -> list[int]:
        """The conversation as tokens; its oldest turns are left out when it has grown too long."""
        if self.system:
            asked = [{"role": "system", "content": self.system}, *asked]
        limit = self.engine.model.config.sequence_len
        room = limit - min(MIN_ANSWER_TOKENS, limit // 4)
        kept, num_dropped = trim_to_fit(asked, self.engine.tokenizer, room)
        if num_dropped:
            self.face.note(f"(the first {num_dropped} messages no longer fit and are left out)")
        return render_for_completion({"messages": kept}, self.engine.tokenizer)

    def _events(self, prompt: list[int], temperature: float | None) -> Iterator[Event]:
        sampling = Sampling(self.options.temperature, self.options.top_k)
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        # A prompt that is repeated draws anew: the seed counts the answers.
        seed = derive_seed(self.options.seed, self.num_answers)
        self.num_answers += 1
        began = time.monotonic()
        first = 0.0
        for event in self.engine.stream_text(prompt, self.options.max_tokens, sampling, seed):
            seconds = time.monotonic() - began
            first = first or seconds
            if isinstance(event, Finished):
                self.stats = (
                    f"{event.num_prompt_tokens} tokens read, {event.num_tokens} written in"
                    f" {seconds:.2f} s (the first words after {first:.2f} s),"
                    f" {event.num_tokens / max(seconds, 1e-9):.0f} a second"
                )
            yield event

    def _show(self, event: Event, content: list[dict[str, str]]) -> None:
        if isinstance(event, TextPiece):
            self.face.show_text(event.text)
            if not content or content[-1]["type"] != "text":
                content.append({"type": "text", "text": ""})
            content[-1]["text"] += event.text
        elif isinstance(event, ToolCall):
            self.face.show_tool(event)
            content.append({"type": "python", "text": event.expression})
            if event.result is not None:
                content.append({"type": "python_output", "text": event.result})
        elif isinstance(event, Finished) and event.reason == "length":
            self.face.note("(cut: --max_tokens or the context is used up)")

    def retry(self) -> None:
        """Answer the last question again, in other words."""
        if len(self.messages) < 2:
            self.face.note("there is no question yet")
            return
        question = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        self.answer(question, max(self.options.temperature, RETRY_TEMPERATURE))

    def save(self, path: Path) -> None:
        """Keep the conversation. Raises UserError when another file is there, or it cannot be."""
        if path.exists():
            read_kept(path)
        kept = {"system": self.system, "messages": self.messages}
        try:
            paths.write_atomic(path, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
        self.face.note(f"{len(self.messages)} messages are in {path}")

    def load(self, path: Path) -> None:
        """Go on with a kept conversation. Raises UserError when it cannot be read as one."""
        system, messages = read_kept(path)
        self.system, self.messages = system, messages
        self.face.note(f"{len(messages)} messages from {path}")


def read_kept(path: Path) -> tuple[str, list[Message]]:
    """System text and messages of a file. Raises UserError on one that /save has not written."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        system, messages = kept["system"], kept["messages"]
        texts = [text for _, text, _ in pieces_of(messages)] if messages else []
        in_turns = ["user", "assistant"] * (len(messages) // 2)
        is_kept = [message["role"] for message in messages] == in_turns
        is_kept = is_kept and all(isinstance(text, str) for text in [system, *texts])
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError):
        is_kept = False
    if not is_kept:
        raise UserError(f"{path} is no conversation that /save has written")
    return system, messages


# ---- the prompt


def converse(chat: Chat, greeting: str) -> bool:
    """Questions from a person at a prompt, or from the lines of a pipe, until they end.

    False when one of a pipe could not be answered.
    """
    is_person = sys.stdin.isatty()
    if is_person:
        chat.face.note(greeting)
    is_well = True
    for line in typed_lines() if is_person else sys.stdin:
        text = line.rstrip("\n")
        if text.strip() in ("/quit", "/exit"):
            break
        try:
            if text.startswith("/"):
                obey(chat, text)
            elif text.strip() and not chat.answer(text.strip()) and not is_person:
                raise KeyboardInterrupt
        except UserError as error:  # the conversation goes on
            print(error, file=sys.stderr)
            is_well = False
        except KeyboardInterrupt:
            if not is_person:
                raise
            chat.face.note("(stopped)")
    return is_well or is_person


def obey(chat: Chat, text: str) -> None:
    """Do what a line that begins with / says. Raises UserError when it says nothing known."""
    command, _, rest = text.partition(" ")
    rest = rest.strip()
    if command == "/help":
        chat.face.note("\n".join(f"{name:8} {words}" for name, words in COMMANDS.items()))
        chat.face.note("Ctrl-C stops an answer; Alt-Enter begins a new line.")
    elif command == "/clear":
        chat.messages = []
        chat.face.note("a new conversation")
    elif command == "/system":
        chat.system = rest
        chat.face.note(f"system text: {rest or 'none'}")
    elif command == "/retry":
        chat.retry()
    elif command == "/stats":
        chat.face.note(chat.stats)
    elif command in ("/save", "/load"):
        if not rest:
            raise UserError(f"{command} needs the name of a file")
        path = Path(rest).expanduser()
        chat.save(path) if command == "/save" else chat.load(path)
    else:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        remedy = f"did you mean {near[0]}?" if near else "/help lists what there is"
        raise UserError(f"{command} is no command; {remedy} (a space before / makes it a message)")


def typed_lines() -> Iterator[str]:
    """What a person types, with history and editing, until Ctrl-D."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import create_output

    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    session: PromptSession[str] = PromptSession(
        history=typed_before(paths.base_dir() / "chat_history.txt"),
        completer=WordCompleter([*COMMANDS], sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        output=create_output(always_prefer_tty=True),  # answers may go into a pipe
    )
    while True:
        try:
            yield session.prompt("> ", prompt_continuation="  ")
        except KeyboardInterrupt:
            print("(Ctrl-D or /quit to leave)")
        except EOFError:
            return


def typed_before(path: Path) -> "History":
    """The history in a file that only its owner reads; in memory where it cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path.touch(mode=0o600)
        path.open("ab").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


if __name__ == "__main__":
    run(main)
