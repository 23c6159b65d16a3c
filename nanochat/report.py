"""The report: every stage writes its section as data; `generate` renders them to Markdown.

    python -m nanochat.report generate [--price_per_hour=24]    writes report/report.md
    python -m nanochat.report reset                             removes the report and its sections

A section replaces the earlier one of the same name, so a repeated run adds nothing.
"""

import json
import logging
import math
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psutil

from nanochat import paths
from nanochat.configurator import parse, run
from nanochat.errors import UserError

logger = logging.getLogger(__name__)

COLUMNS = ("BASE", "MID", "SFT", "RL")  # one per stage, in the order of training
PANELS_PER_ROW = 3  # as many as stay readable across a page
SMOOTHED_POINTS = 40  # a curve of this many points is drawn with its moving average
CURVE_COLORS = ("#3465a4", "#c4562f", "#4e8a3e", "#7d5ba6")

Section = dict[str, Any]


def write_section(name: str, section: Section) -> None:
    """Write one section, a JSON object, atomically.

    {"title": str, "column": "BASE" | "MID" | "SFT" | "RL", "order": int, "seconds": float,
     "settings": {...}, "metrics": {label: value}, "table": {row: number}, "rows": [[...], ...],
     "curves": {label: [[step, value], ...]}, "samples": [{"prompt": str, "answer": str}],
     "notes": [str], "results": {...}, "complete": bool}; all but the title are optional.

    `table` is a column of the results table: shares from 0 to 1, except rows that name "bits per
    byte" or "CORE". `rows` is a table of its own, header first. `results` is not rendered.
    """
    text = json.dumps({**section, "written": _now()}, indent=1, ensure_ascii=False)
    paths.write_atomic(_path(name), text)


def read_section(name: str, settings: dict[str, Any] | None = None) -> Section | None:
    """A section, or None if it is missing, damaged, or has other settings than those given."""
    try:
        section = json.loads(_path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(section, dict):
        return None
    return section if settings is None or section.get("settings") == settings else None


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


def _path(name: str) -> Path:
    return paths.report_dir() / "sections" / f"{name}.json"


def _now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="seconds")


def reset() -> None:
    """Remove the report and its sections."""
    shutil.rmtree(paths.report_dir(), ignore_errors=True)


def generate(price_per_hour: float = 0.0) -> Path:
    """Render report.md, with a price also costs. Raises UserError if there is no section."""
    files = sorted((paths.report_dir() / "sections").glob("*.json"))
    found = {path.stem: section for path in files if (section := read_section(path.stem))}
    if not found:
        raise UserError(f"no section in {paths.report_dir()}; run a stage first (bash speedrun.sh)")
    sections = dict(sorted(found.items(), key=lambda item: item[1].get("order", 99)))
    parts = [
        "# nanochat report",
        _results(sections),
        _wall_clock(sections, price_per_hour),
        _machine(),
        *(_render(name, section) for name, section in sections.items()),
    ]
    path = paths.report_dir() / "report.md"
    paths.write_atomic(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


# ---- parts of the report


def _table(rows: Sequence[Sequence[Any]], rule: str = "--:") -> str:
    """A Markdown table, header first; `rule` aligns all columns but the first."""
    cells = [[_number(cell) for cell in row] for row in rows]
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in cells]
    lines.insert(1, f"|---|{f'{rule}|' * (len(rows[0]) - 1)}")
    return "\n".join(lines)


def _machine() -> str:
    import torch  # takes seconds, which --help and wrong options should not

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = psutil.virtual_memory().total / 2**30
    facts = {
        "generated": _now(),
        "code": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores,"
        f" {memory:.0f} GiB of memory",
        "GPU": f"{len(gpus)} x {', '.join(sorted(set(gpus)))}" if gpus else "none",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}",
        "base directory": f"`{paths.base_dir()}`",
    }
    rows = [("", ""), *((name, value) for name, value in facts.items() if value)]
    return "## Machine\n\n" + _table(rows, rule="---")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty=, with uncommitted changes"]
    try:
        folder = Path(__file__).parent  # not the working directory: that may be another repository
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else ""


def _results(sections: dict[str, Section]) -> str:
    rows: dict[str, dict[str, float]] = {}
    for section in sections.values():
        if section.get("column") in COLUMNS:
            for label, value in (section.get("table") or {}).items():
                rows.setdefault(label, {})[section["column"]] = value
    if not rows:
        return ""
    columns = [column for column in COLUMNS if any(column in row for row in rows.values())]
    table = [[label, *(_score(label, row.get(c)) for c in columns)] for label, row in rows.items()]
    note = "All measured on text and questions that are not trained on."
    return f"## Results\n\n{note}\n\n{_table([['', *columns], *table])}"


def _score(label: str, value: float | None) -> str:
    if value is None:
        return "-"
    # Scores near 0 need digits; shares read best as percentages.
    return f"{value:.4f}" if re.search("bits per byte|CORE", label) else f"{100 * value:.1f} %"


def _wall_clock(sections: dict[str, Section], price_per_hour: float) -> str:
    timed = [(s["title"], s["seconds"]) for s in sections.values() if s.get("seconds")]
    if not timed:
        return ""
    timed.append(("**total**", sum(seconds for _, seconds in timed)))
    rows = [["stage", "minutes", "cost"]]
    rows += [[t, f"{s / 60:.1f}", f"{price_per_hour * s / 3600:.2f}"] for t, s in timed]
    return "## Time\n\n" + _table(rows if price_per_hour else [row[:2] for row in rows])


def _render(name: str, section: Section) -> str:
    parts = [f"## {section['title']}", *(section.get("notes") or [])]
    if section.get("metrics"):
        parts.append(_table([("", ""), *section["metrics"].items()]))
    if section.get("rows"):
        parts.append(_table(section["rows"]))
    plot = _plot(name, section)
    if plot is not None:
        parts.append(f"![{section['title']}]({plot.name})")
    if section.get("samples"):
        parts.append("\n\n---\n\n".join(_sample(sample) for sample in section["samples"]))
    if section.get("settings"):
        settings = " ".join(f"`{k}={v}`" for k, v in section["settings"].items() if v != "")
        parts.append(f"<details><summary>Settings</summary>\n\n{settings}\n\n</details>")
    return "\n\n".join(parts)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)  # no comma in a year or 4096
    if not math.isfinite(value):
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _sample(sample: dict[str, str]) -> str:
    """A blockquote, with what the model wrote escaped: it is neither Markdown nor HTML."""
    prompt, answer = (
        re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", sample[key]).strip().replace("\n", "\n> ")
        for key in ("prompt", "answer")
    )
    return f"> **{prompt}**\n>\n> {answer}"


# ---- curves


def _plot(name: str, section: Section) -> Path | None:
    """The section's curves as a PNG beside the report, one panel per label."""
    curves = {
        label: [(x, y) for x, y in points if y is not None]  # None: was not finite
        for label, points in (section.get("curves") or {}).items()
    }
    curves = {label: points for label, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    # Imported here: every command imports this module, and matplotlib takes half a second.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Four panels: 2 x 2 rather than 3 + 1.
    columns = 2 if len(curves) == 4 else min(len(curves), PANELS_PER_ROW)
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(max(5.0, 3.8 * columns), 2.9 * rows), dpi=120, layout="constrained")
    for number, (label, points) in enumerate(curves.items()):
        axes: Any = figure.add_subplot(rows, columns, number + 1)
        _draw(axes, points, CURVE_COLORS[number % len(CURVE_COLORS)])
        axes.set_title(label, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=8, color="#666666")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.tick_params(labelsize=8, color="#999999")
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    path = paths.report_dir() / f"{name}.png"
    canvas: Any = FigureCanvasAgg(figure)  # not pyplot, which may want a display
    with paths.atomic_file(path) as file:
        canvas.print_png(file)
    return path


def _draw(axes: Any, points: list[tuple[float, float]], color: str) -> None:
    steps, values = zip(*points, strict=True)
    if len(points) < SMOOTHED_POINTS:
        axes.plot(steps, values, color=color, linewidth=1.4, marker="o", markersize=3)
        return
    means = _moving_average(values, len(values) // SMOOTHED_POINTS)
    axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
    axes.plot(steps, means, color=color, linewidth=1.5)


def _moving_average(values: Sequence[float], reach: int) -> list[float]:
    means = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)  # equally many on both sides: keeps slopes
        means.append(sum(values[i - near : i + near + 1]) / (2 * near + 1))
    return means


@dataclass(frozen=True)
class Options:
    """Render the report, or remove it and its sections."""

    action: Literal["generate", "reset"] = "generate"
    """What to do; `python -m nanochat.report reset` is short for --action=reset."""
    price_per_hour: float = 0.0
    """Price of an hour of this machine; adds the cost of each stage."""


def main(argv: list[str] | None = None) -> None:
    """`generate` or `reset`."""
    words = sys.argv[1:] if argv is None else argv
    # Otherwise a bare word is a config file.
    words = [f"--action={word}" if word in ("generate", "reset") else word for word in words]
    options = parse(Options, words)
    if options.action == "reset":
        reset()
    else:
        print(generate(options.price_per_hour))


if __name__ == "__main__":
    run(main)
