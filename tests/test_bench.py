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
def test_the_engine_benchmark_prints_its_targets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    small = "--depth 1 --sequence-len 128 --batches 1 2 --repeats 1 --threads 1 --targets"
    engine.main([*small.split(), "--out", str(out)])
    found = json.loads(out.read_text())["milliseconds"]
    assert len(found) == 4 and all(row["measured"] > 0 for row in found)
    assert all(row["target"] is None for row in found)  # which are for a GPU at depth 20
    assert "first tokens of 2 prompts of 32 tokens" in capsys.readouterr().out
