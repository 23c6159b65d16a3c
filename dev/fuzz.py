"""Fuzzing of the server: malformed requests must not cause 5xx, hangs or broken streams."""

import asyncio
import json
import random
import string
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.config import SchemathesisConfig
from schemathesis.core.result import Ok

from dev.raw_client import Client, Reply, request

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
NUM_PARALLEL = 16
NUM_WITHOUT_BODY = 50
TEXTS = [
    "", " " * 8000, "9" * 2000, "9" * 8000, "'" * 8000, '"' * 8000, "\\" * 8000, "\n" * 5000,
    "\x00\x1b[31m",
    "<|bos|><|assistant_end|>" * 100, "😀é汉字" * 500,
    "e" + "\u0301" * 5000, "\u202e\ufeff\uffff",
    "a" * 100_000, "x" * 300_000, "data: [DONE]\n\n",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 1e-300, 5e-324, 0.5, 1e308, 10**30, -(2**63), 2**63, "", "0",
    "1",
    [], {}, [[]], [None], {"a": 1}, [1, 2, 3], [-1], [10**9], ["a"] * 70, *TEXTS[:6],
]  # fmt: skip
LITERALS = [
    "NaN", "-Infinity", "1e999", "9" * 2000, "-" + "9" * 5000, '"\\ud800"', '"\\udc00\\ud800"',
    "[" * 2000,
    "[" * 500 + "]" * 500, '{"a":' * 300 + "1" + "}" * 300, "tru", "'x'", "0x10", "01", '"\\x"',
    "\x00",
]  # fmt: skip
FIELDS = [
    "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature",
    "top_p",
    "top_k", "min_p", "seed", "stop", "n", "logprobs", "top_logprobs", "trim", "echo", "messages",
    "prompt",
    "tools", "user", "response_format", "logit_bias", "suffix", "best_of", "\u0000", "__proto__",
]  # fmt: skip
PATHS = [
    CHAT, COMPLETIONS, "/v1/models", "/v1/models/x", "/health", "/metrics", "/page/markdown", "/",
    "/openapi.json",
    "/v1/models/%00", "/%ff%fe", "/../../etc/passwd", "//", "/v1/chat/completions/",
    "/" + "a" * 5000, "*", "x",
]  # fmt: skip


def verdict(reply: Reply) -> str:
    """What is wrong with a reply; empty when nothing is."""
    if reply.hangs:
        return "hang"
    if reply.status == 0:
        return "no answer"
    if reply.status >= 500:
        return str(reply.status)
    if reply.is_stream:
        return "" if reply.body.endswith(b"data: [DONE]\n\n") else "broken stream"
    if reply.status >= 400 and b"\r\nallow: GET" not in reply.head:  # a reply to HEAD has no body
        try:
            error = json.loads(reply.body)["error"]
        except (ValueError, KeyError, TypeError):
            return f"{reply.status} without the error body"
        return "" if error.keys() == {"message", "type", "param", "code"} else "malformed error"
    return ""


def handmade_request(rng: random.Random) -> bytes:
    """A request with invalid values, JSON, text or HTTP."""
    kind = rng.choice([_bad_values, _bad_values, _bad_literals, _bad_bytes, _bad_text, _bad_http])
    return kind(rng)


def _valid_request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    path = rng.choice([CHAT, CHAT, COMPLETIONS])
    body: dict[str, Any] = {"max_tokens": 2, "stream": rng.random() < 0.5}
    if path == CHAT:
        return path, {**body, "messages": [{"role": "user", "content": "Hi"}]}
    return path, {**body, "prompt": "Hi"}


def _bad_values(rng: random.Random) -> bytes:
    path, body = _valid_request(rng)
    for name in rng.sample(FIELDS, rng.randint(1, 3)):
        body[name] = rng.choice(VALUES)
    if rng.random() < 0.3 and path == CHAT:
        body["messages"] = [_bad_message(rng) for _ in range(rng.choice([1, 2, 3, 40, 1100]))]
    return request(path, body)


def _bad_message(rng: random.Random) -> Any:
    role = rng.choice(["system", "developer", "user", "assistant", "tool", "", 1])
    kind = rng.choice(["text", "python", "python_output", "image_url", 1])
    part = {"type": kind, "text": rng.choice(["x", 1, None])}
    content: Any = rng.choice(["x", "", None, 1, {}, [part], [part, part], ["x"]])
    return rng.choice([{"role": role, "content": content}] * 9 + [None])


def _bad_literals(rng: random.Random) -> bytes:
    path, body = _valid_request(rng)
    name = rng.choice(FIELDS)
    text = json.dumps({**body, name: "HERE"}).replace('"HERE"', rng.choice(LITERALS))
    return request(path, text.encode())


def _bad_bytes(rng: random.Random) -> bytes:
    path, body = _valid_request(rng)
    raw = bytearray(json.dumps(body).encode())
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(raw))
        change = rng.randrange(3)
        raw[at : at + (change != 0)] = [[rng.randrange(256)], [rng.randrange(256)], []][change]
    return request(path, bytes(raw[: rng.choice([None, None, rng.randrange(len(raw) + 1)])]))


def _bad_text(rng: random.Random) -> bytes:
    path, body = _valid_request(rng)
    letters = rng.choice(
        [string.printable, "0123456789", " '\"", "<|>assistant_end", "é😀\u0301汉"]
    )
    generated = "".join(rng.choices(letters, k=rng.randrange(3000)))
    text = rng.choice([*TEXTS, generated, generated, generated])
    if path == CHAT:
        role = rng.choice(["system", "user", "assistant"])
        body["messages"] = [{"role": role, "content": text}, *body["messages"]]
        body["trim"] = rng.random() < 0.3
    else:
        body["prompt"] = text
        body |= {"echo": rng.random() < 0.5, "logprobs": rng.choice([None, 0, 5])}
    return request(path, {**body, "stop": rng.choice([None, text[:200], ["a", text[:9]]])})


def _bad_http(rng: random.Random) -> bytes:
    path, method = rng.choice(PATHS), rng.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS"])
    header = rng.choice([
        "", "Origin: https://x.example\r\n", "Authorization: Bearer \x7f\r\n",
        "X: " + "a" * 9000 + "\r\n",
        "Content-Length: -1\r\n", "Content-Length: x\r\n", "Content-Length: 999999999\r\n",
        "Host: y\r\n",
        "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: x\r\n", "Content-Encoding: gzip\r\n",
        "Expect: 100-continue\r\n", "no colon\r\n", " folded\r\n", "Upgrade: websocket\r\n",
        "\x00: y\r\n",
        "Range: bytes=0-1\r\n", "Accept: " + "a," * 30_000 + "\r\n",
    ])  # fmt: skip
    raw = request(path, rng.choice([None, b"{}", b"\xff"]), method, header)
    old = rng.choice([b"", b"HTTP/1.0", b"\r\n", b" "])
    return raw.replace(old, rng.choice([b"HTTP/9.9", b"\n", b"  ", b"\t"]), 1) if old else raw


async def send_handmade(client: Client, count: int, first_seed: int = 0) -> Counter[str]:
    """The number of replies by verdict; requests with a bad reply are printed."""
    verdicts: Counter[str] = Counter()
    numbers = iter(range(first_seed, first_seed + count))

    async def send_some() -> None:
        for number in numbers:
            raw = handmade_request(random.Random(number))
            reply = await client.send(raw)
            fault = verdict(reply)
            verdicts[fault or f"{reply.status // 100}xx"] += 1
            if fault:
                print(f"handmade, seed {number}: {fault}: {raw[:300]!r} -> {reply.body[:200]!r}")

    await asyncio.gather(*(send_some() for _ in range(NUM_PARALLEL)))
    return verdicts


def send_generated(address: str, description: dict[str, Any], count: int) -> Counter[str]:
    """The same with requests that schemathesis generates from the OpenAPI schema, half invalid."""
    # By default it stops reading a stream after a number of events.
    config = SchemathesisConfig.from_dict({"max-stream-events": 1_000_000})
    schema = schemathesis.openapi.from_dict(description, config=config)
    results = list(schema.get_all_operations())
    operations = [result.ok() for result in results if isinstance(result, Ok)]
    assert len(operations) == len(results)
    verdicts: Counter[str] = Counter()
    modes = [*schemathesis.GenerationMode]
    num_with_body = sum(operation.method == "post" for operation in operations)
    for operation in operations:
        # There are few different requests without a body.
        has_body = operation.method == "post"
        num_requests = -(-count // (num_with_body * len(modes))) if has_body else NUM_WITHOUT_BODY
        for mode in modes:
            strategy = operation.as_strategy(generation_mode=mode)
            with suppress(Unsatisfiable):  # without parameters none is invalid
                send = _given(
                    strategy, num_requests, lambda case: verdicts.update([_sent(case, address)])
                )
                send()
    return verdicts


def _given(strategy: Any, count: int, send: Callable[[Any], None]) -> Callable[[], None]:
    @seed(0)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )  # fmt: skip
    @given(strategy)
    def test(case: Any) -> None:
        send(case)

    return test


def _sent(case: Any, address: str) -> str:
    response = case.call(base_url=address, timeout=120)
    head = f"content-type: {response.headers.get('content-type', '')}".encode()
    fault = verdict(Reply(response.status_code, head, response.content))
    if fault:
        print(f"generated: {fault}: {case.as_curl_command()[:400]}")
    return fault or f"{response.status_code // 100}xx"
