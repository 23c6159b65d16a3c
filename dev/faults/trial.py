"""A run into which faults are injected, and its comparison with an uninterrupted one."""

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


def make_data(base: Path) -> None:
    """Create a small corpus of documents with their number at both ends, and a tokenizer."""
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
    """One run, by its tag, with what its processes have recorded."""

    def __init__(self, base: Path, tag: str, options: str = "", num_steps: int = NUM_STEPS) -> None:
        """options: override the usual ones; they have to agree with `num_steps`."""
        self.base, self.tag, self.num_steps = base, tag, num_steps
        self.line = f"{TRAIN}{tag} {options}"
        self.checkpoints = base / "base_checkpoints" / tag
        self.notes = base / "notes" / tag
        self.notes.mkdir(parents=True)
        self.markers = [Marker(self.notes / f"marker-{rank}") for rank in range(2)]

    def start(self, ranks: int = 1, poison: tuple[int, str] | None = None) -> Running:
        """Start a process of the run for each rank."""
        before = functools.partial(inside.observe, self.notes, poison)
        for marker in self.markers:
            marker.clear()
        return processes.start(self.base, self.line, ranks, before)

    def finish(self, ranks: int = 1, poison: tuple[int, str] | None = None) -> list[int]:
        """Run it to its end; returns the exit codes."""
        return self.start(ranks, poison).wait()

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of its last checkpoint; empty if the run is not finished."""
        found = checkpoints.newest_complete(self.checkpoints)
        is_done = found is not None and found.step == self.num_steps
        return found.load_model_state(torch.device("cpu")) if found and is_done else {}

    def losses(self) -> dict[int, float]:
        """By step, over all ranks, from the log of the run."""
        lines = (self.checkpoints / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return {row["step"]: row["loss"] for row in rows if "tokens" in row}

    def rows(self) -> dict[tuple[int, int], list[list[int]]]:
        """By (step, row of the step): every version of the row that was trained on, in order."""
        seen: dict[tuple[int, int], list[list[int]]] = {}
        for path in sorted(self.notes.glob("trace-*.jsonl")):
            for text in path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:  # truncated by a kill
                    continue
                for number, row in line["rows"].items():
                    seen.setdefault((line["step"], int(number)), []).append(row)
        return seen


def uninterrupted(base: Path, ranks: int = 1) -> Trial:
    """A run without faults."""
    trial = Trial(base, f"uninterrupted{ranks}")
    assert set(trial.finish(ranks)) == {0}
    return trial


def distance(ours: Trial, theirs: Trial) -> float:
    """Between the weights, relative to their norm; 0.0 if they are bitwise equal."""
    one, other = ours.weights(), theirs.weights()
    if not one:
        return math.inf
    if all(torch.equal(one[name], other[name]) for name in other):
        return 0.0
    flat = [torch.cat([tensor.flatten() for tensor in each.values()]) for each in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def compare(outcome: Outcome, trial: Trial, reference: Trial, tolerance: float) -> None:
    """Record every difference between a run and the uninterrupted one."""
    difference = distance(trial, reference)
    outcome.facts["largest"] = max(outcome.facts.get("largest", 0.0), difference)
    outcome.expect(difference <= tolerance, f"{trial.tag}: weights differ by {difference:.1e}")
    ours, theirs = trial.losses(), reference.losses()
    is_same = ours.keys() == theirs.keys() and all(
        abs(ours[step] - theirs[step]) <= tolerance * abs(theirs[step]) for step in theirs
    )
    outcome.expect(is_same, f"{trial.tag}: other losses")
    rows = {place: versions[-1:] for place, versions in reference.rows().items()}
    seen = trial.rows()
    is_same = seen.keys() == rows.keys() and all(
        version == rows[place][0] for place, versions in seen.items() for version in versions
    )
    outcome.expect(is_same, f"{trial.tag}: other rows")
