"""The server, asked over loopback by plain HTTP and by the `openai` package."""

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest
import torch
from openai.types.chat import ChatCompletionMessageParam

from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.web import guard, listen, markdown
from nanochat.web.openai_api import ChatMessage, Defaults, in_turns
from tests.learned_by_heart import EVIL, LONG, model_and_tokenizer
from tests.served import MODEL, num_at_work, serving, slowed, wait_until


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

    assert texts(7) == texts(7) and len(set(texts(7))) > 1
    assert texts(7) != texts(8) and texts(None) != texts(None)


def test_a_stop_string_ends_the_answer_and_is_left_out(address: str) -> None:
    for stop in ("nano", ["x", "nano"]):
        choice = chat(address, stop=stop).json()["choices"][0]
        assert choice["message"]["content"] == "I am " and choice["finish_reason"] == "stop"


def test_logprobs_of_a_chat_are_those_of_the_tokens_of_its_text(
    client: openai.OpenAI, engine: Engine
) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=user("Smile"), logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    text = b"".join(bytes(one.bytes or []) for one in content).decode()
    assert text == answer.choices[0].message.content == "😀 é 汉字"
    for one in content:
        assert len(one.top_logprobs) == 3
        assert one.logprob == one.top_logprobs[0].logprob <= 0  # greedy takes the likeliest
    chunks = events(
        str(client.base_url).removesuffix("/v1/"), messages=user("Smile"), logprobs=True
    )
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    logprobs = [one["logprob"] for lp in streamed if lp for one in lp["content"]]
    assert logprobs == pytest.approx([one.logprob for one in content], abs=1e-3)


def test_an_answer_that_is_cut_says_so(address: str) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        body = chat(address, **{"messages": user("Count"), name: 5}).json()
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 5


def test_unknown_fields_and_nulls_are_ignored(address: str) -> None:
    nulls = {"temperature": None, "max_tokens": None, "stop": None, "n": None, "stream": None}
    answer = chat(address, **nulls, frequency_penalty=1, user="me", tools=[]).json()
    assert answer["choices"][0]["message"]["content"] == "I am nanochat."


# ---- plain completions


def test_a_text_is_gone_on_with_however_it_is_given(client: openai.OpenAI, engine: Engine) -> None:
    text = "tick 10 tock 10 tick 11"
    ids = engine.tokenizer.encode(text)
    prompts: list[Any] = [text, ids, [text, "Hi"], [ids, ids]]
    found = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=6, temperature=0)
        for prompt in prompts
    ]
    assert [len(one.choices) for one in found] == [1, 1, 2, 2]
    assert len({one.choices[0].text for one in found}) == 1
    stream = client.completions.create(
        model=MODEL, prompt=text, max_tokens=6, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == found[0].choices[0].text


def test_echoed_logprobs_are_those_of_a_full_forward(address: str, engine: Engine) -> None:
    bos = engine.tokenizer.get_bos_token_id()
    ids = engine.tokenizer.encode("tick 10 tock 10")
    logits = engine.model(torch.tensor([[bos, *ids]]))[0].log_softmax(dim=-1)
    wanted = [float(logits[i, token].detach()) for i, token in enumerate(ids)]
    for prompt in (ids, [bos, *ids], "tick 10 tock 10"):
        body = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}
        choice = httpx.post(f"{address}/v1/completions", json=body).json()["choices"][0]
        assert choice["text"].startswith("tick 10 tock 10")
        logprobs = choice["logprobs"]
        skipped = 1 if prompt == [bos, *ids] else 0
        assert logprobs["token_logprobs"][:skipped] == [None] * skipped
        assert logprobs["token_logprobs"][skipped:-1] == pytest.approx(wanted, abs=1e-3)
        assert "".join(logprobs["tokens"][skipped:]) == choice["text"]
        offsets, tokens = logprobs["text_offset"], logprobs["tokens"]
        assert offsets[-1] == sum(map(len, tokens[:-1]))
        assert all(len(one) == 2 for one in logprobs["top_logprobs"][skipped:])
    body = {"prompt": ids, "echo": True, "max_tokens": 0}
    choice = httpx.post(f"{address}/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == "tick 10 tock 10"


@pytest.mark.parametrize("prompt", [[], [99999], [-1], [["x"]], {}, 3, ["x"] * 65])
def test_a_prompt_that_is_none_is_a_400(address: str, prompt: Any) -> None:
    response = httpx.post(f"{address}/v1/completions", json={"prompt": prompt})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith("prompt")


# ---- many at once


def test_many_streams_at_once_each_get_what_they_get_alone(address: str) -> None:
    questions = ["Who are you?", "Smile", "Count", "Markdown", "Evil"] * 8
    alone = {text: chat(address, messages=user(text)).json() for text in set(questions)}

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60) as one:
            url = f"{address}/v1/chat/completions"
            return await asyncio.gather(
                *(one.post(url, json={"messages": user(text)}) for text in questions)
            )

    for text, response in zip(questions, asyncio.run(all_at_once()), strict=True):
        assert response.json()["choices"] == alone[text]["choices"]


@pytest.mark.parametrize("stream", [True, False])
def test_when_the_client_leaves_the_work_ends(address: str, engine: Engine, stream: bool) -> None:
    body = {
        "messages": user("Count"),
        "stream": stream,
        "n": 3,
        "temperature": 2,
        "max_tokens": 400,
    }
    with slowed(engine, 0.05), httpx.Client() as one:
        host, port = address.removeprefix("http://").split(":")
        content = json.dumps(body).encode()
        with socket.create_connection((host, int(port))) as connection:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            wait_until(lambda: num_at_work(address) == 3)
        wait_until(lambda: num_at_work(address) == 0)
        assert one.get(f"{address}/health").status_code == 200


def test_an_answer_that_takes_too_long_is_ended(engine: Engine) -> None:
    with serving(engine, deadline_seconds=0.3) as address, slowed(engine, 0.05):
        body = {"messages": user("Count")}
        response = chat(address, **body)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "deadline_exceeded"
        with httpx.stream(
            "POST", f"{address}/v1/chat/completions", json={**body, "stream": True}
        ) as streamed:
            last = streamed.read().decode().strip().split("\n\n")[-1]
        assert json.loads(last[6:])["error"]["code"] == "deadline_exceeded"
        wait_until(lambda: num_at_work(address) == 0)


def test_an_engine_that_fails_ends_the_answer_with_an_error_and_serves_the_next(
    engine: Engine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck")

    hook = engine.model.embedding.register_forward_pre_hook(fail)
    response = chat(address)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "out of luck" not in response.text
    with httpx.stream(
        "POST", f"{address}/v1/chat/completions", json={"messages": user("Hi"), "stream": True}
    ) as streamed:
        last = streamed.read().decode().strip().split("\n\n")[-1]
    assert json.loads(last[6:])["error"]["type"] == "server_error"
    hook.remove()
    assert chat(address).json()["choices"][0]["message"]["content"] == "I am nanochat."
    assert num_at_work(address) == 0


def test_a_server_that_is_stopped_lets_answers_end_and_then_says_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "DRAIN_SECONDS", 1)
    with slowed(engine, 0.05), ThreadPoolExecutor() as pool:
        with serving(engine) as address:
            short = pool.submit(chat, address)
            long = pool.submit(chat, address, messages=user("Count"))
            wait_until(lambda: num_at_work(address) == 2)
        assert short.result().json()["choices"][0]["message"]["content"] == "I am nanochat."
        assert long.result().status_code == 503
        assert "shutting down" in long.result().json()["error"]["message"]


def test_a_client_that_sends_no_head_or_reads_nothing_is_closed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "HEAD_SECONDS", 0.2)
    with serving(engine) as address:
        host, port = address.removeprefix("http://").split(":")
        for begin in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(begin)
                with suppress(ConnectionResetError):
                    assert connection.recv(100) == b""


def test_a_body_that_does_not_come_is_a_408(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    with serving(engine) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
            connection.sendall(head.encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_metrics_are_in_the_format_of_prometheus(address: str) -> None:
    def value(name: str) -> float:
        lines = httpx.get(f"{address}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = value("nanochat_tokens_total"), value("nanochat_first_token_seconds_count")
    used = chat(address).json()["usage"]["completion_tokens"]
    assert value("nanochat_tokens_total") == before[0] + used
    assert value("nanochat_first_token_seconds_count") == before[1] + 1
    assert value("nanochat_slots") == 32 and value("nanochat_running") == 0
    for line in httpx.get(f"{address}/metrics").text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) \w+ .+|\w+(\{\w+=\"[^\"]*\"\})? [0-9.e+-]+", line)


def test_the_log_holds_no_text_of_users_and_no_control_characters(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        chat(address, messages=user("my secret"))
        chat(address, messages=[{"role": "my secret"}])
        httpx.get(f"{address}/a%0aforged%1b[31m?my=secret")
        wait_until(lambda: sum(r.name == "nanochat.web.access" for r in caplog.records) == 3)
    lines = [r.getMessage() for r in caplog.records if r.name == "nanochat.web.access"]
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("nanochat", "uvicorn"))]
    assert len(lines) == 3 and not any("secret" in line for line in ours)
    assert all(line.isprintable() for line in lines)
    assert json.loads(lines[0]).keys() == {"client", "method", "path", "status", "ms"}


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
    with serving(engine, num_slots=1, max_waiting=1) as address:
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


def test_another_site_may_ask_only_where_it_is_told_so(engine: Engine) -> None:
    friend, stranger = {"origin": "https://a.example"}, {"origin": "https://b.example"}
    with serving(engine, cors_origins=("https://a.example",)) as address:
        allowed = httpx.get(f"{address}/v1/models", headers=friend).headers
        assert allowed["access-control-allow-origin"] == "https://a.example"
        refused = httpx.get(f"{address}/v1/models", headers=stranger).headers
        assert "access-control-allow-origin" not in refused


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
