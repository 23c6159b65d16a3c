"""Faults of runs: killed, told to stop, poisoned; then compared with a run that had none."""

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from dev.faults import inside
from dev.faults.inside import SAVED, SAVING, STEP, Marker
from dev.faults.outcome import Outcome
from dev.faults.trial import NUM_EPOCHS, NUM_STEPS, ROWS, Trial, compare, distance
from nanochat import checkpoint_manager as checkpoints
from nanochat.data.shards import Documents
from nanochat.tokenizer import RustBPETokenizer
from tests import processes
from tests.processes import Running

POLL_SECONDS = 0.0005
PHASES = ("save", "evaluation", "step")


# ---- kills


def kill_somewhere(
    trial: Trial, running: Running, phase: str, numbers: random.Random
) -> str | None:
    """Kill one rank with signal 9 when it is in a phase, at a random moment of it.

    Returns the phase it was in, as its own mark says; None when the run ended before.
    """
    rank = numbers.randrange(len(running.ranks))
    marker, process = trial.markers[rank], running.ranks[rank]
    visits = numbers.randrange(3)
    was_in = False
    while process.is_alive():
        is_in = marker.get(STEP) > 0 and marker.phase == phase
        if was_in and not is_in:
            visits -= 1
        was_in = is_in
        if is_in and visits <= 0:
            time.sleep(numbers.random() * 0.01)
            break
        time.sleep(POLL_SECONDS)
    if not process.is_alive():
        return None
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return marker.phase


def killed_runs(
    base: Path, reference: Trial, ranks: Sequence[int], kills: int, seed: int,
    tolerance: float = 0.0, kills_a_run: int = 10,
) -> tuple[Outcome, list[Trial]]:  # fmt: skip
    """Runs that are killed again and again, restarted each time on the next number of ranks."""
    numbers = random.Random(seed)
    way = " -> ".join(map(str, ranks))
    outcome = Outcome(
        f"kill -9 of a run, restarted, ranks {way}",
        "other weights, losses or rows than those of the run that nothing happened to",
        facts={"tolerance": tolerance, "farthest": 0.0},
    )
    at: Counter[str] = Counter()
    trials: list[Trial] = []
    while outcome.tried < kills and len(trials) <= kills:
        trial = Trial(base, f"killed-{way.replace(' -> ', '-')}-{len(trials)}")
        trials.append(trial)
        killed = starts = 0
        while killed < min(kills_a_run, kills - outcome.tried):
            running = trial.start(ranks[starts % len(ranks)])
            starts += 1
            phase = PHASES[numbers.randrange(3)]
            died_in = kill_somewhere(trial, running, phase, numbers)
            for process in running.ranks:  # the others find out by themselves
                process.join(30)
            running.send(signal.SIGKILL)
            if died_in is None:
                break
            at[died_in] += 1
            killed += 1
        outcome.tried += killed
        codes = trial.finish(ranks[starts % len(ranks)])
        outcome.expect(set(codes) == {0}, f"{trial.tag} ended with {codes}")
        compare(outcome, trial, reference, tolerance)
    outcome.facts.update({f"killed in {phase}": at[phase] for phase in PHASES}, runs=len(trials))
    return outcome, trials


def killed_saves(folder: Path, kills: int, seed: int) -> Outcome:
    """A process that does nothing but save is killed."""
    numbers = random.Random(seed)
    outcome = Outcome(
        "kill -9 of a process that saves", "no checkpoint, a mixed one, one older than the last"
    )
    folder.mkdir()
    marker = Marker(folder / "marker-0")
    in_save = leftovers = 0
    while outcome.tried < kills:
        marker.clear()
        process = processes.context().Process(target=inside.save_for_ever, args=(folder,))
        process.start()
        begun = numbers.randrange(1, 4)
        first = None
        while process.is_alive() and not (first is not None and marker.get(SAVED) >= first + begun):
            if first is None and marker.get(SAVING):
                first = marker.get(SAVED)
            time.sleep(POLL_SECONDS)
        time.sleep(numbers.random() * 0.03)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        outcome.tried += 1
        in_save += marker.get(SAVING)
        leftovers += any((folder / "checkpoints").glob(".*.part"))
        saved = marker.get(SAVED)
        found = checkpoints.newest_complete(folder / "checkpoints")
        outcome.expect(found is not None and found.step >= saved, f"less than step {saved} is left")
        if found is not None:
            tensors = list(found.load_model_state(torch.device("cpu")).values())
            [[moments]] = found.load_optimizer_states()
            tensors.append(moments["moment"])
            is_whole = all(bool((tensor == found.step).all()) for tensor in tensors)
            outcome.expect(is_whole, f"step {found.step} is a mixture")
    outcome.facts |= {"killed in a save": in_save, "of which left half a file": leftovers}
    return outcome


# ---- signals


def signals(base: Path, reference: Trial, count: int, seed: int) -> Outcome:
    """A run that is told to stop again and again, and goes on each time."""
    numbers = random.Random(seed)
    outcome = Outcome(
        "SIGTERM, SIGINT, SIGUSR1 while training",
        "not saved, more than a step later, another exit code, other weights in the end",
    )
    seconds: list[float] = []
    number = 0
    while outcome.tried < count:
        trial = Trial(base, f"told-{number}")
        number += 1
        for _ in range(min(10, count - outcome.tried)):
            running = trial.start()
            marker, step = trial.markers[0], numbers.randrange(1, 4)
            first = 0
            while running.is_alive() and not (first and marker.get(STEP) >= first + step):
                first = first or marker.get(STEP)
                time.sleep(POLL_SECONDS)
            time.sleep(numbers.random() * 0.01)
            if not running.is_alive():
                break
            told, at, began = numbers.choice(STOPS), marker.get(STEP), time.monotonic()
            running.send(told)
            codes = running.wait()
            if codes == [0]:
                break
            seconds.append(time.monotonic() - began)
            outcome.tried += 1
            found = checkpoints.newest_complete(trial.checkpoints)
            outcome.expect(codes == [128 + told], f"{told.name}: exit code {codes}")
            # The step that the mark names may have been the one before, or may have begun already.
            is_saved = found is not None and at - 1 <= found.step <= at + 1
            outcome.expect(is_saved, f"{told.name} in step {at}: {found and found.step} is saved")
        outcome.expect(trial.finish() == [0], f"{trial.tag} did not finish")
        compare(outcome, trial, reference, 0.0)
    outcome.facts["slowest, s"] = round(max(seconds, default=0.0), 2)
    return outcome


STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


# ---- values that are not finite


def poisoned_runs(base: Path, count: int, seed: int) -> Outcome:
    """The loss or a gradient of a random step is not finite, again each time it comes."""
    numbers = random.Random(seed)
    outcome = Outcome(
        "a loss or gradient that is not finite",
        "weights moved, such a checkpoint written, or skipping is not leaving the step out",
    )
    for number in range(count):
        ranks, what = 1 + number % 2, ("loss", "gradient")[number // 2 % 2]
        step = numbers.randrange(2, NUM_STEPS + 1)
        stopped = Trial(base, f"poisoned-{number}")
        running = stopped.start(ranks, (step, what))
        codes = running.wait()
        outcome.tried += 1
        is_said = f"the {what} of step {step} is not finite" in running.output()
        outcome.expect(set(codes) == {2} and is_said, f"{what} of step {step}: {codes}")
        found = checkpoints.newest_complete(stopped.checkpoints)
        is_good = (found.step if found else 0) < step
        outcome.expect(is_good, f"a checkpoint behind the {what} of step {step}")
        skipped = [Trial(base, f"skip-{number}-{n}", "--on_nonfinite=skip") for n in range(2)]
        for n, trial in enumerate(skipped):
            if n:  # and killed somewhere on its way
                running = trial.start(ranks, (step, what))
                kill_somewhere(trial, running, "save", numbers)
                running.send(signal.SIGKILL)
                for process in running.ranks:
                    process.join()
            codes = trial.finish(ranks, (step, what))
            outcome.expect(set(codes) == {0}, f"skipping the {what} of step {step}: {codes}")
        without = Trial(base, f"without-{number}")
        without.finish(ranks, (step, "skip"))
        for trial in skipped:
            is_same = distance(trial, without) == 0.0
            outcome.expect(is_same, f"skipping the {what} of step {step} is not leaving it out")
    return outcome


# ---- a full disk


def full_disk(base: Path, reference: Trial, count: int, seed: int) -> Outcome:
    """The disk is full for some steps of the run. Needs the right to mount a small one."""
    numbers = random.Random(seed)
    outcome = Outcome("a disk that is full for some steps", "the run ends, or its last checkpoint")
    failed = 0
    for number in range(count):
        trial = Trial(base, f"full-{number}")
        trial.checkpoints.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(trial.checkpoints)]
        if subprocess.run(mount, capture_output=True).returncode:
            outcome.facts["not tried"] = "no right to mount a disk"
            return outcome
        try:
            running = trial.start()
            first = numbers.randrange(3, NUM_STEPS // 2)
            _wait_for(trial, running, first)
            _fill(trial.checkpoints / "filler")
            _wait_for(trial, running, first + numbers.randrange(5, 12))
            left = checkpoints.newest_complete(trial.checkpoints)
            outcome.expect(left is not None or first < 6, "no checkpoint left on the full disk")
            (trial.checkpoints / "filler").unlink()
            codes = running.wait()
            outcome.tried += 1
            failed += running.output().count("was not saved")
            outcome.expect(codes == [0], f"the run ended with {codes}: {running.output()[-200:]}")
            outcome.expect(distance(trial, reference) == 0.0, "other weights")
        finally:
            subprocess.run(["umount", "-l", str(trial.checkpoints)], check=True)
    outcome.facts["saves that failed"] = failed
    return outcome


def _wait_for(trial: Trial, running: Running, step: int) -> None:
    while running.is_alive() and trial.markers[0].get(STEP) < step:
        time.sleep(POLL_SECONDS)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096) == 4096:
                pass
        except OSError:
            pass


# ---- documents


def documents_seen(base: Path, trials: Sequence[Trial]) -> Outcome:
    """How often each document of the corpus is in what was trained on, epoch by epoch."""
    outcome = Outcome(
        f"{NUM_EPOCHS} epochs of a small corpus, on 1 and 2 ranks, straight and killed",
        "a document that is not there exactly once in an epoch",
    )
    tokenizer = RustBPETokenizer.from_directory(base / "tokenizer")
    [shard] = (base / "data").glob("*/train_*.parquet")
    documents = Documents([shard])
    numbers = [int(documents[i].split("|")[0][1:]) for i in range(len(documents))]
    for trial in trials:
        seen: Counter[tuple[int, int]] = Counter()
        rows = trial.rows()
        for lane in range(ROWS):
            stream = [t for step in range(1, NUM_STEPS + 1) for t in rows[step, lane][-1][1:]]
            tokens = [t for t in stream if t != tokenizer.get_bos_token_id()]
            found = re.findall(r"<(\d+)\| [a-z ]+ \|\1>", tokenizer.decode(tokens))
            for place, number in enumerate(found):
                seen[(lane + place * ROWS) // len(documents), int(number)] += 1
        outcome.tried += NUM_EPOCHS * len(documents)
        for epoch in range(NUM_EPOCHS):
            for number in numbers:
                times = seen[epoch, number]
                outcome.expect(times == 1, f"{trial.tag}: {number} {times} times in epoch {epoch}")
    outcome.facts["runs"] = len(trials)
    return outcome
