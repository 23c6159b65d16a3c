"""The report: every stage writes its section as data; `generate` renders them once.

    python -m nanochat.report generate [--price_per_hour=24]    writes report/report.md
    python -m nanochat.report reset                             removes what earlier runs wrote

A section that is written again replaces the one of the same name, so a repeated run adds nothing.
"""

import json
import logging
import math
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from nanochat import paths
from nanochat.configurator import parse, run
from nanochat.errors import UserError

logger = logging.getLogger(__name__)

COLUMNS = ("BASE", "MID", "SFT", "RL")
PANELS_ACROSS = 3
MANY_POINTS = 40  # from here on a curve is noise around a line
CURVE_COLOURS = ("#3465a4", "#c4562f", "#4e8a3e", "#7d5ba6")

Section = dict[str, Any]


def write_section(name: str, section: Section) -> None:
    """Keep one stage's section: a JSON object, written whole.

    {"title": str, "column": "BASE" | "MID" | "SFT" | "RL" | None, "order": int,
     "settings": {...}, "metrics": {label: value}, "table": {row: number},
     "curves": {label: [[step, value], ...]}, "samples": [{"prompt": str, "answer": str}],
     "seconds": float, "notes": [str], "rows": [[...], ...]}; all but the title may be absent.

    `table` goes into the table BASE | MID | SFT | RL under `column`: shares from 0 to 1, except
    rows that name "bits per byte" or "CORE". `rows` is a table of its own, the head first.
    """
    paths.write_atomic(
        _path(name), json.dumps({"written": _now(), **section}, indent=1, ensure_ascii=False)
    )


def read_section(name: str, settings: dict[str, Any] | None = None) -> Section | None:
    """A section, or None when it is not there, cannot be read, or is not of these settings."""
    try:
        section = json.loads(_path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(section, dict):
        return None
    return section if settings is None or section.get("settings") == settings else None


def already_measured(name: str, settings: dict[str, Any], fresh: bool = False) -> Section | None:
    """The section that an earlier run with equal settings wrote, and log that; else None."""
    section = None if fresh else read_section(name, settings)
    if section is not None:
        logger.info(
            "%s: already measured with these settings on %s; --fresh measures again",
            section["title"], section.get("written", "an earlier day"),
        )  # fmt: skip
    return section


def _path(name: str) -> Path:
    return paths.report_dir() / "sections" / f"{name}.json"


def _now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="seconds")


def reset() -> None:
    """Remove report and sections."""
    shutil.rmtree(paths.report_dir(), ignore_errors=True)


def generate(price_per_hour: float = 0.0) -> Path:
    """Render report.md from the sections that are there; a price adds what each stage cost.

    Raises UserError when there is no section.
    """
    sections = _sections()
    if not sections:
        raise UserError(f"no section in {paths.report_dir()}; run a stage first (bash speedrun.sh)")
    parts = [
        "# nanochat report",
        _results_table(sections),
        _wall_clock(sections, price_per_hour),
        _machine(),
        *(_render(name, section) for name, section in sections.items()),
    ]
    path = paths.report_dir() / "report.md"
    paths.write_atomic(path, "\n\n".join(part for part in parts if part) + "\n")
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
        device = "none"
    memory = psutil.virtual_memory().total / 2**30
    facts = {
        "written": _now(),
        "code": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores,"
        f" {memory:.0f} GiB of memory",
        "GPU": device,
        "software": f"Python {platform.python_version()}, torch {torch.__version__}",
        "base directory": f"`{paths.base_dir()}`",
    }
    lines = ["## Machine", "", "| | |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in facts.items() if value])


def _commit() -> str:
    """The commit of this checkout, marked when files were changed since; "" outside of one."""
    command = ["git", "describe", "--always", "--dirty=, changed since"]
    try:
        folder = Path(__file__).parent
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else ""


def _results_table(sections: dict[str, Section]) -> str:
    """Rows by metric, columns BASE | MID | SFT | RL."""
    rows: dict[str, dict[str, float]] = {}
    for section in sections.values():
        if section.get("column") in COLUMNS:
            for label, value in (section.get("table") or {}).items():
                rows.setdefault(label, {})[section["column"]] = value
    if not rows:
        return ""
    columns = [column for column in COLUMNS if any(column in row for row in rows.values())]
    lines = [
        "## Results",
        "",
        "All on text and questions that training never saw.",
        "",
        f"| | {' | '.join(columns)} |",
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


def _wall_clock(sections: dict[str, Section], price_per_hour: float) -> str:
    timed = [(s["title"], s["seconds"]) for s in sections.values() if s.get("seconds")]
    if not timed:
        return ""
    timed.append(("**all of these**", sum(seconds for _, seconds in timed)))
    head, rule = ("| stage | minutes | cost |", "|---|--:|--:|") if price_per_hour else (
        "| stage | minutes |", "|---|--:|")  # fmt: skip
    lines = ["## Time", "", head, rule]
    for title, seconds in timed:
        cost = f" {price_per_hour * seconds / 3600:.2f} |" if price_per_hour else ""
        lines.append(f"| {title} | {seconds / 60:.1f} |{cost}")
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
    if section.get("samples"):
        parts.append("\n\n---\n\n".join(_sample(sample) for sample in section["samples"]))
    if section.get("settings"):
        settings = " ".join(f"`{k}={v}`" for k, v in section["settings"].items() if v != "")
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
    """A blockquote; what a model wrote is shown as it is, never read as Markdown or HTML."""
    prompt, answer = (
        re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", sample[key]).strip().replace("\n", "\n> ")
        for key in ("prompt", "answer")
    )
    return f"> **{prompt}**\n>\n> {answer}"


def _plot(name: str, section: Section) -> Path | None:
    """The section's curves, one panel a label, as PNG beside the report."""
    curves = {k: _known(points) for k, points in (section.get("curves") or {}).items()}
    curves = {k: points for k, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    across = 2 if len(curves) == 4 else min(len(curves), PANELS_ACROSS)
    down = math.ceil(len(curves) / across)
    figure = Figure(figsize=(max(5.0, 3.8 * across), 2.9 * down), dpi=120, layout="constrained")
    for number, (label, points) in enumerate(curves.items()):
        axes: Any = figure.add_subplot(down, across, number + 1)
        _draw(axes, points, CURVE_COLOURS[number % len(CURVE_COLOURS)])
        axes.set_title(label, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=8, color="#666666")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.tick_params(labelsize=8, color="#999999")
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    path = paths.report_dir() / f"{name}.png"
    canvas: Any = FigureCanvasAgg(figure)
    with paths.atomic_file(path) as file:
        canvas.print_png(file)
    return path


def _known(points: list[list[float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None]


def _draw(axes: Any, points: list[tuple[float, float]], colour: str) -> None:
    """Few points as dots on a line; many as a pale line with their local mean on top."""
    steps, values = zip(*points, strict=True)
    if len(points) < MANY_POINTS:
        axes.plot(steps, values, color=colour, linewidth=1.4, marker="o", markersize=3)
        return
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(steps, _local_means(values, len(values) // MANY_POINTS), color=colour, linewidth=1.5)


def _local_means(values: tuple[float, ...], reach: int) -> list[float]:
    """The mean of each value and up to `reach` neighbours on each side, as many on both."""
    means = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        means.append(sum(values[i - near : i + near + 1]) / (2 * near + 1))
    return means


@dataclass(frozen=True)
class Options:
    """Render the report, or remove what earlier runs wrote."""

    action: Literal["generate", "reset"] = "generate"
    """What to do; the bare word will do as well."""
    price_per_hour: float = 0.0
    """What an hour of this machine costs; adds the cost of each stage."""


def main(argv: list[str] | None = None) -> None:
    """`generate` or `reset`."""
    arguments = sys.argv[1:] if argv is None else argv
    actions = ("generate", "reset")
    arguments = [f"--action={word}" if word in actions else word for word in arguments]
    options = parse(Options, arguments)
    if options.action == "reset":
        reset()
    else:
        print(generate(options.price_per_hour))


if __name__ == "__main__":
    run(main)
