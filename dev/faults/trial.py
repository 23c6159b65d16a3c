"""A run that something may happen to, and how it is compared with one that nothing happened to."""

import functools
import json
import math
import random
from pathlib import Path

import torch

from dev.faults import inside
from dev.faults.inside import Marker
from dev.faults.outcome import Outcome
from nanochat import checkpoint_manager as checkpoints
from tests import processes
from tests.processes import Running

ROWS, CONTEXT, NUM_STEPS, NUM_EPOCHS = 8, 64, 40, 3
TRAIN = (
    f"scripts.base_train --depth=1 --head_dim=32 --max_seq_len={CONTEXT}"
    f" --total_batch_size={ROWS * CONTEXT} --num_iterations={NUM_STEPS} --save_every=4"
    " --eval_every=7 --eval_tokens=2048 --compile=off --device_type=cpu --model_tag="
)
NUM_DOCUMENTS = 80


def make_world(base: Path) -> None:
    """A small corpus of documents that tell their number at both ends, and a tokenizer."""
    words = random.Random(0)
    lines = [
        json.dumps({"text": f"<{n}| " + " ".join(words.choices(["sun", "moon", "a", "of"], k=30))
                    + f" |{n}>"})
        for n in range(NUM_DOCUMENTS)
    ]  # fmt: skip
    (base / "corpus").mkdir(parents=True)
    (base / "corpus" / "texts.jsonl").write_text("\n".join(lines))
    processes.run(base, f"nanochat.dataset --source={base / 'corpus'}")
    processes.run(base, "scripts.tok_train --vocab_size=300")


class Trial:
    """One run of a base directory by its tag, with what its processes have noted."""

    def __init__(self, base: Path, tag: str, options: str = "") -> None:
        self.base, self.tag = base, tag
        self.line = f"{TRAIN}{tag} {options}"
        self.checkpoints = base / "base_checkpoints" / tag
        self.notes = base / "notes" / tag
        self.notes.mkdir(parents=True)
        self.markers = [Marker(self.notes / f"marker-{rank}") for rank in range(2)]

    def start(self, ranks: int = 1, poison: tuple[int, str] | None = None) -> Running:
        """A process of the run for each rank."""
        before = functools.partial(inside.observe, self.notes, poison)
        for marker in self.markers:
            marker.clear()
        return processes.start(self.base, self.line, ranks, before)

    def finish(self, ranks: int = 1, poison: tuple[int, str] | None = None) -> list[int]:
        """Run it to its end; the exit codes."""
        return self.start(ranks, poison).wait()

    def weights(self) -> dict[str, torch.Tensor]:
        """Of its last checkpoint; nothing when the run is not done."""
        found = checkpoints.newest_complete(self.checkpoints)
        is_done = found is not None and found.step == NUM_STEPS
        return found.load_model_state(torch.device("cpu")) if found and is_done else {}

    def losses(self) -> dict[int, float]:
        """By step, over all ranks, as the run has logged them."""
        lines = (self.checkpoints / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return {row["step"]: row["loss"] for row in rows if "tokens" in row}

    def rows(self) -> dict[tuple[int, int], list[list[int]]]:
        """By (step, lane): every version of the row that was trained on, in order of time."""
        seen: dict[tuple[int, int], list[list[int]]] = {}
        for path in sorted(self.notes.glob("trace-*.jsonl")):
            for text in path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:  # cut by a kill
                    continue
                for lane, row in line["rows"].items():
                    seen.setdefault((line["step"], int(lane)), []).append(row)
        return seen


def straight(base: Path, ranks: int = 1) -> Trial:
    """A run that nothing happens to."""
    trial = Trial(base, f"straight{ranks}")
    assert set(trial.finish(ranks)) == {0}
    return trial


def distance(ours: Trial, theirs: Trial) -> float:
    """Of all weights, as a share of their norm; 0.0 when they are equal to the bit."""
    one, other = ours.weights(), theirs.weights()
    if not one:
        return math.inf
    if all(torch.equal(one[name], other[name]) for name in other):
        return 0.0
    flat = [torch.cat([tensor.flatten() for tensor in each.values()]) for each in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def compare(outcome: Outcome, trial: Trial, reference: Trial, tolerance: float) -> None:
    """Note what a run has done otherwise than the one that nothing happened to."""
    away = distance(trial, reference)
    outcome.facts["farthest"] = max(outcome.facts.get("farthest", 0.0), away)
    outcome.expect(away <= tolerance, f"{trial.tag}: other weights, {away:.1e} away")
    ours, theirs = trial.losses(), reference.losses()
    is_same = ours.keys() == theirs.keys() and all(
        abs(ours[step] - theirs[step]) <= tolerance * abs(theirs[step]) for step in theirs
    )
    outcome.expect(is_same, f"{trial.tag}: other losses")
    rows = {place: versions[-1:] for place, versions in reference.rows().items()}
    every = trial.rows()
    is_same = every.keys() == rows.keys() and all(
        version == rows[place][0] for place, versions in every.items() for version in versions
    )
    outcome.expect(is_same, f"{trial.tag}: other rows")
