"""Load test of the server, with many clients and with misbehaving ones.

    python dev/load.py                everything, about ten minutes; JSON in dev/bench/results
    python dev/load.py --quick        a twentieth of it
    python dev/load.py --only streams --only disconnects

Each part starts a server of its own (`scripts.chat_web` with a random model and one compute
thread) and sends requests over loopback.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from dev import fuzz  # noqa: E402
from dev.raw_client import Client, Reply, request  # noqa: E402

CHAT = "/v1/chat/completions"
Result = TypeVar("Result")
WRITE_TIMEOUT_SECONDS = 30  # the server's, for clients that do not read
ONE_TOKEN_SECONDS = 0.25  # a slot is freed after the next token
ARRIVAL_SECONDS = 10  # by then all requests of a burst have arrived


@dataclass(frozen=True)
class Row:
    """A measured value and its limit."""

    name: str
    value: float
    limit: str = ""
    passed: bool = True


def save_model(base: Path, depth: int, context: int) -> None:
    """Save a random model, which rarely ends an answer by itself, as a finetuned checkpoint."""
    import torch

    from nanochat import checkpoint_manager, paths, primer
    from nanochat.gpt import GPT, GPTConfig
    from nanochat.tokenizer import RustBPETokenizer

    texts = [primer.document(seed=0, index=i) for i in range(2000)]
    tokenizer = RustBPETokenizer.train_from_iterator(texts, vocab_size=4096)
    config = GPTConfig.from_depth(
        depth, vocab_size=tokenizer.get_vocab_size(), sequence_len=context
    )
    model = GPT(config)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # init_weights zeroes the output projections
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    assert paths.base_dir() == base
    tokenizer.save(paths.tokenizer_dir())
    meta = {
        "stage": "sft", "model": config.to_dict(), "tokenizer": tokenizer.content_hash,
        "settings": {"model_tag": f"d{depth}"}, "finished": True, "progress": 1.0, "loss": 0.0,
        "train_seconds": 1.0, "tokens": 1, "loader": {},
    }  # fmt: skip
    content = checkpoint_manager.snapshot(model, [])
    checkpoint_manager.save(paths.checkpoints_dir("sft") / f"d{depth}", 1, content, meta, keep=1)


@contextmanager
def running_server(depth: int, context: int) -> Iterator[tuple[Client, psutil.Process]]:
    """A server with a random model in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["NANOCHAT_BASE_DIR"] = name
        save_model(Path(name), depth, context)
        log = Path(name) / "log"
        command = [sys.executable, "-m", "scripts.chat_web", "--port=0", "--device_type=cpu"]
        with log.open("wb") as log_file:
            process = subprocess.Popen(
                [*command, "--max_tokens=4"], cwd=ROOT, stderr=log_file,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        try:
            while not (match := re.search(r"open http://localhost:(\d+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            client = Client("127.0.0.1", int(match[1]))
            while not asyncio.run(is_ready(client)):
                time.sleep(0.1)
            yield client, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(10)


async def is_ready(client: Client) -> bool:
    try:
        return (await client.send(request("/health"))).status == 200
    except OSError:
        return False


def chat(number: int, max_tokens: int, **more: Any) -> bytes:
    """A streaming request with a prompt of its own, so that no prefill is shared."""
    messages = [{"role": "user", "content": f"Tell me what number {number} is about, please."}]
    body = {"messages": messages, "stream": True, "max_tokens": max_tokens, **more}
    return request(CHAT, body)


def large_chat(number: int, max_tokens: int = 200) -> bytes:
    """A request whose response exceeds the kernel's buffers: megabytes of log-probabilities."""
    return chat(number, max_tokens, n=2, logprobs=True, top_logprobs=20)


# ---- measurements


async def measure_fuzz(client: Client, num_handmade: int, num_generated: int) -> list[Row]:
    """Malformed requests, written by hand and generated from the OpenAPI description."""
    address = f"http://{client.host}:{client.port}"

    async def work() -> Counter[str]:
        counts = await fuzz.send_handmade(client, num_handmade)
        description = json.loads((await client.send(request("/openapi.json"))).body)
        generated = await asyncio.to_thread(
            fuzz.send_generated, address, description, num_generated
        )
        return counts + generated

    counts, health = await with_health_checks(client, work())
    faults = sum(number for name, number in counts.items() if not name.endswith("xx"))
    rows = [Row(f"fuzz, {name}", number) for name, number in sorted(counts.items())]
    sent, active = counts.total(), await client.num_active()
    return [
        *rows,
        Row(
            "fuzz, requests",
            sent,
            f">= {num_handmade + num_generated}",
            sent >= num_handmade + num_generated,
        ),
        Row("fuzz, 5xx, hangs, broken streams", faults, "0", faults == 0),
        Row("fuzz, active afterwards", active, "0", active == 0),
        *health_rows("fuzz", health),
    ]


async def with_health_checks(
    client: Client, work: Coroutine[Any, Any, Result]
) -> tuple[Result, list[float]]:
    """The result of `work`, and the response times of /health meanwhile."""
    task = asyncio.create_task(work)
    seconds = []
    while not task.done():
        seconds.append((await client.send(request("/health"))).end)
        await asyncio.sleep(0.02)
    return task.result(), seconds


def health_rows(part: str, seconds: list[float]) -> list[Row]:
    """The response times of /health and their limit."""
    p99 = sorted(seconds)[int(0.99 * len(seconds))]
    return [
        Row(f"{part}, /health requests", len(seconds)),
        Row(f"{part}, /health median s", statistics.median(seconds)),
        Row(f"{part}, /health p99 s", p99, "<= 0.1", p99 <= 0.1),
    ]


async def send_all(client: Client, requests: list[bytes]) -> list[Reply]:
    """All at once."""
    return list(await asyncio.gather(*map(client.send, requests)))


async def measure_streams(client: Client, count: int) -> list[Row]:
    """Streams started together, and one client that requests a long stream and never reads."""
    client.send_without_reading(large_chat(-1))
    await asyncio.sleep(0.5)
    work = send_all(client, [chat(number, 32) for number in range(count)])
    replies, health = await with_health_checks(client, work)
    client.close_unread()
    ended = sum(reply.status == 200 and not fuzz.verdict(reply) for reply in replies)
    rows = [Row("streams, complete", ended, str(count), ended == count)]
    for name in ("first_byte", "first_token", "end"):
        values = [getattr(reply, name) for reply in replies]
        rows += [
            Row(f"streams, {name} median s", statistics.median(values)),
            Row(f"streams, {name} slowest s", max(values)),
        ]
        ratio = max(values) / statistics.median(values)
        limit = "<= 2" if name == "first_byte" else ""
        rows.append(Row(f"streams, {name} slowest / median", ratio, limit, not limit or ratio <= 2))
    return [*rows, *health_rows("streams", health)]


async def until_idle(client: Client) -> float:
    """Seconds until nothing runs or waits."""
    start = time.monotonic()
    while await client.num_active():
        await asyncio.sleep(0.002)
    return time.monotonic() - start


async def until_active(client: Client, count: int) -> None:
    """Wait until `count` are active; not forever, as the first may end before the last arrives."""
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while await client.num_active() < count and time.monotonic() < deadline:
        await asyncio.sleep(0.002)


async def measure_disconnects(client: Client, count: int, rounds: int) -> list[Row]:
    """How soon slots and queue are free after clients disconnect together."""
    seconds = []
    for _ in range(rounds):
        when = asyncio.Event()
        tasks = [
            asyncio.create_task(client.send_and_disconnect(chat(number, 400), when))
            for number in range(count)
        ]
        await until_active(client, count)
        await asyncio.sleep(1)
        when.set()
        seconds.append(await until_idle(client))
        await asyncio.gather(*tasks)
    worst = max(seconds)
    return [
        Row("disconnects, idle after median s", statistics.median(seconds)),
        Row("disconnects, idle after slowest s", worst, "<= 0.25", worst <= ONE_TOKEN_SECONDS),
    ]


async def measure_unread(client: Client, process: psutil.Process, count: int) -> list[Row]:
    """Clients that do not read hold slots no longer than others; later they are disconnected."""
    requests = [large_chat(number) for number in range(count)]

    async def busy_seconds() -> float:  # polled alike in both cases, as polling costs time
        start = time.monotonic()
        await until_active(client, 1)
        await until_idle(client)
        return time.monotonic() - start

    reading = asyncio.create_task(send_all(client, requests))
    read = await busy_seconds()
    await reading
    for raw in requests:
        client.send_without_reading(raw)
    unread = await busy_seconds()
    before = num_connections(process)
    await asyncio.sleep(WRITE_TIMEOUT_SECONDS + 3)
    after = num_connections(process)
    client.close_unread()
    return [
        Row("unread, slots free when read s", read),
        Row("unread, slots free when unread s", unread),
        Row("unread, connections before 30 s", before),
        Row("unread, connections after 33 s", after, "0", after == 0),
        Row("unread, slots held longer s", unread - read, "<= 0.25", unread - read <= 0.25),
    ]


def num_connections(process: psutil.Process) -> int:
    """Established connections of a server."""
    connections = process.net_connections("tcp")
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in connections)


async def answer_seconds(client: Client, load: Callable[[], Any]) -> float:
    """Median seconds of eight ordinary answers while the server is under another load."""
    work = asyncio.create_task(send_all(client, [chat(number, 200) for number in range(8)]))
    await asyncio.sleep(0.3)
    other = asyncio.create_task(load())
    replies = await work
    await other
    client.close_unread()
    await until_idle(client)
    return statistics.median(reply.end for reply in replies)


async def measure_slowdown(client: Client, leaving: int, unread: int, rounds: int) -> list[Row]:
    """Answers beside misbehaving clients, compared with answers beside well-behaved ones."""

    async def well_behaved() -> None:  # the same requests at the same moment
        requests = [large_chat(number, 20) for number in range(unread)]
        await send_all(client, [*requests, *(chat(number, 20) for number in range(leaving))])

    async def misbehaving() -> None:
        for number in range(unread):
            client.send_without_reading(large_chat(number, 20))
        events = [asyncio.Event() for _ in range(leaving)]
        tasks = [
            asyncio.create_task(client.send_and_disconnect(chat(number, 20), event))
            for number, event in enumerate(events)
        ]
        for event in events:
            await asyncio.sleep(0.02)
            event.set()
        await asyncio.gather(*tasks)

    loads = {"no clients": lambda: asyncio.sleep(0), "well-behaved": well_behaved,
             "misbehaving": misbehaving}  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in loads}
    for _ in range(rounds):  # interleaved: the machine's speed drifts
        for name, load in loads.items():
            seconds[name].append(await answer_seconds(client, load))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["misbehaving"] / medians["well-behaved"]
    rows = [Row(f"slowdown, beside {name} s", value) for name, value in medians.items()]
    return [*rows, Row("slowdown, misbehaving / well-behaved", ratio, "< 1.1", ratio < 1.1)]


# ---- the command


def table(rows: list[Row]) -> str:
    """The rows as text."""
    lines = []
    for row in rows:
        verdict = (
            "" if not row.limit else f"{row.limit:>10}  {'passed' if row.passed else 'FAILED'}"
        )
        lines.append(f"{row.name:44}{row.value:>12.6g}{verdict}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and save; exit with 1 when a limit is missed."""
    Measure = Callable[[Client, psutil.Process, int], Coroutine[Any, Any, list[Row]]]
    # name -> measurement; counts are divided by `share`.
    parts: dict[str, Measure] = {
        "fuzz": lambda client, _, share: measure_fuzz(client, 6000 // share, 4000 // share),
        "streams": lambda client, _, share: measure_streams(client, 256 // share),
        "disconnects": lambda client, _, share: measure_disconnects(client, 200 // share, 5),
        "unread": lambda client, process, share: measure_unread(client, process, 50 // share),
        "slowdown": lambda client, _, share: measure_slowdown(client, 200 // share, 50 // share, 5),
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a twentieth of the counts")
    parser.add_argument("--only", action="append", choices=[*parts], help="only this part")
    options = parser.parse_args()
    has_failed = False
    for name in options.only or parts:
        # Fuzzing tests the limits, not the answers: a tiny model is enough.
        with running_server(*((1, 128) if name == "fuzz" else (4, 512))) as (client, process):
            rows = asyncio.run(parts[name](client, process, 20 if options.quick else 1))
        print(table(rows), flush=True)
        has_failed |= any(not row.passed for row in rows)
        if not options.quick:
            save_rows(name, rows)
    sys.exit(has_failed)


def save_rows(part: str, rows: list[Row]) -> None:
    """Save the rows of one part in today's file."""
    path = ROOT / "dev" / "bench" / "results" / f"load-{date.today()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = {"cores": os.cpu_count(), "python": sys.version.split()[0]}
    results[part] = [vars(row) for row in rows]
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
