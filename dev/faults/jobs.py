"""Lost ranks under torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from dev.faults.outcome import Outcome
from dev.faults.trial import NUM_STEPS, TRAIN, Trial, distance
from tests import processes


def lost_ranks(base: Path, count: int, number: signal.Signals, bar_seconds: float) -> Outcome:
    """Kill or stop one rank of two and measure how long the job lasts."""
    what = {signal.SIGKILL: "killed", signal.SIGSTOP: "stopped"}[number]
    outcome = Outcome(
        f"a rank that is {what}, under torchrun", f"the job lasts {bar_seconds:.0f} s"
    )
    seconds = []
    for trial_number in range(count):
        job, ranks = _launch(base, f"{what}-{trial_number}", "--num_iterations=100000")
        began = time.monotonic()
        os.kill(ranks[-1], number)
        job.wait()
        seconds.append(time.monotonic() - began)
        outcome.tried += 1
        outcome.expect(seconds[-1] < bar_seconds, f"{seconds[-1]:.0f} s")
        outcome.expect(job.returncode != 0, "exit code 0")
        left = [rank for rank in ranks if Path(f"/proc/{rank}").exists()]
        outcome.expect(not left, f"processes {left} still exist")
    outcome.facts["slowest, s"] = round(max(seconds), 1)
    return outcome


def restarted_job(base: Path, reference: Trial, count: int) -> Outcome:
    """Kill a rank; torchrun restarts the job."""
    outcome = Outcome(
        "a rank that is killed, torchrun --max-restarts=1",
        "the job ends otherwise than an uninterrupted one",
    )
    for number in range(count):
        trial = Trial(base, f"restarted-{number}")
        options = f"--num_iterations={NUM_STEPS}"
        job, ranks = _launch(base, trial.tag, options, restarts=1)
        os.kill(ranks[-1], signal.SIGKILL)
        job.wait()
        outcome.tried += 1
        outcome.expect(job.returncode == 0, f"exit code {job.returncode}")
        outcome.expect(distance(trial, reference) == 0.0, "other weights")
    return outcome


def _launch(base: Path, tag: str, options: str, restarts: int = 0) -> tuple[Any, list[int]]:
    """A torchrun job that has begun to train, and the process ids of its ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    module, *line = f"{TRAIN}{tag} {options}".split()
    job = subprocess.Popen(
        [*launcher, f"--max-restarts={restarts}", "-m", module, "--", *line],
        cwd=processes.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "NANOCHAT_BASE_DIR": str(base)},
    )  # fmt: skip
    metrics = base / "base_checkpoints" / tag / "metrics.jsonl"
    while job.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") > 5):
        time.sleep(0.001)
    return job, [child.pid for child in psutil.Process(job.pid).children()]
