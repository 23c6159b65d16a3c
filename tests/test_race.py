"""The race between settings: its arithmetic, and a whole one at tiny sizes."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dev.bench import race
from nanochat import dataset, paths
from nanochat.errors import UserError
from scripts import base_train
from tests.small_model import small_tokenizer

# Three steps with an evaluation after the second and the third one.
LINES = [
    {"step": 1, "train_seconds": 5.0, "step_cpu_seconds": 1.0},
    {"step": 2, "train_seconds": 6.0, "step_cpu_seconds": 2.0},
    {"step": 2, race.BITS: 3.0},
    {"step": 3, "train_seconds": 9.0, "step_cpu_seconds": 4.0},
    {"step": 3, race.BITS: 2.0},
]


def test_a_curve_is_over_the_seconds_of_steps_by_either_clock() -> None:
    assert race.step_seconds(LINES, "wall") == [5.0, 1.0, 3.0]
    assert race.common_curves([LINES], "wall") == [[(6.0, 3.0), (9.0, 2.0)]]
    assert race.common_curves([LINES], "cpu") == [[(3.0, 3.0), (7.0, 2.0)]]


def test_an_evaluation_that_one_seed_lacks_is_left_out() -> None:
    stopped = [line for line in LINES if line != {"step": 2, race.BITS: 3.0}]
    assert race.common_curves([LINES, stopped], "cpu") == [[(7.0, 2.0)]] * 2


def test_a_step_is_timed_by_the_share_of_each_phase_without_warm_up_and_slow_ones() -> None:
    sampled, full = [9.0] * race.WARMUP_STEPS + [1.0] * 14, [2.0] * 3
    sampled[8] = 50.0
    assert race.mean_step([*sampled, *full]) == pytest.approx((17 * 1.0 + 3 * 2.0) / 20)


def test_the_summary_compares_with_the_first_setting() -> None:
    curves = {
        "old": [[(5.0, 3.0), (10.0, 2.0)], [(5.0, 3.0), (10.0, 2.2)]],
        "new": [[(5.0, 2.6), (10.0, 1.5)], [(5.0, 2.6), (10.0, 1.7)]],
        "worse": [[(5.0, 4.0), (10.0, 3.0)]],
    }
    rows = {row["setting"]: row for row in race.summary(curves)}
    assert rows["old"]["difference"] == 0.0 and rows["old"]["share of the time"] == 1.0
    assert rows["old"]["deviation over seeds"] == pytest.approx(0.1414, abs=1e-4)
    assert rows["new"]["difference"] == -0.5
    # From 2.6 at 5 s to 1.6 at 10 s: 2.1, the first one's mean, is reached in the middle.
    assert rows["new"]["share of the time"] == 0.75
    assert rows["worse"]["share of the time"] is None
    assert "| worse | 10.0 | 3.0 | - | 0.9 | - |" in race.table(list(rows.values()))


@pytest.mark.parametrize("text", ["--depth=1", ": --depth=1"])
def test_a_setting_needs_a_name(text: str) -> None:
    with pytest.raises(UserError, match="NAME: --option=value"):
        race.parse_setting(text)


def test_a_race_trains_each_setting_and_seed_once_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tokenizer().save(paths.tokenizer_dir())
    dataset.make("primer", 1)
    trained: list[Sequence[str]] = []

    def train(arguments: Sequence[str]) -> None:  # in this process, which has imported torch
        trained.append(arguments)
        base_train.main([*arguments, "--device_type=cpu"])

    monkeypatch.setattr(race, "train", train)
    monkeypatch.setattr(race, "CALIBRATION_STEPS", 4)
    monkeypatch.setattr(race, "mean_step", lambda _: 0.25)  # the race has four steps
    out = tmp_path / "found.json"
    command = [
        "--setting=low: --matrix_lr=0.001", "--setting=high: --matrix_lr=0.02", "--seeds=1",
        "--common=--depth=2 --head_dim=32 --max_seq_len=32 --total_batch_size=64",
        "--seconds=1", "--clock=cpu", "--points=2", "--eval_tokens=1", f"--out={out}",
    ]  # fmt: skip
    race.main(command)
    assert len(trained) == 5  # two short ones, two settings, the first one again
    found = json.loads(out.read_text())
    assert {name: [len(one) for one in of] for name, of in found["curves"].items()} == {
        "low": [2], "high": [2], "low again": [2],
    }  # fmt: skip
    assert found["summary"][2]["difference"] != 0.0  # another seed
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    logs = sorted(paths.checkpoints_dir("base").glob("*/metrics.jsonl"))
    before = [log.stat().st_mtime_ns for log in logs]
    race.main(command)
    assert [log.stat().st_mtime_ns for log in logs] == before
    assert json.loads(out.read_text()) == found
