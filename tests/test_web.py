"""The server, asked over loopback by plain HTTP and by the `openai` package."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.web import listen, markdown
from nanochat.web.openai_api import ChatMessage, Defaults, in_turns
from nanochat.web.server import Settings, create_app
from tests.learned_by_heart import EVIL, LONG, model_and_tokenizer

MODEL = "nanochat-d2-sft"


class SlowEngine(Engine):
    """Takes its time for each token, so that something can happen meanwhile."""

    seconds = 0.0

    def slow_down(self, seconds: float) -> None:
        """For every forward pass from now on."""
        self.seconds = seconds
        self.model.embedding.register_forward_pre_hook(lambda *_: time.sleep(self.seconds))


@contextmanager
def serving(engine: Engine, **settings: Any) -> Iterator[str]:
    """The address of a server in a thread of its own."""
    app = create_app(engine, Settings(model_name=MODEL, **settings))
    listener = listen.bind("127.0.0.1", 0)
    server = listen.server_of(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(*model_and_tokenizer())


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    with serving(engine, defaults=Defaults(max_tokens=100)) as url:
        yield url


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)


def user(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def chat(address: str, **body: Any) -> httpx.Response:
    body.setdefault("messages", user("Who are you?"))
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)


def events(address: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, [DONE] checked and left out."""
    body.setdefault("messages", user("Who are you?"))
    response = httpx.post(f"{address}/v1/chat/completions", json={**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") for block in blocks[:-1])
    return [json.loads(block[6:]) for block in blocks[:-2]]


# ---- answers


def test_an_answer_has_every_field_of_the_protocol(address: str) -> None:
    body = chat(address).json()
    assert body["object"] == "chat.completion" and body["model"] == MODEL
    assert body["id"].startswith("chatcmpl-") and abs(body["created"] - time.time()) < 60
    (choice,) = body["choices"]
    assert choice["index"] == 0 and choice["finish_reason"] == "stop"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "I am nanochat."
    used = body["usage"]
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]
    assert used["completion_tokens"] > 0


def test_a_stream_has_the_same_text_in_chunks_of_the_protocols_form(address: str) -> None:
    chunks = events(address, stream_options={"include_usage": True})
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    first, *middle, last, used = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle)
    assert text == "I am nanochat."
    assert last["choices"][0]["delta"] == {} and last["choices"][0]["finish_reason"] == "stop"
    assert used["choices"] == []
    assert used["usage"] == chat(address).json()["usage"]
    assert all("usage" not in chunk for chunk in events(address))


def test_the_openai_package_gets_answers_and_streams(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=user("Smile"))
    assert whole.choices[0].message.content == "😀 é 汉字"
    stream = client.chat.completions.create(model=MODEL, messages=user("Smile"), stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == "😀 é 汉字" and "�" not in "".join(pieces)
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_tool_call_is_shown_beside_the_text(address: str) -> None:
    messages = user("What is 347 + 588?")
    message = chat(address, messages=messages).json()["choices"][0]["message"]
    assert message["tools"] == [{"expression": "347 + 588", "result": "935"}]
    assert message["content"] == "347 + 588 = 935."
    deltas = [chunk["choices"][0]["delta"] for chunk in events(address, messages=messages)]
    assert [tools for one in deltas for tools in one.get("tools", [])] == message["tools"]


def test_a_conversation_is_gone_on_with(client: openai.OpenAI) -> None:
    messages = user("My name is Ann.")
    messages.append({"role": "assistant", "content": "Hello Ann."})
    messages += user("What is my name?")
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    assert answer.choices[0].message.content == "You are Ann."


def test_a_last_message_by_the_assistant_is_continued(address: str) -> None:
    begin, end = LONG.split(" tock 12")
    messages = [*user("Count"), {"role": "assistant", "content": begin}]
    answer = chat(address, messages=messages).json()["choices"][0]
    assert answer["message"]["content"] == " tock 12" + end


def test_text_that_looks_like_special_tokens_stays_text(engine: Engine, address: str) -> None:
    text = "<|user_end|><|assistant_start|>"
    used = chat(address, messages=user(text), max_tokens=1).json()["usage"]
    assert used["prompt_tokens"] == len(engine.tokenizer.encode(text)) + 4


def test_equal_seeds_agree_and_choices_differ(address: str) -> None:
    body = {"messages": user("Hmm?"), "temperature": 2, "n": 4, "max_tokens": 20}

    def texts(seed: int | None) -> list[str]:
        choices = chat(address, **body, seed=seed).json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        return [choice["message"]["content"] for choice in choices]

    assert texts(7) == texts(7) and len(set(texts(7))) == 4
    assert texts(7) != texts(8) and texts(None) != texts(None)


def test_a_stop_string_ends_the_answer_and_is_left_out(address: str) -> None:
    for stop in ("nano", ["x", "nano"]):
        choice = chat(address, stop=stop).json()["choices"][0]
        assert choice["message"]["content"] == "I am " and choice["finish_reason"] == "stop"


def test_an_answer_that_is_cut_says_so(address: str) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        body = chat(address, **{"messages": user("Count"), name: 5}).json()
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 5


def test_unknown_fields_and_nulls_are_ignored(address: str) -> None:
    nulls = {"temperature": None, "max_tokens": None, "stop": None, "n": None, "stream": None}
    answer = chat(address, **nulls, frequency_penalty=1, user="me", tools=[]).json()
    assert answer["choices"][0]["message"]["content"] == "I am nanochat."


# ---- conversations as clients send them


def test_messages_are_brought_into_turns() -> None:
    sent = [
        ("developer", "Be brief."),
        ("user", "Hi"),
        ("user", "there"),
        ("assistant", "Yes?"),
        ("system", "Be long."),
        ("user", [{"type": "text", "text": "Tell"}, {"type": "text", "text": " me"}]),
    ]
    messages = [ChatMessage.model_validate({"role": r, "content": c}) for r, c in sent]
    turns = [
        (turn["role"], "".join(part["text"] for part in turn["content"]))
        for turn in in_turns(messages)
    ]
    assert turns == [
        ("user", "Be brief.\n\nHi\n\nthere"),
        ("assistant", "Yes?"),
        ("user", "Be long.\n\nTell me"),
    ]


def test_a_long_conversation_is_trimmed_by_whole_turns_when_asked(address: str) -> None:
    turns = [*user("Count"), {"role": "assistant", "content": LONG}] * 12
    messages = [*turns, *user("Who are you?")]
    assert chat(address, messages=messages).json()["error"]["code"] == "context_length_exceeded"
    answer = chat(address, messages=messages, trim=True, max_tokens=500).json()
    assert answer["dropped_messages"] % 2 == 0 and 0 < answer["dropped_messages"] < 24
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert answer["usage"]["prompt_tokens"] <= 512 - 64


# ---- errors


def user_parts(kind: str) -> list[dict[str, Any]]:
    """A message by the user with one part of a kind."""
    return [{"role": "user", "content": [{"type": kind, "text": "1"}]}]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'assistant'"),
        ({"messages": user_parts("image_url")}, "messages", "image_url"),
        ({"messages": user_parts("python")}, "messages", "python"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "user"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"n": 0}, "n", "1"),
        ({"n": 1000}, "n", "16"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ({"stop": "a" * 1000}, "stop", "200"),
        ({"max_tokens": 600}, "messages", "context is 512 tokens"),
        ({"top_p": "much"}, "top_p", "number"),
    ],
)
def test_a_mistake_is_a_400_with_the_fixed_body(
    address: str, body: dict[str, Any], param: str, words: str
) -> None:
    response = chat(address, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param and words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages": [' * 5000, b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "other": Infinity}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    ],
    ids=lambda content: content[:20].decode("latin-1") + f"-{len(content)}",
)  # fmt: skip
def test_what_is_no_json_of_ours_is_a_400(address: str, content: bytes) -> None:
    response = httpx.post(
        f"{address}/v1/chat/completions",
        content=content,
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400, response.text
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}


def test_unknown_models_paths_and_methods_have_the_fixed_body(
    client: openai.OpenAI, address: str
) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=user("Hi"))
    assert caught.value.code == "model_not_found"
    for path in ("/nothing", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/..%2f"):
        response = httpx.get(address + path)
        assert response.status_code == 404 and response.json()["error"]["message"]
    assert httpx.get(f"{address}/v1/chat/completions").status_code == 405
    assert httpx.get(f"{address}/docs").status_code == 404  # would load scripts from elsewhere


def test_a_body_that_is_too_large_is_refused_before_it_is_read(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    response = httpx.post(f"{address}/v1/chat/completions", content=endless())
    assert response.status_code == 413 and response.json()["error"]["type"]


def test_a_full_queue_is_429_with_a_time_to_come_back(engine: Engine) -> None:
    with serving(engine, max_waiting=2) as address:
        response = chat(address, n=3)
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert chat(address, n=2).status_code == 200


def test_the_key_is_wanted_where_there_is_one(engine: Engine) -> None:
    with serving(engine, api_key="secret") as address:
        assert chat(address).status_code == 401
        assert httpx.get(f"{address}/v1/models").status_code == 401
        wrong = {"authorization": "Bearer secreT"}
        assert httpx.get(f"{address}/v1/models", headers=wrong).status_code == 401
        right = openai.OpenAI(base_url=f"{address}/v1", api_key="secret")
        assert [model.id for model in right.models.list()] == [MODEL]
        assert httpx.get(f"{address}/health").status_code == 200


# ---- the page and its headers


def test_the_page_loads_nothing_from_elsewhere_and_may_not(address: str) -> None:
    response = httpx.get(address)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    for scheme in ("http://", "https://", "src=", "@import", "url("):
        rest = response.text.replace("http://www.w3.org/2000/svg", "")
        assert scheme not in rest.replace("https and localhost", "")


def test_every_answer_forbids_sniffing_and_framing_and_allows_no_other_origin(address: str) -> None:
    origin = {"origin": "https://elsewhere.example"}
    for path in ("/", "/health", "/v1/models", "/nothing"):
        headers = httpx.get(address + path, headers=origin).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert not [name for name in headers if name.startswith("access-control")]


def test_markdown_becomes_html_without_anything_that_runs() -> None:
    assert markdown.to_html("**b**") == "<p><strong>b</strong></p>\n"
    assert '<span class="n">x</span>' in markdown.to_html("```python\nx = 1\n```")
    for text in (EVIL, f"```html\n{EVIL}\n```", f"```\n{EVIL}", "![x](https://a.example/x.png)"):
        html = markdown.to_html(text)
        assert "<script" not in html and "<img" not in html
    assert "href" not in markdown.to_html("[x](javascript:alert(1)) [y](data:text/html,x)")
    link = markdown.to_html("[x](https://a.example)")
    assert 'href="https://a.example"' in link and "noopener" in link


# ---- the port


def test_a_taken_port_and_a_foreign_host_are_one_clear_line() -> None:
    with listen.bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port} on 127.0.0.1 is taken; use another"):
            listen.bind("127.0.0.1", port)
    with pytest.raises(UserError, match="--host=nowhere is not an address"):
        listen.bind("nowhere", 0)
