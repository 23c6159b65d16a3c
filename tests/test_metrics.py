import io
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from nanochat import metrics
from nanochat.errors import UserError
from nanochat.metrics import ProgressLine, RunLog, clock, peak_flops
from nanochat.training import autotune
from nanochat.training.autotune import measure_matmul_peak


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H800 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM2e", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H20", None),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GH200 144G HBM3e", 989e12),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10-24Q", None),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX 6000 Ada Generation", 364.2e12),
        ("Quadro RTX 6000", None),
        ("NVIDIA RTX A6000", 154.8e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4080 SUPER", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("Tesla V100-SXM2-16GB", None),
        ("A future GPU", None),
        ("CPU", None),
    ],
)
def test_a_peak_belongs_to_the_full_device_name_and_else_is_unknown(
    name: str, peak: float | None
) -> None:
    assert peak_flops(name, torch.bfloat16) == peak


def test_a_peak_in_bfloat16_is_not_given_for_float32() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", torch.float32) is None


@pytest.mark.parametrize("fastest", [1, 9])
def test_the_measured_peak_is_that_of_the_fastest_product_of_both_libraries(
    fastest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On AMD processors training multiplies faster than torch's own library."""
    intervals = [[10.0, 10.5] if i == fastest else [20.0, 29.0] for i in range(16)]
    ticks = (tick for interval in intervals for tick in interval)
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: next(ticks))
    assert measure_matmul_peak(torch.device("cpu"), torch.float32, size=64) == 2 * 64**3 / 0.5


def test_each_step_is_one_json_line_that_is_read_back(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", "base", {}, is_main=True)
    log.log(1, loss=2.5, tokens=10)
    log.log(2, loss=float("nan"), tokens=20)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == log.history()
    assert log.history() == [
        {"step": 1, "loss": 2.5, "tokens": 10},
        {"step": 2, "loss": None, "tokens": 20},
    ]


def test_a_full_disk_loses_lines_but_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = RunLog(tmp_path, "run", {}, True)
    log.log(1, loss=1.0)

    def torn(self: RunLog, line: str) -> None:
        with self.path.open("a") as file:
            file.write(line[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "_append", torn)
        log.log(2, loss=2.0)
    log.log(3, loss=3.0)
    assert [line["step"] for line in log.history()] == [1, 3]
    assert "step 2 are not written" in caplog.text


def test_only_the_main_rank_writes(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", "base", {}, is_main=False)
    log.log(1, loss=2.5)
    log.truncate_after(0)
    log.close()
    assert log.history() == []
    assert not (tmp_path / "run").exists()


def test_a_truncated_line_is_skipped_and_a_resumed_run_repeats_no_step(
    tmp_path: Path,
) -> None:
    log = RunLog(tmp_path, "base", {}, is_main=True)
    for step in (1, 2, 3):
        log.log(step, loss=float(step))
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in log.history()] == [1, 2, 3]
    again = RunLog(tmp_path, "base", {}, is_main=True)
    again.truncate_after(2)
    again.log(3, loss=9.0)
    assert [(line["step"], line["loss"]) for line in again.history()] == [(1, 1), (2, 2), (3, 9)]


def test_damaged_lines_are_skipped_by_a_resumed_run(tmp_path: Path) -> None:
    log = RunLog(tmp_path, "base", {}, is_main=True)
    log.log(1, loss=1.0)
    with log.path.open("ab") as file:
        file.write(b'{"step": 2, "lo\xf3s": 2.0}\n\x00\xff{"st\n[]\n5\n{}\n')
    log.truncate_after(3)
    assert [line["step"] for line in log.history()] == [1, 2]


class FakeTracker(types.ModuleType):
    """A fake of the package `wandb`."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []
        self.settings = types.SimpleNamespace(mode="online")
        self.has_key = True

    def setup(self) -> "FakeTracker":
        return self

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt and not verify  # no prompt, and it works while the network is off
        return self.has_key

    def init(self, **named: Any) -> "FakeTracker":
        self.calls.append(("init", named))
        return self

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.calls.append(("log", (step, numbers)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def test_a_tracker_without_a_key_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = FakeTracker()

    def refuse(**_: Any) -> None:
        raise RuntimeError(
            "api_key not configured (no-tty).\nCall wandb.login(key=[your_api_key])."
        )

    monkeypatch.setattr(tracker, "init", refuse)
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    monkeypatch.setenv("WANDB_RUN", "friday")
    with pytest.raises(UserError, match=r"WANDB_RUN=friday.*api_key.*wandb login.*unset") as caught:
        RunLog(tmp_path, "base", {}, is_main=True)
    assert "\n" not in str(caught.value)


def test_a_tracker_without_a_key_does_not_ask_for_one(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = FakeTracker()
    tracker.has_key = False
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    monkeypatch.setenv("WANDB_RUN", "friday")
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=r"no API key is configured.*wandb login.*offline"):
        RunLog(tmp_path, "base", {}, is_main=True)
    assert os.environ["WANDB_CACHE_DIR"] == str(base_dir / "wandb")
    tracker.settings.mode = "offline"  # needs none
    RunLog(tmp_path, "base", {}, is_main=True)
    assert [name for name, _ in tracker.calls] == ["init"]


def test_the_tracker_gets_the_same_metrics_if_a_run_is_named(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = FakeTracker()
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    monkeypatch.setenv("WANDB_RUN", "friday")
    log = RunLog(tmp_path, "base-d4", {"depth": 4}, is_main=True)
    log.log(7, loss=1.5)
    log.close()
    assert tracker.calls == [
        (
            "init",
            {
                "project": "nanochat",
                "name": "friday-base-d4",
                "config": {"depth": 4},
                "dir": str(base_dir),
            },
        ),
        ("log", (7, {"loss": 1.5})),
        ("finish", None),
    ]


@pytest.mark.parametrize("name", [None, "", "dummy"])
def test_no_tracker_is_touched_unless_a_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    tracker = FakeTracker()
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    if name is not None:
        monkeypatch.setenv("WANDB_RUN", name)
    log = RunLog(tmp_path, "base", {}, is_main=True)
    log.log(1, loss=1.0)
    log.close()
    assert tracker.calls == []


def test_a_missing_tracker_is_an_error_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes the import fail
    monkeypatch.setenv("WANDB_RUN", "friday")
    with pytest.raises(UserError, match=r"WANDB_RUN=friday.*--extra tracker"):
        RunLog(tmp_path, "base", {}, is_main=True)
    RunLog(tmp_path, "base", {}, is_main=False)  # other ranks use none


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def test_piped_progress_is_a_plain_line_every_few_seconds_and_at_the_end(
    fake_clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressLine(100, "Pretraining", is_main=True) as line:
        for step in range(1, 101):
            fake_clock.now = 30.0 + step  # 30 s before the first step, then one a second
            line.update(step, loss=f"{4 - step / 50:.2f}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Pretraining  1/100  loss 3.98")
    assert lines[1] == "Pretraining  11/100  loss 3.78  1 min 29 s left"
    assert lines[-1] == "Pretraining  100/100  loss 2.00  2 min 10 s total"
    assert len(lines) == 11
    assert "\x1b" not in "".join(lines)


def test_only_the_main_rank_shows_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(1, "x", is_main=False) as line:
        line.update(1)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_progress_is_one_live_line_with_a_bar(fake_clock: Clock) -> None:
    screen = io.StringIO()
    line = ProgressLine(4, "Midtraining", is_main=True)
    line.console = Console(file=screen, force_terminal=True, width=100)
    with line:
        for step in (1, 2):
            fake_clock.now = float(step)
            line.update(step, **{"loss": "1.50", "tok/s": "5,000"})
    shown = screen.getvalue()
    assert "━" in shown
    for words in ("Midtraining", "2/4", "1.50", "5,000", "2 s left"):
        assert words in shown


def test_times_are_formatted_in_suitable_units() -> None:
    assert [clock(s) for s in (0, 59.4, 59.6, 200, 3599.7, 7500)] == [
        "0 s", "59 s", "1 min 00 s", "3 min 20 s", "1 h 00 min", "2 h 05 min",
    ]  # fmt: skip
