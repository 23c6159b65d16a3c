"""The user's own conversations, in the formats in which such files are exchanged.

    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    {"messages": [{"role": ..., "content": ...}, ...]}                  OpenAI, Hugging Face
    {"conversations": [{"from": "human", "value": "Hi"}, ...]}          ShareGPT
    {"instruction": "Say hi", "input": "", "output": "Hello."}          Alpaca
    {"prompt": "Hi", "completion": "Hello."}

A file holds one JSON value after another, on one line each or on several, or one array of them.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat.chat import Message, pieces_of
from nanochat.data import json_rows, shards
from nanochat.errors import UserError
from tasks.common import Conversation, Task

logger = logging.getLogger(__name__)

# Who the model is, by dev/gen_synthetic_data.py; finetuned on with the public data sets.
IDENTITY_FILE = Path(__file__).with_name("identity.jsonl")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".jsonl.zst", ".parquet")
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
SEPARATORS = re.compile(r"[\s,\]]*")  # between the conversations of a file or an array
HELD_OUT = re.compile(r"(test|val|valid|validation|dev|eval)\b|(test|validation)[-_]")
# Of formats with one question and one answer; what either may be called.
QUESTIONS = ("instruction", "prompt", "question")
CONTEXTS = ("input", "context")  # of the question
ANSWERS = ("output", "completion", "response", "answer")
FORMATS = (
    'use {"messages": [{"role": ..., "content": ...}, ...]}, {"conversations": [{"from": ...,'
    ' "value": ...}, ...]} or {"instruction": ..., "input": ..., "output": ...}'
)


class CustomJSON(Task):
    """All conversations of a file, or of the files in a folder."""

    def __init__(self, path: str, start: int = 0, stop: int | None = None, step: int = 1) -> None:
        """Raises UserError naming file, line and what was found if one is not a conversation."""
        super().__init__(start, stop, step)
        self.rows = [messages for file in _files(path) for messages in _read(file)]
        if not self.rows:
            raise UserError(f"{path} holds no conversation; {FORMATS}")

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        return {"messages": self.rows[index]}

    def digest(self) -> str:
        """Equal for equal conversations."""
        return hashlib.sha256(json.dumps(self.rows).encode()).hexdigest()[:16]


def _files(path: str) -> list[Path]:
    place = Path(path).expanduser()
    if not place.is_dir():
        return [place]
    named = [file for file in place.rglob("*") if file.name.lower().endswith(SUFFIXES)]
    found = sorted(file for file in named if file.is_file())  # no FIFO, which may never end
    files = [file for file in found if not HELD_OUT.match(file.name.lower())]
    if not files:
        raise UserError(f"{place} has no file to train on whose name ends in {', '.join(SUFFIXES)}")
    for file in sorted(set(found) - set(files)):
        logger.info("%s is not trained on, going by its name", file)
    return files


def _read(file: Path) -> Iterator[list[Message]]:
    if file.suffix.lower() == ".parquet":
        values = ((f"{file}: row {n}", row) for n, row in enumerate(_parquet_rows(file), 1))
    else:
        values = ((f"{file}:{line}", value) for line, value in _json_values(file))
    for where, value in values:
        try:
            yield _messages(value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def _parquet_rows(file: Path) -> list[dict[str, Any]]:
    try:
        return shards.read_rows(file)
    except UserError as error:  # with a remedy for downloaded files
        raise UserError(str(error).split(";")[0]) from None


def _json_values(file: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each conversation. Raises UserError if the file is not JSON."""
    content = json_rows.read_bytes(file)
    try:
        text = content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{line}: not UTF-8 ({error.reason}); convert the file") from None
    del content
    decoder, at, line = json.JSONDecoder(), 0, 1
    while True:
        start = at + len(SEPARATORS.match(text, at)[0])  # type: ignore[index]
        line, at = line + text.count("\n", at, start), start
        if at == len(text):
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}:{line}: not JSON: {error}; {FORMATS}") from None
        if isinstance(value, list) and value and not _is_message(value[0]):
            at += 1  # an array of conversations: read its items, each with its line
            continue
        yield line, value
        line, at = line + text.count("\n", at, end), end


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and bool({"role", "from"} & value.keys())


def _messages(value: Any) -> list[Message]:
    """The messages of one conversation in any of the formats."""
    if isinstance(value, dict):
        value = value.get("messages") or value.get("conversations") or _question_and_answer(value)
    if not isinstance(value, list):
        raise UserError(f"{type(value).__name__} is not a conversation; {FORMATS}")
    messages = [_message(number, message) for number, message in enumerate(value, 1)]
    pieces_of(messages)  # raises UserError if the turns are wrong
    if all(message["role"] != "assistant" for message in messages):
        raise UserError("there is no message by the assistant to learn from")
    return messages


def _question_and_answer(row: dict[str, Any]) -> list[Message]:
    """One turn of the formats that have no list of messages."""
    question, context, answer = (
        next((row[name] for name in names if row.get(name) is not None), None)
        for names in (QUESTIONS, CONTEXTS, ANSWERS)
    )
    if question is None or answer is None:
        raise UserError(f"no conversation among the keys {_keys(row)}; {FORMATS}")
    if isinstance(question, list) and isinstance(answer, list):  # of messages
        return question + answer
    texts = [text for text in (question, context) if text]
    if not all(isinstance(text, str) for text in [*texts, answer]):
        raise UserError(f"the keys {_keys(row)} do not hold strings")
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [
        *messages,
        {"role": "user", "content": "\n\n".join(texts)},
        {"role": "assistant", "content": answer},
    ]


def _message(number: int, message: Any) -> Message:
    """A message as role and content; other keys, such as a name, are left out."""
    if not isinstance(message, dict):
        raise UserError(f"message {number} is not an object; {FORMATS}")
    role, content = (
        message.get(ours, message.get(theirs))
        for ours, theirs in (("role", "from"), ("content", "value"))
    )
    if role is None or content is None:
        raise UserError(
            f'message {number} has the keys {_keys(message)}; it needs a "role" and a "content"'
        )
    if not isinstance(role, str) or role not in ROLES:
        raise UserError(f"message {number} is by {role!r}; use one of {', '.join(ROLES)}")
    if message.get("tool_calls") or message.get("weight") == 0:
        raise UserError(f"message {number} has tool_calls or weight 0, which are not supported")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise UserError(f"message {number} has a content that is not text")
        if ROLES[role] != "assistant" and part.get("type") != "text":
            raise UserError(f"message {number} has a part of type {part.get('type')!r}; use text")
    return {"role": ROLES[role], "content": content}


def _keys(value: dict[str, Any]) -> str:
    return ", ".join(map(repr, list(value)[:8])) or "(none)"
