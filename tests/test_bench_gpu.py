"""dev/bench/gpu.sh from end to end, at sizes that prove nothing but that it works."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.long
def test_the_gpu_benchmark_runs_on_a_cpu_at_tiny_sizes(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        ["bash", "dev/bench/gpu.sh", "--tiny", "--out", str(out)], cwd=ROOT, timeout=600,
        env={**os.environ, "PYTHON": sys.executable}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())
    assert results["depth 12"]["tok/s"] > 0 and results["finetuning"]["tok/s"] > 0
    assert results["engine"]["by_batch"][0]["tok/s"] > 0
    assert {"sft, tok/s", "rl, tok/s"} <= results["pipeline"].keys()
    assert "at most 0.6" in done.stdout
