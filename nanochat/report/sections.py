"""Sections of the report: JSON files that stages write, read as typed values."""

import json
import logging
import math
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nanochat import paths

logger = logging.getLogger(__name__)

COLUMNS = ("BASE", "MID", "SFT", "RL")  # one per stage, in the order of training
LAST = 99  # the order of a section that has none
Z95 = 1.96  # standard errors on both sides: 95 % of a normal distribution
# Shown as escapes: control characters but tab and newline, which terminals act on; embeddings,
# overrides and isolates of text direction, which reorder what is read; halves of surrogate pairs,
# which UTF-8 cannot hold.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Section = dict[str, Any]
Points = list[tuple[float, float]]


def write_section(name: str, section: Section) -> None:
    """Write one section, a JSON object, atomically.

    {"title": str, "column": "BASE" | "MID" | "SFT" | "RL", "order": int, "seconds": float,
     "device": "cpu" | "mps" | name of the GPU, "num_devices": int, "settings": {...},
     "metrics": {label: value}, "table": {row: number}, "errors": {row: standard error},
     "intervals": {row: [low, high]}, "rows": [[...], ...], "notes": [str],
     "curves": {label: [[step, value], ...]}, "samples": [{"prompt": str, "answer": str}],
     "results": {...}, "complete": bool}; all but the title are optional.

    `table` is a column of the results table: shares from 0 to 1, except rows that name "bits per
    byte" or "CORE". `intervals` of 95 % have the same unit; without them they reach 1.96 `errors`
    to both sides. `rows` is a table of its own, header first. A curve "tokens" is the x axis of
    the others. `results` is not rendered.
    """
    text = json.dumps({**section, "written": now()}, indent=1, ensure_ascii=False)
    paths.write_atomic(_path(name), text.encode("utf-8", "backslashreplace"))


def read_section(name: str, settings: dict[str, Any] | None = None) -> Section | None:
    """A section, or None if it is missing, damaged, or has other settings than those given."""
    section = _read(_path(name))
    return section if settings is None or (section or {}).get("settings") == settings else None


def already_measured(name: str, settings: dict[str, Any], fresh: bool = False) -> Section | None:
    """The section that an earlier run with equal settings wrote, complete or not; else None."""
    section = None if fresh else read_section(name, settings)
    if section is not None and section.get("complete", True):
        log_reuse(section)
    return section


def log_reuse(section: Section) -> None:
    """Log that a section's results are not measured again."""
    message = "%s: already measured with these settings on %s; --fresh measures again"
    logger.info(message, section["title"], section.get("written", "an earlier day"))


def now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="seconds")


def _path(name: str) -> Path:
    return paths.report_dir() / "sections" / f"{name}.json"


def _read(path: Path) -> Section | None:
    try:
        section = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return section if isinstance(section, dict) else None


# ---- typed


@dataclass(frozen=True)
class SectionData:
    """A section of any version, with what is malformed or of another type left out.

    All text is safe for a terminal and for UTF-8; it may contain HTML and Markdown.
    """

    name: str  # of its file
    title: str
    column: str  # of COLUMNS, or ""
    order: float
    seconds: float
    device: str
    num_devices: int
    settings: dict[str, str]
    metrics: dict[str, str]
    numbers: dict[str, float]  # the metrics that are numbers
    table: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # of 95 %, by label of the table
    rows: list[list[str]]  # of equal length, header first
    curves: dict[str, Points]
    samples: list[tuple[str, str]]  # prompt, answer
    notes: list[str]
    written: str

    @property
    def file(self) -> str:
        return f"sections/{self.name}.json"


def read_all(folder: Path) -> list[SectionData]:
    """The sections of a folder, in order."""
    files = sorted(folder.glob("*.json"))
    found = [typed(path.stem, section) for path in files if (section := _read(path)) is not None]
    return sorted(found, key=lambda section: section.order)


def typed(name: str, section: Section) -> SectionData:
    column = section.get("column")
    rows = [row for row in _list(section, "rows") if isinstance(row, list) and row]
    width = len(rows[0]) if rows else 0
    samples = [sample for sample in _list(section, "samples") if isinstance(sample, dict)]
    metrics, table = _mapping(section, "metrics"), _numbers(_mapping(section, "table"))
    return SectionData(
        name=visible(name),
        title=shown(section.get("title") or name),
        column=column if column in COLUMNS else "",
        order=_number(section.get("order"), LAST),
        seconds=max(0.0, _number(section.get("seconds"), 0.0)),
        device=_text(section.get("device")),
        num_devices=max(0, int(_number(section.get("num_devices"), 0))),
        settings={k: _text(v) for k, v in _mapping(section, "settings").items() if v != ""},
        metrics={label: shown(value) for label, value in metrics.items()},
        numbers=_numbers(metrics),
        table=table,
        intervals=_intervals(section, table),
        rows=[[shown(cell) for cell in (row + [""] * width)[:width]] for row in rows],
        curves={label: _points(curve) for label, curve in _mapping(section, "curves").items()},
        samples=[(_text(s.get("prompt")), _text(s.get("answer"))) for s in samples],
        notes=[shown(note) for note in _list(section, "notes")],
        written=shown(section.get("written") or ""),
    )


def visible(text: str) -> str:
    r"""The text with hidden characters as escapes: an escape character is \u001b."""
    return HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\r\n", "\n"))


def shown(value: Any) -> str:
    """A value as the text of one cell; numbers rounded and grouped."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _text(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)  # no comma in a year or 4096
    if not math.isfinite(value):
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _text(value: Any) -> str:
    return visible(value if isinstance(value, str) else "" if value is None else str(value))


def _number(value: Any, otherwise: float) -> float:
    """`value` if it is a finite number that a float can hold, else `otherwise`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return otherwise
    return float(value) if abs(value) < 1e300 else otherwise  # also false for NaN


def _numbers(mapping: dict[str, Any]) -> dict[str, float]:
    finite = {label: _number(value, math.nan) for label, value in mapping.items()}
    return {label: value for label, value in finite.items() if not math.isnan(value)}


def _intervals(section: Section, table: dict[str, float]) -> dict[str, tuple[float, float]]:
    errors = _numbers(_mapping(section, "errors"))
    found = {
        label: (value - Z95 * errors[label], value + Z95 * errors[label])
        for label, value in table.items()
        if errors.get(label, 0.0) > 0  # 0 where all or no answers are right: no measure of it
    }
    for label, pair in _mapping(section, "intervals").items():
        if bounds := _points([pair]):
            found[label] = bounds[0]
    return found


def _points(curve: Any) -> Points:
    """Points without gaps: a value that was not finite is null in the file."""
    points = curve if isinstance(curve, list) else []
    pairs = [point for point in points if isinstance(point, list) and len(point) == 2]
    numbers = [(_number(x, math.nan), _number(y, math.nan)) for x, y in pairs]
    return [point for point in numbers if not math.isnan(sum(point))]


def _mapping(section: Section, key: str) -> dict[str, Any]:
    value = section.get(key)
    return {visible(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _list(section: Section, key: str) -> list[Any]:
    value = section.get(key)
    return value if isinstance(value, list) else []
