"""Injects faults into training, checkpoints and data, and counts the harm they do.

    python -m dev.faults            everything, with the counts of the table in ARCHITECTURE.md
    python -m dev.faults --quick    a few of each
    python -m dev.faults --only=kills,signals

Processes and signals are real; the processes are forked from one that has imported torch.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dev.faults import files, hubs, jobs, memory, mutations, runs, starts, trial
from dev.faults.outcome import Group, Outcome, Setting
from dev.faults.trial import Trial
from nanochat.configurator import parse, run
from nanochat.errors import UserError

RESULTS = Path(__file__).parents[1] / "bench" / "results"
# Each has `groups(setting: Setting) -> dict[str, Group]`: its groups of faults by name.
MODULES: tuple[ModuleType, ...] = (mutations, hubs, memory)


@dataclass(frozen=True)
class Options:
    """Inject faults into training, checkpoints and data, and count the harm they do."""

    quick: bool = False
    """Only a few trials of each fault."""
    only: str = ""
    """Groups to run, separated by commas; empty means all. An unknown name lists them."""
    seed: int = 0
    """Seed of all random moments and places."""
    out: str = ""
    """JSON file for the result; empty means dev/bench/results/faults-DATE.json."""


def groups(setting: Setting) -> dict[str, Group]:
    """All faults in groups by name, the quick ones first."""
    folder, n, seed = setting.folder, setting.count, setting.seed
    base = folder / "base"
    trials: dict[int, Trial] = {}

    def uninterrupted(ranks: int) -> Trial:
        if not base.exists():
            trial.make_data(base)
        if ranks not in trials:
            trials[ranks] = trial.uninterrupted(base, ranks)
        return trials[ranks]

    def kills() -> Iterator[Outcome]:
        ended = [uninterrupted(1), uninterrupted(2)]
        for ranks, count, tolerance in (([1], 50, 0.0), ([2], 50, 0.0), ([1, 2], 20, 1e-5)):
            outcome, killed = runs.killed_runs(
                base, uninterrupted(ranks[0]), ranks, n(count, 3), seed, tolerance
            )
            ended += killed
            yield outcome
        yield runs.documents_seen(base, ended)

    def lost() -> Iterator[Outcome]:
        reference = uninterrupted(2)
        yield jobs.lost_ranks(base, n(3, 1), signal.SIGKILL, 10)
        yield jobs.lost_ranks(base, 1, signal.SIGSTOP, 120)
        yield jobs.restarted_job(base, reference, n(3, 1))

    found: dict[str, Group] = {
        "files": lambda: [
            files.damaged_checkpoints(folder / "flips", n(200, 10), seed, "flip"),
            files.damaged_checkpoints(folder / "cuts", n(200, 10), seed, "cut"),
            files.hostile_files(folder / "hostile"),
            files.damaged_shards(folder / "shards", n(150, 10), seed),
        ],
        "saves": lambda: [runs.killed_saves(folder / "saves", n(200, 5), seed)],
    }
    for module in MODULES:
        found |= module.groups(setting)
    return found | {
        "kills": kills,
        "signals": lambda: [runs.signals(base, uninterrupted(1), n(50, 3), seed)],
        "finite": lambda: [runs.poisoned_runs(uninterrupted(1).base, n(20, 2), seed)],
        "disk": lambda: [runs.full_disk(base, uninterrupted(1), n(10, 1), seed)],
        "ranks": lost,
        "rounding": lambda: [runs.changed_ranks(uninterrupted(1).base, n(4, 1), seed)],
        "starts": lambda: [
            starts.double_starts(base, {r: uninterrupted(r) for r in (1, 2)}, n(40, 3), seed),
            starts.damaged_ends(base, uninterrupted(1), n(20, 2), seed),
        ],
    }


def main(argv: list[str] | None = None) -> None:
    """Run every check, print a line for each and write the JSON. Raises UserError after harm."""
    options = parse(Options, argv)
    logging.getLogger("nanochat").setLevel(logging.CRITICAL)  # of the injected faults
    warnings.simplefilter("ignore")  # torch's, about hostile pickles
    today = time.strftime("%Y-%m-%d")
    out = Path(options.out) if options.out else RESULTS / f"faults-{today}.json"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        found = groups(Setting(Path(folder), options.quick, options.seed))
        wanted = options.only.split(",") if options.only else list(found)
        if unknown := [name for name in wanted if name not in found]:
            raise UserError(f"--only={unknown[0]} is not a group; use {', '.join(found)}")
        for name, group in found.items():
            if name in wanted:
                for outcome in group():
                    rows.append(outcome.row())
                    show(outcome)
                    write(out, rows, {"quick": options.quick, "seed": options.seed})
    harmed = [row["fault"] for row in rows if row["harmed"]]
    if harmed:
        raise UserError(f"harm done by {'; '.join(harmed)}; see {out}")


def show(outcome: Outcome) -> None:
    """Print a line about a fault, and what went wrong."""
    facts = "; ".join(f"{name} {value}" for name, value in outcome.facts.items())
    print(f"{outcome.fault}: {len(outcome.harms)} of {outcome.tried} harmed ({facts})", flush=True)
    for harm in outcome.harms[:5]:
        print(f"    {harm}", flush=True)


def write(out: Path, rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Write the rows as JSON; those of other faults already in the file are kept."""
    new = [row["fault"] for row in rows]
    saved = json.loads(out.read_text(encoding="utf-8"))["faults"] if out.is_file() else []
    kept = [row for row in saved if row["fault"] not in new]
    head = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), **settings}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**head, "faults": kept + rows}, indent=1) + "\n", encoding="utf-8")


def commit() -> str:
    """The commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def machine() -> str:
    """A description of this machine."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    run(main)
