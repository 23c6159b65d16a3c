"""Curves of a section as figures: one PNG beside report.md, an SVG a panel inside report.html."""

import importlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat import paths
from nanochat.report.sections import Points, SectionData

MAX_POINTS = 400  # of a drawn line: a long run has many thousand, of which no more are seen
SMOOTHED_POINTS = 40  # a curve of this many points is drawn with its moving average
PANELS_PER_ROW = 3  # as many as stay readable across a page
VALIDATION = "validation loss"
# In an SVG each color becomes a variable of the page, so that figures follow light and dark.
COLORS = {
    "#666665": "muted", "#88888a": "muted",
    "#0b6e64": "line0", "#c4562e": "line1", "#7a57a9": "line2",
}  # fmt: skip
TEXT, GRID, *LINES = COLORS
SVG_WIDTH = 5.2  # inches, of 72 pixels; drawn to the width of its place


@dataclass(frozen=True)
class Panel:
    """Lines that share axes."""

    title: str
    lines: dict[str, Points]  # by label, which is empty for a single line
    x_label: str  # tokens or step
    is_main: bool = False  # shown without unfolding

    @property
    def is_flat(self) -> bool:
        """True for a curve that needs less height."""
        return self.title.startswith("learning rate")


def panels_of(section: SectionData) -> list[Panel]:
    """Training and validation loss (or the reward) and the learning rate, then all other curves."""
    curves = dict(section.curves)
    tokens = dict(curves.pop("tokens", ()))
    x_label = "tokens" if tokens else "step"
    if tokens:
        curves = {
            label: [(tokens[step], y) for step, y in points if step in tokens]
            for label, points in curves.items()
        }
    # A single evaluation, after the last step, is a point beside the line of training.
    needed = {label: 1 if label.startswith(VALIDATION) else 2 for label in curves}
    curves = {label: points for label, points in curves.items() if len(points) >= needed[label]}
    main: list[tuple[str, dict[str, Points]]] = []
    # The loss of reinforcement learning says nothing by itself; its reward does.
    if "reward" in curves:
        main.append(("reward", {"": curves.pop("reward")}))
    elif "loss" in curves:
        lines = {"training": curves.pop("loss")}
        for label in [label for label in curves if label.startswith(VALIDATION)]:
            lines[label.replace(VALIDATION, "validation")] = curves.pop(label)
        main.append(("loss, nats per token", lines if len(lines) > 1 else {"": lines["training"]}))
    if "learning rate" in curves:
        main.append(("learning rate, share of the peak", {"": curves.pop("learning rate")}))
    others = [(label, {"": points}) for label, points in curves.items() if len(points) > 1]
    return [Panel(t, lines, x_label, is_main=True) for t, lines in main] + [
        Panel(t, lines, x_label) for t, lines in others
    ]


def write_png(section: SectionData) -> Path | None:
    """All panels of a section as one PNG beside the report, or None if there is no curve."""
    panels = panels_of(section)
    if not panels:
        return None
    # Four panels: 2 x 2 rather than 3 + 1.
    columns = 2 if len(panels) == 4 else min(len(panels), PANELS_PER_ROW)
    rows = math.ceil(len(panels) / columns)
    figure = _figure(max(5.0, 3.8 * columns), 2.9 * rows, layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(panel.title, fontsize=10, loc="left")
        axes.set_xlabel(panel.x_label, fontsize=8, color=TEXT)
        _draw(axes, panel)
    path = paths.report_dir() / f"{section.name}.png"
    with paths.atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120, facecolor="white")
    return path


def as_svg(panel: Panel, name: str) -> str:
    """One panel as an <svg> element. name: different for every panel of a page."""
    height = 0.8 if panel.is_flat else 1.85
    figure = _figure(SVG_WIDTH, height)
    # Equal margins in inches, so that panels above each other share their x axis.
    figure.subplots_adjust(left=0.115, right=0.98, bottom=0.24 / height, top=1 - 0.08 / height)
    _draw(figure.add_subplot(), panel)
    buffer = io.StringIO()
    # Text as text in the font of the page; ids and content depend on the data alone.
    with _matplotlib().rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"(?s)<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :])
    svg = re.sub("|".join(COLORS), lambda match: f"var(--{COLORS[match[0]]})", svg)
    used = set(re.findall(r"#([\w.-]+)", svg))
    # Ids such as figure_1 would occur in every figure.
    svg = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"| xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", svg)
    return svg.replace("xlink:href", "href").strip()


def _matplotlib() -> Any:
    # Imported here: every command imports this package, and matplotlib takes half a second.
    paths.forget_plot_backend()  # with which the import may fail; drawing to a file needs none
    return importlib.import_module("matplotlib")


def _figure(width: float, height: float, **options: Any) -> Any:
    _matplotlib()
    from matplotlib.figure import Figure  # not pyplot, which may want a display

    return Figure(figsize=(width, height), facecolor="none", **options)


def _draw(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for color, (label, points) in zip(LINES * len(panel.lines), panel.lines.items(), strict=False):
        steps, values = zip(*points, strict=True)
        if len(points) < SMOOTHED_POINTS or panel.is_flat:
            marker = None if panel.is_flat else "o"
            axes.plot(*_thinned(steps, values), color=color, label=label, marker=marker,
                      linewidth=1.5, markersize=3.5)  # fmt: skip
            continue
        means = _moving_average(values, len(values) // SMOOTHED_POINTS)
        axes.plot(*_thinned(steps, values), color=color, linewidth=0.8, alpha=0.35)
        axes.plot(*_thinned(steps, means), color=color, label=label, linewidth=1.6)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(labelsize=8, color=GRID, labelcolor=TEXT)
    axes.grid(color=GRID, alpha=0.22, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.patch.set_visible(False)
    if panel.is_flat:
        axes.set(ylim=(0, 1.1), yticks=(0, 0.5, 1))
    if len(panel.lines) > 1:
        # Away from the edge: in a narrow window text is larger.
        axes.legend(
            frameon=False, fontsize=8, labelcolor=TEXT, loc="best",
            bbox_to_anchor=(0, 0, 0.92, 1.03), handlelength=1.4, labelspacing=0.7,
        )  # fmt: skip


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[Sequence[float], ...]:
    """Every k-th point and the last one."""
    stride = math.ceil(len(steps) / MAX_POINTS)
    last = slice(-1, None) if (len(steps) - 1) % stride else slice(0, 0)
    return [*steps[::stride], *steps[last]], [*values[::stride], *values[last]]


def _moving_average(values: Sequence[float], reach: int) -> list[float]:
    means = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)  # equally many on both sides: keeps slopes
        means.append(sum(values[i - near : i + near + 1]) / (2 * near + 1))
    return means
