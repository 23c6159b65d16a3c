"""Runs that are started twice, and finished runs whose last checkpoint is damaged."""

import random
import time
from pathlib import Path

from dev.faults.inside import STEP
from dev.faults.outcome import Outcome
from dev.faults.trial import NUM_STEPS, Trial, compare, distance
from tests import processes

POLL_SECONDS = 0.0005
SECOND_OPTIONS = ("", "--fresh", "--resume=false", "--save_every=1")


def double_starts(base: Path, references: dict[int, Trial], count: int, seed: int) -> Outcome:
    """Start a run a second time, at once or while it trains, saves or evaluates."""
    rng = random.Random(seed)
    outcome = Outcome(
        "a run that is started twice",
        "the second start is not one line that names the first, or the first ends otherwise",
    )
    too_late = 0
    for number in range(count):
        ranks = 1 + number % 2
        trial = Trial(base, f"twice-{number}")
        first = trial.start(ranks)
        step = rng.randrange(-NUM_STEPS // 3, NUM_STEPS // 2)  # below 0: both at the same time
        while first.is_alive() and trial.markers[0].get(STEP) < step:
            time.sleep(POLL_SECONDS)
        line = f"{trial.line} {rng.choice(SECOND_OPTIONS)}"
        second = processes.start(base, line, 1 + number // 2 % 2)
        runs = [first, second]
        codes = [set(run.wait()) for run in runs]
        outcome.tried += 1
        text = "".join(run.output() for run in runs)
        outcome.expect("Traceback" not in text, f"{trial.tag}: {text[-300:]}")
        if codes == [{0}, {0}]:  # the first had ended before the second looked
            too_late += 1
            continue
        outcome.expect({0} in codes and {2} in codes, f"{trial.tag}: exit codes {codes}")
        winner, loser = runs if codes[0] == {0} else runs[::-1]
        named = f"{trial.checkpoints} is in use by process {winner.ranks[0].pid} on "
        outcome.expect(named in loser.output(), f"{trial.tag}: {loser.output()[-300:]}")
        if winner is first:
            compare(outcome, trial, references[ranks], 0.0)
        else:  # without instruments
            distances = [distance(trial, reference) for reference in references.values()]
            outcome.expect(0.0 in distances, f"{trial.tag}: other weights, by {distances}")
    outcome.facts |= {"started after the end": too_late}
    return outcome


def damaged_ends(base: Path, reference: Trial, count: int, seed: int) -> Outcome:
    """Damage the last checkpoint of a finished run and run the same command again."""
    rng = random.Random(seed)
    outcome = Outcome(
        "a finished run whose last checkpoint is damaged",
        "the same command does not resume from the one before and end with the same weights",
    )
    trial = Trial(base, "damaged-end", "--keep_checkpoints=3")
    outcome.expect(trial.finish() == [0], "the run did not finish")
    for number in range(count):
        name = ("model_{:06d}.pt", "meta_{:06d}.json")[number % 2].format(NUM_STEPS)
        path = trial.checkpoints / name
        data = bytearray(path.read_bytes())
        place = rng.randrange(len(data))
        how = rng.choice(["flip", "cut", "remove"])
        if how == "remove":
            path.unlink()
        else:
            data[place] ^= 1 << rng.randrange(8)
            path.write_bytes(data if how == "flip" else data[:place])
        if number % 4 == 2 and how == "flip":  # the last two
            (trial.checkpoints / f"model_{NUM_STEPS - 4:06d}.pt").write_bytes(b"")
        running = processes.start(base, trial.line)
        codes, output = running.wait(), running.output()
        outcome.tried += 1
        outcome.expect(codes == [0], f"{how} of {name}: {output[-300:]}")
        outcome.expect("resuming from step" in output, f"{how} of {name} is not noticed")
        outcome.expect(how == "remove" or name in output, f"{how}: no message names {name}")
        outcome.expect(distance(trial, reference) == 0.0, f"{how} of {name}: other weights")
    again = processes.run(base, trial.line)
    outcome.expect("is finished" in again, "the repaired run is not finished")
    return outcome
