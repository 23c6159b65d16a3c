"""`compare A B`: settings, results and times of two reports as tables of text."""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nanochat.errors import UserError
from nanochat.report.content import Content, Score
from nanochat.report.sections import SectionData, read_all

IGNORED_SETTINGS = ("model", "parent", "step")  # identify weights, which always differ


def compare(first: Path, second: Path) -> str:
    """Raises UserError if one of the folders has no section of a report."""
    reports = [read_report(folder) for folder in (first, second)]
    parts = [
        _table([["A", str(first)], ["B", str(second)]]),
        _block("Settings that differ", ["setting", "A", "B"], _settings(reports)),
        _block("Results", ["metric", "stage", "A", "B", "difference", "beyond 95 %"],
               _results(reports)),
        _block("Minutes", ["stage", "A", "B", "difference"], _times(reports)),
        "beyond 95 %: whether the difference exceeds the combined 95 % interval; - where one is"
        " not known",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def read_report(folder: Path) -> Content:
    """The report of a base directory, of a report folder, or of a folder of sections."""
    for candidate in (folder / "report" / "sections", folder / "sections", folder):
        if sections := read_all(candidate):
            return Content(sections)
    raise UserError(
        f"{folder} has no section of a report; give a base directory in which a stage has run, or"
        " its report folder"
    )


def _settings(reports: Sequence[Content]) -> Iterator[list[str]]:
    first, second = (
        {(s.name, key): value for s in report.sections for key, value in s.settings.items()}
        for report in reports
    )
    shared = {name for name, _ in first} & {name for name, _ in second}
    for name, key in dict.fromkeys([*first, *second]):
        a, b = first.get((name, key), "-"), second.get((name, key), "-")
        if name in shared and key not in IGNORED_SETTINGS and a != b:
            yield [f"{name}.{key}", _short(a), _short(b)]


def _short(value: str) -> str:
    """A hash by its beginning."""
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]{20,}$", r"\1", value)


def _results(reports: Sequence[Content]) -> Iterator[list[str]]:
    first, second = (report.results for report in reports)
    for label in dict.fromkeys([*first, *second]):
        a_scores, b_scores = first.get(label, {}), second.get(label, {})
        for column in dict.fromkeys([*a_scores, *b_scores]):
            a, b = a_scores.get(column), b_scores.get(column)
            yield [label, column, _shown(a), _shown(b), *_difference(a, b)]


def _shown(score: Score | None) -> str:
    return score.with_interval if score else "-"


def _difference(a: Score | None, b: Score | None) -> tuple[str, str]:
    """B - A, and whether it exceeds the 95 % interval of a difference of independent values."""
    if a is None or b is None:
        return "-", "-"
    change = b.value - a.value
    text = f"{100 * change:+.1f} points" if a.is_share else f"{change:+.4f}"
    if not (a.bounds and b.bounds):
        return text, "-"
    # The reaches of both towards each other, squared and added (Newcombe 1998, method 10).
    lower, upper = (a, b) if change >= 0 else (b, a)
    assert lower.bounds and upper.bounds
    reach = math.hypot(lower.bounds[1] - lower.value, upper.value - upper.bounds[0])
    return text, "yes" if abs(change) > reach else "no"


def _times(reports: Sequence[Content]) -> Iterator[list[str]]:
    first, second = ({s.name: s for s in r.sections if s.seconds} for r in reports)
    for name in dict.fromkeys([*first, *second]):
        yield _minutes((first.get(name) or second[name]).title, first.get(name), second.get(name))
    yield _minutes_row("total", *(report.seconds for report in reports))


def _minutes(title: str, a: SectionData | None, b: SectionData | None) -> list[str]:
    return _minutes_row(title, a.seconds if a else None, b.seconds if b else None)


def _minutes_row(title: str, a: float | None, b: float | None) -> list[str]:
    cells = ["-" if seconds is None else f"{seconds / 60:.1f}" for seconds in (a, b)]
    return [title, *cells, "-" if a is None or b is None else f"{(b - a) / 60:+.1f}"]


def _block(title: str, head: list[str], rows: Iterator[list[str]]) -> str:
    found = list(rows)
    return f"{title}\n{_table([head, *found])}" if found else f"{title}: none"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return "\n".join(lines)
