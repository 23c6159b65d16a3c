import random
from collections.abc import Sequence
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanochat import engine as engine_module
from nanochat.chat import render_conversation, render_for_completion
from nanochat.engine import Completion, Engine, Request, RowState
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.inference import kv_cache, sequence
from nanochat.inference.detokenizer import Event, Finished, TextPiece, ToolCall
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.sampling import GREEDY, Sampling
from nanochat.inference.tools import InlineTool, Tool
from nanochat.runtime import derive_seed
from nanochat.tokenizer import RustBPETokenizer
from nanochat.training import autotune
from tests import memorized_model
from tests.reference import generation
from tests.reference import sampling as slow_sampling
from tests.small_model import ScriptedModel, follows, ids, small_model, small_tokenizer

CPU = torch.device("cpu")


def random_ids(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(265) for _ in range(count)]


def scripted(*scripts: list[int], tool: Tool = engine_module.CALCULATOR) -> Engine:
    model = ScriptedModel(follows(*scripts))
    return Engine(model, small_tokenizer(), tool)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Its first layer has a window of 32 tokens, its second sees all 64."""
    return Engine(small_model(window_pattern="SL"), small_tokenizer())


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets caches grow often."""
    monkeypatch.setattr(kv_cache, "CAPACITY_STEP", 4)


# ---- the cache


def windowed(pattern: str) -> dict[str, Any]:
    """Changes for a model of three layers; a layer with a window sees 20 tokens.

    One with windows has value embeddings in its first and last layer, and an offset key head.
    """
    is_modern = "S" in pattern
    return {
        "window_pattern": pattern, "value_embeddings": 2 * is_modern, "n_layer": 3,
        "sequence_len": 40, "key_offset_heads": int(is_modern), "rotary_share": 1 - is_modern / 2,
    }  # fmt: skip


def cached_logits(model: GPT, rows: Tensor, chunks: Sequence[int], cache: KVCache) -> Tensor:
    """(B, T, V) logits of rows processed in chunks of these lengths."""
    found, first = [], 0
    for length in chunks:
        found.append(model(rows[:, first : first + length], kv_cache=cache))
        cache.advance([length] * len(rows))
        first += length
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("pattern", ["L", "SSL"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("chunks", [[40], [1] * 40, [9, *[1] * 31], [9, 12, 1, 1, 5, 12]])
@torch.inference_mode()
def test_chunked_prefill_gives_the_logits_of_one_forward(
    kv_heads: int, chunks: list[int], pattern: str
) -> None:
    model = small_model(n_kv_head=kv_heads, **windowed(pattern))
    rows = torch.tensor([random_ids(40, seed) for seed in range(3)])
    whole = model(rows)
    by_chunks = cached_logits(model, rows, chunks, KVCache(model.config, 3, CPU, torch.float32))
    torch.testing.assert_close(by_chunks, whole, atol=1e-4, rtol=0)
    assert torch.equal(by_chunks.argmax(-1), whole.argmax(-1))


@pytest.mark.parametrize("pattern", ["L", "SSL"])
@torch.inference_mode()
def test_rows_of_different_lengths_continue_in_chunks_as_each_does_alone(pattern: str) -> None:
    model = small_model(**windowed(pattern))
    rows, lengths = [random_ids(40, seed) for seed in range(4)], [3, 17, 1, 8]
    cache = KVCache(model.config, 4, CPU, torch.float32)
    model(torch.tensor([row[:17] for row in rows]), kv_cache=cache)
    cache.advance(lengths)  # positions behind a row's length are padding
    for step in (5, 1, 1, 7):
        parts = [row[n : n + step] for row, n in zip(rows, lengths, strict=True)]
        logits = model(torch.tensor(parts), kv_cache=cache)
        cache.advance([step] * 4)
        lengths = [n + step for n in lengths]
        for row, length, found in zip(rows, lengths, logits, strict=True):
            alone = model(torch.tensor([row[:length]]))[0, -step:]
            torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_decode_of_rows_of_equal_length_reads_no_key_before_the_window() -> None:
    model = small_model(**windowed("SSL"))
    rows = torch.tensor([random_ids(36, seed) for seed in range(3)])
    cache = KVCache(model.config, 3, CPU, torch.float32)
    cached_logits(model, rows[:, :35], [35], cache)
    for store in (cache.keys[0], cache.values[0], cache.keys[1], cache.values[1]):
        store[:, : 36 - 20] = torch.nan
    torch.testing.assert_close(
        model(rows[:, 35:], kv_cache=cache)[:, 0], model(rows)[:, 35], atol=1e-4, rtol=0
    )
    cache.keys[1][:, 36 - 20] = torch.nan
    assert model(rows[:, 35:], kv_cache=cache).isnan().all()


@pytest.mark.usefixtures("small_steps")
@torch.inference_mode()
def test_a_growing_cache_holds_the_same_as_one_of_full_size() -> None:
    model = small_model()
    rows = torch.tensor([random_ids(40, seed) for seed in range(3)])
    growing, full = (KVCache(model.config, 3, CPU, torch.float32) for _ in range(2))
    full._grow_to(model.config.sequence_len)
    sizes = set()
    for first, length in [(0, 3), *((t, 1) for t in range(3, 40))]:
        for cache in (growing, full):
            model(rows[:, first : first + length], kv_cache=cache)
            cache.advance([length] * 3)
        sizes.add(growing.capacity)
    assert len(sizes) > 2 and full.capacity == model.config.sequence_len
    for ours, whole in zip(growing.keys + growing.values, full.keys + full.values, strict=True):
        assert torch.equal(ours[:, :, :40], whole[:, :, :40])


@pytest.mark.usefixtures("small_steps")
def test_a_cache_grows_to_the_context_and_not_beyond() -> None:
    model = small_model(sequence_len=10)
    cache = KVCache(model.config, 2, CPU, torch.float32)
    cached_logits(model, torch.tensor([random_ids(10)] * 2), [1] * 10, cache)
    assert cache.capacity == 10 and cache.lengths == [10, 10]
    with pytest.raises(UserError, match="11 tokens are more than the model's context of 10"):
        cache.positions(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_has_the_compute_dtype(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dtypes = small_model(), []
    model.compute_dtype = dtype
    attend = KVCache.attend

    def watched(cache: KVCache, *arguments: object) -> Tensor:
        dtypes.append((cache.keys[0].dtype, cache.values[-1].dtype))
        return attend(cache, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(KVCache, "attend", watched)
    Engine(model, small_tokenizer()).complete([random_ids(5)], max_tokens=3)
    assert set(dtypes) == {(dtype, dtype)}


def test_bfloat16_models_answer_in_a_batch() -> None:
    model = small_model()
    model.compute_dtype = torch.bfloat16
    done = Engine(model, small_tokenizer()).complete(
        [random_ids(n, n) for n in (1, 9, 30)], max_tokens=8
    )
    assert all(one.tokens for one in done)


def test_a_trained_model_has_the_same_logits_and_answers_with_a_cache_as_without() -> None:
    model, tokenizer = memorized_model.model_and_tokenizer()
    engine, prompts = Engine(model, tokenizer), []
    for messages in memorized_model.conversations():
        conversation = {"messages": messages}
        tokens, _ = render_conversation(conversation, tokenizer)
        prompts.append(render_for_completion(conversation, tokenizer))
        idx, num_prompt = torch.tensor([tokens]), len(prompts[-1])
        chunks = [num_prompt, *[1] * (len(tokens) - num_prompt)]
        cache = KVCache(model.config, 1, CPU, torch.float32)
        with torch.no_grad():
            whole = model(idx)
            found = cached_logits(engine.model, idx, chunks, cache)
        torch.testing.assert_close(found, whole, atol=1e-4, rtol=0)
        assert torch.equal(found.argmax(-1), whole.argmax(-1))
    for prompt, one in zip(prompts, engine.complete(prompts, max_tokens=60), strict=True):
        if all(one.mask):  # the reference implementation calls no tools
            expected = generation.answer(model, prompt, GREEDY, 0, 60, engine.end_tokens)
            assert one.tokens == expected


# ---- batches


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("how", [Sampling(), Sampling(1.0, top_k=40, top_p=0.95, min_p=0.01)])
def test_each_row_of_a_batch_gets_what_the_reference_gives_it_alone(
    engine: Engine, how: Sampling
) -> None:
    prompts = [random_ids(length, seed=length) for length in range(1, 25)]
    done = engine.complete(prompts, 20, *vars(how).values(), seed=list(range(len(prompts))))
    for number, (prompt, one) in enumerate(zip(prompts, done, strict=True)):
        seed = derive_seed(number, 0)
        expected = generation.answer(engine.model, prompt, how, seed, 20, engine.end_tokens)
        assert one.tokens == expected
        assert one.mask == [1] * len(expected)


@pytest.mark.parametrize("how", [Sampling(), Sampling(1.0, top_k=40, top_p=0.95, min_p=0.01)])
def test_64_prompts_of_1_to_500_tokens_get_what_the_reference_gives_each(
    how: Sampling,
) -> None:
    model = small_model(sequence_len=510, window_pattern="SL")
    engine = Engine(model, small_tokenizer())
    prompts = [random_ids(length, seed=length) for length in range(1, 500, 8)]
    prompts = [*prompts, random_ids(500, seed=500)]
    assert len(prompts) == 64
    done = engine.complete(prompts, 6, *vars(how).values(), seed=list(range(64)))
    for number, (prompt, one) in enumerate(zip(prompts, done, strict=True)):
        seed = derive_seed(number, 0)
        expected = generation.answer(model, prompt, how, seed, 6, engine.end_tokens)
        assert one.tokens == expected


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_refilled_slots_give_the_same_answers(batch_size: int) -> None:
    engine = Engine(small_model(window_pattern="SL"), small_tokenizer())
    engine.end_tokens = frozenset(range(0, 400, 12))  # so that rows finish at different times
    prompts = [random_ids(1 + 7 * n % 30, seed=n) for n in range(17)]
    how = {"max_tokens": 25, "temperature": 1.0}
    alone = [engine.complete([p], seed=[n], **how)[0] for n, p in enumerate(prompts)]  # type: ignore[arg-type]
    seeds = list(range(len(prompts)))
    assert engine.complete(prompts, seed=seeds, batch_size=batch_size, **how) == alone  # type: ignore[arg-type]
    assert len({len(one.tokens) for one in alone}) > 5


def test_a_free_slot_is_refilled_while_other_rows_run() -> None:
    end = small_tokenizer().encode_special("<|assistant_end|>")
    long = [1, *[7] * 40, end]
    short = [[2 + n, 7, end] for n in range(6)]
    engine = scripted(long, *short)
    done = engine.complete([[script[0]] for script in (long, *short)], batch_size=2)
    assert [one.tokens for one in done] == [script[1:] for script in (long, *short)]
    # 41 tokens of the long answer, and one prefill pass for each prompt that joins it
    assert engine.model.num_forwards <= 41 + len(short)  # type: ignore[attr-defined]


def test_samples_of_one_prompt_draw_their_own_first_tokens(engine: Engine) -> None:
    prompt = random_ids(9)
    done = engine.complete([prompt], max_tokens=4, temperature=1.5, seed=3, num_samples=24)
    firsts = [one.tokens[0] for one in done]
    assert len(set(firsts)) > 3
    again = engine.complete([prompt], max_tokens=4, temperature=1.5, seed=3, num_samples=24)
    assert again == done
    assert (
        engine.complete([prompt], max_tokens=4, temperature=1.5, seed=3, num_samples=5) == done[:5]
    )
    other = engine.complete([prompt], max_tokens=4, temperature=1.5, seed=4, num_samples=24)
    assert other != done


def test_eight_samples_are_the_same_beside_any_other_rows(engine: Engine) -> None:
    prompt, others = random_ids(28), [random_ids(2 + 5 * n, n) for n in range(6)]
    how = {"max_tokens": 10, "temperature": 1.2, "num_samples": 8}
    alone = engine.complete([prompt], seed=[7], **how)  # type: ignore[arg-type]
    among = engine.complete([*others, prompt], seed=[*range(6), 7], **how)  # type: ignore[arg-type]
    assert among[-8:] == alone
    assert len({tuple(one.tokens) for one in alone}) == 8
    batch = engine.open(20)
    batch.add([engine.new_row(Request(other, 10, Sampling(1.2))) for other in others])
    batch.step()
    seeds = [derive_seed(7, sample) for sample in range(8)]
    rows = [engine.new_row(Request(prompt, 10, Sampling(1.2), seed=seed)) for seed in seeds]
    batch.add(rows)
    while batch.num_rows:
        batch.step()
    assert [row.tokens for row in rows] == [one.tokens for one in alone]


@pytest.mark.parametrize("how", [Sampling(), Sampling(0.7, top_k=5), Sampling(1.3, top_p=0.8)])
def test_logprobs_are_those_of_the_reference(engine: Engine, how: Sampling) -> None:
    prompt, number = random_ids(7), 4
    batch = engine.open(2)
    row = engine.new_row(Request(prompt, 8, how, seed=1, num_top_logprobs=number))
    batch.add([engine.new_row(Request(random_ids(30), 8)), row])
    found = [row.logprob for _ in range(8) if batch.step() and row.logprob]
    tokens = [*prompt, *row.tokens]
    for place, choice in enumerate(found, start=len(prompt)):
        with torch.no_grad():
            logits = engine.model(torch.tensor([tokens[:place]]))[0, -1].tolist()
        own, top_logprobs = slow_sampling.logprobs(logits, tokens[place], number)
        assert choice.token == tokens[place]
        assert choice.logprob == pytest.approx(own, abs=1e-4)
        assert [token for token, _ in choice.top_logprobs] == [token for token, _ in top_logprobs]
        values = [value for _, value in top_logprobs]
        assert [value for _, value in choice.top_logprobs] == pytest.approx(values, abs=1e-4)
    assert len(found) == len(row.tokens)


def test_equal_prompts_draw_independently_unless_seeds_are_given(
    engine: Engine,
) -> None:
    done = engine.complete([random_ids(9)] * 12, max_tokens=6, temperature=1.5, seed=0)
    assert len({tuple(one.tokens) for one in done}) > 6
    pinned = engine.complete([random_ids(9)] * 3, max_tokens=6, temperature=1.5, seed=[5] * 3)
    assert pinned[0] == pinned[1] == pinned[2]


def test_a_prompt_is_prefilled_once_for_all_its_samples(engine: Engine) -> None:
    shapes = forward_shapes(engine.model)
    engine.complete([random_ids(9), random_ids(4)], max_tokens=2, temperature=1.0, num_samples=6)
    assert shapes == [(2, 9), (12, 1)]


def test_answers_follow_updated_weights() -> None:
    model, prompts = small_model(), [random_ids(n, n) for n in (3, 9)]
    engine = Engine(model, small_tokenizer())
    before, packed = engine.complete(prompts, max_tokens=8), engine.model
    assert engine.model is packed
    updated = small_model(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for parameter, target in zip(model.parameters(), updated.parameters(), strict=True):
        parameter.grad = parameter.detach() - target.detach()
    optimizer.step()
    expected = Engine(updated, small_tokenizer()).complete(prompts, max_tokens=8)
    assert engine.complete(prompts, max_tokens=8) == expected != before


# ---- limits


def forward_shapes(model: GPT) -> list[tuple[int, ...]]:
    """A list that collects the shape of the tokens of each forward pass from now on."""
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


@pytest.mark.parametrize("max_tokens", [0, 1, 2, 7])
def test_no_forward_pass_runs_after_the_last_token(max_tokens: int) -> None:
    model = small_model()
    shapes = forward_shapes(model)
    [one] = Engine(model, small_tokenizer()).complete([random_ids(5)], max_tokens=max_tokens)
    assert len(one.tokens) == len(shapes) == max_tokens
    assert one.finish_reason == "length"


def test_no_forward_pass_runs_after_the_end_token() -> None:
    script = ids("<|bos|>a<|assistant_start|>bc<|assistant_end|>")
    engine = scripted(script)
    [one] = engine.complete([script[:3]])
    assert one == Completion(script[3:], [1] * len(script[3:]), "stop")
    assert engine.model.num_forwards == len(script[3:])  # type: ignore[attr-defined]


def test_a_finished_row_draws_no_number_and_calls_no_tool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class CountingRandom(random.Random):
        count = 0

        def random(self) -> float:
            self.count += 1
            return super().random()

    rngs: list[CountingRandom] = []

    def make(seed: int) -> CountingRandom:
        rngs.append(CountingRandom(seed))
        return rngs[-1]

    calls: list[str] = []
    monkeypatch.setattr(sequence.random, "Random", make)
    call = "<|python_start|>1+1<|python_end|>"
    scripts = [ids(f"a<|assistant_end|>{call}{call}"), ids(f"b{'c' * 20}<|assistant_end|>")]
    engine = scripted(*scripts, tool=InlineTool(lambda text: calls.append(text)))
    done = engine.complete([script[:1] for script in scripts])
    assert [one.finish_reason for one in done] == ["stop", "stop"]
    assert [one.count for one in rngs] == [len(one.tokens) for one in done]
    assert calls == []


def test_a_prompt_without_room_for_an_answer_is_refused_naming_both_lengths(engine: Engine) -> None:
    limit = engine.model.config.sequence_len
    for length in (limit, limit + 9):
        with pytest.raises(UserError, match=f"prompt of {length} tokens .* context of {limit}"):
            engine.complete([[1], random_ids(length)])
    with pytest.raises(UserError, match="0 tokens"):
        engine.complete([[]])


def test_the_context_can_be_filled_to_its_last_position() -> None:
    model = small_model(sequence_len=12)
    for length in range(1, 12):
        row = endless_engine(model).complete([random_ids(length)])[0]
        assert (len(row.tokens), row.finish_reason) == (12 - length, "length")


def endless_engine(model: GPT) -> Engine:
    """An engine without end tokens."""
    engine = Engine(model, small_tokenizer())
    engine.end_tokens = frozenset()
    return engine


def test_no_prompts_give_no_answers(engine: Engine) -> None:
    assert engine.complete([]) == []
    assert list(engine.generate([1], num_samples=0)) == []


# ---- tools


def test_each_row_of_a_batch_calls_tools_independently() -> None:
    answers = [
        "<|python_start|>12*3<|python_end|><|output_start|>36<|output_end|>It is 36.",
        "No tool here.",
        "<|python_start|>open('x')<|python_end|>Refused.",  # no output is forced
        "<|python_start|>'berry'.count('r')<|python_end|><|output_start|>2<|output_end|>"
        "<|python_start|>2+2<|python_end|><|output_start|>4<|output_end|>",
    ]
    prompts = [ids(f"<|bos|>{n}<|assistant_start|>") for n in range(4)]
    scripts = [p + ids(f"{a}<|assistant_end|>") for p, a in zip(prompts, answers, strict=True)]
    for batch_size in (1, 3, 4):
        done = scripted(*scripts).complete(prompts, batch_size=batch_size)
        for prompt, script, one in zip(prompts, scripts, done, strict=True):
            assert one.tokens == script[len(prompt) :]
            assert one.mask == expected_mask(one.tokens)


def expected_mask(tokens: list[int]) -> list[int]:
    """0 from each <|output_start|> to its <|output_end|>, else 1."""
    (start,), (end,) = ids("<|output_start|>"), ids("<|output_end|>")
    mask, is_output = [], False
    for token in tokens:
        is_output = is_output or token == start
        mask.append(0 if is_output else 1)
        is_output = is_output and token != end
    return mask


def test_the_calculators_output_is_forced_whatever_the_model_would_sample() -> None:
    call, output = ids("<|python_start|>7*6<|python_end|>"), ids("<|output_start|>42<|output_end|>")

    def next_token(seen: list[int]) -> int:
        return [1, *call, 9][len(seen)] if len(seen) <= len(call) else 9

    engine = Engine(ScriptedModel(next_token), small_tokenizer())  # type: ignore[arg-type]
    [one] = engine.complete([[1]], max_tokens=len(call + output) + 2)
    assert one.tokens == [*call, *output, 9, 9]
    assert one.mask == [*[1] * len(call), *[0] * len(output), 1, 1]


def test_a_long_output_is_truncated_and_an_answer_may_end_within_one() -> None:
    call = ids("<|python_start|>1+1<|python_end|>")
    model = ScriptedModel(lambda seen: [1, *call, *[0] * 500][len(seen)])
    tool = InlineTool(lambda _: "12" * 500)
    engine = Engine(model, small_tokenizer(), tool)  # type: ignore[arg-type]
    [one] = engine.complete([[1]], max_tokens=len(call) + 500)
    assert one.mask.count(0) == sequence.MAX_TOOL_OUTPUT_TOKENS + 2
    [cut] = engine.complete([[1]], max_tokens=len(call) + 3)
    assert (cut.finish_reason, cut.mask[-3:]) == ("length", [0, 0, 0])


def test_a_call_that_max_tokens_ends_does_not_run_the_tool() -> None:
    call = ids("<|python_start|>1+1<|python_end|>")
    inputs: list[str] = []
    engine = scripted([1, *call, *[0] * 9], tool=InlineTool(inputs.append))
    [one] = engine.complete([[1]], max_tokens=len(call))
    assert (one.tokens, one.finish_reason, inputs) == (call, "length", [])


# ---- generate


def test_generate_and_generate_batch_agree(engine: Engine) -> None:
    prompt = random_ids(6)
    how = {"max_tokens": 30, "temperature": 1.0, "top_k": 50, "seed": 7}
    results, masks = engine.generate_batch(prompt, num_samples=5, **how)  # type: ignore[arg-type]
    columns = list(engine.generate(prompt, num_samples=5, **how))  # type: ignore[arg-type]
    for sample, (result, mask) in enumerate(zip(results, masks, strict=True)):
        tokens = [column[sample] for column, _ in columns]
        ends = [i for i, token in enumerate(tokens) if token in engine.end_tokens]
        own = tokens[: ends[0]] if ends else tokens
        assert result == prompt + own
        assert mask == [0] * len(prompt) + [column[sample] for _, column in columns][: len(own)]
        assert set(tokens[len(own) + 1 :]) <= {engine.end_token}
    assert len({len(result) for result in results}) > 1


def test_answers_during_training_come_from_the_model_that_is_not_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Compiled(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *_: object, **__: object) -> Tensor:
            raise AssertionError("each length of a prompt would be compiled again")

    def compile_it(what: object, **_: object) -> object:
        return Compiled(what) if isinstance(what, torch.nn.Module) else what

    monkeypatch.setattr(torch, "compile", compile_it)
    model = small_model()
    plan, runtime = SimpleNamespace(model=model, compile="on"), SimpleNamespace(device=CPU)
    trained = autotune.compiled(plan, 1.0, runtime)  # type: ignore[arg-type]
    assert isinstance(trained, Compiled) and trained.module is model
    done = Engine(plan.model, small_tokenizer()).complete([[1] * n for n in (3, 8)], max_tokens=4)
    assert [len(one.tokens) for one in done] == [4, 4]


# ---- an open batch


def test_sequences_that_join_and_leave_a_batch_are_each_what_they_are_alone(engine: Engine) -> None:
    requests = [
        Request(random_ids(3 + 5 * n % 17, n), 4 + 3 * n % 11, Sampling(1.0), seed=n)
        for n in range(9)
    ]
    alone = [list(engine.stream_text(r.prompt, r.max_tokens, r.sampling, r.seed)) for r in requests]
    batch, waiting = engine.open(3), list(enumerate(requests))
    found: dict[int, list[Event]] = {}
    numbers: dict[RowState, int] = {}
    while waiting or numbers:
        while waiting and len(numbers) < 3:
            number, request = waiting.pop(0)
            row = engine.new_row(request)
            batch.add([row])
            numbers[row], found[number] = number, []
        for row, events in batch.step():
            found[numbers[row]] += events
            if isinstance(events[-1] if events else None, Finished):
                del numbers[row]
    assert [found[number] for number in range(9)] == alone


def test_canceling_a_sequence_does_not_change_the_others(engine: Engine) -> None:
    requests = [Request(random_ids(4 + n, n), 12, Sampling(1.0), seed=n) for n in range(4)]
    alone = [list(engine.stream_text(r.prompt, 12, r.sampling, r.seed)) for r in requests]
    for canceled in range(4):
        batch = engine.open(4)
        rows = [engine.new_row(request) for request in requests]
        batch.add(rows)
        found: dict[RowState, list[Event]] = {row: [] for row in rows}
        for step in range(12):
            if step == 3:
                batch.cancel(rows[canceled])
            for row, events in batch.step():
                assert step < 3 or row is not rows[canceled]
                found[row] += events
        others = [n for n in range(4) if n != canceled]
        assert [found[rows[n]] for n in others] == [alone[n] for n in others]


def test_a_scored_prompt_counts_twice_among_the_tokens_to_process(engine: Engine) -> None:
    for is_scored in (False, True):
        row = engine.new_row(Request([1, 2, 3], score_prompt=is_scored))
        assert row.num_prompt_tokens == (6 if is_scored else 3)


def test_scores_are_the_logprobs_of_a_full_forward(engine: Engine) -> None:
    tokens = random_ids(15)
    with torch.no_grad():
        logprobs = engine.model(torch.tensor([tokens]))[0].log_softmax(dim=-1)
    choices = engine.score(tokens, num_top_logprobs=3)
    assert [choice.token for choice in choices] == tokens[1:]
    for place, choice in enumerate(choices):
        assert choice.logprob == pytest.approx(float(logprobs[place, choice.token]), abs=1e-5)
        top_logprobs = logprobs[place].argsort(descending=True)[:3].tolist()
        assert [token for token, _ in choice.top_logprobs] == top_logprobs


# ---- streams


def stream(script: list[int], start: int = 1, stop: Sequence[str] = ()) -> list[Event]:
    return list(scripted(script).stream_text(script[:start], stop=stop))


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, TextPiece)]


def bytes_as_tokens(text: str) -> list[int]:
    ranks = small_tokenizer().ranks
    return [ranks[bytes([byte])] for byte in text.encode()]


def test_a_stream_has_complete_code_points_only() -> None:
    text = "a\u00e9\u20ac\U0001f642z"
    script = [1, *bytes_as_tokens(text), *ids("<|assistant_end|>")]
    events = stream(script)
    assert texts(events) == list(text)
    assert events[-1] == Finished("stop", 1, len(script) - 1)


def test_the_space_before_a_text_is_not_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RustBPETokenizer, "add_prefix_space", True)
    bos, start, called, end = ids("<|bos|><|assistant_start|><|python_end|><|assistant_end|>")
    script = [bos, start, *bytes_as_tokens("  a b"), end]
    assert texts(stream(script, start=2)) == list(" a b")  # one, at the start
    assert texts(stream(script, start=1)) == list("  a b")  # of plain text none
    assert texts(stream(script, start=4)) == list("a b")  # nor of the rest of a text
    call = [*ids("<|python_start|>"), *bytes_as_tokens("x"), called]
    assert texts(stream([start, *call, *bytes_as_tokens(" so"), end])) == list("so")


def test_an_incomplete_code_point_at_the_end_becomes_one_replacement_character() -> None:
    script = [1, *bytes_as_tokens("a\U0001f642")[:-1], *ids("<|assistant_end|>")]
    assert "".join(texts(stream(script))) == "a\ufffd"


def test_a_stream_is_the_text_of_complete_without_special_tokens(engine: Engine) -> None:
    for seed in range(6):
        prompt = random_ids(5, seed)
        sampling = Sampling(1.0, top_k=200)
        pieces = engine.stream_text(prompt, 40, sampling, seed=derive_seed(seed, 0))
        events = list(pieces)
        [one] = engine.complete([prompt], 40, temperature=1.0, top_k=200, seed=[seed])
        inside = {"<|python_start|>": "<|python_end|>", "<|output_start|>": "<|output_end|>"}
        plain, until = [], ""
        for token in one.tokens:
            name = engine.tokenizer.id_to_token(token)
            is_special = name in engine.tokenizer.get_special_tokens()
            if is_special:
                until = inside.get(name, "" if name == until else until)
            elif not until:
                plain.append(token)
        assert "".join(texts(events)) == engine.tokenizer.decode(plain)
        reason = one.finish_reason
        assert events[-1] == Finished(reason, len(prompt), len(one.tokens))


def test_a_stop_string_is_not_streamed_in_whole_or_in_part() -> None:
    script = [1, *bytes_as_tokens("one STop STOP two"), *ids("<|assistant_end|>")]
    events = stream(script, stop=["STOP", ""])
    assert "".join(texts(events)) == "one STop "
    assert events[-1] == Finished("stop", 1, len("one STop STOP"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one STop STOP two", "one STop "),
        ("a ST", "a ST"),
        ("STOP", ""),
        ("\U0001f642STOP", "\U0001f642"),
    ],
)
def test_logprobs_end_where_a_stop_string_cuts_the_text(text: str, shown: str) -> None:
    engine, events = scripted([1, *bytes_as_tokens(text), *ids("<|assistant_end|>")]), []
    with closing(engine.open(1)) as batch:
        batch.add([engine.new_row(Request([1], stop=["STOP"], num_top_logprobs=0))])
        while batch.num_rows:
            events += [event for _, new in batch.step() for event in new]
    pieces = [event for event in events if isinstance(event, TextPiece)]
    assert "".join(piece.text for piece in pieces) == shown
    found = [logprob.token for piece in pieces for logprob in piece.logprobs]
    assert found == bytes_as_tokens(shown)


def test_an_unfinished_stop_string_is_streamed_at_the_end() -> None:
    script = [1, *bytes_as_tokens("a ST"), *ids("<|assistant_end|>")]
    assert texts(stream(script, stop=["STOP"])) == ["a", " ", "ST"]


@settings(max_examples=150)
@given(
    st.text("ab\u00e9\U0001f642", max_size=14),
    st.lists(st.text("ab\u00e9\U0001f642", min_size=1, max_size=4), max_size=3),
)
def test_a_stream_is_the_text_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    script = [1, *bytes_as_tokens(text), *ids("<|assistant_end|>")]
    expected = text
    for end in range(len(text) + 1):  # the first position at which a stop string is complete
        found = [text[:end].find(string) for string in stop if string in text[:end]]
        if found:
            expected = text[: min(found)]
            break
    assert "".join(texts(stream(script, stop=stop))) == expected


def test_a_tool_call_is_one_event_and_not_part_of_the_text() -> None:
    answer = (
        "So: <|python_start|>7*6<|python_end|><|output_start|>42<|output_end|> is it."
        "<|assistant_end|>"
    )
    events = stream([1, *ids(answer)])
    assert "".join(texts(events)) == "So:  is it."
    assert [event for event in events if isinstance(event, ToolCall)] == [ToolCall("7*6", "42")]
    before = events[: events.index(ToolCall("7*6", "42"))]
    assert "".join(texts(before)) == "So: "


def test_a_call_without_output_is_an_event_without_a_result() -> None:
    call = "<|python_start|>hello<|python_end|>"
    for behind in (" text<|assistant_end|>", "<|assistant_end|>", f"{call}<|assistant_end|>"):
        events = stream([1, *ids(call + behind)])
        calls = [event for event in events if isinstance(event, ToolCall)]
        assert calls == [ToolCall("hello", None)] * (1 + behind.count("hello"))


def test_an_output_that_the_model_invents_is_not_a_result() -> None:
    invented = "<|output_start|>99<|output_end|>"
    refused = f"<|python_start|>hello<|python_end|>{invented} so<|assistant_end|>"
    events = stream([1, *ids(refused)])
    assert [event for event in events if isinstance(event, ToolCall)] == [ToolCall("hello", None)]
    events = stream([1, *ids(f"x{invented} so<|assistant_end|>")])
    assert not [event for event in events if isinstance(event, ToolCall)]
    assert "99" not in "".join(texts(events))


def test_the_end_of_a_call_that_never_began_is_ignored() -> None:
    done = "<|python_start|>1+1<|python_end|><|output_start|>2<|output_end|>"
    events = stream([1, *ids(f"{done}<|python_end|> x<|assistant_end|>")])
    assert [event for event in events if isinstance(event, ToolCall)] == [ToolCall("1+1", "2")]


def test_closing_a_stream_stops_the_work() -> None:
    engine = scripted([1, *ids("a long answer that the client does not read<|assistant_end|>")])
    events = engine.stream_text([1])
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert engine.model.num_forwards <= 2  # type: ignore[attr-defined]


def test_equal_seeds_give_equal_streams_and_different_ones_do_not(engine: Engine) -> None:
    def once(seed: int) -> list[Event]:
        return list(engine.stream_text(random_ids(5), 20, Sampling(1.5), seed))

    assert once(1) == once(1)
    assert len({str(once(seed)) for seed in range(5)}) > 3
