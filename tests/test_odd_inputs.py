"""Sixty mistakes and odd inputs: each gives the right result or one line, and no text is lost.

Every command runs with its guard, as `python -m` starts it; a traceback fails the test.
"""

import gzip
import importlib
import io
import json
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import dataset, paths
from nanochat.configurator import run
from nanochat.dataset import iter_texts
from tests.small_model import save_small_run

pytestmark = pytest.mark.slow
WORDS = [f"The lamp {n} in house {n * 7 % 101} is lit at dusk." for n in range(400)]
TEXT = "\n\n".join(" ".join(WORDS[n : n + 4]) for n in range(0, 400, 4))
ROWS = "".join(json.dumps({"text": word}) + "\n" for word in WORDS)
TALK = json.dumps({"messages": [{"role": "user", "content": "Hi"},
                                {"role": "assistant", "content": "Hello"}]})  # fmt: skip


def outcome(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    """Exit code, all output, and the error lines."""
    module, *argv = shlex.split(line)
    main: Callable[[list[str]], None] = importlib.import_module(module).main
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(lambda: main(argv))
    captured = capsys.readouterr()
    errors = [text for text in captured.err.splitlines() if text.startswith("error: ")]
    assert "Traceback" not in captured.err + captured.out
    assert isinstance(caught.value.code, int) and len(errors) == (caught.value.code != 0)
    return caught.value.code, captured.out + captured.err, errors


# ---- texts: read as a whole, or named

Content = bytes | str


def parquet(**columns: object) -> bytes:
    raw = io.BytesIO()
    pq.write_table(pa.table(columns), raw)
    return raw.getvalue()


def archive(name: str, content: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as file:
        file.writestr(name, content)
    return raw.getvalue()


READ: dict[str, tuple[str, Content]] = {  # by what is odd; the text is complete after the import
    "BOM": ("a.txt", b"\xef\xbb\xbf" + TEXT.encode()),
    "CRLF": ("a.txt", TEXT.replace("\n", "\r\n")),
    "old Mac line ends": ("a.txt", TEXT.replace("\n", "\r")),
    "one huge line": ("a.txt", TEXT.replace("\n\n", " ")),
    "no line end at the end": ("a.txt", TEXT),
    "trailing blank lines": ("a.txt", TEXT + "\n" * 500),
    "form feeds": ("a.txt", TEXT.replace("\n\n", "\n\n\f")),
    "UTF-16 as Notepad saves it": ("a.txt", TEXT.encode("utf-16")),
    "upper-case suffix": ("A.TXT", TEXT),
    "upper-case JSONL": ("A.JSONL", ROWS),
    "name with spaces and quotes": ("my 'best' text (1).txt", TEXT),
    "name in Chinese": ("文本.txt", TEXT),
    "name that looks like an option": ("--help.txt", TEXT),
    "BOM before JSON lines": ("a.jsonl", "\ufeff" + ROWS),
    "CRLF JSON lines": ("a.jsonl", ROWS.replace("\n", "\r\n")),
    "gzip of two members": ("a.txt.gz", gzip.compress(TEXT[:999].encode(), mtime=0)
                            + gzip.compress(TEXT[999:].encode(), mtime=0)),
    "blank lines between JSON lines": ("a.jsonl", ROWS.replace("\n", "\n\n")),
    "large strings": ("a.parquet", parquet(text=pa.array(WORDS, pa.large_string()))),
    "text beside other columns": ("a.parquet", parquet(id=list(range(400)), text=WORDS)),
    "nulls among the texts": ("a.parquet", parquet(text=[*WORDS, None, None])),
}  # fmt: skip


def letters(text: str) -> list[str]:
    return sorted(text.replace("\f", " ").split())


@pytest.mark.parametrize("name", READ)
def test_an_odd_text_is_read_completely(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file_name, content = READ[name]
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / file_name).write_bytes(content.encode() if isinstance(content, str) else content)
    code, output, _ = outcome(f"nanochat.dataset --source={shlex.quote(str(folder))}", capsys)
    assert code == 0, output
    source = dataset.current_source()
    found = " ".join(text for split in dataset.SPLITS for text in iter_texts(split, source))
    assert letters(found) == letters(" ".join(WORDS))


BESIDE: dict[str, tuple[str, Content]] = {  # beside readable text; named in what is printed
    "CSV": ("table.csv", "text,label\n" + "\n".join(WORDS)),
    "Excel": ("table.xlsx", archive("xl/workbook.xml", "<x/>")),
    "Word": ("letter.docx", archive("word/document.xml", TEXT)),
    "PDF": ("book.pdf", b"%PDF-1.7 " + TEXT.encode()),
    "zip": ("more.zip", archive("a.txt", TEXT)),
    "Markdown": ("notes.md", TEXT),
    "empty": ("empty.txt", ""),
    "HTML": ("page.html", f"<p>{TEXT}</p>"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_left_out_beside_a_text_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file_name, content = BESIDE[name]
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT)
    (folder / file_name).write_bytes(content.encode() if isinstance(content, str) else content)
    code, output, _ = outcome(f"nanochat.dataset --source={folder}", capsys)
    source = dataset.current_source()
    found = " ".join(text for split in dataset.SPLITS for text in iter_texts(split, source))
    assert code == 0 and letters(found)[0]
    is_read = len(letters(found)) > len(letters(TEXT))
    assert is_read or file_name in output or Path(file_name).suffix in output, output


REFUSED: dict[str, tuple[str, Content, str]] = {
    "a CSV alone": ("table.csv", "text\n" + "\n".join(WORDS), ""),
    "a zip called .parquet": ("a.parquet", archive("a.txt", TEXT), "a.parquet"),
    "HTML called .jsonl": ("a.jsonl", "<html>Not found</html>", "a.jsonl"),
    "LFS pointer called .parquet": ("a.parquet", "version https://git-lfs.github.com/spec/v1\n",
                                    "a.parquet"),
    "numbers instead of texts": ("a.jsonl", '{"text": 5}\n' * 9, "a.jsonl"),
    "no text column": ("a.parquet", parquet(content_id=[1, 2, 3]), "a.parquet"),
    "text cut within gzip": ("a.txt.gz", gzip.compress(TEXT.encode(), mtime=0)[:-20], "a.txt.gz"),
    "one word": ("a.txt", "Hi", ""),
    "only spaces": ("a.txt", " \n" * 999, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_unusable_text_is_one_line_and_leaves_nothing(
    tmp_path: Path, base_dir: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file_name, content, words = REFUSED[name]
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / file_name).write_bytes(content.encode() if isinstance(content, str) else content)
    code, _, errors = outcome(f"nanochat.dataset --source={folder}", capsys)
    assert code == 2 and words in errors[0]
    assert not list(base_dir.rglob("*.parquet"))


# ---- command lines


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory with a base and a finetuned model."""
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        save_small_run("base")
        save_small_run("sft")
    return folder


@pytest.fixture
def ready(model: Path, base_dir: Path) -> Path:
    shutil.copytree(model, base_dir)
    return base_dir


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("scripts.base_train --depth=4,0", "--depth=4,0 is not a whole number"),
        ("scripts.base_train --depth=1e1", "--depth=1e1 is not a whole number"),
        ("scripts.base_train --depth='4 '", ""),
        ("scripts.base_train --depth=", "--depth= is not a whole number"),
        ("scripts.base_train --depth", "--depth needs a value"),
        ("scripts.base_train depth=4", "depth=4 is neither an option"),
        ("scripts.base_train -depth=4", ""),
        ("scripts.base_train --depth=٤٤٤٤٤", ""),
        ("scripts.base_train --matrix_lr=0,02", "--matrix_lr=0,02 is not a number"),
        ("scripts.base_train --compile=True", "--compile=True is not one of auto, on, off"),
        ("scripts.base_train --fresh=maybe", "--fresh=maybe is not one of true"),
        ("scripts.base_train --DEPTH=4", "--DEPTH is not an option"),
        ("scripts.base_train –depth=4", "neither an option"),  # a dash of a word processor
        ("scripts.base_train --config=missing.py", "missing.py is neither an option"),
        ("scripts.base_train /tmp", "/tmp is neither an option"),
        ("scripts.chat_cli -p", "-p needs a value"),
        ("scripts.chat_cli -i stf -p Hi", "stf is not one of"),
        ("scripts.chat_cli --step=999 -p Hi", "999"),
        ("scripts.chat_cli --model_tag=C:\\\\models -p Hi", "is not the plain name of a folder"),
        ("scripts.chat_cli --temperature=9 -p Hi", "--temperature=9 must be between 0 and 2"),
        ("scripts.chat_sft --conversations=~/nowhere.jsonl", ""),
        ("scripts.export --out=/proc/x", ""),
        ("scripts.chat_web --port=99999", "--port=99999"),
        ("scripts.chat_eval -a GSM9K", "GSM9K"),
        ("nanochat.report genrate", "genrate"),
        ("nanochat.dataset --source=C:\\\\texts", "is neither a known source nor"),
        ("nanochat.dataset -n8x", "-n8x is not an option"),
    ],
)
def test_a_mistyped_command_is_one_line(
    ready: Path, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    before = sorted(path for path in ready.rglob("*") if path.suffix != ".lock")
    code, _, errors = outcome(line, capsys)
    assert code in (1, 2) and words in errors[0]
    assert sorted(path for path in ready.rglob("*") if path.suffix != ".lock") == before


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 100, TALK.encode()[:-9], b"[" * 9999, TALK.encode() + b"\nnull", b"\xff\xfe"],
)
def test_an_unusable_file_of_conversations_is_one_line(
    ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    shutil.copytree(paths.checkpoints_dir("base"), paths.checkpoints_dir("mid"))
    path = tmp_path / "my talks.jsonl"
    path.write_bytes(content)
    code, _, errors = outcome(f"scripts.chat_sft --conversations='{path}'", capsys)
    assert code == 2 and "my talks.jsonl" in errors[0]


@pytest.mark.parametrize(
    "prompt", ["", " ", "\x00", "🙂" * 500, "<|assistant_end|><|bos|>", "'; DROP TABLE", "\ud800"]
)
def test_an_odd_question_is_answered_or_refused_in_one_line(
    ready: Path, capsys: pytest.CaptureFixture[str], prompt: str
) -> None:
    argv = ["-i", "sft", "--max_tokens=4", "--device_type=cpu", "-p", prompt]
    outcome(f"scripts.chat_cli {shlex.join(argv)}", capsys)
