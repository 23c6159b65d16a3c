import random

import pytest
import torch
from torch import Tensor

from nanochat.engine import CALCULATOR, Engine, Request, RowState
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.inference import kv_cache, prefill
from nanochat.inference.decode import DecodeStep, Mode
from nanochat.inference.detokenizer import Finished
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.prefill import Prefiller, PrefixCache
from nanochat.inference.sampling import Sampling
from tests.small_model import small_model, small_tokenizer
from tests.stand_in_gpu import attend_packed

CPU = torch.device("cpu")


def random_ids(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(265) for _ in range(count)]


def row_of(prompt: list[int]) -> RowState:
    return RowState(Request(prompt), small_tokenizer(), CALCULATOR, context_length=64)


def shapes_of(model: GPT) -> list[tuple[int, ...]]:
    """A list that collects the shape of the tokens of each forward pass from now on."""
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


def prefill_all(prefiller: Prefiller, target: KVCache) -> dict[RowState, Tensor]:
    """The logits after each prompt; keys and values are copied into `target` in that order."""
    found: dict[RowState, Tensor] = {}
    while prefiller.num_rows:
        for one in prefiller.step():
            for row in one.rows:
                target.copy_slots([one.slot], [len(found)], prefiller.cache)
                found[row] = one.logits
    return found


def prefiller_of(model: GPT, is_packed: bool = False) -> Prefiller:
    return Prefiller(DecodeStep(model, 1, Mode(can_pack=is_packed)), PrefixCache(0))


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes are of 8 tokens."""
    monkeypatch.setitem(prefill.TOKENS_PER_PASS, "cpu", (8, 8))


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("tokens_per_pass", [7, 40, 512])
@torch.inference_mode()
def test_chunked_prefill_gives_each_prompt_the_result_of_one_forward(
    tokens_per_pass: int, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(prefill.TOKENS_PER_PASS, "cpu", (tokens_per_pass, tokens_per_pass))
    monkeypatch.setattr(kv_cache, "attend_packed", attend_packed)
    model = small_model(window_pattern="SL", n_kv_head=2 if tokens_per_pass > 7 else 4)
    prefiller = prefiller_of(model, is_packed)
    rows = [row_of(random_ids(1 + 11 * n % 60, n)) for n in range(20)]
    prefiller.add([*rows, row_of(rows[-1].prompt)])
    shapes, cache = shapes_of(model), KVCache(model.config, 21, CPU, torch.float32)
    found = prefill_all(prefiller, cache)
    assert len(found) == 21
    assert all(rows <= 16 and rows * width <= max(16, tokens_per_pass) for rows, width in shapes)
    if is_packed:  # no padding: every prompt once
        num_tokens = sum(len(row.prompt) for row in rows)
        assert [rows for rows, _ in shapes] == [1] * -(-num_tokens // tokens_per_pass)
        assert sum(width for _, width in shapes) == num_tokens
    for place, (row, logits) in enumerate(found.items()):
        alone = KVCache(model.config, 1, CPU, torch.float32)
        expected = model(torch.tensor([row.prompt]), kv_cache=alone)[0, -1]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        assert cache.lengths[place] == len(row.prompt)
        for ours, theirs in zip(cache.keys + cache.values, alone.keys + alone.values, strict=True):
            kept = slice(0, len(row.prompt))
            torch.testing.assert_close(ours[place, kept], theirs[0, kept], atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.usefixtures("few_tokens")
def test_the_prefill_of_a_canceled_sequence_ends() -> None:
    model = small_model()
    prefiller = prefiller_of(model)
    rows = [row_of(random_ids(30, n)) for n in range(3)]
    prefiller.add(rows)
    assert list(prefiller.step()) == [] and prefiller.num_rows == 3
    rows[0].finish_reason = rows[2].finish_reason = "length"
    prefiller.drop_finished()
    assert prefiller.num_rows == 1
    shapes = shapes_of(model)
    assert list(prefill_all(prefiller, KVCache(model.config, 1, CPU, torch.float32))) == [rows[1]]
    assert {num_rows for num_rows, _ in shapes} == {1}


@pytest.mark.usefixtures("few_tokens")
def test_a_long_prompt_does_not_stall_running_sequences() -> None:
    engine = Engine(small_model(), small_tokenizer())
    engine.end_tokens = frozenset()
    batch = engine.open(2)
    early, late = (
        engine.new_row(request)
        for request in (Request(random_ids(3, 0), 20), Request(random_ids(40, 1), 2))
    )
    batch.add([early])
    batch.step()
    batch.add([late])
    stepped = [[row for row, _ in batch.step()] for _ in range(6)]
    assert stepped == [[early]] * 4 + [[early, late]] * 2


# ---- the prefix cache


def answered(engine: Engine, prompt: list[int]) -> list[int]:
    """Tokens of an answer in an open batch, which uses the prefix cache."""
    batch = engine.open(1)
    row = engine.new_row(Request(prompt, 12, Sampling(1.0), seed=3))
    batch.add([row])
    while batch.num_rows:
        batch.step()
    return row.tokens


def test_the_next_turn_of_a_conversation_prefills_only_new_tokens_with_the_same_answer() -> None:
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
    assert shapes[0] == (
        1,
        6,
    )  # five and the newest token of the first answer
    branch = [*prompt, *random_ids(9, 2)]
    del shapes[:]
    assert answered(engine, branch) == answered(fresh, branch)
    assert shapes[0] == (1, 9)
    del shapes[:]
    assert answered(engine, prompt) == first
    assert shapes[0] == (1, 1)


def test_updated_weights_empty_the_prefix_cache() -> None:
    model, prompt = small_model(), random_ids(20, 0)
    engine = Engine(model, small_tokenizer())
    answered(engine, prompt)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), small_model(1).parameters(), strict=True):
            ours.copy_(theirs)
    assert answered(engine, prompt) == answered(Engine(model, small_tokenizer()), prompt)


@torch.inference_mode()
def test_the_prefix_cache_restores_the_longest_prefix_and_evicts_the_oldest_at_its_bound() -> None:
    model = small_model()
    texts = [random_ids(20, 0), random_ids(30, 1)]
    texts.append([*texts[0], *random_ids(10, 2)])  # continues the first
    prefix_cache, cache = PrefixCache(60), KVCache(model.config, 2, CPU, torch.float32)

    def length_of(prompt: list[int]) -> int:
        prefix_cache.restore(prompt, cache, 1)
        return cache.lengths[1]

    for number, text in enumerate(texts):
        cache.lengths[0] = 0
        cache.num_active = 1
        model(torch.tensor([text]), kv_cache=cache)
        cache.advance([len(text)])
        prefix_cache.store(text, cache, 0)
        assert length_of([*text, 1]) == len(text) and length_of(text) == len(text) - 1
        assert length_of(random_ids(40, 9)) == 0
        kept = sum(len(tokens) for tokens, _ in prefix_cache._entries)
        assert kept == [20, 50, 60][number]  # the third replaces the first
    prefix_cache.store(random_ids(61, 3), cache, 0)
    prefix_cache.store(texts[0][:15], cache, 0)
    assert length_of([*texts[1], 1]) == 30  # too long or too short to be stored
    prefix_cache.store(random_ids(20, 4), cache, 0)
    assert length_of([*texts[1], 1]) == 0 and length_of([*texts[2], 1]) == 30


def test_a_request_for_no_tokens_is_refused() -> None:
    engine = Engine(small_model(), small_tokenizer())
    with pytest.raises(UserError, match="max_tokens=0 must be 1 or more"):
        engine.open(1).add([engine.new_row(Request([1], 0))])


@pytest.mark.usefixtures("few_tokens")
def test_canceling_during_prefill_frees_the_slot() -> None:
    engine = Engine(small_model(), small_tokenizer())
    batch = engine.open(1)
    canceled = engine.new_row(Request(random_ids(40, 1), 5))
    batch.add([canceled])
    batch.step()
    batch.cancel(canceled)
    assert batch.num_rows == 0
    other = engine.new_row(Request([1, 2, 3], 5))
    batch.add([other])
    events = batch.step()
    assert [row for row, _ in events] == [other]
    while batch.num_rows:
        events = batch.step()
    assert isinstance(events[0][1][-1], Finished)
