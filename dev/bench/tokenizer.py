"""Speed of training and encoding with our tokenizer and others, measured in alternation.

    python dev/bench/tokenizer.py --corpus DIR            everything, half an hour
    python dev/bench/tokenizer.py --corpus DIR --only encode --repeats 1

The other libraries go into a virtual environment, created on the first run (rustbpe 0.1.0 has the
name of our module). Each measurement runs in a process of its own; systems alternate. DIR has
parquet shards with a column `text`, the last one for validation. CPU seconds are reported beside
wall-clock seconds, because only they can be compared on a shared machine.
"""

import argparse
import itertools
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
# Built into gigatoken and tiktoken.
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
TRAINERS = ("ours", "rustbpe", "tokenizers")
ENCODERS = ("ours", "gigatoken", "tiktoken", "tokenizers")
HAVE_ARRAYS = ("ours", "gigatoken")


# ---- in a measuring process


def texts_of(shards: list[Path]) -> list[str]:
    """All texts of some shards as Python strings."""
    import pyarrow.parquet as pq

    return [text for shard in shards for text in pq.read_table(shard)["text"].to_pylist()]


class Measurement:
    """Wall-clock and CPU seconds of a block, and the growth of resident memory."""

    def __enter__(self) -> "Measurement":
        import psutil

        self.process = psutil.Process()
        self.before = self.peak = self.process.memory_info().rss
        self.is_done = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def _watch(self) -> None:
        while not self.is_done.wait(0.02):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self.wall
        self.cpu = time.process_time() - self.cpu
        self.is_done.set()

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
    with Measurement() as measurement:
        if system == "tokenizers":
            train_huggingface(texts, vocab_size)
        else:
            import rustbpe

            trainer = rustbpe.Tokenizer()
            trainer.train_from_iterator(iter(texts), vocab_size, pattern=OURS_PATTERN)
            tokens = [token for token, _ in trainer.get_mergeable_ranks()]
    merges_file.write_text("\n".join(token.hex() for token in tokens))
    return measurement.figures(num_bytes)


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


def encoder_of(
    system: str, kind: str, num_threads: int, ranks_file: Path
) -> Callable[[list[str]], Any]:
    """Encodes a list of texts to lists or to arrays."""
    if system == "gigatoken":
        sys.path.append(sysconfig.get_path("purelib", vars={"base": str(PEERS_DIR)}))
        import gigatoken

        theirs = gigatoken.Tokenizer.from_tiktoken(ranks_file, pretokenizer="gpt4")
        encode = theirs.encode_batch_list if kind == "lists" else theirs.encode_batch
        return partial(encode, parallel=num_threads > 1)
    sys.path.insert(0, str(ROOT))
    from nanochat.tokenizer import HuggingFaceTokenizer, RustBPETokenizer, TiktokenTokenizer

    backends = {"tiktoken": TiktokenTokenizer, "tokenizers": HuggingFaceTokenizer}
    ours = backends.get(system, RustBPETokenizer).from_tiktoken(ranks_file, GPT4_PATTERN)
    encode = ours.encode if kind == "lists" else ours.encode_to_array
    return partial(encode, num_threads=num_threads)


def measure_encoding(
    system: str, shards: list[Path], ranks_file: Path, kind: str, num_threads: int
) -> dict[str, Any]:
    """In a new process; with an encoder whose caches hold another text; then the same words again,
    in new strings and in the same ones, of which Python may have cached the UTF-8."""
    texts, other = texts_of(shards[-1:]), texts_of(shards[:1])
    num_bytes = sum(len(text.encode()) for text in texts)
    results = {}
    for label in ("new process", "new text", "same words", "same strings"):
        if label.startswith("new"):
            encode = encoder_of(system, kind, num_threads, ranks_file)
        if label == "new text":
            encode(other)
        if label != "same strings":
            texts = texts_of(shards[-1:])
        with Measurement() as measurement:
            encode(texts)
        results[label] = measurement.figures(num_bytes)
    return results


def measure_short(ranks_file: Path) -> Any:
    """Microseconds of a call with one short chat message, and with an empty one."""
    sys.path.insert(0, str(ROOT))
    from nanochat.tokenizer import RustBPETokenizer

    tokenizer = RustBPETokenizer.from_tiktoken(ranks_file, GPT4_PATTERN)
    results = {}
    for label, text in (("message", "Why is the sky blue? Tell me, please."), ("empty", "")):
        best = min(repeated(partial(tokenizer.encode, text)) for _ in range(20))
        results[label] = round(best * 1e6, 2)
    return results


def repeated(call: Callable[[], object], times: int = 2000) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def measure_adversarial(ranks_file: Path) -> Any:
    """Seconds for a megabyte of one repeated unit, which a quadratic encoder never finishes."""
    sys.path.insert(0, str(ROOT))
    from nanochat.tokenizer import RustBPETokenizer

    tokenizer = RustBPETokenizer.from_tiktoken(ranks_file, GPT4_PATTERN)
    results = {}
    for name, unit in {"a": "a", "space": " ", "emoji": "🙂", "ab": "ab", "newline": "\n"}.items():
        text = unit * (1_000_000 // len(unit.encode()))
        start = time.perf_counter()
        tokenizer.encode(text)
        results[name] = round(time.perf_counter() - start, 4)
    return results


def measure_equality(shards: list[Path], ranks_file: Path) -> Any:
    """Number of texts whose ids differ from tiktoken's and from Hugging Face's; 0 is expected."""
    sys.path.insert(0, str(ROOT))
    from nanochat.tokenizer import HuggingFaceTokenizer, RustBPETokenizer, TiktokenTokenizer
    from tests.strings import generated_strings

    ours = RustBPETokenizer.from_tiktoken(ranks_file, GPT4_PATTERN)
    texts = {"validation shard": texts_of(shards[-1:])}
    texts["generated strings"] = list(generated_strings(1_000_000))
    results = {}
    for name, group in texts.items():
        ids = ours.encode(group)
        results[name] = {"texts": len(group), "tokens": sum(map(len, ids))}
        for kind in (TiktokenTokenizer, HuggingFaceTokenizer):
            theirs = kind.from_tiktoken(ranks_file, GPT4_PATTERN).encode(group)
            results[name][kind.__name__] = sum(a != b for a, b in zip(ids, theirs, strict=True))
    return results


# ---- in the command


def peers_python() -> str:
    """The Python of the environment with the other libraries."""
    python = PEERS_DIR / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS_DIR)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *PEERS]
        subprocess.run(command, check=True)
    return str(python)


def measure_in_subprocess(system: str, *arguments: object) -> Any:
    """The results of a measurement in another process."""
    is_peer = arguments[0] == "train" and system != "ours"
    python = peers_python() if is_peer else sys.executable
    command = [python, __file__, "--measure", system, *map(str, arguments)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=PEERS_DIR)
    return json.loads(process.stdout.splitlines()[-1])


def measure(system: str, what: str, corpus: str, *rest: str) -> Any:
    shards = sorted(Path(corpus).glob("*.parquet"))
    if what == "train":
        return measure_training(system, shards[:-1], int(rest[0]), Path(rest[1]))
    ranks_file = Path(rest[0])
    if what == "encode":
        return measure_encoding(system, shards, ranks_file, rest[1], int(rest[2]))
    if what == "short":
        return measure_short(ranks_file)
    if what == "equal":
        return measure_equality(shards, ranks_file)
    return measure_adversarial(ranks_file)


def benchmarks(
    corpus: Path,
    only: str,
    repeats: int,
    vocab_sizes: list[int],
    encoders: list[str],
    work: Path,
) -> Iterator[tuple[str, Any]]:
    """(name, results) of each measurement; systems alternate."""
    ranks_file = work / "gpt4.tiktoken"
    sys.path.insert(0, str(ROOT))
    from nanochat.tokenizer import RustBPETokenizer

    texts = texts_of(sorted(corpus.glob("*.parquet"))[:2])
    RustBPETokenizer.train_from_iterator(texts, 32_768 + 9, GPT4_PATTERN).to_tiktoken(ranks_file)
    for turn in range(repeats):
        for vocab_size in vocab_sizes if only in ("", "train") else []:
            for system in TRAINERS:
                out = work / f"{system}-{vocab_size}"
                figures = measure_in_subprocess(system, "train", corpus, vocab_size, out)
                yield f"train {vocab_size} {system} {turn}", figures
            ours = (work / f"ours-{vocab_size}").read_text().splitlines()
            theirs = (work / f"rustbpe-{vocab_size}").read_text().splitlines()
            equal = sum(a == b for a, b in zip(ours, theirs, strict=False))
            yield f"train {vocab_size} tokens as rustbpe's {turn}", f"{equal} of {len(ours)}"
        for kind, num_threads, system in itertools.product(("arrays", "lists"), (1, 2), encoders):
            if only in ("", "encode") and (kind == "lists" or system in HAVE_ARRAYS):
                arguments = corpus, ranks_file, kind, num_threads
                figures = measure_in_subprocess(system, "encode", *arguments)
                yield f"encode {kind} {num_threads} {system} {turn}", figures
        for what in ("short", "runs") if only in ("", "rest") else ():
            yield f"{what} {turn}", measure_in_subprocess("ours", what, corpus, ranks_file)
    if only in ("", "rest"):
        yield "texts that differ", measure_in_subprocess("ours", "equal", corpus, ranks_file)


def medians(results: dict[str, Any]) -> dict[str, Any]:
    """The median of each value over all repetitions."""
    turns = defaultdict(list)
    for name, figures in results.items():
        what, _, turn = name.rpartition(" ")
        if turn.isdigit() and isinstance(figures, dict):
            turns[what].append(figures)
    return {what: median_of(figures) for what, figures in turns.items()}


def speedups(results: dict[str, Any]) -> dict[str, Any]:
    """How many times as fast as each peer ours encodes, by seconds: medians of the repetitions."""
    turns = defaultdict(list)
    for name, theirs in results.items():
        if not name.startswith("encode ") or " ours " in name:
            continue
        kind, num_threads, system, turn = name.split()[1:]
        ours = results[f"encode {kind} {num_threads} ours {turn}"]
        ratios = {label: theirs[label]["seconds"] / ours[label]["seconds"] for label in ours}
        turns[f"{kind} {num_threads} {system}"].append(ratios)
    return {name: median_of(ratios) for name, ratios in turns.items()}


def median_of(figures: list[Any]) -> Any:
    if isinstance(figures[0], dict):
        return {name: median_of([each[name] for each in figures]) for name in figures[0]}
    return round(statistics.median(figures), 3)


def main() -> None:
    """Measure everything and write dev/bench/results/tokenizer-DATE.json."""
    if "--measure" in sys.argv:
        print(json.dumps(measure(*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--only", choices=["", "train", "encode", "rest"], default="")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocab_sizes", type=int, nargs="+", default=[32_768, 65_536])
    parser.add_argument("--encoders", choices=ENCODERS, nargs="+", default=ENCODERS)
    options = parser.parse_args()
    peers_python()
    results = {}
    with tempfile.TemporaryDirectory() as work:
        for name, figures in benchmarks(
            options.corpus.resolve(),
            options.only,
            options.repeats,
            options.vocab_sizes,
            options.encoders,
            Path(work),
        ):
            print(name, figures, flush=True)
            results[name] = figures
    results = {"speedups": speedups(results), "medians": medians(results), **results}
    name = f"tokenizer-{options.only or 'all'}-{date.today()}.json"
    path = ROOT / "dev" / "bench" / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
