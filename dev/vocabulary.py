"""Check names, comments, messages, docs and the chat page for words that the field does not use.

    python -m dev.vocabulary        print file:line, the words and what to write

The list is short on purpose: it holds coined words and metaphors that were found here before, and
literal translations of idioms. The text that the primer world generates is not checked.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".pyi", ".rs", ".md", ".sh", ".slurm", ".toml", ".html", ""}
# The last one maps the old names of modules to the new ones.
NOT_CHECKED = ("dev/vocabulary.py", "tests/test_vocabulary.py", "CHANGELOG.md")
# Generated text is part of what models are trained on; comments and names there are read by hand.
GENERATED_TEXT = "nanochat/primer/"

# pattern -> replacement; matched in any case, underscores count as spaces
BANNED = {
    r"cellar|storeys?|upper floors?|rooms? of (its|their) own": "layer, package, module",
    r"the house": "the project",
    r"whereabouts": "hardware_key",
    r"dice": "rng",
    r"likeliest": "most likely; top_k, top_logprobs",
    r"even(ed)? out": "normalize_rows",
    r"side by side": "in parallel, replicas",
    r"undisturbed": "name what is switched off",
    r"outlook": "run summary",
    r"(?<!your )own text": "text import; the user's text",
    r"capped loss": "soft-capped cross-entropy",
    r"text stream": "streaming detokenizer",
    r"mov(es|ing) (it|which|what|the matrices|matrices)": "update, optimize",
    r"which moves what|what moves it": "optimizers, parameter groups",
    r"how fast what moves|their course": "learning-rate schedule",
    r"finer manner|manner of answering": "instruction tuning",
    r"stand(s|ing)? (whole|aside|still)": "materialize; wait, suspend; stop",
    r"whole or absent|(write|is|read) whole|whole file": "atomic write, complete",
    r"bring(s|ing)? (it|them|the .{1,30}) (again|back)": "download again, restore",
    r"(is|are|was|were|be) brought": "download, restore",
    r"(set|sets|setting|put|puts) aside": "suspend; move to replaced/",
    r"call(s|ed|ing)? back": "resume",
    r"silen(t|ce) (rank|seconds)|beats": "lost rank, heartbeat",
    r"obey(s|ed)?|stranger": "handle, unauthorized client",
    r"came out|comes out|what comes out": "output, result",
    r"(a|per) second each": "tok/s",
    r"worded as never in training": "unseen phrasings",
    r"anew": "again, from scratch",
    r"mend(s|ed|ing)?": "fix",
    r"way out": "remedy",
    r"(go|goes|going|went) on (where|from|with)|to go on": "resume, continue",
    r"its words|last words|tells? its": "message",
    r"is nowhere|nobody|whoever": "none, no one; the caller, a client",
    r"for each parameter": "per parameter",
    r"looks? back": "attention",
    r"diary": "log",
    r"by heart": "memorized",
    r"twins?": "copy, reference implementation",
    r"pulling the plug": "power loss",
    r"of_x|of_weight|of_logits": "grad_x, grad_weight, grad_logits",
}  # fmt: skip
PATTERNS = [
    (re.compile(rf"(?<![a-z])(?:{pattern})(?![a-z])", re.IGNORECASE), instead)
    for pattern, instead in BANNED.items()
]


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, banned words, replacement) for each match, line by line."""
    for number, line in enumerate(text.splitlines(), start=1):
        spaced = line.replace("_", " ")
        for pattern, instead in PATTERNS:
            match = pattern.search(line) or pattern.search(spaced)
            if match:
                yield number, match[0], instead


def checked_files() -> list[Path]:
    """Tracked and new text files, generated text left out."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [
        ROOT / name
        for name in names.splitlines()
        if Path(name).suffix in SUFFIXES
        and name not in NOT_CHECKED
        and not name.startswith(GENERATED_TEXT)
        and (ROOT / name).is_file()
    ]


def main() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {words!r}; write: {instead}"
        for path in checked_files()
        for number, words, instead in findings(path.read_text(encoding="utf-8"))
    ]
    print("\n".join(found) or "vocabulary: clean")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
