"""Metrics of a run: progress line, metrics.jsonl, tracker; and the peak FLOP/s of a device."""

import json
import logging
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress

from nanochat import paths
from nanochat.errors import UserError, one_line
from nanochat.runtime import wandb_run_name

logger = logging.getLogger(__name__)

# Dense bfloat16 FLOP/s with float32 accumulation, without sparsity, from the data sheets. A name
# must match in full: NVL, PCIe, Ti, SUPER, D, Laptop and MIG slices are other or smaller chips.
# V100 and T4 have no bfloat16 and are measured, like everything that is not listed.
PEAK_BFLOAT16 = {
    "GB200": 2.5e15, "B200": 2.25e15,
    "GH200": 989e12, "H200": 989e12, "H100": 989e12, "H800": 989e12,
    "H200 NVL": 835e12, "H100 NVL": 835e12, "H100 PCIE": 756e12, "H800 PCIE": 756e12,
    "A100": 312e12, "A100 PCIE": 312e12, "A800": 312e12, "A800 PCIE": 312e12,
    "A40": 149.7e12, "A30": 165e12, "A10": 125e12, "A10G": 70e12,
    "L40S": 362e12, "L40": 181e12, "L4": 121e12,
    "RTX 6000 ADA GENERATION": 364.2e12, "RTX A6000": 154.8e12,
    "RTX 5090": 209.5e12, "RTX 4090": 165.2e12, "RTX 4080": 97.5e12, "RTX 3090": 71e12,
}  # fmt: skip
# Parts of a device name that do not change the peak. HBM2e does: H100s with it are PCIe cards.
IGNORED_WORDS = re.compile(r"NVIDIA|TESLA|GEFORCE|SXM\d?|\d+GB?|HBM3E?")
PLAIN_LINE_SECONDS = 10.0  # between lines of a log file
LIVE_LINES_PER_SECOND = 4.0
BAR_WIDTH = 20


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Data sheet FLOP/s of a known GPU for dense matrices, else None."""
    if dtype != torch.bfloat16:
        return None
    words = re.split(r"[\s-]+", device_name.upper())
    return PEAK_BFLOAT16.get(" ".join(w for w in words if not IGNORED_WORDS.fullmatch(w)))


class RunLog:
    """Appends the metrics of each step to metrics.jsonl, and to the tracker if WANDB_RUN is set."""

    def __init__(self, directory: Path, name: str, settings: dict[str, Any], is_main: bool) -> None:
        """Raises UserError when WANDB_RUN is set and the tracker is not installed."""
        self.path = directory / "metrics.jsonl"
        self.is_main = is_main
        self.is_torn = False  # the last line may be incomplete
        self.tracker = _start_tracker(name, settings) if is_main else None

    def log(self, step: int, **numbers: float) -> None:
        """Write one line {"step": step, ...}; numbers that are not finite become null."""
        if not self.is_main:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}  # NaN is no JSON
        try:
            self._append(json.dumps({"step": step, **finite}) + "\n")
        except OSError as error:  # a full disk must not end the run
            self.is_torn = True
            logger.error("%s: the metrics of step %d are not written: %s", self.path, step, error)
        if self.tracker is not None:
            self.tracker.log(numbers, step=step)

    def _append(self, line: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self.is_torn + line)  # ends the torn line, so that only it is lost
        self.is_torn = False

    def history(self) -> list[dict[str, Any]]:
        """All lines so far; lines that a crash truncated or a disk damaged are skipped."""
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
        """Drop the lines of later steps, which a resumed run writes again."""
        if not self.is_main or not self.path.is_file():
            return
        kept = [line for line in self.history() if line["step"] <= step]
        paths.write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def close(self) -> None:
        """Finish the run in the tracker."""
        if self.tracker is not None:
            self.tracker.finish()


def check_tracker() -> Any:
    """The tracker's package, or None for no tracking.

    Raises UserError when WANDB_RUN is set and the tracker is not installed, or would ask for a key.
    """
    run_name = wandb_run_name()
    if run_name is None:
        return None
    paths.tracker_dir()  # before the import, which reads its variables
    try:
        import wandb

        is_online = wandb.setup().settings.mode == "online"
        if is_online and not wandb.login(prompt=False, verify=False):
            raise ValueError("no API key is configured")
    except ImportError:
        raise UserError(
            f"WANDB_RUN={run_name} needs a tracker that is not installed; install it with"
            " uv sync --extra tracker, or unset WANDB_RUN"
        ) from None
    except Exception as error:  # of the tracker, whose types differ by its version
        raise _failed_start(error) from None
    return wandb


def _start_tracker(name: str, settings: dict[str, Any]) -> Any:
    wandb = check_tracker()
    if wandb is None:
        return None
    try:
        return wandb.init(
            project="nanochat", name=f"{wandb_run_name()}-{name}", config=settings,
            dir=str(paths.base_dir()),  # not the current folder, which may be a checkout
        )  # fmt: skip
    except Exception as error:
        raise _failed_start(error) from None


def _failed_start(error: Exception) -> UserError:
    return UserError(
        f"WANDB_RUN={wandb_run_name()}: the tracker cannot start ({one_line(error)[:200]}); log in"
        " with wandb login or WANDB_API_KEY, set WANDB_MODE=offline, or unset WANDB_RUN"
    )


class ProgressLine:
    """Progress of long work: one live line on a terminal, else a plain line every few seconds."""

    def __init__(self, total: int, label: str, is_main: bool) -> None:
        self.total, self.label, self.is_main = total, label, is_main
        self.console = Console(file=sys.stderr)
        self.started = self.printed = time.monotonic()
        self.first: tuple[int, float] | None = None
        self.live: Progress | None = None

    def __enter__(self) -> "ProgressLine":
        if self.is_main and self.console.is_terminal:
            self.live = Progress(
                "[bold]{task.description}", BarColumn(BAR_WIDTH),
                "{task.completed:,}/{task.total:,}  {task.fields[values]}",
                "[cyan]{task.fields[time]}",
                console=self.console, refresh_per_second=LIVE_LINES_PER_SECOND,
            )  # fmt: skip
            self.live.add_task(self.label, total=self.total, values="", time="")
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, done: int, **shown: str) -> None:
        """Show that `done` of the total is done, with some values by name."""
        if not self.is_main:
            return
        now = time.monotonic()
        values = "  ".join(f"{name} {value}" for name, value in shown.items())
        if self.live is not None:
            task = self.live.task_ids[0]
            self.live.update(task, completed=done, values=values, time=self._time(done, now))
        elif done >= self.total or now - self.printed >= PLAIN_LINE_SECONDS:
            self.printed = now
            parts = [f"{self.label}  {done:,}/{self.total:,}", values, self._time(done, now)]
            print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)
        if self.first is None:
            self.first = done, now

    def _time(self, done: int, now: float) -> str:
        if done >= self.total:
            return f"{clock(now - self.started)} total"
        # The rate leaves out the first step, which compiles and fills caches.
        if self.first is None or done <= self.first[0]:
            return ""
        first, since = self.first
        return f"{clock((now - since) / (done - first) * (self.total - done))} left"


def clock(seconds: float) -> str:
    """Seconds as 5 s, 3 min 20 s or 2 h 05 min."""
    whole = round(seconds)  # once: 59.6 s is 1 min 00 s
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
