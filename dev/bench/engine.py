"""Speed of the engine: one request next to transformers, and many at once.

    python -m dev.bench.engine                       depth 4, about two minutes
    python -m dev.bench.engine --depth 20 --batches 1 32 256 --device cuda
    python -m dev.bench.engine --depth 20 --batches 1 32 256 --device cuda --targets

The last one only measures what there are targets for on an H200. The weights are random, since
speed does not depend on them, and no token ends an answer. The sides of a comparison run in
alternation, and medians and ratios of medians are reported. The share of bandwidth is the bytes
that a step must read (all matrices once, and the cache) over the bytes that the device copies in
the same time (read and written).
"""

import argparse
import functools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from nanochat import export
from nanochat.engine import Engine, Request
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import compute_dtype
from nanochat.tokenizer import RustBPETokenizer

ROOT = Path(__file__).parents[2]
VOCAB_SIZE, PROMPT_TOKENS, ANSWER_TOKENS = 32_768, 32, 64
NUM_REQUESTS = 32  # for continuous batching against one request after the other
LOAD = 64  # simultaneous requests, for the time to first token
# Milliseconds on one H200 at depth 20: of a step by its rows, and of the other two measurements.
STEP_TARGETS = {1: 0.6, 32: 0.9, 256: 2.0}
FIRST_TOKENS_TARGET, WAIT_TARGET = 60.0, 15.0


# ---- instruments


def random_model(depth: int, sequence_len: int, device: torch.device, values: int = 0) -> GPT:
    """A model in the dtype that commands use on the device; values: its value embeddings."""
    config = GPTConfig.from_depth(
        depth, vocab_size=VOCAB_SIZE, sequence_len=sequence_len, value_embeddings=values
    )
    model = GPT(config, compute_dtype=compute_dtype(device)).to(device)
    model.rotary.init_tables()
    generator = torch.Generator(device).manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # zeros would make all answers equal
            parameter.normal_(0.0, parameter.size(-1) ** -0.5, generator=generator)
    return model.eval()


def endless_engine(model: GPT) -> Engine:
    """An engine without end tokens, with a tokenizer trained on random letters."""
    letters = "".join(random.Random(0).choices("abcdefgh ", k=600_000))
    engine = Engine(model, RustBPETokenizer.train_from_iterator([letters], VOCAB_SIZE))
    engine.end_tokens = frozenset()
    return engine


def exported(model: GPT, engine: Engine) -> Any:
    """The exported model in `transformers`, on the same device in the same dtype."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        export.export_hf(model, engine.tokenizer, out, model.compute_dtype)
        peer = AutoModelForCausalLM.from_pretrained(out, dtype=model.compute_dtype)
    return peer.eval().to(model.embedding.weight.device)


def prompts(count: int, length: int | None = None, seed: int = 0) -> list[list[int]]:
    """Random prompts of a length, or of lengths between 1 and 2 * PROMPT_TOKENS."""
    rng = random.Random(seed)
    lengths = [length or rng.randint(1, 2 * PROMPT_TOKENS) for _ in range(count)]
    return [[rng.randrange(VOCAB_SIZE) for _ in range(n)] for n in lengths]


def seconds(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, in alternation, after one warm-up."""
    for call in calls.values():
        call()
    measured: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            measured[name].append(time.perf_counter() - start)
    return measured


def copy_bandwidth(device: torch.device) -> float:
    """Bytes/s, read plus written, of a copy far larger than any cache (2 * 256 MiB)."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * source.nbytes / min(seconds({"copy": copy}, 5)["copy"])


# ---- the measurements


def one_request(engine: Engine, peer: Any, repeats: int) -> dict[str, Any]:
    """Decode of one request by the engine and by `transformers`; greedy tokens are compared."""
    [prompt] = prompts(1, PROMPT_TOKENS)
    idx = torch.tensor([prompt], device=engine.model.embedding.weight.device)

    def ours() -> list[int]:
        return engine.complete([prompt], max_tokens=ANSWER_TOKENS)[0].tokens

    @torch.inference_mode()
    def theirs() -> list[int]:
        answer = peer.generate(
            idx, max_new_tokens=ANSWER_TOKENS, min_new_tokens=ANSWER_TOKENS, do_sample=False
        )
        return list(answer[0, len(prompt) :].tolist())

    is_equal = ours() == theirs()
    measured = seconds({"ours": ours, "transformers": theirs}, repeats)
    return {**rates(measured, ANSWER_TOKENS), "equal_tokens": is_equal}


def rates(measured: dict[str, list[float]], num_tokens: int) -> dict[str, Any]:
    """tok/s of two sides by their medians, and the ratio of the first to the second."""
    per_second = {name: num_tokens / statistics.median(times) for name, times in measured.items()}
    first, second = per_second.values()
    return {
        "tok/s": {name: round(value, 1) for name, value in per_second.items()},
        "ratio": round(first / second, 2),
        "seconds": {name: [round(one, 3) for one in times] for name, times in measured.items()},
    }


def many_requests(engine: Engine, repeats: int) -> dict[str, Any]:
    """Prompts of different lengths, by continuous batching and one after the other."""
    requests = prompts(NUM_REQUESTS)

    def batched() -> None:
        engine.complete(requests, max_tokens=ANSWER_TOKENS, batch_size=NUM_REQUESTS)

    def one_by_one() -> None:
        for prompt in requests:
            engine.complete([prompt], max_tokens=ANSWER_TOKENS)

    measured = seconds({"batched": batched, "one_by_one": one_by_one}, repeats)
    return rates(measured, NUM_REQUESTS * ANSWER_TOKENS)


def by_batch(
    model: GPT, engine: Engine, batches: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """tok/s and share of the bandwidth by number of rows."""
    config, counts = model.config, model.num_parameters()
    bandwidth = copy_bandwidth(model.embedding.weight.device)
    matrices = counts["total"] - counts["embedding"]
    cached = 2 * config.n_layer * config.n_kv_head * config.head_dim  # keys and values per token
    results = []
    for batch in batches:
        answer = functools.partial(engine.complete, prompts(batch, PROMPT_TOKENS), batch_size=batch)
        calls = {
            "first": functools.partial(answer, max_tokens=1),
            "whole": functools.partial(answer, max_tokens=ANSWER_TOKENS + 1),
        }
        first, whole = (statistics.median(times) for times in seconds(calls, repeats).values())
        step = (whole - first) / ANSWER_TOKENS  # prefill, which both have, cancels out
        read = model.compute_dtype.itemsize * (
            matrices + batch * cached * (PROMPT_TOKENS + ANSWER_TOKENS / 2)
        )
        results.append({
            "rows": batch,
            "tok/s": round(batch / step, 1),
            "milliseconds_per_step": round(1e3 * step, 2),
            "first_token_milliseconds": round(1e3 * first, 1),
            "GB/s": round(read / step / 1e9, 1),
            "share_of_copy_bandwidth": round(read / step / bandwidth, 2),
        })  # fmt: skip
    return results


def under_load(engine: Engine, num_slots: int) -> dict[str, Any]:
    """Time to first token of simultaneous requests, admitted as in the server."""
    from nanochat.web.worker import EnginePool

    requests = [Request(prompt, ANSWER_TOKENS) for prompt in prompts(LOAD)]
    firsts: dict[int, float] = {}
    lasts: dict[int, float] = {}
    pool = EnginePool([engine], num_slots, max_waiting=LOAD)
    start = time.perf_counter()

    def record(number: int, _: object) -> None:
        lasts[number] = time.perf_counter() - start
        firsts.setdefault(number, lasts[number])

    pool.submit(requests, record)
    pool.start(lambda call: call())
    scheduler = pool.workers[0].scheduler
    while scheduler.waiting or scheduler.running:
        time.sleep(0.01)
    pool.stop()
    assert len(firsts) == LOAD
    waits = sorted(firsts.values())
    return {
        "slots": num_slots,
        "first_token_seconds": {
            "median": round(statistics.median(waits), 3), "slowest": round(waits[-1], 3)
        },
        "all_done_seconds": round(max(lasts.values()), 3),
    }  # fmt: skip


def during_long_prefill(engine: Engine, num_tokens: int, repeats: int) -> dict[str, Any]:
    """Milliseconds between tokens of an answer with and without the prefill of a long prompt."""
    gaps: dict[str, list[float]] = {"without": [], "with": []}
    for repeat in range(-1, repeats):  # the first for warm-up
        # A new one: the prefix cache must not have it.
        [long] = prompts(1, num_tokens, seed=2 + repeat)
        batch = engine.open(2)
        batch.add([engine.new_row(Request(prompt, 40)) for prompt in prompts(1)])
        for step in range(40):
            if step == 20:
                batch.add([engine.new_row(Request(long, 1))])
            is_prefilling = batch.num_rows > 1
            start = time.perf_counter()
            batch.step()
            if step >= 5 and repeat >= 0:  # after the prefill of its own prompt
                name = "with" if is_prefilling else "without"
                gaps[name].append(1e3 * (time.perf_counter() - start))
        batch.close()
    return {
        "prompt_tokens": num_tokens,
        "median": {name: round(statistics.median(times), 1) for name, times in gaps.items()},
        "longest": {name: round(max(times), 1) for name, times in gaps.items()},
    }


# ---- the command


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--sequence-len", type=int, default=1024)
    parser.add_argument("--value-embeddings", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--targets", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    values = options.value_embeddings
    model = random_model(options.depth, options.sequence_len, device, values)
    engine = endless_engine(model)
    results = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "device": options.device,
        "threads": options.threads,
        "model": model.config.to_dict(),
        "parameters": model.num_parameters()["total"],
    }
    if not options.targets:
        peer = exported(model, engine)
        results |= {
            "one_request": one_request(engine, peer, options.repeats),
            "many_requests": many_requests(engine, options.repeats),
            "under_load": under_load(engine, options.slots),
        }
    results |= {
        "by_batch": by_batch(model, engine, options.batches, options.repeats),
        "during_long_prefill": during_long_prefill(
            engine, options.sequence_len - 2 * PROMPT_TOKENS, options.repeats
        ),
    }
    out = options.out or ROOT / f"dev/bench/results/engine-{results['date']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
