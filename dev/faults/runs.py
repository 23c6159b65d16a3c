"""Faults of runs: kills, signals, non-finite values, a full disk; compared with a run without."""

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
from nanochat.data.packing import block_order
from nanochat.data.shards import Documents
from nanochat.tokenizer import RustBPETokenizer
from scripts.options import LoopOptions
from tests import processes
from tests.processes import Running

POLL_SECONDS = 0.0005
PHASES = ("save", "evaluation", "step")


# ---- kills


def kill_somewhere(trial: Trial, running: Running, phase: str, rng: random.Random) -> str | None:
    """Kill one rank with signal 9 at a random moment of a phase.

    Returns the phase it was in by its own marker; None if the run ended before.
    """
    rank = rng.randrange(len(running.ranks))
    marker, process = trial.markers[rank], running.ranks[rank]
    visits = rng.randrange(3)
    was_in = False
    while process.is_alive():
        is_in = marker.get(STEP) > 0 and marker.phase == phase
        if was_in and not is_in:
            visits -= 1
        was_in = is_in
        if is_in and visits <= 0:
            time.sleep(rng.random() * 0.01)
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
    """Kill runs repeatedly, restarting them each time on the next number of ranks."""
    rng = random.Random(seed)
    way = " -> ".join(map(str, ranks))
    outcome = Outcome(
        f"kill -9 of a run, restarted, ranks {way}",
        "other weights, losses or rows than an uninterrupted run",
        facts={"tolerance": tolerance, "largest": 0.0},
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
            phase = PHASES[rng.randrange(3)]
            died_in = kill_somewhere(trial, running, phase, rng)
            for process in running.ranks:  # the others must notice by themselves
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
    """Kill a process that only saves, so often or until a kill comes during a save."""
    rng = random.Random(seed)
    outcome = Outcome(
        "kill -9 of a process that saves",
        "no checkpoint, a mixed one, or an older one",
    )
    folder.mkdir()
    marker = Marker(folder / "marker-0")
    in_save = leftovers = 0
    while outcome.tried < kills or not in_save:
        marker.clear()
        process = processes.context().Process(target=inside.save_forever, args=(folder,))
        process.start()
        begun = rng.randrange(1, 4)
        first = None
        while process.is_alive() and not (first is not None and marker.get(SAVED) >= first + begun):
            if first is None and marker.get(SAVING):
                first = marker.get(SAVED)
            time.sleep(POLL_SECONDS)
        time.sleep(rng.random() * 0.03)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        outcome.tried += 1
        in_save += marker.get(SAVING)
        leftovers += any((folder / "checkpoints").glob(".*.part"))
        saved = marker.get(SAVED)
        found = checkpoints.newest_complete(folder / "checkpoints")
        outcome.expect(found is not None and found.step >= saved, f"step {saved} is lost")
        if found is not None:
            tensors = list(found.load_model_state(torch.device("cpu")).values())
            [[moments]] = found.load_optimizer_states()
            tensors.append(moments["moment"])
            is_consistent = all(bool((tensor == found.step).all()) for tensor in tensors)
            outcome.expect(is_consistent, f"step {found.step} mixes several steps")
    outcome.facts |= {"killed in a save": in_save, "with a partial file left": leftovers}
    return outcome


# ---- signals


def signals(base: Path, reference: Trial, count: int, seed: int) -> Outcome:
    """Signal a run to stop repeatedly; it resumes each time."""
    rng = random.Random(seed)
    outcome = Outcome(
        "SIGTERM, SIGINT, SIGUSR1 while training",
        "not saved within a step, another exit code, or other final weights",
    )
    seconds: list[float] = []
    number = 0
    while outcome.tried < count:
        trial = Trial(base, f"signaled-{number}")
        number += 1
        for _ in range(min(10, count - outcome.tried)):
            running = trial.start()
            marker, step = trial.markers[0], rng.randrange(1, 4)
            first = 0
            while running.is_alive() and not (first and marker.get(STEP) >= first + step):
                first = first or marker.get(STEP)
                time.sleep(POLL_SECONDS)
            time.sleep(rng.random() * 0.01)
            if not running.is_alive():
                break
            sent, at, began = rng.choice(STOPS), marker.get(STEP), time.monotonic()
            running.send(sent)
            codes = running.wait()
            if codes == [0]:
                break
            seconds.append(time.monotonic() - began)
            outcome.tried += 1
            found = checkpoints.newest_complete(trial.checkpoints)
            outcome.expect(codes == [128 + sent], f"{sent.name}: exit code {codes}")
            # The marker may lag by a step, and the next step may have begun already.
            is_saved = found is not None and at - 1 <= found.step <= at + 1
            outcome.expect(is_saved, f"{sent.name} in step {at}: {found and found.step} is saved")
        outcome.expect(trial.finish() == [0], f"{trial.tag} did not finish")
        compare(outcome, trial, reference, 0.0)
    outcome.facts["slowest, s"] = round(max(seconds, default=0.0), 2)
    return outcome


STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


# ---- another number of ranks


def changed_ranks(base: Path, count: int, seed: int) -> Outcome:
    """Stop runs of 60 steps at depth 2 halfway and resume them on another number of ranks."""
    rng, num_steps = random.Random(seed), 60
    outcome = Outcome(
        "a run of depth 2 and 60 steps, stopped and resumed on another number of ranks",
        "weights differ more than twice as much as those of uninterrupted runs on 1 and on 2 ranks",
    )

    def of_two_layers(tag: str) -> Trial:
        return Trial(base, tag, f"--depth=2 --num_iterations={num_steps}", num_steps)

    straight = {ranks: of_two_layers(f"two-layers-{ranks}") for ranks in (1, 2)}
    for ranks, trial in straight.items():
        outcome.expect(set(trial.finish(ranks)) == {0}, f"{ranks} ranks did not finish")
    apart, largest = distance(straight[1], straight[2]), 0.0
    for number in range(count):
        trial, ranks = of_two_layers(f"changed-{number}"), 1 + number % 2
        running = trial.start(ranks)
        _wait_for(trial, running, rng.randrange(20, 40))
        running.send(signal.SIGTERM)
        outcome.expect(set(running.wait()) == {143}, f"{trial.tag} was not stopped")
        outcome.expect(set(trial.finish(3 - ranks)) == {0}, f"{trial.tag} did not finish")
        outcome.tried += 1
        largest = max(largest, distance(trial, straight[ranks]))
        outcome.expect(largest <= 2 * apart, f"{trial.tag}: {largest:.1e} instead of {apart:.1e}")
    outcome.facts |= {"1 and 2 ranks, uninterrupted": apart, "largest": largest}
    return outcome


# ---- values that are not finite


def poisoned_runs(base: Path, count: int, seed: int) -> Outcome:
    """Make the loss or a gradient of a random step infinite or NaN, in every attempt."""
    rng = random.Random(seed)
    outcome = Outcome(
        "a loss or gradient that is not finite",
        "weights changed, a bad checkpoint, or skipping differs from a run without the step",
    )
    for number in range(count):
        ranks, what = 1 + number % 2, ("loss", "gradient")[(number + number // 2) % 2]
        step = rng.randrange(2, NUM_STEPS + 1)
        stopped = Trial(base, f"poisoned-{number}")
        running = stopped.start(ranks, (step, what))
        codes = running.wait()
        outcome.tried += 1
        is_reported = f"the {what} of step {step} is not finite" in running.output()
        outcome.expect(set(codes) == {2} and is_reported, f"{what} of step {step}: {codes}")
        found = checkpoints.newest_complete(stopped.checkpoints)
        is_good = (found.step if found else 0) < step
        outcome.expect(is_good, f"a checkpoint after the {what} of step {step}")
        skipped = [Trial(base, f"skip-{number}-{n}", "--on_nonfinite=skip") for n in range(2)]
        for n, trial in enumerate(skipped):
            if n:  # the second one is killed and restarted
                running = trial.start(ranks, (step, what))
                kill_somewhere(trial, running, "save", rng)
                running.send(signal.SIGKILL)
                for process in running.ranks:
                    process.join()
            codes = trial.finish(ranks, (step, what))
            outcome.expect(set(codes) == {0}, f"skipping the {what} of step {step}: {codes}")
        without = Trial(base, f"without-{number}")
        without.finish(ranks, (step, "skip"))
        for trial in skipped:
            is_same = distance(trial, without) == 0.0
            outcome.expect(is_same, f"skipping the {what} of step {step} has an effect")
    return outcome


# ---- a full disk


def full_disk(base: Path, reference: Trial, count: int, seed: int) -> Outcome:
    """Fill the disk for some steps of a run. Needs the right to mount a small file system."""
    rng = random.Random(seed)
    outcome = Outcome("a full disk for some steps", "the run ends, or its last checkpoint is lost")
    failed = 0
    for number in range(count):
        trial = Trial(base, f"full-{number}")
        trial.checkpoints.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(trial.checkpoints)]
        if subprocess.run(mount, capture_output=True).returncode:
            outcome.facts["not tried"] = "no right to mount a file system"
            return outcome
        try:
            running = trial.start()
            first = rng.randrange(3, NUM_STEPS // 2)
            _wait_for(trial, running, first)
            _fill(trial.checkpoints / "filler")
            _wait_for(trial, running, first + rng.randrange(5, 12))
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
    outcome.facts["failed saves"] = failed
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
    """Count how often each document is trained on in each epoch."""
    outcome = Outcome(
        f"{NUM_EPOCHS} epochs of a small corpus, on 1 and 2 ranks, uninterrupted and killed",
        "a document that is not trained on exactly once per epoch",
    )
    tokenizer = RustBPETokenizer.from_directory(base / "tokenizer")
    [shard] = (base / "data").rglob("train_*.parquet")
    documents = Documents([shard])
    numbers = [int(text.split("|")[0][1:]) for text in documents]
    order = block_order(LoopOptions.seed, 0, NUM_STEPS * ROWS)  # the run is a single block
    for trial in trials:
        seen: Counter[tuple[int, int]] = Counter()
        rows = trial.rows()
        trained = [rows[step, row][-1] for step in range(1, NUM_STEPS + 1) for row in range(ROWS)]
        stream = [token for place in order for token in trained[place]]
        tokens = [token for token in stream if token != tokenizer.get_bos_token_id()]
        found = re.findall(r"<(\d+)\| [a-z ]+ \|\1>", tokenizer.decode(tokens))
        for place, number in enumerate(found):
            seen[place // len(documents), int(number)] += 1
        outcome.tried += NUM_EPOCHS * len(documents)
        for epoch in range(NUM_EPOCHS):
            for number in numbers:
                times = seen[epoch, number]
                outcome.expect(times == 1, f"{trial.tag}: {number} {times} times in epoch {epoch}")
    outcome.facts["runs"] = len(trials)
    return outcome
