"""A server under load, and among clients that do it wrong: counts, seconds, and their bars.

    python dev/load.py                everything, about ten minutes; JSON under dev/bench/results
    python dev/load.py --quick        a twentieth of it
    python dev/load.py --only streams --only leavers

It starts a server of its own for each part (`scripts.chat_web`, a random model, one thread for
arithmetic) and asks it over loopback.
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
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from dev import fuzz  # noqa: E402
from dev.raw_client import Client, Reply, request  # noqa: E402

CHAT = "/v1/chat/completions"
STALL_SECONDS = 30
TOKEN_SECONDS = 0.25  # a slot is free by then, or after one token
ARRIVAL_SECONDS = 10  # all that were asked for at once are there by then, or have been answered


@dataclass(frozen=True)
class Row:
    """One figure, and the bar it is held against."""

    name: str
    value: float
    bar: str = ""
    holds: bool = True


def save_model(base: Path, depth: int, context: int) -> None:
    """A random model that rarely ends by itself, as the finetuned one of a base directory."""
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
        for parameter in model.parameters():
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
def served(depth: int, context: int) -> Iterator[tuple[Client, psutil.Process]]:
    """A server with a random model, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["NANOCHAT_BASE_DIR"] = name
        save_model(Path(name), depth, context)
        log = Path(name) / "log"
        command = [sys.executable, "-m", "scripts.chat_web", "--port=0", "--device_type=cpu"]
        with log.open("wb") as words:
            process = subprocess.Popen(
                [*command, "--max_tokens=4"], cwd=ROOT, stderr=words,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        try:
            while not (found := re.search(r"open http://localhost:(\d+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            client = Client("127.0.0.1", int(found[1]))
            while not asyncio.run(is_up(client)):
                time.sleep(0.1)
            yield client, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(10)


async def is_up(client: Client) -> bool:
    """Whether it answers."""
    try:
        return (await client.ask(request("/health"))).status == 200
    except OSError:
        return False


def chat(number: int, max_tokens: int, **more: Any) -> bytes:
    """A streaming request whose prompt is like no other's."""
    messages = [{"role": "user", "content": f"Tell me what number {number} is about, please."}]
    body = {"messages": messages, "stream": True, "max_tokens": max_tokens, **more}
    return request(CHAT, body)


def heavy(number: int, max_tokens: int = 200) -> bytes:
    """One whose answer is more than the kernel keeps: megabytes of likelihoods."""
    return chat(number, max_tokens, n=2, logprobs=True, top_logprobs=20)


# ---- what is measured


async def count_fuzz(client: Client, by_hand: int, described: int) -> list[Row]:
    """Requests that nobody should send."""
    address = f"http://{client.host}:{client.port}"
    found = await fuzz.send_by_hand(client, by_hand)
    description = json.loads((await client.ask(request("/openapi.json"))).body)
    found += await asyncio.to_thread(fuzz.send_described, address, description, described)
    faults = sum(number for name, number in found.items() if not name.endswith("xx"))
    rows = [Row(f"fuzz, {name}", number) for name, number in sorted(found.items())]
    sent = found.total()
    return [
        *rows,
        Row("fuzz, requests", sent, f">= {by_hand + described}", sent >= by_hand + described),
        Row("fuzz, 5xx, hangs, broken streams", faults, "0", faults == 0),
        Row("fuzz, at work afterwards", left := await client.at_work(), "0", left == 0),
    ]


async def while_watched(
    client: Client, work: Coroutine[Any, Any, list[Reply]]
) -> tuple[list[Reply], list[float]]:
    """What `work` gives, and the seconds that /health took meanwhile."""
    task = asyncio.create_task(work)
    seconds = []
    while not task.done():
        seconds.append((await client.ask(request("/health"))).end)
        await asyncio.sleep(0.02)
    return task.result(), seconds


async def all_of(client: Client, asked: list[bytes]) -> list[Reply]:
    """Everybody at once."""
    return list(await asyncio.gather(*map(client.ask, asked)))


async def count_streams(client: Client, count: int) -> list[Row]:
    """Streams that begin together, and one client that asks for much and never reads."""
    client.never_read(heavy(-1))
    await asyncio.sleep(0.5)
    work = all_of(client, [chat(number, 32) for number in range(count)])
    replies, health = await while_watched(client, work)
    client.forget()
    ended = sum(reply.status == 200 and not fuzz.verdict(reply) for reply in replies)
    rows = [Row("streams, all end", ended, str(count), ended == count)]
    for name in ("first_byte", "first_token", "end"):
        values = [getattr(reply, name) for reply in replies]
        rows += [
            Row(f"streams, {name} median s", statistics.median(values)),
            Row(f"streams, {name} slowest s", max(values)),
        ]
        ratio = max(values) / statistics.median(values)
        bar = "<= 2" if name == "first_byte" else ""
        rows.append(Row(f"streams, {name} slowest / median", ratio, bar, not bar or ratio <= 2))
    p99 = sorted(health)[int(0.99 * len(health))]
    return [
        *rows,
        Row("streams, /health asked", len(health)),
        Row("streams, /health median s", statistics.median(health)),
        Row("streams, /health p99 s", p99, "<= 0.1", p99 <= 0.1),
    ]


async def until_free(client: Client) -> float:
    """Seconds until nothing runs or waits."""
    began = time.monotonic()
    while await client.at_work():
        await asyncio.sleep(0.002)
    return time.monotonic() - began


async def until_at_work(client: Client, count: int) -> None:
    """Wait until so many run or wait; not for long: the first may end before the last one asks."""
    give_up_at = time.monotonic() + ARRIVAL_SECONDS
    while await client.at_work() < count and time.monotonic() < give_up_at:
        await asyncio.sleep(0.002)


async def count_leavers(client: Client, count: int, rounds: int) -> list[Row]:
    """Clients that leave at once: the slots and the queue are free after so long."""
    seconds = []
    for _ in range(rounds):
        when = asyncio.Event()
        leavers = [
            asyncio.create_task(client.leave(chat(number, 400), when)) for number in range(count)
        ]
        await until_at_work(client, count)
        await asyncio.sleep(1)
        when.set()
        seconds.append(await until_free(client))
        await asyncio.gather(*leavers)
    worst = max(seconds)
    return [
        Row("leavers, all slots free, median s", statistics.median(seconds)),
        Row("leavers, all slots free, slowest s", worst, "<= 0.25", worst <= TOKEN_SECONDS),
    ]


async def count_non_readers(client: Client, process: psutil.Process, count: int) -> list[Row]:
    """Their slots are free as soon as those of clients that read; later they are dropped."""
    asked = [heavy(number) for number in range(count)]

    async def worked_for() -> float:  # asking how it goes costs time, too: both are asked alike
        began = time.monotonic()
        await until_at_work(client, 1)  # the first of them is not even begun
        await until_free(client)
        return time.monotonic() - began

    reading = asyncio.create_task(all_of(client, asked))
    read = await worked_for()
    await reading
    for raw in asked:
        client.never_read(raw)
    unread = await worked_for()
    open_before = num_connections(process)
    await asyncio.sleep(STALL_SECONDS + 3)
    still_open = num_connections(process)
    client.forget()
    return [
        Row("non-readers, slots free when read s", read),
        Row("non-readers, slots free unread s", unread),
        Row("non-readers, connections before 30 s", open_before),
        Row("non-readers, connections after 33 s", still_open, "0", still_open == 0),
        Row("non-readers, slots held longer s", unread - read, "<= 0.25", unread - read <= 0.25),
    ]


def num_connections(process: psutil.Process) -> int:
    """Connections of a server that are established."""
    return sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp"))


async def slowed_by(client: Client, others: int, bother: Callable[[], Any]) -> float:
    """Median seconds that the answers of `others` take while somebody bothers the server."""
    work = asyncio.create_task(all_of(client, [chat(number, 200) for number in range(others)]))
    await asyncio.sleep(0.3)
    bothering = asyncio.create_task(bother())
    replies = await work
    await bothering
    client.forget()
    await until_free(client)
    return statistics.median(reply.end for reply in replies)


async def count_slowing(client: Client, leavers: int, non_readers: int, rounds: int) -> list[Row]:
    """Others beside rude clients, against others beside as many that behave."""

    async def polite() -> None:  # the same, asked in the same moment
        asked = [heavy(number, 20) for number in range(non_readers)]
        await all_of(client, [*asked, *(chat(number, 20) for number in range(leavers))])

    async def rude() -> None:
        for number in range(non_readers):
            client.never_read(heavy(number, 20))
        events = [asyncio.Event() for _ in range(leavers)]
        asked = [client.leave(chat(n, 20), event) for n, event in enumerate(events)]
        tasks = [asyncio.create_task(one) for one in asked]
        for event in events:
            await asyncio.sleep(0.02)
            event.set()
        await asyncio.gather(*tasks)

    async def nobody() -> None:
        pass

    seconds: dict[str, list[float]] = {"alone": [], "polite": [], "rude": []}
    for _ in range(rounds):
        for name, bother in (("alone", nobody), ("polite", polite), ("rude", rude)):
            seconds[name].append(await slowed_by(client, 8, bother))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["rude"] / medians["polite"]
    rows = [Row(f"others, beside {name} s", value) for name, value in medians.items()]
    return [*rows, Row("others, beside rude / beside polite", ratio, "< 1.1", ratio < 1.1)]


# ---- the run


def table(rows: list[Row]) -> str:
    """The figures as text."""
    lines = []
    for row in rows:
        verdict = "" if not row.bar else f"{row.bar:>10}  {'holds' if row.holds else 'MISSED'}"
        lines.append(f"{row.name:44}{row.value:>12.6g}{verdict}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parts = ("fuzz", "streams", "leavers", "non_readers", "slowing")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a twentieth of the counts")
    parser.add_argument("--only", action="append", choices=parts, help="only this part")
    asked = parser.parse_args()
    share = 20 if asked.quick else 1
    works: dict[str, Callable[[Client, psutil.Process], Coroutine[Any, Any, list[Row]]]] = {
        "fuzz": lambda client, _: count_fuzz(client, 6000 // share, 4000 // share),
        "streams": lambda client, _: count_streams(client, 256 // share),
        "leavers": lambda client, _: count_leavers(client, 200 // share, 5),
        "non_readers": lambda client, process: count_non_readers(client, process, 50 // share),
        "slowing": lambda client, _: count_slowing(client, 200 // share, 50 // share, 5),
    }
    missed = False
    for name in asked.only or parts:
        # Of what fuzz asks for only the limits count, so its answers are short and quick.
        with served(*((1, 128) if name == "fuzz" else (4, 512))) as (client, process):
            new = asyncio.run(works[name](client, process))
        print(table(new), flush=True)
        missed |= any(not row.holds for row in new)
        if not asked.quick:
            write(name, new)
    sys.exit(missed)


def write(part: str, rows: list[Row]) -> None:
    """Keep the figures of one part in the file of the day."""
    path = ROOT / "dev" / "bench" / "results" / f"load-{date.today()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = json.loads(path.read_text()) if path.exists() else {}
    whole["machine"] = {"cores": os.cpu_count(), "python": sys.version.split()[0]}
    whole[part] = [vars(row) for row in rows]
    path.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
