"""The sandbox: HumanEval's solutions and cheats, the cost of a program, what many runs leave.

    python -m dev.bench.sandbox --humaneval ../shared/data/eval/humaneval/HumanEval.jsonl

Three minutes on two cores. --realtime (root only) gives the timed parts, a few seconds, priority
over the other processes of a busy machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from nanochat import execution
from nanochat.execution import ExecutionResult, describe_sandbox, execute_code, grade_function
from tests.test_sandbox_humaneval import CHEATS

Problem = dict[str, str]

COLD = "import time; began = time.perf_counter(); from nanochat.execution import execute_code;" \
    " execute_code('1'); print(time.perf_counter() - began)"  # fmt: skip
MIXED = (
    "print(1)", "1 / 0", "open('a', 'w').write('x' * 9999)", "import os; os._exit(1)",
    "x = bytearray(10**9)", "import os; os.fork()", "def f(:", "import sys; sys.exit(0)",
    "import threading as t; t.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()", "6 * 7",
)  # fmt: skip


def grade(problem: Problem, program: str, timeout: float) -> ExecutionResult:
    name = problem["entry_point"]
    return grade_function(program, problem["prompt"], problem["test"], name, timeout)


def graded(
    problems: list[Problem], program: Callable[[Problem], str], threads: int, timeout: float = 10.0
) -> dict[str, Any]:
    """How many problems pass, and what a program takes."""
    milliseconds: list[float] = []

    def one(problem: Problem) -> bool:
        began = time.perf_counter()
        result = grade(problem, program(problem), timeout)
        milliseconds.append(1000 * (time.perf_counter() - began))
        return result.success

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        passed = sum(pool.map(one, problems))
    return {
        "passed": passed, "of": len(problems), "threads": threads,
        "seconds": round(time.perf_counter() - began, 2),
        "median_ms": round(statistics.median(milliseconds), 2),
        "fastest_ms": round(min(milliseconds), 2),
    }  # fmt: skip


def cost(count: int) -> dict[str, float]:
    """Milliseconds of an empty program, from an import without a pool and from a warm pool."""
    cold = [
        1000 * float(subprocess.run([sys.executable, "-c", COLD], capture_output=True).stdout)
        for _ in range(5)
    ]
    warm = []
    for _ in range(count):
        began = time.perf_counter()
        execute_code("1")
        warm.append(1000 * (time.perf_counter() - began))
    return {
        "cold_median_ms": round(statistics.median(cold), 1), "cold_fastest_ms": round(min(cold), 1),
        "warm_median_ms": round(statistics.median(warm), 2), "warm_fastest_ms": round(min(warm), 2),
    }  # fmt: skip


def state() -> dict[str, int]:
    """What this process holds, and what the sandbox has on the machine."""
    me = psutil.Process()
    # The fork server is one; its children are workers.
    workers = sum(len(child.children()) for child in me.children())
    return {
        "descriptors": me.num_fds(), "threads": me.num_threads(),
        "fork_servers": len(me.children()), "workers": workers,
        "resident_bytes": me.memory_info().rss,
        # The last argument of a fork server is the folder of its workers' folders.
        "files": sum(len(files) + len(folders) for child in me.children()
                     for _, folders, files in os.walk(child.cmdline()[-1])),
    }  # fmt: skip


def leftovers(count: int) -> dict[str, Any]:
    """The state before and after many programs of several kinds."""

    def run(numbers: range) -> None:
        for number in numbers:
            execute_code(MIXED[number % len(MIXED)], timeout=2.0)

    run(range(200))
    before, began = state(), time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, (range(count // 2), range(count // 2))))
    seconds, after = time.perf_counter() - began, state()
    growth = (after["resident_bytes"] - before["resident_bytes"]) / 2**20
    return {"runs": count // 2 * 2, "seconds": round(seconds, 1), "before": before, "after": after,
            "growth_mib": round(growth, 2)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--humaneval", type=Path, required=True)
    parser.add_argument("--num_runs", type=int, default=10_000)
    parser.add_argument("--realtime", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = options.humaneval.read_text(encoding="utf-8").splitlines()
    problems: list[Problem] = [json.loads(line) for line in lines]
    if options.realtime:  # inherited by the fork server and its workers
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))
    results: dict[str, Any] = {
        "sandbox": describe_sandbox("strict"), "user": os.geteuid(), "cores": os.cpu_count(),
        "kernel": platform.release(), "python": platform.python_version(),
        "realtime": options.realtime, "load_at_start": [round(load, 1) for load in os.getloadavg()],
        "empty_program": cost(300),
    }  # fmt: skip

    def record(name: str, value: dict[str, Any]) -> None:
        results[name] = value
        print(name, json.dumps(value), flush=True)

    def canonical(problem: Problem) -> str:
        return problem["prompt"] + problem["canonical_solution"]

    print(json.dumps(results), flush=True)
    record("canonical, one thread", graded(problems, canonical, threads=1))
    record("canonical, two threads", graded(problems, canonical, threads=2))
    if options.realtime:
        execution._pool(os.getpid()).close()
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    for name, code in CHEATS.items():
        program = lambda problem, code=code: code.format(name=problem["entry_point"])  # noqa: E731
        record(f"cheat: {name}", graded(problems, program, threads=4))
    loop = graded(problems, lambda _: "while True: pass", threads=8, timeout=0.5)
    record("cheat: an endless loop", loop)
    empty = graded(problems, lambda problem: problem["prompt"] + "    pass\n", threads=2)
    record("cheat: the prompt with an empty body", empty)
    if options.num_runs:
        record("many runs", leftovers(options.num_runs))
    results["load_at_end"] = [round(load, 1) for load in os.getloadavg()]
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
