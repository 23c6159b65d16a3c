import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nanochat.engine import Engine, Request
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.inference import prefill
from nanochat.inference.detokenizer import Finished
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.prefill import Prefixes, Reader
from nanochat.inference.sampling import Sampling
from tests.small_model import small_model, small_tokenizer

CPU = torch.device("cpu")


def random_ids(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(265) for _ in range(count)]


@dataclass(eq=False)
class Waiting:
    prompt: list[int]
    stop: str = ""


def shapes_of(model: GPT) -> list[tuple[int, ...]]:
    """Grows by the shape of the tokens of each forward pass from now on."""
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


def read_all(reader: Reader[Waiting], target: KVCache) -> dict[Waiting, Tensor]:
    """The logits behind each prompt, whose keys and values are put into a cache in that order."""
    found: dict[Waiting, Tensor] = {}
    while reader.num_rows:
        for read in reader.read():
            for row in read.rows:
                target.copy_row(read.source, len(found), of=reader.cache)
                found[row] = read.logits
    return found


@pytest.mark.parametrize("tokens_per_pass", [7, 40, 512])
@torch.inference_mode()
def test_prompts_that_are_read_in_pieces_are_each_what_one_forward_makes_of_them(
    tokens_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(prefill.TOKENS_PER_PASS, "cpu", tokens_per_pass)
    model = small_model(window_pattern="SL")
    reader: Reader[Waiting] = Reader(model, Prefixes(0))
    rows = [Waiting(random_ids(1 + 11 * n % 60, n)) for n in range(20)]
    reader.add([*rows, Waiting(rows[-1].prompt)])
    shapes, cache = shapes_of(model), KVCache(model.config, 21, CPU, torch.float32)
    found = read_all(reader, cache)
    assert len(found) == 21
    assert all(rows <= 16 and rows * width <= max(16, tokens_per_pass) for rows, width in shapes)
    for place, (row, logits) in enumerate(found.items()):
        alone = KVCache(model.config, 1, CPU, torch.float32)
        expected = model(torch.tensor([row.prompt]), kv_cache=alone)[0, -1]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        assert cache.lengths[place] == len(row.prompt)
        for ours, theirs in zip(cache.keys + cache.values, alone.keys + alone.values, strict=True):
            kept = slice(0, len(row.prompt))
            torch.testing.assert_close(ours[place, kept], theirs[0, kept], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_what_is_no_longer_wanted_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(prefill.TOKENS_PER_PASS, "cpu", 8)
    model = small_model()
    reader: Reader[Waiting] = Reader(model, Prefixes(0))
    rows = [Waiting(random_ids(30, n)) for n in range(3)]
    reader.add(rows)
    assert list(reader.read()) == [] and reader.num_rows == 3
    rows[0].stop = rows[2].stop = "length"
    assert reader.num_rows == 1
    shapes = shapes_of(model)
    assert list(read_all(reader, KVCache(model.config, 1, CPU, torch.float32))) == [rows[1]]
    assert {num_rows for num_rows, _ in shapes} == {1}


def test_a_long_prompt_does_not_stall_those_who_are_being_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(prefill.TOKENS_PER_PASS, "cpu", 8)
    engine = Engine(small_model(), small_tokenizer())
    engine.end_tokens = frozenset()
    batch = engine.open(2)
    [early] = batch.admit([Request(random_ids(3, 0), 20)])
    batch.step()
    [late] = batch.admit([Request(random_ids(40, 1), 2)])
    stepped = [[answer for answer, _ in batch.step()] for _ in range(6)]
    assert stepped == [[early]] * 4 + [[early, late]] * 2


# ---- the turns of a conversation


def answered(engine: Engine, prompt: list[int]) -> list[int]:
    """Tokens of an answer in a batch that lives."""
    batch = engine.open(1)
    [answer] = batch.admit([Request(prompt, 12, Sampling(1.0), seed=3)])
    while batch.num_answers:
        batch.step()
    return answer.row.tokens


def test_the_next_turn_of_a_conversation_reads_what_is_new_and_is_answered_alike() -> None:
    engine, fresh = (
        Engine(small_model(window_pattern="SL", sequence_len=50), small_tokenizer())
        for _ in range(2)
    )
    engine.end_tokens = fresh.end_tokens = frozenset()
    prompt = random_ids(20, 0)
    first = answered(engine, prompt)
    shapes = shapes_of(engine.model)
    longer = [*prompt, *first, *random_ids(5, 1)]
    assert answered(engine, longer) == answered(fresh, longer)
    assert shapes[0] == (1, 6)  # the newest token of the first answer had not been read either
    branch = [*prompt, *random_ids(9, 2)]
    del shapes[:]
    assert answered(engine, branch) == answered(fresh, branch)
    assert shapes[0] == (1, 9)
    del shapes[:]
    assert answered(engine, prompt) == first
    assert shapes[0] == (1, 1)


def test_nothing_is_taken_from_what_was_read_with_other_weights() -> None:
    model, prompt = small_model(), random_ids(20, 0)
    engine = Engine(model, small_tokenizer())
    answered(engine, prompt)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), small_model(1).parameters(), strict=True):
            ours.copy_(theirs)
    assert answered(engine, prompt) == answered(Engine(model, small_tokenizer()), prompt)


@torch.inference_mode()
def test_of_prefixes_the_longest_is_taken_the_oldest_goes_and_the_bound_holds() -> None:
    model = small_model()
    texts = [random_ids(20, 0), random_ids(30, 1)]
    texts.append([*texts[0], *random_ids(10, 2)])  # goes on from the first
    prefixes, cache = Prefixes(60), KVCache(model.config, 2, CPU, torch.float32)

    def length_of(prompt: list[int]) -> int:
        prefixes.begin(prompt, cache, 1)
        return cache.lengths[1]

    for number, text in enumerate(texts):
        cache.lengths[0] = 0
        cache.look_at(0, 1)
        model(torch.tensor([text]), kv_cache=cache)
        cache.advance([len(text)])
        prefixes.keep(text, cache, 0)
        assert length_of([*text, 1]) == len(text) and length_of(text) == len(text) - 1
        assert length_of(random_ids(40, 9)) == 0
        kept = sum(len(tokens) for tokens, _ in prefixes._kept)
        assert kept == [20, 50, 60][number]  # the third has taken the place of the first
    prefixes.keep(random_ids(61, 3), cache, 0)
    prefixes.keep(texts[0][:15], cache, 0)
    assert length_of([*texts[1], 1]) == 30  # too long and too short are not kept
    prefixes.keep(random_ids(20, 4), cache, 0)
    assert length_of([*texts[1], 1]) == 0 and length_of([*texts[2], 1]) == 30


def test_a_request_for_no_tokens_is_refused() -> None:
    engine = Engine(small_model(), small_tokenizer())
    with pytest.raises(UserError, match="max_tokens=0 must be 1 or more"):
        engine.open(1).admit([Request([1], 0)])


def test_a_cancelled_answer_frees_its_slot_before_its_prompt_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(prefill.TOKENS_PER_PASS, "cpu", 8)
    engine = Engine(small_model(), small_tokenizer())
    batch = engine.open(1)
    [gone] = batch.admit([Request(random_ids(40, 1), 5)])
    batch.step()
    batch.cancel(gone)
    assert batch.num_answers == 0
    [other] = batch.admit([Request([1, 2, 3], 5)])
    events = batch.step()
    assert [answer for answer, _ in events] == [other]
    while batch.num_answers:
        events = batch.step()
    assert isinstance(events[0][1][-1], Finished)
