"""Running a server: port, settings, engines, metrics, shutdown."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from nanochat.engine import Engine, Request
from nanochat.errors import UserError
from nanochat.web import http_server
from nanochat.web.scheduler import Busy
from nanochat.web.worker import EnginePool
from tests import memorized_model, processes
from tests.served import chat, num_at_work, paused, serving, user, wait_until

ROOT = Path(__file__).parents[1]


# ---- metrics


def test_metrics_are_in_the_prometheus_text_format(address: str) -> None:
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


def test_tokens_are_counted_while_they_are_generated(address: str, engine: Engine) -> None:
    def is_generating() -> bool:
        text = httpx.get(f"{address}/metrics").text
        return "nanochat_running 1" in text and "tokens_per_second 0.0\n" not in text

    with ThreadPoolExecutor() as pool, paused(engine, after=20):
        before = httpx.get(f"{address}/metrics").text
        answer = pool.submit(chat, address, messages=user("Count"))
        wait_until(is_generating)
        assert not answer.done()
    assert answer.result().status_code == 200
    assert before != httpx.get(f"{address}/metrics").text


# ---- several engines


def test_several_engines_share_the_work_and_answer_as_one_does_alone(engine: Engine) -> None:
    questions = ["Who are you?", "Smile"] * 4
    with serving(engine) as address:
        alone = {text: chat(address, messages=user(text)).json()["choices"] for text in questions}
    other = Engine(engine.model, engine.tokenizer)
    with (
        serving(engine, other, num_slots=2, max_waiting=2) as address,
        ThreadPoolExecutor(len(questions)) as pool,
    ):
        with paused(engine):
            answers = [pool.submit(chat, address, messages=user(text)) for text in questions]
            wait_until(lambda: num_at_work(address) == 8)  # one engine has room for four
        for text, answer in zip(questions, answers, strict=True):
            assert answer.result().json()["choices"] == alone[text]
        health = httpx.get(f"{address}/health").json()
        assert health["engines"] == 2 and health["status"] == "ok"
        assert "nanochat_slots 4.0\n" in httpx.get(f"{address}/metrics").text


def test_a_request_goes_to_the_least_loaded_engine(engine: Engine) -> None:
    pool = EnginePool([engine, engine, engine], num_slots=2, max_waiting=0)

    def submit(num_choices: int) -> None:
        pool.submit([Request([1], 1)] * num_choices, lambda *_: None)

    for num_choices in (2, 1, 1, 1, 1):
        submit(num_choices)
    waiting = [len(worker.scheduler.waiting) for worker in pool.workers]
    assert waiting == [2, 2, 2] and pool.figures()["nanochat_waiting"] == 6
    with pytest.raises(Busy):
        submit(1)
    pool.workers[0].scheduler.close()
    assert pool.is_open
    pool.close()
    assert not pool.is_open
    with pytest.raises(Busy):
        submit(1)


def test_when_one_engine_fails_the_others_continue_and_health_is_degraded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(engine, Engine(engine.model, engine.tokenizer)) as address:
        hook = engine.model.embedding.register_forward_pre_hook(lambda *_: 1 / 0)
        monkeypatch.setattr(Engine, "open", lambda *_: 1 / 0)
        assert chat(address).status_code == 500
        wait_until(lambda: httpx.get(f"{address}/health").json()["engines"] == 1)
        hook.remove()
        assert chat(address).json()["choices"][0]["message"]["content"] == "I am nanochat."
        response = httpx.get(f"{address}/health")
        assert response.status_code == 200 and response.json()["status"] == "degraded"


# ---- the command


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory with a finetuned model."""
    base = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(base))
        memorized_model.save(base)
    return base


def started(
    base: Path, *, seconds: float = 0.0, **environment: str
) -> tuple["subprocess.Popen[str]", str]:
    """The command on a free port, and the address that it logs; seconds: of a pass, at least."""
    # Answers on a busy machine may take longer than it would wait for them.
    patience = "from nanochat.web import http_server; http_server.GRACEFUL_SHUTDOWN_SECONDS = 200"
    program = processes.program("scripts.chat_web", f"time.sleep({seconds})", patience)
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--port=0"],
        cwd=ROOT,
        env={**os.environ, "NANOCHAT_BASE_DIR": str(base), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"open http://localhost:(\d+) in a browser", line):
                return process, f"http://127.0.0.1:{found[1]}"
        raise AssertionError(f"it exited with {process.wait()}")
    except BaseException:
        process.kill()
        raise


@pytest.mark.slow
def test_sigterm_lets_running_answers_finish_and_exits_with_0(base: Path) -> None:
    process, address = started(
        base, NANOCHAT_WEB_NUM_ENGINES="2", NANOCHAT_WEB_API_KEY="", NANOCHAT_WEB_MAX_TOKENS="5"
    )
    try:
        assert httpx.get(f"{address}/health").json()["engines"] == 2
        assert chat(address).json()["usage"]["completion_tokens"] == 5
        body = {"messages": user("Count"), "stream": True, "max_tokens": 400}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as stream:
            text = next(pieces := stream.iter_text())
            process.send_signal(signal.SIGTERM)
            text += "".join(pieces)
        assert text.endswith("data: [DONE]\n\n")
        assert "".join(re.findall(r'"content":"([^"]*)"', text)).endswith("tock 16")
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("num_interrupts", [1, 2])
def test_ctrl_c_lets_answers_finish_and_a_second_one_exits_at_once(
    base: Path, num_interrupts: int
) -> None:
    process, address = started(base, seconds=0.02 if num_interrupts == 1 else 0.5)
    body = {"messages": user("Count"), "stream": True}
    try:
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as one:
            text = next(pieces := one.iter_text())
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            if num_interrupts == 2:
                assert any("Ctrl-C stops now" in line for line in process.stderr)
                process.send_signal(signal.SIGINT)
            else:
                text += "".join(pieces)
                assert text.endswith("data: [DONE]\n\n")
            assert process.wait() == 130
        lines = process.stderr.read().splitlines()
        assert lines[-1] == "interrupted" and not any("Traceback" in line for line in lines)
    finally:
        process.kill()
        process.wait()


# ---- the port


def test_localhost_is_ipv4_and_ipv6() -> None:
    sockets = http_server.bind("localhost", 0)
    with ExitStack() as stack:
        for one in sockets:
            stack.enter_context(one)
        port = sockets[0].getsockname()[1]
        families = {one.family for one in sockets}
        assert families == {socket.AF_INET, socket.AF_INET6} or not socket.has_ipv6
        for host in ("127.0.0.1", "::1")[: len(sockets)]:
            socket.create_connection((host, port), timeout=10).close()
        with pytest.raises(UserError, match=f"--port={port} on 127.0.0.1 is in use"):
            http_server.bind("localhost", port)


def test_localhost_works_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.create_server

    def without_ipv6(address: tuple[str, int], **options: Any) -> socket.socket:
        if options["family"] == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return create(address, **options)

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    (one,) = http_server.bind("localhost", 0)
    one.close()


def test_a_port_in_use_and_a_foreign_host_are_one_line_errors() -> None:
    (taken,) = http_server.bind("127.0.0.1", 0)
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port} on 127.0.0.1 is in use; try --port="):
            http_server.bind("127.0.0.1", port)
    with pytest.raises(UserError, match="--host=nowhere is not an address"):
        http_server.bind("nowhere", 0)
