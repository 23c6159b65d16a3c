"""How fast the data loader is, and what it costs one rank of many.

    python -m dev.bench.dataloader --corpus DIR
    python -m dev.bench.dataloader --corpus DIR --epochs 3      one run from its start to its end

DIR holds parquet shards with a column `text`. Every rank encodes the whole token stream and keeps
its own rows, so its cost per token of the stream hardly falls with the number of ranks. Seconds of
the processor are what can be compared on a machine that others use too.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

from nanochat.chat import Conversation
from nanochat.data.batch import Batch
from nanochat.data.chat_batches import packed_conversations
from nanochat.data.shards import Documents
from nanochat.dataloader import tokenizing_distributed_data_loader
from nanochat.tokenizer import RustBPETokenizer

RESULTS = Path(__file__).parent / "results"
WORLD_SIZES = (1, 8, 512)
SEQUENCE_LEN = 2048
ROWS_PER_RANK = 32  # of a step on up to 8 ranks; 4 on 512, a step of 4.2M tokens
GPU_TOKENS_PER_SECOND = 125_000  # of an H100 at depth 20: 1M tok/s on eight
# Of one GPU by depth, measured on an H200, and of the ranks of a node.
CONSUMED_BY_DEPTH, NODE_RANKS = {12: 590_000, 20: 182_700}, 8
STEPS = 20  # timed; a step reads as many rows as it trains on


def measure(batches: Iterator[Batch], step_tokens: int) -> dict[str, float]:
    """Of the first batch, which needs a whole block of rows, and of the steps after it."""
    start = time.perf_counter()
    next(batches)
    first_batch = time.perf_counter() - start
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in islice(batches, STEPS):
        pass
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    num_tokens = STEPS * step_tokens
    return {
        "first batch, s": first_batch,
        "tok/s": num_tokens / wall,
        "tok/s per core": num_tokens / cpu,
    }


class CountedDocuments:
    """Documents that count the bytes of those that were taken."""

    def __init__(self, documents: Documents) -> None:
        self.documents, self.num_bytes = documents, 0

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, indices: slice) -> Any:
        texts = self.documents[indices]
        self.num_bytes += texts.nbytes  # with 8 bytes per document
        return texts


def whole_run(
    corpus: Path, tokenizer: RustBPETokenizer, num_threads: int, num_epochs: int
) -> dict[str, float]:
    """One rank of a node through some epochs: whether later steps cost more; processor seconds."""
    documents = CountedDocuments(Documents(sorted(corpus.glob("*.parquet"))))
    rows = ROWS_PER_RANK * NODE_RANKS
    batches = tokenizing_distributed_data_loader(
        documents, tokenizer, num_threads=num_threads, rows=rows, sequence_len=SEQUENCE_LEN,
        rank=0, world_size=NODE_RANKS, num_steps=10**6,
    )  # fmt: skip
    seconds, sizes, start, before, progress = [], [], time.process_time(), 0, 0.0
    while progress < num_epochs:
        progress = next(batches).metrics["epoch"]
        seconds.append(time.process_time() - start)
        sizes.append(documents.num_bytes - before)
        start, before = time.process_time(), documents.num_bytes
    steps, step_tokens = seconds[1:], rows * SEQUENCE_LEN  # the first one reads a block ahead
    quarter = len(steps) // 4
    needed = {depth: step_tokens / NODE_RANKS / rate for depth, rate in CONSUMED_BY_DEPTH.items()}
    return {
        "documents": len(documents), "epochs": progress, "steps": len(seconds),
        "tokens of a step": step_tokens, "encoded bytes per step": statistics.mean(sizes[1:]),
        "s per step, first quarter": statistics.mean(steps[:quarter]),
        "s per step, last quarter": statistics.mean(steps[-quarter:]),
        "s of the slowest step": max(steps),
        **{f"s per step of {NODE_RANKS} GPUs at depth {n}": one for n, one in needed.items()},
        **{f"times as fast as they at depth {n}, last quarter":
           one / statistics.mean(steps[-quarter:]) for n, one in needed.items()},
    }  # fmt: skip


def conversations(documents: Documents) -> list[Conversation]:
    """Of three turns each, about 550 tokens, as in SmolTalk."""
    made: list[Conversation] = []
    for text in islice(documents, 2000):
        turns = [text[start : start + 900] for start in (0, 900, 1800)]
        messages = [
            {"role": role, "content": turn[part] or "?"}
            for turn in turns
            for role, part in (("user", slice(200)), ("assistant", slice(200, None)))
        ]
        made.append({"messages": messages})
    return made


def round_of(corpus: Path, tokenizer: RustBPETokenizer, num_threads: int) -> dict[str, Any]:
    """Figures of text by world size, and of conversations."""
    documents = Documents(sorted(corpus.glob("*.parquet")))
    figures = {}
    for world_size in WORLD_SIZES:
        rows = ROWS_PER_RANK * 8 if world_size <= 8 else 4 * world_size
        shape: dict[str, Any] = {
            "rows": rows, "sequence_len": SEQUENCE_LEN, "rank": 0, "world_size": world_size,
            "num_steps": 10**6,  # so that the last block is far away
        }  # fmt: skip
        step_tokens = rows * SEQUENCE_LEN
        text = tokenizing_distributed_data_loader(
            documents, tokenizer, num_threads=num_threads, **shape
        )
        figures[f"text, rank 0 of {world_size}"] = measure(text, step_tokens)
        if world_size == 8:
            chats = packed_conversations(conversations(documents), tokenizer, seed=1, **shape)
            figures["conversations, rank 0 of 8"] = measure(chats, step_tokens)
    return figures


def main() -> None:
    """Measure in rounds and keep the medians as dev/bench/results/dataloader-DATE.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num_threads", type=int, default=4)
    parser.add_argument("--vocab_size", type=int, default=65_536)
    parser.add_argument("--out", type=Path, default=RESULTS / f"dataloader-{date.today()}.json")
    parser.add_argument("--epochs", type=int, default=0, help="only one run of so many epochs")
    options = parser.parse_args()
    texts = islice(Documents(sorted(options.corpus.glob("*.parquet"))[:1]), 20_000)
    tokenizer = RustBPETokenizer.train_from_iterator(texts, options.vocab_size)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {options.num_threads} threads"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.epochs:
        figures = whole_run(options.corpus, tokenizer, options.num_threads, options.epochs)
        results: dict[str, Any] = {"machine": machine, "whole run": figures}
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(results, indent=1))
        return
    rounds = [
        round_of(options.corpus, tokenizer, options.num_threads) for _ in range(options.rounds)
    ]
    medians = {
        what: {name: statistics.median(one[what][name] for one in rounds) for name in figures}
        for what, figures in rounds[0].items()
    }
    for world_size in WORLD_SIZES[1:]:
        figures = medians[f"text, rank 0 of {world_size}"]
        needed = world_size * GPU_TOKENS_PER_SECOND
        figures[f"cores per rank at {needed:,} tok/s"] = needed / figures["tok/s per core"]
    results = {"machine": machine, "medians": medians, "rounds": rounds}
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for what, figures in medians.items():
        print(what, {name: float(f"{value:.3g}") for name, value in figures.items()})
    print(options.out)


if __name__ == "__main__":
    main()
