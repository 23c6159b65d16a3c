"""Reinforcement learning on GSM8K's questions, end to end, on one rank and on more than prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import checkpoint_manager, dataset, paths
from nanochat.chat import render_conversation
from nanochat.data.chat_batches import padded_rows
from nanochat.errors import UserError
from nanochat.gpt import GPT
from scripts import chat_rl
from tests import processes
from tests.shared_data import json_lines, needs_eval_data, put_on_hub
from tests.small_model import save_small_run, small_tokenizer

OPTIONS = (
    "--num_iterations=4 --prompts_per_step=2 --num_samples=4 --max_new_tokens=8 --eval_every=2"
    " --eval_tokens=2048 --eval_conversations=8 --eval_problems=6 --eval_samples=4 --compile=off"
    " --matrix_lr=0.02 --device_type=cpu"
)


def shortest_problems() -> list[dict[str, Any]]:
    rows = json_lines("gsm8k/train.jsonl")
    return sorted(rows, key=lambda row: len(row["question"]))[:40]


def teach(model: GPT, answers: list[str]) -> None:
    """Train the model until it answers any problem with one of the answers."""
    tokenizer, optimizer = small_tokenizer(), torch.optim.AdamW(model.parameters(), 3e-3)
    rendered = []
    for number, row in enumerate(shortest_problems()):
        turns = [("user", row["question"]), ("assistant", answers[number % len(answers)])]
        messages = [{"role": role, "content": content} for role, content in turns]
        rendered.append(render_conversation({"messages": messages}, tokenizer))
    rendered = [(ids[:96], mask[:96]) for ids, mask in rendered]
    inputs, targets = padded_rows(rendered, len(rendered), 96)
    for _ in range(40):
        loss = model(inputs, targets).sum() / (targets >= 0).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def make_world(answers: list[str]) -> None:
    """A finetuned model, text for validation, and the public data sets, in this base directory."""
    folder = paths.base_dir() / "texts"
    folder.mkdir(parents=True)
    for number, row in enumerate(json_lines("gsm8k/train.jsonl")[:200]):
        (folder / f"{number}.txt").write_text(row["question"])
    model = save_small_run("sft", sequence_len=128).train()
    teach(model, answers)
    saved = checkpoint_manager.read_meta("sft", "small")
    meta = {key: saved[key] for key in ("tokenizer", "settings", "finished", "model", "loader")}
    run = paths.checkpoints_dir("sft") / "small"
    checkpoint_manager.save(run, 2, checkpoint_manager.snapshot(model, []), meta, keep=1)
    dataset.main(["--source", str(folder)])
    small_tokenizer().save(paths.tokenizer_dir())
    problems = shortest_problems()
    put_on_hub("openai/gsm8k", "main/train-00000-of-00001.parquet", problems[:30])
    put_on_hub("openai/gsm8k", "main/test-00000-of-00001.parquet", problems[30:])
    mmlu = {"question": "Why?", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 1}
    put_on_hub("cais/mmlu", "all/test-00000-of-00001.parquet", [mmlu] * 4)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    put_on_hub(
        "HuggingFaceTB/smol-smoltalk", "data/test-00000-of-00001.parquet", [{"messages": turns}] * 9
    )


def history() -> list[dict[str, Any]]:
    path = paths.checkpoints_dir("rl") / "small" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(stage: str) -> dict[str, torch.Tensor]:
    newest = max((paths.checkpoints_dir(stage) / "small").glob("model_*.pt"))
    state: dict[str, torch.Tensor] = torch.load(newest, weights_only=True)
    return state


@needs_eval_data
def test_a_tiny_model_learns_from_problems_of_gsm8k_and_logs_what_matters(base_dir: Path) -> None:
    make_world([f"#### {n}" for n in range(1, 20)])
    chat_rl.main([*OPTIONS.split(), "--prompts_per_step=6", "--num_samples=8"])
    steps = [row for row in history() if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    for row in steps:
        assert 0 <= row["reward"] <= 1 and 2 < row["answer_tokens"] <= 8
        assert 0 < row["entropy"] < 6.0  # ln 400
        assert 0 <= row["answers_ended"] <= 1
        # Either a group has right and wrong answers, or nothing is updated.
        assert (row["gradient_norm"] > 0) == (row["answers_with_signal"] > 0)
    assert steps[-1]["skipped_steps"] == sum(row["gradient_norm"] == 0 for row in steps) < 4
    before, after = weights("sft"), weights("rl")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    evaluations = [row for row in history() if "pass@1" in row]
    assert [row["step"] for row in evaluations] == [2, 4]
    assert all(0 <= row["pass@1"] <= row["pass@4"] <= 1 for row in evaluations)
    section = json.loads((base_dir / "report" / "sections" / "rl.json").read_text())
    assert {"pass@1", "pass@4", "steps without a signal"} <= section["metrics"].keys()
    assert {"reward", "entropy", "answer_tokens", "pass@1"} <= section["curves"].keys()
    assert "bits per byte, answers" in section["table"]


@needs_eval_data
def test_steps_without_a_signal_change_no_weight_on_more_ranks_than_prompts(base_dir: Path) -> None:
    make_world(["I do not know."])
    output = processes.run(base_dir, f"scripts.chat_rl {OPTIONS}", ranks=3)
    assert "4 of 4 steps were skipped: all answers to a prompt had equal rewards" in output
    before, after = weights("sft"), weights("rl")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert history()[-2]["skipped_steps"] == 4 and history()[-2]["loss"] == 0.0


@pytest.mark.parametrize("temperature", ["0", "0.0", "1e-5", "-1"])
def test_answers_without_randomness_are_refused(temperature: str) -> None:
    with pytest.raises(UserError, match=r"--temperature=.* must be 0.01 or more: else all answers"):
        chat_rl.main([f"--temperature={temperature}"])
