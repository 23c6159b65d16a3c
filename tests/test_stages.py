"""Pretraining as a whole on a tiny model: killed, stopped, repeated, on one rank and on two."""

import json
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import saved_steps
from tests import processes

TINY = "--eval_tokens=2048 --eval_every=0 --save_every=4 --compile=off"
BASE = (
    "scripts.base_train --depth=1 --max_seq_len=256 --total_batch_size=1024 --num_iterations=12"
    f" {TINY}"
)


def losses(base: Path, stage: str, tag: str) -> dict[int, float]:
    lines = (base / f"{stage}_checkpoints" / tag / "metrics.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


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
    one, two = losses(trained, "base", "straight"), losses(trained, "base", "two")
    assert one.keys() == two.keys() and len(one) == 12
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4


def test_the_micro_batch_does_not_change_the_weights(trained: Path) -> None:
    processes.run(trained, f"{BASE} --model_tag=micro --device_batch_size=3")
    one, micro = weights(trained, "base", "straight"), weights(trained, "base", "micro")
    # Of float32 both optimizers lift the rounding a thousand times; test_ranks.py is stricter.
    assert all((one[name] - micro[name]).norm() < 1e-4 * one[name].norm() for name in one)


def test_a_run_killed_with_9_goes_on_to_the_same_weights(trained: Path) -> None:
    running = processes.start(trained, f"{BASE} --model_tag=killed")
    folder = trained / "base_checkpoints" / "killed"
    while not list(folder.glob("meta_*.json")) and running.is_alive():
        time.sleep(0.005)
    running.send(signal.SIGKILL)
    running.wait()
    said = processes.run(trained, f"{BASE} --model_tag=killed")
    assert "going on from step" in said
    straight, resumed = weights(trained, "base", "straight"), weights(trained, "base", "killed")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert losses(trained, "base", "straight") == losses(trained, "base", "killed")


def test_a_stop_request_saves_and_names_the_way_on(trained: Path) -> None:
    running = processes.start(trained, f"{BASE} --model_tag=stopped --num_iterations=100000")
    metrics = trained / "base_checkpoints" / "stopped" / "metrics.jsonl"
    while not metrics.is_file() and running.is_alive():
        time.sleep(0.005)
    running.send(signal.SIGTERM)
    assert running.wait() == [143]
    assert "run the same command again" in running.said()


@pytest.mark.parametrize("function", ["training.stage.evaluate", "checkpoint_manager.save"])
def test_a_stop_request_behind_the_last_step_loses_nothing(trained: Path, function: str) -> None:
    tag = function.replace(".", "_")
    line = f"{BASE} --model_tag={tag} --save_every=0"
    told = partial(processes.be_told_within, function, signal.SIGTERM)
    assert processes.start(trained, line, before=told).wait() == [143]
    assert saved_steps(trained / "base_checkpoints" / tag) == [12]
    assert "going on from step 12" in processes.run(trained, line)
    straight, resumed = weights(trained, "base", "straight"), weights(trained, "base", tag)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_finished_run_says_so_and_another_one_is_refused(trained: Path) -> None:
    said = processes.run(trained, f"{BASE} --model_tag=straight")
    assert "done already" in said
    said = processes.run(trained, f"{BASE} --model_tag=straight --matrix_lr=0.01", ok=False)
    assert "matrix_lr: 0.02 there, 0.01 asked" in said and "Traceback" not in said


def test_a_run_from_before_an_option_was_there_is_one_with_its_default(trained: Path) -> None:
    folder = trained / "base_checkpoints" / "straight"
    newest = checkpoint_manager.newest_complete(folder)
    assert newest is not None
    older = {name: newest.meta["settings"][name] for name in newest.meta["settings"]}
    del older["window_pattern"]
    checkpoint_manager.update_meta(folder, newest.step, settings=older)
    line = f"{BASE} --model_tag=straight"
    said = processes.run(trained, f"{line} --window_pattern=S", ok=False)
    assert "window_pattern: L there, S asked" in said
    assert "done already" in processes.run(trained, line)


def test_a_damaged_model_is_not_measured_as_the_one_before_it(trained: Path) -> None:
    line = f"{BASE} --model_tag=damaged --keep_checkpoints=3"
    processes.run(trained, line)
    path = trained / "base_checkpoints" / "damaged" / "model_000012.pt"
    path.write_bytes(path.read_bytes()[:-1])
    said = processes.run(trained, "scripts.base_loss --model_tag=damaged", ok=False)
    assert "no complete checkpoint of step 12" in said and "Traceback" not in said


def test_a_model_with_windows_is_trained_killed_measured_and_asked(trained: Path) -> None:
    line = f"{BASE} --depth=2 --window_pattern=SL"
    said = processes.run(trained, f"{line} --model_tag=windows")
    assert "SL: 1 of 2 layers see 128 tokens" in said
    line = f"{line} --model_tag=killed_windows"
    assert processes.start(trained, line, before=processes.die_when_saved).wait() == [-9]
    assert "going on from step" in processes.run(trained, line)
    straight, resumed = (weights(trained, "base", tag) for tag in ("windows", "killed_windows"))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    said = processes.run(trained, "scripts.base_loss --model_tag=windows --eval_tokens=2048")
    assert "bits per byte" in said
    question = "Where is the fox? " * 18  # longer than a window
    asked = f"scripts.chat_cli -i base --model_tag=windows --max_tokens=8 -p '{question}'"
    processes.run(trained, asked)


BY_BUDGET = (
    "scripts.base_train --depth=1 --max_seq_len=256 --tokens_per_parameter=0.5 --num_iterations=12"
    f" {TINY}"
)


def test_a_run_whose_steps_suit_its_budget_goes_on_with_any_number_of_ranks(trained: Path) -> None:
    processes.run(trained, f"{BY_BUDGET} --model_tag=budget")
    line = f"{BY_BUDGET} --model_tag=killed_budget"
    killed = processes.start(trained, line, before=processes.die_when_saved)
    assert killed.wait() == [-9] and "4 rows, 1 rank" in killed.said()
    said = processes.run(trained, line, ranks=3)
    assert "going on from step" in said and "4 rows, 3 ranks" in said
    one, three = (losses(trained, "base", tag) for tag in ("budget", "killed_budget"))
    assert one.keys() == three.keys() and len(one) == 12
    assert max(abs(one[step] - three[step]) for step in one) < 1e-4
    assert "done already" in processes.run(trained, f"{line} --total_batch_size=1024")
    said = processes.run(trained, f"{line} --total_batch_size=2048", ok=False)
    assert "total_batch_size: 1024 there, 2048 asked" in said


def test_a_run_that_noted_no_size_of_its_steps_goes_on_with_the_one_it_had(trained: Path) -> None:
    line = f"{BY_BUDGET} --model_tag=noted_none"
    killed = f"{line} --total_batch_size=1536"  # six ranks once made six rows of it
    assert processes.start(trained, killed, before=processes.die_when_saved).wait() == [-9]
    folder = trained / "base_checkpoints" / "noted_none"
    newest = checkpoint_manager.newest_complete(folder)
    assert newest is not None
    older = newest.meta["settings"] | {"total_batch_size": -1}
    checkpoint_manager.update_meta(folder, newest.step, settings=older)
    said = processes.run(trained, f"{line} --total_batch_size=1024", ok=False)
    assert "6 rows per step and now has 4" in said and "--total_batch_size=1536" in said
    assert "6 rows, 1 rank" in processes.run(trained, f"{line} --dry_run")
    said = processes.run(trained, line)
    assert "going on from step" in said and "6 rows, 1 rank" in said
    assert "done already" in processes.run(trained, killed)


def steps_saved(said: str) -> list[int]:
    return [int(word) for word in re.findall(r"saved step (\d+)", said)]


def note_saves() -> None:
    """In the process of a command: say which steps are saved."""
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
    assert steps_saved(running.said()) == steps


def test_fresh_moves_the_run_that_was_there_aside_and_resumes_only_its_own(trained: Path) -> None:
    folder = trained / "base_checkpoints"
    line = f"{BASE} --model_tag=fresh"
    processes.run(trained, line)
    processes.run(trained, f"{line} --fresh --num_iterations=6", ranks=2)
    assert saved_steps(folder / "fresh") == [6, 4]
    assert saved_steps(folder / "replaced" / "fresh-1") == [12, 8]
    said = processes.run(trained, f"{line} --resume=false")
    assert f"is now in {folder / 'replaced' / 'fresh-2'}" in said and "going on" not in said


def test_what_torchrun_starts_again_goes_on_even_with_fresh(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"{BASE} --model_tag=again"
    processes.run(trained, line)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert "done already" in processes.run(trained, f"{line} --fresh")


def test_a_dry_run_prints_the_table_and_leaves_nothing(trained: Path) -> None:
    said = processes.run(trained, f"{BASE} --model_tag=dry --dry_run")
    assert "12 of 1,024 tokens: 4 rows, 1 rank" in said and "memory, estimated" in said
    assert not (trained / "base_checkpoints" / "dry").exists()


def test_blocks_computed_again_and_a_trace_do_not_change_the_weights(trained: Path) -> None:
    also = "--model_tag=traced --activation_checkpointing --profile"
    processes.run(trained, f"{BASE} {also}")
    one, again = weights(trained, "base", "straight"), weights(trained, "base", "traced")
    assert all(torch.equal(one[name], again[name]) for name in one)
    trace = json.loads((trained / "base_checkpoints" / "traced" / "trace_rank0.json").read_text())
    assert any("_WeightedCrossEntropy" in event.get("name", "") for event in trace["traceEvents"])
    lines = (trained / "base_checkpoints" / "traced" / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["memory_bytes"] > 0 and 0 <= first["epoch"] < 1
