"""Command-line options: a frozen dataclass, then an optional config file, then --key=value.

    python -m scripts.base_train my_run.conf --depth=4 --matrix-lr 0.01

A config file holds `name = literal` lines, which are parsed and never executed. The parser is not
argparse, which abbreviates names, spreads errors over several lines and suggests no name; argparse
only formats the help.
"""

import argparse
import ast
import atexit
import difflib
import importlib
import inspect
import logging
import math
import os
import re
import signal
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as get_hints

from nanochat.errors import UserError, disk_failure

OptionsType = TypeVar("OptionsType")
Hints = dict[str, Any]
"""The annotation of each option by name."""

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")


# ---- in annotations of options


@dataclass(frozen=True)
class Short:
    """A second, short name: `source: Annotated[str, Short("-i")] = "sft"`."""

    name: str


@dataclass(frozen=True)
class Check:
    """A condition on the value of an option."""

    violation: Callable[[Any], str]
    """From a value to what is wrong with `--name=value`, printed after it; empty if nothing is."""


def at_least(low: float, besides: int | None = None) -> Check:
    """`steps: Annotated[int, at_least(1, besides=-1)] = -1`, where -1 has a meaning of its own."""
    special = "" if besides is None else f", or {besides} (see --help)"
    message = f"must be {low:g} or more{special}"
    return Check(lambda value: "" if value >= low or value == besides else message)


def between(low: float, high: float) -> Check:
    """`share: Annotated[float, between(0, 1)] = 0.5`."""
    message = f"must be between {low:g} and {high:g}"
    return Check(lambda value: "" if low <= value <= high else message)


def folder_name(taken: str = "") -> Check:
    """The name of a folder: no path, and not `taken`, which has another purpose."""

    def violation(value: str) -> str:
        if value and value == taken:
            return "is the name of a folder with another purpose; use another"
        # No leading dot: it would be hidden, or "..". 100 leaves room for suffixes below 255.
        if not value or re.fullmatch(r"[A-Za-z0-9_+=,@-][A-Za-z0-9._+=,@-]{0,99}", value):
            return ""
        return "is not the plain name of a folder; use up to 100 letters, digits, '-', '_' and '.'"

    return Check(violation)


# ---- the command line


def parse(options_class: type[OptionsType], argv: list[str] | None = None) -> OptionsType:
    """The options of this command line; `--help` exits. UserError on a wrong key or value."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        print(_help(options_class), end="")
        sys.exit(0)
    hints = get_hints(options_class, include_extras=True)
    values: dict[str, Any] = {}
    for name, text in _pairs(arguments, hints):
        if name == "config":
            values.update(read_config(Path(text), options_class))
        else:
            values[name] = _convert(f"--{name}", text, hints[name])
    options = options_class(**values)
    object.__setattr__(options, "_given", frozenset(values))  # no field: equal options stay equal
    return options


def is_given(options: object, name: str) -> bool:
    """True if `parse` read the option from the command line or a config file."""
    return name in getattr(options, "_given", ())


def _pairs(arguments: list[str], hints: Hints) -> Iterator[tuple[str, str]]:
    """(name, text) of each option; a word without dashes is a config file."""
    if "--" in arguments:
        arguments.remove("--")  # torchrun ... -m scripts.base_train -- --depth=20
    while arguments:
        word = arguments.pop(0)
        if not word.startswith("-"):
            yield "config", word
            continue
        key, equals, text = word.partition("=")
        name, implied = _find(key, hints)
        if not equals and implied:  # a switch takes the next word only if it is a truth value
            is_value = arguments and arguments[0].lower() in TRUE_WORDS + FALSE_WORDS
            text = arguments.pop(0) if is_value and implied == "true" else implied
        elif not equals:
            # One dash may begin a value: --depth -1, -p "- what?"
            if not arguments or arguments[0].startswith("--"):
                raise UserError(f"{key} needs a value, as in {key}=...")
            text = arguments.pop(0)
        yield name, text


def _find(key: str, hints: Hints) -> tuple[str, str]:
    """The option that `--some-name` means, and the value it implies ("" if it needs one)."""
    name = key.lstrip("-").replace("-", "_")
    for option, hint in hints.items():
        if Short(key) in get_args(hint):
            name = option
    if name == "config" or (name in hints and not key.startswith("--no-")):
        return name, "true" if hints.get(name) is bool else ""
    positive = name.removeprefix("no_")
    if hints.get(positive) is bool:
        return positive, "false"
    raise UserError(_unknown(key, name, hints))


def _unknown(key: str, name: str, hints: Hints) -> str:
    near = difflib.get_close_matches(name, hints, n=1, cutoff=0.5)
    remedy = f"did you mean --{near[0]}?" if near else "see --help"
    return f"{key} is not an option of this command; {remedy}"


def _plain(hint: Any) -> Any:
    """The type in `Annotated[type, ...]` or `type | None`."""
    if get_origin(hint) is Annotated or get_origin(hint) in (Union, types.UnionType):
        return _plain(get_args(hint)[0])
    return hint


def _convert(where: str, text: str, hint: Any) -> Any:
    """`text` as a value of type `hint`. Raises UserError naming what was expected."""
    if text.lower() == "none" and type(None) in get_args(hint):
        return None
    kind = _plain(hint)
    value: Any
    if get_origin(kind) is Literal:
        value = _choice(where, text, get_args(kind))
    elif kind is bool:
        value = _choice(where, text.lower(), TRUE_WORDS + FALSE_WORDS) in TRUE_WORDS
    else:
        try:
            value = kind(text)
        except ValueError:
            name = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
            raise UserError(f"{where}={text} is not {name}") from None
    if kind is float and not math.isfinite(value):
        raise UserError(f"{where}={text} is not a finite number")
    if kind is int and not -(2**63) <= value < 2**63:  # torch would raise OverflowError later
        raise UserError(f"{where}={text} does not fit 64 bits")
    for check in get_args(hint):
        violation = check.violation(value) if isinstance(check, Check) else ""
        if violation:
            raise UserError(f"{where}={text} {violation}")
    return value


def _choice(where: str, text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        near = difflib.get_close_matches(text, choices, n=1)
        remedy = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{where}={text} is not one of {', '.join(choices)}{remedy}")
    return text


# ---- config files


def read_config(path: Path, options_class: type) -> dict[str, Any]:
    """The `name = literal` lines of a file, checked as options. Raises UserError with the line."""
    if not path.is_file():
        raise UserError(f"{path} is neither an option (--key=value) nor a config file that exists")
    hints = get_hints(options_class, include_extras=True)
    values: dict[str, Any] = {}
    line = 0
    try:
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            line = statement.lineno
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=expression):
                    value = ast.literal_eval(expression)  # ValueError if it is more than a literal
                case _:
                    raise ValueError
            if name not in hints:
                raise UserError(f"{path}:{line}: {_unknown(name, name, hints)}")
            values[name] = _convert(f"{path}:{line}: {name}", str(value), hints[name])
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", line)
        raise UserError(f"{path}:{line} is not a line of the form name = literal") from None
    return values


# ---- help


def _program() -> str:
    """The command as it was started: `nanochat-...`, or `python -m ...`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    started = Path(*sys.orig_argv[1:2]).name  # of console scripts; runpy has changed sys.argv
    if started.startswith("nanochat-"):
        return started
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name


def _help(options_class: type) -> str:
    parser = argparse.ArgumentParser(
        prog=_program(),
        usage="%(prog)s [CONFIG_FILE] [--name=value ...]",
        description=f"{options_class.__doc__} CONFIG_FILE holds `name = literal` lines; options"
        " after it override them.",
    )
    # The string literal below each field: Python does not keep these, so they are read from source.
    source = "".join(inspect.getsource(base) for base in reversed(options_class.__mro__[:-1]))
    texts = dict(re.findall(r'^    (\w+): .+\n    """((?:.|\n)+?)"""', source, re.MULTILINE))
    hints = get_hints(options_class, include_extras=True)
    for option in fields(options_class):
        hint = hints[option.name]
        names = [f"--{option.name}", *(e.name for e in get_args(hint) if isinstance(e, Short))]
        text = texts.get(option.name, "")
        if option.default not in ("", None):
            text += f" (default: {option.default})"
        choices = ("true", "false") if hint is bool else get_args(_plain(hint))  # of a Literal
        metavar = f"{{{','.join(choices)}}}" if choices else _plain(hint).__name__.upper()
        parser.add_argument(*names, metavar=metavar, help=text.replace("%", "%%"))
    return parser.format_help()


# ---- start and exit


def run_command(options_class: type[Any]) -> NoReturn:
    """Run the module that was started by `python -m`: check its options, import it, call `main`.

    Called before a module imports torch, which takes seconds: --help and wrong options are answered
    at once, and Ctrl-C during the imports is no traceback.
    """
    started = sys.modules["__main__"]
    if spec := getattr(started, "__spec__", None):
        name = spec.name
    else:  # the file was run, as by %run in a notebook
        file = Path(str(started.__file__)).resolve()
        name = f"{file.parent.name}.{file.stem}"
        sys.path.insert(0, str(file.parents[1]))

    def command() -> None:
        parse(options_class)
        try:
            with _exit_on_interrupt():
                module = importlib.import_module(name)
        except ModuleNotFoundError as error:  # another Python than the one of .venv
            raise UserError(
                f"{sys.executable} has no package {error.name}; run bash dev/setup.sh once, then"
                f" .venv/bin/python -m {name}"
            ) from error
        module.main()

    run(command)


def _make_streams_safe() -> None:
    """Open standard streams that are closed, and let no character fail that one cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # else the next file that is opened would take its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="replace")


@contextmanager
def _exit_on_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C ends the process at once: there is nothing to save yet."""

    def handle(_number: int, _frame: object) -> None:
        # A KeyboardInterrupt may be lost here: libraries catch what their imports raise.
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not if it is ignored, as under nohup
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command's main; an error that the user can fix is one line on stderr, no traceback.

    Exits with 0, 1 (disk full or not writable), 2 (UserError) or 130 (Ctrl-C).
    """
    code, message = 0, ""
    _make_streams_safe()
    try:
        main()
    except UserError as error:
        code, message = 2, f"error: {error}"
    except KeyboardInterrupt:
        code, message = 130, "interrupted"  # 128 + SIGINT, as shells report it
        # Ctrl-C again, until the end: while threads are joined, Python would print a traceback, and
        # once it has removed its handlers, the signal would kill the process.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    except BrokenPipeError:  # `| head` has read enough; Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except RuntimeError as error:
        if "home directory" not in str(error):  # of pathlib, for a path with ~
            raise
        code, message = 2, f"error: {error} Set NANOCHAT_BASE_DIR, and use paths without ~"
    except OSError as error:
        failure = disk_failure(error)
        if failure is None:
            raise
        what, remedy = failure
        code, message = 1, f"error: {what} ({error}); {remedy} and run again"
    if message:  # a name in it may have line ends, or control a terminal
        print(re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", message), file=sys.stderr)
    logging.shutdown()
    sys.exit(code)
