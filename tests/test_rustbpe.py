"""The Rust trainer and encoder equal the reference implementation; also run on its own:

python -m pytest tests/test_rustbpe.py -v -s
"""

import gc
import itertools
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT, raise_signal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rustbpe
from nanochat.data.shards import Documents
from tests.reference import bpe

# Few letters, so that pairs repeat and tie; some of every class that the pattern distinguishes.
LETTERS = "aab  c'sS1 23\n\r\té日🙂!"
texts_strategy = st.lists(st.text(st.sampled_from(LETTERS), max_size=30), min_size=1, max_size=8)
PATTERNS = {"ours": bpe.OUR_PATTERN, "GPT-4": bpe.GPT4_PATTERN, "GPT-2": bpe.GPT2_PATTERN,
            "words": r"\w+|\W", "gaps": r"[a-z]+"}  # fmt: skip


def trained(
    texts: list[str], vocab_size: int, pattern: str | None = None, buffer_size: int = 8192
) -> list[bytes]:
    """The tokens of a vocabulary in the order of their ids."""
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size, buffer_size, pattern)
    ranks = tokenizer.get_mergeable_ranks()
    assert [rank for _, rank in ranks] == list(range(len(ranks)))
    return [token for token, _ in ranks]


def some_text(seed: int, num_words: int = 400) -> str:
    rng = random.Random(seed)
    words = ["the", "then", "there", "hen", "he", "12", "1234", "it's", "naïve", "日本", "🙂", "\n"]
    return " ".join(rng.choice(words) for _ in range(num_words))


def test_the_default_pattern_is_the_documented_one() -> None:
    assert rustbpe.DEFAULT_PATTERN == bpe.OUR_PATTERN
    assert rustbpe.Tokenizer().get_pattern() == bpe.OUR_PATTERN


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
@settings(max_examples=60)
@given(texts=texts_strategy, extra=st.integers(0, 40))
def test_merges_equal_the_reference_implementation(
    pattern: str, texts: list[str], extra: int
) -> None:
    if not any(bpe.split(text, pattern) for text in texts):
        return
    merges = bpe.learn_merges(texts, 256 + extra, pattern)
    assert trained(texts, 256 + extra, pattern) == bpe.tokens_of(merges)


def test_merges_of_longer_text_equal_the_reference_implementation() -> None:
    texts = [some_text(seed) for seed in range(5)]
    merges = bpe.learn_merges(texts, 340)
    assert trained(texts, 340) == bpe.tokens_of(merges)


def test_the_first_merges_of_a_small_example() -> None:
    """ "ab" occurs 3 times, "bc" twice; then "ab" + "c" twice, before pairs that occur once."""
    assert trained(["abc", " abc", "ab"], 260)[256:] == [b"ab", b"abc", b" abc"]


def test_of_equally_frequent_pairs_the_smallest_ids_are_merged_first() -> None:
    assert trained(["zy", "ac", "ab", "zx"], 260)[256:] == [b"ab", b"ac", b"zx", b"zy"]


def test_a_run_is_merged_from_the_left_and_its_overlaps_are_counted() -> None:
    # "aaaaa" holds the pair (a, a) four times, more than (a, b) in three words.
    texts = ["aaaaa", "ab", "ab", "ab"]
    pattern = r"\w+"
    assert trained(texts, 258, pattern)[256:] == [b"aa", b"ab"]
    assert trained(texts, 300, pattern) == bpe.tokens_of(bpe.learn_merges(texts, 300, pattern))


def test_the_order_of_texts_and_batches_does_not_matter() -> None:
    texts = [some_text(seed, 60) for seed in range(40)]
    expected = trained(texts, 330)
    for seed, buffer_size in enumerate((1, 3, 40, 100_000)):
        random.Random(seed).shuffle(texts)
        assert trained(texts, 330, buffer_size=buffer_size) == expected


def test_counts_add_up_over_texts() -> None:
    assert trained(["ab", "ab", "cd"] * 30, 258) == trained(["ab ab".replace(" ", "\n"), "cd"], 258)


def test_a_custom_pattern_is_kept_and_unmatched_text_is_not_learned() -> None:
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(["aa123123123aa"], 300, pattern="[a-z]+")
    assert tokenizer.get_pattern() == "[a-z]+"
    assert [token for token, _ in tokenizer.get_mergeable_ranks()[256:]] == [b"aa"]


def test_training_ends_early_when_no_pair_is_left() -> None:
    assert trained(["abc"], 5000)[256:] == [b"ab", b"abc"]
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(["abc"], 5000)
    assert tokenizer.vocab_size == 258


@settings(max_examples=60)
@given(texts=texts_strategy, text=st.text(st.sampled_from(LETTERS), max_size=40))
def test_encoding_equals_the_reference_implementation(texts: list[str], text: str) -> None:
    texts = [*texts, "a"]
    merges = bpe.learn_merges(texts, 290)
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(texts, 290)
    assert tokenizer.encode(text) == bpe.encode(merges, text)


@settings(max_examples=300)
@given(text=st.text())
def test_without_merges_every_string_is_its_bytes(text: str) -> None:
    assert bytes(rustbpe.Tokenizer().encode(text)) == text.encode()


def test_merges_do_not_depend_on_the_number_of_threads() -> None:
    texts = [some_text(seed, 2000) for seed in range(60)]
    expected = trained(texts, 400)
    for num_threads in (1, 2, 3):
        tokenizer = rustbpe.Tokenizer()
        tokenizer.train_from_iterator(texts, 400, buffer_size=2, num_threads=num_threads)
        assert [token for token, _ in tokenizer.get_mergeable_ranks()] == expected


def test_training_on_arrow_arrays_equals_training_on_strings() -> None:
    texts = [some_text(seed) for seed in range(20)]
    array = pa.array(["not this", *texts, "nor this"]).slice(1, 20)
    tokenizer = rustbpe.Tokenizer()
    columns = [array.slice(0, 3), pa.chunked_array([array.slice(3, 7)]), "", array.slice(10)]
    tokenizer.train_from_iterator(columns, 330)
    assert [token for token, _ in tokenizer.get_mergeable_ranks()] == trained(texts, 330)
    with pytest.raises(TypeError, match="int64"):
        tokenizer.train_from_iterator([pa.array([1, 2])], 330)


def test_training_treats_a_lone_surrogate_as_the_replacement_character() -> None:
    broken, replaced = ["é\ud800z \ud83d\ude42"] * 3, ["é\ufffdz 🙂"] * 3
    assert trained(broken, 300) == trained(replaced, 300)


def test_progress_is_reported_and_its_errors_are_raised() -> None:
    calls: list[tuple[str, int, int]] = []

    def slow_texts() -> Iterator[str]:
        for seed in range(4):
            time.sleep(0.12)  # it is called at most every 0.1 s
            yield some_text(seed)

    def progress(what: str, done: int, total: int) -> None:
        calls.append((what, done, total))

    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(slow_texts(), 300, buffer_size=1, progress=progress)
    done = [number for what, number, _ in calls if what == "counting"]
    assert len(done) >= 3 and done == sorted(done)

    def fail(*_: object) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        tokenizer.train_from_iterator(slow_texts(), 300, buffer_size=1, progress=fail)


def test_get_merges_returns_the_learned_merges() -> None:
    texts = [some_text(seed) for seed in range(3)] + ["-" * 300] * 9
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(texts, 420)
    assert tokenizer.get_merges() == bpe.learn_merges(texts, 420)
    again = rustbpe.Tokenizer([token for token, _ in tokenizer.get_mergeable_ranks()])
    assert again.get_merges() == tokenizer.get_merges()
    assert again.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_lists_and_arrays_of_many_texts_have_the_ids_of_each_text_in_order() -> None:
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(["the then there"], 270)
    rng = random.Random(0)
    # More than one chunk of 128 KB, of texts with units of one, two and four bytes in Python.
    texts = [
        "the then " * rng.randrange(2000) + rng.choice(["e", "é", "’", "🙂"]) for _ in range(99)
    ]
    expected = [tokenizer.encode(text) for text in texts]
    flat = list(itertools.chain(*expected))
    for num_threads in (1, 2):
        assert tokenizer.encode_batch(texts, num_threads) == expected
        ids, ends = tokenizer.encode_to_arrays(texts, num_threads)
        assert ids.tolist() == flat
        assert ends.tolist() == list(itertools.accumulate(map(len, expected)))
        # Special tokens are no tokens of this vocabulary.
        surrounded = tokenizer.encode_batch(texts, num_threads, 300, 2**32 - 1)
        assert surrounded == [[300, *ids, 2**32 - 1] for ids in expected]
    assert tokenizer.encode("the", None, 7) == [*tokenizer.encode("the"), 7]


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_garbage_collector_stays_enabled_or_disabled(is_enabled: bool) -> None:
    if not is_enabled:
        gc.disable()
    try:
        rustbpe.Tokenizer().encode_batch(["a", "b"])
        assert gc.isenabled() == is_enabled
    finally:
        gc.enable()


def test_arrays_of_ids_are_uint16_or_uint32() -> None:
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(["the then there"], 270)
    first, _, last = tokenizer.encode_batch(["the then", "", "there"])
    for wide, dtype in ((False, np.uint16), (True, np.uint32)):
        for num_threads in (1, 2):
            texts = ["the then", "", "there"]
            ids, ends = tokenizer.encode_to_arrays(texts, num_threads, wide)
            assert (ids.dtype, ends.dtype) == (dtype, np.int64)
            assert ids.tolist() == first + last
            assert ends.tolist() == [len(first), len(first), len(first + last)]
    ids, ends = tokenizer.encode_to_arrays([])
    assert (len(ids), len(ends)) == (0, 0)


def test_a_vocabulary_of_more_than_65536_tokens_is_learned_and_used() -> None:
    letters = [chr(0x4E00 + i) + chr(0x5E00 + i % 7919) for i in range(12_000)]
    words = ["".join(rng.sample(letters, 4)) for rng in map(random.Random, range(12_000))]
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(words, 100_000)
    assert tokenizer.vocab_size > 1 << 16
    ids, _ = tokenizer.encode_to_arrays(words)
    assert max(ids) >= 1 << 16
    decoded = [token for token, _ in tokenizer.get_mergeable_ranks()]
    assert b"".join(decoded[i] for i in ids.tolist()) == "".join(words).encode()


# ---- invalid requests


@pytest.mark.parametrize("vocab_size", [0, 1, 255])
def test_a_vocabulary_too_small_for_the_bytes_is_refused(vocab_size: int) -> None:
    with pytest.raises(ValueError, match=f"^vocab_size={vocab_size} is below 256.*use 256 or more"):
        rustbpe.Tokenizer().train_from_iterator(["ab"], vocab_size)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="no word to learn from"):
        rustbpe.Tokenizer().train_from_iterator(texts, 300)


def test_an_invalid_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        rustbpe.Tokenizer().train_from_iterator(["ab"], 300, pattern="(a")


@pytest.mark.parametrize("item", [b"bytes", 3, None, ["list"]])
def test_an_item_that_is_not_text_is_refused_with_its_type(item: object) -> None:
    with pytest.raises(TypeError, match=type(item).__name__):
        rustbpe.Tokenizer().train_from_iterator(["ab", item], 300)


def test_an_argument_that_is_not_iterable_is_refused() -> None:
    with pytest.raises(TypeError):
        rustbpe.Tokenizer().train_from_iterator(3, 300)


def test_an_error_of_the_iterator_is_raised_and_the_old_vocabulary_stays() -> None:
    def texts() -> Iterator[str]:
        yield "ab"
        raise OSError("the disk is gone")

    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(["cd"], 257)
    with pytest.raises(OSError, match="the disk is gone"):
        tokenizer.train_from_iterator(texts(), 257)
    assert tokenizer.get_mergeable_ranks()[256] == (b"cd", 256)


def test_ctrl_c_stops_training() -> None:
    timer = threading.Timer(0.3, raise_signal, [SIGINT])

    def begun() -> Iterator[str]:
        timer.start()
        yield "some text"

    with pytest.raises(KeyboardInterrupt):
        endless = itertools.chain(begun(), itertools.repeat("some text"))
        rustbpe.Tokenizer().train_from_iterator(endless, 300)
    timer.join()


def test_other_threads_run_while_texts_are_counted() -> None:
    """The GIL is released during the work, so a counting thread keeps counting."""
    ticks = 0
    done = threading.Event()

    def count() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    ticking = threading.Thread(target=count)
    ticking.start()
    for length in (300_000, 1_000_000, 3_000_000, 10_000_000):  # more on a fast or busy machine
        text, ticks_before = some_text(1, length), ticks
        rustbpe.Tokenizer().train_from_iterator([text], 300)
        ticks_during = ticks - ticks_before
        if ticks_during > 3:  # 0 or 1 if the GIL were held
            break
    done.set()
    ticking.join()
    assert ticks_during > 3


def test_tokens_of_real_text_are_distinct() -> None:
    """With -s it also prints the speed of training."""
    corpus = Path(__file__).parents[2] / "shared" / "data" / "corpus" / "shard_00000.parquet"
    texts = [some_text(seed, 20_000) for seed in range(20)]
    if corpus.is_file():
        documents = Documents([corpus])
        texts = list(itertools.islice(documents, 300))
    start = time.perf_counter()
    tokens = trained(texts, 4096)
    seconds = time.perf_counter() - start
    characters = sum(map(len, texts))
    print(f"\n{characters:,} characters to {len(tokens):,} tokens in {seconds:.2f} s")
    assert len(set(tokens)) == len(tokens)
