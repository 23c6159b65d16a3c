"""dev/bench/gpu.sh from end to end, at sizes that prove nothing but that it works."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dev.bench import gpu

ROOT = Path(__file__).parents[1]
SECONDS = 1800  # a limit for a machine that does other work, too


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(SECONDS)
def test_the_gpu_benchmark_runs_on_a_cpu_at_tiny_sizes(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        ["bash", "dev/bench/gpu.sh", "--tiny", "--out", str(out)], cwd=ROOT, timeout=SECONDS,
        env={**os.environ, "PYTHON": sys.executable}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())
    assert results["depth 12"]["tok/s"] > 0 and results["finetuning"]["tok/s"] > 0
    assert results["depth 20, 32 rows"]["estimated memory, MB"] > 0
    assert results["engine"]["by_batch"][0]["tok/s"] > 0
    assert {"sft, tok/s", "rl, tok/s"} <= results["pipeline"].keys()
    for name in ("depth 12", "depth 20", "depth 24", "engine"):
        assert f"{name}, value embeddings" in results
    assert "at most 0.6" in done.stdout
    rows = [line for line in done.stdout.splitlines() if "value embeddings / without" in line]
    assert len(rows) == 6 and sum("not measured" in row for row in rows) == 2  # only 1 row here


def test_a_step_that_fails_leaves_its_figures_and_those_of_the_others(tmp_path: Path) -> None:
    out, written = tmp_path / "gpu.json", []

    def breaks_off(found: gpu.Found) -> None:
        written.append(json.loads(out.read_text()))
        found["base, s"] = 3.0
        raise KeyError("tok/s")

    steps = {"first": lambda _: {"a": 1}, "second": breaks_off, "third": lambda _: {"b": 2}}
    results = gpu.run_all(steps, out)
    assert results == json.loads(out.read_text()) and results["third"]["b"] == 2
    assert results["second"]["base, s"] == 3.0 and "KeyError" in results["second"]["failed"]
    assert [list(one) for one in written] == [["first"]]  # nothing is lost if the next one crashes
    rows = gpu.table(results)
    assert len(rows) > 10 and all(value is None for _, value, _ in rows)


def test_a_command_is_killed_with_the_processes_that_it_has_started() -> None:
    # They keep its output open: who waits for the end of it waits for them.
    sleeper = "import time; time.sleep(1000)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}])"
    with pytest.raises(RuntimeError, match="killed after 1 s"):
        gpu.Commands(math.inf, limit=1.0).run("-c", parent)
    with pytest.raises(RuntimeError, match="exit code 3: found"):
        gpu.Commands(math.inf).run("-c", "import sys; print('found'); sys.exit(3)")
    with pytest.raises(RuntimeError, match="no time is left"):
        gpu.Commands(0.0).run("-c", "")
