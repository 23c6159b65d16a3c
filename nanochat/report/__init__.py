"""The report: every stage writes its section as data; `generate` renders them.

    python -m nanochat.report generate [--price_per_hour=24]    writes report.md and report.html
    python -m nanochat.report compare A B                       prints what two reports differ in
    python -m nanochat.report reset                             removes the report and its sections

A section replaces the earlier one of the same name, so a repeated run adds nothing.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat import paths
from nanochat.configurator import parse
from nanochat.errors import UserError
from nanochat.report import comparison, markdown, page, sections
from nanochat.report.content import Content
from nanochat.report.sections import (
    COLUMNS,
    Section,
    already_measured,
    log_reuse,
    read_section,
    write_section,
)

__all__ = [
    "COLUMNS", "Options", "Section", "already_measured", "generate", "log_reuse", "main",
    "read_section", "reset", "write_section",
]  # fmt: skip


def reset() -> None:
    """Remove the report and its sections."""
    shutil.rmtree(paths.report_dir(), ignore_errors=True)


def generate(price_per_hour: float = 0.0) -> Path:
    """Render report.md and report.html, with a price also costs; returns the path of report.md.

    Raises UserError if there is no section.
    """
    folder = paths.report_dir()
    found = sections.read_all(folder / "sections")
    if not found:
        remedy = "run a stage first: bash speedrun.sh, or python -m scripts.base_train"
        raise UserError(f"no section in {folder}; {remedy}")
    content = Content(found, price_per_hour)
    paths.write_atomic(folder / "report.html", page.render(content))
    path = folder / "report.md"
    paths.write_atomic(path, markdown.render(content))
    return path


@dataclass(frozen=True)
class Options:
    """Render the report, compare two, or remove the report and its sections."""

    action: Literal["generate", "reset", "compare"] = "generate"
    """What to do; `python -m nanochat.report reset` is short for --action=reset."""
    price_per_hour: float = 0.0
    """Price of an hour of this machine; adds the cost of each stage."""
    first: str = ""
    """Base directory or report folder to compare; `compare A B` is short for --action=compare
    --first=A --second=B."""
    second: str = ""
    """The one to compare it with."""


def main(argv: list[str] | None = None) -> None:
    """`generate`, `compare A B` or `reset`."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Otherwise a bare word is a config file.
    if words and words[0] in ("generate", "reset", "compare"):
        words[0] = f"--action={words[0]}"
    if words[:1] == ["--action=compare"]:
        for i, name in enumerate(("first", "second"), start=1):
            if i < len(words) and not words[i].startswith("-"):
                words[i] = f"--{name}={words[i]}"
    options = parse(Options, words)
    if options.action == "compare":
        if not (options.first and options.second):
            raise UserError("compare needs two folders: python -m nanochat.report compare A B")
        print(comparison.compare(*(Path(f).expanduser() for f in (options.first, options.second))))
    elif options.action == "reset":
        reset()
    else:
        path = generate(options.price_per_hour)
        print(path)
        print(path.with_suffix(".html"))
