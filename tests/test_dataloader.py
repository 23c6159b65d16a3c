import json
import random
from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat import dataloader
from nanochat.checkpoint_manager import merge_loader_states
from nanochat.data.batch import Batch
from nanochat.dataloader import (
    EncodedTexts,
    epoch,
    packed_batches,
    tokenizing_distributed_data_loader,
)
from nanochat.errors import UserError
from nanochat.tokenizer import RustBPETokenizer
from tests.reference.batches import lane_rows

BOS = 0
LENGTH = 8


class Numbered:
    """Documents whose tokens tell which one they are of, and in which epoch and place."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.num_documents = len(lengths)

    def tokens(self, counter: int) -> list[int]:
        return [counter * 1000 + 1 + i for i in range(self.lengths[counter % len(self.lengths)])]


LENGTHS = {
    "mixed": [random.Random(6).choice([0, 1, 2, 5, 7, 8, 9, 30]) for _ in range(37)],
    "fewer than lanes": [3, 11],
    "one": [5],
    "one of no token": [0],
    "all empty": [0, 0, 0],
    "very long": [300, 1, 250],
    "as long as a row": [LENGTH, LENGTH],
    "a token longer": [LENGTH + 1, LENGTH + 1, LENGTH + 1],
    "a token shorter": [LENGTH - 1, LENGTH - 1],
}


def batches(
    source: Any, rows: int = 4, rank: int = 0, world_size: int = 1, num_steps: int = 20,
    resume: dict[str, Any] | None = None,
) -> list[Batch]:  # fmt: skip
    return list(
        packed_batches(
            source, bos=BOS, rows=rows, sequence_len=LENGTH, rank=rank, world_size=world_size,
            num_steps=num_steps, resume=resume,
        )
    )  # fmt: skip


def whole_rows(batch: Batch) -> list[list[int]]:
    """What was packed: the inputs and, behind them, the last target."""
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    return torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1).tolist()


def together(of_ranks: list[list[Batch]]) -> list[Tensor]:
    """The inputs and targets of each step over all ranks, by lane."""
    steps = []
    for parts in zip(*of_ranks, strict=True):
        world_size = len(parts)
        rows = sum(part.inputs.size(0) for part in parts)
        step = torch.empty(rows, 2, LENGTH, dtype=torch.int64)
        for rank, part in enumerate(parts):
            step[rank::world_size] = torch.stack([part.inputs, part.targets], dim=1)
        steps.append(step)
    return steps


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_every_lane_equals_the_reference(name: str, rows: int) -> None:
    source = Numbered(LENGTHS[name])
    references = [lane_rows(source.tokens, lane, rows, BOS, LENGTH + 1) for lane in range(rows)]
    for batch in batches(source, rows):
        assert whole_rows(batch) == [next(reference) for reference in references]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["mixed", "fewer than lanes", "one", "very long"])
def test_over_three_epochs_each_document_comes_once_an_epoch(name: str, world_size: int) -> None:
    source = Numbered(LENGTHS[name])
    num_documents = 3 * source.num_documents
    given: Counter[int] = Counter()
    for rank in range(world_size):
        made = packed_batches(
            source, bos=BOS, rows=12, sequence_len=LENGTH, rank=rank, world_size=world_size,
            num_steps=10_000,
        )  # fmt: skip
        for batch in made:
            given.update(token for row in whole_rows(batch) for token in row if token != BOS)
            if min(counter for counter, _ in batch.resume["lanes"].values()) >= num_documents:
                break
    wanted = [token for counter in range(num_documents) for token in source.tokens(counter)]
    assert all(given[token] == 1 for token in wanted)
    assert max(given.values()) == 1


@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 8])
def test_what_is_trained_on_does_not_depend_on_the_number_of_ranks(world_size: int) -> None:
    source = Numbered(LENGTHS["mixed"])
    alone = together([batches(source, 8)])
    ranks = [batches(source, 8, rank, world_size) for rank in range(world_size)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together(ranks), strict=True))
    for parts in zip(*ranks, strict=True):
        assert {part.norm for part in parts} == {8 * LENGTH / world_size}


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 4), (4, 2), (2, 3), (8, 5)])
@pytest.mark.parametrize("stop", [1, 7, 19])
def test_a_resumed_run_goes_on_as_if_nothing_had_been(before: int, after: int, stop: int) -> None:
    source = Numbered(LENGTHS["mixed"])
    straight = together([batches(source, 12)])
    states = [batches(source, 12, rank, before)[stop - 1].resume for rank in range(before)]
    merged = json.loads(json.dumps(merge_loader_states(states)))
    rest = [batches(source, 12, rank, after, resume=merged) for rank in range(after)]
    assert all(torch.equal(a, b) for a, b in zip(straight[stop:], together(rest), strict=True))


def test_a_state_is_of_its_own_step_also_when_later_batches_are_made() -> None:
    source = Numbered(LENGTHS["mixed"])
    states = [json.dumps(batch.resume) for batch in batches(source)]
    assert states == [
        json.dumps(next(islice(packed_batches(
            source, bos=BOS, rows=4, sequence_len=LENGTH, rank=0, world_size=1, num_steps=20),
            step, None)).resume)
        for step in range(20)
    ]  # fmt: skip


def test_progress_ends_at_one_and_a_finished_run_has_no_more_batches() -> None:
    made = batches(Numbered([5]), num_steps=4)
    assert [batch.progress for batch in made] == [0.25, 0.5, 0.75, 1.0]
    assert batches(Numbered([5]), num_steps=4, resume=made[-1].resume) == []


def test_a_state_of_another_number_of_rows_is_refused() -> None:
    source = Numbered(LENGTHS["mixed"])
    state = batches(source, 4)[3].resume
    with pytest.raises(UserError, match=rf"4 rows a step.*12.*--total_batch_size={4 * LENGTH}"):
        batches(source, 12, resume=state)


def test_a_state_of_other_text_is_refused() -> None:
    state = batches(Numbered([5] * 10))[3].resume
    with pytest.raises(UserError, match=r"10 training documents.*11.*--fresh"):
        batches(Numbered([5] * 11), resume=state)


def test_more_ranks_than_rows_leave_some_without_a_row() -> None:
    source = Numbered(LENGTHS["mixed"])
    ranks = [batches(source, 2, rank, 3) for rank in range(3)]
    assert [made[0].inputs.shape for made in ranks] == [(1, LENGTH), (1, LENGTH), (0, LENGTH)]
    alone = together([batches(source, 2)])
    assert all(torch.equal(a, b) for a, b in zip(alone, together(ranks), strict=True))


# ---- from texts


@pytest.fixture(scope="module")
def tokenizer() -> RustBPETokenizer:
    return RustBPETokenizer.train_from_iterator(["the cat and the dog and the hen"] * 3, 280)


def loader(tokenizer: RustBPETokenizer, texts: list[str], **changes: Any) -> list[Batch]:
    arguments: dict[str, Any] = {
        "rows": 2, "sequence_len": 16, "rank": 0, "world_size": 1, "num_steps": 6, **changes
    }  # fmt: skip
    return list(tokenizing_distributed_data_loader(texts, tokenizer, **arguments))


TEXTS = ["the cat", "", "and then <|bos|> the dog " * 9, "the hen", "🦊"]


def test_a_row_is_bos_and_then_the_text(tokenizer: RustBPETokenizer) -> None:
    bos = tokenizer.get_bos_token_id()
    lanes = [
        lane_rows(lambda n: tokenizer.encode(TEXTS[n % len(TEXTS)]), lane, 2, bos, 17)
        for lane in range(2)
    ]
    for batch in loader(tokenizer, TEXTS):
        assert whole_rows_of(batch) == [next(lane) for lane in lanes]
        assert batch.inputs[:, 0].tolist() == [bos, bos]


def whole_rows_of(batch: Batch) -> list[list[int]]:
    return torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1).tolist()


def test_batches_are_contiguous_int64_with_every_token_a_target(
    tokenizer: RustBPETokenizer,
) -> None:
    for batch in loader(tokenizer, TEXTS):
        for tensor in (batch.inputs, batch.targets):
            assert tensor.shape == (2, 16) and tensor.dtype == torch.int64
            assert tensor.is_contiguous() and not tensor.is_pinned()
        assert batch.weights is None and (batch.targets >= 0).all()
        assert batch.norm == batch.targets.numel()


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_number_of_threads_changes_nothing(
    tokenizer: RustBPETokenizer, num_threads: int
) -> None:
    one, other = (
        loader(tokenizer, TEXTS, rows=8),
        loader(tokenizer, TEXTS, rows=8, num_threads=num_threads),
    )
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("cached_bytes", [0, 1 << 20])
def test_texts_of_a_run_are_encoded_as_each_alone(
    tokenizer: RustBPETokenizer, monkeypatch: pytest.MonkeyPatch, cached_bytes: int
) -> None:
    monkeypatch.setattr(dataloader, "RUN_DOCUMENTS", 3)
    monkeypatch.setattr(dataloader, "CACHED_BYTES", cached_bytes)
    texts = [f"{text} {i}" * (i % 3) for i, text in enumerate(TEXTS * 2)]
    source = EncodedTexts(texts, tokenizer)
    for counter in [*range(25), 3, 17, 0]:
        expected = tokenizer.encode(texts[counter % len(texts)])
        assert list(source.tokens(counter)) == expected
        assert sum(ids.nbytes for ids, _ in source.encoded.values()) == source.cached_bytes
    assert (len(source.encoded) == 1) == (cached_bytes == 0)


def test_no_text_at_all_is_refused(tokenizer: RustBPETokenizer) -> None:
    with pytest.raises(UserError, match="no document"):
        EncodedTexts([], tokenizer)


def test_a_text_that_cannot_be_read_ends_the_batches_with_its_error(
    tokenizer: RustBPETokenizer,
) -> None:
    class Damaged(list[str]):
        def __getitem__(self, index: Any) -> Any:
            raise UserError("shard 3 is damaged")

    with pytest.raises(UserError, match="shard 3"):
        loader(tokenizer, Damaged(TEXTS))


def test_the_epoch_counts_how_often_the_documents_have_been_gone_through() -> None:
    """Four lanes of eleven documents that fill a row each: a step is four of them."""
    epochs = [epoch(batch.resume) for batch in batches(Numbered([LENGTH] * 11), num_steps=22)]
    assert epochs == sorted(epochs)
    assert epochs[10] == pytest.approx(4, abs=0.25) and epochs[21] == pytest.approx(8, abs=0.25)
