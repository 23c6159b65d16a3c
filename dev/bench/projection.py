"""Project the hours to GPT-2's CORE (0.2565) on 8 x H100, as Markdown.

    python -m dev.bench.projection

Measured: tokens/s of this code and of public nanochat on one H200. Public: the models, horizons and
hours that reached the score, and the compute-optimal horizon with value embeddings. Assumed: equal
models reach equal scores after as many tokens; an H100 has the MFU of an H200; so have eight, or
`EXPECTED_MFU` if their communication takes a sixth of the time. Not used: fits of the small models
that dev/miniseries.sh trains on a CPU, with a millionth of the FLOPs.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.metrics import peak_flops
from nanochat.training.run_summary import EXPECTED_MFU

GPUS = 8
MEASURED_MFU = 0.598  # one H200, depth 20, bfloat16, compiled, 2026-11-27
TIMES_PUBLIC = 182_700 / 160_900  # tokens/s there, of this code and of public nanochat
PLAIN_HOURS = 3.04  # public: the plain recipe at depth 24, January 2026


@dataclass(frozen=True)
class Run:
    """A pretraining run that reaches the score, by public results."""

    name: str
    depth: int
    vocab_size: int
    ratio: float  # tokens per parameter that multiplies
    public_hours: float | None = None


RUNS = (
    Run("compute-optimal with value embeddings (--recipe=modern)", 24, 32_768, 10.5),
    Run("the public model of July 2026, with parts not in this code", 24, 32_768, 8.0, 99 / 60),
    Run("its best variant, August 2026", 22, 49_152, 9.4, 81.8 / 60),
)


def size(run: Run) -> tuple[int, int, float]:
    """Parameters that multiply, training tokens, and FLOPs."""
    config = GPTConfig.from_depth(run.depth, vocab_size=run.vocab_size, sequence_len=2048)
    with torch.device("meta"):
        model = GPT(config)
    counts = model.num_parameters()
    parameters = counts["matrices"] + counts["unembedding"]
    tokens = round(run.ratio * parameters)
    return parameters, tokens, tokens * model.flops_per_token()


def hours(flops: float, mfu: float) -> float:
    """Of pretraining on the eight GPUs, without evaluation and start."""
    peak = peak_flops("H100", torch.bfloat16)
    assert peak is not None
    return flops / (mfu * peak * GPUS) / 3600


def table(mfu: float) -> str:
    """A row for each run: its size, and the hours at this MFU and at the expected one."""
    lines = [
        "| run | depth | parameters | tokens | FLOPs |"
        f" hours at {mfu:.1%} MFU | at {EXPECTED_MFU:.0%} | public |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        f"| the plain recipe of January 2026, by its time and {TIMES_PUBLIC:.2f} times its tokens/s"
        f" | 24 | | | | {PLAIN_HOURS / TIMES_PUBLIC:.1f} | | {PLAIN_HOURS:.2f} |",
    ]
    for run in RUNS:
        parameters, tokens, flops = size(run)
        public = "" if run.public_hours is None else f"{run.public_hours:.2f}"
        given, expected = hours(flops, mfu), hours(flops, EXPECTED_MFU)
        lines.append(
            f"| {run.name} | {run.depth} | {parameters / 1e6:.0f}M | {tokens / 1e9:.1f}B |"
            f" {flops:.1e} | {given:.1f} | {expected:.1f} | {public} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mfu", type=float, default=MEASURED_MFU, help="measured on one GPU")
    print(table(parser.parse_args(argv).mfu))


if __name__ == "__main__":
    main()
