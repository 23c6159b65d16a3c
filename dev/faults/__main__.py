"""Does to training, checkpoints and data what machines do to them, and counts the harm.

    python -m dev.faults            everything, with the counts of the table in ARCHITECTURE.md
    python -m dev.faults --quick    a few of each
    python -m dev.faults --only=kills,signals

The processes are real and so are their signals; they are forked from one that has imported torch.
"""

import json
import logging
import os
import platform
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dev.faults import files, jobs, runs, trial
from dev.faults.outcome import Outcome
from dev.faults.trial import Trial
from nanochat.configurator import parse, run
from nanochat.errors import UserError

RESULTS = Path(__file__).parents[1] / "bench" / "results"


@dataclass(frozen=True)
class Options:
    """Count what faults do to training, checkpoints and data."""

    quick: bool = False
    """A few trials of each fault."""
    only: str = ""
    """Groups to try, separated by commas: files, saves, kills, signals, finite, disk, ranks."""
    seed: int = 0
    """Of all random moments and places."""
    out: str = ""
    """JSON file of the result; empty means dev/bench/results/faults-DATE.json."""


def checks(folder: Path, quick: bool, seed: int) -> dict[str, Callable[[], Iterable[Outcome]]]:
    """All faults in groups by name, cheap ones first."""
    base = folder / "base"
    trials: dict[int, Trial] = {}

    def n(full: int, few: int) -> int:
        return few if quick else full

    def straight(ranks: int) -> Trial:
        if not base.exists():
            trial.make_world(base)
        if ranks not in trials:
            trials[ranks] = trial.straight(base, ranks)
        return trials[ranks]

    def kills() -> Iterator[Outcome]:
        ended = [straight(1), straight(2)]
        for ranks, count, tolerance in (([1], 50, 0.0), ([2], 50, 0.0), ([1, 2], 20, 1e-5)):
            outcome, killed = runs.killed_runs(
                base, straight(ranks[0]), ranks, n(count, 3), seed, tolerance
            )
            ended += killed
            yield outcome
        yield runs.documents_seen(base, ended)

    def lost() -> Iterator[Outcome]:
        reference = straight(2)
        yield jobs.lost_ranks(base, n(3, 1), signal.SIGKILL, 10)
        yield jobs.lost_ranks(base, 1, signal.SIGSTOP, 120)
        yield jobs.restarted_job(base, reference, n(3, 1))

    return {
        "files": lambda: [
            files.damaged_checkpoints(folder / "flips", n(200, 10), seed, "flip"),
            files.damaged_checkpoints(folder / "cuts", n(200, 10), seed, "cut"),
            files.hostile_files(folder / "hostile"),
            files.damaged_shards(folder / "shards", n(150, 10), seed),
        ],
        "saves": lambda: [runs.killed_saves(folder / "saves", n(200, 5), seed)],
        "kills": kills,
        "signals": lambda: [runs.signals(base, straight(1), n(50, 3), seed)],
        "finite": lambda: [runs.poisoned_runs(straight(1).base, n(20, 2), seed)],
        "disk": lambda: [runs.full_disk(base, straight(1), n(10, 1), seed)],
        "ranks": lost,
    }


def main(argv: list[str] | None = None) -> None:
    """Run every check, print a line of each, write the JSON; UserError when harm was done."""
    options = parse(Options, argv)
    logging.getLogger("nanochat").setLevel(logging.CRITICAL)  # damage is found all the time
    warnings.simplefilter("ignore")  # torch's on hostile pickles
    today = time.strftime("%Y-%m-%d")
    out = Path(options.out) if options.out else RESULTS / f"faults-{today}.json"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for name, check in checks(Path(folder), options.quick, options.seed).items():
            if not options.only or name in options.only.split(","):
                for outcome in check():
                    rows.append(outcome.row())
                    say(outcome)
                    write(out, rows, {"quick": options.quick, "seed": options.seed})
    harmed = [row["fault"] for row in rows if row["harmed"]]
    if harmed:
        raise UserError(f"harm was done by {'; '.join(harmed)}; see {out}")


def say(outcome: Outcome) -> None:
    """A line about a fault, and what went wrong."""
    facts = "; ".join(f"{name} {value}" for name, value in outcome.facts.items())
    print(f"{outcome.fault}: {len(outcome.harms)} of {outcome.tried} harmed ({facts})", flush=True)
    for harm in outcome.harms[:5]:
        print(f"    {harm}", flush=True)


def write(out: Path, rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The rows as JSON; those of other faults that are there already stay."""
    new = [row["fault"] for row in rows]
    there = json.loads(out.read_text(encoding="utf-8"))["faults"] if out.is_file() else []
    kept = [row for row in there if row["fault"] not in new]
    head = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), **settings}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**head, "faults": kept + rows}, indent=1) + "\n", encoding="utf-8")


def commit() -> str:
    """The commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def machine() -> str:
    """What it ran on, in words."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    run(main)
