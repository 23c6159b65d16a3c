"""All backends agree, nothing is lost, and the file is believed only when it is whole."""

import ctypes
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe
from tokenizers import pre_tokenizers

from nanochat import paths
from nanochat import tokenizer as tokenizer_module
from nanochat.errors import UserError
from nanochat.tokenizer import (
    FILE_NAME,
    SPECIAL_TOKENS,
    HuggingFaceTokenizer,
    RustBPETokenizer,
    TiktokenTokenizer,
    get_token_bytes,
    get_tokenizer,
    published_encoding,
)
from tests.reference import bpe
from tests.strings import PIECES, generated_strings

TRAINING_TEXTS = [
    "The quick brown fox didn't jump over 13 lazy dogs; they'll say it's 2024.\n\n" * 3,
    "def f(x):\n    return x ** 2  # naïve café\r\n\tif x != 10: print('done')\n" * 3,
    "日本語の文章。Привет, мир! مرحبا 안녕하세요 🙂👍🏽👨‍👩‍👧 e\u0301 " * 3,
    "aaaaaaaaaaaaaaaa          !!!!!!!!!! 1234567890 \u00a0\u2003\u3000 " * 3,
]
any_text = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
broken_text = st.text(st.characters())  # lone surrogates included


@pytest.fixture(scope="module")
def tokenizer() -> RustBPETokenizer:
    return RustBPETokenizer.train_from_iterator(TRAINING_TEXTS, 450)


@pytest.fixture(scope="module")
def others(tokenizer: RustBPETokenizer) -> list[RustBPETokenizer]:
    """The other backends."""
    kinds = (TiktokenTokenizer, HuggingFaceTokenizer)
    return [kind(tokenizer.ranks, tokenizer.pattern) for kind in kinds]


# ---- text to ids and back


@settings(max_examples=500, deadline=None)
@given(text=any_text)
def test_all_backends_give_the_ids_of_the_slow_reference(
    tokenizer: RustBPETokenizer, others: list[RustBPETokenizer], text: str
) -> None:
    ids = tokenizer.encode(text)
    assert [other.encode(text) for other in others] == [ids, ids]
    merges = [(left, right) for left, right in tokenizer._content()["merges"]]
    assert bpe.encode(merges, text) == ids


@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_what_was_encoded_is_decoded_and_its_bytes_add_up(
    tokenizer: RustBPETokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    sizes = tokenizer.token_bytes()
    assert sum(sizes[token] for token in ids) == len(text.encode())


@settings(max_examples=200, deadline=None)
@given(text=broken_text)
def test_a_lone_surrogate_is_encoded_as_the_replacement_character(
    tokenizer: RustBPETokenizer, others: list[RustBPETokenizer], text: str
) -> None:
    mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    ids = tokenizer.encode(mended)
    for backend in (tokenizer, *others):
        assert backend.encode(text) == ids
        assert backend.encode([text, ""]) == [ids, []]


def test_surrogates_that_form_a_pair_are_one_character(tokenizer: RustBPETokenizer) -> None:
    assert tokenizer.encode("\ud83d\ude42") == tokenizer.encode("🙂")
    assert tokenizer.encode("\ude42\ud83d") == tokenizer.encode("\ufffd\ufffd")


@pytest.mark.parametrize("letter", ["a", "é", "日", "🙂"])
def test_utf8_that_python_keeps_changes_nothing(tokenizer: RustBPETokenizer, letter: str) -> None:
    text = f"the quick {letter} fox " * 50
    ids = tokenizer.encode(text)
    before = sys.getsizeof(text)
    ctypes.pythonapi.PyUnicode_AsUTF8(ctypes.py_object(text))
    assert (sys.getsizeof(text) > before) == (not text.isascii())
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode([text, text]) == [ids, ids]


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(any_text, max_size=8))
def test_a_batch_gives_what_each_text_gives_alone(
    tokenizer: RustBPETokenizer, others: list[RustBPETokenizer], texts: list[str]
) -> None:
    alone = [tokenizer.encode(text) for text in texts]
    for backend in (tokenizer, *others):
        assert backend.encode(texts) == alone
        assert backend.encode(texts, num_threads=1) == alone
    ids, ends = tokenizer.encode_to_array(texts)
    assert (ids.dtype, ends.dtype) == (np.uint16, np.int64)
    assert ids.tolist() == [token for own in alone for token in own]
    assert ends.tolist() == list(itertools.accumulate(map(len, alone)))


def test_special_tokens_stand_before_and_after_where_asked(tokenizer: RustBPETokenizer) -> None:
    bos, end = tokenizer.get_bos_token_id(), tokenizer.encode_special("<|assistant_end|>")
    ids = tokenizer.encode("a fox")
    assert tokenizer.encode("a fox", prepend="<|bos|>", append=end) == [bos, *ids, end]
    assert tokenizer.encode(["a fox", ""], prepend=bos) == [[bos, *ids], [bos]]
    with pytest.raises(KeyError):
        tokenizer.encode("a fox", prepend="<|nonsense|>")


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_the_name_of_a_special_token_in_text_stays_text(
    tokenizer: RustBPETokenizer, others: list[RustBPETokenizer], name: str
) -> None:
    text = f"say {name} twice: {name}{name}"
    ids = tokenizer.encode(text)
    assert max(ids) < tokenizer.get_vocab_size() - len(SPECIAL_TOKENS)
    assert [other.encode(text) for other in others] == [ids, ids]
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_decoded_to_their_names_and_count_no_bytes(
    tokenizer: RustBPETokenizer,
) -> None:
    first = tokenizer.get_vocab_size() - len(SPECIAL_TOKENS)
    assert [tokenizer.encode_special(name) for name in SPECIAL_TOKENS] == list(
        range(first, first + 9)
    )
    assert tokenizer.get_special_tokens() == set(SPECIAL_TOKENS)
    assert tokenizer.get_bos_token_id() == first
    assert tokenizer.decode([first, *tokenizer.encode("a")]) == "<|bos|>a"
    assert tokenizer.id_to_token(first + 1) == "<|user_start|>"
    assert tokenizer.token_bytes()[first:] == [0] * 9


def test_bytes_that_are_no_text_are_shown_as_the_replacement_character(
    tokenizer: RustBPETokenizer,
) -> None:
    assert tokenizer.decode([0xE6, 0x97]) == "\ufffd"
    assert tokenizer.decode_bytes([0xE6, 0x97]) == b"\xe6\x97"
    assert tokenizer.decode([0xE6, 0x97, 0xA5]) == "日"


@settings(max_examples=100, deadline=None)
@given(text=any_text)
def test_a_stream_gives_whole_characters_that_add_up(
    tokenizer: RustBPETokenizer, text: str
) -> None:
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.feed([token]) for token in tokenizer.encode(text)]
    assert decoder.finish() == ""
    assert "".join(pieces) == text


def test_a_stream_that_ends_inside_a_character_ends_in_the_replacement_character(
    tokenizer: RustBPETokenizer,
) -> None:
    decoder = tokenizer.stream_decoder()
    assert [decoder.feed([token]) for token in (0xE6, 0x97)] == ["", ""]
    assert decoder.finish() == "\ufffd"


def test_documents_in_memory_of_arrow_give_the_ids_of_their_strings(
    tokenizer: RustBPETokenizer,
) -> None:
    texts = [*TRAINING_TEXTS, "", "x" * 50]
    ids, ends = tokenizer.encode_to_array(texts)
    for kind in (pa.string(), pa.large_string()):
        array = pa.array(["before", *texts, "after"], kind).slice(1, len(texts))
        for column in (array, pa.chunked_array([array.slice(0, 2), array.slice(2)])):
            found = tokenizer.encode_to_array(column)
            assert np.array_equal(found[0], ids) and np.array_equal(found[1], ends)
    with_gaps = tokenizer.encode_to_array(pa.array(["a b", None, "c"]))
    assert with_gaps[0].tolist() == tokenizer.encode("a b") + tokenizer.encode("c")
    assert with_gaps[1].tolist()[0] == with_gaps[1].tolist()[1]
    assert tokenizer.encode_to_array(pa.array([], pa.string()))[1].tolist() == []


@pytest.mark.parametrize("texts", [["a", 3], pa.array([1, 2]), 7])
def test_what_is_no_text_is_not_encoded(tokenizer: RustBPETokenizer, texts: Any) -> None:
    with pytest.raises(TypeError):
        tokenizer.encode_to_array(texts)


@pytest.mark.parametrize("letter", ["a", " ", "1", "\n", "🙂", "日", "ab", "a ", "\u0301"])
def test_a_long_run_of_anything_is_no_trouble(tokenizer: RustBPETokenizer, letter: str) -> None:
    """A quadratic encoder would take hours on this."""
    text = letter * (1_000_000 // len(letter))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    tiktoken = TiktokenTokenizer(tokenizer.ranks, tokenizer.pattern)
    assert tokenizer.encode(text[:3000]) == tiktoken.encode(text[:3000])


GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


@pytest.mark.parametrize("pattern", [GPT4_PATTERN, r"^\p{L}{2}+|[$^\]]+|\S$|\s{1,}|."])
def test_the_peers_understand_a_pattern_as_we_do(tmp_path: Path, pattern: str) -> None:
    ours = RustBPETokenizer.train_from_iterator(TRAINING_TEXTS, 450, pattern)
    texts = ["1234567 \n\n", "abcd $^]\n efg 12\nx  ", *generated_strings(3000)]
    ids = ours.encode(texts)
    for kind in (TiktokenTokenizer, HuggingFaceTokenizer):
        assert kind(ours.ranks, pattern).encode(texts) == ids
    ours.to_huggingface(tmp_path / "tokenizer.json")
    assert RustBPETokenizer.from_huggingface(tmp_path / "tokenizer.json").pattern == pattern


def test_a_foreign_pattern_keeps_the_words_that_it_has_there(
    tmp_path: Path, tokenizer: RustBPETokenizer
) -> None:
    backend = tokenizer_module.huggingface_backend(tokenizer.ranks, tokenizer.pattern)
    split = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}+|\s$|[\s\S]"), behavior="isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = RustBPETokenizer.from_huggingface(tmp_path / "tokenizer.json")
    for text in ("1234567  \n\n", "a 12345 \n b"):
        assert ours.encode(text) == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.slow
def test_ids_are_those_of_the_peers_on_generated_strings(
    tokenizer: RustBPETokenizer, others: list[RustBPETokenizer]
) -> None:
    texts = list(generated_strings(100_000))
    ids = tokenizer.encode(texts)
    for other in others:
        assert other.encode(texts) == ids


def test_numbers_are_cut_to_at_most_two_digits(tokenizer: RustBPETokenizer) -> None:
    assert all(
        sum(letter.isdigit() for letter in tokenizer.decode([token])) <= 2
        for token in range(len(tokenizer.ranks))
    )


# ---- training


def test_training_is_that_of_the_slow_reference_with_nine_tokens_on_top(
    tokenizer: RustBPETokenizer,
) -> None:
    merges = bpe.learn_merges(TRAINING_TEXTS, tokenizer.get_vocab_size() - 9)
    assert list(tokenizer.ranks) == bpe.tokens_of(merges)
    assert tokenizer._content()["merges"] == [list(pair) for pair in merges]


def test_a_small_vocabulary_is_refused_with_the_smallest_that_is_not() -> None:
    with pytest.raises(UserError, match=r"--vocab_size=264 is below 265.*use 265 or more"):
        RustBPETokenizer.train_from_iterator(["ab"], 264)
    assert RustBPETokenizer.train_from_iterator(["ab"], 265).encode("ab") == [97, 98]


def test_a_vocabulary_beyond_32_bits_is_refused_with_the_largest_that_is_not() -> None:
    with pytest.raises(UserError, match=r"--vocab_size=4294967296 is above 4294967295; use"):
        RustBPETokenizer.train_from_iterator(["ab"], 2**32)
    assert RustBPETokenizer.train_from_iterator(["ab"], 2**32 - 1).get_vocab_size() == 266


@pytest.mark.parametrize(("texts", "pattern"), [([""], r"\w+"), (["ab"], "(a")])
def test_what_cannot_be_trained_is_an_error_for_people(texts: list[str], pattern: str) -> None:
    with pytest.raises(UserError):
        RustBPETokenizer.train_from_iterator(texts, 300, pattern)


def test_too_little_text_gives_fewer_tokens() -> None:
    tokenizer = RustBPETokenizer.train_from_iterator(["abc"], 5000)
    assert tokenizer.get_vocab_size() == 256 + 2 + 9
    assert tokenizer.encode_special("<|bos|>") == 258


# ---- the file


def test_a_saved_tokenizer_is_read_back_with_pattern_ids_and_hash(tmp_path: Path) -> None:
    pattern = r"[a-z]+|[^a-z]"
    tokenizer = RustBPETokenizer.train_from_iterator(TRAINING_TEXTS, 400, pattern)
    tokenizer.save(tmp_path)
    for kind in (RustBPETokenizer, TiktokenTokenizer, HuggingFaceTokenizer):
        read = kind.from_directory(tmp_path)
        assert type(read) is kind
        assert (read.ranks, read.pattern) == (tokenizer.ranks, pattern)
        assert read.content_hash == tokenizer.content_hash
        assert read.encode(TRAINING_TEXTS) == tokenizer.encode(TRAINING_TEXTS)


def test_the_file_is_readable_text(tokenizer: RustBPETokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    whole = json.loads((tmp_path / FILE_NAME).read_text(encoding="ascii"))
    assert whole["special_tokens"] == list(SPECIAL_TOKENS)
    assert whole["pattern"] == tokenizer.pattern
    assert len(whole["merges"]) == tokenizer.get_vocab_size() - 256 - 9


def test_the_hash_of_the_content_is_what_it_has_always_been() -> None:
    """Checkpoints keep it and refuse another tokenizer."""
    tokenizer = RustBPETokenizer.train_from_iterator(["the then there"] * 2, 270)
    assert tokenizer.content_hash == (
        "ab1dccf9ee4eef5fa4cf3a6e1bc444e10f3280e0e76921e6fb9885ecf1d5a74c"
    )


def test_another_content_has_another_hash(tokenizer: RustBPETokenizer) -> None:
    smaller = RustBPETokenizer.train_from_iterator(TRAINING_TEXTS, 449)
    other = RustBPETokenizer.train_from_iterator(TRAINING_TEXTS, 450, r"\w+|\W")
    assert len({tokenizer.content_hash, smaller.content_hash, other.content_hash}) == 3


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        whole = json.loads(text)
        change(whole)
        return json.dumps(whole)

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damaged(lambda whole: whole["merges"].pop()), "is damaged"),
        (damaged(lambda whole: whole["merges"].reverse()), "is damaged"),
        (damaged(lambda whole: whole.update(pattern=r"\w+")), "is damaged"),
        (damaged(lambda whole: whole.update(sha256="0" * 64)), "is damaged"),
        (damaged(lambda whole: whole.update(version=2)), "another format or version"),
        (damaged(lambda whole: whole.update(format="other")), "another format or version"),
        (damaged(lambda whole: whole.pop("merges")), "not a tokenizer of ours"),
        (lambda text: text[: len(text) // 2], "not a tokenizer of ours"),
        (lambda text: "", "not a tokenizer of ours"),
        (lambda text: "[1, 2]", "not a tokenizer of ours"),
        (lambda text: "[" * 200_000, "not a tokenizer of ours"),
        (lambda text: '{"model": {"type": "BPE"}}', "not a tokenizer of ours"),
        (lambda text: "\udcff", "not a tokenizer of ours"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_with_the_remedy(
    tokenizer: RustBPETokenizer, tmp_path: Path, damage: Callable[[str], str], words: str
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / FILE_NAME
    text = damage(path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=rf"{words}.*scripts\.tok_train"):
        RustBPETokenizer.from_directory(tmp_path)


def test_a_missing_tokenizer_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer in .*scripts\.tok_train"):
        RustBPETokenizer.from_directory(tmp_path)
    with pytest.raises(UserError, match="no tokenizer in"):
        get_tokenizer()


def test_the_tokenizer_of_the_base_directory_and_its_bytes(tokenizer: RustBPETokenizer) -> None:
    tokenizer.save(paths.tokenizer_dir())
    assert get_tokenizer().content_hash == tokenizer.content_hash
    sizes = get_token_bytes()
    assert (sizes.dtype, sizes.tolist()) == (torch.int32, tokenizer.token_bytes())


# ---- other projects' files


def test_a_rank_file_of_tiktoken_holds_the_same_ranks(
    tokenizer: RustBPETokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "ours.tiktoken"
    tokenizer.to_tiktoken(path)
    assert load_tiktoken_bpe(str(path)) == tokenizer.ranks
    read = RustBPETokenizer.from_tiktoken(path, tokenizer.pattern)
    assert read.content_hash == tokenizer.content_hash


def test_a_tokenizer_json_gives_the_same_ids_in_its_library_and_when_read_back(
    tokenizer: RustBPETokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.to_huggingface(path)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    for text in TRAINING_TEXTS:
        assert theirs.encode(text).ids == tokenizer.encode(text)
    assert theirs.token_to_id("<|bos|>") == tokenizer.get_bos_token_id()
    read = RustBPETokenizer.from_huggingface(path)
    assert read.content_hash == tokenizer.content_hash


def test_bytes_in_another_order_as_in_published_vocabularies_are_kept(
    tokenizer: RustBPETokenizer, tmp_path: Path
) -> None:
    order = [*range(33, 127), *range(161, 256), *range(33), *range(127, 161)]
    ranks = {bytes([byte]): i for i, byte in enumerate(order)}
    ranks |= {token: i for token, i in tokenizer.ranks.items() if i >= 256}
    other = RustBPETokenizer(ranks, tokenizer.pattern)
    theirs = TiktokenTokenizer(ranks, tokenizer.pattern)
    assert other.encode(TRAINING_TEXTS) == theirs.encode(TRAINING_TEXTS)
    other.save(tmp_path)
    read = RustBPETokenizer.from_directory(tmp_path)
    assert (read.ranks, read.content_hash) == (ranks, other.content_hash)
    assert other.content_hash != tokenizer.content_hash


@pytest.mark.parametrize(
    "ranks",
    [
        {b"a": 0},
        {bytes([byte]): byte + 1 for byte in range(256)},
        {bytes([byte, byte]): byte for byte in range(256)},
    ],
)
def test_ranks_with_gaps_are_refused(ranks: dict[bytes, int]) -> None:
    with pytest.raises(UserError):
        RustBPETokenizer(ranks)


def test_a_token_that_no_merge_makes_can_be_used_but_not_written(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    tokenizer = RustBPETokenizer(ranks)
    assert tokenizer.encode("abc abcd") == TiktokenTokenizer(ranks).encode("abc abcd")
    with pytest.raises(UserError, match="token 256 is not a pair of tokens before it"):
        tokenizer.save(tmp_path)


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.text("abc", min_size=2, max_size=6), unique=True, max_size=12),
    text=st.text("abcd ", max_size=60),
)
def test_any_vocabulary_gives_the_ids_of_tiktoken(tokens: list[str], text: str) -> None:
    """Even one that no training makes: tokens in any order, with and without their parts."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {token.encode(): 256 + i for i, token in enumerate(tokens)}
    ours, theirs = RustBPETokenizer(ranks), TiktokenTokenizer(ranks)
    for piece in (text, text.replace(" ", "") * 3):
        assert ours.encode(piece) == theirs.encode(piece)


def test_other_files_are_refused(tokenizer: RustBPETokenizer, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("", "YQ==", "a b c", "YQ== 0\n%%%% 1", '{"model": {}}', "[]"):
        path.write_text(content)
        for read in (RustBPETokenizer.from_tiktoken, RustBPETokenizer.from_huggingface):
            with pytest.raises(UserError):
                read(path)
    with pytest.raises(UserError):
        RustBPETokenizer.from_tiktoken(tmp_path / "nothing")


# ---- published vocabularies


def test_without_a_network_a_published_vocabulary_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"p50k_base is neither in .*HF_HUB_OFFLINE is set"):
        published_encoding("p50k_base")


def test_an_answer_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer_module, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: time.sleep(20 * timeout))
    with pytest.raises(UserError, match="no answer within"):
        published_encoding("p50k_base")
