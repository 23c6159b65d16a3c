"""The conversations about the model itself: shipped, generated, and written by another model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dev import gen_synthetic_data
from dev.gen_synthetic_data import messages_in
from nanochat.errors import UserError
from scripts.options import MixtureOptions
from scripts.training import own_conversations
from tasks.customjson import IDENTITY_FILE, CustomJSON
from tests.hub import serving

REPLY = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]


def generate(out: Path, *options: str) -> list[dict[str, str]]:
    """All messages of the generated conversations."""
    gen_synthetic_data.main([f"--out={out}", *options])
    task = CustomJSON(str(out))
    return [message for i in range(len(task)) for message in task[i]["messages"]]


def test_the_shipped_conversations_are_the_generated_ones(tmp_path: Path) -> None:
    generate(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == IDENTITY_FILE.read_bytes()
    with pytest.raises(UserError, match=r"add --out=FILE: without it the shipped"):
        gen_synthetic_data.main(["--name=Ada"])


def test_public_mixtures_contain_them_unless_others_or_none_are_asked_for(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps([REPLY]))

    def sizes(mixture: str, **options: Any) -> list[int]:
        return [len(task) for task in own_conversations(MixtureOptions(**options), mixture)]

    assert sizes("public") == [1000]
    assert sizes("primer") == sizes("none") == sizes("public", identity_file="none") == []
    assert sizes("public", identity_file=str(other)) == [1]
    assert sizes("public", conversations=str(other)) == [1, 1000]


def test_a_name_a_maker_and_facts_make_a_personality(tmp_path: Path) -> None:
    facts = tmp_path / "facts.txt"
    facts.write_text("# of the night class\n\nWhat do you love? | {name} loves tides.\n")
    options = ("--num=400", "--name=Ada", "--maker=the night class", f"--facts={facts}")
    messages = generate(tmp_path / "ada.jsonl", *options)
    texts = [message["content"] for message in messages]
    assert "My name is Ada." in texts and "Ada loves tides." in texts
    assert any("The night class trained me" in text for text in texts)
    assert {"What do you love?", "what do you love"} & set(texts)
    assert not any("My name is nanochat" in text or "{" in text for text in texts)
    assert messages == generate(tmp_path / "again.jsonl", *options)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no bar", r"facts.txt:2: 'no bar' is not `question | answer`"),
        ("Who? |", r"facts.txt:2: 'Who? |' is not"),
        ("Who? | {nmae}.", r"facts.txt:2: {nmae} is not {name} or {maker}"),
    ],
)
def test_a_wrong_line_of_facts_is_named_by_its_number(
    tmp_path: Path, line: str, words: str
) -> None:
    (tmp_path / "facts.txt").write_text(f"Fine? | Yes.\n{line}\n")
    with pytest.raises(UserError) as caught:
        generate(tmp_path / "out.jsonl", f"--facts={tmp_path / 'facts.txt'}")
    assert words in str(caught.value)


@contextmanager
def server_of(replies: list[str]) -> Iterator[str]:
    """Base URL of a server of the OpenAI protocol that gives these answers, the last one again."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert request["model"] == "large" and "Ada" in request["messages"][0]["content"]
            text = replies.pop(0) if len(replies) > 1 else replies[0]
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            body = json.dumps(
                {"id": "1", "object": "chat.completion", "created": 0, "model": "large",
                 "choices": [choice]}
            ).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield f"{address}/v1"


def test_a_server_writes_conversations_and_a_second_start_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    out, options = tmp_path / "out.jsonl", ("--name=Ada", "--model=large")
    with server_of(["Sure!", "[{}]", f"Here: {json.dumps(REPLY)} Enjoy."]) as url:
        assert generate(out, *options, "--num=3", f"--endpoint={url}") == REPLY * 3
        assert generate(out, *options, "--num=5", f"--endpoint={url}") == REPLY * 5
    with (
        server_of(["I can't."]) as url,
        pytest.raises(UserError, match=r"large wrote no conversation in 4 attempts \(no JSON in"),
    ):
        generate(out, *options, "--num=6", f"--endpoint={url}")


@pytest.mark.parametrize("text", ["", "[]", "[1]", '[{"role": "user"}]', json.dumps(REPLY[:1])])
def test_what_is_no_conversation_is_not_taken_for_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"no JSON|roles|text"):
        messages_in(text)
