"""Fit loss curves to runs of several depths and horizons, and choose the tokens per parameter.

    bash dev/miniseries.sh      trains the runs, then calls this

Fitted is L(N, D) = E + A / N^alpha + B / D^beta in bits per byte, approach 3 of Hoffmann et al.
2022, arXiv 2203.15556. N counts the parameters that multiply, the matrices and the unembedding:
tables are looked up. D is the number of training tokens; FLOPs are 6 N D and those of attention.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from dev.bench.race import BITS
from nanochat import checkpoint_manager
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig

EXPONENTS = np.linspace(0.05, 1.2, 116)  # that are tried for alpha and beta
MIN_POINTS = 6  # for five unknowns
SIZES = np.geomspace(1e3, 1e13, 4001)  # of models, for the best one


@dataclass(frozen=True)
class Point:
    """A finished run."""

    tag: str
    depth: int
    parameters: int  # that multiply
    all_parameters: int
    tokens: int
    flops: float
    bits: float  # per byte of validation text


@dataclass(frozen=True)
class Fit:
    """L(N, D) = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    deviation: float  # root mean square of the residuals

    def bits(self, parameters: float, tokens: float) -> float:
        return float(self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta)

    def best(self, flops: float) -> tuple[float, float]:
        """The parameters and tokens of the lowest loss for so many FLOPs, 6 N D."""
        tokens = flops / (6 * SIZES)
        losses = self.E + self.A / SIZES**self.alpha + self.B / tokens**self.beta
        index = int(losses.argmin())
        return float(SIZES[index]), float(tokens[index])


def read_point(tag: str) -> Point:
    """A run of base_train. Raises UserError unless it is finished."""
    meta = checkpoint_manager.read_meta("base", tag)
    if not meta["finished"]:
        raise UserError(f"{tag} is not finished; run dev/miniseries.sh again")
    with torch.device("meta"):
        model = GPT(GPTConfig.from_dict(meta["model"]))
    path = checkpoint_manager.run_directory("base", tag) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    counts = model.num_parameters()
    return Point(
        tag=tag,
        depth=model.config.n_layer,
        parameters=counts["matrices"] + counts["unembedding"],
        all_parameters=counts["total"],
        tokens=meta["tokens"],
        flops=meta["tokens"] * model.flops_per_token(),
        bits=[line[BITS] for line in lines if BITS in line][-1],
    )


def fit(points: Sequence[Point]) -> Fit:
    """The least squares over all points. Raises UserError if they determine no curve."""
    if len(points) < MIN_POINTS or len({point.parameters for point in points}) < 3:
        raise UserError(
            f"{len(points)} runs determine no curve; use three depths or more, with"
            f" {MIN_POINTS} runs in all"
        )
    sizes, tokens, bits = np.array([(p.parameters, p.tokens, p.bits) for p in points]).T
    found: Fit | None = None
    for alpha in EXPONENTS:
        for beta in EXPONENTS:  # for given exponents the rest is linear
            columns = np.stack([np.ones_like(bits), sizes**-alpha, tokens**-beta], axis=1)
            scale = columns.max(axis=0)  # N^-1 is far below 1
            solution = np.linalg.lstsq(columns / scale, bits, rcond=None)[0] / scale
            deviation = float(np.sqrt(np.mean((columns @ solution - bits) ** 2)))
            if solution.min() >= 0 and (found is None or deviation < found.deviation):
                E, A, B = map(float, solution)
                found = Fit(E, A, float(alpha), B, float(beta), deviation)
    if found is None:
        raise UserError("no curve falls with both size and tokens; use horizons further apart")
    return found


def table(points: Sequence[Point], curve: Fit) -> str:
    """The runs beside their fitted loss, in Markdown."""
    lines = [
        "| depth | parameters | tokens | per parameter | FLOPs | bits per byte | fitted |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {p.depth} | {p.parameters:,} | {p.tokens:,} | {p.tokens / p.parameters:.2f} |"
        f" {p.flops:.3g} | {p.bits:.4f} | {curve.bits(p.parameters, p.tokens):.4f} |"
        for p in points
    ]
    return "\n".join(lines)


def plot(points: Sequence[Point], curve: Fit, path: Path) -> None:
    """A PNG: bits per byte over FLOPs, parameters and tokens; at each point the fitted curve."""
    from matplotlib.figure import Figure  # takes half a second

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for depth in sorted({point.depth for point in points}):
        runs = sorted((p for p in points if p.depth == depth), key=lambda p: p.tokens)
        bits = [run.bits for run in runs]
        tokens = np.geomspace(runs[0].tokens, runs[-1].tokens, 50)
        losses = [curve.bits(runs[0].parameters, count) for count in tokens]
        per_token = runs[0].flops / runs[0].tokens
        panels[0].plot([run.flops for run in runs], bits, "o", label=f"depth {depth}")
        color = panels[0].lines[-1].get_color()
        panels[0].plot(per_token * tokens, losses, color=color)
        panels[1].plot([run.parameters for run in runs], bits, "o", color=color)
        panels[2].plot([run.tokens for run in runs], bits, "o", color=color)
        panels[2].plot(tokens, losses, color=color)
    budgets = np.geomspace(min(p.flops for p in points), max(p.flops for p in points), 50)
    best = [curve.best(flops) for flops in budgets]
    panels[0].plot(budgets, [curve.bits(*one) for one in best], "k--", label="best size")
    labels = ("FLOPs", "parameters that multiply", "tokens")
    for panel, label in zip(panels, labels, strict=True):
        panel.set(xscale="log", xlabel=label)
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("validation bits per byte")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, print the table and the chosen ratio, write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tags", nargs="+", help="folders of the runs, under base_checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the plot lies beside it")
    options = parser.parse_args(argv)
    points = [read_point(tag) for tag in options.tags]
    curve = fit(points)
    flops = math.exp(float(np.mean([math.log(point.flops) for point in points])))
    parameters, tokens = curve.best(flops)
    sizes = [point.parameters for point in points]
    chosen = {
        "flops": flops, "parameters": parameters, "tokens per parameter": tokens / parameters,
        "is extrapolated": not min(sizes) <= parameters <= max(sizes),
    }  # fmt: skip
    found = {"runs": [asdict(p) for p in points], "fit": asdict(curve), "chosen": chosen}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plot(points, curve, options.out.with_suffix(".png"))
    print(table(points, curve))
    print(
        f"bits per byte = {curve.E:.3f} + {curve.A:.3g} / N^{curve.alpha:.2f}"
        f" + {curve.B:.3g} / D^{curve.beta:.2f}, deviation {curve.deviation:.4f}"
    )
    where = ", outside the sizes trained" if chosen["is extrapolated"] else ""
    print(
        f"at {flops:.3g} FLOPs best: {parameters:.3g} parameters that multiply{where},"
        f" and {tokens / parameters:.2f} tokens for each"
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
