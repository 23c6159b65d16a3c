"""The stages after pretraining of a tiny model, one after another, on one rank and on two."""

import json
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from tests import processes
from tests.test_stages import BASE, TINY, metrics, weights

SMALL = f"{TINY} --eval_conversations=8 --model_tag=chat"
CHAT_STAGES = {
    "mid": f"scripts.mid_train {SMALL} --total_batch_size=1024 --num_iterations=4",
    "chatsft": f"scripts.chat_sft {SMALL} --num_conversations=16 --rows_per_step=8",
    "chatrl": f"scripts.chat_rl {SMALL} --num_iterations=2 --prompts_per_step=2 --num_samples=3"
    " --max_new_tokens=12",
}
STAGES = {"base": f"{BASE} --model_tag=chat", **CHAT_STAGES}


def train_all(base: Path, ranks: int) -> None:
    processes.make_world(base)
    for line in STAGES.values():
        processes.run(base, line, ranks)


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Base directories by number of ranks, 1 and 2, in which all stages are finished."""
    bases = {ranks: tmp_path_factory.mktemp(f"ranks{ranks}") for ranks in (1, 2)}
    for ranks, base in bases.items():
        train_all(base, ranks)
    return bases


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", CHAT_STAGES)
def test_a_finished_stage_is_reported(on_ranks: dict[int, Path], stage: str, ranks: int) -> None:
    assert "is finished" in processes.run(on_ranks[ranks], CHAT_STAGES[stage], ranks)


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


def assert_equal_weights(uninterrupted: Path, resumed: Path, stage: str) -> None:
    expected, found = (weights(folder, stage, "chat") for folder in (uninterrupted, resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected), stage


@pytest.mark.parametrize("stage", CHAT_STAGES)
def test_a_killed_stage_resumes_to_the_same_weights(
    on_ranks: dict[int, Path], tmp_path: Path, stage: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(on_ranks[1], base)
    line = f"{CHAT_STAGES[stage]} --save_every=1"
    assert processes.start(base, f"{line} --fresh", before=processes.die_when_saved).wait() == [-9]
    assert "resuming from step" in processes.run(base, line)
    assert_equal_weights(on_ranks[1], base, stage)


@pytest.mark.slow
@pytest.mark.long
def test_a_pipeline_killed_in_every_command_ends_with_the_same_weights(
    on_ranks: dict[int, Path], tmp_path: Path
) -> None:
    evaluation = "scripts.chat_eval -a facts,repeat --max_new_tokens=8 --model_tag=chat -i"
    commands = [
        ("nanochat.dataset --source=primer -n 1", "dataset.write_shard", 2, 1),
        ("scripts.tok_train --vocab_size=600 --max_chars=200000", "paths.write_atomic", 1, 1),
        (STAGES["base"], "checkpoint_manager.save", 2, 2),
    ]
    for stage, line in CHAT_STAGES.items():
        commands += [(f"{line} --save_every=1", "checkpoint_manager.save", 2, 2)]
        source = stage.removeprefix("chat")
        commands += [(f"{evaluation} {source}", "chat_eval.evaluate_task", 2, 2)]
    for line, function, call, ranks in commands:
        killed = processes.start(tmp_path, line, ranks, partial(processes.die_in, function, call))
        killed.ranks[0].join()
        killed.send(signal.SIGKILL)  # the other rank, as when a machine is lost
        assert killed.wait()[0] == -9, f"{line}: {killed.output()}"
        output = processes.run(tmp_path, line, ranks)
        assert ("resuming from step" in output) == (function == "checkpoint_manager.save"), line
    for stage in STAGES:
        assert_equal_weights(on_ranks[2], tmp_path, stage)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_killed_and_restarted_by_torchrun_ends_with_the_same_weights(
    on_ranks: dict[int, Path], tmp_path: Path, stage: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(on_ranks[2], base)
    kill = 'processes.die_in("checkpoint_manager.save", 2)'
    done = processes.torchrun(base, f"{STAGES[stage]} --save_every=1 --fresh", kill)
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count("moved the earlier run") == done.stdout.count("resuming from") == 1
    assert_equal_weights(on_ranks[2], base, stage)


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
