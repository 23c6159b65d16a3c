"""The report: every stage writes its section as data; `generate` renders them once.

    python -m nanochat.report generate        writes report/report.md
    python -m nanochat.report reset           removes the sections of earlier runs
"""

import json
import math
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from nanochat import paths
from nanochat.configurator import parse, run
from nanochat.errors import UserError

COLUMNS = ("BASE", "MID", "SFT", "RL")
CURVE_COLOURS = ("#3465a4", "#c4562f", "#4e8a3e", "#7d5ba6")

Section = dict[str, Any]


def write_section(name: str, section: Section) -> None:
    """Keep one stage's section: a JSON object, written whole.

    {"title": str, "column": "BASE" | "MID" | "SFT" | "RL" | None, "order": int,
     "settings": {...}, "metrics": {label: value}, "table": {row: number},
     "curves": {label: [[step, value], ...]}, "samples": [{"prompt": str, "answer": str}],
     "seconds": float, "notes": [str]}; all but the title may be absent.
    """
    paths.write_whole(_path(name), json.dumps({"written": _now(), **section}, indent=1))


def read_section(name: str) -> Section | None:
    """A section, or None when it is not there or cannot be read."""
    try:
        section = json.loads(_path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return section if isinstance(section, dict) else None


def _path(name: str) -> Path:
    return paths.report_dir() / "sections" / f"{name}.json"


def _now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="seconds")


def reset() -> None:
    """Remove report and sections."""
    shutil.rmtree(paths.report_dir(), ignore_errors=True)


def generate() -> Path:
    """Render report.md from the sections that are there. Raises UserError when there is none."""
    sections = _sections()
    if not sections:
        raise UserError(f"no section in {paths.report_dir()}; run a stage first (bash speedrun.sh)")
    parts = [
        f"# nanochat: report of {_now()}",
        _machine(),
        _results_table(sections),
        _wall_clock(sections),
        *(_render(name, section) for name, section in sections.items()),
    ]
    path = paths.report_dir() / "report.md"
    paths.write_whole(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def _sections() -> dict[str, Section]:
    """Sections by name, in the order of the pipeline."""
    found = {}
    for path in sorted((paths.report_dir() / "sections").glob("*.json")):
        section = read_section(path.stem)
        if section is not None:
            found[path.stem] = section
    return dict(sorted(found.items(), key=lambda item: item[1].get("order", 99)))


def _machine() -> str:
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        device = f"{torch.cuda.device_count()} x {', '.join(sorted(names))}"
    else:
        device = "no GPU"
    memory = psutil.virtual_memory().total / 2**30
    facts = {
        "machine": f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores,"
        f" {memory:.0f} GiB, {device}",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}",
        "base directory": f"{paths.base_dir()}",
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _results_table(sections: dict[str, Section]) -> str:
    """Rows by metric, columns BASE | MID | SFT | RL."""
    rows: dict[str, dict[str, float]] = {}
    for section in sections.values():
        for label, value in (section.get("table") or {}).items():
            rows.setdefault(label, {})[section["column"]] = value
    if not rows:
        return ""
    columns = [column for column in COLUMNS if any(column in row for row in rows.values())]
    lines = [
        "## Results",
        "",
        f"| held-out | {' | '.join(columns)} |",
        f"|---|{'--:|' * len(columns)}",
    ]
    for label, row in rows.items():
        cells = (_cell(label, row.get(column)) for column in columns)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(label: str, value: float | None) -> str:
    if value is None:
        return "-"
    if "bits per byte" in label or "CORE" in label:
        return f"{value:.4f}"
    return f"{100 * value:.1f} %"


def _wall_clock(sections: dict[str, Section]) -> str:
    timed = {s["title"]: s["seconds"] for s in sections.values() if s.get("seconds")}
    if not timed:
        return ""
    lines = ["## Wall clock", "", "| work | minutes |", "|---|--:|"]
    lines += [f"| {title} | {seconds / 60:.1f} |" for title, seconds in timed.items()]
    lines.append(f"| all of these | {sum(timed.values()) / 60:.1f} |")
    return "\n".join(lines)


def _render(name: str, section: Section) -> str:
    parts = [f"## {section['title']}"]
    parts += section.get("notes") or []
    if section.get("metrics"):
        lines = ["| | |", "|---|--:|"]
        lines += [f"| {k} | {_number(v)} |" for k, v in section["metrics"].items()]
        parts.append("\n".join(lines))
    if section.get("rows"):
        parts.append(_plain_table(section["rows"]))
    picture = _plot(name, section)
    if picture is not None:
        parts.append(f"![{section['title']}]({picture.name})")
    parts += [_sample(sample) for sample in section.get("samples") or []]
    if section.get("settings"):
        settings = ", ".join(f"{k}={_number(v)}" for k, v in section["settings"].items())
        parts.append(f"<details><summary>Settings</summary>\n\n{settings}\n\n</details>")
    return "\n\n".join(parts)


def _plain_table(rows: list[list[Any]]) -> str:
    """The first row is the head."""
    lines = [" | ".join(_number(cell) for cell in row) for row in rows]
    lines.insert(1, "|".join(["---"] + ["--:"] * (len(rows[0]) - 1)))
    return "\n".join(f"| {line} |" for line in lines)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if not math.isfinite(value):
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _sample(sample: dict[str, str]) -> str:
    prompt = sample["prompt"].replace("\n", "\n> ")
    answer = sample["answer"].replace("\n", "\n> ")
    return f"> **{prompt}**\n>\n> {answer}"


def _plot(name: str, section: Section) -> Path | None:
    """The section's curves, one panel a label, as PNG beside the report."""
    curves = {k: points for k, points in (section.get("curves") or {}).items() if points}
    if not curves:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves), 3.0), layout="constrained")
    for number, (label, points) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), number + 1)
        known = [(x, y) for x, y in points if y is not None]
        style = {"marker": "o", "markersize": 3} if len(known) < 20 else {}
        axes.plot(*zip(*known, strict=True), color=CURVE_COLOURS[number % 4], linewidth=1.2, **style)
        axes.set(title=label, xlabel="step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    path = paths.report_dir() / f"{name}.png"
    with paths.whole_file(path) as file:
        FigureCanvasAgg(figure).print_png(file)
    return path


@dataclass(frozen=True)
class Options:
    """Render the report, or remove what earlier runs wrote."""

    action: Literal["generate", "reset"] = "generate"
    """What to do; a bare word will do as well."""


def main(argv: list[str] | None = None) -> None:
    """`generate` or `reset`."""
    arguments = sys.argv[1:] if argv is None else argv
    actions = ("generate", "reset")
    arguments = [f"--action={word}" if word in actions else word for word in arguments]
    work: dict[str, Callable[[], Path | None]] = {"generate": generate, "reset": reset}
    path = work[parse(Options, arguments).action]()
    if path is not None:
        print(path)


if __name__ == "__main__":
    run(main)
