from dev import fuzz_files


def test_mutated_tokenizers_load_or_are_one_line() -> None:
    assert fuzz_files.tokenizer_faults(60, seed=1) == []


def test_mutated_texts_are_read_or_are_one_line() -> None:
    assert fuzz_files.text_faults(30, seed=1) == []
