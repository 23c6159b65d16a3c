"""The whole system on a tiny model: every stage, resumed and repeated, on one rank and on two."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
TINY = ["--eval_tokens=2048", "--eval_every=0", "--save_every=4", "--compile=off"]
BASE = ["--depth=1", "--max_seq_len=256", "--total_batch_size=1024", "--num_iterations=12", *TINY]


def command(base: Path, module: str, *arguments: str, ranks: int = 1) -> list[str]:
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    return [*launcher, module, *(["--"] if ranks > 1 else []), *arguments]


def environment(base: Path) -> dict[str, str]:
    return {**os.environ, "NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1", "WANDB_RUN": ""}


def run(base: Path, module: str, *arguments: str, ranks: int = 1, ok: bool = True) -> str:
    done = subprocess.run(
        command(base, module, *arguments, ranks=ranks),
        env=environment(base), cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stderr[-3000:]
    return done.stdout + done.stderr


def losses(base: Path, stage: str, tag: str) -> dict[int, float]:
    lines = (base / f"{stage}_checkpoints" / tag / "metrics.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def weights(base: Path, stage: str, tag: str) -> dict[str, torch.Tensor]:
    newest = max((base / f"{stage}_checkpoints" / tag).glob("model_*.pt"))
    state: dict[str, torch.Tensor] = torch.load(newest, weights_only=True)
    return state


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory with a small primer world and a tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    run(folder, "nanochat.dataset", "--source=primer", "-n", "1")
    run(folder, "scripts.tok_train", "--vocab_size=600", "--max_chars=200000")
    return folder


@pytest.fixture(scope="module")
def trained(base: Path) -> Path:
    """The same with an uninterrupted base run of one rank, tag "straight"."""
    run(base, "scripts.base_train", *BASE, "--model_tag=straight")
    return base


def test_two_ranks_have_the_loss_curve_of_one(trained: Path) -> None:
    run(trained, "scripts.base_train", *BASE, "--model_tag=two", ranks=2)
    one, two = losses(trained, "base", "straight"), losses(trained, "base", "two")
    assert one.keys() == two.keys() and len(one) == 12
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4


def test_the_micro_batch_does_not_change_the_weights(trained: Path) -> None:
    run(trained, "scripts.base_train", *BASE, "--model_tag=micro", "--device_batch_size=3")
    one, micro = weights(trained, "base", "straight"), weights(trained, "base", "micro")
    assert all((one[name] - micro[name]).norm() < 1e-5 * one[name].norm() for name in one)


def test_a_run_killed_with_9_goes_on_to_the_same_weights(trained: Path) -> None:
    arguments = command(trained, "scripts.base_train", *BASE, "--model_tag=killed")
    folder = trained / "base_checkpoints" / "killed"
    with subprocess.Popen(arguments, env=environment(trained), cwd=ROOT, stderr=-3) as process:
        while not list(folder.glob("meta_*.json")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    said = run(trained, "scripts.base_train", *BASE, "--model_tag=killed")
    assert "going on from step" in said
    straight, resumed = weights(trained, "base", "straight"), weights(trained, "base", "killed")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert losses(trained, "base", "straight") == losses(trained, "base", "killed")


def test_a_stop_request_saves_and_names_the_way_on(trained: Path) -> None:
    arguments = command(trained, "scripts.base_train", *BASE, "--model_tag=stopped")
    arguments.append("--num_iterations=100000")
    metrics = trained / "base_checkpoints" / "stopped" / "metrics.jsonl"
    process = subprocess.Popen(
        arguments, env=environment(trained), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not metrics.is_file() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "run the same command again" in said


def test_a_finished_run_says_so_and_another_one_is_refused(trained: Path) -> None:
    said = run(trained, "scripts.base_train", *BASE, "--model_tag=straight")
    assert "done already" in said
    other = [*BASE, "--model_tag=straight", "--matrix_lr=0.01"]
    said = run(trained, "scripts.base_train", *other, ok=False)
    assert "matrix_lr: 0.02 there, 0.01 asked" in said and "Traceback" not in said


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_chat_stage_runs_resumes_and_reports(trained: Path, ranks: int) -> None:
    tag = f"--model_tag=chat{ranks}"
    run(trained, "scripts.base_train", *BASE, tag, ranks=ranks)
    small = [tag, *TINY, "--eval_conversations=8"]
    stages = {
        "mid_train": ["--total_batch_size=1024", "--num_iterations=4"],
        "chat_sft": ["--num_conversations=16", "--rows_per_step=8"],
        "chat_rl": ["--num_iterations=2", "--prompts_per_step=2", "--num_samples=3",
                    "--max_new_tokens=12"],
    }  # fmt: skip
    for script, arguments in stages.items():
        run(trained, f"scripts.{script}", *small, *arguments, ranks=ranks)
        again = run(trained, f"scripts.{script}", *small, *arguments, ranks=ranks)
        assert "done already" in again
    asked = ["--primer_problems=4", "--max_new_tokens=12", tag]
    for source in ("mid", "sft", "rl"):
        said = run(trained, "scripts.chat_eval", "-i", source, *asked, ranks=ranks)
        assert "all families" in said
    run(trained, "nanochat.report", "generate")
    report = (trained / "report" / "report.md").read_text()
    assert "| | BASE | MID | SFT | RL |" in report
    assert "| word_problems |" in report and "bits per byte, text" in report
    assert (trained / "report" / "base.png").stat().st_size > 1000


def test_chat_stages_do_not_depend_on_the_number_of_ranks(trained: Path) -> None:
    for script, folder in (("mid", "mid"), ("chat_sft", "chatsft")):
        assert script  # names the stage in a failure
        one, two = losses(trained, folder, "chat1"), losses(trained, folder, "chat2")
        assert one.keys() == two.keys()
        assert max(abs(one[step] - two[step]) for step in one) < 2e-3
