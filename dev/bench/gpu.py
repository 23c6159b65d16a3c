"""The steps of dev/bench/gpu.sh: each in its own process, so that a failure ends only that step."""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from dev.bench.engine import copy_bandwidth
from nanochat.training import autotune

ROOT = Path(__file__).parents[2]
STEP_SECONDS = 150  # the longest that a step may take


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, the device, and what it can do at most."""
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    peak = autotune.measure_matmul_peak(device, dtype, 0 if on_gpu else 256)
    return {
        "python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "memory, GB": torch.cuda.mem_get_info(device)[1] / 1e9 if on_gpu else 0,
        "matmul, TFLOP/s": peak / 1e12, "copy, GB/s": copy_bandwidth(device) / 1e9 if on_gpu else 0,
    }  # fmt: skip


def run(*command: str) -> tuple[float, str]:
    """Seconds and output of a Python command. Raises RuntimeError with the end of its output."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, text=True, timeout=STEP_SECONDS,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stdout[-1500:]}")
    return time.perf_counter() - start, done.stdout


def training(folder: Path, tiny: bool, depth: int, rows: int, *more: str) -> dict[str, Any]:
    """Figures of dev.bench.train, compiled on a GPU."""
    out = folder / f"train-{depth}-{len(more)}.json"
    sizes = ["--depths", str(depth), "--rows", "256", "--device_batch_size", str(rows)]
    sizes += ["--sequence_len", "2048", "--steps", "3", "--compile"]
    if tiny:
        sizes = ["--depths", "1", "--rows", "2", "--device_batch_size", "2", "--steps", "2"]
        sizes += ["--sequence_len", "32", "--vocab_size", "256", "--device_type", "cpu"]
    run("-m", "dev.bench.train", *sizes, *more, "--out", str(out))
    figures: dict[str, Any] = json.loads(out.read_text())["figures"][0]
    return figures


def engine(folder: Path, tiny: bool) -> dict[str, Any]:
    """Figures of dev/bench/engine.py."""
    out, sizes = folder / "engine.json", ["--depth", "20", "--device", "cuda"]
    sizes += ["--batches", "1", "32", "256", "--repeats", "3"]
    if tiny:
        sizes = ["--depth", "1", "--batches", "1", "--repeats", "1", "--sequence-len", "128"]
    run("dev/bench/engine.py", *sizes, "--out", str(out))
    results: dict[str, Any] = json.loads(out.read_text())
    return {"by_batch": results["by_batch"], "during_prefill": results["during_long_prefill"]}


def pipeline(tiny: bool) -> dict[str, Any]:
    """Seconds of each stage on the primer world, and tokens per second of those that train."""
    depth, steps = ("1", "2") if tiny else ("4", "200")
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
        "sft": ["scripts.chat_sft", *chats, *small],
        "rl": ["scripts.chat_rl", "--num_iterations=2", "--max_new_tokens=16", *rollouts,
               *chats[1:], *small],
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, (module, *options) in stages.items():
        seconds, _ = run("-m", module, *options)
        found[f"{name}, s"] = seconds
        checkpoints = {"sft": "chatsft", "rl": "chatrl"}.get(name, name) + "_checkpoints"
        logs = sorted(Path(os.environ["NANOCHAT_BASE_DIR"], checkpoints).glob("*/metrics.jsonl"))
        lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
        rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
        if rates:
            found[f"{name}, tok/s"] = sorted(rates)[len(rates) // 2]
    return found


def table(results: dict[str, Any]) -> list[tuple[str, float | None, str]]:
    """What was measured beside the targets for one H200."""
    by_rows = {one["rows"]: one for one in results.get("engine", {}).get("by_batch", [])}
    gap = results.get("engine", {}).get("during_prefill", {}).get("median", {}).get("with")
    depth_12, depth_20, sft = (results.get(n, {}) for n in ("depth 12", "depth 20", "finetuning"))
    share = sft["tok/s"] / depth_12["tok/s"] if sft.get("tok/s") and depth_12.get("tok/s") else None
    first = "start to first micro-batch, s"
    return [
        ("depth 12, tok/s", depth_12.get("tok/s"), "590,000 before"),
        ("depth 12, first micro-batch, s", depth_12.get(first), "at most 15"),
        ("depth 12 at 32 rows, peak MB", depth_12.get("peak memory, MB"), "33,600 before"),
        ("depth 20, tok/s", depth_20.get("tok/s"), "182,700 before"),
        ("depth 20, first micro-batch, s", depth_20.get(first), "at most 15"),
        ("depth 20 at 16 rows, peak MB", depth_20.get("peak memory, MB"), "46,400 before"),
        ("finetuning / pretraining, tokens in use", share, "at least 0.80"),
        *(
            (f"decode {rows} rows, ms a step", by_rows.get(rows, {}).get("milliseconds_per_step"),
             f"at most {most}")
            for rows, most in ((1, 0.6), (32, 0.9), (256, 2.0))
        ),
        ("first tokens of 256 prompts, ms",
         by_rows.get(256, {}).get("first_token_milliseconds"), "at most 60"),
        ("between tokens beside a prompt of 960, ms", gap, "at most 15"),
    ]  # fmt: skip


def main() -> None:
    """Run all steps, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="on a CPU, at sizes for a test")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tiny, base = options.tiny, Path(os.environ["NANOCHAT_BASE_DIR"])
    base.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu" if tiny else "cuda")
    # By name: to import all tests would need their packages.
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_gpu_*.py"))]
    tests = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    if tiny:
        tests = ["-m", "pytest", "--version"]  # the machine of the test has no GPU
    steps = {
        "environment": lambda: environment(device),
        "gpu tests": lambda: {"last line": run(*tests)[1].strip().splitlines()[-1]},
        "depth 12": lambda: training(base, tiny, 12, 32),
        "depth 20": lambda: training(base, tiny, 20, 16),
        "finetuning": lambda: training(base, tiny, 12, 32, "--share_in_use", "0.2"),
        "engine": lambda: engine(base, tiny),
        "pipeline": lambda: pipeline(tiny),
    }
    results: dict[str, Any] = {}
    for name, step in steps.items():
        start = time.perf_counter()
        try:
            results[name] = step()
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            results[name] = {"failed": str(error)}
        results[name]["seconds"] = round(time.perf_counter() - start, 1)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    out = options.out or ROOT / f"dev/bench/results/gpu-{date.today()}.json"
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for what, value, target in table(results):
        measured = "not measured" if value is None else f"{value:,.2f}"
        print(f"{what:<44}{measured:>14}   {target}")
    print(out)
    failed = [name for name, found in results.items() if "failed" in found]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
