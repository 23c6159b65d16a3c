"""Loss curves fitted to runs: a curve that is known is found again."""

import json
import os
import subprocess
from itertools import product
from pathlib import Path

import pytest

from dev.bench import miniseries
from dev.bench.miniseries import Fit, Point
from nanochat import checkpoint_manager, paths
from nanochat.errors import UserError
from tests import small_model

KNOWN = Fit(E=0.5, A=30.0, alpha=0.3, B=60.0, beta=0.35, deviation=0.0)


def points(depths: int, horizons: int) -> list[Point]:
    """Runs whose loss is that of the known curve."""
    return [
        Point("", depth, size, 2 * size, size * ratio, 6.0 * size * size * ratio,
              KNOWN.bits(size, size * ratio))
        for (depth, size), ratio in product(
            enumerate([10**6, 4 * 10**6, 2 * 10**7][:depths]), [4, 12, 40][:horizons]
        )
    ]  # fmt: skip


def test_a_known_curve_and_its_best_size_are_found_again() -> None:
    found = miniseries.fit(points(3, 3))
    assert (found.alpha, found.beta) == pytest.approx((KNOWN.alpha, KNOWN.beta), abs=0.006)
    assert found.deviation < 1e-4
    flops = 6e15
    # The loss for N and C / 6 N is lowest where its derivative is zero.
    exponent = KNOWN.alpha + KNOWN.beta
    ratio = (KNOWN.alpha * KNOWN.A / (KNOWN.beta * KNOWN.B)) ** (1 / exponent)
    best = ratio * (flops / 6) ** (KNOWN.beta / exponent)
    assert KNOWN.best(flops)[0] == pytest.approx(best, rel=0.01)
    assert found.best(flops)[0] == pytest.approx(best, rel=0.1)


@pytest.mark.parametrize("shape", [(2, 3), (3, 1)])
def test_too_few_runs_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="three depths or more, with 6 runs"):
        miniseries.fit(points(*shape))


def test_runs_are_read_and_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders as base_train leaves them, with the losses of the known curve."""
    tags = []
    for number, (layers, tokens) in enumerate(product([1, 2, 3], [1000, 4000])):
        model = small_model.save_small_run("base", n_layer=layers)
        folder, tag = paths.checkpoints_dir("base") / "small", f"run{number}"
        folder.rename(folder.with_name(tag))
        checkpoint_manager.update_meta(folder.with_name(tag), 1, tokens=tokens)
        counts = model.num_parameters()
        bits = KNOWN.bits(counts["matrices"] + counts["unembedding"], tokens)
        lines = [{"step": 1, "loss": 5.0}, {"step": 1, "bits per byte, text": bits}]
        log = folder.with_name(tag) / "metrics.jsonl"
        log.write_text("\n".join(map(json.dumps, lines)))
        tags.append(tag)
    out = tmp_path / "found.json"
    miniseries.main([*tags, f"--out={out}"])
    found = json.loads(out.read_text())
    assert found["fit"]["deviation"] < 0.01 and found["chosen"]["tokens per parameter"] > 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    sizes, chosen = [run["parameters"] for run in found["runs"]], found["chosen"]
    is_outside = not min(sizes) <= chosen["parameters"] <= max(sizes)
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and ("outside the sizes trained" in last) == is_outside
    assert chosen["is extrapolated"] == is_outside


@pytest.mark.parametrize(
    ("given", "option"),
    [({"HORIZONS": "4 12"}, "--tokens_per_parameter"), ({"FLOPS": "1e9 3e9"}, "--target_flops")],
)
def test_each_depth_is_trained_with_each_horizon_and_then_fitted(
    tmp_path: Path, given: dict[str, str], option: str
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    script = Path(miniseries.__file__).parents[1] / "miniseries.sh"
    output = subprocess.run(
        ["bash", str(script), "--head_dim=64"], check=True, capture_output=True, text=True,
        env={**os.environ, **given, "PYTHON": str(python), "DEPTHS": "1 2", "OUT": "x.json"},
    ).stdout  # fmt: skip
    *runs, fit = (line.split() for line in output.splitlines())
    horizons = next(iter(given.values())).split()
    expected = [(f"--depth={d}", f"{option}={h}") for d, h in product([1, 2], horizons)]
    assert [(run[2], run[3]) for run in runs] == expected
    assert all(
        run[:2] == ["-m", "scripts.base_train"] and run[-1] == "--head_dim=64" for run in runs
    )
    tags = [run[4].removeprefix("--model_tag=") for run in runs]
    assert fit == ["-m", "dev.bench.miniseries", *tags, "--out", "x.json"] and len({*tags}) == 4
