"""All backends agree, nothing is lost, and a damaged file is refused."""

import contextlib
import ctypes
import itertools
import json
import re
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
from nanochat.data import tokenizer_formats
from nanochat.data.tokenizer_formats import published_encoding
from nanochat.errors import UserError
from nanochat.tokenizer import (
    FILE_NAME,
    SPECIAL_TOKENS,
    STYLE,
    HuggingFaceTokenizer,
    RustBPETokenizer,
    TiktokenTokenizer,
    _digest,
    get_token_bytes,
    get_tokenizer,
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


@settings(max_examples=500)
@given(text=any_text)
def test_all_backends_give_the_ids_of_the_reference_implementation(
    tokenizer: RustBPETokenizer, others: list[RustBPETokenizer], text: str
) -> None:
    ids = tokenizer.encode(text)
    assert [other.encode(text) for other in others] == [ids, ids]
    merges = [(left, right) for left, right in tokenizer._content()["merges"]]
    assert bpe.encode(merges, text) == ids


@settings(max_examples=300)
@given(text=any_text)
def test_decoding_inverts_encoding_and_the_bytes_add_up(
    tokenizer: RustBPETokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    sizes = tokenizer.token_bytes()
    assert sum(sizes[token] for token in ids) == len(text.encode())


@settings(max_examples=200)
@given(text=broken_text)
def test_a_lone_surrogate_is_encoded_as_the_replacement_character(
    tokenizer: RustBPETokenizer, others: list[RustBPETokenizer], text: str
) -> None:
    replaced = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    ids = tokenizer.encode(replaced)
    for backend in (tokenizer, *others):
        assert backend.encode(text) == ids
        assert backend.encode([text, ""]) == [ids, []]


def test_surrogates_that_form_a_pair_are_one_character(tokenizer: RustBPETokenizer) -> None:
    assert tokenizer.encode("\ud83d\ude42") == tokenizer.encode("🙂")
    assert tokenizer.encode("\ude42\ud83d") == tokenizer.encode("\ufffd\ufffd")


@pytest.mark.parametrize("letter", ["a", "é", "日", "🙂"])
def test_a_utf8_copy_cached_by_python_changes_nothing(
    tokenizer: RustBPETokenizer, letter: str
) -> None:
    text = f"the quick {letter} fox " * 50
    ids = tokenizer.encode(text)
    before = sys.getsizeof(text)
    ctypes.pythonapi.PyUnicode_AsUTF8(ctypes.py_object(text))
    assert (sys.getsizeof(text) > before) == (not text.isascii())
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode([text, text]) == [ids, ids]


@settings(max_examples=50)
@given(texts=st.lists(any_text, max_size=8))
def test_a_batch_gives_what_each_text_gives_expected(
    tokenizer: RustBPETokenizer, others: list[RustBPETokenizer], texts: list[str]
) -> None:
    expected = [tokenizer.encode(text) for text in texts]
    for backend in (tokenizer, *others):
        assert backend.encode(texts) == expected
        assert backend.encode(texts, num_threads=1) == expected
    ids, ends = tokenizer.encode_to_array(texts)
    assert (ids.dtype, ends.dtype) == (np.uint16, np.int64)
    assert ids.tolist() == [token for text_ids in expected for token in text_ids]
    assert ends.tolist() == list(itertools.accumulate(map(len, expected)))


def test_special_tokens_are_prepended_and_appended_on_request(tokenizer: RustBPETokenizer) -> None:
    bos, end = tokenizer.get_bos_token_id(), tokenizer.encode_special("<|assistant_end|>")
    ids = tokenizer.encode("a fox")
    assert tokenizer.encode("a fox", prepend="<|bos|>", append=end) == [bos, *ids, end]
    assert tokenizer.encode(["a fox", ""], prepend=bos) == [[bos, *ids], [bos]]
    with pytest.raises(KeyError):
        tokenizer.encode("a fox", prepend="<|nonsense|>")


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_the_name_of_a_special_token_within_text_stays_text(
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


def test_bytes_that_are_not_utf8_decode_to_the_replacement_character(
    tokenizer: RustBPETokenizer,
) -> None:
    assert tokenizer.decode([0xE6, 0x97]) == "\ufffd"
    assert tokenizer.decode_bytes([0xE6, 0x97]) == b"\xe6\x97"
    assert tokenizer.decode([0xE6, 0x97, 0xA5]) == "日"


def test_arrow_strings_give_the_ids_of_python_strings(
    tokenizer: RustBPETokenizer,
) -> None:
    texts = [*TRAINING_TEXTS, "", "x" * 50]
    ids, ends = tokenizer.encode_to_array(texts)
    for kind in (pa.string(), pa.large_string()):
        array = pa.array(["before", *texts, "after"], kind).slice(1, len(texts))
        for column in (array, pa.chunked_array([array.slice(0, 2), array.slice(2)])):
            result = tokenizer.encode_to_array(column)
            assert np.array_equal(result[0], ids) and np.array_equal(result[1], ends)
    with_null = tokenizer.encode_to_array(pa.array(["a b", None, "c"]))
    assert with_null[0].tolist() == tokenizer.encode("a b") + tokenizer.encode("c")
    assert with_null[1].tolist()[0] == with_null[1].tolist()[1]
    assert tokenizer.encode_to_array(pa.array([], pa.string()))[1].tolist() == []


@pytest.mark.parametrize("texts", [["a", 3], pa.array([1, 2]), 7])
def test_values_that_are_not_text_are_a_type_error(tokenizer: RustBPETokenizer, texts: Any) -> None:
    with pytest.raises(TypeError):
        tokenizer.encode_to_array(texts)


@pytest.mark.parametrize("letter", ["a", " ", "1", "\n", "🙂", "日", "ab", "a ", "\u0301"])
def test_a_million_equal_characters_take_linear_time(
    tokenizer: RustBPETokenizer, letter: str
) -> None:
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
def test_other_libraries_split_by_a_pattern_as_we_do(tmp_path: Path, pattern: str) -> None:
    ours = RustBPETokenizer.train_from_iterator(TRAINING_TEXTS, 450, pattern)
    texts = ["1234567 \n\n", "abcd $^]\n efg 12\nx  ", *generated_strings(3000)]
    ids = ours.encode(texts)
    for kind in (TiktokenTokenizer, HuggingFaceTokenizer):
        assert kind(ours.ranks, pattern).encode(texts) == ids
    ours.to_huggingface(tmp_path / "tokenizer.json")
    assert RustBPETokenizer.from_huggingface(tmp_path / "tokenizer.json").pattern == pattern


def test_an_imported_pattern_splits_as_in_its_library(
    tmp_path: Path, tokenizer: RustBPETokenizer
) -> None:
    backend = tokenizer.huggingface_backend()
    split = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}+|\s$|[\s\S]"), behavior="isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = RustBPETokenizer.from_huggingface(tmp_path / "tokenizer.json")
    for text in ("1234567  \n\n", "a 12345 \n b"):
        assert ours.encode(text) == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.slow
def test_ids_agree_with_other_libraries_on_generated_strings(
    tokenizer: RustBPETokenizer, others: list[RustBPETokenizer]
) -> None:
    texts = list(generated_strings(100_000))
    ids = tokenizer.encode(texts)
    for other in others:
        assert other.encode(texts) == ids


def test_numbers_are_split_into_at_most_two_digits(tokenizer: RustBPETokenizer) -> None:
    assert all(
        sum(letter.isdigit() for letter in tokenizer.decode([token])) <= 2
        for token in range(len(tokenizer.ranks))
    )


# ---- training


def test_training_equals_the_reference_implementation_plus_nine_tokens(
    tokenizer: RustBPETokenizer,
) -> None:
    merges = bpe.learn_merges(TRAINING_TEXTS, tokenizer.get_vocab_size() - 9)
    assert list(tokenizer.ranks) == bpe.tokens_of(merges)
    assert tokenizer._content()["merges"] == [list(pair) for pair in merges]


def test_a_vocabulary_that_is_too_small_is_refused_with_the_bound() -> None:
    with pytest.raises(UserError, match="--vocab_size=264 is not between 265"):
        RustBPETokenizer.train_from_iterator(["ab"], 264)
    assert RustBPETokenizer.train_from_iterator(["ab"], 265).encode("ab") == [97, 98]


def test_a_vocabulary_beyond_32_bits_is_refused_with_the_bound() -> None:
    with pytest.raises(UserError, match=r"--vocab_size=4294967296 .* and 4294967295"):
        RustBPETokenizer.train_from_iterator(["ab"], 2**32)
    assert RustBPETokenizer.train_from_iterator(["ab"], 2**32 - 1).get_vocab_size() == 266


@pytest.mark.parametrize(("texts", "pattern"), [([""], r"\w+"), (["ab"], "(a")])
def test_no_text_and_an_invalid_pattern_are_user_errors(texts: list[str], pattern: str) -> None:
    with pytest.raises(UserError):
        RustBPETokenizer.train_from_iterator(texts, 300, pattern)


def test_too_little_text_gives_fewer_tokens() -> None:
    tokenizer = RustBPETokenizer.train_from_iterator(["abc"], 5000)
    assert tokenizer.get_vocab_size() == 256 + 2 + 9
    assert tokenizer.encode_special("<|bos|>") == 258


# ---- the file


def test_saving_and_loading_keeps_pattern_ids_and_hash(tmp_path: Path) -> None:
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
    data = json.loads((tmp_path / FILE_NAME).read_text(encoding="ascii"))
    assert data["special_tokens"] == list(SPECIAL_TOKENS)
    assert data["pattern"] == tokenizer.pattern
    assert len(data["merges"]) == tokenizer.get_vocab_size() - 256 - 9


@pytest.mark.parametrize("name", STYLE)
def test_the_style_of_messages_is_part_of_the_file_and_the_hash(tmp_path: Path, name: str) -> None:
    tokenizer = RustBPETokenizer.train_from_iterator(["abc abd"], 300)
    plain = tokenizer.content_hash
    setattr(tokenizer, name, True)
    tokenizer.save(tmp_path)
    read = RustBPETokenizer.from_directory(tmp_path)
    assert [one for one in STYLE if getattr(read, one)] == [name]
    assert read.content_hash == tokenizer.content_hash != plain


def test_the_content_hash_does_not_change_between_versions() -> None:
    """Checkpoints store it and refuse another tokenizer."""
    tokenizer = RustBPETokenizer.train_from_iterator(["the then there"] * 2, 270)
    assert tokenizer.content_hash == (
        "ab1dccf9ee4eef5fa4cf3a6e1bc444e10f3280e0e76921e6fb9885ecf1d5a74c"
    )


def test_different_content_has_a_different_hash(tokenizer: RustBPETokenizer) -> None:
    smaller = RustBPETokenizer.train_from_iterator(TRAINING_TEXTS, 449)
    other = RustBPETokenizer.train_from_iterator(TRAINING_TEXTS, 450, r"\w+|\W")
    assert len({tokenizer.content_hash, smaller.content_hash, other.content_hash}) == 3


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged(lambda data: data["merges"].pop()), "is damaged"),
        (damaged(lambda data: data["merges"].reverse()), "is damaged"),
        (damaged(lambda data: data.update(pattern=r"\w+")), "is damaged"),
        (damaged(lambda data: data.update(sha256="0" * 64)), "is damaged"),
        (damaged(lambda data: data.update(version=2)), "another format or version"),
        (damaged(lambda data: data.update(format="other")), "another format or version"),
        (damaged(lambda data: data.pop("merges")), "not a nanochat tokenizer"),
        (lambda text: text[: len(text) // 2], "not a nanochat tokenizer"),
        (lambda text: "", "not a nanochat tokenizer"),
        (lambda text: "[1, 2]", "not a nanochat tokenizer"),
        (lambda text: "[" * 200_000, "not a nanochat tokenizer"),
        (lambda text: '{"model": {"type": "BPE"}}', "not a nanochat tokenizer"),
        (lambda text: "\udcff", "not a nanochat tokenizer"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_with_the_remedy(
    tokenizer: RustBPETokenizer, tmp_path: Path, damage: Callable[[str], str], message: str
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / FILE_NAME
    text = damage(path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=rf"{message}.*scripts\.tok_train"):
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


# ---- formats of other libraries


def test_a_tiktoken_file_has_the_same_ranks(tokenizer: RustBPETokenizer, tmp_path: Path) -> None:
    path = tmp_path / "ours.tiktoken"
    tokenizer.to_tiktoken(path)
    assert load_tiktoken_bpe(str(path)) == tokenizer.ranks
    read = RustBPETokenizer.from_tiktoken(path, tokenizer.pattern)
    assert read.content_hash == tokenizer.content_hash


def test_a_huggingface_tokenizer_json_gives_the_same_ids_there_and_imported(
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


def test_the_order_of_bytes_in_published_vocabularies_is_kept(
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
def test_ranks_with_null_are_refused(ranks: dict[bytes, int]) -> None:
    with pytest.raises(UserError):
        RustBPETokenizer(ranks)


def test_a_token_without_a_merge_can_be_used_but_not_saved(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    tokenizer = RustBPETokenizer(ranks)
    assert tokenizer.encode("abc abcd") == TiktokenTokenizer(ranks).encode("abc abcd")
    with pytest.raises(UserError, match="token 256 is not a pair of tokens before it"):
        tokenizer.save(tmp_path)


@settings(max_examples=200)
@given(
    tokens=st.lists(st.text("abc", min_size=2, max_size=6), unique=True, max_size=12),
    text=st.text("abcd ", max_size=60),
)
def test_any_vocabulary_gives_the_ids_of_tiktoken(tokens: list[str], text: str) -> None:
    """Even without merges: tokens in any order, with and without their parts."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {token.encode(): 256 + i for i, token in enumerate(tokens)}
    ours, theirs = RustBPETokenizer(ranks), TiktokenTokenizer(ranks)
    for piece in (text, text.replace(" ", "") * 3):
        assert ours.encode(piece) == theirs.encode(piece)


def test_files_of_another_kind_are_refused(tokenizer: RustBPETokenizer, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("", "YQ==", "a b c", "YQ== 0\n%%%% 1", '{"model": {}}', "[]"):
        path.write_text(content)
        for read in (RustBPETokenizer.from_tiktoken, RustBPETokenizer.from_huggingface):
            with pytest.raises(UserError, match=re.escape(str(path))):
                read(path)
    with pytest.raises(UserError):
        RustBPETokenizer.from_tiktoken(tmp_path / "nothing")


# ---- published vocabularies


def test_a_published_vocabulary_is_refused_at_once_when_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"p50k_base is not in .*HF_HUB_OFFLINE is set"):
        published_encoding("p50k_base")


def test_a_server_that_does_not_answer_is_given_up_soon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def slow(url: str, timeout: float) -> None:
        time.sleep(20 * timeout)
        raise OSError

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer_formats, "RESPONSE_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr("urllib.request.urlopen", slow)
    with pytest.raises(UserError, match="no answer within"):
        published_encoding("p50k_base")


# ---- hostile files

HOSTILE = Path(__file__).parents[2] / "shared" / "cases" / "hostile"


def rewritten(tokenizer: RustBPETokenizer, folder: Path, **fields: Any) -> Path:
    """Our file with other fields and the checksum that belongs to them."""
    content = tokenizer._content() | fields
    header = {"format": "nanochat tokenizer", "version": 1, "sha256": _digest(content)}
    (folder / FILE_NAME).write_text(json.dumps(header | content))
    return folder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"merges": [[i, i] for i in (0, *range(256, 320))]}, "makes a token of 131,072 bytes"),
        ({"merges": [[256, 256]]}, "merge 0 is not of two tokens before it"),
        ({"merges": [[-1, 0]]}, "merge 0 is not"),
        ({"merges": [[97.0, 98.0]]}, "merge 0 is not"),
        ({"merges": [[True, 98]]}, "merge 0 is not"),
        ({"merges": ["ab"]}, "merge 0 is not"),
        ({"merges": [None]}, "of another type"),
        ({"merges": {"a": 1}}, "not a nanochat tokenizer"),
        ({"merges": [[97, 98], [97, 98]]}, "a repetition"),
        ({"bytes": [10**9] * 256}, "numbers from 0 to 255"),
        ({"bytes": [0] * 256}, "numbers from 0 to 255"),
        ({"bytes": None}, "of another type"),
        ({"special_tokens": ["<|bos|>"] * 9}, "special tokens are others"),
        ({"special_tokens": []}, "special tokens are others"),
        ({"pattern": ""}, "leaves out text"),
        ({"pattern": r"\w+"}, "leaves out text"),
        ({"pattern": 5}, "of another type"),
        ({"pattern": "\ud800"}, "surrogates not allowed"),
        ({"pattern": "("}, "not a regular expression"),
    ],
)  # fmt: skip
def test_a_malformed_tokenizer_is_one_line(
    tokenizer: RustBPETokenizer, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        RustBPETokenizer.from_directory(rewritten(tokenizer, tmp_path, **fields))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("path", sorted(HOSTILE.glob("tokenizer_*.json")), ids=lambda p: p.stem)
def test_a_hostile_tokenizer_of_the_shared_cases_is_refused(tmp_path: Path, path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"not a nanochat tokenizer .*scripts\.tok_train"):
        RustBPETokenizer.from_directory(tmp_path)


def set_path(data: Any, path: str, value: Any) -> None:
    *names, last = path.split(".")
    for name in names:
        data = data[name]
    data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("normalizer", {"type": "NFC"}, "normalizer changes the text"),
        ("model.type", "Unigram", "not byte-level BPE"),
        ("model.end_of_word_suffix", "</w>", "not byte-level BPE"),
        ("model.vocab", {"a": 0}, "not a tokenizer.json"),
        ("model.vocab", [], "of another type"),
        ("model.vocab", {"Ā": "0"}, "not an integer"),
        ("model.merges", [], "has not all merges"),
        ("model.merges", ["h e", "h e"], "order of its ids, or repeated"),
        ("model.merges", [5], "of another type"),
        ("added_tokens", [{"content": "a"}] * 2, "added token is repeated"),
        ("added_tokens", 7, "of another type"),
        ("pre_tokenizer", None, "of another type"),
        ("pre_tokenizer.pretokenizers", [], "one split pattern"),
    ],
)
def test_a_malformed_huggingface_file_is_one_line(
    tokenizer: RustBPETokenizer, tmp_path: Path, path: str, value: Any, message: str
) -> None:
    file = tmp_path / "tokenizer.json"
    tokenizer.to_huggingface(file)
    data = json.loads(file.read_text())
    set_path(data, path, value)
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match=message) as caught:
        RustBPETokenizer.from_huggingface(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("line", ["YWE= 1_0", "YWE= -1", "YQ== 5", "YWE=", "YWE= 1 2", "é 1"])
def test_a_malformed_line_of_ranks_is_one_line(
    tokenizer: RustBPETokenizer, tmp_path: Path, line: str
) -> None:
    path = tmp_path / "ranks"
    tokenizer.to_tiktoken(path)
    path.write_text(path.read_text() + line)
    with pytest.raises(UserError) as caught:
        RustBPETokenizer.from_tiktoken(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$|.", r"(a*)*b|\s|\S", r"(?:.|\n)*?(?!a)(?:.|\n)*=|[\s\S]", r"(.)\1|[\s\S]",
        r"((a{0,100}){0,100}){0,100}|[\s\S]", "a" * 5000, r"[\s\S](?=(?:.*b)+)|[\s\S]",
    ],
)  # fmt: skip
def test_a_pattern_that_may_take_forever_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match=r"the split pattern .*; use a simpler one"):
        RustBPETokenizer({bytes([byte]): byte for byte in range(256)}, pattern)


@pytest.mark.parametrize("pattern", [r"[^b]*b|[\s\S]", r"[^b]*+b|[\s\S]", r"\s+(?!\S)|[\s\S]"])
def test_a_slow_pattern_ends(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    tokenizer = RustBPETokenizer({bytes([byte]): byte for byte in range(256)}, pattern)
    with contextlib.suppress(UserError):
        tokenizer.encode("a" * 300_000)
