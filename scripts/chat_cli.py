"""Chat with a model in the terminal.

python -m scripts.chat_cli
python -m scripts.chat_cli -p "What is 347 + 588?"      only the answer, for use in a pipe
"""

from dataclasses import dataclass
from typing import Annotated

from nanochat.configurator import Short, is_given, parse, run_command
from scripts.options import InferenceOptions


@dataclass(frozen=True)
class Options(InferenceOptions):
    """Chat with a model in the terminal."""

    prompt: Annotated[str, Short("-p")] = ""
    """Answer this one question and exit."""
    seed: int = 42
    """Seed of the sampling; each answer of a conversation derives its own."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import difflib
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from nanochat import paths
from nanochat.chat import Message, pieces_of, render_for_completion, trim_to_fit
from nanochat.engine import Engine, Event, Finished, Sampling, TextPiece, ToolCall
from nanochat.errors import UserError
from nanochat.runtime import derive_seed
from nanochat.training import stage
from nanochat.web import markdown
from scripts.inference import load_engines

if TYPE_CHECKING:
    from prompt_toolkit.history import History

COMMANDS = {
    "/help": "show this list",
    "/clear": "start a new conversation",
    "/system": "TEXT sets the system prompt; without TEXT it is removed",
    "/retry": "regenerate the last answer",
    "/save": "FILE saves the conversation",
    "/load": "FILE continues a saved conversation",
    "/stats": "show the speed of the last answer",
    "/quit": "exit (or Ctrl-D)",
}
MIN_ANSWER_TOKENS = 64  # room in the context that a prompt must leave
RETRY_TEMPERATURE = 0.7  # at temperature 0 a second answer would be the same again
FRAMES_PER_SECOND = 12  # smooth to read, few enough for slow terminals over SSH
# Escape sequences in an answer could retitle the window or write to the clipboard.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def main(argv: list[str] | None = None) -> None:
    """Load the model and chat; exit with 2 when a piped line could not be answered."""
    options = parse(Options, argv)
    if is_given(options, "prompt") and not options.prompt:  # as of an empty shell variable
        raise UserError("--prompt is empty; leave it out for a conversation")
    with stage.command_runtime(options.device_type) as runtime:
        [engine], meta = load_engines(options, [runtime])
        chat = Chat(engine, options, TerminalDisplay() if sys.stdout.isatty() else PlainDisplay())
        if options.prompt:
            if not chat.answer(options.prompt):
                raise KeyboardInterrupt
            return
        name = f"{meta['settings']['model_tag']} {meta['stage']}, step {meta['step']}"
        if not chat_loop(chat, f"nanochat ({name}). /help lists the commands."):
            sys.exit(2)


# ---- display


def printable(text: str) -> str:
    """Text without characters that control a terminal."""
    return CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text)


def render_markdown(text: str) -> Markdown:
    """Markdown for a terminal: HTML is shown as text, and line breaks are kept."""
    rendered = Markdown("")
    rendered.parsed = markdown.parse(printable(text))
    return rendered


class PlainDisplay:
    """Answers on stdout, one line break after each; notes on stderr."""

    def show_text(self, text: str) -> None:
        print(text, end="", flush=True)

    def note(self, text: str, style: str = "dim") -> None:
        """Show a tool call, or a message that is not the model's."""
        print(printable(text), file=sys.stderr, flush=True)

    def end_answer(self) -> None:
        """Called once after each answer, also after an interrupted one."""
        print(flush=True)


class TerminalDisplay(PlainDisplay):
    """Markdown that is redrawn while it grows, with dim lines for notes."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.text = ""
        self.live: Live | None = None

    def show_text(self, text: str) -> None:
        self.text += text
        if self.live is None:
            self.live = Live(
                console=self.console, refresh_per_second=FRAMES_PER_SECOND, transient=True
            )
            self.live.start()
        # Only the last screenful: what has scrolled off the screen cannot be redrawn.
        tail = "\n".join(self.text.splitlines()[-max(1, self.console.height - 2) :])
        self.live.update(render_markdown(tail))

    def note(self, text: str, style: str = "dim") -> None:
        self.end_answer()  # it continues below the note
        self.console.print(Text(printable(text), style=style))

    def end_answer(self) -> None:
        if self.live is not None:
            self.live.stop()  # erases the redrawn part, in whose place the complete text goes
            self.console.print(render_markdown(self.text))
        self.live, self.text = None, ""


# ---- the conversation


class Chat:
    def __init__(self, engine: Engine, options: Options, display: PlainDisplay) -> None:
        self.engine, self.options, self.display = engine, options, display
        self.system = ""
        self.messages: list[Message] = []
        self.num_answers = 0
        self.stats = "no answer yet"
        self.started = self.first_seconds = 0.0

    def answer(self, text: str, temperature: float | None = None) -> bool:
        """Answer a message and record both; False when Ctrl-C interrupted the answer.

        Raises UserError, and keeps nothing, when the message is too long for the model.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = self._prompt(messages)
        temperature = self.options.temperature if temperature is None else temperature
        sampling = Sampling(temperature, self.options.top_k)
        # Another seed for each answer: a repeated question may be answered differently.
        seed = derive_seed(self.options.seed, self.num_answers)
        self.num_answers += 1
        parts: list[dict[str, str]] = []
        is_complete = True
        self.started, self.first_seconds = time.monotonic(), 0.0
        try:
            for event in self.engine.stream_text(prompt, self.options.max_tokens, sampling, seed):
                self._show(event, parts)
        except KeyboardInterrupt:
            is_complete = False
        finally:
            self.display.end_answer()
        if not is_complete or not parts:
            self.display.note("(no answer)" if is_complete else "(stopped)")
        self.messages = [*messages, {"role": "assistant", "content": parts}]
        return is_complete

    def _prompt(self, messages: list[Message]) -> list[int]:
        """The conversation as tokens, without the oldest turns if it has become too long."""
        if self.system:
            messages = [{"role": "system", "content": self.system}, *messages]
        limit = self.engine.model.config.sequence_len
        room = limit - min(MIN_ANSWER_TOKENS, limit // 4)  # tiny models have tiny contexts
        kept, num_dropped = trim_to_fit(messages, self.engine.tokenizer, room)
        if num_dropped:  # whole turns, so at least two messages
            self.display.note(f"(the oldest {num_dropped} messages no longer fit the context)")
        return render_for_completion({"messages": kept}, self.engine.tokenizer)

    def _show(self, event: Event, parts: list[dict[str, str]]) -> None:
        seconds = time.monotonic() - self.started
        self.first_seconds = self.first_seconds or seconds
        if isinstance(event, TextPiece):
            self.display.show_text(event.text)
            if not parts or parts[-1]["type"] != "text":
                parts.append({"type": "text", "text": ""})
            parts[-1]["text"] += event.text
        elif isinstance(event, ToolCall):
            result = "no result" if event.result is None else event.result
            self.display.note(f"[{event.expression} = {result}]", style="cyan dim")
            parts.append({"type": "python", "text": event.expression})
            if event.result is not None:
                parts.append({"type": "python_output", "text": event.result})
        elif isinstance(event, Finished):
            self.stats = (
                f"{event.num_prompt_tokens} prompt tokens, {event.num_tokens} generated in"
                f" {seconds:.2f} s (first text after {self.first_seconds:.2f} s),"
                f" {event.num_tokens / max(seconds, 1e-9):.0f} tok/s"
            )
            if event.reason == "length":
                self.display.note("(cut off at --max_tokens or the end of the context)")

    def retry(self) -> None:
        if not self.messages:
            self.display.note("nothing to retry yet")
            return
        question = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        self.answer(question, max(self.options.temperature, RETRY_TEMPERATURE))

    def save(self, path: Path) -> None:
        """Raises UserError when the file cannot be written, or exists and is not a conversation."""
        if path.exists():
            read_conversation(path)  # other files are not overwritten by a typing error
        content = {"system": self.system, "messages": self.messages}
        try:
            paths.write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        self.display.note(f"saved {len(self.messages)} messages in {path}")

    def load(self, path: Path) -> None:
        """Raises UserError when the file is not a saved conversation."""
        self.system, self.messages = read_conversation(path)
        self.display.note(f"loaded {len(self.messages)} messages from {path}")


def read_conversation(path: Path) -> tuple[str, list[Message]]:
    """System prompt and messages of a file. Raises UserError when /save has not written it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        system, messages = content["system"], content["messages"]
        texts = [text for _, text, _ in pieces_of(messages)] if messages else []
        roles = [message["role"] for message in messages]
        # Complete turns only: /retry expects an answer after each question.
        if roles != ["user", "assistant"] * (len(messages) // 2):
            raise ValueError
        if not all(isinstance(text, str) for text in [system, *texts]):
            raise TypeError
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError):
        raise UserError(f"{path} is not a conversation saved by /save") from None
    return system, messages


# ---- the prompt


def chat_loop(chat: Chat, greeting: str) -> bool:
    """Answer typed or piped lines until they end; False if a piped one could not be answered."""
    is_interactive = sys.stdin.isatty()
    if is_interactive:
        chat.display.note(greeting)
    has_failed = False
    for line in typed_lines() if is_interactive else sys.stdin:
        text = line.rstrip("\n")
        if text.strip() in ("/quit", "/exit"):
            break
        try:
            if text.startswith("/"):
                handle_command(chat, text)
            elif text.strip() and not chat.answer(text.strip()) and not is_interactive:
                raise KeyboardInterrupt
        except UserError as error:  # the conversation continues
            print(error, file=sys.stderr)
            has_failed = True
        except KeyboardInterrupt:
            if not is_interactive:  # Ctrl-C ends all piped input
                raise
            chat.display.note("(stopped)")
    return is_interactive or not has_failed


def handle_command(chat: Chat, text: str) -> None:
    """Execute a line that begins with /. Raises UserError when it is not a known command."""
    command, _, argument = text.partition(" ")
    argument = argument.strip()
    if command == "/help":
        chat.display.note("\n".join(f"{name:8} {help_}" for name, help_ in COMMANDS.items()))
        chat.display.note("Ctrl-C stops an answer; Alt-Enter starts a new line.")
    elif command == "/clear":
        chat.messages = []
        chat.display.note("started a new conversation")
    elif command == "/system":
        chat.system = argument
        chat.display.note(f"system prompt: {argument or 'none'}")
    elif command == "/retry":
        chat.retry()
    elif command == "/stats":
        chat.display.note(chat.stats)
    elif command in ("/save", "/load"):
        if not argument:
            raise UserError(f"{command} needs a file name")
        path = Path(argument).expanduser()
        chat.save(path) if command == "/save" else chat.load(path)
    else:
        similar = difflib.get_close_matches(command, COMMANDS, n=1)
        remedy = f"did you mean {similar[0]}?" if similar else "see /help"
        raise UserError(
            f"unknown command {command}; {remedy} (put a space before / to send it as a message)"
        )


def typed_lines() -> Iterator[str]:
    """Lines that the user types, with history and editing, until Ctrl-D."""
    # Imported here: it takes 0.4 s, which -p and pipes need not wait for.
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import create_output

    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    session: PromptSession[str] = PromptSession(
        history=open_history(paths.base_dir() / "chat_history.txt"),
        completer=WordCompleter([*COMMANDS], sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        output=create_output(always_prefer_tty=True),  # stdout may be redirected
    )
    while True:
        try:
            yield session.prompt("> ", prompt_continuation="  ")
        except KeyboardInterrupt:
            print("(Ctrl-D or /quit to exit)")
        except EOFError:
            return


def open_history(path: Path) -> "History":
    """A history in a file that only its owner can read; in memory if it cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path.touch(mode=0o600)
        path.open("ab").close()  # may exist and be read-only
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
