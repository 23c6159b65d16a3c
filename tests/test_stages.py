"""Pretraining a tiny model end to end: killed, stopped, repeated, on one rank and on two."""

import json
import os
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import checkpoint_manager, paths
from nanochat.checkpoint_manager import saved_steps
from tests import processes

TINY = "--eval_tokens=2048 --eval_every=0 --save_every=4 --compile=off"
BASE = (
    "scripts.base_train --depth=1 --max_seq_len=256 --total_batch_size=1024 --num_iterations=12"
    f" {TINY}"
)


def metrics(base: Path, stage: str, tag: str) -> list[dict[str, Any]]:
    lines = (base / f"{stage}_checkpoints" / tag / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def losses(base: Path, stage: str, tag: str) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in metrics(base, stage, tag)}


def weights(base: Path, stage: str, tag: str) -> dict[str, torch.Tensor]:
    newest = max((base / f"{stage}_checkpoints" / tag).glob("model_*.pt"))
    state: dict[str, torch.Tensor] = torch.load(newest, weights_only=True)
    return state


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory with an uninterrupted run of one rank, tag "straight"."""
    folder = tmp_path_factory.mktemp("base")
    processes.make_world(folder)
    processes.run(folder, f"{BASE} --model_tag=straight")
    return folder


def test_two_ranks_have_the_loss_curve_of_one(trained: Path) -> None:
    processes.run(trained, f"{BASE} --model_tag=two", ranks=2)
    one, two = (metrics(trained, "base", tag) for tag in ("straight", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two] == list(range(1, 13))
    for ours, theirs in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)


def test_the_micro_batch_size_does_not_change_the_weights(trained: Path) -> None:
    processes.run(trained, f"{BASE} --model_tag=micro --device_batch_size=3")
    one, micro = weights(trained, "base", "straight"), weights(trained, "base", "micro")
    # Both optimizers amplify the rounding of float32 a thousand times; test_ranks.py is stricter.
    assert all((one[name] - micro[name]).norm() < 1e-4 * one[name].norm() for name in one)


def test_a_killed_run_resumes_to_the_same_weights(trained: Path) -> None:
    line = f"{BASE} --model_tag=killed"
    assert processes.start(trained, line, before=processes.die_when_saved).wait() == [-9]
    output = processes.run(trained, line)
    assert "resuming from step" in output
    expected, resumed = weights(trained, "base", "straight"), weights(trained, "base", "killed")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert losses(trained, "base", "straight") == losses(trained, "base", "killed")


def test_a_stop_request_saves_and_says_how_to_resume(trained: Path) -> None:
    running = processes.start(trained, f"{BASE} --model_tag=stopped --num_iterations=100000")
    log = trained / "base_checkpoints" / "stopped" / "metrics.jsonl"
    while not log.is_file() and running.is_alive():
        time.sleep(0.005)
    running.send(signal.SIGTERM)
    assert running.wait() == [143]
    assert "run the same command again" in running.output()


@pytest.mark.parametrize("function", ["training.stage.evaluate", "checkpoint_manager.save"])
def test_a_stop_request_after_the_last_step_loses_nothing(trained: Path, function: str) -> None:
    tag = function.replace(".", "_")
    line = f"{BASE} --model_tag={tag} --save_every=0"
    stop = partial(processes.signal_within, function, signal.SIGTERM)
    assert processes.start(trained, line, before=stop).wait() == [143]
    assert saved_steps(trained / "base_checkpoints" / tag) == [12]
    assert "resuming from step 12" in processes.run(trained, line)
    expected, resumed = weights(trained, "base", "straight"), weights(trained, "base", tag)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_stop_request_in_an_evaluation_of_a_saved_step_exits_at_once(trained: Path) -> None:
    line = f"{BASE} --model_tag=stopped_in_evaluation --save_every=0 --eval_every=5"
    stop = partial(processes.signal_within, "training.stage.evaluate", signal.SIGTERM)
    running = processes.start(trained, line, before=stop)
    assert running.wait() == [143]
    assert saved_steps(trained / "base_checkpoints" / "stopped_in_evaluation") == [5]


def test_a_finished_run_is_reported_and_one_with_other_settings_refused(trained: Path) -> None:
    output = processes.run(trained, f"{BASE} --model_tag=straight")
    assert "is finished" in output
    output = processes.run(trained, f"{BASE} --model_tag=straight --matrix_lr=0.01", ok=False)
    assert "matrix_lr: saved -1.0, now 0.01" in output and "Traceback" not in output


def test_a_run_from_before_an_option_existed_had_its_default(trained: Path) -> None:
    folder = trained / "base_checkpoints" / "straight"
    newest = checkpoint_manager.newest_complete(folder)
    assert newest is not None
    older = {name: newest.meta["settings"][name] for name in newest.meta["settings"]}
    del older["window_pattern"]
    checkpoint_manager.update_meta(folder, newest.step, settings=older)
    line = f"{BASE} --model_tag=straight"
    output = processes.run(trained, f"{line} --window_pattern=S", ok=False)
    assert "window_pattern: saved L, now S" in output
    assert "is finished" in processes.run(trained, line)


def test_a_finished_run_whose_end_is_damaged_is_refused_elsewhere_and_trains_on(
    trained: Path,
) -> None:
    line = f"{BASE} --model_tag=damaged --keep_checkpoints=3"
    processes.run(trained, line)
    path = trained / "base_checkpoints" / "damaged" / "model_000012.pt"
    intact = path.read_bytes()
    path.write_bytes(intact[:-1])
    for command in ("scripts.base_loss", "scripts.mid_train"):
        output = processes.run(trained, f"{command} --model_tag=damaged", ok=False)
        assert "no complete checkpoint of step 12" in output and "Traceback" not in output
        assert "train that stage again: it resumes from the newest complete one" in output
    output = processes.run(trained, line)
    assert "model_000012.pt has" in output and "resuming from step 8" in output
    assert path.read_bytes() == intact
    assert "is finished" in processes.run(trained, line)


def test_a_run_without_any_good_checkpoint_is_not_started_over_by_itself(trained: Path) -> None:
    line = f"{BASE} --model_tag=lost --keep_checkpoints=1"
    processes.run(trained, line)
    (trained / "base_checkpoints" / "lost" / "model_000012.pt").write_bytes(b"")
    output = processes.run(trained, line, ok=False)
    assert "no complete checkpoint in" in output and "with --fresh" in output
    assert "Traceback" not in output
    assert "moved the earlier run" in processes.run(trained, f"{line} --fresh")


def test_a_second_start_of_a_run_names_the_first_and_harms_nothing(trained: Path) -> None:
    line = f"{BASE} --model_tag=twice --num_iterations=100000 --save_every=10"
    first = processes.start(trained, line)
    folder = trained / "base_checkpoints" / "twice"
    while not (folder / "metrics.jsonl").exists():
        assert first.is_alive(), first.output()
    for options, ranks in (("", 2), ("--fresh", 1)):
        output = processes.run(trained, f"{line} {options}", ranks, ok=False)
        named = f"error: {folder} is in use by process {first.ranks[0].pid} on "
        assert named in output and "Traceback" not in output, output
    output = processes.run(trained, "scripts.mid_train --model_tag=twice", ok=False)
    assert "of twice is not finished" in output or "no checkpoint in" in output, output
    assert "Traceback" not in output
    first.send(signal.SIGTERM)
    assert first.wait() == [143], first.output()
    steps = [row["step"] for row in metrics(trained, "base", "twice")]
    assert steps == list(range(1, len(steps) + 1)) and saved_steps(folder)[0] == steps[-1]


def test_a_stage_is_refused_beside_another_start_of_it(trained: Path) -> None:
    folder = trained / "mid_checkpoints" / "straight"
    with paths.locked(folder):
        output = processes.run(trained, "scripts.mid_train --model_tag=straight", ok=False)
    assert f"error: {folder} is in use by process {os.getpid()} on " in output
    assert "Traceback" not in output and not folder.exists()


def test_a_run_that_was_killed_frees_its_lock(trained: Path) -> None:
    line = f"{BASE} --model_tag=lock"
    assert processes.start(trained, line, before=processes.die_when_saved).wait() == [-9]
    assert "process " in (trained / "base_checkpoints" / ".lock.lock").read_text()
    (trained / "base_checkpoints" / "lock" / ".optim_000008_rank0.pt.0123abcd.part").touch()
    processes.run(trained, line)
    assert list((trained / "base_checkpoints" / "lock").glob(".*.part")) == []


SWITCHES = (
    "--window_pattern=SL --value_embeddings=2 --key_offset_heads=1 --rotary_share=0.5"
    " --sampled_softmax_share=0.6"  # 7 of 12 steps
)


def test_a_model_with_all_switches_is_trained_killed_evaluated_and_prompted(trained: Path) -> None:
    line = f"{BASE} --depth=2 {SWITCHES}"
    output = processes.run(trained, f"{line} --model_tag=switches")
    assert "SL: 1 of 2 layers see 128 tokens" in output
    line = f"{line} --model_tag=killed_switches"
    assert processes.start(trained, line, before=processes.die_when_saved).wait() == [-9]
    assert "resuming from step" in processes.run(trained, line)
    expected, resumed = (weights(trained, "base", tag) for tag in ("switches", "killed_switches"))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    output = processes.run(trained, "scripts.base_loss --model_tag=switches --eval_tokens=2048")
    assert "bits per byte" in output
    question = "Where is the fox? " * 18  # longer than a window
    line = f"scripts.chat_cli -i base --model_tag=switches --max_tokens=8 -p '{question}'"
    processes.run(trained, line)


BY_BUDGET = (
    "scripts.base_train --depth=1 --max_seq_len=256 --tokens_per_parameter=0.5 --num_iterations=12"
    f" {TINY}"
)


def test_a_run_with_a_derived_batch_size_resumes_on_any_number_of_ranks(trained: Path) -> None:
    processes.run(trained, f"{BY_BUDGET} --model_tag=budget")
    line = f"{BY_BUDGET} --model_tag=killed_budget"
    killed = processes.start(trained, line, before=processes.die_when_saved)
    assert killed.wait() == [-9] and "4 rows, 1 rank" in killed.output()
    output = processes.run(trained, line, ranks=3)
    assert "resuming from step" in output and "4 rows, 3 ranks" in output
    one, three = (losses(trained, "base", tag) for tag in ("budget", "killed_budget"))
    assert one.keys() == three.keys() and len(one) == 12
    assert max(abs(one[step] - three[step]) for step in one) < 1e-4


def steps_saved(output: str) -> list[int]:
    return [int(word) for word in re.findall(r"saved step (\d+)", output)]


def note_saves() -> None:
    """In the process of a command: print which steps are saved."""
    original = checkpoint_manager.save

    def save(directory: Path, step: int, *arguments: Any, **more: Any) -> None:
        original(directory, step, *arguments, **more)
        print(f"saved step {step}", flush=True)

    checkpoint_manager.save = save


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ("--save_every=5 --save_minutes=0", [5, 10, 12]),
        ("--save_every=0 --save_minutes=0 --eval_every=4", [4, 8, 12]),
        ("--save_every=0 --save_minutes=0.0000001", list(range(1, 13))),
    ],
)
def test_checkpoints_are_written_by_steps_before_evaluations_and_by_the_clock(
    trained: Path, options: str, steps: list[int]
) -> None:
    line = f"{BASE} --model_tag=saves{len(steps)}{steps[0]} {options}"
    running = processes.start(trained, line, before=note_saves)
    assert running.wait() == [0]
    assert steps_saved(running.output()) == steps


def test_fresh_moves_an_earlier_run_to_replaced_and_resumes_only_its_own(trained: Path) -> None:
    folder = trained / "base_checkpoints"
    line = f"{BASE} --model_tag=fresh"
    processes.run(trained, line)
    processes.run(trained, f"{line} --fresh --num_iterations=6", ranks=2)
    assert saved_steps(folder / "fresh") == [6, 4]
    assert saved_steps(folder / "replaced" / "fresh-1") == [12, 8]
    output = processes.run(trained, f"{line} --resume=false")
    assert str(folder / "replaced" / "fresh-2") in output and "resuming" not in output


def replace_hosts(ranks: str) -> None:
    """In the process of a command: those ranks seem to be started by another torchrun."""
    if os.environ["RANK"] in ranks:
        os.getppid = lambda: 1


def test_a_job_restarted_by_torchrun_resumes_even_with_fresh_and_a_replaced_host(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"{BASE} --model_tag=again --fresh"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a job")
    processes.run(trained, line, ranks=2)
    for replaced, is_resumed in (("", True), ("0", True), ("01", False)):
        again = processes.start(trained, line, 2, partial(replace_hosts, replaced))
        assert again.wait() == [0, 0]
        assert ("is finished" in again.output()) == is_resumed
        assert ("moved the earlier run" in again.output()) != is_resumed


def test_a_dry_run_prints_the_summary_and_writes_nothing(trained: Path) -> None:
    output = processes.run(trained, f"{BASE} --model_tag=dry --dry_run")
    assert "12 of 1,024 tokens: 4 rows, 1 rank" in output and "memory, estimated" in output
    assert not (trained / "base_checkpoints" / "dry").exists()


def test_activation_checkpointing_and_a_trace_do_not_change_the_weights(trained: Path) -> None:
    also = "--model_tag=traced --activation_checkpointing --profile"
    processes.run(trained, f"{BASE} {also}")
    one, again = weights(trained, "base", "straight"), weights(trained, "base", "traced")
    assert all(torch.equal(one[name], again[name]) for name in one)
    trace = json.loads((trained / "base_checkpoints" / "traced" / "trace_rank0.json").read_text())
    assert any("_WeightedCrossEntropy" in event.get("name", "") for event in trace["traceEvents"])
    first = metrics(trained, "base", "traced")[0]
    assert first["memory_bytes"] > 0 and 0 <= first["epoch"] < 1
