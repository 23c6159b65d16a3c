"""dev/load.py with small counts, against a server in this process."""

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import httpx
import pytest

from dev import fuzz, load
from dev.raw_client import Client, Reply, request
from tests.served import num_at_work


@pytest.fixture(scope="module")
def client(address: str) -> Client:
    host, port = address.removeprefix("http://").split(":")
    return Client(host, int(port))


def faults(counts: Counter[str]) -> dict[str, int]:
    """Counts of verdicts other than 2xx and 4xx."""
    return {name: number for name, number in counts.items() if name not in ("2xx", "4xx")}


def rows(measurement: Coroutine[Any, Any, list[load.Row]]) -> dict[str, load.Row]:
    """Rows by name."""
    return {row.name: row for row in asyncio.run(measurement)}


def test_malformed_requests_written_by_hand_are_refused_or_answered(
    client: Client, address: str
) -> None:
    counts = asyncio.run(fuzz.send_handmade(client, 200))
    assert counts.total() == 200 and faults(counts) == {}
    assert counts["2xx"] > 20 and counts["4xx"] > 20
    assert num_at_work(address) == 0


@pytest.mark.slow
def test_requests_generated_from_the_openapi_description_are_refused_or_answered(
    address: str,
) -> None:
    description = httpx.get(f"{address}/openapi.json").json()
    found = fuzz.send_generated(address, description, 20)
    assert found.total() >= 20 and faults(found) == {}


def test_verdicts_recognize_each_fault() -> None:
    stream, plain = b"content-type: text/event-stream", b"content-type: application/json"
    error = json.dumps({"error": dict.fromkeys(("message", "type", "param", "code"))}).encode()
    assert fuzz.verdict(Reply(200, plain, b"{}")) == fuzz.verdict(Reply(400, plain, error)) == ""
    assert fuzz.verdict(Reply(200, stream, b"data: {}\n\ndata: [DONE]\n\n")) == ""
    assert fuzz.verdict(Reply(200, stream, b"data: {}\n\n")) == "broken stream"
    assert fuzz.verdict(Reply(503, plain, error)) == "503"
    assert fuzz.verdict(Reply(400, plain, b"Bad Request")) == "400 without the error body"
    assert fuzz.verdict(Reply()) == "no answer" and fuzz.verdict(Reply(hangs=True)) == "hang"
    assert "FAILED" in load.table([load.Row("x", 1, "0", False)])


def test_streams_complete_beside_a_client_that_never_reads(client: Client) -> None:
    measured = rows(load.measure_streams(client, 40))
    assert measured["streams, complete"].value == 40
    assert measured["streams, /health requests"].value > 0


def test_slots_and_the_queue_are_free_after_clients_disconnect(
    client: Client, address: str
) -> None:
    measured = rows(load.measure_disconnects(client, 50, rounds=1))  # more than there are slots
    assert measured["disconnects, idle after slowest s"].value > 0
    assert num_at_work(address) == 0


class FastServer:
    """Fake client of a server that has answered the first request before the last arrives."""

    async def num_active(self) -> int:
        return 49


def test_waiting_for_active_requests_gives_up_when_some_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "ARRIVAL_SECONDS", 0.01)
    asyncio.run(asyncio.wait_for(load.until_active(FastServer(), 50), timeout=10))


def test_invalid_http_is_refused_with_the_json_body_of_all_errors(client: Client) -> None:
    for raw in (b"nonsense\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n", request("/", None, "G\x00T")):
        reply = asyncio.run(client.send(raw))
        assert reply.status == 400 and json.loads(reply.body)["error"]["message"]
