"""A server on loopback around an engine of the test process, and a client for it."""

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from openai.types.chat import ChatCompletionMessageParam

from nanochat.engine import Engine
from nanochat.web import http_server
from nanochat.web.inference_service import Settings
from nanochat.web.models import ModelRegistry, ModelSource
from nanochat.web.server import create_app

MODEL = "nanochat-d2-sft"
EVENT_LOOP_THREAD = "event loop"
DEFAULT_TIMEOUT_CONFIG.read = 120.0  # of httpx, instead of 5 s: test machines are busy


@contextmanager
def serving(*engines: Engine, port: int = 0, **settings: Any) -> Iterator[str]:
    """The address of a server that runs in a thread; port 0 is any free one."""
    source = ModelSource(MODEL, "sft", engines[0].model.config.sequence_len, lambda: engines)
    with serving_models([source], port, **settings) as address:
        yield address


@contextmanager
def serving_models(
    sources: Sequence[ModelSource],
    port: int = 0,
    max_loaded: int = 1,
    trusted_proxies: Sequence[str] = (),
    **settings: Any,
) -> Iterator[str]:
    """The same with several models."""
    with_defaults = Settings(**settings)
    models = ModelRegistry(sources, max_loaded, with_defaults.num_slots, with_defaults.max_waiting)
    listeners = http_server.bind("localhost", port)
    server = http_server.make_server(create_app(models, with_defaults), trusted_proxies)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": listeners}, name=EVENT_LOOP_THREAD
    )
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listeners[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def user(text: str) -> list[ChatCompletionMessageParam]:
    """Messages of a new conversation."""
    return [{"role": "user", "content": text}]


def chat(address: str, **body: Any) -> httpx.Response:
    """The response to a chat; the default question is "Who are you?"."""
    body.setdefault("messages", user("Who are you?"))
    return httpx.post(f"{address}/v1/chat/completions", json=body)


def complete(address: str, **body: Any) -> dict[str, Any]:
    """The body of a completion."""
    return dict(httpx.post(f"{address}/v1/completions", json=body).json())


def events(address: str, path: str = "chat/completions", **body: Any) -> list[dict[str, Any]]:
    """The events of a stream without the final [DONE], which must be there."""
    if path == "chat/completions":
        body.setdefault("messages", user("Who are you?"))
    response = httpx.post(f"{address}/v1/{path}", json={**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") for block in blocks[:-1])
    return [json.loads(block[6:]) for block in blocks[:-2]]


def last_event(address: str, **body: Any) -> dict[str, Any]:
    """The last event of a chat's stream, which is not [DONE]."""
    body = {"messages": user("Count"), **body, "stream": True}
    response = httpx.post(f"{address}/v1/chat/completions", json=body)
    return dict(json.loads(response.text.strip().split("\n\n")[-1][6:]))


def connected(address: str) -> socket.socket:
    """A TCP connection to a server."""
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def posted(body: bytes, path: str = "/v1/chat/completions") -> bytes:
    """The bytes of a POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def slowed(engine: Engine, seconds: float) -> Iterator[None]:
    """Delay each token, so that answers take a while."""
    hook = engine.model.embedding.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def paused(engine: Engine, after: int = 0) -> Iterator[threading.Event]:
    """Hold the model after some passes, so that a test can act during an answer.

    It continues when the event is set, or the block ends.
    """
    passes, released = itertools.count(), threading.Event()

    def wait(*_: object) -> None:
        if next(passes) >= after:
            released.wait()

    hook = engine.model.embedding.register_forward_pre_hook(wait)
    try:
        yield released
    finally:
        released.set()
        hook.remove()


def num_at_work(address: str) -> int:
    """Running and waiting answers of a server."""
    counts = httpx.get(f"{address}/health").json()
    return int(counts["running"] + counts["waiting"])


def wait_until(condition: Callable[[], bool]) -> None:
    """Fail unless the condition becomes true within two minutes."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
