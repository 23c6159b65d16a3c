"""The stages after pretraining of a tiny model, one after another, on one rank and on two."""

import importlib
import itertools
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import processes
from tests.test_stages import BASE, TINY, metrics, weights

CHAT_STAGES = {
    "mid_train": "--total_batch_size=1024 --num_iterations=4",
    "chat_sft": "--num_conversations=16 --rows_per_step=8",
    "chat_rl": "--num_iterations=2 --prompts_per_step=2 --num_samples=3 --max_new_tokens=12",
}
SMALL = f"{TINY} --eval_conversations=8 --model_tag=chat"


def train_all(base: Path, ranks: int) -> None:
    processes.make_world(base)
    processes.run(base, f"{BASE} --model_tag=chat", ranks)
    for script, options in CHAT_STAGES.items():
        processes.run(base, f"scripts.{script} {SMALL} {options}", ranks)


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Base directories by number of ranks, 1 and 2, in which all stages are finished."""
    bases = {ranks: tmp_path_factory.mktemp(f"ranks{ranks}") for ranks in (1, 2)}
    for ranks, base in bases.items():
        train_all(base, ranks)
    return bases


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("script", CHAT_STAGES)
def test_a_finished_stage_is_reported(on_ranks: dict[int, Path], script: str, ranks: int) -> None:
    line = f"scripts.{script} {SMALL} {CHAT_STAGES[script]}"
    assert "is finished" in processes.run(on_ranks[ranks], line, ranks)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_stage_is_evaluated_and_in_the_report(on_ranks: dict[int, Path], ranks: int) -> None:
    base = on_ranks[ranks]
    for source in ("mid", "sft", "rl"):
        options = f"-i {source} --primer_problems=4 --max_new_tokens=12 --model_tag=chat"
        assert "all families" in processes.run(base, f"scripts.chat_eval {options}", ranks)
    processes.run(base, "nanochat.report generate")
    report = (base / "report" / "report.md").read_text()
    assert "| | BASE | MID | SFT | RL |" in report
    assert "| word_problems |" in report and "bits per byte, text" in report
    assert (base / "report" / "base.png").stat().st_size > 1000
    for name in ("base", "mid", "sft", "rl"):
        section = json.loads((base / "report" / "sections" / f"{name}.json").read_text())
        assert (section["device"], section["num_devices"]) == ("cpu", ranks)
        folder = base / {"base": "base", "mid": "mid"}.get(name, f"chat{name}")
        rows = (Path(f"{folder}_checkpoints") / "chat" / "metrics.jsonl").read_text().splitlines()
        logged = [json.loads(row) for row in rows]
        for curve, key in {"tokens": "tokens", "learning rate": "lr_multiplier"}.items():
            expected = [[row["step"], row[key]] for row in logged if key in row]
            assert section["curves"][curve] == expected
        assert section["curves"]["validation loss, text"][-1][1] > 0
        assert section["seconds"] >= logged[-2]["train_seconds"]


@pytest.mark.parametrize("script", CHAT_STAGES)
def test_a_killed_stage_resumes_to_the_same_weights(
    on_ranks: dict[int, Path], tmp_path: Path, script: str
) -> None:
    stage = {"mid_train": "mid", "chat_sft": "chatsft", "chat_rl": "chatrl"}[script]
    base = tmp_path / "base"
    shutil.copytree(on_ranks[1], base)
    expected = weights(base, stage, "chat")
    line = f"scripts.{script} {SMALL} {CHAT_STAGES[script]} --save_every=1"
    assert processes.start(base, f"{line} --fresh", before=processes.die_when_saved).wait() == [-9]
    assert "resuming from step" in processes.run(base, line)
    resumed = weights(base, stage, "chat")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def die_in(function: str, call: int) -> None:
    """In the process of a command: kill the main rank in that call of `nanochat.{function}`."""
    module_name, name = function.rsplit(".", 1)
    module = importlib.import_module(f"nanochat.{module_name}")
    original, calls = getattr(module, name), itertools.count(1)

    def counted(*arguments: Any, **more: Any) -> Any:
        if next(calls) == call and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **more)

    setattr(module, name, counted)


@pytest.mark.slow
@pytest.mark.long
def test_a_pipeline_killed_in_every_command_ends_with_the_same_weights(
    on_ranks: dict[int, Path], tmp_path: Path
) -> None:
    evaluation = "scripts.chat_eval -a facts,repeat --max_new_tokens=8 --model_tag=chat -i"
    commands = [
        ("nanochat.dataset --source=primer -n 1", "dataset.write_shard", 2, 1),
        ("scripts.tok_train --vocab_size=600 --max_chars=200000", "paths.write_atomic", 1, 1),
        (f"{BASE} --model_tag=chat", "checkpoint_manager.save", 2, 2),
    ]
    for script, options in CHAT_STAGES.items():
        line = f"scripts.{script} {SMALL} {options} --save_every=1"
        commands += [(line, "checkpoint_manager.save", 2, 2)]
        source = script.removesuffix("_train").removeprefix("chat_")
        commands += [(f"{evaluation} {source}", "chat_eval.evaluate_task", 2, 2)]
    for line, function, call, ranks in commands:
        killed = processes.start(tmp_path, line, ranks, partial(die_in, function, call))
        killed.ranks[0].join()
        killed.send(signal.SIGKILL)  # the other rank, as when a machine is lost
        assert killed.wait()[0] == -9, f"{line}: {killed.output()}"
        output = processes.run(tmp_path, line, ranks)
        assert ("resuming from step" in output) == (function == "checkpoint_manager.save"), line
    for stage in ("base", "mid", "chatsft", "chatrl"):
        expected, found = (weights(base, stage, "chat") for base in (on_ranks[2], tmp_path))
        assert all(torch.equal(expected[name], found[name]) for name in expected), stage


def test_finetuning_accepts_more_ranks_than_rows(on_ranks: dict[int, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(on_ranks[1], base)
    options = "--fresh --num_conversations=3 --rows_per_step=1 --device_batch_size=4"
    output = processes.run(base, f"scripts.chat_sft {SMALL} {options}", ranks=2)
    assert "micro-batches of 1 rows" in output


@pytest.mark.parametrize("stage", ["mid", "chatsft"])
def test_losses_do_not_depend_on_the_number_of_ranks(on_ranks: dict[int, Path], stage: str) -> None:
    one, two = (metrics(on_ranks[ranks], stage, "chat") for ranks in (1, 2))
    for ours, theirs in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-3)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=2e-2)
