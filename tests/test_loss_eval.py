import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanochat import dataset, loss_eval
from nanochat.chat import render_conversation
from nanochat.data import shards
from nanochat.data.batch import Batch
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.loss_eval import chat_bpb, evaluate_bpb, text_bpb
from nanochat.runtime import Runtime
from tests.small_model import save_small_run, small_tokenizer

TOKEN_BYTES = torch.tensor([1, 2, 3, 0, 4], dtype=torch.int32)  # token 3 is special


class Costly(nn.Module):
    """Stands for a GPT: the loss of a target is its number plus a tenth of the input's."""

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where(targets >= 0, targets + inputs / 10, 0).to(torch.float32)


def batch(targets: list[list[int]], inputs: list[list[int]] | None = None) -> Batch:
    wanted = torch.tensor(targets)
    given = torch.zeros_like(wanted) if inputs is None else torch.tensor(inputs)
    return Batch(given, wanted, None, norm=1.0, progress=0.0, resume={})


def bpb(batches: list[Batch], device_batch_size: int = 2) -> float:
    return evaluate_bpb(Costly(), batches, TOKEN_BYTES, device_batch_size=device_batch_size)


def test_bits_per_byte_are_nats_over_the_bytes_of_the_targets() -> None:
    found = bpb([batch([[0, 1], [2, 4]], [[1, 1], [1, 1]]), batch([[2, 2]])])
    nats, num_bytes = (0 + 1 + 2 + 4 + 0.4) + 4, (1 + 2 + 3 + 4) + 6
    assert found == pytest.approx(nats / math.log(2) / num_bytes)


def test_special_tokens_and_masked_targets_count_in_neither_sum() -> None:
    plain = bpb([batch([[0, 1, 4]])])
    assert bpb([batch([[0, 1, 4, 3, 3, -1, -1]])]) == plain
    assert bpb([batch([[0, 1, 4], [3, -1, 3]])]) == plain


def test_the_micro_batch_changes_nothing() -> None:
    batches = [batch([[0, 1], [2, 4], [4, 4], [1, -1], [2, 2]])]
    assert len({bpb(batches, size) for size in (1, 2, 3, 100)}) == 1


def test_without_a_byte_it_is_infinite() -> None:
    assert bpb([batch([[3, 3, -1]])]) == math.inf


def test_over_no_step_it_is_an_error() -> None:
    with pytest.raises(UserError, match="0 steps"):
        bpb([])


def test_the_model_is_left_in_the_mode_in_which_it_was() -> None:
    seen = []

    class Watching(Costly):
        def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
            seen.append(self.training)
            return super().forward(inputs, targets)

    for is_training in (True, False):
        model = Watching().train(is_training)
        evaluate_bpb(model, [batch([[0]])], TOKEN_BYTES, device_batch_size=1)
        assert model.training is is_training
    assert seen == [False, False]


def test_no_gradient_is_kept() -> None:
    class Learning(Costly):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
            return super().forward(inputs, targets) * self.scale

    model = Learning()
    evaluate_bpb(model, [batch([[0, 1]])], TOKEN_BYTES, device_batch_size=1)
    assert model.scale.grad is None


# ---- on a real model and real text

PLACE = Runtime(torch.device("cpu"), 0, 1, torch.float32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, base_dir: Path) -> GPT:
    """A small model with its tokenizer, and a little of the primer world."""
    monkeypatch.setattr(dataset, "PRIMER_SHARD_DOCUMENTS", 60)
    monkeypatch.setattr(dataset, "PRIMER_VAL_DOCUMENTS", 200)
    dataset.make("primer", 1)
    return save_small_run("base")


def plain_bpb(model: GPT, rows: list[tuple[list[int], list[int]]]) -> float:
    """The same by one token after another, from logits in float64."""
    nats, num_bytes = 0.0, 0
    sizes = small_tokenizer().token_bytes()
    for ids, mask in rows:
        with torch.no_grad():
            log_probs = model(torch.tensor([ids[:-1]])).double().log_softmax(-1)[0]
        for position, (target, counts) in enumerate(zip(ids[1:], mask[1:], strict=True)):
            if counts and sizes[target]:
                nats -= float(log_probs[position, target])
                num_bytes += sizes[target]
    return nats / math.log(2) / num_bytes


def test_a_model_on_conversations_equals_a_plain_computation(model: GPT) -> None:
    task = [
        {"messages": [
            {"role": "user", "content": f"Who is {name}?"},
            {"role": "assistant", "content": f"{name} is a fox. 🦊"},
        ]}
        for name in ("Anna", "Bo", "Constantin-Emmanuel")
    ]  # fmt: skip
    rendered = [render_conversation(one, small_tokenizer()) for one in task]
    length = model.config.sequence_len + 1
    rows = [(ids[:length], mask[:length]) for ids, mask in rendered]
    found = chat_bpb(model, small_tokenizer(), PLACE, task)
    assert found == pytest.approx(plain_bpb(model, rows), rel=1e-5)


def test_a_model_on_text_equals_a_plain_computation(model: GPT) -> None:
    tokenizer, length = small_tokenizer(), model.config.sequence_len
    documents = shards.Documents(dataset.shard_paths("primer", "val"))
    rows = []
    for lane in range(loss_eval.TEXT_ROWS):
        tokens = [
            token
            for number in range(lane, len(documents), loss_eval.TEXT_ROWS)
            for token in tokenizer.encode(documents[number], prepend="<|bos|>")
        ]
        assert len(tokens) > length
        rows.append((tokens[: length + 1], [1] * (length + 1)))
    found = text_bpb(model, tokenizer, PLACE, "primer", loss_eval.TEXT_ROWS * length)
    assert found == pytest.approx(plain_bpb(model, rows), rel=1e-5)


@pytest.mark.parametrize("num_tokens", [0, -5])
def test_no_tokens_to_measure_is_an_error(model: GPT, num_tokens: int) -> None:
    with pytest.raises(UserError, match=f"--eval_tokens={num_tokens}"):
        text_bpb(model, small_tokenizer(), PLACE, "primer", num_tokens)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_value_does_not_depend_on_the_number_of_ranks(
    model: GPT, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    task = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a" * n}]}
        for n in range(1, 20)
    ]

    def measured(runtime: Runtime) -> list[float]:
        tokenizer = small_tokenizer()
        num_tokens = 3 * loss_eval.TEXT_ROWS * model.config.sequence_len
        return [
            text_bpb(model, tokenizer, runtime, "primer", num_tokens),
            text_bpb(model, tokenizer, runtime, "primer", num_tokens, "train"),
            chat_bpb(model, tokenizer, runtime, task),
        ]

    alone = measured(PLACE)
    sums: list[list[list[float]]] = []  # of each rank, by call

    def note(values: list[float]) -> list[float]:
        sums[-1].append(values)
        return values

    monkeypatch.setattr(loss_eval, "all_reduce_sum", note)
    for rank in range(world_size):
        sums.append([])
        measured(replace(PLACE, rank=rank, world_size=world_size))
    totals: Any = torch.tensor(sums, dtype=torch.float64).sum(dim=0)
    together = (totals[:, 0] / totals[:, 1] / math.log(2)).tolist()
    assert together == pytest.approx(alone, rel=1e-9)
