"""The faults of `python -m dev.faults` with small counts."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dev.faults import files, jobs, runs, trial
from dev.faults.outcome import Outcome
from dev.faults.trial import Trial

SEED = 1


def assert_harmless(outcome: Outcome, at_least: int) -> None:
    assert outcome.harms == [] and outcome.tried >= at_least


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_damaged_checkpoint_is_never_loaded(tmp_path: Path, how: str) -> None:
    assert_harmless(files.damaged_checkpoints(tmp_path, 12, SEED, how), 12)


def test_a_damaged_shard_is_never_read(tmp_path: Path) -> None:
    assert_harmless(files.damaged_shards(tmp_path, 12, SEED), 12)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_hostile_file_is_executed(tmp_path: Path) -> None:
    assert_harmless(files.hostile_files(tmp_path), 100)


def test_the_hostile_files_do_execute_where_they_are_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    corpus = files.hostile_pickles(canary)
    assert len(corpus) == 42
    for name in ("system, pickle 0", "exec, pickle 2", "copy, pickle 4"):
        (tmp_path / "file").write_bytes(corpus[name])
        subprocess.run([sys.executable, "-m", "pickle", tmp_path / "file"], capture_output=True)
        assert canary.exists(), name
        canary.unlink()


def test_a_kill_during_a_save_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    assert_harmless(runs.killed_saves(tmp_path / "saves", 6, SEED), 6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    trial.make_data(folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(base: Path) -> dict[int, Trial]:
    return {ranks: trial.uninterrupted(base, ranks) for ranks in (1, 2)}


@pytest.mark.parametrize(("ranks", "tolerance"), [([1], 0.0), ([2], 0.0), ([1, 2], 1e-5)])
def test_a_killed_run_ends_like_an_uninterrupted_one_and_trains_once_on_each_document(
    base: Path, uninterrupted: dict[int, Trial], ranks: list[int], tolerance: float
) -> None:
    outcome, trials = runs.killed_runs(base, uninterrupted[ranks[0]], ranks, 2, SEED, tolerance)
    assert_harmless(outcome, 2)
    assert_harmless(runs.documents_seen(base, [*uninterrupted.values(), *trials]), 600)


def test_a_signaled_run_is_saved_and_ends_like_an_uninterrupted_one(
    base: Path, uninterrupted: dict[int, Trial]
) -> None:
    assert_harmless(runs.signals(base, uninterrupted[1], 3, SEED), 3)


def test_a_non_finite_loss_or_gradient_stops_the_run_or_is_skipped(base: Path) -> None:
    assert_harmless(runs.poisoned_runs(base, 2, SEED), 2)


def test_a_full_disk_does_not_end_the_run(base: Path, uninterrupted: dict[int, Trial]) -> None:
    outcome = runs.full_disk(base, uninterrupted[1], 1, SEED)
    if "not tried" in outcome.facts:
        pytest.skip("needs the right to mount a file system")
    assert_harmless(outcome, 1)
    assert outcome.facts["failed saves"] > 0


@pytest.mark.slow
def test_a_killed_rank_ends_the_job(base: Path) -> None:
    outcome = jobs.lost_ranks(
        base, 1, signal.SIGKILL, bar_seconds=60
    )  # dev.faults itself allows 10 s
    assert_harmless(outcome, 1)


@pytest.mark.slow
def test_a_job_restarted_by_torchrun_ends_like_an_uninterrupted_one(
    base: Path, uninterrupted: dict[int, Trial]
) -> None:
    assert_harmless(jobs.restarted_job(base, uninterrupted[2], 1), 1)
