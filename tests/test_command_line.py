"""Freezes the commands: their names and the names of their options, in tests/command_line.txt.

Renaming an option breaks the notes and scripts of users. After an intended change,
`python tests/test_command_line.py` writes the file.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from nanochat.configurator import Short, parse
from nanochat.errors import UserError

ROOT = Path(__file__).parents[1]
FROZEN = Path(__file__).with_name("command_line.txt")
COMMANDS = (
    "nanochat.dataset",
    "nanochat.report",
    "scripts.tok_train",
    "scripts.tok_eval",
    "scripts.base_train",
    "scripts.base_loss",
    "scripts.base_eval",
    "scripts.mid_train",
    "scripts.chat_sft",
    "scripts.chat_rl",
    "scripts.chat_eval",
    "scripts.lm_eval",
    "scripts.chat_cli",
    "scripts.chat_web",
    "scripts.export",
    "scripts.show_data",
    "scripts.select_tier",
)
# Documented commands; each must parse.
KNOWN_LINES = """
nanochat.dataset -n 8
nanochat.dataset -n 4 --source=climbmix --prefetch=sft,eval
nanochat.dataset --source primer
nanochat.report --action=compare --first=A --second=B
scripts.tok_train --max_chars=2000000000
scripts.tok_eval
scripts.base_train -- --depth=20 --device_batch_size=8
scripts.base_train --depth 4 --device-batch-size 8
scripts.base_loss
scripts.base_eval
scripts.mid_train
scripts.chat_sft
scripts.chat_rl
scripts.chat_eval -- -i mid
scripts.chat_eval -- -i sft -a GSM8K
scripts.chat_eval -i rl
scripts.lm_eval --tasks=arc_easy,hellaswag
scripts.chat_cli -p "Why is the sky blue?"
scripts.chat_web
scripts.export --source=sft --format=hf --out=DIR
scripts.show_data --stage=rl
"""


def options_class(command: str) -> Any:
    return importlib.import_module(command).Options


def names(command: str) -> list[str]:
    """`--name` of every option, followed by its short names."""
    hints = get_type_hints(options_class(command), include_extras=True)
    found = []
    for field in fields(options_class(command)):
        extras = get_args(hints[field.name])
        short = [extra.name for extra in extras if isinstance(extra, Short)]
        found.append("/".join([f"--{field.name}", *short]))
    return sorted(found)


def current() -> str:
    blocks = ("\n    ".join([command, *names(command)]) for command in COMMANDS)
    return "\n".join(blocks) + "\n"


def test_commands_and_options_match_the_frozen_list() -> None:
    assert current() == FROZEN.read_text(encoding="utf-8"), (
        "a command line has changed; if intended, run python tests/test_command_line.py"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_names_each_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(command).main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert [field.name for field in fields(options_class(command)) if field.name not in shown] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_line_of_help(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit):
        importlib.import_module(command).main(["--help"])
    entries = re.split(r"\n  (?=--)", capsys.readouterr().out)
    for field in fields(options_class(command)):
        [entry] = [entry for entry in entries if entry.split()[0] == f"--{field.name}"]
        words = entry.split("(default")[0].split()[2:]  # after the name and the type
        assert len(words) >= 2, f"{command} --{field.name} has no docstring"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_key_is_rejected_with_the_closest_name(command: str) -> None:
    known = fields(options_class(command))[0].name
    wrong = known[:-2] + known[-1] + known[-2] if known[-1] != known[-2] else known + "x"
    with pytest.raises(UserError, match=rf"^--{wrong} is not .*did you mean --{known}\?$"):
        importlib.import_module(command).main([f"--{wrong}=4"])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_type_is_rejected_with_key_value_and_what_was_expected(command: str) -> None:
    hints = get_type_hints(options_class(command))
    numbers = [name for name, hint in hints.items() if hint in (int, float)]
    for name in numbers:
        with pytest.raises(UserError, match=rf"^--{name}=abc is not a (whole )?number$"):
            importlib.import_module(command).main([f"--{name}=abc"])


@pytest.fixture
def torch_is(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An environment for commands in which `import torch` runs this program instead."""

    def replaced(program: str) -> dict[str, str]:
        (tmp_path / "torch.py").write_text(program)
        return {**os.environ, "PYTHONPATH": str(tmp_path)}

    return replaced


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_wrong_options_are_answered_without_importing_torch(
    command: str, torch_is: Callable[[str], dict[str, str]]
) -> None:
    environment = torch_is("raise ImportError('torch is slow')")
    for option, code in (("--help", 0), ("--no_such_option=1", 2)):
        done = subprocess.run(
            [sys.executable, "-m", command, option],
            env=environment, cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr.count("\n")) == (code, code // 2), done.stderr


def test_ctrl_c_during_the_imports_is_no_traceback(
    torch_is: Callable[[str], dict[str, str]],
) -> None:
    # Some libraries catch whatever is raised while they are imported.
    environment = torch_is(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(9)\n"
        "except BaseException:\n    pass"
    )
    done = subprocess.run(
        [sys.executable, "-m", "scripts.chat_sft"],
        env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("line", KNOWN_LINES.strip().splitlines())
def test_documented_commands_parse(line: str) -> None:
    command, *argv = shlex.split(line)
    parse(options_class(command), argv)


if __name__ == "__main__":
    FROZEN.write_text(current(), encoding="utf-8")
