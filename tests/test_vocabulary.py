"""The vocabulary check finds banned words and leaves similar ones alone."""

from dev import vocabulary


def test_banned_words_are_found_in_any_case_and_inside_identifiers() -> None:
    for line in ("dice = random.Random(0)", "num_likeliest: int", "Begin anew.", "def even_out():"):
        assert [number for number, _, _ in vocabulary.findings(f"fine\n{line}")] == [2], line


def test_words_that_only_contain_a_banned_one_are_not_reported() -> None:
    assert list(vocabulary.findings("recommended amendment; twinkle; beatsome; dicey")) == []


def test_the_check_reads_code_docs_scripts_and_the_page() -> None:
    names = {path.name for path in vocabulary.checked_files()}
    assert {"README.md", "gpt.py", "ui.html", "speedrun.sh", "encode.rs", "Makefile"} <= names
