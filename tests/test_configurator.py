import errno
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from nanochat.configurator import Short, parse, run
from nanochat.errors import UserError


@dataclass(frozen=True)
class Options:
    """Train something."""

    depth: int = 4
    """Layers of the model."""
    matrix_lr: float = 0.02
    """Learning rate of the matrices."""
    source: Annotated[Literal["base", "mid", "sft"], Short("-i")] = "sft"
    """Stage of the model."""
    resume: bool = False
    """Resume the run."""
    prompt: Annotated[str, Short("-p")] = ""
    """Question to answer."""
    limit: int | None = None
    """At most so many items."""
    out: Path = Path("here")
    """Folder to write."""


def rejected(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(Options, list(argv))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_arguments_options_have_their_defaults() -> None:
    assert parse(Options, []) == Options()


@pytest.mark.parametrize(
    "argv",
    [
        ["--depth=6", "--matrix_lr=0.1"],
        ["--depth", "6", "--matrix_lr", "0.1"],
        ["--depth=6", "--matrix-lr=0.1"],
        ["--depth", "6", "--matrix-lr", "0.1"],
        ["--", "--depth=6", "--matrix-lr=0.1"],
        ["--depth=6", "--", "--matrix-lr=0.1"],
    ],
)
def test_spaces_equals_signs_dashes_underscores_and_a_bare_double_dash_are_equivalent(
    argv: list[str],
) -> None:
    assert parse(Options, argv) == Options(depth=6, matrix_lr=0.1)


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--resume"], True),
        (["--no-resume"], False),
        (["--no_resume"], False),
        (["--resume=true"], True),
        (["--resume=False"], False),
        (["--resume", "true"], True),
        (["--resume", "false"], False),
        (["--resume", "--no-resume"], False),
    ],
)
def test_a_switch_accepts_every_usual_form(argv: list[str], value: bool) -> None:
    assert parse(Options, argv).resume is value


def test_a_switch_does_not_consume_the_option_or_config_file_after_it(tmp_path: Path) -> None:
    assert parse(Options, ["--resume", "--depth=2"]) == Options(resume=True, depth=2)
    (tmp_path / "run.py").write_text("depth = 2")
    assert parse(Options, ["--resume", str(tmp_path / "run.py")]) == Options(resume=True, depth=2)


def test_short_names_work_with_a_space_and_with_an_equals_sign() -> None:
    assert parse(Options, ["-i", "mid", "-p", "Why?"]) == Options(source="mid", prompt="Why?")
    assert parse(Options, ["-i=mid"]) == Options(source="mid")


def test_negative_numbers_special_characters_in_values_and_none_are_accepted() -> None:
    assert parse(Options, ["--depth", "-1"]).depth == -1
    assert parse(Options, ["--prompt=a=b --depth=7"]).prompt == "a=b --depth=7"
    assert parse(Options, ["-p", "- what?"]).prompt == "- what?"
    assert parse(Options, ["--limit=5"]).limit == 5
    assert parse(Options, ["--limit=none"]).limit is None
    assert parse(Options, ["--out=/x/y"]).out == Path("/x/y")


def test_an_unknown_key_is_rejected_with_the_closest_name() -> None:
    message = rejected("--depht=4")
    assert message == "--depht is not an option of this command; did you mean --depth?"
    assert "--matrix_lr" in rejected("--matrix-rl", "3")
    assert "--resume" in rejected("--no-resumed")
    assert "--help" in rejected("--zzzz=1")
    assert "--help" in rejected("-z", "1")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--depth=abc", "--depth=abc is not a whole number"),
        ("--depth=1.5", "--depth=1.5 is not a whole number"),
        ("--depth=", "--depth= is not a whole number"),
        (f"--depth={2**63}", f"--depth={2**63} does not fit 64 bits"),
        ("--matrix_lr=fast", "--matrix_lr=fast is not a number"),
        ("--matrix_lr=nan", "--matrix_lr=nan is not a finite number"),
        ("--matrix_lr=inf", "--matrix_lr=inf is not a finite number"),
        ("--resume=maybe", "--resume=maybe is not one of true, yes"),
        ("--source=stf", "--source=stf is not one of base, mid, sft; did you mean sft?"),
        ("--limit=x", "--limit=x is not a whole number"),
    ],
)
def test_a_wrong_type_is_rejected_with_key_value_and_what_was_expected(
    argument: str, words: str
) -> None:
    assert rejected(argument).startswith(words)


@pytest.mark.parametrize("argv", [["--depth"], ["--depth", "--resume"]])
def test_an_option_without_its_value_is_rejected(argv: list[str]) -> None:
    assert rejected(*argv).startswith("--depth needs a value")


CONFIG = """
# a comment
depth = 8
source = "mid"   # another
resume = True
limit = None
matrix_lr = -1
"""
FROM_CONFIG = Options(depth=8, source="mid", resume=True, matrix_lr=-1.0)


@pytest.mark.parametrize("form", ["{}", "--config={}"])
def test_a_config_file_sets_options_and_later_arguments_win(tmp_path: Path, form: str) -> None:
    path = tmp_path / "run.py"
    path.write_text(CONFIG)
    assert parse(Options, [form.format(path)]) == FROM_CONFIG
    assert parse(Options, [form.format(path), "--depth=2"]).depth == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("depth = 2\nwidth = 3\n", "run.py:2: width is not an option"),
        ("depth = 'two'\n", "run.py:1: depth=two is not a whole number"),
        ("depth = 2 +\n", "run.py:1 is not a line of the form name = literal"),
        ("depth = {[]: 1}\n", "run.py:1 is not a line of the form name = literal"),
        ("depth = " + "-" * 100_000 + "1\n", "is not a line of the form name = literal"),
        ("depth = (1).__class__(3)\n", "run.py:1 is not a line"),
        ("import os\n", "run.py:1 is not a line"),
        ("depth = resume = 1\n", "run.py:1 is not a line"),
        ("depth\n", "run.py:1 is not a line"),
        ("open('made', 'w').close()\n", "run.py:1 is not a line"),
    ],
)
def test_a_config_file_is_parsed_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.py").write_text(text)
    assert words in rejected("run.py")
    assert [path.name for path in tmp_path.iterdir()] == ["run.py"]


def test_an_argument_that_is_neither_option_nor_file_is_rejected() -> None:
    assert "nowhere.py" in rejected("nowhere.py")


def test_help_shows_each_option_with_its_docstring_type_and_default_and_exits_with_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Options, ["--depth=3", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for words in (
        "Train something.", "--depth INT", "Layers of the model. (default: 4)", "name = literal",
        "--source {base,mid,sft}, -i", "--resume {true,false}", "--limit INT",
        "At most so many items.",
    ):  # fmt: skip
        assert words in shown


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("--depth=0 must be 1 or more"), 2, "error: --depth=0 must be 1 or more\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, "No space left"), 1, "error: the disk is full"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str
) -> None:
    program = (
        "import sys, errno\n"
        "from nanochat.configurator import run\n"
        "from nanochat.errors import UserError\n"
        f"def main(): raise {error!r}\n"
        "run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == (1 if line else 0)


@pytest.mark.parametrize("moment", ["while threads are joined", "after Python's handlers are gone"])
def test_a_second_ctrl_c_during_the_exit_changes_nothing(moment: str) -> None:
    program = (
        "import os, signal, threading\n"
        "from nanochat.configurator import run\n"
        "ended = threading.Event()\n"
        "class Last:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, 2)\n"
        "def interrupt():\n"
        "    ended.wait()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "def main():\n"
        "    if MOMENT == 'while threads are joined':\n"
        "        threading._register_atexit(ended.set)\n"
        "        threading.Thread(target=interrupt).start()\n"
        "    else:\n"
        "        import sys\n"
        "        sys.last_object = Last()\n"
        "    raise KeyboardInterrupt\n"
        "run(main)\n"
    ).replace("MOMENT", repr(moment))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_an_unexpected_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))
    with pytest.raises(OSError, match="gone"):
        run(raising(OSError(errno.EIO, "gone")))
