"""A server on loopback for tests, around an engine of this process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from nanochat.engine import Engine
from nanochat.web import listen
from nanochat.web.server import create_app
from nanochat.web.service import Settings

MODEL = "nanochat-d2-sft"


@contextmanager
def serving(engine: Engine, port: int = 0, **settings: Any) -> Iterator[str]:
    """The address of a server in a thread of its own; port 0 is any that is free."""
    app = create_app(engine, Settings(model_name=MODEL, **settings))
    listener = listen.bind("127.0.0.1", port)
    server = listen.server_of(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def slowed(engine: Engine, seconds: float) -> Iterator[None]:
    """Every token takes its time, so that something can happen meanwhile."""
    hook = engine.model.embedding.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        hook.remove()


def num_at_work(address: str) -> int:
    """Answers that run or wait on a server."""
    counts = httpx.get(f"{address}/health").json()
    return int(counts["running"] + counts["waiting"])


def wait_until(condition: Callable[[], bool]) -> None:
    """Fails when it does not come true within half a minute."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
