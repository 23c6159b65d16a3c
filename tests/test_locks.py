"""Commands that write to the same place at the same time: the second waits, or adds to it."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nanochat import dataset, paths, report
from nanochat.chat_eval import Answered, tally
from scripts import chat_eval, tok_train


def test_a_second_import_waits_and_finds_the_first_done(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(paths, "LOCK_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(dataset, "PRIMER_SHARD_DOCUMENTS", 50)
    monkeypatch.setattr(dataset, "PRIMER_VAL_DOCUMENTS", 20)
    with ThreadPoolExecutor(2) as pool:
        with paths.locked(paths.data_dir("primer")):
            imports = [pool.submit(dataset.make, "primer", 1) for _ in range(2)]
            while caplog.text.count("waiting for") < 2:
                time.sleep(0.01)
            assert not any(path.suffix == ".parquet" for path in base_dir.rglob("*"))
        assert [each.result() for each in imports] == ["primer", "primer"]
    assert f"{paths.data_dir('primer')}, in use by process {os.getpid()} on" in caplog.text


def test_a_second_training_of_the_tokenizer_waits_and_reuses_the_first(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "PRIMER_SHARD_DOCUMENTS", 50)
    monkeypatch.setattr(dataset, "PRIMER_VAL_DOCUMENTS", 20)
    dataset.make("primer", 1)
    trained = []
    original = tok_train.RustBPETokenizer.train_from_iterator

    def counting(*arguments: object) -> object:
        trained.append(1)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tok_train.RustBPETokenizer, "train_from_iterator", counting)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(tok_train.main, [["--vocab_size=300"]] * 2))
    assert trained == [1]


def test_two_evaluations_add_to_one_section(base_dir: Path) -> None:
    settings = {"model": "a", "step": 1}
    section = {"title": "Evaluation", "settings": settings, "results": {}, "seconds": 0.0}
    answered = [Answered(0, "?", "a", ("a",), (True,), False)]
    for name in ("one", "two"):  # each began when there was no result yet
        results = {name: tally(answered)}
        chat_eval.write_results("chat_eval_sft", section, results, settings, [])
    saved = json.loads((paths.report_dir() / "sections" / "chat_eval_sft.json").read_text())
    assert list(saved["results"]) == ["two", "one"]
    assert set((report.read_section("chat_eval_sft", settings) or {})["table"]) >= {"one", "two"}
