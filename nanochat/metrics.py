"""Numbers of a run: a live line, metrics.jsonl, the tracker; and what a device could do."""

import json
import logging
import math
import re
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text

from nanochat import paths
from nanochat.errors import UserError
from nanochat.runtime import wandb_run_name

logger = logging.getLogger(__name__)

# Dense bfloat16 FLOP/s with float32 sums, without sparsity, by the makers' data sheets. The first
# name that is a whole word of the device's name counts. V100 and T4 have no bfloat16: measured.
PEAK_BFLOAT16 = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10": 125e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364.2e12,
    "RTX A6000": 154.8e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 4080": 97.5e12,
    "RTX 3090": 71e12,
}
PLAIN_LINE_SECONDS = 10.0
LINES_PER_SECOND = 4.0
BAR_WIDTH = 20


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s that the maker of a known GPU claims for dense matrices; None when not known."""
    if dtype != torch.bfloat16:
        return None
    for name, peak in PEAK_BFLOAT16.items():
        if re.search(rf"\b{name}\b", device_name, re.IGNORECASE):
            return peak
    return None


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 0) -> float:
    """FLOP/s of the best of a few square products on this device, in under a second."""
    size = size or (1024 if device.type == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(8):
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


class RunLog:
    """Appends numbers of each step to metrics.jsonl, and to the tracker when it names a run."""

    def __init__(self, directory: Path, name: str, settings: dict[str, Any], is_main: bool) -> None:
        """Raises UserError when a tracker is asked for (WANDB_RUN) and not installed."""
        self.path = directory / "metrics.jsonl"
        self.is_main = is_main
        self.is_torn = False  # the last line may be half a line
        self.tracker = _start_tracker(name, settings) if is_main else None

    def log(self, step: int, **numbers: float) -> None:
        """One line {"step": step, ...}; numbers that are not finite become null."""
        if not self.is_main:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        try:
            self._append(json.dumps({"step": step, **finite}) + "\n")
        except OSError as error:  # a full disk costs lines and not the run
            self.is_torn = True
            logger.error("%s: the numbers of step %d are not written: %s", self.path, step, error)
        if self.tracker is not None:
            self.tracker.log(numbers, step=step)

    def _append(self, line: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self.is_torn + line)
        self.is_torn = False

    def history(self) -> list[dict[str, Any]]:
        """All lines so far; one that a crash has cut or a disk has damaged is left out."""
        if not self.path.is_file():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
        return lines

    def truncate_after(self, step: int) -> None:
        """Drop lines of later steps, which a continued run is going to write again."""
        if not self.is_main or not self.path.is_file():
            return
        kept = [line for line in self.history() if line["step"] <= step]
        paths.write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def close(self) -> None:
        """Tell the tracker that the run has ended."""
        if self.tracker is not None:
            self.tracker.finish()


def _start_tracker(name: str, settings: dict[str, Any]) -> Any:
    run_name = wandb_run_name()
    if run_name is None:
        return None
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"WANDB_RUN={run_name} asks for a tracker that is not installed; install the extra"
            " with uv sync --extra tracker, or unset WANDB_RUN"
        ) from None
    return wandb.init(project="nanochat", name=f"{run_name}-{name}", config=settings)


class ProgressLine:
    """Where long work stands: a live line on a terminal, now and then a plain line elsewhere."""

    def __init__(self, total: int, label: str, is_main: bool) -> None:
        self.total, self.label, self.is_main = total, label, is_main
        self.console = Console(file=sys.stderr)
        self.began = self.printed = time.monotonic()
        self.first: tuple[int, float] | None = None
        self.live: Live | None = None

    def __enter__(self) -> "ProgressLine":
        if self.is_main and self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=LINES_PER_SECOND)
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, done: int, **shown: str) -> None:
        """Show that `done` of the total is done, with a few facts by name."""
        if not self.is_main:
            return
        now = time.monotonic()
        if self.live is not None:
            self.live.update(self._live_line(done, shown, self._time(done, now)))
        elif done >= self.total or now - self.printed >= PLAIN_LINE_SECONDS:
            self.printed = now
            facts = "  ".join(f"{name} {value}" for name, value in shown.items())
            words = [f"{self.label}  {done:,}/{self.total:,}", facts, self._time(done, now)]
            print("  ".join(word for word in words if word), file=sys.stderr, flush=True)
        if self.first is None:
            self.first = done, now

    def _time(self, done: int, now: float) -> str:
        """Time left, or time taken at the end. The first step, which compiles, is not counted."""
        if done >= self.total:
            return f"{clock(now - self.began)} in all"
        if self.first is None or done <= self.first[0]:
            return ""
        first, since = self.first
        return f"{clock((now - since) / (done - first) * (self.total - done))} left"

    def _live_line(self, done: int, shown: dict[str, str], time_words: str) -> Text:
        filled = min(BAR_WIDTH, BAR_WIDTH * done // max(1, self.total))
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(self.label, style="bold")
        line.append("  " + "━" * filled, style="green")
        line.append("━" * (BAR_WIDTH - filled), style="grey35")
        line.append(f"  {done:,}/{self.total:,}")
        for name, value in shown.items():
            line.append(f"  {name} ", style="dim").append(value)
        return line.append(f"  {time_words}", style="cyan")


def clock(seconds: float) -> str:
    """Seconds as 5 s, 3 min 20 s or 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
