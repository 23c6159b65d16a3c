"""Compare settings of base_train at equal seconds: validation bits per byte over time.

    python -m nanochat.dataset --source=PATH && python -m scripts.tok_train --vocab_size=8192
    python -m dev.bench.race --seconds=600 --clock=cpu --seeds=3 \\
        --setting="classic: --recipe=classic" --setting="modern: --recipe=modern" \\
        --common="--depth=2 --head_dim=64 --max_seq_len=256"

Each run is one of scripts.base_train in a process of its own, with the text and the tokenizer of
NANOCHAT_BASE_DIR. A short run of each setting times its steps, and so finds how many of them fill
the seconds; start-up and validation do not count. The settings alternate, seed by seed, and the
first one is raced twice, with other seeds: the difference between the two is the noise floor.
The cpu clock, processor seconds of all threads, is repeatable on a machine that others use as well.
The same command resumes a race that was killed: what base_train has finished returns at once.
"""

import argparse
import hashlib
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanochat import paths  # nothing that imports torch, which takes memory from the runs
from nanochat.errors import UserError

ROOT = Path(__file__).parents[2]
CALIBRATION_STEPS = 20  # of which the full softmax after a sampled one has its share of 15 %
WARMUP_STEPS = 3  # that are not timed: allocations, kernel selection
BITS = "bits per byte, text"  # in metrics.jsonl
AGAIN = " again"  # ends the name of the first setting's second entry

Line = dict[str, float]  # of metrics.jsonl
Curve = list[tuple[float, float]]  # seconds, bits per byte


@dataclass(frozen=True)
class Setting:
    """A name and options of base_train, all of them, the common ones first."""

    name: str
    options: tuple[str, ...]

    def tag(self, *more: object) -> str:
        """A folder of checkpoints; other options get another one."""
        digest = hashlib.sha256(json.dumps([self.options, *map(str, more)]).encode()).hexdigest()
        return f"race-{digest[:12]}"


def parse_setting(text: str, common: str = "") -> Setting:
    """A setting from "name: --option=value ...". Raises UserError without a name or a colon."""
    name, colon, options = text.partition(":")
    if not colon or not name.strip():
        raise UserError(f'--setting="{text}" must be "NAME: --option=value ..."')
    return Setting(name.strip(), (*shlex.split(common), *shlex.split(options)))


def train(arguments: Sequence[str]) -> None:
    """One run of base_train to its end, in its own process."""
    command = [sys.executable, "-m", "scripts.base_train", *arguments]
    subprocess.run(command, cwd=ROOT, check=True)


def finished_run(arguments: Sequence[str], tag: str) -> list[Line]:
    """The metrics of a run, trained first, resumed, or finished before."""
    train([*arguments, f"--model_tag={tag}", "--keep_checkpoints=1"])
    text = (paths.checkpoints_dir("base") / tag / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def step_seconds(lines: Sequence[Line], clock: str) -> list[float]:
    """The seconds of each step, validation excluded."""
    steps = [line for line in lines if "step_cpu_seconds" in line]
    if clock == "cpu":
        return [line["step_cpu_seconds"] for line in steps]
    totals = [line["train_seconds"] for line in steps]
    return [total - before for total, before in zip(totals, [0.0, *totals], strict=False)]


def common_curves(runs: Sequence[Sequence[Line]], clock: str) -> list[Curve]:
    """A curve for each run, of the steps after which all of them were evaluated.

    A run that was stopped in an evaluation resumes without it.
    """
    found = [{int(line["step"]): line[BITS] for line in lines if BITS in line} for lines in runs]
    steps = sorted(set(found[0]).intersection(*found))
    seconds = [np.cumsum(step_seconds(lines, clock)) for lines in runs]
    return [
        [(float(after[step - 1]), bits[step]) for step in steps]
        for after, bits in zip(seconds, found, strict=True)
    ]


def mean_step(seconds: Sequence[float]) -> float:
    """The mean without warm-up and single slow steps; phases of other cost have their share."""
    steady = [seconds[WARMUP_STEPS]] * WARMUP_STEPS + [*seconds[WARMUP_STEPS:]]
    windows = (steady[max(0, i - 1) : i + 2] for i in range(len(steady)))
    return statistics.mean(map(statistics.median, windows))


def num_steps(setting: Setting, seconds: float, clock: str) -> int:
    """The steps that fill the seconds, by those of a short run.

    The run is found again by a race that resumes, which therefore gets the same number.
    """
    short = [*setting.options, f"--num_iterations={CALIBRATION_STEPS}", "--eval_every=0"]
    lines = finished_run([*short, "--eval_tokens=1"], setting.tag("calibration"))
    return max(1, round(seconds / mean_step(step_seconds(lines, clock))))


def run_race(settings: Sequence[Setting], options: argparse.Namespace) -> dict[str, list[Curve]]:
    """The curves of all seeds of each setting, by its name; the first one has two entries."""
    steps = {s.name: num_steps(s, options.seconds, options.clock) for s in settings}
    entries = [(s.name, s, 0) for s in settings]
    if not options.no_again:
        entries.append((settings[0].name + AGAIN, settings[0], options.seeds))
    runs: dict[str, list[list[Line]]] = {name: [] for name, _, _ in entries}
    for seed in range(options.seeds):
        for name, setting, first_seed in entries:
            count = steps[setting.name]
            arguments = [
                *setting.options, f"--num_iterations={count}", f"--seed={first_seed + seed}",
                f"--eval_every={-(-count // options.points)}",
                f"--eval_tokens={options.eval_tokens}",
            ]  # fmt: skip
            tag = setting.tag(options.seconds, first_seed + seed)
            runs[name].append(finished_run(arguments, tag))
    return {name: common_curves(of_seeds, options.clock) for name, of_seeds in runs.items()}


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds, point by point: equal settings are evaluated after equal steps."""
    return [
        (statistics.mean(s for s, _ in points), statistics.mean(b for _, b in points))
        for points in zip(*curves, strict=True)
    ]


def seconds_to(curve: Curve, bits: float) -> float | None:
    """When a curve first falls to `bits`, linear between its points; None: never."""
    before: tuple[float, float] | None = None
    for seconds, value in curve:
        if value <= bits:
            if before is None:
                return seconds
            share = (before[1] - bits) / (before[1] - value)
            return before[0] + share * (seconds - before[0])
        before = seconds, value
    return None


def summary(curves: dict[str, list[Curve]]) -> list[dict[str, object]]:
    """One row per entry; differences and shares of time are relative to the first one."""
    rows: list[dict[str, object]] = []
    baseline = mean_curve(next(iter(curves.values())))[-1]
    for name, of_seeds in curves.items():
        final = [one[-1][1] for one in of_seeds]
        reached = seconds_to(mean_curve(of_seeds), baseline[1])
        rows.append({
            "setting": name,
            "seconds": round(statistics.mean(one[-1][0] for one in of_seeds), 1),
            "bits per byte": round(statistics.mean(final), 4),
            "deviation over seeds": round(statistics.stdev(final), 4) if len(final) > 1 else None,
            "difference": round(statistics.mean(final) - baseline[1], 4),
            "share of the time": None if reached is None else round(reached / baseline[0], 3),
        })  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, object]]) -> str:
    """The rows as a table in Markdown."""
    cells = [list(rows[0]), ["--"] * len(rows[0])]
    cells += [["-" if value is None else str(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def plot(curves: dict[str, list[Curve]], path: Path, clock: str) -> None:
    """A PNG: the mean of each setting over seconds, with the range of its seeds.

    Dotted is the end of the first one, and the share of its time at which others get there.
    """
    from matplotlib.figure import Figure  # takes half a second, and a killed race has no plot

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, of_seeds in curves.items():
        seconds, bits = zip(*mean_curve(of_seeds), strict=True)
        ranges = [[one[i][1] for one in of_seeds] for i in range(len(seconds))]
        label, style = f"{name}: {bits[-1]:.3f}", "--" if AGAIN in name else "-"
        (line,) = axes.plot(seconds, bits, label=label, linestyle=style, marker=".")
        axes.fill_between(
            seconds, list(map(min, ranges)), list(map(max, ranges)), alpha=0.2,
            color=line.get_color(), linewidth=0,
        )  # fmt: skip
    (end, level), *_ = (mean_curve(of_seeds)[-1] for of_seeds in curves.values())
    axes.axhline(level, color="gray", linestyle=":")
    for name, of_seeds in list(curves.items())[1:]:
        reached = None if AGAIN in name else seconds_to(mean_curve(of_seeds), level)
        if reached is not None:
            axes.plot(reached, level, "o", color="gray")
            text = f"{name}: {reached / end:.0%} of the time"
            axes.annotate(
                text, (reached, level), (-8, -8), textcoords="offset points", ha="right", va="top"
            )
    axes.set_xlabel(f"{'processor' if clock == 'cpu' else 'wall-clock'} seconds of training")
    axes.set_ylabel("validation bits per byte")
    axes.grid(alpha=0.3)
    axes.legend(title=f"at the end, seeds: {len(next(iter(curves.values())))}")
    figure.savefig(path, dpi=120)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--setting", action="append", required=True, help='"NAME: --option=value"')
    parser.add_argument("--common", default="", help="options of all settings, in one string")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, for each run")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--points", type=int, default=8, help="evaluations of each run")
    parser.add_argument("--eval_tokens", type=int, default=65_536)
    parser.add_argument("--no_again", action="store_true", help="no noise floor: one run less")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the plot lies beside it")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, print the table, and write the JSON and the plot."""
    options = parse_options(argv)
    settings = [parse_setting(text, options.common) for text in options.setting]
    curves = run_race(settings, options)
    rows = summary(curves)
    found = {
        "options": {name: value for name, value in vars(options).items() if name != "out"},
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "summary": rows,
        "curves": curves,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plot(curves, options.out.with_suffix(".png"), options.clock)
    print(table(rows))
    if not options.no_again:
        print(f"noise floor: {abs(float(str(rows[-1]['difference']))):.4f} bits per byte")


if __name__ == "__main__":
    try:
        main()
    except (UserError, subprocess.CalledProcessError) as error:  # base_train has said why it failed
        sys.exit(f"error: {error}")
