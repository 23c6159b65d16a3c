import json
import subprocess
import sys
from pathlib import Path

import pytest

from dev.bench import engine

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_training_benchmark_measures_every_part(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    small = "--depths 1 --rows 2 --device_batch_size 1 --sequence_len 64 --vocab_size 512 --steps 3"
    subprocess.run(
        [sys.executable, "-m", "dev.bench.train", *small.split(), "--out", str(out)],
        cwd=ROOT, check=True, capture_output=True, timeout=200,
    )  # fmt: skip
    (found,) = json.loads(out.read_text())["figures"]
    for part in ("data", "forward", "backward", "optimizer", "step"):
        assert found[f"{part}, s"] > 0, part
    assert found["share of peak"] > 0 and found["tok/s"] > 0


@pytest.mark.slow
def test_the_engine_benchmark_measures_what_there_are_targets_for(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    small = "--depth 1 --sequence-len 128 --batches 1 2 --repeats 1 --threads 1 --targets"
    engine.main([*small.split(), "--out", str(out)])
    found = json.loads(out.read_text())
    assert [row["rows"] for row in found["by_batch"]] == [1, 2]
    for row in found["by_batch"]:
        assert row["milliseconds_per_step"] > 0 and row["first_token_milliseconds"] > 0
    assert found["during_long_prefill"]["longest"]["with"] > 0 and "one_request" not in found
