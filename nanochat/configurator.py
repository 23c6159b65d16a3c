"""A command's options: a frozen dataclass <- an optional config file <- --key=value.

    python -m scripts.base_train my_run.conf --depth=4 --matrix-lr 0.01

A config file holds `name = literal` lines, which are parsed and never executed. tyro writes the
help; the errors are ours, one line each.
"""

import ast
import difflib
import logging
import math
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as hints_of

import tyro

from nanochat.errors import UserError
from nanochat.paths import disk_failure

OptionsType = TypeVar("OptionsType")

CONFIG_FILE_HELP = "A file of `name = literal` lines may come first; options after it win."
TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")


def short(name: str) -> Any:
    """Gives an option a second, short name: `source: Annotated[str, short("-i")] = "sft"`."""
    return tyro.conf.arg(aliases=[name])


@dataclass(frozen=True)
class Bounds:
    """The numbers that an option takes; stands in `Annotated[int, ...]`."""

    low: float
    high: float = math.inf
    besides: int | None = None
    """A number outside that has a meaning of its own."""

    def refusal(self, value: float) -> str:
        """What is wrong and what helps, to stand behind `--name=value`; empty when all is well."""
        if self.low <= value <= self.high or value == self.besides:
            return ""
        if self.high < math.inf:
            return f"must be between {self.low:g} and {self.high:g}"
        also = "" if self.besides is None else f", or {self.besides} (see --help)"
        return f"must be {self.low:g} or more{also}"


def at_least(low: float, besides: int | None = None) -> Bounds:
    """`steps: Annotated[int, at_least(1, besides=-1)] = -1`."""
    return Bounds(low, besides=besides)


def between(low: float, high: float) -> Bounds:
    """`share: Annotated[float, between(0, 1)] = 0.5`."""
    return Bounds(low, high)


@dataclass(frozen=True)
class FolderName:
    """A text that becomes the name of one folder, which others must not have."""

    taken: tuple[str, ...] = ()

    def refusal(self, value: str) -> str:
        """As that of Bounds."""
        if value in self.taken:
            return "is the name of a folder that is there for something else; use another"
        if not value or re.fullmatch(r"[A-Za-z0-9_+=,@-][A-Za-z0-9._+=,@-]{0,99}", value):
            return ""
        return "is not the plain name of a folder; use up to 100 letters, digits, '-', '_' and '.'"


def parse(options_class: type[OptionsType], argv: list[str] | None = None) -> OptionsType:
    """The options of this command line; `--help` prints them and exits.

    Raises UserError on an unknown key (with the nearest name) or a value of the wrong type.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if "--help" in arguments or "-h" in arguments:
        tyro.cli(
            options_class,
            args=["--help"],
            use_underscores=True,
            prog=_program(),
            description=f"{options_class.__doc__}\n\n{CONFIG_FILE_HELP}",
        )
    values: dict[str, Any] = {}
    for key, text in _pairs(arguments, options_class):
        if key == "config":
            values.update(read_config(Path(text), options_class))
        else:
            values[key] = _convert(f"--{key}", text, _types(options_class)[key])
    return options_class(**values)


def as_dict(options: Any) -> dict[str, Any]:
    """The options by name, paths as text: ready for a JSON file."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command's main: what a person can mend ends in one line on stderr, not a traceback.

    Leaves with 0, 1 (disk full or not writable), 2 (UserError) or 130 (Ctrl-C).
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _leave(130)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(0)
    except OSError as error:
        failure = disk_failure(error)
        if failure is None:
            raise
        what, remedy = failure
        print(f"error: {what} ({error}); {remedy} and run again", file=sys.stderr)
        _leave(1)
    _leave(0)


def _leave(code: int) -> NoReturn:
    logging.shutdown()
    sys.exit(code)


def _program() -> str:
    module = sys.modules.get("__main__")
    spec = getattr(module, "__spec__", None)
    return f"python -m {spec.name}" if spec is not None else Path(sys.argv[0]).name


def _types(options_class: type) -> dict[str, Any]:
    return hints_of(options_class, include_extras=True)


def _aliases(options_class: type) -> dict[str, str]:
    """From short names to names."""
    found = {}
    for name, hint in _types(options_class).items():
        for extra in getattr(hint, "__metadata__", ()):
            found.update(dict.fromkeys(getattr(extra, "aliases", None) or (), name))
    return found


def _pairs(arguments: list[str], options_class: type) -> Iterator[tuple[str, str]]:
    """(name, text) of each option; a bare file name is a config file, one bare `--` is ignored."""
    rest = list(arguments)
    if "--" in rest:
        rest.remove("--")
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            yield "config", word
            continue
        head, equals, text = word.partition("=")
        name, implied = _name(head, options_class)
        if implied is not None and not equals:
            is_value = implied == "true" and rest and rest[0].lower() in TRUE_WORDS + FALSE_WORDS
            text = rest.pop(0) if is_value else implied
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{head} needs a value, as in {head}=...")
            text = rest.pop(0)
        yield name, text


def _name(head: str, options_class: type) -> tuple[str, str | None]:
    """The option that `--some-name` means, and the value it implies when it is a switch."""
    known = [field.name for field in fields(options_class)]
    name = _aliases(options_class).get(head, head.lstrip("-").replace("-", "_"))
    if name == "config" or (name in known and not head.startswith("--no-")):
        is_switch = _types(options_class).get(name) is bool
        return name, "true" if is_switch else None
    positive = name.removeprefix("no_")
    if positive in known and _types(options_class)[positive] is bool:
        return positive, "false"
    raise UserError(_unknown(head, name, known))


def _unknown(head: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    remedy = f"did you mean --{near[0]}?" if near else "see --help"
    return f"{head} is not an option of this command; {remedy}"


def _convert(where: str, text: str, hint: Any) -> Any:
    """`text` as a value of the type `hint`. Raises UserError naming what was expected."""
    checks: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        checks = tuple(extra for extra in extras if isinstance(extra, Bounds | FolderName))
    value = _of_type(where, text, hint)
    for check in checks:
        refusal = check.refusal(value)
        if refusal:
            raise UserError(f"{where}={text} {refusal}")
    return value


def _of_type(where: str, text: str, hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if text.lower() == "none":
            return None
        hint = next(choice for choice in get_args(hint) if choice is not type(None))
    if get_origin(hint) is Literal:
        return _choose(where, text, get_args(hint))
    if hint is bool:
        return _choose(where, text.lower(), TRUE_WORDS + FALSE_WORDS) in TRUE_WORDS
    try:
        value = hint(text)
    except ValueError:
        kind = {int: "a whole number", float: "a number"}.get(hint, hint.__name__)
        raise UserError(f"{where}={text} is not {kind}") from None
    if hint is float and not math.isfinite(value):
        raise UserError(f"{where}={text} is not a finite number")
    if hint is int and not -(2**63) <= value < 2**63:
        raise UserError(f"{where}={text} does not fit 64 bits")
    return value


def _choose(where: str, text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        near = difflib.get_close_matches(text, choices, n=1)
        remedy = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{where}={text} is not one of {', '.join(choices)}{remedy}")
    return text


def read_config(path: Path, options_class: type) -> dict[str, Any]:
    """The `name = literal` lines of a file, checked as options. Raises UserError with the line."""
    if not path.is_file():
        raise UserError(f"{path} is neither an option (--key=value) nor a config file that exists")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", 0)
        raise UserError(f"{path}:{line} is not a line of the form name = literal") from None
    values: dict[str, Any] = {}
    for statement in tree.body:
        name, value = _assignment(path, statement)
        known = [field.name for field in fields(options_class)]
        if name not in known:
            raise UserError(f"{path}:{statement.lineno}: {_unknown(name, name, known)}")
        where = f"{path}:{statement.lineno}: {name}"
        values[name] = _convert(where, str(value), _types(options_class)[name])
    return values


def _assignment(path: Path, statement: ast.stmt) -> tuple[str, Any]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=literal):
            try:
                return name, ast.literal_eval(literal)
            except (ValueError, TypeError, RecursionError):
                pass
    raise UserError(f"{path}:{statement.lineno} is not a line of the form name = literal")
