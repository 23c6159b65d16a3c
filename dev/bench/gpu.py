"""The steps of dev/bench/gpu.sh: each in its own process, so that a failure ends only that step.

The results are written after each step, and all steps together end in time: what is still running
then is killed, and what it has found until then is kept.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from dev.bench.engine import FIRST_TOKENS_TARGET, STEP_TARGETS, WAIT_TARGET, copy_bandwidth
from nanochat.runtime import compute_dtype
from nanochat.training import autotune
from nanochat.training.scaling_laws import RECIPES

ROOT = Path(__file__).parents[2]
STEP_SECONDS = 100  # the longest that a command may take
NUM_TOKENS = 524_288  # of a training step
VALUES = "value embeddings"  # ends the names of steps with those of the modern recipe

Found = dict[str, Any]  # the figures of a step, which it fills in as it finds them


@dataclass(frozen=True)
class Commands:
    """Runs Python commands until the time is over."""

    end: float  # as of time.monotonic()
    limit: float = STEP_SECONDS

    def run(self, *command: str) -> tuple[float, str]:
        """Seconds and output. Raises RuntimeError with the end of the output when it fails."""
        start, limit = time.monotonic(), min(self.limit, self.end - time.monotonic())
        if limit <= 0:
            raise RuntimeError("no time is left")
        # Not a pipe: who reads it would wait for the command's own processes, too.
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                problem = f"exit code {code}" if (code := process.wait(limit)) else ""
            except subprocess.TimeoutExpired:
                problem = f"killed after {limit:.0f} s"
            finally:  # with its own processes, which would keep the GPU busy
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            text = output.read()
        if problem:
            raise RuntimeError(f"{problem}: {text[-1500:]}")
        return time.monotonic() - start, text


def environment(device: torch.device) -> Found:
    """Versions, the device, and what it can do at most."""
    on_gpu = device.type == "cuda"
    dtype = compute_dtype(device)
    peak = autotune.measure_matmul_peak(device, dtype, 0 if on_gpu else 256)
    return {
        "python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU", "dtype": str(dtype),
        "memory, GB": torch.cuda.mem_get_info(device)[1] / 1e9 if on_gpu else 0,
        "matmul, TFLOP/s": peak / 1e12, "copy, GB/s": copy_bandwidth(device) / 1e9 if on_gpu else 0,
    }  # fmt: skip


def gpu_tests(commands: Commands) -> Found:
    """The last line of the tests on a GPU, which skip themselves on a CPU."""
    # By name: to import all tests would need their packages.
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_gpu_*.py"))]
    # Without conftest.py, which needs packages that only all tests need.
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--noconftest", "--tb=short"]
    _, output = commands.run("-m", "pytest", *options, *files)
    return {"last line": output.strip().splitlines()[-1]}


def training(
    commands: Commands, folder: Path, tiny: bool, depth: int, rows: int, *more: str
) -> Found:
    """Figures of dev.bench.train, compiled on a GPU."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "train.json"
    sizes = ["--depths", str(depth), "--device_batch_size", str(rows), "--steps", "3", "--compile"]
    sizes += ["--rows", str(NUM_TOKENS // 2048), "--sequence_len", "2048"]
    if tiny:
        sizes = ["--depths", "1", "--rows", "2", "--device_batch_size", "2", "--steps", "2"]
        sizes += ["--sequence_len", "32", "--device_type", "cpu"]
        more = (*more, "--vocab_size", "256")  # the last one counts
    commands.run("-m", "dev.bench.train", *sizes, *more, "--out", str(out))
    figures: Found = json.loads(out.read_text())["figures"][0]
    return figures


def engine(commands: Commands, folder: Path, tiny: bool, *more: str) -> Found:
    """Figures of dev/bench/engine.py."""
    out, sizes = folder / "engine.json", ["--depth", "20", "--device", "cuda"]
    sizes += ["--batches", "1", "32", "256", "--repeats", "3"]
    if tiny:
        sizes = ["--depth", "1", "--batches", "1", "--repeats", "1", "--sequence-len", "128"]
    commands.run("-m", "dev.bench.engine", *sizes, *more, "--targets", "--out", str(out))
    results: Found = json.loads(out.read_text())
    return {name: results[name] for name in ("by_batch", "during_long_prefill")}


def pipeline(commands: Commands, folder: Path, tiny: bool, found: Found) -> None:
    """Seconds of each stage on the primer world, and tokens per second of those that train."""
    depth, steps = ("1", "2") if tiny else ("4", "100")
    small = ["--eval_tokens=512"] if tiny else []
    chats = ["--num_conversations=32", "--eval_conversations=4"] if tiny else []
    length = "128" if tiny else "512"
    shards, vocabulary = ("1", "400") if tiny else ("8", "4096")
    rollouts = ["--prompts_per_step=2", "--num_samples=2"] if tiny else []
    stages = {
        "dataset": ["nanochat.dataset", "--source=primer", f"--num_shards={shards}"],
        "tok_train": ["scripts.tok_train", f"--vocab_size={vocabulary}"],
        "base": ["scripts.base_train", f"--depth={depth}", f"--max_seq_len={length}",
                 f"--num_iterations={steps}", f"--total_batch_size={64 * int(length)}", *small],
        "mid": ["scripts.mid_train", f"--total_batch_size={64 * int(length)}",
                f"--num_iterations={steps}", *chats, *small],
        "sft": ["scripts.chat_sft", f"--num_iterations={steps}", *chats, *small],
        "rl": ["scripts.chat_rl", "--num_iterations=2", "--max_new_tokens=16", *rollouts,
               *chats[1:], *small],
    }  # fmt: skip
    for name, (module, *options) in stages.items():
        found[f"{name}, s"], _ = commands.run("-m", module, *options)
        checkpoints = {"sft": "chatsft", "rl": "chatrl"}.get(name, name) + "_checkpoints"
        logs = sorted((folder / checkpoints).glob("*/metrics.jsonl"))
        lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
        rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
        if rates:  # steps of reinforcement learning without a signal train on nothing
            rates = [rate for rate in rates if rate] or rates
            found[f"{name}, tok/s"] = sorted(rates)[len(rates) // 2]


def run_all(steps: Mapping[str, Callable[[Found], Found | None]], out: Path) -> dict[str, Found]:
    """The figures of each step, written after each; one that fails does not end the others."""
    results: dict[str, Found] = {}
    for name, step in steps.items():
        start, found = time.perf_counter(), results.setdefault(name, {})
        try:
            found |= step(found) or {}
        except Exception as error:  # whatever it is, the other figures count
            found["failed"] = f"{type(error).__name__}: {error}"
        found["seconds"] = round(time.perf_counter() - start, 1)
        print(f"{name}: {json.dumps(found)}", flush=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def share(part: Found, whole: Found, name: str) -> float | None:
    """The ratio of a figure of two steps, if both have it."""
    return part[name] / whole[name] if part.get(name) and whole.get(name) else None


def table(results: dict[str, Found]) -> list[tuple[str, float | None, str]]:
    """What was measured beside the targets for one H200."""
    by_rows, with_values = (
        {one["rows"]: one for one in results.get(name, {}).get("by_batch", [])}
        for name in ("engine", f"engine, {VALUES}")
    )
    step = "milliseconds_per_step"
    wait = results.get("engine", {}).get("during_long_prefill", {}).get("longest", {}).get("with")
    depth_12, sft = results.get("depth 12", {}), results.get("finetuning", {})
    first, peak = "start to first micro-batch, s", "peak memory, MB"
    rows: list[tuple[str, float | None, str]] = []
    for name, rate, memory in (("depth 12", 590_000, 33_600), ("depth 20", 182_700, 46_400)):
        found = results.get(name, {})
        rows += [
            (f"{name}, tok/s", found.get("tok/s"), f"{rate:,} before"),
            (f"{name}, start to first micro-batch, s", found.get(first), "at most 15"),
            (f"{name}, peak memory, MB", found.get(peak), f"{memory:,} before"),
        ]
    for name in ("depth 12", "depth 20", "depth 20, 32 rows"):
        found = results.get(name, {})
        ratio = found["estimated memory, MB"] / found[peak] if found.get(peak) else None
        rows.append((f"{name}, estimate / peak", ratio, "0.95 to 1.05"))
    largest = results.get("depth 20, 32 rows", {}).get(peak)
    return [
        *rows,
        ("depth 20, 32 rows, vocabulary 65,536, MB", largest, "at most 76,000"),
        ("finetuning / pretraining, tokens in use", share(sft, depth_12, "tok/s"),
         "at least 0.80"),
        *(
            (f"decode {rows} rows, ms a step", by_rows.get(rows, {}).get(step), f"at most {most}")
            for rows, most in STEP_TARGETS.items()
        ),
        *(
            (f"{name}, {VALUES} / without, tok/s",
             share(results.get(f"{name}, {VALUES}", {}), results.get(name, {}), "tok/s"), "")
            for name in ("depth 12", "depth 20", "depth 24")
        ),
        *(
            (f"decode {rows} rows, {VALUES} / without, ms",
             share(with_values.get(rows, {}), by_rows.get(rows, {}), step), "")
            for rows in STEP_TARGETS
        ),
        *(
            (f"pipeline, {name}, tok/s", results.get("pipeline", {}).get(f"{name}, tok/s"), "")
            for name in ("base", "sft", "rl")
        ),
        ("first tokens of 256 prompts, ms",
         by_rows.get(256, {}).get("first_token_milliseconds"), f"at most {FIRST_TOKENS_TARGET:g}"),
        ("longest wait beside a prompt of 960, ms", wait, f"at most {WAIT_TARGET:g}"),
    ]  # fmt: skip


def main() -> None:
    """Run all steps, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="on a CPU, at sizes for a test")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all steps; --tiny: 30")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tiny, base = options.tiny, Path(os.environ["NANOCHAT_BASE_DIR"])
    base.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * (30 if tiny else options.minutes)
    commands = Commands(end, 1800 if tiny else STEP_SECONDS)  # a busy CPU is no reason to fail
    device = torch.device("cpu" if tiny else "cuda")
    values = "--value_embeddings", str(RECIPES["modern"]["value_embeddings"])
    # Ordered by what is most worth knowing, should the time be too short.
    steps: dict[str, Callable[[Found], Found | None]] = {
        "environment": lambda _: environment(device),
        "depth 12": lambda _: training(commands, base, tiny, 12, 32),
        "engine": lambda _: engine(commands, base, tiny),
        "gpu tests": lambda _: gpu_tests(commands),
        "finetuning": lambda _: training(commands, base, tiny, 12, 32, "--share_in_use", "0.2"),
        "depth 20": lambda _: training(commands, base, tiny, 20, 16),
        "depth 20, 32 rows": lambda _: training(
            commands, base, tiny, 20, 32, "--vocab_size", "65536"
        ),
        f"depth 12, {VALUES}": lambda _: training(commands, base, tiny, 12, 32, *values),
        f"depth 20, {VALUES}": lambda _: training(commands, base, tiny, 20, 16, *values),
        "pipeline": lambda found: pipeline(commands, base, tiny, found),
        f"engine, {VALUES}": lambda _: engine(
            commands, base, tiny, "--value-embeddings", values[1]
        ),
        "depth 24": lambda _: training(commands, base, tiny, 24, 16),
        f"depth 24, {VALUES}": lambda _: training(commands, base, tiny, 24, 16, *values),
    }
    out = options.out or ROOT / f"dev/bench/results/gpu-{date.today()}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    results = run_all(steps, out)
    for what, value, target in table(results):
        measured = "not measured" if value is None else f"{value:,.2f}"
        print(f"{what:<44}{measured:>14}   {target}")
    print(out)
    failed = [name for name, found in results.items() if "failed" in found]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
