"""How fast tokenizers are trained and how fast they encode: ours beside others, in alternation.

    python dev/bench/tokenizer.py --corpus DIR            everything, half an hour
    python dev/bench/tokenizer.py --corpus DIR --only encode --repeats 1

The peers go into an environment of their own, made on the first run (rustbpe 0.1.0 bears the name
of our module). Every measurement is a process of its own, but for encoding: there two systems take
turns in one. DIR holds parquet shards with a column `text`, the last one for validation. Beside
seconds by the clock there are seconds of the processor, which is what can be compared on a machine
that others use too.
"""

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PEERS_DIR = Path(tempfile.gettempdir()) / "nanochat-tokenizer-peers"
PEERS = ("rustbpe==0.1.0", "tokenizers", "tiktoken", "gigatoken", "numpy", "pyarrow", "psutil")
OURS_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
# As gigatoken and tiktoken have it built in.
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
TRAINERS = ("ours", "rustbpe", "tokenizers")
# Those of a group take turns in one process; the slow ones make millions of Python's numbers, whose
# memory the others are not to find freed.
ENCODERS = {"ours,gigatoken": 11, "tiktoken,tokenizers": 1}


# ---- what a measuring process does


def texts_of(shards: list[Path]) -> list[str]:
    """All texts of some shards as Python strings."""
    import pyarrow.parquet as pq

    return [text for shard in shards for text in pq.read_table(shard)["text"].to_pylist()]


class Measured:
    """Seconds of clock and processor within, and memory beyond what was there before."""

    def __enter__(self) -> "Measured":
        import psutil

        self.process = psutil.Process()
        self.before = self.peak = self.process.memory_info().rss
        self.is_over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def _watch(self) -> None:
        while not self.is_over.wait(0.02):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self.wall
        self.cpu = time.process_time() - self.cpu
        self.is_over.set()

    def figures(self, num_bytes: int) -> dict[str, float]:
        return {
            "seconds": round(self.wall, 3),
            "cpu_seconds": round(self.cpu, 3),
            "MB/s": round(num_bytes / self.wall / 1e6, 1),
            "MB/cpu_s": round(num_bytes / self.cpu / 1e6, 1),
            "peak_MB": round((self.peak - self.before) / 1e6),
        }


def measure_training(system: str, shards: list[Path], vocab_size: int, merges_file: Path) -> Any:
    texts = texts_of(shards)
    num_bytes = sum(len(text.encode()) for text in texts)
    tokens: list[bytes] = []
    with Measured() as measured:
        if system == "tokenizers":
            train_huggingface(texts, vocab_size)
        else:
            import rustbpe

            trainer = rustbpe.Tokenizer()
            trainer.train_from_iterator(iter(texts), vocab_size, pattern=OURS_PATTERN)
            tokens = [token for token, _ in trainer.get_mergeable_ranks()]
    merges_file.write_text("\n".join(token.hex() for token in tokens))
    return measured.figures(num_bytes)


def train_huggingface(texts: list[str], vocab_size: int) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(OURS_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(iter(texts), trainer)


def encoder_of(system: str, ranks_file: Path, num_threads: int) -> Callable[[list[str]], Any]:
    """Encodes a list of texts, to buffers where the system can, else to lists."""
    if system == "gigatoken":
        sys.path.append(sysconfig.get_path("purelib", vars={"base": str(PEERS_DIR)}))
        import gigatoken

        tokenizer = gigatoken.Tokenizer.from_tiktoken(ranks_file, pretokenizer="gpt4")
        return lambda texts: tokenizer.encode_batch(texts, parallel=num_threads > 1)
    sys.path.insert(0, str(ROOT))
    from nanochat.tokenizer import HuggingFaceTokenizer, RustBPETokenizer, TiktokenTokenizer

    if system == "ours":
        ours = RustBPETokenizer.from_tiktoken(ranks_file, GPT4_PATTERN)
        return lambda texts: ours.encode_to_array(texts, num_threads)
    kind = {"tiktoken": TiktokenTokenizer, "tokenizers": HuggingFaceTokenizer}[system]
    peer = kind.from_tiktoken(ranks_file, GPT4_PATTERN)
    return lambda texts: peer.encode(texts, num_threads=num_threads)


def measure_encoding(
    systems: list[str], shards: list[Path], ranks_file: Path, rounds: int
) -> dict[str, Any]:
    """Figures of each system with one thread and with two, in turn: medians, also of ratios."""
    turns = defaultdict(list)
    for _ in range(rounds):
        for name, figures in encoding_round(systems, shards, ranks_file).items():
            turns[name].append(figures)
    found: dict[str, Any] = {name: middle(figures) for name, figures in turns.items()}
    pairs = [(f"{system} 2", f"{system} 1") for system in systems]
    pairs += [(f"{systems[0]} 1", f"{peer} 1") for peer in systems[1:]]
    for one, other in pairs:
        found[f"{one} / {other}"] = {
            label: statistics.median(
                round(slow[label]["seconds"] / fast[label]["seconds"], 2)
                for fast, slow in zip(turns[one], turns[other], strict=True)
            )
            for label in turns[one][0]
        }
    return found


def encoding_round(systems: list[str], shards: list[Path], ranks_file: Path) -> dict[str, Any]:
    """By a new encoder, by one that has seen other text, then the same words: in new strings, and
    in strings seen before, beside which a system may have made Python keep their UTF-8."""
    ours, other = shards[-1:], texts_of(shards[:1])
    num_bytes = sum(len(text.encode()) for text in texts_of(ours))
    found = defaultdict[str, dict[str, Any]](dict)
    encoders, texts = {}, {}
    for label in ("new encoder", "new text", "same words", "same strings"):
        for name, system, num_threads in [(f"{it} {n}", it, n) for it in systems for n in (1, 2)]:
            if label.startswith("new"):
                encoders[name] = encoder_of(system, ranks_file, num_threads)
            if label == "new text":
                encoders[name](other)
            if label != "same strings":
                texts[name] = texts_of(ours)
            with Measured() as measured:
                encoders[name](texts[name])
            found[name][label] = measured.figures(num_bytes)
    return found


def measure_short(ranks_file: Path) -> Any:
    """Microseconds of a call with one short chat message, and with an empty one."""
    sys.path.insert(0, str(ROOT))
    from nanochat.tokenizer import RustBPETokenizer

    tokenizer = RustBPETokenizer.from_tiktoken(ranks_file, GPT4_PATTERN)
    found = {}
    for label, text in (("message", "Why is the sky blue? Tell me, please."), ("empty", "")):
        best = min(repeated(partial(tokenizer.encode, text)) for _ in range(20))
        found[label] = round(best * 1e6, 2)
    return found


def repeated(call: Callable[[], object], times: int = 2000) -> float:
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times


def measure_adversarial(ranks_file: Path) -> Any:
    """Seconds for one megabyte of runs."""
    sys.path.insert(0, str(ROOT))
    from nanochat.tokenizer import RustBPETokenizer

    tokenizer = RustBPETokenizer.from_tiktoken(ranks_file, GPT4_PATTERN)
    found = {}
    for name, unit in {"a": "a", "space": " ", "emoji": "🙂", "ab": "ab", "newline": "\n"}.items():
        text = unit * (1_000_000 // len(unit.encode()))
        began = time.perf_counter()
        tokenizer.encode(text)
        found[name] = round(time.perf_counter() - began, 4)
    return found


def measure_equality(shards: list[Path], ranks_file: Path) -> Any:
    """Texts whose ids differ from tiktoken's and from Hugging Face's: there should be none."""
    sys.path.insert(0, str(ROOT))
    from nanochat.tokenizer import HuggingFaceTokenizer, RustBPETokenizer, TiktokenTokenizer
    from tests.strings import generated_strings

    ours = RustBPETokenizer.from_tiktoken(ranks_file, GPT4_PATTERN)
    texts = {"validation shard": texts_of(shards[-1:])}
    texts["generated strings"] = list(generated_strings(1_000_000))
    found = {}
    for name, some in texts.items():
        ids = ours.encode(some)
        found[name] = {"texts": len(some), "tokens": sum(map(len, ids))}
        for kind in (TiktokenTokenizer, HuggingFaceTokenizer):
            theirs = kind.from_tiktoken(ranks_file, GPT4_PATTERN).encode(some)
            found[name][kind.__name__] = sum(a != b for a, b in zip(ids, theirs, strict=True))
    return found


def measure_loader(shards: list[Path], ranks_file: Path) -> Any:
    """From parquet to token buffers: rows of 2048, 32 a step, the loader's own threads."""
    sys.path.insert(0, str(ROOT))
    from nanochat.data.shards import Documents
    from nanochat.dataloader import tokenizing_distributed_data_loader
    from nanochat.tokenizer import RustBPETokenizer

    tokenizer = RustBPETokenizer.from_tiktoken(ranks_file, GPT4_PATTERN)
    sizes = tokenizer.token_bytes()
    documents = Documents(shards)
    batches = tokenizing_distributed_data_loader(
        documents, tokenizer, rows=32, sequence_len=2048, rank=0, world_size=1, num_steps=200
    )
    next(batches)
    with Measured() as measured:
        taken = [batch.targets for batch in batches]
    num_bytes = sum(sizes[token] for rows in taken for row in rows.tolist() for token in row)
    num_tokens = sum(rows.numel() for rows in taken)
    return measured.figures(num_bytes) | {"tokens/s": round(num_tokens / measured.wall)}


# ---- what the command does


def peers_python() -> str:
    """The interpreter of an environment with the peers."""
    python = PEERS_DIR / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS_DIR)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *PEERS]
        subprocess.run(command, check=True)
    return str(python)


def measured_elsewhere(system: str, *arguments: object) -> Any:
    """The figures that a process of its own prints."""
    is_peer = arguments[0] == "train" and system != "ours"
    python = peers_python() if is_peer else sys.executable
    command = [python, __file__, "--measure", system, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=PEERS_DIR)
    return json.loads(done.stdout.splitlines()[-1])


def measure(system: str, what: str, corpus: str, *rest: str) -> Any:
    shards = sorted(Path(corpus).glob("*.parquet"))
    if what == "train":
        return measure_training(system, shards[:-1], int(rest[0]), Path(rest[1]))
    ranks_file = Path(rest[0])
    if what == "encode":
        return measure_encoding(system.split(","), shards, ranks_file, int(rest[1]))
    if what == "short":
        return measure_short(ranks_file)
    if what == "equal":
        return measure_equality(shards, ranks_file)
    return measure_adversarial(ranks_file) if what == "runs" else measure_loader(shards, ranks_file)


def benchmarks(
    corpus: Path, only: str, repeats: int, vocab_sizes: list[int], work: Path
) -> Iterator[tuple[str, Any]]:
    """(name, figures) of one measurement after another; systems take turns."""
    ranks_file = work / "gpt4.tiktoken"
    sys.path.insert(0, str(ROOT))
    from nanochat.tokenizer import RustBPETokenizer

    texts = texts_of(sorted(corpus.glob("*.parquet"))[:2])
    RustBPETokenizer.train_from_iterator(texts, 32_768 + 9, GPT4_PATTERN).to_tiktoken(ranks_file)
    for turn in range(repeats):
        for vocab_size in vocab_sizes if only in ("", "train") else []:
            for system in TRAINERS:
                out = work / f"{system}-{vocab_size}"
                figures = measured_elsewhere(system, "train", corpus, vocab_size, out)
                yield f"train {vocab_size} {system} {turn}", figures
            same = (work / f"ours-{vocab_size}").read_text().splitlines()
            theirs = (work / f"rustbpe-{vocab_size}").read_text().splitlines()
            equal = sum(a == b for a, b in zip(same, theirs, strict=False))
            yield f"train {vocab_size} tokens as rustbpe's {turn}", f"{equal} of {len(same)}"
        for systems, rounds in ENCODERS.items() if only in ("", "encode") else ():
            yield (
                f"encode {systems} {turn}",
                measured_elsewhere(systems, "encode", corpus, ranks_file, rounds),
            )
        for what in ("short", "runs", "loader") if only in ("", "rest") else ():
            yield f"{what} {turn}", measured_elsewhere("ours", what, corpus, ranks_file)
    if only in ("", "rest"):
        yield "texts that differ", measured_elsewhere("ours", "equal", corpus, ranks_file)


def medians(results: dict[str, Any]) -> dict[str, Any]:
    """The middle one of each figure's values in all turns."""
    turns = defaultdict(list)
    for name, figures in results.items():
        what, _, turn = name.rpartition(" ")
        if turn.isdigit() and isinstance(figures, dict):
            turns[what].append(figures)
    return {what: middle(figures) for what, figures in turns.items()}


def middle(figures: list[Any]) -> Any:
    if isinstance(figures[0], dict):
        return {name: middle([some[name] for some in figures]) for name in figures[0]}
    return statistics.median(figures)


def main() -> None:
    """Measure all and keep it as dev/bench/results/tokenizer-DATE.json."""
    if "--measure" in sys.argv:
        print(json.dumps(measure(*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--only", choices=["", "train", "encode", "rest"], default="")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocab_sizes", type=int, nargs="+", default=[32_768, 65_536])
    options = parser.parse_args()
    peers_python()
    results = {}
    with tempfile.TemporaryDirectory() as work:
        for name, figures in benchmarks(
            options.corpus.resolve(), options.only, options.repeats, options.vocab_sizes, Path(work)
        ):
            print(name, figures, flush=True)
            results[name] = figures
    results = {"medians": medians(results), **results}
    name = f"tokenizer-{options.only or 'all'}-{date.today()}.json"
    path = ROOT / "dev" / "bench" / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
