import math
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanochat import dataset, loss_eval
from nanochat.chat import render_conversation
from nanochat.data.batch import Batch
from nanochat.gpt import GPT
from nanochat.loss_eval import Loss, chat_loss, evaluate_loss, text_loss
from nanochat.runtime import Runtime
from tests.reference.batches import stream_rows
from tests.small_model import save_small_run, small_tokenizer

TOKEN_BYTES = torch.tensor([1, 2, 3, 0, 4], dtype=torch.int32)  # token 3 is special


class FakeModel(nn.Module):
    """Its loss is the target id plus a tenth of the input id."""

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where(targets >= 0, targets + inputs / 10, 0).to(torch.float32)


def batch(targets: list[list[int]], inputs: list[list[int]] | None = None) -> Batch:
    target_ids = torch.tensor(targets)
    input_ids = torch.zeros_like(target_ids) if inputs is None else torch.tensor(inputs)
    return Batch(input_ids, target_ids, None, norm=1.0, progress=0.0, resume={})


def loss(batches: list[Batch], device_batch_size: int = 2) -> Loss:
    return evaluate_loss(FakeModel(), batches, TOKEN_BYTES, device_batch_size=device_batch_size)


def bpb(batches: list[Batch], device_batch_size: int = 2) -> float:
    return loss(batches, device_batch_size).bits_per_byte


def test_bits_per_byte_are_the_nats_divided_by_the_bytes_of_the_targets() -> None:
    value = bpb([batch([[0, 1], [2, 4]], [[1, 1], [1, 1]]), batch([[2, 2]])])
    nats, num_bytes = (0 + 1 + 2 + 4 + 0.4) + 4, (1 + 2 + 3 + 4) + 6
    assert value == pytest.approx(nats / math.log(2) / num_bytes)


def test_special_tokens_and_masked_targets_count_in_neither_sum() -> None:
    plain = bpb([batch([[0, 1, 4]])])
    assert bpb([batch([[0, 1, 4, 3, 3, -1, -1]])]) == plain
    assert bpb([batch([[0, 1, 4], [3, -1, 3]])]) == plain


def test_nats_per_token_count_all_targets_that_are_not_masked() -> None:
    value = loss([batch([[0, 1, 4], [3, -1, 3]], [[1, 1, 1], [0, 5, 0]]), batch([[2]])])
    assert value.nats_per_token == pytest.approx((0 + 1 + 4 + 0.3 + 3 + 3 + 2) / 6)
    assert loss([batch([[-1, -1]])]).nats_per_token == math.inf


def test_the_value_does_not_depend_on_the_micro_batch() -> None:
    batches = [batch([[0, 1], [2, 4], [4, 4], [1, -1], [2, 2]])]
    assert len({bpb(batches, size) for size in (1, 2, 3, 100)}) == 1


def test_without_any_byte_the_value_is_infinite() -> None:
    assert bpb([batch([[3, 3, -1]])]) == math.inf


def test_no_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 steps"):
        bpb([])


def test_evaluation_restores_the_mode_of_the_model() -> None:
    seen = []

    class Recording(FakeModel):
        def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
            seen.append(self.training)
            return super().forward(inputs, targets)

    for is_training in (True, False):
        model = Recording().train(is_training)
        evaluate_loss(model, [batch([[0]])], TOKEN_BYTES, device_batch_size=1)
        assert model.training is is_training
    assert seen == [False, False]


def test_evaluation_computes_no_gradient() -> None:
    class Trainable(FakeModel):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
            return super().forward(inputs, targets) * self.scale

    model = Trainable()
    evaluate_loss(model, [batch([[0, 1]])], TOKEN_BYTES, device_batch_size=1)
    assert model.scale.grad is None


# ---- on a real model and real text

RUNTIME = Runtime(torch.device("cpu"), 0, 1, torch.float32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, base_dir: Path) -> GPT:
    """A small model and its tokenizer, with a small primer source."""
    monkeypatch.setattr(dataset, "PRIMER_SHARD_DOCUMENTS", 60)
    monkeypatch.setattr(dataset, "PRIMER_VAL_DOCUMENTS", 200)
    dataset.make("primer", 1)
    return save_small_run("base")


def reference_bpb(model: GPT, rows: list[tuple[list[int], list[int]]]) -> float:
    """Bits per byte of rows of (ids, mask), token by token, from logits in float64."""
    nats, num_bytes = 0.0, 0
    sizes = small_tokenizer().token_bytes()
    for ids, mask in rows:
        with torch.no_grad():
            log_probs = model(torch.tensor([ids[:-1]])).double().log_softmax(-1)[0]
        for position, (target, is_target) in enumerate(zip(ids[1:], mask[1:], strict=True)):
            if is_target and sizes[target]:
                nats -= float(log_probs[position, target])
                num_bytes += sizes[target]
    return nats / math.log(2) / num_bytes


def test_chat_bpb_equals_the_reference(model: GPT) -> None:
    task = [
        {"messages": [
            {"role": "user", "content": f"Who is {name}?"},
            {"role": "assistant", "content": f"{name} is a fox. 🦊"},
        ]}
        for name in ("Anna", "Bo", "Constantin-Emmanuel")
    ]  # fmt: skip
    rendered = [render_conversation(conversation, small_tokenizer()) for conversation in task]
    length = model.config.sequence_len + 1
    rows = [(ids[:length], mask[:length]) for ids, mask in rendered]
    value = chat_loss(model, small_tokenizer(), RUNTIME, task)
    assert value.bits_per_byte == pytest.approx(reference_bpb(model, rows), rel=1e-5)


def test_text_bpb_equals_the_reference(model: GPT) -> None:
    tokenizer, length = small_tokenizer(), model.config.sequence_len
    documents = list(dataset.iter_texts("val", "primer"))
    stream = stream_rows(
        lambda n: tokenizer.encode(documents[n]), tokenizer.get_bos_token_id(), length + 1
    )
    rows = [(tokens, [1] * (length + 1)) for tokens in islice(stream, loss_eval.TEXT_ROWS)]
    value = text_loss(model, tokenizer, RUNTIME, documents, loss_eval.TEXT_ROWS * length)
    assert value.bits_per_byte == pytest.approx(reference_bpb(model, rows), rel=1e-5)


@pytest.mark.parametrize("num_tokens", [0, -5])
def test_evaluating_fewer_than_one_token_is_an_error(model: GPT, num_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"--eval_tokens={num_tokens}"):
        text_loss(model, small_tokenizer(), RUNTIME, ["text"], num_tokens)


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
        losses = [
            *(
                text_loss(model, tokenizer, runtime, documents, num_tokens)
                for documents in map(partial(dataset.open_documents, "primer"), ("val", "train"))
            ),
            chat_loss(model, tokenizer, runtime, task),
        ]
        return [value for each in losses for value in (each.bits_per_byte, each.nats_per_token)]

    one_rank = measured(RUNTIME)
    sums: list[list[list[float]]] = []  # [rank][call] = [nats, bytes, batches, all nats, targets]

    def record(values: list[float]) -> list[float]:
        sums[-1].append(values)
        return values

    monkeypatch.setattr(loss_eval, "all_reduce_sum", record)
    for rank in range(world_size):
        sums.append([])
        measured(replace(RUNTIME, rank=rank, world_size=world_size))
    totals: Any = torch.tensor(sums, dtype=torch.float64).sum(dim=0)
    bits, nats = totals[:, 0] / totals[:, 1] / math.log(2), totals[:, 3] / totals[:, 4]
    together = torch.stack([bits, nats], dim=1).flatten().tolist()
    assert together == pytest.approx(one_rank, rel=1e-9)
