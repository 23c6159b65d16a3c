"""Speed of CORE: batches that share few-shot prefixes next to one sequence at a time.

    python -m dev.bench.core_eval                  depth 4, 18 tasks x 100 items, about 20 minutes
    python -m dev.bench.core_eval --items 10

The reference is tests/reference/core.py. The weights are random, since speed does not depend on
them; the tokenizer is trained on the questions. Both sides evaluate the same items, a share of
each task at a time, in alternation. The ratio is that of the total seconds; CPU seconds are beside
them, because only they can be compared on a shared machine. Predictions that differ are counted.
Tasks whose files are not the original ones are left out.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from nanochat import core_eval
from nanochat.core_eval import CoreTask, Item
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import RustBPETokenizer
from scripts.base_eval import TOKENS_PER_BATCH
from tests.reference import core as reference

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "eval"
VOCAB_SIZE, SEQUENCE_LEN = 32_768, 2048

Side = Callable[[CoreTask, list[Item], range], list[int]]


def random_model(depth: int, dtype: torch.dtype) -> GPT:
    """No weight is zero, as all outputs of blocks would be."""
    config = GPTConfig.from_depth(depth, vocab_size=VOCAB_SIZE, sequence_len=SEQUENCE_LEN)
    model = GPT(config, compute_dtype=dtype)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(draw * parameter.size(-1) ** -0.5)
    return model.eval()


def tokenizer_of(data: Path, tasks: list[CoreTask]) -> RustBPETokenizer:
    """A tokenizer trained on all questions."""
    texts = [
        text
        for task in tasks
        for item in core_eval.read_items(data, task)
        for text in core_eval.make_prompts(task, item, [])
    ]
    return RustBPETokenizer.train_from_iterator(texts, VOCAB_SIZE)


def both_sides(model: GPT, tokenizer: RustBPETokenizer) -> dict[str, Side]:
    """The predictions of the items at some indices, by either implementation."""
    engine = Engine(model, tokenizer)

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer.encode(texts, prepend="<|bos|>")

    def batched(task: CoreTask, items: list[Item], indices: range) -> list[int]:
        problems = core_eval.make_problems(task, items, indices, encode, SEQUENCE_LEN)
        return core_eval.predictions(problems, engine.logits_at, TOKENS_PER_BATCH["cpu"])

    def one_at_a_time(task: CoreTask, items: list[Item], indices: range) -> list[int]:
        return [reference.prediction(task, items, i, model, tokenizer) for i in indices]

    return {"batched": batched, "one at a time": one_at_a_time}


def compared(
    task: CoreTask, items: list[Item], sides: dict[str, Side], shares: int
) -> dict[str, Any]:
    """Seconds of each side and share, and how many predictions differ."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu_seconds = dict.fromkeys(sides, 0.0)
    num_different = 0
    for share in range(shares):
        found = []
        order = list(sides.items())
        for name, predict in order if share % 2 == 0 else reversed(order):
            start, cpu_start = time.perf_counter(), time.process_time()
            found.append(predict(task, items, range(share, len(items), shares)))
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name] += time.process_time() - cpu_start
        num_different += sum(a != b for a, b in zip(*found, strict=True))
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    return {
        "kind": task.kind,
        "items": len(items),
        "seconds": {name: round(sum(times), 3) for name, times in seconds.items()},
        "CPU seconds": {name: round(total, 3) for name, total in cpu_seconds.items()},
        "median ratio": round(statistics.median(ratios), 2),
        "different predictions": num_different,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--items", type=int, default=100, help="of each task")
    parser.add_argument("--shares", type=int, default=3, help="parts that alternate")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    unpublished = core_eval.unpublished_files(options.data)
    tasks = [task for task in core_eval.core_tasks() if task.label not in unpublished]
    tokenizer = tokenizer_of(options.data, tasks)
    model = random_model(options.depth, getattr(torch, options.dtype))
    sides = both_sides(model, tokenizer)
    for predict in sides.values():  # the first calls lay out weights and start threads
        predict(tasks[0], core_eval.read_items(options.data, tasks[0], 12), range(2))
    results = {}
    for task in tasks:
        items = core_eval.read_items(options.data, task, options.items)
        results[task.label] = compared(task, items, sides, options.shares)
        print(f"{task.label:34s} {results[task.label]}", flush=True)
    totals = {
        unit: {name: round(sum(r[unit][name] for r in results.values()), 2) for name in sides}
        for unit in ("seconds", "CPU seconds")
    }
    summary = {
        "date": date.today().isoformat(),
        "depth": options.depth, "vocab_size": VOCAB_SIZE, "sequence_len": SEQUENCE_LEN,
        "dtype": options.dtype, "threads": torch.get_num_threads(), "cores": os.cpu_count(),
        "torch": torch.__version__, "load average": [round(load, 1) for load in os.getloadavg()],
        "items": sum(r["items"] for r in results.values()),
        **totals,
        "ratio": round(totals["seconds"]["one at a time"] / totals["seconds"]["batched"], 2),
        "ratio of CPU seconds": round(
            totals["CPU seconds"]["one at a time"] / totals["CPU seconds"]["batched"], 2
        ),
        "different predictions": sum(r["different predictions"] for r in results.values()),
        "tasks": results,
    }  # fmt: skip
    print({name: value for name, value in summary.items() if name != "tasks"})
    if options.out:
        options.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
