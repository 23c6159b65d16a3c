"""Invalid, slow and malicious clients, overload, and failures of engines and tools."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

from nanochat.engine import Engine
from nanochat.inference.tools import ThreadedTool
from nanochat.web import guard, http_server
from nanochat.web.openai_api import ApiError, parse_json
from tests.served import (
    EVENT_LOOP_THREAD,
    chat,
    connected,
    last_event,
    num_at_work,
    paused,
    posted,
    serving,
    user,
    wait_until,
)

# ---- requests


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
def test_invalid_json_is_a_400(address: str, content: bytes) -> None:
    response = httpx.post(
        f"{address}/v1/chat/completions",
        content=content,
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400, response.text
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}


def test_a_body_that_is_too_large_is_refused_before_it_is_received(address: str) -> None:
    with connected(address) as connection:
        connection.sendall(posted(b"").replace(b"Length: 0", b"Length: 999999999"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    response = httpx.post(f"{address}/v1/chat/completions", content=endless())
    assert response.status_code == 413 and response.json()["error"]["type"]


def test_a_temperature_near_zero_is_greedy(address: str) -> None:
    for temperature in (0, 5e-324, 1e-300, 1e-20, 1e-5):
        choice = chat(address, temperature=temperature, top_p=0, top_k=-1).json()["choices"][0]
        assert choice["message"]["content"] == "I am nanochat."


def filled(begin: str, item: str, end: str) -> bytes:
    """A body of almost 256 KiB that repeats an item."""
    count = (255_000 - len(begin) - len(end)) // (len(item) + 1)
    return (begin + ",".join([item] * count) + end).encode()


CONTENT = '{"messages": [{"role": "user", "content": ['
EXPENSIVE = {
    "content of numbers": filled(CONTENT, "1", "]}]}"),  # 0.9 s when each was an error
    "content of objects": filled(CONTENT, "{}", "]}]}"),
    "content of lists": filled(CONTENT, "[[[]]]", "]}]}"),
    "content of strings": filled(CONTENT, '"["', "]}]}"),
    "parts": filled(CONTENT, '{"type":"text"}', "]}]}"),
    "messages": filled('{"messages": [', "1", "]}"),
    "stop": filled('{"messages": [{"role": "user", "content": "x"}], "stop": [', "1", "]}"),
    "fields": filled('{"messages": 1, ', '"a":1', "}"),
    "depth": b'{"messages": ' + b"[" * 240_000,
    "digits": b'{"messages": 1, "seed": ' + b"9" * 240_000 + b"}",
    "prompt of null": filled('{"prompt": [', "null", "]}"),
    "prompt of numbers": filled('{"prompt": [', "1", ",null]}"),
    "prompt of lists": filled('{"prompt": [', "[null]", "]}"),
    "prompt of empty lists": filled('{"prompt": [', "[]", "]}"),
    "prompt of short lists": filled('{"prompt": [', "[1]", "]}"),
    "prompt of floats": filled('{"prompt": [', "1.5", "]}"),
    "texts": filled('{"texts": [', "1", "]}"),
    "unclosed text": b'{"' + b'\\"[' * 80_000,
    "unclosed escape": b'{"' + b'\\"[' * 80_000 + b"\\",
}


def event_loop_clock() -> int:
    """Of the CPU time of the newest server: unlike the time, it ignores other programs."""
    *_, thread = [one for one in threading.enumerate() if one.name == EVENT_LOOP_THREAD]
    assert thread.ident is not None
    return time.pthread_getcpuclockid(thread.ident)


def event_loop_seconds(address: str, raw: bytes) -> float:
    """CPU time of the event loop for a request that is refused, perhaps before all is sent."""
    clock, seconds = event_loop_clock(), []
    for _ in range(3):
        start = time.clock_gettime(clock)
        reply = b""
        with connected(address) as connection, suppress(ConnectionError):
            connection.sendall(raw)
            reply = connection.recv(65536)
        seconds.append(time.clock_gettime(clock) - start)
        assert reply[:10] in (b"", b"HTTP/1.1 4") and len(reply) < 2000, reply
    return min(seconds)


@pytest.fixture(scope="module")
def much_time() -> float:
    """CPU seconds that a body must not take on this machine, about 50 ms on a common one."""
    numbers, seconds = "[" + "1," * 127_000 + "1]", []
    for _ in range(5):
        start = time.thread_time()
        json.loads(numbers)
        seconds.append(time.thread_time() - start)
    return 15 * min(seconds)


@pytest.mark.parametrize("name", EXPENSIVE)
def test_no_invalid_body_takes_much_time_of_the_event_loop(
    address: str, name: str, much_time: float
) -> None:
    path = "completions" if name.startswith("prompt") else "chat/completions"
    path = "/page/markdown" if name == "texts" else f"/v1/{path}"
    assert event_loop_seconds(address, posted(EXPENSIVE[name], path)) < much_time


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/nothing/here"])
def test_a_body_in_very_many_chunks_is_refused(address: str, path: str, much_time: float) -> None:
    head = posted(b"", path).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with connected(address) as connection:
        connection.sendall(head + b"1\r\n \r\n" * 2000 + b"0\r\n\r\n")
        status = connection.recv(4096)[9:12]
    assert status == (b"404" if path == "/nothing/here" else b"400")
    raw = head + b"1\r\n \r\n" * 40_000
    assert event_loop_seconds(address, raw) < much_time


def test_text_may_have_any_number_of_brackets() -> None:
    text = "[{" * 50_000 + '\\"['
    assert parse_json(json.dumps({"text": text}).encode()) == {"text": text}
    with pytest.raises(ApiError, match="more than 10000 lists"):
        parse_json(json.dumps([[]] * 10_000).encode())


def test_scoring_many_tokens_does_not_block_other_requests(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alternatives of 20,000 tokens are some 20 MB of JSON."""
    prompts = [engine.tokenizer.encode("tick 10 tock 10 " * 50)[:400]] * 50
    body = {"prompt": prompts, "echo": True, "logprobs": 20, "max_tokens": 0}
    seconds, run_callback = [], asyncio.Handle._run

    def timed(callback: asyncio.Handle) -> None:
        start = time.thread_time()  # unlike the time, it ignores other programs and threads
        run_callback(callback)
        seconds.append(time.thread_time() - start)

    with serving(engine) as address:
        monkeypatch.setattr(asyncio.Handle, "_run", timed)
        answer = httpx.post(f"{address}/v1/completions", json=body).json()
    assert len(answer["choices"]) == 50
    # Compared with writing the body at once on this machine, whatever its speed.
    start = time.thread_time()
    json.dumps(answer)
    assert max(seconds) < time.thread_time() - start


# ---- slow clients, and many


def closes(connection: socket.socket) -> bool:
    """Wait until the server closes the connection; what it still sends is read."""
    with suppress(ConnectionResetError):
        while connection.recv(65536):
            pass
    return True


def test_a_client_that_sends_no_headers_or_single_bytes_is_disconnected(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HEADER_TIMEOUT_SECONDS", 0.3)
    with serving(engine) as address:
        for begin in (b"", posted(b"{}")[:40]):
            with connected(address) as connection:
                connection.sendall(begin)
                assert closes(connection)
        with connected(address) as connection, pytest.raises(OSError, match=r"reset|pipe"):
            for byte in posted(b"{}") * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)


def test_a_body_that_does_not_arrive_is_a_408_and_a_disconnect(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "BODY_TIMEOUT_SECONDS", 0.2)
    with serving(engine) as address, connected(address) as connection:
        connection.sendall(posted(b"{}")[:-1])
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert closes(connection)


def test_a_client_that_reads_nothing_is_disconnected_and_delays_no_other(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "WRITE_TIMEOUT_SECONDS", 0.5)
    with serving(engine) as address, connected(address) as connection:
        get = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with pytest.raises(OSError, match=r"reset|pipe"):
            while True:  # not one is read; this ends when the kernel keeps no more of them
                connection.sendall(get * 100)
                time.sleep(0.1)
                assert httpx.get(f"{address}/health").status_code == 200


def test_a_full_queue_is_an_immediate_429_with_retry_after(engine: Engine) -> None:
    with (
        serving(engine, num_slots=1, max_waiting=2) as address,
        ThreadPoolExecutor() as pool,
    ):
        with paused(engine):
            running = [pool.submit(chat, address, messages=user("Count")) for _ in range(2)]
            wait_until(lambda: num_at_work(address) == 2)
            response = chat(address, n=2)  # there is room for one
            assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert num_at_work(address) == 2
        assert [one.result().status_code for one in running] == [200, 200]
        assert chat(address, n=3).status_code == 200
        never = chat(address, n=4)
        assert never.status_code == 400 and never.json()["error"]["param"] == "n"


def test_an_answer_past_its_deadline_is_ended(engine: Engine) -> None:
    with serving(engine, deadline_seconds=0.3) as address:
        with paused(engine):
            response = chat(address, messages=user("Count"))
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "deadline_exceeded"
            assert last_event(address)["error"]["code"] == "deadline_exceeded"
        wait_until(lambda: num_at_work(address) == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_cancels_the_work(address: str, engine: Engine, stream: bool) -> None:
    body = {
        "messages": user("Count"),
        "stream": stream,
        "n": 3,
        "temperature": 2,
        "max_tokens": 400,
    }
    with paused(engine), connected(address) as connection:
        connection.sendall(posted(json.dumps(body).encode()))
        wait_until(lambda: num_at_work(address) == 3)
    wait_until(lambda: num_at_work(address) == 0)


# ---- failures inside the server


def test_a_hanging_tool_delays_only_its_own_answer(engine: Engine) -> None:
    is_called, release = threading.Event(), threading.Event()

    def hang(_: str) -> str:
        is_called.set()
        return str(release.wait(60))

    tool = ThreadedTool(hang, timeout_seconds=60)
    with serving(Engine(engine.model, engine.tokenizer, tool), num_slots=2) as address:
        with connected(address) as connection:
            body = {"messages": user("What is 347 + 588?"), "stream": True}
            connection.sendall(posted(json.dumps(body).encode()))
            assert is_called.wait(60)
            assert chat(address).json()["choices"][0]["message"]["content"] == "I am nanochat."
            assert num_at_work(address) == 1
        wait_until(lambda: num_at_work(address) == 0)  # the client has disconnected
    release.set()


def test_an_engine_failure_ends_the_answer_with_an_error_and_the_next_one_is_served(
    engine: Engine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("private detail")

    hook = engine.model.embedding.register_forward_pre_hook(fail)
    response = chat(address)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "private detail" not in response.text
    assert last_event(address)["error"]["type"] == "server_error"
    hook.remove()
    assert chat(address).json()["choices"][0]["message"]["content"] == "I am nanochat."
    assert num_at_work(address) == 0


def test_a_stopped_server_lets_answers_finish_and_fails_the_rest(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that it lets them ends here when the short answer has come."""
    seconds, call_later = 600.0, asyncio.BaseEventLoop.call_later
    monkeypatch.setattr(http_server, "GRACEFUL_SHUTDOWN_SECONDS", seconds)

    def end(loop: asyncio.BaseEventLoop, close: Callable[[], None]) -> None:
        short.result()
        loop.call_soon_threadsafe(lambda: (close(), rest.set()))

    def scheduled(loop: asyncio.BaseEventLoop, delay: float, *callback: Any) -> asyncio.TimerHandle:
        if delay == seconds:
            begun.set()
            pool.submit(end, loop, callback[0])
        return call_later(loop, delay, *callback)

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_later", scheduled)
    # The short answer takes less than 20 passes, the long one more.
    with paused(engine, after=20) as rest, ThreadPoolExecutor() as pool:
        with paused(engine) as begun, serving(engine) as address:
            short = pool.submit(chat, address)
            long = pool.submit(chat, address, messages=user("Count"))
            wait_until(lambda: num_at_work(address) == 2)
        assert short.result().json()["choices"][0]["message"]["content"] == "I am nanochat."
        assert long.result().status_code == 503
        assert "shutting down" in long.result().json()["error"]["message"]


def test_an_engine_that_cannot_restart_refuses_requests_at_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("private detail")

    with serving(engine) as address:
        hook = engine.model.embedding.register_forward_pre_hook(fail)
        monkeypatch.setattr(Engine, "open", fail)
        assert chat(address).status_code == 500
        wait_until(lambda: httpx.get(f"{address}/health").status_code == 503)
        hook.remove()
        refused = chat(address)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert httpx.get(f"{address}/health").json()["status"] == "down"
