import json
import random
from collections import Counter
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nanochat import dataloader
from nanochat.data import packing
from nanochat.data.batch import Batch
from nanochat.data.packing import Ids, block_order, packed_batches
from nanochat.dataloader import tokenizing_distributed_data_loader
from nanochat.errors import UserError
from nanochat.tokenizer import RustBPETokenizer
from tests.reference.batches import shuffled_rows, stream_rows

BOS = 0
LENGTH = 8
BLOCK_ROWS = 32  # so that 20 steps of 4 rows reach into the third block
SEED = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BLOCK_ROWS", BLOCK_ROWS)


class Numbered:
    """Documents whose tokens tell which one they are of, and in which epoch and place."""

    def __init__(self, lengths: list[int], batch_size: int = 3) -> None:
        self.lengths, self.batch_size = lengths, batch_size
        self.bos, self.num_documents = BOS, len(lengths)

    def tokens(self, number: int) -> list[int]:
        return [number * 1000 + 1 + i for i in range(self.lengths[number % len(self.lengths)])]

    def encode(self, first: int) -> tuple[Ids, Ids]:
        documents = [self.tokens(first + i) for i in range(self.batch_size)]
        return np.array(list(chain(*documents))), np.cumsum([len(tokens) for tokens in documents])


LENGTHS = {
    "mixed": [random.Random(6).choice([0, 1, 2, 5, 7, 8, 9, 30]) for _ in range(37)],
    "two": [3, 11],
    "one": [5],
    "one of no token": [0],
    "all empty": [0, 0, 0],
    "very long": [300, 1, 250],
    "as long as a row": [LENGTH, LENGTH],
    "a token longer": [LENGTH + 1, LENGTH + 1, LENGTH + 1],
    "a token shorter": [LENGTH - 1, LENGTH - 1],
}


def batches(source: Any, **changes: Any) -> list[Batch]:
    arguments: dict[str, Any] = {
        "rows": 4, "sequence_len": LENGTH, "rank": 0, "world_size": 1,
        "num_steps": 20, "seed": SEED, **changes,
    }  # fmt: skip
    return list(packed_batches(source, **arguments))


def ranks(source: Any, world_size: int, **changes: Any) -> list[list[Batch]]:
    return [
        batches(source, rank=rank, world_size=world_size, **changes) for rank in range(world_size)
    ]


def packed_rows(batch: Batch) -> list[list[int]]:
    """The inputs and, after them, the last target."""
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    return torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1).tolist()


def merged(ranks: list[list[Batch]]) -> list[Tensor]:
    """The inputs and targets of each step over all ranks."""
    steps = []
    for parts in zip(*ranks, strict=True):
        world_size = len(parts)
        rows = sum(part.inputs.size(0) for part in parts)
        step = torch.empty(rows, 2, LENGTH, dtype=torch.int64)
        for rank, part in enumerate(parts):
            step[rank::world_size] = torch.stack([part.inputs, part.targets], dim=1)
        steps.append(step)
    return steps


def assert_equal(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("rows", [1, 3, 4, 50])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_rows_equal_the_reference(name: str, rows: int, batch_size: int) -> None:
    """With steps smaller and larger than a block."""
    source = Numbered(LENGTHS[name], batch_size)
    stream = stream_rows(source.tokens, BOS, LENGTH + 1)
    expected = shuffled_rows(stream, 20 * rows, BLOCK_ROWS, partial(block_order, SEED))
    found = [row for batch in batches(source, rows=rows) for row in packed_rows(batch)]
    assert found == expected


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("name", LENGTHS)
def test_each_document_appears_exactly_once_per_epoch(name: str, world_size: int) -> None:
    source = Numbered(LENGTHS[name])
    of_ranks = ranks(source, world_size, rows=12, num_steps=40)
    seen = Counter(
        token for made in of_ranks for batch in made for row in packed_rows(batch) for token in row
    )
    del seen[BOS]
    # Everything before the last position, once; the last row may end inside a document.
    number, part = max(divmod(token, 1000) for token in [*seen, 0])
    expected = [token for n in range(number) for token in source.tokens(n)]
    expected += source.tokens(number)[:part]
    assert seen == Counter(expected)


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("rows", [8, 13, 50])
def test_rows_do_not_depend_on_the_number_of_ranks(world_size: int, rows: int) -> None:
    source = Numbered(LENGTHS["mixed"])
    expected = merged([batches(source, rows=rows)])
    of_ranks = ranks(source, world_size, rows=rows)
    assert_equal(merged(of_ranks), expected)
    norms = {batch.norm for made in of_ranks for batch in made}
    assert norms == {rows * LENGTH / world_size}
    assert all(
        len({json.dumps(batch.resume) for batch in parts}) == 1
        for parts in zip(*of_ranks, strict=True)
    )


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_rows_of_the_run_do_not_depend_on_the_rows_per_step(rows: int) -> None:
    source = Numbered(LENGTHS["mixed"])
    found = [
        row for b in batches(source, rows=rows, num_steps=80 // rows) for row in packed_rows(b)
    ]
    assert found == [row for batch in batches(source) for row in packed_rows(batch)]


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 4), (4, 2), (2, 3), (8, 5)])
@pytest.mark.parametrize(("name", "rows"), [("mixed", 12), ("very long", 8), ("one", 50)])
def test_a_run_resumed_after_any_step_equals_an_uninterrupted_one(
    name: str, rows: int, before: int, after: int
) -> None:
    """Across epochs and blocks, and on another number of ranks."""
    source = Numbered(LENGTHS[name])
    uninterrupted = batches(source, rows=rows)
    expected = merged([uninterrupted])
    first_runs = ranks(source, before, rows=rows)
    for stop in range(1, 21):
        states = [made[stop - 1].resume for made in first_runs]
        assert all(state == states[0] for state in states)  # a checkpoint keeps one of them
        state = json.loads(json.dumps(states[0]))
        rest = ranks(source, after, rows=rows, resume=state)
        assert_equal(merged(rest), expected[stop:])
        assert [b.resume for b in rest[0]] == [b.resume for b in uninterrupted[stop:]]


def test_a_state_belongs_to_its_step_when_later_batches_were_prefetched() -> None:
    source = Numbered(LENGTHS["mixed"])
    states = [json.dumps(batch.resume) for batch in batches(source)]
    one_by_one = packed_batches(
        source, rows=4, sequence_len=LENGTH, rank=0, world_size=1, num_steps=20, seed=SEED
    )
    assert states == [json.dumps(batch.resume) for batch in one_by_one]


def test_the_state_is_the_position_of_the_block_and_the_row_in_it() -> None:
    """Rows of 8 tokens and a <|bos|>, from documents of 8: row n is document n."""
    made = batches(Numbered([LENGTH] * 10), rows=10, num_steps=7)
    states = [(batch.resume["document"], batch.resume["row"]) for batch in made]
    assert states == [(0, 10), (0, 20), (0, 30), (32, 8), (32, 18), (32, 28), (64, 6)]
    assert {batch.resume["offset"] for batch in made} == {0}
    assert [batch.metrics["epoch"] for batch in made] == [1, 2, 3, 4, 5, 6, 7]


def test_the_order_of_a_block_changes_with_the_seed_and_the_block() -> None:
    orders = [block_order(seed, block, 1000) for seed in range(3) for block in range(3)]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert len({tuple(order) for order in orders}) == 9
    assert block_order(1, 2, 1000) == block_order(1, 2, 1000)
    source = Numbered(LENGTHS["mixed"])
    first, other = batches(source, seed=1), batches(source, seed=2)
    assert not torch.equal(first[0].inputs, other[0].inputs)
    rows = [sorted(row for batch in made for row in packed_rows(batch)) for made in (first, other)]
    assert rows[0] == rows[1]


def test_a_long_document_does_not_fill_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BLOCK_ROWS", 4096)
    lengths = [20] * 20_000
    lengths[1000] = 512 * LENGTH  # an eighth of the block
    made = batches(Numbered(lengths, 256), rows=32, num_steps=128)
    counts = [
        int(((batch.targets > 1_000_000) & (batch.targets <= 1_004_096)).any(dim=1).sum())
        for batch in made
    ]
    assert max(counts) <= 12 and sum(counts) >= 512  # about 4 of 32 rows per step


def test_at_most_two_blocks_and_a_step_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    cut_rows = packing.cut_rows

    def counted(*arguments: Any) -> Any:
        nonlocal read
        for row in cut_rows(*arguments):
            read += 1
            yield row

    monkeypatch.setattr(packing, "cut_rows", counted)
    made = packed_batches(
        Numbered(LENGTHS["mixed"]), rows=4, sequence_len=LENGTH, rank=0, world_size=1,
        num_steps=20,
    )  # fmt: skip
    for step, _ in enumerate(made, start=1):
        assert read == min(80, 4 * step + BLOCK_ROWS - 1)  # as many per step as are trained on


def test_progress_ends_at_one_and_a_finished_run_has_no_more_batches() -> None:
    made = batches(Numbered([5]), num_steps=4)
    assert [batch.progress for batch in made] == [0.25, 0.5, 0.75, 1.0]
    assert batches(Numbered([5]), num_steps=4, resume=made[-1].resume) == []


def test_a_state_with_another_number_of_rows_is_refused() -> None:
    source = Numbered(LENGTHS["mixed"])
    state = batches(source)[3].resume
    with pytest.raises(UserError, match=r"4 rows .* 12;.*--fresh"):
        batches(source, rows=12, resume=state)


def test_a_state_of_other_text_is_refused() -> None:
    state = batches(Numbered([5] * 10))[3].resume
    with pytest.raises(UserError, match=r"10 documents .* 11;.*--fresh"):
        batches(Numbered([5] * 11), resume=state)


def test_a_state_of_an_earlier_version_is_refused() -> None:
    state = {"step": 7, "documents": 10, "lanes": {str(lane): [lane, 0] for lane in range(4)}}
    with pytest.raises(
        UserError, match=r"step 7 .*earlier version \(4 lanes\).*--fresh"
    ) as refusal:
        batches(Numbered([5] * 10), resume=state)
    assert "\n" not in str(refusal.value)


def test_more_ranks_than_rows_leave_some_without_a_row() -> None:
    source = Numbered(LENGTHS["mixed"])
    of_ranks = ranks(source, 3, rows=2)
    shapes = [made[0].inputs.shape for made in of_ranks]
    assert shapes == [(1, LENGTH), (1, LENGTH), (0, LENGTH)]
    assert_equal(merged(of_ranks), merged([batches(source, rows=2)]))


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


@pytest.mark.parametrize("batch_documents", [1, 2, 3, 256])
def test_rows_of_texts_equal_the_reference(
    tokenizer: RustBPETokenizer, monkeypatch: pytest.MonkeyPatch, batch_documents: int
) -> None:
    monkeypatch.setattr(dataloader, "BATCH_DOCUMENTS", batch_documents)
    bos = tokenizer.get_bos_token_id()
    stream = stream_rows(lambda n: tokenizer.encode(TEXTS[n % len(TEXTS)]), bos, 17)
    expected = shuffled_rows(stream, 200, BLOCK_ROWS, partial(block_order, 0))
    made = loader(tokenizer, TEXTS, num_steps=100)
    assert [row for batch in made for row in packed_rows(batch)] == expected
    assert all((batch.inputs[:, 0] == bos).all() for batch in made)


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
    expected = loader(tokenizer, TEXTS, rows=8)
    made = loader(tokenizer, TEXTS, rows=8, num_threads=num_threads)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(made, expected, strict=True))


def test_no_text_at_all_is_refused(tokenizer: RustBPETokenizer) -> None:
    with pytest.raises(UserError, match="no documents"):
        loader(tokenizer, [])


def test_a_text_that_cannot_be_read_ends_the_batches_with_its_error(
    tokenizer: RustBPETokenizer,
) -> None:
    class Damaged(list[str]):
        def __getitem__(self, index: Any) -> Any:
            raise UserError("shard 3 is damaged")

    with pytest.raises(UserError, match="shard 3"):
        loader(tokenizer, Damaged(TEXTS))
