import gzip
from pathlib import Path

import pytest

from dev.faults.memory import BOMBS, MAX_SECONDS, memory_bombs
from nanochat.data import json_rows
from nanochat.errors import UserError


def test_a_small_bomb_takes_little_memory_in_a_process_of_its_own(tmp_path: Path) -> None:
    outcome = memory_bombs(tmp_path, ["tokenizer, doubling merges"])
    assert (outcome.harms, outcome.tried, outcome.facts["refused"]) == ([], 1, 1)


@pytest.mark.slow
@pytest.mark.long  # minutes, and 5 GB to make them
@pytest.mark.timeout(2 * MAX_SECONDS)
@pytest.mark.parametrize("name", BOMBS)
def test_no_bomb_takes_a_gigabyte_more_than_its_file(tmp_path: Path, name: str) -> None:
    assert memory_bombs(tmp_path, [name]).harms == []


def test_json_with_many_values_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": [' + "[]," * 3_500_000 + "1]}\n")
    with pytest.raises(UserError, match="a line would take more than 0"):
        list(json_rows.json_lines(path))
    with pytest.raises(UserError, match=r"a\.jsonl would take more than 0\.8 GB of memory"):
        json_rows.read_bytes(path)


def test_many_short_conversations_that_are_compressed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt":"a","output":"b"}\n' * 2_000_000))
    with pytest.raises(UserError, match=r"would take more than 0\.\d GB of memory; divide it"):
        json_rows.read_bytes(path)


def test_ordinary_sentences_are_no_bomb() -> None:
    json_rows.check_json_values(
        "one, two, three and more words of a long sentence. " * 200_000, "x"
    )
