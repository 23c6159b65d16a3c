"""chat_cli with one question, with a pipe, and at a pseudo-terminal."""

import fcntl
import io
import json
import os
import pty
import re
import select
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
from scripts import chat_cli
from tests import memorized_model, processes
from tests.memorized_model import LONG

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 250  # generous: test machines are busy


@pytest.fixture
def saved(base_dir: Path) -> Path:
    """A base directory with the model that has memorized its conversations."""
    memorized_model.save(base_dir)
    return base_dir


@pytest.fixture
def chat() -> chat_cli.Chat:
    engine = Engine(*memorized_model.model_and_tokenizer())
    return chat_cli.Chat(engine, chat_cli.Options(), chat_cli.PlainDisplay())


def piped(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Put lines on standard input."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_one_question_prints_the_answer_on_stdout_and_the_tool_call_on_stderr(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_cli.main(["-p", "What is 347 + 588?", "--device_type=cpu"])
    shown = capsys.readouterr()
    assert shown.out == "347 + 588 = 935.\n"
    assert "[347 + 588 = 935]" in shown.err


def test_the_lines_of_a_pipe_are_one_conversation(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "My name is Ann.", "", "What is my name?")
    chat_cli.main(["--device_type=cpu"])
    assert capsys.readouterr().out == "Hello Ann.\nYou are Ann.\n"


def test_after_a_message_that_does_not_fit_the_next_one_is_answered(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "x" * 5000, "/hlep", "Smile")
    with pytest.raises(SystemExit) as caught:
        chat_cli.main(["--device_type=cpu"])
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == "😀 é 汉字\n"
    assert "shorten it" in shown.err and "did you mean /help?" in shown.err


def test_a_conversation_is_saved_loaded_and_continued(
    chat: chat_cli.Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "saved é.json"
    chat.answer("My name is Ann.")
    chat_cli.handle_command(chat, f"/save {path}")
    chat_cli.handle_command(chat, "/clear")
    assert chat.messages == []
    chat_cli.handle_command(chat, f"/load {path}")
    chat.answer("What is my name?")
    assert capsys.readouterr().out == "Hello Ann.\nYou are Ann.\n"
    chat_cli.handle_command(chat, "/system Be kind.")
    chat_cli.handle_command(chat, f"/save {path}")
    chat.system = ""
    chat_cli.handle_command(chat, f"/load {path}")
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
def test_a_file_that_is_not_a_conversation_is_neither_loaded_nor_overwritten(
    chat: chat_cli.Chat, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "other.json"
    path.write_text(content, encoding="latin-1")
    chat.messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(UserError, match="is not a conversation"):
        chat_cli.handle_command(chat, f"/load {path}")
    with pytest.raises(UserError, match="is not a conversation"):
        chat_cli.handle_command(chat, f"/save {path}")
    assert path.read_text(encoding="latin-1") == content
    with pytest.raises(UserError, match="cannot read"):
        chat_cli.handle_command(chat, f"/load {tmp_path / 'nothing'}")
    assert chat.messages == [{"role": "user", "content": "Hi"}]


def test_retry_replaces_the_last_answer(chat: chat_cli.Chat) -> None:
    chat_cli.handle_command(chat, "/retry")
    assert chat.messages == []
    chat.answer("Who are you?")
    chat_cli.handle_command(chat, "/retry")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert chat.messages[0]["content"] == "Who are you?"


def test_a_long_conversation_is_trimmed_for_the_model_only(
    chat: chat_cli.Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.messages = [
        {"role": "user", "content": "Count"},
        {"role": "assistant", "content": LONG},
    ] * 12
    chat.answer("Who are you?")
    assert "messages no longer fit the context" in capsys.readouterr().err
    assert len(chat.messages) == 26


def test_stats_shows_the_speed_of_the_last_answer(
    chat: chat_cli.Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.answer("Who are you?")
    chat_cli.handle_command(chat, "/stats")
    assert " tok/s" in capsys.readouterr().err


def test_an_interrupted_answer_keeps_its_text(
    chat: chat_cli.Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show = chat.display.show_text

    def interrupt(text: str) -> None:
        show(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.display, "show_text", interrupt)
    assert not chat.answer("Count")
    assert capsys.readouterr().err.endswith("(stopped)\n")
    monkeypatch.setattr(chat.display, "show_text", show)
    assert len(chat.messages) == 2 and chat.answer("Who are you?")


def test_an_interrupt_ends_a_pipe_but_not_an_interactive_conversation(
    chat: chat_cli.Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> list[int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "_prompt", interrupt)
    piped(monkeypatch, "Smile", "Smile")
    with pytest.raises(KeyboardInterrupt):
        chat_cli.chat_loop(chat, "")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(chat_cli, "typed_lines", lambda: iter(["Smile", "Smile"]))
    assert chat_cli.chat_loop(chat, "")
    assert capsys.readouterr().err.count("(stopped)") == 2


def test_a_terminal_shows_markup_and_control_characters_without_executing_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = io.StringIO()
    terminal = chat_cli.TerminalDisplay()
    terminal.console = Console(file=shown, force_terminal=True, color_system=None, width=60)
    attack = "\x1b]0;owned\x07\x9b31m"
    for piece in ("<b>bold</b> **word**\n", "second line #include <stdio>\n\n", attack):
        terminal.show_text(piece)
    terminal.note(f"[{attack}]")
    terminal.end_answer()
    _, _, text = shown.getvalue().rpartition("\x1b[2K")  # the redrawn part is erased
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    assert lines[:2] == ["<b>bold</b> word", "second line #include <stdio>"]
    assert [line.strip() for line in lines[2:]] == ["�]0;owned��31m", "[�]0;owned��31m]"]


def test_the_history_is_readable_by_its_owner_only_or_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "history.txt"
    assert isinstance(chat_cli.open_history(path), FileHistory)
    assert path.stat().st_mode & 0o777 == 0o600
    assert isinstance(chat_cli.open_history(tmp_path), InMemoryHistory)


class TypingUser:
    """A user who types at a program on a pseudo-terminal; its stdout may be redirected."""

    prompt = "\x1b[?2004h"  # enables bracketed paste: prompt_toolkit is ready for input

    def __init__(self, code: str, *options: str, stdout: int | None = None) -> None:
        self.terminal, child_side = pty.openpty()
        environment = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", "COLUMNS": "90"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *options], cwd=ROOT, env=environment, stdin=child_side,
            stdout=child_side if stdout is None else stdout, stderr=child_side, close_fds=True,
            start_new_session=True, preexec_fn=lambda: self._take_terminal(child_side),
        )  # fmt: skip
        os.close(child_side)

    @staticmethod
    def _take_terminal(terminal: int) -> None:
        """In the child: make it the controlling terminal."""
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    def __enter__(self) -> "TypingUser":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)

    def types(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def reads_until(self, expected: str) -> str:
        """New output up to `expected`."""
        output, deadline = "", time.monotonic() + TIMEOUT_SECONDS
        while expected not in output:
            assert time.monotonic() < deadline, f"no {expected!r} in {output!r}"
            if select.select([self.terminal], [], [], 0.2)[0]:
                output += os.read(self.terminal, 65536).decode(errors="replace")
        return output


@pytest.mark.slow
def test_a_user_at_a_terminal_asks_interrupts_and_exits(saved: Path) -> None:
    """Ctrl-C stops an answer but not the program."""
    is_long = saved / "long"  # while it exists, the 20th token takes long: Ctrl-C comes within it
    wait = f"if Path({str(is_long)!r}).exists() and next(numbers) == 20: time.sleep(1000)"
    with TypingUser(processes.program("scripts.chat_cli", wait), "--device_type=cpu") as user:
        assert "/help lists the commands" in user.reads_until(user.prompt)
        for typed, shown in (
            ("/stats\r", "no answer yet"),
            ("What is 347 + 588?\r", "347 + 588 = 935."),
            ("/clear\r", "started a new conversation"),
        ):
            user.types(typed)
            assert shown in user.reads_until(user.prompt)
        is_long.touch()
        user.types("Count\r")
        user.reads_until("tick 10")
        for typed, shown in (
            ("\x03", "(stopped)"),
            ("\x03", "/quit to exit"),
            ("/stats\r", " tok/s"),
        ):
            user.types(typed)
            assert shown in user.reads_until(user.prompt)
        user.types("/quit\r")
        assert user.process.wait(timeout=TIMEOUT_SECONDS) == 0
    history = (saved / "chat_history.txt").read_text(encoding="utf-8")
    assert "What is 347 + 588?" in history


@pytest.mark.slow
def test_the_prompt_stays_on_the_terminal_when_stdout_is_redirected(base_dir: Path) -> None:
    code = "from scripts.chat_cli import typed_lines; print(*typed_lines())"
    with TypingUser(code, stdout=subprocess.PIPE) as user:
        assert ">" in user.reads_until(user.prompt)
        user.types("Smile\r")
        user.reads_until(user.prompt)
        user.types("\x04")
        assert user.process.stdout is not None
        assert user.process.stdout.read() == b"Smile\n"


def test_a_saved_conversation_is_readable_json(chat: chat_cli.Chat, tmp_path: Path) -> None:
    chat.answer("What is 347 + 588?")
    chat.save(tmp_path / "saved.json")
    saved = json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))
    assert saved["messages"][1]["content"] == [
        {"type": "python", "text": "347 + 588"},
        {"type": "python_output", "text": "935"},
        {"type": "text", "text": "347 + 588 = 935."},
    ]
