"""The commands tok_train and tok_eval, in this process, on a few texts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from nanochat import dataset, paths, report
from nanochat.errors import UserError
from nanochat.tokenizer import STYLE, RustBPETokenizer, get_tokenizer
from scripts import tok_eval, tok_train


@pytest.fixture(autouse=True)
def source(base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some text as the current source, and no published vocabulary available."""
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = (json.dumps({"text": f"The fox number {i} didn't jump.\n" * 3}) for i in range(200))
    (folder / "foxes.jsonl").write_text("\n".join(lines))
    dataset.make(str(folder), 1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no_cache"))


@pytest.fixture
def trained() -> RustBPETokenizer:
    tok_train.main(["--vocab_size=300"])
    return get_tokenizer()


def section(name: str) -> dict[str, Any]:
    found = report.read_section(name)
    assert found is not None
    return found


# ---- tok_train


def test_training_saves_a_tokenizer_of_the_requested_size_and_reports(
    trained: RustBPETokenizer,
) -> None:
    assert trained.get_vocab_size() == 300
    metrics = section("tok_train")["metrics"]
    assert metrics["vocabulary"] == 300
    assert metrics["sha256"] == trained.content_hash
    assert metrics["characters"] == sum(len(text) for text in dataset.iter_texts("train"))


def test_training_again_is_skipped_and_writes_nothing(
    trained: RustBPETokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    written = section("tok_train")["written"]
    with caplog.at_level("INFO"):
        tok_train.main(["--vocab_size=300"])
    assert "already measured" in caplog.text
    assert section("tok_train")["written"] == written


def replaced() -> list[str]:
    return [path.name for path in sorted((paths.base_dir() / "replaced").glob("*"))]


@pytest.mark.parametrize(
    "change",
    ["--vocab_size=301", "--max_chars=5000", "--doc_cap=20", *(f"--{name}" for name in STYLE)],
)
def test_a_tokenizer_of_other_settings_is_kept_unless_fresh_is_given(
    trained: RustBPETokenizer, change: str
) -> None:
    name = change.strip("-").partition("=")[0]
    with pytest.raises(UserError, match=rf"other settings \({name}: saved .*--fresh to move"):
        tok_train.main(["--vocab_size=300", change])
    assert get_tokenizer().content_hash == trained.content_hash and replaced() == []
    tok_train.main(["--vocab_size=300", change, "--fresh"])
    assert get_tokenizer().content_hash != trained.content_hash
    assert replaced() == ["tokenizer-1"]
    kept = RustBPETokenizer.from_directory(paths.base_dir() / "replaced" / "tokenizer-1")
    assert kept.content_hash == trained.content_hash


def test_training_the_same_tokenizer_again_keeps_no_copy(
    trained: RustBPETokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        tok_train.main(["--vocab_size=300", "--fresh"])
    assert "already measured" not in caplog.text and replaced() == []


def test_a_tokenizer_of_unknown_origin_is_not_replaced(trained: RustBPETokenizer) -> None:
    foreign = RustBPETokenizer.train_from_iterator(["other text"], 300)
    foreign.save(paths.tokenizer_dir())
    with pytest.raises(UserError, match=r"vocab_size: saved unknown.*--fresh"):
        tok_train.main(["--vocab_size=300"])
    tok_train.main(["--vocab_size=300", "--fresh"])
    assert get_tokenizer().content_hash == trained.content_hash
    kept = RustBPETokenizer.from_directory(paths.base_dir() / "replaced" / "tokenizer-1")
    assert kept.content_hash == foreign.content_hash


def test_a_tokenizer_knows_its_settings_after_the_report_is_reset(
    trained: RustBPETokenizer,
) -> None:
    before = section("tok_train")
    report.reset()
    tok_train.main(["--vocab_size=300"])
    assert section("tok_train")["metrics"] == before["metrics"]


def test_changed_text_is_said_and_the_tokenizer_kept(
    trained: RustBPETokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "texts" / "foxes.jsonl"
    path.write_text(path.read_text().replace("jump", "swim"))
    dataset.make(str(tmp_path / "texts"), 1)
    tok_train.main(["--vocab_size=300"])
    assert "the text has changed since the tokenizer was trained" in caplog.text
    assert get_tokenizer().content_hash == trained.content_hash


def test_a_missing_or_damaged_tokenizer_is_trained_again(trained: RustBPETokenizer) -> None:
    path = paths.tokenizer_dir() / "tokenizer.json"
    path.write_text("{")
    tok_train.main(["--vocab_size=300"])
    assert (paths.base_dir() / "replaced" / "tokenizer-1" / path.name).read_text() == "{"
    path.unlink()
    tok_train.main(["--vocab_size=300"])
    assert get_tokenizer().content_hash == trained.content_hash


def test_characters_are_counted_after_the_limits() -> None:
    tok_train.main(["--vocab_size=270", "--max_chars=1000", "--doc_cap=10"])
    assert section("tok_train")["metrics"]["characters"] == 1000


def test_an_invalid_vocabulary_size_is_refused() -> None:
    with pytest.raises(UserError, match="--vocab_size=100 is not between 265"):
        tok_train.main(["--vocab_size=100"])


# ---- tok_eval


def test_every_kind_of_text_has_its_row(trained: RustBPETokenizer) -> None:
    tok_eval.main([])
    head, *rows = section("tok_eval")["rows"]
    assert head == ["text", "bytes", "bytes/token", "tokens/word", "single bytes"]
    assert [row[0] for row in rows] == ["training text", "validation text", *tok_eval.samples()]
    by_kind = {row[0]: row for row in rows}
    texts = list(dataset.iter_texts("val"))
    num_tokens = sum(map(len, trained.encode(texts)))
    num_bytes = sum(len(text.encode()) for text in texts)
    assert by_kind["validation text"][1] == f"{num_bytes:,}"
    assert by_kind["validation text"][2] == f"{num_bytes / num_tokens:.2f}"
    assert by_kind["Chinese"][2:] == ["1.00", "-", "100.0 %"]


def test_the_log_and_the_report_name_what_was_compared(
    trained: RustBPETokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        tok_eval.main([])
    for name in ("tiktoken", "Hugging Face tokenizers"):
        assert re.search(rf"{name} gives equal ids on all \d+ texts", caplog.text)
    assert "Not compared with the vocabularies of GPT-2 and GPT-4" in caplog.text
    assert caplog.text.count("Not compared") == 1
    assert "HF_HUB_OFFLINE is set" in " ".join(section("tok_eval")["notes"])


def test_an_available_published_vocabulary_has_a_column(
    trained: RustBPETokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}

    def published(name: str) -> tiktoken.Encoding:
        if name == "r50k_base":
            raise UserError("not available")
        return tiktoken.Encoding(name, pat_str="(?s:.)", mergeable_ranks=ranks, special_tokens={})

    monkeypatch.setattr(tok_eval, "published_encoding", published)
    tok_eval.main([])
    head, *rows = section("tok_eval")["rows"]
    assert head[-1] == "bytes/token GPT-4"
    assert {row[0]: row[-1] for row in rows}["Russian"] == "1.00"
    assert section("tok_eval")["notes"][-1].startswith(
        "Not compared with the vocabularies of GPT-2:"
    )


def test_a_backend_with_other_ids_is_reported(
    trained: RustBPETokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(RustBPETokenizer):
        def _encode_batch(self, texts: list[str], *_: Any) -> list[list[int]]:
            return [[0] for _ in texts]

    monkeypatch.setattr(tok_eval, "BACKENDS", {"another": Other})
    tok_eval.main([])
    assert any("another gives OTHER ids" in note for note in section("tok_eval")["notes"])


def test_measuring_again_is_skipped_until_the_tokenizer_changes(
    trained: RustBPETokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    tok_eval.main([])
    with caplog.at_level("INFO"):
        tok_eval.main([])
        assert "already measured" in caplog.text
        caplog.clear()
        tok_train.main(["--vocab_size=290", "--fresh"])
        tok_eval.main([])
        assert "already measured" not in caplog.text


def test_show_prints_tokens_with_their_ids(
    trained: RustBPETokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "The fox\n <|bos|> é\udc80"
    tok_eval.main(["--show", text])
    shown = capsys.readouterr().out
    ids = trained.encode(text)
    assert [int(number) for number in re.findall(r"\((\d+)\)", shown)] == ids
    assert "⏎" in shown and r"\xc3" in shown
    assert f"{len(ids)} tokens, 22 bytes" in shown
    tok_eval.main(["--show="])
    assert "0 tokens, 0 bytes" in capsys.readouterr().out
    assert report.read_section("tok_eval") is None


def test_no_characters_and_a_missing_tokenizer_are_refused() -> None:
    with pytest.raises(UserError, match="no tokenizer in"):
        tok_eval.main([])
    with pytest.raises(UserError, match="--max_chars=0"):
        tok_eval.main(["--max_chars=0"])
