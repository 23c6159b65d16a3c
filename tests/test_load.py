"""The load runner, with small counts, against a server of this process."""

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


def faults(found: Counter[str]) -> dict[str, int]:
    """Verdicts other than 2xx and 4xx."""
    return {name: number for name, number in found.items() if name not in ("2xx", "4xx")}


def rows(measuring: Coroutine[Any, Any, list[load.Row]]) -> dict[str, load.Row]:
    """Figures by name."""
    return {row.name: row for row in asyncio.run(measuring)}


def test_requests_that_nobody_should_send_are_refused_or_answered(
    client: Client, address: str
) -> None:
    found = asyncio.run(fuzz.send_by_hand(client, 200))
    assert found.total() == 200 and faults(found) == {}
    assert found["2xx"] > 20 and found["4xx"] > 20
    assert num_at_work(address) == 0


@pytest.mark.slow
def test_requests_made_of_the_description_are_refused_or_answered(address: str) -> None:
    description = httpx.get(f"{address}/openapi.json").json()
    found = fuzz.send_described(address, description, 20)
    assert found.total() >= 20 and faults(found) == {}


def test_the_verdicts_see_what_is_wrong() -> None:
    stream, plain = b"content-type: text/event-stream", b"content-type: application/json"
    error = json.dumps({"error": dict.fromkeys(("message", "type", "param", "code"))}).encode()
    assert fuzz.verdict(Reply(200, plain, b"{}")) == fuzz.verdict(Reply(400, plain, error)) == ""
    assert fuzz.verdict(Reply(200, stream, b"data: {}\n\ndata: [DONE]\n\n")) == ""
    assert fuzz.verdict(Reply(200, stream, b"data: {}\n\n")) == "broken stream"
    assert fuzz.verdict(Reply(503, plain, error)) == "503"
    assert fuzz.verdict(Reply(400, plain, b"Bad Request")) == "400 without the fixed body"
    assert fuzz.verdict(Reply()) == "no answer" and fuzz.verdict(Reply(hangs=True)) == "hang"
    assert "MISSED" in load.table([load.Row("x", 1, "0", False)])


def test_streams_end_beside_a_client_that_never_reads(client: Client) -> None:
    found = rows(load.count_streams(client, 40))
    assert found["streams, all end"].value == 40
    assert found["streams, /health asked"].value > 0


def test_slots_and_the_queue_are_free_after_clients_have_left(client: Client, address: str) -> None:
    found = rows(load.count_leavers(client, 50, rounds=1))  # more than there are slots
    assert found["leavers, all slots free, slowest s"].value > 0
    assert num_at_work(address) == 0


class Fast:
    """Stands for a server that has answered the first before the last has asked."""

    async def at_work(self) -> int:
        return 49


def test_answers_that_end_early_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "ARRIVAL_SECONDS", 0.01)
    asyncio.run(asyncio.wait_for(load.until_at_work(Fast(), 50), timeout=10))


def test_what_is_no_http_is_refused_in_the_form_of_all_errors(client: Client) -> None:
    for raw in (b"nonsense\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n", request("/", None, "G\x00T")):
        reply = asyncio.run(client.ask(raw))
        assert reply.status == 400 and json.loads(reply.body)["error"]["message"]
