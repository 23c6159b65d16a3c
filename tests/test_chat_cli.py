"""The chat in the terminal: piped, in one question, and typed by a person at a terminal."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from prompt_toolkit.history import FileHistory, InMemoryHistory
from rich.console import Console

from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.inference.detokenizer import ToolCall
from scripts import chat_cli
from tests import learned_by_heart
from tests.learned_by_heart import LONG

ROOT = Path(__file__).parents[1]
PATIENCE = 250  # seconds; machines are busy
SLOW_CHAT = """
import time, torch
from nanochat.gpt import GPT
from scripts import chat_cli

def wait(module, _):
    time.sleep(0.05 * isinstance(module, GPT))

torch.nn.modules.module.register_module_forward_pre_hook(wait)
chat_cli.run(chat_cli.main)
"""


@pytest.fixture
def saved(base_dir: Path) -> Path:
    """A base directory with the model that knows its conversations by heart."""
    learned_by_heart.save(base_dir)
    return base_dir


@pytest.fixture
def chat() -> chat_cli.Chat:
    engine = Engine(*learned_by_heart.model_and_tokenizer())
    return chat_cli.Chat(engine, chat_cli.Options(), chat_cli.Pipe())


def piped(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """What is on standard input."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_one_question_prints_just_the_answer_and_the_tool_call_beside_it(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_cli.main(["-p", "What is 347 + 588?", "--device_type=cpu"])
    shown = capsys.readouterr()
    assert shown.out == "347 + 588 = 935.\n"
    assert "[347 + 588 = 935]" in shown.err


def test_lines_of_a_pipe_are_one_conversation(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "My name is Ann.", "", "What is my name?")
    chat_cli.main(["--device_type=cpu"])
    assert capsys.readouterr().out == "Hello Ann.\nYou are Ann.\n"


def test_a_message_that_does_not_fit_is_told_and_the_next_one_is_answered(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "x" * 5000, "/hlep", "Smile")
    with pytest.raises(SystemExit) as caught:
        chat_cli.main(["--device_type=cpu"])
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == "😀 é 汉字\n"
    assert "shorten it" in shown.err and "did you mean /help?" in shown.err


def test_a_conversation_is_kept_in_a_file_and_gone_on_with(
    chat: chat_cli.Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kept é.json"
    chat.answer("My name is Ann.")
    chat_cli.obey(chat, f"/save {path}")
    chat_cli.obey(chat, "/clear")
    assert chat.messages == []
    chat_cli.obey(chat, f"/load {path}")
    chat.answer("What is my name?")
    assert capsys.readouterr().out == "Hello Ann.\nYou are Ann.\n"
    chat_cli.obey(chat, "/system Be kind.")
    chat_cli.obey(chat, f"/save {path}")
    chat.system = ""
    chat_cli.obey(chat, f"/load {path}")
    assert chat.system == "Be kind." and len(chat.messages) == 4


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", "\xff", "null", "[" * 100_000,
        '{"system": "", "messages": [{"role": "cook"}]}',
        '{"system": "", "messages": [{"role": "user", "content": "unanswered"}]}',
        '{"system": 1, "messages": []}',
        '{"system": "", "messages": [{"role": "user", "content": 1}, {"role": "assistant"}]}',
    ],
    ids=range(10),
)  # fmt: skip
def test_a_file_that_is_no_conversation_is_refused_and_nothing_changes(
    chat: chat_cli.Chat, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "other.json"
    path.write_text(content, encoding="latin-1")
    chat.messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(UserError, match="is no conversation"):
        chat_cli.obey(chat, f"/load {path}")
    with pytest.raises(UserError, match="is no conversation"):
        chat_cli.obey(chat, f"/save {path}")
    assert path.read_text(encoding="latin-1") == content
    with pytest.raises(UserError, match="cannot be read"):
        chat_cli.obey(chat, f"/load {tmp_path / 'nothing'}")
    assert chat.messages == [{"role": "user", "content": "Hi"}]


def test_another_answer_takes_the_place_of_the_last(chat: chat_cli.Chat) -> None:
    chat_cli.obey(chat, "/retry")
    assert chat.messages == []
    chat.answer("Who are you?")
    chat_cli.obey(chat, "/retry")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert chat.messages[0]["content"] == "Who are you?"


def test_a_long_conversation_is_trimmed_for_the_model_and_kept_for_the_person(
    chat: chat_cli.Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.messages = [
        {"role": "user", "content": "Count"},
        {"role": "assistant", "content": LONG},
    ] * 12
    chat.answer("Who are you?")
    assert "messages no longer fit and are left out" in capsys.readouterr().err
    assert len(chat.messages) == 26


def test_the_speed_of_the_last_answer_is_told(
    chat: chat_cli.Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.answer("Who are you?")
    chat_cli.obey(chat, "/stats")
    assert "tokens read" in capsys.readouterr().err


def test_a_stopped_answer_keeps_what_was_said(
    chat: chat_cli.Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show = chat.face.show_text

    def interrupt(text: str) -> None:
        show(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.face, "show_text", interrupt)
    assert not chat.answer("Count")
    assert capsys.readouterr().err.endswith("(stopped)\n")
    monkeypatch.setattr(chat.face, "show_text", show)
    assert len(chat.messages) == 2 and chat.answer("Who are you?")


def test_an_interrupt_ends_a_pipe_and_not_a_conversation(
    chat: chat_cli.Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> list[int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "_prompt", interrupt)
    piped(monkeypatch, "Smile", "Smile")
    with pytest.raises(KeyboardInterrupt):
        chat_cli.converse(chat, "")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(chat_cli, "typed_lines", lambda: iter(["Smile", "Smile"]))
    assert chat_cli.converse(chat, "")
    assert capsys.readouterr().err.count("(stopped)") == 2


def test_a_terminal_shows_markup_and_control_characters_and_does_not_obey_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = io.StringIO()
    terminal = chat_cli.Terminal()
    terminal.console = Console(file=shown, force_terminal=True, color_system=None, width=60)
    attack = "\x1b]0;owned\x07\x9b31m"
    with terminal.answering():
        for piece in ("<b>bold</b> **word**\n", "second line #include <stdio>\n\n", attack):
            terminal.show_text(piece)
        terminal.show_tool(ToolCall(attack, attack))
        terminal.note(attack)
    _, _, text = shown.getvalue().rpartition("\x1b[2K")  # what grew in place is wiped
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    assert lines[:2] == ["<b>bold</b> word", "second line #include <stdio>"]
    assert [line.strip() for line in lines[2:]] == [
        "�]0;owned��31m", "�]0;owned��31m = �]0;owned��31m", "�]0;owned��31m",
    ]  # fmt: skip


def test_what_was_typed_is_kept_for_its_owner_alone_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "history.txt"
    assert isinstance(chat_cli.typed_before(path), FileHistory)
    assert path.stat().st_mode & 0o777 == 0o600
    assert isinstance(chat_cli.typed_before(tmp_path), InMemoryHistory)


class Typist:
    """A program at a pseudo-terminal, and who sits there; its stdout may go elsewhere."""

    prompt = "\x1b[?2004h"  # the terminal is told to expect pasting

    def __init__(self, code: str, *options: str, stdout: int | None = None) -> None:
        self.terminal, theirs = pty.openpty()
        environment = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", "COLUMNS": "90"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *options], cwd=ROOT, env=environment, stdin=theirs,
            stdout=theirs if stdout is None else stdout, stderr=theirs, close_fds=True,
            start_new_session=True, preexec_fn=lambda: self._sit_down(theirs),
        )  # fmt: skip
        os.close(theirs)

    @staticmethod
    def _sit_down(terminal: int) -> None:
        """In the new process: the terminal is its own, and Ctrl-C counts also where it did not."""
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __enter__(self) -> "Typist":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)

    def types(self, text: str) -> None:
        """Keys pressed."""
        os.write(self.terminal, text.encode())

    def reads_until(self, words: str) -> str:
        """What has appeared, `words` at its end."""
        seen, end = "", time.monotonic() + PATIENCE
        while words not in seen:
            assert time.monotonic() < end, f"no {words!r} in {seen!r}"
            if select.select([self.terminal], [], [], 0.2)[0]:
                seen += os.read(self.terminal, 65536).decode(errors="replace")
        return seen


@pytest.mark.slow
def test_a_person_at_a_terminal_asks_interrupts_and_leaves(saved: Path) -> None:
    """Ctrl-C stops an answer, and not the program."""
    with Typist(SLOW_CHAT, "--device_type=cpu") as person:
        assert "/help lists the commands" in person.reads_until(person.prompt)
        for typed, shown in (
            ("/stats\r", "no answer yet"),
            ("What is 347 + 588?\r", "347 + 588 = 935."),
            ("/clear\r", "a new conversation"),
        ):
            person.types(typed)
            assert shown in person.reads_until(person.prompt)
        person.types("Count\r")
        person.reads_until("tick 10")
        for typed, shown in (
            ("\x03", "(stopped)"),
            ("\x03", "/quit to leave"),
            ("/stats\r", "tokens read"),
        ):
            person.types(typed)
            assert shown in person.reads_until(person.prompt)
        person.types("/quit\r")
        assert person.process.wait(timeout=PATIENCE) == 0
    history = (saved / "chat_history.txt").read_text(encoding="utf-8")
    assert "What is 347 + 588?" in history


@pytest.mark.slow
def test_the_prompt_stays_on_the_terminal_when_answers_go_elsewhere(base_dir: Path) -> None:
    code = "from scripts.chat_cli import typed_lines; print(*typed_lines())"
    with Typist(code, stdout=subprocess.PIPE) as person:
        assert ">" in person.reads_until(person.prompt)
        person.types("Smile\r")
        person.reads_until(person.prompt)
        person.types("\x04")
        assert person.process.stdout is not None
        assert person.process.stdout.read() == b"Smile\n"


def test_a_kept_conversation_is_a_file_that_people_can_read(
    chat: chat_cli.Chat, tmp_path: Path
) -> None:
    chat.answer("What is 347 + 588?")
    chat.save(tmp_path / "kept.json")
    kept = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))
    assert kept["messages"][1]["content"] == [
        {"type": "python", "text": "347 + 588"},
        {"type": "python_output", "text": "935"},
        {"type": "text", "text": "347 + 588 = 935."},
    ]
